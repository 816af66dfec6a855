"""Atari games, many at a time, as one :class:`gymnasium.vector.VectorEnv`.

The rules of an episode (clipping, lost lives, FIRE, statistics) are written here once, over a
backend that plays the games: ale-py's native vector environment.
"""

import difflib
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol

import gymnasium
import numpy as np
from ale_py import ALEVectorInterface, roms
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from coordrl.config import AtariSettings

Actions = NDArray[np.integer[Any]]
Flags = NDArray[np.bool_]
Counts = NDArray[np.int32]

_NUM_SEEDS = 2**31  # ale-py's seeds are 32-bit and signed; a negative one means "no seed"
# ale-py ships them, but their cartridges have no game for one player.
_MULTIPLAYER_ONLY = frozenset({"combat", "joust", "maze_craze", "warlords"})


@cache
def games() -> tuple[str, ...]:
    """Return the canonical names of all games, those of ale-py's ROM files, sorted.

    Example:
        >>> len(games()), games()[0]
        (104, 'adventure')
    """
    return tuple(sorted(set(roms.get_all_rom_ids()) - _MULTIPLAYER_ONLY))


def canonical_game(name: str) -> str:
    """Return the name of a game's ROM file for a name as people write it.

    Case, spaces and underscores do not matter, nor what Gymnasium adds to the name.

    Raises:
        ValueError: If there is no such game; the message suggests the nearest names.

    Example:
        >>> canonical_game("MsPacman"), canonical_game("ALE/Pong-v5")
        ('ms_pacman', 'pong')
        >>> canonical_game("PongNoFrameskip-v4")
        'pong'
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a game must be a text, got {name!r}")
    bare = re.sub(r"^.*/|-v\d+$", "", name.strip())
    bare = re.sub(r"(-?ram)?-?(NoFrameskip|Deterministic)?$", "", bare)
    folded = re.sub(r"[^a-z0-9]", "", bare.lower())
    known = {game.replace("_", ""): game for game in games()}
    if folded in known:
        return known[folded]
    near = difflib.get_close_matches(folded, known, n=3, cutoff=0.5)
    hint = " or ".join(gymnasium_name(known[match]) for match in near)
    raise ValueError(
        f"there is no Atari game {name!r}; "
        + (f"did you mean {hint}?" if hint else "coordrl.envs.games() lists all games")
    )


def gymnasium_name(game: str) -> str:
    """Return a game's name as Gymnasium spells it, from its canonical name.

    Example:
        >>> gymnasium_name("ms_pacman")
        'MsPacman'
    """
    return game.title().replace("_", "")


class AtariVectorEnv(VectorEnv[NDArray[np.uint8], Actions, NDArray[Any]]):
    """``num_envs`` games of Atari that are stepped together.

    One step is ``settings.frame_skip`` frames of every game. A game ends at game over
    (``terminated``) or after ``settings.max_frames_per_episode`` frames (``truncated``); an
    *episode* ends there too and, with ``life_loss="terminate"``, at every lost life, where the
    game itself goes on.

    **What step returns is the caller's**: no array is written to again.

    **Info** of every step holds ``lives``, ``frame_number`` (frames since the environment was
    seeded) and ``episode_frame_number`` (frames of this game, those of its reset included), each
    an array of length ``num_envs``. Where a game ended, ``info["_game"]`` is true and
    ``info["game"]`` has its ``episode_return`` (sum of the unclipped rewards), ``agent_steps`` and
    ``frames``, both counted from the end of the reset.

    **Autoreset.** With ``SAME_STEP``, which Stable-Baselines3 expects, ``obs`` is already the first
    observation of the next episode, and ``info["final_obs"]`` has the last one of those that
    ended, as in :class:`gymnasium.vector.SyncVectorEnv`: an object array, with ``None`` elsewhere.
    With ``NEXT_STEP`` the following step ignores the action, resets, and returns reward 0.

    **A lost life** that ends the episode does not touch the game. With ``SAME_STEP`` the last
    observation of the life is the first of the next; with ``NEXT_STEP`` the step in between plays
    NOOP, as ``EpisodicLifeEnv`` of Stable-Baselines3 does. With ``fire_after_life_loss`` the step
    after a lost life presses FIRE whatever the action. The stack keeps the frames from before the
    loss, where SB3's ``VecFrameStack`` clears them.

    Args:
        game: Name of the game, in any spelling that :func:`canonical_game` reads.
        num_envs: Number of games, at least 1.
        settings: How they are played and seen.
        emulator: What plays them.
        num_threads: Threads that share the games; 0 takes one per core.
        autoreset_mode: When the next game begins.

    Raises:
        ValueError: If the game is unknown, a number is out of range, or the emulator lacks
            what ``settings`` ask for.

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
        game: str,
        num_envs: int,
        settings: AtariSettings | None = None,
        *,
        emulator: Literal["ale"] = "ale",
        num_threads: int = 0,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        self.game = canonical_game(game)
        self.settings = AtariSettings() if settings is None else settings
        if not isinstance(self.settings, AtariSettings):
            raise TypeError(f"settings must be AtariSettings, got {settings!r}")
        self.num_envs = _at_least(1, "num_envs", num_envs)
        if autoreset_mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise ValueError(
                f"autoreset_mode must be SAME_STEP or NEXT_STEP, got {autoreset_mode!r}"
            )
        if emulator != "ale":
            raise ValueError(f"emulator must be 'ale', got {emulator!r}")
        self._backend: _Backend = _AleBackend(
            self.game,
            num_envs,
            self.settings,
            autoreset_mode,
            _at_least(0, "num_threads", num_threads),
        )
        self.metadata = {"autoreset_mode": autoreset_mode}
        self.action_meanings = self._backend.action_meanings
        self.single_observation_space = Box(0, 255, self._backend.obs_shape, np.uint8)
        self.single_action_space = Discrete(len(self.action_meanings))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._episodes = _Episodes(num_envs, self.settings, self.action_meanings, autoreset_mode)
        self._was_reset = False

    @property
    def lives(self) -> Counts:
        """Lives left in every game; 0 in games without lives."""
        return self._episodes.lives.copy()

    def get_action_meanings(self) -> list[str]:
        """Return the name of each action, as ale-py's single environment does."""
        return list(self.action_meanings)

    def reset(
        self,
        *,
        seed: int | Sequence[int] | NDArray[np.integer[Any]] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Begin new games, in all environments or in some.

        Args:
            seed: An int seeds the i-th of the environments that are reset with ``seed + i``; a
                sequence holds one seed for each of them. Seeds are taken modulo 2^31. Without
                one, the random streams go on, and those never seeded are seeded at random.
            options: ``{"reset_mask": mask}`` resets only the environments where the boolean
                array ``mask`` of shape ``(num_envs,)`` is true.

        Returns:
            Observations and info of all environments, also of those that were not reset.

        Raises:
            ValueError: If a seed is negative, or their number is not that of the environments.
        """
        self._require_open()
        mask = self._reset_mask(options)
        indices = np.flatnonzero(mask)
        if seed is not None:
            seeds = _fold_seeds(seed, len(indices))
        elif not self._was_reset:
            seeds = self.np_random.integers(_NUM_SEEDS, size=len(indices), dtype=np.int32)
        else:
            seeds = None
        if isinstance(seed, int):
            super().reset(seed=seed)
        obs, info = self._backend.reset(indices, seeds)
        self._was_reset = True
        self._episodes.begin(mask, info)
        return obs, dict(info)

    def step(
        self, actions: ArrayLike
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], Flags, Flags, dict[str, Any]]:
        """Play one action in every game.

        Args:
            actions: Whole numbers of shape ``(num_envs,)`` in ``[0, single_action_space.n)``.

        Returns:
            Observations, rewards, ``terminated``, ``truncated`` and info, as the class says.

        Raises:
            ValueError: If there are not ``num_envs`` actions, or one is out of range.
            gymnasium.error.ResetNeeded: Before the first reset.
        """
        self._require_open()
        actions = self._episodes.act(self._checked(actions))
        step = self._backend.step(actions)
        rewards, terminated, info = self._episodes.observe(step)
        return step.obs, rewards, terminated, step.truncated, info

    def close_extras(self, **kwargs: Any) -> None:
        """Let go of the games."""
        del self._backend

    def _require_open(self) -> None:
        if self.closed:
            raise gymnasium.error.ClosedEnvironmentError("the games are closed; make new ones")

    def _reset_mask(self, options: dict[str, Any] | None) -> Flags:
        unknown = set(options or {}) - {"reset_mask"}
        if unknown:
            raise ValueError(f"reset has the option 'reset_mask' only, got {sorted(unknown)}")
        if not options:
            return np.ones(self.num_envs, np.bool_)
        mask = options["reset_mask"]
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"reset_mask must be a boolean array, got {mask!r}")
        if mask.shape != (self.num_envs,):
            raise ValueError(f"reset_mask must have shape ({self.num_envs},), got {mask.shape}")
        if not mask.any():
            raise ValueError("reset_mask must be true for at least one environment")
        if not self._was_reset:
            raise gymnasium.error.ResetNeeded("the first reset must be one of all environments")
        return mask

    def _checked(self, actions: ArrayLike) -> Actions:
        if not self._was_reset:
            raise gymnasium.error.ResetNeeded("call reset before the first step")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,):
            raise ValueError(f"actions must have shape ({self.num_envs},), got {actions.shape}")
        if actions.dtype.kind not in "iu":
            raise TypeError(f"actions must be whole numbers, got dtype {actions.dtype}")
        num_actions = len(self.action_meanings)
        if actions.min() < 0 or actions.max() >= num_actions:
            wrong = actions[(actions < 0) | (actions >= num_actions)][0]
            raise ValueError(f"actions of {self.game} are 0 to {num_actions - 1}, got {wrong}")
        return actions


class _Step(NamedTuple):
    """What a backend returns for one step; arrays over all environments, new at every step."""

    obs: NDArray[np.uint8]
    rewards: Counts
    terminated: Flags
    truncated: Flags
    info: dict[str, Counts]  # lives, frame_number, episode_frame_number; of the new game if any
    final_obs: NDArray[np.uint8] | None  # with SAME_STEP: only the rows of ended games are set
    final_info: dict[str, Counts] | None  # counters of ended games, and info's of the others


class _Backend(Protocol):
    """Plays the games: frames, pictures and resets, without any rule of an episode but its end."""

    action_meanings: tuple[str, ...]
    obs_shape: tuple[int, ...]

    def reset(
        self, indices: NDArray[np.intp], seeds: NDArray[np.int32] | None
    ) -> tuple[NDArray[np.uint8], dict[str, Counts]]: ...

    def step(self, actions: Actions) -> _Step: ...


class _Episodes:
    """The rules of an episode: statistics, clipping, and what follows from a lost life."""

    def __init__(
        self,
        num_envs: int,
        settings: AtariSettings,
        action_meanings: Sequence[str],
        autoreset_mode: AutoresetMode,
    ) -> None:
        self._clip_reward = settings.clip_reward
        self._terminate = settings.life_loss == "terminate"
        self._same_step = autoreset_mode is AutoresetMode.SAME_STEP
        # What is played in the step after a lost life; None leaves the action to the agent.
        self._after_life_loss: int | None = None
        if settings.fire_after_life_loss and "FIRE" in action_meanings:
            self._after_life_loss = action_meanings.index("FIRE")
        elif self._terminate and not self._same_step:
            self._after_life_loss = (
                action_meanings.index("NOOP") if "NOOP" in action_meanings else 0
            )
        self.lives = np.zeros(num_envs, np.int32)
        self._life_lost = np.zeros(num_envs, np.bool_)  # in the last step
        self._resetting = np.zeros(num_envs, np.bool_)  # in the next step, with NEXT_STEP
        self._first_frame = np.zeros(num_envs, np.int32)  # of the game, after its reset
        self._episode_return = np.zeros(num_envs, np.int64)
        self._agent_steps = np.zeros(num_envs, np.int64)

    def begin(self, mask: Flags, info: dict[str, Counts]) -> None:
        """Take note of games that were reset from outside."""
        self.lives = info["lives"].copy()
        self._life_lost &= ~mask
        self._resetting &= ~mask
        self._begin(mask, info)

    def act(self, actions: Actions) -> Actions:
        """Return the actions that are played if the agents choose ``actions``."""
        if self._after_life_loss is None or not self._life_lost.any():
            return actions
        return np.where(self._life_lost, self._after_life_loss, actions)

    def observe(self, step: _Step) -> tuple[NDArray[np.float32], Flags, dict[str, Any]]:
        """Return rewards, ``terminated`` and info of a step."""
        life_was_lost, was_reset = self._life_lost, self._resetting
        game_ended = step.terminated | step.truncated
        lives = step.info["lives"]
        self._life_lost = (lives < self.lives) & (lives > 0) & ~(game_ended | was_reset)
        self.lives = lives.copy()
        self._episode_return += step.rewards
        self._agent_steps += ~was_reset

        rewards = step.rewards.astype(np.float32)
        if self._clip_reward:
            np.sign(rewards, out=rewards)
        terminated = step.terminated
        if self._terminate:
            terminated = terminated | self._life_lost
            if not self._same_step:  # the step between two lives is the reset of an episode
                rewards[life_was_lost] = 0

        info: dict[str, Any] = dict(step.info)
        if game_ended.any():
            self._report_games(info, game_ended, step)
        if self._same_step:
            episode_ended = terminated | step.truncated
            if episode_ended.any():
                _report_last_step(info, episode_ended, game_ended, step)
            was_reset = game_ended
        else:
            self._resetting = game_ended
        if was_reset.any():
            self._begin(was_reset, step.info)
        return rewards, terminated, info

    def _begin(self, mask: Flags, info: dict[str, Counts]) -> None:
        self._first_frame[mask] = info["episode_frame_number"][mask]
        self._episode_return[mask] = 0
        self._agent_steps[mask] = 0

    def _report_games(self, info: dict[str, Any], ended: Flags, step: _Step) -> None:
        last = step.info if step.final_info is None else step.final_info
        frames = last["episode_frame_number"] - self._first_frame
        info["game"] = {
            "episode_return": np.where(ended, self._episode_return, 0),
            "agent_steps": np.where(ended, self._agent_steps, 0),
            "frames": np.where(ended, frames, 0),
        }
        info["_game"] = ended.copy()


def _report_last_step(
    info: dict[str, Any], episode_ended: Flags, game_ended: Flags, step: _Step
) -> None:
    final_obs = np.full(len(episode_ended), None, object)
    for i in np.flatnonzero(episode_ended):
        # A game that goes on after a lost life was not reset: its last observation is the first.
        final_obs[i] = (
            step.obs[i] if step.final_obs is None or not game_ended[i] else step.final_obs[i]
        )
    final_info = step.info if step.final_info is None else step.final_info
    info["final_obs"], info["_final_obs"] = final_obs, episode_ended
    info["final_info"] = {key: value.copy() for key, value in final_info.items()}
    info["_final_info"] = episode_ended.copy()


class _AleBackend:
    """ale-py's native vector environment."""

    def __init__(
        self,
        game: str,
        num_envs: int,
        settings: AtariSettings,
        autoreset_mode: AutoresetMode,
        num_threads: int,
    ) -> None:
        missing = [
            f"{name}={getattr(settings, name)}"
            for name in ("mode", "difficulty")
            if getattr(settings, name) is not None
        ]
        if settings.observation == "ram":
            missing.append("observation='ram'")
        if missing:
            raise ValueError(f"emulator='ale' has no {', '.join(missing)}")
        height, width = settings.screen_size
        rom_path = roms.get_rom_path(game)
        assert rom_path is not None, "canonical names are those of the ROM files"
        self._ale = ALEVectorInterface(
            rom_path=rom_path,
            num_envs=num_envs,
            frame_skip=settings.frame_skip,
            stack_num=settings.stack_size,
            img_height=height,
            img_width=width,
            grayscale=settings.observation == "gray",
            maxpool=settings.max_pool,
            noop_max=settings.noop_max,
            use_fire_reset=settings.fire_reset,
            episodic_life=settings.life_loss == "reset",
            life_loss_info=False,
            reward_clipping=False,
            max_episode_steps=settings.max_frames_per_episode,
            repeat_action_probability=settings.repeat_action_probability,
            full_action_space=settings.full_action_space,
            batch_size=0,
            num_threads=num_threads,
            thread_affinity_offset=-1,
            autoreset_mode=autoreset_mode.value,
        )
        self.action_meanings = tuple(action.name for action in self._ale.get_action_set())
        color = () if settings.observation == "gray" else (3,)
        self.obs_shape = (settings.stack_size, height, width, *color)
        self._same_step = autoreset_mode is AutoresetMode.SAME_STEP
        self._full_strength = np.ones(num_envs, np.float32)
        self._started_at = np.zeros(num_envs, np.int32)  # frame_number when the game began

    def reset(
        self, indices: NDArray[np.intp], seeds: NDArray[np.int32] | None
    ) -> tuple[NDArray[np.uint8], dict[str, Counts]]:
        if seeds is None:
            seeds = np.full(len(indices), -1, np.int32)
        obs, info = self._ale.reset(indices, seeds)
        del info["env_id"]
        self._started_at = info["frame_number"] - info["episode_frame_number"]
        return obs, info

    def step(self, actions: Actions) -> _Step:
        self._ale.send(actions.astype(np.int64, copy=False), self._full_strength)
        obs, rewards, terminated, truncated, info = self._ale.recv()
        del info["env_id"]
        final_obs = info.pop("final_obs", None)
        final_info = None
        if self._same_step and final_obs is not None:
            # ale-py reports the counters of the new game. Its first frame follows the last one of
            # the old game, whose counters are thus known; its lives are not.
            started_at = info["frame_number"] - info["episode_frame_number"]
            ended = terminated | truncated
            final_info = {
                "frame_number": np.where(ended, started_at, info["frame_number"]),
                "episode_frame_number": np.where(
                    ended, started_at - self._started_at, info["episode_frame_number"]
                ),
            }
            self._started_at = started_at
        return _Step(obs, rewards, terminated, truncated, info, final_obs, final_info)


def _fold_seeds(
    seed: int | Sequence[int] | NDArray[np.integer[Any]], count: int
) -> NDArray[np.int32]:
    if isinstance(seed, int | np.integer):
        seeds = [int(seed) + i for i in range(count)]
    elif isinstance(seed, Sequence | np.ndarray) and np.asarray(seed).dtype.kind in "iu":
        seeds = [int(s) for s in seed]
    else:
        raise TypeError(f"seed must be a whole number or a sequence of them, got {seed!r}")
    if len(seeds) != count:
        raise ValueError(f"reset of {count} environments needs {count} seeds, got {len(seeds)}")
    if min(seeds) < 0:
        raise ValueError(f"seeds must not be negative, got {min(seeds)}")
    return np.array([s % _NUM_SEEDS for s in seeds], np.int32)


def _at_least(least: int, name: str, value: int) -> int:
    if type(value) is not int:
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def _register() -> None:
    for game in games():
        gymnasium.register(
            id=f"coordrl/{gymnasium_name(game)}-v0",
            vector_entry_point="coordrl.envs:AtariVectorEnv",
            kwargs={"game": game},
        )


_register()
