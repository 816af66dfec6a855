"""CoordConv layers: convolutions that are told where they are.

Liu et al., "An intriguing failing of convolutional neural networks and the CoordConv
solution", NeurIPS 2018, https://arxiv.org/abs/1807.03247.

A CoordConv layer appends the coordinates of the pixels to its input as channels, and convolves.
The coordinates are the same for every sample, so the layer need not build that wide input:

    conv(cat([x, grid]), weight)  ==  conv(x, weight of x) + conv(grid, weight of grid)

The second term, the *coordinate map*, takes the bias along, is computed once for the whole batch,
and is remembered while no gradient is needed and its weights stay. Function and gradients are
those of the concatenation up to the order of summation; the parameters *are* those of the
concatenation, so optimizers, initializers and checkpoints see a plain wide convolution.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


def coordinate_grid(
    *size: int,
    with_r: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the coordinate channels of a feature map: x, y, z as far as it has them, then r.

    x runs from -1 in the left column to 1 in the right one, y from -1 in the top row to 1 in the
    bottom one, z from -1 in the front to 1 in the back, and r = sqrt(x^2 + y^2 + z^2) is the
    distance from the center. An axis of length 1 has the single coordinate 0.

    The authors' TensorFlow code divides x by the height and y by the width, which gives the same
    grid on square images only (``AddCoords.call`` in uber-research/CoordConv). Here each axis is
    divided by its own length.

    Args:
        *size: Length of each axis in the order of a tensor: ``width``, or ``height, width``, or
            ``depth, height, width``; each at least 1.
        with_r: Append the r channel.
        device: Where to build the grid; the current default device if None.
        dtype: Floating-point type of the grid; the current default if None. Types of 16 bits
            are computed in float32 and rounded once.

    Returns:
        Grid of shape ``(1, channels, *size)``, with a channel for each axis and one for r. The
        leading 1 broadcasts over a batch.

    Raises:
        ValueError: If there are not 1, 2 or 3 sizes, or one is below 1.

    Example:
        >>> coordinate_grid(2, 3)[0, 0]
        tensor([[-1.,  0.,  1.],
                [-1.,  0.,  1.]])
    """
    if not 1 <= len(size) <= 3 or min(size) < 1:
        raise ValueError(f"coordinate_grid needs 1 to 3 sizes of at least 1, got {size}")
    dtype = dtype or torch.get_default_dtype()
    wide = torch.promote_types(dtype, torch.float32)
    axes = [_axis(length, device, wide) for length in size]
    channels = list(reversed(torch.meshgrid(*axes, indexing="ij")))
    if with_r:
        channels.append(torch.stack(channels).square().sum(dim=0).sqrt())
    return torch.stack(channels).unsqueeze(0).to(dtype)


def _axis(length: int, device: torch.device | str | None, dtype: torch.dtype) -> Tensor:
    if length == 1:
        return torch.zeros(1, device=device, dtype=dtype)
    return torch.linspace(-1, 1, length, device=device, dtype=dtype)


class _MapKey(NamedTuple):
    """What a remembered coordinate map depends on, beside the weights."""

    size: tuple[int, ...]
    output_padding: tuple[int, ...]


class _RememberedMaps(NamedTuple):
    """Coordinate maps and the values of the weights that they were computed from."""

    weight: Tensor
    bias: Tensor | None
    maps: dict[_MapKey, Tensor]


# A detection head sees one size per pyramid level; a stream of ever new sizes must not pile up.
_MAX_SIZES = 16


class _CoordConv(_ConvNd):
    """What the layers share: the two terms of the forward pass, and the memory of the second.

    A subclass also inherits from the layer of ``torch.nn`` that it widens, constructs it with the
    wide number of channels, and then calls :meth:`_set_coordinates`.
    """

    with_r: bool
    num_coords: int
    _remembered: _RememberedMaps | None
    _grids: dict[tuple[tuple[int, ...], torch.device, torch.dtype], Tensor]

    def _set_coordinates(self, in_channels: int, *, with_r: bool) -> None:
        self.in_channels = in_channels
        self.with_r = with_r
        self.num_coords = len(self.kernel_size) + with_r
        self._forget()

    def _forget(self) -> None:
        self._remembered = None
        self._grids = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave what can be computed again out of copies and pickles."""
        return {**self.__dict__, "_remembered": None, "_grids": {}}

    def extra_repr(self) -> str:
        """Describe the layer as ``torch.nn`` does, with its coordinates."""
        described: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{described}, with_r={self.with_r}"

    def _forward(self, x: Tensor, output_padding: tuple[int, ...] = ()) -> Tensor:
        weight, coord_weight = self._split_weight()
        y = self._convolve(x, weight, None, self.groups, output_padding)
        coord_map = self._coordinate_map(x, coord_weight, _MapKey(self._size(x), output_padding))
        if x.ndim == len(self.kernel_size) + 1:
            coord_map = coord_map.squeeze(0)
        # Backward of a convolution does not need its output, so adding in place is free of charge.
        # Outside eager mode an ordinary sum is as fast, and means the same to every transform.
        return y.add_(coord_map) if self._is_eager() else (y + coord_map).to(y.dtype)

    def _size(self, x: Tensor) -> tuple[int, ...]:
        return tuple(x.shape[-len(self.kernel_size) :])

    def _check_input(self, x: Tensor) -> None:
        name, axes = type(self).__name__, "DHW"[-len(self.kernel_size) :]
        channel_dim = x.ndim - len(axes) - 1
        if channel_dim not in (0, 1) or x.shape[channel_dim] != self.in_channels:
            expected = f"({self.in_channels}, {', '.join(axes)})"
            raise ValueError(
                f"{name} expects an input of shape (N, {expected[1:]} or {expected},"
                f" got {tuple(x.shape)}"
            )
        if 0 in self._size(x):
            raise ValueError(
                f"{name} expects at least one pixel on each axis, got {tuple(x.shape)}"
            )
        if not x.dtype.is_floating_point:
            raise TypeError(f"{name} expects floating-point input, got {x.dtype}; use x.float()")

    def _is_eager(self) -> bool:
        """Tell whether this is plain execution: not compiled, exported, mapped or on fakes."""
        return type(self.weight) is nn.Parameter and not torch.compiler.is_compiling()

    def _split_weight(self) -> tuple[Tensor, Tensor]:
        """Return the weight of the input, and that of the coordinates as of a layer of one group.

        With groups, each group of the wide convolution has its own inputs and all coordinates.
        """
        parts = [self.in_channels // self.groups, self.num_coords]
        if not self.transposed:
            weight, coord_weight = torch.split(self.weight, parts, dim=1)
            return weight, coord_weight
        # Rows of a transposed weight are input channels: those of group 0, then of group 1, ...
        rows = self.weight.view(self.groups, sum(parts), *self.weight.shape[1:])
        weight, coord_weight = torch.split(rows, parts, dim=1)
        return weight.flatten(0, 1), coord_weight.transpose(0, 1).flatten(1, 2)

    def _convolve(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        groups: int,
        output_padding: tuple[int, ...],
    ) -> Tensor:
        axes = len(self.kernel_size)
        stride, padding, dilation = self.stride, self.padding, self.dilation
        if self.transposed:
            assert not isinstance(padding, str)  # torch.nn has no such transposed convolution
            transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
            return transposed(x, weight, bias, stride, padding, output_padding, groups, dilation)
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0,) * axes
        convolution = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
        return convolution(x, weight, bias, stride, padding, dilation, groups)

    def _coordinate_map(self, x: Tensor, coord_weight: Tensor, key: _MapKey) -> Tensor:
        """Return the convolved coordinates plus the bias, of batch 1."""
        # Only on the CPU can the weights be compared without waiting for the device.
        if not (self._is_eager() and x.device.type == self.weight.device.type == "cpu"):
            return self._compute_map(x, coord_weight, key)
        needs_grad = coord_weight.requires_grad or (
            self.bias is not None and self.bias.requires_grad
        )
        if torch.is_grad_enabled() and needs_grad:
            return self._compute_map(x, coord_weight, key)

        # Values, not version counters: edits through `.data`, such as SB3's polyak_update of a
        # target network, leave no trace in the version.
        remembered = self._remembered
        if remembered is None or not (
            _same(remembered.weight, coord_weight) and _same(remembered.bias, self.bias)
        ):
            bias = None if self.bias is None else self.bias.detach().clone()
            remembered = _RememberedMaps(coord_weight.detach().clone(), bias, {})
            self._remembered = remembered
        coord_map = remembered.maps.get(key)
        if coord_map is None:
            # A tensor made in inference mode could not take part in autograd later.
            with torch.inference_mode(False), torch.no_grad():
                coord_map = self._compute_map(x, coord_weight, key)
            if len(remembered.maps) >= _MAX_SIZES:
                remembered.maps.clear()
            remembered.maps[key] = coord_map
        return coord_map

    def _compute_map(self, x: Tensor, coord_weight: Tensor, key: _MapKey) -> Tensor:
        # 16 bits cannot tell apart the pixels of a wide image, so the map is never computed in
        # fewer than 32: neither in a layer of that type nor under autocast.
        wide = torch.promote_types(coord_weight.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(wide)
        grid = self._grid(key.size, x.device, wide)
        weight = coord_weight.to(wide)
        if not _autocasts(x.device.type):
            return self._convolve(grid, weight, bias, 1, key.output_padding)
        with torch.autocast(x.device.type, enabled=False):
            return self._convolve(grid, weight, bias, 1, key.output_padding)

    def _grid(self, size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
        if not self._is_eager() or device.type != "cpu":
            return coordinate_grid(*size, with_r=self.with_r, device=device, dtype=dtype)
        key = (size, device, dtype)
        grid = self._grids.get(key)
        if grid is None:
            with torch.inference_mode(False):
                grid = coordinate_grid(*size, with_r=self.with_r, device=device, dtype=dtype)
            if len(self._grids) >= _MAX_SIZES:
                self._grids.clear()
            self._grids[key] = grid
        return grid


def _autocasts(device_type: str) -> bool:
    available = torch.amp.autocast_mode.is_autocast_available(device_type)
    return available and torch.is_autocast_enabled(device_type)


def _same(remembered: Tensor | None, current: Tensor | None) -> bool:
    if remembered is None or current is None:
        return remembered is current
    return remembered.dtype == current.dtype and torch.equal(remembered, current)


class CoordConv2d(_CoordConv, nn.Conv2d):
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
    columns of a wide image.

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

    Shape:
        - Input: ``(N, in_channels, H, W)`` or ``(in_channels, H, W)``, floating point.
        - Output: ``(N, out_channels, H_out, W_out)`` or ``(out_channels, H_out, W_out)``, as for
          :class:`torch.nn.Conv2d`.

    Raises:
        ValueError: In ``forward``, if the input is not of that shape.
        TypeError: In ``forward``, if the input is not floating point.

    Example:
        >>> conv = CoordConv2d(4, 32, kernel_size=8, stride=4)
        >>> conv(torch.zeros(16, 4, 84, 84)).shape
        torch.Size([16, 32, 20, 20])
        >>> conv.weight.shape
        torch.Size([32, 6, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        with_r: bool = False,
    ) -> None:
        super().__init__(
            in_channels + groups * (2 + with_r),
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._set_coordinates(in_channels, with_r=with_r)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` and its coordinates."""
        self._check_input(x)
        return self._forward(x)


class CoordConvTranspose2d(_CoordConv, nn.ConvTranspose2d):
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

    Shape:
        - Input: ``(N, in_channels, H, W)`` or ``(in_channels, H, W)``, floating point.
        - Output: ``(N, out_channels, H_out, W_out)`` or ``(out_channels, H_out, W_out)``, as for
          :class:`torch.nn.ConvTranspose2d`.

    Raises:
        ValueError: In ``forward``, if the input is not of that shape.
        TypeError: In ``forward``, if the input is not floating point.

    Example:
        >>> deconv = CoordConvTranspose2d(8, 3, kernel_size=4, stride=2, padding=1)
        >>> deconv(torch.zeros(16, 8, 16, 16)).shape
        torch.Size([16, 3, 32, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, int] = 1,
        padding_mode: Literal["zeros"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        with_r: bool = False,
    ) -> None:
        super().__init__(
            in_channels + groups * (2 + with_r),
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,
            device,
            dtype,
        )
        self._set_coordinates(in_channels, with_r=with_r)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve ``x`` and its coordinates.

        ``output_size`` picks one of the sizes that the stride allows, as in ``torch.nn``.
        """
        self._check_input(x)
        return self._forward(x, self._output_padding_of(x, output_size))

    def _output_padding_of(self, x: Tensor, output_size: list[int] | None) -> tuple[int, ...]:
        axes = len(self.kernel_size)
        stride, padding = list(self.stride), [int(p) for p in self.padding]
        kernel_size, dilation = list(self.kernel_size), list(self.dilation)
        return tuple(
            self._output_padding(x, output_size, stride, padding, kernel_size, axes, dilation)
        )
