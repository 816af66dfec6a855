"""Batches of environments, stepped together on the CPU."""

import functools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coordrl.config import AtariSettings
from coordrl.emulator import compiled, states
from coordrl.emulator.arguments import (
    checked_actions,
    checked_mask,
    in_range,
    process_cpu_count,
    reset_seeds,
)
from coordrl.emulator.games import ACTIONS, GAMES, load_rom, palette
from coordrl.emulator.settings import (
    AUTORESETS,
    MAX_COUNT,
    Autoreset,
    native_settings,
    observation_shape,
    state_key,
)

_MOST_OUTPUTS = 8  # sets of arrays for the results of steps
_PALETTES = {tv: np.array(palette(tv), np.uint8) for tv in ("NTSC", "PAL")}


@dataclass(frozen=True)
class Step:
    """Result of a step or a reset: arrays with one row for each of N environments.

    The arrays belong to the emulator. They are unchanged by the next call of ``step``, ``reset`` or
    ``restore`` and may be overwritten by the one after it, so that two consecutive steps can be
    compared without a copy; copy to keep them longer. Only ``obs``, which is large, is kept as long
    as there is any reference to it or to a part of it, besides that of the step itself: only the
    memory of unreferenced observations is reused. The next stack is made from the latest one, so do
    not write to it.
    """

    obs: NDArray[np.uint8]
    """Observations, ``(N, *obs_shape)``; where a new episode has begun, its first one."""
    rewards: NDArray[np.int32]
    """Points gained in this step, clipped to -1, 0 or 1 if the settings ask for it."""
    unclipped_rewards: NDArray[np.int32]
    terminated: NDArray[np.bool_]
    """Whether the game is over, or a life was lost and the settings count that as an end."""
    truncated: NDArray[np.bool_]
    """Whether the episode has reached ``max_frames_per_episode`` and is not terminated."""
    ended: NDArray[np.bool_]
    """Whether the episode is over and another begins: in this step, in the next, or by ``reset``.

    A lost life that terminates but does not reset the game does not count as an end here.
    """
    life_lost: NDArray[np.bool_]
    """Whether a life was lost in this step, and at least one is left."""
    final_obs: NDArray[np.uint8]
    """With ``autoreset="same_step"``, the last observation where ``ended`` is true.

    The other rows are not written to.
    """
    lives: NDArray[np.int32]
    """Lives left, 0 in games without lives; of the new episode where one has begun."""
    frame_number: NDArray[np.int32]
    """Frames since the game was loaded (seeded), without those of resets."""
    episode_frame_number: NDArray[np.int32]
    """Frames of the episode, some of its reset included, as ale-py counts them."""
    episode_return: NDArray[np.int32]
    """Sum of the episode's unclipped rewards so far; where ``ended`` is true, their total."""
    episode_length: NDArray[np.int32]
    """Steps of the episode so far; where ``ended`` is true, its total number of steps."""


_P = ParamSpec("_P")
_T = TypeVar("_T")


def _one_at_a_time(
    method: Callable[Concatenate["Emulator", _P], _T],
) -> Callable[Concatenate["Emulator", _P], _T]:
    """Make other threads wait until a method is done, because frames run without the GIL."""

    @functools.wraps(method)
    def locked(self: "Emulator", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        with self._lock:
            return method(self, *args, **kwargs)

    return locked


class Emulator:
    """``num_envs`` environments of one game that are stepped together, without the GIL.

    Python threads may share it: each call waits for the previous one. A forked child process may
    use it, unless the fork happened during a call.

    Everything is as in ale-py 0.12.1's ``AtariVectorEnv`` with the same settings: which frames are
    observed, when an episode ends, how many idle frames begin it, what a seed means. In addition,
    there are modes and difficulties, the RAM as an observation, a lost life that ends an episode
    while the game goes on, FIRE after a lost life, and states that can be saved and restored.

    Args:
        game: Name of the game, a key of ``GAMES``.
        num_envs: Number of environments, at least 1.
        settings: How the game is played and observed; ``AtariSettings()`` if None. The screen size
            must not exceed the console's picture, nor ``frame_skip`` 60.
        autoreset: Begin the next episode in the step that ends one (the observation is then the
            new episode's), in the step after it (whose action is ignored), or not at all: steps
            then do nothing to an episode that is over.
        num_threads: Threads that share the work; 0 means one for each processor that the process
            may use. Results do not depend on it.
        rom_path: ROM image to play, or a folder with it; by default the one in ale-py.

    Raises:
        UnknownGameError: If there is no such game.
        RomError: If the ROM image is missing or not the right one.
        ValueError: If a number is out of range, or the game has no such mode or difficulty.
        RuntimeError: If the emulator is not ``available()``.

    Example:
        >>> emulator = Emulator("pong", num_envs=2)
        >>> emulator.reset(seed=7).obs.shape
        (2, 4, 84, 84)
        >>> step = emulator.step([2, 3])
        >>> step.rewards, step.terminated
        (array([0, 0], dtype=int32), array([False, False]))
    """

    def __init__(
        self,
        game: str,
        num_envs: int,
        settings: AtariSettings | None = None,
        *,
        autoreset: Autoreset = "same_step",
        num_threads: int = 0,
        rom_path: str | os.PathLike[str] | None = None,
    ) -> None:
        self.game = GAMES[game]
        self.settings = AtariSettings() if settings is None else settings
        self.num_envs = in_range("num_envs", num_envs, 1, MAX_COUNT)
        self.autoreset = autoreset
        self.actions = self.game.actions(full=self.settings.full_action_space)
        self.obs_shape = observation_shape(self.game, self.settings)
        if autoreset not in AUTORESETS:
            raise ValueError(f"autoreset must be one of {', '.join(AUTORESETS)}, got {autoreset!r}")
        threads = in_range("num_threads", num_threads, 0, None)
        if threads == 0:
            threads = process_cpu_count()
        rom = load_rom(game, rom_path)
        self._native_settings = native_settings(self.game, self.settings, autoreset)
        self._batch = compiled.native().Batch(
            self._native_settings, rom, num_envs, min(threads, num_envs)
        )
        self._lock = threading.Lock()
        self._codes = np.array(self.actions, np.int32)
        self._steps: list[Step] = []
        self._outputs: list[Any] = []
        self._add_outputs()
        self._references = sys.getrefcount(self._steps[0].obs)  # if nobody else holds it
        self._latest = 0
        self._was_reset = False

    @property
    def action_meanings(self) -> tuple[str, ...]:
        """Names of the actions, such as ``"UPFIRE"``."""
        return tuple(ACTIONS[action] for action in self.actions)

    @_one_at_a_time
    def reset(
        self,
        *,
        seed: int | Sequence[int] | NDArray[np.integer[Any]] | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> Step:
        """Begin new episodes, in all environments or in some.

        Args:
            seed: An int seeds the i-th environment that is reset with ``seed + i``; a sequence has
                one seed for each of them. A seed reloads the game, so that everything after it is
                deterministic. If None, random numbers continue; environments that were never reset
                get a seed from the operating system.
            mask: Booleans of shape ``(num_envs,)``: which environments to reset. The others are
                left alone and report their last observation. The first reset must include all.

        Returns:
            The step of all environments; rewards are 0 and all flags are false.

        Raises:
            ValueError: If a seed is out of range, their number is wrong, or the mask has another
                shape or type, or leaves out environments in the first reset.
        """
        chosen = checked_mask(mask, self.num_envs, was_reset=self._was_reset)
        seeds = reset_seeds(seed, chosen, was_reset=self._was_reset)
        latest = self._unused_outputs()
        self._batch.reset(seeds, chosen, self._outputs[latest], self._outputs[self._latest])
        self._latest = latest
        self._was_reset = True
        return self._steps[latest]

    @_one_at_a_time
    def step(self, actions: ArrayLike) -> Step:
        """Play one action in every environment.

        Args:
            actions: Whole numbers of shape ``(num_envs,)``, indices of ``self.actions``.

        Raises:
            ValueError: If an action is out of range, or before the first reset.
            TypeError: If the actions are not whole numbers.
        """
        if not self._was_reset:
            raise ValueError("call reset before the first step")
        chosen = checked_actions(actions, self.num_envs, len(self._codes), self.game.name)
        latest = self._unused_outputs()
        self._batch.step(self._codes[chosen], self._outputs[latest], self._outputs[self._latest])
        self._latest = latest
        return self._steps[latest]

    @_one_at_a_time
    def save(self) -> list[bytes]:
        """Return every environment as bytes: the console, its game, its random numbers, the stack.

        An environment that is restored from them continues exactly as the saved one would have, on
        any processor.

        Raises:
            ValueError: Before the first reset.

        Example:
            >>> emulator = Emulator("pong", num_envs=2)
            >>> before = emulator.reset(seed=1).obs
            >>> states = emulator.save()
            >>> _ = emulator.step([2, 3])
            >>> bool((emulator.restore(states).obs == before).all())
            True
        """
        if not self._was_reset:
            raise ValueError("call reset before saving")
        obs = self._steps[self._latest].obs
        key = self._state_key()
        return [
            states.pack(key, self._batch.save(i), obs[i].tobytes()) for i in range(self.num_envs)
        ]

    @_one_at_a_time
    def restore(self, saved: Sequence[bytes], *, mask: NDArray[np.bool_] | None = None) -> Step:
        """Restore environments from what :meth:`save` returned.

        Args:
            saved: One state for each environment, or for each that ``mask`` chooses; from any
                emulator that plays the same game in the same mode with the same observations.
            mask: Booleans of shape ``(num_envs,)``: which environments to restore. The others are
                left alone.

        Returns:
            The step of all environments; rewards are 0 and all flags are false.

        Raises:
            ValueError: If a state is damaged, of another release, game or kind of observation, or
                if the number of states is wrong. The environments are then unchanged.
        """
        chosen = checked_mask(mask, self.num_envs, was_reset=self._was_reset)
        indices = np.flatnonzero(chosen)
        if len(saved) != len(indices):
            raise ValueError(
                f"restore of {len(indices)} environments needs as many states, got {len(saved)}"
            )
        obs_bytes = self._steps[0].obs[0].nbytes
        largest = self._batch.environment_bytes + 4 * self._batch.picture_bytes + obs_bytes
        unpacked = [states.unpack(self._state_key(), state, largest=largest) for state in saved]
        for content in unpacked:
            if not self._batch.fits(content[:-obs_bytes]):
                raise ValueError(
                    "the saved environment is damaged: no console can be in that state"
                )
        latest = self._unused_outputs()
        outputs, step = self._outputs[latest], self._steps[latest]
        nothing = np.zeros(self.num_envs, np.bool_)
        unseeded = np.full(self.num_envs, -1, np.int64)
        self._batch.reset(unseeded, nothing, outputs, self._outputs[self._latest])
        for i, content in zip(indices, unpacked, strict=True):
            self._batch.restore(int(i), content[:-obs_bytes], outputs)
            step.obs[i] = np.frombuffer(content[-obs_bytes:], np.uint8).reshape(self.obs_shape)
        self._latest = latest
        self._was_reset = True
        return step

    def _state_key(self) -> dict[str, object]:
        environment_bytes = self._batch.environment_bytes
        return state_key(
            self.game, self.settings, self._native_settings, self.obs_shape, environment_bytes
        )

    @property
    @_one_at_a_time
    def ram(self) -> NDArray[np.uint8]:
        """A copy of the 128 bytes of RAM of every console, ``(num_envs, 128)``."""
        ram = np.empty((self.num_envs, 128), np.uint8)
        self._batch.read_ram(ram)
        return ram

    @_one_at_a_time
    def screen(self, index: int) -> NDArray[np.uint8]:
        """Return the last frame of an environment as it was on screen, ``(height, 160, 3)``.

        It is drawn on demand, and is that frame alone, not the maximum of two.
        """
        if not self._was_reset:
            raise ValueError("call reset before looking at the screen")
        indices = np.empty((self.game.height, 160), np.uint8)
        self._batch.read_screen(in_range("index", index, 0, self.num_envs - 1), indices)
        return _PALETTES[self.game.television][indices]

    def _unused_outputs(self) -> int:
        for i, step in enumerate(self._steps):
            if i != self._latest and sys.getrefcount(step.obs) <= self._references:
                return i
        if len(self._steps) == _MOST_OUTPUTS:  # all are held; drop one, which its holders keep
            oldest = 1 if self._latest == 0 else 0
            del self._steps[oldest], self._outputs[oldest]
            self._latest -= oldest < self._latest
        self._add_outputs()
        return len(self._steps) - 1

    def _add_outputs(self) -> None:
        step = _allocate(self.num_envs, self.obs_shape)
        self._steps.append(step)
        self._outputs.append(compiled.native().Outputs(**_fields(step)))


def _allocate(num_envs: int, obs_shape: tuple[int, ...]) -> Step:
    def counts() -> NDArray[np.int32]:
        return np.zeros(num_envs, np.int32)

    def flags() -> NDArray[np.bool_]:
        return np.zeros(num_envs, np.bool_)

    return Step(
        obs=np.zeros((num_envs, *obs_shape), np.uint8),
        rewards=counts(),
        unclipped_rewards=counts(),
        terminated=flags(),
        truncated=flags(),
        ended=flags(),
        life_lost=flags(),
        final_obs=np.zeros((num_envs, *obs_shape), np.uint8),
        lives=counts(),
        frame_number=counts(),
        episode_frame_number=counts(),
        episode_return=counts(),
        episode_length=counts(),
    )


def _fields(step: Step) -> dict[str, NDArray[Any]]:
    return {field.name: getattr(step, field.name) for field in fields(step)}
