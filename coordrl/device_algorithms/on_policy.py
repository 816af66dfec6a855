"""PPO and A2C: the losses and logs of SB3, without its copies and waits."""

from collections.abc import Iterable
from typing import Any

import stable_baselines3
import torch
import torch.nn.functional as F
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from coordrl.device_algorithms.base import OnDevice
from coordrl.device_algorithms.buffers import DeviceRolloutBuffer
from coordrl.device_algorithms.callbacks import EpisodeLog
from coordrl.device_algorithms.networks import Recorded, accelerated, draw, entropy, estimate
from coordrl.sb3_envs import VectorEnvAdapter


class _OnPolicy(OnDevice, OnPolicyAlgorithm):
    """The rollouts that PPO and A2C on a device share."""

    rollout_buffer: DeviceRolloutBuffer

    def _setup_model(self) -> None:
        self.rollout_buffer_class = DeviceRolloutBuffer
        self.rollout_buffer_kwargs = {
            "channels_last": self.acceleration.channels_last,
            "shortest_timeout": self._soonest_timeout(),
        }
        super()._setup_model()
        self.episodes = EpisodeLog(self.n_steps, self.n_envs, self.device)
        self._network = accelerated(estimate, self.acceleration)
        self._act = self._recorded(self._choose)

    @torch.no_grad()
    def _choose(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions, values and the actions' log probabilities, each ``(N,)``."""
        log_probs, values = self._network(self.policy, obs, self.acceleration.bfloat16)
        actions = draw(log_probs)
        return actions, values, log_probs.gather(1, actions[:, None]).squeeze(1)

    def _both(self, obs: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        log_probs, values = estimate(self.policy, obs)
        categorical: Any = self.policy.get_distribution(obs).distribution
        yield log_probs, categorical.logits
        yield values, self.policy.predict_values(obs).squeeze(1)

    @torch.no_grad()
    def _values(self, obs: Tensor) -> Tensor:
        return estimate(self.policy, obs, self.acceleration.bfloat16).values

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Play ``n_rollout_steps`` steps in each environment, as in SB3.

        Callbacks find their usual ``locals``, which are copied to the host only when read.
        """
        assert isinstance(env, VectorEnvAdapter)
        buffer = self.rollout_buffer
        self.policy.set_training_mode(False)
        buffer.reset()
        self.episodes.clear()
        callback.on_rollout_start()
        obs = torch.as_tensor(self._last_obs, device=self.device)
        starts = torch.as_tensor(self._last_episode_starts, device=self.device)
        for n_steps in range(n_rollout_steps):
            obs = buffer.observe(obs)
            actions, values, log_probs = self._act(obs)
            step = self._step(env, actions)
            others = {
                **{"callback": callback, "n_steps": n_steps, "n_rollout_steps": n_rollout_steps},
                **{"rollout_buffer": buffer, "obs_tensor": obs, "log_probs": log_probs},
                **{"values": values[:, None], "clipped_actions": self._view(actions)},
            }
            callback.update_locals(self._locals(step, actions, **others))
            try:
                goes_on = callback.on_step()
            finally:
                # Also when the callback or Ctrl-C stops the training: the games have moved on.
                self._last_obs = step.obs  # type: ignore[assignment]
                next_starts = step.terminated | step.truncated
                self._last_episode_starts = next_starts  # type: ignore[assignment]
            if not goes_on:
                self._note_games()
                return False
            self.episodes.add(step)
            buffer.add(obs, actions, step.rewards, starts, values, log_probs)
            buffer.add_timeouts(step.next_obs, step.truncated & ~step.terminated)
            obs, starts = step.obs, next_starts
        buffer.bootstrap_timeouts(self._values)
        buffer.compute_returns_and_advantage(self._values(obs), starts)
        self._note_games()
        callback.on_rollout_end()
        return True

    def _normalized(self, advantages: Tensor) -> Tensor:
        """Return advantages with mean 0 and standard deviation 1 over all ranks' minibatches."""
        if self.ranks.count == 1:
            return (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        count = advantages.numel() * self.ranks.count
        mean = self.ranks.sum(advantages.sum()) / count
        variance = self.ranks.sum((advantages - mean).square().sum()) / (count - 1)
        return (advantages - mean) / (variance.sqrt() + 1e-8)

    def _explained_variance(self) -> Tensor:
        values, returns = self.rollout_buffer.values, self.rollout_buffer.returns
        variance = returns.var(correction=0)
        share = (returns - values).var(correction=0) / variance
        return torch.where(variance == 0, torch.nan, 1 - share)


class PPO(_OnPolicy, stable_baselines3.PPO):
    """SB3's PPO with its rollouts on the device.

    Args:
        *args: Those of :class:`stable_baselines3.PPO`; so are ``**kwargs``.
        acceleration: Compilation, CUDA graphs, precision and memory layout.
        ranks: Processes that train together; see :class:`OnDevice`.

    Raises:
        ValueError: If ``target_kl`` is set and updates are recorded as CUDA graphs.

    Example:
        >>> from coordrl.sb3_envs import make_sb3_env
        >>> env = make_sb3_env("Pong", num_envs=2)
        >>> model = PPO("CnnPolicy", env, n_steps=4, batch_size=8, n_epochs=1, device="cpu")
        >>> model.learn(8).num_timesteps
        8
        >>> env.close()
    """

    def _setup_model(self) -> None:
        super()._setup_model()
        # Sums over minibatches: entropy loss, policy loss, value loss, clip fraction, divergence.
        self._totals = torch.zeros(5, device=self.device)
        # Clip ranges of policy and values, weight of the entropy bonus.
        self._scalars = torch.zeros(3, device=self.device)
        self._update = self._recorded_update(self._minibatch)
        if isinstance(self._update, Recorded) and self.target_kl is not None:
            raise ValueError(
                "target_kl may end an update, so the host has to see it: a recorded update cannot "
                "have one, set acceleration.cuda_graphs = false"
            )

    def train(self) -> None:
        """Update the policy with the rollout, as in SB3.

        Logged values are summed on the device and read once. With ``target_kl``, which may end an
        epoch, one number per minibatch is read as well.
        """
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        schedules: list[Any] = [self.clip_range, self.clip_range_vf or self.clip_range]
        ranges = [float(schedule(self._current_progress_remaining)) for schedule in schedules]
        # fill_ instead of a copy from the host, which would wait.
        for scalar, value in zip(self._scalars, [*ranges, self.ent_coef], strict=True):
            scalar.fill_(value)
        self._totals.zero_()
        num_updates = num_updates_of_epoch = 0
        for _ in range(self.n_epochs):
            self._totals[-1].zero_()  # SB3 logs the divergence of the last epoch only
            num_updates_of_epoch = 0
            for samples in self.rollout_buffer.get(self.batch_size):
                fields = (samples.observations, samples.actions, samples.old_values)
                rest = (samples.old_log_prob, samples.advantages, samples.returns)
                loss, goes_on = self._update(*fields, *rest, self._scalars)
                num_updates += 1
                num_updates_of_epoch += 1
                if self.target_kl is not None and not goes_on:
                    break
            self._n_updates += 1
            if self.target_kl is not None and not goes_on:
                break
        totals = [total / num_updates for total in self._totals[:-1]]
        divergence = self._totals[-1] / num_updates_of_epoch
        keys = (
            *("entropy_loss", "policy_gradient_loss", "value_loss", "clip_fraction"),
            *("approx_kl", "loss", "explained_variance"),
        )
        read = self._read([*totals, divergence, loss, self._explained_variance()])
        for key, value in zip(keys, read, strict=True):
            self.logger.record(f"train/{key}", value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", ranges[0])
        if self.clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", ranges[1])

    def _minibatch(
        self,
        obs: Tensor,
        actions: Tensor,
        old_values: Tensor,
        old_log_prob: Tensor,
        advantages: Tensor,
        returns: Tensor,
        scalars: Tensor,
    ) -> tuple[Tensor, bool]:
        """Make one update, and return its loss and whether more may follow.

        Values that change between rollouts are passed as tensors: a recorded update would repeat
        the numbers of its first call.
        """
        clip_range, clip_range_vf, ent_coef = scalars
        all_log_probs, values = self._network(self.policy, obs, self.acceleration.bfloat16)
        log_prob = all_log_probs.gather(1, actions[:, None]).squeeze(1)
        if self.normalize_advantage and len(advantages) * self.ranks.count > 1:
            advantages = self._normalized(advantages)
        log_ratio = log_prob - old_log_prob
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
        policy_loss = -torch.min(advantages * ratio, advantages * clipped).mean()
        if self.clip_range_vf is not None:
            values = old_values + (values - old_values).clamp(-clip_range_vf, clip_range_vf)
        value_loss = F.mse_loss(returns, values)
        entropy_loss = -entropy(all_log_probs).mean()
        loss = policy_loss + ent_coef * entropy_loss + self.vf_coef * value_loss
        with torch.no_grad():
            clip_fraction = ((ratio - 1).abs() > clip_range).float().mean()
            divergence = ((ratio - 1) - log_ratio).mean()
            logged = (entropy_loss, policy_loss, value_loss, clip_fraction, divergence)
            self._totals += torch.stack(logged)
        if self.target_kl is not None:
            [mean_divergence] = self._read([divergence])
            if mean_divergence > 1.5 * self.target_kl:
                return loss.detach(), False
        self._descend(loss)
        return loss.detach(), True


class A2C(_OnPolicy, stable_baselines3.A2C):
    """SB3's A2C with its rollouts on the device; see :class:`PPO` for the arguments."""

    def train(self) -> None:
        """Update the policy with the rollout, as in SB3."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        [samples] = self.rollout_buffer.get(batch_size=None)
        all_log_probs, values = self._network(
            self.policy, samples.observations, self.acceleration.bfloat16
        )
        log_prob = all_log_probs.gather(1, samples.actions[:, None]).squeeze(1)
        advantages = samples.advantages
        if self.normalize_advantage:
            advantages = self._normalized(advantages)
        policy_loss = -(advantages * log_prob).mean()
        value_loss = F.mse_loss(samples.returns, values)
        entropy_loss = -entropy(all_log_probs).mean()
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        self._descend(loss)
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        keys = ("explained_variance", "entropy_loss", "policy_loss", "value_loss")
        numbers = (self._explained_variance(), entropy_loss, policy_loss, value_loss)
        for key, value in zip(keys, self._read(numbers), strict=True):
            self.logger.record(f"train/{key}", value)
