"""The coordinate tasks: data against the authors' recipe, nets against their definition, runs."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import train_coordinates
from coordrl.backbone import count_parameters
from coordrl.config import SettingsError, parse_override
from coordrl.coordinates import analysis, figures, table
from coordrl.coordinates.data import (
    Canvas,
    Split,
    is_test,
    one_hot_images,
    places,
    scaled_vectors,
    square_images,
)
from coordrl.coordinates.experiments import Experiments, sweep_points
from coordrl.coordinates.networks import (
    ConvRegressor,
    CoordConvPainter,
    CoordConvRegressor,
    CoordConvRenderer,
    DeconvPainter,
    StridedConvRegressor,
    initialize_like_the_authors,
)
from coordrl.coordinates.tasks import Classification, Goal, Regression, Rendering
from coordrl.coordinates.training import (
    CoordinateSettings,
    Evaluation,
    Model,
    Recipe,
    Run,
    RunResult,
    build_network,
    evaluate,
    load_coordinate_settings,
)
from coordrl.files import RunError
from coordrl.layers import coordinate_grid
from coordrl.records import write_figure
from coordrl.runs import open_run
from coordrl.stopping import Interrupted, StopRequest

CANVAS = Canvas()
SMALL = Canvas(size=16, square=5)
ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "coordinates.toml"


# Data


def test_squares_are_the_one_hots_under_a_kernel_of_ones_as_in_the_papers_recipe() -> None:
    identity = torch.eye(CANVAS.num_places).view(-1, 1, 56, 56)
    one_hots = F.pad(identity, (4, 4, 4, 4))
    # The paper's rows are y outermost, the released generator's x: transpose the places.
    order = torch.arange(CANVAS.num_places).view(56, 56).T.flatten()
    chosen = torch.arange(0, CANVAS.num_places, 37)

    squares = F.conv2d(one_hots[order[chosen]], torch.ones(1, 1, 9, 9), padding=4)

    centers = places(CANVAS)[chosen]
    assert torch.equal(one_hot_images(centers, CANVAS), one_hots[order[chosen]])
    assert torch.equal(square_images(centers, CANVAS), squares)


def test_every_picture_is_there_once_and_whole() -> None:
    centers = places(CANVAS)

    assert len({tuple(center) for center in centers.tolist()}) == 3136
    assert centers.amin() == 4
    assert centers.amax() == 59
    assert (square_images(centers[::50], CANVAS).sum(dim=(1, 2, 3)) == 81).all()


@pytest.mark.parametrize(
    ("split", "train", "test"),
    [("uniform", 2368, 768), ("quadrant", 2407, 729), ("uniform-80-20", 2509, 627)],
)
def test_splits_have_the_sizes_of_the_released_files(split: Split, train: int, test: int) -> None:
    held_back = is_test(CANVAS, split)
    assert (int((~held_back).sum()), int(held_back.sum())) == (train, test)


def test_the_uniform_split_is_the_released_generators() -> None:
    random = np.random.RandomState(20202)
    expected = [(x, y) for x in range(4, 60) for y in range(4, 60) if random.random_sample() < 0.25]

    held_back = places(CANVAS)[is_test(CANVAS, "uniform")]

    assert [tuple(center) for center in held_back.tolist()] == expected
    assert expected[:5] == [(4, 5), (4, 7), (4, 25), (4, 39), (4, 41)]


def test_a_fifth_of_the_places_is_the_same_draw_on_every_machine() -> None:
    held_back = places(CANVAS)[is_test(CANVAS, "uniform-80-20")]
    order = np.random.RandomState(20202).permutation(3136)[:627]
    expected = [(index // 56 + 4, index % 56 + 4) for index in sorted(order)]
    assert [tuple(center) for center in held_back.tolist()] == expected
    assert int(is_test(Canvas(size=10, square=3), "uniform-80-20").sum()) == 13  # of 64


def test_the_quadrant_is_the_lower_right_one() -> None:
    held_back = places(CANVAS)[is_test(CANVAS, "quadrant")]
    assert held_back.amin(dim=0).tolist() == [33, 33]
    assert held_back.amax(dim=0).tolist() == [59, 59]


def test_unit_places_are_the_coordinates_of_their_pixel() -> None:
    center = torch.tensor([[7, 50]])
    tiled = scaled_vectors(center, CANVAS, "unit")[:, :, None, None]

    off = (tiled - coordinate_grid(64, 64)).abs().sum(dim=1)

    assert off.flatten().argmin() == 50 * 64 + 7
    assert_close(off.min(), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_pixel_places_are_raw() -> None:
    assert scaled_vectors(torch.tensor([[4, 59]]), CANVAS, "pixel").tolist() == [[4.0, 59.0]]


@pytest.mark.parametrize("square", [4, 0, -3], ids=["even", "none", "negative"])
def test_a_square_without_a_center_is_refused(square: int) -> None:
    with pytest.raises(ValueError, match=f"odd number of pixels, got {square}"):
        Canvas(square=square)


def test_a_square_larger_than_the_canvas_is_refused() -> None:
    with pytest.raises(ValueError, match="square of 9 does not fit a canvas of 8"):
        Canvas(size=8)
    assert places(Canvas(size=9)).tolist() == [[4, 4]]
    with pytest.raises(ValueError, match=r"size must be a whole number, got 9\.5"):
        Canvas(size=9.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("draw", [one_hot_images, square_images])
def test_pictures_are_on_the_device_of_their_places(
    draw: Callable[[Tensor, Canvas], Tensor],
) -> None:
    assert draw(places(SMALL).to("meta"), SMALL).device.type == "meta"


def test_unknown_splits_and_scales_are_named() -> None:
    with pytest.raises(ValueError, match=r"split must be one of uniform, quadrant, .* 'quarant'"):
        is_test(CANVAS, "quarant")  # type: ignore[arg-type]  # as the authors' scripts spell it
    with pytest.raises(ValueError, match="input_scale must be one of unit, pixel, got 'raw'"):
        scaled_vectors(places(SMALL), SMALL, "raw")  # type: ignore[arg-type]


# Networks


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (CoordConvPainter(64), 7_553),
        (CoordConvPainter(64, multiplier=2), 29_441),
        (CoordConvRenderer(64), 11_850),
        (CoordConvRenderer(64, multiplier=2), 24_210),
        (CoordConvRenderer(64, kernel_size=1), 8_074),
        (CoordConvRenderer(64, gain=100.0), 11_850),
        (CoordConvRegressor(), 906),
        (CoordConvRegressor(relu=True), 906),
        (ConvRegressor(64), 72_850),
        (ConvRegressor(64, multiplier=2), 159_330),
        (ConvRegressor(64, kernel_size=5), 85_394),
        (StridedConvRegressor(), 12_914),
    ],
)
def test_networks_have_the_authors_parameters(network: nn.Module, parameters: int) -> None:
    assert count_parameters(network) == parameters


@pytest.mark.parametrize(
    ("multiplier", "parameters"),
    [
        (1, [46_465, 103_585, 183_553]),
        (2, [183_041, 409_921, 727_553]),
        (3, [409_729, 919_009, 1_632_001]),
    ],
)
def test_deconv_painters_have_the_authors_parameters(
    multiplier: int, parameters: list[int]
) -> None:
    counts = [count_parameters(DeconvPainter(64, multiplier, size)) for size in (2, 3, 4)]
    assert counts == parameters


def tensorflow_same_transposed(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """TensorFlow's transposed convolution with "same" padding: it crops the end of odd rests."""
    size = x.shape[-1] * stride
    full = F.conv_transpose2d(x, kernel, stride=stride)
    before = (kernel.shape[-1] - stride) // 2
    return full[..., before : before + size, before : before + size]


@pytest.mark.parametrize("kernel_size", [2, 3, 4, 5])
def test_deconv_painter_is_tensorflows_with_mirrored_kernels(kernel_size: int) -> None:
    torch.manual_seed(0)
    painter = DeconvPainter(16, kernel_size=kernel_size).eval()
    x = torch.randn(3, 2)

    expected = x[:, :, None, None]
    for module in painter.backbone:
        if isinstance(module, nn.ConvTranspose2d):
            expected = tensorflow_same_transposed(expected, module.weight.flip(-2, -1), 2)
            assert module.bias is not None
            expected = expected + module.bias[:, None, None]
        else:
            expected = module(expected)

    assert_close(painter(x), expected)


def test_strided_regressor_is_tensorflows_with_mirrored_kernels() -> None:
    torch.manual_seed(0)
    regressor = StridedConvRegressor().eval()
    x = torch.rand(2, 1, 64, 64)

    expected = x
    for module in regressor.backbone.modules():
        if isinstance(module, nn.Conv2d):
            rest = max(module.kernel_size[0] - module.stride[0], 0)
            before, after = rest // 2, rest - rest // 2
            padded = F.pad(expected, (before, after, before, after))
            kernel = module.weight.flip(-2, -1)
            expected = F.conv2d(padded, kernel, module.bias, module.stride)
        elif not list(module.children()):
            expected = module(expected)

    assert_close(regressor(x), expected.mean(dim=(-2, -1)))


def test_strided_regressor_has_the_authors_layers() -> None:
    signs = {nn.Conv2d: "c", nn.BatchNorm2d: "n", nn.ReLU: "r"}
    modules = StridedConvRegressor().backbone.modules()
    layers = "".join(signs[type(m)] for m in modules if not list(m.children()))
    assert layers == "crcr" + "n" + "crcr" + "cnr" + "crcrcrcr"  # the first norm is behind a ReLU


def test_renderer_stamps_what_its_painter_finds() -> None:
    torch.manual_seed(0)
    renderer, plain = CoordConvRenderer(16, gain=256.0), CoordConvRenderer(16)
    plain.load_state_dict(renderer.state_dict())
    x = torch.randn(3, 2)

    found = renderer.painter(x).flatten(1).softmax(dim=1).view(3, 1, 16, 16)

    assert_close(renderer(x), renderer.stamp(256 * found))
    assert_close(plain(x), plain.stamp(found))


@pytest.mark.parametrize("relu", [False, True], ids=["affine", "relu"])
def test_coord_conv_regressor_is_the_maximum_of_its_convolutions(relu: bool) -> None:
    torch.manual_seed(0)
    regressor = CoordConvRegressor(relu=relu).double()
    images = torch.randn(3, 1, 7, 9, dtype=torch.double)  # ink on the edges as well

    expected = regressor.backbone(images).amax(dim=(-2, -1))

    assert_close(regressor(images), expected)
    weights, upstream = list(regressor.parameters()), torch.randn_like(expected)
    got = torch.autograd.grad((regressor(images) * upstream).sum(), weights)
    assert_close(got, torch.autograd.grad((expected * upstream).sum(), weights))


@pytest.mark.parametrize("seed", range(5))
def test_a_lifted_regressor_starts_with_its_maximum_at_the_hot_pixel(seed: int) -> None:
    network = CoordConvRegressor(lifted=True)
    initialize_like_the_authors(network, torch.Generator().manual_seed(seed))
    images = torch.eye(20 * 24).view(20, 24, 1, 20, 24)
    images = images[2:-2, 2:-2].flatten(0, 1)  # two 3x3 kernels see two pixels far

    planes = network.backbone(images)

    found = planes.flatten(2).argmax(dim=2)  # for each picture and output
    hot = images.flatten(1).argmax(dim=1).unsqueeze(1)
    assert int((found // 24 - hot // 24).abs().max()) <= 2
    assert int((found % 24 - hot % 24).abs().max()) <= 2


def test_a_lifted_regressor_rises_twice_as_high_as_its_planes_and_sinks_by_as_much() -> None:
    plain, lifted = CoordConvRegressor(), CoordConvRegressor(lifted=True)
    for network in (plain, lifted):
        initialize_like_the_authors(network, torch.Generator().manual_seed(2))
    nothing, hot = torch.zeros(1, 1, 17, 17), torch.zeros(1, 1, 17, 17)
    hot[..., 8, 8] = 1

    with torch.no_grad():
        planes = plain.backbone(nothing)
        at_hot = lifted.backbone(hot)
        risen = at_hot - lifted.backbone(nothing)

    heights = planes.amax(dim=(-2, -1)) - planes.amin(dim=(-2, -1))
    assert_close(float((risen.amax(dim=(-2, -1)) / heights).min()), 2.0, rtol=1e-4, atol=0)
    top = risen.flatten(2).argmax(dim=2, keepdim=True)
    assert_close(at_hot.flatten(2).gather(2, top), planes.flatten(2).gather(2, top))


def test_a_regressor_has_a_relu_behind_all_convolutions_but_the_last_if_asked() -> None:
    for relu, kinds in ((True, [nn.ReLU] * 4), (False, [])):
        others = [m for m in CoordConvRegressor(relu=relu).backbone if not hasattr(m, "weight")]
        assert [type(module) for module in others] == kinds


def test_a_lifted_regressor_has_no_relu() -> None:
    with pytest.raises(ValueError, match="lifted is for the net without ReLU"):
        CoordConvRegressor(lifted=True, relu=True)


def test_a_relative_painter_starts_as_a_function_of_the_difference() -> None:
    painter = CoordConvPainter(9, relative=True).double()
    initialize_like_the_authors(painter, torch.Generator().manual_seed(0))
    step = 2 / 8  # from a pixel to the next

    logits = painter(torch.tensor([[0.0, 0.0], [2 * step, -step]], dtype=torch.double))

    assert_close(logits[1, 0, :-1, 2:], logits[0, 0, 1:, :-2])


def test_initial_weights_are_the_seeds_own() -> None:
    torch.manual_seed(1)
    first = build_network(CoordinateSettings(seed=3)).state_dict()
    torch.manual_seed(2)
    assert_close(build_network(CoordinateSettings(seed=3)).state_dict(), first, rtol=0, atol=0)


def test_deconv_painter_names_the_sizes_it_can_paint() -> None:
    with pytest.raises(ValueError, match="power of 2, 8 or more, got 48"):
        DeconvPainter(48)


# Metrics


def test_classification_metrics_of_a_miss_by_three_and_four_pixels() -> None:
    task = Classification(SMALL)
    centers = torch.tensor([[8, 8], [5, 9]])
    logits = one_hot_images(torch.tensor([[8, 8], [8, 13]]), SMALL)

    metrics = task.metrics(logits, centers)

    assert {name: values.tolist() for name, values in metrics.items()} == {
        "accuracy": [1, 0],
        "distance": [0, 5],
        "manhattan": [0, 7],
    }


def test_classification_loss_is_that_of_guessing_when_all_logits_are_equal() -> None:
    loss = Classification(SMALL).loss(torch.zeros(3, 1, 16, 16), places(SMALL)[:3])
    assert_close(loss, torch.tensor(16 * 16.0).log())


def test_rendering_loss_is_the_mean_cross_entropy_of_the_pixels() -> None:
    centers = torch.tensor([[8, 4], [2, 9]])
    certain = 3 * (2 * square_images(centers, SMALL) - 1)  # 3 in the square, -3 elsewhere
    assert_close(Rendering(SMALL).loss(certain, centers), torch.tensor(3.0).sigmoid().log().neg())


def test_regression_loss_is_the_mean_squared_error_in_canvases() -> None:
    centers = torch.tensor([[8, 4], [2, 9]])
    outputs = torch.tensor([[8.0, 4.0], [5.0, 5.0]]) / 16
    loss = Regression(SMALL).loss(outputs, centers)
    assert_close(loss, torch.tensor((3**2 + 4**2) / 4 / 16**2))


def test_rendering_metric_counts_shared_over_painted_pixels() -> None:
    task = Rendering(SMALL)
    centers = torch.tensor([[8, 8], [8, 8], [8, 8]])
    painted = square_images(torch.tensor([[8, 8], [9, 8], [2, 2]]), SMALL)

    iou = task.metrics(painted - 0.5, centers)["iou"]

    assert_close(iou, torch.tensor([1.0, 20 / 30, 0.0]))


def test_regression_metrics_are_in_pixels() -> None:
    task = Regression(SMALL)
    centers = torch.tensor([[8, 8], [4, 4]])
    outputs = torch.tensor([[8.0, 8.4], [7.0, 8.0]]) / 16

    metrics = task.metrics(outputs, centers)

    assert_close(metrics["error"], torch.tensor([0.4, 5.0]))
    assert metrics["accuracy"].tolist() == [1, 0]


def test_evaluate_averages_over_pictures_and_not_over_batches() -> None:
    task, centers = Regression(SMALL), places(SMALL)[:21]  # the last batch is smaller
    network = CoordConvRegressor()

    with torch.no_grad():
        outputs = network.eval()(task.inputs(centers))

    expected = task.metrics(outputs, centers)["error"].mean()
    assert_close(evaluate(network, task, centers)["error"], float(expected))


def test_evaluation_is_of_a_network_in_evaluation() -> None:
    task, centers = Regression(SMALL), places(SMALL)[:21]
    network = nn.Sequential(CoordConvRegressor(), nn.Dropout(0.5))

    network.train()

    assert evaluate(network, task, centers) == evaluate(network, task, centers)


def test_goals_know_which_way_is_better() -> None:
    assert Goal("accuracy", 1.0).is_reached(0.8, threshold=0.8)
    assert not Goal("accuracy", 1.0).is_reached(0.999)
    assert Goal("error", 0.5, least=True).is_reached(0.4)
    assert not Goal("error", 0.5, least=True).is_reached(float("nan"))


def test_tasks_are_solved_where_the_paper_solves_them() -> None:
    goals = [task(CANVAS).goal for task in (Classification, Rendering, Regression)]
    assert goals == [Goal("accuracy", 1.0), Goal("iou", 0.99), Goal("error", 0.5, least=True)]


# Training


def small(**training: object) -> CoordinateSettings:
    recipe = Recipe(**{"epochs": 2, "evaluation_interval": 5, "stop_when_solved": False} | training)  # type: ignore[arg-type]
    return CoordinateSettings(canvas=SMALL, training=recipe)


def without_times(result: RunResult) -> list[Evaluation]:
    return [replace(point, seconds=0.0, cpu_seconds=0.0) for point in result.curve]


def test_a_small_classification_is_learned_and_ends_when_solved() -> None:
    recipe = Recipe(learning_rate=0.01, epochs=60, evaluation_interval=50)
    settings = CoordinateSettings(canvas=Canvas(size=12, square=3), training=recipe)

    result = Run(settings).train()

    assert result.ended == "solved"
    assert result.last["test"]["accuracy"] == 1
    assert result.curve[-1].test == 1
    assert result.curve[-1].step < 60 * 5
    first = result.first_at(Goal("accuracy", 1.0), 1.0)
    assert first is not None
    assert first == next(point for point in result.curve if point.test == 1)
    assert result.parameters == 7553


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    first, again = Run(small()).train(), Run(small()).train()
    other = Run(replace(small(), seed=1)).train()

    assert without_times(first) == without_times(again)
    assert first.last == again.last
    assert without_times(first) != without_times(other)


def test_a_run_that_was_stopped_goes_on_as_if_it_never_had(tmp_path: Path) -> None:
    settings = small()
    whole = Run(settings)
    expected = whole.train()

    stop = StopRequest()

    def stop_at_step_seven(run: Run) -> None:  # within an epoch, between two evaluations
        if run.step == 7:
            stop.signal_number = 15

    with open_run(tmp_path / "run", "seed = 0\n") as folder:
        with pytest.raises(Interrupted):
            Run(settings, folder=folder).train(stop=stop, on_step=stop_at_step_seven)
        resumed = Run(settings, folder=folder)
        result = resumed.train()

    assert resumed.step == whole.step
    assert without_times(result) == without_times(expected)
    assert result.last == expected.last
    assert result.best == expected.best
    assert_close(resumed.network.state_dict(), whole.network.state_dict(), rtol=0, atol=0)


def test_a_finished_run_is_judged_again_without_a_step(tmp_path: Path) -> None:
    settings = small(learning_rate=0.05, decay="none", epochs=4)
    with open_run(tmp_path / "run", "seed = 0\n") as folder:
        first = Run(settings, folder=folder).train()
        again = Run(settings, folder=folder)
        assert again.train() == first
    assert first.best != first.last


def test_a_run_is_cut_short_by_its_processor_time() -> None:
    result = Run(small(max_seconds=1e-9)).train()
    assert result.ended == "time"
    assert len(result.curve) == 1
    assert result.curve[0].step == 1


def test_a_run_whose_loss_is_not_finite_ends_and_says_so() -> None:
    run = Run(small())
    with torch.no_grad():
        next(run.network.parameters()).fill_(float("nan"))
    result = run.train()
    assert result.ended == "diverged"
    assert math.isnan(result.last["test"]["accuracy"])
    text = table.to_markdown([table.summarize([result])])
    assert "not finite (not finite to not finite)" in text
    assert " (1 diverged) " in text


def test_a_run_that_diverges_behind_its_last_evaluation_says_so() -> None:
    settings = small(evaluation_interval=1000)
    run = Run(settings)
    with torch.no_grad():
        next(run.network.parameters()).fill_(float("nan"))
    assert run.train().ended == "diverged"


def test_a_canvas_that_a_network_cannot_halve_is_refused() -> None:
    settings = CoordinateSettings(
        task="regression", model="conv", split="quadrant", canvas=Canvas(size=40, square=5)
    )
    with pytest.raises(SettingsError, match=r"conv: canvas_size must be a multiple of 32, got 40$"):
        build_network(settings)


def test_neighbors_of_a_place_are_drawn_where_the_network_is() -> None:
    task = Classification(Canvas(size=8, square=3))
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 64), nn.Unflatten(1, (1, 8, 8))).to("meta")
    logits = analysis.logits_of_neighbors(network, task, torch.tensor([5, 5]))
    assert (logits.shape, logits.device.type) == ((3, 8, 8), "meta")


def test_best_is_chosen_by_training_loss() -> None:
    run = Run(small(learning_rate=0.05, decay="none", epochs=4))
    result = run.train()
    least = min(result.curve, key=lambda point: point.loss)
    assert least != result.curve[-1]
    assert result.best["test"]["accuracy"] == least.test
    # And the network keeps the weights of the end.
    assert evaluate(run.network, run.task, run.train_centers) == result.last["train"]


def test_a_run_is_evaluated_at_each_interval_and_at_its_end() -> None:
    run = Run(small())
    assert run.total_steps == 16
    curve = run.train().curve
    assert [point.step for point in curve] == [5, 10, 15, 16]
    assert [point.epoch for point in curve] == [5 / 8, 10 / 8, 15 / 8, 2]


def test_a_curve_has_the_means_over_the_pictures_of_its_interval() -> None:
    settings = replace(small(learning_rate=1e-12, epochs=1, evaluation_interval=100),
                       task="regression")  # fmt: skip
    run = Run(settings)
    centers = run.train_centers
    assert len(centers) % run.settings.training.batch_size != 0  # the last batch is smaller

    (point,) = run.train().curve

    run.network.train()
    with torch.no_grad():
        outputs = run.network(run.task.inputs(centers))
    assert_close(point.loss, float(run.task.loss(outputs, centers)), rtol=1e-5, atol=0)
    error = run.task.metrics(outputs, centers)["error"]
    assert (error > 0.1).all()
    assert_close(point.train, float(error.mean()), rtol=1e-4, atol=0)


def test_each_epoch_has_an_order_of_its_own() -> None:
    run, orders = Run(small()), []
    for _ in range(2):
        taken = []
        for _ in range(run.total_steps // 2):
            taken.append(run._batch_indices())
            run._train_step()
        orders.append(torch.cat(taken))
    assert not torch.equal(*orders)
    assert torch.equal(*(order.sort().values for order in orders))


def test_steps_are_as_long_as_the_recipe_says_and_of_a_network_in_training() -> None:
    run = Run(small(decay="cosine"))
    lengths, modes = [], []

    def look(run: Run) -> None:
        lengths.append({group["lr"] for group in run._optimizer.param_groups})
        if run.step % 5:  # an evaluation leaves it in evaluation, until the next step
            modes.append(run.network.training)

    run.train(on_step=look)

    rate = run.settings.training.learning_rate_at
    assert lengths == [{rate(step / 16)} for step in range(16)]
    assert lengths[0] != lengths[8]
    assert modes
    assert all(modes)


@pytest.mark.parametrize("unsolved", ["train", "test"])
def test_a_run_is_solved_if_both_sets_are(unsolved: str) -> None:
    run = Run(CoordinateSettings(canvas=SMALL))
    point = Evaluation(0, 0.0, 0.0, 0.0, 0.1, 1.0, 1.0)
    run.curve = [point]
    assert run._end() == "solved"
    run.curve = [replace(point, **dict[str, Any]({unsolved: 0.99}))]
    assert run._end() is None


def test_a_long_run_saves_itself_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []

    def note(run: Run) -> None:
        assert run.folder is not None
        if (checkpoint := run.folder.newest_checkpoint()) is not None:
            saved.append(checkpoint.step)

    with open_run(tmp_path / "short", "seed = 0\n") as folder:
        Run(small(), folder=folder).train(on_step=note)
    assert not saved

    monkeypatch.setattr("coordrl.resumable.CHECKPOINT_SECONDS", -1.0)
    with open_run(tmp_path / "long", "seed = 0\n") as folder:
        Run(small(), folder=folder).train(on_step=note)
    assert saved == list(range(1, 16))  # after each step but the last
    Run(small()).train()  # keeps none


def test_steps_are_those_of_adam_with_the_authors_decays() -> None:
    run, plain = Run(small()), build_network(small())
    adam = torch.optim.Adam(plain.parameters(), lr=0.005, betas=(0.9, 0.99), eps=1e-8)

    for gradient in (*[1.0] * 5, *[0.1] * 5):  # the first step is the same for all decays
        for weight in (*run.network.parameters(), *plain.parameters()):
            weight.grad = torch.full_like(weight, gradient)
        run._optimizer.step()
        adam.step()

    assert_close(run.network.state_dict(), plain.state_dict(), rtol=0, atol=1e-6)


def test_l2_is_the_sum_of_squared_kernels_without_biases() -> None:
    def after_one_step(l2: float) -> Run:
        run = Run(small(l2=l2, max_seconds=1e-9))
        run.train()
        return run

    run = Run(small())
    centers = run.train_centers[run._batch_indices()]
    loss = run.task.loss(run.network(run.task.inputs(centers)), centers)
    kernels = [p for p in run.network.parameters() if p.ndim > 1]
    penalized = loss + 0.1 * torch.stack([kernel.square().sum() for kernel in kernels]).sum()
    penalized.backward()  # type: ignore[no-untyped-call]
    torch.optim.Adam(run.network.parameters(), lr=0.005, betas=(0.9, 0.99)).step()

    assert_close(
        after_one_step(0.1).network.state_dict(), run.network.state_dict(), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("decay", "rates"),
    [("none", [1, 1, 1]), ("cosine", [1, 0.5, 0]), ("steps", [1, 0.01, 0.0001])],
)
def test_learning_rates_at_start_half_and_end(decay: str, rates: list[float]) -> None:
    recipe = Recipe(learning_rate=1.0, decay=decay)  # type: ignore[arg-type]
    assert [recipe.learning_rate_at(f) for f in (0.0, 0.5, 1.0)] == pytest.approx(rates)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"l2": -1.0}, "l2 must be at least 0, got -1"),
        ({"l2": float("nan")}, "l2 must be a number, got nan"),
        ({"max_seconds": 0.0}, "max_seconds must be positive, got 0.0"),
    ],
)
def test_recipes_out_of_range_are_refused(keywords: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**keywords)  # type: ignore[arg-type]


# Settings


@pytest.mark.parametrize("split", ["uniform", "quadrant"])
@pytest.mark.parametrize("model", ["coordconv", "conv", "robust"])
@pytest.mark.parametrize("task", ["classification", "rendering", "regression"])
def test_the_shipped_settings_build(task: str, model: str, split: str) -> None:
    settings = load_coordinate_settings(CONFIG, task, model, split)  # type: ignore[arg-type]
    run = Run(settings)
    output = run.network(run.task.inputs(run.train_centers[:2]))
    assert output.shape == ((2, 2) if task == "regression" else (2, 1, 64, 64))
    assert settings.model == model


def test_overrides_win_over_the_file_and_reach_the_network() -> None:
    settings = load_coordinate_settings(
        CONFIG,
        "classification",
        "conv",
        "uniform",
        (parse_override("network.kernel_size=4"), parse_override("training.epochs=7")),
    )
    assert settings.training.epochs == 7
    assert count_parameters(build_network(settings)) == count_parameters(
        DeconvPainter(64, settings.network.get("multiplier", 1), 4)
    )


def test_a_keyword_that_the_network_lacks_is_named() -> None:
    with pytest.raises(SettingsError, match=r"unknown key 'network\.kernel_size'"):
        load_coordinate_settings(
            None,
            "classification",
            "coordconv",
            "uniform",
            (parse_override("network.kernel_size=4"),),
        )


def test_a_table_of_no_task_is_named(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    for text, got in (("[classify.coordconv]", "classify"), ("[rendering.coord]", "coord")):
        path.write_text(text)
        with pytest.raises(SettingsError, match=rf"expects tables .* got '{got}'"):
            load_coordinate_settings(path, "classification", "coordconv", "uniform")
    with pytest.raises(SettingsError, match="cannot be read as a settings file"):
        load_coordinate_settings(tmp_path / "none", "classification", "coordconv", "uniform")


# Analysis


class Oracle(nn.Module):
    """Knows the task: a high logit at the place, from places in [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        centers = ((x + 1) / 2 * (SMALL.size - 1)).round().long()
        return 100 * one_hot_images(centers, SMALL)


class Fixed(nn.Module):
    """Always the same pixel."""

    def __init__(self, column: int = 3) -> None:
        super().__init__()
        self.pixel = torch.tensor([[column, 5]])

    def forward(self, x: Tensor) -> Tensor:
        return 100 * one_hot_images(self.pixel.expand(len(x), 2), SMALL)


def test_summed_probabilities_of_one_who_knows_are_the_places() -> None:
    task, centers = Classification(SMALL), places(SMALL)[::3]

    summed = analysis.summed_probabilities(Oracle(), task, centers)

    assert_close(summed, one_hot_images(centers, SMALL).sum(dim=(0, 1)))
    assert analysis.total_variation(summed, centers, SMALL) == pytest.approx(0, abs=1e-6)


def test_total_variation_of_one_fixed_pixel_is_all_but_its_own_share() -> None:
    task, centers = Classification(SMALL), places(SMALL)

    summed = analysis.summed_probabilities(Fixed(), task, centers)

    distance = analysis.total_variation(summed, centers, SMALL)
    assert distance == pytest.approx(1 - 1 / len(centers), abs=1e-6)


def test_equivariance_error_tells_one_who_knows_from_one_fixed_pixel() -> None:
    task, centers = Classification(SMALL), places(SMALL)[:40]
    # What leaves the canvas on the right is misplaced, too.
    networks = Oracle(), Fixed(), Fixed(column=15)
    errors = [analysis.equivariance_error(own, task, centers, 4) for own in networks]
    assert errors == pytest.approx([0, 1, 1], abs=1e-6)


LOOKS: dict[str, Callable[[DeconvPainter, Classification], Any]] = {
    "probabilities": lambda net, task: analysis.summed_probabilities(net, task, places(SMALL)[:9]),
    "features": lambda net, task: analysis.last_features(net, task, places(SMALL)[:9]),
    "neighbors": lambda net, task: analysis.logits_of_neighbors(net, task, torch.tensor([4, 7])),
    "equivariance": lambda net, task: analysis.equivariance_error(net, task, places(SMALL)[:9], 4),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_networks_are_looked_at_in_evaluation(
    look: Callable[[DeconvPainter, Classification], Any],
) -> None:
    torch.manual_seed(0)
    training, evaluating = DeconvPainter(16), DeconvPainter(16).eval()
    evaluating.load_state_dict(training.state_dict())
    task = Classification(SMALL)
    assert_close(look(training, task), look(evaluating, task))


def test_a_trace_looks_at_places_whose_square_stays_on_the_canvas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    last: list[int] = []

    def look(network: nn.Module, task: Classification, centers: Tensor, shift: int) -> float:
        last.append(int(centers[:, 0].max()) + shift)
        return 0.0

    monkeypatch.setattr(analysis, "equivariance_error", look)
    analysis.Trace(interval=1, shifts=(1, 4), pictures=1000)(Run(small()))
    assert last == [13, 13]  # of 16 columns, the square reaches 2 to the right


def test_equivariance_needs_room_for_the_shift() -> None:
    with pytest.raises(ValueError, match="shift by 5 pixels must keep all places on the canvas"):
        analysis.equivariance_error(Oracle(), Classification(SMALL), places(SMALL), 5)


def test_equivariance_needs_a_place() -> None:
    with pytest.raises(ValueError, match="shift by 1 pixels must keep all places on the canvas"):
        analysis.equivariance_error(Oracle(), Classification(SMALL), places(SMALL)[:0], 1)


def test_neighbors_are_the_places_to_the_right() -> None:
    logits = analysis.logits_of_neighbors(Oracle(), Classification(SMALL), torch.tensor([4, 7]))
    assert logits.flatten(1).argmax(dim=1).tolist() == [7 * 16 + 4, 7 * 16 + 5, 7 * 16 + 6]


def test_coordinate_norms_are_those_of_the_weights() -> None:
    painter = CoordConvPainter(16)
    with torch.no_grad():
        weight = next(painter.parameters())
        weight[:, :2], weight[:, 2:] = 2.0, -6.0
    (norm,) = analysis.coordinate_norms(painter)
    assert (norm.inputs, norm.coordinates, norm.ratio) == (2, 6, 3)
    assert analysis.coordinate_norms(DeconvPainter(16)) == []


@pytest.mark.parametrize("painter", [CoordConvPainter(16), DeconvPainter(16)])
def test_features_are_what_the_last_layer_sees(painter: CoordConvPainter | DeconvPainter) -> None:
    painter.eval()
    x = torch.randn(3, 2)

    features = painter.features(x)

    last = painter.backbone[-1]
    mirrored = isinstance(painter, DeconvPainter)
    logits = last(features.flip(-2, -1)).flip(-2, -1) if mirrored else last(features)
    assert_close(painter(x), logits)
    thinned = analysis.last_features(painter, Classification(SMALL), places(SMALL)[:5])
    assert thinned.shape == (5, features.shape[1] * 64)


def test_a_network_that_has_diverged_has_no_principal_components() -> None:
    features = torch.ones(5, 7)
    features[2, 3] = torch.inf
    components = analysis.principal_components(features, count=2)
    assert components.shape == (5, 2)
    assert components.isnan().all()


def test_principal_components_of_a_stretched_sheet_are_its_sides() -> None:
    torch.manual_seed(0)
    sheet = torch.rand(200, 2) * torch.tensor([10.0, 3.0])
    rotation = torch.linalg.qr(torch.randn(5, 5)).Q[:2]

    components = analysis.principal_components(sheet @ rotation)

    for component, side in zip(components.T, sheet.T, strict=True):
        correlation = torch.corrcoef(torch.stack([component, side]))[0, 1].abs()
        assert correlation > 0.99


def test_results_are_written_as_json() -> None:
    result = Run(small(max_seconds=1e-9)).train()
    read = json.loads(json.dumps(result.to_json()))
    assert read["settings"]["canvas"] == {"size": 16, "square": 5}
    assert read["curve"][0]["step"] == 1


# Many runs


def result(
    seed: int, model: Model, tests: list[float], parameters: int = 100, train: float = 1.0
) -> RunResult:
    """A classification run whose test accuracy rises by an evaluation a second."""
    curve = tuple(
        Evaluation(step, step / 2, 2.0 * step, 1.0 * step, 0.1, test, test)
        for step, test in enumerate(tests, start=1)
    )

    def judged(accuracy: float) -> dict[str, float]:
        return {"accuracy": accuracy, "distance": 0.0, "manhattan": 0.0}

    return RunResult(
        settings=CoordinateSettings(model=model, seed=seed),
        parameters=parameters,
        ended="epochs",
        curve=curve,
        last={"train": judged(train), "test": judged(tests[-1])},
        best={"train": judged(0.4), "test": judged(0.3 + seed / 100)},
        threads=1,
    )


def test_a_row_gives_spreads_shares_and_median_times() -> None:
    runs = [
        result(0, "coordconv", [0.5, 0.8, 1.0]),
        result(1, "coordconv", [0.9, 1.0]),
        result(2, "coordconv", [0.1, 0.2, 0.3]),
    ]

    row = table.summarize(runs)

    assert (row.train.least, row.train.most) == (1.0, 1.0)
    assert (row.test_of_best.least, row.test_of_best.most) == (0.3, 0.32)
    assert table.summarize([*runs[:1], result(1, "coordconv", [1.0], train=0.9)]).solved == 1
    assert (row.seeds, row.solved, row.reached) == (3, 2, (2, 2, 2))
    assert row.cpu_seconds_to == (2.0, 3.0, 3.0)  # after 1 and 2, and 2 and 3; the third never
    assert (row.test.least, row.test.most) == (0.3, 1.0)
    assert row.test.mean == pytest.approx(2.3 / 3)
    assert row.cpu_seconds.most == 3
    assert row.seconds.most == 6
    assert (row.epochs.least, row.epochs.most) == (1, 1.5)


def test_each_number_stands_under_its_name() -> None:
    run = result(0, "coordconv", [0.25, 0.5], parameters=7553, train=0.75)
    text = table.to_markdown([table.summarize([run])])
    _, _, head, _, row = text.strip().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (head, row)]
    assert dict(zip(*cells, strict=True)) == {
        **{"split": "uniform", "model": "coordconv", "places as": "unit", "parameters": "7,553"},
        **{"solved": "0 of 1", "train accuracy": "75.0 %"},
        "test accuracy (range)": "50.0 % (50.0 % to 50.0 %)",
        **{"test, least loss": f"{100 * run.best['test']['accuracy']:.1f} %", "epochs": "1.0"},
        **{"CPU s": "2.0", "wall s": "4.0", "CPU s to 80.0 % / 99.0 % / 100.0 %": "- / - / -"},
        "paper": "100 % in 10 to 20 s",
    }


def test_runs_are_compared_with_the_baseline_of_their_own_split() -> None:
    splits: list[Split] = ["uniform", "quadrant"]
    rows = [
        table.summarize([replace(own, settings=replace(own.settings, split=split))])
        for split, parameters in zip(splits, (500, 900), strict=True)
        for own in (
            result(0, "conv", [1.0], parameters=parameters),
            result(0, "coordconv", [1.0], parameters=100),
        )
    ]
    ratios = table.to_json(rows, [])["ratios"]
    assert {(own["split"], own["parameters"]) for own in ratios} == {
        ("uniform", 5),
        ("quadrant", 9),
    }


def test_ratios_to_a_baseline_that_never_arrives_are_bounds() -> None:
    ours = table.summarize([result(0, "coordconv", [0.5, 1.0])])
    baseline = table.summarize([result(0, "conv", [0.1] * 9 + [0.8], parameters=5400)])

    to_80, to_99, to_100 = table.compare(ours, baseline)

    assert (to_80.time, to_80.is_bound) == (10 / 2, False)
    assert (to_99.time, to_99.is_bound) == (10 / 2, True)
    assert to_100.parameters == 54
    text = table.to_markdown([ours, baseline])
    assert "has 54.0 times the parameters" in text
    assert "5 times to 80.0 %; more than 5 times to 99.0 %" in text


def test_the_bound_is_the_time_of_the_seed_that_was_cut_off_first() -> None:
    ours = table.summarize([result(0, "coordconv", [1.0])])
    baseline = table.summarize([result(0, "conv", [0.1] * 4), result(1, "conv", [0.1] * 9)])
    assert [ratio.time for ratio in table.compare(ours, baseline)] == [4, 4, 4]


def test_the_limit_of_the_command_is_that_of_baselines_alone() -> None:
    experiments = Experiments(config=CONFIG, out=CONFIG.parent)
    for cell in table.plan("full"):
        limit = experiments._cell_settings(cell, 0, 7.0).training.max_seconds
        assert limit == (7 if cell.model == "conv" or cell.input_scale == "pixel" else None)


def test_seeds_that_never_arrive_count_as_the_slowest() -> None:
    curves = [[0.9, 0.9], [0.5, 1.0], [0.1, 0.1, 1.0], [0.1]]
    runs = [result(seed, "coordconv", curve) for seed, curve in enumerate(curves)]
    row, baseline = table.summarize(runs), table.summarize([result(0, "conv", [0.1] * 5)])

    assert row.reached == (3, 2, 2)
    assert row.cpu_seconds_to == (2.5, None, None)  # of 1, 2, 3 and never
    assert [ratio.time for ratio in table.compare(row, baseline)] == [2, None, None]


def test_bounds_are_rounded_down_and_left_out_where_they_say_nothing() -> None:
    ours = table.summarize([result(0, "coordconv", [0.9, 0.9, 1.0])])
    baseline = table.summarize([result(0, "conv", [0.1] * 3)])
    shorter = replace(baseline, cpu_seconds=table.Range.of([2.79]))

    assert "takes more than 3 times to 80.0 %; " not in table.to_markdown([ours, baseline])
    assert "takes more than 3 times to 80.0 %." in table.to_markdown([ours, baseline])
    assert "takes more than 2.7 times to 80.0 %." in table.to_markdown([ours, shorter])


def test_rows_do_not_mix_models() -> None:
    with pytest.raises(ValueError, match="a row needs runs of one kind"):
        table.summarize([result(0, "coordconv", [1.0]), result(0, "conv", [1.0])])


@pytest.mark.parametrize(("size", "kinds"), [("quick", 6), ("full", 8)])
def test_the_table_has_both_arms_of_everything(size: table.TableSize, kinds: int) -> None:
    cells = table.plan(size)
    assert len(cells) == len(set(cells))
    arms = {(cell.task, cell.split, cell.input_scale): set[str]() for cell in cells}
    for cell in cells:
        arms[cell.task, cell.split, cell.input_scale].add(cell.model)
    assert len(arms) == kinds  # two splits of three tasks, and of classification in pixels
    assert all({"coordconv", "conv"} <= models for models in arms.values())
    seeds = {cell.input_scale: cell.seeds for cell in cells}
    assert seeds == ({"unit": 1} if size == "quick" else {"unit": 5, "pixel": 2})


TINY = """
[classification.coordconv]
canvas = {size = 8, square = 3}
[classification.coordconv.training]
epochs = 2
evaluation_interval = 2
[classification.coordconv.sweep]
"training.learning_rate" = [0.001, 0.01]
"training.l2" = [0.0, 0.001]
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Experiments:
    config = tmp_path / "coordinates.toml"
    config.write_text(TINY)
    return Experiments(config=config, out=tmp_path / "runs")


def test_finished_runs_are_read_and_not_repeated(
    tiny: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_coordinate_settings(tiny.config, "classification", "coordconv", "uniform")
    first = tiny.train(settings, trace=True)

    def train_again(self: Run, **_: object) -> RunResult:
        raise AssertionError("trained again")

    monkeypatch.setattr(Run, "train", train_again)
    assert tiny.train(settings) == first


def test_a_run_that_diverged_is_read_as_such(tiny: Experiments) -> None:
    wild = ("canvas.size=16", "canvas.square=5", "training.learning_rate=1e30")
    tiny = replace(tiny, overrides=tuple(parse_override(text) for text in wild))

    def row() -> str:
        return tiny.train_seeds(
            "regression",
            "coordconv",
            "uniform",
            "unit",
            seeds=1,
            sweep=False,
            report=tiny.out / "report",
        )

    first = row()
    assert "(1 diverged)" in first
    assert "not finite" in first
    assert "null" in (tiny.out / "regression-coordconv-uniform-s0" / "result.json").read_text()
    assert row() == first


def test_curves_are_kept_for_tensorboard(tiny: Experiments) -> None:
    settings = load_coordinate_settings(tiny.config, "classification", "coordconv", "uniform")
    curve = tiny.train(settings).curve

    events = EventAccumulator(str(tiny.out / "classification-coordconv-uniform-s0"))
    events.Reload()
    for name in ("loss", "train", "test"):
        shown = events.Scalars(name)
        assert [own.step for own in shown] == [point.step for point in curve]
        assert [own.value for own in shown] == pytest.approx([getattr(p, name) for p in curve])


def test_a_result_that_cannot_be_read_is_named(tiny: Experiments) -> None:
    settings = load_coordinate_settings(tiny.config, "classification", "coordconv", "uniform")
    tiny.train(settings)
    path = tiny.out / "classification-coordconv-uniform-s0" / "result.json"
    path.write_text(path.read_text()[:100])

    with pytest.raises(RunError, match=r"result\.json cannot be read .* delete it, and the same"):
        tiny.train(settings)


def test_a_run_that_was_cut_short_goes_on_when_given_more_time(tiny: Experiments) -> None:
    settings = load_coordinate_settings(tiny.config, "classification", "coordconv", "uniform")

    def limited(seconds: float | None) -> CoordinateSettings:
        return replace(settings, training=replace(settings.training, max_seconds=seconds))

    cut, same, whole = (tiny.train(limited(seconds)) for seconds in (1e-9, 1e-9, None))

    assert cut.ended == same.ended == "time"
    assert whole.ended == "epochs"
    assert whole.curve[0].step == cut.curve[0].step == 1
    assert whole.curve[-1].step > 1


def test_the_grid_is_every_combination(tiny: Experiments) -> None:
    points = sweep_points(tiny.config, "classification", "coordconv")
    assert [[item.value for item in point] for point in points] == [
        [0.001, 0.0],
        [0.001, 0.001],
        [0.01, 0.0],
        [0.01, 0.001],
    ]
    with pytest.raises(SettingsError, match=r"no table \[classification.conv.sweep\]"):
        sweep_points(tiny.config, "classification", "conv")


def test_a_run_that_was_given_less_time_than_it_took_is_drawn_as_it_is(tiny: Experiments) -> None:
    options = ["--config", str(tiny.config), "--out", str(tiny.out), "--threads", "1"]
    assert train_coordinates.main([*options, "--max-seconds", "1000"]) == 0
    assert train_coordinates.main([*options, "--max-seconds", "0.001"]) == 0


def test_the_script_trains_seeds_and_writes_record_and_figure(
    tiny: Experiments, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--config", str(tiny.config), "--out", str(tiny.out), "--threads", "1"]

    assert train_coordinates.main(["--seeds", "2", *options]) == 0
    assert train_coordinates.main(["--sweep", *options]) == 0

    name = "classification-coordconv-uniform"
    record = json.loads((tiny.out / f"{name}.json").read_text())
    assert record["rows"][0]["seeds"] == 2
    assert [run["settings"]["seed"] for run in record["runs"]] == [0, 1]
    assert record["command"].startswith("python scripts/train_coordinates.py --seeds 2 --config")
    (share,) = record["misplaced"]
    assert 0 < share["test"] < 1
    swept = json.loads((tiny.out / f"{name}-sweep.json").read_text())
    assert len(swept["runs"]) == 4
    assert [row["seeds"] for row in swept["rows"]] == [1] * 4  # each point is a row
    kinds = ("maps", "neighbors", "sheets", "translation")
    for figure in (name, f"{name}-sweep", *(f"{name}-{kind}" for kind in kinds)):
        assert (tiny.out / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    assert "| uniform | coordconv | unit | 7,553 | 0 of 2 |" in capsys.readouterr().out


def test_the_table_is_written_with_its_figures(
    tiny: Experiments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.config.write_text(TINY + TINY.replace("coordconv", "conv"))
    models: list[Model] = ["coordconv", "conv"]
    cells = [table.Cell("classification", model, "uniform", "unit", 2) for model in models]
    monkeypatch.setattr(table, "plan", lambda size: cells)
    report = tmp_path / "report"

    growing = []

    def watched(self: Experiments, *args: Any, **kwargs: Any) -> RunResult:
        if (report / "coordinates.md").exists():
            growing.append((report / "coordinates.md").read_text())
        return train(self, *args, **kwargs)

    train = Experiments.train
    monkeypatch.setattr(Experiments, "train", watched)

    text = replace(tiny, command="made by hand").make_table("quick", report, None)

    written = (report / "coordinates.md").read_text()
    assert "So far" not in written
    assert "So far 2 of 4 runs are done." in growing[1]
    assert "| uniform | conv |" in growing[1]  # the second model with its first seed
    assert "Made by `made by hand` on " in written
    assert text in written
    assert "| uniform | coordconv | unit | 7,553 | 0 of 2 |" in written
    assert "## Summed probability maps" in written
    record = json.loads((report / "coordinates.json").read_text())
    assert len(record["runs"]) == 4
    assert {share["model"] for share in record["misplaced"]} == {"coordconv", "conv"}
    assert sorted(path.stem for path in report.glob("*.png")) == [
        "coordinates-classification-uniform",
        *(f"coordinates-uniform-{kind}" for kind in ("maps", "neighbors", "sheets", "translation")),
    ]


def test_a_setting_that_does_not_fit_leaves_its_folder_to_others(
    tiny: Experiments, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--config", str(tiny.config), "--out", str(tiny.out), "--split", "quadrant", "--set"]
    assert train_coordinates.main([*command, "canvas.size=8", "canvas.square=7"]) == 2
    assert train_coordinates.main([*command, "canvas.size=16"]) == 0
    assert "0 to test on" in capsys.readouterr().err


def test_a_network_whose_checkpoints_are_gone_is_not_drawn_untrained(tiny: Experiments) -> None:
    def train() -> str:
        return tiny.train_seeds(
            "classification", "coordconv", "uniform", "unit", seeds=1, sweep=False, report=tiny.out
        )

    train()
    shutil.rmtree(tiny.out / "classification-coordconv-uniform-s0" / "checkpoints")

    with pytest.raises(RunError, match=r"has a result but no checkpoint .* delete the folder"):
        train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "training.epoch=3"], "unknown key 'training.epoch'"),
        (["--set", "input_scale=pixel"], "--set input_scale would be overruled; use --input-scale"),
        (["--table", "quick", "--input-scale", "pixel"], "--input-scale would be ignored: the t"),
        (["--table", "quick", "--sweep"], "--sweep would be ignored: the table chooses it"),
        (["--set", "seed=3"], "--set seed would be overruled; use --seeds"),
        (["--sweep", "--set", "training.l2=1"], "--set training.l2 would be overruled; the sweep"),
        (["--sweep", "--set", "training={l2=1.0}"], "--set training.l2 would be overruled; the s"),
        (["--model", "conv", "--sweep"], "no table [classification.conv.sweep]"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--threads", "0"], "threads must be at least 1, got 0"),
        (["--max-seconds", "-1"], "max_seconds must be positive, got -1"),
        (
            ["--model", "conv", "--set", "canvas.size=60"],
            "the network of classification.conv: canvas_size must be a power of 2",
        ),
        (
            ["--split", "quadrant", "--set", "canvas.size=8", "canvas.square=7"],
            "leaves 4 places to train and 0 to test on; take a larger canvas",
        ),
    ],
)
def test_the_script_names_what_does_not_fit(
    tiny: Experiments, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = ["--config", str(tiny.config), "--out", str(tiny.out)]
    assert train_coordinates.main([*fixed, *options]) == 2
    assert message in capsys.readouterr().err


def test_a_trace_goes_on_where_the_run_does(
    tiny: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.config.write_text(TINY.replace("epochs = 2", "epochs = 4"))
    settings = load_coordinate_settings(tiny.config, "classification", "coordconv", "uniform")
    whole = analysis.Trace(interval=2, shifts=(1,))
    Run(settings).train(on_step=whole)
    assert whole.steps == [2, 4, 6, 8]
    assert len(whole.errors) == len(whole.ratios) == len(whole.steps)
    assert all(0 <= error <= 1 for (error,) in whole.errors)
    train = Run.train

    def killed(self: Run, **options: Any) -> RunResult:
        def on_step(run: Run) -> None:
            options["on_step"](run)
            if run.step == 2:
                run._save()
            if run.step == 5:  # with a look behind the checkpoint
                raise RuntimeError("the power was cut")

        return train(self, **{**options, "on_step": on_step})

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train", killed)
        with pytest.raises(RuntimeError, match="the power was cut"):
            tiny.train(settings, trace=True)
    tiny.train(settings, trace=True)

    trace = json.loads(next(tiny.out.glob("*/trace.json")).read_text())
    assert trace["steps"] == [0, *whole.steps]
    assert [errors[:1] for errors in trace["errors"][1:]] == whole.errors


def test_a_finished_run_keeps_the_time_that_it_was_given(tiny: Experiments) -> None:
    settings = load_coordinate_settings(tiny.config, "classification", "coordconv", "uniform")
    shorter = replace(settings, training=replace(settings.training, max_seconds=1e-9))
    first = tiny.train(settings)
    assert tiny.train(shorter) == first
    assert first.settings.training.max_seconds is None


def test_the_best_of_a_sweep_has_the_highest_accuracy(
    tiny: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([*[0.25] * 4, 0.25, 0.75, 0.5, 0.125])

    def train(self: Experiments, settings: CoordinateSettings, *_: Any, **__: Any) -> RunResult:
        return replace(result(0, "coordconv", [next(accuracies)]), settings=settings)

    monkeypatch.setattr(Experiments, "train", train)
    text = tiny.train_seeds(
        "classification", "coordconv", "uniform", "pixel", seeds=2, sweep=True, report=tiny.out
    )
    settings = "training.learning_rate=0.01, training.l2=0.0, seed=1"
    assert text.startswith(f"best of 8 runs, by the test set, with {settings}:\n")
    assert "| 75.0 % (75.0 % to 75.0 %)" in text
    name = "classification-coordconv-uniform-pixel-sweep"
    record = json.loads((tiny.out / f"{name}.json").read_text())
    assert {row["input_scale"] for row in record["rows"]} == {"pixel"}
    assert record["best"] == {"training.learning_rate": 0.01, "training.l2": 0.0, "seed": 1}


def test_misplaced_shares_are_of_training_and_of_test_places(
    tiny: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(probabilities: Tensor, centers: Tensor, canvas: Canvas) -> float:
        assert float(probabilities.sum()) == pytest.approx(len(centers))
        return float(len(centers))

    monkeypatch.setattr(analysis, "total_variation", counted)
    text = tiny.train_seeds(
        "classification", "coordconv", "quadrant", "pixel", seeds=1, sweep=False, report=tiny.out
    )
    assert "classification, places as pixel, seed 0" in text
    record = json.loads((tiny.out / "classification-coordconv-quadrant-pixel.json").read_text())
    [share] = record["misplaced"]
    # Of the 6x6 places those of x and y above 4.
    assert (share["train"], share["test"]) == (36 - 4, 4)


def test_the_best_of_a_sweep_has_the_least_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([3.0, 0.25, 9.0, math.nan, *[4.0] * 5])

    def train(self: Experiments, settings: CoordinateSettings, *_: Any, **__: Any) -> RunResult:
        error = next(errors)
        both = {"train": {"error": error}, "test": {"error": error}}
        return replace(result(0, "conv", [error]), settings=settings, last=both, best=both)

    monkeypatch.setattr(Experiments, "train", train)
    text = Experiments(config=CONFIG, out=tmp_path).train_seeds(
        "regression", "conv", "uniform", "unit", seeds=1, sweep=True, report=tmp_path
    )
    assert text.startswith("best of 9 runs, by the test set, with training.learning_rate=0.0005, ")
    assert "| 0.25 px (0.25 px to 0.25 px)" in text


def test_the_true_map_is_the_sum_of_the_one_hots() -> None:
    centers = torch.tensor([[1, 2], [3, 2], [5, 0]])
    truth = figures.ground_truth(centers, 7)
    assert torch.equal(truth, one_hot_images(centers, Canvas(size=7, square=1)).sum(dim=(0, 1)))
    assert truth[2, 1] == 1


@pytest.mark.parametrize("place", [(2, 9), (9, 2)], ids=["left", "top"])
def test_neighbors_are_marked_where_their_pixel_is_drawn(place: tuple[int, int]) -> None:
    center, canvas = torch.tensor(place), Canvas(size=16, square=1)
    neighbors = center + torch.tensor([[0, 0], [1, 0], [2, 0]])
    ones = one_hot_images(neighbors, canvas).squeeze(1)
    drawn = figures.neighbor_logits({"known": ones}, center, window=4).axes
    for axes, neighbor in zip(drawn, neighbors.tolist(), strict=True):
        [marker] = axes.lines
        shown = np.asarray(axes.images[0].get_array())
        row, column = np.unravel_index(shown.argmax(), shown.shape)
        assert shown.max() == 1
        assert np.asarray(marker.get_xydata()).tolist() == [[column, row]]
        assert axes.get_title() == f"known: {tuple(neighbor)}"


def test_sheets_are_colored_by_x_and_then_by_y() -> None:
    centers, components = torch.tensor([[1, 2], [3, 5]]), torch.tensor([[0.5, 0.25], [-1, 2]])
    by_x, by_y = figures.sheets({"known": components}, centers).axes
    assert (by_x.get_title(), by_y.get_title()) == ("known, colored by x", "known, colored by y")
    colors = [np.asarray(axes.collections[0].get_array()).tolist() for axes in (by_x, by_y)]
    assert colors == [[1, 3], [2, 5]]
    assert np.asarray(by_y.collections[0].get_offsets()).tolist() == components.tolist()


def test_maps_are_black_at_0_and_white_at_their_own_largest_value() -> None:
    names = ("conv", "truth")
    maps = {name: (torch.rand(5, 7) + 0.1, 3 * torch.rand(5, 7) + 0.1) for name in names}

    drawn = figures.probability_maps(maps, {"conv": (0.1, 0.25)}).axes

    shown = [maps[name][row] for row in (0, 1) for name in names]  # training maps above test maps
    for axes, values in zip(drawn, shown, strict=True):
        [image] = axes.images
        assert np.array_equal(np.asarray(image.get_array()), values.numpy())
        assert image.get_clim() == pytest.approx((0, float(values.max())))
    assert [axes.get_title().strip() for axes in drawn] == [
        "conv, train\n10.0 % misplaced",
        "truth, train",
        "conv, test\n25.0 % misplaced",
        "truth, test",
    ]


def test_the_test_metric_is_drawn_against_processor_time() -> None:
    run = result(0, "conv", [0.25, 0.5])
    own = replace(run, curve=tuple(replace(point, train=1.0) for point in run.curve))
    axes = figures.learning_curves([own], "accuracy").axes[0]
    (line,) = axes.lines
    assert np.asarray(line.get_xydata()).tolist() == [[1.0, 0.25], [2.0, 0.5]]
    assert (axes.get_xscale(), axes.get_ylabel()) == ("log", "test accuracy")


def test_curves_of_a_model_share_their_color_and_one_line_of_the_legend() -> None:
    runs = [
        result(0, "conv", [0.25]),
        result(1, "conv", [0.5]),
        result(0, "coordconv", [1.0], parameters=7_553),
    ]
    axes = figures.learning_curves(runs, "accuracy").axes[0]
    first, second, other = (line.get_color() for line in axes.lines)
    assert first == second != other
    _, labels = axes.get_legend_handles_labels()
    assert labels == ["conv, 100 parameters", "coordconv, 7,553 parameters"]


@pytest.mark.parametrize(
    ("metric", "tests", "scale"),
    [
        ("error", [math.inf, 2.0, 0.5], "log"),
        ("error", [math.inf, math.nan], "linear"),
        ("accuracy", [0.5, 1.0], "linear"),
    ],
    ids=["error", "diverged", "accuracy"],
)
def test_errors_that_are_finite_are_drawn_on_a_logarithmic_scale(
    metric: str, tests: list[float], scale: str
) -> None:
    assert figures.learning_curves([result(0, "conv", tests)], metric).axes[0].get_yscale() == scale


def test_a_sweep_is_drawn_with_training_across_and_test_upwards() -> None:
    runs = [
        result(0, "conv", [0.2], train=0.9),
        result(0, "coordconv", [0.8], train=0.85),
        result(0, "conv", [0.4], train=0.7),
    ]
    axes = figures.sweep_scatter(runs, "accuracy").axes[0]
    points = {
        str(own.get_label()): np.asarray(own.get_offsets()).tolist() for own in axes.collections
    }
    assert points == {"conv": [[0.9, 0.2], [0.7, 0.4]], "coordconv": [[0.85, 0.8]]}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training accuracy", "test accuracy")
    [diagonal] = axes.lines
    assert np.array_equal(diagonal.get_xdata(), diagonal.get_ydata())


def test_errors_of_each_shift_and_ratios_of_coordinates_are_drawn_against_steps() -> None:
    errors, ratios = [[0.9, 0.8], [0.5, 0.6], [0.1, 0.2]], [0.5, 0.75, 0.25]
    nothing = [None, None, None]
    traces = {
        "coordconv": analysis.Trace(5, (1, 4), steps=[0, 5, 10], errors=errors, ratios=[*ratios]),
        "conv": analysis.Trace(2, (1,), steps=[0, 2, 4], errors=[[0.3]] * 3, ratios=[*nothing]),
    }

    left, right = figures.translation(traces).axes

    drawn = {
        str(line.get_label()): np.asarray(line.get_xydata()).tolist()
        for axes in (left, right)
        for line in axes.lines
    }
    assert drawn == {
        "coordconv, 1 px": [[0, 0.9], [5, 0.5], [10, 0.1]],
        "coordconv, 4 px": [[0, 0.8], [5, 0.6], [10, 0.2]],
        "conv, 1 px": [[0, 0.3], [2, 0.3], [4, 0.3]],
        "coordconv": [[0, 0.5], [5, 0.75], [10, 0.25]],  # conv has no coordinates to weigh
    }
    # The axis is linear from step 0 to 2, and logarithmic beyond.
    one, two, four = right.get_xaxis().get_transform().transform(np.array([1.0, 2.0, 4.0]))
    assert two == pytest.approx(2 * one)
    assert four - two < one


def test_nothing_that_was_traced_is_drawn_without_a_legend() -> None:
    empty = analysis.Trace(1, (1,), steps=[0], errors=[[0.5]], ratios=[None])
    left, right = figures.translation({"conv": empty}).axes
    assert (left.get_legend() is None, right.get_legend() is None) == (False, True)
    assert [axes.get_legend() for axes in figures.translation({}).axes] == [None, None]


def test_figures_are_drawn_from_what_analysis_returns(tmp_path: Path) -> None:
    canvas, painter = Canvas(16, 3), CoordConvPainter(16)
    task, centers = Classification(canvas), places(canvas)
    summed = analysis.summed_probabilities(painter, task, centers[:20])
    points = analysis.principal_components(analysis.last_features(painter, task, centers[:20]))
    trace = analysis.Trace(1, (1, 2), steps=[1, 2], errors=[[0.5, 0.6], [0.1, 0.2]], ratios=[1, 2])
    logits = analysis.logits_of_neighbors(painter, task, torch.tensor([4, 4]))
    drawn = {
        "maps": figures.probability_maps(
            {"coordconv": (summed, summed)}, {"coordconv": (0.1, 0.2)}
        ),
        "neighbors": figures.neighbor_logits({"coordconv": logits}, torch.tensor([4, 4]), 3),
        "sheets": figures.sheets({"coordconv": points}, centers[:20]),
        "translation": figures.translation({"coordconv": trace}),
    }
    for name, figure in drawn.items():
        write_figure(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert figure.axes


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_robust_painter_solves_a_quadrant_it_has_never_seen(seed: int) -> None:
    recipe = Recipe(learning_rate=0.005, batch_size=8, epochs=6, evaluation_interval=38)
    settings = CoordinateSettings(
        model="robust",
        split="quadrant",
        seed=seed,
        canvas=Canvas(size=24, square=5),
        training=recipe,
        network={"relative": True},
    )
    assert Run(settings).train().last["test"]["accuracy"] == 1
