"""Handwritten digits: the 10,000 that come with the package, or the user's MNIST files.

Nothing is downloaded.
"""

import contextlib
import gzip
import hashlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from coordrl.config import SettingsError
from coordrl.digits import load_digits
from coordrl.files import reason

Bytes = npt.NDArray[np.uint8]

_SHIPPED_SHA256 = "d8870085e085c862e254ac1fd4a7b109021b7fd4ff9d6cf52ccc9f29042a0ec0"
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff"}
_UNREADABLE = (
    *(OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, struct.error),
    *(
        NotImplementedError,
        RuntimeError,
        SyntaxError,
        tokenize.TokenError,
    ),  # for damaged .npz files
)
_UNREADABLE_PICTURE = (
    *(OSError, UnidentifiedImageError, Image.DecompressionBombError),
    *(SyntaxError, ValueError),  # for damaged PNGs
)


@dataclass(frozen=True)
class DigitSet:
    """Pictures of digits and their labels.

    Attributes:
        images: Ink from 0 to 255, ``(N, 28, 28)``, uint8; no picture is blank.
        labels: Digits from 0 to 9, ``(N,)``, uint8.

    Raises:
        SettingsError: If images or labels are not as described; the message says how.
    """

    images: Bytes
    labels: Bytes

    def __post_init__(self) -> None:
        shape = self.images.shape
        if self.images.dtype != np.uint8 or len(shape) != 3 or shape[1:] != (28, 28):
            raise SettingsError(
                f"digits must be bytes of shape (N, 28, 28), got {self.images.dtype} of {shape}"
            )
        if self.labels.shape != shape[:1]:
            raise SettingsError(
                f"{shape[0]} digits need as many labels, got shape {self.labels.shape}"
            )
        if shape[0] == 0:
            raise SettingsError("there is no digit in it")
        if self.labels.dtype != np.uint8 or self.labels.max() > 9:
            raise SettingsError("labels must be bytes from 0 to 9")
        blank = np.flatnonzero(~self.images.any(axis=(1, 2)))
        if len(blank):
            raise SettingsError(f"digit {blank[0]} is blank, as are {len(blank) - 1} others")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: slice | npt.NDArray[np.int64]) -> "DigitSet":
        """Return some of the digits."""
        return DigitSet(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class DigitSplit:
    """Training digits, test digits, and their source."""

    train: DigitSet
    test: DigitSet
    source: str
    """Description of the source, for the user."""

    @property
    def fingerprint(self) -> str:
        """The first characters of a checksum of all pictures and labels."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            digest.update(part.images.tobytes())
            digest.update(part.labels.tobytes())
        return digest.hexdigest()[:16]


def load_split(path: Path | None = None) -> DigitSplit:
    """Read the user's digits, or those that come with the package.

    Sources without a split of their own are split here: a tenth, chosen at random but always the
    same, is for testing.

    Args:
        path: A folder with the four MNIST files in IDX format (``train-images-idx3-ubyte`` ...,
            plain or ``.gz``); a folder with a subfolder of pictures for each digit, ``0`` to ``9``;
            or an ``.npz`` file with ``x_train, y_train, x_test, y_test``, with ``x, y`` or with
            ``images, labels``. None for the digits that come with the package.

    Raises:
        SettingsError: If ``path`` is missing, of another kind, or cannot be read.

    Example:
        >>> digits = load_split()
        >>> digits.source
        '10,000 MNIST digits that come with coordrl (9,000 to train with, 1,000 to test with)'
    """
    if path is None:
        shipped = DigitSet(*load_digits())  # in random order
        if hashlib.sha256(shipped.images.tobytes()).hexdigest() != _SHIPPED_SHA256:
            raise SettingsError("the digits that come with coordrl have changed; install it anew")
        return _digits(shipped[:9000], shipped[9000:], "MNIST digits that come with coordrl")
    with _naming(path):
        if path.is_dir():
            sets = _read_idx_folder(path) or _read_image_folder(path)
        elif path.exists():
            sets = _read_npz(path)
        else:
            raise SettingsError("there is no such file or folder")
        train, test = sets if len(sets) == 2 else _split(sets[0])
    return _digits(train, test, f"digits from {path}")


def _digits(train: DigitSet, test: DigitSet, what: str) -> DigitSplit:
    total = len(train) + len(test)
    parts = f"{len(train):,} to train with, {len(test):,} to test with"
    return DigitSplit(train, test, f"{total:,} {what} ({parts})")


def _split(digits: DigitSet) -> tuple[DigitSet, DigitSet]:
    if len(digits) < 10:
        raise SettingsError(f"a split needs at least 10 digits, got {len(digits)}")
    order = np.random.default_rng(0).permutation(len(digits))
    num_test = len(digits) // 10
    return digits[np.sort(order[num_test:])], digits[np.sort(order[:num_test])]


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the path to error messages."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError(f"--mnist {path}: {error}") from error
    except _UNREADABLE as error:
        raise SettingsError(f"--mnist {path}: cannot be read: {reason(error)}") from error


def _read_npz(path: Path) -> tuple[DigitSet, ...]:
    with path.open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise SettingsError("is not an .npz file; it needs named arrays such as x and y")
        for names in ("x_train y_train x_test y_test", "x y", "images labels"):
            keys = names.split()
            if set(keys) <= set(arrays.files):
                pairs = zip(keys[::2], keys[1::2], strict=True)
                return tuple(DigitSet(arrays[x], _label_bytes(arrays[y])) for x, y in pairs)
    raise SettingsError(
        f"holds {', '.join(arrays.files) or 'nothing'}; it needs x_train, y_train, x_test and"
        " y_test, or x and y, or images and labels"
    )


def _label_bytes(labels: npt.NDArray[np.generic]) -> Bytes:
    with np.errstate(invalid="ignore"):  # NaN is no byte either
        as_bytes = labels.astype(np.uint8)
    if not np.array_equal(as_bytes, labels):
        raise SettingsError("labels must be whole numbers from 0 to 9")
    return as_bytes


def _read_idx_folder(folder: Path) -> tuple[DigitSet, ...]:
    names = [
        f"{part}-{what}"
        for part in ("train", "t10k")
        for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    found = [_with_any_suffix(folder, name) for name in names]
    if not any(found):
        return ()
    arrays = []
    for name, path in zip(names, found, strict=True):
        if path is None:
            raise SettingsError(f"lacks {name}, plain or .gz")
        try:
            arrays.append(_read_idx(path))
        except _UNREADABLE as error:
            raise SettingsError(f"{path.name} cannot be read: {reason(error)}") from error
    return DigitSet(arrays[0], arrays[1]), DigitSet(arrays[2], arrays[3])


def _with_any_suffix(folder: Path, name: str) -> Path | None:
    # Some unpackers replace the second dash by a dot.
    for stem in (name, name.replace("-idx", ".idx")):
        for suffix in ("", ".gz"):
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    return None


def _read_idx(path: Path) -> Bytes:
    """Read a file of bytes in LeCun's IDX format: 0, 0, 8, rank, sizes in big-endian, bytes."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    zeros, kind, rank = struct.unpack_from(">HBB", data)
    if zeros != 0 or kind != 8:
        raise ValueError("it does not start as an IDX file of bytes")
    shape = struct.unpack_from(f">{rank}I", data, 4)
    expected, got = int(np.prod(shape, dtype=np.int64)), len(data) - 4 - 4 * rank
    if got != expected:
        raise ValueError(f"it promises {expected:,} bytes of shape {shape} and has {got:,}")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()


def _read_image_folder(folder: Path) -> tuple[DigitSet, ...]:
    images, labels = [], []
    for label in range(10):
        for path in sorted((folder / str(label)).glob("*")):
            if path.suffix.lower() in _IMAGE_SUFFIXES:
                images.append(_read_image(path))
                labels.append(label)
    if not images:
        raise SettingsError(
            "holds neither train-images-idx3-ubyte and its three companions nor folders 0 to 9 of"
            " pictures"
        )
    return (DigitSet(np.stack(images), np.array(labels, np.uint8)),)


def _read_image(path: Path) -> Bytes:
    try:
        with Image.open(path) as picture:
            mode, image = picture.mode, np.asarray(picture.convert("L"))
    except _UNREADABLE_PICTURE as error:
        raise SettingsError(
            f"{path.parent.name}/{path.name} cannot be read: {reason(error)}"
        ) from error
    if mode.startswith(("I", "F")):  # Pillow has cut off their ink at 255
        raise SettingsError(
            f"{path.parent.name}/{path.name} has more than 8 bits a pixel ({mode}); digits have"
            " bytes"
        )
    if image.shape != (28, 28):
        raise SettingsError(
            f"{path.parent.name}/{path.name} is {image.shape[1]}x{image.shape[0]} pixels; digits"
            " are 28x28, white ink on black"
        )
    return image
