"""SB3's algorithms with fewer copies: the same samples and updates as SB3's own."""

import contextlib
import dataclasses
from typing import Any

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch.testing import assert_close

from coordrl.algorithms import (
    ALGORITHMS,
    DQN,
    FrameReplayBuffer,
    ImageRolloutBuffer,
    make_model,
    setting_keywords,
)
from coordrl.config import OptimizerSettings, RunSettings, Schedule, TrainingSettings
from coordrl.extractors import policy_kwargs

STACK, HEIGHT, WIDTH = 3, 20, 25
SPACE = spaces.Box(0, 255, (STACK, HEIGHT, WIDTH), np.uint8)
ACTIONS = spaces.Discrete(4)
EXTRACTOR = {"specs": [[4, 8, 4], [6, 3, 1]], "features_dim": 16, "coords": "all"}


@pytest.mark.parametrize("buffer", [ImageRolloutBuffer, FrameReplayBuffer])
@pytest.mark.parametrize(
    "space", [spaces.Box(-10, 10, (3, 36, 40)), spaces.Box(0, 255, (128,), np.uint8)]
)
def test_what_no_byte_can_hold_is_refused(buffer: Any, space: spaces.Box) -> None:
    with pytest.raises(ValueError, match=r"keeps images of bytes \(C, H, W\), got Box.*norm_obs=F"):
        buffer(5, space, ACTIONS, "cpu", n_envs=2)


def seed_everything(seed: int) -> None:
    """Seed the streams that SB3's policies, buffers and DQN draw from."""
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


class NoiseEnv(VecEnv):
    """Stacks of random frames; a game ends at random, now and then by running out of time."""

    def __init__(self, num_envs: int, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.stack = np.zeros((num_envs, *SPACE.shape), np.uint8)
        super().__init__(num_envs, SPACE, ACTIONS)

    def push(self, envs: Any) -> None:
        self.stack[envs] = np.roll(self.stack[envs], -1, axis=1)
        self.stack[envs, -1] = self.rng.integers(0, 256, self.stack[envs, -1].shape, np.uint8)

    def reset(self) -> Any:
        self.stack[:] = 0
        self.push(slice(None))
        return self.stack.copy()

    def step_async(self, actions: Any) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        self.push(slice(None))
        last = self.stack.copy()
        chance = self.rng.random(self.num_envs)
        game_over, out_of_time = chance < 0.1, (chance >= 0.1) & (chance < 0.2)
        life_lost = (chance >= 0.2) & (chance < 0.3)
        infos: list[dict[str, Any]] = [{} for _ in chance]
        for i in np.flatnonzero(game_over | out_of_time | life_lost):
            truncated = bool(out_of_time[i])
            infos[i] = {"terminal_observation": last[i], "TimeLimit.truncated": truncated}
            if not life_lost[i]:
                self.stack[i] = 0
                self.push([i])
        dones = game_over | out_of_time | life_lost
        rewards = self.rng.standard_normal(self.num_envs).astype(np.float32)
        return self.stack.copy(), rewards, dones, infos

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kw: Any) -> list[Any]:
        return []

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def settings(algo: Any, **algorithm: Any) -> TrainingSettings:
    return TrainingSettings(
        run=RunSettings(algo=algo), algorithm=algorithm, extractor=dict(EXTRACTOR)
    )


def stock_model(model: Any, cls: Any, num_envs: int, **keywords: Any) -> Any:
    """Build the same model from SB3's own classes, with the weights of ``model``."""
    stock = cls(
        "CnnPolicy", NoiseEnv(num_envs), policy_kwargs=model.policy_kwargs, seed=0, **keywords
    )
    stock.policy.load_state_dict(model.policy.state_dict())
    return stock


@pytest.mark.parametrize("batch_size", [None, 4], ids=["whole", "minibatches"])
def test_rollout_buffer_yields_the_samples_of_sb3s(batch_size: int | None) -> None:
    ours = ImageRolloutBuffer(5, SPACE, ACTIONS, "cpu", 0.9, 0.99, n_envs=3)
    stock = RolloutBuffer(5, SPACE, ACTIONS, "cpu", 0.9, 0.99, n_envs=3)
    rng = np.random.default_rng(0)
    for _rollout in range(2):
        steps = [
            (
                rng.integers(0, 256, (3, *SPACE.shape), np.uint8),
                rng.integers(0, 4, (3, 1)),
                rng.standard_normal(3),
                rng.random(3) < 0.3,
                torch.from_numpy(rng.standard_normal(3)).float(),
                torch.from_numpy(rng.standard_normal(3)).float(),
            )
            for _ in range(5)
        ]
        for buffer in (ours, stock):
            buffer.reset()
            for step in steps:
                buffer.add(*step)
            buffer.compute_returns_and_advantage(torch.ones(3), np.array([True, False, False]))

        for _epoch in range(2):
            seed_everything(1)
            expected = list(stock.get(batch_size))
            seed_everything(1)
            for batch, other in zip(ours.get(batch_size), expected, strict=True):
                assert batch.observations.is_contiguous(memory_format=torch.channels_last)
                for field, value in batch._asdict().items():
                    assert_close(value, getattr(other, field), rtol=0, atol=0)
        np.testing.assert_array_equal(ours.values, stock.values)
        np.testing.assert_array_equal(ours.returns, stock.returns)


def fill(buffers: list[ReplayBuffer], env: NoiseEnv, steps: int, obs: Any = None) -> Any:
    obs = env.reset() if obs is None else obs
    for _ in range(steps):
        actions = env.rng.integers(0, 4, env.num_envs)
        env.step_async(actions)
        new_obs, rewards, dones, infos = env.step_wait()
        next_obs = new_obs.copy()
        for i in np.flatnonzero(dones):
            next_obs[i] = infos[i]["terminal_observation"]
        for buffer in buffers:
            given: Any = [array.copy() for array in (obs, next_obs, actions, rewards, dones, infos)]
            buffer.add(*given)
            for array in given[:-1]:  # the caller's, who may use them again
                array.fill(1)
        obs = new_obs
    return obs


def assert_same_samples(ours: ReplayBuffer, stock: ReplayBuffer) -> None:
    for seed in range(20):
        seed_everything(seed)
        expected = stock.sample(16)
        seed_everything(seed)
        for value, other in zip(ours.sample(16), expected, strict=True):
            if other is None:
                assert value is None
            else:
                assert_close(value, other, rtol=0, atol=0)


@pytest.mark.parametrize("buffer_size", [1, 8, 21, 300])
def test_replay_buffer_yields_the_samples_of_sb3s(buffer_size: int) -> None:
    num_envs = 3
    ours = FrameReplayBuffer(buffer_size, SPACE, ACTIONS, "cpu", num_envs)
    stock = ReplayBuffer(buffer_size, SPACE, ACTIONS, "cpu", num_envs)
    env = NoiseEnv(num_envs)
    obs = None
    for steps in (1, 2, 5, 50):  # a few, then so many that the shorter buffers go round
        obs = fill([ours, stock], env, steps, obs)
        assert ours.size() == stock.size()
        assert_same_samples(ours, stock)
    fill([ours, stock], env, 7)  # after a reset that no transition has announced
    assert_same_samples(ours, stock)
    assert len(ours._final_frames) <= ours.buffer_size


def test_replay_buffer_takes_timeouts_for_ends_if_it_is_told_to_as_sb3s() -> None:
    buffers = [
        kind(300, SPACE, ACTIONS, "cpu", 3, handle_timeout_termination=False)
        for kind in (FrameReplayBuffer, ReplayBuffer)
    ]
    fill(buffers, NoiseEnv(3), 50)
    assert_same_samples(*buffers)


def test_replay_buffer_that_was_reset_is_as_a_new_one() -> None:
    ours = FrameReplayBuffer(21, SPACE, ACTIONS, "cpu", n_envs=3)
    stock = ReplayBuffer(21, SPACE, ACTIONS, "cpu", n_envs=3)
    env = NoiseEnv(3)
    for steps in (5, 30):  # once before it is full, once after
        fill([ours, stock], env, steps)
        for buffer in (ours, stock):
            buffer.reset()
            assert buffer.size() == 0
        fill([ours, stock], env, 4)
        assert_same_samples(ours, stock)


def test_replay_buffer_goes_on_from_its_state() -> None:
    ours = FrameReplayBuffer(40, SPACE, ACTIONS, "cpu", n_envs=2)
    stock = ReplayBuffer(40, SPACE, ACTIONS, "cpu", n_envs=2)
    restored = FrameReplayBuffer(40, SPACE, ACTIONS, "cpu", n_envs=2)
    restored.restore(ours.state())
    assert restored.size() == 0
    env = NoiseEnv(2)
    obs = None
    for steps in (6, 41):
        obs = fill([ours, stock], env, steps, obs)
        restored.restore({name: array.copy() for name, array in ours.state().items()})
        assert_same_samples(restored, stock)
    fill([restored, stock], env, 5, obs)
    assert_same_samples(restored, stock)


def test_replay_buffer_keeps_each_frame_once() -> None:
    ours = FrameReplayBuffer(1000, SPACE, ACTIONS, "cpu", n_envs=4)
    stock = ReplayBuffer(1000, SPACE, ACTIONS, "cpu", n_envs=4)
    frames = sum(array.nbytes for array in (stock.observations, stock.next_observations))
    assert ours._frames.numel() < frames / (2 * STACK) * 1.02


def test_replay_buffer_refuses_what_is_no_stack_of_frames() -> None:
    buffer = FrameReplayBuffer(10, SPACE, ACTIONS, "cpu", n_envs=2)
    env = NoiseEnv(2)
    obs = fill([buffer], env, 1)
    obs[1] = 7
    with pytest.raises(ValueError, match=r"stacks of frames .* environment 1 does neither"):
        fill([buffer], env, 1, obs)


SHORT_RUN: dict[str, dict[str, Any]] = {
    "a2c": {"n_steps": 4},
    "ppo": {"n_steps": 8, "batch_size": 4, "n_epochs": 2},
    "dqn": {"buffer_size": 50, "learning_starts": 8, "train_freq": 2, "batch_size": 4},
}


@pytest.mark.parametrize("algo", SHORT_RUN)
def test_updates_equal_those_of_sb3s_own_classes(algo: str) -> None:
    num_envs = 1 if algo == "dqn" else 2  # in several environments DQN explores otherwise
    ours = make_model(settings(algo, **SHORT_RUN[algo]), NoiseEnv(num_envs), seed=0)
    stock_class = getattr(stable_baselines3, algo.upper())
    stock = stock_model(ours, stock_class, num_envs, **SHORT_RUN[algo])
    before = {name: value.clone() for name, value in stock.policy.state_dict().items()}

    for model in (ours, stock):
        seed_everything(3)
        model.action_space.seed(3)
        model.learn(48)

    after = stock.policy.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in after)
    for name, value in ours.policy.state_dict().items():
        assert_close(value, after[name], rtol=1e-3, atol=1e-5)


def test_dqn_explores_in_each_environment_on_its_own() -> None:
    num_envs = 200
    model = make_model(settings("dqn", buffer_size=200), NoiseEnv(num_envs), seed=0)
    assert isinstance(model, DQN)
    obs = NoiseEnv(num_envs).reset()
    greedy, _ = model.predict(obs, deterministic=True)
    model.exploration_rate = 0.5

    agrees = np.mean([model.predict(obs)[0] == greedy for _ in range(50)], axis=0)

    # Each agrees when it does not explore, and one time in four when it does.
    assert abs(agrees.mean() - 0.625) < 0.02
    assert agrees.min() > 0.3
    assert agrees.max() < 0.95


def test_replayed_rewards_are_normalized_as_sb3_does_it() -> None:
    sampled = []
    kwargs: dict[str, Any] = EXTRACTOR
    for replay in (ReplayBuffer, FrameReplayBuffer):
        env = VecNormalize(NoiseEnv(2), norm_obs=False)
        model = stable_baselines3.DQN(
            "CnnPolicy", env, replay_buffer_class=replay, buffer_size=100, seed=0,
            learning_starts=1000, policy_kwargs=policy_kwargs(**kwargs),
        )  # fmt: skip
        seed_everything(0)
        ACTIONS.seed(0)
        model.learn(60)
        assert model.replay_buffer is not None
        seed_everything(1)
        sampled.append(model.replay_buffer.sample(20, env=env).rewards)
        seed_everything(1)
        raw = model.replay_buffer.sample(20).rewards
        assert not torch.allclose(sampled[-1], raw)
    assert torch.equal(*sampled)


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_dqn_with_one_environment_explores_as_sb3s(rate: float) -> None:
    ours = make_model(settings("dqn", buffer_size=10), NoiseEnv(1), seed=0)
    stock = stock_model(ours, stable_baselines3.DQN, 1, buffer_size=10)
    obs = NoiseEnv(1).reset()
    chosen = []
    for model in (ours, stock):
        assert isinstance(model, stable_baselines3.DQN)
        model.exploration_rate = rate
        seed_everything(0)
        model.action_space.seed(0)
        chosen.append([int(model.predict(obs)[0][0]) for _ in range(40)])
    assert chosen[0] == chosen[1]


def test_dqn_explores_as_much_where_an_observation_has_parts() -> None:
    class Parts(gymnasium.Env[dict[str, Any], np.int64]):
        observation_space = spaces.Dict({"place": spaces.Box(-1, 1, (3,), seed=0)})
        action_space = spaces.Discrete(3, seed=0)

    observation = {"place": np.linspace(-1, 1, 60, dtype=np.float32).reshape(20, 3)}
    chosen = []
    for kind, obs in (("MultiInputPolicy", observation), ("MlpPolicy", observation["place"])):
        env = (
            Parts()
            if kind == "MultiInputPolicy"
            else gymnasium.wrappers.FlattenObservation(Parts())
        )
        model = DQN(kind, env, seed=0, buffer_size=10)
        model.exploration_rate = 0.5
        chosen.append(model.predict(obs)[0].tolist())

    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 20


class StopAfter(BaseCallback):
    """Stops within a rollout, or as Ctrl-C does."""

    def __init__(self, calls: int, *, raises: bool) -> None:
        super().__init__()
        self.calls = calls
        self.raises = raises

    def _on_step(self) -> bool:
        if self.raises and self.n_calls == self.calls:
            raise KeyboardInterrupt
        return self.n_calls < self.calls


@pytest.mark.parametrize("raises", [False, True])
def test_dqn_that_a_callback_stopped_goes_on_where_its_games_are(raises: bool) -> None:
    def model_of(train_freq: int) -> Any:
        keywords = {"train_freq": train_freq, "learning_starts": 1000, "buffer_size": 200}
        return make_model(settings("dqn", **keywords), NoiseEnv(2, seed=5), seed=0)

    stopped, whole = model_of(4), model_of(1)
    ACTIONS.seed(3)
    with pytest.raises(KeyboardInterrupt) if raises else contextlib.nullcontext():
        stopped.learn(1000, callback=StopAfter(6, raises=raises))
    stopped.learn(32, reset_num_timesteps=False)
    ACTIONS.seed(3)
    whole.learn(44)

    assert stopped.num_timesteps == whole.num_timesteps == 44
    ours, expected = stopped.replay_buffer.state(), whole.replay_buffer.state()
    for name, array in expected.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def test_dqn_stores_no_step_of_an_earlier_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = make_model(settings("dqn", buffer_size=200), NoiseEnv(2), seed=0)
    callback = StopAfter(4, raises=False)
    model.learn(1000, callback=callback)

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "_sample_action", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.learn(1000, callback=callback)
    assert model.replay_buffer.pos == 4


def test_dqn_stores_a_step_once_though_what_follows_it_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = make_model(settings("dqn", buffer_size=200), NoiseEnv(2), seed=0)

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "_on_step", interrupted)  # behind the storing of a step
    with pytest.raises(KeyboardInterrupt):
        model.learn(100)
    assert model.replay_buffer.pos == 1


def test_dqn_tells_once_that_its_games_were_stepped_by_others() -> None:
    model: Any = make_model(settings("dqn", buffer_size=200), NoiseEnv(2), seed=0)
    model.learn(10)
    for _ in range(3):
        model.env.step(np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="reset or stepped between two calls") as caught:
        model.learn(10, reset_num_timesteps=False)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(("num_envs", "given", "made"), [(1, 1, 1), (8, 1, 8), (4, -1, -1)])
def test_dqn_keeps_its_ratio_of_updates_whatever_the_number_of_environments(
    num_envs: int, given: int, made: int
) -> None:
    model = make_model(
        settings("dqn", buffer_size=10, gradient_steps=given), NoiseEnv(num_envs), seed=0
    )
    assert isinstance(model, DQN)
    assert model.gradient_steps == made


@pytest.mark.parametrize("algo", ["a2c", "ppo", "dqn"])
def test_adam_takes_its_steps_fused(algo: Any) -> None:
    chosen = dataclasses.replace(settings(algo), optimizer=OptimizerSettings(name="Adam"))
    model: Any = make_model(chosen, NoiseEnv(2), seed=0)
    assert model.policy.optimizer.defaults["fused"] is True


def test_settings_reach_the_model() -> None:
    chosen = TrainingSettings(
        run=RunSettings(algo="ppo"),
        algorithm={
            "n_steps": 4,
            "batch_size": 4,
            "learning_rate": Schedule(1e-3, 0.0),
            "clip_range": Schedule(0.2, 0.1, 0.5),
            "ent_coef": Schedule(0.1, 0.0),
        },
        optimizer=OptimizerSettings(name="RMSpropTFLike", eps=1e-3),
        extractor={**EXTRACTOR, "share_features_extractor": False},
    )
    model: Any = make_model(chosen, NoiseEnv(2), seed=0)

    assert isinstance(model.learning_rate, LinearSchedule)
    assert model.clip_range(0.75) == pytest.approx(0.15)
    assert model.ent_coef == 0.1
    assert "fused" not in model.policy.optimizer.defaults
    assert type(model.policy.optimizer).__name__ == "RMSpropTFLike"
    assert model.policy.optimizer.defaults["eps"] == 1e-3
    assert model.policy.pi_features_extractor is not model.policy.vf_features_extractor
    convolution = model.policy.features_extractor.cnn[0]
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_keys_of_a_table_are_the_keywords_that_make_model_does_not_pass() -> None:
    for algo in ALGORITHMS:
        keys = setting_keywords(algo)
        assert {"learning_rate", "gamma", "max_grad_norm"} <= keys["algorithm"].keys()
        assert not {"policy", "env", "seed", "policy_kwargs"} & keys["algorithm"].keys()
        assert {"coords", "with_r", "specs", "features_dim"} <= keys["extractor"].keys()
        assert ("n_steps" in keys["algorithm"]) is (algo != "dqn")
        assert ("share_features_extractor" in keys["extractor"]) is (algo != "dqn")
