"""Folders of runs that stay intact.

A run folder holds the settings it was started with, and numbered checkpoints. A checkpoint is
written under another name, flushed to the disk and renamed, and renamed before it is deleted, so
that a run killed at any moment leaves only whole checkpoints behind. A manifest with the sizes and
checksums of its files reveals one that a failing disk has cut off.
"""

import contextlib
import hashlib
import io
import json
import shutil
import sys
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from coordrl.files import RunError, atomic_file, flush_files, flush_folder, reason

SETTINGS_FILE = "settings.toml"
MANIFEST_FILE = "manifest.json"
_REPLACED = ".replaced-"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint.

    Attributes:
        path: Its folder.
        step: Its number.
        skipped: What is wrong with each newer checkpoint that is not whole, one sentence each.
    """

    path: Path
    step: int
    skipped: tuple[str, ...] = ()


class RunFolder:
    """The folder of a run; made by :func:`open_run`.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def checkpoint(self, step: int, *, keep: int = 2) -> Iterator[Path]:
        """Yield a folder to fill, which becomes the checkpoint of ``step`` when the block ends.

        Args:
            step: Number of the checkpoint, at least 0.
            keep: Checkpoints to keep, this one included; older ones are deleted. So are newer ones:
                they are damaged, or the run has gone back to this step.

        Raises:
            RunError: If a file cannot be written; older checkpoints are unchanged.
        """
        checkpoints = self.path / "checkpoints"
        partial = checkpoints / f".partial-{step}"
        final = checkpoints / f"{step:012d}"
        replaced = final.with_name(f"{_REPLACED}{final.name}")
        self._put_back()
        try:
            for left in checkpoints.glob(".partial-*"):  # left by killed processes
                shutil.rmtree(left, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            _seal(partial, step)
            if final.exists():
                final.rename(replaced)
            partial.rename(final)
            flush_folder(checkpoints)
        except OSError as error:
            raise RunError(
                f"cannot write the checkpoint of step {step} in {self.path}: {reason(error)}; "
                "earlier checkpoints are untouched, make room and resume"
            ) from error
        finally:
            self._put_back()
            shutil.rmtree(partial, ignore_errors=True)
        older = [path for path in self._checkpoints() if path.name < final.name]
        newer = [path for path in self._checkpoints() if path.name > final.name]
        for path in older[keep - 1 :] + newer:
            with contextlib.suppress(OSError):  # a failed cleanup should not end a run
                _delete(path)

    def newest_checkpoint(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None if the run has written none yet.

        Raises:
            RunError: If there are checkpoints, but none of them is whole.
        """
        self._put_back()
        skipped: list[str] = []
        for path in self._checkpoints():
            damage = _damage(path)
            if damage is None:
                return Checkpoint(path, int(path.name), tuple(skipped))
            skipped.append(f"checkpoint {path.name} is not whole: {damage}")
        if skipped:
            raise RunError(
                f"{self.path} has no whole checkpoint to go on from ({'; '.join(skipped)}); "
                "start anew in another folder"
            )
        return None

    def _put_back(self) -> None:
        """Give a replaced checkpoint its name back, or delete it if the new one has taken it."""
        for replaced in (self.path / "checkpoints").glob(f"{_REPLACED}*"):
            final = replaced.with_name(replaced.name.removeprefix(_REPLACED))
            if final.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # there may be earlier checkpoints
                    replaced.rename(final)

    def _checkpoints(self) -> list[Path]:
        """Return the folders of all checkpoints, the newest first."""
        folders = (self.path / "checkpoints").glob("[0-9]*")
        return sorted((path for path in folders if path.name.isdigit()), reverse=True)


def save_tensors(state: object, path: Path) -> None:
    """Write a file like ``torch.save``, but raise an OSError if that fails.

    ``torch.save`` hides the reason, such as a full disk, in errors of its own.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "state.pt"
        >>> save_tensors({"step": 3}, path)
        >>> torch.load(path, weights_only=True)
        {'step': 3}
    """
    content = io.BytesIO()
    torch.save(state, content)
    path.write_bytes(content.getbuffer())


@contextlib.contextmanager
def open_run(
    path: Path,
    settings: str,
    *,
    resume: bool = False,
    may_differ: Collection[str] = (),
    defaults: str = "",
    meanings: Mapping[str, Callable[[Any], object]] | None = None,
) -> Iterator[RunFolder]:
    """Make the folder of a new run, or open an existing one, and lock out other processes.

    Args:
        path: The folder. A new run needs one that is missing or empty.
        settings: The run's settings as TOML, kept in the folder.
        resume: Continue the run in the folder, whose settings must be equal.
        may_differ: Full names of settings that a resumed run may change.
        defaults: Values, as TOML, of settings that an older run's file or ``settings`` lacks.
        meanings: Functions of settings with several spellings, by full names; what they return is
            compared instead.

    Raises:
        RunError: If the folder holds another run or no run, or is in use, or settings cannot be
            encoded as UTF-8.

    If a new run fails before anything else is written to its folder, the folder is left empty: its
    settings may have been wrong.
    """
    settings_file = path / SETTINGS_FILE
    try:
        content = settings.encode()
    except UnicodeEncodeError as error:
        lost = settings[error.start : error.end]
        raise RunError(
            f"settings are kept as UTF-8, and a name in them has {lost!r}, which is not; rename"
            " that file or folder"
        ) from error
    try:
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; choose another folder for the run")
        if resume:
            if not settings_file.exists():
                raise RunError(f"{path} holds no run to resume; leave out --resume to start one")
            _require_same(settings_file, settings, may_differ, defaults, meanings or {})
        elif settings_file.exists():
            raise RunError(f"{path} already holds a run; add --resume or choose another folder")
        elif path.exists() and any(not item.name.startswith(".") for item in path.iterdir()):
            raise RunError(f"{path} is not empty and holds no run; choose another folder")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot use the run folder {path}: {reason(error)}") from error
    with _lock(path):
        with atomic_file(settings_file) as file:
            file.write(content)
        try:
            yield RunFolder(path)
        except Exception:
            kept = {item.name for item in path.iterdir() if not item.name.startswith(".")}
            if not resume and kept <= {SETTINGS_FILE}:
                settings_file.unlink(missing_ok=True)
            raise


def _require_same(
    settings_file: Path,
    settings: str,
    may_differ: Collection[str],
    defaults: str,
    meanings: Mapping[str, Callable[[Any], object]],
) -> None:
    try:
        known = tomllib.loads(settings_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{settings_file} cannot be read: {reason(error)}; start anew elsewhere"
        ) from error
    given = tomllib.loads(settings)
    lost = [name for name, value in given.items() if isinstance(value, dict) and name not in known]
    if lost:
        raise RunError(
            f"{settings_file} was cut off, it lacks [{lost[0]}]; put it back, or start anew"
            " elsewhere"
        )
    old, new = (_flat(tomllib.loads(defaults)) | _flat(own) for own in (known, given))
    for key in sorted((old.keys() | new.keys()) - set(may_differ)):
        there, here = old.get(key), new.get(key)
        if key in meanings:
            there, here = meanings[key](there), meanings[key](here)
        if there != here:
            raise RunError(
                f"{settings_file.parent} belongs to a run with other settings: {key} is "
                f"{old.get(key)!r} there and {new.get(key)!r} here; choose another folder"
            )


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases however the process ends."""
    try:
        opened = (path / ".lock").open("w")
    except OSError as error:
        raise RunError(f"cannot use the run folder {path}: {reason(error)}") from error
    with opened as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"{path} is in use by another process; let it end first") from error
            except OSError:  # of file systems without locks, where nobody is kept out
                pass
        yield


def _passing(checkpoint: Path) -> Path:
    """Return the name of a checkpoint while it is being deleted, when it may be incomplete."""
    return checkpoint.with_name(f".partial-{checkpoint.name}")


def _delete(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint.rename(_passing(checkpoint)), ignore_errors=True)


def _seal(folder: Path, step: int) -> None:
    """Write the manifest of a filled folder and flush everything to the disk."""
    files = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.name] = {"bytes": path.stat().st_size, "sha256": checksum}
    manifest = json.dumps({"step": step, "files": files}, indent=1)
    (folder / MANIFEST_FILE).write_text(manifest, encoding="utf-8")
    flush_files(folder)


def _damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if it is whole."""
    try:
        files = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            size = (folder / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes of {expected['bytes']}"
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    return f"{name} has changed since it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({reason(error)})"
    return None
