"""Costs of contestants that take turns, and the ratios between them."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """Ratio of two costs."""

    value: float
    """Median over the turns or, if calls differ in their work, the ratio of all calls together."""
    low: float
    """First quartile over the turns."""
    high: float
    """Third quartile over the turns."""

    @classmethod
    def of(
        cls, costs: Sequence[float], peers: Sequence[float], *, calls_differ: bool = False
    ) -> "Ratio":
        """Compare two lists of costs, which were measured in the same turns.

        Example:
            >>> print(Ratio.of([3, 4, 8, 4], [1, 2, 2, 1]))
            3.500 (2.25 .. 4.00)
            >>> Ratio.of([3, 4, 8, 4], [1, 2, 2, 1], calls_differ=True).value == 19 / 6
            True
        """
        ratios = [cost / peer for cost, peer in zip(costs, peers, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        return cls(sum(costs) / sum(peers) if calls_differ else median, low, high)

    def __str__(self) -> str:
        """Return the ratio and its spread."""
        return f"{self.value:.3f} ({self.low:.2f} .. {self.high:.2f})"


Row = dict[str, str | int | float | Ratio]


def take_turns(
    contestants: Mapping[str, Callable[[], float]], seconds: float, least: int = 5
) -> dict[str, list[float]]:
    """Call the contestants in turn, and return the costs of each, one per turn.

    Each turn has a different order, so that none always follows the same other one and its effect
    on the processor's caches. The first calls, which fill our own caches, are not counted.

    Args:
        contestants: Functions that return their cost, by name; :func:`timed` makes them.
        seconds: Least seconds to spend.
        least: Least number of turns.
    """
    names = list(contestants)
    for name in names:
        contestants[name]()
    costs: dict[str, list[float]] = {name: [] for name in names}
    shuffle = random.Random(0).shuffle
    end = time.monotonic() + seconds
    turn = 0
    while turn < least or time.monotonic() < end:
        shuffle(names)
        for name in names:
            costs[name].append(contestants[name]())
        turn += 1
    return costs


def timed(function: Callable[..., object], *arguments: object) -> Callable[[], float]:
    """Return a function that calls ``function`` and returns the CPU seconds of the call."""

    def call() -> float:
        start = time.process_time()
        function(*arguments)
        return time.process_time() - start

    return call


def ratios_of(key: str, rows: list[Row]) -> Row:
    """Return every ratio of the rows, named by the row's value in the column ``key``."""
    return {
        f"{row[key]}, {column}": str(cell)
        for row in rows
        for column, cell in row.items()
        if isinstance(cell, Ratio)
    }


def times_as_fast(costs: Mapping[str, Sequence[float]]) -> Row:
    """Return how many times as fast as each of the others ours is, for calls that differ."""
    return {
        f"times as fast as {name}": Ratio.of(values, costs["ours"], calls_differ=True)
        for name, values in costs.items()
        if name != "ours"
    }
