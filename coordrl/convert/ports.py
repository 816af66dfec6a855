"""Weights of other implementations of CoordConv.

Each lays out the wide kernel in its own way. The formulas are those of the repositories, at the
versions named in ``PORTS``.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from coordrl.layers import CoordConv2d, CoordinateSystem


@dataclass(frozen=True)
class Port:
    """How an implementation orders the channels of its kernel, and how it defines r."""

    order: Literal["xy", "yx"]
    """Which coordinate comes first; x changes along a row, whatever the port calls it."""
    coordinates_first: bool = False
    """Coordinates come before the channels of the input instead of after them."""
    layout: Literal["OIHW", "HWIO"] = "OIHW"
    """Dimensions of the kernel: PyTorch's or TensorFlow's."""
    r: Literal["centered", "off center", "scaled"] = "centered"
    """sqrt(x^2 + y^2); sqrt((x - 1/2)^2 + (y - 1/2)^2), by mistake; or centered, divided by its
    largest value."""

    @property
    def system(self) -> CoordinateSystem:
        """Coordinate system that a layer with ``with_r`` needs to take the port's weights."""
        return CoordinateSystem(r_center=0.5 if self.r == "off center" else 0.0)


PORTS = {
    # The authors' own, 27fab8b. On pictures that are not square it divides x by the height and y
    # by the width; forward(x, extent=(2 (W - 1) / (H - 1), 2 (H - 1) / (W - 1))) does the same.
    "uber-research/CoordConv": Port(order="xy", layout="HWIO"),
    # 0893af7, for square pictures only
    "mkocabas/CoordConv-pytorch": Port(order="xy", r="off center"),
    # 052d453: its `xx` counts rows
    "walsvid/CoordConv": Port(order="yx", r="off center"),
    # 3af5eb8: its `xx` counts rows as well
    "titu1994/keras-coordconv": Port(order="yx", layout="HWIO", r="off center"),
    # 10b651a
    "Wizaron/coord-conv-pytorch": Port(order="yx", coordinates_first=True, r="scaled"),
}


def load_port(
    layer: CoordConv2d, port: str, weight: Tensor, bias: Tensor | None = None
) -> CoordConv2d:
    """Give a layer the weights of another implementation, so that it computes the same.

    Args:
        layer: Layer with the same channels and kernel size and one group; with ``with_r`` and a
            port whose r is off center, also with the port's ``system``.
        port: A key of ``PORTS``.
        weight: The port's kernel, over input and coordinates.
        bias: The port's bias; the layer's stays if None.

    Returns:
        The layer.

    Raises:
        ValueError: If the port is unknown or the layer does not fit it.

    Example:
        >>> layer = CoordConv2d(3, 8, 5)
        >>> kernel = torch.randn(5, 5, 3 + 2, 8)  # of tf.layers.Conv2D
        >>> load_port(layer, "uber-research/CoordConv", kernel).weight.shape
        torch.Size([8, 5, 5, 5])
    """
    if port not in PORTS:
        raise ValueError(f"port must be one of {', '.join(PORTS)}, got {port!r}")
    source = PORTS[port]
    system = source.system if layer.with_r else CoordinateSystem()
    if layer.groups != 1 or layer.system != system:
        raise ValueError(
            f"weights of {port} fit a layer of one group with system={system},"
            f" got groups={layer.groups}, system={layer.system}"
        )
    if source.layout == "HWIO" and weight.ndim == 4:
        weight = weight.permute(3, 2, 0, 1)
    if weight.shape != layer.weight.shape:
        raise ValueError(
            f"weights of {port} must have the shape {tuple(layer.weight.shape)} in the order"
            f" (out, in, height, width), got {tuple(weight.shape)}"
        )
    if bias is not None and (layer.bias is None or bias.shape != layer.bias.shape):
        raise ValueError(f"the layer has no bias of shape {tuple(bias.shape)}")

    parts = [layer.in_channels, layer.num_coords]
    if source.coordinates_first:
        coordinates, image = torch.split(weight, parts[::-1], dim=1)
    else:
        image, coordinates = torch.split(weight, parts, dim=1)
    coordinates = coordinates.clone()
    if source.order == "yx":
        coordinates[:, [0, 1]] = coordinates[:, [1, 0]]
    if layer.with_r and source.r == "scaled":
        coordinates[:, 2] /= 2**0.5  # its r ends at 1 in the corners, ours at sqrt(2)
    with torch.no_grad():
        layer.weight.copy_(torch.cat([image, coordinates], dim=1))
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)
    return layer
