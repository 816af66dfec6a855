"""Checks of a layer's input."""

import torch
from torch import Tensor


def require_input(layer: torch.nn.Module, x: Tensor, channels: int, axes: int) -> None:
    """Raise an error unless ``x`` is a batch, or a single sample, that a layer can take.

    Raises:
        ValueError: If it has other axes or channels, or a spatial axis of length 0.
        TypeError: If it is not floating point.
    """
    found, *size = x.shape[-axes - 1 :] if x.ndim - axes in (1, 2) else (-1,)
    if found == channels and 0 not in size and x.is_floating_point():
        return
    name, letters = type(layer).__name__, ", ".join("DHW"[-axes:])
    if found != channels:
        raise ValueError(
            f"{name} expects an input of shape (N, {channels}, {letters}) or"
            f" ({channels}, {letters}), got {tuple(x.shape)}"
        )
    if 0 in size:
        raise ValueError(f"{name} expects a pixel or more on each axis, got {tuple(x.shape)}")
    advice = "" if x.is_complex() else "; use x.float()"
    raise TypeError(f"{name} expects floating-point input, got {x.dtype}{advice}")
