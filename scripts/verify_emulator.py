"""Compare our Atari with ale-py's, byte for byte: frame by frame, or step by step.

    python scripts/verify_emulator.py --games all --frames 20000
    python scripts/verify_emulator.py --games pong,klax --vector --steps 5000
    python scripts/verify_emulator.py --games all --modes --json benchmarks/emulator_exactness.json
    python scripts/verify_emulator.py --device cuda --json benchmarks/emulator_exactness.json

Frames: RAM, screen, reward, lives, game over and counters after every frame of random, held,
fire-heavy and one-direction actions, with every seed, with and without sticky actions, in games
that are broken off and in whole ones. --modes plays every mode with every difficulty. Steps
(--vector): observations, rewards, flags, lives and counters of whole environments over a grid of
settings with both autoreset modes. On a GPU (--device cuda): the GPU's environments compared with
the CPU's, whole states included.

The first difference of a game is reported with the frame, the byte and the registers that differ,
and both values; the exit status is 1 if there was any. The record is written after every game:
games that were compared in the same way stay in it, and with --resume they are not compared again.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro
from rich.console import Console

from coordrl.commands import escape_what_stdout_lacks, reader_may_leave, typed_command
from coordrl.config import SettingsError
from coordrl.emulator import available, unavailable_reason
from coordrl.emulator.nvrtc import require_gpu
from coordrl.emulator.verification import (
    Comparison,
    Record,
    compare_games,
    refuse_contradictions,
    refuse_nothing,
    refuse_stale,
    totals,
)
from coordrl.envs import canonical_game, games
from coordrl.errors import UserError
from coordrl.files import RunError
from coordrl.progress import Progress
from coordrl.stopping import StopNow, StopRequest


@dataclass(frozen=True)
class Options:
    """Play our emulator and ale-py side by side and compare every byte."""

    games: str = "all"
    """Names, separated by commas, or "all" or "atari57"."""
    comparison: tyro.conf.OmitArgPrefixes[Comparison] = field(default_factory=Comparison)
    rom_path: Path | None = None
    """Folder with the ROM images; sets ALE_ROMS_DIR. Those in ale-py by default."""
    json: Path | None = None
    """Add the results to this file. Results of other games that were compared in the same way, and
    of other kinds of comparison, stay in it."""
    resume: bool = False
    """With --json: skip games that are in the file already, compared in the same way."""


def main(argv: Sequence[str] | None = None) -> int:
    escape_what_stdout_lacks()
    options = tyro.cli(Options, description=__doc__, args=argv)
    return compare(options, typed_command("verify_emulator.py", argv))


def compare(options: Options, command: str) -> int:
    """Compare, report, and return the exit status."""
    console = Console(soft_wrap=True)
    if options.rom_path is not None:
        os.environ["ALE_ROMS_DIR"] = str(options.rom_path)
    try:
        if not available():
            raise RunError(unavailable_reason())
        refuse_nothing(options.comparison)
        refuse_contradictions(options.comparison)
        if options.resume and options.json is None:
            raise SettingsError("--resume goes on with a record; name it with --json")
        refuse_stale()
        if options.comparison.device == "cuda":
            require_gpu()
        names = chosen_games(options.games)
        record = Record.open(
            options.json, options.comparison, names, command, resume=options.resume
        )
        done = record.results.keys() & set(names) if options.resume else set()
        rest = [name for name in names if name not in done]
        with StopRequest() as stop, Progress("comparing", len(names), "games") as progress:
            progress.go_on_from(len(done))
            with stop.interrupting():
                compared = compare_games(rest, options.comparison)
                for count, result in enumerate(compared, start=len(done) + 1):
                    record.add(result)
                    progress.update(count, result.game)
                    if result.difference:
                        console.print(result.difference, style="red", markup=False, highlight=False)
    except StopNow:
        print("stopped; with --json, --resume goes on", file=sys.stderr)
        return 130
    except (UserError, torch.OutOfMemoryError) as error:
        print(f"verify_emulator.py: {error}", file=sys.stderr)
        return 2
    results = [record.results[name] for name in names]
    differ = sum(bool(result.difference) for result in results)
    counts = ", ".join(f"{count} {name}" for name, count in totals(results).items())
    with reader_may_leave():
        print(f"{len(results)} games, {differ} that differ; compared {counts}")
    return 1 if differ else 0


def chosen_games(text: str) -> list[str]:
    if text in ("all", "atari57"):
        return [*games(atari57=text == "atari57")]
    return list(dict.fromkeys(canonical_game(name) for name in text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
