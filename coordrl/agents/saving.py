"""The folder of a saved agent: plain Stable-Baselines3 opens it, and we read it safely.

    <game>-<algo>-<coords>-s<seed>/
        agent.zip            stable_baselines3.PPO.load("agent.zip") and so on, on any device
        weights.safetensors  every tensor once
        card.json            the rest: network, settings, versions, evaluations
        learning_curve.csv   if the training recorded one
        learning_curve.png

The zip holds a fresh model of Stable-Baselines3 with the trained weights: no observations, no
buffers, no optimizer state, and no classes other than those of Stable-Baselines3 and the features
extractor. :func:`load_agent` does not need it, and reads the folder without unpickling.
"""

import contextlib
import csv
import dataclasses
import glob
import hashlib
import importlib.metadata
import io
import json
import lzma
import platform
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import stable_baselines3
import torch
from gymnasium import spaces
from matplotlib.figure import Figure
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import data_to_json
from stable_baselines3.common.utils import get_device, get_system_info
from torch import Tensor

from coordrl.agents.agent import STOCK_ALGORITHMS, Agent
from coordrl.agents.card import AgentCard, AgentError, Algorithm
from coordrl.agents.network import NetworkSpec, TensorType, plain_values, state_names, stored_state
from coordrl.agents.results import EvaluationResult
from coordrl.agents.scores import ActionScores
from coordrl.config import TrainingSettings
from coordrl.emulator import GAMES, observation_shape
from coordrl.envs import canonical_game, gymnasium_name
from coordrl.files import flush_files, flush_folder, reason, temporary_name
from coordrl.sb3_envs import atari_games_of

ZIP_FILE = "agent.zip"
WEIGHTS_FILE = "weights.safetensors"
CARD_FILE = "card.json"
CURVE_FILE = "learning_curve.csv"
PLOT_FILE = "learning_curve.png"
_REPLACED = "replaced"
AGENT_FILES = frozenset({ZIP_FILE, WEIGHTS_FILE, CARD_FILE, CURVE_FILE, PLOT_FILE})

_MAX_CARD_BYTES = 1 << 24  # of evaluations of half a million games
_MAX_WEIGHTS_BYTES = 1 << 30
# Stable-Baselines3 keeps the last observations of all environments in the zip: 40 MB with 1,024.
_MAX_DATA_BYTES = 1 << 28
_MAX_ZIP_BYTES = 1 << 31
_DAMAGED = (zlib.error, lzma.LZMAError)


def save_agent(
    model: BaseAlgorithm,
    folder: Path | str,
    settings: TrainingSettings,
    *,
    evaluations: Sequence[EvaluationResult] = (),
    curve: Sequence[tuple[int, float]] = (),
) -> AgentCard:
    """Write a model of Stable-Baselines3, or of a subclass, as a saved agent.

    The folder is written under another name and renamed. An existing agent is replaced, and other
    files in its folder, such as a film, stay; a folder without an agent must be empty.

    The saved agent plays the same and can be trained further, but with a fresh optimizer, and in
    the case of DQN with an empty replay buffer and the online network as target. To continue a
    training run exactly, use its checkpoints.

    Args:
        model: A model of A2C, PPO or DQN for one Atari game.
        folder: Where to write; the project names its folders by :attr:`AgentCard.name`.
        settings: How it was trained. Evaluations use ``run.game`` and ``env``, which have to match
            the model's environments. ``extractor.coords``, if given, has to match the network.
            ``run.algo`` is replaced by the model's.
        evaluations: Results of its evaluations.
        curve: Learning curve, as pairs of agent steps and mean episode return.

    Returns:
        The card that was written.

    Raises:
        AgentError: If the model is not of this kind or was not trained with ``settings``, the
            folder holds something else, or a file cannot be written.
        TypeError: If ``settings`` is not a TrainingSettings.

    Example:
        >>> import tempfile
        >>> from stable_baselines3 import PPO
        >>> from coordrl.config import AtariSettings, RunSettings
        >>> from coordrl.extractors import policy_kwargs
        >>> from coordrl.sb3_envs import make_sb3_env
        >>> env = make_sb3_env("Breakout", num_envs=1, seed=0)
        >>> model = PPO("CnnPolicy", env, policy_kwargs=policy_kwargs(), device="cpu")
        >>> settings = TrainingSettings(run=RunSettings(game="Breakout"), env=AtariSettings())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_agent(model, f"{folder}/agent", settings).name
        'Breakout-ppo-all-s0'
    """
    if not isinstance(settings, TrainingSettings):
        raise TypeError(
            "save_agent needs TrainingSettings(run=RunSettings(game=...), env=AtariSettings(...)),"
            f" got {type(settings).__name__}"
        )
    folder = Path(folder)
    agent = Agent.of(model)
    algo: Any = agent.algorithm.lower()
    settings = dataclasses.replace(settings, run=dataclasses.replace(settings.run, algo=algo))
    state = stored_state(agent.policy)
    weights = safetensors.torch.save(state)
    try:
        network = NetworkSpec.of(agent.policy)
        _require_described(agent, network, state)
        _require_settings(model, network, settings)
        card = AgentCard(
            game=gymnasium_name(canonical_game(settings.run.game)),
            algorithm=agent.algorithm,
            coords=network.coords,
            seed=settings.run.seed,
            protocol=settings.run.protocol,
            agent_steps=model.num_timesteps,
            frames=model.num_timesteps * settings.env.frame_skip,
            exploration=agent.exploration,
            env=settings.env,
            network=network,
            parameters=sum(tensor.numel() for tensor in state.values()),
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            settings=plain_values(settings),
            versions=_versions(),
            evaluations=tuple(evaluations),
        )
    except ValueError as error:  # an AgentError, too
        raise AgentError(f"cannot save this model as an agent: {error}") from error
    written = card.to_json()
    for name, size, most in (
        ("card", len(written.encode()), _MAX_CARD_BYTES),
        ("weights", len(weights), _MAX_WEIGHTS_BYTES),
    ):
        if size > most:
            raise AgentError(
                f"cannot save this model as an agent: its {name} would have {size:,} bytes, of"
                f" which load_agent reads {most:,}; save fewer evaluations, or a smaller network"
            )
    with _replacing(folder) as partial:
        (partial / WEIGHTS_FILE).write_bytes(weights)
        _write_zip(model, agent, state, partial / ZIP_FILE)
        if curve:
            _write_curve(curve, partial, title=card.name)
        (partial / CARD_FILE).write_text(written, encoding="utf-8")
    return card


def _require_described(agent: Agent, network: NetworkSpec, state: dict[str, Tensor]) -> None:
    """Raise a ValueError if the policy's card would not build the same policy."""
    described, own = network.tensor_types(), {n: TensorType.of(t) for n, t in state.items()}
    if described != own:
        name = min(n for n in described.keys() | own.keys() if described.get(n) != own.get(n))
        raise ValueError(
            f"its policy, a {type(agent.policy).__name__}, is not one of Stable-Baselines3's own:"
            f" {name} is {own.get(name, 'missing')}, and would be {described.get(name, 'missing')}"
        )
    ActionScores(agent)  # raises an AgentError where the policy computes something else


def _require_settings(
    model: BaseAlgorithm, network: NetworkSpec, settings: TrainingSettings
) -> None:
    """Raise a ValueError if the settings are not those of the agent's training."""
    game = GAMES[canonical_game(settings.run.game)]
    shown = observation_shape(game, settings.env)
    actions = len(game.actions(full=settings.env.full_action_space))
    coords = settings.extractor.get("coords", network.coords)
    if coords != network.coords:
        raise ValueError(f"extractor.coords is {coords!r}, and its network has {network.coords!r}")
    if (network.observation_shape, network.num_actions) != (shown, actions):
        raise ValueError(
            f"it observes {network.observation_shape} and has {network.num_actions} actions, and "
            f"{gymnasium_name(game.name)} in these settings is shown as {shown} and has {actions}; "
            "pass the run.game and env that it was trained with"
        )
    envs = atari_games_of(model)
    if envs is not None:
        if game.name not in envs.games:
            raise ValueError(
                f"run.game is {settings.run.game!r}, and its environments play {envs.game}"
            )
        if envs.settings != settings.env:
            raise ValueError(f"env is {settings.env}, and its environments have {envs.settings}")


def load_agent(
    path: Path | str, *, device: torch.device | str = "cpu", trust_pickle: bool = False
) -> Agent:
    """Open a saved agent's folder, or a zip of Stable-Baselines3.

    A folder is read without unpickling: the card names the network's classes from a closed list;
    names, shapes and types of the weights are checked before memory is allocated; and no code in
    the folder is run. A zip is different: its settings are a pickle, so opening it runs whatever
    code its author put there.

    Args:
        path: Folder written by :func:`save_agent`, or a zip of A2C, PPO or DQN.
        device: Device of the policy; ``"auto"`` takes the GPU if there is one.
        trust_pickle: Allow opening a zip, which runs the code in it.

    Raises:
        AgentError: If there is no agent, it is damaged, or it is a zip and ``trust_pickle`` is
            False; the message says what to do.
        ValueError: If there is no such device.

    Example:
        >>> load_agent("agents/Pong-ppo-all-s0")
        Agent(Pong, PPO, coords='all', seed=0, 2,000,896 agent steps)
    """
    path = Path(path)
    device = _known_device(device)
    if path.is_dir():
        return _load_folder(path, device)
    if not path.is_file():
        raise AgentError(f"there is no agent at {path}; give a saved agent's folder or a zip")
    algorithm = zip_algorithm(path)
    if not trust_pickle:
        raise AgentError(
            f"opening {path} would run the Python code that is pickled in it: give the folder of a"
            " saved agent instead, or, if you trust where the zip comes from, --trust-pickle"
            " (trust_pickle=True)"
        )
    # The replay buffer of a DQN model would take gigabytes and stay empty. Old versions of SB3
    # wrote models with a kind of buffer that new ones refuse.
    unused_buffer = {"buffer_size": 1, "optimize_memory_usage": False}
    keywords: dict[str, Any] = unused_buffer if algorithm == "DQN" else {}
    try:
        model = STOCK_ALGORITHMS[algorithm].load(path, device=device, **keywords)
    except Exception as error:  # whatever the pickle raises
        raise AgentError(f"{algorithm}.load cannot open {path}: {_first_line(error)}") from error
    return Agent.of(model)


def _known_device(device: torch.device | str) -> torch.device:
    kind = str(device).split(":")[0]
    if kind not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {str(device)!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r}, but torch finds no GPU; choose 'cpu'")
    return get_device(device)


def zip_algorithm(path: Path) -> Algorithm:
    """Tell which algorithm a zip of Stable-Baselines3 belongs to, without unpickling anything.

    The zip's settings are JSON in which only single values are pickled; their names tell the
    algorithms apart.

    Raises:
        AgentError: If the file is not such a zip, or is of another algorithm.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            _check_entries(sizes)
            text = archive.read("data")
    # RuntimeError: it is encrypted, or compressed in a way that Python does not know.
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, *_DAMAGED) as error:
        raise AgentError(
            f"{path} is not a whole zip file: {_first_line(error)}; copy or download it again"
        ) from error
    except ValueError as error:
        raise AgentError(f"{path} is not a zip of Stable-Baselines3: {error}") from error
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AgentError(
            f"{path} is not a zip of Stable-Baselines3: its data is not JSON: {_first_line(error)}"
        ) from error
    keys = data.keys() if isinstance(data, dict) else set()
    policy_class = data["policy_class"] if "policy_class" in keys else {}
    module = str(policy_class.get("__module__", "")) if isinstance(policy_class, dict) else ""
    if not module.startswith("sb3_contrib"):
        if "exploration_fraction" in keys:
            return "DQN"
        if {"n_epochs", "clip_range"} <= keys:
            return "PPO"
        # TRPO of sb3_contrib has these keys as well, and batch_size.
        if {"gae_lambda", "normalize_advantage"} <= keys and "batch_size" not in keys:
            return "A2C"
    raise AgentError(
        f"{path} is not a model of {', '.join(STOCK_ALGORITHMS)} of Stable-Baselines3"
        + (f" (its policy comes from {module[:80]})" if module else "")
    )


def _check_entries(sizes: dict[str, int]) -> None:
    for name in sizes:
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise ValueError(f"an entry is named {name!r}, outside of the archive")
    if "data" not in sizes or "policy.pth" not in sizes:
        raise ValueError("it lacks 'data' or 'policy.pth'")
    if sizes["data"] > _MAX_DATA_BYTES or sum(sizes.values()) > _MAX_ZIP_BYTES:
        raise ValueError(f"it would unpack to {sum(sizes.values()):,} bytes")


def read_card(folder: Path) -> AgentCard:
    """Read the card of a saved agent's folder.

    Raises:
        AgentError: If there is no agent, or its card is damaged.

    Example:
        >>> card = read_card(Path("agents/Pong-ppo-all-s0"))
        >>> card.game, card.coords, f"{card.agent_steps:,}"
        ('Pong', 'all', '2,000,896')
    """
    content = _read(folder / CARD_FILE, _MAX_CARD_BYTES)
    try:
        return AgentCard.from_json(content.decode())
    except ValueError as error:
        raise AgentError(f"{folder / CARD_FILE}: {_first_line(error)}") from error


def _load_folder(folder: Path, device: torch.device) -> Agent:
    card = read_card(folder)
    path = folder / WEIGHTS_FILE
    weights = _read(path, _MAX_WEIGHTS_BYTES)
    if hashlib.sha256(weights).hexdigest() != card.weights_sha256:
        raise AgentError(f"{path} is damaged or not the agent's: its SHA-256 is not the card's")
    try:
        state = safetensors.torch.load(weights)
    except (safetensors.SafetensorError, ValueError, KeyError, MemoryError) as error:
        raise AgentError(f"{path} is not a safetensors file: {_first_line(error)}") from error
    policy = _build(card, state, folder)
    return Agent(policy.to(device), card.algorithm, card.exploration, card)


def _build(card: AgentCard, state: dict[str, Tensor], folder: Path) -> BasePolicy:
    try:
        # Before any memory is allocated: a card may ask for a network of any size.
        expected = card.network.tensor_types()
        found = {name: TensorType.of(tensor) for name, tensor in state.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ValueError(
                    f"{name} is {expected.get(name, 'missing')} in the network that the card"
                    f" describes, and {found.get(name, 'missing')} in {WEIGHTS_FILE}"
                )
        if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
            raise ValueError("the weights hold values that are not finite")
        policy = card.network.build()
        policy.load_state_dict({key: state[name] for key, name in state_names(policy).items()})
    except (
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        AssertionError,
        ArithmeticError,
        MemoryError,
    ) as error:
        raise AgentError(f"cannot build the agent in {folder}: {_first_line(error)}") from error
    policy.set_training_mode(False)
    return policy


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        # A run keeps its agents in subfolders, but its own folder is what users try first.
        agents = ", ".join(file.parent.name for file in sorted(path.parent.glob(f"*/{path.name}")))
        raise AgentError(
            f"{path.parent} is not the folder of a saved agent: it has no {path.name}"
            f"{agents and f'; its folders with agents are {agents}'}"
        ) from None
    except OSError as error:
        raise AgentError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > limit:
        raise AgentError(f"{path} has more than {limit:,} bytes, too many for a saved agent")
    return content


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's text, shortened, as part of a sentence."""
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."


def require_place(folder: Path) -> None:
    """Check that an agent may be saved as ``folder``.

    Raises:
        AgentError: If something else is there.
    """
    if not folder.exists() or (folder / CARD_FILE).is_file():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise AgentError(f"{folder} exists and is not a saved agent; choose another folder")


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which replaces ``folder`` if the block ends without an error."""
    require_place(folder)
    folder = _target(folder)
    partial, replaced = temporary_name(folder), temporary_name(folder, _REPLACED)
    try:
        partial.mkdir(parents=True)
        yield partial
        flush_files(partial)
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        flush_folder(folder.parent)
    except OSError as error:
        raise AgentError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        # Whatever happened, Ctrl-C included: one whole agent is left, the old or the new.
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.exists():
            _give_way(replaced, folder)


def _target(folder: Path) -> Path:
    """Return the folder that a path leads to: a symbolic link stays, and its target is replaced."""
    try:
        return folder.resolve()
    except (OSError, RuntimeError) as error:  # the latter where links lead in a circle
        raise AgentError(f"cannot write {folder}: {reason(error)}") from error


def _give_way(replaced: Path, folder: Path) -> None:
    """Delete a replaced agent's files, and move all others to the new agent's folder.

    If there is no new agent, the old one is restored.
    """
    with contextlib.suppress(OSError):  # the agents are whole even if this fails
        if not folder.exists():
            replaced.rename(folder)
            return
        for item in replaced.iterdir():
            if item.name in AGENT_FILES:
                item.unlink()
            else:
                item.rename(folder / item.name)
        replaced.rmdir()


def recover_agent(folder: Path) -> None:
    """Clean up after a process that was killed while saving an agent; the old or the new stays.

    Args:
        folder: The agent's folder; no other process may be saving to it.

    Raises:
        AgentError: If it is a symbolic link that leads in a circle.
    """
    folder = _target(folder)
    for partial in _left_beside(folder, "partial"):
        shutil.rmtree(partial, ignore_errors=True)
    for replaced in _left_beside(folder, _REPLACED):
        _give_way(replaced, folder)


def _left_beside(folder: Path, word: str) -> list[Path]:
    """Return the paths beside a folder with its :func:`temporary_name`, the newest first."""
    found = folder.parent.glob(f".{glob.escape(folder.name)}.{word}-*")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _versions() -> dict[str, str]:
    libraries = ("coordrl", "torch", "stable-baselines3", "gymnasium", "ale-py", "numpy")
    versions = {"python": platform.python_version()}
    for library in libraries:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return versions


def _write_zip(model: BaseAlgorithm, agent: Agent, state: dict[str, Tensor], path: Path) -> None:
    """Write the zip that ``save`` of the stock class writes, with values that load anywhere."""
    names = state_names(agent.policy)
    policy_state = {key.replace("_orig_mod.", ""): state[name] for key, name in names.items()}
    optimizer_state = agent.policy.optimizer.state_dict()
    groups = [_portable_group(group) for group in optimizer_state["param_groups"]]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", data_to_json(_portable_attributes(model, agent)))
        # Aliases of one tensor share its memory here, so torch.save writes it once.
        archive.writestr("policy.pth", _torch_bytes(policy_state))
        archive.writestr(
            "policy.optimizer.pth", _torch_bytes({"state": {}, "param_groups": groups})
        )
        archive.writestr("_stable_baselines3_version", stable_baselines3.__version__)
        archive.writestr("system_info.txt", get_system_info(print_info=False)[1])


def _torch_bytes(content: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _portable_group(group: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's group that works on the CPU: captured graphs are for GPUs."""
    changes: dict[str, Any] = {"capturable": False} if "capturable" in group else {}
    return {**group, **changes, "lr": float(group["lr"])}


# Attributes that a model acquires while it runs, or that belong to the machine that it ran on.
_RUN_STATE = frozenset(
    {
        *("_last_obs", "_last_original_obs", "_last_episode_starts"),
        *("ep_info_buffer", "ep_success_buffer", "start_time", "tensorboard_log", "verbose"),
        *("rollout_buffer_class", "rollout_buffer_kwargs"),
        *("replay_buffer_class", "replay_buffer_kwargs"),
    }
)


# Most transitions that a DQN allocates when it is opened: each has two stacks of frames in stock
# Stable-Baselines3, where our own buffers keep one frame. The card has the original number.
_MAX_STOCK_BUFFER = 100_000


def _portable_attributes(model: BaseAlgorithm, agent: Agent) -> dict[str, Any]:
    """Return the attributes of a fresh model of the stock class, with the values of this one."""
    fresh = vars(STOCK_ALGORITHMS[agent.algorithm]("CnnPolicy", env=None, _init_setup_model=False))  # type: ignore[call-arg]
    attributes = {
        name: fresh[name] if name in _RUN_STATE else getattr(model, name)
        for name in fresh.keys() - set(model._excluded_save_params())
    }
    policy_kwargs = dict(model.policy_kwargs)
    if "optimizer_kwargs" in policy_kwargs:
        kwargs = {**policy_kwargs["optimizer_kwargs"]}
        kwargs.pop("capturable", None)
        policy_kwargs["optimizer_kwargs"] = kwargs
    optimizer = policy_kwargs.get("optimizer_class", torch.optim.Adam)
    if not optimizer.__module__.startswith(("torch.", "stable_baselines3.")):
        for name in ("optimizer_class", "optimizer_kwargs"):  # may be missing where it is opened
            policy_kwargs.pop(name, None)
    if "buffer_size" in attributes:
        attributes["buffer_size"] = min(attributes["buffer_size"], _MAX_STOCK_BUFFER)
    for name in ("learning_rate", "clip_range", "clip_range_vf"):
        if name in attributes:
            attributes[name] = _portable_schedule(
                attributes[name], model._current_progress_remaining
            )
    network = NetworkSpec.of(agent.policy)
    return {
        **attributes,
        "policy_class": _stock_class(type(agent.policy)),
        "policy_kwargs": policy_kwargs,
        # New objects: a used space holds a random generator of this NumPy version.
        "observation_space": spaces.Box(0, 255, network.observation_shape, np.uint8),
        "action_space": spaces.Discrete(network.num_actions),
        "n_envs": model.n_envs,
    }


def _portable_schedule(value: Any, progress_remaining: float) -> Any:
    """Keep Stable-Baselines3's own schedules; replace other functions by their current value.

    A pickled function opens in only one version of Python.
    """
    innermost = value
    while hasattr(innermost, "value_schedule"):
        innermost = innermost.value_schedule
    if not callable(value) or type(innermost).__module__.startswith("stable_baselines3."):
        return value
    return float(value(progress_remaining))


def _stock_class(cls: type[BasePolicy]) -> type[BasePolicy]:
    return next(base for base in cls.__mro__ if base.__module__.startswith("stable_baselines3."))


def _write_curve(curve: Sequence[tuple[int, float]], folder: Path, title: str) -> None:
    with (folder / CURVE_FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["agent_steps", "episode_return"])
        writer.writerows(curve)
    steps, returns = zip(*curve, strict=True)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, returns, linewidth=1.5)
    axes.set(title=title, xlabel="agent steps", ylabel="mean episode return")
    axes.grid(alpha=0.3)
    figure.savefig(folder / PLOT_FILE, dpi=120, metadata={"Software": None})
