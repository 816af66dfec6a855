"""The coordinate map of a layer: its place, its computation as a product, and its cache."""

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor


class Place(NamedTuple):
    """What a coordinate map depends on besides the weights: sizes, layout, type and device."""

    size: torch.Size
    kernel_size: torch.Size
    output_padding: tuple[int, ...]
    channels_last: bool
    dtype: torch.dtype
    device: torch.device


class Remembered(NamedTuple):
    """The cached maps of one value of the coordinate weights."""

    coord_weight: Tensor
    maps: dict[Place, Tensor]


class Basis(NamedTuple):
    """The maps of the coordinate weights one by one.

    They are the rows, or, channels last, the columns of the product of the factors.
    """

    size: torch.Size
    factors: tuple[Tensor, ...]


# A detection head sees one size per pyramid level; an endless stream of sizes must not pile up.
_MAX_PLACES = 8
# Most bytes of maps that a layer caches; a single map may be larger.
MAX_REMEMBERED = 2**24
# Largest basis, in elements, for which a map is computed as a product; above, by convolution.
MAX_BASIS = 2**18
# Most elements of the one-hot kernels that a basis is made with, one per tap of a coordinate.
MAX_TAPS = 2**21
# Smallest basis, in elements, that is worth two narrow products in place of one.
_MIN_FACTORIZED = 2**14


def factorize(maps: Tensor, taps: int) -> list[Tensor]:
    """Return two narrow matrices whose product is ``maps``, or just ``maps`` if there are none.

    Without padding, the maps of a kernel's taps are shifts of one map. A shift adds a constant to
    coordinates along axes, so a constant and one map per coordinate span all the others.
    """
    if maps.device.type != "cpu" or maps.numel() < _MIN_FACTORIZED:  # a GPU would have to sync
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
    """Return the type of coordinates that meet a weight or an input: 32 bits or more.

    16 bits cannot tell the pixels of a wide image apart, so in a 16-bit layer, and under autocast,
    the map has a wider type than the rest.
    """
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


_Kept = TypeVar("_Kept")


def remember_at(kept: dict[Place, _Kept], place: Place, value: _Kept) -> None:
    """Keep a value for a place, dropping those of all other places if there are too many."""
    if len(kept) >= _MAX_PLACES:
        kept.clear()
    kept[place] = value
