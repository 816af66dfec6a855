"""Models for other runtimes, as ONNX or ``torch.export``, each compared with the original model.

CoordConv layers export as plain operations. If the size of the picture is fixed, the coordinate map
is a constant, and a layer is a convolution and an addition. If it is not, the coordinates are
computed from whole numbers by a division, without linspace or meshgrid.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from coordrl.errors import UserError
from coordrl.files import atomic_file
from coordrl.modes import evaluating

Dynamic = Literal["none", "batch", "all"]

# Another order of summation only changes rounding; a wrong graph differs by more.
TOLERANCE = 1e-4
_TOLERANCES = {torch.float16: 4e-3, torch.bfloat16: 3e-2}


class ExportError(UserError, ValueError):
    """A model cannot be exported; the message is one sentence that says why."""


def export_onnx(
    model: nn.Module, inputs: Tensor, path: Path | str, *, dynamic: Dynamic = "batch"
) -> float:
    """Write a model as ONNX, after checking that onnxruntime computes the same from it.

    Args:
        model: Model that takes one tensor and returns one; exported in evaluation mode.
        inputs: Example of its input, ``(N, C, H, W)``.
        path: File to write.
        dynamic: Dimensions of the input that may vary: none, the batch, or batch, height and
            width.

    Returns:
        Largest difference between onnxruntime's output and the model's, relative to the largest
        output, over the example and inputs of other sizes that ``dynamic`` allows.

    Raises:
        ExportError: If a package is missing, the model cannot be exported, or the results differ
            by more than ``TOLERANCE``, or for 16-bit outputs by more than four units in the last
            place of the largest output.
        RunError: If the file cannot be written.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise ExportError(
            f"ONNX needs the package {error.name}; pip install 'coordrl[export]'"
        ) from error
    with evaluating(model), _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                model,
                (_example(inputs, dynamic),),
                dynamo=True,
                dynamic_shapes=_dynamic_shapes(inputs, dynamic),
                input_names=["input"],
                output_names=["output"],
                verbose=False,
            )
        except Exception as error:  # the exporter wraps whatever the model raises
            raise ExportError(f"torch.onnx cannot export the model: {_cause(error)}") from error
        assert program is not None
        content = program.model_proto.SerializeToString()
        try:
            session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class for each reason
            raise ExportError(f"onnxruntime cannot run the model: {_cause(error)}") from error

        def run(x: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {"input": x.cpu().numpy()})[0])

        difference = _largest_difference(model, run, inputs, dynamic)
    with atomic_file(Path(path)) as file:
        file.write(content)
    return difference


def export_program(
    model: nn.Module, inputs: Tensor, path: Path | str, *, dynamic: Dynamic = "batch"
) -> float:
    """Write a model by ``torch.export``, after checking that the program computes the same.

    Arguments, result and errors are those of :func:`export_onnx`. ``torch.export.load`` opens the
    file.

    Example:
        >>> import tempfile
        >>> from coordrl.layers import CoordConv2d
        >>> layer = CoordConv2d(1, 2, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = export_program(layer, torch.zeros(1, 1, 8, 8), f"{folder}/layer.pt2")
        ...     torch.export.load(f"{folder}/layer.pt2").module()(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 2, 6, 6])
    """
    content = BytesIO()
    with evaluating(model), _quiet(), torch.no_grad():
        try:
            program = torch.export.export(
                model, (_example(inputs, dynamic),), dynamic_shapes=_dynamic_shapes(inputs, dynamic)
            )
        except Exception as error:  # whatever the model raises
            raise ExportError(f"torch.export cannot export the model: {_cause(error)}") from error
        torch.export.save(program, content)
        content.seek(0)
        loaded = torch.export.load(content).module()
        difference = _largest_difference(model, loaded, inputs, dynamic)
    with atomic_file(Path(path)) as file:
        file.write(content.getvalue())
    return difference


def _dynamic_shapes(inputs: Tensor, dynamic: Dynamic) -> tuple[dict[int, Any]] | None:
    if dynamic not in get_args(Dynamic):
        raise ValueError(f"dynamic must be one of {get_args(Dynamic)}, got {dynamic!r}")
    if dynamic == "none":
        return None
    free = range(inputs.ndim) if dynamic == "all" else range(1)
    return ({axis: torch.export.Dim.DYNAMIC for axis in free if axis != 1},)


def _example(inputs: Tensor, dynamic: Dynamic) -> Tensor:
    """Return the input to trace, with a batch above 1: a length of 1 would be taken as fixed."""
    return inputs if dynamic == "none" or len(inputs) > 1 else torch.cat([inputs, inputs])


def _other_size(model: nn.Module, inputs: Tensor, dynamic: Dynamic) -> Tensor:
    """Return an input that is longer on each dynamic axis, by repeating the example.

    Longer by 3 or, if the model rejects that, twice as long, as models that halve and enlarge
    pictures need it.
    """
    by_three = _longer(inputs, dynamic, lambda length: length + 3)
    try:
        model(by_three)
    except Exception:  # whatever the model raises
        return _longer(inputs, dynamic, lambda length: 2 * length)
    return by_three


def _longer(inputs: Tensor, dynamic: Dynamic, longer: Callable[[int], int]) -> Tensor:
    free = {"none": (), "batch": (0,), "all": (0, *range(2, inputs.ndim))}[dynamic]
    for axis in free:
        length = inputs.shape[axis]
        index = torch.arange(longer(length), device=inputs.device) % length
        inputs = inputs.index_select(axis, index)
    return inputs


def _largest_difference(model: nn.Module, run: Any, inputs: Tensor, dynamic: Dynamic) -> float:
    largest = 0.0
    for x in (inputs, _other_size(model, inputs, dynamic)):
        try:
            expected = model(x)
        except Exception as error:  # whatever the model raises
            raise ExportError(
                f"the model itself takes no input of {tuple(x.shape)}, which dynamic={dynamic!r}"
                f" asks for: {_cause(error)}"
            ) from error
        if not isinstance(expected, Tensor) or expected.numel() == 0:
            what = "nothing" if isinstance(expected, Tensor) else f"a {type(expected).__name__}"
            raise ExportError(
                f"the model must return one tensor, got {what}; wrap it in a module that does"
            )
        actual = run(x)
        if actual.shape != expected.shape:
            raise ExportError(
                f"the exported model returns {tuple(actual.shape)} for an input of"
                f" {tuple(x.shape)}, the model {tuple(expected.shape)}"
            )
        if not expected.isfinite().all():
            raise ExportError(
                "the model's output for the example is not finite, so that nothing can be"
                " compared; give an example that it has finite outputs for"
            )
        # Booleans cannot be subtracted.
        wide = torch.promote_types(expected.dtype, torch.float64)
        wanted = expected.cpu().to(wide)
        scale = max(wanted.abs().max().item(), torch.finfo(torch.float32).tiny)
        difference = (actual.to(wide) - wanted).abs().max().item() / scale
        if not difference <= largest:  # NaN as well, which max() would drop
            largest = difference
    tolerance = _TOLERANCES.get(expected.dtype, TOLERANCE)
    if not largest <= tolerance:
        raise ExportError(
            f"the exported model differs from the model by {largest:.2g} of its largest output,"
            f" more than {tolerance:g}; nothing was written"
        )
    return largest


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).strip().splitlines()] or ["no reason given"]
    reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {reason}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's messages about optional packages and deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
