"""The games of an environment on a GPU."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from coordrl.emulator.device import DeviceEmulator, DeviceStep
from coordrl.envs.backends import Flags
from coordrl.envs.episode_state import EpisodeState, new_episode_state


class DeviceGames:
    """The games of an :class:`~coordrl.envs.AtariVectorEnv` on a GPU: its bookkeeping in tensors.

    No control flow depends on a tensor's value, so that a CUDA graph can capture a step.
    """

    def __init__(self, emulator: DeviceEmulator, autoreset_mode: AutoresetMode) -> None:
        self._emulator = emulator
        self._mode = autoreset_mode
        self._frame_skip = emulator.settings.frame_skip
        self._device = emulator.device
        self.action_meanings = meanings = emulator.action_meanings
        self.obs_shape = emulator.obs_shape
        self._noop = meanings.index("NOOP") if "NOOP" in meanings else 0
        self._state = new_episode_state(emulator.num_envs).map(
            lambda array: torch.from_numpy(array).to(self._device)
        )

    @property
    def lives(self) -> Tensor:
        """Lives left in every game."""
        return self._state.lives.clone()

    @property
    def is_over(self) -> Tensor:
        """Whether the last step ended the episode of each game."""
        return self._state.game_ended | self._state.life_ended

    def reset(
        self, seeds: NDArray[np.int64] | None, mask: Flags
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Begin new games where the mask is true; return observations and info."""
        step = self._emulator.reset(seed=seeds, mask=mask)
        masked = torch.from_numpy(mask).to(self._device)
        self._state.game_ended &= ~masked
        self._state.life_ended &= ~masked
        self._begin_games(step, masked)
        self._state.lives.copy_(step.lives)
        return step.obs, self._info(step)

    def step(
        self, actions: ArrayLike | Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Play one action in every game; return what ``AtariVectorEnv.step`` does."""
        actions = torch.as_tensor(actions, device=self._device)
        state = self._state
        next_step = self._mode is AutoresetMode.NEXT_STEP
        if next_step and actions.shape == state.life_ended.shape:  # others are refused
            actions = torch.where(state.life_ended, self._noop, actions)
        step = self._emulator.step(actions)
        rewards = step.rewards.float()
        if next_step:
            rewards = rewards.masked_fill(state.life_ended, 0)
        info = self._info(step)
        frames = step.episode_frame_number
        if self._mode is AutoresetMode.SAME_STEP:
            # As in HostGames._report_ends: the counters are those of the new game.
            started_at = step.frame_number - step.episode_frame_number
            played = step.episode_length * self._frame_skip
            last = torch.minimum(started_at - state.started_at, state.reset_frames + played)
            frames = torch.where(step.ended, last, frames)
            info["final_obs"] = step.final_obs
            old_number = state.started_at + frames
            info["final_info"] = {
                "frame_number": torch.where(step.ended, old_number, step.frame_number),
                "episode_frame_number": frames,
            }
        ended = step.ended
        if self._mode is AutoresetMode.DISABLED:
            ended = ended & ~state.game_ended
        info["_game"] = ended
        info["game"] = {
            "episode_return": step.episode_return * ended,
            "agent_steps": step.episode_length * ended,
            "frames": (frames - state.reset_frames) * ended,
        }
        if self._mode is AutoresetMode.SAME_STEP:
            self._begin_games(step, ended)
        elif next_step:
            self._begin_games(step, state.game_ended)
        state.game_ended.copy_(step.ended)
        state.life_ended.copy_(step.terminated & ~step.ended)
        state.lives.copy_(step.lives)
        return step.obs, rewards, step.terminated, step.truncated, info

    def require_screens(self) -> None:
        """Do nothing: screens can be drawn."""

    def screens(self) -> tuple[NDArray[np.uint8], ...]:
        """Return the screen of every game."""
        return tuple(self._emulator.screen(i) for i in range(self._emulator.num_envs))

    def save(self) -> tuple[list[bytes], EpisodeState[NDArray[Any]]]:
        """Return the consoles, and the state kept besides them."""
        return self._emulator.save(), self._state.map(lambda tensor: tensor.cpu().numpy())

    def restore(self, saved: Sequence[bytes], state: EpisodeState[NDArray[Any]]) -> Tensor:
        """Continue from what :meth:`save` returned; return the observations."""
        step = self._emulator.restore(saved)
        arrays = state.saved()
        for name, tensor in self._state.saved().items():  # in place: a CUDA graph has its address
            tensor.copy_(torch.from_numpy(arrays[name]))
        return step.obs

    def _begin_games(self, step: DeviceStep, mask: Tensor) -> None:
        state = self._state
        started_at = step.frame_number - step.episode_frame_number
        state.started_at.copy_(torch.where(mask, started_at, state.started_at))
        state.reset_frames.copy_(torch.where(mask, step.episode_frame_number, state.reset_frames))

    def _info(self, step: DeviceStep) -> dict[str, Any]:
        return {
            "lives": step.lives,
            "frame_number": step.frame_number,
            "episode_frame_number": step.episode_frame_number,
        }
