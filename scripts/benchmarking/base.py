"""The interface of a benchmark to scripts/benchmark.py."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarking.ratios import Row
from coordrl.config import SettingsError
from coordrl.emulator import available, unavailable_reason
from coordrl.files import RunError, require_writable

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@dataclass(frozen=True)
class Benchmark:
    """Base of all benchmarks. A new one is a subclass, and a line in scripts/benchmark.py."""

    plays: ClassVar[bool] = True
    """Whether it uses our emulator."""

    least: ClassVar[Mapping[str, float]] = {"seconds": 0}
    """Least values of options."""

    json: Path | None = None
    """File to keep the record in, with the command, the machine and the versions."""

    def refuse(self) -> None:
        """Reject options that would fail, or measure nothing, later on.

        Raises:
            RunError: If the compiled emulator is needed but missing, or the record cannot be
                written.
            SettingsError: If an option is below its least value.
        """
        if self.plays and not available():
            raise RunError(unavailable_reason())
        if self.json is not None:
            require_writable(self.json)
        for name, least in self.least.items():
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                if not least <= value < math.inf:
                    option = f"--{name.replace('_', '-')}"
                    raise SettingsError(f"{option} must be at least {least}, got {value}")

    def rows(self) -> Iterator[Row]:
        """Measure, and yield the rows of the table one after another; columns are keys."""
        raise NotImplementedError

    def summary(self, rows: list[Row]) -> Row:
        """Return a summary of the rows."""
        raise NotImplementedError
