"""Convolutions over the input and its coordinates.

A CoordConv layer appends the coordinates of the pixels to its input as channels, and convolves.
The coordinates are the same for every sample, so the layer need not build that wide input:

    conv(cat([x, grid]), weight)  ==  conv(x, weight of x) + conv(grid, weight of grid)

The second term, the *coordinate map*, is computed once for the whole batch, and is remembered
while no gradient is needed and its weights stay. Function and gradients are those of the
concatenation up to the order of summation; the parameters *are* those of the concatenation, so
optimizers, initializers and checkpoints see a plain wide convolution.
"""

import math
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import has_static_value
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from coordrl import memory
from coordrl.layers.grid import PAPER_SYSTEM, CoordinateSystem, PerAxis, coordinate_grid
from coordrl.layers.tracing import is_traced, traced_call

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class _Place(NamedTuple):
    """Where a coordinate map lies: what it depends on beside the weights."""

    size: torch.Size
    kernel_size: torch.Size
    output_padding: tuple[int, ...]
    channels_last: bool
    dtype: torch.dtype
    device: torch.device


# What maps depend on beside weights and place; it may be changed on a layer that has run.
_SHAPING = frozenset({"stride", "padding", "dilation", "padding_mode", "system", "with_r"})


class _Remembered(NamedTuple):
    """The maps that were made of certain weights of the coordinates."""

    coord_weight: Tensor
    maps: dict[_Place, Tensor]


class _Basis(NamedTuple):
    """The maps of the coordinate weights one by one.

    They are the rows, or, channels last, the columns of the product of the factors.
    """

    size: torch.Size
    factors: tuple[Tensor, ...]


# A detection head sees one size per pyramid level; a stream of ever new sizes must not pile up.
_MAX_PLACES = 8
# Bytes of the maps that a layer remembers, unless it is a single one.
_MAX_REMEMBERED = 2**24
# Largest basis, in numbers, by which a layer computes its map as a product; above, it convolves.
_MAX_BASIS = 2**18
# Smallest basis, in numbers, that is worth two narrow products in place of one.
_MIN_FACTORIZED = 2**14
# Outputs, in numbers, whose sum over the batch takes longer than calling Python for a faster one.
_LARGE = 2**20
# oneDNN gathers the channels of an input in blocks of this size; fewer, it reads as they lie.
_BLOCK = 16
# Outputs, in bytes for each thread, that are convolved at a time where a batch is in parts.
_PART = 5 * 2**19
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED_CONVOLUTIONS = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


class _CoordConv(_ConvNd):
    """What the layers share: the two terms of the forward pass, and what is kept of the second.

    A layer inherits from the one of ``torch.nn`` that it widens as well, so that whoever looks
    for convolutions finds it: initializers, fusions, counters of operations.
    """

    axes: ClassVar[int]
    with_r: bool
    system: CoordinateSystem
    num_coords: int
    _remembered: _Remembered | None
    _bases: dict[_Place, _Basis | None]

    def _set_coordinates(self, in_channels: int, with_r: bool, system: CoordinateSystem) -> None:
        self.in_channels = in_channels
        self.with_r = with_r
        self.system = system
        self.num_coords = system.num_channels(self.axes, with_r=with_r)
        self._remembered = None
        self._bases = {}

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, and forget the maps if they depend on it."""
        super().__setattr__(name, value)
        if name in _SHAPING and "_bases" in self.__dict__:
            self._remembered, self._bases = None, {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave what can be computed again out of copies and pickles."""
        # That of torch.nn leaves out a compiled call, which would go on calling the original.
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "_remembered": None, "_bases": {}}

    def extra_repr(self) -> str:
        """Describe the layer as ``torch.nn`` does, with its coordinates."""
        described: str = super().extra_repr()  # type: ignore[no-untyped-call]
        described = f"{described}, with_r={self.with_r}"
        return described if self.system == PAPER_SYSTEM else f"{described}, system={self.system}"

    def _forward(self, x: Tensor, output_padding: tuple[int, ...], given: Tensor | None) -> Tensor:
        wide_weight = self.weight  # once: a module takes long to find its parameters
        place = self._place(x, wide_weight, output_padding)
        # In a graph, and under the transforms of torch.func, plain operations serve best.
        if given is not None or not _is_plain(wide_weight):
            if given is None and x.ndim == self.axes + 2 and _compiles_any_size(x.shape[2:]):
                return self._concatenate(x, output_padding)
            weight, coord_weight = self.split_weight()
            y = self._convolve(x, weight, self.bias, self.groups, output_padding)
            maps = self._convolve_grid(coord_weight, place, given)
            return (y + (maps if x.ndim == self.axes + 2 else maps.squeeze(0))).to(y.dtype)
        learns = wide_weight.requires_grad and torch.is_grad_enabled()
        if learns and self._remembered is not None:
            self._remembered = None  # its weights are about to change
        weight, coord_weight = self._split(wide_weight)
        compute_map = self._compute_map if learns else self._remember_map
        coord_map = compute_map(coord_weight, place)
        batched = x.ndim == self.axes + 2
        if batched and (parts := len(x) // _samples_at_once(x, coord_map, place)) > 1:
            return self._convolve_in_parts(x, weight, coord_map, output_padding, parts)
        y = self._convolve(x, weight, self.bias, self.groups, output_padding)
        # Backward of a convolution does not read its output, so the sum may overwrite it.
        if learns and batched and (place.channels_last or y.numel() >= _LARGE):
            summed: Tensor = _AddMap.apply(y, coord_map)  # type: ignore[no-untyped-call]
            return summed
        return y.add_(coord_map)

    def _place(self, x: Tensor, weight: Tensor, output_padding: tuple[int, ...]) -> _Place:
        """Return where the map of an input lies, in the layout that the output will have."""
        axes = self.axes
        channels_last = _is_channels_last(x, axes) or _is_channels_last(weight, axes)
        sizes = x.shape[-axes:], weight.shape[2:]
        return _Place(*sizes, output_padding, channels_last, _map_dtype(weight), x.device)

    def _given_grid(
        self,
        x: Tensor,
        origin: PerAxis | None,
        extent: PerAxis | None,
        coords: Tensor | None,
    ) -> Tensor | None:
        """Return the coordinates that a caller gives, ``(1 or N, coordinates, *size)``, if any."""
        if origin is None and extent is None and coords is None:
            return None
        size, batch = x.shape[-self.axes :], len(x) if x.ndim == self.axes + 2 else 1
        dtype = _map_dtype(self.weight)
        if coords is None:
            grid = coordinate_grid(
                *size,
                with_r=self.with_r,
                system=self.system,
                origin=origin,
                extent=extent,
                device=x.device,
                dtype=dtype,
            )
        elif origin is None and extent is None:
            grid = coords.to(dtype)
        else:
            raise ValueError(f"{type(self).__name__} takes coords, or origin and extent, not both")
        if grid.shape[0] not in (1, batch) or grid.shape[1:] != (self.num_coords, *size):
            raise ValueError(
                f"{type(self).__name__} expects coordinates of shape"
                f" ({batch} or 1, {self.num_coords}, {', '.join(map(str, size))}),"
                f" got {tuple(grid.shape)}"
            )
        return grid

    def _per_axis(self, name: str, value: int | Sequence[int]) -> tuple[int, ...]:
        values = tuple(value) if isinstance(value, Sequence) else (value,) * self.axes
        if len(values) != self.axes:
            raise ValueError(
                f"{type(self).__name__} expects {name} as one number or {self.axes}, got {value}"
            )
        return values

    def _check_input(self, x: Tensor) -> None:
        axes = self.axes
        channels, *size = x.shape[-axes - 1 :] if x.ndim - axes in (1, 2) else (-1,)
        if channels == self.in_channels and 0 not in size and x.is_floating_point():
            return
        name, letters = type(self).__name__, ", ".join("DHW"[-axes:])
        if x.ndim - axes not in (1, 2) or x.shape[-axes - 1] != self.in_channels:
            raise ValueError(
                f"{name} expects an input of shape (N, {self.in_channels}, {letters}) or"
                f" ({self.in_channels}, {letters}), got {tuple(x.shape)}"
            )
        if 0 in x.shape[-axes:]:
            raise ValueError(f"{name} expects a pixel or more on each axis, got {tuple(x.shape)}")
        advice = "" if x.is_complex() else "; use x.float()"
        raise TypeError(f"{name} expects floating-point input, got {x.dtype}{advice}")

    def split_weight(self) -> tuple[Tensor, Tensor]:
        """Return the weight of the input, and that of the coordinates as of a layer of one group.

        The first has the shape that the weight of the plain layer has, the second that of a plain
        layer from the coordinates to ``out_channels``: with groups, each group of the wide
        convolution has its own inputs and all coordinates. Neither is for writing into.
        """
        return self._split(self.weight)

    def _split(self, wide_weight: Tensor) -> tuple[Tensor, Tensor]:
        parts = [self.in_channels // self.groups, self.num_coords]
        if not self.transposed:
            return _split(wide_weight, parts)
        # Rows of a transposed weight are input channels: those of group 0, then of group 1, ...
        rows = wide_weight.view(self.groups, sum(parts), *wide_weight.shape[1:])
        weight, coord_weight = _split(rows, parts)
        return weight.flatten(0, 1), coord_weight.transpose(0, 1).flatten(1, 2)

    def _convolve(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        groups: int,
        output_padding: tuple[int, ...],
    ) -> Tensor:
        axes = self.axes
        stride, padding, dilation = self.stride, self.padding, self.dilation
        if self.transposed:
            assert not isinstance(padding, str)  # torch.nn has no such transposed convolution
            transposed = _TRANSPOSED_CONVOLUTIONS[axes - 1]
            return transposed(x, weight, bias, stride, padding, output_padding, groups, dilation)
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0,) * axes
        return _CONVOLUTIONS[axes - 1](x, weight, bias, stride, padding, dilation, groups)

    def _convolve_in_parts(
        self,
        x: Tensor,
        weight: Tensor,
        coord_map: Tensor,
        output_padding: tuple[int, ...],
        parts: int,
    ) -> Tensor:
        """Return the sum of the two terms, a part of the batch after the other."""
        around = self._padding_around(weight.shape[2:])
        padding = tuple(around[-2::-2])
        if self.padding_mode != "zeros" or around[::2] != around[1::2]:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, around, mode=mode), (0,) * self.axes
        arguments = _Arguments(
            self._per_axis("stride", self.stride),
            padding,
            self._per_axis("dilation", self.dilation),
            self.transposed,
            output_padding or self.output_padding,
            self.groups,
        )
        bias = self.bias
        if _autocasts(x.device):
            x, weight = _cast(x), _cast(weight)
            bias = None if bias is None else _cast(bias)
        y: Tensor = _ConvolveInParts.apply(  # type: ignore[no-untyped-call]
            x, weight, bias, coord_map, arguments, parts
        )
        return y

    def _padding_around(self, kernel_size: Sequence[int]) -> list[int]:
        """Return the padding before and after each axis, the last axis first."""
        if self.padding_mode != "zeros":
            return self._reversed_padding_repeated_twice
        # For zeros torch.nn asks the attributes, which may have changed since the layer was made.
        if self.padding == "valid":
            return [0] * (2 * self.axes)
        if isinstance(self.padding, str):  # "same"
            dilation = self._per_axis("dilation", self.dilation)
            totals = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
            return [half for total in reversed(totals) for half in (total // 2, -(-total // 2))]
        return [p for p in reversed(self._per_axis("padding", self.padding)) for _ in range(2)]

    def _remember_map(self, coord_weight: Tensor, place: _Place) -> Tensor:
        """Return what ``_compute_map`` does, at a moment in which the layer does not learn."""
        if not place.device.type == coord_weight.device.type == "cpu":
            # Comparing the weights would wait for the device, longer than computing the map takes.
            return self._compute_map(coord_weight, place)
        # Values, not version counters: an edit through `.data`, such as SB3's polyak_update of a
        # target network, leaves no trace in the version.
        known = self._remembered
        if (
            known is None
            or known.coord_weight.dtype != coord_weight.dtype
            or not torch.equal(known.coord_weight, coord_weight)
        ):
            known = _Remembered(coord_weight.detach().clone(), {})
            self._remembered = known
        coord_map = known.maps.get(place)
        if coord_map is None:
            # Tensors made in inference mode could not take part in autograd later.
            with torch.inference_mode(False), torch.no_grad():
                coord_map = self._compute_map(known.coord_weight, place)
            maps = [coord_map, *known.maps.values()]  # at once: threads may share a layer
            if sum(kept.nbytes for kept in maps) > _MAX_REMEMBERED:
                known.maps.clear()
            _keep(known.maps, place, coord_map)
        return coord_map

    def _compute_map(self, coord_weight: Tensor, place: _Place) -> Tensor:
        """Return the convolved coordinates, ``(out_channels, *out_size)``.

        The map is linear in the weights, so it is their product with the *basis*, the maps of
        each single weight, which never change. A product of matrices takes half the time of so
        small a convolution, in both directions.
        """
        basis = self._basis(place)
        if basis is None:
            return self._convolve_grid(coord_weight, place).squeeze(0)
        by_channel = coord_weight.transpose(0, 1) if self.transposed else coord_weight
        coord_map = by_channel.flatten(1).to(place.dtype)
        if _autocasts(place.device):
            with torch.autocast(place.device.type, enabled=False):
                return _multiply(coord_map, basis, place.channels_last)
        return _multiply(coord_map, basis, place.channels_last)

    def _convolve_grid(
        self, coord_weight: Tensor, place: _Place, grid: Tensor | None = None
    ) -> Tensor:
        """Return the maps ``(1 or N, out_channels, *out_size)`` by the definition."""
        grid = self._own_grid(place) if grid is None else grid
        with _no_autocast(place.device):
            weight = coord_weight.to(place.dtype)
            return self._convolve(grid, weight, None, 1, place.output_padding)

    def _concatenate(self, x: Tensor, output_padding: tuple[int, ...]) -> Tensor:
        """Return the output by the definition, in which nothing is of batch 1."""
        grid = coordinate_grid(
            *x.shape[2:], with_r=self.with_r, system=self.system, device=x.device, dtype=x.dtype
        ).expand(x.shape[0], -1, *x.shape[2:])
        parts = [torch.cat([part, grid], dim=1) for part in x.chunk(self.groups, dim=1)]
        wide = torch.cat(parts, dim=1)
        return self._convolve(wide, self.weight, self.bias, self.groups, output_padding)

    def _own_grid(self, place: _Place) -> Tensor:
        return coordinate_grid(
            *place.size,
            with_r=self.with_r,
            system=self.system,
            device=place.device,
            dtype=place.dtype,
        )

    def _basis(self, place: _Place) -> _Basis | None:
        """Return the map of each coordinate weight alone, or None where that would be large."""
        if place in self._bases:
            return self._bases[place]
        taps = math.prod(place.kernel_size)
        rows = self.num_coords * taps
        exact = place._replace(dtype=torch.float64) if place.device.type == "cpu" else place
        # A tensor made in inference mode could not take part in autograd later.
        with torch.inference_mode(False), torch.no_grad(), _no_autocast(place.device):
            grid = self._own_grid(exact)
            one_each = torch.eye(taps, device=exact.device, dtype=exact.dtype)
            one_each = one_each.view(taps, 1, *place.kernel_size)
            if self.transposed:
                one_each = one_each.transpose(0, 1)
            of_one = one_each[:1, :1]
            size = self._convolve(grid[:, :1], of_one, None, 1, place.output_padding).shape[2:]
            if rows * size.numel() > _MAX_BASIS:
                _keep(self._bases, place, None)
                return None
            one_each = one_each.repeat(self.num_coords, *[1] * (self.axes + 1))
            maps = self._convolve(grid, one_each, None, self.num_coords, place.output_padding)
            factors = _factorize(maps.view(rows, -1), taps)
            if place.channels_last:
                factors = [factor.t() for factor in factors]
            basis = _Basis(size, tuple(factor.to(place.dtype).contiguous() for factor in factors))
        if place.device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                return basis  # it holds no values before the graph is replayed
            torch.cuda.current_stream(place.device).synchronize()  # any stream may read it
        _keep(self._bases, place, basis)
        return basis


def _factorize(maps: Tensor, taps: int) -> list[Tensor]:
    """Return narrow matrices whose product the maps are, or the maps where there are none.

    Without padding, the maps of the taps of a kernel are one map, shifted. A shift adds a constant
    to coordinates along axes, so a constant and one map of each coordinate make up all the others.
    """
    if maps.dtype != torch.float64 or maps.numel() < _MIN_FACTORIZED:
        return [maps]
    of_first_tap = torch.cat([torch.ones_like(maps[:1]), maps[::taps]])
    directions = torch.linalg.qr(of_first_tap.t()).Q.t()
    shares = maps @ directions.t()
    rounding = 1e-12 * maps.abs().max().item()
    if not torch.allclose(shares @ directions, maps, rtol=0, atol=rounding):
        return [maps]
    return [shares, directions]


def _multiply(flat: Tensor, basis: _Basis, channels_last: bool) -> Tensor:
    if channels_last:
        coord_map = flat.t()
        for factor in basis.factors:
            coord_map = torch.mm(factor, coord_map)
        return coord_map.view(*basis.size, -1).movedim(-1, 0)
    for factor in basis.factors:
        flat = torch.mm(flat, factor)
    return flat.view(-1, *basis.size)


_Kept = TypeVar("_Kept")


def _keep(kept: dict[_Place, _Kept], place: _Place, value: _Kept) -> None:
    if len(kept) >= _MAX_PLACES:
        kept.clear()
    kept[place] = value


def _compiles_any_size(size: torch.Size) -> bool:
    """Tell whether a graph to be trained is being compiled for more than one size.

    Inductor (torch 2.13) sorts the strides of what it saves for backward, and fails on those of a
    batch of 1 whose size it does not know.
    """
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    return torch.is_grad_enabled() and not all(has_static_value(length) for length in size)


def _split(weight: Tensor, parts: list[int]) -> tuple[Tensor, Tensor]:
    """Return two parts of dimension 1, for reading."""
    # Exporters fold slices of a constant, but not splits, and vmap has no rule for this one.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return weight[:, : parts[0]], weight[:, parts[0] :]
    first, second = torch.unsafe_split_with_sizes(weight, parts, dim=1)
    return first, second


def _is_plain(weight: Tensor) -> bool:
    """Tell whether a layer just runs: not compiled, traced, transformed, nor with other weights."""
    return (
        type(weight) is nn.Parameter
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._is_tracing()
        and not torch._C._len_torch_dispatch_stack()  # whose tensors may hold no values
    )


def _is_channels_last(x: Tensor, axes: int) -> bool:
    if x.is_contiguous() or axes == 1 or x.ndim != axes + 2:
        return False
    if torch._C._are_functorch_transforms_active():
        return False  # vmap cannot tell
    layout = torch.channels_last if axes == 2 else torch.channels_last_3d
    return x.is_contiguous(memory_format=layout)


def _map_dtype(weight: Tensor) -> torch.dtype:
    """Return the type that coordinates are computed in: 32 bits or more.

    16 bits cannot tell apart the pixels of a wide image. So the map is wider than the rest of a
    layer of such a type, and under autocast.
    """
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _autocasts(device: torch.device) -> bool:
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def _no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, enabled=False) if _autocasts(device) else nullcontext()


def _cast(tensor: Tensor) -> Tensor:
    """Return what autocast makes of an argument of a convolution."""
    kept = tensor.dtype == torch.float64
    return tensor if kept else tensor.to(torch.get_autocast_dtype(tensor.device.type))


class _Arguments(NamedTuple):
    """Arguments of a convolution, in the order of ``torch.convolution``."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


def _samples_at_once(x: Tensor, coord_map: Tensor, place: _Place) -> int:
    """Return how many samples of a batch to convolve, at least, before their map is added.

    Parts save memory that is fetched anew, see :class:`_ConvolveInParts`, and cost time elsewhere.
    Two or more, since torch takes slower ways for a single one (in 3D, up to six times slower).
    """
    if memory.is_kept() or place.channels_last or place.device.type != "cpu":
        return sys.maxsize
    sample = coord_map.numel()
    largest = len(x) * sample
    if x.shape[1] >= _BLOCK:
        largest = max(largest, x.numel())
    bytes_each = coord_map.element_size()
    if not memory.is_fetched_anew(largest * bytes_each):
        return sys.maxsize
    return max(2, _PART * torch.get_num_threads() // (sample * bytes_each))


class _AddMap(torch.autograd.Function):
    """The sum of a batch and a map, in place, with a fast gradient of the map."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, coord_map: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        ctx.map_dtype = coord_map.dtype
        return y.add_(coord_map)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, _sum_over_batch(grad, ctx.map_dtype)

    @staticmethod
    def jvp(ctx: Any, y_tangent: Tensor, map_tangent: Tensor) -> Tensor:
        return y_tangent.add_(map_tangent)


class _ConvolveInParts(torch.autograd.Function):
    """The sum of a convolution and a map, a part of the batch after the other.

    Unless channels are last, oneDNN holds input and output a second time, in a layout of its own.
    That of a large batch is in memory that is fetched from the system anew each time, which can
    take longer than to convolve; that of a part is small, and used for the next part again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        coord_map: Tensor,
        arguments: _Arguments,
        parts: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(weight)
        ctx.bias_size = None if bias is None else bias.shape
        ctx.arguments = arguments
        ctx.map_dtype = coord_map.dtype
        weight = weight.clone()  # dense, which each part would make it otherwise
        first, *others = x.tensor_split(parts)
        of_first = torch.convolution(first, weight, bias, *arguments)
        y = of_first.new_empty_strided((len(x), *of_first.shape[1:]), of_first.stride())
        into_first, *into_others = y.tensor_split(parts)
        torch.add(of_first, coord_map, out=into_first)
        for part, into in zip(others, into_others, strict=True):
            torch.add(torch.convolution(part, weight, bias, *arguments), coord_map, out=into)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_convolution = torch.ops.aten.convolution_backward(
            grad, x, weight, ctx.bias_size, *ctx.arguments, ctx.needs_input_grad[:3]
        )
        of_map = _sum_over_batch(grad, ctx.map_dtype) if ctx.needs_input_grad[3] else None
        return *of_convolution, of_map, None, None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor, *_: Tensor | None) -> Tensor:
        # Parameters have no tangents: a layer that is given such weights is not plain.
        (weight,) = ctx.saved_tensors
        return torch.convolution(x_tangent, weight, None, *ctx.arguments)


def _sum_over_batch(batch: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradient of a map, fast.

    The sum that torch itself computes takes up to twice the time of the convolution where channels
    are last, and half as long again as needed elsewhere (torch 2.13, CPU). A matrix-vector product
    reads the batch as it lies in memory.
    """
    transforms = torch._C._functorch
    if transforms.is_batchedtensor(batch) or transforms.is_legacy_batchedtensor(batch):
        return batch.sum(dim=0, dtype=dtype)  # of many gradients at once
    channels_last = not batch.is_contiguous()
    samples = batch.movedim(1, -1) if channels_last else batch
    if batch.device.type != "cpu" or not samples.is_contiguous():
        return batch.sum(dim=0, dtype=dtype)
    flat = samples.flatten(1)
    if flat.dtype == dtype:
        total = torch.mv(flat.t(), flat.new_ones(len(flat)))
    else:
        total = flat.sum(dim=0, dtype=dtype)
    total = total.view(samples.shape[1:])
    return total.movedim(-1, 0) if channels_last else total


class _Convolution(_CoordConv):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        with_r: bool = False,
        system: CoordinateSystem = PAPER_SYSTEM,
    ) -> None:
        _ConvNd.__init__(
            self,
            in_channels + groups * system.num_channels(self.axes, with_r=with_r),
            out_channels,
            self._per_axis("kernel_size", kernel_size),
            self._per_axis("stride", stride),
            padding if isinstance(padding, str) else self._per_axis("padding", padding),
            self._per_axis("dilation", dilation),
            False,
            (0,) * self.axes,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._set_coordinates(in_channels, with_r, system)

    def forward(
        self,
        input: Tensor,
        *,
        origin: PerAxis | None = None,
        extent: PerAxis | None = None,
        coords: Tensor | None = None,
    ) -> Tensor:
        """Convolve ``input`` and its coordinates, or the coordinates that are given."""
        if is_traced(input):
            return traced_call(self, input, origin=origin, extent=extent, coords=coords)
        self._check_input(input)
        return self._forward(input, (), self._given_grid(input, origin, extent, coords))


class _TransposedConvolution(_CoordConv, _ConvTransposeNd):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
        padding_mode: Literal["zeros"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        with_r: bool = False,
        system: CoordinateSystem = PAPER_SYSTEM,
    ) -> None:
        _ConvTransposeNd.__init__(
            self,
            in_channels + groups * system.num_channels(self.axes, with_r=with_r),
            out_channels,
            self._per_axis("kernel_size", kernel_size),
            self._per_axis("stride", stride),
            self._per_axis("padding", padding),
            self._per_axis("dilation", dilation),
            True,
            self._per_axis("output_padding", output_padding),
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._set_coordinates(in_channels, with_r, system)

    def forward(
        self,
        input: Tensor,
        output_size: list[int] | None = None,
        *,
        origin: PerAxis | None = None,
        extent: PerAxis | None = None,
        coords: Tensor | None = None,
    ) -> Tensor:
        """Convolve ``input`` and its coordinates, or the coordinates that are given.

        ``output_size`` picks one of the sizes that the stride allows, as in ``torch.nn``.
        """
        if is_traced(input):
            place = {"origin": origin, "extent": extent, "coords": coords}
            return traced_call(self, input, output_size=output_size, **place)
        self._check_input(input)
        given = self._given_grid(input, origin, extent, coords)
        if output_size is None:
            return self._forward(input, self.output_padding, given)
        assert not isinstance(self.padding, str)  # torch.nn has no such transposed convolution
        stride, padding, kernel_size = list(self.stride), list(self.padding), list(self.kernel_size)
        output_padding = self._output_padding(
            input, output_size, stride, padding, kernel_size, self.axes, list(self.dilation)
        )
        return self._forward(input, tuple(output_padding), given)


class CoordConv1d(_Convolution, nn.Conv1d):
    """1D convolution over the input and the coordinate of its samples.

    See :class:`CoordConv2d` for the arguments. The coordinate channels are x and, with
    ``with_r``, r = abs(x).

    Shape:
        - Input: ``(N, in_channels, W)`` or ``(in_channels, W)``, floating point.
        - Output: as for :class:`torch.nn.Conv1d`.

    Example:
        >>> CoordConv1d(2, 8, kernel_size=5, padding="same")(torch.zeros(16, 2, 100)).shape
        torch.Size([16, 8, 100])
    """

    axes = 1


class CoordConv2d(_Convolution, nn.Conv2d):
    """2D convolution over the input and the coordinates of its pixels.

    Appends the channels of :func:`coordinate_grid` to the input and convolves the result:
    ``y = conv2d(cat([x, grid], dim=1), weight, bias)``. With the weights of the coordinate
    channels at zero it is :class:`torch.nn.Conv2d`.

    The concatenation is the meaning of the layer, not what it computes (see the module's
    docstring). ``weight`` is the weight of the wide convolution, ``(out_channels,
    in_channels / groups + coordinates, *kernel_size)`` with the coordinates last in the order x,
    y, r, and starts as :class:`torch.nn.Conv2d` starts one of that shape. With groups, every
    group sees the coordinates.

    Padding pads the coordinate channels like any other, with 0, which is the coordinate of the
    image center; the authors' code does the same. The other padding modes pad them likewise.

    Under autocast, and in layers of 16-bit types, the coordinates' part is computed in float32
    and rounded once, when added. bfloat16 itself has no more than 768 values for the 1,024
    columns of a wide image. (A graph that is compiled to be trained at any size concatenates, and
    computes all in one type.)

    Args:
        in_channels: Channels of the input, without the coordinates.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernel, in pixels.
        stride: Step between output pixels, in input pixels.
        padding: Pixels added on each side; ``"same"`` or ``"valid"``.
        dilation: Step between the pixels under the kernel.
        groups: Groups that input and output channels are divided into.
        bias: Add a learnable bias.
        padding_mode: What padding holds: ``"zeros"``, ``"reflect"``, ``"replicate"`` or
            ``"circular"``.
        device: Where the parameters lie.
        dtype: Type of the parameters.
        with_r: Also append the distance from the center (3 channels instead of 2).
        system: What the coordinates of a pixel are, where not those of the paper.

    ``forward`` takes, by name, ``origin`` and ``extent``, which place the input in a larger whole
    (see :func:`coordinate_grid`), or ``coords``, the coordinate channels themselves:
    ``(1 or N, coordinates, H, W)``.

    Shape:
        - Input: ``(N, in_channels, H, W)`` or ``(in_channels, H, W)``, floating point.
        - Output: ``(N, out_channels, H_out, W_out)`` or ``(out_channels, H_out, W_out)``, as for
          :class:`torch.nn.Conv2d`.

    Raises:
        ValueError: If an argument is none that the plain convolution takes; in ``forward``, if the
            input or ``coords`` are not of that shape.
        TypeError: In ``forward``, if the input is not floating point.

    Example:
        >>> conv = CoordConv2d(4, 32, kernel_size=8, stride=4)
        >>> conv(torch.zeros(16, 4, 84, 84)).shape
        torch.Size([16, 32, 20, 20])
        >>> conv.weight.shape
        torch.Size([32, 6, 8, 8])
    """

    axes = 2


class CoordConv3d(_Convolution, nn.Conv3d):
    """3D convolution over the input and the coordinates of its voxels.

    See :class:`CoordConv2d` for the arguments. The coordinate channels are x, y, z and, with
    ``with_r``, r.

    Shape:
        - Input: ``(N, in_channels, D, H, W)`` or ``(in_channels, D, H, W)``, floating point.
        - Output: as for :class:`torch.nn.Conv3d`.

    Example:
        >>> CoordConv3d(1, 4, kernel_size=3, stride=2)(torch.zeros(2, 1, 9, 17, 17)).shape
        torch.Size([2, 4, 4, 8, 8])
    """

    axes = 3


class CoordConvTranspose1d(_TransposedConvolution, nn.ConvTranspose1d):
    """1D transposed convolution over the input and the coordinate of its samples.

    See :class:`CoordConvTranspose2d` for the arguments.

    Shape:
        - Input: ``(N, in_channels, W)`` or ``(in_channels, W)``, floating point.
        - Output: as for :class:`torch.nn.ConvTranspose1d`.

    Example:
        >>> CoordConvTranspose1d(2, 8, kernel_size=4, stride=2)(torch.zeros(16, 2, 50)).shape
        torch.Size([16, 8, 102])
    """

    axes = 1


class CoordConvTranspose2d(_TransposedConvolution, nn.ConvTranspose2d):
    """2D transposed convolution over the input and the coordinates of its pixels.

    ``y = conv_transpose2d(cat([x, grid], dim=1), weight, bias)``, computed as
    :class:`CoordConv2d` does. The coordinates are those of the input's pixels, as in the authors'
    code. ``weight`` is that of the wide layer, ``(in_channels + groups * coordinates,
    out_channels / groups, *kernel_size)``, in which the rows of each group end with its
    coordinates.

    Args:
        in_channels: Channels of the input, without the coordinates.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernel, in pixels.
        stride: Step between input pixels, in output pixels.
        padding: Output pixels cut off on each side.
        output_padding: Output pixels added at the bottom and on the right.
        groups: Groups that input and output channels are divided into.
        bias: Add a learnable bias.
        dilation: Step between the pixels under the kernel.
        padding_mode: ``"zeros"``, the one mode of transposed convolutions.
        device: Where the parameters lie.
        dtype: Type of the parameters.
        with_r: Also append the distance from the center (3 channels instead of 2).
        system: What the coordinates of a pixel are, where not those of the paper.

    Shape:
        - Input: ``(N, in_channels, H, W)`` or ``(in_channels, H, W)``, floating point.
        - Output: ``(N, out_channels, H_out, W_out)`` or ``(out_channels, H_out, W_out)``, as for
          :class:`torch.nn.ConvTranspose2d`.

    Raises:
        ValueError: If an argument is none that the plain convolution takes; in ``forward``, if the
            input or ``coords`` are not of that shape.
        TypeError: In ``forward``, if the input is not floating point.

    Example:
        >>> deconv = CoordConvTranspose2d(8, 3, kernel_size=4, stride=2, padding=1)
        >>> deconv(torch.zeros(16, 8, 16, 16)).shape
        torch.Size([16, 3, 32, 32])
    """

    axes = 2


class CoordConvTranspose3d(_TransposedConvolution, nn.ConvTranspose3d):
    """3D transposed convolution over the input and the coordinates of its voxels.

    See :class:`CoordConvTranspose2d` for the arguments.

    Shape:
        - Input: ``(N, in_channels, D, H, W)`` or ``(in_channels, D, H, W)``, floating point.
        - Output: as for :class:`torch.nn.ConvTranspose3d`.

    Example:
        >>> CoordConvTranspose3d(4, 1, kernel_size=2, stride=2)(torch.zeros(2, 4, 4, 8, 8)).shape
        torch.Size([2, 1, 8, 16, 16])
    """

    axes = 3
