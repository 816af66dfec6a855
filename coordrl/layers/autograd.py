"""Sums of a convolution and a coordinate map, with gradients that are faster than torch's own.

A layer uses them in plain eager mode only; under forward-mode differentiation and other
transformations it uses plain operations.
"""

import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

from coordrl import memory
from coordrl.layers.coord_map import Place

# From this many output elements on, summing the batch faster outweighs a call into Python.
LARGE_OUTPUT = 2**20
# oneDNN reorders inputs into blocks of this many channels; inputs with fewer are read as they are.
_BLOCK = 16
# Bytes of output per thread in each part, where a batch is convolved in parts.
_PART = 5 * 2**19


class Arguments(NamedTuple):
    """Arguments of a convolution, in the order of ``torch.convolution``."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


def samples_at_once(x: Tensor, coord_map: Tensor, place: Place) -> int:
    """Return the least number of samples to convolve before their map is added.

    Parts avoid fetching memory anew, see :class:`ConvolveInParts`; elsewhere they cost time.
    At least two, since torch is slower on a single sample (in 3D, up to six times).
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


class AddMap(torch.autograd.Function):
    """The sum of a batch and a map, in place, with a fast gradient of the map."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, coord_map: Tensor) -> Tensor:
        """Add the map to each sample of ``y``, which is overwritten."""
        ctx.mark_dirty(y)
        ctx.map_dtype = coord_map.dtype
        return y.add_(coord_map)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the batch and of the map."""
        return grad, _sum_over_batch(grad, ctx.map_dtype)


class ConvolveInParts(torch.autograd.Function):
    """The sum of a convolution and a map, one part of the batch after the other.

    Unless channels are last, oneDNN copies input and output into a layout of its own. The copies
    of a large batch need memory that is fetched from the system anew each time, which can take
    longer than the convolution; those of a part are small and reuse the memory of the last part.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        coord_map: Tensor,
        arguments: Arguments,
        parts: int,
    ) -> Tensor:
        """Convolve the parts of ``x`` one after the other, and add the map to each."""
        ctx.save_for_backward(x, weight)
        ctx.bias_size = None if bias is None else bias.shape
        ctx.arguments = arguments
        ctx.map_dtype = coord_map.dtype
        weight = weight.clone()  # dense; otherwise each part would copy it
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
        """Return the gradients of input, weight, bias and map, of the whole batch at once."""
        x, weight = ctx.saved_tensors
        of_convolution = torch.ops.aten.convolution_backward(
            grad, x, weight, ctx.bias_size, *ctx.arguments, ctx.needs_input_grad[:3]
        )
        of_map = _sum_over_batch(grad, ctx.map_dtype) if ctx.needs_input_grad[3] else None
        return *of_convolution, of_map, None, None


def _sum_over_batch(batch: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradient of a map, fast.

    torch's own sum takes up to twice the time of the convolution with channels last, and half as
    long again as needed otherwise (torch 2.13, CPU). A matrix-vector product reads the batch as
    it lies in memory.
    """
    transforms = torch._C._functorch
    if transforms.is_batchedtensor(batch) or transforms.is_legacy_batchedtensor(batch):
        return batch.sum(dim=0, dtype=dtype)  # vmap over many gradients
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
