"""Coordinates of the pixels of a feature map, in the systems that networks are given them in."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

from coordrl.layers.contexts import has_values

Anchor = Literal["ends", "centers"]
PerAxis = float | Sequence[float] | Tensor


_NOT_ZERO = {"origin": "", "r_center": "", "extent": " and not 0"}


def _check_finite(name: str, value: float | Sequence[float]) -> None:
    values: Sequence[object] = value if isinstance(value, Sequence) else [value]
    numbers = [number for number in values if isinstance(number, Real)]
    if len(numbers) < len(values):
        raise ValueError(f"{name} must be one number, or one for each axis, got {value!r}")
    if not all(map(math.isfinite, numbers)) or (name == "extent" and 0 in values):
        raise ValueError(f"{name} must be finite{_NOT_ZERO[name]}, got {value}")


@dataclass(frozen=True)
class CoordinateSystem:
    """What the coordinates of a pixel are. The defaults are those of the paper.

    An axis runs from its origin to origin + extent. Numbers for each axis come in the order of
    the channels, x, y, z, which is the reverse of the order of a tensor's dimensions.

    Raises:
        ValueError: If a field does not have a value described below, a number is not finite, an
            extent is 0, or ``r_center`` is more than one number.

    Example:
        >>> meters = CoordinateSystem(anchor="centers", origin=(0.0, 0.0), extent=(300.0, 200.0))
        >>> coordinate_grid(2, 3, system=meters)[0, 0]
        tensor([[ 50., 150., 250.],
                [ 50., 150., 250.]])
    """

    anchor: Anchor = "ends"
    """What lies at the ends of an axis: with ``"centers"`` the outer edges of the picture, so that
    coordinates do not change with resolution; with ``"ends"``, the paper's, the centers of the
    outermost pixels."""
    keep_aspect: bool = False
    """Give the longest axis its full extent and shorter axes a part of theirs, around the middle,
    so that pixels are square if all axes have one extent."""
    origin: float | tuple[float, ...] = -1.0
    """Where axes begin: one number for all, or one for each."""
    extent: float | tuple[float, ...] = 2.0
    """How long axes are; a negative extent runs backwards."""
    r_center: float = 0.0
    """Coordinate, on every axis, of the point that r is measured from. The first version of the
    paper, and ports that follow it, have 0.5 here, by mistake."""
    with_angle: bool = False
    """Append the direction of the pixel, atan2(y, x) / pi, in (-1, 1]: 0 is to the right, 1/2
    downwards."""
    frequencies: int = 0
    """Append sin(2^k pi c) of each coordinate c, and then cos, for k in [0, frequencies): Fourier
    features (Tancik et al., 2020, https://arxiv.org/abs/2006.10739)."""

    def __post_init__(self) -> None:
        if self.anchor not in get_args(Anchor):
            raise ValueError(f"anchor must be one of {get_args(Anchor)}, got {self.anchor!r}")
        if type(self.frequencies) is not int or self.frequencies < 0:
            raise ValueError(
                f"frequencies must be a whole number, 0 or more, got {self.frequencies!r}"
            )
        for switch in ("keep_aspect", "with_angle"):
            if not isinstance(getattr(self, switch), bool):
                got = getattr(self, switch)
                raise ValueError(f"{switch} must be True or False, got {got!r}")
        for name in ("origin", "extent"):  # lists, as from JSON, become hashable tuples
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        if isinstance(self.r_center, Sequence):
            raise ValueError(f"r_center must be one number, got {self.r_center}")
        _check_finite("r_center", self.r_center)
        _check_finite("origin", self.origin)
        _check_finite("extent", self.extent)

    def num_channels(self, axes: int, *, with_r: bool) -> int:
        """Return how many channels a grid of ``axes`` axes has.

        Raises:
            ValueError: If the system does not fit: it has angles and there is only one axis, or
                it has numbers for another number of axes.
        """
        self.require_fit(axes)
        return axes + with_r + self.with_angle + 2 * axes * self.frequencies

    def require_fit(self, axes: int) -> None:
        """Raise a ValueError if the system does not fit a grid of ``axes`` axes."""
        if self.with_angle and axes == 1:
            raise ValueError("there is no angle on a single axis; leave with_angle off")
        _per_axis("origin", self.origin, axes)
        _per_axis("extent", self.extent, axes)


def channels_of(layer: str, system: CoordinateSystem, axes: int, *, with_r: bool) -> int:
    """Return how many coordinate channels a layer has.

    Raises:
        TypeError: If ``system`` is not a CoordinateSystem, or ``with_r`` not a bool.
        ValueError: If ``system`` does not fit ``axes``.
    """
    if not isinstance(system, CoordinateSystem):
        raise TypeError(f"{layer} expects system to be a CoordinateSystem, got {system!r}")
    if not isinstance(with_r, bool):
        raise TypeError(f"{layer} expects with_r to be True or False, got {with_r!r}")
    return system.num_channels(axes, with_r=with_r)


PAPER_SYSTEM = CoordinateSystem()


def coordinate_grid(
    *size: int,
    with_r: bool = False,
    system: CoordinateSystem = PAPER_SYSTEM,
    origin: PerAxis | None = None,
    extent: PerAxis | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the coordinate channels of a feature map: x, y and z, one per axis, then r.

    x runs from -1 in the left column to 1 in the right one, y from -1 in the top row to 1 in the
    bottom one, z from -1 in the front to 1 in the back, and r = sqrt(x^2 + y^2 + z^2) is the
    distance from the center. An axis of length 1 has the single coordinate 0. ``system`` offers
    other coordinates, and further channels after these.

    The authors' TensorFlow code divides x by the height and y by the width, which gives the same
    grid on square images only (``AddCoords.call`` in uber-research/CoordConv). Here each axis is
    divided by its own length.

    Args:
        *size: Length of each axis in the order of a tensor: ``width``, or ``height, width``, or
            ``depth, height, width``; each at least 1.
        with_r: Append the r channel.
        system: The coordinate system; the paper's by default.
        origin: Where axes begin, in place of the system's: one number, one for each axis in the
            order x, y, z, or a tensor ``(N, axes)`` with a row for each sample. ``origin`` and
            ``extent`` place a crop in the whole picture: with ``anchor="centers"``, the left half
            has the origin -1 and the extent (1, 2). (With ``keep_aspect``, the extent is that of
            the crop's longest axis.)
        extent: How long axes are, in place of the system's; like ``origin``.
        device: Where to build the grid; the current default device if None.
        dtype: Floating-point type of the grid; the current default if None. Types of 16 bits
            are computed in float32 and rounded once.

    Returns:
        Grid of shape ``(1, channels, *size)``, or ``(N, channels, *size)`` if origin or extent
        differ between samples.

    Raises:
        ValueError: If there are not 1, 2 or 3 sizes, one is below 1, origin or extent are not as
            described, not finite, or differ in the number of samples, an extent is 0, or the
            system does not fit the number of axes.
        TypeError: If ``dtype`` is not a floating-point type.

    Example:
        >>> coordinate_grid(2, 3)[0, 0]
        tensor([[-1.,  0.,  1.],
                [-1.,  0.,  1.]])
    """
    if not 1 <= len(size) <= 3 or min(size) < 1 or any(isinstance(s, float) for s in size):
        raise ValueError(f"coordinate_grid needs 1 to 3 whole sizes of at least 1, got {size}")
    system.require_fit(len(size))
    dtype = dtype or torch.get_default_dtype()
    if not dtype.is_floating_point:
        raise TypeError(f"coordinate_grid is of a floating-point type, got {dtype}")
    wide = torch.promote_types(dtype, torch.float32)
    _require_same_samples(origin, extent)
    origins = _per_axis("origin", system.origin if origin is None else origin, len(size))
    extents = _per_axis("extent", system.extent if extent is None else extent, len(size))

    ramps = []
    for axis, length in enumerate(reversed(size)):  # of x, y, z
        half = extents[axis] / 2
        middle = origins[axis] + half
        if system.keep_aspect:
            half = half * (_intervals(length, system) / _intervals(_longest(size), system))
        ramp = _ramp(middle, half, length, system, device, wide)
        ramps.append(ramp.view(-1, *[1] * (len(size) - 1 - axis), length, *[1] * axis))
    coordinates = list(torch.broadcast_tensors(*ramps))  # type: ignore[no-untyped-call]
    channels = list(coordinates)
    if with_r:
        squares = torch.stack([(c - system.r_center).square() for c in coordinates])
        channels.append(squares.sum(dim=0).sqrt())
    if system.with_angle:
        angle = torch.atan2(coordinates[1], coordinates[0])
        # To the left, some runtimes of exported models return -pi where torch returns pi.
        channels.append((angle + 2 * math.pi * (angle <= -math.pi)) / math.pi)
    for k in range(system.frequencies):
        channels += [torch.sin(2**k * math.pi * c) for c in coordinates]
        channels += [torch.cos(2**k * math.pi * c) for c in coordinates]
    return torch.stack(channels, dim=1).to(dtype)


def _require_same_samples(origin: PerAxis | None, extent: PerAxis | None) -> None:
    if isinstance(origin, Tensor) and isinstance(extent, Tensor) and origin.ndim == extent.ndim:
        rows = len(origin), len(extent)
        if rows[0] != rows[1] and 1 not in rows and not torch.compiler.is_compiling():
            raise ValueError(
                f"origin and extent must be of as many samples, got {rows[0]} and {rows[1]}"
            )


def _longest(size: Sequence[int]) -> int:
    """Return ``max(size)``; while tracing, by arithmetic, since a trace has no comparisons."""
    if not torch._C._is_tracing():
        return max(size)
    return functools.reduce(lambda one, other: (one + other + abs(one - other)) // 2, size)


def _intervals(length: int, system: CoordinateSystem) -> int:
    """Return how many steps, each from pixel to pixel, make up the extent."""
    return length if system.anchor == "centers" else max(length - 1, 1)


def _ramp(
    middle: float | Tensor,
    half: float | Tensor,
    length: int,
    system: CoordinateSystem,
    device: torch.device | str | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return the coordinates along an axis, ``(length,)``, or ``(N, length)`` for N samples.

    They come from whole numbers by one division, so that the ends, the middle and the symmetry
    are exact, and do without linspace, which some runtimes of exported models lack.
    """
    doubled = 2 * torch.arange(length, device=device) - (length - 1)
    unit = doubled.to(dtype) / _intervals(length, system)
    if isinstance(middle, Tensor):
        middle = middle.to(unit).unsqueeze(-1)
    if isinstance(half, Tensor):
        half = half.to(unit).unsqueeze(-1)
    return unit * half + middle


def _per_axis(name: str, value: PerAxis, axes: int) -> list[float | Tensor]:
    """Return a number for each of x, y, z, or a tensor of one number per sample."""
    if isinstance(value, Tensor):
        if value.ndim != 2 or value.shape[1] != axes or not value.is_floating_point():
            raise ValueError(
                f"{name} must be floating point of shape (N, {axes}), a row for each sample, got"
                f" {tuple(value.shape)} of {value.dtype}"
            )
        if value.device.type == "cpu" and has_values(value):
            if not value.isfinite().all() or (name == "extent" and (value == 0).any()):
                raise ValueError(f"{name} must be finite{_NOT_ZERO[name]}, got {value.tolist()}")
        return list(value.unbind(dim=1))
    if not torch.compiler.is_compiling():  # there, numbers may be symbols
        _check_finite(name, value)
    if not isinstance(value, Sequence):
        return [value] * axes
    if len(value) != axes:
        raise ValueError(f"{name} must be one number or {axes}, in the order x, y, z, got {value}")
    return list(value)
