"""Any pictures from the disk: LSUN bedrooms as they are distributed, or a folder.

Yu et al., "LSUN", 2015, https://arxiv.org/abs/1506.03365. A category is an LMDB, a folder with one
large file ``data.mdb`` that holds three million compressed pictures. Pictures are center-cropped to
a square and scaled; they are decoded on demand, by threads. They are seen as viewers show them,
turned as their EXIF data say and with white behind transparent pixels; torchvision's
``ImageFolder`` ignores both.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakValueDictionary

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from coordrl.errors import UserError
from coordrl.files import reason
from coordrl.generative.data import Pictures

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
_LSUN_FOLDER = Path("bedroom_train_lmdb")


class DataError(UserError, ValueError):
    """Pictures are missing or cannot be read; the message is one sentence that says why."""


class PictureFolder:
    """Pictures in a folder and its subfolders, sorted by name.

    Args:
        path: The folder.
        size: Height and width that pictures are scaled to.

    Raises:
        DataError: If it holds no pictures; in :meth:`batch`, if a picture cannot be read.
    """

    def __init__(self, path: Path, size: int) -> None:
        found = (file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
        self.path, self.size = path, size
        self.files = sorted(found)
        if not self.files:
            kinds = ", ".join(sorted(_SUFFIXES))
            raise DataError(f"{path} holds no pictures; expected files that end in {kinds}")

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.files)

    def batch(self, indices: Tensor, device: torch.device) -> Tensor:
        """Read the pictures of these numbers."""

        def read(index: int) -> Tensor:
            file = self.files[index]
            return _decode(lambda: file.open("rb"), self.size, str(file))

        return _together(read, indices, device)

    def checksum(self) -> str:
        """Return a checksum of the names and sizes of the files."""
        return _checksum(
            os.fsencode(file.relative_to(self.path)) + b"/%d" % _bytes_in(file)
            for file in self.files
        )


class LmdbPictures:
    """The compressed pictures of an LMDB, such as a category of LSUN.

    Args:
        path: The folder that holds ``data.mdb``.
        size: Height and width that pictures are scaled to.

    Raises:
        DataError: If the library ``lmdb`` is missing, or the folder cannot be read; in
            :meth:`batch`, if a picture cannot.
    """

    def __init__(self, path: Path, size: int) -> None:
        try:
            import lmdb
        except ImportError as error:
            raise DataError(
                f"{path} is an LMDB; install its library: pip install 'coordrl[lsun]'"
            ) from error
        self.path, self.size = path, size
        try:
            self._database = _shared(lmdb, path)
            with self._database.begin() as transaction:
                self.keys = list(transaction.cursor().iternext(keys=True, values=False))
        except lmdb.Error as error:
            raise DataError(f"{path} cannot be read as an LMDB: {reason(error)}") from error
        if not self.keys:
            raise DataError(f"{path} holds no pictures")

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.keys)

    def batch(self, indices: Tensor, device: torch.device) -> Tensor:
        """Read the pictures of these numbers."""

        def read(index: int) -> Tensor:
            key = self.keys[index]
            with self._database.begin() as transaction:
                compressed = bytes(transaction.get(key) or b"")
            return _decode(lambda: io.BytesIO(compressed), self.size, f"{self.path}, {key!r}")

        return _together(read, indices, device)

    def checksum(self) -> str:
        """Return a checksum of the keys."""
        return _checksum(self.keys)


# LMDB opens a file once in a process: sets of the same pictures share it while one of them is used.
_DATABASES: WeakValueDictionary[Path, Any] = WeakValueDictionary()


def _shared(lmdb: Any, path: Path) -> Any:
    place = path.resolve()
    database = _DATABASES.get(place)
    if database is None:
        database = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
        pages = database.info()["last_pgno"] + 1
        if (path / "data.mdb").stat().st_size < pages * database.stat()["psize"]:
            database.close()  # or it could not be opened again
            # Reading past its end would kill the process.
            raise DataError(f"{path}/data.mdb was cut off; unpack or download it again")
        _DATABASES[place] = database
    return database


def open_pictures(name: str, size: int) -> Pictures:
    """Open the pictures of a folder, whether files or an LMDB.

    Args:
        name: The folder; ``"lsun"`` is the one where LSUN's own script unpacks its bedrooms.
        size: Height and width that pictures are scaled to.

    Raises:
        DataError: If there is no such folder, or no pictures in it.
    """
    path = _LSUN_FOLDER if name == "lsun" else Path(name)
    if not name or not path.is_dir():
        hint = (
            "; download the category bedroom from the authors of LSUN and unpack it here, or name"
            " its folder"
            if name == "lsun"
            else "; name a folder of pictures, an LMDB, clevr or lsun"
        )
        raise DataError(f"there is no folder {str(path) if name else repr(name)}{hint}")
    if (path / "data.mdb").exists():
        return LmdbPictures(path, size)
    return PictureFolder(path, size)


def _checksum(names: Iterable[bytes]) -> str:
    checksum = hashlib.sha256()
    for name in names:
        checksum.update(b"%d:%b" % (len(name), name))
    return checksum.hexdigest()


def _bytes_in(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # a link to nowhere, say; the error is told when the picture is read
        return -1


def _together(read: Callable[[int], Tensor], indices: Tensor, device: torch.device) -> Tensor:
    """Decode in threads, and scale on the device."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        pictures = torch.stack(list(pool.map(read, indices.tolist())))
    return pictures.to(device).float() / 127.5 - 1


def _decode(open_file: Callable[[], BinaryIO], size: int, name: str) -> Tensor:
    """Return a center crop of a picture, ``(3, size, size)``, as uint8."""
    try:
        with open_file() as file, Image.open(file) as image:
            colors = _on_white(_eight_bits(_turned(image)))
            square = ImageOps.fit(colors, (size, size), Image.Resampling.LANCZOS)
    except (
        *(OSError, UnidentifiedImageError, Image.DecompressionBombError),
        *(SyntaxError, ValueError),  # Pillow raises these for damaged PNGs
    ) as error:
        raise DataError(f"{name} cannot be read as a picture: {reason(error)}") from error
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def _turned(image: Image.Image) -> Image.Image:
    """Return a picture upright, as its EXIF data say."""
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF data; the pixels are read already
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """Return a picture in red, green and blue, with white behind its transparent pixels."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return a picture with its grays of 16 bits scaled to 8; Pillow would cut them off at 255."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
