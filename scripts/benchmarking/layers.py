"""CoordConv by concatenation, ours and CoordBias, compared with the plain convolution."""

import copy
import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import geometric_mean
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

import coordrl
from benchmarking.base import Benchmark
from benchmarking.ratios import Ratio, Row, take_turns, timed
from coordrl.backbone import NATURE_DQN
from coordrl.memory import keep_freed_memory


@dataclass(frozen=True)
class Case:
    """A layer and its input."""

    name: str
    ours: type[nn.Module]
    plain: type[nn.Module]
    channels: tuple[int, int]
    """Channels of input and output."""
    size: tuple[int, ...]
    arguments: dict[str, int]
    batch: int
    first: bool = False
    """Whether this is the first layer, whose input needs no gradient."""

    @property
    def title(self) -> str:
        """Name and batch."""
        return f"{self.name}, batch {self.batch}"


def nature(batch: int) -> Iterator[Case]:
    layers = ((4, 84, True), (32, 20, False), (64, 9, False))
    for index, ((channels, side, first), spec) in enumerate(zip(layers, NATURE_DQN, strict=True)):
        yield Case(
            f"Nature {index + 1}",
            coordrl.CoordConv2d,
            nn.Conv2d,
            (channels, spec.out_channels),
            (side, side),
            {"kernel_size": spec.kernel_size, "stride": spec.stride},
            batch,
            first,
        )


CASES = [
    *nature(8),
    *nature(32),
    *nature(256),
    Case(
        "ResNet stem",
        coordrl.CoordConv2d,
        nn.Conv2d,
        (3, 64),
        (224, 224),
        {"kernel_size": 7, "stride": 2, "padding": 3},
        32,
        first=True,
    ),
    Case(
        "3x3, 56x56",
        coordrl.CoordConv2d,
        nn.Conv2d,
        (64, 64),
        (56, 56),
        {"kernel_size": 3, "padding": 1},
        32,
    ),
    Case(
        "1D, 1024",
        coordrl.CoordConv1d,
        nn.Conv1d,
        (64, 64),
        (1024,),
        {"kernel_size": 5, "padding": 2},
        32,
    ),
    Case(
        "3D, 16x32x32",
        coordrl.CoordConv3d,
        nn.Conv3d,
        (16, 16),
        (16, 32, 32),
        {"kernel_size": 3, "padding": 1},
        32,
    ),
    Case(
        "transposed, 16x16",
        coordrl.CoordConvTranspose2d,
        nn.ConvTranspose2d,
        (64, 32),
        (16, 16),
        {"kernel_size": 4, "stride": 2, "padding": 1},
        32,
    ),
]


class Concatenating(nn.Module):
    """The usual CoordConv: append a grid, here cached for a whole batch, and convolve."""

    grid: Tensor

    def __init__(self, case: Case, *, channels_last: bool) -> None:
        super().__init__()
        in_channels, out_channels = case.channels
        self.convolution = case.plain(in_channels + len(case.size), out_channels, **case.arguments)
        grid = coordrl.coordinate_grid(*case.size).expand(case.batch, *[-1] * (len(case.size) + 1))
        # In the input's layout, or the concatenation would have another one and be copied again.
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.register_buffer("grid", grid.contiguous(memory_format=layout))

    def forward(self, x: Tensor) -> Tensor:
        """Append and convolve."""
        y: Tensor = self.convolution(torch.cat([x, self.grid], dim=1))
        return y


@dataclass(frozen=True)
class Layers(Benchmark):
    """CoordConv by concatenation, ours and CoordBias, as ratios to the plain convolution.

    Forward computes the coordinate map, as in training; without gradients it is cached. Everything
    is measured twice: by PyTorch's default, where memory that large tensors free returns to the
    system, and with memory kept, as in our training (coordrl.memory).
    """

    plays: ClassVar[bool] = False

    seconds: float = 5.0
    """Least seconds to spend on each layer."""
    only: str = ""
    """Measure only layers whose name and batch, as in "Nature 3, batch 32", contain this."""
    memory_formats: tuple[Literal["contiguous", "channels_last"], ...] = (
        "contiguous",
        "channels_last",
    )
    """Layouts of weights and inputs."""
    freed_memory: tuple[Literal["returned", "kept"], ...] = ("returned", "kept")
    """What happens to memory that tensors free. Keeping it cannot be undone, so it comes last."""
    least_batch: int = 32
    """Least batch of the layers in the summary: with smaller ones, calls are too short."""

    def rows(self) -> Iterator[Row]:
        """Yield a row for each layer, memory format and treatment of freed memory."""
        orders = sorted(self.freed_memory, reverse=True), self.memory_formats, CASES
        for freed_memory, memory_format, case in itertools.product(*orders):
            if freed_memory == "kept":
                keep_freed_memory()
            channels_last = memory_format == "channels_last"
            if self.only in case.title and (len(case.size) == 2 or not channels_last):
                ratios = self._measure(case, channels_last)
                kind = {"memory format": memory_format, "freed memory": freed_memory}
                yield {"layer": case.title, **kind, **ratios}

    def summary(self, rows: list[Row]) -> Row:
        """Return geometric means over the layers of the batches that count."""
        counted = {case.title for case in CASES if case.batch >= self.least_batch}
        values: dict[str, list[float]] = {}
        for row in rows:
            for column, ratio in row.items():
                if isinstance(ratio, Ratio) and row["layer"] in counted:
                    kind = f"{column}, {row['memory format']}, memory {row['freed memory']}"
                    values.setdefault(kind, []).append(ratio.value)
        return {column: round(geometric_mean(ratios), 3) for column, ratios in values.items()}

    def _measure(self, case: Case, channels_last: bool) -> Row:
        layers = {
            "plain": case.plain(*case.channels, **case.arguments),
            "concatenating": Concatenating(case, channels_last=channels_last),
            "ours": case.ours(*case.channels, **case.arguments),
            "coord bias": nn.Sequential(
                case.plain(*case.channels, **case.arguments),
                coordrl.CoordBias(case.channels[1], len(case.size)),
            ),
        }
        x = torch.randn(case.batch, case.channels[0], *case.size)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
            for layer in layers.values():
                layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x.requires_grad_(not case.first)
        gradient = torch.randn_like(layers["plain"](x))

        def train(layer: nn.Module) -> None:
            x.grad = None
            layer.zero_grad()
            layer(x).backward(gradient)

        # A layer drops its cached map when it learns, so acting is measured on copies.
        acting = copy.deepcopy(layers)
        modes: dict[str, tuple[Callable[[nn.Module], object], dict[str, nn.Module]]] = {
            "forward": (lambda layer: layer(x), layers),
            "forward+backward": (train, layers),
            "no gradient": (torch.no_grad()(lambda layer: layer(x)), acting),
        }
        costs = take_turns(
            {
                f"{mode}, {name}": timed(call, layer)
                for mode, (call, of_mode) in modes.items()
                for name, layer in of_mode.items()
            },
            self.seconds,
        )
        row: Row = {"forward ms": round(statistics.median(costs["forward, plain"]) * 1000, 2)}
        for mode in modes:
            for name in ("concatenating", "ours", "coord bias"):
                row[f"{mode}: {name}"] = Ratio.of(costs[f"{mode}, {name}"], costs[f"{mode}, plain"])
        return row
