"""What is compared to say that the emulator is exact, how, and the record of it.

Games are shared by processes; each is compared until its first difference. The comparisons
themselves, of one game in one way, are in :mod:`coordrl.emulator.lockstep`.
"""

import datetime
import hashlib
import importlib.metadata
import itertools
import json
import math
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from inspect import getsource
from pathlib import Path
from typing import Any, Literal

import coordrl.emulator
from coordrl.config import AtariSettings, SettingsError
from coordrl.emulator import (
    GAMES,
    Autoreset,
    batch,
    compiled,
    compiled_sources,
    console,
    lockstep,
    process_cpu_count,
)
from coordrl.emulator import settings as emulator_settings
from coordrl.emulator.arguments import NUM_SEEDS
from coordrl.emulator.lockstep import (
    POLICIES,
    Difference,
    Policy,
    Tally,
    compare_devices,
    compare_frames,
    compare_steps,
)
from coordrl.emulator.nvrtc import gpu_versions
from coordrl.emulator.source_checksum import source_checksum
from coordrl.files import RunError, alone_in, reason, require_writable
from coordrl.records import machine, write_json

# All that ale-py's vector environment can be set to, one change at a time and some together.
GRID: tuple[dict[str, Any], ...] = (
    {},
    {"life_loss": "reset"},
    {"life_loss": "terminate"},
    {"clip_reward": False},
    {"noop_max": 1},
    {"fire_reset": False},
    {"frame_skip": 1, "life_loss": "reset"},
    {"frame_skip": 2, "life_loss": "reset"},
    {"frame_skip": 3, "life_loss": "reset"},
    {"frame_skip": 5, "life_loss": "reset"},
    {"max_pool": False, "life_loss": "reset"},
    {"observation": "rgb", "life_loss": "reset"},
    {"observation": "rgb", "screen_size": "native"},
    {"screen_size": "native", "life_loss": "reset"},
    {"repeat_action_probability": 0.25, "full_action_space": True},
    {"max_frames_per_episode": 96},
    {"max_frames_per_episode": 97},
)
# The first of them play longer, to come to rewards, lost lives and ends of games.
LONG, TIMES_AS_LONG = 4, 10
AUTORESETS: tuple[Autoreset, ...] = ("same_step", "next_step")
# Of whole games; directions that are held for long end too few.
WHOLE: tuple[Policy, ...] = ("held", "fire")
LEAST_FRAMES = 200  # of a mode with a difficulty


@dataclass(frozen=True)
class Comparison:
    """What of a game is compared, with what, and by how many processes."""

    frames: int = 20_000
    """Frames of every game, shared by seeds, policies and modes. Without --modes, held and
    fire-heavy actions play as many again each, in games that nobody breaks off."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the actions, and of what is random in the game."""
    modes: bool = False
    """Play every mode with every difficulty instead of the default."""
    vector: bool = False
    """Compare steps of environments over a grid of settings, instead of frames."""
    steps: int = 2_000
    """With --vector: steps of every game, shared by the settings, which take the seeds in turn; the
    first ones of the grid have ten times as many as the others.
    With --device cuda: steps with the default settings; the others have a twentieth each."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What our emulator runs on: on the CPU it is held to ale-py, on a GPU to the CPU."""
    num_envs: int = 256
    """With --device cuda: environments of every game."""
    grid: bool = True
    """With --device cuda: compare the other settings as well, in 54 batches of a twentieth of the
    steps each, beside the two of the default ones."""
    workers: int | None = None
    """Processes that share the games: one for each core, and on a GPU, which has to find room for
    the contexts and stacks of all, 8 at most, if not given."""

    @property
    def processes(self) -> int:
        """Processes that share the games, 1 or more."""
        if self.workers is not None:
            return self.workers
        return min(process_cpu_count(), 8) if self.device == "cuda" else process_cpu_count()

    @property
    def kind(self) -> str:
        """What is compared: the key of the record."""
        if self.device == "cuda":
            return "cuda"
        return "steps" if self.vector else "modes" if self.modes else "frames"

    def conditions(self) -> dict[str, Any]:
        """Return what two results have to share to be parts of one."""
        on_gpu = self.device == "cuda"
        folder = Path(coordrl.emulator.__file__).parent
        return {
            **({"steps": self.steps} if self.vector or on_gpu else {"frames": self.frames}),
            **({"num_envs": self.num_envs, "grid": self.grid, **gpu_versions()} if on_gpu else {}),
            "seeds": list(self.seeds),
            "policies": list(POLICIES),
            "device": self.device,
            "machine": machine(),
            "sources": source_checksum(folder, gpu=True) if on_gpu else compiled_sources(),
            "comparison": comparison_checksum(),
            **{library: importlib.metadata.version(library) for library in ("ale-py", "numpy")},
        }


@dataclass(frozen=True)
class Result:
    """What came out for one game."""

    game: str
    tally: Tally
    difference: str
    """The first one, empty if there is none."""
    cpu_seconds: float


@dataclass(frozen=True)
class Record:
    """The results of one kind of comparison, and the file that they are kept in, if any."""

    path: Path | None
    kind: str
    conditions: dict[str, Any]
    commands: list[str]
    """Those that the results come from, the last one last."""
    results: dict[str, Result]
    """By the games' names."""

    @classmethod
    def open(
        cls,
        path: Path | None,
        comparison: Comparison,
        games: Sequence[str],
        command: str,
        *,
        resume: bool = False,
    ) -> "Record":
        """Return the record to add the results of some games to.

        Args:
            path: The file, if there is to be any.
            comparison: How they are compared.
            games: Their names.
            command: What the user typed.
            resume: Whether what is in the file is to be gone on with.

        Raises:
            RunError: If the file cannot be read or written, or if results would be lost.
        """
        record = cls(path, comparison.kind, comparison.conditions(), [command], {})
        if record.path is None:
            return record
        require_writable(record.path)
        earlier = read_records(record.path).get(record.kind)
        if earlier is None:
            return record
        if earlier["conditions"] == record.conditions:
            record.merge(earlier)
            return record
        others = {result["game"] for result in earlier["results"]} - set(games)
        mend = "leave out --resume to make them anew" if resume else ""
        if others:
            mend = "compare all of them anew, or name another file"
        if mend:
            raise RunError(
                f"{record.path} has {record.kind} of {earlier['games']} games that were compared "
                f"under other conditions; {mend}"
            )
        return record

    def merge(self, earlier: dict[str, Any]) -> None:
        """Add what a file has of other games, compared in the same way, and its commands."""
        for result in earlier["results"]:
            restored = Result(**{**result, "tally": Tally(**result["tally"])})
            self.results.setdefault(restored.game, restored)
        self.commands[:0] = [text for text in earlier["commands"] if text not in self.commands]

    def add(self, result: Result) -> None:
        """Add a result, in place of an earlier one, and write the file.

        Several processes may add to one file: what others added meanwhile stays.
        """
        self.results[result.game] = result
        if self.path is None:
            return
        with alone_in(self.path.parent):
            content = read_records(self.path)
            earlier = content.get(self.kind)
            if earlier is not None and earlier["conditions"] == self.conditions:
                self.merge(earlier)
            content[self.kind] = self._content()
            write_json(content, self.path)

    def _content(self) -> dict[str, Any]:
        in_order = [self.results[game] for game in sorted(self.results)]
        return {
            "commands": self.commands,
            "date": datetime.date.today().isoformat(),
            "conditions": self.conditions,
            "games": len(in_order),
            "games that differ": {r.game: r.difference for r in in_order if r.difference},
            "compared": totals(in_order),
            "games that came to none": {
                event: sum(getattr(result.tally, event) == 0 for result in in_order)
                for event in ("rewards", "life_losses", "games_over")
            },
            "CPU seconds": round(sum(result.cpu_seconds for result in in_order)),
            "results": [asdict(result) for result in in_order],
        }


def read_records(path: Path) -> dict[str, Any]:
    """Return what a file of records has, by kinds of comparison; nothing if there is no file.

    Raises:
        RunError: If it is no such file.
    """
    try:
        found = json.loads(path.read_bytes()) if path.exists() else {}
        if not all({"conditions", "commands", "games"} <= kind.keys() for kind in found.values()):
            raise ValueError("it is of another kind")
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(
            f"{path} is no record of comparisons ({reason(error)}); name another file"
        ) from error
    return dict(found)


def refuse_nothing(comparison: Comparison) -> None:
    """Raise a SettingsError if nothing would be compared, and so nothing differ."""
    for name in ("frames", "steps", "num_envs", "workers"):
        number = getattr(comparison, name)
        if number is not None and number < 1:
            raise SettingsError(f"{name} must be at least 1, got {number}")
    if not comparison.seeds:
        raise SettingsError("there must be a seed or more, got none")
    most = NUM_SEEDS - max(comparison.num_envs, 3)  # of which each environment has one of its own
    if not all(0 <= seed <= most for seed in comparison.seeds):
        raise SettingsError(f"seeds must be from 0 to {most}, got {comparison.seeds}")


def refuse_contradictions(comparison: Comparison) -> None:
    """Raise a SettingsError for settings that would change nothing beside the others."""
    ways = {"--modes": comparison.modes, "--vector": comparison.vector}
    ways["--device cuda"] = comparison.device == "cuda"
    chosen = [way for way, is_chosen in ways.items() if is_chosen]
    if len(chosen) > 1:
        raise SettingsError(f"{' and '.join(chosen)} are different comparisons; choose one")
    if comparison.device != "cuda":
        if not comparison.grid:
            raise SettingsError("--no-grid would be ignored: it is for --device cuda")
        if comparison.num_envs != Comparison.num_envs:
            raise SettingsError("--num-envs would be ignored: it is for --device cuda")
    counts_steps = comparison.vector or comparison.device == "cuda"
    unused = "frames" if counts_steps else "steps"
    if getattr(comparison, unused) != getattr(Comparison, unused):
        used = "steps" if counts_steps else "frames"
        raise SettingsError(f"--{unused} would be ignored: this comparison counts {used}")


def refuse_stale() -> None:
    """Raise a RunError if the emulator is compiled from other sources than lie beside it."""
    lying = source_checksum(Path(coordrl.emulator.__file__).parent)
    if compiled_sources() != lying:
        raise RunError(
            f"the emulator was compiled from other sources ({compiled_sources()}) than lie beside "
            f"it ({lying}); compile it anew, with `make setup`"
        )


def compare_games(games: Sequence[str], comparison: Comparison) -> Iterator[Result]:
    """Yield the games' results as they come, from as many processes as the comparison has."""
    jobs = [(game, comparison) for game in games]
    workers = min(comparison.processes, len(jobs))
    if workers <= 1:
        yield from map(compare_game, jobs)
        return
    spawn, deaf_to_ctrl_c = multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_IGN)
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(
        workers, spawn, initializer=signal.signal, initargs=deaf_to_ctrl_c
    ) as pool:
        try:
            for compared in as_completed([pool.submit(compare_game, job) for job in jobs]):
                yield compared.result()
        except BrokenProcessPool as error:
            raise RunError(
                "a process that compares was killed, perhaps for want of memory; take fewer "
                "--workers. With --json, --resume goes on"
            ) from error
        except BaseException:  # a signal, or nobody asks any more: the rest is not waited for
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
            raise


def compare_game(job: tuple[str, Comparison]) -> Result:
    """Compare one game until the first difference."""
    name, comparison = job
    start, tally = time.process_time(), Tally()
    runs = step_runs if comparison.vector else frame_runs
    if comparison.device == "cuda":
        runs = device_runs
    wanted = None if comparison.grid else len(AUTORESETS)  # those of the default settings
    played = itertools.islice(runs(name, comparison, tally), wanted)
    found = next(filter(None, played), None)
    return Result(name, tally, str(found or ""), time.process_time() - start)


def frame_runs(name: str, comparison: Comparison, tally: Tally) -> Iterator[Difference | None]:
    """Play every variation at least once, and every policy with every seed."""
    game = GAMES[name]
    variations: list[tuple[int | None, int | None]] = [(None, None)]
    if comparison.modes:
        variations = list(itertools.product(game.modes, game.difficulties))
    plays = list(itertools.product(comparison.seeds, enumerate(POLICIES)))
    count = max(len(variations), len(plays))
    runs = zip(itertools.cycle(variations), itertools.cycle(plays), strict=False)
    for (mode, difficulty), (seed, (number, policy)) in itertools.islice(runs, count):
        yield compare_frames(
            name,
            frames=max(-(-comparison.frames // count), LEAST_FRAMES if comparison.modes else 1),
            seed=seed,
            policy=policy,
            repeat_action_probability=0.25 if (number + seed) % 2 else 0.0,
            mode=mode,
            difficulty=difficulty,
            longest_game=400 * (number + 1),
            tally=tally,
        )
    if comparison.modes:
        return
    for number, (policy, seed) in enumerate(zip(WHOLE, itertools.cycle(comparison.seeds))):
        yield compare_frames(
            name,
            frames=comparison.frames,
            seed=seed,
            policy=policy,
            repeat_action_probability=0.25 * number,
            longest_game=sys.maxsize,
            tally=tally,
        )


def step_runs(name: str, comparison: Comparison, tally: Tally) -> Iterator[Difference | None]:
    """Play every setting with both autoreset modes."""
    seeds, policies = itertools.cycle(comparison.seeds), itertools.cycle(POLICIES)
    shares = [TIMES_AS_LONG if number < LONG else 1 for number in range(len(GRID))]
    unit = comparison.steps / (sum(shares) * len(AUTORESETS))
    for changes, share in zip(GRID, shares, strict=True):
        policy = next(policies)
        for num_threads, autoreset in enumerate(AUTORESETS, start=1):
            yield compare_steps(
                name,
                grid_settings(name, changes),
                steps=math.ceil(share * unit),
                num_envs=2,
                seed=next(seeds),
                autoreset=autoreset,
                policy=policy,
                num_threads=num_threads,
                tally=tally,
            )


def grid_settings(name: str, changes: dict[str, Any]) -> AtariSettings:
    """Return the settings of a place in the grid, for a game."""
    settings: dict[str, Any] = {"life_loss": "ignore", **changes}
    if settings.get("screen_size") == "native":
        settings["screen_size"] = (GAMES[name].height, 160)
    return AtariSettings(**settings)


def device_runs(name: str, comparison: Comparison, tally: Tally) -> Iterator[Difference | None]:
    """Play the default settings for long, the grid and what ale-py lacks for a while."""
    seeds, short = itertools.cycle(comparison.seeds), -(-comparison.steps // 20)
    runs = [(AtariSettings(), autoreset, comparison.steps) for autoreset in AUTORESETS]
    for changes in (*GRID, {"observation": "ram"}):
        settings = grid_settings(name, changes)
        runs += [(settings, autoreset, short) for autoreset in (*AUTORESETS, "disabled")]
    for settings, autoreset, steps in runs:
        yield compare_devices(
            name,
            settings,
            steps=steps,
            num_envs=comparison.num_envs,
            seed=next(seeds),
            autoreset=autoreset,
            compare_states_every=100,
            num_threads=max(1, process_cpu_count() // comparison.processes),
            tally=tally,
        )


def totals(results: Sequence[Result]) -> dict[str, int]:
    """Return the sums of the results' tallies."""
    tallies = [asdict(result.tally) for result in results]
    return {name: sum(tally[name] for tally in tallies) for name in tallies[0]}


def comparison_checksum() -> str:
    """Return a checksum of how is compared, with what settings, and of the emulator's Python."""
    runs = [getsource(run) for run in (frame_runs, step_runs, device_runs, grid_settings)]
    plan = (GRID, LONG, TIMES_AS_LONG, AUTORESETS, WHOLE, LEAST_FRAMES, runs)
    modules = (batch, compiled, console, emulator_settings, lockstep)
    compared = [Path(module.__file__ or "").read_bytes() for module in modules]
    return hashlib.sha256(b"".join([*compared, repr(plan).encode()])).hexdigest()[:16]
