"""A :class:`gymnasium.vector.VectorEnv` seen as Stable-Baselines3's ``VecEnv``."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from coordrl.config import AtariSettings
from coordrl.envs import AtariVectorEnv


class VectorEnvAdapter(VecEnv):
    """Makes a vector environment of Gymnasium a ``VecEnv`` of Stable-Baselines3.

    What the environment returns is passed on untouched; ``infos`` has an empty dictionary for
    every environment whose episode goes on.

    Where an episode ended, ``terminal_observation`` and ``TimeLimit.truncated`` are set as SB3's
    own environments do. Where a *game* ended, ``episode`` holds its return, length and duration,
    ``{"r", "l", "t"}``, as ``Monitor`` writes it, so SB3's logs and ``evaluate_policy`` report
    whole games. With an :class:`~coordrl.envs.AtariVectorEnv` these are the unclipped return and
    the number of agent steps of the whole game, however many lives it had (SB3's ``Monitor`` sits
    below the frame skip and counts frames); with any other environment a game is an episode.

    Args:
        envs: Vector environment that resets in the same step.

    Raises:
        ValueError: If ``envs`` resets at another time.

    Example:
        >>> envs = VectorEnvAdapter(AtariVectorEnv("Pong", num_envs=2))
        >>> envs.reset().shape
        (2, 4, 84, 84)
        >>> envs.close()
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        mode = envs.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                "Stable-Baselines3 needs environments that reset in the same step; make them with "
                f"autoreset_mode=AutoresetMode.SAME_STEP, got {mode}"
            )
        self.envs = envs
        self._actions: NDArray[Any] | None = None
        self._episode_return = np.zeros(envs.num_envs, np.float64)
        self._episode_length = np.zeros(envs.num_envs, np.int64)
        self._started_at = np.full(envs.num_envs, time.time())
        self._counts_games = isinstance(envs.unwrapped, AtariVectorEnv)
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> VecEnvObs:
        """Begin new episodes in all environments."""
        obs: VecEnvObs
        obs, info = self.envs.reset(seed=self._seeds[0], options=self._options[0] or None)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [_row(info, i) for i in range(self.num_envs)]
        self._episode_return[:] = 0
        self._episode_length[:] = 0
        self._started_at[:] = time.time()
        return obs

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step the environments with the actions given to :meth:`step_async`."""
        obs, rewards, terminated, truncated, info = self.envs.step(self._actions)
        rewards = rewards.astype(np.float32, copy=False)
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if not self._counts_games:
            self._episode_return += rewards
            self._episode_length += 1
        if dones.any():
            self._fill(infos, dones, terminated, truncated, info)
        return obs, rewards, dones, infos

    def _fill(
        self,
        infos: list[dict[str, Any]],
        dones: NDArray[np.bool_],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        info: dict[str, Any],
    ) -> None:
        now = time.time()
        games, game_ended = info.get("game"), info.get("_game")
        for i in np.flatnonzero(dones):
            infos[i]["terminal_observation"] = info["final_obs"][i]
            infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
            if self._counts_games:
                if games is None or game_ended is None or not game_ended[i]:
                    continue
                infos[i]["episode"] = {
                    "r": float(games["episode_return"][i]),
                    "l": int(games["agent_steps"][i]),
                    "frames": int(games["frames"][i]),
                }
            else:
                infos[i]["episode"] = {
                    "r": float(self._episode_return[i]),
                    "l": int(self._episode_length[i]),
                }
                self._episode_return[i] = self._episode_length[i] = 0
            infos[i]["episode"]["t"] = round(float(now - self._started_at[i]), 6)
            self._started_at[i] = now

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """Return an attribute of the vector environment, once for each index."""
        value = _attribute(self.envs, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(
        self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None
    ) -> None:
        """Set an attribute of the vector environment, which all environments share."""
        self._require_all(indices, f"set {attr_name}")
        setattr(self.envs, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: int | Iterable[int] | None = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Call a method of the vector environment once; its result is returned for each index."""
        result = _attribute(self.envs, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self,
        wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]],
        indices: int | Iterable[int] | None = None,
    ) -> list[bool]:
        """Tell whether a wrapper is there; that of ``Monitor`` always is, in effect."""
        is_wrapped = issubclass(wrapper_class, Monitor)
        return [is_wrapped for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return the screen of every environment."""
        frames: Any = self.envs.render()
        return list(frames)

    def _require_all(self, indices: int | Iterable[int] | None, deed: str) -> None:
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(
                f"cannot {deed} for some environments only: they are one vector environment"
            )


def make_sb3_env(
    game: str,
    num_envs: int,
    settings: AtariSettings | None = None,
    *,
    seed: int | None = None,
    **kwargs: Any,
) -> VectorEnvAdapter:
    """Make Atari games for Stable-Baselines3.

    Args:
        game: Name of the game, in any spelling that :func:`~coordrl.envs.canonical_game` reads.
        num_envs: Number of games.
        settings: How they are played and seen; by default the classic protocol of training.
        seed: Seed of the first reset.
        **kwargs: Further arguments of :class:`~coordrl.envs.AtariVectorEnv`.

    Example:
        >>> envs = make_sb3_env("Breakout", num_envs=2, seed=0)
        >>> envs.action_space
        Discrete(4)
        >>> envs.close()
    """
    adapter = VectorEnvAdapter(AtariVectorEnv(game, num_envs, settings, **kwargs))
    if seed is not None:
        adapter.seed(seed)
    return adapter


def _attribute(envs: VectorEnv[Any, Any, Any], name: str) -> Any:
    """Find an attribute in the environment or what it wraps."""
    while isinstance(envs, VectorWrapper) and not hasattr(envs, name):
        envs = envs.env
    return getattr(envs, name)


def _row(info: dict[str, Any], i: int) -> dict[str, Any]:
    """Return the i-th environment's part of a vector environment's info."""
    return {
        key: _row(value, i) if isinstance(value, dict) else value[i]
        for key, value in info.items()
        if not key.startswith("_") and info.get(f"_{key}", _ALWAYS)[i]
    }


class _Always:
    def __getitem__(self, i: int) -> bool:
        return True


_ALWAYS = _Always()
