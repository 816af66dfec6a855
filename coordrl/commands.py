"""What the training commands share: arguments, checks, and exit statuses."""

import errno
import io
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TextIO, TypeVar

import tyro

from coordrl.config import Override, SettingsError, parse_overrides
from coordrl.errors import UserError
from coordrl.memory import lacking_memory
from coordrl.stopping import Interrupted

_Arguments = TypeVar("_Arguments")


def refuse_ignored(arguments: object, names: Iterable[str], reason: str) -> None:
    """Reject arguments that a command would ignore.

    Args:
        arguments: A dataclass of a script's arguments, all of which have defaults.
        names: Arguments that must have their defaults.
        reason: Why they would be ignored.

    Raises:
        SettingsError: If one of them has another value.

    Example:
        >>> refuse_ignored(ExperimentArguments(seeds=3), ["seeds"], "the runs are there")
        Traceback (most recent call last):
        coordrl.config.files.SettingsError: --seeds would be ignored: the runs are there
    """
    defaults = type(arguments)()
    for name in names:
        if getattr(arguments, name) != getattr(defaults, name):
            raise SettingsError(f"--{name.replace('_', '-')} would be ignored: {reason}")


@dataclass(frozen=True)
class ExperimentArguments:
    """Arguments of all commands that train over several seeds; each adds its own."""

    seeds: int = 1
    """Number of runs, with the seeds 0, 1, 2, ..."""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """Settings that win over the configuration, each as name=value."""
    report: Path | None = None
    """Where the table and its figures go; the folder of the runs if not given."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the networks; auto takes the GPU if there is one."""
    threads: int | None = None
    """Threads of PyTorch on the CPU; all cores if not given."""

    def overrides(self) -> list[Override]:
        """Return the settings that were given.

        Raises:
            SettingsError: If one is not of the form name=value.
        """
        return parse_overrides(self.set)


def run_command(
    arguments: type[_Arguments],
    work: Callable[[_Arguments, str], str],
    script: str,
    argv: Sequence[str] | None,
) -> int:
    """Parse a command, do its work, and return the exit status of :func:`exit_status`.

    Args:
        arguments: A dataclass of the command's arguments.
        work: Called with the parsed arguments and the command as typed; returns a text to print.
        script: Name of the script.
        argv: Arguments to parse; those of the process if None.
    """
    escape_what_stdout_lacks()
    parsed = tyro.cli(arguments, args=argv)
    command = typed_command(script, argv)
    return exit_status(script, lambda: work(parsed, command))


def typed_command(script: str, argv: Sequence[str] | None = None) -> str:
    """Return the command as typed, for records.

    Args:
        script: Name of the script.
        argv: Its arguments; those of the process if None.

    Example:
        >>> typed_command("train_gan.py", ["--data", "my pictures"])
        "python scripts/train_gan.py --data 'my pictures'"
    """
    return shlex.join(["python", f"scripts/{script}", *(sys.argv[1:] if argv is None else argv)])


def exit_status(script: str, work: Callable[[], str]) -> int:
    """Do a script's work, print the text that it returns, and return the exit status.

    Args:
        script: Name of the script, for messages.
        work: Returns the text.

    Returns:
        0; 2 after a :class:`~coordrl.errors.UserError` or out of memory, reported in one line; 130
        after a signal.

    Example:
        >>> exit_status("table.py", lambda: "3 runs")
        3 runs
        0
    """
    try:
        text = work()
    except Interrupted:
        _write("stopped; the same command goes on from what was saved", sys.stderr)
        return 130
    except KeyboardInterrupt:
        _write("aborted; the same command goes on from what was saved", sys.stderr)
        return 130
    except UserError as error:
        _write(f"{script}: {error}", sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        reason = lacking_memory(error)
        if reason is None:
            raise
        advice = "lower the sizes and numbers that were set"
        _write(f"{script}: there is not enough memory; {advice} ({reason})", sys.stderr)
        return 2
    with reader_may_leave():
        _write(text, sys.stdout)
    return 0


def escape_what_stdout_lacks() -> None:
    """Print characters that stdout cannot encode, as in file names, as escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _write(text: str, file: TextIO | None) -> None:
    """Write a line, unless the file was closed when the process began, as by ``>&-``."""
    if file is not None:
        file.write(f"{text}\n")


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Ignore errors of printing when the reader is gone.

    That happens with ``| head -1``, and after a terminal was closed.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        # Python flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
