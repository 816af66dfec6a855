"""Rollouts and replay as tensors that are written, read and sampled without the host."""

from collections.abc import Callable, Generator
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    episode_starts: Tensor,
    last_values: Tensor,
    last_dones: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Return the advantages of a rollout of T steps in N environments, ``(T, N)``.

    Generalized advantage estimation (Schulman et al. 2016, https://arxiv.org/abs/1506.02438), in
    the order of operations of SB3's ``RolloutBuffer``.

    Args:
        rewards: ``(T, N)``.
        values: ``(T, N)``, estimated before each step.
        episode_starts: ``(T, N)``, 1 where an episode began with the observation of a step.
        last_values: ``(N,)``, estimated after the last step.
        last_dones: ``(N,)``, 1 where the last step ended an episode.
        gamma: Discount.
        gae_lambda: Weight of longer estimates; 1 gives the whole return, 0 one step.
    """
    goes_on = 1 - torch.cat([episode_starts[1:], last_dones[None]]).float()
    next_values = torch.cat([values[1:], last_values[None]])
    deltas = rewards + gamma * next_values * goes_on - values
    advantages = torch.empty_like(deltas)
    advantage = torch.zeros_like(last_values)
    for t in reversed(range(len(deltas))):
        advantage = deltas[t] + gamma * gae_lambda * goes_on[t] * advantage
        advantages[t] = advantage
    return advantages


class TimeoutFrames:
    """The newest frame of observations at which an episode was truncated.

    Such a frame is written in every step to the same place, until one is to be kept: then the next
    place is taken. So nobody has to ask the device where episodes were truncated.

    Args:
        steps: Steps for which a kept frame has to stay.
        shortest: Least steps of a truncated episode.
        num_envs: Environments.
        frame_shape: Height and width.
        device: Where the frames lie.
    """

    def __init__(
        self,
        steps: int,
        shortest: int,
        num_envs: int,
        frame_shape: tuple[int, ...],
        device: torch.device,
    ) -> None:
        # In as many steps, so many episodes can be truncated, and one more that began before;
        # another place is the one that is written to.
        places = steps // shortest + 2
        self.frames = torch.zeros(
            (places, num_envs, *frame_shape), dtype=torch.uint8, device=device
        )
        self.kept = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._envs = torch.arange(num_envs, device=device)

    def write(self, frames: Tensor, keep: Tensor) -> Tensor:
        """Write a frame of each environment, keep some, and return their places ``(N,)``."""
        places = self.kept % len(self.frames)
        self.frames[places, self._envs] = frames
        self.kept += keep
        return places


class DeviceRolloutBuffer(RolloutBuffer):
    """SB3's rollout buffer, in tensors of the device that the network is on.

    It takes its memory once. Observations are stacks of frames, newest last, each the one before
    with one more frame.

    Args:
        buffer_size: Steps T of a rollout.
        observation_space: Stacks of frames ``(stack_size, height, width)``.
        action_space: Discrete actions.
        device: Where everything lies.
        gae_lambda: See :func:`generalized_advantages`.
        gamma: Discount.
        n_envs: Environments N.
        channels_last: Keep observations in the layout that convolutions read fastest.
        shortest_timeout: Least steps of a truncated episode.
    """

    observations: Tensor  # type: ignore[assignment]  # and so on: SB3's are arrays
    actions: Tensor  # type: ignore[assignment]
    rewards: Tensor  # type: ignore[assignment]
    advantages: Tensor  # type: ignore[assignment]
    returns: Tensor  # type: ignore[assignment]
    episode_starts: Tensor  # type: ignore[assignment]
    log_probs: Tensor  # type: ignore[assignment]
    values: Tensor  # type: ignore[assignment]

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        channels_last: bool = True,
        shortest_timeout: int = 1,
    ) -> None:
        # Past RolloutBuffer's own, which makes arrays.
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        self.gae_lambda, self.gamma = gae_lambda, gamma
        self._channels_last = channels_last
        channels, height, width = self.obs_shape
        layout = (height, width, channels) if channels_last else (channels, height, width)
        steps = (buffer_size, n_envs)
        self._images = torch.zeros((*steps, *layout), dtype=torch.uint8, device=self.device)
        self.observations = self._channels_first(self._images)
        self.actions = torch.zeros(steps, dtype=torch.int64, device=self.device)
        self.rewards = torch.zeros(steps, device=self.device)
        for name in ("advantages", "returns", "episode_starts", "log_probs", "values"):
            setattr(self, name, torch.zeros_like(self.rewards))
        self._timeouts = torch.zeros(steps, dtype=torch.bool, device=self.device)
        self._timeout_places = torch.zeros_like(self.actions)
        self._timeout_frames = TimeoutFrames(
            buffer_size, shortest_timeout, n_envs, (height, width), self.device
        )
        self._observed: Tensor | None = None
        self.reset()

    def _channels_first(self, images: Tensor) -> Tensor:
        return images.movedim(-1, -3) if self._channels_last else images

    def reset(self) -> None:
        """Begin a new rollout in the same memory."""
        BaseBuffer.reset(self)

    def observe(self, obs: Tensor) -> Tensor:
        """Copy the observations of the next step to their place, and return them there."""
        self._observed = self.observations[self.pos]
        self._observed.copy_(obs)
        return self._observed

    def add(  # type: ignore[override]
        self,
        obs: Tensor,
        action: Tensor,
        reward: Tensor,
        episode_start: Tensor,
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        """Keep one step of every environment; see :class:`RolloutBuffer`.

        Args:
            obs: ``(N, stack_size, height, width)``; what :meth:`observe` has returned for this
                step is not copied again.
            action: ``(N,)``, and so the rest.
            reward: Rewards.
            episode_start: Whether an episode began with ``obs``.
            value: Estimated return from ``obs`` on.
            log_prob: Logarithm of the probability that the policy gave to ``action``.
        """
        if obs is not self._observed:
            self.observe(obs)
        self._observed = None
        self.actions[self.pos] = action
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self.values[self.pos] = value
        self.log_probs[self.pos] = log_prob
        self._timeouts[self.pos] = False
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def add_timeouts(self, next_obs: Tensor, timeouts: Tensor) -> None:
        """Note where the step that was added last was cut off by the limit of time.

        Args:
            next_obs: What the step led to, ``(N, stack_size, height, width)``.
            timeouts: ``(N,)``, booleans.
        """
        self._timeouts[self.pos - 1] = timeouts
        self._timeout_places[self.pos - 1] = self._timeout_frames.write(next_obs[:, -1], timeouts)

    def bootstrap_timeouts(self, estimate: Callable[[Tensor], Tensor]) -> None:
        """Add to the rewards of truncated steps the discounted value of what they led to.

        Args:
            estimate: Returns the values ``(M,)`` of observations ``(M, stack_size, H, W)``.
        """
        steps, envs = self._timeouts.nonzero(as_tuple=True)
        # As few at a time as act together, so that no batch is larger than one that fitted.
        for step, env in zip(
            torch.split(steps, self.n_envs), torch.split(envs, self.n_envs), strict=True
        ):
            if not len(step):
                return
            newest = self._timeout_frames.frames[self._timeout_places[step, env], env]
            next_obs = torch.cat([self.observations[step, env, 1:], newest[:, None]], dim=1)
            self.rewards[step, env] += self.gamma * estimate(next_obs)

    def compute_returns_and_advantage(self, last_values: Tensor, dones: Tensor) -> None:  # type: ignore[override]
        """Fill in ``advantages`` and ``returns``.

        Args:
            last_values: ``(N,)``, estimated after the last step.
            dones: ``(N,)``, whether the last step ended an episode.
        """
        advantages = generalized_advantages(
            self.rewards,
            self.values,
            self.episode_starts,
            last_values.flatten(),
            dones,
            self.gamma,
            self.gae_lambda,
        )
        self.advantages.copy_(advantages)
        torch.add(self.advantages, self.values, out=self.returns)

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """Yield the rollout in minibatches, in random order, drawn on the device."""
        assert self.full, "the rollout is not over"
        size = self.buffer_size * self.n_envs
        for rows in torch.split(torch.randperm(size, device=self.device), batch_size or size):
            yield self._samples(rows)

    def _samples(self, rows: Tensor) -> RolloutBufferSamples:
        images = self._images.flatten(0, 1).index_select(0, rows)
        rest = (self.actions, self.values, self.log_probs, self.advantages, self.returns)
        return RolloutBufferSamples(
            self._channels_first(images), *(tensor.flatten()[rows] for tensor in rest)
        )
