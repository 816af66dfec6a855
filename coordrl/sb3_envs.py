"""A :class:`gymnasium.vector.VectorEnv` as a ``VecEnv`` of Stable-Baselines3."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import (
    AsyncVectorEnv,
    AutoresetMode,
    SyncVectorEnv,
    VectorEnv,
    VectorWrapper,
)
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import Tensor

from coordrl.config import AtariSettings
from coordrl.emulator.arguments import in_range
from coordrl.envs import AtariVectorEnv, info_of, pack_state, unpack_state


class TorchStep(NamedTuple):
    """What :meth:`VectorEnvAdapter.step_torch` returns, one row for each of N environments."""

    obs: Tensor
    """Observations; where an episode ended, the first one of the next."""
    rewards: Tensor
    """``(N,)``, float32."""
    terminated: Tensor
    """``(N,)``, booleans; likewise ``truncated``."""
    truncated: Tensor
    next_obs: Tensor
    """Observations after the actions: ``obs``, but an episode's last one where it ended."""
    game_ended: Tensor
    """``(N,)``, booleans: where a whole game ended and ``obs`` begins a new one."""
    episode_return: Tensor
    """``(N,)``, float32: return of the games that ended, 0 elsewhere."""
    episode_length: Tensor
    """``(N,)``, int64: agent steps of the games that ended, 0 elsewhere."""


class VectorEnvAdapter(VecEnv):
    """Adapts a vector environment of Gymnasium to Stable-Baselines3's ``VecEnv``.

    Observations and infos are passed on unchanged, rewards as float32. Only for Atari games, of
    which thousands may be stepped together, ``infos`` has an empty dictionary for every environment
    whose episode continues.

    ``reset_infos`` has the info of each environment's last reset, which may have been automatic.
    Only :meth:`step_torch`, and with it ``stagger``, leaves it alone.

    Where an episode ended, the dictionary holds the environment's last info, such as the
    ``is_success`` that ``EvalCallback`` looks for, with ``terminal_observation`` and
    ``TimeLimit.truncated`` as SB3's own environments set them. Where a *game* ended, ``episode``
    holds its return, length and duration, ``{"r", "l", "t"}``, as ``Monitor`` does, so SB3's logs
    and ``evaluate_policy`` report whole games (``Monitor``'s ``"t"`` is the environment's age).
    With an :class:`~coordrl.envs.AtariVectorEnv` these are the unclipped return and the number of
    agent steps of the whole game, however many lives it had (SB3's ``Monitor`` sits below the frame
    skip and counts frames); with any other environment a game is an episode.

    For environments on a GPU, whose ``step`` takes and returns tensors, this contract copies
    everything to the host; :meth:`step_torch` leaves it on the device.

    Games that begin together stay in step for long: in the first rollouts of thousands of games of
    Pong, either no game loses a point or all do, and learning from that may leave a network with
    dead units for good. ``stagger`` starts them at different times, as Bharthulwar et al. 2025
    (https://arxiv.org/abs/2511.21011) do.

    Args:
        envs: Vector environment with ``AutoresetMode.SAME_STEP``.
        stagger: Steps of random actions that :meth:`reset` plays. Games begin at equal intervals
            within them: the first game plays all of these steps, the last has just begun. Nothing
            of these steps is logged, but they count for the games that are being played. For PPO
            and A2C only: our replay buffers, which keep each frame once, need games from their
            beginning.

    Attributes:
        device: Device of the environments.

    Raises:
        ValueError: If ``envs`` has another autoreset mode, or ``stagger`` is negative.

    Example:
        >>> envs = VectorEnvAdapter(AtariVectorEnv("Pong", num_envs=2))
        >>> envs.reset().shape
        (2, 4, 84, 84)
        >>> envs.close()
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], stagger: int = 0) -> None:
        mode = envs.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                "Stable-Baselines3 needs environments that reset in the same step; make them with "
                f"autoreset_mode=AutoresetMode.SAME_STEP, got {mode}"
            )
        self.envs = envs
        self.stagger = in_range("stagger", stagger, 0, None)
        self._actions: NDArray[Any] | None = None
        self._episode_return = np.zeros(envs.num_envs, np.float64)
        self._episode_length = np.zeros(envs.num_envs, np.int64)
        self._started_at = np.full(envs.num_envs, time.time())
        self._counts_games = isinstance(envs.unwrapped, AtariVectorEnv)
        self.device = torch.device(getattr(envs.unwrapped, "device", "cpu"))
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        if "render_fps" in envs.metadata:
            self.metadata = {**self.metadata, "render_fps": envs.metadata["render_fps"]}

    def reset(self) -> VecEnvObs:
        """Begin new episodes in all environments, spread over ``stagger`` steps."""
        obs: VecEnvObs
        options = self._options[0]
        if any(not _are_equal(other, options) for other in self._options):
            raise ValueError(
                f"the environments are reset together, with the same options, got {self._options}"
            )
        seed = self._seeds[0]
        obs, info = _on_host(self.envs.reset(seed=seed, options=options or None))
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [info_of(info, i) for i in range(self.num_envs)]
        self._begin_games(np.ones(self.num_envs, np.bool_))
        return self._play_apart(seed) if self.stagger > 0 else obs

    def _begin_games(self, mask: NDArray[np.bool_]) -> None:
        self._episode_return[mask] = 0
        self._episode_length[mask] = 0
        self._started_at[mask] = time.time()

    def _play_apart(self, seed: int | None) -> VecEnvObs:
        """Play random actions for ``stagger`` steps, resetting each game when its turn comes."""
        if seed is not None:
            self.envs.action_space.seed(seed)
        begins_at = np.arange(self.num_envs) * self.stagger // self.num_envs
        for step in range(self.stagger):
            mask = begins_at == step
            if step > 0 and mask.any():
                self.envs.reset(options={"reset_mask": mask})
                self._begin_games(mask)
            last = self.step_torch(torch.from_numpy(self.envs.action_space.sample()))
        obs: VecEnvObs = _on_host(last.obs)
        return obs

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step the environments with the actions given to :meth:`step_async`."""
        obs, rewards, terminated, truncated, info = _on_host(self.envs.step(self._actions))
        dones = terminated | truncated
        self._count(rewards)
        infos: list[dict[str, Any]] = [
            {} if self._counts_games or dones[i] else info_of(info, i) for i in range(self.num_envs)
        ]
        game_ended, returns, lengths = self._ended_games(info, dones)
        of_last_episode = {"final_obs", "final_info"} | ({"game"} if self._counts_games else set())
        for i in np.flatnonzero(dones).tolist():
            begun = {key: info[key] for key in info.keys() - of_last_episode}
            self.reset_infos[i] = info_of(begun, i)
            infos[i].update(info_of(info.get("final_info", {}), i))
            infos[i]["terminal_observation"] = info["final_obs"][i]
            infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
            if game_ended[i]:
                episode = {"r": float(returns[i]), "l": int(lengths[i]), "t": self._duration(i)}
                if self._counts_games:
                    episode["frames"] = int(info["game"]["frames"][i])
                infos[i]["episode"] = episode
        return obs, rewards.astype(np.float32, copy=False), dones, infos

    @property
    def shortest_timeout(self) -> int:
        """Fewest agent steps of a truncated episode; 1 if unknown."""
        envs: Any = self.envs.unwrapped
        if not isinstance(envs, AtariVectorEnv):
            return 1
        return max(envs.settings.max_frames_per_episode // envs.settings.frame_skip, 1)

    def step_torch(self, actions: Tensor) -> TorchStep:
        """Step the environments like :meth:`step`, from tensors to tensors and without ``infos``.

        With an environment on a GPU, nothing is copied to the host or waited for, and the next
        step may overwrite the returned tensors. With one that returns arrays, the tensors share
        their memory.

        Args:
            actions: Actions of all environments, on any device.
        """
        if self.device.type == "cpu":
            obs, rewards, terminated, truncated, info = self.envs.step(actions.cpu().numpy())
            self._count(rewards)
            dones = terminated | truncated
            next_obs = obs.copy() if dones.any() else obs
            for i in np.flatnonzero(dones).tolist():
                next_obs[i] = info["final_obs"][i]
            game = self._ended_games(info, dones)
        else:
            obs, rewards, terminated, truncated, info = self.envs.step(actions)
            dones = (terminated | truncated).view(-1, *(1 for _ in obs.shape[1:]))
            next_obs = torch.where(dones, info["final_obs"], obs)
            game = info["_game"], info["game"]["episode_return"], info["game"]["agent_steps"]
        tensors = (obs, rewards, terminated, truncated, next_obs, *game)
        step = TorchStep(*map(torch.as_tensor, tensors))
        return step._replace(
            rewards=step.rewards.float(),
            episode_return=step.episode_return.float(),
            episode_length=step.episode_length.long(),
        )

    def _count(self, rewards: NDArray[Any]) -> None:
        if not self._counts_games:
            self._episode_return += rewards
            self._episode_length += 1

    def _ended_games(
        self, info: dict[str, Any], dones: NDArray[np.bool_]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return where games ended, with their returns and agent steps."""
        if self._counts_games:
            ended = info.get("_game", np.zeros(self.num_envs, np.bool_))
            game = info.get("game", {"episode_return": ended, "agent_steps": ended})
            return ended, game["episode_return"], game["agent_steps"]
        returns = np.where(dones, self._episode_return, 0)
        lengths = np.where(dones, self._episode_length, 0)
        self._episode_return[dones] = self._episode_length[dones] = 0
        return dones, returns, lengths

    def _duration(self, i: int) -> float:
        """Return the seconds since the last game of an environment ended."""
        now = time.time()
        before, self._started_at[i] = float(self._started_at[i]), now
        return round(now - before, 6)

    def save(self) -> bytes:
        """Return the environments as bytes, to continue exactly from here with :meth:`restore`.

        Raises:
            ValueError: If the environments cannot be saved.
        """
        save = getattr(self.envs, "save", None)
        if save is None:
            raise ValueError(f"{_named(self.envs)} cannot be saved: it has no method save")
        arrays = {
            "episode_return": self._episode_return,
            "episode_length": self._episode_length,
            "elapsed": time.time() - self._started_at,
        }
        return pack_state({"num_envs": self.num_envs}, arrays, {"envs": save()})

    def restore(self, state: bytes) -> VecEnvObs:
        """Continue from where :meth:`save` was called.

        To continue training, set the model's ``_last_obs`` to the returned observations.

        Returns:
            The latest observations at that time.

        Raises:
            ValueError: If the state is damaged or does not belong to these environments.
        """
        restore = getattr(self.envs, "restore", None)
        if restore is None:
            raise ValueError(f"{_named(self.envs)} cannot be restored: it has no method restore")
        arrays, parts = unpack_state({"num_envs": self.num_envs}, state)
        try:
            saved = parts["envs"]
            returns, lengths = arrays["episode_return"], arrays["episode_length"]
            elapsed = arrays["elapsed"]
        except KeyError as error:
            raise ValueError(f"this was not saved by an adapter: {error} is missing") from error
        obs: VecEnvObs = _on_host(restore(saved))
        self._episode_return, self._episode_length = returns, lengths
        self._started_at = time.time() - elapsed
        return obs

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """Return an attribute for each index.

        In a Sync- or AsyncVectorEnv it is that of the environment with the index. Otherwise it is
        the vector environment's or, if that is an array of length ``num_envs``, such as ``lives``,
        the array's element.
        """
        holder = _holder(self.envs, attr_name)
        if isinstance(holder, SyncVectorEnv | AsyncVectorEnv):
            values: Any = holder.get_attr(attr_name)
        else:
            values = getattr(holder, attr_name)
            if not (
                isinstance(values, np.ndarray | Tensor) and values.shape[:1] == (self.num_envs,)
            ):
                values = [values] * self.num_envs
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(
        self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None
    ) -> None:
        """Set an attribute of some environments, or of the vector environment that they share.

        Raises:
            AttributeError: If the vector environment has no such attribute.
            ValueError: If it belongs to the vector environment and ``indices`` are not all.
        """
        holder = _holder(self.envs, attr_name)
        if isinstance(holder, SyncVectorEnv | AsyncVectorEnv):
            chosen = set(self._get_indices(indices))
            every = len(chosen) == self.num_envs
            old = [value] * self.num_envs if every else holder.get_attr(attr_name)
            new = [value if i in chosen else old[i] for i in range(self.num_envs)]
            return holder.set_attr(attr_name, new)
        self._require_all(indices, f"set {attr_name}")
        getattr(holder, attr_name)
        setattr(holder, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: int | Iterable[int] | None = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Call a method of each environment, if the vector is a Sync- or AsyncVectorEnv.

        Otherwise call the vector environment's, once, and return its result for each index.

        Raises:
            ValueError: If the method belongs to the environments and ``indices`` are not all.
        """
        holder = _holder(self.envs, method_name)
        if isinstance(holder, SyncVectorEnv | AsyncVectorEnv):
            self._require_all(indices, f"call {method_name}")
            return list(holder.call(method_name, *method_args, **method_kwargs))
        result = getattr(holder, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self,
        wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]],
        indices: int | Iterable[int] | None = None,
    ) -> list[bool]:
        """Return True for ``Monitor``, whose part this class plays, and False for all others."""
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
    stagger: int = 0,
    **kwargs: Any,
) -> VectorEnvAdapter:
    """Make Atari games for Stable-Baselines3.

    Args:
        game: Name of the game, in any spelling that :func:`~coordrl.envs.canonical_game` reads.
        num_envs: Number of games.
        settings: How they are played and seen; by default the classic training protocol.
        seed: Seed of the first reset.
        stagger: Over how many steps games begin; see :class:`VectorEnvAdapter`.
        **kwargs: Further arguments of :class:`~coordrl.envs.AtariVectorEnv`.

    Example:
        >>> envs = make_sb3_env("Breakout", num_envs=2, seed=0)
        >>> envs.action_space
        Discrete(4)
        >>> envs.close()
    """
    adapter = VectorEnvAdapter(AtariVectorEnv(game, num_envs, settings, **kwargs), stagger)
    if seed is not None:
        adapter.seed(seed)
    return adapter


def _on_host(value: Any) -> Any:
    """Return tensors, also within tuples and dictionaries, as arrays; leave the rest unchanged."""
    if isinstance(value, Tensor):
        return value.cpu().numpy()
    if isinstance(value, tuple):
        return tuple(map(_on_host, value))
    if isinstance(value, dict):
        return {key: _on_host(item) for key, item in value.items()}
    return value


def _holder(envs: VectorEnv[Any, Any, Any], name: str) -> VectorEnv[Any, Any, Any]:
    """Return the outermost wrapper that has an attribute, or the innermost environment."""
    while isinstance(envs, VectorWrapper) and not hasattr(envs, name):
        envs = envs.env
    return envs


def _named(envs: VectorEnv[Any, Any, Any]) -> str:
    return type(envs).__name__ if isinstance(envs, VectorWrapper) else str(envs)


def _are_equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two dictionaries of options are equal; values may be arrays."""
    return one.keys() == other.keys() and all(
        np.array_equal(value, other[name]) for name, value in one.items()
    )


def atari_games_of(model: BaseAlgorithm) -> AtariVectorEnv | None:
    """Return the AtariVectorEnv that a model learns from; None if it has no such environment.

    Example:
        >>> from stable_baselines3 import PPO
        >>> model = PPO("CnnPolicy", make_sb3_env("Pong", num_envs=2), device="cpu")
        >>> atari_games_of(model).game
        'pong'
    """
    env = model.get_env()
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    envs: Any = env.envs.unwrapped if isinstance(env, VectorEnvAdapter) else None
    return envs if isinstance(envs, AtariVectorEnv) else None
