"""Training on the coordinate tasks: settings, one run, and its evaluations.

The set is a list of places, on the device from the start; a batch of pictures is drawn from its
places when needed, which costs less than copying it. Only training time is counted: evaluations
stop the clocks.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from coordrl.backbone import count_parameters
from coordrl.config import (
    Override,
    SettingsError,
    accepted_keywords,
    load_settings,
    read_toml,
    require_at_least,
    take_types,
)
from coordrl.coordinates.data import Canvas, InputScale, Split, is_test, places
from coordrl.coordinates.networks import (
    ConvRegressor,
    CoordConvPainter,
    CoordConvRegressor,
    CoordConvRenderer,
    DeconvPainter,
    StridedConvRegressor,
    initialize_like_the_authors,
)
from coordrl.coordinates.tasks import Goal, Task, TaskName, make_task
from coordrl.records import made_on
from coordrl.resumable import EpochOrders, ResumableRun, TrainingClock, split_seed
from coordrl.runs import RunFolder
from coordrl.stopping import StopRequest

Model = Literal["coordconv", "conv", "robust"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. Adam with the authors' beta_2 of 0.99.

    Raises:
        ValueError: If a number is out of range.
    """

    learning_rate: float = 0.005
    """Initial learning rate of Adam."""
    decay: Literal["none", "cosine", "steps"] = "cosine"
    """Schedule of the learning rate: constant; half a cosine to 0 at the end; or divided by 10
    after each fifth of the run, like the authors' baseline (every 200 of its 1,000 epochs)."""
    l2: float = 0.0
    """Factor of the sum of squared kernel weights in the loss; biases and norms are left out."""
    batch_size: int = 16
    """Pictures in a step; the last batch of an epoch may be smaller."""
    epochs: int = 10
    """Length of the run, unless something ends it earlier."""
    evaluation_interval: int = 100
    """Steps between two evaluations on the test set."""
    max_seconds: float | None = None
    """Seconds of processor time, not counting evaluations, after which the run is cut short."""
    stop_when_solved: bool = True
    """End at the first evaluation in which training and test set are both solved."""

    def __post_init__(self) -> None:
        take_types(self)
        require_at_least(1, self, "batch_size", "epochs", "evaluation_interval")
        require_at_least(0, self, "l2")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise ValueError(f"max_seconds must be positive, got {self.max_seconds}")

    def learning_rate_at(self, fraction: float) -> float:
        """Return the learning rate when a fraction in [0, 1] of all epochs is over.

        Example:
            >>> Recipe(learning_rate=1.0, decay="cosine").learning_rate_at(0.5)
            0.5
        """
        if self.decay == "cosine":
            return self.learning_rate * float(0.5 + 0.5 * np.cos(np.pi * fraction))
        if self.decay == "steps":
            return self.learning_rate * 0.1 ** min(int(5 * fraction), 4)
        return self.learning_rate


@dataclass(frozen=True)
class CoordinateSettings:
    """All settings of a run; two runs with equal settings are the same run."""

    task: TaskName = "classification"
    """Place to pixel, place to picture, or picture to place."""
    model: Model = "coordconv"
    """The paper's CoordConv net, its baseline without coordinates, or our sturdier variant."""
    split: Split = "uniform"
    """Split that decides which places are held back for testing."""
    input_scale: InputScale = "unit"
    """Places as numbers in [-1, 1] like the coordinates, or as pixels like the released code."""
    seed: int = 0
    """Seed of the run, split into initial weights and order of the pictures."""
    canvas: Canvas = field(default_factory=Canvas)
    training: Recipe = field(default_factory=Recipe)
    network: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the network's class."""


def network_class(task: TaskName, model: Model, split: Split) -> type[nn.Module]:
    """Return the class of a network.

    The paper has two baselines for regression: a dense one for random test places, and a strided
    one, which extrapolates better, for the quadrant.
    """
    if task == "regression":
        if model == "conv":
            return StridedConvRegressor if split == "quadrant" else ConvRegressor
        return CoordConvRegressor
    if model == "conv":
        return DeconvPainter
    return CoordConvPainter if task == "classification" else CoordConvRenderer


def build_network(settings: CoordinateSettings) -> nn.Module:
    """Return the untrained network of a run, on the CPU.

    Raises:
        SettingsError: If there is no such network.
    """
    cls = network_class(settings.task, settings.model, settings.split)
    keywords = dict(settings.network)
    if "canvas_size" in accepted_keywords(cls):
        keywords["canvas_size"] = settings.canvas.size
    try:
        network = cls(**keywords)
    except ValueError as error:
        raise SettingsError(f"the network of {settings.task}.{settings.model}: {error}") from error
    weights, _ = split_seed(settings.seed, 2)
    initialize_like_the_authors(network, torch.Generator().manual_seed(weights))
    return network


def load_coordinate_settings(
    path: Path | None,
    task: TaskName,
    model: Model,
    split: Split,
    overrides: tuple[Override, ...] = (),
) -> CoordinateSettings:
    """Read the settings of a run: defaults, the file's table ``[<task>.<model>]``, ``overrides``.

    Raises:
        SettingsError: If the file cannot be read or a setting does not fit.
    """
    chosen = {"task": task, "model": model, "split": split}
    fixed = tuple(Override(key, value, "the command line") for key, value in chosen.items())
    keywords = accepted_keywords(network_class(task, model, split), without={"canvas_size"})
    table = {} if path is None else read_table(path, task, model)
    own = [
        Override(key, value, f"{path}, [{task}.{model}]")
        for key, value in table.items()
        if key != "sweep"  # for many runs
    ]
    return load_settings(
        CoordinateSettings,
        overrides=(*own, *overrides, *fixed),
        keywords={"network": keywords},
    )


def read_table(path: Path, task: TaskName, model: Model) -> dict[str, Any]:
    """Return the file's table ``[<task>.<model>]``, empty if it has none.

    Raises:
        SettingsError: If the file cannot be read or holds anything but such tables.
    """
    document = read_toml(path)
    for name, tables in document.items():
        if name not in get_args(TaskName) or not isinstance(tables, dict):
            raise SettingsError(
                f"{path}: expects tables [<task>.<model>] of the tasks"
                f" {', '.join(get_args(TaskName))}, got {name!r}"
            )
        for inner, table in tables.items():
            if inner not in get_args(Model) or not isinstance(table, dict):
                raise SettingsError(
                    f"{path}: [{name}] expects tables of the models"
                    f" {', '.join(get_args(Model))}, got {inner!r}"
                )
    found: dict[str, Any] = document.get(task, {}).get(model, {})
    return found


@dataclass(frozen=True)
class Evaluation:
    """One point of a learning curve."""

    step: int
    """Optimizer steps so far."""
    epoch: float
    """The same in passes over the training set."""
    seconds: float
    """Wall-clock time of training so far, without evaluations."""
    cpu_seconds: float
    """Processor time of training so far, over all threads."""
    loss: float
    """Mean training loss since the last evaluation."""
    train: float
    """The task's main metric on the training batches since the last evaluation."""
    test: float
    """The task's main metric on the whole test set."""


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes:
        settings: Settings of the run.
        parameters: Trainable parameters of the network.
        ended: ``"solved"``, ``"epochs"`` (the whole run), ``"time"`` (``max_seconds`` was reached),
            or ``"diverged"`` (the loss was no longer finite).
        curve: All evaluations, in order.
        last: Every metric on ``"train"`` and ``"test"``, with the final weights.
        best: The same with the weights of the least training loss, chosen without the test set.
        threads: Threads of PyTorch.
        made_on: The machine and the PyTorch version.
    """

    settings: CoordinateSettings
    parameters: int
    ended: str
    curve: tuple[Evaluation, ...]
    last: Mapping[str, Mapping[str, float]]
    best: Mapping[str, Mapping[str, float]]
    threads: int
    made_on: str = field(default_factory=made_on)

    def first_at(self, goal: Goal, threshold: float) -> Evaluation | None:
        """Return the first evaluation that reaches the threshold on the test set, if any."""
        return next((e for e in self.curve if goal.is_reached(e.test, threshold)), None)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return asdict(self)


@dataclass
class _Progress(TrainingClock):
    """State of a run besides those of network and optimizer."""

    best_loss: float = float("inf")
    best_step: int = -1


class Run(ResumableRun):
    """One training run, which can stop after any step and resume in another process.

    Args:
        settings: Settings of the run.
        device: Device of the run.
        folder: Folder of the checkpoints; the run continues from the newest. If None, no
            checkpoints are kept.

    Attributes:
        network: The network being trained.
        task: The task.
        train_centers: Places of the training set, ``(N, 2)``.
        test_centers: Places of the test set, ``(N, 2)``.
        curve: Evaluations so far.

    Raises:
        SettingsError: If there is no such network, or a part of the split is empty.
        RunError: If no checkpoint in the folder is whole.
    """

    def __init__(
        self,
        settings: CoordinateSettings,
        *,
        device: torch.device | str = "cpu",
        folder: RunFolder | None = None,
    ) -> None:
        super().__init__(device, folder)
        recipe, self.settings = settings.training, settings
        self.task: Task = make_task(settings.task, settings.canvas, settings.input_scale)
        centers, held_back = places(settings.canvas), is_test(settings.canvas, settings.split)
        self.train_centers = centers[~held_back].to(self.device)
        self.test_centers = centers[held_back].to(self.device)
        if held_back.all() or not held_back.any():
            raise SettingsError(
                f"split {settings.split!r} of a canvas of {settings.canvas.size} with a square of"
                f" {settings.canvas.square} leaves {len(self.train_centers)} places to train and"
                f" {len(self.test_centers)} to test on; take a larger canvas or a smaller square"
            )
        self.network = build_network(settings).to(self.device)
        _, order_seed = split_seed(settings.seed, 2)
        self._orders = EpochOrders(len(self.train_centers), order_seed, self.device)
        kernels = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim == 1]
        # The gradient of l2 * w^2 is 2 * l2 * w.
        groups: list[dict[str, Any]] = [
            {"params": kernels, "weight_decay": 2 * recipe.l2},
            {"params": others},
        ]
        self._optimizer = torch.optim.Adam(
            groups,
            lr=recipe.learning_rate,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.curve: list[Evaluation] = []
        self._progress = _Progress()
        self._best = copy.deepcopy(self.network.state_dict())
        self._sums = torch.zeros(3, device=self.device)  # loss, metric, pictures
        self._steps_per_epoch = -(-len(self.train_centers) // recipe.batch_size)
        self._total_steps = recipe.epochs * self._steps_per_epoch
        self._resume()

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        return self._progress.step

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self._total_steps

    def train(
        self,
        *,
        stop: StopRequest | None = None,
        on_step: Callable[["Run"], None] | None = None,
    ) -> RunResult:
        """Train until the end or until solved, and evaluate the network.

        Args:
            stop: Checked after each step for a request to stop.
            on_step: Called after each step, outside of the counted time.

        Raises:
            Interrupted: If asked to stop; the run can be resumed.
        """
        ended = self._train(stop, on_step)
        if not self.curve or self.curve[-1].step != self.step:
            self._evaluate()
        self._save()
        return self._result("diverged" if self._has_diverged() else ended)

    def _advance(self) -> None:
        self._train_step()
        if self.step % self.settings.training.evaluation_interval == 0:
            self._evaluate()

    def _has_diverged(self) -> bool:
        return bool(self.curve) and not np.isfinite(self.curve[-1].loss)

    def _end(self) -> str | None:
        recipe, goal = self.settings.training, self.task.goal
        last = self.curve[-1] if self.curve else None
        if self._has_diverged():
            return "diverged"
        if recipe.stop_when_solved and last is not None and last.step == self.step:
            if goal.is_reached(last.train) and goal.is_reached(last.test):
                return "solved"
        if self.step >= self._total_steps:
            return "epochs"
        if recipe.max_seconds is not None and self._progress.cpu_seconds >= recipe.max_seconds:
            return "time"
        return None

    def _train_step(self) -> None:
        with self._progress.counting_step(self.device):
            centers = self.train_centers[self._batch_indices()]
            for group in self._optimizer.param_groups:
                fraction = self.step / self._total_steps
                group["lr"] = self.settings.training.learning_rate_at(fraction)
            self.network.train()
            outputs = self.network(self.task.inputs(centers))
            loss = self.task.loss(outputs, centers)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        with torch.no_grad():
            metric = _metrics(self.task, outputs, centers)[self.task.goal.metric].sum()
            count = loss.new_tensor(len(centers))
            self._sums += torch.stack([loss * count, metric, count])

    def _batch_indices(self) -> Tensor:
        size = self.settings.training.batch_size
        epoch, index = divmod(self.step, self._steps_per_epoch)
        return self._orders[epoch][index * size : (index + 1) * size]

    def _evaluate(self) -> None:
        loss, metric, pictures = self._sums.tolist()
        self._sums.zero_()
        metrics = evaluate(self.network, self.task, self.test_centers)
        evaluation = Evaluation(
            step=self.step,
            epoch=self.step / self._steps_per_epoch,
            seconds=self._progress.seconds,
            cpu_seconds=self._progress.cpu_seconds,
            loss=loss / pictures,
            train=metric / pictures,
            test=metrics[self.task.goal.metric],
        )
        self.curve.append(evaluation)
        if evaluation.loss < self._progress.best_loss:
            self._progress.best_loss, self._progress.best_step = evaluation.loss, self.step
            self._best = copy.deepcopy(self.network.state_dict())

    def _result(self, ended: str) -> RunResult:
        last = best = self._judge()
        if self._progress.best_step != self.step:
            weights = copy.deepcopy(self.network.state_dict())
            self.network.load_state_dict(self._best)
            best = self._judge()
            self.network.load_state_dict(weights)
        return RunResult(
            settings=self.settings,
            parameters=count_parameters(self.network),
            ended=ended,
            curve=tuple(self.curve),
            last=last,
            best=best,
            threads=torch.get_num_threads(),
        )

    def _judge(self) -> dict[str, dict[str, float]]:
        sets = {"train": self.train_centers, "test": self.test_centers}
        return {name: evaluate(self.network, self.task, own) for name, own in sets.items()}

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best": self._best,
            "sums": self._sums,
            "progress": asdict(self._progress),
            "curve": [asdict(evaluation) for evaluation in self.curve],
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._best, self._sums = state["best"], state["sums"]
        self._progress = _Progress(**state["progress"])
        self.curve = [Evaluation(**evaluation) for evaluation in state["curve"]]


_PICTURES_AT_ONCE = 4  # activations that stay in a core's cache make evaluation 3 times as fast


def evaluate(network: nn.Module, task: Task, centers: Tensor) -> dict[str, float]:
    """Return each metric's mean over pictures with the square at these places, ``(N, 2)``."""
    network.eval()
    sums: dict[str, Tensor] = {}
    with torch.inference_mode():
        for part in torch.split(centers, _PICTURES_AT_ONCE):
            for name, values in _metrics(task, network(task.inputs(part)), part).items():
                sums[name] = sums.get(name, 0) + values.double().sum()
    return {name: float(total) / len(centers) for name, total in sums.items()}


def _metrics(task: Task, outputs: Tensor, centers: Tensor) -> dict[str, Tensor]:
    """Return each metric of each picture; NaN where an output is not finite."""
    is_number = outputs.flatten(1).isfinite().all(dim=1)
    measured = task.metrics(outputs, centers)
    return {name: values.where(is_number, math.nan) for name, values in measured.items()}
