"""How a layer runs: plainly, compiled, transformed or under autocast, and in which layout."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import has_static_value


def compiles_any_size(size: torch.Size) -> bool:
    """Tell whether a graph for training is being compiled with dynamic sizes.

    Inductor (torch 2.13) sorts the strides of tensors that it saves for backward, and fails if a
    tensor has batch size 1 and an unknown size.
    """
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    return torch.is_grad_enabled() and not all(has_static_value(length) for length in size)


def is_plain(weight: Tensor) -> bool:
    """Tell whether a layer runs eagerly: not compiled, traced, transformed or reparametrized."""
    return (
        type(weight) is nn.Parameter
        and has_values(weight)
        and not torch._C._is_tracing()
        and torch.autograd.forward_ad._current_level < 0  # no tangents
    )


def has_values(tensor: Tensor) -> bool:
    """Tell whether a tensor's values can be read: it is not compiled, transformed or fake."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()  # modes whose tensors may hold no values
    )


def is_channels_last(x: Tensor, axes: int) -> bool:
    """Tell whether the channels of a batch lie last in memory."""
    if x.is_contiguous() or axes == 1 or x.ndim != axes + 2:
        return False
    if torch._C._are_functorch_transforms_active():
        return False  # vmap cannot tell
    layout = torch.channels_last if axes == 2 else torch.channels_last_3d
    return x.is_contiguous(memory_format=layout)


def autocasts(device: torch.device) -> bool:
    """Tell whether autocast is on."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Switch autocast off if it is on."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else nullcontext()


def cast_for_autocast(tensor: Tensor) -> Tensor:
    """Cast a tensor as autocast casts an argument of a convolution."""
    kept = tensor.dtype == torch.float64
    return tensor if kept else tensor.to(torch.get_autocast_dtype(tensor.device.type))
