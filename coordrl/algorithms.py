"""Stable-Baselines3's PPO, A2C and DQN for stacked frames on the host, with fewer copies.

The losses, the policies and the saved files are SB3's. What differs is the storage of observations
between the environment and the network, and DQN's exploration in many environments:

- :class:`ImageRolloutBuffer` keeps observations in the layout that convolutions read
  (channels last), in memory that is allocated once, and gathers minibatches from it directly.
- :class:`FrameReplayBuffer` keeps each frame once instead of eight times.
- :class:`DQN` decides for each environment separately whether to explore, and keeps the step at
  which a callback stops it.
"""

import contextlib
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.type_aliases import (
    ReplayBufferSamples,
    RolloutBufferSamples,
    RolloutReturn,
    TrainFreq,
)
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

from coordrl.config import Schedule, TrainingSettings, accepted_keywords
from coordrl.extractors import policy_kwargs


class ImageRolloutBuffer(RolloutBuffer):
    """SB3's rollout buffer for images, with the same samples in the same order.

    SB3's allocates new memory for every rollout, copies all observations to transpose time and
    environment, and leaves the channels to be rearranged by each convolution of each epoch. Here
    they are rearranged once, when an observation is added.
    """

    def reset(self) -> None:
        """Empty the buffer; the memory of the observations is reused."""
        BaseBuffer.reset(self)
        steps = (self.buffer_size, self.n_envs)
        if not hasattr(self, "_images"):
            _require_bytes(self)
            channels, height, width = self.obs_shape
            self._images = torch.empty((*steps, height, width, channels), dtype=torch.uint8)
            self.observations = self._images.permute(0, 1, 4, 2, 3).numpy()
        self.actions = np.zeros((*steps, self.action_dim), self.action_space.dtype)
        self.rewards = np.zeros(steps, np.float32)
        self.returns = np.zeros(steps, np.float32)
        self.episode_starts = np.zeros(steps, np.float32)
        self.values = np.zeros(steps, np.float32)
        self.log_probs = np.zeros(steps, np.float32)
        self.advantages = np.zeros(steps, np.float32)
        self.generator_ready = False

    def add(
        self,
        obs: NDArray[np.uint8],
        action: NDArray[Any],
        reward: NDArray[Any],
        episode_start: NDArray[Any],
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        """Add one step of every environment; see :class:`RolloutBuffer`."""
        _copy_channels(obs, self.observations[self.pos])
        self.actions[self.pos] = action.reshape(self.n_envs, self.action_dim)
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self.values[self.pos] = value.cpu().numpy().flatten()
        self.log_probs[self.pos] = log_prob.cpu().numpy()
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """Yield the rollout in minibatches, in random order; see :class:`RolloutBuffer`."""
        assert self.full, "the rollout is not over"
        size = self.buffer_size * self.n_envs
        indices = torch.from_numpy(np.random.permutation(size))  # noqa: NPY002 - as SB3 does
        if not self.generator_ready:
            for name in ("actions", "values", "log_probs", "advantages", "returns"):
                setattr(self, name, self.swap_and_flatten(getattr(self, name)))
            self.generator_ready = True
        for batch in torch.split(indices, batch_size or size):
            yield self._samples(batch)

    def _samples(self, indices: Tensor) -> RolloutBufferSamples:
        # SB3's indices run through the steps of the first environment, then of the next.
        rows = indices % self.buffer_size * self.n_envs + indices // self.buffer_size
        images = self._images.flatten(0, 1).index_select(0, rows).permute(0, 3, 1, 2)
        rest = (
            torch.from_numpy(array).index_select(0, indices)
            for array in (self.values, self.log_probs, self.advantages, self.returns)
        )
        actions = torch.from_numpy(self.actions).index_select(0, indices).float()
        on_device = (tensor.flatten().to(self.device) for tensor in rest)
        return RolloutBufferSamples(images.to(self.device), actions.to(self.device), *on_device)


def _require_bytes(buffer: BaseBuffer) -> None:
    """Raise a ValueError unless observations are uint8 images ``(C, H, W)``."""
    space = buffer.observation_space
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 3:
        raise ValueError(
            f"{type(buffer).__name__} keeps images of bytes (C, H, W), got {space}; take a buffer "
            "of Stable-Baselines3, or VecNormalize(norm_obs=False)"
        )


def _copy_channels(images: NDArray[np.uint8], into: NDArray[np.uint8]) -> None:
    """Copy ``(N, C, H, W)`` one channel at a time: faster than a single transposed copy."""
    for channel in range(images.shape[1]):
        into[:, channel] = images[:, channel]


def _channels_last(images: Tensor) -> Tensor:
    copied = torch.empty_like(images, memory_format=torch.channels_last)
    _copy_channels(images.numpy(), copied.numpy())
    return copied


class FrameReplayBuffer(ReplayBuffer):
    """SB3's replay buffer for stacked frames, with the same samples, in an eighth of the memory.

    An observation is a stack of frames, all but the newest of which were in the previous
    observation, so each frame is kept once and stacks are assembled when they are sampled. Where a
    game begins, the earlier frames of a stack are zeros.

    Args:
        buffer_size: Transitions to keep, over all environments.
        observation_space: Stacks of frames ``(stack_size, height, width)``, newest last.
        action_space: Discrete actions.
        device: Device of the samples; the buffer itself stays on the host.
        n_envs: Environments that add transitions together.
        optimize_memory_usage: Ignored; SB3 passes it.
        handle_timeout_termination: Bootstrap from the last observation of a truncated episode.

    Example:
        >>> stacks = spaces.Box(0, 255, (2, 1, 1), np.uint8)  # two frames of one pixel
        >>> buffer = FrameReplayBuffer(10, stacks, spaces.Discrete(2), device="cpu")
        >>> obs, next_obs = np.uint8([[[[0]], [[7]]]]), np.uint8([[[[7]], [[9]]]])
        >>> buffer.add(obs, next_obs, np.array([1]), np.array([1.0]), np.array([False]), [{}])
        >>> buffer.sample(1).next_observations.flatten()
        tensor([7, 9], dtype=torch.uint8)
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
    ) -> None:
        # Skips ReplayBuffer.__init__, which allocates the memory that this class saves.
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        _require_bytes(self)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = False  # SB3's own way, which cannot handle timeouts
        self.handle_timeout_termination = handle_timeout_termination
        stack_size, height, width = self.obs_shape
        slots = (self.buffer_size, n_envs)
        self.actions = np.zeros((*slots, self.action_dim), action_space.dtype)
        self.rewards = np.zeros(slots, np.float32)
        self.dones = np.zeros(slots, np.float32)
        self.timeouts = np.zeros(slots, np.float32)
        # Earlier frames that belong to a slot's stack; the rest of the stack is zeros.
        self._history = np.zeros(slots, np.int64)
        # Longer than the buffer: the oldest transition needs the frames before it, and the newest
        # one the frame after it.
        self._ring = self.buffer_size + stack_size
        self._frames = torch.empty((self._ring, n_envs, height, width), dtype=torch.uint8)
        # Last frames of games, by slot and environment: the ring has the next game's first there.
        self._final_frames: dict[int, dict[int, NDArray[np.uint8]]] = {}
        self._last_obs: NDArray[np.uint8] | None = None
        self._added = 0

    def reset(self) -> None:
        """Forget all transitions."""
        super().reset()
        self._final_frames.clear()
        self._last_obs = None
        self._added = 0

    def add(
        self,
        obs: NDArray[np.uint8],
        next_obs: NDArray[np.uint8],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Add one transition of every environment; see :class:`ReplayBuffer`.

        Raises:
            ValueError: If an observation neither continues the previous one nor begins a game.
        """
        slot, frames = self.pos, self._frames.numpy()
        self._history[slot] = self._history_of(obs)
        newest, promised = obs[:, -1], frames[self._added % self._ring]
        if self._last_obs is not None:
            for env in np.flatnonzero((newest != promised).any(axis=(1, 2))).tolist():
                # The transition before was the last of its game; this one begins the next.
                before = self._final_frames.setdefault((slot - 1) % self.buffer_size, {})
                before[env] = promised[env].copy()
        self._final_frames.pop(slot, None)
        frames[self._added % self._ring] = newest
        frames[(self._added + 1) % self._ring] = next_obs[:, -1]
        self.actions[slot] = action.reshape(self.n_envs, self.action_dim)
        self.rewards[slot] = reward
        self.dones[slot] = done
        if self.handle_timeout_termination:
            self.timeouts[slot] = [info.get("TimeLimit.truncated", False) for info in infos]
        self._last_obs = obs.copy()
        self._added += 1
        self.pos = self._added % self.buffer_size
        self.full = self._added >= self.buffer_size

    def _history_of(self, obs: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return how many of each stack's earlier frames belong to its game and are kept."""
        axes = (1, 2, 3)
        begins = ~obs[:, :-1].any(axis=axes)
        if self._last_obs is None:
            goes_on = np.zeros(self.n_envs, np.bool_)
            before = np.zeros(self.n_envs, np.int64)
        else:
            goes_on = (obs[:, :-1] == self._last_obs[:, 1:]).all(axis=axes)
            before = self._history[self.pos - 1]
        if not (begins | goes_on).all():
            env = int(np.flatnonzero(~(begins | goes_on))[0])
            raise ValueError(
                "FrameReplayBuffer needs stacks of frames that move on by one frame a step and "
                f"begin with zeros; the observation of environment {env} does neither. Were the "
                "environments reset or stepped between two calls of learn? Evaluate in others"
            )
        return np.where(goes_on, np.minimum(before + 1, obs.shape[1] - 1), 0)

    def _get_samples(
        self, batch_inds: NDArray[Any], env: VecNormalize | None = None
    ) -> ReplayBufferSamples:
        envs = np.random.randint(0, self.n_envs, size=len(batch_inds))  # noqa: NPY002 - as SB3 does
        stack = self._stacks(batch_inds, envs)
        at = (batch_inds, envs)
        dones = self.dones[at] * (1 - self.timeouts[at])
        rewards = self._normalize_reward(self.rewards[at], env).astype(np.float32)
        dones_tensor, rewards_tensor = (
            torch.from_numpy(array.reshape(-1, 1)).to(self.device) for array in (dones, rewards)
        )
        return ReplayBufferSamples(
            observations=_channels_last(stack[:, :-1]).to(self.device),
            actions=torch.from_numpy(self.actions[at]).to(self.device),
            next_observations=_channels_last(stack[:, 1:]).to(self.device),
            dones=dones_tensor,
            rewards=rewards_tensor,
        )

    def _stacks(self, slots: NDArray[Any], envs: NDArray[Any]) -> Tensor:
        """Return the frames of each observation and the one after it, ``(N, stack + 1, H, W)``."""
        stack_size = self.obs_shape[0]
        added_at = self._added - 1 - (self.pos - 1 - slots) % self.buffer_size
        offsets = np.arange(1 - stack_size, 2)
        rows = (added_at[:, None] + offsets) % self._ring * self.n_envs + envs[:, None]
        frames = self._frames.flatten(0, 1)
        stack = frames.index_select(0, torch.from_numpy(rows.ravel()))
        before_game = (offsets < -self._history[slots, envs][:, None]).ravel().nonzero()[0]
        stack.index_fill_(0, torch.from_numpy(before_game), 0)
        stack = stack.view(len(slots), stack_size + 1, *frames.shape[1:])
        for i, (slot, env) in enumerate(zip(slots.tolist(), envs.tolist(), strict=True)):
            final = self._final_frames.get(slot, {}).get(env)
            if final is not None:
                stack[i, -1] = torch.from_numpy(final)
        return stack

    def state(self) -> dict[str, NDArray[Any]]:
        """Return everything that :meth:`restore` needs, as arrays."""
        last = self._last_obs
        final = [(slot, env) for slot, row in self._final_frames.items() for env in row]
        height, width = self.obs_shape[1:]
        final_frames = [self._final_frames[slot][env] for slot, env in final]
        used = min(self._added + 1, self._ring)
        return {
            "added": np.array(self._added),
            "frames": self._frames.numpy()[:used],
            "history": self._history,
            "actions": self.actions,
            "rewards": self.rewards,
            "dones": self.dones,
            "timeouts": self.timeouts,
            "final_index": np.array(final, np.int64).reshape(-1, 2),
            "final_frames": np.array(final_frames, np.uint8).reshape(-1, height, width),
            "last_obs": np.zeros((0, *self.obs_shape), np.uint8) if last is None else last,
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Load what :meth:`state` of a buffer of the same size returned."""
        frames = state["frames"]
        self._frames.numpy()[: len(frames)] = frames
        self._history[:] = state["history"]
        self.actions[:] = state["actions"]
        self.rewards[:] = state["rewards"]
        self.dones[:] = state["dones"]
        self.timeouts[:] = state["timeouts"]
        self._final_frames = {}
        for (slot, env), frame in zip(state["final_index"], state["final_frames"], strict=True):
            self._final_frames.setdefault(int(slot), {})[int(env)] = frame
        self._last_obs = state["last_obs"] if len(state["last_obs"]) else None
        self._added = int(state["added"])
        self.pos = self._added % self.buffer_size
        self.full = self._added >= self.buffer_size


class DQN(stable_baselines3.DQN):
    """SB3's DQN, but each environment decides separately whether to explore.

    SB3 draws once per step for all environments, so they explore together or not at all. With one
    environment both do the same, until a callback stops them.
    """

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Return epsilon-greedy actions, or greedy ones if ``deterministic``."""
        if deterministic or not self.policy.is_vectorized_observation(observation):
            return super().predict(observation, state, episode_start, deterministic)
        parts = observation.values() if isinstance(observation, dict) else [observation]
        num_envs = len(next(iter(parts)))
        coins = np.random.rand(num_envs)  # noqa: NPY002 - SB3 seeds this stream
        explores = coins < self.exploration_rate
        if explores.all():
            actions = np.empty(num_envs, np.int64)
        else:
            actions, state = self.policy.predict(observation, state, episode_start, deterministic)
        actions[explores] = [self.action_space.sample() for _ in range(explores.sum())]
        return actions, state

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """Play until the next update, as in SB3.

        SB3 loses the step at which a callback stops it or raises. The games have played that
        step, so here it is kept, and training can continue from there.
        """
        known = callback.locals.get("new_obs")  # of an earlier rollout

        def store_latest() -> None:
            latest = callback.locals.get("new_obs")
            if latest is not known and latest is not self._last_obs:
                names = ("buffer_actions", "new_obs", "rewards", "dones", "infos")
                self._store_transition(replay_buffer, *(callback.locals[name] for name in names))

        try:
            rollout = super().collect_rollouts(
                env, callback, train_freq, replay_buffer, action_noise, learning_starts,
                log_interval,
            )  # fmt: skip
        except BaseException:
            with contextlib.suppress(ValueError):  # if storing is what failed
                store_latest()
            raise
        if not rollout.continue_training:
            store_latest()
        return rollout


ALGORITHMS: Mapping[str, type[BaseAlgorithm]] = {
    "a2c": stable_baselines3.A2C,
    "ppo": stable_baselines3.PPO,
    "dqn": DQN,
}
OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {
    "Adam": torch.optim.Adam,
    "RMSprop": torch.optim.RMSprop,
    "RMSpropTFLike": RMSpropTFLike,
}

# Arguments that make_model passes itself, or that its buffers and optimizers replace.
_PASSED = frozenset(
    {
        *("policy", "env", "policy_kwargs", "seed", "device", "verbose", "tensorboard_log"),
        *("rollout_buffer_class", "rollout_buffer_kwargs", "use_sde", "sde_sample_freq"),
        *("replay_buffer_class", "replay_buffer_kwargs", "optimize_memory_usage"),
        *("use_rms_prop", "rms_prop_eps", "_init_setup_model"),
    }
)


def setting_keywords(algo: str) -> dict[str, dict[str, Any]]:
    """Return the keys of the tables ``[algorithm]`` and ``[extractor]``, with their types.

    Args:
        algo: Name in :data:`ALGORITHMS`.

    Example:
        >>> setting_keywords("ppo")["algorithm"]["n_epochs"]
        <class 'int'>
        >>> "n_epochs" in setting_keywords("dqn")["algorithm"]
        False
    """
    # SB3's n-step returns come with a replay buffer of their own.
    passed = _PASSED | {"n_steps"} if algo == "dqn" else _PASSED
    algorithm = accepted_keywords(ALGORITHMS[algo], without=passed)
    if "ent_coef" in algorithm:
        algorithm["ent_coef"] = float | Schedule
    shared = {} if algo == "dqn" else {"share_features_extractor": bool}  # by actor and critic
    # An observation of a game is one picture, not a Dict.
    extractor = accepted_keywords(policy_kwargs, without={"combined"}) | shared
    return {"algorithm": algorithm, "extractor": extractor}


def make_model(
    settings: TrainingSettings, env: VecEnv, *, seed: int, device: str = "cpu"
) -> BaseAlgorithm:
    """Build the model of a training run, with its weights in channels-last layout.

    DQN's ``gradient_steps`` are per environment: ``train_freq`` counts joint steps of all ``n``
    environments, so ``n`` times as many updates are made, which keeps the ratio of updates to
    transitions.

    Args:
        settings: Settings of the run.
        env: Environments to learn from.
        seed: Seed of the weights and of everything SB3 draws.
        device: Device of the network.

    Raises:
        ValueError, AssertionError: If a value does not fit the others; Stable-Baselines3 raises
            the latter.

    Example:
        >>> from coordrl.config import RunSettings
        >>> from coordrl.sb3_envs import make_sb3_env
        >>> run = RunSettings(algo="dqn", num_envs=8)
        >>> settings = TrainingSettings(run=run, algorithm={"buffer_size": 1000})
        >>> env = make_sb3_env("Pong", num_envs=8)
        >>> make_model(settings, env, seed=0).gradient_steps
        8
        >>> env.close()
    """
    keywords = model_keywords(settings, env.num_envs)
    if settings.run.algo == "dqn":
        keywords["replay_buffer_class"] = FrameReplayBuffer
    else:
        keywords["rollout_buffer_class"] = ImageRolloutBuffer
    cls = ALGORITHMS[settings.run.algo]
    model = cls("CnnPolicy", env, seed=seed, device=device, **keywords)
    model.policy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def model_keywords(settings: TrainingSettings, num_envs: int) -> dict[str, Any]:
    """Return the arguments of an algorithm's class that follow from the settings of a run.

    Args:
        settings: Settings of the run.
        num_envs: Environments to learn from; scales DQN's updates, see :func:`make_model`.
    """
    keywords = dict(settings.algorithm)
    for key, value in keywords.items():
        if isinstance(value, Schedule):
            keywords[key] = LinearSchedule(value.start, value.end, value.end_fraction)
            if key == "ent_coef":
                keywords[key] = value.start  # EntropySchedule moves it
    if settings.run.algo == "dqn" and keywords.get("gradient_steps", 1) > 0:
        keywords["gradient_steps"] = keywords.get("gradient_steps", 1) * num_envs
    fused = {"fused": True} if settings.optimizer.name == "Adam" else {}
    keywords["policy_kwargs"] = policy_kwargs(
        **settings.extractor,
        optimizer_class=OPTIMIZERS[settings.optimizer.name],
        optimizer_kwargs={"eps": settings.optimizer.eps, **fused},
    )
    return keywords


class EntropySchedule(BaseCallback):
    """Sets the weight of the entropy bonus, which SB3 keeps fixed, before each update.

    A bonus that is large enough to keep a policy from settling early is too large for a policy
    that should win every point.

    Args:
        schedule: The weight over the run.

    Example:
        >>> from coordrl.sb3_envs import make_sb3_env
        >>> env = make_sb3_env("Pong", num_envs=2, seed=0)
        >>> model = stable_baselines3.A2C("CnnPolicy", env, ent_coef=0.01, device="cpu")
        >>> model.learn(20, callback=EntropySchedule(Schedule(start=0.01, end=0.0))).ent_coef
        0.0
        >>> env.close()
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self._weight_at = LinearSchedule(schedule.start, schedule.end, schedule.end_fraction)

    def _on_rollout_end(self) -> None:
        # SB3 updates its own schedules only after this call.
        total: int = self.model._total_timesteps
        remaining = 1 - self.num_timesteps / total
        self.model.ent_coef = self._weight_at(remaining)  # type: ignore[attr-defined]
        self.logger.record("train/ent_coef", self.model.ent_coef)  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True
