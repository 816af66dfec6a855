"""Does a CoordConv harm: the two arms, the paired test, and the command."""

import dataclasses
import json
import math
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import train_digits
from coordrl.files import RunError
from coordrl.layers import CoordConv2d
from coordrl.progress import Progress
from coordrl.recognition import (
    Arm,
    Block,
    DigitResNet,
    RecognitionResult,
    RecognitionSettings,
    compare_arms,
    paired_test,
    recognize,
    to_json,
    to_markdown,
    write_report,
)
from coordrl.stopping import Interrupted

TINY = RecognitionSettings(held_back=40, epochs=3, batch_size=16)


def bars(count: int) -> tuple[Tensor, Tensor]:
    """Pictures of one bar, upright or lying, somewhere in noise; and which of both it is."""
    random = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, 8, 10, generator=random) / 4
    labels = torch.arange(count) % 2
    for image, label in zip(images, labels, strict=True):
        image[0, :, 4] += label
        image[0, 3, :] += 1 - label
    return images, labels


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_arms_differ_by_the_papers_layer_and_the_channels_of_the_first() -> None:
    plain, ours = DigitResNet("none"), DigitResNet("coordconv")

    assert count(ours) - count(plain) == 8 * (1 + 3) + 8 + (8 - 1) * 16 * 9
    # Nothing follows the layer, so that the image can pass it unchanged.
    assert [type(module) for module in ours.stem] == [CoordConv2d, nn.Conv2d]
    layer = ours.stem[0]
    assert isinstance(layer, CoordConv2d)
    assert (layer.out_channels, layer.kernel_size, layer.with_r) == (8, (1, 1), True)


def test_three_strides_of_two_leave_little_of_a_picture() -> None:
    network, pictures = DigitResNet(), torch.rand(3, 1, 28, 20) - 0.5
    assert network.body(network.stem(pictures)).shape == (3, 64, 4, 3)


def test_each_block_is_given_what_a_relu_has_left() -> None:
    network, least = DigitResNet(), []
    for block in network.body:
        if isinstance(block, Block):
            block.register_forward_pre_hook(lambda _, inputs: least.append(inputs[0].min().item()))
    network(torch.rand(3, 1, 28, 20) - 0.5)
    assert least == [0, 0, 0]


def test_the_arms_of_a_seed_share_the_weights_that_both_have() -> None:
    networks = []
    arms: list[Arm] = ["none", "coordconv"]
    for arm in arms:
        torch.manual_seed(3)
        networks.append(DigitResNet(arm))

    for part in ("body", "head"):
        plain, ours = (getattr(network, part).state_dict() for network in networks)
        assert all(torch.equal(plain[name], ours[name]) for name in plain | ours)


def test_a_block_cuts_off_the_sum_of_both_its_ways() -> None:
    torch.manual_seed(0)
    block, x = Block(2, 3, 2).eval(), torch.randn(1, 2, 7, 9)
    out = block(x)
    assert torch.equal(out, F.relu(block.shortcut(x) + block.residual(x)))
    assert out.amin() == 0
    assert Block(2, 2, 2)(x).shape == (1, 2, 4, 5)  # its shortcut takes the steps as well


@pytest.mark.parametrize("arm", ["none", "coordconv"])
def test_both_arms_learn_to_tell_bars_apart(arm: Arm) -> None:
    result = recognize(dataclasses.replace(TINY, arm=arm), *bars(200))

    assert result.accuracy > 0.9


def test_the_same_seed_gives_the_same_run_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = (recognize(dataclasses.replace(TINY, epochs=1), *bars(100)) for _ in range(2))

    assert (first.accuracy, first.loss) == (second.accuracy, second.loss)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_arms_learn_from_the_same_digits_and_are_tested_on_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward, step = DigitResNet.forward, torch.optim.SGD.step
    seen: list[tuple[bool, Tensor]] = []
    lengths: list[float] = []

    def watched(self: DigitResNet, x: Tensor) -> Tensor:
        seen.append((self.training, x.clone()))
        return forward(self, x)

    def measured(self: torch.optim.SGD, *args: object) -> object:
        lengths.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(DigitResNet, "forward", watched)
    monkeypatch.setattr(torch.optim.SGD, "step", measured)
    images, labels = bars(100)
    arms: list[Arm] = ["none", "coordconv"]
    views = []
    for arm in arms:
        seen.clear()
        recognize(dataclasses.replace(TINY, arm=arm), images, labels)
        views.append(
            [torch.cat([x for mode, x in seen if mode is train]) for train in (True, False)]
        )

    for plain, ours in zip(*views, strict=True):
        assert torch.equal(plain, ours)
    learned, tested = ({picture.numpy().tobytes() for picture in view} for view in views[0])
    assert not learned & tested
    assert (len(learned), len(tested)) == (60, 40)
    half = len(lengths) // 2
    assert lengths[0] == TINY.learning_rate
    assert lengths[:half] == sorted(lengths[:half], reverse=True)
    assert lengths[half - 1] < 0.1 * lengths[0]


def test_a_step_takes_the_gradient_of_its_own_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    step = torch.optim.SGD.step
    lengths: list[float] = []

    def measured(self: torch.optim.SGD, *args: object) -> object:
        parameters = self.param_groups[0]["params"]
        lengths.append(math.fsum(float(own.grad.square().sum()) for own in parameters))
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", measured)
    # All 60 digits in each batch, and weights that hardly move.
    recognize(dataclasses.replace(TINY, batch_size=60, learning_rate=1e-9), *bars(100))
    assert lengths == pytest.approx([lengths[0]] * 3, rel=1e-3)


def test_the_seed_decides_the_first_weights_and_the_recipe_the_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = torch.optim.SGD.step
    weights: list[Tensor] = []
    recipes: set[tuple[float, float]] = set()

    def noted(self: torch.optim.SGD, *args: object) -> object:
        group = self.param_groups[0]
        weights.append(group["params"][-2].detach().clone())
        recipes.add((group["momentum"], group["weight_decay"]))
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    for seed in (0, 1, 0):  # one step each
        recognize(dataclasses.replace(TINY, epochs=1, batch_size=60, seed=seed), *bars(100))

    first, second, again = weights
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert recipes == {(0.9, TINY.weight_decay)}


def test_each_seed_holds_back_digits_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = DigitResNet.forward
    tested: list[Tensor] = []

    def watched(self: DigitResNet, x: Tensor) -> Tensor:
        if not self.training:
            tested.append(x.clone())
        return forward(self, x)

    monkeypatch.setattr(DigitResNet, "forward", watched)
    for seed in (0, 1):
        recognize(dataclasses.replace(TINY, epochs=1, seed=seed), *bars(100))
    first, second = ({picture.numpy().tobytes() for picture in own} for own in tested)
    assert 0 < len(first & second) < 40  # of 40 of 100


def test_arms_that_agree_differ_by_nothing() -> None:
    test = paired_test([0.9, 0.95], [0.9, 0.95])
    assert (test.difference, test.low, test.high, test.p) == (0, 0, 0, 1)
    assert not test.is_loss


def test_a_result_tells_what_was_trained_and_the_mean_over_held_back_digits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unsure(self: DigitResNet, x: Tensor) -> Tensor:
        logits: Tensor = 0 * self.head(torch.ones(len(x), 64))
        return logits

    clock = iter([10.0, 12.5])
    monkeypatch.setattr(DigitResNet, "forward", unsure)
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    images, labels = bars(100)
    result = recognize(TINY, images, torch.zeros_like(labels))

    assert result.parameters == count(DigitResNet("coordconv", classes=1))
    assert (result.accuracy, result.loss) == (1, 0)  # there is one class
    assert (result.cpu_seconds, result.threads) == (2.5, 3)

    clock = iter([10.0, 12.5])
    result = recognize(TINY, images, labels)
    assert result.parameters == count(DigitResNet("coordconv", classes=2))
    assert result.loss == pytest.approx(math.log(2))


def test_a_run_that_is_asked_to_stop_has_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, shown = Progress.update, []

    def noted(self: Progress, done: int) -> None:
        shown.append((self.label, done, self.total))
        update(self, done)
        if done == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Progress, "update", noted)
    with pytest.raises(Interrupted):
        compare_arms(TINY, *bars(100), seeds=2, out=tmp_path)

    assert shown == [("digits-none-s0", done, 3 * (60 // 16)) for done in (1, 2)]
    assert not list(tmp_path.glob("*/result.json"))


def test_a_batch_of_more_digits_than_there_are_takes_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr(Progress, "update", lambda self, done: shown.append((done, self.total)))
    settings = dataclasses.replace(TINY, batch_size=500)
    compare_arms(settings, *bars(100), seeds=1, out=tmp_path)
    assert shown == [(1, 3), (2, 3), (3, 3)] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"digits-none-s0", "digits-coordconv-s0"}


def test_a_network_that_diverged_is_no_result() -> None:
    with pytest.raises(
        RunError,
        match=r"seed 1, coordconv, diverged; start anew in another folder .* below 1e\+30$",
    ):
        recognize(dataclasses.replace(TINY, seed=1, learning_rate=1e30), *bars(80))


def test_something_must_be_left_to_learn_from() -> None:
    with pytest.raises(ValueError, match="held_back must leave digits to learn from, got 40 of 40"):
        recognize(TINY, *bars(40))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number, got nan"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(keywords: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecognitionSettings(**keywords)  # type: ignore[arg-type]


def test_the_paired_test_is_students() -> None:
    first, second = [0.90, 0.91, 0.92, 0.93], [0.91, 0.91, 0.94, 0.92]
    differences = np.subtract(second, first)
    error = differences.std(ddof=1) / 2
    quantile = 3.182446  # of t with 3 degrees of freedom, 97.5 %

    test = paired_test(first, second)

    assert test.difference == pytest.approx(0.005)
    assert test.low == pytest.approx(0.005 - quantile * error, abs=1e-6)
    assert test.high == pytest.approx(0.005 + quantile * error, abs=1e-6)
    # The formula for 3 degrees of freedom, both tails.
    x = abs(test.difference) / error / math.sqrt(3)
    assert test.p == pytest.approx(1 - 2 / math.pi * (math.atan(x) + x / (1 + x * x)))
    assert not test.is_loss


def test_seeds_of_one_pool_say_less_than_independent_ones() -> None:
    first, second = [0.90, 0.91, 0.92, 0.93], [0.91, 0.91, 0.94, 0.92]
    independent, pooled = paired_test(first, second), paired_test(first, second, overlap=0.75)

    assert pooled.difference == independent.difference
    # The variance of the mean, 1/4 of one difference's, becomes 1/4 + 3/4 of it.
    assert pooled.high - pooled.low == pytest.approx(2 * (independent.high - independent.low))
    assert pooled.p > independent.p


def test_a_difference_that_all_pairs_share_is_certain() -> None:
    test = paired_test([0.5, 0.75], [0.25, 0.5])
    assert (test.difference, test.low, test.high, test.p) == (-0.25, -0.25, -0.25, 0)


def test_the_paired_test_finds_a_small_loss_that_all_pairs_share() -> None:
    first = [0.90, 0.95, 0.99]
    test = paired_test(first, [accuracy - 0.01 - 1e-4 * i for i, accuracy in enumerate(first)])

    assert test.is_loss
    assert test.p < 0.01


def test_one_pair_is_no_test() -> None:
    with pytest.raises(ValueError, match="needs 2 pairs or more, got 1 and 1"):
        paired_test([0.9], [0.9])
    with pytest.raises(ValueError, match="needs 2 pairs or more, got 3 and 1"):
        paired_test([0.9, 0.8, 0.7], [0.9])


def test_the_table_says_what_was_lost() -> None:
    arms: dict[Arm, list[float]] = {"none": [0.98, 0.97], "coordconv": [0.9701, 0.96]}
    results = {
        arm: [
            RecognitionResult(RecognitionSettings(arm=arm, seed=seed), 100, accuracy, 0.1, 5.0)
            for seed, accuracy in enumerate(own)
        ]
        for arm, own in arms.items()
    }

    text = to_markdown(results, pool=10_000)

    assert "| none | 100 | 98.00 % | 97.00 % | 97.50 % | 5 |" in text
    assert "-1.00 percentage points" in text
    assert ": a significant loss." in text
    held_back = RecognitionSettings().held_back
    accuracies = arms["none"], arms["coordconv"]
    expected = paired_test(*accuracies, overlap=held_back / (10_000 - held_back))
    assert f"{100 * expected.low:+.2f} to {100 * expected.high:+.2f}" in text
    assert to_json(results, pool=10_000)["test"] == dataclasses.asdict(expected)


def test_what_is_a_loss_for_independent_seeds_alone_is_none() -> None:
    arms: dict[Arm, list[float]] = {"none": [0.98, 0.97, 0.96], "coordconv": [0.969, 0.957, 0.95]}
    results = {
        arm: [
            RecognitionResult(RecognitionSettings(arm=arm, seed=seed), 100, accuracy, 0.1, 5.0)
            for seed, accuracy in enumerate(own)
        ]
        for arm, own in arms.items()
    }
    pool = RecognitionSettings().held_back + 100

    assert paired_test(arms["none"], arms["coordconv"]).is_loss
    assert ": no significant loss." in to_markdown(results, pool=pool)


def test_the_report_tells_the_runs_and_both_intervals(tmp_path: Path) -> None:
    arms: dict[Arm, list[float]] = {"none": [0.98, 0.97], "coordconv": [0.97, 0.968]}
    results = {
        arm: [
            RecognitionResult(
                RecognitionSettings(arm=arm, seed=seed, held_back=2000, epochs=9),
                *(100, accuracy, 0.1, 5.0 + 4 * seed),
            )
            for seed, accuracy in enumerate(own)
        ]
        for arm, own in arms.items()
    }

    text = write_report(results, tmp_path, pool=5_000, command="train")

    assert "| coordconv | 100 | 97.00 % | 96.80 % | 96.90 % | 7 |" in text
    naive = paired_test(arms["none"], arms["coordconv"])
    pooled = paired_test(arms["none"], arms["coordconv"], overlap=2000 / 3000)
    own, other = (
        f"{100 * test.low:+.2f} to {100 * test.high:+.2f} (p = {test.p:.2f})"
        for test in (pooled, naive)
    )
    assert f" 95 % interval {own}: no significant loss." in text
    assert f" has {other}." in text
    head, table = (tmp_path / "digits.md").read_text().split("\n\n|")
    assert f"|{table}" == text
    assert "9 epochs on 3,000 digits, accuracy on 2,000 others." in head
    record = json.loads((tmp_path / "digits.json").read_text())
    assert record["command"] == "train"
    assert record["of independent seeds"] == dataclasses.asdict(naive)
    assert [run["accuracy"] for run in record["runs"]] == [0.98, 0.97, 0.97, 0.968]


def test_finished_runs_are_read_and_not_repeated(tmp_path: Path) -> None:
    settings = dataclasses.replace(TINY, epochs=1)
    first = compare_arms(settings, *bars(60), seeds=2, out=tmp_path)

    again = compare_arms(settings, *bars(60), seeds=2, out=tmp_path)

    assert again == first  # the processor time as well


def test_a_table_names_the_machines_that_its_runs_were_made_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(TINY, epochs=1)
    monkeypatch.setattr("coordrl.records.machine", lambda: "a Xeon")
    compare_arms(settings, *bars(60), seeds=2, out=tmp_path)
    monkeypatch.setattr("coordrl.records.machine", lambda: "an EPYC")
    threads = torch.get_num_threads()

    results = compare_arms(settings, *bars(60), seeds=3, out=tmp_path)
    write_report(results, tmp_path, pool=60, command="train")

    version = f", with torch {torch.__version__}"
    head = (tmp_path / "digits.md").read_text()
    places = [f"on {place}{version} and {threads} thread(s)" for place in ("a Xeon", "an EPYC")]
    assert f"Made by `train` {' and '.join(places)}. A ResNet" in head


def test_a_result_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    settings = dataclasses.replace(TINY, epochs=1)
    compare_arms(settings, *bars(60), seeds=2, out=tmp_path)
    for path in tmp_path.glob("*/result.json"):
        path.write_text(path.read_text()[:20])

    with pytest.raises(RunError, match=r"result\.json cannot be read .*; delete it, and the same"):
        compare_arms(settings, *bars(60), seeds=2, out=tmp_path)


def test_the_script_writes_record_and_table(tmp_path: Path) -> None:
    fast = ["held_back=9900", "epochs=1", "batch_size=50"]

    assert train_digits.main(["--seeds", "2", "--set", *fast, "--out", str(tmp_path)]) == 0

    record = json.loads((tmp_path / "digits.json").read_text())
    assert len(record["runs"]) == 4
    accuracies = [
        [run["accuracy"] for run in record["runs"] if run["settings"]["arm"] == arm]
        for arm in ("none", "coordconv")
    ]
    expected = paired_test(accuracies[0], accuracies[1], overlap=9900 / 100)
    assert record["test"] == dataclasses.asdict(expected)
    verdict = "a significant loss" if expected.is_loss else "no significant loss"
    assert f": {verdict}." in (tmp_path / "digits.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "1"], "--seeds must be at least 2 to compare, got 1"),
        (["--set", "seed=3"], "--set seed would be overruled; use --seeds"),
        (["--set", "arm=none"], "--set arm would be overruled; all arms are trained"),
        (["--set", "held_back=10000"], "held_back"),
        (["--set", "epochs=0"], "epochs must be at least 1, got 0"),
    ],
)
def test_the_script_names_what_does_not_fit(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_digits.main([*options, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
