"""What every benchmark has."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarking.ratios import Row
from coordrl.emulator import available, unavailable_reason
from coordrl.files import RunError, require_writable

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@dataclass(frozen=True)
class Benchmark:
    """What every benchmark has. A new one is a subclass, and a line in scripts/benchmark.py."""

    plays: ClassVar[bool] = True
    """Measures our emulator, or what trains with it."""

    json: Path | None = None
    """File to keep the record in, with the command, the machine and the versions."""

    def refuse(self) -> None:
        """Raise a RunError or a ValueError for what would fail, or measure nothing, later on."""
        if self.plays and not available():
            raise RunError(unavailable_reason())
        if self.json is not None:
            require_writable(self.json)
        for name, least in LEAST.items():
            values = getattr(self, name, least)
            for value in values if isinstance(values, tuple) else (values,):
                if not least <= value < math.inf:
                    option = f"--{name.replace('_', '-')}"
                    raise ValueError(f"{option} must be at least {least}, got {value}")

    def rows(self) -> Iterator[Row]:
        """Measure, and yield the rows of the table one after another; columns are keys."""
        raise NotImplementedError

    def summary(self, rows: list[Row]) -> Row:
        """Return what the rows come to."""
        raise NotImplementedError


# The least of what is measured. Of turns, so that there are quartiles.
LEAST = {
    **dict.fromkeys(("num_envs", "steps", "threads", "updates", "episodes", "evaluate_every"), 1),
    **dict.fromkeys(("seconds", "stock_seconds", "spare_bytes", "warm_up"), 0),
    "turns": 2,
}
