"""Checkpoints: the complete state of a training run between two updates.

Reading a checkpoint unpickles nothing but tensors, numbers and strings.
"""

import random
import tempfile
import zipfile
from collections import deque
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm

from coordrl.algorithms import FrameReplayBuffer
from coordrl.device_algorithms import DeviceReplayBuffer
from coordrl.files import RunError
from coordrl.ranks import Ranks
from coordrl.runs import save_tensors
from coordrl.sb3_envs import VectorEnvAdapter

STATE_FILE = "state.pt"
GAMES_FILE = "games.bin"
REPLAY_FILE = "replay.npz"
FORMAT_VERSION = 1
_REPLAY = FrameReplayBuffer | DeviceReplayBuffer

# Counters that Stable-Baselines3 keeps in the model; those of the second line are DQN's only.
_COUNTERS = (
    *("num_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining"),
    *("_n_calls", "exploration_rate"),
)


class Restored(NamedTuple):
    """What a checkpoint holds besides the model.

    Attributes:
        journal: The journal that was written with it.
        new_games: Why new games have to begin; None if those of the checkpoint continue.
    """

    journal: str
    new_games: str | None = None


def write_checkpoint(model: BaseAlgorithm, journal: str, folder: Path) -> None:
    """Write the state of a model between two rollouts.

    Args:
        model: The model, with a :class:`~coordrl.sb3_envs.VectorEnvAdapter` as environments.
        journal: Text to store with it, returned by :func:`read_checkpoint`.
        folder: Empty folder.
    """
    episodes = model.ep_info_buffer or ()
    state = {
        "format_version": FORMAT_VERSION,
        "counters": {name: getattr(model, name) for name in _COUNTERS if hasattr(model, name)},
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "random": _random_state(model),
        "episodes": [{key: float(value) for key, value in info.items()} for info in episodes],
        "journal": journal,
        "episode_starts": torch.as_tensor(model._last_episode_starts),
    }
    save_tensors(state, folder / STATE_FILE)
    if not _is_ale(model):
        (folder / GAMES_FILE).write_bytes(_environments(model).save())
    replay = getattr(model, "replay_buffer", None)
    if isinstance(replay, _REPLAY):
        _write_arrays(replay.state(), folder / REPLAY_FILE)


def read_checkpoint(model: BaseAlgorithm, folder: Path) -> Restored:
    """Restore a model, built from the same settings, and its environments from a checkpoint.

    With our emulator on the CPU, training continues bit for bit as without the interruption.

    Raises:
        RunError: If the checkpoint was written in another format version.
    """
    state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    if state["format_version"] != FORMAT_VERSION:
        raise RunError(
            f"{folder} has format {state['format_version']}, and this coordrl goes on from format "
            f"{FORMAT_VERSION}; resume with the version that started the run"
        )
    for name, value in state["counters"].items():
        setattr(model, name, value)
    model.policy.load_state_dict(state["policy"])
    _restore_optimizer(model.policy.optimizer, state["optimizer"])
    model.ep_info_buffer = deque(state["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    replay = getattr(model, "replay_buffer", None)
    if isinstance(replay, _REPLAY):
        with np.load(folder / REPLAY_FILE, allow_pickle=False) as arrays:
            replay.restore(arrays)
    new_games = _restore_games(model, folder / GAMES_FILE)
    if new_games is None:
        model._last_episode_starts = state["episode_starts"].numpy()
    _restore_random_state(model, state["random"])
    return Restored(state["journal"], new_games)


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    # Whether steps can be recorded, and so where they are counted, depends on the device that the
    # run continues on, not on the one it began on.
    groups = [
        {**group, "capturable": own["capturable"]} if "capturable" in own else group
        for group, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


def write_checkpoints(model: BaseAlgorithm, journal: str, folder: Path, ranks: Ranks) -> None:
    """Write a checkpoint as :func:`write_checkpoint`, with the state of every rank; a collective.

    Only rank 0 needs a folder; the other ranks' files are in it, named with their rank.
    """
    if ranks.count == 1:
        return write_checkpoint(model, journal, folder)
    with tempfile.TemporaryDirectory() if ranks.index else nullcontext(folder) as own:
        write_checkpoint(model, journal, Path(own))
        files = {path.name: path.read_bytes() for path in Path(own).iterdir()}
    for rank, contents in enumerate(ranks.gather(files)[1:], start=1):
        for name, content in contents.items():
            if ranks.index == 0:
                (folder / f"rank_{rank}.{name}").write_bytes(content)


def read_checkpoints(model: BaseAlgorithm, folder: Path, ranks: Ranks) -> Restored:
    """Restore every rank as :func:`read_checkpoint`; a collective.

    Only rank 0 needs the folder.

    Raises:
        RunError: As for :func:`read_checkpoint`, and if another number of ranks wrote it.
    """

    def contents() -> list[dict[str, bytes]]:
        count = 1 + len(list(folder.glob(f"rank_*.{STATE_FILE}")))
        if count != ranks.count:
            raise RunError(
                f"{folder} was written by {count} processes, and here are {ranks.count}; resume "
                f"with as many, as torchrun --nproc-per-node {count} starts on one host"
            )
        return [
            {path.name.split(".", 1)[1]: path.read_bytes() for path in folder.glob(f"rank_{i}.*")}
            for i in range(1, count)
        ]

    others = ranks.first(contents)
    if ranks.index == 0:
        return read_checkpoint(model, folder)
    with tempfile.TemporaryDirectory() as own:
        for name, content in others[ranks.index - 1].items():
            (Path(own) / name).write_bytes(content)
        return read_checkpoint(model, Path(own))


def _environments(model: BaseAlgorithm) -> VectorEnvAdapter:
    assert isinstance(model.env, VectorEnvAdapter)
    return model.env


def _is_ale(model: BaseAlgorithm) -> bool:
    """Tell whether ale-py plays the games, which it cannot save."""
    return getattr(_environments(model).envs, "emulator", None) == "ale"


def _restore_games(model: BaseAlgorithm, path: Path) -> str | None:
    """Continue the games in a file, or return why that is not possible."""
    if _is_ale(model):
        return "ale-py plays here, which cannot go on with a game"
    if not path.exists():
        return "ale-py has played it, which cannot save a game"
    try:
        model._last_obs = _environments(model).restore(path.read_bytes())  # type: ignore[assignment]
    except ValueError as error:  # saved by another version
        return str(error)
    return None


def _random_state(model: BaseAlgorithm) -> dict[str, Any]:
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - the stream of SB3
    key = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    numpy_state = {**numpy_state, "state": {**numpy_state["state"], "key": key}}
    state = {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "actions": model.action_space.np_random.bit_generator.state,
    }
    if model.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(model.device)
    return state


def _restore_random_state(model: BaseAlgorithm, state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    key = state["numpy"]["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": key}})  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    model.action_space.np_random.bit_generator.state = state["actions"]
    if model.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], model.device)


def _write_arrays(arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Write arrays like ``numpy.savez_compressed``, but several times as fast.

    Frames are so regular that even the weakest compression shrinks them to a few percent.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
