"""The coordinates without the convolution."""

from typing import Any

import torch
from torch import Tensor, nn

from coordrl.layers.given import given_grid
from coordrl.layers.grid import (
    PAPER_SYSTEM,
    CoordinateSystem,
    PerAxis,
    channels_of,
    coordinate_grid,
)
from coordrl.layers.inputs import require_input
from coordrl.layers.state import KeepsSystem
from coordrl.layers.tracing import FxLeaf


class CoordBias(FxLeaf, KeepsSystem):
    """A bias that depends on the position: each channel plus a weighted sum of the coordinates.

    Placed after a convolution it is a cheap alternative to CoordConv. Without padding, the k^2
    weights that a k x k CoordConv has for a coordinate add one degree of freedom to its function,
    because shifted coordinates differ only by a constant; this layer has one weight for it. The
    k^2 weights only change how fast it is learned. (With padding, and for channels such as r that
    are not an affine function of the position, a CoordConv can do more.)

    The weights start at zero, so that the layer starts as the identity.

    Args:
        channels: Channels of the input.
        axes: Spatial dimensions of the input, 1 to 3.
        with_r: Weigh the distance from the center as well.
        system: The coordinate system; the paper's by default.
        device: Device of the parameters.
        dtype: Type of the parameters.

    ``forward`` takes ``origin``, ``extent`` and ``coords`` by name, as
    :class:`~coordrl.CoordConv2d` does.

    Shape:
        - Input: ``(N, channels, H, W)`` or ``(channels, H, W)``, floating point; with other axes
          accordingly.
        - Output: like the input.

    Raises:
        ValueError: If ``axes`` is not 1, 2 or 3, or ``system`` does not fit it; in ``forward``, if
            the input or ``coords`` have another shape.
        TypeError: If ``system`` is not a CoordinateSystem or ``with_r`` not a bool; in
            ``forward``, if the input is not floating point.

    Example:
        >>> layer = nn.Sequential(nn.Conv2d(4, 32, 8, stride=4), CoordBias(32))
        >>> layer(torch.zeros(16, 4, 84, 84)).shape
        torch.Size([16, 32, 20, 20])
    """

    def __init__(
        self,
        channels: int,
        axes: int = 2,
        *,
        with_r: bool = False,
        system: CoordinateSystem = PAPER_SYSTEM,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if axes not in (1, 2, 3):
            raise ValueError(f"CoordBias has 1, 2 or 3 axes, got {axes}")
        self.channels = channels
        self.axes = axes
        self.with_r = with_r
        self.system = system
        self.num_coords = channels_of("CoordBias", system, axes, with_r=with_r)
        shape = channels, self.num_coords
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make the layer the identity again."""
        nn.init.zeros_(self.weight)

    def coordinate_grid(self, *size: int, **where: Any) -> Tensor:
        """Return :func:`~coordrl.coordinate_grid` in the coordinates that the layer sees."""
        return coordinate_grid(*size, with_r=self.with_r, system=self.system, **where)

    def extra_repr(self) -> str:
        """Describe the layer as ``torch.nn`` describes its own."""
        described = f"{self.channels}, axes={self.axes}, with_r={self.with_r}"
        return described if self.system == PAPER_SYSTEM else f"{described}, system={self.system}"

    def forward(
        self,
        input: Tensor,
        *,
        origin: PerAxis | None = None,
        extent: PerAxis | None = None,
        coords: Tensor | None = None,
    ) -> Tensor:
        """Add the weighted coordinates, the layer's own or the given ones, to ``input``."""
        self._refuse_traced(input)
        require_input(self, input, self.channels, self.axes)
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        grid = given_grid(self, input, origin, extent, coords)
        if grid is None:
            size = input.shape[-self.axes :]
            grid = self.coordinate_grid(*size, device=input.device, dtype=dtype)
        # Products and sums instead of a matrix product, which autocast would round to 16 bits.
        weight = self.weight.to(dtype).view(1, self.channels, -1, *[1] * self.axes)
        added = (weight * grid.to(dtype).unsqueeze(1)).sum(dim=2)
        batched = input.ndim == self.axes + 2
        return (input + (added if batched else added.squeeze(0))).to(input.dtype)
