"""Costs of contestants that take turns, and the ratios between them."""

import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """How many times as much one costs as the other."""

    best: float
    """Of the cheapest calls: least disturbed by other work. Where calls differ in what they have to
    do, of all calls together."""
    low: float
    """First quartile over the turns."""
    high: float
    """Third quartile over the turns."""

    @classmethod
    def of(
        cls,
        costs: list[float],
        peers: list[float],
        of_calls: Callable[[list[float]], float] = min,
    ) -> "Ratio":
        """Compare costs, the n-th of which were measured in the same turn."""
        quartiles = statistics.quantiles(
            [cost / peer for cost, peer in zip(costs, peers, strict=True)], n=4
        )
        return cls(of_calls(costs) / of_calls(peers), quartiles[0], quartiles[2])

    def __str__(self) -> str:
        """Return the ratio and its spread."""
        return f"{self.best:.3f} ({self.low:.2f} .. {self.high:.2f})"


Row = dict[str, str | int | float | Ratio]


def take_turns(
    contestants: dict[str, Callable[[], object]], seconds: float, least: int = 5
) -> dict[str, list[float]]:
    """Call the contestants in turn, and return the CPU seconds of each of their calls.

    Each turn has an order of its own, so that none always follows the same other and finds what
    that one has left in the processor's caches. The first calls, which build caches of ours, are
    not counted.
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
            start = time.process_time()
            contestants[name]()
            costs[name].append(time.process_time() - start)
        turn += 1
    return costs


def geometric_mean(values: list[float]) -> float:
    """Return the n-th root of the product of n values."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def ratios_of(key: str, rows: list[Row]) -> Row:
    """Return every ratio of the rows, named by the row's value in the column ``key``."""
    return {
        f"{row[key]}, {column}": str(cell)
        for row in rows
        for column, cell in row.items()
        if isinstance(cell, Ratio)
    }
