"""Train generative models with and without coordinates, and measure how much they forget.

python scripts/train_gan.py --coords both --scale small --seeds 3
python scripts/train_gan.py --model vae --coords all
python scripts/train_gan.py --data path/to/bedroom_train_lmdb --scale paper
python scripts/train_gan.py --table quick
python scripts/train_gan.py --table steps  # the paper's GAN with many step sizes
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coordrl.commands import ExperimentArguments, refuse_ignored, run_command
from coordrl.config import Override, refuse_overruled
from coordrl.devices import use_device
from coordrl.generative.experiments import Experiments
from coordrl.generative.objectives import ObjectiveName
from coordrl.generative.settings import Arm, Model, Scale
from coordrl.generative.table import ARMS, TableSize


@dataclass(frozen=True)
class Arguments(ExperimentArguments):
    """Train a GAN or a VAE over several seeds, or make the table of all of them.

    Stopped runs continue where they were; finished runs are not repeated.
    """

    model: Model = "gan"
    """A generative adversarial network, or a variational autoencoder."""
    coords: Literal["none", "all", "both"] = "all"
    """The paper's baseline without coordinates, its CoordConv networks, or one after the other."""
    objective: ObjectiveName = "r3gan"
    """Loss of generator and discriminator: the paper's or R3GAN's; GANs only."""
    data: str = "clevr"
    """Two-object Sort-of-Clevr (clevr), LSUN's bedrooms in bedroom_train_lmdb (lsun), or a folder
    of pictures or with an LMDB."""
    scale: Scale = "quick"
    """Size of pictures and networks: 16x16, 32x32, or the paper's 64x64, which needs a GPU."""
    table: Literal[TableSize, "steps"] | None = None
    """Make the table of all models instead: quick (one seed) or small (five, larger pictures); or
    steps, of GANs with the paper's loss and many step sizes."""
    max_seconds: float | None = None
    """Processor seconds after which each run is cut short."""
    config: Path = Path(__file__).parents[1] / "configs" / "generative.toml"
    """Settings of each scale and recipe."""
    out: Path = Path("runs/generative")
    """Folder of the runs."""


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(Arguments, train, "train_gan.py", argv)


def train(arguments: Arguments, command: str) -> str:
    arms: Sequence[Arm] = ARMS if arguments.coords == "both" else (arguments.coords,)
    device = use_device(arguments.device, arguments.threads)
    typed = arguments.overrides()
    owners = {"model": "use --model", "coords": "use --coords", "seed": "use --seeds"}
    refuse_overruled(typed, owners)
    if arguments.table is not None:
        chosen = ("model", "coords", "objective", "scale", "seeds")
        refuse_ignored(arguments, chosen, "the table chooses it")
        refuse_overruled(typed, {"gan.objective": "the table chooses it"})
    if arguments.model == "vae":
        refuse_ignored(arguments, ("objective",), "it is that of a GAN")
    overrides = [Override("data", arguments.data, "--data")]
    if arguments.max_seconds is not None:
        limit = arguments.max_seconds
        overrides.append(Override("training.max_seconds", limit, "--max-seconds"))
    settings = (*overrides, *typed)
    experiments = Experiments(
        config=arguments.config,
        out=arguments.out,
        device=device,
        overrides=settings,
        command=command,
    )
    report = arguments.report or arguments.out
    if arguments.table == "steps":
        return experiments.make_step_table(report)
    if arguments.table is not None:
        return experiments.make_table(arguments.table, report)
    return experiments.train_seeds(
        arguments.model,
        arms,
        arguments.objective,
        arguments.scale,
        seeds=arguments.seeds,
        report=report,
    )


if __name__ == "__main__":
    sys.exit(main())
