"""Convolutions over the input and its coordinates.

A CoordConv layer appends the coordinates of the pixels to its input as channels, and convolves.
The coordinates are the same for every sample, so the layer need not build that wide input:

    conv(cat([x, grid]), weight)  ==  conv(x, weight of x) + conv(grid, weight of grid)

The second term, the *coordinate map*, is computed once for the whole batch, and is cached while no
gradient is needed and its weights do not change. Outputs and gradients equal those of the
concatenation up to the order of summation; the parameters *are* those of the concatenation, so
optimizers, initializers and checkpoints see a plain wide convolution.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from coordrl.layers.autograd import (
    LARGE_OUTPUT,
    AddMap,
    Arguments,
    ConvolveInParts,
    samples_at_once,
)
from coordrl.layers.contexts import (
    autocasts,
    cast_for_autocast,
    compiles_any_size,
    is_channels_last,
    is_plain,
    no_autocast,
)
from coordrl.layers.coord_map import (
    MAX_BASIS,
    MAX_REMEMBERED,
    MAX_TAPS,
    Basis,
    Place,
    Remembered,
    factorize,
    map_dtype,
    map_of_basis,
    remember_at,
)
from coordrl.layers.grid import (
    PAPER_SYSTEM,
    CoordinateSystem,
    channels_of,
    coordinate_grid,
)
from coordrl.layers.state import KeepsSystem
from coordrl.layers.tracing import FxLeaf

# Attributes that maps depend on besides weights and place; callers may change them at any time.
_SHAPING = frozenset(
    {
        *("stride", "padding", "dilation", "padding_mode", "_reversed_padding_repeated_twice"),
        *("system", "with_r"),
    }
)
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED_CONVOLUTIONS = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


class CoordConv(FxLeaf, KeepsSystem, _ConvNd):
    """What the layers share: the two terms of the forward pass, and the cache of the second.

    Each layer also inherits from the ``torch.nn`` layer that it widens, so that code that looks
    for convolutions finds it: initializers, fusions, counters of operations.
    """

    axes: ClassVar[int]
    with_r: bool
    system: CoordinateSystem
    num_coords: int
    _remembered: Remembered | None
    _bases: dict[Place, Basis | None]

    def _set_coordinates(self, in_channels: int, with_r: bool, system: CoordinateSystem) -> None:
        self.in_channels = in_channels
        self.with_r = with_r
        self.system = system
        self.num_coords = self._num_coords(with_r=with_r, system=system)
        self._remembered = None
        self._bases = {}

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, and forget the maps if they depend on it.

        Raises:
            ValueError: If the weight is for another number of coordinates.
        """
        has_run = name in _SHAPING and "_bases" in self.__dict__
        if has_run and name in ("system", "with_r"):
            coordinates = {"system": self.system, "with_r": self.with_r, name: value}
            num_coords = self._num_coords(**coordinates)
            if num_coords != self.num_coords:
                raise ValueError(
                    f"{type(self).__name__} has weights for {self.num_coords} coordinates, and"
                    f" with {name}={value} there are {num_coords}; make a new layer"
                )
        super().__setattr__(name, value)
        if has_run:
            self._remembered, self._bases = None, {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the caches out of copies and pickles."""
        # torch.nn's own leaves out a compiled call, which would go on calling the original.
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "_remembered": None, "_bases": {}}

    def _num_coords(self, *, with_r: bool, system: CoordinateSystem) -> int:
        return channels_of(type(self).__name__, system, self.axes, with_r=with_r)

    def coordinate_grid(self, *size: int, **where: Any) -> Tensor:
        """Return :func:`~coordrl.coordinate_grid` in the coordinates that the layer sees."""
        return coordinate_grid(*size, with_r=self.with_r, system=self.system, **where)

    def extra_repr(self) -> str:
        """Describe the layer as ``torch.nn`` does, with its coordinates."""
        described: str = super().extra_repr()  # type: ignore[no-untyped-call]
        described = f"{described}, with_r={self.with_r}"
        return described if self.system == PAPER_SYSTEM else f"{described}, system={self.system}"

    def _forward(self, x: Tensor, output_padding: tuple[int, ...], given: Tensor | None) -> Tensor:
        """Return the sum of the two terms, computed in the fastest way for how the layer runs."""
        # Read once: attribute lookup in a module is slow, and spectral norm iterates at each read.
        wide_weight = self.weight
        place = self._place(x, wide_weight, output_padding)
        if given is not None or not is_plain(wide_weight):
            return self._by_plain_operations(x, wide_weight, place, given)
        learns = wide_weight.requires_grad and torch.is_grad_enabled()
        if learns and self._remembered is not None:
            self._remembered = None  # its weights are about to change
        weight, coord_weight = self._split(wide_weight)
        compute_map = self._compute_map if learns else self._remember_map
        coord_map = compute_map(coord_weight, place)
        batched = x.ndim == self.axes + 2
        if batched and (parts := len(x) // samples_at_once(x, coord_map, place)) > 1:
            return self._convolve_in_parts(x, weight, coord_map, output_padding, parts)
        y = self._convolve(x, weight, self.bias, self.groups, output_padding)
        # Backward of a convolution does not read its output, so the sum may overwrite it.
        if learns and batched and (place.channels_last or y.numel() >= LARGE_OUTPUT):
            summed: Tensor = AddMap.apply(y, coord_map)  # type: ignore[no-untyped-call]
            return summed
        return y.add_(coord_map)

    def _by_plain_operations(
        self, x: Tensor, wide_weight: Tensor, place: Place, given: Tensor | None
    ) -> Tensor:
        """Return the sum by operations that graphs and the transforms of torch.func handle well.

        ``given`` are coordinates in place of the layer's own; they may differ between samples.
        """
        batched = x.ndim == self.axes + 2
        if batched and compiles_any_size(x.shape[2:]):
            return self._concatenate(x, wide_weight, place.output_padding, given)
        weight, coord_weight = self._split(wide_weight)
        y = self._convolve(x, weight, self.bias, self.groups, place.output_padding)
        maps = self._convolve_grid(coord_weight, place, given)
        return (y + (maps if batched else maps.squeeze(0))).to(y.dtype)

    def _place(self, x: Tensor, weight: Tensor, output_padding: tuple[int, ...]) -> Place:
        """Return the place of an input's map, in the layout that the output will have."""
        axes = self.axes
        channels_last = is_channels_last(x, axes) or is_channels_last(weight, axes)
        sizes = x.shape[-axes:], weight.shape[2:]
        return Place(*sizes, output_padding, channels_last, map_dtype(weight), x.device)

    def _per_axis(self, name: str, value: int | Sequence[int]) -> tuple[int, ...]:
        values = tuple(value) if isinstance(value, Sequence) else (value,) * self.axes
        if len(values) != self.axes:
            raise ValueError(
                f"{type(self).__name__} expects {name} as one number or {self.axes}, got {value}"
            )
        return values

    def split_weight(self) -> tuple[Tensor, Tensor]:
        """Return the weight of the input and the weight of the coordinates.

        The first has the shape of the plain layer's weight. The second has that of a plain layer
        of one group from the coordinates to ``out_channels``, since each group of the wide
        convolution sees its own inputs and all coordinates. Neither may be written to.
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
        """Return the sum of the two terms, one part of the batch after the other."""
        around = self._padding_around(weight.shape[2:])
        padding = tuple(around[-2::-2])
        if self.padding_mode != "zeros" or around[::2] != around[1::2]:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, around, mode=mode), (0,) * self.axes
        arguments = Arguments(
            self._per_axis("stride", self.stride),
            padding,
            self._per_axis("dilation", self.dilation),
            self.transposed,
            output_padding or self.output_padding,
            self.groups,
        )
        bias = self.bias
        if autocasts(x.device):
            x, weight = cast_for_autocast(x), cast_for_autocast(weight)
            bias = None if bias is None else cast_for_autocast(bias)
        y: Tensor = ConvolveInParts.apply(  # type: ignore[no-untyped-call]
            x, weight, bias, coord_map, arguments, parts
        )
        return y

    def _padding_around(self, kernel_size: Sequence[int]) -> list[int]:
        """Return the padding before and after each axis, the last axis first."""
        if self.padding_mode != "zeros":
            return self._reversed_padding_repeated_twice
        # For zeros torch.nn reads the attributes, which may have changed since the layer was made.
        if self.padding == "valid":
            return [0] * (2 * self.axes)
        if isinstance(self.padding, str):  # "same"
            dilation = self._per_axis("dilation", self.dilation)
            totals = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
            return [half for total in reversed(totals) for half in (total // 2, -(-total // 2))]
        return [p for p in reversed(self._per_axis("padding", self.padding)) for _ in range(2)]

    def _remember_map(self, coord_weight: Tensor, place: Place) -> Tensor:
        """Return ``_compute_map``'s result from the cache, while the layer does not learn."""
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
            known = Remembered(coord_weight.detach().clone(), {})
            self._remembered = known
        coord_map = known.maps.get(place)
        if coord_map is None:
            # Tensors made in inference mode could not take part in autograd later.
            with torch.inference_mode(False), torch.no_grad():
                coord_map = self._compute_map(known.coord_weight, place)
            maps = [coord_map, *known.maps.values()]  # at once: threads may share a layer
            if sum(kept.nbytes for kept in maps) > MAX_REMEMBERED:
                known.maps.clear()
            remember_at(known.maps, place, coord_map)
        return coord_map

    def _compute_map(self, coord_weight: Tensor, place: Place) -> Tensor:
        """Return the convolved coordinates, ``(out_channels, *out_size)``.

        The map is linear in the weights, so it is their product with the *basis*: the maps of
        the single weights, which never change. The matrix product takes half the time of such a
        small convolution, forward and backward.
        """
        basis = self._basis(place)
        if basis is None:
            return self._convolve_grid(coord_weight, place).squeeze(0)
        by_channel = coord_weight.transpose(0, 1) if self.transposed else coord_weight
        coord_map = by_channel.flatten(1).to(place.dtype)
        if autocasts(place.device):
            with torch.autocast(place.device.type, enabled=False):
                return map_of_basis(coord_map, basis, place.channels_last)
        return map_of_basis(coord_map, basis, place.channels_last)

    def _convolve_grid(
        self, coord_weight: Tensor, place: Place, grid: Tensor | None = None
    ) -> Tensor:
        """Return the maps ``(1 or N, out_channels, *out_size)`` by the definition."""
        grid = self._own_grid(place) if grid is None else grid
        with no_autocast(place.device):
            weight = coord_weight.to(place.dtype)
            return self._convolve(grid, weight, None, 1, place.output_padding)

    def _concatenate(
        self,
        x: Tensor,
        wide_weight: Tensor,
        output_padding: tuple[int, ...],
        given: Tensor | None,
    ) -> Tensor:
        """Return the output by the definition, without any tensor of batch size 1."""
        if given is None:
            given = self.coordinate_grid(*x.shape[2:], device=x.device, dtype=x.dtype)
        grid = given.to(x.dtype).expand(x.shape[0], -1, *x.shape[2:])
        parts = [torch.cat([part, grid], dim=1) for part in x.chunk(self.groups, dim=1)]
        wide = torch.cat(parts, dim=1)
        return self._convolve(wide, wide_weight, self.bias, self.groups, output_padding)

    def _own_grid(self, place: Place) -> Tensor:
        return self.coordinate_grid(*place.size, device=place.device, dtype=place.dtype)

    def _basis(self, place: Place) -> Basis | None:
        """Return the map of each coordinate weight alone, or None if they would be too large."""
        if place in self._bases:
            return self._bases[place]
        taps = math.prod(place.kernel_size)
        rows = self.num_coords * taps
        has_double = place.device.type in ("cpu", "cuda")
        # On a GPU float64 also rules out TF32, which would cut coordinates to 10 bits.
        exact = place._replace(dtype=torch.float64) if has_double else place
        # A tensor made in inference mode could not take part in autograd later.
        with torch.inference_mode(False), torch.no_grad(), no_autocast(place.device):
            grid = self._own_grid(exact)
            of_one = grid.new_zeros(1, 1, *place.kernel_size)
            size = self._convolve(grid[:, :1], of_one, None, 1, place.output_padding).shape[2:]
            if rows * size.numel() > MAX_BASIS or rows * taps > MAX_TAPS:
                remember_at(self._bases, place, None)
                return None
            one_each = torch.eye(taps, device=exact.device, dtype=exact.dtype)
            one_each = one_each.view(taps, 1, *place.kernel_size)
            if self.transposed:
                one_each = one_each.transpose(0, 1)
            one_each = one_each.repeat(self.num_coords, *[1] * (self.axes + 1))
            maps = self._convolve(grid, one_each, None, self.num_coords, place.output_padding)
            factors = factorize(maps.view(rows, -1), taps)
            if place.channels_last:
                factors = [factor.t() for factor in factors]
            basis = Basis(size, tuple(factor.to(place.dtype).contiguous() for factor in factors))
        if place.device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                return basis  # it holds no values before the graph is replayed
            torch.cuda.current_stream(place.device).synchronize()  # any stream may read it
        remember_at(self._bases, place, basis)
        return basis


def _split(weight: Tensor, parts: list[int]) -> tuple[Tensor, Tensor]:
    """Return two parts of dimension 1, for reading."""
    if torch.compiler.is_compiling():  # exporters fold slices of a constant, but not splits
        return weight[:, : parts[0]], weight[:, parts[0] :]
    # The safe variant: autograd refuses gradients of a weight that was changed in the meantime.
    first, second = torch.split_with_sizes(weight, parts, dim=1)
    return first, second
