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
    """One game, for APIs that take a single environment, such as ``gymnasium.make`` and wrappers.

    It is an :class:`AtariVectorEnv` of one game in ``NEXT_STEP`` mode, whose autoreset ``reset``
    performs. After the end of a game, ``reset`` begins a new one and continues the random streams.
    After a lost life that ended only the episode (``life_loss="terminate"``), it plays one NOOP and
    continues the game, as ``EpisodicLifeEnv`` of Stable-Baselines3 does. Within an episode, or with
    a seed, it begins a new game.

    Observations are copies and belong to the caller. They are already stacked, pooled and gray, so
    SB3's ``make_vec_env`` is enough, without the wrappers of ``make_atari_env``. By default,
    ``Monitor`` and ``evaluate_policy`` see single lives and clipped rewards; to evaluate, pass
    ``settings_for("classic", training=False)``. ``info["game"]`` always describes whole games; if
    one ends during that NOOP, it is in the info of ``reset``.

    One :class:`AtariVectorEnv` plays many games much faster than many of these.

    Args:
        game: Name of the game, in any spelling that :func:`~coordrl.envs.canonical_game` reads.
        settings: How it is played and seen; by default the classic training protocol, where
            rewards are clipped and a lost life ends the episode.
        emulator: Emulator to use, as for :class:`AtariVectorEnv`.
        render_mode: ``"rgb_array"`` allows :meth:`render`.
        rom_path: ROM image to play, or a folder with it; by default the one in ale-py.

    Raises:
        ValueError: As for :class:`AtariVectorEnv`.

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
        self._has_ended = False  # the episode; a step would begin the next one

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
            seed: Seeds the game anew; if None, the random streams continue.
            options: Must be empty: there are no options.

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
        while self._has_ended:  # NOOP after a lost life may be the game's last step
            obs, _, terminated, truncated, latest = self.envs.step([0])
            info |= latest  # keeps info["game"] of a game that ended meanwhile
            self._has_ended = bool(terminated[0] or truncated[0])
        return obs[0].copy(), info_of(info, 0)

    def step(
        self, action: np.integer[Any] | int
    ) -> tuple[NDArray[np.uint8], SupportsFloat, bool, bool, dict[str, Any]]:
        """Play one action.

        Raises:
            ValueError: If there is no such action.
            gymnasium.error.ResetNeeded: Before the first reset, and after the end of an episode.
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
        """Return the game as bytes, to continue exactly from here with :meth:`restore`."""
        return self.envs.save()

    def restore(self, state: bytes) -> NDArray[np.uint8]:
        """Continue from where :meth:`save` was called; return the latest observation of that time.

        Wrappers that require a reset first, such as ``OrderEnforcing`` of ``gymnasium.make``, still
        do.

        Raises:
            ValueError: As for ``AtariVectorEnv.restore``.
        """
        obs: NDArray[np.uint8] = self.envs.restore(state)[0].copy()
        self._has_ended = bool(self.envs.is_over[0])
        return obs

    def close(self) -> None:
        """Release the game."""
        self.envs.close()
