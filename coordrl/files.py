"""Files that are written whole or not at all, and errors that say why not."""

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from coordrl.errors import UserError


class RunError(UserError, RuntimeError):
    """A problem with a file, a folder, a build or a run; the message says what the user can do."""


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` if the block ends without an error, and only then.

    Raises:
        RunError: If the file cannot be written; ``path`` is unchanged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "curve.csv"
        >>> with atomic_file(path) as file:
        ...     _ = file.write(b"step,return")
        >>> path.read_text()
        'step,return'
    """
    target = _replaceable(path)
    partial = temporary_name(target)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        flush_folder(target.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {reason(error)}; nothing was overwritten") from error
    finally:
        with contextlib.suppress(OSError):  # the file or its folder does not exist
            partial.unlink()


def require_writable(path: Path) -> None:
    """Check that :func:`atomic_file` will be able to write ``path``, before long work for it.

    Raises:
        RunError: If it will not: the folder is missing, or may not be written to.

    Example:
        >>> require_writable(Path("missing") / "record.json")
        Traceback (most recent call last):
        coordrl.files.RunError: cannot write missing/record.json: No such file or directory
    """
    if path.is_dir():
        raise RunError(f"cannot write {path}: it is a folder; name a file in it")
    try:
        _touch_beside(_replaceable(path))
    except OSError as error:
        raise RunError(f"cannot write {path}: {reason(error)}") from error


def _touch_beside(path: Path) -> None:
    """Make a file beside a path and delete it, to see whether that can be done."""
    partial = temporary_name(path)
    try:
        partial.touch()
    finally:
        with contextlib.suppress(OSError):  # the file or its folder does not exist
            partial.unlink()


def _replaceable(path: Path) -> Path:
    """Return the target of a path, following symbolic links, which stay.

    Raises:
        RunError: If the target is a device or a pipe, which a file would replace for everybody.
    """
    try:
        is_special = path.exists() and not path.is_file() and not path.is_dir()
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # the latter where links lead in a circle
        raise RunError(f"cannot write {path}: {reason(error)}") from error
    if is_special:
        raise RunError(f"cannot write {path}: it is not a regular file; name another")
    return target


def make_folder(path: Path) -> None:
    """Make a folder, if it is missing, before long work whose results go there.

    Raises:
        RunError: If that is not possible, or the folder is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        _touch_beside(path / "results")
    except OSError as error:
        raise RunError(f"{path} cannot be a folder for results: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return an error's text, without the path and number of the system's errors.

    Example:
        >>> reason(FileNotFoundError(2, "No such file or directory", "run/settings.toml"))
        'No such file or directory'
    """
    return getattr(error, "strerror", None) or str(error)


def temporary_name(path: Path, word: str = "partial") -> Path:
    """Return a unique name beside ``path`` for something incomplete or being replaced.

    Process numbers alone would not be unique: containers have the same ones.
    """
    return path.with_name(f".{path.name}.{word}-{os.getpid()}-{secrets.token_hex(4)}")


def flush_files(folder: Path) -> None:
    """Flush the files of a folder, and their names, to the disk."""
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    flush_folder(folder)


def flush_folder(path: Path) -> None:
    """Flush a rename in a folder to the disk, if the system can flush folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, shared by all processes, while changing a file in it.

    On systems that cannot lock folders, this does nothing.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # the file system has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
