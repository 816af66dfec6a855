"""Train detectors on scattered MNIST with and without coordinates, and make the table of them.

python scripts/train_detector.py --coords all --seeds 5
python scripts/train_detector.py --coords none --stage full --mnist ~/mnist
python scripts/train_detector.py --table quick
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coordrl.backbone import Coords
from coordrl.commands import ExperimentArguments, refuse_ignored, run_command
from coordrl.config import refuse_overruled
from coordrl.detection.experiments import Experiments
from coordrl.detection.rpn import AnchorLayout
from coordrl.detection.sources import load_split
from coordrl.detection.table import TableSize
from coordrl.detection.training import Stage
from coordrl.devices import use_device


@dataclass(frozen=True)
class Arguments(ExperimentArguments):
    """Train a detector over several seeds, or make the table of all arms.

    Stopped runs continue where they were; finished runs are not repeated.
    """

    coords: Coords = "all"
    """Where it sees coordinates: nowhere, in the picture, or in all of the paper's places."""
    stage: Stage = "rpn"
    """The paper's region proposal network alone, or a whole Faster R-CNN."""
    anchors: AnchorLayout | None = None
    """Layout of the anchors: around each feature, as in Faster R-CNN, or where the released code
    puts them; the configuration's if not given."""
    table: TableSize | None = None
    """Make the table of all arms instead: quick (one seed, cut short) or full."""
    mnist: Path | None = None
    """Digits of your own: a folder of IDX files or of pictures, or an .npz file."""
    config: Path = Path(__file__).parents[1] / "configs" / "detection.toml"
    """Settings of each stage."""
    out: Path = Path("runs/detection")
    """Folder of the runs."""


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(Arguments, train, "train_detector.py", argv)


def train(arguments: Arguments, command: str) -> str:
    device = use_device(arguments.device, arguments.threads)
    overrides = tuple(arguments.overrides())
    owners = {"coords": "use --coords", "stage": "use --stage", "seed": "use --seeds"}
    owners["digits"] = "use --mnist"
    if arguments.anchors is not None or arguments.table is not None:
        owners["proposals.anchor_layout"] = "use --anchors, or neither for the table"
    refuse_overruled(overrides, owners)
    if arguments.table is not None:
        refuse_ignored(arguments, ("coords", "stage", "anchors", "seeds"), "the table chooses it")
    digits = load_split(arguments.mnist)
    print(f"digits: {digits.source}", file=sys.stderr)
    experiments = Experiments(
        config=arguments.config,
        out=arguments.out,
        digits=digits,
        device=device,
        overrides=overrides,
        command=command,
    )
    report = arguments.report or arguments.out
    if arguments.table is not None:
        return experiments.make_table(arguments.table, report)
    return experiments.train_seeds(
        arguments.stage, arguments.coords, arguments.anchors, seeds=arguments.seeds, report=report
    )


if __name__ == "__main__":
    sys.exit(main())
