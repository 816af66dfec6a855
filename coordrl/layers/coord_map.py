"""The coordinate map of a layer: where it lies, how it is made as a product, and remembered."""

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor


class Place(NamedTuple):
    """Where a coordinate map lies: what it depends on beside the weights."""

    size: torch.Size
    kernel_size: torch.Size
    output_padding: tuple[int, ...]
    channels_last: bool
    dtype: torch.dtype
    device: torch.device


class Remembered(NamedTuple):
    """The maps that were made of certain weights of the coordinates."""

    coord_weight: Tensor
    maps: dict[Place, Tensor]


class Basis(NamedTuple):
    """The maps of the coordinate weights one by one.

    They are the rows, or, channels last, the columns of the product of the factors.
    """

    size: torch.Size
    factors: tuple[Tensor, ...]


# A detection head sees one size per pyramid level; a stream of ever new sizes must not pile up.
_MAX_PLACES = 8
# Bytes of the maps that a layer remembers, unless it is a single one.
MAX_REMEMBERED = 2**24
# Largest basis, in numbers, by which a layer computes its map as a product; above, it convolves.
MAX_BASIS = 2**18
# Most numbers of the kernels by which a basis is made, one for each tap of each coordinate.
MAX_TAPS = 2**21
# Smallest basis, in numbers, that is worth two narrow products in place of one.
_MIN_FACTORIZED = 2**14


def factorize(maps: Tensor, taps: int) -> list[Tensor]:
    """Return narrow matrices whose product the maps are, or the maps where there are none.

    Without padding, the maps of the taps of a kernel are one map, shifted. A shift adds a constant
    to coordinates along axes, so a constant and one map of each coordinate make up all the others.
    """
    if maps.device.type != "cpu" or maps.numel() < _MIN_FACTORIZED:  # a GPU would be waited for
        return [maps]
    of_first_tap = torch.cat([torch.ones_like(maps[:1]), maps[::taps]])
    directions = torch.linalg.qr(of_first_tap.t()).Q.t()
    shares = maps @ directions.t()
    rounding = 1e-12 * maps.abs().amax(dim=1, keepdim=True)
    if not bool(((shares @ directions - maps).abs() <= rounding).all()):
        return [maps]
    return [shares, directions]


def map_of_basis(flat: Tensor, basis: Basis, channels_last: bool) -> Tensor:
    """Return the map of flattened coordinate weights, ``(out_channels, rows)``."""
    if channels_last:
        coord_map = flat.t()
        for factor in basis.factors:
            coord_map = torch.mm(factor, coord_map)
        return coord_map.view(*basis.size, -1).movedim(-1, 0)
    for factor in basis.factors:
        flat = torch.mm(flat, factor)
    return flat.view(-1, *basis.size)


def map_dtype(tensor: Tensor) -> torch.dtype:
    """Return the type of coordinates beside a weight or an input: 32 bits or more.

    16 bits cannot tell apart the pixels of a wide image. So the map is wider than the rest of a
    layer of such a type, and under autocast.
    """
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


_Kept = TypeVar("_Kept")


def remember_at(kept: dict[Place, _Kept], place: Place, value: _Kept) -> None:
    """Keep a value for a place, and forget those of all others where there are too many."""
    if len(kept) >= _MAX_PLACES:
        kept.clear()
    kept[place] = value
