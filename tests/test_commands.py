"""What the commands that train share: where to compute, how to end."""

import os
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from coordrl.commands import exit_status, refuse_ignored
from coordrl.config import SettingsError
from coordrl.errors import UserError
from coordrl.files import RunError
from coordrl.stopping import Interrupted

SCRIPTS = Path(__file__).parents[1] / "scripts"


def fail(error: BaseException) -> str:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("no pictures"), 2, "train.py: no pictures\n"),
        (Interrupted(), 130, "stopped; the same command goes on from what was saved\n"),
        (KeyboardInterrupt(), 130, "aborted; the same command goes on from what was saved\n"),
        (RunError("the disk is full"), 2, "train.py: the disk is full\n"),
        (SettingsError("no such key"), 2, "train.py: no such key\n"),
        (
            MemoryError(),
            2,
            "train.py: there is not enough memory; lower the sizes and numbers that were set"
            " (MemoryError)\n",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nat 0x1"),
            2,
            "train.py: there is not enough memory; lower the sizes and numbers that were set"
            " (DefaultCPUAllocator: can't allocate memory: you tried)\n",
        ),
    ],
)
def test_what_a_user_can_mend_is_told_in_one_line(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status("train.py", lambda: fail(error)) == status
    assert capsys.readouterr() == ("", said)


@pytest.mark.skipif(os.name != "posix", reason="pipes elsewhere are others")
@pytest.mark.parametrize("words", [1, 1_000_000])  # one is not written before the flush
def test_who_reads_a_text_may_leave(words: int) -> None:
    program = f"import coordrl.commands as c; c.exit_status('x.py', lambda: {words} * 'text ')"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=buffered,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, b"")


@pytest.mark.skipif(os.name != "posix", reason="terminals elsewhere are others")
def test_a_terminal_may_be_closed() -> None:
    ours, theirs = os.openpty()
    program = "import coordrl.commands as c; input(); c.exit_status('x.py', lambda: 'a table')"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=theirs,
        stderr=subprocess.PIPE,
        start_new_session=True,  # no signal tells that the terminal is gone
    ) as process:
        os.close(theirs)
        os.close(ours)
        _, said = process.communicate(b"go on\n")
    assert (process.returncode, said) == (0, b"")


@pytest.mark.skipif(os.name != "posix", reason="shells elsewhere are others")
@pytest.mark.parametrize(
    ("work", "closed", "status"),
    [("lambda: 'a table'", ">&-", 0), ('lambda: c.parse_overrides((("steps",),))', "2>&-", 2)],
)
def test_nobody_has_to_listen(work: str, closed: str, status: int) -> None:
    program = f"import sys, coordrl.commands as c; sys.exit(c.exit_status('x.py', {work}))"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} {closed}"
    ended = subprocess.run(command, shell=True, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (status, b"")


def test_a_text_is_printed_and_other_errors_are_raised(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_status("train.py", lambda: "| a table |") == 0
    assert capsys.readouterr() == ("| a table |\n", "")
    with pytest.raises(FileNotFoundError, match="no pictures"):
        exit_status("train.py", lambda: fail(FileNotFoundError("no pictures")))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        exit_status("train.py", lambda: fail(RuntimeError("shapes cannot be multiplied")))


@dataclass(frozen=True)
class Arguments:
    seeds: int = 1
    max_seconds: float | None = None
    table: str | None = None


def test_arguments_that_nobody_would_look_at_are_refused() -> None:
    names = ("seeds", "max_seconds")
    refuse_ignored(Arguments(table="full"), names, "the table chooses it")
    with pytest.raises(SettingsError, match=r"^--max-seconds would be ignored: the table chooses"):
        refuse_ignored(Arguments(max_seconds=3), names, "the table chooses it")


def run_as_file(name: str) -> None:
    runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")


def run_as_module(name: str) -> None:
    runpy.run_module(f"scripts.{name}", run_name="__main__", alter_sys=True)


@pytest.mark.parametrize(
    ("run", "first"),
    [(run_as_file, SCRIPTS), (run_as_module, SCRIPTS.parent)],
    ids=["file", "module"],
)
@pytest.mark.parametrize("name", sorted(path.stem for path in SCRIPTS.glob("*.py")))
def test_a_script_is_run_as_a_file_or_as_a_module(
    name: str,
    run: Callable[[str], None],
    first: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the path that Python makes for it, and without what other tests have imported."""
    rest = [place for place in sys.path if Path(place) not in (SCRIPTS.parent, SCRIPTS)]
    monkeypatch.setattr(sys, "path", [str(first), *rest])
    for module in [module for module in sys.modules if module.split(".")[0] == "benchmarking"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        run(name)
    assert f"/scripts/{name}.py" in capsys.readouterr().out
