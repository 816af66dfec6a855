"""Training that can stop after any step and resume in another process: its loop and clocks."""

import abc
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from coordrl.devices import wait_for
from coordrl.runs import RunFolder, save_tensors
from coordrl.stopping import Interrupted, StopRequest

STATE_FILE = "state.pt"
CHECKPOINT_SECONDS = 30.0
"""Least time between two checkpoints."""


@dataclass
class TrainingClock:
    """Steps of a run, and the time that they took, not counting evaluations.

    Example:
        >>> clock = TrainingClock()
        >>> with clock.counting_step(torch.device("cpu")):
        ...     product = torch.ones(8, 8) @ torch.ones(8, 8)
        >>> clock.step, clock.seconds > 0
        (1, True)
    """

    step: int = 0
    """Steps of the optimizer so far."""
    seconds: float = 0.0
    """Wall-clock time."""
    cpu_seconds: float = 0.0
    """Processor time over all threads."""

    @contextlib.contextmanager
    def counting_step(self, device: torch.device) -> Iterator[None]:
        """Count the block as a step on a device, unless it raises."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        wait_for(device)
        self.step += 1
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu


class ResumableRun(abc.ABC):
    """One training run, which can stop after any step and resume in another process.

    A subclass builds itself from its settings and ends its ``__init__`` with :meth:`_resume`. Its
    random numbers come from generators in its state, or from :func:`seed_of` a step or epoch.

    Args:
        device: Device of the run.
        folder: Folder of the checkpoints; the run continues from the newest. If None, no
            checkpoints are kept.
    """

    def __init__(self, device: torch.device | str, folder: RunFolder | None) -> None:
        self.device, self.folder = torch.device(device), folder

    @property
    @abc.abstractmethod
    def step(self) -> int:
        """Steps of the optimizer so far."""

    @abc.abstractmethod
    def _advance(self) -> None:
        """Train one step, and evaluate if due."""

    @abc.abstractmethod
    def _end(self) -> str | None:
        """Return why the run has ended, or None if it has not."""

    @abc.abstractmethod
    def _state(self) -> dict[str, Any]:
        """Return the complete state of the run, in types that ``torch.load`` accepts as weights."""

    @abc.abstractmethod
    def _restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`_state` returned."""

    def _train(self, stop: StopRequest | None, on_step: Callable[[Self], None] | None) -> str:
        """Train to the end, with regular checkpoints, and return why the run ended.

        Args:
            stop: Checked after each step for a request to stop.
            on_step: Called after each step.

        Raises:
            Interrupted: If asked to stop; the run can be resumed.
        """
        ended, saved = self._end(), time.monotonic()
        while ended is None:
            self._advance()
            if on_step is not None:
                on_step(self)
            is_asked = stop is not None and stop.requested
            if is_asked or time.monotonic() - saved > CHECKPOINT_SECONDS:
                self._save()
                saved = time.monotonic()
            if is_asked:
                raise Interrupted
            ended = self._end()
        return ended

    def _save(self) -> None:
        if self.folder is not None:
            with self.folder.checkpoint(self.step) as path:
                save_tensors(self._state(), path / STATE_FILE)

    def _resume(self) -> None:
        checkpoint = None if self.folder is None else self.folder.newest_checkpoint()
        if checkpoint is not None:
            path = checkpoint.path / STATE_FILE
            self._restore(torch.load(path, map_location=self.device, weights_only=True))


def split_seed(seed: int, count: int) -> tuple[int, ...]:
    """Return seeds for ``count`` independent random streams of a run.

    Example:
        >>> split_seed(0, 2)
        (2968811710, 3677149159)
    """
    return tuple(int(own) for own in np.random.SeedSequence(seed).generate_state(count))


def seed_of(*numbers: int) -> int:
    """Return a seed that differs for each tuple of numbers, such as a seed and an epoch.

    Always pass equally many numbers: NumPy's SeedSequence ignores zeros at the end.

    Example:
        >>> seed_of(7, 0), seed_of(7, 1)
        (2083679832, 369571992)
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class EpochOrders:
    """The numbers below ``count``, in a different random order for each epoch.

    The order of the latest epoch is cached, so that a step need not make it again.

    Args:
        count: How many numbers.
        seed: Seed of all orders.
        device: Device of the orders.

    Example:
        >>> orders = EpochOrders(4, seed=0)
        >>> orders[1].tolist() == order_of_epoch(4, seed=0, epoch=1).tolist()
        True
    """

    def __init__(self, count: int, seed: int, device: torch.device | str = "cpu") -> None:
        self._count, self._seed, self._device = count, seed, device
        self._kept: tuple[int, Tensor] | None = None

    def __getitem__(self, epoch: int) -> Tensor:
        """Return the order of an epoch."""
        if self._kept is None or self._kept[0] != epoch:
            order = order_of_epoch(self._count, self._seed, epoch)
            self._kept = epoch, order.to(self._device)
        return self._kept[1]


def order_of_epoch(count: int, seed: int, epoch: int) -> Tensor:
    """Return the numbers below ``count`` in an epoch's random order, on the CPU.

    Example:
        >>> order_of_epoch(4, seed=0, epoch=1).sort().values
        tensor([0, 1, 2, 3])
    """
    generator = torch.Generator().manual_seed(seed_of(seed, epoch))
    return torch.randperm(count, generator=generator)
