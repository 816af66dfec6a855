"""Files that are written whole or not at all, and what is wrong with those that are not."""

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from coordrl.errors import UserError


class RunError(UserError, RuntimeError):
    """What a user can mend, in one sentence: a file, a folder, a build, a run."""


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` when the block ends well, and leaves it alone if not.

    Raises:
        RunError: If the file cannot be written; ``path`` is as it was.

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
        with contextlib.suppress(OSError):  # there is none, or no such folder
            partial.unlink()


def require_writable(path: Path) -> None:
    """Check that :func:`atomic_file` will be able to write ``path``, before long work for it.

    Raises:
        RunError: If it will not: there is no such folder, or it may not be written to.

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
        with contextlib.suppress(OSError):  # there is none, or no such folder
            partial.unlink()


def _replaceable(path: Path) -> Path:
    """Return what a path leads to, past links, which stay.

    Raises:
        RunError: If that is a device, or a pipe, which a file would replace for everybody.
    """
    try:
        is_special = path.exists() and not path.is_file() and not path.is_dir()
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # the latter where links lead in a circle
        raise RunError(f"cannot write {path}: {reason(error)}") from error
    if is_special:
        raise RunError(f"cannot write {path}: it is no file that could be replaced; name another")
    return target


def make_folder(path: Path) -> None:
    """Make a folder where there is none, before long work whose results go there.

    Raises:
        RunError: If that is not possible, or nothing may be written into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        _touch_beside(path / "results")
    except OSError as error:
        raise RunError(f"{path} cannot be a folder for results: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return what an error says, without the path and number that the system's come with.

    Example:
        >>> reason(FileNotFoundError(2, "No such file or directory", "run/settings.toml"))
        'No such file or directory'
    """
    return getattr(error, "strerror", None) or str(error)


def temporary_name(path: Path, word: str = "partial") -> Path:
    """Return a name of its own, beside ``path``, for what is not whole yet, or no more.

    Containers have the same processes, so their numbers alone would not tell names apart.
    """
    return path.with_name(f".{path.name}.{word}-{os.getpid()}-{secrets.token_hex(4)}")


def flush_files(folder: Path) -> None:
    """See that the files of a folder, and their names, are on the disk."""
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    flush_folder(folder)


def flush_folder(path: Path) -> None:
    """See that a rename in a folder is on the disk, where the system can do that to a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block with a folder, to change a file in it.

    Where the system cannot lock folders, nobody waits.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # of file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
