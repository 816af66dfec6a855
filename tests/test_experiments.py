"""What experiments share: folders that are found again, the watch, more time."""

import errno
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import coordrl.coordinates.experiments
import coordrl.coordinates.training
import coordrl.detection.experiments
import coordrl.detection.training
import coordrl.generative.experiments
import coordrl.generative.training
from coordrl.config import SettingsError
from coordrl.detection.sources import DigitSet, DigitSplit
from coordrl.experiments import (
    ManyRuns,
    may_go_on,
    require_trained,
    run_folder,
    swept_values,
    train_once,
    watched,
    with_time_of,
)
from coordrl.files import RunError
from coordrl.generative.settings import GenerativeSettings, Recipe
from coordrl.records import read_json, write_json
from coordrl.runs import RunFolder, open_run
from coordrl.stopping import Interrupted


@dataclass(frozen=True)
class Training:
    max_seconds: float | None = None
    batch_size: int = 4


@dataclass(frozen=True)
class Settings:
    seed: int = 0
    training: Training = field(default_factory=Training)


def test_a_folder_is_found_again_with_more_or_less_time_but_no_other_settings(
    tmp_path: Path,
) -> None:
    for seconds in (None, 10.0, 0.5):
        with run_folder(tmp_path, Settings(training=Training(seconds))) as folder:
            assert folder.path == tmp_path
    with (
        pytest.raises(RunError, match=r"training\.batch_size is 4 there and 8 here"),
        run_folder(tmp_path, Settings(training=Training(batch_size=8))),
    ):
        pass


@dataclass(frozen=True)
class Result:
    score: int


def test_a_run_is_trained_once_and_then_read_unless_it_goes_on(tmp_path: Path) -> None:
    trained = []

    def train(folder: RunFolder) -> Result:
        trained.append(folder.path)
        return Result(len(trained))

    def score(*, below: int = 0, settings: Settings | None = None) -> int:
        return train_once(
            tmp_path / "run",
            settings or Settings(),
            read=lambda file: read_json(file, lambda record: Result(**record)),
            train=train,
            goes_on=lambda result: result.score < below,
        ).score

    assert [score(), score(), score(below=2), score(below=2), score()] == [1, 1, 2, 2, 2]
    assert trained == [tmp_path / "run"] * 2
    with pytest.raises(RunError, match="seed is 0 there and 1 here"):
        score(settings=Settings(seed=1))


@pytest.mark.parametrize("when", ["before", "while", "after"])
def test_a_signal_while_a_run_begins_or_ends_is_not_forgotten(when: str, tmp_path: Path) -> None:
    """An evaluation at the end of a run looks for no signals, and other runs would come next."""
    requested = []

    def train(folder: RunFolder) -> Result:
        if when == "before":
            signal.raise_signal(signal.SIGTERM)
        with watched(folder, 5, "steps", done=0) as watch:
            requested.append(watch.stop.requested)
            if when == "while":
                signal.raise_signal(signal.SIGTERM)
        if when == "after":
            signal.raise_signal(signal.SIGTERM)
        return Result(3)

    def run() -> Result:
        return train_once(
            tmp_path / "run",
            Settings(),
            read=lambda file: read_json(file, lambda record: Result(**record)),
            train=train,
        )

    with pytest.raises(Interrupted):
        run()
    assert run() == Result(3)
    assert requested == [when == "before"]


def test_a_watch_forgets_what_tensorboard_has_of_steps_that_are_done_again(tmp_path: Path) -> None:
    with run_folder(tmp_path, Settings()) as folder:
        with watched(folder, 5, "steps", done=0) as watch:
            assert not watch.stop.requested
            for step in (1, 2, 3):
                watch.tensorboard.add_scalar("loss", 1.0, step)
        with watched(folder, 5, "steps", done=1) as watch:
            watch.tensorboard.add_scalar("loss", 2.0, 2)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 2.0)]


def test_a_watch_shows_the_run_and_takes_the_first_signal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        run_folder(tmp_path / "run", Settings()) as folder,
        watched(folder, 50, "batches", done=20) as watch,
    ):
        shown = watch.progress
        assert (shown.label, shown.total, shown.unit, shown.done) == ("run", 50, "batches", 20)
        signal.raise_signal(signal.SIGINT)
        assert watch.stop.requested


def test_values_of_a_sweep_are_listed_setting_by_setting() -> None:
    first, second = swept_values({"training.l2": [0.1, 0.0], "seed": [3]}, "[own.sweep]")
    assert [(item.key, item.value) for item in first] == [("training.l2", 0.1), ("training.l2", 0)]
    assert [(item.key, item.value) for item in second] == [("seed", 3)]
    wrong: list[object] = [[], 0.1, "0.1"]
    for values in wrong:
        with pytest.raises(SettingsError, match=r"^\[own.sweep\]: 'seed' must be a list of values"):
            swept_values({"seed": values}, "[own.sweep]")


@pytest.mark.parametrize("method", ["__init__", "add_scalar", "close"])
def test_curves_that_a_full_disk_has_cut_off_are_told(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def work(folder: RunFolder) -> None:
        with watched(folder, 1, "steps", done=0) as watch:
            watch.tensorboard.add_scalar("loss", 1.0, 1)

    monkeypatch.setattr(SummaryWriter, method, full)
    with (
        run_folder(tmp_path / "run", Settings()) as folder,
        pytest.raises(RunError, match=r"cannot write into .*run: No space left .*; make room"),
    ):
        work(folder)


@pytest.mark.parametrize(
    ("ended", "limit", "goes_on"),
    [("time", None, True), ("time", 31.0, True), ("time", 30.0, False), ("epochs", None, False)],
)
def test_only_a_run_that_was_cut_short_goes_on_with_more_time(
    ended: str, limit: float | None, goes_on: bool
) -> None:
    assert may_go_on(ended, 30.0, limit) is goes_on


def test_a_result_keeps_the_time_that_its_run_was_given() -> None:
    now = Settings(seed=3, training=Training(2.0, batch_size=7))
    record: dict[str, Any] = {"seed": 3, "training": {"max_seconds": 9.0, "batch_size": 7}}
    assert with_time_of(now, record) == replace(now, training=Training(9.0, batch_size=7))
    record["training"] = {"max_seconds": None, "batch_size": 7}
    assert with_time_of(now, record) == replace(now, training=Training(None, batch_size=7))


def test_a_result_without_weights_is_told(tmp_path: Path) -> None:
    with run_folder(tmp_path, Settings()) as folder:
        require_trained(1, folder)
        with pytest.raises(RunError, match="has a result but no checkpoint that can be read"):
            require_trained(0, folder)


def coordinate_run(folder: RunFolder) -> Any:
    settings = coordrl.coordinates.training.CoordinateSettings()
    return coordrl.coordinates.training.Run(settings, folder=folder)


def detection_run(folder: RunFolder) -> Any:
    settings = coordrl.detection.training.DetectorSettings(train_images=16, test_images=1)
    digits = DigitSet(np.ones((1, 28, 28), np.uint8), np.zeros(1, np.uint8))
    split = DigitSplit(digits, digits, "one digit")
    return coordrl.detection.training.Run(settings, split, folder=folder)


def generative_run(folder: RunFolder) -> Any:
    settings = GenerativeSettings(training=Recipe(pictures=16))
    return coordrl.generative.training.Run(settings, folder=folder)


@pytest.mark.usefixtures("little_room")
@pytest.mark.parametrize("run", [coordinate_run, detection_run, generative_run])
def test_a_checkpoint_that_a_full_disk_has_cut_off_is_told(
    run: Callable[[RunFolder], Any], tmp_path: Path
) -> None:
    with (
        open_run(tmp_path / "run", "seed = 0\n") as folder,
        pytest.raises(RunError, match=r"the checkpoint .*: File too large; .* make room"),
    ):
        run(folder)._save()


def test_a_run_that_came_no_further_than_its_beginning_has_its_weights(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", "seed = 0\n") as folder:
        with pytest.raises(RunError, match="has a result but no checkpoint that can be read"):
            require_trained(0, folder)
        with folder.checkpoint(0) as path:
            (path / "state").write_text("as it began, before it diverged")
        require_trained(0, folder)


def test_there_is_a_seed_to_train_with(tmp_path: Path) -> None:
    experiment = ManyRuns(config=tmp_path, out=tmp_path)
    experiment.require_seeds(1)
    with pytest.raises(SettingsError, match="--seeds must be at least 1, got 0"):
        experiment.require_seeds(0)


READ_RESULT = pytest.mark.parametrize(
    "read",
    [
        coordrl.coordinates.experiments._read_result,
        coordrl.detection.experiments._read_result,
        coordrl.generative.experiments._read_result,
    ],
    ids=["coordinates", "detection", "generative"],
)


@READ_RESULT
@pytest.mark.parametrize("text", ['{"curve": [', "{}"])
def test_studies_name_a_result_that_cannot_be_read(
    text: str, read: Callable[[Path, Any], object], tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(RunError, match=r"result\.json cannot be read .*; delete it, and the same"):
        read(path, None)


@READ_RESULT
def test_studies_name_a_result_without_evaluations(
    read: Callable[[Path, Any], object], tmp_path: Path
) -> None:
    measured: dict[str, object] = {"curve": [], "motion": None, "last": {}, "best": {}}
    settings = {"training": {"max_seconds": None}}
    write_json({"settings": settings, **measured}, tmp_path / "result.json")
    with pytest.raises(RunError, match=r"its curve needs at least one evaluation and has none"):
        read(tmp_path / "result.json", Settings())


def test_a_result_is_on_the_disk_before_it_has_its_name(tmp_path: Path, disk: list[str]) -> None:
    train_once(tmp_path / "run", Settings(), read=lambda _: Result(0), train=lambda _: Result(1))
    assert disk[-3:] == ["flush partial", "partial becomes result.json", "flush run"]
