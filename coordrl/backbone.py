"""The convolutional stack of every network here, with or without coordinates.

The Atari agents, the coordinate tasks, generator, discriminator and detector differ only in their
:class:`ConvSpec` lists, so one word says which convolutions see coordinates: ``coords="none"``,
``"first"`` or ``"all"``.
"""

import dataclasses
import difflib
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coordrl.layers import CoordConv2d, CoordConvTranspose2d
from coordrl.layers.contexts import no_autocast
from coordrl.layers.coord_map import map_dtype
from coordrl.layers.grid import PAPER_SYSTEM, CoordinateSystem

Coords = Literal["none", "first", "all"]
Norm = Literal["none", "batch"]
Activation = Literal["none", "relu", "leaky_relu", "tanh"]


@dataclass(frozen=True)
class ConvSpec:
    """One convolution and what follows it: norm, activation, max-pooling, in this order.

    Raises:
        ValueError: If a value is out of its range.

    Example:
        >>> ConvSpec(64, kernel_size=5, stride=2, padding=2, norm="batch", activation="leaky_relu")
        ConvSpec(out_channels=64, kernel_size=5, stride=2, padding=2, transposed=False, \
output_padding=0, bias=True, norm='batch', activation='leaky_relu', pool=1)
    """

    out_channels: int
    """Channels of the output, at least 1."""
    kernel_size: int = 3
    """Height and width of the kernel."""
    stride: int = 1
    """Step between output pixels, in input pixels; the other way round when transposed."""
    padding: int | Literal["same"] = 0
    """Pixels of zeros on each side; ``"same"`` keeps the size, at stride 1."""
    transposed: bool = False
    """Convolve transposed: a stride enlarges the picture."""
    output_padding: int = 0
    """Pixels added at the bottom and on the right of a transposed convolution's output."""
    bias: bool = True
    """Learn a bias."""
    norm: Norm = "none"
    """``"batch"`` normalizes each channel over the batch."""
    activation: Activation = "relu"
    """Function of each pixel; ``"leaky_relu"`` has the slope 0.2 below zero, as in the paper."""
    pool: int = 1
    """Side and step of the max-pooling window; 1 pools nothing."""

    def __post_init__(self) -> None:
        at_least = {
            "out_channels": 1,
            "kernel_size": 1,
            "stride": 1,
            "output_padding": 0,
            "pool": 1,
        }
        if self.padding != "same":
            at_least["padding"] = 0
        for name, minimum in at_least.items():
            value = getattr(self, name)
            if type(value) is not int or value < minimum:
                raise ValueError(
                    f"ConvSpec.{name} must be a whole number, {minimum} or more, got {value!r}"
                )
        for name, choices in (("norm", get_args(Norm)), ("activation", get_args(Activation))):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"ConvSpec.{name} must be one of {choices}, got {getattr(self, name)!r}"
                )
        if self.padding == "same" and (self.transposed or self.stride != 1):
            raise ValueError('ConvSpec.padding="same" needs stride 1 and no transposition')
        if self.output_padding and (not self.transposed or self.output_padding >= self.stride):
            raise ValueError(
                "ConvSpec.output_padding belongs to transposed convolutions and is below the"
                f" stride, got {self.output_padding} with stride {self.stride}"
            )

    def out_length(self, length: int) -> int:
        """Return the length of the output for an axis of ``length`` pixels; below 1: no output.

        Example:
            >>> ConvSpec(32, 8, 4).out_length(84)
            20
        """
        if self.padding == "same":
            return length // self.pool
        if self.transposed:
            full = (length - 1) * self.stride + self.kernel_size + self.output_padding
            return (full - 2 * self.padding) // self.pool
        return ((length + 2 * self.padding - self.kernel_size) // self.stride + 1) // self.pool


NATURE_DQN = (ConvSpec(32, 8, 4), ConvSpec(64, 4, 2), ConvSpec(64, 3, 1))
"""Mnih et al., "Human-level control through deep reinforcement learning", Nature 518, 2015."""


def conv_specs(
    specs: Sequence[ConvSpec | Mapping[str, Any] | Sequence[Any]],
) -> tuple[ConvSpec, ...]:
    """Return specs, which may come from a configuration file, as :class:`ConvSpec`.

    Args:
        specs: Each a ConvSpec, a mapping of its fields, or a list of its first fields in order.

    Raises:
        ValueError: If there is no spec, a field is unknown or a value is out of range.

    Example:
        >>> conv_specs([[32, 8, 4], {"out_channels": 64, "kernel_size": 4, "stride": 2}, [64, 3]])
        ... # doctest: +ELLIPSIS
        (ConvSpec(out_channels=32, kernel_size=8, stride=4, ...
        >>> conv_specs([[32, 8, 4], [64, 4, 2], [64, 3, 1]]) == NATURE_DQN
        True
    """
    if isinstance(specs, str) or not isinstance(specs, Sequence) or len(specs) == 0:
        raise ValueError(f"specs must be a list of at least one convolution, got {specs!r}")
    return tuple(_conv_spec(spec, index) for index, spec in enumerate(specs))


def _conv_spec(spec: ConvSpec | Mapping[str, Any] | Sequence[Any], index: int) -> ConvSpec:
    if isinstance(spec, ConvSpec):
        return spec
    names = [field.name for field in dataclasses.fields(ConvSpec)]
    if isinstance(spec, Mapping):
        fields = dict(spec)
    elif isinstance(spec, Sequence) and not isinstance(spec, str) and len(spec) <= len(names):
        fields = dict(zip(names, spec, strict=False))
    else:
        raise ValueError(f"specs[{index}] must be a table or a list of numbers, got {spec!r}")
    _refuse_unknown(f"specs[{index}]", fields, names)
    if "out_channels" not in fields:
        raise ValueError(f"specs[{index}] lacks out_channels, got {spec!r}")
    try:
        return ConvSpec(**fields)
    except ValueError as error:
        raise ValueError(f"specs[{index}]: {error}") from None


def coordinate_system(system: CoordinateSystem | Mapping[str, Any]) -> CoordinateSystem:
    """Return a system, which may come from a configuration file, as a CoordinateSystem.

    Args:
        system: A CoordinateSystem, or a mapping of those fields that differ from the paper's.

    Raises:
        ValueError: If ``system`` is neither, a field is unknown, or a value is invalid.

    Example:
        >>> coordinate_system({"origin": -0.1, "extent": 0.2}).anchor
        'ends'
    """
    if isinstance(system, CoordinateSystem):
        return system
    if not isinstance(system, Mapping):
        raise ValueError(f"system must be a CoordinateSystem or its fields, got {system!r}")
    names = [field.name for field in dataclasses.fields(CoordinateSystem)]
    _refuse_unknown("system", system, names)
    return CoordinateSystem(**system)


def _refuse_unknown(owner: str, fields: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in fields:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(names)}"
            raise ValueError(f"{owner} has an unknown key {name!r}{hint}")


def require_coords(coords: Coords, *, with_r: bool) -> None:
    """Raise a ValueError if ``coords`` is invalid, or ``with_r`` is set without coordinates."""
    if coords not in get_args(Coords):
        raise ValueError(f"coords must be one of {get_args(Coords)}, got {coords!r}")
    if with_r and coords == "none":
        raise ValueError('with_r=True needs coordinates: coords="first" or coords="all"')


class ConvBackbone(nn.Sequential):
    """A stack of convolutions, with or without coordinates, that knows its output channels.

    With ``coords="none"`` it has the modules of a hand-written ``nn.Sequential`` of ``nn.Conv2d``
    and activations, in the same order and initialized from the same random numbers.

    Args:
        in_channels: Channels of the input, without coordinates.
        specs: The convolutions, from input to output; see :func:`conv_specs` for their forms.
        coords: Which of them see the coordinates of their pixels: none, the first, or all.
        with_r: Give those the distance from the center as well.
        system: The coordinate system, see :func:`coordinate_system` for its forms; ignored if no
            convolution sees coordinates.

    Attributes:
        out_channels: Channels of the output.

    Shape:
        - Input: ``(N, in_channels, H, W)``.
        - Output: ``(N, out_channels, *out_size(H, W))``.

    Raises:
        ValueError: If an argument is invalid, or ``with_r`` is set and ``coords`` is ``"none"``.

    Example:
        >>> backbone = ConvBackbone(4, NATURE_DQN, coords="all")
        >>> backbone.out_channels, backbone.out_size(84, 84)
        (64, (7, 7))
    """

    def __init__(
        self,
        in_channels: int,
        specs: Sequence[ConvSpec | Mapping[str, Any] | Sequence[Any]] = NATURE_DQN,
        coords: Coords = "none",
        with_r: bool = False,
        system: CoordinateSystem | Mapping[str, Any] = PAPER_SYSTEM,
    ) -> None:
        super().__init__()
        require_coords(coords, with_r=with_r)
        if type(in_channels) is not int or in_channels < 1:
            raise ValueError(f"in_channels must be a whole number, 1 or more, got {in_channels!r}")
        self.in_channels = in_channels
        self.specs = conv_specs(specs)
        self.coords = coords
        self.with_r = with_r
        self.system = coordinate_system(system)
        self.out_channels = self.specs[-1].out_channels

        channels = in_channels
        for index, spec in enumerate(self.specs):
            sees_coordinates = coords == "all" or (coords == "first" and index == 0)
            grid = {"with_r": with_r, "system": self.system} if sees_coordinates else None
            for module in (_convolution(channels, spec, grid), *_followers(spec)):
                super().append(module)
            channels = spec.out_channels

    def __getitem__(self, index: Any) -> Any:
        """Return a module, or a slice as a plain ``nn.Sequential`` that keeps the names."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)

    def append(self, module: nn.Module) -> NoReturn:
        """Raise a TypeError: ``out_channels`` and :meth:`out_size` follow from the specs alone."""
        raise TypeError(
            f"a ConvBackbone has the modules of its specs and takes no {type(module).__name__}; add"
            " a ConvSpec, or put both into an nn.Sequential"
        )

    def insert(self, index: int, module: nn.Module) -> NoReturn:
        """Raise a TypeError, as :meth:`append` does."""
        self.append(module)

    def __iadd__(self, other: Any) -> Self:
        return self.extend(other)

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the output for an input of this size.

        Raises:
            ValueError: If the input is too small for one of the convolutions.
        """
        size = height, width
        for index, spec in enumerate(self.specs):
            before, size = size, (spec.out_length(size[0]), spec.out_length(size[1]))
            if min(size) < 1:
                kernel = f"{spec.kernel_size}x{spec.kernel_size}"
                raise ValueError(
                    f"an input of {height}x{width} pixels is too small: {before[0]}x{before[1]} of"
                    f" it reach convolution {index} ({kernel}, stride {spec.stride}), which leaves"
                    " nothing; use a larger input or smaller kernels and strides"
                )
        return size


def _convolution(in_channels: int, spec: ConvSpec, grid: Mapping[str, Any] | None) -> nn.Module:
    shape = in_channels, spec.out_channels, spec.kernel_size, spec.stride
    if spec.transposed:
        assert spec.padding != "same"  # ConvSpec refuses it
        padding, output_padding = spec.padding, spec.output_padding
        if grid is not None:
            return CoordConvTranspose2d(*shape, padding, output_padding, bias=spec.bias, **grid)
        return nn.ConvTranspose2d(*shape, padding, output_padding, bias=spec.bias)
    if grid is not None:
        return CoordConv2d(*shape, spec.padding, bias=spec.bias, **grid)
    return nn.Conv2d(*shape, spec.padding, bias=spec.bias)


def _followers(spec: ConvSpec) -> list[nn.Module]:
    activations: dict[Activation, list[nn.Module]] = {
        "none": [],
        "relu": [nn.ReLU()],
        "leaky_relu": [nn.LeakyReLU(0.2)],
        "tanh": [nn.Tanh()],
    }
    norm = [nn.BatchNorm2d(spec.out_channels)] if spec.norm == "batch" else []
    pool = [nn.MaxPool2d(spec.pool)] if spec.pool > 1 else []
    return [*norm, *activations[spec.activation], *pool]


def pointwise(
    backbone: ConvBackbone, vectors: Tensor, height: int, width: int, *, depth: int | None = None
) -> Tensor:
    """Return the output of a stack of 1x1 convolutions for vectors tiled over a canvas.

    Equal to ``backbone(vectors[:, :, None, None].expand(-1, -1, height, width))`` with the channels
    last, but nothing is tiled: the first layer multiplies each vector once and adds the
    coordinates' part, which all vectors share. The other layers are matrix products, which are 3
    times as fast on a CPU as 1x1 convolutions in NCHW.

    Args:
        backbone: 1x1 convolutions of stride 1, without norm and pooling; the first may be a
            CoordConv, the others may not.
        vectors: One vector per picture, ``(N, in_channels)``.
        height: Rows of the canvas.
        width: Columns of the canvas.
        depth: Number of modules of the backbone to apply, from 1 to ``len(backbone)``; all if None.

    Returns:
        Tensor of shape ``(N, height * width, channels)``.

    Raises:
        ValueError: If the backbone is not of that kind, or not so deep.

    Example:
        >>> backbone = ConvBackbone(2, [ConvSpec(8, 1), ConvSpec(3, 1, activation="none")], "first")
        >>> vectors = torch.tensor([[0.5, -1.0], [2.0, 0.0]])
        >>> pixels = pointwise(backbone, vectors, height=4, width=6)
        >>> tiled = vectors[:, :, None, None].expand(-1, -1, 4, 6)
        >>> pixels.shape, torch.allclose(pixels, backbone(tiled).flatten(2).mT, atol=1e-5)
        (torch.Size([2, 24, 3]), True)
    """
    for spec in backbone.specs:
        plain = ConvSpec(spec.out_channels, 1, bias=spec.bias, activation=spec.activation)
        if spec not in (plain, dataclasses.replace(plain, padding="same")):
            raise ValueError(f"pointwise needs plain 1x1 convolutions, got {spec}")
    # Layers may have been swapped since the backbone was made.
    _, *others = (module for module in backbone if isinstance(module, nn.Conv2d))
    if any(isinstance(module, CoordConv2d) for module in others):
        raise ValueError('pointwise needs coords="none" or coords="first", got "all"')
    if depth is not None and not 1 <= depth <= len(backbone):
        raise ValueError(f"depth must be between 1 and {len(backbone)}, got {depth}")
    x = vectors
    for index, module in enumerate(list(backbone)[:depth]):
        if isinstance(module, nn.Conv2d):
            weight = module.weight.flatten(1)
            if isinstance(module, CoordConv2d):
                own, coords = torch.split(weight, [module.in_channels, module.num_coords], dim=1)
                dtype = map_dtype(weight)
                grid = module.coordinate_grid(height, width, device=x.device, dtype=dtype)
                bias = None if module.bias is None else module.bias.to(dtype)
                with no_autocast(x.device):
                    shared = F.linear(grid.flatten(2).mT, coords.to(dtype), bias)
                x = F.linear(x, own).unsqueeze(1)
                x = (x + shared).to(x.dtype)
            else:
                x = F.linear(x, weight, module.bias)
                x = x.unsqueeze(1).expand(-1, height * width, -1) if index == 0 else x
        else:
            x = module(x)
    return x


def initialize_he_normal(network: nn.Module, generator: torch.Generator) -> None:
    """Draw weights as the authors' TensorFlow does: He-normal, truncated, with biases at zero.

    A normal distribution is cut at two standard deviations and widened by 1/0.8796, so that the
    weights have variance 2 / fan_in. The fan-in of a transposed convolution counts its output
    channels, as in TensorFlow.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            fan_in = module.weight[0].numel()
            std = math.sqrt(2 / fan_in) / 0.8796
            nn.init.trunc_normal_(module.weight, 0.0, std, -2 * std, 2 * std, generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable parameters.

    Example:
        >>> stacks = [ConvBackbone(4, coords=coords) for coords in ("none", "first", "all")]
        >>> [count_parameters(stack) for stack in stacks]
        [77984, 82080, 85280]
    """
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
