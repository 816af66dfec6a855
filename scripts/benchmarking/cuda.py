"""Atari on a GPU, compared with our targets and CuLE's published numbers."""

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from benchmarking.base import Benchmark
from benchmarking.device import DeviceTraining, has_reached
from benchmarking.ratios import Row
from coordrl.config import AtariSettings, SettingsError
from coordrl.emulator import GAMES
from coordrl.emulator.device import DeviceEmulator, Occupancy
from coordrl.emulator.nvrtc import kernels_for, require_gpu
from coordrl.envs import canonical_game, games


@dataclass(frozen=True)
class Cuda(Benchmark):
    """Atari on a GPU, compared with our targets, CuLE and stock SB3.

    First the emulator alone, including observations: every environment plays random actions of the
    classic protocol; a step is timed on the device, as the mean of several steps with no other work
    between them. Then training, as in the benchmark device. Frames are the emulator's, four per
    step.
    """

    least: ClassVar[Mapping[str, float]] = {
        **{"num_envs": 1, "warm_up": 0, "steps": 1, "threads": 1, "spare_bytes": 0},
        "turns": 2,  # needed for quartiles
    }

    games: tuple[str, ...] = ()
    """Games to play, as Gymnasium spells them; all of the Atari-57 set if empty."""
    together: bool = False
    """Play them together in one batch, in equal parts, with all 18 actions (which Skiing does not
    have)."""
    num_envs: tuple[int, ...] = (4096, 65536)
    """Environments that are played at the same time."""
    warm_up: int = 100
    """Steps before the first turn, in which games drift apart."""
    steps: int = 20
    """Steps of a turn."""
    turns: int = 5
    """Turns of each row."""
    threads: tuple[int, ...] = ()
    """Environments per block: one row for each number, or one row with the emulator's choice."""
    spare_bytes: tuple[int, ...] = (Occupancy.spare_bytes,)
    """Bytes of shared memory that a block reserves, so that fewer run at once: one row for each."""
    training: bool = True
    """Measure training as well, with the defaults of the benchmark device."""

    def refuse(self) -> None:
        """Also reject, before compiling, numbers of environments that games cannot share evenly."""
        super().refuse()
        for batch, num_envs in itertools.product(self._batches(), self.num_envs):
            if num_envs % len(batch) != 0:
                raise SettingsError(
                    f"--num-envs must be multiples of the {len(batch)} games that are played "
                    f"together, got {num_envs}: take {num_envs - num_envs % len(batch)}"
                )

    def rows(self) -> Iterator[Row]:
        """Yield the rows of playing, of training, and of both compared with the targets."""
        require_gpu()
        rows = []
        for part in (self._emulator(), DeviceTraining().rows() if self.training else ()):
            for row in part:
                rows.append(row)
                yield row
        yield from target_rows(measured_for_targets(rows))

    def _emulator(self) -> Iterator[Row]:
        """Yield the time to compile, then rows by game, number of environments and spread."""
        batches = self._batches()
        played = [game for batch in batches for game in batch]
        start = time.monotonic()
        kernels_for(played, torch.device("cuda"))
        seconds = time.monotonic() - start
        yield {"kernels of games": len(played), "ready in s": round(seconds, 1)}
        for batch in batches:
            for num_envs, occupancy in self._ways():
                yield {
                    "game": batch[0] if len(batch) == 1 else f"{len(batch)} games",
                    "num_envs": num_envs,
                    **dataclasses.asdict(occupancy),
                    **self._measure(batch, num_envs, occupancy),
                }

    def _ways(self) -> Iterator[tuple[int, Occupancy]]:
        """Yield numbers of environments, and their spreads over blocks."""
        multiprocessors = torch.cuda.get_device_properties().multi_processor_count
        for num_envs in self.num_envs:
            chosen = Occupancy.filling(num_envs, multiprocessors)
            for threads in self.threads or (chosen.threads,):
                for spare_bytes in self.spare_bytes:
                    yield num_envs, Occupancy(threads, spare_bytes)

    def _batches(self) -> list[tuple[str, ...]]:
        """Return the games that are played at the same time."""
        chosen = [canonical_game(game) for game in self.games] or games(atari57=True)
        if not self.together:
            return [(game,) for game in chosen]
        return [tuple(g for g in chosen if self.games or len(GAMES[g].actions(full=True)) == 18)]

    def summary(self, rows: list[Row]) -> Row:
        """Return the median over the games, and the slowest game relative to it."""
        result: Row = {}
        by_way: dict[tuple[object, ...], list[float]] = {}
        for row in rows:
            if "threads" in row:
                way = (row["num_envs"], row["threads"], row["spare_bytes"])
                by_way.setdefault(way, []).append(float(row["frames a second"]))  # type: ignore[arg-type]
        for spread, speeds in by_way.items():
            median = statistics.median(speeds)
            name = "{} environments in blocks of {} with {} spare bytes".format(*spread)
            result[f"{name}, median frames a second"] = round(median)
            result[f"{name}, slowest over median"] = round(min(speeds) / median, 2)
        return result

    def _measure(self, batch: tuple[str, ...], num_envs: int, occupancy: Occupancy) -> Row:
        before = torch.cuda.memory_allocated()
        settings = AtariSettings(full_action_space=self.together)
        envs = DeviceEmulator(batch, num_envs, settings, occupancy=occupancy)
        envs.reset(seed=0)
        memory = (torch.cuda.memory_allocated() - before) // num_envs
        observed = 2 * math.prod(envs.obs_shape)  # and the last ones of episodes
        choices = len(envs.actions)
        shape = (self.steps, num_envs)
        seconds = []
        for turn in range(-(-self.warm_up // self.steps) + self.turns):
            actions = torch.randint(choices, shape, device="cuda")
            begin, end = (
                torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                for _ in range(2)
            )
            begin.record()
            for chosen in actions:
                envs.step(chosen)
            end.record()
            torch.cuda.synchronize()
            if turn * self.steps >= self.warm_up:
                seconds.append(begin.elapsed_time(end) / 1000 / self.steps)
        frames = num_envs * envs.settings.frame_skip
        quartiles = statistics.quantiles(seconds, n=4)
        del envs
        torch.cuda.empty_cache()
        return {
            "frames a second": round(frames / statistics.median(seconds)),
            "first quartile": round(frames / quartiles[2]),
            "third quartile": round(frames / quartiles[0]),
            "bytes an environment": memory,  # without the local memory of the threads that run
            "of them observations": observed,
        }


@dataclass(frozen=True)
class Target:
    """Our target for one H100, and CuLE's published number (arXiv 1907.08467)."""

    name: str
    must: float
    goal: float
    cule: str = ""

    def row(self, measured: float | None, stock: float | None) -> Row:
        """Return a row that compares the target with a measurement."""
        less = self.goal < self.must
        reached = "not measured"
        if measured is not None:
            reached = "nothing"
            for name, bound in (("must", self.must), ("goal", self.goal)):
                if measured <= bound if less else measured >= bound:
                    reached = name
        return {
            "target": self.name,
            "measured": "" if measured is None else f"{measured:,.0f}",
            "must": f"{self.must:,.0f}",
            "goal": f"{self.goal:,.0f}",
            "reached": reached,
            "CuLE, Titan V": self.cule,
            "stock SB3, here": "" if stock is None else f"{stock:,.0f}",
        }


LARGE, SMALL = 65536, 4096
PLAYED = "raw frames a second, {:,} environments, median of the games"
TRAINED, STOCK = "raw frames a second of PPO, end to end", "stock SB3"
REACHED, MEMORY = "seconds of PPO to a mean of 18 in Pong", "bytes an environment, no observations"
TARGETS = (
    Target(PLAYED.format(LARGE), 3e6, 5e6, "41,000 to 155,000"),
    Target(PLAYED.format(SMALL), 1e6, 1.5e6, "41,000 to 155,000"),
    Target(TRAINED, 300e3, 1e6, "26,000 to 68,000"),
    Target(REACHED, 180, 60, "186"),
    Target(MEMORY, 48 << 10, 12 << 10),
)


def measured_for_targets(rows: list[Row]) -> dict[str, float]:
    """Return the measurements in rows of :class:`Cuda`, by the names of targets.

    Of several ways to spread environments, the fastest counts.
    """
    measured: dict[str, float] = {}
    played = [row for row in rows if "threads" in row]
    for num_envs in (LARGE, SMALL):
        speeds: dict[tuple[Any, Any], list[float]] = {}
        for row in played:
            if row["num_envs"] == num_envs:
                way = row["threads"], row["spare_bytes"]
                speeds.setdefault(way, []).append(float(row["frames a second"]))  # type: ignore[arg-type]
        if speeds:
            measured[PLAYED.format(num_envs)] = max(map(statistics.median, speeds.values()))
    if played:
        measured[MEMORY] = statistics.median(
            int(row["bytes an environment"]) - int(row["of them observations"])  # type: ignore[arg-type]
            for row in played
        )
    for row in rows:
        match row.get("training"):
            case "rate":
                measured[TRAINED] = float(row["raw frames a second"])  # type: ignore[arg-type]
            case "stock SB3":
                measured[STOCK] = float(row["raw frames a second"])  # type: ignore[arg-type]
            case "to 18" if has_reached(row, 18):
                measured[REACHED] = float(row["seconds"])  # type: ignore[arg-type]
    return measured


def target_rows(measured: dict[str, float]) -> Iterator[Row]:
    """Yield a row for each target, also for those that were not measured."""
    for target in TARGETS:
        stock = measured.get(STOCK) if target.name == TRAINED else None
        yield target.row(measured.get(target.name), stock)
