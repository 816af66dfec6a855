"""AtariVectorEnv against ale-py's own vector environment, its rules step by step, bad input."""

import copy
import inspect
import io
import itertools
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import ale_py
import gymnasium
import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv as AleVectorEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

from coordrl.config import AtariSettings, settings_for
from coordrl.emulator import Step, load_rom
from coordrl.envs import (
    AtariEnv,
    AtariVectorEnv,
    canonical_game,
    games,
    gymnasium_name,
    info_of,
    pack_state,
    unpack_state,
)
from coordrl.envs.backends import BACKENDS
from coordrl.sb3_envs import VectorEnvAdapter

SAME_STEP, NEXT_STEP = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP
MODES = pytest.mark.parametrize("mode", [SAME_STEP, NEXT_STEP], ids=["same step", "next step"])
# The game as it is, without anything that the environment does for the agent.
PLAIN = AtariSettings(
    noop_max=0,
    fire_reset=False,
    fire_after_life_loss=False,
    clip_reward=False,
    life_loss="ignore",
)


@contextmanager
def playing(*args: Any, **kwargs: Any) -> Iterator[AtariVectorEnv]:
    envs = AtariVectorEnv(*args, num_threads=1, **kwargs)
    yield envs
    envs.close()


def random_actions(envs: VectorEnv[Any, Any, Any], steps: int) -> NDArray[np.int64]:
    num_actions = envs.single_action_space.n  # type: ignore[attr-defined]
    return np.random.default_rng(0).integers(num_actions, size=(steps, envs.num_envs))


def ale_reference(game: str, num_envs: int, settings: AtariSettings, **kwargs: Any) -> Any:
    """ale-py's vector environment with the same settings and rewards as they are."""
    return ale_py.AtariVectorEnv(
        game,
        num_envs,
        frameskip=settings.frame_skip,
        stack_num=settings.stack_size,
        img_height=settings.screen_size[0],
        img_width=settings.screen_size[1],
        grayscale=settings.observation == "gray",
        maxpool=settings.max_pool,
        noop_max=settings.noop_max,
        use_fire_reset=settings.fire_reset,
        repeat_action_probability=settings.repeat_action_probability,
        full_action_space=settings.full_action_space,
        max_num_frames_per_episode=settings.max_frames_per_episode,
        reward_clipping=False,
        num_threads=1,
        **kwargs,
    )


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("pong", "pong"),
        ("Pong", "pong"),
        (" PONG ", "pong"),
        ("MsPacman", "ms_pacman"),
        ("ms_pacman", "ms_pacman"),
        ("Ms. Pacman", "ms_pacman"),
        ("ALE/Pong-v5", "pong"),
        ("coordrl/SpaceInvaders-v0", "space_invaders"),
        ("PongNoFrameskip-v4", "pong"),
        ("pongnoframeskip-v4", "pong"),
        ("PONG-RAM-V0", "pong"),
        ("Pong-ramNoFrameskip-v4", "pong"),
        ("MsPacmanDeterministic-v0", "ms_pacman"),
        ("Pitfall2", "pitfall2"),
        ("TicTacToe3D", "tic_tac_toe_3d"),
        ("ALE/TicTacToe3D-v5", "tic_tac_toe_3d"),
    ],
)
def test_a_game_is_known_by_the_names_people_write(written: str, canonical: str) -> None:
    assert canonical_game(written) == canonical


def test_every_game_is_known_by_the_name_ale_py_registers_it_under() -> None:
    gymnasium.register_envs(ale_py)
    registered = {id for id in gymnasium.registry if id.startswith("ALE/")}
    assert {f"ALE/{gymnasium_name(game)}-v5" for game in games()} == registered
    assert {canonical_game(id) for id in registered} == set(games())


@pytest.mark.parametrize(
    ("written", "suggestion"),
    [
        ("Pongg", "did you mean Pong"),
        ("Brekout", "did you mean Breakout"),
        ("space invader", "did you mean SpaceInvaders"),
        ("xyzzy", r"coordrl.envs.games\(\) lists all games"),
        ("", r"coordrl.envs.games\(\) lists all games"),
        ("warlords", "there is no Atari game 'warlords'"),
    ],
)
def test_an_unknown_game_is_answered_with_near_ones(written: str, suggestion: str) -> None:
    with pytest.raises(ValueError, match=suggestion):
        canonical_game(written)


# --- lock-step with ale-py -------------------------------------------------------------------


SMALL = AtariSettings(
    life_loss="ignore",
    fire_after_life_loss=False,
    screen_size=(60, 72),
    max_frames_per_episode=300,
)
STICKY = AtariSettings(
    life_loss="reset",
    frame_skip=3,
    observation="rgb",
    repeat_action_probability=0.25,
    full_action_space=True,
)


@pytest.mark.parametrize(
    ("settings", "mode"),
    [(SMALL, NEXT_STEP), (SMALL, SAME_STEP), (STICKY, SAME_STEP)],
    ids=["small, next step", "small", "sticky"],
)
def test_plays_what_ale_py_plays(settings: AtariSettings, mode: AutoresetMode) -> None:
    reference = ale_reference(
        "breakout", 2, settings, episodic_life=settings.life_loss == "reset", autoreset_mode=mode
    )
    with playing("breakout", 2, settings, emulator="ale", autoreset_mode=mode) as envs:
        obs, info = envs.reset(seed=7)
        expected_obs, expected_info = reference.reset(seed=7)
        assert_array_equal(obs, expected_obs)
        for actions in random_actions(envs, 120):
            obs, rewards, terminated, truncated, info = envs.step(actions)
            expected_obs, expected_rewards, *flags, expected_info = reference.step(actions)
            if settings.clip_reward:
                expected_rewards = np.sign(expected_rewards)

            assert_array_equal(obs, expected_obs)
            assert_array_equal(rewards, expected_rewards)
            assert_array_equal([terminated, truncated], flags)
            for key in ("lives", "frame_number", "episode_frame_number"):
                assert_array_equal(info[key], expected_info[key])
            assert ("final_obs" in info) == ("final_obs" in expected_info)
            for i in np.flatnonzero(terminated | truncated) if mode is SAME_STEP else ():
                assert_array_equal(info["final_obs"][i], expected_info["final_obs"][i])
    reference.close()


def test_terminates_at_a_lost_life_as_ale_py_does_and_shows_the_last_picture() -> None:
    settings = AtariSettings(fire_after_life_loss=False)
    reference = ale_reference(
        "breakout", 2, settings, life_loss_info=True, autoreset_mode=SAME_STEP
    )
    lost_lives = 0
    with playing("breakout", 2, settings, emulator="ale") as envs:
        envs.reset(seed=1)
        reference.reset(seed=1)
        for actions in random_actions(envs, 250):
            obs, _, terminated, truncated, info = envs.step(actions)
            expected_obs, _, *flags, _ = reference.step(actions)

            assert_array_equal(obs, expected_obs)
            assert_array_equal([terminated, truncated], flags)
            game_over = info.get("_game", np.zeros(2, bool))
            for i in np.flatnonzero(terminated & ~game_over):
                lost_lives += 1
                assert_array_equal(info["final_obs"][i], obs[i])
    assert lost_lives > 4
    reference.close()


def assert_same(ours: Any, theirs: Any) -> None:
    """Compare what step or reset returned, with all that is in the info."""
    if isinstance(ours, dict):
        for key in ours | theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, tuple):
        for our, their in zip(ours, theirs, strict=True):
            assert_same(our, their)
    elif isinstance(ours, np.ndarray) and ours.dtype == object:
        for our, their in zip(ours, theirs, strict=True):
            assert_same(our, their)
    else:
        assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("mode", "game", "settings"),
    [
        (SAME_STEP, "breakout", AtariSettings()),
        (NEXT_STEP, "breakout", AtariSettings()),
        (SAME_STEP, "breakout", AtariSettings(life_loss="ignore", max_frames_per_episode=202)),
        (NEXT_STEP, "breakout", AtariSettings(life_loss="reset", clip_reward=False)),
        (SAME_STEP, "breakout", AtariSettings(fire_after_life_loss=False, frame_skip=3)),
        (NEXT_STEP, "breakout", AtariSettings(max_frames_per_episode=203)),
        (
            SAME_STEP,
            "ms_pacman",
            AtariSettings(screen_size=(60, 72), stack_size=3, max_pool=False, clip_reward=False),
        ),
        (SAME_STEP, "space_invaders", settings_for("machado", training=True)),
        (NEXT_STEP, "freeway", replace(PLAIN, observation="rgb", max_frames_per_episode=402)),
    ],
    ids=lambda value: value.value if isinstance(value, AutoresetMode) else None,
)
def test_both_emulators_play_the_same(
    mode: AutoresetMode, game: str, settings: AtariSettings
) -> None:
    with (
        playing(game, 2, settings, emulator="coordrl", autoreset_mode=mode) as ours,
        playing(game, 2, settings, emulator="ale", autoreset_mode=mode) as theirs,
    ):
        assert ours.action_meanings == theirs.action_meanings
        assert ours.single_observation_space == theirs.single_observation_space
        assert_same(ours.reset(seed=11), theirs.reset(seed=11))
        for step, actions in enumerate(random_actions(ours, 140)):
            assert_same(ours.step(actions), theirs.step(actions))
            assert_array_equal(ours.lives, theirs.lives)
            if step == 50:
                options = {"reset_mask": np.array([False, True])}
                assert_same(ours.reset(options=options), theirs.reset(options=options))


@MODES
@pytest.mark.parametrize("emulator", ["coordrl", "ale"])
def test_a_game_ends_with_its_return_and_its_length(mode: AutoresetMode, emulator: Any) -> None:
    settings = AtariSettings(max_frames_per_episode=602, clip_reward=False)
    steps, points, resetting = np.zeros(2, int), np.zeros(2), np.zeros(2, bool)
    ends = []
    with playing("breakout", 2, settings, emulator=emulator, autoreset_mode=mode) as envs:
        envs.reset(seed=2)
        for actions in random_actions(envs, 500):
            _, rewards, _, truncated, info = envs.step(actions)
            points += rewards
            steps += ~resetting
            game_over = info.get("_game", np.zeros(2, bool))
            for i in np.flatnonzero(game_over):
                game = {key: value[i] for key, value in info["game"].items()}
                ends.append(truncated[i])
                assert game["agent_steps"] == steps[i]
                assert (game["frames"] == 602) == truncated[i]
                assert 4 * steps[i] - 4 < game["frames"] <= 4 * steps[i]
                if mode is SAME_STEP:
                    assert game["episode_return"] == points[i]
                    frames = info["final_info"]["episode_frame_number"][i]
                    assert game["frames"] <= frames <= game["frames"] + 30  # those of the reset
                else:  # points won in the step between two lives count, but are not rewarded
                    assert game["episode_return"] >= points[i]
            steps[game_over] = points[game_over] = 0
            resetting = game_over & (mode is NEXT_STEP)
    assert set(ends) == {True, False}


@pytest.mark.parametrize("emulator", ["coordrl", "ale"])
def test_a_game_that_is_reset_behind_a_lost_life_is_as_any_other(emulator: Any) -> None:
    settings = AtariSettings(fire_reset=False, clip_reward=False)
    with playing("breakout", 1, settings, emulator=emulator) as envs:

        def serve_late() -> list[Any]:
            begun = [envs.reset(seed=3)[0]]
            return begun + [envs.step([action])[0].copy() for action in (0, 0, 0, 1, 2, 2)]

        fresh = serve_late()
        envs.step([1])
        while not envs.step([1])[2][0]:
            pass
        assert_same(tuple(serve_late()), tuple(fresh))


def test_the_game_goes_on_after_a_lost_life_only_if_fire_is_pressed() -> None:
    for fire in (False, True):
        settings = AtariSettings(fire_after_life_loss=fire, life_loss="ignore")
        with playing("breakout", 1, settings) as envs:
            envs.reset(seed=0)
            lives = [envs.step([0])[4]["lives"][0] for _ in range(100)]
        assert lives[0] == 5
        assert (lives[-1] < 4) == fire


# --- rules, step by step ---------------------------------------------------------------------


class Script:
    """Stands in for the emulator: every step has two frames, the picture is the step's number.

    The first game loses a life in step 2 and is over in step 5; the second is truncated in step 4.
    A step is worth 3 points in the first game and -2 in the second. A reset takes 10 frames.
    """

    action_meanings = ("NOOP", "FIRE", "RIGHT")
    obs_shape = (1,)

    def __init__(self, *_: Any, autoreset: str, **__: Any) -> None:
        self.autoreset = autoreset
        self.played: list[list[int]] = []
        self.frame_number = np.zeros(2, np.int32)
        self.steps = np.zeros(2, np.int32)
        self.ended = np.zeros(2, bool)

    def reset(self, *, seed: Any, mask: NDArray[np.bool_]) -> Step:
        for i in np.flatnonzero(mask).tolist():
            self.begin(i)
        return self.report(self.blank())

    def step(self, actions: NDArray[Any]) -> Step:
        self.played.append(np.asarray(actions).tolist())
        step = self.blank()
        for i in range(2):
            if self.ended[i] and self.autoreset == "next_step":
                self.begin(i)
                continue
            self.steps[i] += 1
            self.frame_number[i] += 2
            step["unclipped_rewards"][i] = (3, -2)[i]
            step["life_lost"][i] = (i, self.steps[i]) == (0, 2)
            step["terminated"][i] = (i, self.steps[i]) in [(0, 2), (0, 5)]
            step["truncated"][i] = (i, self.steps[i]) == (1, 4)
            self.ended[i] = (i, self.steps[i]) in [(0, 5), (1, 4)]
        step |= {"ended": self.ended.copy(), "final_obs": self.steps[:, None].astype(np.uint8)}
        step |= {"episode_length": self.steps.copy(), "episode_return": self.steps * [3, -2]}
        for i in np.flatnonzero(self.ended).tolist() if self.autoreset == "same_step" else ():
            self.begin(i)
        return self.report(step)

    def begin(self, i: int) -> None:
        self.frame_number[i] += 10
        self.steps[i] = 0
        self.ended[i] = False

    def blank(self) -> dict[str, NDArray[Any]]:
        flags = ("terminated", "truncated", "ended", "life_lost")
        counts = ("unclipped_rewards", "final_obs", "episode_return", "episode_length")
        return {name: np.zeros(2, bool) for name in flags} | {
            name: np.zeros(2, np.int32) for name in counts
        }

    def report(self, step: dict[str, Any]) -> Step:
        return Step(
            obs=self.steps[:, None].astype(np.uint8),
            rewards=np.sign(step["unclipped_rewards"]),
            lives=np.array([3, 0], np.int32),
            frame_number=self.frame_number.copy(),
            episode_frame_number=10 + 2 * self.steps,
            **step,
        )


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[AutoresetMode], Any]:
    monkeypatch.setitem(BACKENDS, "coordrl", Script)

    def make(mode: AutoresetMode) -> tuple[AtariVectorEnv, Any]:
        envs = AtariVectorEnv("pong", 2, emulator="coordrl", autoreset_mode=mode)
        envs.reset()
        return envs, envs._games._backend  # type: ignore[attr-defined]

    return make


def game_of(info: dict[str, Any], i: int) -> dict[str, int]:
    assert info["_game"][i]
    return {key: int(value[i]) for key, value in info["game"].items()}


def test_same_step_step_by_step(scripted: Any) -> None:
    envs, backend = scripted(SAME_STEP)
    steps = [envs.step([2, 2]) for _ in range(6)]
    obs, rewards, terminated, truncated, infos = zip(*steps, strict=True)

    assert backend.played == [[2, 2]] * 6
    assert np.stack(obs)[:, :, 0].T.tolist() == [[1, 2, 3, 4, 0, 1], [1, 2, 3, 0, 1, 2]]
    assert np.stack(rewards).T.tolist() == [[1] * 6, [-1] * 6]
    assert np.stack(terminated).T.tolist() == [[0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]]
    assert np.stack(truncated).T.tolist() == [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]]
    extra = {"final_obs", "_final_obs", "final_info", "_final_info"}
    game = {"game", "_game"}
    assert [info.keys() - {"lives", "frame_number", "episode_frame_number"} for info in infos] == [
        set(),
        extra,
        set(),
        extra | game,
        extra | game,
        set(),
    ]
    assert [infos[1]["final_obs"][0].tolist(), infos[1]["final_obs"][1]] == [[2], None]
    assert [infos[3]["final_obs"][0], infos[3]["final_obs"][1].tolist()] == [None, [4]]
    assert [infos[4]["final_obs"][0].tolist(), infos[4]["final_obs"][1]] == [[5], None]
    assert infos[1]["_final_info"].tolist() == infos[1]["_final_obs"].tolist() == [True, False]
    assert infos[1]["final_info"]["episode_frame_number"][0] == 14
    assert infos[3]["final_info"]["frame_number"][1] == 18
    assert infos[3]["_game"].tolist() == infos[3]["_final_obs"].tolist() == [False, True]
    assert game_of(infos[3], 1) == {"episode_return": -8, "agent_steps": 4, "frames": 8}
    assert game_of(infos[4], 0) == {"episode_return": 15, "agent_steps": 5, "frames": 10}


def test_next_step_step_by_step(scripted: Any) -> None:
    envs, backend = scripted(NEXT_STEP)
    steps = [envs.step([2, 2]) for _ in range(7)]
    obs, rewards, terminated, truncated, infos = zip(*steps, strict=True)

    assert np.stack(obs)[:, :, 0].T.tolist() == [[1, 2, 3, 4, 5, 0, 1], [1, 2, 3, 4, 0, 1, 2]]
    # The step between two lives is NOOP and has no reward, like the one that resets a game.
    assert np.stack(rewards).T.tolist() == [[1, 1, 0, 1, 1, 0, 1], [-1, -1, -1, -1, 0, -1, -1]]
    assert [action for action, _ in backend.played] == [2, 2, 0, 2, 2, 2, 2]
    assert np.stack(terminated).T.tolist() == [[0, 1, 0, 0, 1, 0, 0], [0] * 7]
    assert np.stack(truncated).T.tolist() == [[0] * 7, [0, 0, 0, 1, 0, 0, 0]]
    assert not any("final_obs" in info for info in infos)
    assert game_of(infos[3], 1) == {"episode_return": -8, "agent_steps": 4, "frames": 8}
    assert game_of(infos[4], 0) == {"episode_return": 15, "agent_steps": 5, "frames": 10}


def test_without_autoreset_a_game_that_ended_must_be_reset(scripted: Any) -> None:
    envs, _ = scripted(AutoresetMode.DISABLED)
    *_, info = [envs.step([2, 2]) for _ in range(4)][-1]
    assert game_of(info, 1) == {"episode_return": -8, "agent_steps": 4, "frames": 8}
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"environments \[1\] have ended; reset"):
        envs.step([2, 2])
    obs, _ = envs.reset(options={"reset_mask": np.array([True, False])})
    assert obs.tolist() == [[0], [4]]
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"environments \[1\] have ended; reset"):
        envs.step([2, 2])
    obs, _ = envs.reset(options={"reset_mask": np.array([False, True])})
    assert obs.tolist() == [[0], [0]]
    assert envs.step([2, 2])[0].tolist() == [[1], [1]]


def test_a_game_that_is_reset_between_two_lives_plays_the_next_action(scripted: Any) -> None:
    envs, backend = scripted(NEXT_STEP)
    for _ in range(2):
        envs.step([2, 2])
    envs.reset(options={"reset_mask": np.array([True, False])})
    _, rewards, *_ = envs.step([2, 2])
    assert backend.played[-1] == [2, 2]
    assert rewards.tolist() == [1, -1]


# --- resets, seeds, ownership ----------------------------------------------------------------


def test_seeds_decide_the_game_and_are_folded_to_31_bits() -> None:
    def idle_frames(seed: Any) -> list[int]:
        frames: list[int] = envs.reset(seed=seed)[1]["episode_frame_number"].tolist()
        return frames

    with playing("pong", 2) as envs:
        frames = idle_frames(5)
        assert frames[0] != frames[1]
        assert idle_frames(2**31 + 5) == frames
        assert idle_frames([2**32 + 6, 5]) == frames[::-1]
        assert idle_frames(np.array([6, 5], np.uint64)) == frames[::-1]


def test_seeds_of_some_environments_are_theirs_or_those_of_all() -> None:
    mask = np.array([False, True, True])
    with playing("pong", 3) as envs:
        envs.reset(seed=0)
        first, _ = envs.reset(seed=[8, 9], options={"reset_mask": mask})
        assert_array_equal(envs.reset(seed=[7, 8, 9], options={"reset_mask": mask})[0], first)
        assert_array_equal(envs.reset(seed=8, options={"reset_mask": mask})[0], first)
        other, _ = envs.reset(seed=[8, 9, 7], options={"reset_mask": mask})
        assert (other[1:] != first[1:]).any()
        with pytest.raises(ValueError, match="reset of 2 environments needs 2 seeds, got 1"):
            envs.reset(seed=[8], options={"reset_mask": mask})


@pytest.mark.parametrize("emulator", ["coordrl", "ale"])
def test_where_a_seed_is_none_random_numbers_go_on(emulator: str) -> None:
    with playing("pong", 3, emulator=emulator) as envs:

        def idle_frames(seed: Any, **options: Any) -> list[int]:
            _, info = envs.reset(seed=seed, options=options)
            frames: list[int] = info["episode_frame_number"].tolist()
            return frames

        seeded = idle_frames([8, None, 9])  # the first time, None is any seed
        first = idle_frames([1, 2, 3])
        going_on = idle_frames(None)
        assert len({seeded[0], first[0], going_on[0]}) == len({first[2], going_on[2]}) + 1 == 3

        assert idle_frames([1, 2, 3]) == first
        assert idle_frames([8, None, None]) == [seeded[0], *going_on[1:]]
        assert idle_frames([1, 2, 3]) == first
        mask = np.array([True, False, True])
        assert idle_frames([8, None], reset_mask=mask) == [seeded[0], first[1], going_on[2]]


def test_seeds_may_have_any_number_of_digits(breakout: AtariVectorEnv) -> None:
    large, _ = breakout.reset(seed=[2**70 + 5, 6])
    assert_array_equal(large, breakout.reset(seed=[5, 6])[0])


@pytest.mark.parametrize("device", ["mps", "meta", "nonsense"])
def test_a_device_is_a_cpu_or_a_gpu(device: str) -> None:
    with pytest.raises(ValueError, match=f"device must be 'cpu' or 'cuda', got '{device}'"):
        AtariVectorEnv("pong", 1, device=device)


def test_a_mask_may_lie_in_any_order(breakout: AtariVectorEnv) -> None:
    breakout.step([0, 0])
    *_, info = breakout.step([0, 0])
    obs, after = breakout.reset(options={"reset_mask": np.array([True, False])[::-1]})
    assert after["frame_number"][0] == info["frame_number"][0]
    assert [bool(stack[:-1].any()) for stack in obs] == [True, False]  # one has begun anew


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_frames_of_a_game_that_ended_while_idle_are_nobodys(mode: AutoresetMode) -> None:
    # Games of this mode end as they begin, so that a reset often plays more than one.
    settings = AtariSettings(mode=3, screen_size=(20, 20))
    with closing(AtariVectorEnv("demon_attack", 8, settings, autoreset_mode=mode)) as envs:
        envs.reset(seed=0)
        ends = 0
        for _ in range(10):
            *_, info = envs.step([0] * 8)
            if "game" not in info:
                continue
            game = info["game"]
            assert (game["frames"] <= game["agent_steps"] * settings.frame_skip).all()
            ends += info["_game"].sum()
    assert ends > 8


def test_environments_without_a_seed_are_seeded_apart() -> None:
    with playing("pong", 4) as envs, playing("pong", 4) as others:
        frames = [e.reset()[1]["episode_frame_number"].tolist() for e in (envs, others)]
    assert len(set(frames[0])) > 1
    assert frames[0] != frames[1]


@MODES
def test_a_partial_reset_begins_new_games_and_leaves_the_others(mode: AutoresetMode) -> None:
    settings = AtariSettings(max_frames_per_episode=40)
    mask = np.array([True, False, True])
    with playing("breakout", 3, settings, autoreset_mode=mode) as envs:
        envs.reset(seed=3)
        for _ in range(4):
            before = envs.step([1, 2, 3])[0]
        first, _ = envs.reset(options={"reset_mask": mask})

        assert_array_equal(first[1], before[1])
        assert (first[mask, :3] == 0).all()  # a stack with one picture in it
        # The others are truncated after 10 steps, those that were reset 4 steps later.
        truncated = np.stack([envs.step([0, 0, 0])[3] for _ in range(10)])
    assert truncated.argmax(axis=0).tolist() == [9, 5, 9]


def test_a_partial_reset_of_an_ended_game_with_next_step_is_its_reset() -> None:
    settings = AtariSettings(max_frames_per_episode=8)
    with playing("pong", 2, settings, autoreset_mode=NEXT_STEP) as envs:
        envs.reset(seed=3)
        envs.step([0, 0])
        assert envs.step([0, 0])[3].all()
        envs.reset(options={"reset_mask": np.array([True, False])})
        *_, info = envs.step([0, 0])
        first = info["episode_frame_number"].copy()
        _, _, _, truncated, info = envs.step([0, 0])
    assert truncated.tolist() == [True, False]
    assert (info["game"]["agent_steps"].tolist(), first[0]) == ([2, 0], first[0])


def test_what_step_returns_is_the_callers() -> None:
    finals: list[tuple[Any, Any]] = []

    def play(*, scribble: bool) -> list[Any]:
        kept, obs = [], np.zeros(0, np.uint8)
        settings = AtariSettings(max_frames_per_episode=120, life_loss="terminate")
        with playing("breakout", 2, settings) as envs:
            envs.reset(seed=0)
            for actions in random_actions(envs, 80):
                last_obs = obs
                obs, rewards, terminated, truncated, info = envs.step(actions)
                assert_array_equal(envs.lives, info["lives"])
                arrays = [rewards, terminated, truncated, info["lives"]]
                if "game" in info:
                    arrays += [info["_game"], *info["game"].values()]
                if "final_obs" in info:
                    last = [final for final in info["final_obs"] if final is not None]
                    finals.extend((final, final.copy()) for final in last if not scribble)
                    arrays += [info["_final_obs"], info["_final_info"], *last]
                kept.append([array.copy() for array in [obs, *arrays]])
                for array in [last_obs, *arrays] if scribble else ():
                    array[...] = 1
        return kept

    for ours, scribbled_on in zip(play(scribble=False), play(scribble=True), strict=True):
        for array, other in zip(ours, scribbled_on, strict=True):
            assert_array_equal(array, other)
    assert len(finals) > 5
    for final, before in finals:
        assert_array_equal(final, before)


def test_memory_of_observations_is_used_again_when_nobody_holds_it() -> None:
    with playing("pong", 2) as envs:
        held = [envs.reset(seed=0)[0][1]]
        held += [envs.step([0, 0])[0][0, -1:] for _ in range(4)]
        copies = [obs.copy() for obs in held]
        addresses = {envs.step([2, 3])[0].ctypes.data for _ in range(10)}
    assert len(addresses) < 4
    for obs, copied in zip(held, copies, strict=True):
        assert_array_equal(obs, copied)


# --- Gymnasium -------------------------------------------------------------------------------


def test_make_vec_knows_every_game() -> None:
    for game in games():
        assert f"coordrl/{gymnasium_name(game)}-v0" in gymnasium.registry
    envs = gymnasium.make_vec("coordrl/Pong-v0", num_envs=8, settings=AtariSettings(stack_size=2))
    assert isinstance(envs, AtariVectorEnv)
    assert envs.spec is not None
    assert (envs.num_envs, envs.single_observation_space.shape) == (8, (2, 84, 84))
    envs.close()


@pytest.mark.parametrize("emulator", ["coordrl", "ale"])
@pytest.mark.parametrize(
    ("game", "settings"),
    [
        ("Breakout", AtariSettings()),
        ("Breakout", AtariSettings(life_loss="reset", noop_max=3)),
        ("Pong", AtariSettings(max_frames_per_episode=120)),
    ],
)
def test_one_game_is_a_vector_of_one_whose_resets_are_asked_for(
    game: str, settings: AtariSettings, emulator: Any
) -> None:
    one = gymnasium.make(f"coordrl/{game}-v0", settings=settings, emulator=emulator)
    many = AtariVectorEnv(
        game, 1, settings, emulator=emulator, autoreset_mode=AutoresetMode.NEXT_STEP
    )
    obs, info = one.reset(seed=3)
    expected, many_info = many.reset(seed=3)
    random, ends = np.random.default_rng(0), 0

    for _ in range(400):
        np.testing.assert_array_equal(obs, expected[0])
        assert info["lives"] == many_info["lives"][0]
        assert info["frame_number"] == many_info["frame_number"][0]
        action = int(random.integers(many.single_action_space.n))
        obs, reward, terminated, truncated, info = one.step(action)
        expected, *numbers, many_info = many.step([action])
        assert [reward, terminated, truncated] == [number[0] for number in numbers]
        assert ("game" in info) == ("game" in many_info)
        while terminated or truncated:
            ends += 1
            obs, info = one.reset()
            expected, _, ended, cut, many_info = many.step([0])
            terminated = truncated = False
            assert not ended[0]
            assert not cut[0]

    assert ends > 2
    one.close()
    many.close()


@pytest.mark.parametrize("emulator", ["coordrl", "ale"])
def test_a_life_that_is_lost_as_time_runs_out_terminates(emulator: Any) -> None:
    settings = AtariSettings(noop_max=0, life_loss="terminate")
    keywords: dict[str, Any] = {"emulator": emulator, "autoreset_mode": NEXT_STEP}
    with playing("breakout", 1, settings, **keywords) as envs:
        envs.reset(seed=0)
        lost_after = next(step for step in itertools.count(1) if envs.step([0])[2][0])

    frames = settings.frame_skip * lost_after
    settings = replace(settings, max_frames_per_episode=frames)
    with playing("breakout", 1, settings, **keywords) as envs:
        envs.reset(seed=0)
        steps = iter(lambda: envs.step([0]), None)
        _, _, terminated, truncated, info = next(s for s in steps if s[2][0] or s[3][0])
    assert (terminated.tolist(), truncated.tolist()) == ([True], [False])
    assert info["_game"].tolist() == [True]
    assert info["game"]["frames"].tolist() == [frames]


def test_a_seed_begins_a_new_game_also_behind_the_end_of_an_episode() -> None:
    env = AtariEnv("Pong", AtariSettings(max_frames_per_episode=8))
    first, _ = env.reset(seed=5)
    while not env.step(2)[3]:
        pass
    again, _ = env.reset(seed=5)
    np.testing.assert_array_equal(again, first)
    env.close()


def test_a_seed_is_that_of_the_environments_own_numbers_too() -> None:
    with playing("pong", 2) as envs:
        envs.reset(seed=7)
        assert envs.np_random_seed == 7


def test_a_game_that_ends_in_the_step_behind_a_lost_life_is_told_by_the_reset() -> None:
    settings = AtariSettings(noop_max=0)
    env = AtariEnv("Breakout", settings)
    env.reset(seed=0)
    lost_after = next(step for step in itertools.count(1) if env.step(0)[2])
    env.close()

    frames = settings.frame_skip * lost_after + 1
    env = AtariEnv("Breakout", replace(settings, max_frames_per_episode=frames))
    env.reset(seed=0)
    for _ in range(lost_after):
        _, _, terminated, _, info = env.step(0)
    assert terminated
    assert "game" not in info
    _, info = env.reset()
    assert info["game"]["agent_steps"] == lost_after + 1
    assert info["lives"] == 5
    _, info = env.reset()
    assert "game" not in info
    env.close()


def test_one_game_is_checked_by_gymnasium_and_by_sb3() -> None:
    for changes in ({}, {"observation": "ram"}, {"observation": "rgb", "stack_size": 1}):
        env = gymnasium.make("coordrl/MsPacman-v0", settings=AtariSettings(**changes))
        with warnings.catch_warnings():
            # Both say so of observations that are no pictures of theirs.
            warnings.filterwarnings("ignore", category=UserWarning)
            check_env(env.unwrapped, skip_render_check=True)
            check_env_of_sb3(env)
        env.close()


def test_one_game_has_the_names_and_pictures_of_many() -> None:
    env = gymnasium.make("coordrl/SpaceInvaders-v0", render_mode="rgb_array")
    game = env.unwrapped
    assert isinstance(game, AtariEnv)
    env.reset(seed=0)
    assert game.render().shape == (210, 160, 3)
    assert game.get_action_meanings() == game.envs.get_action_meanings()
    assert (type(game.lives), game.lives) == (int, 3)
    assert env.metadata["render_fps"] == 15
    with pytest.raises(ValueError, match=r"reset of one game has no options, got \['mode'\]"):
        env.reset(options={"mode": 1})
    env.close()


def test_one_game_that_has_ended_waits_for_a_reset_also_when_it_is_restored() -> None:
    env = AtariEnv("Pong", AtariSettings(max_frames_per_episode=8))
    env.reset(seed=0)
    before = env.save()
    assert not env.step(0)[3]
    obs, _, _, truncated, info = env.step(0)
    assert truncated
    assert info["game"]["agent_steps"] == 2
    behind = env.save()
    with pytest.raises(gymnasium.error.ResetNeeded, match="the episode has ended; reset before"):
        env.step(0)

    env.restore(before)
    env.step(0)
    np.testing.assert_array_equal(env.restore(behind), obs)
    with pytest.raises(gymnasium.error.ResetNeeded, match="the episode has ended; reset before"):
        env.step(0)
    env.reset()
    env.step(0)
    env.close()


def test_one_game_between_two_lives_waits_for_a_reset_also_when_it_is_restored() -> None:
    env = AtariEnv("Breakout")
    env.reset(seed=0)
    while not env.step(0)[2]:
        pass
    between = env.save()
    env.reset()
    env.restore(between)
    with pytest.raises(gymnasium.error.ResetNeeded, match="the episode has ended; reset before"):
        env.step(0)
    env.close()


def test_numbers_of_numpy_and_names_of_modes_are_taken() -> None:
    envs = AtariVectorEnv("pong", np.int64(2), autoreset_mode="NextStep")  # type: ignore[arg-type]
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert (type(envs.num_envs), envs.num_envs) == (int, 2)
    envs.close()


@pytest.mark.parametrize(("frame_skip", "fps"), [(1, 60), (4, 15), (60, 1)])
def test_films_of_games_are_shown_as_fast_as_they_were_played(frame_skip: int, fps: int) -> None:
    envs = AtariVectorEnv("pong", 1, AtariSettings(frame_skip=frame_skip))
    assert envs.metadata["render_fps"] == fps
    in_sb3: dict[str, Any] = VectorEnvAdapter(envs).metadata
    assert in_sb3["render_fps"] == fps
    envs.close()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_games_are_not_copied_by_halves(duplicate: Callable[[Any], Any]) -> None:
    envs = AtariVectorEnv("pong", 1)
    with pytest.raises(TypeError, match=r"not copied or pickled: make another .* restore\(\)$"):
        duplicate(envs)
    envs.close()


@MODES
def test_spaces_contain_what_is_returned(mode: AutoresetMode) -> None:
    with playing("breakout", 3, autoreset_mode=mode) as envs:
        assert envs.metadata["autoreset_mode"] is mode
        assert AtariVectorEnv.metadata is VectorEnv.metadata is not envs.metadata
        assert envs.observation_space.shape == (3, 4, 84, 84)
        obs, info = envs.reset(seed=0)
        assert obs in envs.observation_space
        envs.action_space.seed(0)
        for _ in range(100):
            obs, rewards, terminated, truncated, info = envs.step(envs.action_space.sample())
            assert obs in envs.observation_space
            for array in (rewards, terminated, truncated, *info.values()):
                assert len(array) == 3 or isinstance(array, dict)
            assert terminated.dtype == truncated.dtype == np.bool_


@MODES
def test_gymnasiums_wrappers_fit(mode: AutoresetMode) -> None:
    settings = AtariSettings(life_loss="ignore", clip_reward=False, max_frames_per_episode=400)
    envs = AtariVectorEnv("breakout", 2, settings, autoreset_mode=mode)
    wrapped = DictInfoToList(RecordEpisodeStatistics(envs))
    wrapped.reset(seed=0)
    ended = 0
    for actions in random_actions(envs, 300):
        infos: Any = wrapped.step(actions)[4]
        for info in infos:
            if "game" in info:
                ended += 1
                assert info["episode"]["r"] == info["game"]["episode_return"]
                assert info["episode"]["l"] == info["game"]["agent_steps"]
    assert ended > 3
    wrapped.close()


# --- what only our own emulator has ----------------------------------------------------------


def test_ram_is_observed_as_bytes() -> None:
    settings = AtariSettings(observation="ram", stack_size=2)
    with playing("breakout", 2, settings) as envs:
        obs, info = envs.reset(seed=0)
        assert obs.shape == envs.observation_space.shape == (2, 2, 128)
        assert obs[:, -1, 0xB9 - 0x80].tolist() == info["lives"].tolist() == [5, 5]
        assert not obs[:, 0].any()


def test_modes_and_difficulties_change_the_game() -> None:
    pictures = {}
    for mode, difficulty in ((None, None), (0, 0), (12, 0), (0, 1)):
        with playing("breakout", 1, replace(PLAIN, mode=mode, difficulty=difficulty)) as envs:
            envs.reset(seed=0)
            for action in (1, 2, 2, 3, 3, 3):
                pictures[mode, difficulty] = envs.step([action])[0].tobytes()
    assert pictures[None, None] == pictures[0, 0]
    assert len(set(pictures.values())) == 3


@MODES
def test_restored_games_go_on_as_the_saved_ones_did(mode: AutoresetMode) -> None:
    settings = AtariSettings(repeat_action_probability=0.25, max_frames_per_episode=402)
    games_ended = 0
    with (
        playing("breakout", 3, settings, autoreset_mode=mode) as envs,
        playing("breakout", 3, settings, autoreset_mode=mode) as restored,
    ):
        envs.reset(seed=4)
        actions = random_actions(envs, 330)
        saved_at = 0
        for step, chosen in enumerate(actions):
            obs, *_, info = envs.step(chosen)
            # Also where the next step is between two lives or two games.
            if "_game" in info or step == 50:
                state, saved_at = envs.save(), step
                assert_array_equal(restored.restore(state), obs)
                assert_array_equal(restored.lives, envs.lives)
                break
        for chosen in actions[saved_at + 1 :]:
            expected = envs.step(chosen)
            games_ended += "game" in expected[-1]
            assert_same(restored.step(chosen), expected)
        assert_same(restored.reset(), envs.reset())
    assert games_ended > 1


def test_states_of_other_environments_and_damaged_ones_are_refused() -> None:
    with playing("breakout", 2) as envs:
        with pytest.raises(gymnasium.error.ResetNeeded, match="call reset before save"):
            envs.save()
        envs.reset(seed=0)
        state = envs.save()
        others: list[tuple[dict[str, Any], str]] = [
            ({"game": "pong"}, "saved with game='breakout', here it is 'pong'"),
            ({"num_envs": 3}, "saved with num_envs=2, here it is 3"),
            ({"settings": AtariSettings(noop_max=0)}, "saved with noop_max=30, here it is 0"),
            ({"autoreset_mode": NEXT_STEP}, "autoreset_mode='SameStep', here it is 'NextStep'"),
        ]
        for arguments, message in others:
            with (
                playing(**{"game": "breakout", "num_envs": 2, **arguments}) as other,
                pytest.raises(ValueError, match=message),
            ):
                other.restore(state)
        before = envs.step([0, 0])[4]["frame_number"]
        middle = len(state) // 2
        array = io.BytesIO()
        np.save(array, np.zeros(3))
        for damaged in (
            b"",
            b"some text",
            array.getvalue(),
            state[:-100],
            state[:middle],
            state[:middle] + bytes([state[middle] ^ 1]) + state[middle + 1 :],
        ):
            with pytest.raises(ValueError, match="damaged or something else") as caught:
                envs.restore(damaged)
            assert "allow_pickle" not in str(caught.value)  # which NumPy advises
        for bit in range(0, 8 * 400, 7):  # those of zipfile's fields, for one
            flipped = bytearray(state)
            flipped[-400 + bit // 8] ^= 1 << bit % 8
            with suppress(ValueError):
                envs.restore(bytes(flipped))
                envs.restore(state)
        envs.restore(state)
        before = envs.step([0, 0])[4]["frame_number"]
        arrays, parts = unpack_state({}, state)
        key = envs._state_key()
        parts_of_one = {"console_0": parts["console_0"]}
        for damaged, message in (
            (pack_state(key, arrays, parts_of_one), "'console_1' is missing"),
            (
                pack_state(key, {**arrays, "_lives": np.zeros(3, np.int32)}, parts),
                r"_lives is int32 of shape \(3,\)",
            ),
            (pack_state(key, {**arrays, "_lives": np.zeros(2)}, parts), "_lives is float64"),
            (
                pack_state(key, {n: a for n, a in arrays.items() if n != "_lives"}, parts),
                "'_lives' is",
            ),
        ):
            with pytest.raises(ValueError, match=f"the saved games are damaged: {message}"):
                envs.restore(damaged)
        assert_array_equal(envs.step([0, 0])[4]["frame_number"], before + 4)


def test_render_shows_the_screen() -> None:
    settings = replace(
        PLAIN, observation="rgb", screen_size=(210, 160), max_pool=False, stack_size=1
    )
    with playing("breakout", 2, settings, render_mode="rgb_array") as envs:
        envs.reset(seed=0)
        for actions in ([1, 0], [2, 3], [2, 0]):
            obs = envs.step(actions)[0]
        assert_array_equal(np.stack(envs.render()), obs[:, 0])


def test_render_needs_a_render_mode() -> None:
    with playing("pong", 1) as envs:
        envs.reset()
        with pytest.raises(ValueError, match="make the environment with render_mode='rgb_array'"):
            envs.render()


# --- protocols -------------------------------------------------------------------------------


def test_classic_is_how_sb3_and_ale_py_play_if_nothing_is_said() -> None:
    classic = settings_for("classic", training=True)

    def defaults(function: Any) -> dict[str, Any]:
        return {p.name: p.default for p in inspect.signature(function).parameters.values()}

    sb3, ale = defaults(AtariWrapper), defaults(AleVectorEnv)
    for theirs in (sb3, ale):
        assert classic.noop_max == theirs["noop_max"]
        assert classic.frame_skip == theirs.get("frame_skip", theirs.get("frameskip"))
    assert classic.screen_size == (sb3["screen_size"],) * 2 == (ale["img_height"], ale["img_width"])
    assert (classic.life_loss == "terminate") is sb3["terminal_on_life_loss"]
    assert classic.clip_reward is sb3["clip_reward"] is ale["reward_clipping"]
    assert classic.repeat_action_probability == sb3["action_repeat_probability"]
    assert classic.stack_size == ale["stack_num"]
    assert classic.max_pool is ale["maxpool"]
    assert classic.fire_reset is ale["use_fire_reset"]
    assert classic.full_action_space is ale["full_action_space"]
    assert classic.max_frames_per_episode == ale["max_num_frames_per_episode"] == 30 * 60 * 60
    assert classic.fire_after_life_loss  # SB3's FireResetEnv: a lost life is a reset there


def test_protocols_differ_between_training_and_evaluation_in_lives_and_clipping() -> None:
    assert settings_for("classic", training=True) == AtariSettings()
    for protocol in ("classic", "machado"):
        training = settings_for(protocol, training=True)
        judged = replace(training, life_loss="ignore", clip_reward=False)
        assert settings_for(protocol, training=False) == judged


def test_machado_is_sticky_with_all_actions_and_nothing_done_for_the_agent() -> None:
    settings = settings_for("machado", training=True)
    with playing("breakout", 1, settings) as envs:
        assert envs.single_action_space.n == 18
        _, info = envs.reset(seed=0)
        assert info["episode_frame_number"].tolist() == [0]
    assert settings.repeat_action_probability == 0.25
    assert settings.life_loss == "ignore"
    assert not settings.fire_after_life_loss
    assert settings.max_frames_per_episode == 5 * 60 * 60


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(ValueError, match="one of classic, machado, got 'nature'"):
        settings_for("nature", training=True)  # type: ignore[arg-type]


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"game": "Pomg"}, ValueError, "there is no Atari game 'Pomg'; did you mean Pong"),
        ({"game": 5}, TypeError, "the name of a game must be a text, got 5"),
        ({"num_envs": 0}, ValueError, "num_envs must be at least 1, got 0"),
        ({"num_envs": -3}, ValueError, "num_envs must be at least 1, got -3"),
        ({"num_envs": 2.0}, TypeError, "num_envs must be a whole number, got 2.0"),
        ({"num_threads": -1}, ValueError, "num_threads must be at least 0, got -1"),
        ({"emulator": "stella"}, ValueError, "emulator must be .*, got 'stella'"),
        (
            {"autoreset_mode": "same"},
            ValueError,
            "AutoresetMode or one of NextStep, SameStep, .*, got 'same'",
        ),
        ({"render_mode": "human"}, ValueError, "must be 'rgb_array' or None, got 'human'"),
        ({"settings": 3}, TypeError, "settings must be AtariSettings, got 3"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        AtariVectorEnv(**{"game": "pong", "num_envs": 1, **arguments})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frame_skip": 0}, "frame_skip must be at least 1, got 0"),
        ({"stack_size": "4"}, "stack_size must be a whole number, got '4'"),
        ({"noop_max": -1}, "noop_max must be at least 0, got -1"),
        ({"screen_size": 84}, "screen_size must be a list of a whole number and a whole number"),
        ({"screen_size": (84, 0)}, "screen_size must be at least 1 x 1"),
        ({"observation": "grey"}, 'observation must be one of "gray", "rgb", "ram", got \'grey\''),
        ({"life_loss": True}, 'life_loss must be one of "ignore", "terminate", "reset", got True'),
        ({"max_pool": 1}, "max_pool must be true or false, got 1"),
        ({"repeat_action_probability": 1.5}, r"must be in \[0, 1\], got 1.5"),
        ({"mode": 2.5}, 'mode must be a whole number or "none", got 2.5'),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AtariSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": 3}, "breakout has no mode 3; it has 0, 4, 8"),
        ({"difficulty": 2}, "breakout has no difficulty 2; it has 0, 1"),
        ({"screen_size": (211, 84)}, "must not exceed the 210 x 160 pixels of breakout"),
        ({"frame_skip": 61}, "frame_skip must be between 1 and 60, got 61"),
    ],
)
def test_settings_that_a_game_does_not_have_are_named(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AtariVectorEnv("breakout", 1, AtariSettings(**settings))


def test_settings_are_of_the_types_of_their_fields() -> None:
    settings = AtariSettings(screen_size=[84, 84], repeat_action_probability=0)  # type: ignore[arg-type]
    assert settings == AtariSettings()
    assert hash(settings) == hash(AtariSettings())


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"mode": 4}, {}, "has no mode=4; emulator='coordrl' has"),
        (
            {"difficulty": 0, "mode": 0},
            {},
            "has no mode=0 and difficulty=0; emulator='coordrl' has",
        ),
        ({"observation": "ram"}, {}, "has no observation='ram'; emulator='coordrl' has"),
        ({}, {"autoreset_mode": AutoresetMode.DISABLED}, "has no autoreset_mode=DISABLED"),
        ({}, {"render_mode": "rgb_array"}, "cannot render; emulator='coordrl' can"),
    ],
)
def test_what_ale_py_lacks_is_named(
    settings: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match="emulator='ale' " + message):
        AtariVectorEnv("breakout", 1, replace(PLAIN, **settings), emulator="ale", **arguments)


@pytest.mark.parametrize("emulator", ["coordrl", "ale"])
def test_a_rom_of_ones_own_is_played_if_it_is_the_games(
    emulator: Literal["coordrl", "ale"], tmp_path: Path
) -> None:
    file = tmp_path / "mine.bin"
    file.write_bytes(load_rom("boxing"))
    envs = gymnasium.make_vec("coordrl/Boxing-v0", 1, emulator=emulator, rom_path=file)
    envs.reset(seed=0)
    envs.close()

    file.write_bytes(load_rom("pong"))
    with pytest.raises(ValueError, match=r"mine.bin is not the ROM image of boxing that the rules"):
        gymnasium.make_vec("coordrl/Boxing-v0", 1, emulator=emulator, rom_path=file)


def test_ale_py_cannot_save() -> None:
    with playing("pong", 1, emulator="ale") as envs:
        envs.reset(seed=0)
        with pytest.raises(ValueError, match="cannot save its games; emulator='coordrl' can"):
            envs.save()
        with playing("pong", 1, emulator="coordrl") as ours:
            ours.reset(seed=0)
            state = ours.save()
        with pytest.raises(ValueError, match="cannot restore its games; emulator='coordrl' can"):
            envs.restore(state)


def test_without_a_compiled_emulator_ale_py_plays_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("coordrl.emulator.compiled._native", None)
    with pytest.warns(
        RuntimeWarning, match="compiled emulator cannot be loaded.*ale-py plays the games"
    ) as told:
        envs = AtariVectorEnv("pong", 1)
    assert told[0].filename == __file__
    assert envs.emulator == "ale"
    envs.close()


@pytest.fixture(scope="module")
def breakout() -> Iterator[AtariVectorEnv]:
    with playing("breakout", 2) as envs:
        envs.reset(seed=0)
        yield envs


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        ([0, 4], ValueError, "actions of breakout are 0 to 3, got 4"),
        ([-1, 0], ValueError, "actions of breakout are 0 to 3, got -1"),
        ([0], ValueError, r"actions must have shape \(2,\), got \(1,\)"),
        ([[0, 0]], ValueError, r"actions must have shape \(2,\), got \(1, 2\)"),
        ([0.0, 1.0], TypeError, "actions must be whole numbers, got dtype float64"),
        ([True, False], TypeError, "actions must be whole numbers, got dtype bool"),
    ],
)
def test_bad_actions_are_named_and_leave_the_games_as_they_are(
    breakout: AtariVectorEnv, actions: Any, error: Any, message: str
) -> None:
    *_, info = breakout.step([0, 0])
    with pytest.raises(error, match=message):
        breakout.step(actions)
    *_, after = breakout.step(np.array([1, 1], np.int32))
    assert_array_equal(after["frame_number"], info["frame_number"] + 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": -1}, ValueError, "seeds must not be negative, got -1"),
        ({"seed": [1, 2, 3]}, ValueError, "reset of 2 environments needs 2 seeds, got 3"),
        ({"seed": "7"}, TypeError, "seed must be a whole number or a sequence of them, got '7'"),
        ({"seed": [0.5, 1]}, TypeError, "seed must be a whole number or a sequence of them"),
        ({"seed": np.array(3)}, TypeError, "seed must be a whole number or a sequence of them"),
        ({"seed": np.array([[3], [4]])}, TypeError, "seed must be a whole number or a sequence"),
        ({"options": {"mask": 1, 3: 2}}, ValueError, r"'reset_mask' only, got \['3', 'mask'\]"),
        ({"options": {"mask": 1}}, ValueError, r"option 'reset_mask' only, got \['mask'\]"),
        ({"options": {"reset_mask": [True]}}, TypeError, "must be a boolean array, got .True."),
        (
            {"options": {"reset_mask": np.ones(3, bool)}},
            ValueError,
            r"reset_mask must have shape \(2,\), got \(3,\)",
        ),
        (
            {"options": {"reset_mask": np.zeros(2, bool)}},
            ValueError,
            "reset_mask must be true for at least one",
        ),
    ],
)
def test_bad_resets_are_named(
    breakout: AtariVectorEnv, arguments: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        breakout.reset(**arguments)


def test_settings_from_a_table_are_named_where_there_are_none_such() -> None:
    with pytest.raises(TypeError, match=r"settings has no 'frameskip'; there are .*, frame_skip,"):
        AtariVectorEnv("pong", 2, {"frameskip": 3})


def test_the_first_call_is_a_whole_reset_and_none_follows_close() -> None:
    envs = AtariVectorEnv("pong", 2, render_mode="rgb_array")
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset before the first step"):
        envs.step([0, 0])
    with pytest.raises(gymnasium.error.ResetNeeded, match="must be one of all environments"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset(options={"reset_mask": np.array([True, True])})
    state = envs.save()
    envs.close()
    envs.close()
    calls = (lambda: envs.reset(), lambda: envs.step([0, 0]), lambda: envs.render())
    looks = (lambda: envs.lives, lambda: envs.is_over)
    for call in (*calls, *looks, lambda: envs.save(), lambda: envs.restore(state)):
        with pytest.raises(gymnasium.error.ClosedEnvironmentError, match="the games are closed"):
            call()


def test_settings_may_come_as_their_fields_by_name() -> None:
    made = gymnasium.make("coordrl/Pong-v0", settings=AtariSettings(stack_size=2))
    assert made.spec is not None
    again = gymnasium.make(EnvSpec.from_json(made.spec.to_json()))
    assert again.observation_space == made.observation_space
    again.close()
    made.close()


def test_observations_of_one_game_are_the_callers() -> None:
    one, other = (AtariEnv("Pong") for _ in range(2))
    for _ in range(2):
        obs, expected = one.reset(seed=0)[0], other.reset(seed=0)[0]
        for action in (0, 2, 3, 0):
            assert_array_equal(obs, expected)
            obs[:] = 7
            one.restore(one.save())[:] = 7
            obs, expected = one.step(action)[0], other.step(action)[0]
    one.close()
    other.close()


def test_one_game_is_made_and_closed_as_it_is_asked_for(tmp_path: Path) -> None:
    env = AtariEnv("Pong", AtariSettings(frame_skip=1), emulator="ale")
    assert env.envs.emulator == "ale"
    assert (env.metadata["render_fps"], AtariEnv.metadata["render_fps"]) == (60, 15)
    env.close()
    with pytest.raises(gymnasium.error.ClosedEnvironmentError, match="the games are closed"):
        env.reset()

    (tmp_path / "pong.bin").write_bytes(load_rom("breakout"))
    with pytest.raises(ValueError, match=r"pong.bin is not the ROM image of pong that the rules"):
        AtariEnv("Pong", rom_path=tmp_path)


def test_what_one_game_tells_are_single_values() -> None:
    env = AtariEnv("Pong")
    infos = [env.reset(seed=0)[1], env.step(0)[4]]
    assert [np.shape(value) for info in infos for value in info.values()] == [()] * 6
    env.close()


@pytest.mark.parametrize("end", [(True, False), (False, True)], ids=["over", "out of time"])
def test_a_reset_goes_on_to_the_next_game_if_noop_ends_this_one(
    end: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = AtariEnv("Breakout")
    env.reset(seed=0)
    while not env.step(0)[2]:
        pass
    played = []

    def step(actions: Any) -> Any:
        obs, rewards, *_, info = AtariVectorEnv.step(env.envs, actions)
        played.append(actions)
        ended = end if len(played) == 1 else (False, False)
        return obs, rewards, *(np.array([flag]) for flag in ended), info

    monkeypatch.setattr(env.envs, "step", step)
    env.reset()
    assert len(played) == 2
    assert env.step(0)[2:4] == (False, False)
    env.close()


def test_what_one_game_does_not_take_is_named() -> None:
    env = AtariEnv("Pong")
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        env.reset(seed=-1)
    with pytest.raises(ValueError, match=r"has no options, got \['3', 'a'\]"):
        env.reset(seed=3, options={"a": 1, 3: 4})  # type: ignore[dict-item]
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"an action is one whole number, got one of shape \(1,\)"):
        env.step(np.array([2]))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="actions must be whole numbers, got dtype float64"):
        env.step(1.0)  # type: ignore[arg-type]
    env.close()


def test_spaces_around_a_name_do_not_matter() -> None:
    assert canonical_game(" ALE/Pong-v5 ") == "pong"


def test_one_game_says_how_it_is_rendered() -> None:
    for mode in (None, "rgb_array"):
        env = gymnasium.make("coordrl/Pong-v0", render_mode=mode)
        assert env.unwrapped.render_mode == mode  # gymnasium's RecordVideo asks for it
        env.close()


def test_writing_to_info_does_not_change_the_games_of_ale_py() -> None:
    settings = AtariSettings(max_frames_per_episode=8)
    with playing("Pong", 1, settings, emulator="ale", autoreset_mode=NEXT_STEP) as envs:
        envs.reset(seed=0)
        infos = []
        for _ in range(5):  # 2 steps, their reset, 2 steps
            infos.append(envs.step([0])[4])
            if "_game" in infos[-1]:
                infos[-1]["_game"][:] = False
        assert infos[4]["game"]["agent_steps"].tolist() == [2]


def test_the_info_of_one_environment_has_its_rows_and_what_all_share() -> None:
    info = {
        **{"lives": np.array([3, 1]), "age": torch.tensor([4, 5]), "name": ("a", "b"), "level": 7},
        **{"game": {"frames": [8, 9]}, "_game": np.array([False, True])},
    }
    assert info_of(info, 0) == {"lives": 3, "age": 4, "name": "a", "level": 7}
    ended = {"lives": 1, "age": 5, "name": "b", "level": 7, "game": {"frames": 9}}
    assert info_of(info, 1) == ended
