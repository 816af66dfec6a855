"""Train networks on the coordinate tasks of the CoordConv paper, and make its table and figures.

python scripts/train_coordinates.py --task classification --split quadrant --seeds 5
python scripts/train_coordinates.py --task rendering --model robust --set training.epochs=20
python scripts/train_coordinates.py --table quick
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from coordrl.commands import exit_status, refuse_ignored, use_device
from coordrl.config import Override, parse_override, refuse_overruled
from coordrl.coordinates.data import InputScale, Split
from coordrl.coordinates.experiments import Experiments
from coordrl.coordinates.table import TableSize
from coordrl.coordinates.tasks import TaskName
from coordrl.coordinates.training import Model


@dataclass(frozen=True)
class Arguments:
    """Train on a coordinate task over several seeds, or make the table of all of them.

    A run that was stopped goes on where it was, one that is finished is not repeated.
    """

    task: TaskName = "classification"
    """Place to pixel, place to picture, or picture to place."""
    model: Model = "coordconv"
    """The paper's CoordConv net, its baseline without coordinates, or our sturdier variant."""
    split: Split = "uniform"
    """Which places are held back for testing."""
    input_scale: InputScale = "unit"
    """Places as numbers in [-1, 1] like the coordinates, or as pixels like the released code."""
    seeds: int = 1
    """Number of runs, with the seeds 0, 1, 2, ..."""
    sweep: tyro.conf.FlagCreatePairsOff[bool] = False
    """Train the paper's grid of settings, from the configuration's table, with each seed."""
    table: TableSize | None = None
    """Make the table of all tasks instead: quick (one seed, all cut short) or full."""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """Settings that win over the configuration, such as training.epochs=20."""
    max_seconds: float | None = None
    """Processor seconds after which a run is cut short; in the table, a baseline, or one that is
    given places as pixels."""
    config: Path = Path(__file__).parents[1] / "configs" / "coordinates.toml"
    """Settings of each task and model."""
    out: Path = Path("runs/coordinates")
    """Folder of the runs."""
    report: Path | None = None
    """Where the table and its figures go; the folder of the runs if not given."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks live; auto takes the GPU if there is one."""
    threads: int | None = None
    """Threads of PyTorch on the CPU; all cores if not given."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = tyro.cli(Arguments, args=argv)
    typed = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "scripts/train_coordinates.py", *typed])
    return exit_status("train_coordinates.py", lambda: train(arguments, command))


def train(arguments: Arguments, command: str) -> str:
    device = use_device(arguments.device, arguments.threads)
    overrides = [parse_override(text) for texts in arguments.set for text in texts]
    options = ("task", "model", "split", "input_scale")
    owners = {key: f"use --{key.replace('_', '-')}" for key in options}
    refuse_overruled(overrides, {**owners, "seed": "use --seeds"})
    if arguments.table is not None:
        refuse_ignored(arguments, (*options, "seeds", "sweep"), "the table chooses it")
    if arguments.max_seconds is not None and arguments.table is None:
        overrides.append(Override("training.max_seconds", arguments.max_seconds, "--max-seconds"))
    experiments = Experiments(arguments.config, arguments.out, device, tuple(overrides), command)
    report = arguments.report or arguments.out
    if arguments.table is not None:
        return experiments.make_table(arguments.table, report, arguments.max_seconds)
    return experiments.train_seeds(
        arguments.task,
        arguments.model,
        arguments.split,
        arguments.input_scale,
        seeds=arguments.seeds,
        sweep=arguments.sweep,
        report=report,
    )


if __name__ == "__main__":
    sys.exit(main())
