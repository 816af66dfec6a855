"""The games of an environment on a GPU."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from coordrl.emulator.device import DeviceEmulator, DeviceStep
from coordrl.envs.backends import Flags


class DeviceGames:
    """The games of an :class:`~coordrl.envs.AtariVectorEnv` on a GPU: its bookkeeping in tensors.

    Nothing here depends on a value, so that a step can be captured in a CUDA graph.
    """

    def __init__(self, emulator: DeviceEmulator, autoreset_mode: AutoresetMode) -> None:
        self._emulator = emulator
        self._mode = autoreset_mode
        self._frame_skip = emulator.settings.frame_skip
        self.device = emulator.device
        self.action_meanings = emulator.action_meanings
        self.obs_shape = emulator.obs_shape
        meanings = emulator.action_meanings
        self._noop = meanings.index("NOOP") if "NOOP" in meanings else 0

        def zeros(dtype: torch.dtype) -> Tensor:
            return torch.zeros(emulator.num_envs, dtype=dtype, device=self.device)

        self._state = {
            "_game_ended": zeros(torch.bool),
            "_life_ended": zeros(torch.bool),
            "_started_at": zeros(torch.int32),
            "_reset_frames": zeros(torch.int32),
            "_lives": zeros(torch.int32),
        }

    @property
    def lives(self) -> Tensor:
        """Lives left in every game."""
        return self._state["_lives"].clone()

    @property
    def is_over(self) -> Tensor:
        """Whether the last step ended the episode of each game."""
        return self._state["_game_ended"] | self._state["_life_ended"]

    def reset(
        self, seeds: NDArray[np.int64] | None, mask: Flags
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Begin new games where the mask is true; return observations and info."""
        step = self._emulator.reset(seed=seeds, mask=mask)
        masked = torch.from_numpy(mask).to(self.device)
        self._state["_game_ended"] &= ~masked
        self._state["_life_ended"] &= ~masked
        self._begin_games(step, masked)
        self._state["_lives"].copy_(step.lives)
        return step.obs, self._info(step)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Play one action in every game; return what ``AtariVectorEnv.step`` does."""
        state = self._state
        next_step = self._mode is AutoresetMode.NEXT_STEP
        if next_step and actions.shape == state["_life_ended"].shape:  # others are refused
            actions = torch.where(state["_life_ended"], self._noop, actions)
        step = self._emulator.step(actions)
        rewards = step.rewards.float()
        if next_step:
            rewards = rewards.masked_fill(state["_life_ended"], 0)
        info = self._info(step)
        frames = step.episode_frame_number
        if self._mode is AutoresetMode.SAME_STEP:
            # As in AtariVectorEnv._report_ends: the counters are those of the new game.
            started_at = step.frame_number - step.episode_frame_number
            played = step.episode_length * self._frame_skip
            last = torch.minimum(started_at - state["_started_at"], state["_reset_frames"] + played)
            frames = torch.where(step.ended, last, frames)
            info["final_obs"] = step.final_obs
        ended = step.ended
        if self._mode is AutoresetMode.DISABLED:
            ended = ended & ~state["_game_ended"]
        info["_game"] = ended
        info["game"] = {
            "episode_return": step.episode_return * ended,
            "agent_steps": step.episode_length * ended,
            "frames": (frames - state["_reset_frames"]) * ended,
        }
        if self._mode is AutoresetMode.SAME_STEP:
            self._begin_games(step, ended)
        elif next_step:
            self._begin_games(step, state["_game_ended"])
        state["_game_ended"].copy_(step.ended)
        state["_life_ended"].copy_(step.terminated & ~step.ended)
        state["_lives"].copy_(step.lives)
        return step.obs, rewards, step.terminated, step.truncated, info

    def save(self) -> tuple[list[bytes], dict[str, NDArray[Any]]]:
        """Return the consoles, and what is known beside them."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in self._state.items()}
        return self._emulator.save(), arrays

    def restore(self, saved: Sequence[bytes], arrays: Mapping[str, NDArray[Any]]) -> Tensor:
        """Go on from what :meth:`save` returned; return the observations."""
        step = self._emulator.restore(saved)
        for name, tensor in self._state.items():
            tensor.copy_(torch.from_numpy(arrays[name]))
        return step.obs

    def _begin_games(self, step: DeviceStep, mask: Tensor) -> None:
        started_at = step.frame_number - step.episode_frame_number
        for name, value in (
            ("_started_at", started_at),
            ("_reset_frames", step.episode_frame_number),
        ):
            self._state[name].copy_(torch.where(mask, value, self._state[name]))

    def _info(self, step: DeviceStep) -> dict[str, Any]:
        return {
            "lives": step.lives,
            "frame_number": step.frame_number,
            "episode_frame_number": step.episode_frame_number,
        }
