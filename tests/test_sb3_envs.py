"""The adapter against SB3's own environments, SB3's Atari wrappers, and everything stock."""

import contextlib
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import NormalizeReward
from numpy.testing import assert_array_equal
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecMonitor,
    VecNormalize,
    is_vecenv_wrapped,
)

from coordrl.config import AtariSettings
from coordrl.envs import AtariVectorEnv, pack_state
from coordrl.sb3_envs import VectorEnvAdapter, make_sb3_env

SAME_STEP, NEXT_STEP = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP


class Counting(VectorEnv[Any, Any, Any]):
    """Counts the steps of each episode; the i-th episode lasts 2 or 3 steps, by environment."""

    def __init__(self, mode: AutoresetMode = SAME_STEP) -> None:
        self.metadata = {"autoreset_mode": mode}
        self.num_envs = 2
        self.single_observation_space = Box(0, 255, (1,), np.uint8)
        self.single_action_space = Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, 2)
        self.action_space = batch_space(self.single_action_space, 2)
        self.resets: list[Any] = []
        self.count = np.zeros((2, 1), np.uint8)
        self.speed = 1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.resets.append((seed, options))
        self.count[(options or {}).get("reset_mask", [True, True])] = 0
        return self.count.copy(), {"level": np.array([7, 8]), "_level": np.array([False, True])}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.count = self.count + 1
        over = self.count[:, 0] == [2, 3]
        info: dict[str, Any] = {}
        if over.any():
            final_obs = np.full(2, None, object)
            for i in np.flatnonzero(over):
                final_obs[i] = self.count[i].copy()
            info = {"final_obs": final_obs, "_final_obs": over}
        self.count[over] = 0
        rewards = 0.5 * np.asarray(actions, np.float64)
        return self.count.copy(), rewards, over & [True, False], over & [False, True], info

    def render(self) -> Any:
        return tuple(np.full((2, 3, 3), i, np.uint8) for i in range(2))

    def double(self, number: int) -> int:
        return 2 * number


def test_the_adapter_step_by_step() -> None:
    envs = VectorEnvAdapter(Counting())
    assert envs.reset().tolist() == [[0], [0]]  # type: ignore[union-attr]
    obs, rewards, dones, infos = zip(*(envs.step(np.array([1, 0])) for _ in range(4)), strict=True)

    assert np.stack(obs)[:, :, 0].T.tolist() == [[1, 0, 1, 0], [1, 2, 0, 1]]
    assert np.stack(rewards).T.tolist() == [[0.5] * 4, [0] * 4]
    assert np.stack(dones).T.tolist() == [[0, 1, 0, 1], [0, 0, 1, 0]]
    assert infos[0] == [{}, {}]
    [first, second] = infos[1]
    assert second == {}
    assert first["episode"].pop("t") >= 0
    assert first == {
        "terminal_observation": [2],
        "TimeLimit.truncated": False,
        "episode": {"r": 1.0, "l": 2},
    }
    [first, second] = infos[2]
    assert first == {}
    assert second["episode"].pop("t") >= 0
    assert second == {
        "terminal_observation": [3],
        "TimeLimit.truncated": True,
        "episode": {"r": 0.0, "l": 3},
    }


class Succeeding(gymnasium.Env[Any, Any]):
    """Episodes of two steps, of which the last tells how it went."""

    observation_space = Box(0, 255, (1,), np.uint8)
    action_space = Discrete(2)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(**kwargs)
        self.steps = 0
        return np.zeros(1, np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        over = self.steps == 2
        return np.zeros(1, np.uint8), 1.0, over, False, {"is_success": action == 1} if over else {}


def test_what_an_environment_tells_at_the_end_of_an_episode_is_passed_on() -> None:
    envs = VectorEnvAdapter(SyncVectorEnv([Succeeding] * 2, autoreset_mode=SAME_STEP))
    envs.reset()
    assert envs.step(np.array([1, 0]))[3] == [{}, {}]
    infos = envs.step(np.array([1, 0]))[3]
    # EvalCallback logs it as the success rate.
    assert [info["is_success"] for info in infos] == [True, False]
    envs.close()


class Numbered(Succeeding):
    """Tells at a reset which episode begins."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.episode = getattr(self, "episode", 0) + 1
        return super().reset(**kwargs)[0], {"episode number": self.episode}


def test_reset_infos_are_those_of_sb3() -> None:
    ours = VectorEnvAdapter(SyncVectorEnv([Numbered] * 2, autoreset_mode=SAME_STEP))
    theirs = DummyVecEnv([Numbered] * 2)
    for envs in (ours, theirs):
        envs.reset()
    for _ in range(5):
        assert ours.reset_infos == theirs.reset_infos
        for envs in (ours, theirs):
            envs.step(np.array([0, 1]))
    assert ours.reset_infos == [{"episode number": 3}] * 2


def test_the_reset_info_of_a_game_is_of_its_beginning() -> None:
    settings = AtariSettings(max_frames_per_episode=16, noop_max=0, fire_reset=False)
    envs = make_sb3_env("Pong", 2, settings, seed=0)
    envs.reset()
    first = [*envs.reset_infos]
    for _ in range(4):
        *_, dones, _ = envs.step(np.zeros(2, np.int64))
    assert dones.all()
    assert [set(info) for info in envs.reset_infos] == [set(info) for info in first]
    assert [info["episode_frame_number"] for info in envs.reset_infos] == [0, 0]
    assert envs.reset_infos[0]["frame_number"] > first[0]["frame_number"]


def test_seeds_options_and_reset_infos_are_used_once() -> None:
    envs = VectorEnvAdapter(Counting())
    counting: Any = envs.envs
    envs.seed(11)
    envs.set_options({"level": 2})
    envs.reset()
    assert envs.reset_infos == [{}, {"level": 8}]
    envs.reset()
    assert counting.resets == [(11, {"level": 2}), (None, None)]


def test_an_episode_that_a_reset_cuts_off_counts_nowhere() -> None:
    envs = VectorEnvAdapter(Counting())
    envs.reset()
    envs.step(np.array([1, 1]))
    envs.reset()
    for _ in range(2):
        infos = envs.step(np.array([1, 1]))[3]
    assert (infos[0]["episode"]["r"], infos[0]["episode"]["l"]) == (1.0, 2)


def test_options_are_the_same_for_all() -> None:
    envs = VectorEnvAdapter(Counting())
    for other in ({"level": 3}, {}):
        envs.set_options([{"level": 2}, other])
        with pytest.raises(ValueError, match=rf"with the same options, got \[.*2.*, {other}\]"):
            envs.reset()
    for mask in (np.array([True, False]), np.array([False, True])):
        envs.set_options([{"mask": mask}, {"mask": np.array([True, False])}])
        if mask[0]:
            envs.reset()
        else:
            with pytest.raises(ValueError, match="with the same options"):
                envs.reset()


def test_tensors_tell_what_numpy_tells() -> None:
    ours, theirs = VectorEnvAdapter(Counting()), VectorEnvAdapter(Counting())
    assert_array_equal(ours.reset(), theirs.reset())
    episodes = []
    games: list[tuple[float, int]] = []
    for actions in np.random.default_rng(0).integers(2, size=(7, 2)):
        step = ours.step_torch(torch.tensor(actions))
        obs, rewards, dones, infos = theirs.step(actions)
        next_obs: Any = obs.copy()  # type: ignore[union-attr]
        for i, info in enumerate(infos):
            if info:
                next_obs[i] = info["terminal_observation"]
                episodes.append(info["episode"])

        assert_array_equal(step.obs, obs)
        assert_array_equal(step.rewards, rewards)
        assert step.rewards.dtype == step.episode_return.dtype == torch.float32
        assert_array_equal(step.terminated | step.truncated, dones)
        assert_array_equal(step.next_obs, next_obs)
        timeouts = [bool(info) and info["TimeLimit.truncated"] for info in infos]
        assert (step.truncated & ~step.terminated).tolist() == timeouts
        ended = step.game_ended
        ends = torch.stack([step.episode_return[ended], step.episode_length[ended]], dim=1)
        games += [(points, int(length)) for points, length in ends.tolist()]
    assert games == [(episode["r"], episode["l"]) for episode in episodes]
    assert len(games) == 5


class OnDevice(Counting):
    """Counting, as an environment on a GPU: ``step`` takes and returns tensors."""

    device = "meta"  # only its name is asked for

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        return torch.from_numpy(obs), info

    def step(self, actions: Any) -> Any:
        obs, rewards, terminated, truncated, counted = super().step(np.asarray(actions))
        dones = terminated | truncated
        final = obs.copy()
        for i in np.flatnonzero(dones):
            final[i] = counted["final_obs"][i]
        steps = torch.tensor([1, 3], dtype=torch.int32)
        game = {"episode_return": torch.from_numpy(2 * dones), "agent_steps": steps}
        ended, last = torch.from_numpy(dones), torch.from_numpy(final)
        arrays = (obs, rewards, terminated, truncated)
        return (*map(torch.from_numpy, arrays), {"final_obs": last, "_game": ended, "game": game})


def test_an_environment_on_a_device_gives_arrays_to_sb3_and_tensors_to_us() -> None:
    ours, sb3s, theirs = (VectorEnvAdapter(cls()) for cls in (OnDevice, OnDevice, Counting))
    assert_array_equal(ours.envs.reset()[0], theirs.reset())
    assert_array_equal(sb3s.reset(), ours.envs.reset()[0])
    for actions in np.random.default_rng(0).integers(2, size=(7, 2)):
        step = ours.step_torch(torch.tensor(actions))
        obs, rewards, dones, infos = theirs.step(actions)
        assert_array_equal(step.obs, obs)
        assert_array_equal(step.rewards, rewards)
        assert_array_equal(step.game_ended, dones)
        assert step.episode_return.tolist() == (2 * dones).tolist()
        assert step.episode_return.dtype == torch.float32
        assert step.episode_length.dtype == torch.int64
        for i, info in enumerate(infos):
            if info:
                assert_array_equal(step.next_obs[i], info["terminal_observation"])
            else:
                assert_array_equal(step.next_obs[i], step.obs[i])
        returned: Any = sb3s.step(actions)
        for i in np.flatnonzero(dones).tolist():
            assert isinstance(returned[3][i]["terminal_observation"], np.ndarray)
        for value, expected in zip(returned[:3], (obs, rewards, dones), strict=True):
            assert isinstance(value, np.ndarray)
            assert_array_equal(value, expected)


@pytest.mark.parametrize("emulator", ["coordrl", "ale"])
def test_staggered_games_begin_at_equal_distances(emulator: str) -> None:
    settings = AtariSettings(noop_max=0, fire_reset=False)
    frames = []
    for stagger in (0, 10):
        envs = make_sb3_env("Breakout", 4, settings, seed=0, stagger=stagger, emulator=emulator)
        envs.reset()
        frames.append(envs.envs.step(np.zeros(4, np.int64))[4]["episode_frame_number"])
    assert (frames[1] - frames[0]).tolist() == [40, 32, 20, 12]


def test_a_staggered_game_is_one_that_began_later_and_was_played_as_long() -> None:
    envs = make_sb3_env("Breakout", 3, seed=5, stagger=6)
    obs = envs.reset()
    begins_at = [0, 2, 4]
    alone = AtariVectorEnv("Breakout", 3, autoreset_mode=SAME_STEP)
    played: Any = alone.reset(seed=5)[0]
    alone.action_space.seed(5)
    for step in range(6):
        if step in (2, 4):
            alone.reset(options={"reset_mask": np.arange(3) == begins_at.index(step)})
        played = alone.step(alone.action_space.sample())[0]
    assert_array_equal(obs, played)
    assert len(np.unique(played.reshape(3, -1), axis=0)) == 3


def test_staggered_games_count_from_where_they_began() -> None:
    envs = VectorEnvAdapter(Counting(), stagger=4)
    assert_array_equal(envs.reset(), [[0], [2]])  # four steps of two, and two of three
    steps = [envs.step_torch(torch.zeros(2, dtype=torch.int64)) for _ in range(4)]
    ended = [step.episode_length[step.game_ended].tolist() for step in steps]
    assert ended == [[3], [2], [], [2, 3]]


def test_arrays_are_what_a_staggered_environment_on_a_device_begins_with() -> None:
    obs: Any = VectorEnvAdapter(OnDevice(), stagger=1).reset()
    assert isinstance(obs, np.ndarray)
    assert obs.tolist() == [[1], [1]]


def test_a_negative_stagger_is_refused() -> None:
    with pytest.raises(TypeError, match=r"stagger must be a whole number, got 2\.5"):
        make_sb3_env("Pong", 2, stagger=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"stagger must be at least 0, got -1"):
        make_sb3_env("Pong", 2, stagger=-1)


@pytest.mark.parametrize("frame_skip", [1, 3])
@pytest.mark.parametrize("emulator", ["coordrl", "ale"])
def test_no_episode_is_truncated_before_its_shortest_time(emulator: str, frame_skip: int) -> None:
    settings = AtariSettings(max_frames_per_episode=100, frame_skip=frame_skip)
    envs = make_sb3_env("Breakout", 4, settings, seed=0, emulator=emulator)
    envs.reset()
    lengths: list[int] = []
    for _ in range(240 // frame_skip):
        step = envs.step_torch(torch.zeros(4, dtype=torch.int64))
        lengths += step.episode_length[step.truncated & step.game_ended].tolist()
    assert len(lengths) >= 8
    assert envs.shortest_timeout <= min(lengths) <= envs.shortest_timeout + 1
    envs.close()


def test_attributes_and_methods_are_those_of_the_vector_environment() -> None:
    counting: Any = Counting()
    counting.ages, counting.table = torch.tensor([5, 6]), np.zeros((3, 2))
    envs = VectorEnvAdapter(NormalizeReward(counting))
    assert envs.get_attr("ages") == [5, 6]
    assert envs.get_attr("table", indices=1) == [counting.table]
    assert envs.get_attr("speed") == [1, 1]
    assert envs.get_attr("speed", indices=1) == [1]
    envs.set_attr("speed", 3)
    assert envs.get_attr("speed", indices=[0]) == [3]
    assert envs.env_method("double", 4) == [8, 8]
    assert envs.has_attr("speed")
    assert not envs.has_attr("altitude")
    with pytest.raises(AttributeError, match="'Counting' object has no attribute 'altitude'"):
        envs.get_attr("altitude")
    with pytest.raises(ValueError, match="cannot set speed for some environments only"):
        envs.set_attr("speed", 3, indices=0)
    with pytest.raises(ValueError, match=r"NormalizeReward cannot be saved: it has no method save"):
        envs.save()


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_attributes_and_methods_are_those_of_environments_in_a_vector(
    kind: type[SyncVectorEnv | AsyncVectorEnv],
) -> None:
    make = functools.partial(gymnasium.make, "CartPole-v1")
    envs = VectorEnvAdapter(kind([make, make], autoreset_mode=AutoresetMode.SAME_STEP))
    stock = DummyVecEnv([make, make])
    for each in (envs, stock):
        each.set_attr("gravity", 3.0, indices=1)
        assert each.get_attr("gravity") == [9.8, 3.0]
        assert each.get_attr("gravity", indices=[1, 0]) == [3.0, 9.8]
        assert each.env_method("get_wrapper_attr", "gravity") == [9.8, 3.0]
        each.set_attr("gravity", 2.0)
        assert each.get_attr("gravity") == [2.0, 2.0]
        each.set_attr("label", "new")
        assert each.get_attr("label") == ["new", "new"]
    if kind is SyncVectorEnv:  # the other kind ends its processes
        with pytest.raises(AttributeError, match="has no attribute 'altitude'"):
            envs.get_attr("altitude")
    with pytest.raises(ValueError, match="cannot call get_wrapper_attr for some environments only"):
        envs.env_method("get_wrapper_attr", "gravity", indices=0)
    envs.close()


def test_games_have_their_own_lives_and_no_attributes_by_mistake() -> None:
    envs = make_sb3_env("Breakout", 2, seed=0)
    envs.reset()
    assert envs.get_attr("lives") == [5, 5]
    assert envs.get_attr("lives", indices=1) == [5]
    with pytest.raises(AttributeError, match="has no attribute 'livse'"):
        envs.set_attr("livse", 3)
    envs.close()


class Costly(gymnasium.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated, truncated, {**info, "cost": float(obs[0])}


def test_infos_of_episodes_that_go_on_are_those_of_the_environment() -> None:
    def make() -> gymnasium.Env[Any, Any]:
        return Costly(gymnasium.make("CartPole-v1", max_episode_steps=3))

    envs = VectorEnvAdapter(SyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode.SAME_STEP))
    stock = DummyVecEnv([make] * 2)
    for each in (envs, stock):
        each.seed(3)
        each.reset()
    for step in range(1, 4):
        ours, theirs = (each.step(np.array([0, 1]))[3] for each in (envs, stock))
        assert [info["cost"] for info in ours] == [info["cost"] for info in theirs]
        assert ["terminal_observation" in info for info in ours] == [step == 3] * 2


def test_what_an_info_says_of_all_environments_each_is_told() -> None:
    class Logging(Counting):
        def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
            *rest, info = super().step(actions)
            return *rest, {**info, "seconds": 0.5, "pace": [1, 2], "name": "both"}

    envs = VectorEnvAdapter(Logging())
    envs.reset()
    infos = envs.step(np.array([0, 0]))[3]
    assert [(i["seconds"], i["pace"], i["name"]) for i in infos] == [
        (0.5, 1, "both"),
        (0.5, 2, "both"),
    ]


def test_images_are_tiled_as_sb3_does() -> None:
    counting = Counting()
    counting.render_mode = "rgb_array"
    envs = VectorEnvAdapter(counting)
    image = envs.render()
    assert image is not None
    assert image[:, 0, 0].tolist() == [0, 0, 1, 1]


def test_screens_of_games_are_tiled() -> None:
    envs = make_sb3_env("Breakout", 3, seed=0, render_mode="rgb_array")
    envs.reset()
    image, screens = envs.render(), envs.get_images()
    assert envs.render_mode == "rgb_array"
    assert image is not None
    assert image.shape == (2 * 210, 2 * 160, 3)
    assert_array_equal(image[:210, 160:], screens[1])
    envs.close()


@pytest.mark.parametrize("mode", [NEXT_STEP, AutoresetMode.DISABLED, None])
def test_other_autoreset_modes_are_refused(mode: Any) -> None:
    with pytest.raises(ValueError, match=r"reset in the same step; make them with .*got"):
        VectorEnvAdapter(Counting(mode))


def test_equals_dummy_vec_env_on_the_same_environments() -> None:
    def make() -> gymnasium.Env[Any, Any]:
        return gymnasium.make("CartPole-v1", max_episode_steps=15)

    ours = VectorEnvAdapter(SyncVectorEnv([make] * 3, autoreset_mode=SAME_STEP))
    theirs = DummyVecEnv([lambda: Monitor(make())] * 3)
    for envs in (ours, theirs):
        envs.seed(3)
    assert_array_equal(ours.reset(), theirs.reset())
    ends = {True: 0, False: 0}
    for actions in np.random.default_rng(0).integers(2, size=(200, 3)):
        obs, rewards, dones, infos = ours.step(actions)
        expected_obs, expected_rewards, expected_dones, expected_infos = theirs.step(actions)

        assert_array_equal(obs, expected_obs)
        assert_array_equal(rewards, expected_rewards)
        assert_array_equal(dones, expected_dones)
        for info, expected in zip(infos, expected_infos, strict=True):
            assert info.keys() ^ expected.keys() <= {"TimeLimit.truncated"}
            if not info:
                continue
            assert_array_equal(info["terminal_observation"], expected["terminal_observation"])
            assert info["TimeLimit.truncated"] == expected["TimeLimit.truncated"]
            for key in ("r", "l"):
                assert info["episode"][key] == expected["episode"][key]
            ends[info["TimeLimit.truncated"]] += 1
    assert min(ends.values()) > 3


# --- SB3's Atari wrappers --------------------------------------------------------------------


class Wrapped:
    """A game in SB3's Atari wrappers, without their idle frames, which are random."""

    def __init__(self, game: str) -> None:
        gymnasium.register_envs(ale_py)
        env = gymnasium.make(f"{game}NoFrameskip-v4")
        self.env = Monitor(AtariWrapper(env, noop_max=0))
        self.monitored = env
        self.is_fired = "FIRE" in env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]

    def reset(self, **kwargs: Any) -> Any:
        return self.env.reset(**kwargs)[0][:, :, 0]


def picture_difference(ours: Any, theirs: Any) -> float:
    return float(np.abs(ours.astype(int) - theirs.astype(int)).mean())


@pytest.mark.parametrize(("game", "tolerance"), [("Breakout", 0), ("MsPacman", 0.2)])
def test_equals_sb3s_atari_wrappers(game: str, tolerance: float) -> None:
    """Rewards, ends and lives agree at every step, pictures up to the conversion to gray.

    SB3 takes the maximum of two colored frames and converts it to gray; here, as in ale-py, the
    frames are gray before the maximum is taken. The order matters where a pixel changes its color,
    as ghosts do in Ms. Pac-Man: there the mean of a picture may differ by 0.2 of 255 levels.

    SB3's wrappers play a few steps unseen at a reset: NOOP after a lost life, and FIRE and the
    action after it in games that have FIRE. Here they are played in the open.
    """
    theirs = Wrapped(game)
    settings = AtariSettings(noop_max=0, fire_reset=False, fire_after_life_loss=False)
    ours = make_sb3_env(game, 1, settings, seed=5)

    def play(*actions: int) -> Any:
        return [ours.step(np.array([action])) for action in actions][-1]

    our_obs: Any = ours.reset()
    our_obs = (play(1, 2)[0] if theirs.is_fired else our_obs)[0, -1]
    their_obs = theirs.reset(seed=5)
    differences, ends, lives_lost = [], 0, 0
    for action in np.random.default_rng(1).integers(1, ours.action_space.n, size=700):  # type: ignore[attr-defined]
        differences.append(picture_difference(our_obs, their_obs))
        their_step = theirs.env.step(action)
        obs, rewards, dones, infos = play(action)

        assert rewards[0] == their_step[1]
        assert dones[0] == their_step[2] or their_step[3]
        our_obs, their_obs = obs[0, -1], their_step[0][:, :, 0]
        if not dones[0]:
            continue
        game_over = "episode" in infos[0]
        lives_lost += not game_over
        ends += game_over
        their_obs = theirs.reset()
        if not game_over:
            our_obs = play(0)[0][0, -1]
        if theirs.is_fired:
            our_obs = play(1, 2)[0][0, -1]
    assert ends > 0
    assert lives_lost > 2
    assert max(differences) <= tolerance


# --- everything stock ------------------------------------------------------------------------


@pytest.fixture
def breakout() -> Iterator[VectorEnvAdapter]:
    envs = make_sb3_env("Breakout", 2, AtariSettings(max_frames_per_episode=600), seed=0)
    yield envs
    envs.close()


def test_rewards_are_signs_lives_end_episodes_and_games_have_the_unclipped_return(
    breakout: VectorEnvAdapter,
) -> None:
    reference = AtariVectorEnv(
        "Breakout",
        2,
        AtariSettings(max_frames_per_episode=600, clip_reward=False),
    )
    breakout.reset()
    reference.reset(seed=0)
    score = np.zeros(2)
    lives_lost, games = 0, 0
    for actions in np.random.default_rng(0).integers(4, size=(300, 2)):
        _, rewards, dones, infos = breakout.step(actions)
        _, points, terminated, truncated, _ = reference.step(actions)
        score += points

        assert rewards.dtype == np.float32
        assert_array_equal(rewards, np.sign(points))
        assert_array_equal(dones, terminated | truncated)
        for i, info in enumerate(infos):
            assert bool(info) == dones[i]
            if not info:
                continue
            assert info["terminal_observation"].shape == (4, 84, 84)
            assert info["TimeLimit.truncated"] == (truncated[i] and not terminated[i])
            if "episode" in info:
                games += 1
                assert info["episode"]["r"] == score[i]
                assert info["episode"]["frames"] <= 600
                assert info["episode"]["l"] == -(-info["episode"]["frames"] // 4)
                score[i] = 0
            else:
                lives_lost += 1
    assert games > 2
    assert lives_lost > 5
    reference.close()


def test_sb3s_seeds_of_up_to_32_bits_are_taken() -> None:
    envs = make_sb3_env("Pong", 1, seed=2**32 - 1)
    first = envs.reset_infos
    envs.reset()
    first = envs.reset_infos
    envs.seed(2**31 - 1)
    envs.reset()
    assert first == envs.reset_infos
    np.random.seed(0)  # noqa: NPY002 - SB3 draws its seeds there
    envs.seed()
    envs.reset()
    envs.close()


def test_monitor_is_there_and_wrappers_of_vec_envs_are_told_apart(
    breakout: VectorEnvAdapter,
) -> None:
    assert breakout.env_is_wrapped(Monitor) == [True, True]
    assert breakout.env_is_wrapped(Monitor, indices=0) == [True]
    assert breakout.env_is_wrapped(AtariWrapper) == [False, False]
    assert breakout.env_is_wrapped(gymnasium.Wrapper) == [False, False]
    assert not is_vecenv_wrapped(breakout, VecMonitor)
    assert breakout.get_attr("game") == ["breakout", "breakout"]
    assert breakout.env_method("get_action_meanings")[0] == ["NOOP", "FIRE", "RIGHT", "LEFT"]


@pytest.fixture(scope="module")
def policy() -> PPO:
    torch.manual_seed(0)
    envs = make_sb3_env("Breakout", 1)
    return PPO("CnnPolicy", envs, n_steps=8, batch_size=8, n_epochs=1, seed=0)


def test_evaluate_policy_reports_whole_games(policy: PPO) -> None:
    settings = AtariSettings(max_frames_per_episode=800)
    envs = make_sb3_env("Breakout", 2, settings, seed=1)
    returns, lengths = evaluate_policy(
        policy, envs, n_eval_episodes=3, deterministic=False, return_episode_rewards=True
    )
    assert len(returns) == 3  # type: ignore[arg-type]
    assert all(100 < length <= 200 for length in lengths)  # type: ignore[union-attr]
    envs.close()


def test_eval_callback_trains_and_evaluates_without_a_warning(tmp_path: Path) -> None:
    envs = make_sb3_env("Breakout", 2, seed=0)
    judged = make_sb3_env(
        "Breakout", 1, AtariSettings(life_loss="ignore", max_frames_per_episode=200), seed=1
    )
    model = PPO("CnnPolicy", envs, n_steps=16, batch_size=16, n_epochs=1, seed=0)
    callback = EvalCallback(
        judged, n_eval_episodes=1, eval_freq=16, log_path=str(tmp_path), verbose=0
    )
    model.learn(64, callback=callback)
    evaluations = np.load(tmp_path / "evaluations.npz")
    assert evaluations["ep_lengths"].tolist() == [[50], [50]]
    for each in (envs, judged):
        each.close()


def test_dqn_stores_the_last_observation_of_an_episode() -> None:
    envs = make_sb3_env("Breakout", 2, AtariSettings(max_frames_per_episode=40), seed=0)
    model = DQN("CnnPolicy", envs, buffer_size=60, learning_starts=1000, seed=0)
    model.learn(40)
    buffer: Any = model.replay_buffer
    assert buffer.timeouts[9].tolist() == [1, 1]
    assert buffer.dones[9].tolist() == [1, 1]
    last, first = buffer.next_observations[9], buffer.observations[10]
    assert (last[:, 0] > 0).any()
    assert (first[:, 0] == 0).all()  # of an empty stack
    envs.close()


def test_vec_normalize_fits(breakout: VectorEnvAdapter) -> None:
    envs = VecNormalize(breakout, norm_obs=False)
    assert envs.reset().shape == (2, 4, 84, 84)  # type: ignore[union-attr]
    infos = [info for _ in range(150) for info in envs.step(np.array([1, 1]))[3]]
    assert sum("terminal_observation" in info for info in infos) > 4
    assert sum("episode" in info for info in infos) >= 2


def test_vec_monitor_counts_lives_where_the_adapter_counts_games(
    breakout: VectorEnvAdapter,
) -> None:
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        envs = VecMonitor(breakout)
    envs.reset()
    points, lengths = np.zeros(2), np.zeros(2)
    for actions in np.random.default_rng(0).integers(4, size=(120, 2)):
        _, rewards, dones, infos = envs.step(actions)
        points += rewards
        lengths += 1
        for i in np.flatnonzero(dones):
            assert infos[i]["episode"]["r"] == points[i]
            assert infos[i]["episode"]["l"] == lengths[i]
            points[i] = lengths[i] = 0


def test_restored_environments_go_on_with_their_statistics() -> None:
    settings = AtariSettings(max_frames_per_episode=200)
    ours, theirs = (make_sb3_env("Breakout", 2, settings, seed=seed) for seed in (0, 1))
    ours.reset()
    actions = np.random.default_rng(0).integers(4, size=(130, 2))
    for chosen in actions[:30]:
        obs = ours.step(chosen)[0]
    assert_array_equal(theirs.restore(ours.save()), obs)
    episodes = []
    for chosen in actions[30:]:
        *arrays, infos = ours.step(chosen)
        *expected, expected_infos = theirs.step(chosen)
        for array, other in zip(arrays, expected, strict=True):
            assert_array_equal(array, other)
        for info, other_info in zip(infos, expected_infos, strict=True):
            assert info.keys() == other_info.keys()
            if "episode" in info:
                seconds, other_seconds = (each["episode"].pop("t") for each in (info, other_info))
                assert seconds == pytest.approx(other_seconds, abs=0.5)
                assert info["episode"] == other_info["episode"]
                episodes.append(info["episode"])
    assert len(episodes) > 3
    assert episodes[0]["l"] == 50
    for envs in (ours, theirs):
        envs.close()


def test_environments_without_save_are_named() -> None:
    envs = VectorEnvAdapter(Counting())
    with pytest.raises(ValueError, match=r"Counting.* cannot be saved: it has no method save"):
        envs.save()
    with pytest.raises(ValueError, match="cannot be restored: it has no method restore"):
        envs.restore(b"")


class Saving(Counting):
    """Counting, which can be saved."""

    def save(self) -> bytes:
        return self.count.tobytes()

    def restore(self, state: bytes) -> Any:
        self.count = np.frombuffer(state, np.uint8).reshape(2, 1).copy()
        return self.count.copy()


def test_restored_environments_of_any_kind_go_on_with_their_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "time", lambda: now)
    ours, theirs = VectorEnvAdapter(Saving()), VectorEnvAdapter(Saving())
    ours.reset()
    now = 107.0
    ours.step(np.array([1, 1]))
    state = ours.save()
    now = 200.0
    theirs.reset()
    now = 300.0

    theirs.restore(state)

    now = 304.0
    infos = theirs.step(np.array([1, 1]))[3]
    assert infos[0]["episode"] == {"r": 1.0, "l": 2, "t": 11.0}
    now = 305.0
    infos = theirs.step(np.array([1, 1]))[3]
    assert infos[1]["episode"] == {"r": 1.5, "l": 3, "t": 12.0}
    now = 306.5
    infos = theirs.step(np.array([1, 1]))[3]
    assert infos[0]["episode"] == {"r": 1.0, "l": 2, "t": 2.5}
    with pytest.raises(ValueError, match="num_envs=3, here it is 2"):
        theirs.restore(pack_state({"num_envs": 3}, {}, {}))


def test_a_state_of_the_games_alone_is_refused() -> None:
    with contextlib.closing(make_sb3_env("Pong", 1, seed=0)) as envs:
        envs.reset()
        with pytest.raises(ValueError, match="not saved by an adapter: 'envs' is missing"):
            envs.restore(envs.envs.save())  # type: ignore[attr-defined]


def test_a_game_that_a_reset_begins_is_timed_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "time", lambda: now)
    envs = VectorEnvAdapter(Counting())
    now = 150.0
    envs.reset()
    now = 151.0
    envs.step(np.array([1, 1]))
    assert envs.step(np.array([1, 1]))[3][0]["episode"]["t"] == 1.0


def test_closing_the_adapter_closes_the_games() -> None:
    envs = make_sb3_env("Pong", 1)
    envs.close()
    assert envs.envs.closed


def test_a_method_is_called_once_and_told_for_each_index() -> None:
    envs = VectorEnvAdapter(Counting())
    assert envs.env_method("double", 4, indices=1) == [8]


def test_the_shortest_timeout_of_other_environments_is_not_known() -> None:
    assert VectorEnvAdapter(Counting()).shortest_timeout == 1


def test_an_episode_of_less_than_a_step_takes_one() -> None:
    envs = make_sb3_env("Pong", 1, AtariSettings(frame_skip=4, max_frames_per_episode=3))
    assert envs.shortest_timeout == 1
    envs.close()


def test_rewards_are_float32_whatever_the_environment_gives() -> None:
    envs = VectorEnvAdapter(Counting())  # whose rewards are float64
    envs.reset()
    assert envs.step(np.array([0, 1]))[1].dtype == np.float32


def test_a_restored_environment_on_a_device_gives_an_array() -> None:
    class Restoring(OnDevice, Saving):
        def restore(self, state: bytes) -> Any:
            return torch.from_numpy(super().restore(state))

    envs = VectorEnvAdapter(Restoring())
    envs.reset()
    envs.step(np.array([0, 1]))
    obs = envs.restore(envs.save())
    assert isinstance(obs, np.ndarray)
    assert obs.tolist() == [[1], [1]]
