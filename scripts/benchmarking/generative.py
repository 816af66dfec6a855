"""The paper's generator with its latent vector tiled and not, and the training of GANs."""

import functools
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import geometric_mean
from typing import ClassVar

import torch
from torch import Tensor, nn

import coordrl
from benchmarking.base import CONFIGS, Benchmark
from benchmarking.processes import Learner, train_in_turn
from benchmarking.ratios import Ratio, Row, ratios_of, take_turns, timed
from coordrl.config import parse_override
from coordrl.generative.data import SortOfClevr
from coordrl.generative.models import build_model
from coordrl.generative.networks import CoordConvGenerator, convolve_tiled
from coordrl.generative.objectives import ObjectiveName
from coordrl.generative.settings import Arm, Scale, load_generative_settings
from coordrl.generative.table import ARMS
from coordrl.memory import keep_freed_memory


@functools.cache
def grid_of(batch: int, size: int) -> Tensor:
    return coordrl.coordinate_grid(size, size).expand(batch, -1, -1, -1).contiguous()


def tiled(generator: CoordConvGenerator, latents: Tensor, *, whole: bool) -> Tensor:
    """Return the first layer's output, or the pictures, by the paper's definition.

    The latent vector is tiled over the canvas, and the cached coordinates are appended.
    """
    size = generator.size
    canvas = latents[:, :, None, None].expand(-1, -1, size, size)
    first, *others = generator.backbone
    assert isinstance(first, nn.Conv2d)
    x = nn.functional.conv2d(
        torch.cat([canvas, grid_of(len(latents), size)], dim=1), first.weight, first.bias
    )
    for module in others if whole else []:
        x = module(x)
    return x


def untiled(generator: CoordConvGenerator, latents: Tensor, *, whole: bool) -> Tensor:
    """Return the same as :func:`tiled`, by a matrix product."""
    first = generator.backbone[0]
    assert isinstance(first, coordrl.CoordConv2d)
    size = generator.size
    x: Tensor = generator(latents) if whole else convolve_tiled(first, latents, size, size)
    return x


def differentiate(
    form: Callable[..., Tensor], generator: CoordConvGenerator, latents: Tensor, whole: bool
) -> None:
    """Run forward and backward for the weights."""
    loss = form(generator, latents, whole=whole).sum()
    torch.autograd.grad(loss, list(generator.parameters()), allow_unused=True)


@dataclass(frozen=True)
class Generators(Benchmark):
    """Cost of the paper's CoordConv generator with a tiled latent vector, relative to ours.

    Forward, and backward for the weights.
    """

    least: ClassVar[Mapping[str, float]] = {"seconds": 0, "sizes": 1}

    plays: ClassVar[bool] = False

    seconds: float = 20.0
    """Least seconds to spend on each size."""
    sizes: tuple[int, ...] = (16, 32, 64)
    """Heights and widths of the pictures. At 64 the network is the paper's; below, it is as wide
    as those of the small scales of configs/generative.toml, with 32 latent numbers."""

    def rows(self) -> Iterator[Row]:
        """Yield a row for each size."""
        keep_freed_memory()
        for size in self.sizes:
            latent, channels = (256, 64) if size == 64 else (32, 8)
            generator = CoordConvGenerator(size, latent, channels)
            latents = torch.rand(16, latent) * 2 - 1
            costs = take_turns(
                {
                    f"{form.__name__}, {whole}": timed(
                        differentiate, form, generator, latents, whole
                    )
                    for form in (tiled, untiled)
                    for whole in (False, True)
                },
                self.seconds,
            )
            yield {
                "pictures": f"16 of {size}x{size}",
                "latent": latent,
                "ours ms": round(statistics.median(costs["untiled, True"]) * 1000, 1),
                "first layer": Ratio.of(costs["tiled, False"], costs["untiled, False"]),
                "generator": Ratio.of(costs["tiled, True"], costs["untiled, True"]),
            }

    def summary(self, rows: list[Row]) -> Row:
        """Return geometric means over the sizes."""
        summary: Row = {}
        for column in ("first layer", "generator"):
            ratios = [ratio.value for row in rows if isinstance(ratio := row[column], Ratio)]
            summary[column] = round(geometric_mean(ratios), 2)
        return summary


@dataclass(frozen=True)
class GanTraining(Benchmark):
    """Training a GAN of configs/generative.toml: the savings of kept memory and of bfloat16.

    Each in a process of its own: the default of scripts/train_gan.py; without keeping freed memory,
    see coordrl.memory; and with training.precision=bfloat16.
    """

    plays: ClassVar[bool] = False

    seconds: float = 60.0
    """Least seconds to spend on each arm."""
    scale: Scale = "small"
    """Size of pictures and networks."""
    objective: ObjectiveName = "r3gan"
    """The loss, with its recipe."""

    def rows(self) -> Iterator[Row]:
        """Yield a row for each arm."""
        for coords in ARMS:
            learners = {
                name: functools.partial(gan_learner, self.scale, self.objective, coords, *how)
                for name, how in {
                    "ours": (True, "float32"),
                    "fetched": (False, "float32"),
                    "half": (True, "bfloat16"),
                }.items()
            }
            costs = train_in_turn(learners, self.seconds)
            yield {
                "coords": coords,
                "ours: ms a batch": round(statistics.median(costs["ours"]) * 1e3, 1),
                "memory fetched anew / ours": Ratio.of(costs["fetched"], costs["ours"]),
                "ours / with bfloat16": Ratio.of(costs["ours"], costs["half"]),
            }

    def summary(self, rows: list[Row]) -> Row:
        """Return how many times as many batches are trained in a CPU second."""
        return ratios_of("coords", rows)


def gan_learner(
    scale: Scale, objective: ObjectiveName, coords: Arm, keeps_memory: bool, precision: str
) -> Learner:
    if keeps_memory:
        keep_freed_memory()
    overrides = (parse_override(f"training.precision={precision}"),)
    settings = load_generative_settings(
        CONFIGS / "generative.toml", scale, "gan", coords, objective, overrides
    )
    random_numbers, device = torch.Generator().manual_seed(0), torch.device("cpu")
    model = build_model(settings, random_numbers, device)
    pictures = SortOfClevr(settings.canvas, settings.training.pictures)
    batches = 10

    def learn() -> int:
        for _ in range(batches):
            size = (settings.training.batch_size,)
            indices = torch.randint(len(pictures), size, generator=random_numbers)
            model.learn(pictures.batch(indices, device), random_numbers)
        return batches

    return learn
