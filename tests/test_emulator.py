"""The emulator beside ale-py, and what it adds: copies, states, threads, clear errors.

Longer comparisons of the same kind are made by ``scripts/verify_emulator.py``.
"""

import dataclasses
import json
import operator
import os
import shutil
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import ale_py
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coordrl import emulator
from coordrl.config import AtariSettings
from coordrl.emulator import (
    ACTIONS,
    GAMES,
    Console,
    Emulator,
    RomError,
    UnknownGameError,
    compiled,
    load_rom,
    nvrtc,
    rom_file,
    states,
)
from coordrl.emulator.generate_games import generate
from coordrl.emulator.lockstep import (
    POLICIES,
    actions,
    compare_frames,
    compare_steps,
    load_ale,
    oracle_registers,
)
from coordrl.emulator.source_checksum import OF_GPUS, source_checksum

FACTS: dict[str, Any] = json.loads(
    resources.files("coordrl.emulator").joinpath("games.json").read_text(encoding="utf-8")
)
native: Any = compiled.native()

# One of each: NTSC, PAL, tall picture, cartridge RAM, sliced ROM, paddle, frames without end.
KINDS = ("space_invaders", "pacman", "pooyan", "elevator_action", "tutankham", "breakout",
         "tic_tac_toe_3d")  # fmt: skip


# Frame by frame. ----------------------------------------------------------------------------------


@pytest.mark.parametrize("game", GAMES)
def test_a_game_is_ale_pys_frame_by_frame(game: str) -> None:
    policy = POLICIES[list(GAMES).index(game) % len(POLICIES)]

    found = compare_frames(game, frames=150, policy=policy, seed=1, longest_game=110)

    assert found is None, str(found)


@pytest.mark.parametrize("game", ["pong", "space_invaders", "skiing", "double_dunk", "adventure"])
def test_actions_are_repeated_by_the_same_random_numbers(game: str) -> None:
    found = compare_frames(game, frames=250, repeat_action_probability=0.25, seed=7)

    assert found is None, str(found)


@pytest.mark.parametrize(
    ("game", "mode", "difficulty"),
    [
        ("pong", 1, 3),
        ("breakout", 36, 1),
        ("space_invaders", 9, 1),
        ("double_dunk", 13, 0),
        ("video_cube", 301, 1),
        ("adventure", 2, 2),  # whose reset draws random numbers
        ("demon_attack", 3, 0),  # whose games are over before they begin
        ("backgammon", 0, 3),
    ],
)
def test_a_mode_and_difficulty_is_ale_pys(game: str, mode: int, difficulty: int) -> None:
    found = compare_frames(game, frames=150, mode=mode, difficulty=difficulty, longest_game=100)

    assert found is None, str(found)


@pytest.mark.parametrize("game", KINDS)
def test_registers_are_where_the_oracle_has_them(game: str) -> None:
    ale, console = load_ale(game, 0, 0.0), Console(game)
    ale.reset_game()
    console.reset_game()
    for _ in range(30):
        ale.act(ale_py.Action(11))
        console.act(11)

    registers = console.registers

    for name, value in oracle_registers(ale).items():
        assert registers[name] == value, name


def test_policies_choose_legal_actions_of_their_kind() -> None:
    rng = np.random.default_rng(0)
    for policy in POLICIES:
        stream = actions(policy, rng, [0, 1, 3, 11])
        assert {next(stream) for _ in range(30_000)} == {0, 1, 3, 11}, policy
    fire = actions("fire", rng, range(18))
    firing = sum(next(fire) in (1, *range(10, 18)) for _ in range(3000))
    assert firing > 1500


# Step by step. ------------------------------------------------------------------------------------

GRID: list[dict[str, Any]] = [
    {},
    {"life_loss": "reset"},
    {"life_loss": "terminate"},
    {"clip_reward": False},
    {"noop_max": 0},
    {"noop_max": 1, "fire_reset": False},
    {"fire_reset": False},
    {"frame_skip": 1},
    {"frame_skip": 1, "life_loss": "reset"},
    {"frame_skip": 2, "life_loss": "reset"},
    {"frame_skip": 3, "life_loss": "reset"},
    {"frame_skip": 5, "life_loss": "reset"},
    {"max_pool": False, "life_loss": "reset"},
    {"observation": "rgb", "life_loss": "reset"},
    {"observation": "rgb", "screen_size": (210, 160), "stack_size": 1},
    {"screen_size": (210, 160), "life_loss": "reset"},
    {"screen_size": (105, 80)},
    {"screen_size": (70, 53), "stack_size": 2},
    {"repeat_action_probability": 0.25, "full_action_space": True},
    {"max_frames_per_episode": 60},
    {"max_frames_per_episode": 61},
    {"max_frames_per_episode": 50, "frame_skip": 3, "life_loss": "terminate"},
]


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
@pytest.mark.parametrize("changes", GRID, ids=str)
def test_breakout_is_ale_pys_step_by_step(
    changes: dict[str, Any], autoreset: emulator.Autoreset
) -> None:
    chosen = AtariSettings(**{"life_loss": "ignore", **changes})

    found = compare_steps("breakout", chosen, steps=60, seed=3, autoreset=autoreset)

    assert found is None, str(found)


# An episode that ends with the last frame of a step, and one that ends before.
@pytest.mark.parametrize(("life_loss", "frames"), [("ignore", 152), ("reset", 151)])
@pytest.mark.parametrize("game", [*KINDS, "journey_escape", "montezuma_revenge", "yars_revenge"])
def test_games_of_every_kind_are_ale_pys_step_by_step(
    game: str, life_loss: Any, frames: int
) -> None:
    chosen = AtariSettings(life_loss=life_loss, max_frames_per_episode=frames)

    found = compare_steps(game, chosen, steps=80, seed=11, num_envs=2)

    assert found is None, str(found)


# Resets. ------------------------------------------------------------------------------------------

BARE = AtariSettings(noop_max=0, fire_reset=False, fire_after_life_loss=False, life_loss="ignore")


# Some of these keep a part of their RAM, and some begin while a frame goes on.
@pytest.mark.parametrize(
    "game",
    [*KINDS, "assault", "solaris", "hangman", "yars_revenge", "crossbow", "seaquest", "venture",
     "ice_hockey", "qbert", "tetris"],
)  # fmt: skip
def test_a_game_that_is_copied_is_the_game_that_would_have_begun(game: str) -> None:
    batch, console = Emulator(game, 2, BARE, num_threads=1), Console(game)
    random = np.random.default_rng(0)

    for k in range(9):
        step = batch.reset(seed=5) if k == 0 else batch.reset()
        console.reset_game()

        assert (batch.ram == console.ram).all(), k
        assert step.lives.tolist() == [console.lives] * 2
        assert step.episode_frame_number.tolist() == [console.episode_frame_number] * 2
        for action in random.integers(0, len(batch.actions), 5 * k):  # the past must not matter
            batch.step([action, action])
            for _ in range(4):
                console.act(batch.actions[action])
            assert (batch.ram == console.ram).all(), k


def test_a_seed_decides_everything_and_its_lack_nothing_that_went_before() -> None:
    def observed(seed: int, steps: int) -> list[NDArray[np.uint8]]:
        batch = Emulator("pong", 2, num_threads=1)
        seen = [batch.reset(seed=seed).obs]
        seen += [batch.step([step % 6, 2]).obs for step in range(steps)]
        return seen

    first, again, other = observed(3, 20), observed(3, 20), observed(4, 20)

    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))
    assert (first[0][1] == other[0][0]).all()  # environment i has seed + i


def test_a_partial_reset_leaves_the_others_alone() -> None:
    batch = Emulator("breakout", 3, num_threads=1)
    batch.reset(seed=0)
    before = batch.step([1, 1, 1]).obs.copy()
    ram = batch.ram

    after = batch.reset(mask=np.array([False, True, False]), seed=[9])

    assert (after.obs[[0, 2]] == before[[0, 2]]).all()
    assert (batch.ram[[0, 2]] == ram[[0, 2]]).all()
    assert (after.obs[1] != before[1]).any()
    assert after.episode_length.tolist() == [1, 0, 1]


# What ale-py lacks. -------------------------------------------------------------------------------


def test_ram_is_observed_as_it_is() -> None:
    batch = Emulator("ms_pacman", 2, AtariSettings(observation="ram", stack_size=3))
    first = batch.reset(seed=2)
    assert first.obs.shape == (2, 3, 128)
    assert not first.obs[:, :2].any()
    assert (first.obs[:, 2] == batch.ram).all()

    rams = [batch.ram]
    for _ in range(3):
        step = batch.step([2, 3])
        rams.append(batch.ram)

    assert (step.obs == np.stack(rams[-3:], axis=1)).all()


def test_ram_and_pictures_show_the_same_game() -> None:
    pictures = Emulator("seaquest", 2)
    ram = Emulator("seaquest", 2, AtariSettings(observation="ram"))
    pictures.reset(seed=2)
    ram.reset(seed=2)
    for number in range(60):
        a, b = pictures.step([number % 18, 1]), ram.step([number % 18, 1])
        assert (a.unclipped_rewards == b.unclipped_rewards).all()
    assert (pictures.ram == ram.ram).all()


def test_a_mode_is_there_from_the_first_episode() -> None:
    chosen = AtariSettings(mode=1, difficulty=3, noop_max=0, fire_reset=False)
    batch, console = Emulator("pong", 1, chosen), Console("pong", mode=1, difficulty=3)
    batch.reset(seed=0)
    console.reset_game()
    for _ in range(30):
        batch.step([2])
        for _ in range(4):
            console.act(3)
        assert (batch.ram[0] == console.ram).all()


def test_the_screen_is_ale_pys_in_color() -> None:
    for game in ("pong", "air_raid", "tic_tac_toe_3d"):
        ale, batch = load_ale(game, 0, 0.0), Emulator(game, 1, BARE)
        ale.reset_game()
        batch.reset(seed=0)
        for _ in range(12):
            batch.step([1])
            for _ in range(4):
                ale.act(ale_py.Action(batch.actions[1]))
            assert (batch.screen(0) == ale.getScreenRGB()).all(), game


# The frames of most of these are not whole, or were not at the beginning.
@pytest.mark.parametrize("game", ["pong", "tic_tac_toe_3d", "video_checkers", "qbert", "klax"])
@pytest.mark.parametrize("life_loss", ["terminate", "reset"])
def test_the_screen_is_the_same_for_an_agent_that_sees_ram(game: str, life_loss: Any) -> None:
    chosen = AtariSettings(life_loss=life_loss, max_frames_per_episode=90, noop_max=4)
    pictures = Emulator(game, 2, chosen, autoreset="next_step")
    ram = Emulator(game, 2, dataclasses.replace(chosen, observation="ram"), autoreset="next_step")
    pictures.reset(seed=5)
    ram.reset(seed=5)
    rng = np.random.default_rng(0)
    for number in range(60):
        if number == 40:
            ram.restore(ram.save())
        actions = rng.integers(len(ram.actions), size=2)
        pictures.step(actions)
        ram.step(actions)
        for i in range(2):
            assert (ram.screen(i) == pictures.screen(i)).all(), number


def test_fire_is_pressed_after_a_lost_life_whatever_the_agent_wants() -> None:
    def play(fire: bool, press: bool) -> list[NDArray[np.uint8]]:
        chosen = AtariSettings(fire_after_life_loss=fire, noop_max=0)
        batch = Emulator("breakout", 1, chosen, num_threads=1)
        batch.reset(seed=0)
        rams, lost = [], False
        for _ in range(150):
            step = batch.step([1 if press and lost else 0])
            lost = bool(step.life_lost[0])
            rams.append(batch.ram)
        return rams

    pressed, agent_pressed, idle = play(True, False), play(False, True), play(False, False)

    assert (np.stack(pressed) == np.stack(agent_pressed)).all()
    assert (np.stack(pressed) != np.stack(idle)).any()


def test_a_lost_life_terminates_without_an_end() -> None:
    batch = Emulator("breakout", 1, AtariSettings(life_loss="terminate"), num_threads=1)
    batch.reset(seed=0)
    lives, lost = [5], 0
    for _ in range(200):
        step = batch.step([1])
        assert step.terminated[0] == (step.life_lost[0] or step.ended[0])
        lives.append(int(step.lives[0]))
        lost += int(step.life_lost[0])
        if step.ended[0]:
            break
    assert lost == sum(b < a and b > 0 for a, b in pairwise(lives[: -1 if step.ended[0] else None]))
    assert lost >= 2


def test_statistics_are_of_the_episode_that_ended() -> None:
    chosen = AtariSettings(max_frames_per_episode=40, life_loss="ignore")
    batch = Emulator("boxing", 1, chosen, num_threads=1)
    batch.reset(seed=0)
    returned, length = 0, 0
    for number in range(30):
        step = batch.step([number % 18])
        returned += int(step.unclipped_rewards[0])
        length += 1
        assert step.episode_return[0] == returned
        assert step.episode_length[0] == length
        assert step.ended[0] == (length == 10)
        if step.ended[0]:
            assert step.truncated[0]
            returned, length = 0, 0


STANDING = (
    *("obs", "ended", "lives", "frame_number", "episode_frame_number"),
    *("episode_return", "episode_length"),
)


def test_without_autoreset_an_ended_game_stands_still() -> None:
    chosen = AtariSettings(max_frames_per_episode=10, life_loss="ignore")
    batch = Emulator("boxing", 1, chosen, autoreset="disabled", num_threads=1)
    batch.reset(seed=0)
    for _ in range(3):
        last = batch.step([2])
    assert last.ended[0]
    left = {name: np.copy(getattr(last, name)) for name in STANDING}
    for _ in range(2):
        again = batch.step([3])

        for name, value in left.items():
            assert np.array_equal(getattr(again, name), value), name
        assert (again.rewards[0], again.terminated[0], again.truncated[0]) == (0, False, True)
    assert batch.reset(mask=np.array([True])).episode_length[0] == 0


# Threads, memory, states. -------------------------------------------------------------------------


@pytest.mark.parametrize("game", ["breakout", "journey_escape"])
def test_the_number_of_threads_changes_nothing(game: str) -> None:
    chosen = AtariSettings(life_loss="reset", repeat_action_probability=0.25)
    one = Emulator(game, 7, chosen, num_threads=1)
    many = Emulator(game, 7, chosen, num_threads=5)
    assert (one.reset(seed=4).obs == many.reset(seed=4).obs).all()
    rng = np.random.default_rng(0)
    for _ in range(60):
        choice = rng.integers(len(one.actions), size=7)
        a, b = one.step(choice), many.step(choice)
        for name in ("obs", "rewards", "terminated", "lives", "episode_frame_number"):
            assert (getattr(a, name) == getattr(b, name)).all(), name


def test_a_forked_process_goes_on_with_threads_of_its_own() -> None:
    batch = Emulator("pong", 4, num_threads=2)
    batch.reset(seed=0)
    batch.step([0, 0, 0, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # "this process is multi-threaded"
        child = os.fork()
    if child == 0:
        os._exit(int(batch.step([1, 1, 1, 1]).episode_length.tolist() != [2] * 4))
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert batch.step([1, 1, 1, 1]).episode_length.tolist() == [2] * 4


def test_a_step_outlives_the_next_one() -> None:
    batch = Emulator("pong", 1, AtariSettings(life_loss="ignore"))
    batch.reset(seed=0)
    for number in range(5):
        step = batch.step([number])
        obs, frames = step.obs.copy(), step.frame_number.copy()
        batch.step([number])
        assert (step.obs == obs).all()
        assert (step.frame_number == frames).all()


def test_an_environment_is_small() -> None:
    batch = Emulator("pong", 1)
    assert batch._batch.environment_bytes < 10_000
    for game in ("pong", "breakout", "journey_escape"):
        batch = Emulator(game, 4)
        batch.reset(seed=0)
        for _ in range(10):
            batch.step([1] * 4)
        assert batch._batch.albums_in_use == 0, game


@pytest.mark.parametrize("game", [*KINDS, "pitfall2", "klax"])
@pytest.mark.parametrize("life_loss", ["terminate", "reset"])
def test_a_restored_environment_goes_on_as_the_saved_one(game: str, life_loss: Any) -> None:
    chosen = AtariSettings(repeat_action_probability=0.25, life_loss=life_loss, noop_max=5)
    saved, restored = (Emulator(game, 2, chosen, num_threads=1) for _ in range(2))
    saved.reset(seed=1)
    rng = np.random.default_rng(0)
    for number in range(24):
        if number % 6 == 5:
            obs = restored.restore(saved.save()).obs
            assert (obs == saved._steps[saved._latest].obs).all()
        choice = rng.integers(len(saved.actions), size=2)
        a = saved.step(choice)
        if number >= 5:
            b = restored.step(choice)
            assert (a.obs == b.obs).all()
            assert (a.unclipped_rewards == b.unclipped_rewards).all()
            assert (a.episode_return == b.episode_return).all()
            assert (saved.ram == restored.ram).all()


def test_some_environments_are_restored_and_the_others_left_alone() -> None:
    batch = Emulator("pong", 3, num_threads=1)
    batch.reset(seed=0)
    states = batch.save()
    ram = batch.ram
    moved = [batch.step([2, 3, 2]) for _ in range(5)][-1].obs.copy()

    step = batch.restore(states[1:2], mask=np.array([False, True, False]))

    assert (batch.ram[1] == ram[1]).all()
    assert (step.obs[[0, 2]] == moved[[0, 2]]).all()
    assert step.episode_length.tolist() == [5, 0, 5]


def test_a_state_that_is_not_one_is_refused_and_changes_nothing() -> None:
    batch = Emulator("pong", 1)
    batch.reset(seed=0)
    (state,) = batch.save()
    batch.step([2])
    ram = batch.ram
    flipped = state[:-9] + bytes([state[-9] ^ 1]) + state[-8:]
    other_version = state[:8] + b"\x63" + state[9:]
    for wrong, match in (
        (b"", "cut off"),
        (state[:-5], "damaged"),
        (flipped, "damaged"),
        (other_version, "version 99"),
        (b"PK\3\4" + state[4:], "not a saved environment"),
    ):
        with pytest.raises(ValueError, match=match):
            batch.restore([wrong])
    with pytest.raises(ValueError, match="as many states, got 2"):
        batch.restore([state, state])
    assert (batch.ram == ram).all()


@pytest.mark.parametrize(
    ("saved", "match"),
    [
        (("breakout", {}), "game='breakout', this emulator has 'pong'"),
        (("pong", {"mode": 1}), "mode=1"),
        (("pong", {"screen_size": (42, 42)}), "obs_shape"),
        (("pong", {"observation": "ram"}), "obs_shape"),
    ],
    ids=["game", "mode", "size", "kind"],
)
def test_a_state_of_something_else_is_refused(saved: tuple[str, Any], match: str) -> None:
    game, changes = saved
    other = Emulator(game, 1, AtariSettings(**changes))
    other.reset(seed=0)
    with pytest.raises(ValueError, match=match):
        Emulator("pong", 1).restore(other.save())


def test_no_state_whatever_its_bytes_leads_astray() -> None:
    """Bytes with the right checksum and any content are refused or run."""
    batch = Emulator("pitfall2", 1, num_threads=1)
    batch.reset(seed=0)
    good = batch._batch.save(0)
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(400):
        state = np.frombuffer(good, np.uint8).copy()
        places = rng.integers(min(len(state), 2000), size=rng.integers(1, 4))
        state[places] = rng.integers(256, size=len(places))
        if batch._batch.fits(state.tobytes()):
            batch._batch.restore(0, state.tobytes(), batch._outputs[batch._latest])
            batch.step([rng.integers(18)])
            accepted += 1
    assert 50 < accepted < 400


# The rules of the games. --------------------------------------------------------------------------


# What the words of the rules mean, by the definition that games.json came with.
READS: dict[str, Callable[[Any], int]] = {
    "ram": int,
    "xram": int,
    "bcd": lambda byte: 10 * (int(byte) >> 4) + (int(byte) & 15),
    "lo": lambda byte: int(byte) & 15,
    "hi": lambda byte: int(byte) >> 4,
    "lo0": lambda byte: (int(byte) & 15) % 10 if int(byte) & 15 == 10 else int(byte) & 15,
    "hi0": lambda byte: (int(byte) >> 4) % 10 if int(byte) >> 4 == 10 else int(byte) >> 4,
}
OPERATORS: dict[str, Callable[..., Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv,
    "%": operator.mod, "&": operator.and_, "|": operator.or_, "^": operator.xor,
    "<<": operator.lshift, ">>": operator.rshift, "==": operator.eq, "!=": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "&&": lambda a, b: bool(a) and bool(b), "||": lambda a, b: bool(a) or bool(b),
    "neg": operator.neg, "!": operator.not_, "min": min, "max": max,
    "s8": lambda a: (a + 128) % 256 - 128,
}  # fmt: skip


def evaluate(tree: Any, names: dict[str, int], image: NDArray[np.uint8]) -> int:
    """The value of a syntax tree of games.json."""
    if not isinstance(tree, list):
        return names[tree] if isinstance(tree, str) else tree
    head, *parts = tree
    if head == "sum":
        index, first, last, term = parts
        begin, end = evaluate(first, names, image), evaluate(last, names, image)
        return sum(evaluate(term, {**names, index: i}, image) for i in range(begin, end + 1))
    if head == "?":
        return evaluate(parts[1 if evaluate(parts[0], names, image) else 2], names, image)
    values = [evaluate(part, names, image) for part in parts]
    if head in READS:
        return READS[head](image[(values[0] & 127) + (128 if head == "xram" else 0)])
    return int(OPERATORS[head](*values))


def expected_scores(game: str, mode: int, images: NDArray[np.uint8]) -> list[list[int]]:
    facts = FACTS["games"][game]
    kept = {"reward": 0, "terminal": 0, **facts["state"]}
    scores = []
    for image in images:
        names = {"mode": mode, **{f"prev.{name}": value for name, value in kept.items()}}
        for definition in facts["step"]:
            names[definition["set"]] = evaluate(definition["tree"], names, image)
        kept = {name: names[name] for name in kept}
        scores.append([names["reward"], int(bool(names["terminal"])), names["lives"]])
    return scores


@pytest.mark.parametrize("game", GAMES)
def test_the_compiled_rules_are_the_rules_as_trees(game: str) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(40, 256), dtype=np.uint8)
    images[10:] &= rng.integers(256, size=(30, 256), dtype=np.uint8)  # more zeros
    constants = json.dumps(FACTS["games"][game]["step"])
    common = [n for n in range(256) if f" {n}]" in constants] or [0]
    images[20:] = np.where(rng.random((20, 256)) < 0.3, rng.choice(common, (20, 256)), images[20:])
    scores = np.empty((len(images), 3), np.int32)
    mode = GAMES[game].default_mode

    native.score_images(list(GAMES).index(game), mode, images, scores)

    assert scores.tolist() == expected_scores(game, mode, images)


def test_the_generator_refuses_what_it_does_not_know() -> None:
    facts = json.loads(json.dumps(FACTS))
    facts["games"]["pong"]["select"] = [["shake", 3]]
    with pytest.raises(ValueError, match="unknown operation 'shake'"):
        generate(facts)
    facts["games"]["pong"]["select"] = []
    facts["games"]["pong"]["rom"]["bank"] = "F4"
    with pytest.raises(ValueError, match=r"unknown bank type 'F4'; cartridge\.hpp has"):
        generate(facts)
    facts["games"]["pong"]["state"] = {f"number{i}": 0 for i in range(7)}
    with pytest.raises(ValueError, match="keeps 6 values"):
        generate(facts)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_what_make_sanitize_runs_fits_the_headers(tmp_path: Path) -> None:
    (tmp_path / "games.hpp").write_text(generate(FACTS))
    headers, program = Path(emulator.__file__).parent, Path(__file__).with_name("fuzz_emulator.cpp")
    command = ["g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]

    subprocess.run([*command, f"-I{tmp_path}", f"-I{headers}", str(program)], check=True)


def test_the_generated_header_includes_only_a_header_of_ours() -> None:
    text = generate(FACTS)
    assert [line for line in text.splitlines() if line.startswith("#include")] == [
        '#include "rules.hpp"'
    ]
    assert "enum class Game : i32 {" in text
    assert text.count("struct ") >= len(GAMES)


# Pictures. ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    height=st.sampled_from([210, 214, 220, 230, 250]),
    target=st.tuples(st.integers(1, 210), st.integers(1, 160) | st.just(84)),
    count=st.integers(1, 3),
    coarse=st.integers(1, 8),
    gray=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_pictures_are_reduced_as_opencv_does(
    height: int, target: tuple[int, int], count: int, coarse: int, gray: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pictures = rng.integers(256, size=(count, height, 160), dtype=np.uint8)
    pictures = np.repeat(pictures[:, ::coarse], coarse, axis=1)[:, :height].copy()
    intensity = rng.integers(256, size=256, dtype=np.uint8)
    plane = np.empty(target, np.uint8)

    native.reduce_pictures(pictures, intensity[:0] if gray else intensity, plane)

    pooled = (pictures if gray else intensity[pictures]).max(axis=0)
    expected = cv2.resize(pooled, target[::-1], interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(plane, expected)


# Games, ROMs, and what goes wrong. ----------------------------------------------------------------


def test_all_games_of_ale_py_for_one_player_are_there() -> None:
    assert len(GAMES) == 104
    assert sum(game.atari57 for game in GAMES.values()) == 57
    assert list(GAMES) == sorted(GAMES)


@pytest.mark.parametrize("game", ["skiing", "pong", "space_invaders", "klax"])
def test_actions_modes_and_lives_are_ale_pys(game: str) -> None:
    ale, facts = load_ale(game, 0, 0.0), GAMES[game]
    ale.reset_game()

    assert [action.value for action in ale.getMinimalActionSet()] == list(facts.minimal_actions)
    assert [action.value for action in ale.getLegalActionSet()] == list(facts.legal_actions)
    assert list(ale.getAvailableModes()) == list(facts.modes)
    assert list(ale.getAvailableDifficulties()) == list(facts.difficulties)
    assert ale.lives() == facts.lives
    assert ale.getScreenDims() == (facts.height, 160)


def test_names_of_actions_are_those_of_the_game() -> None:
    assert Emulator("pong", 1).action_meanings == (
        "NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")  # fmt: skip
    assert Emulator("pong", 1, AtariSettings(full_action_space=True)).action_meanings == ACTIONS


def test_an_unknown_game_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownGameError, match=r"no game 'ms_pacmn' .* did you mean 'ms_pacman'"):
        Emulator("ms_pacmn", 1)
    with pytest.raises(UnknownGameError, match=r"no game 'xyzzy' among the 104 of ale-py$"):
        GAMES["xyzzy"]


def test_a_rom_is_read_from_a_file_or_a_folder(tmp_path: Path) -> None:
    image = load_rom("pong")
    (tmp_path / "pong.bin").write_bytes(image)
    (tmp_path / "mine.a26").write_bytes(image)

    assert load_rom("pong", tmp_path) == image
    assert load_rom("pong", tmp_path / "mine.a26") == image
    Emulator("pong", 1, rom_path=tmp_path)


def test_roms_are_looked_for_where_ale_py_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pong.bin").write_bytes(load_rom("pong"))
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))

    assert rom_file("pong") == tmp_path / "pong.bin"
    with pytest.raises(RomError, match=r"cannot read the ROM image of breakout .*No such file"):
        Emulator("breakout", 1)


def test_a_rom_that_is_not_the_games_is_refused(tmp_path: Path) -> None:
    image = load_rom("pong")
    file = tmp_path / "pong.bin"
    with pytest.raises(RomError, match=r"cannot read the ROM image of pong .*No such file"):
        load_rom("pong", file)
    file.write_bytes(image[:-1])
    with pytest.raises(RomError, match="has 2047 bytes, but the ROM image of pong has 2048"):
        load_rom("pong", file)
    file.write_bytes(bytes(2048))
    with pytest.raises(RomError, match=r"not the ROM image of pong .* MD5 sum is c99a74c5"):
        load_rom("pong", file)


@pytest.mark.parametrize(
    ("actions", "error", "match"),
    [
        ([0, 6], ValueError, "actions of pong are 0 to 5, got 6"),
        ([-1, 0], ValueError, "actions of pong are 0 to 5, got -1"),
        ([0, -(2**32)], ValueError, "actions of pong are 0 to 5, got -4294967296"),
        ([0], ValueError, r"shape \(2,\), got \(1,\)"),
        ([0.0, 1.0], TypeError, "whole numbers, got dtype float64"),
    ],
)
def test_a_wrong_action_is_refused(actions: Any, error: type[Exception], match: str) -> None:
    batch = Emulator("pong", 2)
    batch.reset(seed=0)
    with pytest.raises(error, match=match):
        batch.step(actions)
    assert batch.step([0, 0]).episode_length.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_envs": 0}, "num_envs must be between 1 and 2147483647, got 0"),
        ({"num_threads": -1}, "num_threads must be at least 0, got -1"),
        ({"autoreset": "never"}, "autoreset must be one of same_step"),
        ({"settings": AtariSettings(mode=9)}, "pong has no mode 9; it has 0, 1"),
        ({"settings": AtariSettings(difficulty=4)}, "pong has no difficulty 4; it has 0, 1, 2, 3"),
        ({"settings": AtariSettings(frame_skip=61)}, "frame_skip must be between 1 and 60"),
        ({"settings": AtariSettings(screen_size=(211, 84))}, "exceed the 210 x 160 pixels of pong"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_setting_is_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Emulator(**{"game": "pong", "num_envs": 1, **arguments})


def test_a_wrong_reset_is_refused() -> None:
    batch = Emulator("pong", 2)
    with pytest.raises(ValueError, match="call reset before the first step"):
        batch.step([0, 0])
    with pytest.raises(ValueError, match="first reset must be of all"):
        batch.reset(mask=np.array([True, False]))
    for seed, match in (
        ([1], r"needs 2 seeds, got \(1,\)"),
        (-1, r"seeds must be in \[0, 2\^31\)"),
        (2**31 - 1, r"seeds must be in \[0, 2\^31\)"),  # the second one is too large
    ):
        with pytest.raises(ValueError, match=match):
            batch.reset(seed=seed)
    with pytest.raises(ValueError, match=r"mask must be booleans of shape \(2,\)"):
        batch.reset(mask=np.array([1, 0]))


def test_saved_games_do_not_depend_on_who_played_what() -> None:
    """What one thread leaves in memory that others use again is in no saved state."""
    settings = AtariSettings(max_frames_per_episode=40)
    saved = []
    for num_threads in (1, 4, 4):
        batch = Emulator("qbert", 16, settings, num_threads=num_threads)
        batch.reset(seed=0)
        rng = np.random.default_rng(0)
        for _ in range(40):
            batch.step(rng.integers(len(batch.actions), size=16))
        saved.append(batch.save())
    assert saved[0] == saved[1] == saved[2]


def with_frame_number(batch: Emulator, frames: int) -> bytes:
    """Return the state of the first environment as if it had been played for so many frames."""
    key, places = batch._state_key(), []
    for _ in range(3):
        count = int(batch.step([0]).frame_number[0]).to_bytes(4, "little")
        state = bytearray(states.unpack(key, batch.save()[0], largest=10**7))
        words = range(0, batch._batch.environment_bytes - 3, 4)
        places.append({place for place in words if state[place : place + 4] == count})
    # The episode's count, which stands behind it, is the same number in the first episode.
    place = min(set.intersection(*places))
    state[place : place + 4] = frames.to_bytes(4, "little")
    return states.pack(key, bytes(state))


def test_a_game_that_was_never_seeded_again_is_saved_and_restored_for_ever() -> None:
    batch = Emulator("pong", 1, AtariSettings(noop_max=0, max_frames_per_episode=20))
    batch.reset(seed=0)
    for frames, expected in ((2**28 - 2, 2**28 + 2), (2**31 - 7, 2**31 - 3)):
        batch.restore([with_frame_number(batch, frames)])
        assert batch.step([0]).frame_number[0] == expected
        batch.restore(batch.save())
    for _ in range(10):  # of several episodes, which add what their resets took
        last = batch.step([0])
    assert last.frame_number[0] == 2**31 - 1
    batch.restore(batch.save())


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_threads_that_cannot_be_started_are_an_error_and_no_abort() -> None:
    program = (
        "import resource; from coordrl.emulator import Emulator;"
        " emulator = Emulator('pong', 400, num_threads=400);"
        " used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        " resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2);"
        " emulator.reset(seed=0)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert told.returncode == 1, told.stderr
    assert "RuntimeError: the system starts no 399 threads more; choose fewer" in told.stderr


def test_games_are_saved_between_the_steps_of_another_thread() -> None:
    playing, restored = Emulator("breakout", 64, num_threads=1), Emulator("breakout", 64)
    playing.reset(seed=0)
    restored.reset(seed=0)
    stop = threading.Event()

    def play() -> None:
        for _ in range(100):  # before any game ends, which a reset's idle frames would follow
            if not stop.is_set():
                playing.step(np.zeros(64, np.int64))

    first = playing.step(np.zeros(64, np.int64)).frame_number.copy()
    player = threading.Thread(target=play)
    player.start()
    try:
        for _ in range(10):
            steps = (restored.restore(playing.save()).frame_number - first) / 4
            assert np.unique(steps).size == 1, "environments were saved in different steps"
            assert steps[0] == int(steps[0]), "environments were saved within a step"
    finally:
        stop.set()
        player.join()


def test_observations_that_are_held_cost_the_next_step_nothing() -> None:
    batch = Emulator("pong", 2)
    held = [batch.reset(seed=3).obs]
    held += [batch.step([2, 3]).obs for _ in range(30)]

    assert len(batch._steps) <= 8
    again = Emulator("pong", 2)
    assert (again.reset(seed=3).obs == held[0]).all()
    for obs in held[1:]:
        assert (again.step([2, 3]).obs == obs).all()


@pytest.mark.parametrize("name", ["max_frames_per_episode", "stack_size"])
def test_a_setting_that_is_too_large_is_named(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"{name} must be between 1 and 2147483647, got 2147483648"
    ):
        Emulator("pong", 1, AtariSettings(**dict[str, Any]({name: 2**31})))


def test_a_package_without_its_compiled_part_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert emulator.available()
    assert emulator.unavailable_reason() == ""
    monkeypatch.setattr(compiled, "_native", None)
    monkeypatch.setattr(compiled, "_import_error", ModuleNotFoundError("No module named '_native'"))

    assert not emulator.available()
    assert "\n" not in emulator.unavailable_reason()
    with pytest.raises(RuntimeError, match="without its emulator, which did not compile"):
        Emulator("pong", 1)
    # pip keeps what was built without a compiler, and would install it again.
    assert "--no-cache-dir .`" in emulator.unavailable_reason()


def test_a_compiled_part_that_does_not_load_is_not_blamed_on_the_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "_native", None)
    monkeypatch.setattr(compiled, "_import_error", ImportError("GLIBCXX_3.4.32 not found"))

    assert "cannot be loaded (GLIBCXX_3.4.32 not found)" in emulator.unavailable_reason()
    assert "did not compile" not in emulator.unavailable_reason()


def test_the_compiled_part_was_made_of_the_sources_beside_it() -> None:
    assert emulator.compiled_sources() == source_checksum(Path(emulator.__file__).parent)


@pytest.mark.parametrize(
    ("name", "is_of_gpus"),
    [
        ("tia.hpp", False),
        ("host/batch.hpp", False),
        ("games.json", False),
        ("generate_games.py", False),
        ("kernels.cu", True),
        ("staged.hpp", True),
    ],
)
def test_a_change_in_what_is_compiled_changes_the_checksum(
    name: str, is_of_gpus: bool, tmp_path: Path
) -> None:
    shutil.copytree(Path(emulator.__file__).parent, tmp_path, dirs_exist_ok=True)
    cpu, gpu = source_checksum(tmp_path), source_checksum(tmp_path, gpu=True)
    assert cpu != gpu
    (tmp_path / "device.py").write_text("# is not compiled\n")
    assert (source_checksum(tmp_path), source_checksum(tmp_path, gpu=True)) == (cpu, gpu)

    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"\n")

    assert (source_checksum(tmp_path) == cpu) is is_of_gpus
    assert source_checksum(tmp_path, gpu=True) != gpu


def test_what_is_of_gpus_alone_is_what_a_cpus_compiler_does_not_read(tmp_path: Path) -> None:
    sources = nvrtc.sources()  # with games.hpp, which is generated
    (tmp_path / "games.hpp").write_text(sources["games.hpp"])
    folder = Path(emulator.__file__).parent
    command = ["g++", "-std=c++17", "-MM", "-MG", f"-I{tmp_path}", f"-I{folder}"]
    command += map(str, folder.rglob("*.cpp"))

    listed = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)

    read = {Path(name).name for name in listed.stdout.split()}
    assert set(sources) - read == OF_GPUS


def test_where_no_affinity_is_known_all_processors_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert emulator.process_cpu_count() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert emulator.process_cpu_count() == os.cpu_count()


def test_a_state_is_of_its_length_its_key_and_its_format() -> None:
    key = {"game": "pong", "mode": 0}
    state = states.pack(key, b"ab", b"c")
    assert state[:10] == b"coordrl\0\1\0"
    assert states.unpack({"mode": 0, "game": "pong"}, state, largest=3) == b"abc"
    header, text = states._HEADER.size, json.dumps(key).encode()
    no_zip = text + b"no zip"
    for found, expected, largest, match in (
        (state, key, 2, "has the wrong length"),
        (state[: header + len(text)], key, 3, "checksum does not match"),
        (state, {"game": "pong"}, 3, "saved with mode=0, this emulator has None"),
        (state, {**key, "color": 1}, 3, "saved with color=None, this emulator has 1"),
        (state[:8] + b"\0\0" + state[10:], key, 3, "version 0, this release reads version 1"),
        (
            states._HEADER.pack(b"coordrl\0", 1, len(text), zlib.crc32(no_zip)) + no_zip,
            key,
            3,
            "damaged: Error -3 while decompressing",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            states.unpack(expected, found, largest=largest)


def test_numbers_are_whole_ones_of_python_or_numpy() -> None:
    batch = Emulator("pong", np.int64(2))  # type: ignore[arg-type]
    assert type(batch.num_envs) is int
    for wrong in (True, 2.0):
        with pytest.raises(TypeError, match=f"num_envs must be a whole number, got {wrong}"):
            Emulator("pong", wrong)  # type: ignore[arg-type]
    batch.reset(seed=0)
    assert batch.step(np.array([0, 5], np.uint8)).episode_length.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"actions must have shape \(2,\), got \(2, 1\)"):
        batch.step([[0], [5]])
    with pytest.raises(TypeError, match="whole numbers, got dtype bool"):
        batch.step([True, False])


def test_seeds_and_masks_are_checked_where_nobody_did_before() -> None:
    batch = Emulator("pong", 2)
    batch.reset(seed=0)
    before = batch.save()
    nobody = np.zeros(2, np.bool_)
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"seed": [2**70, 0]}, ValueError, r"seeds must be in \[0, 2\^31\), got 0 to 11805916"),
        ({"seed": [True, False]}, TypeError, "seeds must be whole numbers, got dtype bool"),
        ({"seed": [0.0, 1.0]}, TypeError, "seeds must be whole numbers, got dtype float64"),
        ({"mask": np.ones(3, np.bool_)}, ValueError, r"shape \(2,\), got bool of shape \(3,\)"),
    ]
    for arguments, error, match in wrong:
        with pytest.raises(error, match=match):
            batch.reset(**arguments)
    batch.reset(seed=[], mask=nobody)
    assert batch.save() == before


def test_emulators_without_a_seed_are_seeded_apart() -> None:
    batches = [Emulator("pong", 4, AtariSettings(noop_max=0)) for _ in range(2)]
    for batch in batches:
        batch.reset()
    one, other = (batch.save() for batch in batches)
    assert len({*one, *other}) == 8


def test_a_seed_is_that_of_the_environment_that_the_mask_names() -> None:
    batch, alone = Emulator("pong", 3), Emulator("pong", 1)
    batch.reset(seed=0)
    batch.reset(seed=[9], mask=np.array([False, True, False]))
    alone.reset(seed=9)
    assert batch.save()[1] == alone.save()[0]


def test_without_ale_py_and_a_path_there_are_no_roms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALE_ROMS_DIR", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RomError, match=r"no ROM images: install ale-py, .* or give a rom_path"):
        load_rom("pong")


def test_games_of_the_paddle_are_told() -> None:
    games = ("breakout", "kaboom", "ms_pacman")
    assert {name for name in games if GAMES[name].paddles} == {"breakout", "kaboom"}
