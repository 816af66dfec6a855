"""Does a CoordConv harm where position hardly matters? The paper's ImageNet control, in small.

Liu et al. 2018 put one 1x1 CoordConv with 8 channels and r before a ResNet-50: over five runs the
top-5 accuracy on ImageNet did not change (+0.04 %, not significant). Here a small ResNet learns
handwritten digits with and without that layer. The paper does not say what follows the layer; here
nothing does, so that the image can pass it unchanged.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from coordrl.config import SettingsError, require_at_least, take_types
from coordrl.experiments import each_once, train_once
from coordrl.files import RunError
from coordrl.layers import CoordConv2d
from coordrl.progress import Progress
from coordrl.records import made_on, provenance, read_json, write_json, write_text
from coordrl.resumable import split_seed
from coordrl.runs import RunFolder
from coordrl.stopping import Interrupted, StopRequest

Arm = Literal["none", "coordconv"]


class Block(nn.Module):
    """A residual block of two 3x3 convolutions (He et al. 2016, figure 2).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output. If they differ, or the stride is above 1, the
            shortcut is a 1x1 convolution.
        stride: Step of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = (
            nn.Identity()
            if in_channels == out_channels and stride == 1
            else nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ReLU of shortcut and residual."""
        return F.relu(self.shortcut(x) + self.residual(x))


class DigitResNet(nn.Module):
    """A ResNet for small gray pictures, with or without the paper's CoordConv layer before it.

    Both arms draw their common weights from the same random numbers: all but those of the first
    convolution, which has 8 input channels instead of 1 after the CoordConv.

    Args:
        arm: ``"coordconv"`` puts a 1x1 CoordConv with 8 channels and r before the first layer.
        classes: Number of classes.

    Shape:
        - Input: ``(N, 1, H, W)``.
        - Output: logits ``(N, classes)``.

    Example:
        >>> DigitResNet("coordconv")(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, arm: Arm = "none", classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(16),
            nn.ReLU(),
            Block(16, 16, 1),
            Block(16, 32, 2),
            Block(32, 64, 2),
        )
        self.head = nn.Linear(64, classes)
        if arm == "none":
            self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False))
        else:
            self.stem = nn.Sequential(
                CoordConv2d(1, 8, 1, with_r=True), nn.Conv2d(8, 16, 3, 2, 1, bias=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of each class."""
        logits: Tensor = self.head(self.body(self.stem(x)).mean(dim=(-2, -1)))
        return logits


@dataclass(frozen=True)
class RecognitionSettings:
    """All settings of a run.

    Raises:
        ValueError: If a number is out of range.
    """

    arm: Arm = "coordconv"
    """With the paper's CoordConv layer, or without."""
    seed: int = 0
    """Split into held-back digits, initial weights and order of the digits; the arms share them."""
    held_back: int = 3000
    """Digits to test on; the run trains on the others."""
    epochs: int = 10
    """Passes over the training digits."""
    batch_size: int = 64
    """Digits in a step."""
    learning_rate: float = 0.05
    """Initial learning rate of SGD with momentum 0.9; half a cosine takes it to 0."""
    weight_decay: float = 5e-4
    """Coupled weight decay, on all parameters."""

    def __post_init__(self) -> None:
        take_types(self)
        require_at_least(1, self, "held_back", "epochs", "batch_size")
        require_at_least(0, self, "weight_decay")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


@dataclass(frozen=True)
class RecognitionResult:
    """Result of a run; accuracies are fractions of the held-back digits."""

    settings: RecognitionSettings
    parameters: int
    accuracy: float
    loss: float
    """Mean cross-entropy of the held-back digits."""
    cpu_seconds: float
    """Processor time of training, over all threads."""
    threads: int = 1
    """Threads of PyTorch; 1 for older results, which do not record it."""
    made_on: str = field(default_factory=made_on)
    """The machine and the PyTorch version."""


def recognize(
    settings: RecognitionSettings,
    images: Tensor,
    labels: Tensor,
    *,
    on_step: Callable[[int], bool] | None = None,
) -> RecognitionResult:
    """Train one network and test it once, at the end.

    Args:
        settings: Settings of the run.
        images: Pictures ``(N, 1, H, W)``, float, the ink in [0, 1].
        labels: Their classes, ``(N,)``, int64.
        on_step: Called with the number of steps done; ends the run by returning True.

    Raises:
        Interrupted: If ``on_step`` returns True.
        SettingsError: If no digits are left for training.
        RunError: If the network diverged.
    """
    if settings.held_back >= len(images):
        raise SettingsError(
            f"held_back must leave digits to learn from, got {settings.held_back} of {len(images)}"
        )
    split, weights, order = split_seed(settings.seed, 3)
    dealt = torch.randperm(len(images), generator=torch.Generator().manual_seed(split))
    test, train = dealt[: settings.held_back], dealt[settings.held_back :]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights)
        network = DigitResNet(settings.arm, classes=int(labels.max()) + 1)
    optimizer = torch.optim.SGD(
        network.parameters(),
        settings.learning_rate,
        momentum=0.9,
        weight_decay=settings.weight_decay,
    )
    batches = len(train) // settings.batch_size or 1
    steps = settings.epochs * batches
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    shuffle = torch.Generator().manual_seed(order)
    start = time.process_time()
    for step in range(steps):
        if step % batches == 0:
            train = train[torch.randperm(len(train), generator=shuffle)]
        batch = train[(step % batches) * settings.batch_size :][: settings.batch_size]
        loss = F.cross_entropy(network(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if on_step is not None and on_step(step + 1):
            raise Interrupted
    cpu_seconds = time.process_time() - start
    network.eval()
    with torch.inference_mode():
        logits = torch.cat([network(images[part]) for part in torch.split(test, 256)])
    test_loss = float(F.cross_entropy(logits, labels[test]))
    if not math.isfinite(test_loss):  # the accuracy alone would look like chance
        raise RunError(
            f"the network of seed {settings.seed}, {settings.arm}, diverged; start anew in another "
            f"folder with a learning_rate below {settings.learning_rate:g}"
        )
    return RecognitionResult(
        settings,
        parameters=sum(p.numel() for p in network.parameters()),
        accuracy=float((logits.argmax(dim=1) == labels[test]).float().mean()),
        loss=test_loss,
        cpu_seconds=cpu_seconds,
        threads=torch.get_num_threads(),
    )


@dataclass(frozen=True)
class PairedTest:
    """Student's t test of paired runs."""

    difference: float
    """Mean of the second arm minus the first."""
    low: float
    """Lower end of the 95 % confidence interval of the difference."""
    high: float
    """Upper end."""
    p: float
    """Two-sided p-value: probability of a difference this far from zero if the arms are equal."""

    @property
    def is_loss(self) -> bool:
        """Whether the second arm is significantly worse, at the 5 % level."""
        return self.high < 0


def paired_test(
    first: Sequence[float], second: Sequence[float], *, overlap: float = 0.0
) -> PairedTest:
    """Compare two arms that share their seeds.

    Args:
        first: Accuracy of the first arm for each seed.
        second: The same for the second arm.
        overlap: Ratio of test to training digits if every seed splits the same pool. Results then
            depend on each other, and with more seeds an interval for independent ones becomes too
            narrow; Nadeau and Bengio (2003, "Inference for the generalization error") widen it by
            this ratio. 0 if the seeds are independent.

    Raises:
        ValueError: If there are fewer than two pairs.

    Example:
        >>> paired_test([0.97, 0.98, 0.99], [0.98, 0.98, 0.98]).is_loss
        False
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"a paired test needs 2 pairs or more, got {len(first)} and {len(second)}")
    differences = np.subtract(second, first)
    mean, count = float(differences.mean()), len(differences)
    error = float(differences.std(ddof=1)) * math.sqrt(1 / count + overlap)
    if error == 0:  # Student's t would be 0 / 0, or infinite
        return PairedTest(mean, mean, mean, float(mean == 0))
    student = stats.t(count - 1)
    reach = float(student.ppf(0.975)) * error
    return PairedTest(mean, mean - reach, mean + reach, float(2 * student.sf(abs(mean) / error)))


def compare_arms(
    settings: RecognitionSettings, images: Tensor, labels: Tensor, *, seeds: int, out: Path
) -> dict[Arm, list[RecognitionResult]]:
    """Train both arms with each seed, or read the results of earlier calls.

    Args:
        settings: Settings of the runs; arm and seed are replaced.
        images: As for :func:`recognize`.
        labels: As for :func:`recognize`.
        seeds: Number of seeds, 0, 1, 2, ...
        out: Folder of the runs.

    Returns:
        For each arm, the results in the order of the seeds.

    Raises:
        Interrupted: If a signal asked to stop; finished runs are kept.
        RunError: If a folder holds other settings or a file cannot be written.
    """
    results: dict[Arm, list[RecognitionResult]] = {arm: [] for arm in get_args(Arm)}
    for seed in range(seeds):
        for arm, own in results.items():
            own.append(_run(replace(settings, arm=arm, seed=seed), images, labels, out))
    return results


def _run(
    settings: RecognitionSettings, images: Tensor, labels: Tensor, out: Path
) -> RecognitionResult:
    def build(record: dict[str, Any]) -> RecognitionResult:
        return RecognitionResult(**{**record, "settings": settings})

    def train(folder: RunFolder) -> RecognitionResult:
        steps = settings.epochs * ((len(images) - settings.held_back) // settings.batch_size or 1)
        with StopRequest() as stop, Progress(folder.path.name, steps, "steps") as progress:

            def on_step(done: int) -> bool:
                progress.update(done)
                return stop.requested

            return recognize(settings, images, labels, on_step=on_step)

    path = out / f"digits-{settings.arm}-s{settings.seed}"
    return train_once(path, settings, read=lambda file: read_json(file, build), train=train)


def write_report(
    results: Mapping[Arm, Sequence[RecognitionResult]], report: Path, *, pool: int, command: str
) -> str:
    """Write ``digits.md`` and ``digits.json``; return the table.

    Args:
        results: For each arm, the results in the order of the seeds.
        report: Folder to write to.
        pool: Number of digits that all seeds split.
        command: The command as typed.

    Raises:
        RunError: If a file cannot be written.
    """
    settings, text = results["none"][0].settings, to_markdown(results, pool=pool)
    runs = [result for own in results.values() for result in own]
    places = each_once(f"{run.made_on} and {run.threads} thread(s)" for run in runs)
    head = (
        "# Does a CoordConv harm where position hardly matters?\n\n"
        f"Made by `{command}` on {places}. A ResNet with 9"
        " convolutions learns 28x28 digits, with and without one 1x1 CoordConv of 8 channels"
        f" and r before its first layer: {settings.epochs} epochs on"
        f" {pool - settings.held_back:,} digits, accuracy on {settings.held_back:,}"
        " others. The arms of a seed share split, order and all weights that both have.\n\n"
    )
    write_text(head + text, report / "digits.md")
    write_json({**provenance(command), **to_json(results, pool=pool)}, report / "digits.json")
    return text


def to_markdown(results: Mapping[Arm, Sequence[RecognitionResult]], *, pool: int) -> str:
    """Write the accuracies of each arm and seed as a table, and the result of the paired tests.

    Args:
        results: For each arm, the results in the order of the seeds.
        pool: Number of digits that all seeds split.
    """
    seeds = [result.settings.seed for result in results["none"]]
    lines = [
        f"| layer | parameters | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | CPU s |",
        f"| --- | ---: | {'---: | ' * len(seeds)}---: | ---: |",
    ]
    for arm, own in results.items():
        shares = [f"{100 * result.accuracy:.2f} %" for result in own]
        mean = 100 * float(np.mean([result.accuracy for result in own]))
        seconds = float(np.mean([result.cpu_seconds for result in own]))
        lines.append(
            f"| {arm} | {own[0].parameters:,} | {' | '.join(shares)} | {mean:.2f} % |"
            f" {seconds:.0f} |"
        )
    tests = compare_accuracies(results, pool=pool)
    corrected, naive = tests["test"], tests["of independent seeds"]
    verdict = "a significant loss" if corrected.is_loss else "no significant loss"
    lines += [
        "",
        f"Paired over {len(seeds)} seeds the CoordConv layer changes the accuracy by"
        f" {100 * corrected.difference:+.2f} percentage points, 95 % interval"
        f" {_interval(corrected)} (p = {corrected.p:.2f}): {verdict}. A loss beyond the interval's"
        " lower end is unlikely, a smaller one is not. All seeds deal from one pool of digits, for"
        " which the interval is widened (Nadeau and Bengio 2003); Student's t, for which seeds are"
        f" independent, has {_interval(naive)} (p = {naive.p:.2f}).",
    ]
    return "\n".join(lines) + "\n"


def _interval(test: PairedTest) -> str:
    return f"{100 * test.low:+.2f} to {100 * test.high:+.2f}"


def compare_accuracies(
    results: Mapping[Arm, Sequence[RecognitionResult]], *, pool: int
) -> dict[str, PairedTest]:
    """Return the paired tests of the CoordConv arm against the plain one.

    Args:
        results: For each arm, the results in the order of the seeds.
        pool: Number of digits that all seeds split.
    """
    plain, ours = ([result.accuracy for result in results[arm]] for arm in ("none", "coordconv"))
    held_back = results["none"][0].settings.held_back
    corrected = paired_test(plain, ours, overlap=held_back / (pool - held_back))
    return {"test": corrected, "of independent seeds": paired_test(plain, ours)}


def to_json(results: Mapping[Arm, Sequence[RecognitionResult]], *, pool: int) -> dict[str, Any]:
    """Return the paired tests and every run as JSON types.

    Args:
        results: For each arm, the results in the order of the seeds.
        pool: Number of digits that all seeds split.
    """
    runs = [asdict(result) for own in results.values() for result in own]
    tests = compare_accuracies(results, pool=pool)
    return {**{name: asdict(test) for name, test in tests.items()}, "runs": runs}
