"""A progress line for long work."""

import contextlib
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-=+*#"


def sparkline(values: Sequence[float], *, width: int = 24, levels: str = BLOCKS) -> str:
    """Draw a curve in one line, from its lowest to its highest value.

    Args:
        values: The curve; more than ``width`` values are averaged in groups.
        width: Most characters, at least 1.
        levels: Characters from low to high.

    Example:
        >>> sparkline([0, 1, 2, 3, 4, 5, 6, 7])
        '▁▂▃▄▅▆▇█'
        >>> sparkline([0, 0, 4, 4, 8, 8], width=3, levels="abc")
        'abc'
    """
    if len(values) > width:
        edges = [i * len(values) // width for i in range(width + 1)]
        values = [
            sum(values[start:end]) / (end - start) for start, end in itertools.pairwise(edges)
        ]
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(levels) - 1) / (high - low) if high > low else 0.0
    return "".join(levels[round((value - low) * scale)] for value in values)


class _StandardError(Console):
    """A console on stderr; rich's own ends the process when the reader is gone."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False)

    def on_broken_pipe(self) -> None:
        """Raise a BrokenPipeError when the reader is gone."""
        raise BrokenPipeError


class Progress:
    """A line that shows how much work is done, its speed and the time left.

    In a terminal it is a bar that stays at the bottom; elsewhere a plain line is written now and
    then. Everything goes to stderr. If that can no longer be written to, as with ``2>&1 | head`` or
    in a terminal that was closed, the work continues silently.

    Args:
        label: What is being done.
        total: Units until the end.
        unit: What is counted, in the plural.
        done: Units that an earlier process has done.
        interval: Least seconds between two plain lines.
        console: Where to write; stderr if None.
    """

    _WINDOW = 30.0  # seconds over which the rate is taken: several rollouts with their updates

    def __init__(
        self,
        label: str,
        total: int,
        unit: str,
        *,
        done: int = 0,
        interval: float = 15.0,
        console: Console | None = None,
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.interval = done, interval
        self.console = console or _StandardError()
        self._marks = deque([(time.monotonic(), done)])
        self._next_paint = 0.0
        self._latest: tuple[str, Sequence[float]] = ("", ())
        self._bar: Bar | None = None
        if self.console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[text]}"),
                console=self.console,
                auto_refresh=False,
                expand=True,
            )
            self._task = self._bar.add_task(escape(label), total=total, completed=done, text="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            with self._reader_may_leave():
                self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with self._reader_may_leave():
                self._paint(self._bar)
                self._bar.stop()

    @contextlib.contextmanager
    def _reader_may_leave(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.console.quiet = True
            # Later writes, and the flush of what Python has buffered, must not fail either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.console.file.fileno())

    @property
    def rate(self) -> float:
        """Units a second, over the last half minute."""
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return (last - first) / (end - start) if end > start else 0.0

    def go_on_from(self, done: int) -> None:
        """Set the units that an earlier process has done, which do not count for the rate."""
        self.done = done
        self._marks = deque([(time.monotonic(), done)])

    def update(self, done: int, note: str = "", curve: Sequence[float] = ()) -> None:
        """Report that ``done`` units of the total are done.

        Args:
            done: Units done since the beginning, including those of earlier processes.
            note: A few words to add.
            curve: Values drawn as a small curve after the note.
        """
        now = time.monotonic()
        self.done, self._latest = done, (note, curve)
        if now < self._next_paint:
            return
        self._marks.append((now, done))
        while now - self._marks[0][0] > self._WINDOW and len(self._marks) > 2:
            self._marks.popleft()
        if self._bar is not None:
            self._next_paint = now + 0.25
            with self._reader_may_leave():
                self._paint(self._bar)
        else:
            self._next_paint = now + self.interval
            self.say(f"{self.label}  {self._text(note, curve)}")

    def _paint(self, bar: Bar) -> None:
        text = escape(self._text(*self._latest))
        bar.update(self._task, completed=self.done, text=text, refresh=True)

    def say(self, text: str) -> None:
        """Write a line that stays."""
        with self._reader_may_leave():
            self.console.print(text, markup=False, soft_wrap=True)

    def _text(self, note: str, curve: Sequence[float]) -> str:
        parts = [f"{self.done:,}/{self.total:,} {self.unit}"]
        if self.rate > 0:
            left = max(self.total - self.done, 0) / self.rate
            parts += [f"{self.rate:,.{0 if self.rate >= 10 else 2}f}/s", f"{_duration(left)} left"]
        if note:
            parts.append(note)
        if curve:
            is_utf = self.console.encoding.startswith("utf")
            parts.append(sparkline(curve, levels=BLOCKS if is_utf else ASCII_BLOCKS))
        return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
