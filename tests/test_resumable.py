"""Training that stops after any step: its loop, its checkpoints, its clocks and seeds."""

import contextlib
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from coordrl.resumable import (
    CHECKPOINT_SECONDS,
    STATE_FILE,
    EpochOrders,
    ResumableRun,
    TrainingClock,
    order_of_epoch,
    seed_of,
    split_seed,
)
from coordrl.runs import RunFolder, open_run
from coordrl.stopping import Interrupted, StopRequest

CPU = torch.device("cpu")


class Sum(ResumableRun):
    """Adds up the numbers of its steps."""

    def __init__(
        self, folder: RunFolder | None = None, *, steps: int = 5, device: str = "cpu"
    ) -> None:
        super().__init__(device, folder)
        self.total, self._clock, self._steps = torch.zeros(()), TrainingClock(), steps
        self._resume()

    @property
    def step(self) -> int:
        return self._clock.step

    def _advance(self) -> None:
        with self._clock.counting_step(self.device):
            self.total = self.total + self.step

    def _end(self) -> str | None:
        return "steps" if self.step >= self._steps else None

    def _state(self) -> dict[str, Any]:
        return {"total": self.total, "step": self.step}

    def _restore(self, state: dict[str, Any]) -> None:
        self.total, self._clock = state["total"], TrainingClock(state["step"])


def stopping_at(step: int) -> tuple[StopRequest, Callable[[Sum], None]]:
    """Return a request, and what asks for it once a run has come to a step."""
    stop = StopRequest()

    def look(run: Sum) -> None:
        if run.step == step:
            stop.signal_number = 15

    return stop, look


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(step: int, tmp_path: Path) -> None:
    whole = Sum()
    assert whole._train(None, None) == "steps"
    with open_run(tmp_path, "") as folder:
        stop, look = stopping_at(step)
        with pytest.raises(Interrupted):
            Sum(folder)._train(stop, look)
        rest = Sum(folder)
        assert rest.step == step
        assert rest._train(None, None) == "steps"
    assert rest.total == whole.total == 0 + 1 + 2 + 3 + 4


def test_a_run_without_a_folder_can_be_stopped_as_well() -> None:
    stop, look = stopping_at(2)
    run = Sum()
    with pytest.raises(Interrupted):
        run._train(stop, look)
    assert run.step == 2


def test_a_run_goes_on_where_it_is_told_to_compute(tmp_path: Path) -> None:
    with open_run(tmp_path, "") as folder:
        stop, look = stopping_at(1)
        with pytest.raises(Interrupted):
            Sum(folder)._train(stop, look)
        assert Sum(folder).total.device.type == "cpu"
        assert Sum(folder, device="meta").total.device.type == "meta"


def test_a_run_at_its_end_takes_no_step() -> None:
    run, seen = Sum(steps=0), []
    assert run._train(None, lambda run: seen.append(run.step)) == "steps"
    assert seen == []


def test_a_checkpoint_is_kept_whenever_the_last_is_old_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    kept: list[int | None] = []

    def look(run: Sum) -> None:
        nonlocal now
        checkpoint = folder.newest_checkpoint()
        kept.append(None if checkpoint is None else checkpoint.step)
        now += 0.4 * CHECKPOINT_SECONDS

    with open_run(tmp_path, "") as folder:
        Sum(folder, steps=8)._train(None, look)
    assert kept == [None, None, None, 3, 3, 3, 6, 6]


def test_a_clock_counts_steps_but_neither_what_lies_between_nor_what_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wall, cpu = 100.0, 30.0

    def work(seconds: float) -> None:
        """Take this time of the wall clock, and twice as much of two processors."""
        nonlocal wall, cpu
        wall, cpu = wall + seconds, cpu + 2 * seconds

    monkeypatch.setattr(time, "perf_counter", lambda: wall)
    monkeypatch.setattr(time, "process_time", lambda: cpu)
    clock = TrainingClock()
    for seconds in (1.0, 2.5):
        with clock.counting_step(CPU):
            work(seconds)
        work(10)
    with contextlib.suppress(ZeroDivisionError), clock.counting_step(CPU):
        work(10)
        raise ZeroDivisionError
    assert (clock.step, clock.seconds, clock.cpu_seconds) == (2, 3.5, 7)


def test_a_seed_is_split_into_many_that_do_not_depend_on_their_number() -> None:
    assert split_seed(3, 4)[:2] == split_seed(3, 2)
    assert len({*split_seed(3, 4), *split_seed(4, 4)}) == 8
    assert len({seed_of(3, 0), seed_of(3, 1), seed_of(4, 0), seed_of(4, 1)}) == 4


def test_an_order_is_made_once_while_its_epoch_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def note(count: int, seed: int, epoch: int) -> torch.Tensor:
        made.append((count, seed, epoch))
        return order_of_epoch(count, seed, epoch)

    monkeypatch.setattr("coordrl.resumable.order_of_epoch", note)
    orders = EpochOrders(9, seed=3)
    for epoch in (0, 0, 1, 1, 0):
        assert torch.equal(orders[epoch], order_of_epoch(9, 3, epoch))
    assert made == [(9, 3, 0), (9, 3, 1), (9, 3, 0)]
    assert EpochOrders(9, seed=3, device="meta")[0].device.type == "meta"


def test_epochs_have_orders_of_their_own() -> None:
    first, second, other = orders = [order_of_epoch(9, *own) for own in [(0, 0), (0, 1), (1, 0)]]
    for order in orders:
        assert order.sort().values.tolist() == list(range(9))
    assert first.tolist() == order_of_epoch(9, 0, 0).tolist()
    assert first.tolist() != second.tolist()
    assert first.tolist() != other.tolist()


def test_the_state_of_a_run_is_read_without_running_what_is_in_it(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "crater",)

    with open_run(tmp_path / "run", "") as folder:
        with folder.checkpoint(1) as path:
            torch.save({"total": Bomb(), "step": 1}, path / STATE_FILE)
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            Sum(folder)
    assert not (tmp_path / "crater").exists()


def test_the_next_epoch_of_a_seed_is_not_the_first_of_the_next_seed() -> None:
    orders = [order_of_epoch(9, *own).tolist() for own in [(0, 1), (1, 0), (2, 0), (1, 1)]]
    assert len({tuple(order) for order in orders}) == 4


def test_a_clock_counts_until_the_device_has_done_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, waited = TrainingClock(), []
    monkeypatch.setattr(
        "coordrl.resumable.wait_for", lambda device: waited.append((device, clock.step))
    )
    with clock.counting_step(torch.device("cuda")):
        assert waited == []
    assert waited == [(torch.device("cuda"), 0)]
