"""Training a detector: settings, one run, and its evaluations.

All pictures are made on the device before the run starts, and stay there as bytes. Only training
time is counted: evaluations stop the clocks.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from coordrl.backbone import ConvBackbone, ConvSpec, Coords, count_parameters
from coordrl.config import (
    Override,
    SettingsError,
    load_settings,
    read_toml,
    require_at_least,
    take_types,
)
from coordrl.detection.data import Scatter, Scenes, scatter_digits
from coordrl.detection.faster_rcnn import PAPER_BACKBONE, FasterRCNN, build_detector
from coordrl.detection.metrics import average_precision, proposal_metrics, require_coco
from coordrl.detection.roi_heads import Detections, RoISettings
from coordrl.detection.rpn import Proposals, ProposalSettings
from coordrl.detection.sources import DigitSplit
from coordrl.files import RunError
from coordrl.modes import evaluating
from coordrl.records import made_on
from coordrl.resumable import (
    EpochOrders,
    ResumableRun,
    TrainingClock,
    seed_of,
    split_seed,
)
from coordrl.runs import RunFolder
from coordrl.stopping import StopRequest

Stage = Literal["rpn", "full"]


@dataclass(frozen=True)
class Recipe:
    """How a detector is trained. The authors' settings are not known; these are ours.

    Raises:
        ValueError: If a number is out of range.
    """

    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam, or the released code's default, SGD with momentum 0.9."""
    learning_rate: float = 1e-3
    """Initial learning rate."""
    decay: Literal["none", "cosine"] = "cosine"
    """Schedule of the learning rate: constant, or half a cosine to 0 at the end."""
    batch_size: int = 16
    """Pictures in a step; the released code takes one. An incomplete last batch of an epoch is
    dropped."""
    epochs: int = 10
    """Passes over the training pictures, with an evaluation after each."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of convolutions and matrix products in a step; boxes and losses are in float32. bfloat16
    takes an eighth less processor time if the CPU supports it."""

    def __post_init__(self) -> None:
        take_types(self)
        require_at_least(1, self, "batch_size", "epochs")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")

    def learning_rate_at(self, fraction: float) -> float:
        """Return the learning rate when a fraction in [0, 1] of all steps is over.

        Example:
            >>> Recipe(learning_rate=1.0).learning_rate_at(0.5)
            0.5
        """
        if self.decay == "cosine":
            return self.learning_rate * (0.5 + 0.5 * math.cos(math.pi * fraction))
        return self.learning_rate


@dataclass(frozen=True)
class DetectorSettings:
    """All settings of a run; two runs with equal settings are the same run."""

    stage: Stage = "rpn"
    """The paper's region proposal network alone, or a whole Faster R-CNN."""
    coords: Coords = "none"
    """Where the detector sees coordinates: nowhere; in the picture; or in all of the paper's
    places."""
    seed: int = 0
    """Seed of initial weights, order of the pictures and sampling; not of the pictures."""
    digits: str = ""
    """Fingerprint of the digits that the pictures are made of."""
    train_images: int = 9000
    """Pictures to train with."""
    test_images: int = 1000
    """Pictures to test with."""
    specs: tuple[ConvSpec, ...] = PAPER_BACKBONE
    """Convolutions of the backbone."""
    scatter: Scatter = field(default_factory=Scatter)
    proposals: ProposalSettings = field(default_factory=ProposalSettings)
    roi: RoISettings = field(default_factory=RoISettings)
    training: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        take_types(self)


def load_detector_settings(
    path: Path | None, stage: Stage, overrides: tuple[Override, ...] = ()
) -> DetectorSettings:
    """Read the settings of a run: defaults, the file's table ``[<stage>]``, ``overrides``.

    Raises:
        SettingsError: If the file cannot be read or a setting does not fit.
    """
    table = {} if path is None else read_table(path, stage)
    own = [
        Override(key, value, f"{path}, [{stage}]")
        for key, value in table.items()
        if key != "sweep"  # for many runs
    ]
    fixed = Override("stage", stage, "the command line")
    return load_settings(DetectorSettings, overrides=(*own, *overrides, fixed))


def read_table(path: Path, stage: Stage) -> dict[str, Any]:
    """Return the file's table ``[<stage>]``, empty if it has none.

    Raises:
        SettingsError: If the file cannot be read or holds anything but such tables.
    """
    document = read_toml(path)
    for name, table in document.items():
        if name not in get_args(Stage) or not isinstance(table, dict):
            raise SettingsError(
                f"{path}: expects the tables [{'] and ['.join(get_args(Stage))}], got {name!r}"
            )
    found: dict[str, Any] = document.get(stage, {})
    return found


class DivergedError(RunError):
    """The loss of a run is no longer finite."""


@dataclass(frozen=True)
class Evaluation:
    """One point of a learning curve."""

    step: int
    """Optimizer steps so far."""
    cpu_seconds: float
    """Processor time of training so far, over all threads."""
    loss: float
    """Mean training loss of the epoch."""
    train_iou: float
    """Mean overlap of the positive pairs sampled in the epoch: the paper's training IOU."""
    test: Mapping[str, float]
    """Result of :func:`evaluate` for the test pictures."""


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes:
        settings: Settings of the run.
        parameters: Trainable parameters of the detector.
        source: Source of the digits.
        curve: All evaluations; the last one is the result.
        test_iou_of_pairs: Mean overlap of sampled positive pairs in the test pictures.
        threads: Threads of PyTorch.
        device: Device that it was trained on.
        made_on: The machine and the PyTorch version.
    """

    settings: DetectorSettings
    parameters: int
    source: str
    curve: tuple[Evaluation, ...]
    test_iou_of_pairs: float
    threads: int
    device: str
    made_on: str = field(default_factory=made_on)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return asdict(self)


class Run(ResumableRun):
    """One training run, which can stop after any step and resume in another process.

    Args:
        settings: Settings of the run.
        digits: Digits that the pictures are made of.
        device: Device of the run.
        folder: Folder of the checkpoints; the run continues from the newest. If None, no
            checkpoints are kept.

    Attributes:
        detector: The detector being trained.
        train_scenes: Training pictures.
        test_scenes: Test pictures.
        curve: Evaluations so far, one per epoch.

    Raises:
        SettingsError: If there are too few pictures, no detector can be built, or there is a second
            stage and faster-coco-eval is not installed.
    """

    def __init__(
        self,
        settings: DetectorSettings,
        digits: DigitSplit,
        *,
        device: torch.device | str = "cpu",
        folder: RunFolder | None = None,
    ) -> None:
        if settings.train_images < settings.training.batch_size or settings.test_images < 1:
            raise SettingsError(
                f"there must be at least a batch of {settings.training.batch_size} pictures to"
                f" train with and 1 to test with, got {settings.train_images} and"
                f" {settings.test_images}"
            )
        if settings.stage == "full":
            require_coco()
        super().__init__(device, folder)
        self.settings, self.source = settings, digits.source
        # The released generator's seeds of training and test pictures.
        self.train_scenes, self.test_scenes = (
            scatter_digits(own, settings.scatter, count=count, seed=seed, device=self.device)
            for seed, (own, count) in enumerate(
                [(digits.train, settings.train_images), (digits.test, settings.test_images)]
            )
        )
        weights, order_seed, self._sampling_seed = split_seed(settings.seed, 3)
        self._orders = EpochOrders(len(self.train_scenes), order_seed, self.device)
        try:
            detector = build_detector(
                settings.coords,
                settings.specs,
                settings.proposals,
                settings.roi if settings.stage == "full" else None,
                torch.Generator().manual_seed(weights),
            )
            assert isinstance(detector.backbone, ConvBackbone)
            detector.backbone.out_size(*self.test_scenes.images.shape[2:])
        except ValueError as error:
            raise SettingsError(f"no detector can be built so: {error}") from error
        # Channels last: a tenth less processor time on a CPU, and the layout of tensor cores.
        self.detector: FasterRCNN = detector.to(
            device=self.device, memory_format=torch.channels_last
        )  # type: ignore[call-overload]  # the stub lacks memory_format
        self._optimizer = _optimizer(self.detector, settings.training)
        self.curve: list[Evaluation] = []
        self._clock = TrainingClock()
        self._sums = {"loss": 0.0, "iou": 0.0}
        self._resume()

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        return self._clock.step

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return len(self.train_scenes) // self.settings.training.batch_size

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.settings.training.epochs * self.steps_per_epoch

    def train(
        self,
        *,
        stop: StopRequest | None = None,
        on_step: Callable[["Run"], None] | None = None,
    ) -> RunResult:
        """Train to the end, and evaluate the detector.

        Args:
            stop: Checked after each step for a request to stop.
            on_step: Called after each step, outside of the counted time.

        Raises:
            DivergedError: If the loss is not finite; the last checkpoint is kept.
            Interrupted: If asked to stop; the run can be resumed.
        """
        self._train(stop, on_step)
        self._save()
        return RunResult(
            settings=self.settings,
            parameters=count_parameters(self.detector),
            source=self.source,
            curve=tuple(self.curve),
            test_iou_of_pairs=self._test_iou_of_pairs(),
            threads=torch.get_num_threads(),
            device=self.device.type,
        )

    def _end(self) -> str | None:
        return "epochs" if self.step >= self.total_steps else None

    def _advance(self) -> None:
        self._train_step()
        if self.step % self.steps_per_epoch == 0:
            self._evaluate()

    def _train_step(self) -> None:
        recipe = self.settings.training
        with self._clock.counting_step(self.device):
            for group in self._optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(self.step / self.total_steps)
            sampling = torch.Generator().manual_seed(seed_of(self._sampling_seed, self.step))
            is_half = recipe.precision == "bfloat16"
            with torch.autocast(self.device.type, torch.bfloat16, enabled=is_half):
                losses = self.detector.losses(self.train_scenes[self._batch_indices()], sampling)
            loss = float(losses.total.detach())
            if not math.isfinite(loss):
                raise DivergedError(self._advice(loss))
            self._optimizer.zero_grad()
            losses.total.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        self._sums["loss"] += loss
        self._sums["iou"] += float(losses.proposals.iou)

    def _batch_indices(self) -> Tensor:
        size = self.settings.training.batch_size
        epoch, index = divmod(self.step, self.steps_per_epoch)
        return self._orders[epoch][index * size : (index + 1) * size]

    def _advice(self, loss: float) -> str:
        checkpoint = self.folder.newest_checkpoint() if self.folder is not None else None
        kept = (
            "there is no checkpoint yet"
            if checkpoint is None
            else f"the checkpoint of step {checkpoint.step} is kept"
        )
        return (
            f"the loss became {loss} at step {self.step}; {kept}. Start anew in another folder with"
            f" a training.learning_rate below {self.settings.training.learning_rate:g}"
        )

    def _evaluate(self) -> None:
        means = {name: total / self.steps_per_epoch for name, total in self._sums.items()}
        self._sums = dict.fromkeys(self._sums, 0.0)
        self.curve.append(
            Evaluation(
                step=self.step,
                cpu_seconds=self._clock.cpu_seconds,
                loss=means["loss"],
                train_iou=means["iou"],
                test=evaluate(self.detector, self.test_scenes),
            )
        )

    @torch.no_grad()
    def _test_iou_of_pairs(self) -> float:
        total = 0.0
        with evaluating(self.detector):
            for index, part in enumerate(_parts(self.test_scenes)):
                seed = seed_of(self._sampling_seed, self.step, index)
                sampling = torch.Generator().manual_seed(seed)
                total += float(self.detector.losses(part, sampling).proposals.iou) * len(part)
        return total / len(self.test_scenes)

    def _state(self) -> dict[str, Any]:
        return {
            "detector": self.detector.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "sums": self._sums,
            **asdict(self._clock),
            "curve": [asdict(evaluation) for evaluation in self.curve],
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._sums = state["sums"]
        self._clock = TrainingClock(state["step"], state.get("seconds", 0.0), state["cpu_seconds"])
        self.curve = [Evaluation(**evaluation) for evaluation in state["curve"]]


_PICTURES_AT_ONCE = 50


def evaluate(detector: FasterRCNN, scenes: Scenes) -> dict[str, float]:
    """Evaluate a detector on scenes.

    Returns:
        Its :func:`~coordrl.detection.metrics.proposal_metrics` and, with a second stage, its
        :func:`~coordrl.detection.metrics.average_precision`.
    """
    proposals, detections = find(detector, scenes)
    metrics = proposal_metrics(proposals, scenes, clip_truth=detector.rpn.settings.clip)
    if detections is not None:
        metrics |= average_precision(detections, scenes)
    return metrics


@torch.no_grad()
def find(detector: FasterRCNN, scenes: Scenes) -> tuple[Proposals, Detections | None]:
    """Return the proposals for all scenes and, with a second stage, the detections."""
    parts = _parts(scenes)
    detections = None
    with evaluating(detector):
        proposals = [detector.propose(part.images) for part in parts]
        if detector.roi_heads is not None:
            detections = _joined(Detections, [detector.detect(part.images) for part in parts])
    return _joined(Proposals, proposals), detections


def _joined(cls: Any, parts: list[Any]) -> Any:
    return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])))


def _parts(scenes: Scenes) -> list[Scenes]:
    starts = range(0, len(scenes), _PICTURES_AT_ONCE)
    return [scenes[start : start + _PICTURES_AT_ONCE] for start in starts]


def _optimizer(detector: FasterRCNN, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        return torch.optim.Adam(detector.parameters(), lr=recipe.learning_rate, fused=True)
    return torch.optim.SGD(detector.parameters(), lr=recipe.learning_rate, momentum=0.9)
