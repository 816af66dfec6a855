"""Convolutions over the input and its coordinates, widened from those of ``torch.nn``."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from coordrl.layers.base import CoordConv
from coordrl.layers.given import given_grid
from coordrl.layers.grid import PAPER_SYSTEM, CoordinateSystem, PerAxis
from coordrl.layers.inputs import require_input

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class _Convolution(CoordConv):
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
            in_channels + groups * self._num_coords(with_r=with_r, system=system),
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
        """Convolve ``input`` with its own or the given coordinates appended."""
        self._refuse_traced(input)
        require_input(self, input, self.in_channels, self.axes)
        return self._forward(input, (), given_grid(self, input, origin, extent, coords))


class _TransposedConvolution(CoordConv, _ConvTransposeNd):
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
            in_channels + groups * self._num_coords(with_r=with_r, system=system),
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
        """Convolve ``input`` with its own or the given coordinates appended.

        ``output_size`` picks one of the sizes that the stride allows, as in ``torch.nn``.
        """
        self._refuse_traced(input)
        require_input(self, input, self.in_channels, self.axes)
        given = given_grid(self, input, origin, extent, coords)
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

    Appends the channels of :func:`~coordrl.coordinate_grid` to the input and convolves the result:
    ``y = conv2d(cat([x, grid], dim=1), weight, bias)``. With the weights of the coordinate
    channels at zero it is :class:`torch.nn.Conv2d`.

    The concatenation is the meaning of the layer, not what it computes (see
    :mod:`coordrl.layers.base`). ``weight`` is the weight of the wide convolution, ``(out_channels,
    in_channels / groups + coordinates, *kernel_size)`` with the coordinates last in the order x,
    y, r, and starts as :class:`torch.nn.Conv2d` starts one of that shape. With groups, every
    group sees the coordinates.

    Padding pads the coordinate channels like any other, with 0, which is the coordinate of the
    image center; the authors' code does the same. The other padding modes pad them likewise.

    Under autocast, and in layers of 16-bit types, the coordinates' part is computed in float32
    and rounded once, when added: bfloat16 has no more than 768 values for the 1,024 columns of a
    wide image. (On a GPU with TF32 allowed, large maps are computed in TF32. A graph compiled for
    training with dynamic sizes concatenates, and computes everything in one type.)

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
        device: Device of the parameters.
        dtype: Type of the parameters.
        with_r: Also append the distance from the center (3 channels instead of 2).
        system: The coordinate system; the paper's by default.

    ``forward`` takes, by name, ``origin`` and ``extent``, which place the input in a larger whole
    (see :func:`~coordrl.coordinate_grid`), or ``coords``, the coordinate channels themselves:
    ``(1 or N, coordinates, H, W)``, or ``(coordinates, H, W)``.

    Shape:
        - Input: ``(N, in_channels, H, W)`` or ``(in_channels, H, W)``, floating point.
        - Output: ``(N, out_channels, H_out, W_out)`` or ``(out_channels, H_out, W_out)``, as for
          :class:`torch.nn.Conv2d`.

    Raises:
        ValueError: If the plain convolution rejects an argument; in ``forward``, if the input or
            ``coords`` do not have that shape.
        TypeError: If ``system`` is not a CoordinateSystem or ``with_r`` not a bool; in
            ``forward``, if the input is not floating point.

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
        device: Device of the parameters.
        dtype: Type of the parameters.
        with_r: Also append the distance from the center (3 channels instead of 2).
        system: The coordinate system; the paper's by default.

    ``forward`` takes ``origin``, ``extent`` and ``coords`` by name, as :class:`CoordConv2d` does.

    Shape:
        - Input: ``(N, in_channels, H, W)`` or ``(in_channels, H, W)``, floating point.
        - Output: ``(N, out_channels, H_out, W_out)`` or ``(out_channels, H_out, W_out)``, as for
          :class:`torch.nn.ConvTranspose2d`.

    Raises:
        ValueError: If the plain convolution rejects an argument; in ``forward``, if the input or
            ``coords`` do not have that shape.
        TypeError: If ``system`` is not a CoordinateSystem or ``with_r`` not a bool; in
            ``forward``, if the input is not floating point.

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
