"""The settings of a training run, put together from protocol, file and command line."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from coordrl.algorithms import ALGORITHMS, setting_keywords
from coordrl.config import (
    Override,
    SettingsError,
    TrainingSettings,
    load_settings,
    settings_for,
)
from coordrl.envs import canonical_game, gymnasium_name

MAY_DIFFER_ON_RESUME = frozenset(
    {
        *("run.device", "run.track", "run.target_return"),
        *("run.evaluation_interval", "run.evaluation_episodes"),
        *("run.checkpoint_interval", "run.log_interval"),
    }
)
"""Settings that do not decide what is learned, so that a resumed run may change them."""


def load_training_settings(
    path: Path | None, overrides: Sequence[Override] = ()
) -> TrainingSettings:
    """Read the settings of a run from a TOML file, which :func:`load_settings` describes.

    The protocol gives the defaults of ``[env]``; the algorithm and the extractor give the keys of
    ``[algorithm]`` and ``[extractor]``.

    Raises:
        SettingsError: If a key, a value or a game is wrong; one sentence says what to mend.

    Example:
        >>> from coordrl.config import parse_override
        >>> texts = ["run.protocol=machado", "run.game=ms_pacman"]
        >>> settings = load_training_settings(None, [parse_override(text) for text in texts])
        >>> settings.run.game, settings.env.repeat_action_probability
        ('MsPacman', 0.25)
    """
    # What the file may hold depends on its own algorithm, protocol and game, in that order.
    game = _read(path, overrides, list(ALGORITHMS), TrainingSettings(), "").run.game
    try:
        game = gymnasium_name(canonical_game(game))
    except ValueError as error:
        raise SettingsError(str(error)) from error
    run = _read(path, overrides, list(ALGORITHMS), TrainingSettings(), game).run
    base = TrainingSettings(env=settings_for(run.protocol, training=True))
    settings = _read(path, overrides, [run.algo], base, game)
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
    """Return the name of a run's folder, which is that of its agent.

    Example:
        >>> run_name(load_training_settings(None))
        'Pong-ppo-all-s0'
    """
    run = settings.run
    return f"{run.game}-{run.algo}-{settings.extractor.get('coords', 'all')}-s{run.seed}"


def default_config(algo: str, device: str) -> str:
    """Return the name of the file in ``configs/`` that fits an algorithm and a device.

    PPO with the settings of the zoo needs a GPU, or patience; for the CPU it has a recipe of its
    own.

    Example:
        >>> default_config("ppo", "cpu"), default_config("dqn", "cpu")
        ('ppo_cpu.toml', 'dqn.toml')
    """
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    return "ppo_cpu.toml" if algo == "ppo" and on_cpu else f"{algo}.toml"
