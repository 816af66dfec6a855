"""Coordinates that a caller gives to a layer, in place of its own."""

from typing import Any, Protocol

from torch import Tensor

from coordrl.layers.coord_map import map_dtype
from coordrl.layers.grid import PerAxis


class Layer(Protocol):
    """A layer that sees coordinates."""

    @property
    def axes(self) -> int:
        """Spatial dimensions of its input."""

    @property
    def num_coords(self) -> int:
        """Coordinate channels that it sees."""

    def coordinate_grid(self, *size: int, **where: Any) -> Tensor:
        """Return the coordinates of a picture of that size."""


def given_grid(
    layer: Layer,
    x: Tensor,
    origin: PerAxis | None,
    extent: PerAxis | None,
    coords: Tensor | None,
) -> Tensor | None:
    """Return the coordinates that a caller gives, ``(1 or N, coordinates, *size)``, if any.

    Raises:
        ValueError: If ``coords`` come with ``origin`` or ``extent``, or do not fit the input.
        TypeError: If ``coords`` is not a tensor.
    """
    if origin is None and extent is None and coords is None:
        return None
    name, axes = type(layer).__name__, layer.axes
    # Not len(x): exporters would bake that in as a constant.
    size, batch = x.shape[-axes:], x.shape[0] if x.ndim == axes + 2 else 1
    dtype = map_dtype(x)
    if coords is None:
        placed = {"origin": origin, "extent": extent}
        grid = layer.coordinate_grid(*size, **placed, device=x.device, dtype=dtype)
    elif origin is not None or extent is not None:
        raise ValueError(f"{name} takes coords, or origin and extent, not both")
    elif not isinstance(coords, Tensor):
        raise TypeError(f"{name} expects coords as a tensor, got {type(coords).__name__}")
    else:
        grid = coords.to(dtype)
        grid = grid.unsqueeze(0) if grid.ndim == axes + 1 else grid
    # Not `in`, which compilers that take batch and axes for one symbol get wrong.
    fits_batch = grid.shape[0] == 1 or grid.shape[0] == batch
    if not fits_batch or grid.shape[1:] != (layer.num_coords, *size):
        counts = "1" if batch == 1 else f"{batch} or 1"
        raise ValueError(
            f"{name} expects coordinates of shape"
            f" ({counts}, {layer.num_coords}, {', '.join(map(str, size))}),"
            f" got {tuple(grid.shape)}"
        )
    return grid
