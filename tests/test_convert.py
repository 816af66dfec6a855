"""CoordConv put into models, taken out, examined, and loaded from other implementations."""

import copy
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from coordrl.convert import (
    PORTS,
    coordinate_report,
    from_coordconv,
    load_port,
    to_coordconv,
)
from coordrl.convert.report import LayerReport
from coordrl.coordinates.networks import CoordConvPainter
from coordrl.layers import CoordBias, CoordConv2d, CoordinateSystem, coordinate_grid

PLAIN: dict[str, Callable[[], nn.Module]] = {
    "1d": lambda: nn.Conv1d(2, 4, 3, stride=2, dilation=2, padding=1),
    "2d": lambda: nn.Conv2d(2, 4, (3, 2), padding="same", padding_mode="reflect", bias=False),
    "2d, groups": lambda: nn.Conv2d(2, 4, 3, groups=2),
    "3d": lambda: nn.Conv3d(2, 4, 2, dtype=torch.float64),
    "transposed 1d": lambda: nn.ConvTranspose1d(2, 4, 3, stride=2, output_padding=1),
    "transposed 2d, groups": lambda: nn.ConvTranspose2d(2, 4, 3, padding=1, groups=2),
    "transposed 3d": lambda: nn.ConvTranspose3d(2, 4, 2, bias=False),
}


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 2, 3, padding=1))
    )


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_a_swapped_layer_computes_the_same_bits_and_swaps_back(
    make: Callable[[], nn.Module],
) -> None:
    plain = make()
    axes = int(type(plain).__name__[-2])
    x = torch.randn(2, 2, *[6, 7, 8][:axes], dtype=next(plain.parameters()).dtype)
    expected = plain(x)

    wide = to_coordconv(plain, with_r=True)

    assert type(wide).__name__ == f"Coord{type(plain).__name__}"
    assert torch.equal(wide(x), expected)
    with torch.no_grad():
        assert torch.equal(wide(x), expected)
    back = from_coordconv(wide)
    assert type(back) is type(plain)
    assert repr(back) == repr(plain)
    assert torch.equal(back(x), expected)


@pytest.mark.parametrize(
    ("where", "swapped"),
    [
        ("first", ["0"]),
        ("all", ["0", "2.0"]),
        (lambda name, layer: layer.in_channels == 4, ["2.0"]),
        (lambda name, layer: name.startswith("2"), ["2.0"]),
    ],
    ids=["first", "all", "by layer", "by name"],
)
def test_where_chooses_the_layers(where: Any, swapped: list[str]) -> None:
    model = network()
    x = torch.randn(2, 3, 6, 7)
    expected = model(x)

    assert to_coordconv(model, where) is model

    assert [n for n, m in model.named_modules() if isinstance(m, CoordConv2d)] == swapped
    assert torch.equal(model(x), expected)


def test_swapped_coordinates_can_be_learned_and_are_then_kept() -> None:
    model = to_coordconv(network(), "all")
    x = torch.randn(2, 3, 6, 7)
    model(x).square().sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    learned = model(x)

    with pytest.raises(ValueError, match=r"layer '0' uses its coordinates: .* pass force=True"):
        from_coordconv(model)
    assert torch.equal(model(x), learned)

    assert not torch.allclose(from_coordconv(model, force=True)(x), learned)


def test_swapping_keeps_mode_frozenness_and_random_numbers() -> None:
    model = network().eval()
    model[0].requires_grad_(False)
    torch.manual_seed(0)

    to_coordconv(model, "all")

    assert not model[0].training
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


MODELS_OF_OTHERS = [
    *(
        ("timm", name)
        for name in (
            "resnet18", "efficientnet_b0", "mobilenetv3_small_100", "convnext_atto", "regnety_002",
            "dla34", "densenet121",
        )
    ),
    *(
        ("torchvision", name)
        for name in (
            "resnet18", "efficientnet_b0", "mobilenet_v3_small", "densenet121",
            "shufflenet_v2_x0_5", "squeezenet1_0", "convnext_tiny", "deeplabv3_mobilenet_v3_large",
        )
    ),
    *(("transformers", name) for name in ("ResNet", "ConvNext", "MobileNetV2", "RegNet", "ViT")),
]  # fmt: skip


def model_of_others(library: str, name: str) -> Any:
    if library == "timm":
        return pytest.importorskip("timm").create_model(name, pretrained=False)
    if library == "torchvision":
        no_weights = {"weights_backbone": None} if "deeplab" in name else {}
        return pytest.importorskip("torchvision.models").get_model(name, **no_weights)
    transformers = pytest.importorskip("transformers")
    sizes = {"image_size": 64, "num_hidden_layers": 2} if name == "ViT" else {}
    config = getattr(transformers, f"{name}Config")(**sizes)
    return getattr(transformers, f"{name}ForImageClassification")(config)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those libraries' own
@pytest.mark.parametrize("where", ["first", "all"])
@pytest.mark.parametrize(("library", "name"), MODELS_OF_OTHERS)
def test_models_of_other_libraries_compute_what_they_did(
    library: str, name: str, where: Any
) -> None:
    images = torch.rand(2, 3, 64, 64)

    def output() -> Any:
        result = model(images)
        return result["out"] if "deeplab" in name else getattr(result, "logits", result)

    model = model_of_others(library, name).eval()
    parameters = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        before = output()
        to_coordconv(model, where=where)
        assert torch.equal(output(), before)

    assert any(isinstance(layer, CoordConv2d) for layer in model.modules())
    from_coordconv(model)
    assert list(model.state_dict()) == list(parameters)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, parameters[name]), name


def test_what_is_swapped_already_is_passed_over() -> None:
    model = to_coordconv(network())
    first = model.get_submodule("0")

    to_coordconv(model, "all", with_r=True)

    assert model.get_submodule("0") is first
    with pytest.raises(ValueError, match="the model has no convolution to swap"):
        to_coordconv(model, "all")


class Own(CoordConv2d):
    """A layer of somebody else's."""


@pytest.mark.parametrize("make", [Own, lambda *a: parametrizations.weight_norm(CoordConv2d(*a))])
def test_layers_made_of_ours_are_passed_over_too(make: Callable[..., nn.Module]) -> None:
    model = nn.Sequential(make(3, 4, 3), nn.Conv2d(4, 2, 3))
    first = model[0]

    to_coordconv(model)

    assert model[0] is first
    assert type(model[1]) is CoordConv2d


def test_a_layer_that_is_used_twice_is_swapped_in_both_places() -> None:
    layer = nn.Conv2d(3, 3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer)

    to_coordconv(model)

    assert isinstance(model[0], CoordConv2d)
    assert model[2] is model[0]


class Standardized(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.conv2d(input, self.weight - self.weight.mean(), self.bias)


@pytest.mark.parametrize("conv", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_layer_that_was_given_another_weight_computes_what_it_did(conv: type[Any]) -> None:
    plain = conv(3, 8, 3)
    axis = 0 if plain.transposed else 1
    plain.weight = nn.Parameter(plain.weight.sum(axis, keepdim=True))  # gray in place of RGB
    x = torch.randn(2, 1, 9, 9)
    expected = plain(x)

    assert_close(to_coordconv(plain)(x), expected, rtol=0, atol=0)


def test_coordinates_that_are_weighed_down_are_not_lost_in_silence() -> None:
    layer = to_coordconv(nn.Conv2d(2, 3, 1))
    assert isinstance(layer, CoordConv2d)
    with torch.no_grad():
        layer.weight[:, 2:] = -1.0
    with pytest.raises(ValueError, match="the layer uses its coordinates"):
        from_coordconv(layer)


def test_weights_without_values_are_dropped_on_demand_only() -> None:
    layer = to_coordconv(nn.Conv2d(2, 3, 1, device="meta"))
    with pytest.raises(ValueError, match=r"the layer may use its coordinates: .* pass force=True"):
        from_coordconv(layer)
    plain = from_coordconv(layer, force=True)
    assert type(plain) is nn.Conv2d
    assert (plain.weight.shape, plain.weight.device.type) == ((3, 2, 1, 1), "meta")


def test_a_ports_weights_stay_the_callers() -> None:
    layer, stored = CoordConv2d(3, 4, 2), torch.randn(4, 5, 2, 2)
    before = stored.clone()
    for port in PORTS:
        shape = (2, 2, 5, 4) if PORTS[port].layout == "HWIO" else (4, 5, 2, 2)
        load_port(layer, port, stored.view(shape))
        nn.init.zeros_(layer.weight)
    assert torch.equal(stored, before)


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize(
    ("conv", "memory_format"),
    [
        (nn.Conv2d, torch.contiguous_format),
        (nn.Conv2d, torch.channels_last),
        (nn.ConvTranspose2d, torch.channels_last),
        (nn.Conv3d, torch.channels_last_3d),
    ],
)
def test_swapping_keeps_the_memory_layout(
    conv: type[Any], memory_format: torch.memory_format, kernel_size: int
) -> None:
    plain = conv(8, 8, kernel_size).to(memory_format=memory_format)
    x = torch.randn(2, 8, *range(5, 3 + plain.weight.ndim))
    strides = plain.weight.stride(), plain(x).stride()

    wide: Any = to_coordconv(plain)
    assert wide(x).stride() == strides[1]
    back: Any = from_coordconv(wide)
    assert (back.weight.stride(), back(x).stride()) == strides


def test_swapping_keeps_the_layout_of_one_weight_for_each_channel() -> None:
    plain = nn.Conv2d(4, 8, 1, groups=4)
    x = torch.randn(2, 4, 5, 6)
    strides = plain(x).stride()

    assert to_coordconv(plain)(x).stride() == strides


def test_swapping_keeps_what_reflection_pads_and_attributes_of_the_users() -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
    layer.padding = (2, 2)  # torch goes on padding by one
    layer.role = "stem"  # type: ignore[assignment]
    x = torch.randn(2, 3, 8, 9)
    before = layer(x)

    wide = to_coordconv(layer)
    assert torch.equal(wide(x), before)
    assert wide.role == "stem"
    plain = from_coordconv(wide)
    assert torch.equal(plain(x), before)
    assert plain.role == "stem"
    assert vars(plain).keys() == vars(layer).keys()


def tied() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    model[1].weight = model[0].weight
    return model


def tied_to_the_model() -> nn.Module:
    model: Any = network()
    model.kernel = model[0].weight
    return cast(nn.Module, model)


def hooked() -> nn.Module:
    model = network()
    model[0].register_forward_hook(lambda *_: None)
    return model


def weight_hooked() -> nn.Module:
    model = network()
    next(model.parameters()).register_hook(torch.zeros_like)  # type: ignore[no-untyped-call]
    return model


def grad_hooked() -> nn.Module:
    model = network()
    weight = next(model.parameters())
    weight.register_post_accumulate_grad_hook(lambda _: None)  # type: ignore[no-untyped-call]
    return model


def masked() -> nn.Module:
    model = network()
    model[0].register_buffer("mask", torch.ones(3))
    return model


def adapted() -> nn.Module:
    model = network()
    model[0].adapter = nn.Linear(3, 3)
    model[0].scale = nn.Parameter(torch.ones(3))
    return model


def patched() -> nn.Module:
    model = network()
    model[0].forward = lambda x: x
    return model


def seamless() -> nn.Module:
    """As patches for pictures that tile do it."""
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 1))
    model[0]._conv_forward = lambda x, weight, bias: x
    return cast(nn.Module, model)


def test_a_layer_that_was_compiled_gives_no_call_to_the_new_one() -> None:
    model: Any = nn.Sequential(nn.Conv2d(2, 3, 3))
    model[0].compile(backend="eager")
    x = torch.randn(1, 2, 6, 5)
    before = model(x)
    for swap in (to_coordconv, from_coordconv):
        swap(model)
        assert_close(model(x), before)
        model(x).sum().backward()
        assert model[0].weight.grad is not None


def test_marks_of_a_weight_are_kept() -> None:
    layer: Any = nn.Conv2d(3, 4, 3)
    layer.weight.no_decay = True
    swapped: Any = to_coordconv(layer)
    assert swapped.weight.no_decay


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 4)), "the model has no convolution to swap$"),
        (
            lambda: nn.Sequential(CoordConv2d(3, 4, 1)),
            "to swap; those that it has are CoordConv al",
        ),
        (patched, "layer '0' has a forward pass that was put on it, which would be lost"),
        (seamless, "layer '0' has a forward pass that was put on it, which would be lost"),
        (
            lambda: nn.Conv2d(2, 3, 3, dtype=torch.complex64),
            "the layer is of torch.complex64, and coordinates are real",
        ),
        (lambda: nn.Sequential(nn.LazyConv2d(3, 3)), "layer '0' is lazy and has no weights yet"),
        (tied, r"layer '0' shares a parameter with another layer \(0.weight, 1.weight\)"),
        (tied_to_the_model, r"shares a parameter with another layer \(kernel, 0.weight\)"),
        (hooked, "layer '0' has hooks, which would be lost"),
        (weight_hooked, "layer '0' has hooks, which would be lost"),
        (grad_hooked, "layer '0' has hooks, which would be lost"),
        (masked, "layer '0' was given mask, which would be lost; take it off first"),
        (adapted, "layer '0' was given adapter, scale, which would be lost; take it off first"),
        (lambda: nn.Sequential(Standardized(3, 3, 3)), "'0' is a Standardized, whose own forward"),
        (
            lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 3, 3))),
            "'0' is a ParametrizedConv2d, .* would be lost; take its parametrization off",
        ),
    ],
    ids=[
        "none",
        "already",
        "patched",
        "seamless",
        "complex",
        "lazy",
        "tied",
        "tied to the model",
        "hooked",
        "weight hooked",
        "grad hooked",
        "masked",
        "adapted",
        "subclass",
        "parametrized",
    ],
)
def test_a_layer_that_cannot_be_swapped_is_named_and_nothing_changes(
    make: Callable[[], nn.Module], message: str
) -> None:
    model = make()
    before = repr(model)
    with pytest.raises(ValueError, match=message):
        to_coordconv(model, "all")
    assert repr(model) == before


def test_a_predicate_that_matches_nothing_and_a_wrong_word_are_named() -> None:
    with pytest.raises(ValueError, match="where matches no convolution of the model"):
        to_coordconv(network(), lambda name, layer: False)
    with pytest.raises(ValueError, match='must be "first", "all" or a function, got \'last\''):
        to_coordconv(network(), "last")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the model has no CoordConv layer to swap"):
        from_coordconv(network())


def test_coordinates_of_a_subclass_are_not_left_behind_in_silence() -> None:
    model = nn.Sequential(CoordConv2d(3, 3, 3), Own(3, 3, 3))
    with pytest.raises(ValueError, match=r"'1' is a Own, whose own forward pass would be lost$"):
        from_coordconv(model, force=True)
    assert type(model[0]) is CoordConv2d


def test_one_layer_that_cannot_be_swapped_keeps_the_others_from_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), Standardized(3, 3, 3))
    with pytest.raises(ValueError, match="'1' is a Standardized"):
        to_coordconv(model, "all")
    assert type(model[0]) is nn.Conv2d


def positional(layer: CoordConv2d) -> nn.Sequential:
    return nn.Sequential(layer, nn.Conv2d(layer.out_channels, 2, 3, padding=1))


def test_report_of_coordinates_that_are_not_used_is_zero() -> None:
    model = to_coordconv(network(), "all")

    report = coordinate_report(model, torch.randn(2, 3, 8, 8))

    assert report.change_without == report.change_shuffled == 0
    assert report.shift_error == report.shift_error_without
    assert [layer.name for layer in report.layers] == ["0", "2.0"]
    assert all(layer.coordinate_norm == 0 < layer.image_norm for layer in report.layers)


def test_report_of_a_model_that_names_its_layers_input() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = CoordConv2d(2, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(input=x)
            return y

    model, x = Named(), torch.randn(2, 2, 8, 9)
    named, unnamed = (
        coordinate_report(m, x, shifts=(1,)) for m in (model, nn.Sequential(model.conv))
    )
    assert named.change_without == unnamed.change_without > 0


def test_report_sees_coordinates_that_are_added() -> None:
    bias = CoordBias(1)
    with torch.no_grad():
        bias.weight.copy_(torch.tensor([[3.0, 4.0]]))
    layer = CoordConv2d(1, 1, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 3.0, 4.0]).view(1, 3, 1, 1))
    x = torch.randn(2, 1, 5, 5)

    added, convolved = coordinate_report(bias, x), coordinate_report(layer, x)

    assert added.change_without == pytest.approx(convolved.change_without, rel=1e-5)
    assert added.shift_error_without == {1: 0, 2: 0, 4: 0}
    assert added.layers[0] == LayerReport("", 1.0, convolved.layers[0].coordinate_norm, True)


class Placed(nn.Module):
    """A crop's layer, given its place in one of two ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = CoordConv2d(1, 2, 1, bias=False), how
        with torch.no_grad():
            self.layer.weight.copy_(torch.arange(6.0).view(2, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        place: dict[str, Any] = {"origin": (5.0, 2.0), "extent": 0.5}
        if self.how == "coords":
            place = {"coords": coordinate_grid(*x.shape[2:], **place)}
        y: Tensor = self.layer(x, **place)
        return y


def test_report_is_of_the_coordinates_that_a_model_gives() -> None:
    x = torch.randn(2, 1, 6, 8)
    reports = [coordinate_report(Placed(how), x, seed=3) for how in ("origin", "coords")]
    whole = coordinate_report(nn.Sequential(Placed("origin").layer), x, seed=3)
    assert reports[0] == reports[1]
    # Far from the origin, coordinates differ little, but are large.
    assert reports[0].change_shuffled < whole.change_shuffled / 2
    assert reports[0].change_without > whole.change_without


def test_reports_of_one_seed_are_equal() -> None:
    model, x = nn.Sequential(CoordConv2d(1, 2, 3)), torch.randn(2, 1, 6, 8)
    first, second, other = (coordinate_report(model, x, seed=seed) for seed in (0, 0, 1))
    assert first == second
    assert first.change_shuffled != other.change_shuffled


def test_report_does_not_depend_on_the_default_device() -> None:
    model, x = nn.Sequential(CoordConv2d(1, 2, 3)), torch.randn(2, 1, 6, 8)
    expected = coordinate_report(model, x)
    with torch.device("meta"):
        assert coordinate_report(model, x) == expected


def test_report_of_a_model_of_coordinates_alone() -> None:
    layer = CoordConv2d(1, 1, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.0, 3.0, 4.0]).view(1, 3, 1, 1))  # 3 x + 4 y

    report = coordinate_report(
        layer, torch.randn(2, 1, 5, 5), metric=lambda y: y.max().item(), shifts=[1]
    )

    assert report.layers[0].coordinate_norm == pytest.approx(math.sqrt(25 / 2))
    assert report.change_without == pytest.approx(1)
    assert report.change_shuffled > 0.5
    assert (report.metric, report.metric_without) == (7, 0)
    # f(shifted x) = f(x), so the error is that of the shifted picture of a plane.
    plane = 3 * coordinate_grid(5, 5)[:, :1] + 4 * coordinate_grid(5, 5)[:, 1:]
    rolled = plane.roll((1, 1), (2, 3))
    expected = (plane - rolled).norm() / rolled.norm()
    assert report.shift_error == {1: pytest.approx(expected.item())}
    assert report.shift_error_without == {1: 0}
    assert str(report).splitlines()[1:] == [
        "output changes by 1 without coordinates,",
        f"by {report.change_shuffled:.3g} with shuffled ones",
        f"shifted by 1: error {expected:.3g}, without coordinates 0",
        f"metric 7, without coordinates 0, shuffled {report.metric_shuffled:.4g}",
    ]


def test_report_tells_borders_from_coordinates() -> None:
    torch.manual_seed(0)
    around = nn.Sequential(
        CoordConv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Conv2d(4, 3, 1)
    )
    report = coordinate_report(around, torch.randn(2, 2, 8, 12))
    assert all(error < 1e-5 for error in report.shift_error_without.values())
    assert all(error > 1e-2 for error in report.shift_error.values())


def test_report_leaves_out_shifts_that_are_no_whole_pixels_of_the_output() -> None:
    model = CoordConv2d(1, 2, 2, stride=2)
    report = coordinate_report(model, torch.randn(2, 1, 8, 8), shifts=np.arange(1, 5))
    assert list(report.shift_error) == [2, 4]


def test_report_shifts_each_axis_of_an_output_by_its_own_pixels() -> None:
    model = to_coordconv(nn.Conv2d(1, 2, (2, 1), stride=(2, 1)))
    report = coordinate_report(model, torch.randn(2, 1, 8, 6), shifts=np.array([1.0, 2.0]))
    assert report.shift_error == {2: pytest.approx(0, abs=1e-5)}


def test_report_of_a_classifier_is_of_invariance() -> None:
    model = nn.Sequential(
        CoordConv2d(1, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    report = coordinate_report(model, torch.randn(2, 1, 5, 7))
    assert list(report.shift_error) == [1, 2, 4]
    assert all(error < 1e-5 for error in report.shift_error_without.values())


def test_report_leaves_the_model_as_it_was() -> None:
    model = positional(CoordConv2d(1, 4, 3)).train()
    model[1].eval()
    weights = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 1, 8, 8)
    expected = model(x)

    first = coordinate_report(model, x, seed=1)

    assert coordinate_report(model, x, seed=1) == first
    assert torch.equal(model(x), expected)
    assert [module.training for module in model] == [True, False]
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_report_leaves_a_spectral_norm_in_training_as_it_was() -> None:
    model = nn.Sequential(parametrizations.spectral_norm(CoordConv2d(2, 3, 3)))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    coordinate_report(model, torch.randn(2, 2, 8, 9))

    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_report_of_16_bits_is_that_of_32() -> None:
    model = CoordConv2d(3, 4, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    x = torch.randn(4, 3, 64, 64) * 2000  # outputs whose norm is beyond 65,504

    expected, report = coordinate_report(model, x), coordinate_report(model.half(), x.half())

    assert report.change_shuffled == pytest.approx(expected.change_shuffled, rel=0.5)
    assert 0 < expected.shift_error[1] == pytest.approx(report.shift_error[1], rel=0.5)


def test_report_of_vectors_has_no_shifts() -> None:
    model = nn.Sequential(nn.Unflatten(1, (2, 5, 6)), CoordConv2d(2, 3, 1))

    report = coordinate_report(model, torch.randn(4, 60))

    assert report.change_without > 0
    assert report.shift_error == report.shift_error_without == {}


def test_report_tells_layers_that_are_not_called() -> None:
    painter = CoordConvPainter(16)  # which reads the weights of its layer
    with pytest.raises(ValueError, match=r"calls none of its layers .* \(backbone\.0\), so"):
        coordinate_report(painter, torch.rand(4, 2))

    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.auxiliary = CoordConv2d(3, 2, 1), CoordConv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.main(x)
            return self.auxiliary(x) if self.training else y

    report = coordinate_report(Auxiliary(), torch.randn(2, 3, 8, 8))

    assert [layer.is_called for layer in report.layers] == [True, False]
    assert "auxiliary: coordinate weights" in str(report)
    assert str(report).count("; not called") == 1


class Named(nn.Module):
    """What many libraries' models return: a tensor among others, by name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"input": x, "logits": self.model(x)}


def test_report_looks_at_the_output_that_it_is_told_of() -> None:
    model = nn.Sequential(CoordConv2d(3, 4, 3, padding=1))
    x = torch.rand(2, 3, 7, 9)
    expected = coordinate_report(model, x)
    found = coordinate_report(Named(model), x, output_of=lambda y: y["logits"])
    assert found.change_without == expected.change_without > 0
    assert found.shift_error == expected.shift_error
    with pytest.raises(
        TypeError, match="must be one tensor of real numbers, got dict; say which by"
    ):
        coordinate_report(Named(model), x)


def test_report_names_what_is_missing_or_wrong() -> None:
    with pytest.raises(ValueError, match="the model has no CoordConv layer; to_coordconv puts"):
        coordinate_report(network(), torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"shifts must be 1 or more, got \(0,\)"):
        coordinate_report(CoordConv2d(3, 2, 1), torch.randn(2, 3, 8, 8), shifts=[0])
    with pytest.raises(ValueError, match="inputs must be finite, got infinity or NaN"):
        coordinate_report(CoordConv2d(3, 2, 1), torch.full((1, 3, 8, 8), torch.nan))
    broken = CoordConv2d(3, 2, 1)
    nn.init.constant_(broken.weight, torch.inf)
    with pytest.raises(ValueError, match="the model's output must be finite, got infinity or NaN"):
        coordinate_report(broken, torch.randn(2, 3, 8, 8))


def ramp(length: int) -> Tensor:
    return torch.arange(length) / (length - 1) * 2 - 1


def port_input(port: str, x: Tensor, *, with_r: bool) -> Tensor:
    """What each implementation convolves, written anew from its formulas."""
    n, _, height, width = x.shape
    rows = ramp(height).view(1, 1, height, 1).expand(n, 1, height, width)
    columns = ramp(width).view(1, 1, 1, width).expand(n, 1, height, width)
    if port == "Wizaron/coord-conv-pytorch":
        r = (rows**2 + columns**2).sqrt()
        return torch.cat([rows, columns, *([r / r.max()] if with_r else []), x], dim=1)
    if port == "uber-research/CoordConv":
        columns = (columns + 1) * (width - 1) / (height - 1) - 1  # divided by the other length
        rows = (rows + 1) * (height - 1) / (width - 1) - 1
        r = (rows**2 + columns**2).sqrt()
    else:
        r = ((rows - 0.5) ** 2 + (columns - 0.5) ** 2).sqrt()
    counts_rows_first = port in ("walsvid/CoordConv", "titu1994/keras-coordconv")
    coordinates = [rows, columns] if counts_rows_first else [columns, rows]
    return torch.cat([x, *coordinates, *([r] if with_r else [])], dim=1)


@pytest.mark.parametrize("with_r", [False, True])
@pytest.mark.parametrize("port", PORTS)
def test_a_layer_with_the_weights_of_a_port_computes_the_same(port: str, with_r: bool) -> None:
    size = (5, 5) if port == "mkocabas/CoordConv-pytorch" else (5, 8)
    x, bias = torch.randn(2, 3, *size), torch.randn(4)
    kernel = torch.randn(4, 5 + with_r, 3, 2)
    expected = nn.functional.conv2d(port_input(port, x, with_r=with_r), kernel, bias)
    system = PORTS[port].system if with_r else CoordinateSystem()
    layer = CoordConv2d(3, 4, (3, 2), with_r=with_r, system=system)

    stored = kernel.permute(2, 3, 1, 0) if PORTS[port].layout == "HWIO" else kernel
    load_port(layer, port, stored, bias)

    if port == "uber-research/CoordConv":
        height, width = size
        extent = 2 * (width - 1) / (height - 1), 2 * (height - 1) / (width - 1)
        assert_close(layer(x, extent=extent), expected)
    else:
        assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("layer", "port", "shape", "message"),
    [
        (CoordConv2d(3, 4, 2), "someone/CoordConv", (4, 5, 2, 2), "port must be one of uber-res"),
        (CoordConv2d(3, 4, 2), "walsvid/CoordConv", (4, 3, 2, 2), r"must have the shape \(4, 5, 2"),
        (CoordConv2d(3, 4, 2), "uber-research/CoordConv", (5,), r"must have the shape \(4, 5, 2"),
        (
            CoordConv2d(4, 2, 3, groups=2),
            "walsvid/CoordConv",
            (2, 4, 3, 3),
            r"fit a layer of one group with .*, got groups=2, system=",
        ),
        (
            CoordConv2d(3, 4, 2, with_r=True),
            "walsvid/CoordConv",
            (4, 6, 2, 2),
            r"system=CoordinateSystem\(.*r_center=0.5.*, got groups=1, system=.*r_center=0.0",
        ),
    ],
)
def test_a_port_that_does_not_fit_is_named(
    layer: CoordConv2d, port: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_port(layer, port, torch.zeros(shape))


def test_a_bias_that_the_layer_does_not_have_is_named() -> None:
    layer = CoordConv2d(3, 4, 2, bias=False)
    with pytest.raises(ValueError, match=r"the layer has no bias of shape \(4,\)"):
        load_port(layer, "walsvid/CoordConv", torch.zeros(4, 5, 2, 2), torch.zeros(4))


class Drawing(nn.Module):
    """A model whose output is drawn, as a policy's actions are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = CoordConv2d(3, 4, 3)
        with torch.no_grad():
            self.layer.weight[:, 3:] = 0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) + torch.rand(len(x), 1, 1, 1)
        return y


def test_report_does_not_take_a_models_draws_for_coordinates() -> None:
    model, x = Drawing(), torch.rand(2, 3, 7, 9)
    before = torch.get_rng_state()
    report = coordinate_report(model, x)
    assert report.change_without == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_report_refuses_inputs_that_say_nothing() -> None:
    model, x = nn.Sequential(CoordConv2d(3, 4, 3)), torch.rand(2, 3, 7, 9)
    with pytest.raises(ValueError, match=r"inputs must not be empty, got \(0, 3, 7, 9\)"):
        coordinate_report(model, x[:0])
    with pytest.raises(TypeError, match="inputs must be one tensor, a batch, got tuple"):
        coordinate_report(model, (x, x))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shifts must be 1 or more, got \(1.5,\)"):
        coordinate_report(model, x, shifts=(1.5,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"one tensor of real numbers, got torch\.complex64"):
        coordinate_report(model, x, output_of=lambda y: y.to(torch.complex64))
