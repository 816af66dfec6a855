"""One game of Atari as a :class:`gymnasium.Env`."""

import os
from collections.abc import Mapping
from typing import Any, Literal, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from coordrl.config import AtariSettings
from coordrl.envs.vector_env import AtariVectorEnv, info_of


class AtariEnv(gymnasium.Env[Any, Any]):
    """One game, for what takes one environment: ``gymnasium.make``, its wrappers, its checkers.

    It is an :class:`AtariVectorEnv` of one game with ``NEXT_STEP``, whose autoreset is done by
    ``reset``: behind the end of an episode that goes on with the random streams, and behind a lost
    life that ended the episode alone (``life_loss="terminate"``) with the game, after one step
    of NOOP, as ``EpisodicLifeEnv`` of Stable-Baselines3 does. Anywhere else ``reset``, and with a
    seed everywhere, begins a new game.

    Observations are copies: an environment's are the caller's. They are stacked, pooled and gray
    already, so SB3's ``make_vec_env`` is enough, without the wrappers of ``make_atari_env``. What
    ``Monitor`` or ``evaluate_policy`` see here are single lives and clipped rewards; to evaluate,
    give ``settings_for("classic", training=False)``. ``info["game"]`` is of whole games in any
    case; where one ends in that step of NOOP, the info of ``reset`` has it.

    Many games are played much faster by one :class:`AtariVectorEnv` than by many of these.

    Args:
        game: Name of the game, in any spelling that :func:`~coordrl.envs.canonical_game` reads.
        settings: How it is played and seen; by default the classic protocol of training, where
            rewards are clipped and a lost life ends the episode.
        emulator: What plays it, as for :class:`AtariVectorEnv`.
        render_mode: ``"rgb_array"`` allows :meth:`render`.
        rom_path: ROM image to play, or a folder with it; by default the one in ale-py.

    Raises:
        ValueError: As :class:`AtariVectorEnv`.

    Example:
        >>> env = gymnasium.make("coordrl/Pong-v0", settings=AtariSettings(life_loss="ignore"))
        >>> obs, info = env.reset(seed=0)
        >>> obs, reward, terminated, truncated, info = env.step(2)
        >>> obs.shape, reward, terminated
        ((4, 84, 84), 0.0, False)
        >>> env.close()
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012

    observation_space: Box
    action_space: Discrete

    def __init__(
        self,
        game: str,
        settings: AtariSettings | Mapping[str, Any] | None = None,
        *,
        emulator: Literal["coordrl", "ale"] | None = None,
        render_mode: Literal["rgb_array"] | None = None,
        rom_path: str | os.PathLike[str] | None = None,
    ) -> None:
        self.envs = AtariVectorEnv(
            game,
            1,
            settings,
            emulator=emulator,
            num_threads=1,
            autoreset_mode=AutoresetMode.NEXT_STEP,
            render_mode=render_mode,
            rom_path=rom_path,
        )
        fps = self.envs.metadata["render_fps"]
        self.metadata = {**self.metadata, "render_fps": fps}
        self.render_mode = render_mode
        self.observation_space = self.envs.single_observation_space
        self.action_space = self.envs.single_action_space
        self._has_ended = False  # the episode, and a step would begin the next

    @property
    def lives(self) -> int:
        """Lives left; 0 in games without lives."""
        return int(self.envs.lives[0])

    def get_action_meanings(self) -> list[str]:
        """Return the name of each action, as ale-py's environment does."""
        return self.envs.get_action_meanings()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: Seeds the game anew; the random streams go on without.
            options: None are known.

        Raises:
            ValueError: If the seed is negative, or there are options.
        """
        if options:
            named = sorted(map(str, options))
            raise ValueError(f"reset of one game has no options, got {named}")
        if seed is not None and seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        super().reset(seed=seed)
        info: dict[str, Any] = {}
        if not self._has_ended or seed is not None:
            obs, info = self.envs.reset(seed=seed)
            self._has_ended = False
        while self._has_ended:  # NOOP behind a lost life may be the game's last step
            obs, _, terminated, truncated, latest = self.envs.step([0])
            info |= latest  # a game that has ended stays in it
            self._has_ended = bool(terminated[0] or truncated[0])
        return obs[0].copy(), info_of(info, 0)

    def step(
        self, action: np.integer[Any] | int
    ) -> tuple[NDArray[np.uint8], SupportsFloat, bool, bool, dict[str, Any]]:
        """Play one action.

        Raises:
            ValueError: If there is no such action.
            gymnasium.error.ResetNeeded: Before the first reset, and behind the end of an episode.
        """
        if self._has_ended:
            raise gymnasium.error.ResetNeeded("the episode has ended; reset before the next step")
        if np.shape(action) != ():
            raise ValueError(f"an action is one whole number, got one of shape {np.shape(action)}")
        obs, rewards, terminated, truncated, info = self.envs.step(np.array([action]))
        self._has_ended = bool(terminated[0] or truncated[0])
        reward = float(rewards[0])
        return obs[0].copy(), reward, bool(terminated[0]), bool(truncated[0]), info_of(info, 0)

    def render(self) -> NDArray[np.uint8]:
        """Return the screen, ``(height, 160, 3)``, as :meth:`AtariVectorEnv.render` does."""
        return self.envs.render()[0]

    def save(self) -> bytes:
        """Return the game as bytes, to go on exactly from here with :meth:`restore`."""
        return self.envs.save()

    def restore(self, state: bytes) -> NDArray[np.uint8]:
        """Go on from where :meth:`save` was called; return the observation that was latest then.

        A wrapper that wants a reset first, as that of ``gymnasium.make`` does, still wants it.

        Raises:
            ValueError: As ``AtariVectorEnv.restore``.
        """
        obs: NDArray[np.uint8] = self.envs.restore(state)[0].copy()
        self._has_ended = bool(self.envs.is_over[0])
        return obs

    def close(self) -> None:
        """Let go of the game."""
        self.envs.close()
