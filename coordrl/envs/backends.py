"""Backends that play games on the CPU: our emulator, or ale-py with its missing parts added."""

import os
from typing import Any, Protocol

import numpy as np
from ale_py import ALEVectorInterface
from numpy.typing import ArrayLike, NDArray

from coordrl.config import AtariSettings
from coordrl.emulator import Autoreset, Emulator, Step, rom_file
from coordrl.emulator.arguments import checked_actions

Counts = NDArray[np.int32]
Flags = NDArray[np.bool_]


class Backend(Protocol):
    """Plays the games; :class:`~coordrl.emulator.Emulator` is the reference implementation."""

    @property
    def action_meanings(self) -> tuple[str, ...]:
        """What each action does."""

    @property
    def obs_shape(self) -> tuple[int, ...]:
        """Shape of an observation, the stack first."""

    def reset(self, *, seed: NDArray[np.integer[Any]] | None, mask: Flags) -> Step:
        """Begin new games where the mask is true; ``seed`` has one number for each new game."""

    def step(self, actions: ArrayLike) -> Step:
        """Play one action in every game."""


class AlePy:
    """ale-py's vector environment, completed to what :class:`~coordrl.emulator.Emulator` offers.

    Added are: rewards clipped here, so that the points are known; FIRE after a lost life; which
    games ended; and the return and length of each.
    """

    def __init__(
        self,
        game: str,
        num_envs: int,
        settings: AtariSettings,
        *,
        autoreset: Autoreset,
        num_threads: int,
        rom_path: str | os.PathLike[str] | None,
    ) -> None:
        lacks = {
            f"mode={settings.mode}": settings.mode is not None,
            f"difficulty={settings.difficulty}": settings.difficulty is not None,
            "observation='ram'": settings.observation == "ram",
            "autoreset_mode=DISABLED": autoreset == "disabled",
        }
        if any(lacks.values()):
            asked = " and ".join(setting for setting, is_asked in lacks.items() if is_asked)
            raise ValueError(f"emulator='ale' has no {asked}; emulator='coordrl' has")
        self._game = game
        self._same_step = autoreset == "same_step"
        self._settings = settings
        self._ale = ALEVectorInterface(
            rom_path=rom_file(game, rom_path),
            num_envs=num_envs,
            frame_skip=settings.frame_skip,
            stack_num=settings.stack_size,
            img_height=settings.screen_size[0],
            img_width=settings.screen_size[1],
            grayscale=settings.observation == "gray",
            maxpool=settings.max_pool,
            noop_max=settings.noop_max,
            use_fire_reset=settings.fire_reset,
            episodic_life=settings.life_loss == "reset",
            # With SAME_STEP the lives of an ended game are not known, so ale-py has to compare.
            life_loss_info=settings.life_loss == "terminate" and self._same_step,
            reward_clipping=False,
            max_episode_steps=settings.max_frames_per_episode,
            repeat_action_probability=settings.repeat_action_probability,
            full_action_space=settings.full_action_space,
            batch_size=0,
            num_threads=min(num_threads, num_envs),
            thread_affinity_offset=-1,
            autoreset_mode="SameStep" if self._same_step else "NextStep",
        )
        self.action_meanings = tuple(action.name for action in self._ale.get_action_set())
        color = (3,) if settings.observation == "rgb" else ()
        self.obs_shape = (settings.stack_size, *settings.screen_size, *color)
        self._fire = (
            self.action_meanings.index("FIRE")
            if settings.fire_after_life_loss and "FIRE" in self.action_meanings
            else None
        )
        self._full_strength = np.ones(num_envs, np.float32)
        self._lives = np.zeros(num_envs, np.int32)
        self._started_at = np.zeros(num_envs, np.int32)
        self._life_lost = np.zeros(num_envs, np.bool_)
        self._ended = np.zeros(num_envs, np.bool_)
        self._episode_return = np.zeros(num_envs, np.int32)
        self._episode_length = np.zeros(num_envs, np.int32)

    def reset(self, *, seed: NDArray[np.integer[Any]] | None, mask: Flags) -> Step:
        """Begin new games where the mask is true."""
        indices = np.flatnonzero(mask)
        seeds = np.full(len(indices), -1) if seed is None else seed
        obs, info = self._ale.reset(indices, seeds.astype(np.int32))
        self._started_at = info["frame_number"] - info["episode_frame_number"]
        self._begin(mask)
        no_flags, no_rewards = np.zeros(len(mask), np.bool_), np.zeros(len(mask), np.int32)
        return self._report(obs, obs, no_rewards, no_flags, no_flags, no_flags, no_flags, info)

    def step(self, actions: ArrayLike) -> Step:
        """Play one action in every game."""
        num_envs, num_actions = len(self._lives), len(self.action_meanings)
        chosen = checked_actions(actions, num_envs, num_actions, self._game).astype(np.int64)
        if self._fire is not None and self._life_lost.any():
            chosen = np.where(self._life_lost, self._fire, chosen)
        self._ale.send(chosen, self._full_strength)
        obs, rewards, terminated, truncated, info = self._ale.recv()

        lives = info["lives"]
        was_reset = self._ended & (not self._same_step)
        life_lost = (lives < self._lives) & (lives > 0) & ~was_reset
        ended = terminated | truncated
        if self._same_step:
            started_at = info["frame_number"] - info["episode_frame_number"]
            ended, self._started_at = started_at != self._started_at, started_at
        elif self._settings.life_loss == "terminate":
            terminated = terminated | life_lost
            truncated = truncated & ~terminated
        self._begin(was_reset)
        self._episode_return += rewards
        self._episode_length += ~was_reset
        step = self._report(
            obs, info.get("final_obs", obs), rewards, terminated, truncated, ended, life_lost, info
        )
        if self._same_step:
            self._begin(ended)
        self._ended = ended
        self._life_lost = life_lost & ~ended
        return step

    def _begin(self, mask: Flags) -> None:
        self._ended = self._ended & ~mask
        self._life_lost = self._life_lost & ~mask
        self._episode_return[mask] = 0
        self._episode_length[mask] = 0

    def _report(
        self,
        obs: NDArray[np.uint8],
        final_obs: NDArray[np.uint8],
        rewards: Counts,
        terminated: Flags,
        truncated: Flags,
        ended: Flags,
        life_lost: Flags,
        info: dict[str, Counts],
    ) -> Step:
        self._lives = info["lives"]
        return Step(
            obs=obs,
            rewards=np.sign(rewards) if self._settings.clip_reward else rewards,
            unclipped_rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            ended=ended,
            life_lost=life_lost,
            final_obs=final_obs,
            lives=info["lives"],
            frame_number=info["frame_number"],
            episode_frame_number=info["episode_frame_number"],
            episode_return=self._episode_return.copy(),
            episode_length=self._episode_length.copy(),
        )


BACKENDS: dict[str, type[Emulator] | type[AlePy]] = {"coordrl": Emulator, "ale": AlePy}
