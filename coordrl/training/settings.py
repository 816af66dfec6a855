"""The settings of a training run, from protocol, file and command line."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from coordrl.algorithms import ALGORITHMS, setting_keywords
from coordrl.config import (
    Override,
    Schedule,
    SettingsError,
    TrainingSettings,
    load_settings,
    settings_for,
)
from coordrl.envs import canonical_game, gymnasium_name
from coordrl.ranks import Ranks

MAY_DIFFER_ON_RESUME = frozenset(
    {
        *("run.device", "run.track", "run.total_steps", "run.target_return"),
        *("run.evaluation_interval", "run.evaluation_episodes"),
        *("run.checkpoint_interval", "run.log_interval"),
    }
)
"""What a resumed run may change: settings that do not affect what is learned, and its length.

Schedules end with the run, so if it becomes longer, learning rates, for instance, rise again."""


DEFAULTS = TrainingSettings(extractor={"coords": "all", "with_r": False})
"""Defaults where neither file nor command line sets a value. The extractor's are explicit, so that
a run's settings file says where its network sees coordinates."""


def load_training_settings(
    path: Path | str | None, overrides: Sequence[Override] = ()
) -> TrainingSettings:
    """Read the settings of a run from a TOML file, in the format of :func:`load_settings`.

    The protocol gives the defaults of ``[env]``; the algorithm and the extractor give the keys of
    ``[algorithm]`` and ``[extractor]``.

    Raises:
        SettingsError: If a key, a value or a game is invalid; the message says what to correct.

    Example:
        >>> from coordrl.config import parse_override
        >>> texts = ["run.protocol=machado", "run.game=ms_pacman"]
        >>> settings = load_training_settings(None, [parse_override(text) for text in texts])
        >>> settings.run.game, settings.env.repeat_action_probability
        ('MsPacman', 0.25)
    """
    path = None if path is None else Path(path)
    # Which keys the file may hold depends on its own algorithm, protocol and game, in that order.
    game = _read(path, overrides, list(ALGORITHMS), TrainingSettings(), "").run.game
    try:
        game = gymnasium_name(canonical_game(game))
    except ValueError as error:
        raise SettingsError(str(error)) from error
    run = _read(path, overrides, list(ALGORITHMS), TrainingSettings(), game).run
    base = replace(DEFAULTS, env=settings_for(run.protocol, training=True))
    try:
        settings = _read(path, overrides, [run.algo], base, game)
    except SettingsError as error:
        of_file = _read(path, (), list(ALGORITHMS), TrainingSettings(), game).run.algo
        if of_file == run.algo or not str(error).startswith(str(path)):
            raise
        raise SettingsError(
            f"{path} has the settings of {of_file}, which are not those of {run.algo}; choose"
            f" another file or run folder, or {of_file}"
        ) from error
    return replace(settings, run=replace(settings.run, game=game))


def _read(
    path: Path | None,
    overrides: Sequence[Override],
    algos: Sequence[str],
    base: TrainingSettings,
    game: str,
) -> TrainingSettings:
    keywords: dict[str, dict[str, Any]] = {"algorithm": {}, "extractor": {}}
    for algo in algos:
        for table, known in setting_keywords(algo).items():
            keywords[table] |= known
    return load_settings(
        TrainingSettings,
        path,
        overrides,
        base=base,
        keywords=keywords,
        game=game,
        canonical_game=lambda name: canonical_game(name) if name else "",
    )


def run_name(settings: TrainingSettings) -> str:
    """Return the name of a run's folder, which is also its agent's.

    Example:
        >>> run_name(load_training_settings(None))
        'Pong-ppo-all-s0'
    """
    run = settings.run
    return f"{run.game}-{run.algo}-{settings.extractor.get('coords', 'all')}-s{run.seed}"


def default_config(algo: str, device: str) -> str:
    """Return the name of the file in ``configs/`` that fits an algorithm and a device.

    On a GPU everything stays there, with enough environments to keep it busy. PPO with the zoo's
    settings is slow without a GPU, so it has a recipe for the CPU.

    Example:
        >>> default_config("ppo", "cpu"), default_config("a2c", "cuda")
        ('ppo_cpu.toml', 'a2c_cuda.toml')
    """
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return f"{algo}_cuda.toml"
    return "ppo_cpu.toml" if algo == "ppo" else f"{algo}.toml"


def describe_acceleration(settings: TrainingSettings, ranks: Ranks, device: str) -> str:
    """Describe in one sentence how a run that stays on the device computes.

    Args:
        settings: Settings of the run.
        ranks: Processes that train together.
        device: Type of the device: only ``"cuda"`` has CUDA graphs.

    Example:
        >>> from coordrl.config import parse_override
        >>> texts = ["run.num_envs=512", "run.stagger=256", "algorithm.n_steps=64"]
        >>> settings = load_training_settings(None, [parse_override(text) for text in texts])
        >>> print(describe_acceleration(settings, Ranks(), "cpu"))  # doctest: +NORMALIZE_WHITESPACE
        on the device: 512 games, begun up to 256 steps apart; rollouts of 64 steps, 32,768
        transitions in 0.92 GB; minibatches of 64; learning rate of SB3; features in float32
    """
    run, algorithm = settings.run, settings.algorithm
    defaults = inspect.signature(ALGORITHMS[run.algo]).parameters
    parts = [f"on the device: {run.num_envs:,} games"]
    if ranks.count > 1:
        parts[0] += f", {run.num_envs // ranks.count:,} in each of {ranks.count} processes"
    if run.stagger > 0:
        parts[0] += f", begun up to {run.stagger} steps apart"
    frame = math.prod(settings.env.screen_size)
    if run.algo == "dqn":
        size = algorithm.get("buffer_size", defaults["buffer_size"].default)
        parts.append(f"replay of {size:,} transitions in {size * frame / 1e9:.2g} GB")
    else:
        steps = algorithm.get("n_steps", defaults["n_steps"].default)
        size = steps * run.num_envs
        room = size * frame * settings.env.stack_size / 1e9
        parts.append(f"rollouts of {steps} steps, {size:,} transitions in {room:.2g} GB")
    if "batch_size" in defaults:
        parts.append(
            f"minibatches of {algorithm.get('batch_size', defaults['batch_size'].default):,}"
        )
    rate = algorithm.get("learning_rate", "of SB3")
    if isinstance(rate, Schedule):
        rate = f"{rate.start:g} to {rate.end:g}"
    parts.append(f"learning rate {rate}")
    chosen = settings.acceleration
    parts.append(f"features in {'bfloat16' if chosen.bfloat16 else 'float32'}")
    records = chosen.cuda_graphs and device == "cuda"
    if chosen.compile:
        parts.append("compiled")
    if records:  # with several ranks, updates are not recorded, since they exchange gradients
        parts.append("CUDA graphs" if ranks.count == 1 else "CUDA graphs of acting alone")
    return "; ".join(parts)
