"""What the commands that train share: where to compute, records, how to end."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from coordrl.config import SettingsError
from coordrl.memory import keep_freed_memory
from coordrl.runs import RunError, atomic_file

_Result = TypeVar("_Result")


class Interrupted(Exception):
    """The user asked to stop. Finished runs are saved, and others can be gone on with."""


def use_device(name: str, threads: int | None = None) -> str:
    """Return the device to compute on, and prepare the CPU for long work.

    From here on the process takes so many threads, and keeps freed memory; see
    :func:`~coordrl.memory.keep_freed_memory`.

    Args:
        name: ``"cpu"``, ``"cuda"``, or ``"auto"``: a GPU if there is one.
        threads: Threads of PyTorch, 1 or more; as many as it takes itself if None.

    Raises:
        SettingsError: If there is no GPU, or fewer than one thread is asked for.

    Example:
        >>> use_device("cpu")
        'cpu'
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise SettingsError("device = 'cuda', but torch finds no GPU; choose --device cpu")
    if threads is not None:
        if threads < 1:
            raise SettingsError(f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    keep_freed_memory()
    if name == "auto":
        return "cuda" if has_gpu else "cpu"
    return name


def refuse_ignored(arguments: object, names: Iterable[str], reason: str) -> None:
    """Refuse arguments of a command that it would not look at.

    Args:
        arguments: A dataclass of a script's arguments, all of which have defaults.
        names: Those that may only have their defaults.
        reason: Why.

    Raises:
        SettingsError: If one of them has another value.
    """
    defaults = type(arguments)()
    for name in names:
        if getattr(arguments, name) != getattr(defaults, name):
            raise SettingsError(f"--{name.replace('_', '-')} would be ignored: {reason}")


def write_json(record: object, path: Path) -> None:
    """Write a record whole or not at all.

    Raises:
        RunError: If the file cannot be written; ``path`` is as it was.
    """
    with atomic_file(path) as file:
        file.write(json.dumps(record, indent=1, allow_nan=True).encode())


def read_json(path: Path, build: Callable[[Any], _Result]) -> _Result:
    """Return what ``build`` makes of a record that :func:`write_json` wrote.

    Raises:
        RunError: If the file cannot be read, or holds something else.
    """
    try:
        return build(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{path} cannot be read ({error}); delete it, and the same command makes it again"
        ) from error


def exit_status(script: str, work: Callable[[], str], *others: type[Exception]) -> int:
    """Do a script's work, print the text that it returns, and return the exit status.

    Args:
        script: Name of the script, for messages.
        work: Returns the text.
        *others: Errors that a user can mend, beside :class:`RunError` and :class:`SettingsError`.

    Returns:
        0; 2 after an error that a user can mend, told in one line; 130 after Ctrl-C or SIGTERM.
    """
    mendable: tuple[type[Exception], ...] = (RunError, SettingsError, *others)
    try:
        text = work()
    except Interrupted:
        sys.stderr.write("stopped; the same command goes on from here\n")
        return 130
    except KeyboardInterrupt:
        sys.stderr.write("aborted; the same command goes on from what was saved\n")
        return 130
    except mendable as error:
        sys.stderr.write(f"{script}: {error}\n")
        return 2
    with reader_may_leave():
        sys.stdout.write(f"{text}\n")
    return 0


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Print without an error where nobody reads any more, as behind ``| head -1``."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
