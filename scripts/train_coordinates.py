"""Train networks on the coordinate tasks of the CoordConv paper, and make its table and figures.

python scripts/train_coordinates.py --task classification --split quadrant --seeds 5
python scripts/train_coordinates.py --task rendering --model robust --set training.epochs=20
python scripts/train_coordinates.py --table quick
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from coordrl.commands import ExperimentArguments, refuse_ignored, run_command
from coordrl.config import Override, refuse_overruled
from coordrl.coordinates.data import InputScale, Split
from coordrl.coordinates.experiments import Experiments
from coordrl.coordinates.table import TableSize
from coordrl.coordinates.tasks import TaskName
from coordrl.coordinates.training import Model
from coordrl.devices import use_device


@dataclass(frozen=True)
class Arguments(ExperimentArguments):
    """Train on a coordinate task over several seeds, or make the table of all of them.

    Stopped runs continue where they were; finished runs are not repeated.
    """

    task: TaskName = "classification"
    """Place to pixel, place to picture, or picture to place."""
    model: Model = "coordconv"
    """The paper's CoordConv net, its baseline without coordinates, or our sturdier variant."""
    split: Split = "uniform"
    """Split that decides which places are held back for testing."""
    input_scale: InputScale = "unit"
    """Places as numbers in [-1, 1] like the coordinates, or as pixels like the released code."""
    sweep: tyro.conf.FlagCreatePairsOff[bool] = False
    """Train the paper's grid of settings, from the configuration's table, with each seed."""
    table: TableSize | None = None
    """Make the table of all tasks instead: quick (one seed, all cut short) or full."""
    max_seconds: float | None = None
    """Processor seconds after which a run is cut short; in the table, only baselines and runs that
    see places as pixels are."""
    config: Path = Path(__file__).parents[1] / "configs" / "coordinates.toml"
    """Settings of each task and model."""
    out: Path = Path("runs/coordinates")
    """Folder of the runs."""


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(Arguments, train, "train_coordinates.py", argv)


def train(arguments: Arguments, command: str) -> str:
    device = use_device(arguments.device, arguments.threads)
    overrides = arguments.overrides()
    options = ("task", "model", "split", "input_scale")
    owners = {key: f"use --{key.replace('_', '-')}" for key in options}
    refuse_overruled(overrides, {**owners, "seed": "use --seeds"})
    if arguments.table is not None:
        refuse_ignored(arguments, (*options, "seeds", "sweep"), "the table chooses it")
    if arguments.max_seconds is not None and arguments.table is None:
        overrides.append(Override("training.max_seconds", arguments.max_seconds, "--max-seconds"))
    experiments = Experiments(
        config=arguments.config,
        out=arguments.out,
        device=device,
        overrides=tuple(overrides),
        command=command,
    )
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
