"""A :class:`gymnasium.vector.VectorEnv` seen as Stable-Baselines3's ``VecEnv``."""

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
    """Observations, those of new episodes where one has begun."""
    rewards: Tensor
    """``(N,)``, float32."""
    terminated: Tensor
    """``(N,)``, booleans; likewise ``truncated``."""
    truncated: Tensor
    next_obs: Tensor
    """What the actions led to: ``obs``, but the last observation where an episode ended."""
    game_ended: Tensor
    """``(N,)``, booleans: where a whole game ended, and a new one has begun in ``obs``."""
    episode_return: Tensor
    """``(N,)``, float32: return of the games that ended, 0 elsewhere."""
    episode_length: Tensor
    """``(N,)``, int64: their agent steps, likewise."""


class VectorEnvAdapter(VecEnv):
    """Makes a vector environment of Gymnasium a ``VecEnv`` of Stable-Baselines3.

    What the environment returns is passed on untouched. Of Atari games, thousands of which may be
    stepped together, ``infos`` has an empty dictionary wherever the episode goes on.

    Where an episode ended, it holds the environment's last info, such as the ``is_success`` that
    ``EvalCallback`` looks for, and ``terminal_observation`` and ``TimeLimit.truncated`` are set as
    SB3's own environments do. Where a *game* ended, ``episode`` holds its return, length and
    duration, ``{"r", "l", "t"}``, where ``Monitor`` writes them, so SB3's logs and
    ``evaluate_policy`` report whole games (``Monitor``'s ``"t"`` is the age of the environment).
    With an :class:`~coordrl.envs.AtariVectorEnv` these are the unclipped return and the number of
    agent steps of the whole game, however many lives it had (SB3's ``Monitor`` sits below the frame
    skip and counts frames); with any other environment a game is an episode.

    Environments on a GPU, whose ``step`` takes and returns tensors, are copied to the host for this
    contract; :meth:`step_torch` leaves everything where it is.

    Games that begin together stay together for long: in the first rollouts of thousands of games of
    Pong either nobody loses a point or all do, and what a network makes of that may cost it its
    units for good. ``stagger`` lets them begin at different times, as Bharthulwar et al. 2025
    (https://arxiv.org/abs/2511.21011) do.

    Args:
        envs: Vector environment that resets in the same step.
        stagger: Steps of random actions that :meth:`reset` plays. The environments begin at equal
            distances within them, so that the first has been played for so long and the last has
            just begun. What happens in these steps is in no log, but counts for the game at hand.
            For PPO and A2C: our replay buffers, which keep each frame once, need games from their
            beginning.

    Attributes:
        device: Where the environments live.

    Raises:
        ValueError: If ``envs`` resets at another time, or ``stagger`` is negative.

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
        """Play random actions for ``stagger`` steps, beginning again where it is time to begin."""
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
        for i in np.flatnonzero(dones).tolist():
            infos[i].update(info_of(info.get("final_info", {}), i))
            infos[i]["terminal_observation"] = info["final_obs"][i]
            infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
            if game_ended[i]:
                episode = {"r": float(returns[i]), "l": int(lengths[i]), "t": self._duration(i)}
                if self._counts_games:
                    episode["frames"] = int(info["game"]["frames"][i])
                infos[i]["episode"] = episode
        return obs, rewards.astype(np.float32, copy=False), dones, infos

    def reset_torch(self) -> Tensor:
        """Begin new episodes like :meth:`reset`, for :meth:`step_torch`."""
        return torch.as_tensor(self.reset(), device=self.device)

    @property
    def shortest_timeout(self) -> int:
        """Least agent steps of an episode that is truncated; 1 if that is not known."""
        envs: Any = self.envs.unwrapped
        if not isinstance(envs, AtariVectorEnv):
            return 1
        return max(envs.settings.max_frames_per_episode // envs.settings.frame_skip, 1)

    def step_torch(self, actions: Tensor) -> TorchStep:
        """Step the environments like :meth:`step`, from tensors to tensors and without ``infos``.

        Where the environment lives on a GPU, nothing is copied to the host and nothing waited for,
        and what is returned may be written to by the next step. Where it gives arrays, the tensors
        share their memory.

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
        """Return where a game ended, and there its return and its agent steps."""
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
        """Return the environments as bytes, to go on exactly from here with :meth:`restore`.

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
        """Go on from where :meth:`save` was called.

        A model whose training goes on has to be given what is returned, as its ``_last_obs``.

        Returns:
            The observations that were the latest then.

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

        It is that of the environment with the index, as in :class:`SyncVectorEnv`, or else of the
        vector environment: its element where it is an array with one for each, such as ``lives``.
        """
        holder = _holder(self.envs, attr_name)
        if isinstance(holder, SyncVectorEnv | AsyncVectorEnv):
            values: Any = holder.get_attr(attr_name)
        else:
            values = getattr(holder, attr_name)
            if not (isinstance(values, np.ndarray | Tensor) and len(values) == self.num_envs):
                values = [values] * self.num_envs
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(
        self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None
    ) -> None:
        """Set an attribute of some environments, or of the vector environment that they share.

        Raises:
            AttributeError: If the vector environment has no such attribute.
            ValueError: If it is the vector environment's, and not all of them are meant.
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
        """Call a method of each environment, or else of the vector environment, once.

        The latter's result is returned for each index.

        Raises:
            ValueError: If it is a method of the environments, and not all of them are meant.
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
    stagger: int = 0,
    **kwargs: Any,
) -> VectorEnvAdapter:
    """Make Atari games for Stable-Baselines3.

    Args:
        game: Name of the game, in any spelling that :func:`~coordrl.envs.canonical_game` reads.
        num_envs: Number of games.
        settings: How they are played and seen; by default the classic protocol of training.
        seed: Seed of the first reset.
        stagger: Over how many steps they begin; see :class:`VectorEnvAdapter`.
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
    """Return tensors as arrays, also within tuples and dictionaries, and all else as it is."""
    if isinstance(value, Tensor):
        return value.cpu().numpy()
    if isinstance(value, tuple):
        return tuple(map(_on_host, value))
    if isinstance(value, dict):
        return {key: _on_host(item) for key, item in value.items()}
    return value


def _holder(envs: VectorEnv[Any, Any, Any], name: str) -> VectorEnv[Any, Any, Any]:
    """Return the outermost wrapper that has an attribute, or else what they wrap."""
    while isinstance(envs, VectorWrapper) and not hasattr(envs, name):
        envs = envs.env
    return envs


def _named(envs: VectorEnv[Any, Any, Any]) -> str:
    return type(envs).__name__ if isinstance(envs, VectorWrapper) else str(envs)


def _are_equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two options are the same; values may be arrays."""
    return one.keys() == other.keys() and all(
        np.array_equal(value, other[name]) for name, value in one.items()
    )


def atari_games_of(model: BaseAlgorithm) -> AtariVectorEnv | None:
    """Return the games that a model learns from; None if it has none, or others than ours.

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
