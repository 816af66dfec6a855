"""The settings of an environment resolved for a game: numbers, and the shape of observations."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from coordrl.config import AtariSettings
from coordrl.emulator import compiled
from coordrl.emulator.arguments import in_range
from coordrl.emulator.games import ACTIONS, GAMES, Game

Autoreset = Literal["same_step", "next_step", "disabled"]

MAX_FRAME_SKIP = 60
MAX_NOOPS = 1000
MAX_COUNT = 2**31 - 1
AUTORESETS = ("same_step", "next_step", "disabled")
_OBSERVATIONS = ("gray", "rgb", "ram")
_LIFE_LOSSES = ("ignore", "terminate", "reset")
_FIRE = ACTIONS.index("FIRE")
_GAME_NUMBERS = {name: number for number, name in enumerate(GAMES)}


def native_settings(game: Game, settings: AtariSettings, autoreset: Autoreset) -> Any:
    """Return the settings as numbers, resolved for the game."""
    native = compiled.native().Settings()
    native.game = _GAME_NUMBERS[game.name]
    native.mode = _chosen("mode", settings.mode, game.modes, game.default_mode, game)
    native.default_mode = game.default_mode
    native.difficulty = _chosen(
        "difficulty", settings.difficulty, game.difficulties, game.default_difficulty, game
    )
    native.observation = _OBSERVATIONS.index(settings.observation)
    native.height, native.width = settings.screen_size
    native.stack_size = settings.stack_size
    native.frame_skip = in_range("frame_skip", settings.frame_skip, 1, MAX_FRAME_SKIP)
    native.max_pool = settings.max_pool
    native.noop_max = in_range("noop_max", settings.noop_max, 0, MAX_NOOPS)
    has_fire = _FIRE in game.actions(full=settings.full_action_space)
    native.fire_reset = settings.fire_reset and has_fire
    native.fire_after_life_loss = settings.fire_after_life_loss and has_fire
    native.clip_reward = settings.clip_reward
    native.life_loss = _LIFE_LOSSES.index(settings.life_loss)
    native.autoreset = AUTORESETS.index(autoreset)
    native.max_frames = in_range(
        "max_frames_per_episode", settings.max_frames_per_episode, 1, MAX_COUNT
    )
    native.repeat_action_probability = settings.repeat_action_probability
    return native


def state_key(
    game: Game,
    settings: AtariSettings,
    native: Any,
    obs_shape: tuple[int, ...],
    environment_bytes: int,
) -> dict[str, object]:
    """Return the key that a saved environment must match, which is the same on any processor."""
    return {
        "game": game.name,
        "mode": native.mode,
        "difficulty": native.difficulty,
        "obs_shape": list(obs_shape),
        "observation": settings.observation,
        "frame_skip": native.frame_skip,
        "environment_bytes": environment_bytes,
    }


def _chosen(name: str, value: int | None, offered: Sequence[int], default: int, game: Game) -> int:
    if value is None:
        return default
    if value not in offered and value != default:
        some = ", ".join(map(str, offered[:20])) + (", ..." if len(offered) > 20 else "")
        raise ValueError(f"{game.name} has no {name} {value}; it has {some}")
    return value


def observation_shape(game: Game, settings: AtariSettings) -> tuple[int, ...]:
    """Return the shape of an observation: ``(stack, H, W)``, with colors last, or ``(stack, 128)``.

    Raises:
        ValueError: If ``stack_size`` is out of range, pictures would be larger than the game's, or
            an observation would have more than ``MAX_COUNT`` bytes.
    """
    in_range("stack_size", settings.stack_size, 1, MAX_COUNT)
    if settings.observation == "ram":
        shape: tuple[int, ...] = (settings.stack_size, 128)
    else:
        height, width = settings.screen_size
        if height > game.height or width > 160:
            raise ValueError(
                f"screen_size must not exceed the {game.height} x 160 pixels of {game.name}, "
                f"got {height} x {width}"
            )
        shape = (settings.stack_size, height, width)
        shape = (*shape, 3) if settings.observation == "rgb" else shape
    if math.prod(shape) > MAX_COUNT:
        raise ValueError(
            f"an observation may have {MAX_COUNT:,} bytes at most, got {math.prod(shape):,} of"
            f" stack_size={settings.stack_size}"
        )
    return shape
