"""The line of progress, in a terminal and elsewhere."""

import io
import os
import subprocess
import sys
import time

import pytest
from rich.console import Console

from coordrl import progress as progress_module
from coordrl.progress import Progress, sparkline


def plain_console(encoding: str = "utf-8") -> tuple[Console, io.TextIOWrapper]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    return Console(file=file, highlight=False, width=200), file


def written(file: io.TextIOWrapper) -> list[str]:
    raw = file.buffer
    assert isinstance(raw, io.BytesIO)
    return raw.getvalue().decode(file.encoding).splitlines()


def test_sparkline_of_a_flat_an_empty_and_a_long_curve() -> None:
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([]) == ""
    assert sparkline(range(1000), width=8) == "▁▂▃▄▅▆▇█"
    assert sparkline([-21, 21], levels="ab") == "ab"
    assert sparkline([0.0, float("nan"), 1.0], levels="ab") == "ab"


def test_plain_progress_tells_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    console, file = plain_console()
    with Progress("Pong", 10_000, "steps", done=1000, interval=10, console=console) as progress:
        now = 104.0
        progress.update(3000, "return -20.0", [1, 2])
        now = 105.0
        progress.update(3500)  # too soon for another line
        now = 124.0
        progress.update(5000)
        progress.say("saved [best]")

    assert written(file) == [
        "Pong  3,000/10,000 steps  500/s  14 s left  return -20.0  ▁█",
        "Pong  5,000/10,000 steps  167/s  30 s left",
        "saved [best]",
    ]


def test_what_an_earlier_process_has_done_tells_nothing_about_the_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    console, file = plain_console()
    with Progress("Pong", 10_000, "steps", interval=10, console=console) as progress:
        now = 101.0
        progress.go_on_from(9000)
        now = 103.0
        progress.update(9200)

    assert written(file) == ["Pong  9,200/10,000 steps  100/s  8 s left"]


def test_progress_keeps_to_ascii_where_the_terminal_does() -> None:
    console, file = plain_console("ascii")
    with Progress("Pong", 10, "steps", console=console) as progress:
        progress.update(5, curve=[1, 2])
    assert written(file)[0].endswith("  _#")


def test_progress_in_a_terminal_is_one_bar_with_its_text() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with Progress("Pong [a2c]", 100, "steps", console=console) as progress:
        progress.update(50, "return 3 [of 21]", [0, 1])
    text = file.getvalue()
    assert "Pong [a2c]" in text
    assert "50/100 steps" in text
    assert "return 3 [of 21]  ▁█" in text


def test_the_bar_stays_where_the_work_has_ended() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with Progress("Pong", 30, "games", console=console) as progress:
        for done in range(1, 31):  # faster than it is painted
            progress.update(done, f"last return {done}")
    assert "30/30 games" in file.getvalue()
    assert "last return 30" in file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (99, "99 s"), (600, "10 min"), (7500, "2 h 05 min")]
)
def test_durations_are_told_in_fitting_units(seconds: float, text: str) -> None:
    assert progress_module._duration(seconds) == text


def test_the_rate_outlives_a_silence_longer_than_its_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    console, file = plain_console()
    with Progress("Pong", 10_000, "steps", console=console) as progress:
        assert progress.rate == 0
        now = 200.0
        progress.update(1000)
        now = 300.0
        progress.update(3000)

    assert [line.split("  ")[2] for line in written(file)] == ["10/s", "20/s"]


def test_a_line_that_stays_is_one_line_however_long() -> None:
    file = io.StringIO()
    progress = Progress("Pong", 10, "steps", console=Console(file=file, width=20))
    progress.say("a sentence " * 9)
    assert file.getvalue().count("\n") == 1


def test_the_bar_is_painted_while_the_work_goes_on_and_left_at_its_end() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with Progress("Pong", 100, "steps", console=console) as progress:
        progress.update(50)
        assert "50/100 steps" in file.getvalue()
        assert "\x1b[?25h" not in file.getvalue()
    assert "\x1b[?25h" in file.getvalue(), "the cursor is hidden"


def test_sparkline_takes_the_nearest_level() -> None:
    assert sparkline([0, 0.4, 0.6, 1], levels="ab") == "aabb"


@pytest.mark.skipif(os.name != "posix", reason="pipes and terminals elsewhere are others")
@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_work_goes_on_where_nobody_looks_at_it_any_more(kind: str) -> None:
    ours, theirs = os.pipe() if kind == "pipe" else os.openpty()
    program = """
import os, sys
from coordrl.progress import Progress
with Progress("Pong", 2, "steps", interval=0) as progress:
    os.write(1, b"begun\\n")
    input()
    progress.update(1)
    progress.say("half")
    progress.update(2)
print("worked to the end")
print("who reads this?", file=sys.stderr)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        start_new_session=True,  # no signal tells that the terminal is gone
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        os.close(theirs)
        os.close(ours)
        said, _ = process.communicate("go on\n")
    assert (process.returncode, said) == (0, "worked to the end\n")
