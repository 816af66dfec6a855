"""Test whether a CoordConv harms a classifier of handwritten digits: two arms, paired over seeds.

python scripts/train_digits.py
python scripts/train_digits.py --seeds 10 --set epochs=20
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from coordrl.commands import run_command
from coordrl.config import SettingsError, load_settings, parse_overrides, refuse_overruled
from coordrl.devices import use_device
from coordrl.digits import load_digits
from coordrl.files import make_folder
from coordrl.recognition import (
    RecognitionSettings,
    compare_arms,
    write_report,
)


@dataclass(frozen=True)
class Arguments:
    """Train a small ResNet with and without the paper's CoordConv layer, and compare.

    Finished runs are not repeated.
    """

    seeds: int = 5
    """Number of runs of each arm, with the seeds 0, 1, 2, ..., at least 2."""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """Settings of all runs, such as epochs=20."""
    out: Path = Path("runs/digits")
    """Folder of the runs."""
    report: Path | None = None
    """Where digits.md and digits.json go; the folder of the runs if not given."""
    threads: int | None = None
    """Threads of PyTorch; all cores if not given."""


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(Arguments, train, "train_digits.py", argv)


def train(arguments: Arguments, command: str) -> str:
    if arguments.seeds < 2:
        raise SettingsError(f"--seeds must be at least 2 to compare, got {arguments.seeds}")
    use_device("cpu", arguments.threads)
    overrides = tuple(parse_overrides(arguments.set))
    refuse_overruled(overrides, {"arm": "all arms are trained", "seed": "use --seeds"})
    settings = load_settings(RecognitionSettings, overrides=overrides)
    digits = load_digits()
    images = torch.from_numpy(digits.images).unsqueeze(1).float() / 255
    labels = torch.from_numpy(digits.labels).long()
    report = arguments.report or arguments.out
    make_folder(report)
    results = compare_arms(settings, images, labels, seeds=arguments.seeds, out=arguments.out)
    return write_report(results, report, pool=len(images), command=command)


if __name__ == "__main__":
    sys.exit(main())
