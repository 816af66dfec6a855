"""What the runs of all experiments share: a folder that belongs to its settings, and a watch.

An experiment trains many runs. Each has a folder of its own: finished runs are read, stopped runs
continue.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from torch.utils.tensorboard import SummaryWriter

from coordrl.config import Override, SettingsError, dump_settings
from coordrl.files import RunError, reason
from coordrl.progress import Progress
from coordrl.records import write_json
from coordrl.runs import SETTINGS_FILE, RunFolder, open_run
from coordrl.stopping import Interrupted, StopRequest

RESULT_FILE = "result.json"

# May differ from the folder's: with more time, the same run continues.
_MAX_SECONDS = "training.max_seconds"

_Evaluation = TypeVar("_Evaluation")
_Settings = TypeVar("_Settings")
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManyRuns:
    """Trains runs into subfolders of one folder; each experiment adds its own tables and figures.

    Raises:
        RunError: In all methods, if a folder holds other settings or a file cannot be written.
        SettingsError: In all methods, if a setting does not fit.
    """

    config: Path
    """Settings of each kind of run."""
    out: Path
    """Folder of the runs."""
    device: str = "cpu"
    """Device of the networks."""
    overrides: tuple[Override, ...] = ()
    """Settings that win over the file."""
    command: str = ""
    """The command as typed, for the records."""

    def require_seeds(self, seeds: int) -> None:
        """Raise a SettingsError unless ``seeds`` is at least 1."""
        if seeds < 1:
            raise SettingsError(f"--seeds must be at least 1, got {seeds}")


def swept_values(table: Mapping[str, object], source: str) -> list[list[Override]]:
    """Return the settings of a table ``[... .sweep]``, a list for each key.

    Args:
        table: A list of values for each setting.
        source: Name of the table, for errors.

    Raises:
        SettingsError: If a setting has no list of values, or an empty one.
    """
    for key, values in table.items():
        if not isinstance(values, list) or not values:
            raise SettingsError(f"{source}: {key!r} must be a list of values, got {values!r}")
    return [
        [Override(key, value, source) for value in values]  # type: ignore[attr-defined]
        for key, values in table.items()
    ]


def each_once(made_on: Iterable[str]) -> str:
    """Return the distinct machines that results were made on, for the heading of their table.

    Example:
        >>> each_once(["a Xeon", "an EPYC", "a Xeon"])
        'a Xeon and on an EPYC'
    """
    return " and on ".join(dict.fromkeys(made_on))


def run_folder(
    path: Path, settings: object, meanings: Mapping[str, Callable[[Any], object]] | None = None
) -> AbstractContextManager[RunFolder]:
    """Open the folder of a run, to begin or to continue it.

    Args:
        path: The folder.
        settings: The run's settings, a dataclass. ``training.max_seconds`` may differ from the
            folder's.
        meanings: As for :func:`~coordrl.runs.open_run`.

    Raises:
        RunError: If the folder holds a run with other settings, anything else, or is in use.
    """
    is_known = (path / SETTINGS_FILE).exists()
    text = dump_settings(settings)
    return open_run(path, text, resume=is_known, may_differ={_MAX_SECONDS}, meanings=meanings)


def train_once(
    path: Path,
    settings: object,
    *,
    read: Callable[[Path], _Result],
    train: Callable[[RunFolder], _Result],
    goes_on: Callable[[_Result], bool] = lambda _: False,
    meanings: Mapping[str, Callable[[Any], object]] | None = None,
) -> _Result:
    """Train a run, continue it, or read its result.

    Args:
        path: Folder of the run.
        settings: The run's settings, a dataclass.
        read: Reads the result, a dataclass, from a file.
        train: Trains the run to its end, from the state in its folder.
        goes_on: Tells whether a run with this result should be trained further.
        meanings: As for :func:`~coordrl.runs.open_run`.

    Raises:
        Interrupted: If a signal asked to stop. After the last step, that waits for the result.
        RunError: If the folder holds a run with other settings, anything else, or is in use.
    """
    with run_folder(path, settings, meanings) as folder:
        file = path / RESULT_FILE
        if file.exists():
            result = read(file)
            if not goes_on(result):
                return result
        with StopRequest() as stop:
            result = train(folder)
            write_json(dataclasses.asdict(result), file)  # type: ignore[call-overload]
    if stop.requested:  # by a signal after the last step
        raise Interrupted
    return result


def read_curve(
    points: Sequence[Any], build: Callable[[Any], _Evaluation]
) -> tuple[_Evaluation, ...]:
    """Return the learning curve in a run's result.

    Args:
        points: Its evaluations, as JSON types.
        build: Rebuilds an evaluation.

    Raises:
        ValueError: If there is none: a run is evaluated when it ends.
    """
    if not points:
        raise ValueError("its curve needs at least one evaluation and has none")
    return tuple(build(point) for point in points)


def require_trained(step: int, folder: RunFolder) -> None:
    """Check that a finished run was restored from its last checkpoint.

    Raises:
        RunError: If ``step`` is 0 because there is no checkpoint.
    """
    if step == 0 and folder.newest_checkpoint() is None:
        raise RunError(
            f"{folder.path} has a result but no checkpoint that can be read, so its weights are"
            " lost; delete the folder, and the same command trains it again"
        )


@dataclasses.dataclass(frozen=True)
class Watch:
    """Tools to watch and stop a run while it trains."""

    stop: StopRequest
    """Whether the user asked to stop."""
    progress: Progress
    """The line on the screen."""
    tensorboard: SummaryWriter
    """Curves and pictures, kept in the run's folder."""


@contextlib.contextmanager
def watched(folder: RunFolder, total: int, unit: str, *, done: int) -> Iterator[Watch]:
    """Watch a run.

    Args:
        folder: Folder of the run.
        total: Steps of the whole run.
        unit: What a step is, in the plural.
        done: Steps that an earlier process has done. TensorBoard drops its entries for later ones.

    Raises:
        RunError: If TensorBoard's files cannot be written.
    """
    purge_step = done + 1 if done else 0
    try:
        with (
            StopRequest() as stop,
            SummaryWriter(folder.path, purge_step=purge_step) as tensorboard,
            Progress(folder.path.name, total, unit, done=done) as progress,
        ):
            yield Watch(stop, progress, tensorboard)
    except OSError as error:
        raise RunError(
            f"cannot write into {folder.path}: {reason(error)}; make room, and the same command"
            " goes on from what was saved"
        ) from error


def may_go_on(ended: str, cpu_seconds: float, max_seconds: float | None) -> bool:
    """Tell whether a run that was cut short has been given more time.

    Args:
        ended: Why it ended; ``"time"`` if it was cut short.
        cpu_seconds: Processor time that it took.
        max_seconds: Processor time that it may take now; None for no limit.

    Example:
        >>> may_go_on("time", 30.2, 60.0), may_go_on("time", 30.2, 30.0)
        (True, False)
    """
    return ended == "time" and (max_seconds is None or max_seconds > cpu_seconds)


def with_time_of(settings: _Settings, record: dict[str, Any]) -> _Settings:
    """Return settings with the time limit of a finished run, which may be above the current one.

    Args:
        settings: A dataclass with ``training.max_seconds``.
        record: The settings in the run's result.
    """
    own: Any = settings
    limit = record["training"]["max_seconds"]
    training = dataclasses.replace(own.training, max_seconds=limit)
    changed: _Settings = dataclasses.replace(own, training=training)
    return changed
