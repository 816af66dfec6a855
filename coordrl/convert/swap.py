"""Swap the convolutions of a model for CoordConv layers of the same function, and back."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from coordrl.layers import (
    CoordConv1d,
    CoordConv2d,
    CoordConv3d,
    CoordConvTranspose1d,
    CoordConvTranspose2d,
    CoordConvTranspose3d,
    CoordinateSystem,
)
from coordrl.layers.base import CoordConv

Where = Literal["first", "all"] | Callable[[str, nn.Module], bool]

_WIDE: dict[type[nn.Module], type[CoordConv]] = {
    nn.Conv1d: CoordConv1d,
    nn.Conv2d: CoordConv2d,
    nn.Conv3d: CoordConv3d,
    nn.ConvTranspose1d: CoordConvTranspose1d,
    nn.ConvTranspose2d: CoordConvTranspose2d,
    nn.ConvTranspose3d: CoordConvTranspose3d,
}
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {wide: plain for plain, wide in _WIDE.items()}
# Attributes that the other layer has no use for: those of coordinates, and this layer's compiled
# call, which holds its weights.
_LEFT_BEHIND = frozenset(
    {"with_r", "system", "num_coords", "_remembered", "_bases", "_compiled_call_impl"}
)


def to_coordconv(
    model: nn.Module,
    where: Where = "first",
    *,
    with_r: bool = False,
    system: CoordinateSystem | None = None,
) -> nn.Module:
    """Swap convolutions of a model for CoordConv layers, in place.

    The weights of the input stay and those of the coordinates start at zero, so the model computes
    the same as before until it is trained further: bit for bit, except for the rounding of 1x1
    convolutions of large batches, which are convolved in parts where freed memory is not kept
    (:mod:`coordrl.memory`). Build the optimizer afterwards: swapped layers have new parameters.
    References from outside the module tree, such as a Python list of layers, and code that
    computes with a layer's weight itself are not found: exclude such layers with ``where``.

    Args:
        model: Any model with convolutions of ``torch.nn``.
        where: Which to swap: the first in the order of definition, all, or those for which a
            function of name and layer returns True. CoordConv layers are skipped.
        with_r: Give them the distance from the center as well.
        system: The coordinate system; the paper's if None.

    Returns:
        The model; a new layer if the model is itself the convolution.

    Raises:
        ValueError: If there is no convolution to swap, or one of them is lazy or complex, shares
            a parameter with another layer, or has hooks, buffers, or a forward pass of its own.
            The model is then unchanged.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> x = torch.randn(2, 3, 9, 9)
        >>> before = model(x)
        >>> torch.equal(to_coordconv(model, where="all")(x), before)
        True
    """
    coordinates = system if system is not None else CoordinateSystem()
    chosen = _chosen(model, where)
    shared = _shared_parameters(model)
    for name, layer in chosen:
        _refuse_what_cannot_be_swapped(name, layer, shared, _WIDE)
    swapped: dict[nn.Module, nn.Module] = {
        layer: _widened(layer, with_r=with_r, system=coordinates) for _, layer in chosen
    }
    return _replaced(model, swapped)


def from_coordconv(model: nn.Module, *, force: bool = False) -> nn.Module:
    """Swap all CoordConv layers of a model for plain convolutions, in place.

    Args:
        model: Any model with CoordConv layers.
        force: Drop coordinate weights that are not zero, which changes what the model computes.

    Returns:
        The model; a new layer if the model is itself the CoordConv layer.

    Raises:
        ValueError: If there is no CoordConv layer, or one has coordinate weights that are not zero,
            or may not be on the meta device, and ``force`` is False, shares a parameter with
            another layer, or has hooks, buffers, or a forward pass of its own. The model is then
            unchanged.

    Example:
        >>> from_coordconv(to_coordconv(nn.Conv2d(3, 8, 3)))
        Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    chosen = [
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, CoordConv)
    ]
    if not chosen:
        raise ValueError("the model has no CoordConv layer to swap")
    shared = _shared_parameters(model)
    swapped: dict[nn.Module, nn.Module] = {}
    for name, layer in chosen:
        _refuse_what_cannot_be_swapped(name, layer, shared, _PLAIN)
        _, coord_weight = layer.split_weight()
        if not force and coord_weight.is_meta:
            raise ValueError(
                f"{_quoted(name)} may use its coordinates: it is on the meta device, where weights"
                " have no values; load them first, or pass force=True to drop those of coordinates"
            )
        if not force and bool(coord_weight.any()):
            raise ValueError(
                f"{_quoted(name)} uses its coordinates: their weights are not zero; pass force=True"
                " to drop them"
            )
        swapped[layer] = _narrowed(layer)
    return _replaced(model, swapped)


def _chosen(model: nn.Module, where: Where) -> list[tuple[str, _ConvNd]]:
    if not callable(where) and where not in ("first", "all"):
        raise ValueError(f'where must be "first", "all" or a function, got {where!r}')
    candidates = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, _ConvNd) and not isinstance(module, CoordConv)
    ]
    if callable(where):
        candidates = [(name, layer) for name, layer in candidates if where(name, layer)]
    if not candidates:
        if callable(where):
            raise ValueError(
                "where matches no convolution of the model; it is called with name and layer"
            )
        has_wide = any(isinstance(module, CoordConv) for module in model.modules())
        already = "; those that it has are CoordConv already" if has_wide else ""
        raise ValueError(f"the model has no convolution to swap{already}")
    return candidates[:1] if where == "first" else candidates


def _refuse_what_cannot_be_swapped(
    name: str,
    layer: nn.Module,
    shared: dict[int, list[str]],
    classes: Mapping[type[nn.Module], type[nn.Module]],
) -> None:
    if isinstance(layer, LazyModuleMixin):
        raise ValueError(
            f"{_quoted(name)} is lazy and has no weights yet; run the model once, then swap"
        )
    if type(layer) not in classes:
        advice = "; leave it out with a function as where" if classes is _WIDE else ""
        if parametrize.is_parametrized(layer):
            advice = "; take its parametrization off, swap, and put it on again"
        raise ValueError(
            f"{_quoted(name)} is a {type(layer).__name__}, whose own forward pass would be"
            f" lost{advice}"
        )
    for parameter in layer.parameters(recurse=False):
        if parameter.is_complex():
            raise ValueError(f"{_quoted(name)} is of {parameter.dtype}, and coordinates are real")
        names = shared[id(parameter)]
        if len(names) > 1:
            raise ValueError(
                f"{_quoted(name)} shares a parameter with another layer ({', '.join(names)});"
                " untie them first"
            )
    _refuse_to_lose(name, layer)


def _refuse_to_lose(name: str, layer: nn.Module) -> None:
    if vars(layer).keys() & {"forward", "_conv_forward"}:
        raise ValueError(
            f"{_quoted(name)} has a forward pass that was put on it, which would be lost; take it"
            " off first"
        )
    # Each kind of hook has its own dictionary, named "..._hooks".
    hooks = [value for key, value in vars(layer).items() if key.endswith("_hooks")]
    for parameter in layer.parameters(recurse=False):
        hooks += [parameter._backward_hooks, parameter._post_accumulate_grad_hooks]
    if any(hooks):
        raise ValueError(f"{_quoted(name)} has hooks, which would be lost; remove them first")
    parts = [*layer._buffers, *layer._modules, *(layer._parameters.keys() - {"weight", "bias"})]
    if parts:
        raise ValueError(
            f"{_quoted(name)} was given {', '.join(parts)}, which would be lost; take it off first"
        )


def _shared_parameters(model: nn.Module) -> dict[int, list[str]]:
    """Return the layers' names for each parameter; a layer used in two places counts once."""
    names: dict[int, list[str]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            names.setdefault(id(parameter), []).append(f"{prefix}.{name}".lstrip("."))
    return names


def _quoted(name: str) -> str:
    return f"layer {name!r}" if name else "the layer"


def _arguments(layer: _ConvNd) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "kernel_size": layer.kernel_size,
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
        "bias": layer.bias is not None,
        "padding_mode": layer.padding_mode,
        # No random numbers are drawn for weights that are replaced at once.
        "device": "meta",
        "dtype": layer.weight.dtype,
    }
    if layer.transposed:
        arguments["output_padding"] = layer.output_padding
    return arguments


def _widened(layer: _ConvNd, *, with_r: bool, system: CoordinateSystem) -> nn.Module:
    make: Callable[..., CoordConv] = _WIDE[type(layer)]
    weight, groups = layer.weight.detach(), layer.groups
    # Not in_channels: a plain layer never reads it, and its weight may have been replaced.
    channels = weight.shape[0], weight.shape[1] * groups
    in_channels, out_channels = channels if layer.transposed else reversed(channels)
    wide = make(in_channels, out_channels, **_arguments(layer), with_r=with_r, system=system)
    if layer.transposed:
        rows = weight.unflatten(0, (groups, -1))  # type: ignore[no-untyped-call]
        zeros = rows.new_zeros(groups, wide.num_coords, *rows.shape[2:])
        weight = torch.cat([rows, zeros], dim=1).flatten(0, 1)
    else:
        zeros = weight.new_zeros(len(weight), wide.num_coords, *weight.shape[2:])
        weight = torch.cat([weight, zeros], dim=1)
    return _filled(wide, weight, layer)


def _narrowed(layer: CoordConv) -> nn.Module:
    arguments = _arguments(layer)
    plain = cast(_ConvNd, _PLAIN[type(layer)](layer.in_channels, layer.out_channels, **arguments))
    weight, _ = layer.split_weight()
    return _filled(plain, weight.detach().clone(), layer)


def _filled(target: _ConvNd, weight: Tensor, source: _ConvNd) -> nn.Module:
    weight = _laid_out_like(source.weight, weight)
    target.weight = nn.Parameter(weight, requires_grad=source.weight.requires_grad)
    vars(target.weight).update(vars(source.weight))  # such as a mark for the optimizer
    target.register_parameter("bias", cast(nn.Parameter | None, source.bias))
    # Padding modes other than zeros read this, which is set only when a layer is made.
    target._reversed_padding_repeated_twice = source._reversed_padding_repeated_twice
    for name in vars(source).keys() - vars(target).keys() - _LEFT_BEHIND:
        setattr(target, name, getattr(source, name))
    return target.train(source.training)


def _laid_out_like(model: Tensor, weight: Tensor) -> Tensor:
    """Return a weight in the memory layout of another: it decides the layout of the output."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    if model.ndim not in layouts:
        return weight
    layout = layouts[model.ndim]
    channels_last = torch.empty_like(model, memory_format=layout).stride()
    # A weight of one element per channel has the strides of both; torch takes the default layout.
    if (
        model.stride() != channels_last
        or model.stride() == torch.empty(model.shape, device="meta").stride()
    ):
        return weight
    return torch.empty_like(weight, memory_format=layout).copy_(weight)


def _replaced(model: nn.Module, swapped: dict[nn.Module, nn.Module]) -> nn.Module:
    for parent, name, child in list(_children(model)):
        if child in swapped:
            setattr(parent, name, swapped[child])
    return swapped.get(model, model)


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield every parent, name and child; a layer that is used twice comes twice."""
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                yield parent, name, child
