"""DQN: the loss and logs of SB3, with its replay buffer on the device."""

from collections.abc import Iterable
from typing import Any

import stable_baselines3
import torch
import torch.nn.functional as F
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    RolloutReturn,
    TrainFreq,
    TrainFrequencyUnit,
)
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from coordrl.device_algorithms.base import OnDevice
from coordrl.device_algorithms.buffers import DeviceReplayBuffer
from coordrl.device_algorithms.callbacks import EpisodeLog, HostView
from coordrl.device_algorithms.networks import accelerated, q_values
from coordrl.sb3_envs import VectorEnvAdapter


class DQN(OnDevice, stable_baselines3.DQN):
    """SB3's DQN with its replay buffer on the device.

    Each environment decides separately whether to explore, where SB3 draws once for all.

    Args:
        *args: Those of :class:`stable_baselines3.DQN`; so are ``**kwargs``.
        acceleration: Compilation, CUDA graphs, precision and memory layout.
        ranks: Processes that train together; see :class:`OnDevice`.

    Raises:
        ValueError: If ``train_freq`` counts episodes, ``n_steps`` is more than 1, or the
            environments are staggered.
    """

    replay_buffer: DeviceReplayBuffer

    def _setup_model(self) -> None:
        self.replay_buffer_class = DeviceReplayBuffer
        self.replay_buffer_kwargs = {
            "channels_last": self.acceleration.channels_last,
            "shortest_timeout": self._soonest_timeout(),
        }
        if self.n_steps > 1:
            raise ValueError(f"DQN on a device has returns of 1 step, got n_steps={self.n_steps}")
        self.optimize_memory_usage = False  # the buffer saves memory in its own way
        super()._setup_model()
        train_freq: Any = self.train_freq
        if train_freq.unit is not TrainFrequencyUnit.STEP:
            raise ValueError("DQN on a device counts train_freq in steps, not in episodes")
        self.episodes = EpisodeLog(train_freq.frequency, self.n_envs, self.device)
        self._network = accelerated(q_values, self.acceleration)
        self._act = self._recorded(self._choose)
        self._update = self._recorded_update(self._minibatch)

    def _require_games(self, env: GymEnv) -> None:
        super()._require_games(env)
        stagger = getattr(env, "stagger", 0)
        if stagger > 0:
            raise ValueError(
                "DQN on a device needs games from their beginning: make the environments with "
                f"stagger=0, got {stagger}"
            )

    def _both(self, obs: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        yield q_values(self.q_net, obs), self.q_net(obs)

    @torch.no_grad()
    def _choose(self, obs: Tensor, exploration: Tensor) -> Tensor:
        """Return actions ``(N,)``, random ones with probability ``exploration``."""
        values = self._network(self.q_net, obs, self.acceleration.bfloat16)
        explores = torch.rand(len(values), device=values.device) < exploration
        anything = torch.randint(values.shape[1], (len(values),), device=values.device)
        return torch.where(explores, anything, values.argmax(dim=1))

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:  # SB3 resets the games
            self.replay_buffer.expect_reset()
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)

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
        """Play ``train_freq`` steps in each environment, as in SB3.

        Callbacks find their usual ``locals``, which are copied to the host only when read.
        """
        assert isinstance(env, VectorEnvAdapter)
        self.policy.set_training_mode(False)
        self.episodes.clear()
        callback.on_rollout_start()
        obs = torch.as_tensor(self._last_obs, device=self.device)
        starts = torch.as_tensor(self._last_episode_starts, device=self.device)
        num_episodes = torch.zeros((), dtype=torch.int64, device=self.device)
        goes_on = True
        for collected in range(1, train_freq.frequency + 1):
            begins = self.num_timesteps == self._num_timesteps_at_start
            self.replay_buffer.observe(obs, starts)
            exploration = 1.0 if self.num_timesteps < learning_starts else self.exploration_rate
            actions = self._act(obs, torch.full((), exploration, device=self.device))
            step = self._step(env, actions)
            if begins:  # the caller may have stepped the games in the meantime
                self.replay_buffer.require_goes_on(step.next_obs)
            others = {
                **{"callback": callback, "train_freq": train_freq, "action_noise": action_noise},
                **{"learning_starts": learning_starts, "log_interval": log_interval},
                **{"replay_buffer": self.replay_buffer, "num_collected_steps": collected},
                **{"num_collected_episodes": HostView(num_episodes.clone())},
                **{"buffer_actions": self._view(actions), "continue_training": True},
            }
            callback.update_locals(self._locals(step, actions, **others))
            try:
                goes_on = callback.on_step()
            finally:
                # Also when the callback or Ctrl-C stops the training: the games have moved on, and
                # the next transition must follow from this one. SB3 loses the step.
                self.episodes.add(step)
                ends = (step.terminated, step.truncated, step.game_ended)
                self.replay_buffer.add(step.next_obs, actions, step.rewards, *ends)
                obs, starts = step.obs, step.game_ended
                self._last_obs, self._last_episode_starts = obs, starts  # type: ignore[assignment]
            if not goes_on:
                break
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            self._on_step()
            num_episodes += (step.terminated | step.truncated).sum()
        self._note_games()
        before, ended = self._episode_num, int(self.ranks.sum(num_episodes))
        self._episode_num += ended
        if log_interval is not None and self._episode_num // log_interval > before // log_interval:
            self.dump_logs()
        if goes_on:
            callback.on_rollout_end()
        return RolloutReturn(collected * env.num_envs * self.ranks.count, ended, goes_on)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Make ``gradient_steps`` updates, as in SB3.

        The loss is summed on the device and its mean read once.
        """
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        total = torch.zeros((), device=self.device)
        for _ in range(gradient_steps):
            total += self._update(*self.replay_buffer.sample(batch_size)[:5])
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        [loss] = self._read([total / gradient_steps])
        self.logger.record("train/loss", loss)

    def _minibatch(
        self, obs: Tensor, actions: Tensor, next_obs: Tensor, dones: Tensor, rewards: Tensor
    ) -> Tensor:
        """Make one update, and return its loss."""
        bfloat16 = self.acceleration.bfloat16
        with torch.no_grad():
            next_values = self._network(self.q_net_target, next_obs, bfloat16).amax(dim=1)
            targets = rewards + (1 - dones) * self.gamma * next_values[:, None]
        values = self._network(self.q_net, obs, bfloat16).gather(1, actions)
        loss = F.smooth_l1_loss(values, targets)
        self._descend(loss)
        return loss.detach()
