"""One run of a generative model: its random numbers, its clock, and its evaluations.

Only training time is counted: evaluations stop the clocks. A loss that is no longer finite ends the
run, which goes back to its last good weights.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from coordrl.generative.data import Objects, Pictures, SortOfClevr, draw_objects, draw_pictures
from coordrl.generative.folders import open_pictures
from coordrl.generative.interpolation import Motion, follow, interpolate
from coordrl.generative.measures import Entropies, Row, measure, paper_entropies
from coordrl.generative.models import Gan, Vae, build_model
from coordrl.generative.patches import sliced_wasserstein
from coordrl.generative.settings import GenerativeSettings
from coordrl.records import made_on
from coordrl.resumable import EpochOrders, ResumableRun, TrainingClock, split_seed
from coordrl.runs import RunFolder
from coordrl.stopping import StopRequest


@dataclass(frozen=True)
class Evaluation:
    """One point of a learning curve."""

    step: int
    """Batches so far."""
    seconds: float
    """Wall-clock time of training so far, without evaluations."""
    cpu_seconds: float
    """Processor time of training so far, over all threads."""
    losses: Mapping[str, float]
    """Mean losses since the last evaluation."""
    entropies: Entropies | None
    """The paper's measure of mode collapse; only for Sort-of-Clevr."""
    row: Row | None
    """The other measures; only for Sort-of-Clevr."""
    patches: tuple[float, ...]
    """Distance from real pictures in each band of detail; empty for Sort-of-Clevr."""


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes:
        settings: Settings of the run.
        parameters: Trainable parameters of each network.
        ended: ``"iterations"`` (the whole run), ``"time"`` (``max_seconds`` was reached),
            or ``"diverged"`` (a loss was no longer finite).
        curve: All evaluations, in order; the last is of the final weights.
        real: The measures of equally many real pictures against others.
        motion: How objects move between latent vectors; only for Sort-of-Clevr. The autoencoder's
            vectors are those of real pictures, the generator's are random.
        threads: Threads of PyTorch.
        made_on: The machine and the PyTorch version.
    """

    settings: GenerativeSettings
    parameters: Mapping[str, int]
    ended: str
    curve: tuple[Evaluation, ...]
    real: Evaluation
    motion: Motion | None
    threads: int
    made_on: str = field(default_factory=made_on)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return asdict(self)


@dataclass
class _Progress(TrainingClock):
    """State of a run besides those of its model and random numbers."""

    has_diverged: bool = False


class Run(ResumableRun):
    """One training run, which can stop after any step and resume in another process.

    Args:
        settings: Settings of the run.
        device: Device of the run.
        folder: Folder of the checkpoints; the run continues from the newest. If None, no
            checkpoints are kept.

    Attributes:
        model: The model being trained.
        pictures: The training set.
        pictures_changed: Whether other pictures were there when the run was saved. Checkpoints of
            earlier versions cannot tell.
        curve: Evaluations so far.

    Raises:
        SettingsError: If settings contradict each other.
        DataError: If there are no pictures.
    """

    def __init__(
        self,
        settings: GenerativeSettings,
        *,
        device: torch.device | str = "cpu",
        folder: RunFolder | None = None,
    ) -> None:
        super().__init__(device, folder)
        self.settings = settings
        weights, data_seed, latents, self._evaluation_seed = split_seed(settings.seed, 4)
        self.model: Gan | Vae = build_model(
            settings, torch.Generator().manual_seed(weights), self.device
        )
        self.pictures: Pictures = (
            SortOfClevr(settings.canvas, settings.training.pictures, data_seed)
            if settings.data == "clevr"
            else open_pictures(settings.data, settings.canvas.size)
        )
        self._checksum = "" if folder is None else self.pictures.checksum()
        self.pictures_changed = False
        self._latents = torch.Generator(self.device).manual_seed(latents)
        self.curve: list[Evaluation] = []
        self._progress = _Progress()
        self._sums: dict[str, Tensor] = {}
        self._summed = 0
        self._orders = EpochOrders(len(self.pictures), data_seed)
        self._good = self._moment()
        self._resume()

    @property
    def step(self) -> int:
        """Batches so far."""
        return self._progress.step

    def train(
        self,
        *,
        stop: StopRequest | None = None,
        on_step: Callable[["Run"], None] | None = None,
    ) -> RunResult:
        """Train to the end, and evaluate the model.

        Args:
            stop: Checked after each step for a request to stop.
            on_step: Called after each step, outside of the counted time.

        Raises:
            Interrupted: If asked to stop; the run can be resumed.
        """
        ended = self._train(stop, on_step)
        self._check()
        if not self.curve or self.curve[-1].step != self.step:
            self._evaluate()
        self._save()
        return self._result("diverged" if self._progress.has_diverged else ended)

    def _advance(self) -> None:
        self._train_step()
        is_time = self.step % self.settings.training.evaluation_interval == 0
        if is_time or self.step % _CHECK_INTERVAL == 0:
            self._check()
        if is_time and not self._progress.has_diverged:
            self._evaluate()
            self._good = self._moment()

    def _end(self) -> str | None:
        training = self.settings.training
        if self._progress.has_diverged:
            return "diverged"
        if self.step >= training.iterations:
            return "iterations"
        if training.max_seconds is not None:
            return "time" if self._progress.cpu_seconds >= training.max_seconds else None
        return None

    def _train_step(self) -> None:
        with self._progress.counting_step(self.device):
            real = self.pictures.batch(self._batch_indices(), self.device)
            losses = self.model.learn(real, self._latents)
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(loss)) + loss
        self._summed += 1

    def _batch_indices(self) -> Tensor:
        """Return the indices of the next batch; each epoch has the set in a new order."""
        count, missing = len(self.pictures), self.settings.training.batch_size
        first, parts = self._progress.step * missing, []
        while missing:
            epoch, index = divmod(first, count)
            parts.append(self._orders[epoch][index : index + missing])
            first, missing = first + len(parts[-1]), missing - len(parts[-1])
        return torch.cat(parts)

    def _check(self) -> None:
        """Go back to the last good weights if losses or weights are not finite."""
        has_losses = all(math.isfinite(float(total)) for total in self._sums.values())
        if not has_losses or not self.model.is_finite():
            self._go_back()

    def _go_back(self) -> None:
        self._go_to(self._good)
        self._progress.has_diverged = True

    def _evaluate(self) -> None:
        pictures = self.samples()
        if not pictures.isfinite().all():  # the weights are finite, but too large
            self._go_back()
            if self.curve and self.curve[-1].step == self.step:
                return
            pictures = self.samples()
        losses = {name: float(total) / self._summed for name, total in self._sums.items()}
        self._sums, self._summed = {}, 0
        self.curve.append(self._judge(pictures, losses))

    def samples(self, count: int | None = None) -> Tensor:
        """Return generated pictures, always from the same latent vectors.

        Args:
            count: How many; if None, as many as in an evaluation.
        """
        number = self.settings.training.samples if count is None else count
        generator = self._evaluation_generator()
        return self.model.generate(self.model.latents(number, generator).to(self.device))

    def _evaluation_generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self._evaluation_seed)

    def _judge(self, pictures: Tensor, losses: Mapping[str, float]) -> Evaluation:
        entropies, row = None, None
        patches: tuple[float, ...] = ()
        if self.settings.data == "clevr":
            entropies = paper_entropies(pictures, self.settings.canvas)
            row = measure(pictures, self._others(0), self.settings.canvas)
        else:
            pair = pictures[: len(self.pictures)]
            generator = torch.Generator(self.device).manual_seed(self._evaluation_seed)
            patches = tuple(sliced_wasserstein(pair, self._read(0, len(pair)), generator))
        progress = self._progress
        return Evaluation(
            progress.step,
            progress.seconds,
            progress.cpu_seconds,
            losses,
            entropies,
            row,
            patches,
        )

    def _others(self, number: int) -> Objects:
        """Return the objects of held-out pictures, the same at each call."""
        generator = torch.Generator().manual_seed(self._evaluation_seed + 1 + number)
        return draw_objects(self.settings.canvas, self.settings.training.samples, generator)

    def _read(self, first: int, count: int) -> Tensor:
        """Return ``count`` pictures from the disk from index ``first`` on, wrapping at the end."""
        indices = torch.arange(first, first + count) % len(self.pictures)
        return self.pictures.batch(indices, self.device)

    def _judge_real(self) -> Evaluation:
        """Evaluate real pictures like generated ones, against other real ones."""
        if self.settings.data == "clevr":
            return self._judge(self.real_pictures(), {})
        half = max(1, min(self.settings.training.samples, len(self.pictures) // 2))
        return self._judge(self._read(half, half), {})

    def real_pictures(self) -> Tensor:
        """Return held-out pictures of Sort-of-Clevr, as many as samples."""
        return draw_pictures(self._others(1), self.settings.canvas)

    def ways(self, count: int, steps: int = 17) -> Tensor:
        """Return interpolations between latent vectors, ``(count, steps, 3, size, size)``.

        The autoencoder's vectors are those of real pictures, the generator's are random.
        """
        if isinstance(self.model, Vae) and self.settings.data == "clevr":
            ends = self._others(0).take(torch.arange(2 * count) % self.settings.training.samples)
            pictures = draw_pictures(ends, self.settings.canvas).to(self.device)
            latents = self.model.encode(pictures)
        elif isinstance(self.model, Vae):
            latents = self.model.encode(self._read(0, 2 * count))
        else:
            latents = self.model.latents(2 * count, self._evaluation_generator()).to(self.device)
        along = interpolate(latents[:count], latents[count:], steps)
        pictures = self.model.generate(along.flatten(0, 1))
        return pictures.view(count, steps, *pictures.shape[1:])

    def _result(self, ended: str) -> RunResult:
        is_clevr = self.settings.data == "clevr"
        count = min(_WAYS, self.settings.training.samples)
        return RunResult(
            settings=self.settings,
            parameters=self.model.parameters,
            ended=ended,
            curve=tuple(self.curve),
            real=self._judge_real(),
            motion=follow(self.ways(count), self.settings.canvas) if is_clevr else None,
            threads=torch.get_num_threads(),
        )

    def _save(self) -> None:
        self._check()
        super()._save()

    def _state(self) -> dict[str, Any]:
        return {**self._moment(), "good": self._good, "pictures": self._checksum}

    def _restore(self, state: dict[str, Any]) -> None:
        self._go_to(state)
        # Checkpoints of earlier versions have no "good" and no "pictures".
        self._good = state.get("good") or self._moment()
        self.pictures_changed = state.get("pictures", "") not in ("", self._checksum)

    def _moment(self) -> dict[str, Any]:
        """Return a copy of everything that the next steps depend on."""
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "latents": self._latents.get_state(),
                "sums": self._sums,
                "summed": self._summed,
                "progress": asdict(self._progress),
                "curve": [asdict(evaluation) for evaluation in self.curve],
            }
        )

    def _go_to(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self._latents.set_state(state["latents"].cpu())
        self._sums, self._summed = dict(state["sums"]), state["summed"]
        self._progress = _Progress(**state["progress"])
        self.curve = [evaluation_from_json(evaluation) for evaluation in state["curve"]]


_WAYS = 100  # interpolations in which objects are followed
_CHECK_INTERVAL = 100  # reading a loss waits for the device


def evaluation_from_json(record: dict[str, Any]) -> Evaluation:
    """Rebuild an evaluation from :meth:`RunResult.to_json`."""
    entropies, row = record["entropies"], record["row"]
    return Evaluation(
        **{
            **record,
            "entropies": None if entropies is None else Entropies(**entropies),
            "row": None if row is None else Row(**{**row, "valid": tuple(row["valid"])}),
            "patches": tuple(record["patches"]),
        }
    )


def advice(settings: GenerativeSettings) -> str:
    """Return the settings to change in a run that has diverged, as part of a sentence."""
    if settings.model == "vae":
        return "lower vae.learning_rate"
    if settings.gan.objective == "paper":
        return "take --objective r3gan, or lower gan.generator_lr and gan.discriminator_lr"
    return "raise gan.gamma, or lower gan.generator_lr and gan.discriminator_lr"
