"""Runs of the generative models: resume, divergence, folders of pictures, tables, the script."""

import copy
import gc
import io
import itertools
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
from PIL import ExifTags, Image
from torch import Tensor
from torch.testing import assert_close

import train_gan
from broken_pictures import write_broken_chunk, write_promise_of_too_much
from coordrl import CoordConv2d
from coordrl.backbone import Norm
from coordrl.config import SettingsError, parse_override
from coordrl.generative import figures, table
from coordrl.generative.data import Canvas, Objects, draw_objects, draw_pictures
from coordrl.generative.experiments import Experiments, _read_result
from coordrl.generative.folders import DataError, LmdbPictures, PictureFolder, open_pictures
from coordrl.generative.interpolation import Motion, follow, interpolate
from coordrl.generative.measures import Entropies, Row, measure
from coordrl.generative.models import Gan, Vae
from coordrl.generative.objectives import ObjectiveName, autoencoder_loss
from coordrl.generative.patches import laplacian_pyramid, sliced_wasserstein
from coordrl.generative.settings import (
    Arm,
    GanSettings,
    GenerativeSettings,
    NetworkSettings,
    Recipe,
    Scale,
    VaeSettings,
    load_generative_settings,
)
from coordrl.generative.training import Run, RunResult, advice
from coordrl.records import write_json
from coordrl.runs import open_run
from coordrl.stopping import Interrupted, StopRequest

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "generative.toml"
CPU = torch.device("cpu")
CANVAS = Canvas(size=16, radius=3)


def tiny(**changes: object) -> GenerativeSettings:
    """A run of a few small batches."""
    settings = GenerativeSettings(
        canvas=CANVAS,
        network=NetworkSettings(
            latent=4, generator_channels=2, discriminator_channels=2, discriminator_norm="none"
        ),
        training=Recipe(iterations=6, batch_size=4, pictures=10, evaluation_interval=3, samples=20),
        gan=GanSettings(objective="r3gan", average=0.5),
    )
    return replace(settings, **changes)  # type: ignore[arg-type]


def timeless(result: RunResult) -> list[object]:
    return [replace(point, seconds=0, cpu_seconds=0) for point in result.curve]


@pytest.mark.parametrize("model", ["gan", "vae"])
@pytest.mark.parametrize("coords", ["none", "all"])
def test_a_run_that_was_stopped_goes_on_as_if_it_never_had(
    model: str, coords: str, tmp_path: Path
) -> None:
    settings = tiny(model=model, coords=coords)
    whole = Run(settings).train()

    with StopRequest() as stop:

        def stop_at_four(run: Run) -> None:
            if run.step == 4:
                stop.signal_number = 15

        with open_run(tmp_path, "", resume=False) as folder:
            with pytest.raises(Interrupted):
                Run(settings, folder=folder).train(stop=stop, on_step=stop_at_four)
    with open_run(tmp_path, "", resume=True) as folder:
        resumed = Run(settings, folder=folder)
        assert resumed.step == 4
        rest = resumed.train()

    assert [point.step for point in rest.curve] == [3, 6]
    assert timeless(rest) == timeless(whole)
    assert rest.motion is not None


def test_the_same_seed_gives_the_same_pictures_and_another_seed_others() -> None:
    def samples(seed: int) -> Tensor:
        run = Run(tiny(seed=seed))
        run.train()
        return run.samples(5)

    first = samples(0)
    assert_close(samples(0), first, rtol=0, atol=0)
    assert not torch.allclose(samples(1), first)


def test_every_picture_is_taken_once_in_an_epoch() -> None:
    run = Run(tiny())
    taken = []
    for step in range(5):  # two epochs of ten pictures in batches of four
        run._progress.step = step
        taken += run._batch_indices().tolist()
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    assert taken[:10] != taken[10:]


def test_a_loss_that_is_no_number_ends_the_run_with_the_last_good_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny()
    good = Run(replace(settings, training=replace(settings.training, iterations=3)))
    good.train()
    learn = Gan.learn

    def break_at_four(self: Gan, real: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        losses = learn(self, real, generator)
        break_at_four.calls += 1  # type: ignore[attr-defined]
        if break_at_four.calls < 4:  # type: ignore[attr-defined]
            return losses
        with torch.no_grad():
            next(self.generator.parameters()).fill_(math.nan)
        return {name: loss * math.nan for name, loss in losses.items()}

    break_at_four.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(Gan, "learn", break_at_four)
    with open_run(tmp_path, "", resume=False) as folder:
        run = Run(settings, folder=folder)
        result = run.train()
    with open_run(tmp_path, "", resume=True) as folder:
        kept = Run(settings, folder=folder)

    assert result.ended == kept.train().ended == "diverged"
    assert run.step == kept.step == 3
    assert_close(kept.samples(5), good.samples(5), rtol=0, atol=0)
    assert [point.step for point in result.curve] == [3]


def test_a_run_that_has_diverged_is_found_where_it_went_back_to(tmp_path: Path) -> None:
    def save_at_four_and_break_at_five(run: Run) -> None:
        if run.step == 4:
            run._save()  # as after a minute
        if run.step == 5:
            assert isinstance(run.model, Gan)
            with torch.no_grad():
                next(run.model.generator.parameters()).fill_(math.nan)

    with open_run(tmp_path, "", resume=False) as folder:
        result = Run(tiny(), folder=folder).train(on_step=save_at_four_and_break_at_five)
        assert (result.ended, result.curve[-1].step) == ("diverged", 3)
        assert Run(tiny(), folder=folder).step == 3


def test_a_run_that_was_stopped_goes_back_as_far_as_one_that_was_not(tmp_path: Path) -> None:
    def stop_at_four(run: Run) -> None:
        if run.step == 4:
            stop.signal_number = 15

    def break_at_five(run: Run) -> None:
        if run.step == 5:
            assert isinstance(run.model, Gan)
            with torch.no_grad():
                next(run.model.generator.parameters()).fill_(math.nan)

    whole = Run(tiny()).train(on_step=break_at_five)
    with open_run(tmp_path, "", resume=False) as folder:
        with StopRequest() as stop, pytest.raises(Interrupted):
            Run(tiny(), folder=folder).train(stop=stop, on_step=stop_at_four)
        rest = Run(tiny(), folder=folder).train(on_step=break_at_five)

    assert whole.curve[-1].step == 3
    assert timeless(rest) == timeless(whole)


def test_advice_names_settings_of_what_diverged() -> None:
    assert advice(tiny(model="vae")) == "lower vae.learning_rate"
    assert advice(tiny()).startswith("raise gan.gamma, or lower gan.generator_lr")
    paper = GanSettings(objective="paper")
    assert advice(tiny(gan=paper)).startswith("take --objective r3gan, or lower gan.generator_lr")


@pytest.mark.parametrize("model", ["gan", "vae"])
@pytest.mark.parametrize("step", range(1, 7))
def test_weights_that_are_no_numbers_end_a_run_as_losses_do(model: str, step: int) -> None:
    # The last update before an evaluation, every third step, or before the end may spoil them.
    run = Run(tiny(model=model))

    def spoil(run: Run) -> None:
        if run.step == step:
            made = run.model
            network = made.autoencoder if isinstance(made, Vae) else made.generator
            with torch.no_grad():
                next(network.parameters()).fill_(math.inf)

    result = run.train(on_step=spoil)

    assert result.ended == "diverged"
    assert run.model.is_finite()
    assert run.samples().isfinite().all()
    assert result.curve[-1].step == run.step <= step


def test_weights_that_are_too_large_end_a_run_as_well() -> None:
    settings = tiny(model="vae", coords="none", vae=VaeSettings(learning_rate=1e6))
    training = replace(settings.training, iterations=12, evaluation_interval=1)
    run = Run(replace(settings, training=training))

    result = run.train()

    assert result.ended == "diverged"
    assert run.samples().isfinite().all()


def test_data_is_judged_against_other_data() -> None:
    run = Run(tiny())
    others = draw_pictures(run._others(0), CANVAS)
    trained = run.pictures.batch(torch.arange(10), CPU)
    real = run.real_pictures()
    assert not any(torch.equal(a, b) for a in real for b in [*others, *trained])


def test_real_pictures_are_measured_against_others(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs: list[tuple[Tensor, Tensor]] = []

    def watched(pictures: Tensor, real: Objects, canvas: Canvas) -> Row:
        pairs.append((pictures, draw_pictures(real, canvas)))
        return measure(pictures, real, canvas)

    monkeypatch.setattr("coordrl.generative.training.measure", watched)
    run = Run(tiny())
    run.train()

    own, others = pairs[-1]
    assert torch.equal(own, run.real_pictures())
    assert len(own) == len(others) == 20
    assert not any(torch.equal(a, b) for a in own for b in others)


def test_beta_weighs_the_latents_of_a_vae() -> None:
    def bounds(beta: float) -> Tensor:
        made = Run(tiny(model="vae", vae=VaeSettings(beta=beta))).model
        assert isinstance(made, Vae)
        pictures = draw_pictures(draw_objects(CANVAS, 4, torch.Generator().manual_seed(0)), CANVAS)
        return made.learn(pictures, torch.Generator().manual_seed(0))["bound"]

    nothing, once, twice = bounds(1e-12), bounds(1.0), bounds(2.0)
    assert once > nothing + 0.01
    assert_close(twice - nothing, 2 * (once - nothing), rtol=1e-3, atol=1e-3)


def test_a_run_is_cut_short_by_its_processor_time() -> None:
    settings = tiny()
    limited = replace(settings, training=replace(settings.training, max_seconds=1e-9))
    result = Run(limited).train()
    assert result.ended == "time"
    assert result.curve[-1].step == 1


def test_the_average_moves_towards_the_weights() -> None:
    gan = Run(tiny(gan=GanSettings(objective="r3gan", average=0.75))).model
    assert isinstance(gan, Gan)
    before = [p.detach().clone() for p in gan.generator.parameters()]
    real = draw_pictures(draw_objects(CANVAS, 4, torch.Generator().manual_seed(0)), CANVAS)

    gan.learn(real, torch.Generator().manual_seed(0))

    assert gan.averaged is not None
    for old, new, average in zip(
        before, gan.generator.parameters(), gan.averaged.parameters(), strict=True
    ):
        assert_close(average, 0.75 * old + 0.25 * new)


@pytest.mark.parametrize("coords", ["none", "all"])
def test_pictures_are_of_the_average_with_the_norms_of_the_generator(coords: Arm) -> None:
    gan = Run(tiny(coords=coords, gan=GanSettings(objective="r3gan", average=0.75))).model
    assert isinstance(gan, Gan)
    assert gan.averaged is not None
    random = torch.Generator().manual_seed(0)
    for _ in range(2):
        gan.learn(torch.rand(4, 3, 16, 16, generator=random) * 2 - 1, random)
    shown, latents = copy.deepcopy(gan.generator).eval(), gan.latents(5, random)
    with torch.no_grad():
        of_generator = shown(latents)
        for weight, average in zip(shown.parameters(), gan.averaged.parameters(), strict=True):
            weight.copy_(average)

        assert_close(gan.generate(latents), shown(latents))
    assert not torch.allclose(gan.generate(latents), of_generator)


def test_latent_vectors_are_uniform_for_a_gan_and_normal_for_an_autoencoder() -> None:
    uniform, normal = (
        Run(tiny(model=model)).model.latents(5000, torch.Generator().manual_seed(0))
        for model in ("gan", "vae")
    )
    assert uniform.abs().max() <= 1
    assert_close(uniform.quantile(torch.tensor([0.1, 0.5, 0.9])), torch.tensor([-0.8, 0, 0.8]),
                 atol=0.03, rtol=0)  # fmt: skip
    assert_close(normal.quantile(torch.tensor([0.1, 0.5, 0.9])), torch.tensor([-1.28, 0, 1.28]),
                 atol=0.05, rtol=0)  # fmt: skip


@pytest.mark.parametrize("coords", ["none", "all"])
def test_a_step_of_an_autoencoder_is_adams_on_its_bound(coords: Arm) -> None:
    settings = VaeSettings(learning_rate=2e-2, beta=3.0)
    model = Run(tiny(model="vae", coords=coords, vae=settings)).model
    assert isinstance(model, Vae)
    model.generate(torch.rand(2, 4))  # in evaluation, where a batch norm works otherwise
    own = copy.deepcopy(model.autoencoder).train()
    adam = torch.optim.Adam(own.parameters(), 2e-2, (0.9, 0.999))
    ours, theirs = (torch.Generator().manual_seed(5) for _ in range(2))
    for shade in (-0.9, 0.9, 0.1, -0.3):
        real = torch.full((4, 3, 16, 16), shade)

        losses = model.learn(real, ours)

        logits, mean, log_variance = own(real, model.latents(4, theirs))
        loss = autoencoder_loss(logits, real, mean, log_variance, beta=3)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        assert_close(losses["bound"], loss.detach(), rtol=1e-5, atol=0)


def test_a_curve_has_the_mean_losses_since_the_evaluation_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learn, seen = Gan.learn, []

    def watched(self: Gan, real: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        losses = learn(self, real, generator)
        seen.append(float(losses["generator"]))
        return losses

    monkeypatch.setattr(Gan, "learn", watched)
    curve = Run(tiny()).train().curve

    means = [sum(seen[:3]) / 3, sum(seen[3:]) / 3]
    assert [point.losses["generator"] for point in curve] == pytest.approx(means)


def test_ways_of_an_autoencoder_lead_from_one_unseen_picture_to_another() -> None:
    network = replace(tiny().network, discriminator_norm="batch")
    run = Run(tiny(model="vae", network=network))
    pictures = draw_pictures(run._others(0).take(torch.arange(4)), CANVAS)

    ways = run.ways(2, 3)

    assert isinstance(run.model, Vae)
    with torch.no_grad():
        means = run.model.autoencoder.eval().encoder(pictures)[:, :4]
    assert_close(ways[:, 0], run.model.generate(means[:2]))
    assert_close(ways[:, -1], run.model.generate(means[2:]))


def test_ways_of_a_generator_lead_from_one_random_vector_to_another() -> None:
    run = Run(tiny())
    pictures = run.samples(4)  # of the same random vectors
    ways = run.ways(2, 3)
    assert_close(ways[:, 0], pictures[:2])
    assert_close(ways[:, -1], pictures[2:])


@pytest.mark.parametrize("model", ["gan", "vae"])
@pytest.mark.parametrize("coords", ["none", "all"])
def test_half_precision_takes_nearly_the_same_step(model: str, coords: str) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        training = replace(tiny().training, precision=precision, iterations=1)
        (point,) = Run(tiny(model=model, coords=coords, training=training)).train().curve
        losses.append(point.losses)
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_half_precision_leaves_weights_and_losses_in_single() -> None:
    training = replace(tiny().training, precision="bfloat16")
    gan = Run(tiny(training=training)).model
    assert isinstance(gan, Gan)
    losses = gan.learn(torch.rand(4, 3, 16, 16), torch.Generator().manual_seed(0))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {p.dtype for p in gan.generator.parameters()} == {torch.float32}
    assert gan.generate(torch.rand(2, 4)).dtype == torch.float32


@pytest.mark.parametrize("coords", ["none", "all"])
@pytest.mark.parametrize(("objective", "norm"), [("paper", "batch"), ("r3gan", "none")])
def test_a_batch_is_a_step_of_the_discriminator_and_then_those_of_the_generator(
    objective: ObjectiveName, norm: Norm, coords: Arm
) -> None:
    torch.manual_seed(0)
    network = replace(tiny().network, discriminator_norm=norm)
    settings = GanSettings(objective=objective, generator_lr=1e-2, discriminator_lr=2e-2,
                           beta1=0.3, beta2=0.9, generator_steps=3)  # fmt: skip
    gan = Run(tiny(coords=coords, network=network, gan=settings)).model
    assert isinstance(gan, Gan)
    gan.generate(torch.rand(2, 4))  # in evaluation, where a batch norm works otherwise
    generator, discriminator = copy.deepcopy((gan.generator, gan.discriminator))
    real = torch.rand(4, 3, 16, 16) * 2 - 1

    ours, theirs = (torch.Generator().manual_seed(5) for _ in range(2))
    generator.train()
    d_adam = torch.optim.Adam(discriminator.parameters(), 2e-2, (0.3, 0.9))
    g_adam = torch.optim.Adam(generator.parameters(), 1e-2, (0.3, 0.9))
    for _ in range(2):  # only a second step of Adam knows its momenta
        losses = gan.learn(real, ours)

        latents = gan.latents(4, theirs)
        d_loss = gan.objective.discriminator_loss(discriminator, real, generator(latents).detach())
        d_adam.zero_grad()
        d_loss.backward()  # type: ignore[no-untyped-call]
        d_adam.step()
        for _ in range(3):
            g_loss = gan.objective.generator_loss(discriminator, real, generator(latents))
            g_adam.zero_grad()
            g_loss.backward()  # type: ignore[no-untyped-call]
            g_adam.step()
        expected = {"discriminator": d_loss.detach(), "generator": g_loss.detach()}
        assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    # Not the weights: a bias before a batch norm has the gradient that rounding gives it.
    assert_close(gan.generator(latents), generator(latents), rtol=1e-2, atol=1e-2)
    assert_close(gan.discriminator(real), discriminator(real), rtol=1e-2, atol=1e-2)


def test_a_step_of_the_generator_leaves_the_discriminator_trainable() -> None:
    gan = Run(tiny()).model
    assert isinstance(gan, Gan)
    gan.learn(torch.rand(4, 3, 16, 16), torch.Generator().manual_seed(0))
    assert all(p.requires_grad for p in gan.discriminator.parameters())


def test_a_small_autoencoder_learns_its_pictures() -> None:
    settings = tiny(model="vae", vae=VaeSettings(learning_rate=1e-2))
    training = replace(settings.training, iterations=60, evaluation_interval=20)
    result = Run(replace(settings, training=training)).train()
    bounds = [point.losses["bound"] for point in result.curve]
    assert bounds[-1] < 0.9 * bounds[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recipe(batch_size=1), "batch_size must be at least 2, got 1"),
        (lambda: Recipe(iterations=0), "iterations must be at least 1, got 0"),
        (lambda: Recipe(max_seconds=-5), "max_seconds must be positive, got -5"),
        (lambda: GanSettings(generator_lr=0), r"must be positive, got 0\.0 and"),
        (lambda: GanSettings(beta2=1.0), "must be below 1, got 0.9, 1.0"),
        (lambda: GanSettings(gamma=-1), "gamma must be at least 0, got -1"),
        (lambda: GanSettings(gamma=math.inf), "gamma must be a number, got inf"),
        (lambda: VaeSettings(learning_rate=-1), "learning_rate must be positive, got -1"),
        (lambda: NetworkSettings(latent=0), "latent must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_penalties_of_single_gradients_refuse_batch_norm() -> None:
    settings = tiny(network=NetworkSettings(discriminator_norm="batch"))
    with pytest.raises(SettingsError, match="the objective r3gan needs network"):
        Run(settings)


@pytest.mark.parametrize("scale", ["quick", "small", "paper"])
@pytest.mark.parametrize("recipe", ["paper", "r3gan", "vae"])
def test_the_shipped_settings_fit(scale: str, recipe: str) -> None:
    model = "vae" if recipe == "vae" else "gan"
    objective = "paper" if recipe == "vae" else recipe
    settings = load_generative_settings(
        CONFIG,
        scale,  # type: ignore[arg-type]
        model,  # type: ignore[arg-type]
        "all",
        objective,  # type: ignore[arg-type]
    )
    assert settings.model == model
    if model == "gan":
        assert settings.gan.objective == objective
    if scale == "paper":
        assert settings.canvas == Canvas()
        assert settings.network.generator_channels == 64


def test_paper_scale_and_recipe_are_the_papers() -> None:
    settings = load_generative_settings(CONFIG, "paper", "gan", "all", "paper")
    assert settings.gan == GanSettings()
    assert settings.training == Recipe()
    assert settings.training.iterations == 50 * 50_000 / settings.training.batch_size


def test_step_sizes_of_a_scale_are_for_the_papers_loss() -> None:
    def gan(scale: Scale, objective: ObjectiveName) -> GanSettings:
        return load_generative_settings(CONFIG, scale, "gan", "all", objective).gan

    assert gan("small", "r3gan") == gan("paper", "r3gan")
    narrow, wide = gan("small", "paper"), gan("paper", "paper")
    assert narrow.generator_lr > wide.generator_lr
    assert narrow.generator_steps == wide.generator_steps == 2


def test_a_table_of_no_scale_is_named(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[scale.huge]\n")
    with pytest.raises(SettingsError, match=r"\[scale\] knows quick, small, paper, got 'huge'"):
        load_generative_settings(file, "quick", "gan", "all")
    file.write_text("[scales.quick]\n")
    with pytest.raises(SettingsError, match="tables of scale and recipe, got 'scales'"):
        load_generative_settings(file, "quick", "gan", "all")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight pictures of several sizes and modes, in two folders."""
    random = np.random.default_rng(0)
    path = tmp_path / "rooms"
    (path / "more").mkdir(parents=True)
    for index in range(8):
        height, width = 20 + index, 40 - index
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        image = Image.fromarray(pixels).convert("L" if index == 3 else "RGB")
        image.save(path / ("more" if index % 2 else ".") / f"{index}.png")
    return path


def test_folders_are_read_in_order_cut_to_their_middle_and_scaled(folder: Path) -> None:
    wide = Image.new("RGB", (60, 20), "red")
    wide.paste("blue", (15, 0, 45, 20))
    wide.save(folder / "a.png")
    pictures = PictureFolder(folder, 16)

    assert len(pictures) == 9
    index = [file.name for file in pictures.files].index("a.png")
    (middle,) = pictures.batch(torch.tensor([index]), CPU)
    assert_close(middle, torch.tensor([-1.0, -1.0, 1.0]).view(3, 1, 1).expand(3, 16, 16))
    everything = pictures.batch(torch.arange(9), CPU)
    assert everything.shape == (9, 3, 16, 16)
    assert torch.equal(pictures.batch(torch.tensor([7, 3, 7]), CPU), everything[[7, 3, 7]])


def test_pictures_of_all_kinds_are_sorted_by_their_path(folder: Path) -> None:
    for name in ("9.PNG", "more/7.Jpeg", "more/0.webp", "3.bmp", "8.jpg"):
        Image.new("RGB", (20, 30)).save(folder / name)
    (folder / "more" / "about.txt").write_text("no picture")

    pictures = PictureFolder(folder, 16)

    names = [str(file.relative_to(folder)) for file in pictures.files]
    above, below = [name for name in names if "/" not in name], names[-6:]
    assert above == ["0.png", "2.png", "3.bmp", "4.png", "6.png", "8.jpg", "9.PNG"]
    assert below == [
        f"more/{name}" for name in ("0.webp", "1.png", "3.png", "5.png", "7.Jpeg", "7.png")
    ]
    assert pictures.batch(torch.arange(len(names)), CPU).isfinite().all()


def test_pictures_stand_upright(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    [read] = PictureFolder(tmp_path, 16).batch(torch.tensor([0]), CPU)
    assert_close(read.permute(1, 2, 0), torch.from_numpy(pixels) / 127.5 - 1)


def test_pictures_are_turned_as_their_exif_says(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    columns_and_rows = pixels.transpose(1, 0, 2)
    stored = {  # by the orientation in EXIF 2.32, table 6
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: columns_and_rows,
        6: columns_and_rows[::-1],
        7: columns_and_rows[::-1, ::-1],
        8: columns_and_rows[:, ::-1],
    }
    for orientation, turned in stored.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        Image.fromarray(turned).save(tmp_path / f"{orientation}.png", exif=exif)

    read = PictureFolder(tmp_path, 16).batch(torch.arange(8), CPU)

    expected = torch.from_numpy(pixels) / 127.5 - 1
    assert_close(read.permute(0, 2, 3, 1), expected.expand(8, 16, 16, 3))


@pytest.mark.parametrize("exif", [b"Exif\0\0 no TIFF", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"])
def test_a_picture_with_damaged_exif_is_shown_as_it_is(exif: bytes, tmp_path: Path) -> None:
    Image.new("RGB", (20, 16), "red").save(tmp_path / "a.png", exif=exif)
    [read] = PictureFolder(tmp_path, 16).batch(torch.tensor([0]), CPU)
    assert read[:, 8, 8].tolist() == [1, -1, -1]


def test_transparent_pictures_lie_on_white(tmp_path: Path) -> None:
    red, half, hidden = (255, 0, 0, 255), (255, 0, 0, 51), (0, 0, 255, 0)
    colors = Image.new("RGBA", (16, 16), red)
    colors.paste(half, (0, 0, 16, 8))
    colors.paste(hidden, (0, 0, 8, 8))
    colors.save(tmp_path / "a.png")
    two = Image.new("P", (16, 16), 1)
    two.putpalette([0, 0, 255, 255, 0, 0])
    two.paste(0, (0, 0, 8, 8))
    two.save(tmp_path / "b.png", transparency=0)
    gray = Image.new("LA", (16, 16), (0, 255))
    gray.paste((0, 0), (0, 0, 8, 8))
    gray.save(tmp_path / "c.webp", lossless=True)

    read = PictureFolder(tmp_path, 16).batch(torch.arange(3), CPU)

    assert (read[:, :, :6, :6] == 1).all()
    assert_close(read[0, :, 4, 12], torch.tensor([1, 204 / 127.5 - 1, 204 / 127.5 - 1]))
    assert read[:, :, 12, 12].tolist() == [[1, -1, -1], [1, -1, -1], [-1, -1, -1]]


def test_pictures_that_are_scaled_down_are_averaged(tmp_path: Path) -> None:
    rows, columns = np.indices((64, 64))
    Image.fromarray(((rows + columns) % 2 * 255).astype(np.uint8)).save(tmp_path / "a.png")
    assert PictureFolder(tmp_path, 16).batch(torch.tensor([0]), CPU).abs().max() < 0.02


def test_grays_of_16_bits_are_scaled_to_8(tmp_path: Path) -> None:
    grays = np.array([0, 100, 180, 255])
    for name, values in (("8", grays.astype(np.uint8)), ("16", (grays * 257).astype(np.uint16))):
        Image.fromarray(values.reshape(2, 2).repeat(8, 0).repeat(8, 1)).save(
            tmp_path / f"{name}.png"
        )
    deep, plain = PictureFolder(tmp_path, 16).batch(torch.arange(2), CPU)
    assert torch.equal(deep, plain)
    assert plain[:, 2, 12].tolist() == pytest.approx([100 / 127.5 - 1] * 3)


def test_a_picture_that_promises_too_much_is_named(tmp_path: Path) -> None:
    write_promise_of_too_much(tmp_path / "a.bmp")
    with pytest.raises(DataError, match=r"a\.bmp cannot be read as a picture: .*900000000 pixels"):
        PictureFolder(tmp_path, 16).batch(torch.tensor([0]), CPU)


def test_a_picture_that_is_cut_off_is_named(folder: Path) -> None:
    file = folder / "0.png"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"0\.png cannot be read as a picture"):
        PictureFolder(folder, 16).batch(torch.arange(8), CPU)


def test_a_picture_with_a_broken_chunk_is_named(folder: Path) -> None:
    write_broken_chunk(folder / "0.png")
    with pytest.raises(DataError, match=r"0\.png cannot be read as a picture: broken PNG file"):
        PictureFolder(folder, 16).batch(torch.arange(8), CPU)


@pytest.mark.parametrize("kept", [2 / 3, 1 - 1e-6], ids=["a third", "a byte"])
def test_an_lmdb_that_was_cut_off_is_named(kept: float, tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    path = tmp_path / "cut"
    with lmdb.open(str(path), map_size=2**24) as database, database.begin(write=True) as writer:
        for index in range(100):
            writer.put(f"{index:04d}".encode(), bytes(10_000))
    data = path / "data.mdb"
    whole = data.read_bytes()
    data.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DataError) as refused:
        open_pictures(str(path), 16)
    data.write_bytes(whole)
    assert len(open_pictures(str(path), 16)) == 100  # even if the error is kept, as notebooks do
    assert refused.match(r"cut/data.mdb was cut off; unpack or download it again")


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures; expected files that end in"):
        open_pictures(str(tmp_path), 16)
    with pytest.raises(DataError, match=r"no folder .*nowhere; name a folder of pictures"):
        open_pictures(str(tmp_path / "nowhere"), 16)
    with pytest.raises(DataError, match="no folder bedroom_train_lmdb; download the category"):
        open_pictures("lsun", 16)


def test_an_lmdb_gives_the_pictures_of_the_folder_it_was_made_of(
    folder: Path, tmp_path: Path
) -> None:
    lmdb = pytest.importorskip("lmdb")
    path = tmp_path / "bedroom_train_lmdb"
    files = PictureFolder(folder, 16)
    with lmdb.open(str(path), map_size=2**24) as database, database.begin(write=True) as writer:
        for index, file in enumerate(files.files):
            writer.put(f"{index:04d}".encode(), file.read_bytes())
        assert len(files) == 8

    pictures = open_pictures(str(path), 16)

    assert isinstance(pictures, LmdbPictures)
    order = torch.tensor([7, 0, 3])
    assert_close(pictures.batch(order, CPU), files.batch(order, CPU), rtol=0, atol=0)
    smaller = open_pictures(str(path), 8)  # while the first is open
    assert len(smaller) == 8
    assert_close(
        smaller.batch(order, CPU), PictureFolder(folder, 8).batch(order, CPU), rtol=0, atol=0
    )


def test_an_lmdb_without_pictures_or_with_broken_ones_is_named(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    path = tmp_path / "rooms"  # under any name
    with lmdb.open(str(path), map_size=2**24) as database:
        pass
    with pytest.raises(DataError, match="rooms holds no pictures"):
        open_pictures(str(path), 16)
    gc.collect()
    with lmdb.open(str(path), map_size=2**24) as database, database.begin(write=True) as writer:
        writer.put(b"7f3a", b"no picture")
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    with pytest.raises(DataError, match=r"rooms, b'7f3a' cannot be read as a picture"):
        open_pictures(str(path), 16).batch(torch.tensor([0]), CPU)

    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    (tmp_path / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(DataError, match="cannot be read as an LMDB"):
        open_pictures(str(tmp_path), 16)
    with pytest.raises(DataError, match="there is no folder ''; name a folder of pictures"):
        open_pictures("", 16)


def test_an_lmdb_without_its_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.mdb").touch()
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    with pytest.raises(DataError, match=r"pip install 'coordrl\[lsun\]'"):
        open_pictures(str(tmp_path), 16)


def test_a_gan_learns_from_a_folder_and_is_judged_by_patches(folder: Path) -> None:
    result = Run(tiny(data=str(folder))).train()
    assert result.ended == "iterations"
    assert result.motion is None
    assert result.curve[-1].entropies is None
    assert len(result.curve[-1].patches) == len(result.real.patches) == 1
    assert "distance of patches" in table.to_markdown([result])


def draw_another(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "0.png")


def rename_one(folder: Path) -> None:
    (folder / "0.png").rename(folder / "00.png")


def delete_one(folder: Path) -> None:
    (folder / "0.png").unlink()


def change_nothing(folder: Path) -> None:
    (folder / "about.txt").touch()


@pytest.mark.parametrize("change", [draw_another, rename_one, delete_one, change_nothing])
@pytest.mark.parametrize("has_record", [True, False])
def test_a_run_that_goes_on_with_other_pictures_says_so(
    change: Callable[[Path], None],
    has_record: bool,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Checkpoints of earlier versions have no record of the pictures."""
    command = ["--data", str(folder), "--out", str(tmp_path / "runs")]
    state = Run._state
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "requested", True)
        if not has_record:
            patched.setattr(Run, "_state", lambda run: {**state(run), "pictures": ""})
        assert run_script(*command) == 130
    change(folder)
    capsys.readouterr()

    assert run_script(*command) == 0

    assert capsys.readouterr().err.count(
        f"gan-r3gan-all-16-rooms-s0: pictures in {folder} have other names or sizes than when this"
        " run was stopped; it goes on with those that are there now\n"
    ) == int(has_record and change is not change_nothing)


def test_an_lmdb_with_other_keys_is_told_apart(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    checksums = []
    for name, keys in (("a", ["1", "23"]), ("b", ["1", "23"]), ("c", ["12", "3"])):
        path = tmp_path / name
        with lmdb.open(str(path), map_size=2**20) as database, database.begin(write=True) as writer:
            for key in keys:
                writer.put(key.encode(), b"a picture")
        checksums.append(open_pictures(str(path), 16).checksum())
    same, equal, other = checksums
    assert same == equal != other


def test_a_link_to_nowhere_is_named_when_it_is_read(folder: Path) -> None:
    (folder / "a.png").symlink_to("nowhere.png")
    pictures = PictureFolder(folder, 16)
    assert pictures.checksum()
    with pytest.raises(DataError, match=r"a\.png cannot be read as a picture: No such file"):
        pictures.batch(torch.arange(9), CPU)


def test_real_pictures_of_a_folder_are_judged_against_others_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs: list[tuple[Tensor, Tensor]] = []

    def watched(pictures: Tensor, real: Tensor, generator: torch.Generator) -> list[float]:
        pairs.append((pictures, real))
        return [0.0]

    monkeypatch.setattr("coordrl.generative.training.sliced_wasserstein", watched)
    Run(tiny(data=str(folder))).train()

    own, others = pairs[-1]
    assert len(own) == len(others) == 4
    assert not (own.unsqueeze(1) == others).flatten(2).all(dim=2).any()


def test_the_pyramid_adds_up_to_the_pictures() -> None:
    pictures = torch.rand(2, 3, 64, 64)
    bands = laplacian_pyramid(pictures)

    assert [band.shape[-1] for band in bands] == [64, 32, 16]
    total = bands[-1]
    for band in reversed(bands[:-1]):
        total = band + torch.nn.functional.interpolate(
            total, scale_factor=2, mode="bilinear", align_corners=False
        )
    assert_close(total, pictures)


def test_the_pyramid_halves_by_means_of_four_pixels() -> None:
    pictures = torch.rand(2, 3, 32, 64)
    means = pictures.view(2, 3, 16, 2, 32, 2).mean(dim=(3, 5))
    assert_close(laplacian_pyramid(pictures)[-1], means)


@pytest.mark.parametrize("edge", [(..., -1), (..., -1, slice(None)), (..., 0)])
def test_patches_are_taken_up_to_the_edges_of_a_picture(edge: Any) -> None:
    torch.manual_seed(0)
    pictures, real = torch.rand(2, 20, 3, 9, 14)
    changed = pictures.clone()
    changed[edge] += 1

    own, of_changed = (
        sliced_wasserstein(one, real, torch.Generator().manual_seed(0))
        for one in (pictures, changed)
    )

    assert of_changed[0] > own[0] + 0.05


def test_patches_of_the_same_pictures_are_near_and_of_blurred_ones_far() -> None:
    torch.manual_seed(0)
    sharp, others = torch.rand(100, 3, 32, 32), torch.rand(100, 3, 32, 32)
    blurred = torch.nn.functional.avg_pool2d(sharp, 7, stride=1, padding=3)

    def distance(pictures: Tensor) -> list[float]:
        return sliced_wasserstein(pictures, others, torch.Generator().manual_seed(0), patches=16)

    assert max(distance(sharp)) < 0.08
    for far, near in zip(distance(blurred), distance(sharp), strict=True):
        assert far > 2 * near


def test_patches_are_compared_color_by_color_whatever_their_contrast() -> None:
    torch.manual_seed(0)
    pictures, others = torch.rand(2, 30, 3, 32, 48)
    louder = pictures * torch.tensor([1.0, 5.0, 0.2]).view(3, 1, 1)

    own, of_louder = (
        sliced_wasserstein(one, others, torch.Generator().manual_seed(0), patches=4)
        for one in (pictures, louder)
    )

    assert of_louder == pytest.approx(own, abs=1e-5)


def test_sets_of_unequal_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"of one size, got \(2, 3, 16, 16\) and \(3, 3, 16, 16\)"):
        sliced_wasserstein(torch.zeros(2, 3, 16, 16), torch.zeros(3, 3, 16, 16), torch.Generator())


def test_interpolated_vectors_have_the_mix_of_both_lengths() -> None:
    first, second = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 1.0], [2.0, 2.0]])

    along = interpolate(first, second, 5)

    assert_close(along[:, 0], first)
    assert_close(along[:, -1], second)
    assert_close(along[0].norm(dim=1), torch.linspace(3, 1, 5))
    assert_close(along[1, 2], torch.tensor([1.5, 1.5]))


def test_a_way_needs_two_ends() -> None:
    with pytest.raises(ValueError, match="got steps=1"):
        interpolate(torch.zeros(1, 2), torch.zeros(1, 2), 1)


def ends() -> tuple[Tensor, Tensor]:
    """Two pictures with blue at (8, 8) and (24, 8), and red at (8, 24) in both."""
    centers = torch.tensor([[[8, 8], [8, 24]], [[24, 8], [8, 24]]])
    squares = torch.zeros(2, 2, dtype=torch.bool)
    objects = replace(draw_objects(LARGE, 2, torch.Generator()), centers=centers, is_disc=squares)
    first, second = draw_pictures(objects, LARGE)
    return first, second


LARGE = Canvas(size=32, radius=5)


def test_an_object_that_moves_walks_straight() -> None:
    first, _ = ends()
    steps = []
    for x in range(0, 17, 2):
        picture = first.clone()
        picture[:, :16] = 1.0
        picture[:, 3:14, 3 + x : 14 + x] = torch.tensor([-1.0, -1.0, 1.0]).view(3, 1, 1)
        steps.append(picture)

    motion = follow(torch.stack(steps).unsqueeze(0), LARGE)

    assert motion.ways == 1  # red stays where it is
    assert (motion.visible, motion.whole, motion.moved) == (1, 1, 1)
    assert motion.largest_step == pytest.approx(1 / 8)
    assert motion.detour == pytest.approx(1)

    steps[3][:, :16] = 1.0  # not there for a moment, and a quarter of the way further after it
    motion = follow(torch.stack(steps).unsqueeze(0), LARGE)
    assert motion.largest_step == pytest.approx(1 / 4)
    assert motion.visible == pytest.approx(6 / 7)
    assert motion.moved == 0


@pytest.mark.parametrize(("reach", "ways"), [(4, 0), (5, 1)])
def test_ways_shorter_than_a_radius_lead_nowhere(reach: int, ways: int) -> None:
    centers = torch.tensor([[[8 + reach * step // 2, 8], [8, 24]] for step in range(3)])
    squares = torch.zeros(3, 2, dtype=torch.bool)
    objects = replace(draw_objects(LARGE, 3, torch.Generator()), centers=centers, is_disc=squares)
    assert follow(draw_pictures(objects, LARGE).unsqueeze(0), LARGE).ways == ways


def test_objects_on_their_way_are_whole_if_half_of_them_fits() -> None:
    centers = torch.tensor([[[x, 12], [48, 48]] for x in range(12, 53, 8)])
    discs = replace(
        draw_objects(Canvas(), 6, torch.Generator()),
        centers=centers,
        is_disc=torch.ones(6, 2, dtype=torch.bool),
    )
    smaller = draw_pictures(discs, Canvas(radius=8))  # two thirds of the area
    assert follow(smaller.unsqueeze(0), Canvas()).whole == 1
    tiny_ones = draw_pictures(discs, Canvas(radius=6))  # a third of it
    assert follow(tiny_ones.unsqueeze(0), Canvas()).whole == 0


def test_an_object_that_fades_here_and_appears_there_does_not_move() -> None:
    first, second = ends()
    steps = torch.stack([first.lerp(second, share) for share in torch.linspace(0, 1, 9)])

    motion = follow(steps.unsqueeze(0), LARGE)

    assert motion.moved == 0
    assert motion.largest_step >= 0.5
    assert motion.whole < 1


def test_nothing_is_followed_where_there_is_no_object() -> None:
    motion = follow(torch.ones(2, 5, 3, 32, 32), LARGE)
    assert motion.ways == 0
    assert math.isnan(motion.moved)
    with pytest.raises(ValueError, match="three steps or more to follow, got 2"):
        follow(torch.ones(2, 2, 3, 32, 32), LARGE)


def test_centers_are_drawn_under_their_own_colors() -> None:
    objects = replace(
        draw_objects(CANVAS, 1, torch.Generator()), centers=torch.tensor([[[4, 11], [12, 5]]])
    )
    figure = figures.comparison({"data": draw_pictures(objects, CANVAS)}, CANVAS)

    red, blue, difference = figure.axes[2:]
    assert red.get_title() == "red centers"
    points = [
        np.asarray(axes.collections[0].get_offsets()).tolist() for axes in (red, blue, difference)
    ]
    assert points == [[[12, 5]], [[4, 11]], [[8, -6]]]
    assert (red.get_ylim(), difference.get_ylim()) == ((16, 0), (16, -16))


def test_samples_and_their_average_are_drawn_beside_the_centers_of_whole_pictures() -> None:
    objects = draw_objects(CANVAS, 40, torch.Generator().manual_seed(0))
    pictures = draw_pictures(objects, CANVAS)
    pictures[3] = torch.where(pictures[3, 2] > pictures[3, 0], pictures[3], 1.0)  # blue alone

    drawn = figures.comparison({"data": pictures, "again": pictures}, CANVAS).axes

    for (samples, average, red, *_), name in zip(
        (drawn[:5], drawn[5:]), ("data", "again"), strict=True
    ):
        sheet = figures.grid(pictures[:36], columns=6)
        for axes, shown in ((samples, sheet), (average, pictures.mean(dim=0))):
            [image] = axes.images
            assert np.array_equal(np.asarray(image.get_array()), figures.to_bytes(shown).numpy())
        assert samples.get_ylabel() == name
        assert len(np.asarray(red.collections[0].get_offsets())) == 39


def test_a_grid_lays_pictures_out_row_by_row() -> None:
    pictures = torch.arange(1.0, 6).view(5, 1, 1, 1).repeat(1, 3, 2, 2)
    sheet = figures.grid(pictures, columns=3)
    assert sheet.shape == (3, 5, 8)
    assert sheet[0, 0].tolist() == [1, 1, 0, 2, 2, 0, 3, 3]
    assert sheet[0, 4].tolist() == [4, 4, 0, 5, 5, 0, 0, 0]
    colors = torch.tensor([-1.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(2, 3, 4, 6)
    assert figures.grid(colors, columns=1)[:, 2, 2].tolist() == [-1, 0.5, 1]


def test_films_and_pictures_keep_their_colors(tmp_path: Path) -> None:
    frames = torch.stack([torch.ones(3, 4, 6), -torch.ones(3, 4, 6), torch.ones(3, 4, 6)])
    figures.save_film(frames, tmp_path / "film.gif", enlarge=2)
    figures.save_picture(frames[1], tmp_path / "picture.png", enlarge=3)

    with Image.open(tmp_path / "film.gif") as film:
        assert film.size == (12, 8)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (18, 12)
        assert picture.getextrema() == ((0, 0), (0, 0), (0, 0))

    noise = torch.rand(3, 4, 6) * 2 - 1
    figures.save_picture(noise, tmp_path / "noise.png", enlarge=3)
    with Image.open(tmp_path / "noise.png") as picture:
        enlarged = figures.to_bytes(noise).repeat_interleave(3, 0).repeat_interleave(3, 1)
        assert np.array_equal(np.asarray(picture), enlarged.numpy())


def test_films_go_there_and_back_again(tmp_path: Path) -> None:
    grays = [-1.0, 0.0, 0.5, 1.0]
    frames = torch.tensor(grays).view(4, 1, 1, 1).expand(4, 3, 4, 6)
    figures.save_film(frames, tmp_path / "film.gif", milliseconds=120)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.info["duration"] == 120
        assert film.info["loop"] == 0  # forever
        shown = []
        for frame in range(getattr(film, "n_frames", 1)):
            film.seek(frame)
            shown.append(film.convert("L").getpixel((0, 0)))
    assert shown == [0, 128, 191, 255, 191, 128]


TINY = [
    *("canvas={size=16, radius=3}", "training.iterations=2", "training.evaluation_interval=1"),
    *("training.samples=60", "training.batch_size=4", "network.generator_channels=2"),
    "network.discriminator_channels=2",
]


def run_script(*options: str) -> int:
    code: int = train_gan.main([*options, "--set", *TINY])
    return code


def test_a_run_that_was_given_less_time_than_it_took_is_drawn_as_it_is(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path), "--max-seconds"]
    assert run_script(*out, "1000") == 0
    assert run_script(*out, "0.001") == 0


def test_what_could_not_be_followed_is_read_as_no_number(tmp_path: Path) -> None:
    own = Run(tiny(training=Recipe(iterations=1, batch_size=2, pictures=10, samples=20))).train()
    own = replace(own, motion=Motion(0, *[math.nan] * 5))
    write_json(own.to_json(), tmp_path / "result.json")
    assert "null" in (tmp_path / "result.json").read_text()
    assert repr(_read_result(tmp_path / "result.json", own.settings)) == repr(own)


def test_the_script_trains_both_arms_and_goes_on_without_repeating(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--coords", "both", "--seeds", "2", "--out", str(tmp_path), "--threads", "1"]
    assert run_script(*options) == 0

    first = capsys.readouterr().out
    assert "| without |" in first
    assert "| with |" in first
    record = json.loads((tmp_path / "generative-gan-r3gan-16.json").read_text())
    assert [run["settings"]["seed"] for run in record["runs"]] == [0, 1, 0, 1]
    assert record["command"].startswith("python scripts/train_gan.py --coords both --seeds 2")
    written = (tmp_path / "generative-gan-r3gan-16.md").read_text()
    assert written.endswith(first.strip() + "\n")
    path = tmp_path / "gan-r3gan-all-16-s1"
    assert len(list((path / "samples").glob("*.png"))) == 2
    for file in (path / "interpolation.gif", tmp_path / "generative-gan-r3gan-16.gif"):
        with Image.open(file) as film:
            assert film.is_animated  # type: ignore[attr-defined]
    for name in ("generative-gan-r3gan-16", "generative-gan-r3gan-16-curves"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    def train_again(self: Run, **_: object) -> RunResult:
        raise AssertionError("trained again")

    monkeypatch.setattr(Run, "train", train_again)
    assert run_script(*options) == 0
    assert capsys.readouterr().out == first


def test_the_script_trains_autoencoders_and_from_folders(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "runs")]
    assert run_script("--model", "vae", *out) == 0
    assert "| from one picture to another | visible" in capsys.readouterr().out
    assert (tmp_path / "runs" / "generative-vae-all-16.png").exists()
    assert run_script("--data", str(folder), *out) == 0
    report = tmp_path / "runs" / f"generative-gan-r3gan-all-16-{folder.name}.md"
    # There are eight.
    assert "Where there are too few real ones, they are of all of them" in report.read_text()
    assert "as many real ones, against others" not in report.read_text()
    assert "GAN, objective r3gan" in capsys.readouterr().out


def test_a_folder_is_the_same_data_however_it_is_spelled() -> None:
    settings = tiny(data="my/rooms")
    for spelled in ("my/rooms/", "./my/rooms", "my//rooms"):
        assert tiny(data=spelled) == settings
    for name in ("clevr", "lsun"):  # a folder of that name is something else
        assert tiny(data=name).data == name
        assert tiny(data=f"./{name}") != tiny(data=name)


def test_a_run_is_found_again_however_its_folder_is_spelled(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    out = ["--out", str(tmp_path / "runs")]
    assert run_script("--data", str(folder), *out) == 0
    monkeypatch.setattr(Run, "train", None)  # it would fail
    assert run_script("--data", "../rooms", *out) == 0
    [settings] = (tmp_path / "runs").glob("*/settings.toml")
    own = 'data = "../rooms"'
    assert own in settings.read_text()
    # Spelled by an earlier version, which kept what was typed.
    settings.write_text(settings.read_text().replace(own, 'data = "./../rooms//"'))
    assert run_script("--data", str(folder), *out) == 0


def test_the_folder_one_is_in_has_its_name_and_not_that_of_sort_of_clevr(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert run_script("--data", ".", "--out", str(tmp_path / "runs")) == 0
    assert (tmp_path / "runs" / "gan-r3gan-all-16-rooms-s0").is_dir()
    assert (tmp_path / "runs" / "generative-gan-r3gan-all-16-rooms.md").exists()
    monkeypatch.setattr(Run, "train", None)  # it would fail
    assert run_script("--data", str(folder), "--out", str(tmp_path / "runs")) == 0


def test_folders_of_one_name_are_not_the_same_data(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other / "rooms")
    out = ["--out", str(tmp_path / "runs")]
    assert run_script("--data", str(folder), *out) == 0
    assert run_script("--data", str(other / "rooms"), *out) == 2
    assert "belongs to a run with other settings: data is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--threads", "0"], "threads must be at least 1, got 0"),
        (["--data", "nowhere"], "there is no folder nowhere"),
        (["--data", ""], "there is no folder ''; name a folder of pictures"),
        (["--set", "training.iteration=3"], "unknown key 'training.iteration'"),
        (["--set", "training.batch_size=1"], "batch_size must be at least 2, got 1"),
        (["--set", "canvas={size=40, radius=5}"], "canvas.size must be a multiple of 16"),
        (["--table", "steps", "--data", "mine"], "give data=clevr, or none, got 'mine'"),
        (["--table", "small", "--scale", "small"], "--scale would be ignored: the table chooses"),
        (["--model", "vae", "--objective", "paper"], "--objective would be ignored: it is that"),
        (["--set", "coords=none"], "--set coords would be overruled; use --coords"),
        (["--set", "seed=4"], "--set seed would be overruled; use --seeds"),
        (
            ["--table", "quick", "--set", "gan.objective=paper"],
            "--set gan.objective would be overruled; the table chooses it",
        ),
    ],
)
def test_the_script_names_what_does_not_fit(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = train_gan.main([*options, "--out", str(tmp_path)])
    assert code == 2
    assert message in capsys.readouterr().err


def test_measures_stand_beside_those_of_as_many_real_pictures() -> None:
    result = Run(tiny()).train()
    real, others = (
        draw_objects(CANVAS, count, torch.Generator().manual_seed(seed))
        for count, seed in ((60, 5), (100, 6))
    )
    few = measure(draw_pictures(real, CANVAS), others, CANVAS)
    found = replace(few, pictures=100, valid=(0.6,) * 4)
    result = replace(result, curve=(replace(result.curve[-1], row=found),))

    text = table.to_markdown([result])

    [row] = [line for line in text.splitlines() if "data, as many as valid ones with" in line]
    entropy = float(row.split("|")[4])
    assert few.entropy is not None
    assert entropy == pytest.approx(few.entropy, abs=0.4)
    assert entropy < 5  # of as many as there are samples, it would be more


def test_the_tables_have_both_arms_and_both_objectives(tmp_path: Path) -> None:
    overrides = tuple(parse_override(text) for text in [*TINY, "training.iterations=1"])
    experiments = Experiments(config=CONFIG, out=tmp_path, overrides=overrides)
    text = experiments.make_table("quick", tmp_path)
    assert (tmp_path / "generative-vae-16.png").exists()
    for heading in ("GAN, objective paper", "GAN, objective r3gan", "VAE"):
        assert f"## {heading}: Sort-of-Clevr, 16x16" in text
    assert "With coordinates minus without: red" in text


def test_step_sizes_are_tried_in_both_arms_and_the_best_with_more_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "STEP_SIZES", ((1e-3, 1e-4), (2e-3, 4e-4)))
    overrides = tuple(parse_override(text) for text in [*TINY, "training.iterations=1"])
    experiments = Experiments(config=CONFIG, out=tmp_path, overrides=overrides)
    text = experiments.make_step_table(tmp_path)
    folders = {path.parent.relative_to(tmp_path) for path in tmp_path.rglob("settings.toml")}
    names = [folder.name for folder in folders]
    assert {folder.parent.name for folder in folders} == {
        "steps-0.001-0.0001",
        "steps-0.002-0.0004",
    }
    for arm in ("none", "all"):
        assert names.count(f"gan-paper-{arm}-16-s0") == 2
        assert names.count(f"gan-paper-{arm}-16-s1") == names.count(f"gan-paper-{arm}-16-s2") == 1
    assert len(folders) == 8
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in text.splitlines()]
    assert rows[2][0] == "data"
    assert [row[:3] for row in rows[3:]] == [
        [generator, discriminator, arm]
        for generator, discriminator in (("0.001", "0.0001"), ("0.002", "0.0004"))
        for arm in ("without", "with")
    ]
    assert sorted(row[3] for row in rows[3:]) == ["1", "1", "3", "3"]
    assert (tmp_path / "generative-steps.md").read_text().endswith(text)
    assert len(json.loads((tmp_path / "generative-steps.json").read_text())["runs"]) == 8


@pytest.mark.parametrize("key", ["gan.generator_lr", "gan.discriminator_lr"])
def test_the_table_of_step_sizes_takes_no_others(key: str, tmp_path: Path) -> None:
    overrides = (parse_override(f"{key}=0.5"),)

    with pytest.raises(SettingsError, match=f"--set {key} would be overruled; the table varies it"):
        Experiments(config=CONFIG, out=tmp_path, overrides=overrides).make_step_table(tmp_path)

    assert not list(tmp_path.iterdir())


def judged(
    result: RunResult, coords: Arm, steps: table.Steps, entropies: tuple[float, float, float]
) -> RunResult:
    gan = replace(tiny().gan, generator_lr=steps[0], discriminator_lr=steps[1])
    found = replace(result.curve[-1], entropies=Entropies(*entropies, 0.0))
    return replace(result, settings=tiny(gan=gan, coords=coords), curve=(found,))


def test_coordinates_are_compared_seed_by_seed() -> None:
    result = Run(tiny()).train()
    arms: dict[Arm, dict[int, float]] = {"none": {0: 1.0, 1: 3.0}, "all": {1: 2.0, 0: 1.5}}
    runs = []
    for coords, by_seed in arms.items():
        for seed, red in by_seed.items():
            own = judged(result, coords, (1e-3, 1e-4), (red, 0.0, 2 * red))
            runs.append(replace(own, settings=replace(own.settings, seed=seed)))
    text = table.to_markdown(runs)
    assert (
        "With coordinates minus without: red -0.25 nats (higher in 1 of 2 seeds), blue +0.00 nats"
        " (higher in 0 of 2 seeds), difference -0.50 nats (higher in 1 of 2 seeds)."
    ) in text


def test_tables_show_the_last_evaluation() -> None:
    result = Run(tiny()).train()
    first, last = (
        judged(result, "all", (1e-3, 1e-4), (value, value, value)).curve[0] for value in (1.0, 2.0)
    )
    text = table.to_markdown([replace(result, curve=(first, last))])
    assert "| with | 2.00 | 2.00 | 2.00 | 0.0 % |" in text


NUMBERS = Row(
    *(1000, (0.1, 0.2, 0.3, 0.4), 0.5),
    cells=0.61,
    entropy=0.62,
    divergence=0.063,
    wasserstein=0.64,
    sliced_wasserstein=0.65,
    discs=0.66,
    recall=0.67,
    coverage=0.68,
    duplicates=69,
)


def test_each_number_stands_under_its_name() -> None:
    result = Run(tiny()).train()
    point = replace(result.curve[-1], step=12, seconds=34.0, cpu_seconds=56.0,
                    entropies=Entropies(1.0, 2.0, 3.0, 0.04), row=NUMBERS)  # fmt: skip
    real = replace(point, entropies=Entropies(4.0, 5.0, 6.0, 0.0))
    motion = Motion(7, 0.1, 0.2, 0.3, 0.4, 0.5)

    text = table.to_markdown([replace(result, curve=(point,), real=real, motion=motion)])

    own, heads = [], []
    for line, below in itertools.pairwise([*text.splitlines(), ""]):
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if below.startswith("| ---"):
            heads.append(cells)
        elif line.startswith("| with "):
            own.append(dict(zip(heads[-1], cells, strict=True)))
    runs, entropies, measures, motions = own
    assert (runs["seeds"], runs["batches"], runs["CPU s"]) == ("1", "12", "56")
    assert list(entropies.values())[1:] == ["1.00", "2.00", "3.00", "4.0 %"]
    assert "| data | 4.00 | 5.00 | 6.00 | 0.0 % |" in text
    assert measures == {
        **{"coordinates": "with", "valid": "30.0 %", "cells": "0.61", "entropy": "0.62"},
        **{"divergence": "0.063", "distance, px": "0.64", "sliced, px": "0.65", "discs": "0.66"},
        **{"recall": "0.67", "coverage": "0.68", "duplicates": "69"},
    }
    assert list(motions.values())[1:] == ["0.10", "0.20", "0.30", "0.40", "0.50"]
    assert list(motions)[1:] == ["visible", "whole", "largest step", "detour", "moved"]


def test_there_is_no_row_of_fewer_real_pictures_where_all_are_valid() -> None:
    result = Run(tiny()).train()
    for share, rows in ((1.0, 0), (0.6, 1)):
        found = replace(NUMBERS, pictures=100, valid=(share,) * 4)
        text = table.to_markdown([replace(result, curve=(replace(result.curve[-1], row=found),))])
        assert text.count("data, as many as valid ones with") == rows


def test_distances_of_patches_are_shown_band_by_band_times_a_thousand() -> None:
    result = Run(tiny()).train()
    own, real = (replace(result.curve[-1], patches=one) for one in ((0.012, 0.34), (0.005, 0.006)))
    settings = tiny(data="rooms")
    text = table.to_markdown([replace(result, settings=settings, curve=(own,), real=real)])
    assert "x 1,000, size / 1 | distance of patches x 1,000, size / 2 |" in text
    assert "| data | 5 | 6 |" in text
    assert "| with | 12 | 340 |" in text


def test_entropies_are_drawn_under_their_names() -> None:
    result = Run(tiny()).train()
    drawn = judged(result, "all", (1e-3, 1e-4), (1.0, 2.0, 3.0))
    real = replace(result.real, entropies=Entropies(4.0, 5.0, 6.0, 0.0))
    axes = figures.entropy_curves([replace(drawn, real=real)]).axes
    assert [one.get_title() for one in axes] == ["red", "blue", "difference"]
    shown = [[float(np.asarray(line.get_ydata())[0]) for line in one.lines] for one in axes]
    assert shown == [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]


def test_entropies_of_an_arm_share_their_color_and_one_line_of_the_legend() -> None:
    result = Run(tiny()).train()
    arms: list[tuple[Arm, float]] = [("all", 1.0), ("all", 1.5), ("none", 0.5)]
    runs = [judged(result, coords, (1e-3, 1e-4), (red, 2.0, 3.0)) for coords, red in arms]
    real = replace(result.real, entropies=Entropies(4.0, 5.0, 6.0, 0.0))

    axes = figures.entropy_curves([replace(own, real=real) for own in runs]).axes[0]

    first, second, other, data = axes.lines
    assert first.get_color() == second.get_color() != other.get_color()
    assert np.asarray(second.get_xydata()).tolist() == [[6.0, 1.5]]  # after six batches
    assert axes.get_legend_handles_labels() == (
        [first, other, data],
        ["with coordinates", "without coordinates", "data"],
    )


def test_the_best_step_sizes_have_the_highest_mean_entropy() -> None:
    result = Run(tiny()).train()
    runs = [
        judged(result, "all", (1.0, 2.0), (4.0, 3.0, 2.0)),
        judged(result, "all", (3.0, 4.0), (3.5, 3.5, 2.5)),
    ]
    assert table.best_steps(runs) == table.best_steps(runs[::-1]) == (3.0, 4.0)


def test_each_arm_gets_more_seeds_with_its_own_best_step_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = (1e-3, 1e-4), (2e-3, 4e-4)
    trained = []
    result = Run(tiny()).train()

    def train(self: Experiments, settings: GenerativeSettings) -> RunResult:
        steps = settings.gan.generator_lr, settings.gan.discriminator_lr
        trained.append((settings.coords, steps, settings.seed, settings.canvas.size))
        is_good = steps == (large if settings.coords == "none" else small)
        value = 3.0 if is_good else 1.0
        # Bad runs of one arm are better than good ones of the other.
        value += 3.0 if settings.coords == "none" else 0.0
        return judged(result, settings.coords, steps, (value, value, value))

    monkeypatch.setattr(table, "STEP_SIZES", (small, large))
    monkeypatch.setattr(Experiments, "train", train)
    Experiments(config=CONFIG, out=tmp_path).make_step_table(tmp_path)
    assert trained[:4] == [
        (coords, steps, 0, 32) for steps in (small, large) for coords in ("none", "all")
    ]
    assert trained[4:] == [
        (coords, steps, seed, 32)
        for coords, steps in (("none", large), ("all", small))
        for seed in (1, 2)
    ]


def test_the_table_of_step_sizes_has_entropies_and_measures_under_their_names() -> None:
    result = Run(tiny()).train()
    runs = [
        judged(result, "none", (1e-3, 1e-4), (1.0, 2.0, 3.0)),
        judged(result, "all", (1e-3, 1e-4), (4.0, 5.0, 6.0)),
        judged(result, "all", (1e-3, 1e-4), (4.5, 5.0, 6.0)),
    ]
    head, _, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.steps_to_markdown(runs).splitlines()
    )
    assert all(len(row) == len(head) for row in rows)
    without, with_ = (dict(zip(head, row, strict=True)) for row in rows)
    assert (without["coordinates"], without["seeds"]) == ("without", "1")
    assert [without[f"{name}, nats"] for name in table.ENTROPIES] == ["1.00", "2.00", "3.00"]
    assert (with_["coordinates"], with_["seeds"]) == ("with", "2")
    assert with_["red, nats"] == "4.25 (4.00 to 4.50)"
    assert with_["valid"] == "0.0 %"


def test_the_small_table_has_large_gans_and_more_seeds() -> None:
    cells, seeds = table.plan("small")
    assert {cell.scale for cell in cells if cell.model == "gan"} == {"small"}
    assert {cell.scale for cell in cells if cell.model == "vae"} == {"quick"}
    assert {cell.objective for cell in cells if cell.model == "gan"} == {"paper", "r3gan"}
    assert seeds > table.plan("quick")[1]


def test_spreads_tell_mean_range_and_what_is_missing() -> None:
    assert table._spread([1.0, 2.0, 6.0]) == "3.00 (1.00 to 6.00)"
    assert table._spread([2.0, None]) == "2.00, 1 not measurable"
    assert table._spread([None, math.nan]) == "not measurable"


def test_a_vae_shows_expected_colors() -> None:
    model = Run(tiny(model="vae")).model
    assert isinstance(model, Vae)
    latents = torch.zeros(2, 4)
    logits = model.autoencoder.decoder(latents)
    assert_close(model.generate(latents), 2 * logits.sigmoid() - 1)


@pytest.mark.parametrize("coords", ["none", "all"])
def test_decoders_give_logits_and_generators_colors(coords: Arm) -> None:
    def largest(model: str, *, tanh: bool) -> float:
        network = replace(tiny().network, tanh=tanh)
        made = Run(tiny(model=model, coords=coords, network=network)).model
        decoder = made.autoencoder.decoder if isinstance(made, Vae) else made.generator
        latents = made.latents(8, torch.Generator().manual_seed(0))
        with torch.no_grad():
            for weight in decoder.parameters():
                weight.mul_(30)
            assert made.generate(latents).abs().max() <= 1  # whoever is shown to a person
            return float(decoder(latents).abs().max())

    assert largest("vae", tanh=True) > 1
    assert largest("gan", tanh=True) <= 1
    # The authors show the discriminator what their CoordConv generator has before a tanh.
    assert (largest("gan", tanh=False) > 1) == (coords == "all")


@pytest.mark.parametrize("model", ["gan", "vae"])
@pytest.mark.parametrize("coords", ["none", "all"])
def test_both_networks_of_an_arm_see_coordinates_or_neither_does(model: str, coords: Arm) -> None:
    made = Run(tiny(model=model, coords=coords)).model
    networks = (
        (made.autoencoder.encoder, made.autoencoder.decoder)
        if isinstance(made, Vae)
        else (made.generator, made.discriminator)
    )

    seeing = [any(isinstance(m, CoordConv2d) for m in network.modules()) for network in networks]

    assert seeing == [coords == "all"] * 2


def test_samples_are_written_as_they_are(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(figures.to_bytes(torch.tensor([[[-1.0]], [[0.0]], [[9.0]]])).numpy()).save(
        buffer, format="png"
    )
    assert Image.open(buffer).getpixel((0, 0)) == (0, 128, 255)
