"""CoordConv layers: convolutions that are told where they are.

Liu et al., "An intriguing failing of convolutional neural networks and the CoordConv
solution", NeurIPS 2018, https://arxiv.org/abs/1807.03247.
"""

from coordrl.layers.base import CoordConv
from coordrl.layers.bias import CoordBias
from coordrl.layers.convolution import (
    CoordConv1d,
    CoordConv2d,
    CoordConv3d,
    CoordConvTranspose1d,
    CoordConvTranspose2d,
    CoordConvTranspose3d,
)
from coordrl.layers.grid import CoordinateSystem, coordinate_grid

__all__ = [
    "CoordBias",
    "CoordConv",
    "CoordConv1d",
    "CoordConv2d",
    "CoordConv3d",
    "CoordConvTranspose1d",
    "CoordConvTranspose2d",
    "CoordConvTranspose3d",
    "CoordinateSystem",
    "coordinate_grid",
]
