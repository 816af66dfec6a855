"""Rollout and replay buffers in tensors, written and sampled without the host."""

from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples, RolloutBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
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

    Example:
        >>> rewards, values = torch.ones(3, 1), torch.zeros(3, 1)
        >>> starts = torch.tensor([[1.0], [0.0], [1.0]])  # the second step ended an episode
        >>> after, done = torch.tensor([4.0]), torch.tensor([0.0])
        >>> generalized_advantages(rewards, values, starts, after, done, gamma=0.5, gae_lambda=1).T
        tensor([[1.5000, 1.0000, 3.0000]])
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

    Every step writes its frame to the same place, until one is to be kept; then the next place is
    used. So the host never has to ask the device where episodes were truncated.

    Args:
        steps: Steps for which a kept frame has to stay.
        shortest: Fewest steps of a truncated episode.
        num_envs: Environments.
        frame_shape: Height and width.
        device: Device of the frames.
    """

    def __init__(
        self,
        steps: int,
        shortest: int,
        num_envs: int,
        frame_shape: tuple[int, ...],
        device: torch.device,
    ) -> None:
        # At most steps // shortest episodes begin and are truncated in these steps, and one that
        # began before; one more place is the one being written to.
        places = steps // shortest + 2
        self.frames = torch.zeros(
            (places, num_envs, *frame_shape), dtype=torch.uint8, device=device
        )
        self.kept = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._envs = torch.arange(num_envs, device=device)

    def grow(self, places: int) -> Tensor:
        """Grow to ``places`` places, and return the new index of each old one, ``(old, N)``.

        The place being written to becomes the last of the old ones, so that the new ones are used
        next.
        """
        old = len(self.frames)
        shift = self.kept % old + 1
        from_here = (torch.arange(old, device=self.kept.device)[:, None] + shift) % old
        added = self.frames.new_zeros(places - old, *self.frames.shape[1:])
        self.frames = torch.cat([self.frames[from_here, self._envs], added])
        self.kept.fill_(old - 1)
        return (torch.arange(old, device=self.kept.device)[:, None] - shift) % old

    def write(self, frames: Tensor, keep: Tensor) -> Tensor:
        """Write a frame per environment, keep those where ``keep``; return all places ``(N,)``."""
        places = self.kept % len(self.frames)
        self.frames[places, self._envs] = frames
        self.kept += keep
        return places


class DeviceRolloutBuffer(RolloutBuffer):
    """SB3's rollout buffer, in tensors on the network's device.

    It allocates its memory once. Observations are stacks of frames, newest last; each is the
    previous one moved on by one frame.

    Args:
        buffer_size: Steps T of a rollout.
        observation_space: Stacks of frames ``(stack_size, height, width)``.
        action_space: Discrete actions.
        device: Device of all tensors.
        gae_lambda: See :func:`generalized_advantages`.
        gamma: Discount.
        n_envs: Environments N.
        channels_last: Keep observations in the layout that convolutions read fastest.
        shortest_timeout: Fewest steps of a truncated episode.
    """

    observations: Tensor  # type: ignore[assignment]  # SB3's are arrays, here and below
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
        # Skips RolloutBuffer.__init__, which allocates arrays.
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
        """Begin a new rollout, reusing the memory."""
        BaseBuffer.reset(self)

    def observe(self, obs: Tensor) -> Tensor:
        """Copy the next step's observations into the buffer, and return them as stored there."""
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
        """Add one step of every environment; see :class:`RolloutBuffer`.

        Args:
            obs: ``(N, stack_size, height, width)``; not copied again if :meth:`observe` returned
                it for this step.
            action: ``(N,)``, like all arguments below.
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
        """Mark where the step added last was truncated.

        Args:
            next_obs: Observations after the step, ``(N, stack_size, height, width)``.
            timeouts: ``(N,)``, booleans: where the episode was truncated.
        """
        self._timeouts[self.pos - 1] = timeouts
        self._timeout_places[self.pos - 1] = self._timeout_frames.write(next_obs[:, -1], timeouts)

    def bootstrap_timeouts(self, estimate: Callable[[Tensor], Tensor]) -> None:
        """Add the discounted value of the next observation to the rewards of truncated steps.

        Args:
            estimate: Returns the values ``(M,)`` of observations ``(M, stack_size, H, W)``.
        """
        steps, envs = self._timeouts.nonzero(as_tuple=True)
        # At most n_envs at a time, so that no batch is larger than those of acting, which fit.
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
        """Yield the rollout in minibatches, in a random order drawn on the device."""
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


class DeviceReplayBuffer(ReplayBuffer):
    """SB3's replay buffer on the device, for stacked frames; each frame is kept once.

    A million transitions of Atari take 7.1 GB. Where a game begins, the earlier frames of a stack
    are zeros. The next observation of a terminated transition does not affect learning, so it is
    not kept: the first observation of the next game is in its place.

    Args:
        buffer_size: Transitions to keep, over all environments.
        observation_space: Stacks of frames ``(stack_size, height, width)``, newest last.
        action_space: Discrete actions.
        device: Device of all tensors.
        n_envs: Environments N that add transitions together.
        optimize_memory_usage: Ignored; SB3 passes it.
        handle_timeout_termination: Ignored: truncated transitions always bootstrap.
        channels_last: Return observations in the layout that convolutions read fastest.
        shortest_timeout: Fewest steps of a truncated episode.
    """

    actions: Tensor  # type: ignore[assignment]  # SB3's are arrays
    rewards: Tensor  # type: ignore[assignment]

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        channels_last: bool = True,
        shortest_timeout: int = 1,
    ) -> None:
        # Skips ReplayBuffer.__init__, which allocates arrays.
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = True  # without it, SB3 takes the buffer for an old one
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        stack_size, height, width = self.obs_shape
        slots = (self.buffer_size, n_envs)
        # Longer than the buffer: the oldest transition needs the frames before it, and the newest
        # one the frame after it.
        self._ring = self.buffer_size + stack_size
        shape = (self._ring, n_envs, height, width)
        self._frames = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        self.actions = torch.zeros(slots, dtype=torch.uint8, device=self.device)
        self.rewards = torch.zeros(slots, device=self.device)
        self._terminated = torch.zeros(slots, dtype=torch.bool, device=self.device)
        self._timeouts = torch.zeros_like(self._terminated)
        self._timeout_places = torch.zeros(slots, dtype=torch.int32, device=self.device)
        # One place more than time limits need, since a game may be cut off otherwise. Places for
        # games that resets cut off are added by expect_reset.
        self._timeout_frames = TimeoutFrames(
            self.buffer_size + shortest_timeout,
            shortest_timeout,
            n_envs,
            (height, width),
            self.device,
        )
        self._resets: list[int] = []  # times of resets, as counts of transitions added before
        self._places = len(self._timeout_frames.frames)  # places without those for resets
        # Earlier frames that belong to a slot's stack; the rest of the stack is zeros.
        self._history = torch.zeros_like(self.actions)
        self._game_ended = torch.ones(n_envs, dtype=torch.bool, device=self.device)
        self._added = 0

    def reset(self) -> None:
        """Forget all transitions."""
        BaseBuffer.reset(self)
        self._game_ended.fill_(True)
        self._added = 0
        self._resets = []

    def expect_reset(self) -> None:
        """Make room for the last frames of games that are about to be cut off by a reset."""
        kept_for = self.buffer_size + 1
        self._resets = [at for at in self._resets if self._added - at <= kept_for]
        if self._added > 0:
            self._resets.append(self._added)
        needed = self._places + len(self._resets)
        if needed > len(self._timeout_frames.frames):
            moved = self._timeout_frames.grow(needed)
            envs = torch.arange(self.n_envs, device=self.device)
            self._timeout_places = moved[self._timeout_places.long(), envs].int()

    def observe(self, obs: Tensor, game_starts: Tensor) -> None:
        """Keep the observations that the next transitions start from.

        Args:
            obs: ``(N, stack_size, height, width)``.
            game_starts: ``(N,)``, booleans: whether a game began with them.
        """
        last = self.pos - 1
        if self._added == 0:
            # If a game is in progress, its earlier frames are only in the stack.
            older = obs[:, :-1].movedim(1, 0)
            self._frames[self._ring - len(older) :] = older
            self._history[last] = len(older)
        cut_off = game_starts & ~self._game_ended
        self._timeout_frames.kept += cut_off
        self._timeouts[last] |= cut_off
        history = (self._history[last] + 1).clamp(max=obs.shape[1] - 1)
        self._history[self.pos] = torch.where(game_starts, 0, history)
        self._frames[self._added % self._ring] = obs[:, -1]

    def require_goes_on(self, next_obs: Tensor) -> None:
        """Raise a ValueError if the games are not those that were observed before.

        This waits for the device, so call it rarely.

        Args:
            next_obs: The observations that follow those given to :meth:`observe`, as :meth:`add`
                takes them.
        """
        offsets = torch.arange(2 - self.obs_shape[0], 1, device=self.device)
        frames = self._frames[(self._added + offsets) % self._ring].movedim(0, 1)
        before_game = offsets < -self._history[self.pos].long()[:, None]
        if not torch.equal(frames.masked_fill(before_game[:, :, None, None], 0), next_obs[:, :-1]):
            raise ValueError(
                "the games did not go on from where they were: were the environments reset or "
                "stepped between two calls of learn? Evaluate in others, or begin new games, with "
                "reset_num_timesteps=True"
            )

    def add(  # type: ignore[override]
        self,
        next_obs: Tensor,
        action: Tensor,
        reward: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        game_ended: Tensor,
    ) -> None:
        """Add one transition of every environment, from the observations given to :meth:`observe`.

        Args:
            next_obs: ``(N, stack_size, height, width)``, never those of the next episode.
            action: ``(N,)``, like all arguments below.
            reward: Rewards.
            terminated: Whether the episode terminated.
            truncated: Whether the episode was truncated.
            game_ended: Whether another game begins; if not, the game goes on after a terminated
                episode.
        """
        timeouts = truncated & ~terminated
        places = self._timeout_frames.write(next_obs[:, -1], timeouts)
        self._frames[(self._added + 1) % self._ring] = next_obs[:, -1]
        self.actions[self.pos] = action
        self.rewards[self.pos] = reward
        self._terminated[self.pos] = terminated
        self._timeouts[self.pos] = timeouts
        self._timeout_places[self.pos] = places
        self._game_ended = game_ended.clone()
        self._added += 1
        self.pos = self._added % self.buffer_size
        self.full = self._added >= self.buffer_size

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Return ``batch_size`` transitions, drawn on the device."""
        slots = torch.randint(self.size(), (batch_size,), device=self.device)
        envs = torch.randint(self.n_envs, (batch_size,), device=self.device)
        return self._samples(slots, envs)

    def _samples(self, slots: Tensor, envs: Tensor) -> ReplayBufferSamples:
        stack = self._stacks(slots, envs)
        return ReplayBufferSamples(
            observations=stack[:, :-1].contiguous(memory_format=self._format),
            actions=self.actions[slots, envs].long()[:, None],
            next_observations=stack[:, 1:].contiguous(memory_format=self._format),
            dones=self._terminated[slots, envs].float()[:, None],
            rewards=self.rewards[slots, envs][:, None],
        )

    def _stacks(self, slots: Tensor, envs: Tensor) -> Tensor:
        """Return the frames of each observation and the one after it, ``(B, stack + 1, H, W)``."""
        stack_size = self.obs_shape[0]
        added_at = self._added - 1 - (self.pos - 1 - slots) % self.buffer_size
        offsets = torch.arange(1 - stack_size, 2, device=self.device)
        rows = (added_at[:, None] + offsets) % self._ring * self.n_envs + envs[:, None]
        stack = self._frames.flatten(0, 1).index_select(0, rows.flatten())
        stack = stack.view(len(slots), stack_size + 1, *self.obs_shape[1:])
        before_game = offsets < -self._history[slots, envs].long()[:, None]
        stack.masked_fill_(before_game[:, :, None, None], 0)
        last = self._timeout_frames.frames[self._timeout_places[slots, envs].long(), envs]
        timeouts = self._timeouts[slots, envs][:, None, None]
        stack[:, -1] = torch.where(timeouts, last, stack[:, -1])
        return stack

    def state(self) -> dict[str, NDArray[Any]]:
        """Return everything that :meth:`restore` needs, as arrays."""
        slots = torch.arange(min(self.obs_shape[0] - 1, self.buffer_size), device=self.device)
        reaches_back = bool((self._history[: len(slots)] > slots[:, None]).any())
        used = self._ring if reaches_back else min(self._added + 1, self._ring)
        tensors = {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}
        counts = {"added": np.array(self._added), "resets": np.array(self._resets, np.int64)}
        return {**tensors, "frames": tensors["frames"][:used], **counts}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Load what :meth:`state` of a buffer of the same size returned."""
        places = len(state["timeout_frames"])
        if places != len(self._timeout_frames.frames):  # it has grown
            shape = places, *self._timeout_frames.frames.shape[1:]
            self._timeout_frames.frames = self._frames.new_zeros(shape)
        self._resets = state["resets"].tolist() if "resets" in state else []
        for name, tensor in self._tensors().items():
            values = torch.from_numpy(state[name])
            tensor[: len(values)] = values.to(self.device)
        self._added = int(state["added"])
        self.pos = self._added % self.buffer_size
        self.full = self._added >= self.buffer_size

    def _tensors(self) -> dict[str, Tensor]:
        frames = self._timeout_frames
        return {
            **{"frames": self._frames, "actions": self.actions, "rewards": self.rewards},
            **{"terminated": self._terminated, "timeouts": self._timeouts},
            **{"timeout_places": self._timeout_places, "timeout_frames": frames.frames},
            **{"kept": frames.kept, "history": self._history, "game_ended": self._game_ended},
        }
