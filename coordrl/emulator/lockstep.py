"""Finds the first difference between our emulator and ale-py, which is correct by definition.

:func:`compare_frames` plays the same actions on a console of each and compares everything visible
after every frame. :func:`compare_steps` does so for environments, step by step.
:func:`compare_devices` compares the GPU's emulator with the CPU's in the same way.
"""

import dataclasses
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ale_py
import numpy as np
import torch
from numpy.typing import NDArray

from coordrl.config import AtariSettings
from coordrl.emulator import Autoreset, Console, Emulator, Step, nvrtc, rom_file
from coordrl.emulator.device import DeviceEmulator, DeviceStep, MakeKernels

Policy = Literal["random", "held", "fire", "direction"]
POLICIES: tuple[Policy, ...] = ("random", "held", "fire", "direction")

_DIRECTIONS = range(2, 10)
_FIRING = (1, *range(10, 18))


@dataclass(frozen=True)
class Difference:
    """The first difference between the two."""

    game: str
    where: str
    """The frame or step, counted from 0, or the reset, and the settings that reproduce it."""
    component: str
    """What differs: RAM, screen, reward, ... or an observation's environment and plane."""
    ours: str
    theirs: str
    registers: str = ""
    """Registers of the chips that also differ at that moment."""

    def __str__(self) -> str:
        text = f"{self.game}, {self.where}: {self.component} is {self.ours}, not {self.theirs}"
        return f"{text}; registers: {self.registers}" if self.registers else text


@dataclass
class Tally:
    """How much was compared."""

    frames: int = 0
    resets: int = 0
    rewards: int = 0
    """Frames or steps with a reward other than 0."""
    life_losses: int = 0
    games_over: int = 0


def actions(policy: Policy, rng: np.random.Generator, legal: Sequence[int]) -> Iterator[int]:
    """Yield actions from ``legal`` without end.

    Args:
        policy: ``"random"``: a new choice in every frame; ``"held"``: one action for up to 30
            frames; ``"fire"``: mostly FIRE, with or without a direction, for up to 8 frames;
            ``"direction"``: mostly one direction for up to 300 frames.
        rng: Source of the choices.
        legal: Numbers of the actions to choose from.
    """
    firing = [action for action in legal if action in _FIRING] or list(legal)
    directions = [action for action in legal if action in _DIRECTIONS] or list(legal)
    while True:
        chosen: Sequence[int] = legal
        longest = 1
        if policy == "held":
            longest = 30
        elif policy == "fire" and rng.random() < 0.75:
            chosen, longest = firing, 8
        elif policy == "direction" and rng.random() < 0.75:
            chosen, longest = directions, 300
        action = int(rng.choice(chosen))
        yield from [action] * int(rng.integers(1, longest + 1))


def compare_frames(
    game: str,
    *,
    frames: int,
    seed: int = 0,
    policy: Policy = "held",
    repeat_action_probability: float = 0.0,
    mode: int | None = None,
    difficulty: int | None = None,
    longest_game: int = 5000,
    tally: Tally | None = None,
) -> Difference | None:
    """Play ``frames`` frames on our console and on ale-py's; return the first difference.

    RAM, screen, reward, lives, game over and both frame counters are compared after loading, after
    every reset and after every frame. Actions are chosen from all legal ones.

    Args:
        game: Name of the game.
        frames: Frames to play, without those of resets.
        seed: Seed of the actions and of their repetition.
        policy: How actions are chosen; see :func:`actions`.
        repeat_action_probability: Probability that a frame repeats the previous action.
        mode: Game mode; the default one if None.
        difficulty: Difficulty switches; both at B if None.
        longest_game: Frames after which a reset ends a game early.
        tally: Counts, which are added to.
    """
    tally = Tally() if tally is None else tally
    ale = load_ale(game, seed, repeat_action_probability)
    ours = Console(
        game,
        seed=seed,
        repeat_action_probability=repeat_action_probability,
        mode=mode,
        difficulty=difficulty,
    )
    chosen = f"seed {seed}, {policy} actions, mode {mode}, difficulty {difficulty}"
    where = f"after loading ({chosen})"
    if (found := _compare(game, where, ours, ale)) is not None:
        return found
    if mode is not None:
        ale.setMode(mode)
    if difficulty is not None:
        ale.setDifficulty(difficulty)
    numbers = [int(getattr(action, "value", action)) for action in ale.getLegalActionSet()]
    stream = actions(policy, np.random.default_rng(seed), numbers)
    age = 0
    for frame in range(frames):
        if frame == 0 or age >= longest_game or ale.game_over():
            ale.reset_game()
            ours.reset_game()
            tally.resets += 1
            age = 0
            where = f"reset {tally.resets} before frame {frame} ({chosen})"
            if (found := _compare(game, where, ours, ale)) is not None:
                return found
        action = next(stream)
        lives = ale.lives()
        rewards = ours.act(action), int(ale.act(ale_py.Action(action)))
        age += 1
        tally.frames += 1
        tally.rewards += rewards[1] != 0
        tally.life_losses += ale.lives() < lives
        tally.games_over += ale.game_over()
        where = f"frame {frame} ({chosen})"
        if (found := _compare(game, where, ours, ale, *rewards)) is not None:
            return found
    return None


def load_ale(game: str, seed: int, repeat_action_probability: float) -> Any:
    """Return ale-py's console, an ``ALEInterface``, with a game in it."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.setInt("random_seed", seed)
    ale.setFloat("repeat_action_probability", repeat_action_probability)
    ale.loadROM(rom_file(game))
    return ale


def _compare(
    game: str, where: str, ours: Console, ale: Any, our_reward: int = 0, their_reward: int = 0
) -> Difference | None:
    for component, mine, theirs in (
        ("RAM", ours.ram, ale.getRAM()),
        ("screen", ours.screen, ale.getScreen()),
    ):
        if not np.array_equal(mine, theirs):
            places = np.argwhere(mine != theirs)
            place = tuple(int(i) for i in places[0])
            return Difference(
                game,
                where,
                f"{component} at {place}, the first of {len(places)} bytes,",
                f"{mine[place]:#04x}",
                f"{theirs[place]:#04x}",
                _differing_registers(ours, ale),
            )
    for component, one, other in (
        ("reward", our_reward, their_reward),
        ("lives", ours.lives, ale.lives()),
        ("game over", ours.game_over, ale.game_over()),
        ("frame_number", ours.frame_number, ale.getFrameNumber()),
        ("episode_frame_number", ours.episode_frame_number, ale.getEpisodeFrameNumber()),
    ):
        if one != other:
            return Difference(game, where, component, str(one), str(other))
    return None


# Positions of registers in ale-py's serialized state, in 32-bit words after the name of the chip.
_CHIPS: dict[bytes, dict[str, int]] = {
    b"M6502Low": {"A": 0, "X": 1, "Y": 2, "SP": 3, "PC": 5},
    b"M6532": {"timer": 129, "timer_shift": 130},
    b"TIA": {
        "VSYNC": 9, "VBLANK": 10, "NUSIZ0": 11, "NUSIZ1": 12, "COLUP0": 13, "COLUP1": 14,
        "COLUPF": 15, "COLUBK": 16, "CTRLPF": 17, "REFP0": 19, "REFP1": 20, "playfield": 21,
        "GRP0": 22, "GRP1": 23, "ENAM0": 26, "ENAM1": 27, "ENABL": 28, "HMP0": 30, "HMP1": 31,
        "HMM0": 32, "HMM1": 33, "HMBL": 34, "VDELP0": 35, "VDELP1": 36, "VDELBL": 37, "RESMP0": 38,
        "RESMP1": 39, "collisions": 40, "position P0": 41, "position P1": 42, "position M0": 43,
        "position M1": 44, "position BL": 45,
    },
}  # fmt: skip
# Ours are in the order of the read registers; theirs have bit 7 before bit 6, CXBLPF only one bit.
_COLLISION_BITS = {**{bit: bit ^ 1 for bit in range(12)}, 13: 12, 15: 13, 14: 14}
_BOOLEANS = {0xFAB1FAB2: 1, 0xBAD1BAD2: 0}


def oracle_registers(ale: Any) -> dict[str, int]:
    """Return the contents of ale-py's chips, by the names of :attr:`Console.registers`."""
    state: bytes = ale.cloneState().serialize()
    registers = {}
    for chip, words in _CHIPS.items():
        start = state.index(struct.pack("<I", len(chip)) + chip) + 4 + len(chip)
        for name, word in words.items():
            (value,) = struct.unpack_from("<I", state, start + 4 * word)
            registers[name] = _BOOLEANS.get(value, value)
    for name in ("COLUP0", "COLUP1", "COLUPF", "COLUBK"):  # four pixels of the color
        registers[name] &= 0xFF
    registers["collisions"] = sum(
        1 << ours
        for ours, theirs in _COLLISION_BITS.items()
        if registers["collisions"] >> theirs & 1
    )
    pf1 = registers["playfield"] >> 4 & 0xFF  # ours are in the order of the screen, PF1 is not
    registers["playfield"] &= ~0xFF0
    registers["playfield"] |= int(f"{pf1:08b}"[::-1], 2) << 4
    return registers


def _differing_registers(ours: Console, ale: Any) -> str:
    mine, theirs = ours.registers, oracle_registers(ale)
    return ", ".join(
        f"{name} {mine[name]:#x} not {theirs[name]:#x}"
        for name in theirs
        if name in mine and mine[name] != theirs[name]
    )


def compare_steps(
    game: str,
    settings: AtariSettings,
    *,
    steps: int,
    num_envs: int = 3,
    seed: int = 0,
    autoreset: Autoreset = "same_step",
    num_threads: int = 1,
    policy: Policy = "held",
    tally: Tally | None = None,
) -> Difference | None:
    """Step our environments and ale-py's ``AtariVectorEnv``; return the first difference.

    Observations, rewards, flags, lives, counters, sums over the episode and last observations are
    compared after every step, and after a partial reset in the middle. (If ale-py clips rewards,
    only the signs of unclipped rewards.)

    Args:
        game: Name of the game.
        settings: Settings of both; ale-py has no mode, difficulty or RAM observation, and never
            presses FIRE after a lost life.
        steps: Steps to play.
        num_envs: Number of environments on either side.
        seed: Seed of the environments and of the actions.
        autoreset: When the next episode begins.
        num_threads: Threads on our side.
        policy: How actions are chosen; see :func:`actions`, with steps for frames.
        tally: Counts, which are added to.
    """
    tally = Tally() if tally is None else tally
    settings = dataclasses.replace(settings, fire_after_life_loss=False)
    ours = Emulator(game, num_envs, settings, autoreset=autoreset, num_threads=num_threads)
    oracle = _StepOracle(game, num_envs, settings, autoreset, tally)
    chosen = f"seed {seed}, {policy} actions, {autoreset}, {settings}"
    everyone = np.arange(num_envs)
    expected = oracle.reset(everyone >= 0, everyone + seed)
    found = oracle.compare(f"reset ({chosen})", ours.reset(seed=seed), expected)
    rng = np.random.default_rng(seed)
    streams = [actions(policy, rng, range(len(ours.actions))) for _ in everyone]
    for number in range(steps):
        where = f"step {number} ({chosen})"
        if found is None and number == steps // 2:
            mask = everyone % 2 == 0
            expected = oracle.reset(mask, np.full(mask.sum(), -1))
            found = oracle.compare(f"partial reset before {where}", ours.reset(mask=mask), expected)
        if found is not None:
            return found
        choice = np.array([next(stream) for stream in streams])
        found = oracle.compare(where, ours.step(choice), oracle.step(choice))
    return found


class _StepOracle:
    """ale-py's ``AtariVectorEnv``, and what follows from its ends of episodes, lives and points.

    No expected value comes from our side: that an episode has begun is seen from its count of
    frames, which starts anew.
    """

    def __init__(
        self, game: str, num_envs: int, settings: AtariSettings, autoreset: Autoreset, tally: Tally
    ) -> None:
        self._game, self._num_envs, self._tally = game, num_envs, tally
        self._is_clipped = settings.clip_reward
        self._same_step = autoreset == "same_step"
        self._ale = _vector_interface(game, num_envs, settings, autoreset)
        self._full_strength = np.ones(num_envs, np.float32)
        self._lives, self._frame_number, self._began_at = np.zeros((3, num_envs), np.int64)
        self._points, self._steps = np.zeros((2, num_envs), np.int64)
        self._seems_ended = np.zeros(num_envs, np.bool_)  # by our step; the next one confirms it

    def reset(self, mask: NDArray[np.bool_], seeds: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Begin episodes where the mask is true, and return what our step should hold."""
        obs, info = self._ale.reset(np.flatnonzero(mask), seeds)
        self._take_note(info)
        self._points[mask] = self._steps[mask] = 0
        self._seems_ended &= ~mask
        nothing = np.zeros(self._num_envs, np.bool_)
        flags = dict.fromkeys(("terminated", "truncated", "ended", "life_lost"), nothing)
        counts = dict.fromkeys(("rewards", "unclipped_rewards"), nothing.astype(np.int64))
        return {"obs": obs, **_counters(info), **flags, **counts}

    def step(self, choice: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Play a step, and return what ours should hold, as far as it is known."""
        self._ale.send(choice, self._full_strength)
        obs, rewards, terminated, truncated, info = self._ale.recv()
        lives, frame_number = self._lives, self._frame_number
        has_begun = self._take_note(info)
        is_reset = has_begun & (not self._same_step)  # in this step nothing is played
        life_lost = (self._lives < lives) & (self._lives > 0)
        self._points[is_reset] = self._steps[is_reset] = 0
        self._points += rewards.astype(np.int64)
        self._steps += ~is_reset
        expected = {"obs": obs, **_counters(info), "rewards": rewards, "terminated": terminated}
        expected |= {"truncated": truncated, "episode_length": self._steps.copy()}
        if self._same_step:
            expected["ended"] = has_begun
        else:
            expected["seems_ended"] = has_begun
        # Where an episode has ended in a step, ale-py reports the lives of the next one.
        expected |= {"life_lost": np.where(has_begun, -1, life_lost)}
        if not self._is_clipped:
            expected |= {"unclipped_rewards": rewards, "episode_return": self._points.copy()}
        if has_begun.any() and self._same_step:
            expected["final_obs"] = info["final_obs"]
            self._points[has_begun] = self._steps[has_begun] = 0
        tally = self._tally
        tally.frames += int((self._frame_number - frame_number).sum())
        tally.rewards += int(np.count_nonzero(rewards))
        tally.life_losses += int((life_lost & ~has_begun).sum())
        tally.games_over += int(has_begun.sum())
        return expected

    def compare(
        self, where: str, step: Step, expected: Mapping[str, NDArray[Any]]
    ) -> Difference | None:
        """Return the first difference between our step and the expected one."""
        for name, theirs in expected.items():
            if name == "seems_ended":
                name, mine = "ended, in the step before,", self._seems_ended
            else:
                mine = getattr(step, name)
            if name == "life_lost":
                mine = np.where(theirs < 0, theirs, mine)
            if name == "final_obs":  # only the rows of episodes that ended are set
                theirs = np.where(_like(expected["ended"], mine), theirs, mine)
            if (found := _first_difference(self._game, where, name, mine, theirs)) is not None:
                return found
        if self._is_clipped and "rewards" in expected:
            mine, theirs = np.sign(step.unclipped_rewards), expected["rewards"]
            name = "the sign of unclipped_rewards"
            if (found := _first_difference(self._game, where, name, mine, theirs)) is not None:
                return found
        if "seems_ended" in expected:  # a reset of others leaves it as it was
            self._seems_ended = step.ended.copy()
        return None

    def _take_note(self, info: dict[str, Any]) -> NDArray[np.bool_]:
        """Remember the counters, and return where an episode has begun."""
        began_at = info["frame_number"].astype(np.int64) - info["episode_frame_number"]
        has_begun: NDArray[np.bool_] = began_at != self._began_at
        self._lives = info["lives"].astype(np.int64)
        self._frame_number = info["frame_number"].astype(np.int64)
        self._began_at = began_at
        return has_begun


def _like(flags: NDArray[np.bool_], pictures: NDArray[Any]) -> NDArray[np.bool_]:
    """Return environments' flags with as many axes as their pictures."""
    return flags.reshape(-1, *[1] * (pictures.ndim - 1))


def _counters(info: dict[str, Any]) -> dict[str, NDArray[Any]]:
    return {name: info[name] for name in ("lives", "frame_number", "episode_frame_number")}


def _vector_interface(
    game: str, num_envs: int, settings: AtariSettings, autoreset: Autoreset
) -> Any:
    height, width = settings.screen_size
    mode = {"same_step": "SameStep", "next_step": "NextStep"}[autoreset]
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return ale_py.ALEVectorInterface(
        rom_path=rom_file(game),
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
        life_loss_info=settings.life_loss == "terminate",
        reward_clipping=settings.clip_reward,
        max_episode_steps=settings.max_frames_per_episode,
        repeat_action_probability=settings.repeat_action_probability,
        full_action_space=settings.full_action_space,
        batch_size=0,
        num_threads=1,
        thread_affinity_offset=-1,
        autoreset_mode=mode,
    )


def compare_devices(
    game: str,
    settings: AtariSettings,
    *,
    steps: int,
    num_envs: int,
    seed: int = 0,
    autoreset: Autoreset = "same_step",
    device: str = "cuda",
    make_kernels: MakeKernels = nvrtc.kernels_for,
    compare_states_every: int = 10,
    num_threads: int = 0,
    tally: Tally | None = None,
) -> Difference | None:
    """Step environments on a GPU and on the CPU; return the first difference.

    Observations, rewards, flags, lives, counters, statistics and RAM are compared after every step,
    and whole states, down to the chips and the random numbers, after some. With
    ``autoreset="disabled"`` an episode that ended is stepped once more, then reset.

    Args:
        game: Name of the game.
        settings: Settings of both.
        steps: Steps to play, with held actions.
        num_envs: Number of environments on either side.
        seed: Seed of the environments and of the actions.
        autoreset: When the next episode begins.
        device: The GPU.
        make_kernels: Makes the kernels that are launched there.
        compare_states_every: Steps from one comparison of states to the next.
        num_threads: Threads of the environments on the CPU; 0 means one for each processor that
            the process may use.
        tally: Counts, which are added to.

    Raises:
        coordrl.emulator.nvrtc.CudaError: If there is no GPU, or it can't be used.
    """
    tally = Tally() if tally is None else tally
    theirs = DeviceEmulator(
        game, num_envs, settings, autoreset=autoreset, device=device, make_kernels=make_kernels
    )
    ours = Emulator(game, num_envs, settings, autoreset=autoreset, num_threads=num_threads)
    explained = f"seed {seed}, {autoreset}, {settings}"
    where = f"reset ({explained})"
    expected, step = ours.reset(seed=seed), theirs.reset(seed=seed)
    rng = np.random.default_rng(seed)
    choice = rng.integers(len(ours.actions), size=num_envs)
    left_over = np.zeros(num_envs, np.bool_)
    for number in range(steps + 1):
        found = _compare_rows(game, where, step, expected, autoreset)
        states_too = number % compare_states_every == 0 or number == steps
        if found is None:
            found = _first_difference(game, where, "RAM", theirs.ram.cpu().numpy(), ours.ram)
        if found is None and states_too:
            states = enumerate(zip(theirs.save(), ours.save(), strict=True))
            differing = [i for i, (one, other) in states if one != other]
            if differing:
                what = f"the state of environment {differing[0]}, the first of {len(differing)},"
                found = Difference(game, where, what, "another", "the CPU's")
        if found is not None or number == steps:
            return found
        held = rng.random(num_envs) < 0.8
        choice = np.where(held, choice, rng.integers(len(ours.actions), size=num_envs))
        where = f"step {number} ({explained})"
        if left_over.any():
            ours.reset(mask=left_over)
            theirs.reset(mask=left_over)
        left_over = expected.ended & ~left_over & (autoreset == "disabled")
        expected, step = ours.step(choice), theirs.step(torch.from_numpy(choice).to(theirs.device))
        tally.frames += num_envs * settings.frame_skip
        tally.rewards += int(np.count_nonzero(expected.rewards))
        tally.life_losses += int(expected.life_lost.sum())
        tally.games_over += int((expected.ended & ~left_over).sum())
    return None


def _compare_rows(
    game: str, where: str, step: DeviceStep, expected: Step, autoreset: Autoreset
) -> Difference | None:
    for field in dataclasses.fields(Step):
        mine = getattr(step, field.name).cpu().numpy()
        theirs = getattr(expected, field.name)
        if field.name == "final_obs":  # only the rows of episodes that ended are set
            rows = expected.ended & (autoreset == "same_step")
            mine, theirs = mine[rows], theirs[rows]
        if (found := _first_difference(game, where, field.name, mine, theirs)) is not None:
            return found
    return None


def _first_difference(
    game: str, where: str, name: str, mine: NDArray[Any], theirs: NDArray[Any]
) -> Difference | None:
    # ale-py's number types differ from ours; pictures are bytes on both sides.
    kinds = [(a.shape, a.dtype if name.endswith("obs") else None) for a in (mine, theirs)]
    if kinds[0] != kinds[1]:
        shown = [f"{array.shape} of {array.dtype}" for array in (mine, theirs)]
        return Difference(game, where, f"the shape and type of {name}", *shown)
    if np.array_equal(mine, theirs):
        return None
    places = np.argwhere(mine != theirs)
    place = tuple(int(i) for i in places[0])
    what = f"{name} at {place}, the first of {len(places)},"
    return Difference(game, where, what, str(mine[place]), str(theirs[place]))
