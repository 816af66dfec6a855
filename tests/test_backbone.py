"""The convolutional stack: its sizes, its settings, and what coordinates change in it."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from coordrl.backbone import (
    NATURE_DQN,
    ConvBackbone,
    ConvSpec,
    Coords,
    conv_specs,
    coordinate_system,
    count_parameters,
    initialize_he_normal,
    pointwise,
)
from coordrl.convert import to_coordconv
from coordrl.layers import CoordConv2d, CoordConvTranspose2d, CoordinateSystem

DOWN = ConvSpec(6, 5, stride=2, padding=2, norm="batch", activation="leaky_relu")
UP = ConvSpec(5, 3, stride=2, padding=1, transposed=True, output_padding=1, activation="none")
SAME = ConvSpec(4, 3, padding="same", activation="tanh", pool=2)


@pytest.mark.parametrize("coords", ["none", "first", "all"])
@pytest.mark.parametrize(
    "specs",
    [NATURE_DQN, (DOWN,), (DOWN, UP), (SAME, UP, DOWN), (dataclasses.replace(UP, pool=2),)],
    ids=["nature", "down", "up", "mix", "pooled"],
)
def test_out_size_is_that_of_the_output(specs: tuple[ConvSpec, ...], coords: Coords) -> None:
    backbone = ConvBackbone(3, specs, coords)

    y = backbone(torch.randn(2, 3, 84, 61))

    assert y.shape == (2, backbone.out_channels, *backbone.out_size(84, 61))


def test_none_is_the_stack_one_would_write_by_hand() -> None:
    torch.manual_seed(3)
    backbone = ConvBackbone(3, (DOWN, UP, SAME))
    torch.manual_seed(3)
    by_hand = nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2, padding=2),
        nn.BatchNorm2d(6),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(6, 5, 3, stride=2, padding=1, output_padding=1),
        nn.Conv2d(5, 4, 3, padding="same"),
        nn.Tanh(),
        nn.MaxPool2d(2),
    )
    x = torch.randn(2, 3, 20, 14)

    assert backbone.state_dict().keys() == by_hand.state_dict().keys()
    assert torch.equal(backbone(x), by_hand(x))


@pytest.mark.parametrize(("coords", "with_coords"), [("none", 0), ("first", 1), ("all", 3)])
def test_coords_names_the_layers_that_see_coordinates(coords: Coords, with_coords: int) -> None:
    backbone = ConvBackbone(3, (DOWN, UP, SAME), coords)

    layers = [isinstance(m, CoordConv2d | CoordConvTranspose2d) for m in backbone]

    assert sum(layers) == with_coords
    assert layers[0] == (with_coords > 0)


@pytest.mark.parametrize(("with_r", "more"), [(False, 2), (True, 3)])
def test_coordinates_add_their_weights_only(with_r: bool, more: int) -> None:
    plain = sum(p.numel() for p in ConvBackbone(4).parameters())

    wide = sum(p.numel() for p in ConvBackbone(4, coords="all", with_r=with_r).parameters())

    assert wide - plain == more * (8 * 8 * 32 + 4 * 4 * 64 + 3 * 3 * 64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(("coords", "with_r"), [("none", False), ("all", False), ("all", True)])
def test_a_convolution_has_the_weights_that_its_spec_says(
    coords: Coords, with_r: bool, transposed: bool, bias: bool
) -> None:
    spec = ConvSpec(5, 3, bias=bias, transposed=transposed, activation="none")

    (layer,) = ConvBackbone(4, [spec], coords, with_r)

    channels = 4 if coords == "none" else 7 if with_r else 6
    shape = (channels, 5, 3, 3) if transposed else (5, channels, 3, 3)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "weight": shape,
        **({"bias": (5,)} if bias else {}),
    }


@pytest.mark.parametrize(
    "grow",
    [
        lambda backbone, module: backbone.append(module),
        lambda backbone, module: backbone.insert(0, module),
        lambda backbone, module: backbone.extend([module]),
        lambda backbone, module: backbone.__iadd__(nn.Sequential(module)),
    ],
    ids=["append", "insert", "extend", "+="],
)
def test_modules_beyond_the_specs_are_refused(
    grow: Callable[[ConvBackbone, nn.Module], object],
) -> None:
    backbone = ConvBackbone(3, (DOWN,))
    with pytest.raises(TypeError, match="takes no Conv2d; add a ConvSpec, or put both into an nn"):
        grow(backbone, nn.Conv2d(6, 2, 3, stride=2))

    assert len(backbone) == 3
    assert len(backbone + nn.Sequential(nn.Conv2d(6, 2, 3))) == 4  # a plain nn.Sequential


def test_only_what_is_trained_is_counted() -> None:
    backbone = ConvBackbone(4, [ConvSpec(5, 3), ConvSpec(2, 3)])
    assert count_parameters(backbone) == (4 * 9 + 1) * 5 + (5 * 9 + 1) * 2
    backbone[0].requires_grad_(False)
    assert count_parameters(backbone) == (5 * 9 + 1) * 2


def test_without_coordinate_weights_all_is_none() -> None:
    plain, wide = ConvBackbone(3, (DOWN, UP, SAME)), ConvBackbone(3, (DOWN, UP, SAME), "all")
    with torch.no_grad():
        for ours, theirs in zip(wide, plain, strict=True):
            if isinstance(theirs, nn.Conv2d | nn.ConvTranspose2d):
                assert isinstance(ours, CoordConv2d | CoordConvTranspose2d)
                channels = 0 if ours.transposed else 1
                image, coordinates = torch.split(ours.weight, [ours.in_channels, 2], dim=channels)
                image.copy_(theirs.weight)
                coordinates.zero_()
                ours.bias = theirs.bias
    x = torch.randn(2, 3, 20, 14)

    assert_close(wide(x), plain(x))


def test_small_coordinates_are_the_papers_with_small_weights() -> None:
    paper = ConvBackbone(3, (DOWN, UP, SAME), "all", with_r=True)
    small = ConvBackbone(3, (DOWN, UP, SAME), "all", True, {"origin": -0.02, "extent": 0.04})
    small.load_state_dict({**paper.state_dict()})  # without the note that they are the paper's
    x = torch.randn(2, 3, 20, 14)
    assert not torch.allclose(small(x), paper(x))

    with torch.no_grad():
        for layer in paper:
            if isinstance(layer, CoordConv2d | CoordConvTranspose2d):
                channels = 0 if layer.transposed else 1
                layer.weight.narrow(channels, layer.in_channels, layer.num_coords).mul_(0.02)

    assert_close(small(x), paper(x))


def test_a_system_may_be_a_table_and_is_idle_without_coordinates() -> None:
    system = CoordinateSystem("centers", origin=(0.0, -1.0), frequencies=2)
    table = dataclasses.asdict(system)
    assert coordinate_system(table) == coordinate_system(system) == system
    assert coordinate_system({}) == CoordinateSystem()
    assert count_parameters(ConvBackbone(4, system=system)) == count_parameters(ConvBackbone(4))


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ("paper", "system must be a CoordinateSystem or its fields, got 'paper'"),
        ({"orign": 0}, r"system has an unknown key 'orign'; did you mean 'origin'\?"),
        ({"extent": 0.0}, "extent must be finite and not 0, got 0.0"),
    ],
)
def test_a_wrong_system_is_named(system: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvBackbone(3, coords="all", system=system)


def test_channels_last_stays_channels_last() -> None:
    backbone = ConvBackbone(3, coords="all")
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(2, 3, 84, 84).contiguous(memory_format=torch.channels_last)

    y = backbone(x)

    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, backbone(x.contiguous()))


def test_specs_may_be_tables_lists_or_specs() -> None:
    tables = [dataclasses.asdict(spec) for spec in NATURE_DQN]

    assert conv_specs(tables) == conv_specs(NATURE_DQN) == NATURE_DQN
    assert conv_specs([[32, 8, 4], NATURE_DQN[1], {"out_channels": 64}]) == NATURE_DQN


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "at least one convolution, got"),
        ("nature", "at least one convolution, got 'nature'"),
        (
            [{"out_channels": 3, "kernal_size": 3}],
            r"specs\[0\] has an unknown key 'kernal_size'; did",
        ),
        ([[3], {"kernel_size": 3}], r"specs\[1\] lacks out_channels"),
        ([{"out_channels": 3, 4: 5}], r"specs\[0\] has an unknown key 4; known are out_channels"),
        ([3], r"specs\[0\] must be a table or a list of numbers, got 3"),
        (["33"], r"specs\[0\] must be a table or a list of numbers, got '33'"),
        ([[*dataclasses.astuple(UP), 1]], r"specs\[0\] must be a table or a list of numbers, got"),
        ([[0]], r"specs\[0\]: ConvSpec.out_channels must be a whole number, 1 or more, got 0"),
        ([[3, 2.5]], "kernel_size must be a whole number, 1 or more, got 2.5"),
        ([[3, 3, True]], "stride must be a whole number, 1 or more, got True"),
        ([[3, 3, 1, "sane"]], "padding must be a whole number, 0 or more, got 'sane'"),
        ([[3, 3, 2, "same"]], 'padding="same" needs stride 1'),
        ([[3, 3, 1, "same", True]], 'padding="same" needs stride 1 and no transposition'),
        ([{"out_channels": 3, "output_padding": 1}], "belongs to transposed convolutions"),
        ([[3, 3, 2, 1, True, 2]], "is below the stride, got 2 with stride 2"),
        ([{"out_channels": 3, "norm": "layer"}], r"norm must be one of \('none', 'batch'\), got"),
        ([{"out_channels": 3, "activation": "gelu"}], "activation must be one of .*, got 'gelu'"),
    ],
)
def test_a_wrong_spec_is_named(specs: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvBackbone(3, specs)  # type: ignore[arg-type]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"coords must be one of .*, got 'some'"):
        ConvBackbone(3, coords="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="with_r=True needs coordinates"):
        ConvBackbone(3, with_r=True)
    for number in (0, True):
        with pytest.raises(ValueError, match=f"a whole number, 1 or more, got {number}"):
            ConvBackbone(number)


def test_an_image_that_is_too_small_names_the_convolution_it_ends_at() -> None:
    with pytest.raises(ValueError, match=r"24x84 pixels is too small: 1x9 .* convolution 2 \(3x3"):
        ConvBackbone(3).out_size(24, 84)


@pytest.mark.parametrize(
    ("coords", "with_r"),
    [("none", False), ("first", False), ("first", True)],
    ids=["none", "xy", "xyr"],
)
def test_pointwise_equals_the_convolutions_over_tiled_vectors(coords: Coords, with_r: bool) -> None:
    torch.manual_seed(0)
    last = ConvSpec(3, 1, padding="same", activation="none")
    specs = [ConvSpec(5, 1, bias=not with_r), ConvSpec(7, 1, bias=False), last]
    backbone = ConvBackbone(4, specs, coords, with_r).double()
    vectors = torch.randn(2, 4, dtype=torch.double, requires_grad=True)
    tiled = vectors[:, :, None, None].expand(-1, -1, 6, 9)

    pixels = pointwise(backbone, vectors, 6, 9)
    expected = backbone(tiled)

    assert_close(pixels.mT.reshape(2, 3, 6, 9), expected)
    weights = [vectors, *backbone.parameters()]
    upstream = torch.randn_like(expected)
    got = torch.autograd.grad((pixels.mT.reshape(2, 3, 6, 9) * upstream).sum(), weights)
    assert_close(got, torch.autograd.grad((expected * upstream).sum(), weights))
    for depth in (0, len(backbone) + 1):
        with pytest.raises(ValueError, match=f"depth must be between 1 and {len(backbone)}, got"):
            pointwise(backbone, vectors, 6, 9, depth=depth)
    first = pointwise(backbone, vectors, 6, 9, depth=2)
    assert_close(first.mT.reshape(2, 5, 6, 9), backbone[:2](tiled))


def test_pointwise_rounds_coordinates_as_the_layer_does() -> None:
    backbone = ConvBackbone(1, [ConvSpec(1, 1, activation="none")], "first")
    with torch.no_grad():
        backbone[0].weight.copy_(torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1))
        backbone[0].bias.fill_(1.0)
    vectors = torch.zeros(2, 1)
    tiled = vectors[:, :, None, None].expand(-1, -1, 1, 1024)
    with torch.autocast("cpu", torch.bfloat16):
        pixels, expected = pointwise(backbone, vectors, 1, 1024), backbone(tiled)
    assert torch.equal(pixels.mT.view_as(expected), expected)
    half = backbone.bfloat16()
    pixels, expected = (
        pointwise(half, vectors.bfloat16(), 1, 1024), half(tiled.bfloat16())
    )  # fmt: skip
    assert torch.equal(pixels.mT.view_as(expected), expected)


def test_pointwise_sees_the_coordinates_of_the_layers_system() -> None:
    backbone = ConvBackbone(2, [ConvSpec(4, 1), ConvSpec(3, 1)])
    to_coordconv(backbone, system=CoordinateSystem(anchor="centers"))
    nn.init.normal_(backbone[0].weight)
    vectors = torch.randn(5, 2)

    pixels = pointwise(backbone, vectors, 3, 4)

    tiled = vectors[:, :, None, None].expand(-1, -1, 3, 4)
    assert_close(pixels.mT.view(5, 3, 3, 4), backbone(tiled))


def test_a_slice_is_a_stack_of_the_same_layers() -> None:
    backbone = ConvBackbone(4, coords="all")
    some = backbone[2:4]
    assert type(some) is nn.Sequential
    assert [*some] == [backbone[2], backbone[3]]
    assert some.state_dict().keys() == {"2.weight", "2.bias"}  # as in the whole
    assert backbone[-1] is [*backbone][-1]


@pytest.mark.parametrize(
    "spec",
    [ConvSpec(4, 3), ConvSpec(4, 1, 2), ConvSpec(4, 1, norm="batch"), ConvSpec(4, 1, pool=2)],
)
def test_pointwise_refuses_what_looks_beyond_the_pixel(spec: ConvSpec) -> None:
    with pytest.raises(ValueError, match="pointwise needs plain 1x1 convolutions, got ConvSpec"):
        pointwise(ConvBackbone(2, [spec]), torch.zeros(1, 2), 8, 8)


@pytest.mark.parametrize(
    "make",
    [
        lambda specs: ConvBackbone(2, specs, coords="all"),
        lambda specs: to_coordconv(ConvBackbone(2, specs), "all"),
    ],
    ids=["made", "swapped"],
)
def test_pointwise_refuses_coordinates_in_all_layers(
    make: Callable[[list[ConvSpec]], ConvBackbone],
) -> None:
    backbone = make([ConvSpec(4, 1)] * 2)
    with pytest.raises(ValueError, match='coords="none" or coords="first", got "all"'):
        pointwise(backbone, torch.zeros(1, 2), 8, 8)


def test_initial_weights_are_truncated_he_normal() -> None:
    network = nn.Sequential(nn.Conv2d(50, 200, 3), nn.ConvTranspose2d(200, 50, 4))
    initialize_he_normal(network, torch.Generator().manual_seed(0))
    again = copy.deepcopy(network)
    initialize_he_normal(again, torch.Generator().manual_seed(0))
    assert_close(again.state_dict(), network.state_dict(), rtol=0, atol=0)

    for layer, fan_in in zip(network, (50 * 9, 50 * 16), strict=True):
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        weight = layer.weight.detach()
        assert_close(weight.std(), torch.tensor((2 / fan_in) ** 0.5), rtol=0.02, atol=0)
        assert weight.abs().max() <= 2 * (2 / fan_in) ** 0.5 / 0.8796
        assert layer.bias is not None
        assert not layer.bias.any()
