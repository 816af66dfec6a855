"""The games of an environment on the CPU."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import ArrayLike, NDArray

from coordrl.emulator import Emulator, Step
from coordrl.emulator.arguments import checked_actions
from coordrl.envs.backends import Backend, Counts, Flags
from coordrl.envs.episode_state import EpisodeState, new_episode_state


class HostGames:
    """The games of an :class:`~coordrl.envs.AtariVectorEnv` on the CPU: its bookkeeping in arrays.

    :class:`~coordrl.envs.device_games.DeviceGames` is the same on a GPU.
    """

    def __init__(
        self,
        backend: Backend,
        game: str,
        num_envs: int,
        *,
        frame_skip: int,
        autoreset_mode: AutoresetMode,
    ) -> None:
        self._backend = backend
        self._game = game
        self._num_envs = num_envs
        self._frame_skip = frame_skip
        self._mode = autoreset_mode
        self.action_meanings = meanings = backend.action_meanings
        self.obs_shape = backend.obs_shape
        self._noop = meanings.index("NOOP") if "NOOP" in meanings else 0
        self._state = new_episode_state(num_envs)

    @property
    def lives(self) -> Counts:
        """Lives left in every game."""
        return self._state.lives.copy()

    @property
    def is_over(self) -> Flags:
        """Whether the last step ended the episode of each game."""
        over: Flags = self._state.game_ended | self._state.life_ended
        return over

    def reset(
        self, seeds: NDArray[np.int64] | None, mask: Flags
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Begin new games where the mask is true; return observations and info."""
        step = self._backend.reset(seed=seeds, mask=mask)
        self._state.game_ended &= ~mask
        self._state.life_ended &= ~mask
        self._begin_games(step, mask)
        self._state.lives = step.lives.copy()
        return step.obs, _info(step)

    def step(
        self, actions: ArrayLike
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], Flags, Flags, dict[str, Any]]:
        """Play one action in every game; return what ``AtariVectorEnv.step`` does."""
        state = self._state
        if self._mode is AutoresetMode.DISABLED and state.game_ended.any():
            raise gymnasium.error.ResetNeeded(
                f"the games of environments {np.flatnonzero(state.game_ended).tolist()} have "
                "ended; reset them before the next step"
            )
        # `count_nonzero` is NumPy's fastest test for any true value, and a step makes several.
        next_step = self._mode is AutoresetMode.NEXT_STEP
        between_lives = next_step and np.count_nonzero(state.life_ended) > 0
        if between_lives:
            asked = checked_actions(actions, self._num_envs, len(self.action_meanings), self._game)
            actions = np.where(state.life_ended, self._noop, asked)

        step = self._backend.step(actions)

        rewards = step.rewards.astype(np.float32)
        if between_lives:
            rewards[state.life_ended] = 0
        terminated, truncated = step.terminated.copy(), step.truncated.copy()
        ended = step.ended.copy()
        info = _info(step)
        episode_ended = terminated | truncated
        if np.count_nonzero(episode_ended):
            self._report_ends(info, step, episode_ended)
        reset = ended if self._mode is AutoresetMode.SAME_STEP else state.game_ended
        if np.count_nonzero(reset):
            self._begin_games(step, reset)
        state.game_ended = ended
        state.life_ended = terminated > ended
        state.lives = step.lives.copy()
        return step.obs, rewards, terminated, truncated, info

    def require_screens(self) -> None:
        """Raise ValueError if screens cannot be drawn."""
        self._own_emulator("render")

    def screens(self) -> tuple[NDArray[np.uint8], ...]:
        """Return the screen of every game."""
        emulator = self._own_emulator("render")
        return tuple(emulator.screen(i) for i in range(self._num_envs))

    def save(self) -> tuple[list[bytes], EpisodeState[NDArray[Any]]]:
        """Return the consoles, and the state kept besides them."""
        return self._own_emulator("save its games").save(), self._state

    def restore(
        self, saved: Sequence[bytes], state: EpisodeState[NDArray[Any]]
    ) -> NDArray[np.uint8]:
        """Continue from what :meth:`save` returned; return the observations."""
        step = self._own_emulator("restore its games").restore(saved)
        self._state = state
        return step.obs

    def _own_emulator(self, deed: str) -> Emulator:
        if isinstance(self._backend, Emulator):
            return self._backend
        raise ValueError(f"emulator='ale' cannot {deed}; emulator='coordrl' can")

    def _begin_games(self, step: Step, mask: Flags) -> None:
        state = self._state
        started_at = step.frame_number - step.episode_frame_number
        state.started_at = np.where(mask, started_at, state.started_at)
        state.reset_frames = np.where(mask, step.episode_frame_number, state.reset_frames)

    def _report_ends(self, info: dict[str, Any], step: Step, episode_ended: Flags) -> None:
        state = self._state
        last_info, ended = _info(step), step.ended.copy()
        same_step = self._mode is AutoresetMode.SAME_STEP
        if same_step:
            # The counters are the new game's. It began one frame after the old game's last, so the
            # old counters are known; the old lives are not. But a game may end during the NOOPs
            # before its first observation, and another begin (Demon Attack in modes 3, 5 and 7):
            # those frames belong to neither game.
            del last_info["lives"]
            started_at = step.frame_number - step.episode_frame_number
            played = step.episode_length * self._frame_skip
            frames = np.minimum(started_at - state.started_at, state.reset_frames + played)
            frames = np.where(ended, frames, step.episode_frame_number)
            last_info["frame_number"][ended] = (state.started_at + frames)[ended]
            last_info["episode_frame_number"] = frames
        if ended.any():
            frames = last_info["episode_frame_number"] - state.reset_frames
            info["_game"] = ended
            info["game"] = {
                "episode_return": np.where(ended, step.episode_return, 0),
                "agent_steps": np.where(ended, step.episode_length, 0),
                "frames": np.where(ended, frames, 0),
            }
        if same_step:
            # A game that goes on after a lost life was not reset: the last observation of the old
            # episode is the first of the new one.
            info["final_obs"] = np.full(self._num_envs, None, object)
            for i in np.flatnonzero(episode_ended):
                info["final_obs"][i] = (step.final_obs if ended[i] else step.obs)[i].copy()
            info["final_info"] = last_info
            info["_final_obs"], info["_final_info"] = episode_ended, episode_ended.copy()


def _info(step: Step) -> dict[str, Any]:
    return {
        "lives": step.lives.copy(),
        "frame_number": step.frame_number.copy(),
        "episode_frame_number": step.episode_frame_number.copy(),
    }
