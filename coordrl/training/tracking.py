"""Trackers that show the numbers of a run: TensorBoard, Weights & Biases, or none."""

import contextlib
import importlib.util
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter

from coordrl.config import SettingsError
from coordrl.files import RunError
from coordrl.records import write_text

Tracker = Literal["tensorboard", "wandb", "none"]
WANDB_ID_FILE = "wandb_id"


def require_tracker(track: Tracker, folder: Path) -> None:
    """Raise a SettingsError if a tracker is not installed, or cannot write to the run folder."""
    if track == "wandb" and importlib.util.find_spec("wandb") is None:
        raise SettingsError(
            "run.track = 'wandb' needs the package wandb: pip install 'coordrl[track]', or choose "
            "--track tensorboard"
        )
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError:
        if track == "tensorboard":
            raise SettingsError(
                f"TensorBoard needs a path in UTF-8, which {folder} is not; choose another "
                "folder, or --track none"
            ) from None


def make_logger(track: Tracker, folder: Path, settings: dict[str, Any], step: int) -> Logger:
    """Make the logger of a run.

    Args:
        track: The tracker.
        folder: Run folder. A resumed run continues the same curves.
        settings: Settings of the run, to be shown with it.
        step: Agent step to continue from; later points, left by a killed run, are hidden.
    """
    writers: list[KVWriter] = []
    if track == "tensorboard":
        writers.append(_TensorBoard(folder, step))
    if track == "wandb":
        writers.append(_WeightsAndBiases(folder, settings))
    return Logger(str(folder), writers)


class _TensorBoard(TensorBoardOutputFormat):
    """SB3's writer, for a run that may have been killed and resumed."""

    def __init__(self, folder: Path, step: int) -> None:
        purge_step = step + 1 if step else 0
        with _telling():
            self.writer = SummaryWriter(folder / "tensorboard", purge_step=purge_step)
        self._is_closed = False

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Write the numbers of one step; raise a RunError if that fails."""
        with _telling():
            super().write(key_values, key_excluded, step)

    def close(self) -> None:
        """Write what is still buffered; raise a RunError if that fails."""
        with _telling():
            super().close()


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RunError(
            f"cannot write for TensorBoard: {reason}; make room and --resume, or --track none"
        ) from error


class _WeightsAndBiases(KVWriter):
    """One run of Weights & Biases per run folder."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        import wandb

        id_file = folder / WANDB_ID_FILE
        own_id = id_file.read_text() if id_file.exists() else uuid.uuid4().hex
        with _telling_of_wandb():
            self._run = wandb.init(
                project="coordrl",
                name=folder.name,
                id=own_id,
                resume="allow",
                dir=str(folder),
                config=settings,
            )
        write_text(own_id, id_file)  # not before: a run that cannot begin leaves nothing

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Send the numbers of one step; raise a RunError if that fails."""
        numbers = {
            key: float(value)
            for key, value in key_values.items()
            if isinstance(value, int | float | np.number)
        }
        with _telling_of_wandb():
            self._run.log(numbers, step=step)

    def close(self) -> None:
        """Finish sending; raise a RunError if that fails."""
        with _telling_of_wandb():
            self._run.finish()


@contextlib.contextmanager
def _telling_of_wandb() -> Iterator[None]:
    import wandb

    try:
        yield
    except wandb.Error as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"Weights & Biases says: {reason}; follow its advice, or choose --track none"
        ) from error
