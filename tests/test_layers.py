"""CoordConv layers against their definition: concatenate the coordinates, then convolve."""

import copy
import io
import math
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.testing import assert_close

from coordrl.layers import (
    CoordBias,
    CoordConv1d,
    CoordConv2d,
    CoordConv3d,
    CoordConvTranspose1d,
    CoordConvTranspose2d,
    CoordConvTranspose3d,
    CoordinateSystem,
    coordinate_grid,
)

WITH_R = pytest.mark.parametrize("with_r", [False, True], ids=["xy", "xyr"])
CONVOLUTIONS: list[tuple[type[nn.Module], type[nn.Module]]] = [
    (CoordConv1d, nn.Conv1d),
    (CoordConv2d, nn.Conv2d),
    (CoordConv3d, nn.Conv3d),
]
TRANSPOSED: list[tuple[type[nn.Module], type[nn.Module]]] = [
    (CoordConvTranspose1d, nn.ConvTranspose1d),
    (CoordConvTranspose2d, nn.ConvTranspose2d),
    (CoordConvTranspose3d, nn.ConvTranspose3d),
]
EVERY_LAYER = pytest.mark.parametrize(
    ("ours", "textbook"),
    CONVOLUTIONS + TRANSPOSED,
    ids=[ours.__name__ for ours, _ in CONVOLUTIONS + TRANSPOSED],
)
LAYOUTS = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
# A small batch is convolved at once, a large one in parts; here of one sample or more, or of two.
PARTS = pytest.mark.parametrize("at_once", [1, 2, 100])


@contextmanager
def samples_at_once(number: int) -> Iterator[None]:
    """Let layers convolve that many samples at a time."""
    with mock.patch("coordrl.layers.base.samples_at_once", return_value=number):
        yield


class Textbook(nn.Module):
    """CoordConv as it is defined: a wide layer of torch.nn over the concatenated channels."""

    def __init__(
        self,
        convolution: type[nn.Module],
        in_channels: int,
        out_channels: int,
        *,
        axes: int,
        with_r: bool,
        groups: int = 1,
        **arguments: Any,
    ) -> None:
        super().__init__()
        wide = in_channels + groups * (axes + with_r)
        self.convolution = convolution(wide, out_channels, groups=groups, **arguments)
        self.with_r = with_r
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        grid = coordinate_grid(*x.shape[2:], with_r=self.with_r, dtype=x.dtype)
        grid = grid.expand(len(x), *grid.shape[1:])
        parts = [torch.cat([part, grid], dim=1) for part in x.chunk(self.groups, dim=1)]
        y: Tensor = self.convolution(torch.cat(parts, dim=1))
        return y


def assert_same_function(layer: nn.Module, textbook: nn.Module, x: Tensor) -> None:
    """Compare values, gradients, and values while acting: at first computed, then remembered."""
    expected, actual = textbook(x), layer(x)
    assert_close(actual, expected)

    weights = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad((actual * weights).sum(), [x, *layer.parameters()]),
        torch.autograd.grad((expected * weights).sum(), [x, *textbook.parameters()]),
        strict=True,
    ):
        assert_close(ours, theirs)

    with torch.no_grad():
        assert_close(layer(x), expected)
        assert_close(layer(x), expected)


def numbers(minimum: int, maximum: int, axes: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.integers(minimum, maximum)] * axes)


@st.composite
def convolution_arguments(draw: st.DrawFn, axes: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Draw arguments that fit together, and the size of an input that fits them."""
    kernel_size, dilation = draw(numbers(1, 4, axes)), draw(numbers(1, 2, axes))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    size = draw(numbers(1, 7, axes))
    padding: str | tuple[int, ...]
    # torch warns that "same" copies the input when a side needs more padding than the other.
    if draw(st.booleans()) and not any(r % 2 for r in reach):
        padding, stride = "same", (1,) * axes
        needed = [r // 2 for r in reach]
    else:
        padding, stride = draw(numbers(0, 2, axes)), draw(numbers(1, 3, axes))
        needed = list(padding)
        size = tuple(max(n, r + 1 - 2 * p) for n, r, p in zip(size, reach, padding, strict=True))
    # Reflected padding needs more pixels than it adds, and wrapped padding as many.
    if mode != "zeros":
        size = tuple(max(n, p + 1) for n, p in zip(size, needed, strict=True))
    arguments = {
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "padding_mode": mode,
    }
    return arguments, size


@st.composite
def transposed_arguments(draw: st.DrawFn, axes: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Draw the same for transposed convolutions."""
    stride, dilation = draw(numbers(1, 3, axes)), draw(numbers(1, 2, axes))
    arguments = {
        "kernel_size": draw(numbers(2, 4, axes)),
        "stride": stride,
        "padding": draw(numbers(0, 1, axes)),
        "dilation": dilation,
        "output_padding": tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        ),
    }
    return arguments, draw(numbers(2, 5, axes))


@st.composite
def pairs(draw: st.DrawFn, transposed: bool) -> tuple[nn.Module, nn.Module, Tensor]:
    """Draw a layer, its textbook form with the same weights, and an input."""
    axes = draw(st.integers(1, 3))
    arguments, size = draw((transposed_arguments if transposed else convolution_arguments)(axes))
    groups = draw(st.sampled_from([1, 2]))
    in_channels, out_channels = (groups * draw(st.integers(1, 3)) for _ in range(2))
    arguments |= {
        "groups": groups,
        "bias": draw(st.booleans()),
        "with_r": draw(st.booleans()),
        "dtype": torch.float64,
    }
    ours, textbooks = (TRANSPOSED if transposed else CONVOLUTIONS)[axes - 1]
    torch.manual_seed(draw(st.integers(0, 2**16)))
    layer = ours(in_channels, out_channels, **arguments)
    textbook = Textbook(textbooks, in_channels, out_channels, axes=axes, **arguments)
    textbook.convolution.load_state_dict(layer.state_dict())

    x = torch.randn(draw(st.integers(1, 3)), in_channels, *size, dtype=torch.float64)
    if draw(st.booleans()):
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    return layer, textbook, x.requires_grad_()


@settings(max_examples=120, deadline=None)
@given(pairs(transposed=False), st.sampled_from([1, 2, 100]))
def test_convolution_equals_its_definition(
    case: tuple[nn.Module, nn.Module, Tensor], at_once: int
) -> None:
    with samples_at_once(at_once):
        assert_same_function(*case)


@settings(max_examples=60, deadline=None)
@given(pairs(transposed=True), st.sampled_from([1, 2, 100]))
def test_transposed_convolution_equals_its_definition(
    case: tuple[nn.Module, nn.Module, Tensor], at_once: int
) -> None:
    with samples_at_once(at_once):
        assert_same_function(*case)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@PARTS
def test_same_padding_of_an_even_kernel_is_longer_at_the_end(at_once: int) -> None:
    arguments: dict[str, Any] = {"kernel_size": (4, 3), "padding": "same"}
    layer = CoordConv2d(2, 3, **arguments, dtype=torch.float64)
    textbook = Textbook(nn.Conv2d, 2, 3, axes=2, with_r=False, **arguments, dtype=torch.float64)
    textbook.convolution.load_state_dict(layer.state_dict())
    x = torch.randn(5, 2, 6, 4, dtype=torch.float64, requires_grad=True)

    with samples_at_once(at_once):
        assert_same_function(layer, textbook, x)


@contextmanager
def fresh_memory(above: int) -> Iterator[None]:
    """Let the layers find memory of more bytes fetched anew, whatever this process keeps."""
    with (
        mock.patch("coordrl.memory.is_kept", return_value=False),
        mock.patch("coordrl.memory.is_fetched_anew", lambda size: size > above),
    ):
        yield


def sizes_of_parts(layer: nn.Module, x: Tensor) -> list[int]:
    with mock.patch("torch.convolution", wraps=torch.convolution) as convolution:
        layer(x)
    return [len(call.args[0]) for call in convolution.call_args_list]


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_an_output_in_fresh_memory_is_made_in_parts_of_a_size_for_each_thread() -> None:
    # 16 * 100 * 100 numbers of 4 bytes: 640,000 bytes a sample, and 2,621,440 for each thread.
    layer, x = CoordConv2d(1, 16, 1), torch.randn(17, 1, 100, 100)
    with torch_threads(1), fresh_memory(above=16 * 640_000):
        assert sizes_of_parts(layer, x) == [5, 4, 4, 4]
        assert sizes_of_parts(layer, x[1:]) == []
        assert sizes_of_parts(layer, x[0]) == []
    with torch_threads(1), fresh_memory(above=0):
        assert sizes_of_parts(layer, x[:9]) == [5, 4]
        assert sizes_of_parts(layer, x[:7]) == []
        assert sizes_of_parts(layer, x[:0]) == []
    with torch_threads(2), fresh_memory(above=0):
        assert sizes_of_parts(layer, x) == [9, 8]
        assert sizes_of_parts(layer, x[1:]) == [8, 8]
        assert sizes_of_parts(layer, x[:15]) == []


def test_an_input_counts_where_it_has_a_block_of_channels() -> None:
    # 16 * 100 * 100 numbers of 4 bytes: 640,000 bytes a sample, and a quarter of that out.
    layer, x = CoordConv2d(16, 4, 1), torch.randn(40, 16, 100, 100)
    with torch_threads(1), fresh_memory(above=39 * 640_000):
        assert sizes_of_parts(layer, x) == [20, 20]
        assert sizes_of_parts(layer, x[1:]) == []
        assert sizes_of_parts(CoordConv2d(15, 4, 1), x[:, :15].contiguous()) == []


@pytest.mark.parametrize(
    ("memory_format", "expected"), [(torch.contiguous_format, [3, 2]), (torch.channels_last, [])]
)
def test_huge_samples_are_convolved_two_at_a_time_but_not_channels_last(
    memory_format: torch.memory_format, expected: list[int]
) -> None:
    layer = CoordConv2d(2, 2, 1)
    layer.to(memory_format=memory_format)  # type: ignore[call-overload]
    x = torch.randn(5, 2, 900, 1000).contiguous(memory_format=memory_format)

    with fresh_memory(above=2**25):
        assert sizes_of_parts(layer, x) == expected


@PARTS
@pytest.mark.parametrize(
    "layer",
    [
        CoordConv2d(2, 4, (3, 4), stride=(1, 2), padding=(0, 2), dilation=(2, 1), groups=2),
        CoordConv2d(2, 4, (3, 4), padding=(0, 2), padding_mode="circular"),
        CoordConvTranspose2d(2, 4, (3, 4), stride=(1, 2), padding=(0, 1), output_padding=(0, 1)),
    ],
    ids=["zeros", "circular", "transposed"],
)
def test_parts_take_each_argument_for_its_axis(layer: nn.Module, at_once: int) -> None:
    x = torch.randn(5, 2, 5, 7)
    expected = layer(x)
    with samples_at_once(at_once):
        assert_close(layer(x), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of the checks of the shape
def test_a_trace_keeps_the_aspect_of_any_size() -> None:
    layer = CoordConv2d(1, 2, 3, system=CoordinateSystem(keep_aspect=True))
    traced = torch.jit.trace(layer, torch.randn(2, 1, 6, 7))  # type: ignore[no-untyped-call]
    for size in ((9, 5), (4, 8), (6, 6)):
        x = torch.randn(3, 1, *size)
        assert_close(traced(x), layer(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of the checks of the shape
def test_a_trace_serves_batches_of_any_size() -> None:
    layer = CoordConv2d(1, 16, 1)
    with torch.no_grad():
        traced = torch.jit.trace(layer, torch.randn(9, 1, 100, 100))  # type: ignore[no-untyped-call]
        x = torch.randn(20, 1, 100, 100)

        assert_close(traced(x), layer(x))


def paper_grid(size: int, *, with_r: bool) -> Tensor:
    """The grid of AddCoords in uber-research/CoordConv, for a square image, written anew."""
    ramp = torch.arange(size) / (size - 1) * 2 - 1
    x, y = ramp.repeat(size, 1), ramp.repeat(size, 1).T
    return torch.stack([x, y, (x**2 + y**2).sqrt()] if with_r else [x, y])[None]


@WITH_R
def test_grid_equals_the_papers_on_square_images(with_r: bool) -> None:
    assert_close(coordinate_grid(5, 5, with_r=with_r), paper_grid(5, with_r=with_r))


def test_grid_spans_minus_one_to_one_on_each_axis_of_a_non_square_image() -> None:
    x, y = coordinate_grid(2, 3)[0]
    assert x.tolist() == [[-1, 0, 1], [-1, 0, 1]]
    assert y.tolist() == [[-1, -1, -1], [1, 1, 1]]


def test_grid_of_a_volume_has_x_along_the_last_axis_and_z_along_the_first() -> None:
    x, y, z, r = coordinate_grid(2, 3, 5, with_r=True)[0]
    assert x[0, 0].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert y[0, :, 0].tolist() == [-1, 0, 1]
    assert z[:, 0, 0].tolist() == [-1, 1]
    assert_close(r, (x**2 + y**2 + z**2).sqrt())


def test_grid_of_a_single_pixel_is_the_center() -> None:
    assert coordinate_grid(1, 1, with_r=True).flatten().tolist() == [0, 0, 0]


def test_grid_is_of_the_default_type() -> None:
    with mock.patch("torch.get_default_dtype", return_value=torch.float64):
        assert coordinate_grid(2, 3).dtype == torch.float64


def test_half_precision_grid_is_rounded_once() -> None:
    wide = coordinate_grid(3, 999, with_r=True)
    assert torch.equal(
        coordinate_grid(3, 999, with_r=True, dtype=torch.bfloat16), wide.to(torch.bfloat16)
    )


CENTERS = CoordinateSystem(anchor="centers")


def test_centers_put_the_edges_of_the_picture_at_the_ends() -> None:
    x, y = coordinate_grid(1, 4, system=CENTERS)[0]
    assert x[0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert y[:, 0].tolist() == [0]


def test_coordinates_of_centers_do_not_change_with_resolution() -> None:
    fine, coarse = coordinate_grid(8, 12, system=CENTERS), coordinate_grid(4, 6, system=CENTERS)
    assert_close(nn.functional.avg_pool2d(fine, 2), coarse)


@pytest.mark.parametrize("anchor", ["ends", "centers"])
def test_aspect_is_kept_by_square_pixels_around_the_middle(
    anchor: Literal["ends", "centers"],
) -> None:
    x, y = coordinate_grid(3, 5, system=CoordinateSystem(anchor=anchor, keep_aspect=True))[0]
    assert_close(x[:, 1:] - x[:, :-1], (y[1, 0] - y[0, 0]).expand(3, 4))
    assert_close(x[0], coordinate_grid(5, system=CoordinateSystem(anchor=anchor))[0, 0])
    assert y[1].tolist() == [0] * 5


def test_physical_extent_is_that_of_the_edges() -> None:
    map_of_meters = CoordinateSystem(anchor="centers", origin=(100, 0), extent=(40, -30))
    x, y = coordinate_grid(3, 2, system=map_of_meters)[0]
    assert x[0].tolist() == [110, 130]
    assert y[:, 0].tolist() == [-5, -15, -25]


def test_angle_is_the_direction_from_the_center() -> None:
    angle = coordinate_grid(3, 3, system=CoordinateSystem(with_angle=True))[0, 2]
    assert_close(
        angle,
        torch.tensor([[-0.75, -0.5, -0.25], [1, 0, 0], [0.75, 0.5, 0.25]]),
    )


def test_fourier_features_are_sines_then_cosines_of_doubling_frequency() -> None:
    grid = coordinate_grid(2, 5, with_r=True, system=CoordinateSystem(frequencies=2))[0]
    x, y = grid[:2]
    expected = [f(k * math.pi * c) for k in (1, 2) for f in (torch.sin, torch.cos) for c in (x, y)]
    assert grid.shape == (CoordinateSystem(frequencies=2).num_channels(2, with_r=True), 2, 5)
    assert_close(grid[3:], torch.stack(expected))


def test_r_is_measured_from_its_center() -> None:
    x, y, r = coordinate_grid(3, 3, with_r=True, system=CoordinateSystem(r_center=0.5))[0]
    assert_close(r, ((x - 0.5) ** 2 + (y - 0.5) ** 2).sqrt())


@pytest.mark.parametrize(
    ("keep_aspect", "origin", "extent"),
    [
        (False, (-0.5, 0.0), (2 * 4 / 8, 2 * 3 / 6)),
        # The rows are three of four that a square would have, around their middle.
        (True, (-0.5, 0.75 / 2 - 0.5), 2 * 4 / 8),
    ],
)
def test_a_crop_has_the_coordinates_that_it_has_in_its_whole(
    keep_aspect: bool, origin: tuple[float, float], extent: float | tuple[float, float]
) -> None:
    system = CoordinateSystem(anchor="centers", keep_aspect=keep_aspect)
    whole = coordinate_grid(6, 8, with_r=True, system=system)
    crop = coordinate_grid(3, 4, with_r=True, system=system, origin=origin, extent=extent)
    assert_close(crop, whole[:, :, 3:6, 2:6])


def test_origin_and_extent_may_differ_between_samples() -> None:
    origin, extent = (
        torch.tensor([[0.0, 1.0], [5.0, -2.0]]),
        torch.tensor([[1.0, 2.0], [3.0, -4.0]]),
    )
    together = coordinate_grid(4, 3, with_r=True, origin=origin, extent=extent)
    for sample in range(2):
        alone = coordinate_grid(
            4, 3, with_r=True, origin=origin[sample].tolist(), extent=extent[sample].tolist()
        )
        assert_close(together[sample : sample + 1], alone)


@EVERY_LAYER
@pytest.mark.parametrize("samples", [1, 2])
def test_a_layer_takes_origin_extent_and_coords(
    ours: type[nn.Module], textbook: type[nn.Module], samples: int
) -> None:
    axes = int(ours.__name__[-2])
    system = CoordinateSystem(anchor="centers", frequencies=1, with_angle=axes > 1)
    layer = ours(3, 4, 2, with_r=True, system=system)
    wide = textbook(3 + system.num_channels(axes, with_r=True), 4, 2)
    wide.load_state_dict(layer.state_dict())
    x, size = torch.randn(2, 3, *[4, 5, 6][:axes]), [4, 5, 6][:axes]
    origin = torch.randn(samples, axes)
    extent = torch.rand(samples, axes) + 0.1
    grid = coordinate_grid(*size, with_r=True, system=system, origin=origin, extent=extent)

    expected = wide(torch.cat([x, grid.expand(2, -1, *size)], dim=1))

    assert_close(layer(x, origin=origin, extent=extent), expected)
    assert_close(layer(x, coords=grid), expected)
    if samples == 1:
        numbers = {"origin": origin[0].tolist(), "extent": extent[0].tolist()}
        assert_close(layer(x, **numbers), expected)
        assert_close(layer(x[0], **numbers), expected[0])


def test_gradients_reach_origin_and_extent() -> None:
    layer = CoordConv2d(2, 3, 2, with_r=True, dtype=torch.float64)
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    origin = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    extent = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(
        lambda origin, extent: layer(x, origin=origin, extent=extent), (origin, extent)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"anchor": "corners"}, r"anchor must be one of \('ends', 'centers'\), got 'corners'"),
        ({"frequencies": -1}, "frequencies must be a whole number, 0 or more, got -1"),
        ({"origin": math.nan}, "origin must be finite, got nan"),
        ({"extent": (1.0, math.inf)}, r"extent must be finite and not 0, got \(1.0, inf\)"),
        ({"extent": 0}, "extent must be finite and not 0, got 0"),
    ],
)
def test_a_wrong_system_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoordinateSystem(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"origin": (1.0, 2.0, 3.0)}, "origin must be one number or 2, in the order x, y, z, got"),
        ({"extent": torch.tensor([[1.0, math.nan]])}, "extent must be finite and not 0, got"),
        ({"extent": torch.tensor([[1.0, 0.0]])}, "extent must be finite and not 0, got"),
        ({"origin": torch.zeros(2)}, r"floating point of shape \(N, 2\), .* got \(2,\)"),
        ({"origin": torch.zeros(3, 2)}, r"coordinates of shape \(2 or 1, 2, 4, 5\), got \(3, 2"),
        ({"coords": torch.zeros(2, 3, 4, 5)}, r"coordinates of shape \(2 or 1, 2, 4, 5\), got"),
        ({"coords": torch.zeros(1, 2, 4, 5), "origin": 0}, "takes coords, or origin and extent"),
        (
            {"origin": torch.zeros(2, 2), "extent": torch.ones(3, 2)},
            "origin and extent must be of as many samples, got 2 and 3",
        ),
    ],
)
@pytest.mark.parametrize("layer", [CoordConv2d(3, 2, 1), CoordBias(3)])
def test_wrong_origins_extents_and_coordinates_are_named(
    layer: nn.Module, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        layer(torch.zeros(2, 3, 4, 5), **arguments)


def test_coordinates_are_tensors_of_floating_point() -> None:
    with pytest.raises(TypeError, match="expects coords as a tensor, got ndarray"):
        CoordConv2d(3, 2, 1)(torch.zeros(2, 3, 4, 5), coords=np.zeros((1, 2, 4, 5)))
    with pytest.raises(TypeError, match=r"is of a floating-point type, got torch\.int64"):
        coordinate_grid(2, 5, dtype=torch.int64)


def test_coord_bias_takes_coordinates_and_places() -> None:
    bias = CoordBias(3, with_r=True)
    nn.init.normal_(bias.weight)
    x, origin = torch.randn(2, 3, 4, 5), torch.randn(2, 2)
    grid = coordinate_grid(4, 5, with_r=True, origin=origin, extent=0.5)

    placed = bias(x, origin=origin, extent=0.5)

    assert_close(placed, x + torch.einsum("ck,nkhw->nchw", bias.weight, grid))
    assert_close(bias(x, coords=grid), placed)
    assert_close(bias(x, coords=bias.coordinate_grid(4, 5)), bias(x))


@pytest.mark.parametrize("layer", [CoordConv2d(3, 2, 1), CoordConvTranspose2d(3, 2, 2)])
def test_one_sample_takes_what_a_batch_of_one_does(layer: nn.Module) -> None:
    bias = CoordBias(3)
    nn.init.normal_(bias.weight)
    x, grid = torch.randn(3, 4, 5), torch.randn(2, 4, 5)
    for each in (layer, bias):
        assert_close(each(x), each(x[None])[0])
        assert_close(each(x, coords=grid), each(x[None], coords=grid[None])[0])
        with pytest.raises(ValueError, match=r"of shape \(1, 2, 4, 5\), got \(1, 3, 4, 5\)"):
            each(x, coords=x)


def test_coord_bias_is_the_identity_when_it_is_reset() -> None:
    bias = CoordBias(3)
    nn.init.normal_(bias.weight)
    bias.reset_parameters()
    assert_close(bias.weight, torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("name", "value", "count"),
    [("with_r", True, 3), ("system", CoordinateSystem(frequencies=1), 6)],
)
def test_a_layer_refuses_coordinates_that_its_weights_are_not_for(
    name: str, value: object, count: int
) -> None:
    layer = CoordConv2d(3, 2, 3)
    with pytest.raises(
        ValueError, match=f"for 2 coordinates, and with {name}=.* are {count}; make"
    ):
        setattr(layer, name, value)
    assert (layer.with_r, layer.system) == (False, CoordinateSystem())
    setattr(layer, name, getattr(layer, name))


def test_an_angle_needs_two_axes() -> None:
    with pytest.raises(ValueError, match="there is no angle on a single axis"):
        coordinate_grid(4, system=CoordinateSystem(with_angle=True))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_coord_bias_is_a_pointwise_coord_conv_of_nothing(axes: int) -> None:
    ours = CONVOLUTIONS[axes - 1][0](1, 3, 1, bias=False, with_r=True)
    bias = CoordBias(3, axes, with_r=True)
    x = torch.randn(2, 3, *[4, 5, 6][:axes])
    assert_close(bias(x), x)  # it starts as the identity

    with torch.no_grad():
        assert isinstance(ours.weight, Tensor)
        bias.weight.copy_(ours.weight[:, 1:].flatten(1))

    assert_close(bias(x) - x, ours(torch.zeros(2, 1, *[4, 5, 6][:axes])))


def test_coord_bias_behind_a_convolution_is_a_coord_conv_without_padding() -> None:
    layer = CoordConv2d(2, 3, 4, stride=2)
    plain, bias = nn.Conv2d(2, 3, 4, stride=2), CoordBias(3)
    x = torch.randn(2, 2, 10, 14)
    size = layer(x).shape[2:]
    with torch.no_grad():
        plain.weight.copy_(layer.weight[:, :2])
        # Coordinates of the output's pixels, of both ends of either axis, span all functions.
        positions = coordinate_grid(*size)[0, :, [0, 0, -1], [0, -1, 0]].T
        plain.bias.zero_()  # type: ignore[union-attr]
        wanted = (layer(x) - plain(x))[0][:, [0, 0, -1], [0, -1, 0]].T
        solved = torch.linalg.solve(torch.cat([positions, torch.ones(3, 1)], dim=1), wanted)
        bias.weight.copy_(solved[:2].T)
        plain.bias.copy_(solved[2])  # type: ignore[union-attr]

    assert_close(bias(plain(x)), layer(x))


def test_coord_bias_is_float32_under_autocast() -> None:
    bias = CoordBias(1)
    with torch.no_grad():
        bias.weight[0, 0] = 1
    with torch.autocast("cpu", torch.bfloat16):
        assert bias(torch.zeros(1, 1, 1, 1024)).unique().numel() == 1024


def test_coord_bias_of_16_bits_has_coordinates_of_32() -> None:
    bias = CoordBias(1, dtype=torch.bfloat16)
    with torch.no_grad():
        bias.weight[0, 0] = 1
    x = torch.zeros(1, 1, 1, 1024)
    assert bias.weight.dtype == torch.bfloat16
    assert bias(x).unique().numel() == 1024
    assert bias(x.bfloat16()).dtype == torch.bfloat16


def test_coord_bias_names_what_it_expected() -> None:
    with pytest.raises(ValueError, match=r"shape \(N, 3, H, W\) or .*, got \(2, 4, 5, 5\)"):
        CoordBias(3)(torch.zeros(2, 4, 5, 5))
    with pytest.raises(ValueError, match=r"CoordBias expects a pixel or more on each axis, got"):
        CoordBias(3)(torch.zeros(2, 3, 0, 5))
    with pytest.raises(TypeError, match=r"floating-point input, got torch.int64; use x.float"):
        CoordBias(3)(torch.zeros(2, 3, 5, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="has 1, 2 or 3 axes, got 4"):
        CoordBias(3, 4)


@pytest.mark.parametrize("size", [(), (0, 3), (3, -1), (1, 2, 3, 4), (2.5, 3)])
def test_grid_names_the_sizes_it_got(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="needs 1 to 3 whole sizes of at least 1, got"):
        coordinate_grid(*size)


@EVERY_LAYER
def test_starts_as_the_textbook_layer_starts(
    ours: type[nn.Module], textbook: type[nn.Module]
) -> None:
    axes = int(ours.__name__[-2])
    torch.manual_seed(5)
    layer = ours(4, 6, 3, groups=2, with_r=True)
    torch.manual_seed(5)
    wide = textbook(4 + 2 * (axes + 1), 6, 3, groups=2)

    assert layer.state_dict().keys() == wide.state_dict().keys()
    for name, value in wide.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value)


@EVERY_LAYER
def test_takes_a_sample_without_a_batch(ours: type[nn.Module], textbook: type[nn.Module]) -> None:
    layer = ours(2, 3, 2)
    x = torch.randn(2, *[4] * int(ours.__name__[-2]))

    assert isinstance(layer, textbook)
    assert_close(layer(x), layer(x[None])[0])
    with torch.no_grad():
        assert_close(layer(x), layer(x[None])[0])


def test_empty_batch_gives_an_empty_batch_and_no_gradient() -> None:
    layer = CoordConv2d(2, 3, 3)

    y = layer(torch.zeros(0, 2, 5, 6))
    y.sum().backward()

    assert y.shape == (0, 3, 3, 4)
    assert layer.weight.grad is not None
    assert not layer.weight.grad.any()


def test_without_coordinate_weights_it_is_a_convolution() -> None:
    layer, plain = CoordConv2d(3, 5, 3), nn.Conv2d(3, 5, 3)
    with torch.no_grad():
        layer.weight[:, :3] = plain.weight
        layer.weight[:, 3:] = 0
    layer.bias = plain.bias
    x = torch.randn(2, 3, 7, 9)

    assert_close(layer(x), plain(x))


def test_tells_two_positions_of_the_same_patch_apart() -> None:
    torch.manual_seed(0)
    y = CoordConv2d(1, 1, 1)(torch.zeros(1, 1, 4, 4))
    assert y.unique().numel() == 16


@PARTS
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("ours", "textbook"), TRANSPOSED)
def test_transposed_output_size_picks_among_the_sizes_of_the_stride(
    ours: type[nn.Module], textbook: type[nn.Module], dilation: int, at_once: int
) -> None:
    axes = int(ours.__name__[-2])
    size = (5, 7, 4)[:axes]
    layer = ours(3, 4, 3, stride=2, padding=1, dilation=dilation)
    wide = textbook(3 + axes, 4, 3, stride=2, padding=1, dilation=dilation)
    wide.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, *size)
    concatenated = torch.cat([x, coordinate_grid(*size).expand(2, *[-1] * (axes + 1))], dim=1)

    least = [2 * length - 3 + 2 * dilation for length in size]
    for output_size in (least, [least[0] + 1, *least[1:]]):
        with samples_at_once(at_once):
            assert_close(layer(x, output_size), wide(concatenated, output_size))


# torch compiles decompositions for forward mode by its own deprecated means.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@PARTS
def test_gradients_of_every_order_and_mode(at_once: int) -> None:
    layer = CoordConv2d(2, 4, 2, stride=2, padding=1, groups=2, dtype=torch.float64)
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    def through_parameters(x: Tensor, *parameters: Tensor) -> Tensor:
        y: Tensor = layer(x)  # gradcheck edits the parameters of the layer itself
        return y

    with samples_at_once(at_once):
        assert torch.autograd.gradcheck(through_parameters, (x, *layer.parameters()))
        assert torch.autograd.gradgradcheck(through_parameters, (x, *layer.parameters()))
        assert torch.autograd.gradcheck(layer, (x,), check_forward_ad=True)


def test_transforms_of_torch_func_agree_with_autograd() -> None:
    layer = CoordConv2d(2, 3, 2, padding=1, with_r=True)
    x = torch.randn(4, 2, 3, 5)
    parameters: dict[str, Tensor] = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(layer, parameters, (x[None],))
        return y.square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    layer(x).square().sum().backward()

    for name, parameter in layer.named_parameters():
        assert_close(per_sample[name].sum(dim=0), parameter.grad)
    assert_close(torch.func.vmap(layer)(x), layer(x))


@EVERY_LAYER
def test_an_ensemble_of_layers_computes_what_each_does(
    ours: type[nn.Module], textbook: type[nn.Module]
) -> None:
    layers = [ours(2, 4, 2, groups=2) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)
    x = torch.randn(2, 2, *(5, 6, 7)[: ours.axes])  # type: ignore[attr-defined]

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        y: Tensor = torch.func.functional_call(layers[0], (parameters, buffers), (x,))
        return y

    together = torch.vmap(one)(parameters, buffers)

    assert_close(together, torch.stack([layer(x) for layer in layers]))


@PARTS
@LAYOUTS
def test_many_gradients_at_once_are_those_one_by_one(
    memory_format: torch.memory_format, at_once: int
) -> None:
    layer = CoordConv2d(2, 3, 2)
    x = torch.randn(4, 2, 5, 6).contiguous(memory_format=memory_format)
    upstream = torch.randn(5, 4, 3, 4, 5)
    with samples_at_once(at_once):
        y = layer(x)
        (batched,) = torch.autograd.grad(
            y, layer.weight, upstream, is_grads_batched=True, retain_graph=True
        )
        single = [torch.autograd.grad(y, layer.weight, g, retain_graph=True)[0] for g in upstream]
    assert_close(batched, torch.stack(single))


def set_data(parameter: Tensor, value: Tensor) -> None:
    parameter.data = value


def step(optimizer: type[torch.optim.Optimizer], layer: CoordConv2d, **options: Any) -> None:
    with torch.enable_grad():
        layer(torch.ones(1, 2, 5, 6)).square().sum().backward()
    optimizer(layer.parameters(), lr=0.1, **options).step()  # type: ignore[call-arg]


def edit_in_place(layer: CoordConv2d) -> None:
    with torch.no_grad():
        layer.weight[:, -1] += 1


CHANGES: dict[str, Callable[[CoordConv2d], Any]] = {
    "sgd": lambda layer: step(torch.optim.SGD, layer),
    "fused adam": lambda layer: step(torch.optim.Adam, layer, fused=True),
    "in place": edit_in_place,
    "data in place": lambda layer: layer.weight.data.mul_(2),
    "data of the input's": lambda layer: layer.weight.data[:, :2].mul_(2),
    "data": lambda layer: set_data(layer.weight, layer.weight.data * 2),
    "data, transposed": lambda layer: set_data(layer.weight, layer.weight.data.transpose(2, 3)),
    "numpy": lambda layer: layer.weight.detach().numpy().__imul__(2),
    "bias data": lambda layer: layer.bias.data.fill_(3),  # type: ignore[union-attr]
    "no bias": lambda layer: setattr(layer, "bias", None),
    "new parameter": lambda layer: setattr(layer, "weight", nn.Parameter(2 * layer.weight)),
    "new kernel": lambda layer: setattr(layer, "weight", nn.Parameter(torch.randn(3, 4, 1, 4))),
    "load": lambda layer: layer.load_state_dict(CoordConv2d(2, 3, 2).state_dict()),
    "load, assigned": lambda layer: layer.load_state_dict(
        CoordConv2d(2, 3, 2).state_dict(), assign=True
    ),
    "float64": lambda layer: layer.double(),
    "bfloat16": lambda layer: layer.bfloat16(),
    "reset": lambda layer: layer.reset_parameters(),
    "padding mode": lambda layer: setattr(layer, "padding_mode", "circular"),
    "padding": lambda layer: setattr(layer, "padding", (2, 1)),
    "stride": lambda layer: setattr(layer, "stride", (2, 1)),
    "dilation": lambda layer: setattr(layer, "dilation", (2, 1)),
    "dilation, one number": lambda layer: setattr(layer, "dilation", 2),
    "system": lambda layer: setattr(layer, "system", CoordinateSystem(anchor="centers")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("size", [(5, 6), (4, 7)], ids=["same size", "other size"])
def test_a_remembered_map_is_never_stale(
    change: Callable[[CoordConv2d], Any], size: tuple[int, int]
) -> None:
    layer = CoordConv2d(2, 3, 2, padding=1)
    x = torch.randn(2, 2, *size)
    layer(x)  # while it learns, too, something is kept
    with torch.no_grad():
        before = layer(torch.randn(2, 2, 5, 6)), layer(x)

        change(layer)

        x = x.to(layer.weight.dtype)
        after = layer(x)
        assert not torch.equal(after, before[1].to(after.dtype))
        assert_close(after, copy.deepcopy(layer)(x), rtol=0, atol=0)
    assert_close(layer(x), copy.deepcopy(layer)(x), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    ("name", "padding"),
    [
        (name, padding)
        for name in CHANGES
        for padding in (0, (1, 2), "same", "valid")
        if (name, padding) != ("stride", "same")  # which torch refuses
    ],
)
def test_a_large_batch_meets_the_same_changes(
    name: str, padding: str | int | tuple[int, int]
) -> None:
    layer = CoordConv2d(2, 3, 2, padding=padding)
    CHANGES[name](layer)
    x = torch.randn(4, 2, 5, 6).to(layer.weight.dtype)

    with samples_at_once(2):
        in_parts = layer(x)

    assert_close(in_parts, layer(x))


@LAYOUTS
@pytest.mark.parametrize(
    "layer",
    [CoordConv2d(2, 1, 1), CoordConv2d(2, 1, 2), CoordConvTranspose2d(2, 3, 2)],
    ids=["one weight", "one output channel", "transposed"],
)
def test_what_is_remembered_shares_no_memory_with_parameters(
    layer: CoordConv2d | CoordConvTranspose2d, memory_format: torch.memory_format
) -> None:
    layer = copy.deepcopy(layer).to(memory_format=memory_format)  # type: ignore[call-overload]
    x = torch.randn(2, 2, 5, 6).contiguous(memory_format=memory_format)
    with torch.no_grad():
        expected = layer(x)

        # As where averaged weights, which begin as a copy, are swapped in.
        replaced = layer.weight.data
        layer.weight.data = replaced.clone()
        replaced.zero_()

        assert_close(layer(x), expected, rtol=0, atol=0)


def test_a_remembered_map_is_not_used_where_gradients_are_needed() -> None:
    layer = CoordConv2d(2, 3, 2)
    x = torch.randn(2, 2, 5, 6)
    with torch.inference_mode():
        layer(x)

    layer(x).sum().backward()

    assert layer.weight.grad is not None
    expected = coordinate_grid(5, 6).unfold(2, 2, 1).unfold(3, 2, 1).sum(dim=(2, 3)) * len(x)
    assert_close(layer.weight.grad[:, 2:], expected.expand(3, -1, -1, -1))


@PARTS
def test_a_frozen_layer_passes_gradients_on(at_once: int) -> None:
    layer = CoordConv2d(2, 3, 2).requires_grad_(False)
    x = torch.randn(4, 2, 5, 6, requires_grad=True)
    with samples_at_once(at_once):
        with torch.inference_mode():
            layer(x)

        layer(x).sum().backward()

    (expected,) = torch.autograd.grad(nn.functional.conv2d(x, layer.weight[:, :2]).sum(), x)
    assert_close(x.grad, expected)


@PARTS
@pytest.mark.parametrize("ours", [CoordConv2d, CoordConvTranspose2d])
def test_gradients_of_a_weight_that_has_changed_since_are_refused(
    ours: type[Any], at_once: int
) -> None:
    layer, x = ours(2, 3, 2), torch.randn(4, 2, 5, 6, requires_grad=True)
    with samples_at_once(at_once):
        y = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)

    with pytest.raises(RuntimeError, match="has been modified inplace"):
        y.sum().backward()


@EVERY_LAYER
def test_layers_can_be_mapped_over_any_axis(ours: type[Any], textbook: type[nn.Module]) -> None:
    layer = ours(2, 3, 2)
    x = torch.randn(4, 5, 2, *range(5, 5 + ours.axes))

    assert_close(
        torch.vmap(layer, in_dims=1)(x), torch.stack([layer(part) for part in x.unbind(1)])
    )


def test_places_can_be_mapped_over_samples() -> None:
    layer = CoordConv2d(2, 3, 2)
    x, origin = torch.randn(4, 2, 5, 6), torch.randn(4, 2)

    def one(x: Tensor, origin: Tensor) -> Tensor:
        y: Tensor = layer(x.unsqueeze(0), origin=origin.unsqueeze(0))
        return y.squeeze(0)

    assert_close(torch.vmap(one)(x, origin), layer(x, origin=origin))


@EVERY_LAYER
def test_the_input_has_the_name_that_torch_gives_it(
    ours: type[Any], textbook: type[nn.Module]
) -> None:
    layer, x = ours(2, 3, 2), torch.randn(2, 2, *range(5, 5 + ours.axes))
    assert torch.equal(layer(input=x), layer(x))


def test_tiny_coordinates_are_exact() -> None:
    tiny = CoordinateSystem(anchor="centers", origin=0.0, extent=1e-12)
    layer = CoordConv2d(1, 2, 3, padding=1, bias=False, system=tiny).double()
    with torch.no_grad():
        layer.weight[:, 1:] *= 1e12
        x = torch.zeros(1, 1, 64, 65, dtype=torch.double)

        got = layer(x)

        grid = coordinate_grid(64, 65, system=tiny, dtype=torch.double)
        assert_close(got, nn.functional.conv2d(grid, layer.weight[:, 1:], padding=1))


def test_remembered_maps_stay_out_of_copies_pickles_and_state() -> None:
    layer = CoordConv2d(2, 3, 2)
    sizes = len(pickle.dumps(layer)), layer.state_dict().keys()
    with torch.no_grad():
        expected = layer(torch.ones(1, 2, 99, 99))

    assert (len(pickle.dumps(layer)), layer.state_dict().keys()) == sizes
    for copied in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(torch.ones(1, 2, 99, 99)), expected)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    layer.load_state_dict(torch.load(file, weights_only=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_of_a_compiled_layer_has_weights_of_its_own(
    copied: Callable[[CoordConv2d], CoordConv2d],
) -> None:
    layer = CoordConv2d(2, 3, 2)
    layer.compile(backend="eager")
    x = torch.randn(2, 2, 5, 6)
    expected = layer(x)

    other = copied(layer)

    assert torch.equal(other(x), expected)
    with torch.no_grad():
        other.weight.zero_()
    assert torch.equal(layer(x), expected)
    assert not torch.equal(other(x), expected)


@pytest.mark.parametrize("learns", [False, True])
def test_a_layer_that_ran_without_values_has_its_coordinates_afterwards(learns: bool) -> None:
    layer = CoordConv2d(2, 3, 2)
    x = torch.randn(2, 2, 5, 6)
    with torch.set_grad_enabled(learns):
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert layer(torch.randn(2, 2, 5, 6)).shape == (2, 3, 4, 5)
        traced = make_fx(layer, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x)

        assert torch.equal(layer(x), copy.deepcopy(layer)(x))
        assert_close(traced(x), layer(x))


@pytest.mark.parametrize("layer", [CoordConv2d(2, 2, 1), CoordBias(2)], ids=["conv", "bias"])
def test_places_of_samples_may_be_without_values(layer: nn.Module) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, origin, extent = torch.randn(3, 2, 5, 6), torch.zeros(3, 2), torch.ones(3, 2)
        assert layer(x, origin=origin, extent=extent).shape == (3, 2, 5, 6)


def test_remembered_maps_do_not_pile_up_over_sizes() -> None:
    layer = CoordConv2d(1, 1, 1)
    with torch.no_grad():
        for width in range(1, 40):
            layer(torch.zeros(1, 1, 3, width))

    assert layer._remembered is not None
    assert len(layer._remembered.maps) == 39 % 8  # eight are forgotten at a time
    assert len(layer._bases) == 39 % 8


def test_remembered_maps_stay_few_where_they_are_large() -> None:
    layer = CoordConv2d(1, 64, 1)  # 2 MiB a map

    with torch.no_grad():
        for width in range(128, 128 + 7):
            layer(torch.zeros(1, 1, 64, width))
        assert layer._remembered is not None
        assert len(layer._remembered.maps) == 7
        for width in range(128, 128 + 5):
            layer(torch.zeros(1, 1, 256, width))  # of 8 MiB
        assert layer._remembered is not None
        assert len(layer._remembered.maps) == 1


def test_a_layer_that_learns_forgets_its_maps() -> None:
    layer = CoordConv2d(1, 2, 1)
    with torch.no_grad():
        layer(torch.zeros(1, 1, 3, 4))
    assert layer._remembered is not None

    layer(torch.zeros(1, 1, 3, 4))

    assert layer._remembered is None


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (CoordConv1d(1, 1, 4096), (4150,)),  # few outputs, many taps
        (CoordConv2d(1, 1, 64), (68, 67)),
        (CoordConv1d(1, 1, 4096), (5000,)),  # many of both
    ],
)
def test_a_kernel_of_many_taps_costs_no_square_of_them(layer: Any, size: tuple[int, ...]) -> None:
    x = torch.randn(1, 1, *size)
    wide = torch.cat([x, layer.coordinate_grid(*size)], dim=1)
    by_definition = (F.conv1d, F.conv2d)[len(size) - 1](wide, layer.weight, layer.bias)
    with mock.patch.object(torch, "eye", side_effect=AssertionError("a kernel for each tap")):
        assert_close(layer(x), by_definition, rtol=1e-4, atol=1e-4)
    assert list(layer._bases.values()) == [None]


def test_coordinates_of_very_different_sizes_are_exact_each() -> None:
    system = CoordinateSystem(origin=(0.0, 0.0), extent=(1e6, 1e-6))
    layer = CoordConv2d(
        4, 8, 8, stride=2, padding=(3, 0), padding_mode="circular", system=system
    ).double()
    x = torch.randn(2, 4, 44, 44).double()
    y = layer(x)
    grid = layer.coordinate_grid(44, 44, dtype=torch.float64).expand(2, -1, -1, -1)
    wide = F.pad(torch.cat([x, grid], dim=1), (0, 0, 3, 3), mode="circular")
    by_definition = F.conv2d(wide, layer.weight, layer.bias, stride=2)
    ours, theirs = (
        torch.autograd.grad(out.sin().sum(), layer.weight, retain_graph=True)[0][:, 5]
        for out in (y, by_definition)
    )
    assert_close(ours, theirs, rtol=1e-4, atol=0)


def test_a_padding_that_was_put_on_a_layer_is_that_of_its_map() -> None:
    layer = CoordConv2d(2, 2, 3, padding=1, padding_mode="circular")
    x = torch.randn(1, 2, 5, 4)
    layer(x)
    layer._reversed_padding_repeated_twice = [2, 0, 2, 0]  # on one side, as of a causal model
    assert_close(layer(x), copy.deepcopy(layer)(x))


def test_layers_of_float64_run_on_meta() -> None:
    on_meta: dict[str, Any] = {"dtype": torch.float64, "device": "meta"}
    x = torch.empty(2, 3, 32, 31, **on_meta)
    assert CoordConv2d(3, 8, 7, **on_meta)(x).shape == (2, 8, 26, 25)
    assert CoordBias(3, **on_meta)(x).shape == x.shape


def test_threads_may_share_a_layer() -> None:
    layer = CoordConv2d(2, 3, 3, padding=1)
    inputs = [torch.randn(1, 2, 5 + i % 11, 7 + i % 13) for i in range(200)]
    with torch.no_grad():
        expected = [copy.deepcopy(layer)(x) for x in inputs]

    def act(x: Tensor) -> Tensor:
        with torch.no_grad():
            y: Tensor = layer(x)
            return y

    with ThreadPoolExecutor(8) as pool:
        for actual, wanted in zip(pool.map(act, inputs), expected, strict=True):
            assert_close(actual, wanted)


@pytest.mark.parametrize("needs_grad", [False, True], ids=["acting", "training"])
def test_a_large_map_is_convolved_and_a_small_one_multiplied_alike(needs_grad: bool) -> None:
    layer = CoordConv2d(1, 2, 3, padding=1)
    wide = nn.Conv2d(3, 2, 3, padding=1)
    wide.load_state_dict(layer.state_dict())
    with torch.set_grad_enabled(needs_grad):
        for size in ((120, 120), (121, 123)):  # on either side of 2^18 numbers
            x = torch.randn(1, 1, *size)
            assert_close(layer(x), wide(torch.cat([x, coordinate_grid(*size)], dim=1)))


@PARTS
@pytest.mark.parametrize("needs_grad", [False, True], ids=["acting", "training"])
def test_channels_last_is_kept(needs_grad: bool, at_once: int) -> None:
    layer = CoordConv2d(3, 8, 3)
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(5, 3, 9, 7)
    with torch.set_grad_enabled(needs_grad), samples_at_once(at_once):
        y = layer(x.contiguous(memory_format=torch.channels_last))

        assert y.is_contiguous(memory_format=torch.channels_last)
        assert_close(y, layer(x))


@pytest.mark.parametrize("large", [1, 2**20], ids=["large", "small"])
@PARTS
@LAYOUTS
def test_gradients_are_the_textbooks_in_either_layout(
    memory_format: torch.memory_format, at_once: int, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordrl.layers.base.LARGE_OUTPUT", large)
    layer = CoordConv2d(3, 8, 3, padding=1)
    textbook = Textbook(nn.Conv2d, 3, 8, axes=2, with_r=False, kernel_size=3, padding=1)
    textbook.convolution.load_state_dict(layer.state_dict())
    layer.to(memory_format=memory_format)  # type: ignore[call-overload]
    x = torch.randn(5, 3, 9, 7).contiguous(memory_format=memory_format)
    with samples_at_once(at_once):
        y = layer(x)
    weights = torch.randn_like(y)  # in the layout of y

    (y * weights).sum().backward()
    (textbook(x) * weights).sum().backward()

    assert y.is_contiguous(memory_format=memory_format)
    for ours, theirs in zip(layer.parameters(), textbook.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)


@LAYOUTS
@pytest.mark.parametrize(
    ("arguments", "factors"),
    [
        ({}, 2),
        ({"stride": 4, "system": CoordinateSystem(anchor="centers", frequencies=2)}, 2),
        ({"dilation": 2, "groups": 2}, 2),
        ({"with_r": True}, 1),
        ({"padding": 1}, 1),
        ({"padding": 1, "padding_mode": "circular"}, 1),
    ],
    ids=str,
)
def test_large_kernels_equal_the_concatenation_in_either_layout(
    arguments: dict[str, Any], factors: int, memory_format: torch.memory_format
) -> None:
    layer = CoordConv2d(4, 6, (8, 7), **arguments)
    layer.to(memory_format=memory_format)  # type: ignore[call-overload]
    x = torch.randn(3, 4, 27, 41).contiguous(memory_format=memory_format)
    grid = coordinate_grid(27, 41, with_r=layer.with_r, system=layer.system)
    given = layer(x, coords=grid.expand(3, -1, -1, -1))
    weights = torch.randn_like(given)
    (expected,) = torch.autograd.grad((given * weights).sum(), layer.weight)

    y = layer(x)
    (actual,) = torch.autograd.grad((y * weights).sum(), layer.weight)

    assert_close(y, given)
    assert_close(actual, expected, rtol=0, atol=2e-6 * expected.abs().max().item())
    assert [len(basis.factors) for basis in layer._bases.values() if basis] == [factors]


@PARTS
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_forward_mode_passes_the_tangent_of_a_channels_last_input_on(at_once: int) -> None:
    layer = CoordConv2d(3, 8, 3)
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, tangent = (
        torch.randn(5, 3, 9, 7).contiguous(memory_format=torch.channels_last) for _ in range(2)
    )
    with forward_ad.dual_level(), samples_at_once(at_once):
        y = layer(forward_ad.make_dual(x, tangent))  # type: ignore[no-untyped-call]
        passed_on = forward_ad.unpack_dual(y).tangent  # type: ignore[no-untyped-call]

        assert_close(passed_on, nn.functional.conv2d(tangent, layer.weight[:, :3]))


def root_mean_square(error: Tensor) -> float:
    return error.square().mean().sqrt().item()


def test_forward_mode_sees_the_tangent_of_a_bias() -> None:
    layer, x = CoordConv2d(2, 3, 2), torch.randn(4, 2, 5, 4)
    with forward_ad.dual_level(), samples_at_once(2):
        bias = forward_ad.make_dual(torch.zeros(3), torch.ones(3))  # type: ignore[no-untyped-call]
        y = torch.func.functional_call(layer, {"bias": bias}, (x,))
        tangent = forward_ad.unpack_dual(y).tangent  # type: ignore[no-untyped-call]
    assert_close(tangent, torch.ones(4, 3, 4, 3))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_many_tangents_at_once_are_the_jacobian(layout: torch.memory_format) -> None:
    layer = CoordConv2d(2, 3, 2).double()
    x = torch.randn(2, 2, 4, 3).double().contiguous(memory_format=layout)
    jacobian: Any = torch.autograd.functional.jacobian

    def summed(x: Tensor) -> Any:
        return layer(x).square().sum(dim=(2, 3))

    forward = jacobian(summed, x, strategy="forward-mode", vectorize=True)
    assert_close(forward, jacobian(summed, x))


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16 layer"])
@pytest.mark.parametrize("rows", [2, 129], ids=["multiplied", "convolved"])
def test_bfloat16_tells_more_columns_apart_than_concatenation_does(
    rows: int, autocast: bool
) -> None:
    torch.manual_seed(0)
    layer = CoordConv2d(1, 16, 1)
    textbook = Textbook(nn.Conv2d, 1, 16, axes=2, with_r=False, kernel_size=1)
    textbook.convolution.load_state_dict(layer.state_dict())
    x = torch.zeros(1, 1, rows, 1024)
    exact = textbook.double()(x.double())

    dtype = torch.float32 if autocast else torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
        ours = layer.to(dtype)(x.to(dtype))
        theirs = textbook.to(dtype)(x.to(dtype))

    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert root_mean_square(ours - exact) < root_mean_square(theirs - exact)


@PARTS
@LAYOUTS
def test_autocast_trains_with_gradients_of_the_parameters_type(
    memory_format: torch.memory_format, at_once: int
) -> None:
    layer = CoordConv2d(2, 3, 3)
    layer.to(memory_format=memory_format)  # type: ignore[call-overload]
    x = torch.randn(8, 2, 9, 9).contiguous(memory_format=memory_format)
    layer(x).square().mean().backward()
    expected = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()

    with torch.autocast("cpu", torch.bfloat16), samples_at_once(at_once):
        y = layer(x)
        loss = y.square().mean()
    loss.backward()

    assert y.dtype == torch.bfloat16

    for parameter, wanted in zip(layer.parameters(), expected, strict=True):
        assert_close(parameter.grad, wanted, rtol=0.05, atol=0.02)


@PARTS
def test_autocast_leaves_a_layer_of_float64_as_it_is(at_once: int) -> None:
    layer = CoordConv2d(2, 3, 3, dtype=torch.float64)
    x = torch.randn(5, 2, 9, 9, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16), samples_at_once(at_once):
        y = layer(x)

    assert_close(y, layer(x))


def test_compiles_into_one_graph() -> None:
    layer = CoordConv2d(2, 3, 3, stride=2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 2, 9, 8)

    y = compiled(x)
    y.square().sum().backward()
    gradient = layer.weight.grad
    layer.zero_grad()
    layer(x).square().sum().backward()

    assert_close(y, layer(x))
    assert_close(gradient, layer.weight.grad)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert_close(compiled(x), layer(x))


class Placed(nn.Module):
    """Layers whose coordinates are those of a part of a larger whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = CoordConv2d(2, 4, 3)
        self.bias = CoordBias(4)
        self.up = CoordConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bias(self.conv(x, origin=(1, 2), extent=(20, 30)), origin=1)
        up: Tensor = self.up(output_size=[15, 12], origin=2, input=y)
        return up


def test_traces_into_calls_of_whole_layers_as_those_of_torch_do() -> None:
    model = Placed()
    nn.init.normal_(model.bias.weight)

    traced = torch.fx.symbolic_trace(model)

    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert calls == ["conv", "bias", "up"]
    assert all(node.op in ("placeholder", "call_module", "output") for node in traced.graph.nodes)
    x = torch.randn(3, 2, 9, 8)
    assert_close(traced(x), model(x))


class Doubling(CoordConv2d):
    def forward(self, input: Tensor, **place: Any) -> Tensor:
        return super().forward(2 * input, **place)


def test_tracing_notes_hooks_and_the_forward_of_a_subclass_down_once() -> None:
    bias = CoordBias(3)
    nn.init.normal_(bias.weight)
    model = nn.Sequential(Doubling(2, 3, 3, bias=False), bias)
    for layer in model:
        layer.register_forward_pre_hook(lambda _, arguments: (3 * arguments[0],))
        layer.register_forward_hook(lambda *what: 10 * what[-1])

    traced = torch.fx.symbolic_trace(model)

    x = torch.randn(2, 2, 6, 5)
    assert_close(traced(x), model(x))
    assert [node.op for node in traced.graph.nodes] == [
        *("placeholder", "call_module", "call_module", "output"),
    ]


@pytest.mark.parametrize(
    "layer", [CoordConv2d(2, 3, 3), CoordConvTranspose2d(2, 3, 3), CoordBias(2)]
)
def test_a_layer_that_is_traced_alone_says_what_to_trace(layer: nn.Module) -> None:
    name = type(layer).__name__
    with pytest.raises(
        ValueError, match=rf"expects {name} to be part of .* nn.Sequential\(layer\)"
    ):
        torch.fx.symbolic_trace(layer)


def assert_compiles_for_any_size(layer: nn.Module, batch: int = 4, **options: Any) -> None:
    """Compile once, for all sizes, and compare values and gradients at two of them."""
    torch._dynamo.reset()  # another size seen before would make a graph of fixed size dynamic
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, **options)
    for size in ((9, 8), (6, 11)):
        x = torch.randn(batch, 2, *size)
        layer.zero_grad()
        y = compiled(x)
        y.square().sum().backward()
        gradients = [parameter.grad for parameter in layer.parameters()]
        layer.zero_grad()
        expected = layer(x)
        expected.square().sum().backward()

        assert_close(y, expected)
        for gradient, parameter in zip(gradients, layer.parameters(), strict=True):
            assert_close(gradient, parameter.grad)
        with torch.no_grad():
            assert_close(compiled(x), layer(x))


class Cropped(nn.Module):
    """Each sample is a crop from another place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = CoordConv2d(2, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        placed: Tensor = self.layer(x, origin=x.mean(dim=(2, 3)), extent=(1.0, 2.0))
        return placed


# Of 2, batch and axes are one number to a compiler.
@pytest.mark.parametrize("batch", [2, 4])
def test_compiles_for_any_size_with_given_places(batch: int) -> None:
    assert_compiles_for_any_size(Cropped(), batch, backend="aot_eager")


def test_compiles_for_any_size() -> None:
    system = CoordinateSystem(anchor="centers", origin=0.5)
    layer = CoordConv2d(2, 4, 3, stride=2, groups=2, with_r=True, system=system)
    assert_compiles_for_any_size(layer, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: CoordConv2d(2, 4, 3, stride=2, with_r=True),
        lambda: CoordConvTranspose2d(2, 4, 3, stride=2, with_r=True),
        Cropped,
    ],
    ids=["forward", "transposed", "given places"],
)
def test_compiles_for_any_size_with_inductor(make: Callable[[], nn.Module]) -> None:
    assert_compiles_for_any_size(make())


@pytest.mark.slow
# Inductor builds its own operators by means that torch deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@EVERY_LAYER
def test_compiles_with_inductor(ours: type[nn.Module], textbook: type[nn.Module]) -> None:
    torch._dynamo.reset()
    layer = ours(2, 3, 3, stride=2, with_r=True)
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.randn(4, 2, *[9, 8, 7][: int(ours.__name__[-2])])

    y = compiled(x)
    y.square().sum().backward()
    gradients = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    layer(x).square().sum().backward()

    assert_close(y, layer(x))
    for gradient, parameter in zip(gradients, layer.parameters(), strict=True):
        assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert_close(compiled(x), layer(x))


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel_trains_it() -> None:
    layer = CoordConv2d(2, 3, 3)
    alone = copy.deepcopy(layer)
    x = torch.randn(4, 2, 9, 8)

    DistributedDataParallel(layer)(x).square().sum().backward()
    alone(x).square().sum().backward()

    assert_close(layer.weight.grad, alone.weight.grad)


def test_batch_norm_folds_into_it() -> None:
    layer, norm = CoordConv2d(2, 3, 3), nn.BatchNorm2d(3)
    norm(torch.randn(99, 3, 4, 4) * 3 + 1)
    norm.eval()
    x = torch.randn(4, 2, 9, 8)

    assert_close(fuse_conv_bn_eval(layer.eval(), norm)(x), norm(layer(x)))


def test_weight_norm_normalizes_the_textbook_weight() -> None:
    layer = parametrizations.weight_norm(CoordConv2d(2, 3, 3))
    wide = nn.Conv2d(4, 3, 3)
    wide.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    x = torch.randn(4, 2, 9, 8)

    y = layer(x)
    y.sum().backward()

    assert_close(y, wide(torch.cat([x, coordinate_grid(9, 8).expand(4, -1, -1, -1)], dim=1)))
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("arguments", [{}, {"origin": 0.5}], ids=["own", "given"])
def test_spectral_norm_iterates_as_often_as_for_the_textbook_weight(
    arguments: dict[str, Any],
) -> None:
    layer, wide = CoordConv2d(2, 8, 3), nn.Conv2d(4, 8, 3)
    wide.load_state_dict(layer.state_dict())
    for normalized in (layer, wide):
        torch.manual_seed(0)
        parametrizations.spectral_norm(normalized)
    x = torch.randn(4, 2, 9, 8)

    layer(x, **arguments)
    wide(torch.cat([x, x], dim=1))

    for ours, theirs in zip(layer.buffers(), wide.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def to_8_bits(values: Tensor) -> Tensor:
    """Round as a tensor of type int8 with one scale would."""
    scale = values.abs().max() / 127
    return (values / scale).round() * scale


def test_coordinates_do_not_widen_the_range_of_quantized_inputs() -> None:
    torch.manual_seed(0)
    layer = CoordConv2d(4, 16, 3)
    x = torch.rand(8, 4, 20, 20) / 4
    grid = coordinate_grid(20, 20).expand(8, -1, -1, -1)
    with torch.no_grad():
        exact = layer(x)
        ours = layer(to_8_bits(x))
        theirs = nn.functional.conv2d(
            to_8_bits(torch.cat([x, grid], dim=1)), layer.weight, layer.bias
        )

    assert root_mean_square(ours - exact) < root_mean_square(theirs - exact) / 2


@pytest.mark.parametrize(
    "shape", [(2, 4, 7, 9), (4, 7, 9), (7, 9), (1, 2, 3, 7, 9)], ids=["4", "4", "flat", "5-D"]
)
def test_a_wrong_shape_is_named_beside_the_right_one(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"CoordConv2d expects .* \(N, 3, H, W\) or .*, got \("):
        CoordConv2d(3, 5, 3)(torch.zeros(shape))


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ValueError, match=r"CoordConv2d expects a pixel or more on each axis, got"):
        CoordConv2d(3, 5, 1)(torch.zeros(2, 3, 0, 9))
    with pytest.raises(TypeError, match=r"floating-point input, got torch.complex64$"):
        CoordConv2d(3, 5, 1)(torch.zeros(2, 3, 8, 9, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"floating-point input, got torch.uint8; use x.float\(\)"):
        CoordConv2d(3, 5, 1)(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="expects stride as one number or 2, got"):
        CoordConv2d(3, 5, 1, stride=(1, 2, 3))
    with pytest.raises(ValueError, match="in_channels must be divisible by groups"):
        CoordConv2d(3, 4, 1, groups=2)


def test_a_system_of_other_axes_is_refused_when_the_layer_is_made() -> None:
    angles, three = CoordinateSystem(with_angle=True), CoordinateSystem(extent=(1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="there is no angle on a single axis; leave with_angle"):
        CoordConv1d(2, 3, 3, system=angles)
    for make in (CoordConv2d, CoordConvTranspose2d):
        with pytest.raises(ValueError, match=r"extent must be one number or 2, in the order x, y"):
            make(2, 3, 3, system=three)
    with pytest.raises(TypeError, match=r"expects system to be a CoordinateSystem, got \{'anchor"):
        CoordConv2d(2, 3, 3, system={"anchor": "centers"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"CoordBias expects system to be .*, got 'paper'"):
        CoordBias(3, system="paper")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"extent must be one number or 2"):
        CoordBias(3, system=three)


def test_the_angle_to_the_left_is_one_on_every_runtime() -> None:
    system = CoordinateSystem(with_angle=True)
    angle = coordinate_grid(3, 5, system=system)[0, 2]
    assert_close(angle[1], torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]))
    backwards = CoordinateSystem(with_angle=True, extent=(2.0, -2.0), origin=(-1.0, 1.0))
    assert coordinate_grid(3, 3, system=backwards)[0, 2, 1, 0] == 1
    origin = torch.tensor([[-1.0, -1.0]], requires_grad=True)  # what places a crop can be learned
    coordinate_grid(3, 3, system=system, origin=origin)[0, 2, 1, 0].backward()  # type: ignore[no-untyped-call]
    assert_close(origin.grad, torch.tensor([[0.0, -1 / torch.pi]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"origin": "a"}, "origin must be one number, or one for each axis, got 'a'"),
        ({"origin": (0, "a")}, r"origin must be one number, or one for each axis, got \(0, 'a'\)"),
        ({"extent": None}, "extent must be one number, or one for each axis, got None"),
        ({"keep_aspect": "no"}, "keep_aspect must be True or False, got 'no'"),
        ({"with_angle": 2}, "with_angle must be True or False, got 2"),
        ({"frequencies": True}, "frequencies must be a whole number, 0 or more, got True"),
    ],
)
def test_a_value_of_another_kind_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoordinateSystem(**arguments)


def test_a_system_of_lists_is_that_of_tuples() -> None:
    lists = CoordinateSystem(origin=[0.0, 1.0], extent=[2.0, 3.0])  # type: ignore[arg-type]
    tuples = CoordinateSystem(origin=(0.0, 1.0), extent=(2.0, 3.0))
    assert lists == tuples
    assert hash(lists) == hash(tuples)


def test_a_layer_is_described_with_its_coordinates() -> None:
    assert repr(CoordBias(3)) == "CoordBias(3, axes=2, with_r=False)"
    conv = CoordConv1d(2, 5, 3, with_r=True)
    assert repr(conv) == "CoordConv1d(2, 5, kernel_size=(3,), stride=(1,), with_r=True)"
    system = CoordinateSystem(origin=0.0)
    for layer in (CoordConv2d(2, 3, 1, system=system), CoordBias(3, system=system)):
        assert repr(layer).endswith(f", with_r=False, system={system})")


def test_with_r_is_true_or_false() -> None:
    with pytest.raises(TypeError, match="CoordConv2d expects with_r to be True or False, got 2"):
        CoordConv2d(3, 4, 3, with_r=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "total", [lambda y: y.float().sum(), lambda y: y.sum()], ids=["one by one", "expanded"]
)
def test_gradients_of_16_bits_are_summed_over_the_batch_in_32(
    total: Callable[[Tensor], Any],
) -> None:
    # bfloat16 has no 257: rounded before the pixels are added up, the gradient would be of 256.
    conv = CoordConv2d(2, 1, 1, system=CoordinateSystem(origin=0.0, extent=1.0))
    x = torch.zeros(257, 2, 4, 6).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    total(y).backward()
    assert conv.weight.grad is not None
    grid = conv.coordinate_grid(4, 6)[0]
    assert_close(conv.weight.grad[0, 2:, 0, 0], 257 * grid.sum(dim=(1, 2)))


def test_a_map_that_is_nearly_a_product_is_none() -> None:
    # Seen from afar, r hardly bends, so that its shifts are nearly combinations of each other.
    system = CoordinateSystem(origin=-0.2, extent=0.4, r_center=1.0)
    conv = CoordConv2d(1, 2, 5, with_r=True, system=system, dtype=torch.float64)
    x = torch.randn(1, 1, 24, 26, dtype=torch.float64)
    wide = torch.cat([x, conv.coordinate_grid(24, 26, dtype=x.dtype)], dim=1)
    assert_close(conv(x), F.conv2d(wide, conv.weight, conv.bias), rtol=0, atol=1e-10)


def test_one_origin_serves_the_extents_of_all_samples() -> None:
    origin, extent = torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 2.0], [0.5, 3.0]])
    both = coordinate_grid(3, 4, origin=origin.expand(2, -1), extent=extent)
    assert torch.equal(coordinate_grid(3, 4, origin=origin, extent=extent), both)
    assert coordinate_grid(3, 4, origin=extent, extent=origin + 2).shape == (2, 2, 3, 4)


def test_coordinates_given_to_a_layer_of_16_bits_are_as_fine_as_its_own() -> None:
    conv = CoordConv2d(1, 2, 3, dtype=torch.bfloat16)
    x = torch.randn(2, 1, 5, 300, dtype=torch.bfloat16)
    for dtype in (torch.float32, torch.float64):
        coords = conv.coordinate_grid(5, 300, dtype=dtype)
        assert_close(conv(x, coords=coords), conv(x), rtol=0, atol=0)


@pytest.mark.parametrize("make", [CoordConv2d, CoordConvTranspose2d])
def test_weights_of_other_coordinates_are_not_loaded_in_silence(
    make: Callable[..., nn.Module],
) -> None:
    centers = CoordinateSystem(anchor="centers", extent=(1.0, 3.0))
    saved = nn.Sequential(make(3, 2, 3, system=centers), CoordBias(2, system=centers))
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    same = nn.Sequential(make(3, 2, 3, system=centers), CoordBias(2, system=centers))
    papers = nn.Sequential(make(3, 2, 3), CoordBias(2))

    assert list(state) == ["0.weight", "0.bias", "1.weight"]
    assert state._metadata["0"].keys() == {"version", "coordinates"}
    same.load_state_dict(state)
    assert_close(same[0].weight, saved[0].weight)
    with pytest.warns(UserWarning, match="weights of ") as told:
        papers.load_state_dict(state)
    assert [str(warning.message).partition(" were ")[0] for warning in told] == [
        "the weights of 0",
        "the weights of 1",
    ]
    assert "with CoordinateSystem(anchor='centers', extent=(1.0, 3.0)), and the layer has the" in (
        str(told[0].message)
    )
    papers.load_state_dict(dict(state))  # of a file that says nothing
