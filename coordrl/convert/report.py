"""Do coordinates help a model? What it computes with them and without them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coordrl.layers import CoordBias
from coordrl.layers.base import CoordConv
from coordrl.modes import evaluating

CoordinateChange = Callable[[Tensor], Tensor]
CoordinateLayer = CoordConv | CoordBias


@dataclass(frozen=True)
class LayerReport:
    """The weights of a layer that sees coordinates."""

    name: str
    image_norm: float
    """Root mean square of the weights of the input; 1 for a ``CoordBias``, which has none."""
    coordinate_norm: float
    """Root mean square of the weights of the coordinates."""
    is_called: bool
    """Whether the model called the layer; if not, the changes say nothing about it."""


@dataclass(frozen=True)
class CoordinateReport:
    """What a model does with its coordinates. Changes are relative to the norm of the output."""

    layers: tuple[LayerReport, ...]
    change_without: float
    """How much the output changes with all coordinates at zero."""
    change_shuffled: float
    """How much it changes with the coordinates of each layer shuffled among the pixels."""
    shift_error: dict[int, float]
    """For each shift of the input, in pixels along all axes, the distance of its output from the
    shifted output, or from the unshifted output if the output is not a picture."""
    shift_error_without: dict[int, float]
    """The same with all coordinates at zero: the effect of borders and strides alone."""
    metric: float | None = None
    """The caller's metric of the output."""
    metric_without: float | None = None
    """The same with all coordinates at zero."""
    metric_shuffled: float | None = None
    """The same with the coordinates of each layer shuffled among the pixels."""

    def __str__(self) -> str:
        """Return the report as lines for a reader."""
        lines = [
            f"{layer.name}: coordinate weights {layer.coordinate_norm:.3g},"
            f" image weights {layer.image_norm:.3g}{'' if layer.is_called else '; not called'}"
            for layer in self.layers
        ]
        lines.append(f"output changes by {self.change_without:.3g} without coordinates,")
        lines.append(f"by {self.change_shuffled:.3g} with shuffled ones")
        for shift, error in self.shift_error.items():
            without = self.shift_error_without[shift]
            lines.append(
                f"shifted by {shift}: error {error:.3g}, without coordinates {without:.3g}"
            )
        if self.metric is not None:
            lines.append(
                f"metric {self.metric:.4g}, without coordinates {self.metric_without:.4g},"
                f" shuffled {self.metric_shuffled:.4g}"
            )
        return "\n".join(lines)


def coordinate_report(
    model: nn.Module,
    inputs: Tensor,
    *,
    metric: Callable[[Tensor], float] | None = None,
    shifts: Iterable[int] = (1, 2, 4),
    output_of: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
) -> CoordinateReport:
    """Examine what a model does with the coordinates of its CoordConv and CoordBias layers.

    The model is run in evaluation mode and without gradients; its weights and its mode are left
    as they were. Inputs are shifted cyclically, as by ``torch.roll``.

    Args:
        model: Model with such layers. It takes a batch and returns a tensor, or something that
            ``output_of`` takes a tensor from.
        inputs: Batch ``(N, C, H, W)``, or with another number of axes.
        metric: Figure of merit of an output, such as an accuracy, to compare with and without.
        shifts: Shifts to try, in pixels of the input, 1 or more. If the output is a smaller or
            larger picture, shifts that are not a whole number of its pixels are left out; if the
            inputs are not pictures, all are.
        output_of: Picks the tensor to look at from what the model returns, as in
            ``lambda y: y["logits"]``; if None, the model must return that tensor.
        seed: Seed of the shuffles.

    Raises:
        TypeError: If the inputs are not a tensor, or the output not a tensor of real numbers.
        ValueError: If the model has no such layer, or calls none (as when
            :func:`~coordrl.backbone.pointwise` reads its weights, or when it was compiled before),
            a shift is below 1, the inputs or the model's output for them are not finite, or the
            inputs are empty.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 1))
        >>> from coordrl.convert import to_coordconv
        >>> report = coordinate_report(to_coordconv(model), torch.randn(2, 1, 8, 8))
        >>> report.layers[0].coordinate_norm, report.change_without
        (0.0, 0.0)
    """
    layers = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, CoordinateLayer)
    }
    if not layers:
        raise ValueError("the model has no CoordConv layer; to_coordconv puts them in")
    shifts = tuple(shifts)
    if any(int(shift) != shift or shift < 1 for shift in shifts):
        raise ValueError(f"shifts must be 1 or more, got {shifts}")
    shifts = tuple(map(int, shifts))  # also NumPy's
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be one tensor, a batch, got {type(inputs).__name__}")
    if inputs.numel() == 0:
        raise ValueError(f"inputs must not be empty, got {tuple(inputs.shape)}")
    if not inputs.isfinite().all():
        raise ValueError("inputs must be finite, got infinity or NaN in them")
    generator = torch.Generator().manual_seed(seed)
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]

    def shuffle(grid: Tensor) -> Tensor:
        order = torch.randperm(grid[0, 0].numel(), generator=generator, device="cpu")
        order = order.to(grid.device)
        return grid.flatten(2)[:, :, order].view_as(grid)

    def run(inputs: Tensor) -> Tensor:
        # The same random numbers in each call, so that they do not count as an effect.
        with torch.random.fork_rng(gpus):
            returned = model(inputs)
        output = returned if output_of is None else output_of(returned)
        if not isinstance(output, Tensor) or output.is_complex():
            kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise TypeError(
                f"the model's output must be one tensor of real numbers, got {kind}; say which by"
                " output_of"
            )
        return output

    with evaluating(model), torch.no_grad():
        output = run(inputs)
        if not output.isfinite().all():
            raise ValueError("the model's output must be finite, got infinity or NaN in it")
        shift_error = _shift_errors(run, inputs, output, shifts)
        with _coordinates(layers, torch.zeros_like) as called:
            without = run(inputs)
            shift_error_without = _shift_errors(run, inputs, without, shifts)
        with _coordinates(layers, shuffle):
            shuffled = run(inputs)
        # Still in evaluation mode: in training, reading a weight under spectral norm changes it.
        of_layers = [_layer_report(name, layer, layer in called) for name, layer in layers.items()]
    measured = [None if metric is None else float(metric(y)) for y in (output, without, shuffled)]
    return CoordinateReport(
        tuple(of_layers),
        _distance(without, output),
        _distance(shuffled, output),
        shift_error,
        shift_error_without,
        *measured,
    )


@contextmanager
def _coordinates(
    layers: Mapping[str, CoordinateLayer], change: CoordinateChange
) -> Iterator[set[nn.Module]]:
    """Give layers changed coordinates; yield the set of layers called so far."""
    called: set[nn.Module] = set()

    def replace(
        layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        assert isinstance(layer, CoordinateLayer)
        called.add(layer)
        x: Tensor = args[0] if args else kwargs["input"]
        kwargs = dict(kwargs)
        grid = kwargs.pop("coords", None)
        placed = {key: kwargs.pop(key, None) for key in ("origin", "extent")}
        if grid is None:
            grid = layer.coordinate_grid(*x.shape[-layer.axes :], device=x.device, **placed)
        return args, {**kwargs, "coords": change(grid)}

    hooks = [
        layer.register_forward_pre_hook(replace, with_kwargs=True) for layer in layers.values()
    ]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()
    if not called:
        raise ValueError(
            f"the model calls none of its layers with coordinates ({', '.join(layers)}), so what"
            " they do cannot be seen; a compiled model has to be given uncompiled"
        )


def _layer_report(name: str, layer: CoordinateLayer, is_called: bool) -> LayerReport:
    if isinstance(layer, CoordBias):
        return LayerReport(name, 1.0, _size(layer.weight), is_called)
    image_norm, coordinate_norm = map(_size, layer.split_weight())
    return LayerReport(name, image_norm, coordinate_norm, is_called)


def _size(weight: Tensor) -> float:
    return weight.detach().square().mean().sqrt().item()


def _shift_errors(
    run: Callable[[Tensor], Tensor], inputs: Tensor, output: Tensor, shifts: Sequence[int]
) -> dict[int, float]:
    axes = tuple(range(2, inputs.ndim))
    if not axes:
        return {}
    is_picture = output.ndim == inputs.ndim
    errors = {}
    for shift in shifts:
        expected = output
        if is_picture:
            moved = [shift * output.shape[axis] / inputs.shape[axis] for axis in axes]
            if not all(pixels.is_integer() for pixels in moved):
                continue
            expected = output.roll([int(pixels) for pixels in moved], axes)
        shifted = run(inputs.roll([shift] * len(axes), axes))
        errors[shift] = _distance(shifted, expected)
    return errors


def _distance(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference, relative to the norm of ``expected``."""
    actual, expected = actual.double(), expected.double()  # 16 bits end at 65,504
    distance: Tensor = torch.linalg.vector_norm(actual - expected)
    tiny = torch.finfo(torch.float64).tiny
    return float(distance / torch.linalg.vector_norm(expected).clamp_min(tiny))
