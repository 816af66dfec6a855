"""Atari games, many at a time, as one :class:`gymnasium.vector.VectorEnv`."""

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from coordrl.config import AtariSettings
from coordrl.emulator import Autoreset, available, unavailable_reason
from coordrl.emulator.arguments import NUM_SEEDS, in_range
from coordrl.emulator.device import DeviceEmulator
from coordrl.emulator.nvrtc import indexed
from coordrl.envs.backends import BACKENDS, Flags
from coordrl.envs.device_games import DeviceGames
from coordrl.envs.episode_state import EpisodeState, restored_episode_state
from coordrl.envs.host_games import HostGames
from coordrl.envs.names import canonical_game
from coordrl.envs.states import pack_state, unpack_state

Seeds = int | Sequence[int | None] | NDArray[np.integer[Any]]
_UNSEEDED = -1

_AUTORESETS: dict[AutoresetMode, Autoreset] = {
    AutoresetMode.SAME_STEP: "same_step",
    AutoresetMode.NEXT_STEP: "next_step",
    AutoresetMode.DISABLED: "disabled",
}


class Games(Protocol):
    """The games of an environment with its bookkeeping, on the CPU or on a GPU.

    Arrays are NumPy arrays on the CPU and tensors on a GPU.
    """

    action_meanings: tuple[str, ...]
    obs_shape: tuple[int, ...]

    @property
    def lives(self) -> Any:
        """Lives left in every game."""

    @property
    def is_over(self) -> Any:
        """Whether the last step ended the episode of each game."""

    def reset(self, seeds: NDArray[np.int64] | None, mask: Flags) -> tuple[Any, dict[str, Any]]:
        """Begin new games where the mask is true; return observations and info."""

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Play one action in every game; return what ``AtariVectorEnv.step`` does."""

    def require_screens(self) -> None:
        """Raise ValueError where screens cannot be drawn."""

    def screens(self) -> tuple[NDArray[np.uint8], ...]:
        """Return the screen of every game."""

    def save(self) -> tuple[list[bytes], EpisodeState[NDArray[Any]]]:
        """Return the consoles, and the state kept besides them."""

    def restore(self, saved: Sequence[bytes], state: EpisodeState[NDArray[Any]]) -> Any:
        """Continue from what :meth:`save` returned; return the observations."""


class AtariVectorEnv(VectorEnv[Any, Any, Any]):
    """``num_envs`` games of Atari that are stepped together.

    One step is ``settings.frame_skip`` frames of every game. A game ends at game over
    (``terminated``) or after ``settings.max_frames_per_episode`` frames (``truncated``); an
    *episode* ends there too and, with ``life_loss="terminate"``, at every lost life, where the
    game itself goes on.

    **Returned arrays may be kept.** No array is overwritten while there is a reference to it or to
    a part of it. But treat observations as read-only: their memory is the emulator's, which makes
    the next stack from the last one, so writing to one corrupts the following steps.

    **Info** of every step holds ``lives``, ``frame_number`` (frames since the environment was
    seeded) and ``episode_frame_number`` (frames of this game, including its reset), each an array
    of length ``num_envs``. Where a game ended, ``info["_game"]`` is true and ``info["game"]`` has
    its ``episode_return`` (sum of the unclipped rewards), ``agent_steps`` and ``frames``, both
    counted from the end of the reset. (With ``SAME_STEP``, ``frames`` is rounded up to whole steps
    if the next game ended, and one more began, before its first observation.)

    **Autoreset.** With ``SAME_STEP``, which Stable-Baselines3 expects, ``obs`` is already the first
    observation of the next episode, and ``info["final_obs"]`` has the last one of each episode that
    ended, as in :class:`gymnasium.vector.SyncVectorEnv`: an object array, with ``None`` elsewhere.
    With ``NEXT_STEP`` the following step ignores the action, resets, and returns reward 0. With
    ``DISABLED`` a game that ended must be reset by hand.

    **A lost life** that ends the episode leaves the game running. With ``SAME_STEP`` the last
    observation of one life is the first of the next; with ``NEXT_STEP`` the step in between plays
    NOOP, as ``EpisodicLifeEnv`` of Stable-Baselines3 does. With ``fire_after_life_loss`` the step
    after a lost life presses FIRE whatever the action. The stack keeps the frames from before the
    loss, where SB3's ``VecFrameStack`` clears them.

    **On a GPU** (``device="cuda"``) ``step`` takes and returns torch tensors on that device, info
    included, and neither copies to the host nor waits. The bytes equal the CPU's. Differences:

    - Returned tensors belong to the environment and are overwritten by the next step; clone to
      keep them.
    - ``info`` always has ``_game`` and ``game``, zeros where no game ended, and with ``SAME_STEP``
      ``final_obs`` and ``final_info`` for all rows, valid only where an episode was terminated or
      truncated.
    - Actions are int64 and not checked: an action that does not exist is clamped to the nearest.
    - Several games can share a batch, in equal parts one after the other.
    - ``DISABLED`` does not require a reset: a game that ended stays terminated or truncated, with
      reward 0, until it is reset; ``_game`` is true only in its last step.

    Args:
        game: Name of the game, in any spelling that :func:`canonical_game` reads; on a GPU also a
            list of names.
        num_envs: Number of games, at least 1.
        settings: How they are played and seen: AtariSettings, or a mapping of their fields.
        emulator: ``"coordrl"``, our own, or ``"ale"``, ale-py. By default our own, or ale-py with
            a warning if the package was installed without a compiler.
        num_threads: Threads that share the games; 0 takes one per core.
        device: ``"cpu"``, or a CUDA device.
        autoreset_mode: When the next game begins; Stable-Baselines3 needs ``SAME_STEP``, and
            Gymnasium's wrappers that change observations ``NEXT_STEP``.
        render_mode: ``"rgb_array"`` allows :meth:`render`.
        rom_path: ROM image to play, or a folder with it; by default the one in ale-py. Images
            other than those whose rules are known are refused.

    Raises:
        ValueError: If the game is unknown, a number is out of range, or the emulator lacks
            what ``settings`` ask for.
        coordrl.emulator.nvrtc.CudaError: If the device is a GPU and can't be used.

    Example:
        >>> envs = AtariVectorEnv("Pong", num_envs=2)
        >>> obs, info = envs.reset(seed=0)
        >>> obs.shape
        (2, 4, 84, 84)
        >>> obs, rewards, terminated, truncated, info = envs.step(np.array([2, 3]))
        >>> rewards
        array([0., 0.], dtype=float32)
        >>> envs.close()
    """

    single_observation_space: Box
    single_action_space: Discrete

    def __init__(
        self,
        game: str | list[str] | tuple[str, ...],
        num_envs: int,
        settings: AtariSettings | Mapping[str, Any] | None = None,
        *,
        emulator: Literal["coordrl", "ale"] | None = None,
        num_threads: int = 0,
        device: torch.device | str = "cpu",
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: Literal["rgb_array"] | None = None,
        rom_path: str | os.PathLike[str] | None = None,
    ) -> None:
        names = game if isinstance(game, list | tuple) else (game,)
        self.games = tuple(canonical_game(name) for name in names)
        self.game = "+".join(self.games)
        self.num_envs = num_envs = in_range("num_envs", num_envs, 1, None)
        self.settings = _as_settings(settings)
        try:
            autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            modes = ", ".join(mode.value for mode in AutoresetMode)
            raise ValueError(
                f"autoreset_mode must be an AutoresetMode or one of {modes}, got {autoreset_mode!r}"
            ) from None
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}")
        if emulator is None and not available():
            warnings.warn(unavailable_reason(), RuntimeWarning, stacklevel=2)
        self.emulator = emulator or ("coordrl" if available() else "ale")
        if self.emulator not in BACKENDS:
            raise ValueError(f"emulator must be 'coordrl' or 'ale', got {emulator!r}")
        self.device = _cpu_or_gpu(device)
        self._games: Games = (
            self._on_cpu(autoreset_mode, num_threads, rom_path)
            if self.device.type == "cpu"
            else self._on_gpu(autoreset_mode, rom_path)
        )
        self.metadata = {
            "autoreset_mode": autoreset_mode,
            "render_modes": ["rgb_array"],
            "render_fps": max(1, round(60 / self.settings.frame_skip)),  # one picture to a step
        }
        self.render_mode = render_mode
        if render_mode is not None:
            self._games.require_screens()
        self.action_meanings = self._games.action_meanings
        self.single_observation_space = Box(0, 255, self._games.obs_shape, np.uint8)
        self.single_action_space = Discrete(len(self.action_meanings))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._autoreset_mode = autoreset_mode
        self._was_reset = False

    def _on_cpu(
        self, mode: AutoresetMode, num_threads: int, rom_path: str | os.PathLike[str] | None
    ) -> HostGames:
        if len(self.games) != 1:
            raise ValueError(
                "device='cpu' plays one game, several in one batch need device='cuda', got "
                f"{list(self.games)}"
            )
        backend = BACKENDS[self.emulator](
            self.game,
            self.num_envs,
            self.settings,
            autoreset=_AUTORESETS[mode],
            num_threads=in_range("num_threads", num_threads, 0, None),
            rom_path=rom_path,
        )
        skip = self.settings.frame_skip
        return HostGames(backend, self.game, self.num_envs, frame_skip=skip, autoreset_mode=mode)

    def _on_gpu(self, mode: AutoresetMode, rom_path: str | os.PathLike[str] | None) -> DeviceGames:
        if self.emulator == "ale":
            raise ValueError("emulator='ale' plays on the CPU; emulator='coordrl' on a GPU, too")
        emulator = DeviceEmulator(
            self.games,
            self.num_envs,
            self.settings,
            autoreset=_AUTORESETS[mode],
            device=self.device,
            rom_path=rom_path,
        )
        return DeviceGames(emulator, mode)

    def __reduce__(self) -> NoReturn:
        """Raise a TypeError: games are neither copied nor pickled."""
        raise TypeError(
            "games are not copied or pickled: make another AtariVectorEnv with the same arguments, "
            "and pass what save() returns to its restore()"
        )

    @property
    def lives(self) -> Any:
        """Lives left in every game; 0 in games without lives."""
        self._require_open()
        return self._games.lives

    @property
    def is_over(self) -> Any:
        """Whether the last step ended the episode of each game, ``(num_envs,)``."""
        self._require_open()
        return self._games.is_over

    def get_action_meanings(self) -> list[str]:
        """Return the name of each action, as ale-py's single environment does."""
        return list(self.action_meanings)

    def reset(
        self, *, seed: Seeds | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin new games, in all environments or in some.

        Args:
            seed: With an int, the i-th environment that is reset gets ``seed + i``, as in ale-py
                (Gymnasium's own also count environments that are not reset). A sequence holds one
                seed for each environment that is reset or, as in Gymnasium, for each environment.
                Seeds are taken modulo 2^31. If None, or where the sequence has None, the random
                streams continue, and environments that were never seeded are seeded at random.
            options: ``{"reset_mask": mask}`` resets only the environments where the boolean
                array ``mask`` of shape ``(num_envs,)`` is true.

        Returns:
            Observations and info of all environments, also of those that were not reset.

        Raises:
            ValueError: If a seed is negative or there are too few or too many, or ``options`` are
                not as described.
        """
        self._require_open()
        mask = self._reset_mask(options)
        seeds = _fold_seeds(seed, mask)
        if not self._was_reset and _UNSEEDED in seeds:
            drawn = self.np_random.integers(NUM_SEEDS, size=self.num_envs)
            seeds = np.where(seeds == _UNSEEDED, drawn, seeds)
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
        self._was_reset = True
        goes_on = mask.copy()
        goes_on[mask] = seeds == _UNSEEDED
        if goes_on.any():
            obs, info = self._games.reset(None, goes_on)
        if (mask & ~goes_on).any():  # these observations are of all environments, too
            obs, info = self._games.reset(seeds[seeds != _UNSEEDED], mask & ~goes_on)
        return obs, info

    def step(self, actions: ArrayLike | Tensor) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Play one action in every game.

        Args:
            actions: Whole numbers of shape ``(num_envs,)`` in ``[0, single_action_space.n)``.

        Returns:
            Observations, rewards, ``terminated``, ``truncated`` and info, as the class says.

        Raises:
            ValueError: If there are not ``num_envs`` actions, or one is out of range.
            gymnasium.error.ResetNeeded: Before the first reset, and with ``DISABLED`` after the
                end of a game.
        """
        self._require_open()
        if not self._was_reset:
            raise gymnasium.error.ResetNeeded("call reset before the first step")
        return self._games.step(actions)

    def render(self) -> tuple[NDArray[np.uint8], ...]:
        """Return the screen of every game, of shape ``(height, 160, 3)``, as it is now.

        Screens of games on a GPU are drawn on the CPU, one after the other: render few games.

        Raises:
            ValueError: If the environment was made without ``render_mode="rgb_array"``.
        """
        self._require_open()
        if self.render_mode is None:
            raise ValueError("to render, make the environment with render_mode='rgb_array'")
        return self._games.screens()

    def save(self) -> bytes:
        """Return the games as bytes, to continue exactly from here with :meth:`restore`.

        They hold everything: consoles, random numbers, stacks of observations, statistics.

        Raises:
            ValueError: If ale-py plays the games, which cannot save them.
            gymnasium.error.ResetNeeded: Before the first reset.

        Example:
            >>> envs = AtariVectorEnv("Pong", num_envs=2, emulator="coordrl")
            >>> _ = envs.reset(seed=0)
            >>> state = envs.save()
            >>> gone_on = envs.step([2, 3])[0]
            >>> _ = envs.restore(state)
            >>> bool((envs.step([2, 3])[0] == gone_on).all())
            True
        """
        self._require_open()
        if not self._was_reset:
            raise gymnasium.error.ResetNeeded("call reset before save")
        saved, episodes = self._games.save()
        consoles = {f"console_{i}": state for i, state in enumerate(saved)}
        return pack_state(self._state_key(), episodes.saved(), consoles)

    def restore(self, state: bytes) -> Any:
        """Continue from where :meth:`save` was called, in this environment or one made like it.

        A state saved on a GPU can be restored on the CPU, and the other way round.

        Args:
            state: What ``save`` returned.

        Returns:
            The latest observations at that time.

        Raises:
            ValueError: If the state is damaged, or was saved with another game, number of games,
                settings or autoreset mode. The environment is then unchanged.
        """
        self._require_open()
        arrays, consoles = unpack_state(self._state_key(), state)
        try:
            saved = [consoles[f"console_{i}"] for i in range(self.num_envs)]
        except KeyError as error:
            raise ValueError(f"the saved games are damaged: {error} is missing") from error
        obs = self._games.restore(saved, restored_episode_state(arrays, self.num_envs))
        self._was_reset = True
        return obs

    def _state_key(self) -> dict[str, Any]:
        return {
            "game": self.game,
            "num_envs": self.num_envs,
            "autoreset_mode": self._autoreset_mode.value,
            **dataclasses.asdict(self.settings),
        }

    def close_extras(self, **kwargs: Any) -> None:
        """Release the games."""
        del self._games

    def _require_open(self) -> None:
        if self.closed:
            raise gymnasium.error.ClosedEnvironmentError("the games are closed; make new ones")

    def _reset_mask(self, options: dict[str, Any] | None) -> Flags:
        unknown = set(options or {}) - {"reset_mask"}
        if unknown:
            named = sorted(map(str, unknown))
            raise ValueError(f"reset has the option 'reset_mask' only, got {named}")
        if not options:
            return np.ones(self.num_envs, np.bool_)
        mask = options["reset_mask"]
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"reset_mask must be a boolean array, got {mask!r}")
        if mask.shape != (self.num_envs,):
            raise ValueError(f"reset_mask must have shape ({self.num_envs},), got {mask.shape}")
        if not mask.any():
            raise ValueError("reset_mask must be true for at least one environment")
        if not self._was_reset and not mask.all():
            raise gymnasium.error.ResetNeeded("the first reset must be one of all environments")
        return mask.copy()  # contiguous and writable, as torch needs it


def _as_settings(settings: AtariSettings | Mapping[str, Any] | None) -> AtariSettings:
    if settings is None:
        return AtariSettings()
    if isinstance(settings, Mapping):  # as in gymnasium's specs loaded from JSON
        known = {field.name for field in dataclasses.fields(AtariSettings)}
        if unknown := sorted(set(settings) - known):
            raise TypeError(f"settings has no {unknown[0]!r}; there are {', '.join(sorted(known))}")
        return AtariSettings(**settings)
    if not isinstance(settings, AtariSettings):
        raise TypeError(f"settings must be AtariSettings, got {settings!r}")
    return settings


def info_of(info: dict[str, Any], i: int) -> dict[str, Any]:
    """Return the i-th environment's part of a vector environment's info.

    A value that is neither an array nor a sequence belongs to all environments.
    """
    row = {}
    for key, value in info.items():
        has_value = info.get(f"_{key}")
        if not key.startswith("_") and (has_value is None or has_value[i]):
            if isinstance(value, dict):
                row[key] = info_of(value, i)
            else:
                has_rows = isinstance(value, np.ndarray | Tensor | list | tuple)
                row[key] = value[i] if has_rows else value
    return row


def _cpu_or_gpu(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError:  # torch raises it for unknown device strings
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {str(device)!r}")
    return indexed(found)


def _fold_seeds(seed: Seeds | None, mask: Flags) -> NDArray[np.int64]:
    """Return the seeds of the environments where the mask is true, _UNSEEDED in place of None."""
    count = int(mask.sum())
    seeds: list[int | None]
    if seed is None:
        seeds = [None] * count
    elif isinstance(seed, int | np.integer):
        seeds = [int(seed) + i for i in range(count)]
    elif (isinstance(seed, Sequence) or (isinstance(seed, np.ndarray) and seed.ndim == 1)) and all(
        s is None or isinstance(s, int | np.integer) for s in seed
    ):
        seeds = list(seed)
    else:
        raise TypeError(f"seed must be a whole number or a sequence of them, got {seed!r}")
    if len(seeds) == len(mask):
        seeds = [seeds[i] for i in np.flatnonzero(mask)]
    if len(seeds) != count:
        raise ValueError(f"reset of {count} environments needs {count} seeds, got {len(seeds)}")
    least = min((s for s in seeds if s is not None), default=0)
    if least < 0:
        raise ValueError(f"seeds must not be negative, got {least}")
    return np.array([_UNSEEDED if s is None else int(s) % NUM_SEEDS for s in seeds], np.int64)
