"""Algorithms on a device, run on the CPU beside SB3's own: same rollouts, losses and logs."""

import dataclasses
import itertools
import math
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecCheckNan
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from coordrl import device_algorithms
from coordrl.algorithms import EntropySchedule
from coordrl.config import (
    AccelerationSettings,
    AtariSettings,
    OptimizerSettings,
    RunSettings,
    Schedule,
    TrainingSettings,
)
from coordrl.device_algorithms import (
    DeviceReplayBuffer,
    DeviceRolloutBuffer,
    building,
    generalized_advantages,
    make_device_model,
)
from coordrl.device_algorithms.base import OnDevice
from coordrl.device_algorithms.buffers import TimeoutFrames
from coordrl.device_algorithms.callbacks import EpisodeLog, HostView, Infos, Moment
from coordrl.device_algorithms.networks import Recorded, draw, entropy
from coordrl.extractors import policy_kwargs
from coordrl.ranks import Ranks
from coordrl.sb3_envs import TorchStep, VectorEnvAdapter, make_sb3_env

# Short games, most of which run out of time, on a screen as small as it goes.
GAME = AtariSettings(screen_size=(36, 40), stack_size=3, max_frames_per_episode=60)
NUM_ENVS = 3
NETWORK = policy_kwargs(specs=[[4, 8, 8], [4, 3, 1]], features_dim=8)
KEYWORDS: dict[str, dict[str, Any]] = {
    "PPO": {"n_steps": 20, "batch_size": 20, "n_epochs": 2, "ent_coef": 0.01},
    "A2C": {"n_steps": 20, "ent_coef": 0.01},
}
REPLAY: dict[str, Any] = {
    **{"buffer_size": 150, "learning_starts": 0, "train_freq": 10, "batch_size": 8},
    **{"gradient_steps": 2, "target_update_interval": 12, "exploration_final_eps": 0.3},
}
ALL = {**KEYWORDS, "DQN": REPLAY}


def games(num_envs: int = NUM_ENVS, settings: AtariSettings = GAME) -> VectorEnvAdapter:
    return make_sb3_env("Breakout", num_envs, settings, seed=1)


def model(module: Any, name: str, settings: Any = GAME, **keywords: Any) -> Any:
    keywords = {**ALL[name], "policy_kwargs": NETWORK, **keywords}
    keywords["policy_kwargs"] = {
        **keywords["policy_kwargs"]
    }  # SB3's A2C writes its optimizer there
    env = games(settings=settings)
    return getattr(module, name)("CnnPolicy", env, seed=2, device="cpu", **keywords)


def pair(name: str, **keywords: Any) -> tuple[Any, Any]:
    """Return our model and SB3's, with the same weights, and random streams that agree."""
    return model(device_algorithms, name, **keywords), model(stable_baselines3, name, **keywords)


def learn(
    algorithm: Any, steps: int, callback: Any = None, *, reset: bool = True
) -> dict[str, Any]:
    """Train with seeded streams, and return what was logged last."""
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - SB3's buffers draw from it
    algorithm.set_logger(Logger(None, []))
    algorithm.learn(steps, callback=callback, log_interval=1000, reset_num_timesteps=reset)
    logged: dict[str, Any] = dict(algorithm.logger.name_to_value)
    return logged


@pytest.fixture
def same_minibatches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let our rollout buffer draw the minibatches that SB3's draws."""

    def permutation(size: int, device: Any) -> torch.Tensor:
        indices = torch.from_numpy(np.random.permutation(size))  # noqa: NPY002
        steps = size // NUM_ENVS
        return indices % steps * NUM_ENVS + indices // steps

    monkeypatch.setattr(torch, "randperm", permutation)


def test_advantages_are_those_of_sb3() -> None:
    steps, num_envs, rng = 13, 4, np.random.default_rng(0)
    stock = RolloutBuffer(
        steps, spaces.Box(0, 1, (2,)), spaces.Discrete(2), "cpu", 0.8, 0.97, n_envs=num_envs
    )
    stock.rewards, stock.values = rng.standard_normal((2, steps, num_envs)).astype(np.float32)
    stock.episode_starts = (rng.random((steps, num_envs)) < 0.3).astype(np.float32)
    last_values = torch.from_numpy(rng.standard_normal(num_envs)).float()
    last_dones = np.array([True, False, True, False])
    stock.compute_returns_and_advantage(last_values, last_dones)

    ours = generalized_advantages(
        torch.from_numpy(stock.rewards),
        torch.from_numpy(stock.values),
        torch.from_numpy(stock.episode_starts),
        last_values,
        torch.from_numpy(last_dones),
        gamma=0.97,
        gae_lambda=0.8,
    )

    assert_close(ours, torch.from_numpy(stock.advantages), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gae_lambda", [0.0, 1.0])
def test_advantages_reduce_to_one_step_and_to_the_whole_return(gae_lambda: float) -> None:
    rewards, values = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[8.0], [16.0], [32.0]])
    goes_on = torch.zeros(3, 1), torch.tensor([64.0]), torch.tensor([0.0])
    advantages = generalized_advantages(rewards, values, *goes_on, 0.5, gae_lambda)
    expected = {0.0: [1.0, 2.0, 4.0], 1.0: [3.0, 4.0, 4.0]}[gae_lambda]
    assert advantages.flatten().tolist() == expected


def test_frames_at_timeouts_stay_for_as_long_as_they_are_needed() -> None:
    steps, shortest, num_envs = 10, 4, 5
    frames = TimeoutFrames(steps, shortest, num_envs, (1, 1), torch.device("cpu"))
    assert frames.frames.shape == (4, num_envs, 1, 1)
    rng = np.random.default_rng(0)
    since = np.full(num_envs, shortest)  # any episode may have begun long before
    kept: list[tuple[int, int, int, int]] = []
    for step in range(200):
        numbers = torch.from_numpy(rng.integers(0, 256, (num_envs, 1, 1), np.uint8))
        keep = (since >= shortest) & (rng.random(num_envs) < 0.7)
        since = np.where(keep, 1, since + 1)
        places = frames.write(numbers, torch.from_numpy(keep))
        for env in np.flatnonzero(keep).tolist():
            kept.append((step, env, int(places[env]), int(numbers[env])))
        for then, env, place, number in kept:
            if step - then < steps:
                assert frames.frames[place, env] == number
    assert len(kept) > 100


def test_drawn_actions_are_those_of_torchs_distribution() -> None:
    logits = 3 * torch.randn(500, 6)
    torch.manual_seed(0)
    expected = torch.distributions.Categorical(logits=logits).sample()  # type: ignore[no-untyped-call]
    state = torch.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(draw(logits.log_softmax(dim=1)), expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("same_minibatches")  # which keeps torch's random stream in step
@pytest.mark.parametrize("name", KEYWORDS)
def test_rollouts_are_those_of_sb3_step_by_step(name: str) -> None:
    ours, stock = pair(name, learning_rate=0.0)
    for algorithm in (ours, stock):
        learn(algorithm, 3 * 20 * NUM_ENVS)

    buffers = ours.rollout_buffer, stock.rollout_buffer
    if buffers[1].generator_ready:  # SB3 has turned its arrays: environment by environment
        for key in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
            array = getattr(buffers[1], key)
            array = array.reshape(NUM_ENVS, 20, *array.shape[1:]).swapaxes(0, 1)
            setattr(buffers[1], key, array if key == "observations" else array[..., 0])
    for key in ("observations", "actions", "episode_starts"):
        expected = torch.from_numpy(getattr(buffers[1], key))
        assert torch.equal(getattr(buffers[0], key), expected.to(getattr(buffers[0], key).dtype))
    for key in ("rewards", "values", "log_probs", "advantages", "returns"):
        expected = torch.from_numpy(getattr(buffers[1], key))
        assert_close(getattr(buffers[0], key), expected, rtol=1e-5, atol=1e-6)
    assert ours.rollout_buffer._timeouts.sum() > NUM_ENVS  # some were bootstrapped
    assert ours.num_timesteps == stock.num_timesteps
    games_of = [[(game["r"], game["l"]) for game in m.ep_info_buffer] for m in (ours, stock)]
    assert games_of[0] == games_of[1]
    assert len(games_of[0]) > 5
    assert torch.equal(ours._last_obs, torch.from_numpy(stock._last_obs))


@pytest.mark.usefixtures("same_minibatches")
@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("PPO", {}),
        ("PPO", {"clip_range_vf": 0.01, "normalize_advantage": False, "batch_size": 60}),
        ("PPO", {"policy_kwargs": {**NETWORK, "share_features_extractor": False}}),
        ("PPO", {"policy_kwargs": {**NETWORK, "net_arch": [5]}}),
        ("PPO", {"policy_kwargs": {**NETWORK, "normalize_images": False}}),
        ("PPO", {"target_kl": 1e-4, "learning_rate": 0.05, "n_epochs": 9}),
        ("PPO", {"learning_rate": 0.02, "n_epochs": 3}),  # so that policies differ
        pytest.param(
            *("PPO", {"batch_size": 59}),  # the last minibatch is a single sample
            marks=pytest.mark.filterwarnings("ignore:You have specified a mini-batch size"),
        ),
        ("PPO", {"clip_range": lambda left: 0.01 + left / 5, "clip_range_vf": lambda left: left}),
        ("A2C", {}),
        ("A2C", {"normalize_advantage": True, "gae_lambda": 0.9}),
    ],
)
def test_losses_weights_and_logs_are_those_of_sb3(name: str, keywords: dict[str, Any]) -> None:
    ours, stock = pair(name, **keywords)
    before = {key: value.clone() for key, value in stock.policy.state_dict().items()}

    logged = [learn(algorithm, 2 * 20 * NUM_ENVS) for algorithm in (ours, stock)]

    after = stock.policy.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in after)
    for key, value in ours.policy.state_dict().items():
        assert_close(value, after[key], rtol=1e-3, atol=1e-5)
    assert logged[0].keys() == logged[1].keys()
    assert ours._n_updates == stock._n_updates
    for key, value in logged[1].items():
        if not key.startswith("time/"):
            assert logged[0][key] == pytest.approx(value, rel=1e-3, abs=1e-5), key


class Called(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators that are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ALL)
def test_an_update_copies_nothing_from_the_host_and_asks_for_no_value(name: str) -> None:
    # As make_model asks for; the plain Adam reads its own counters, which lie on the host.
    fused = {"optimizer_kwargs": {"fused": True}} if name != "A2C" else {}
    ours = model(device_algorithms, name, policy_kwargs={**NETWORK, **fused})
    learn(ours, 20 * NUM_ENVS)

    with Called() as called:
        ours.train(*(REPLAY["gradient_steps"], REPLAY["batch_size"]) if name == "DQN" else ())

    assert "aten.convolution_backward.default" in called.names
    waits = ("lift_fresh", "_local_scalar_dense", "nonzero", "is_nonzero", "equal.default")
    assert [text for text in called.names if any(wait in text for wait in waits)] == []


def test_an_update_ends_where_the_policy_has_moved_too_far_as_in_sb3() -> None:
    ppo = model(device_algorithms, "PPO")
    obs = torch.as_tensor(games().reset())
    log_probs, values = ppo._network(ppo.policy, obs, False)
    actions, moved = torch.zeros(NUM_ENVS, dtype=torch.int64), torch.tensor([0.1, -0.2, 0.3])
    old = (log_probs[:, 0] + moved).detach()
    batch = (obs, actions, values.detach(), old, torch.ones(NUM_ENVS), torch.ones(NUM_ENVS))
    divergence = float(((-moved).exp() - 1 + moved).mean())
    before = [p.clone() for p in ppo.policy.parameters()]

    for share, goes_on in ((0.6, False), (0.7, True)):  # of the limit, 1 / 1.5
        ppo.target_kl = share * divergence
        assert ppo._minibatch(*batch, torch.tensor([0.2, 0.2, 0.0]))[1] is goes_on
        weights = zip(before, ppo.policy.parameters(), strict=True)
        assert all(torch.equal(first, now) for first, now in weights) is not goes_on


def test_entropy_is_that_of_torch_for_actions_that_are_never_chosen_as_well() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, -200.0, 1.0], [0.0, -torch.inf, -torch.inf]])
    expected = torch.distributions.Categorical(logits=logits).entropy()  # type: ignore[no-untyped-call]
    assert_close(entropy(logits.log_softmax(dim=1)), expected)


@pytest.mark.usefixtures("same_minibatches")
def test_a_bonus_for_entropy_that_moves_reaches_the_loss_as_in_sb3() -> None:
    losses = []
    for algorithm in pair("PPO", ent_coef=2.0):
        logged = learn(algorithm, 2 * 20 * NUM_ENVS, EntropySchedule(Schedule(2.0, 1.0)))
        assert algorithm.ent_coef == 1.0
        losses.append(logged["train/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    fixed = learn(model(device_algorithms, "PPO", ent_coef=2.0), 2 * 20 * NUM_ENVS)
    assert fixed["train/loss"] < losses[0] - 1  # by the entropy of four actions, 1.4 nats


def test_buffer_yields_every_step_once_in_the_layout_of_convolutions() -> None:
    space = spaces.Box(0, 255, (2, 5, 6), np.uint8)
    buffers = [
        DeviceRolloutBuffer(4, space, spaces.Discrete(3), "cpu", n_envs=2, channels_last=last)
        for last in (True, False)
    ]
    obs = torch.arange(8 * 2 * 5 * 6, dtype=torch.uint8).view(4, 2, 2, 5, 6)
    numbers = torch.arange(8.0).view(4, 2)
    for buffer in buffers:
        for t in range(4):
            kept = buffer.observe(obs[t]) if t % 2 else obs[t]
            buffer.add(kept, numbers[t].long(), *(numbers[t] for _ in range(4)))
        batches = list(buffer.get(3))
        assert [len(batch.actions) for batch in batches] == [3, 3, 2]
        drawn = torch.cat([batch.actions for batch in batches])
        assert sorted(drawn.tolist()) == list(range(8))
        images = torch.cat([batch.observations for batch in batches])
        assert torch.equal(images, obs.flatten(0, 1)[drawn])
    assert batches[0].observations.is_contiguous()
    [first, *_] = buffers[0].get(3)
    assert first.observations.is_contiguous(memory_format=torch.channels_last)


def test_what_a_timeout_cut_off_is_bootstrapped_once_wherever_it_was() -> None:
    space = spaces.Box(0, 255, (2, 1, 1), np.uint8)
    buffer = DeviceRolloutBuffer(5, space, spaces.Discrete(3), "cpu", gamma=0.5, n_envs=3)
    timeouts = torch.tensor([[0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]).bool()

    def play(timeouts: torch.Tensor | None) -> None:
        buffer.reset()
        for step in range(5):
            obs = torch.full((3, 2, 1, 1), 10 * step, dtype=torch.uint8)
            buffer.add(obs, *(torch.zeros(3) for _ in range(5)))
            if timeouts is not None:
                next_obs = torch.stack(
                    [obs[:, -1], obs[:, -1] + torch.arange(1, 4).view(3, 1, 1)], 1
                )
                buffer.add_timeouts(next_obs.byte(), timeouts[step])

    def estimate(obs: torch.Tensor) -> torch.Tensor:
        assert len(obs) <= 3
        return obs.sum(dim=(1, 2, 3)).float()

    play(timeouts)
    buffer.bootstrap_timeouts(estimate)
    led_to = 20 * torch.arange(5.0)[:, None] + torch.arange(1, 4)
    assert_close(buffer.rewards, torch.where(timeouts, 0.5 * led_to, 0.0))

    play(None)  # nothing of the last rollout is left
    buffer.bootstrap_timeouts(estimate)
    assert not buffer.rewards.any()


def test_a_game_that_is_over_as_its_time_runs_out_is_worth_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rewards(*, may_be_both: bool) -> torch.Tensor:
        algorithm = model(device_algorithms, "PPO", learning_rate=0.0)
        env = algorithm.get_env()

        def step(actions: torch.Tensor) -> TorchStep:
            played = VectorEnvAdapter.step_torch(env, actions)
            over = played.terminated | played.truncated
            return played._replace(terminated=over, truncated=over & may_be_both)

        monkeypatch.setattr(env, "step_torch", step)
        learn(algorithm, 20 * NUM_ENVS)
        assert algorithm.rollout_buffer.episode_starts.sum() > NUM_ENVS
        kept: torch.Tensor = algorithm.rollout_buffer.rewards
        return kept

    assert torch.equal(rewards(may_be_both=True), rewards(may_be_both=False))


def test_the_games_of_a_rollout_are_told_with_their_returns_in_their_order() -> None:
    log, nothing = EpisodeLog(3, 2, torch.device("cpu")), torch.zeros(2)

    def step(ended: list[bool], points: list[float], lengths: list[int]) -> TorchStep:
        games = (
            torch.tensor(ended),
            torch.tensor(points, dtype=torch.float64),
            torch.tensor(lengths),
        )
        return TorchStep(nothing, torch.ones(2), nothing > 0, nothing > 0, nothing, *games)

    log.add(step([False, True], [0.0, 21.0], [0, 900]))
    log.add(step([False, False], [0.0, 0.0], [0, 0]))
    log.add(step([True, True], [-3.0, 2**24 + 1], [100, 70_000]))
    assert [(game["r"], game["l"], game["t"]) for game in log.read(1.5)] == [
        *((21.0, 900, 1.5), (-3.0, 100, 1.5), (2**24 + 1, 70_000, 1.5)),
    ]
    log.add(step([True, False], [5.0, 0.0], [7, 0]))
    assert str(log.read(2.0)) == "[{'r': 5.0, 'l': 7, 't': 2.0}]"  # 7, not 7.0
    assert log.read(2.0) == []


class Watch(BaseCallback):
    """Notes what a callback sees of each step."""

    arrays = ("values", "log_probs", "obs_tensor", "clipped_actions", "buffer_actions")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def _on_step(self) -> bool:
        look = self.locals
        # Of those of the host alone, also what the environment tells by itself.
        own = {"terminal_observation", "TimeLimit.truncated", "episode"}
        infos = [{key: info[key] for key in own & info.keys()} for info in look["infos"]]
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = int(info["terminal_observation"].sum())
            if "episode" in info:
                info["episode"] = (info["episode"]["r"], info["episode"]["l"])
        arrays = [np.asarray(look[key]).tolist() for key in ("actions", "rewards", "dones")]
        arrays += [(key, np.shape(look[key])) for key in sorted(look) if key in self.arrays]
        self.seen.append((arrays, int(np.sum(look["new_obs"])), infos, self.num_timesteps))
        return True


@pytest.mark.parametrize("name", ALL)
def test_callbacks_see_what_they_see_in_sb3(name: str) -> None:
    greedy = {"exploration_initial_eps": 0.0, "exploration_final_eps": 0.0, "learning_rate": 0.0}
    ours, stock = pair(name, **(greedy if name == "DQN" else {}))
    seen, keys = [], []
    for algorithm in (ours, stock):
        watch = Watch()
        learn(algorithm, 20 * NUM_ENVS, watch)
        seen.append(watch.seen)
        keys.append(set(watch.locals))
    # What SB3 calculates with on the way is nobody's.
    missing = keys[1] - keys[0] - {"idx", "done", "terminal_obs", "terminal_value", "i", "kwargs"}
    assert seen[0] == seen[1]
    assert any(info for step in seen[0] for info in step[2])
    assert missing == set()


class Calculate(BaseCallback):
    """Calculates with what a callback sees, as with arrays."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Any] = []

    def _on_step(self) -> bool:
        look = self.locals
        results = [look["rewards"] == 0, 2 * look["rewards"], ~look["dones"], -look["actions"]]
        results += [look["rewards"] > look["dones"], look["clipped_actions"] if "obs_tensor" in look
                    else look["buffer_actions"]]  # fmt: skip
        self.results.append([np.asarray(result).tolist() for result in results])
        self.results.append([float(reward) for reward in look["rewards"]])
        ended = [info["episode"] for info in look["infos"] if "episode" in info]
        self.results += [[key for key in ("r", "l", "t") if key in game] for game in ended]
        return True


@pytest.mark.parametrize("name", ALL)
def test_callbacks_calculate_as_with_arrays(name: str) -> None:
    greedy = {"exploration_initial_eps": 0.0, "exploration_final_eps": 0.0, "learning_rate": 0.0}
    calculations = [Calculate(), Calculate()]
    for algorithm, calculate in zip(
        pair(name, **(greedy if name == "DQN" else {})), calculations, strict=True
    ):
        learn(algorithm, 20 * NUM_ENVS, calculate)
    assert calculations[0].results == calculations[1].results
    assert ["r", "l", "t"] in calculations[0].results


def test_what_a_callback_sees_has_the_length_and_maximum_of_its_array() -> None:
    assert len(HostView(torch.zeros(2, 3))) == 2
    assert np.maximum.reduce(HostView(torch.tensor([1, 3, 2]))) == 3


def test_one_number_is_true_or_false_and_several_are_neither() -> None:
    one = HostView(torch.tensor(2.5))
    assert (bool(one), float(one), int(one)) == (True, 2.5, 2)
    assert not HostView(torch.tensor([0.0]))
    with pytest.raises(ValueError, match="ambiguous"):
        bool(HostView(torch.tensor([0.0, 1.0])))


def test_what_a_callback_keeps_too_long_is_refused_where_it_is_overwritten() -> None:
    class Keep(BaseCallback):
        kept: ClassVar[list[Any]] = []

        def _on_step(self) -> bool:
            if self.n_calls == 1:
                self.kept.append(self.locals["new_obs"])
            return True

    ours = model(device_algorithms, "A2C")
    learn(ours, 20 * NUM_ENVS, Keep())
    assert np.asarray(Keep.kept[0]).shape == (NUM_ENVS, *ours.observation_space.shape)

    moment = Moment()
    rewards, nothing = HostView(torch.ones(3), moment), torch.zeros(2, dtype=torch.bool)
    step = TorchStep(*[nothing] * len(TorchStep._fields))
    looked_at, not_looked_at = (Infos(step, 0.0, moment) for _ in range(2))
    assert looked_at[1] == {}
    moment.is_over = True
    assert looked_at[1] == {}
    for look in (lambda: rewards + 1, lambda: not_looked_at[0]):
        with pytest.raises(RuntimeError, match=r"overwritten by the next step .* np\.array\(self"):
            look()


def test_infos_tell_how_episodes_and_games_ended() -> None:
    step = TorchStep(
        obs=torch.zeros(3, 1),
        rewards=torch.zeros(3),
        terminated=torch.tensor([True, False, False]),
        truncated=torch.tensor([True, True, False]),
        next_obs=torch.tensor([[5], [6], [7]]),
        game_ended=torch.tensor([False, True, False]),
        episode_return=torch.tensor([0.0, 9.0, 0.0]),
        episode_length=torch.tensor([0, 4, 0]),
    )
    game = {"r": 9.0, "l": 4, "t": 1.5}
    infos = Infos(step, 1.5, Moment())
    assert list(infos) == [
        {"terminal_observation": [5], "TimeLimit.truncated": False},
        {"terminal_observation": [6], "TimeLimit.truncated": True, "episode": game},
        {},
    ]
    assert str(infos[1]["episode"]) == str(game)  # 4, not 4.0


def test_what_a_callback_sees_is_not_for_writing() -> None:
    rewards = HostView(torch.tensor([0.0, 1.0]))
    with pytest.raises(TypeError, match="a copy, which cannot be written to"):
        rewards += 1
    np.asarray(rewards)[1] = 9
    assert rewards[1] == 1.0
    with pytest.raises(ValueError, match="is copied to be looked at"):
        np.asarray(rewards, copy=False)


@pytest.mark.usefixtures("same_minibatches")
def test_a_callback_ends_the_training_within_a_rollout() -> None:
    ended = []
    ours, stock = pair("A2C")
    for algorithm in (ours, stock):
        callback = StopTrainingOnMaxEpisodes(2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("builtins.print", lambda *_: None)
            learn(algorithm, 10_000, callback)
        shown = (np.asarray(callback.locals[name]) for name in ("new_obs", "dones"))
        ended.append((algorithm.num_timesteps, len(algorithm.ep_info_buffer), *shown))
    for own, its in zip(*ended, strict=True):
        np.testing.assert_array_equal(own, its)
    assert ended[0][0] < 200
    # SB3 forgets what the last step has shown, and goes on from what was before.
    np.testing.assert_array_equal(ours._last_obs, ended[0][2])
    np.testing.assert_array_equal(ours._last_episode_starts, ended[0][3])


class Interrupt(BaseCallback):
    """Ctrl-C in the middle of a rollout."""

    def _on_step(self) -> bool:
        if self.n_calls == 5:
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize("name", ALL)
def test_training_goes_on_after_a_rollout_that_was_broken_off(name: str) -> None:
    reached = []
    ours, stock = pair(name)
    for algorithm in (ours, stock):
        interrupt = Interrupt()
        with pytest.raises(KeyboardInterrupt):
            learn(algorithm, 10_000, interrupt)
        if algorithm is ours:
            np.testing.assert_array_equal(ours._last_obs, interrupt.locals["new_obs"])
        learn(algorithm, 40 * NUM_ENVS, reset=False)
        reached.append((algorithm.num_timesteps, len(algorithm.ep_info_buffer)))
    assert reached[0] == reached[1]


def replayed(algorithm: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Note what the replay buffer is given: observations and what came next."""
    given: list[Any] = []
    buffer = algorithm.replay_buffer
    observe, add = buffer.observe, buffer.add

    def noting_observe(obs: torch.Tensor, starts: torch.Tensor) -> None:
        given.append((obs.clone(), None))
        observe(obs, starts)

    def noting_add(next_obs: torch.Tensor, *others: torch.Tensor) -> None:
        given[-1] = given[-1][0], next_obs.clone()
        add(next_obs, *others)

    buffer.observe, buffer.add = noting_observe, noting_add
    return given


def require_replay(algorithm: Any, given: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    buffer = algorithm.replay_buffer
    given = given[-buffer.size() :]
    slots = (buffer.pos - len(given) + torch.arange(len(given))) % buffer.buffer_size
    for env in range(buffer.n_envs):
        samples = buffer._samples(slots, torch.full_like(slots, env))
        assert torch.equal(samples.observations, torch.stack([obs[env] for obs, _ in given]))
        goes_on = samples.dones.flatten() == 0
        expected = torch.stack([following[env] for _, following in given])
        assert torch.equal(samples.next_observations[goes_on], expected[goes_on])


# Whose games have no time limit that would be reached here, and so no room for it.
LONG = dataclasses.replace(GAME, max_frames_per_episode=108_000)


@pytest.mark.parametrize("buffer_size", [1000, 64])
def test_games_may_be_cut_off_by_any_number_of_resets(buffer_size: int) -> None:
    ours = model(device_algorithms, "DQN", LONG, buffer_size=buffer_size)
    given = replayed(ours)
    for _ in range(7):
        learn(ours, 10 * NUM_ENVS)
        require_replay(ours, given)
    restored = model(device_algorithms, "DQN", LONG, buffer_size=buffer_size)
    restored.replay_buffer.restore(ours.replay_buffer.state())
    require_replay(restored, given)
    learn(ours, 10 * NUM_ENVS, reset=False)
    require_replay(ours, given)


def test_places_of_resets_are_used_again() -> None:
    ours = model(device_algorithms, "DQN", LONG, buffer_size=20 * NUM_ENVS)
    given, places = replayed(ours), []
    for _ in range(12):
        learn(ours, 10 * NUM_ENVS)
        places.append(len(ours.replay_buffer._timeout_frames.frames))
    require_replay(ours, given)
    assert places[-1] == places[5]


class EndAt(BaseCallback):
    """Ends the training within a rollout, politely or not."""

    def __init__(self, calls: int, *, raises: bool) -> None:
        super().__init__()
        self.last, self.raises = calls, raises

    def _on_step(self) -> bool:
        if self.n_calls == self.last and self.raises:
            raise KeyboardInterrupt
        return self.n_calls < self.last


@pytest.mark.parametrize("raises", [False, True])
def test_a_replay_buffer_goes_on_after_a_rollout_that_was_broken_off(raises: bool) -> None:
    ours = model(device_algorithms, "DQN", buffer_size=1000, train_freq=4)
    given = replayed(ours)
    with pytest.raises(KeyboardInterrupt) if raises else nullcontext():
        learn(ours, 10_000, EndAt(22, raises=raises))
    learn(ours, 40 * NUM_ENVS, reset=False)
    assert all(following is not None for _, following in given)
    require_replay(ours, given)


def test_values_of_equal_returns_explain_nothing_that_could_be_named() -> None:
    ours = model(device_algorithms, "PPO")
    ours.rollout_buffer.returns.fill_(2.0)
    ours.rollout_buffer.values.fill_(1.0)
    assert math.isnan(float(ours._explained_variance()))


def test_only_calls_like_the_first_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorded, "_aside", lambda own, tensors: own._function(*tensors))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Replayed)
    monkeypatch.setattr(torch.cuda, "graph", lambda _: nullcontext())
    recorded = Recorded(lambda x: x + 1)
    Replayed.recorded.append(recorded)
    for _ in range(2):
        for size in (5, 5, 5, 1):  # of which every fourth is an odd one
            assert recorded(torch.zeros(size)).tolist() == [1.0] * size
    Replayed.recorded.clear()
    assert recorded._inputs[0].shape == (5,)


@pytest.mark.parametrize("name", ALL)
def test_what_is_saved_loads_in_plain_sb3_and_in_ours(name: str, tmp_path: Path) -> None:
    ours = model(device_algorithms, name)
    learn(ours, 20 * NUM_ENVS)
    path = tmp_path / "model.zip"
    ours.save(path)
    assert path.stat().st_size < 100_000
    values = load_from_zip_file(path, device="cpu")[0]
    assert values is not None
    assert not [name for name in values if type(values[name]).__module__.startswith("coordrl")]

    for module in (stable_baselines3, device_algorithms):
        cls = getattr(module, name)
        loaded = cls.load(path, device="cpu")
        for key, value in ours.policy.state_dict().items():
            assert torch.equal(loaded.policy.state_dict()[key], value)
        loaded = cls.load(path, env=games(), device="cpu")
        loaded.learn(20 * NUM_ENVS, reset_num_timesteps=False)
        assert loaded.num_timesteps == 40 * NUM_ENVS


@pytest.mark.parametrize("name", ALL)
def test_a_model_without_games_has_room_for_those_that_it_was_saved_with(
    name: str, tmp_path: Path
) -> None:
    ours = model(device_algorithms, name)
    ours.save(tmp_path / "model.zip")

    loaded = type(ours).load(tmp_path / "model.zip", device="cpu")

    buffers = [getattr(m, "replay_buffer", None) or m.rollout_buffer for m in (ours, loaded)]
    of_ours, of_loaded = (buffer._timeout_frames.frames.shape for buffer in buffers)
    assert of_ours == of_loaded


def test_bfloat16_computes_features_alone_in_few_bits() -> None:
    exact = model(device_algorithms, "PPO")
    coarse = model(device_algorithms, "PPO", acceleration=AccelerationSettings(bfloat16=True))
    obs = torch.as_tensor(games().reset())
    results = [m._network(m.policy, obs, m.acceleration.bfloat16) for m in (exact, coarse)]
    for expected, value in zip(*results, strict=True):
        assert value.dtype == torch.float32
        assert not torch.equal(value, expected)
        assert_close(value, expected, rtol=0.02, atol=0.02)
    logged = learn(coarse, 20 * NUM_ENVS)
    assert np.isfinite(logged["train/loss"])
    assert all(p.dtype == torch.float32 for p in coarse.policy.parameters())


def test_environments_without_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"A2C on a device needs .* make_sb3_env, got <.*VecCheck"):
        device_algorithms.A2C("CnnPolicy", VecCheckNan(games()))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seen", ["ram", "rgb"])
def test_games_that_are_not_seen_in_gray_are_refused(name: str, seen: Any) -> None:
    env = make_sb3_env("Breakout", 2, AtariSettings(observation=seen))
    with pytest.raises(ValueError, match=rf"{name} .* stacks of gray frames, got .* with Box\(0"):
        getattr(device_algorithms, name)("CnnPolicy", env)


def test_other_environments_are_refused() -> None:
    same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
    envs = gymnasium.make_vec("CartPole-v1", 2, "sync", vector_kwargs=same_step)
    with pytest.raises(ValueError, match=r"PPO .* stacks of gray frames, got SyncV"):
        device_algorithms.PPO("CnnPolicy", VectorEnvAdapter(envs))


@pytest.mark.parametrize("name", ALL)
def test_environments_that_replace_others_are_checked_as_those_were(name: str) -> None:
    algorithm = model(device_algorithms, name)
    with pytest.raises(ValueError, match=rf"{name} on a device needs .* make_sb3_env, got <.*VecC"):
        algorithm.set_env(VecCheckNan(games()))
    sooner = dataclasses.replace(GAME, max_frames_per_episode=20)
    with pytest.raises(ValueError, match=r"cut off after 5 steps, .* was made for 15: make a new"):
        algorithm.set_env(games(settings=sooner))
    algorithm.set_env(games())
    assert algorithm.learn(60).num_timesteps == 60


def test_policies_that_compute_something_else_are_refused() -> None:
    class Masked(ActorCriticCnnPolicy):
        def _get_action_dist_from_latent(self, latent_pi: torch.Tensor) -> Any:
            logits = self.action_net(latent_pi) + torch.tensor([0.0, 0.0, -1e9, -1e9])
            return self.action_dist.proba_distribution(action_logits=logits)

    class Shifted(QNetwork):
        def forward(self, obs: Any) -> torch.Tensor:
            return super().forward(obs) + 1

    class Dueling(DQNPolicy):
        def make_q_net(self) -> QNetwork:
            arguments = self._update_features_extractor(self.net_args)
            return Shifted(**arguments).to(self.device)

    for name, policy in {"PPO": Masked, "A2C": Masked, "DQN": Dueling}.items():
        with pytest.raises(ValueError, match=f"{name} .* and {policy.__name__} computes something"):
            getattr(device_algorithms, name)(
                policy, games(), device="cpu", policy_kwargs={**NETWORK}, **ALL[name]
            )


@pytest.mark.parametrize("name", ALL)
def test_a_policy_that_drops_features_as_it_learns_is_sb3s_own(name: str) -> None:
    class Dropping(NatureCNN):
        def __init__(self, space: Any, **keywords: Any) -> None:
            super().__init__(space, **keywords)
            self.linear.append(torch.nn.Dropout(0.5))

    dropping = {"features_extractor_class": Dropping, "features_extractor_kwargs": {}}
    ours = model(device_algorithms, name, policy_kwargs=dropping)
    assert ours.policy.training


def test_dqn_refuses_returns_of_several_steps() -> None:
    with pytest.raises(ValueError, match="has returns of 1 step, got n_steps=2"):
        model(device_algorithms, "DQN", n_steps=2)


def test_a_replay_buffer_comes_back_from_its_file(tmp_path: Path) -> None:
    algorithm = model(device_algorithms, "DQN", optimize_memory_usage=True)
    algorithm.learn(60)
    algorithm.save_replay_buffer(tmp_path / "replay.pkl")
    kept = algorithm.replay_buffer
    algorithm.load_replay_buffer(tmp_path / "replay.pkl")
    assert algorithm.replay_buffer is not kept
    assert_close(algorithm.replay_buffer.rewards, kept.rewards)
    assert algorithm.learn(60, reset_num_timesteps=False).num_timesteps == 120


@pytest.mark.parametrize("buffer_size", [3, 24, 66, 900])
@pytest.mark.parametrize("stack_size", [1, 3])
def test_replay_buffer_holds_the_transitions_of_sb3s(buffer_size: int, stack_size: int) -> None:
    settings = dataclasses.replace(GAME, stack_size=stack_size)
    envs = [make_sb3_env("Breakout", NUM_ENVS, settings, seed=1) for _ in range(2)]
    spaces_of = envs[0].observation_space, envs[0].action_space
    ours = DeviceReplayBuffer(
        buffer_size, *spaces_of, "cpu", NUM_ENVS, shortest_timeout=envs[0].shortest_timeout
    )
    stock = ReplayBuffer(buffer_size, *spaces_of, "cpu", NUM_ENVS)
    rng = np.random.default_rng(0)
    for _ in range(2):  # the second time, games are cut off by a reset
        obs: Any = envs[0].reset()
        ours_obs, starts = torch.as_tensor(envs[1].reset()), torch.ones(NUM_ENVS, dtype=torch.bool)
        for _ in range(40):
            ours.observe(ours_obs, starts)
            actions = rng.integers(0, 4, NUM_ENVS)
            new_obs, rewards, dones, infos = envs[0].step(actions)
            next_obs: Any = np.array(new_obs)
            for i in np.flatnonzero(dones):
                next_obs[i] = infos[i]["terminal_observation"]
            stock.add(obs, next_obs, actions, rewards, dones, infos)
            step = envs[1].step_torch(torch.from_numpy(actions))
            ends = (step.terminated, step.truncated, step.game_ended)
            ours.add(step.next_obs, torch.from_numpy(actions), step.rewards, *ends)
            obs, ours_obs, starts = new_obs, step.obs, step.game_ended
            assert ours.size() == stock.size()

        slots, columns = np.indices((stock.size(), NUM_ENVS)).reshape(2, -1)
        samples = ours._samples(torch.from_numpy(slots), torch.from_numpy(columns))
        at = slots, columns
        terminated = stock.dones[at] * (1 - stock.timeouts[at])
        assert_close(samples.observations, torch.from_numpy(stock.observations[at]))
        assert_close(samples.dones[:, 0], torch.from_numpy(terminated))
        assert_close(samples.rewards[:, 0], torch.from_numpy(stock.rewards[at]))
        assert_close(samples.actions, torch.from_numpy(stock.actions[at]))
        goes_on = terminated == 0
        expected = torch.from_numpy(stock.next_observations[at][goes_on])
        assert_close(samples.next_observations[goes_on], expected)
        assert buffer_size < 66 or stock.timeouts.sum() > 0

    restored = DeviceReplayBuffer(
        buffer_size, *spaces_of, "cpu", NUM_ENVS, shortest_timeout=envs[0].shortest_timeout
    )
    restored.restore(ours.state())
    again = restored._samples(torch.from_numpy(slots), torch.from_numpy(columns))
    for value, expected in zip(again[:5], samples[:5], strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("buffer_size", [9, 30, 300])
def test_a_replay_buffer_that_is_emptied_in_the_middle_of_games_goes_on(buffer_size: int) -> None:
    envs = [make_sb3_env("Breakout", NUM_ENVS, GAME, seed=1) for _ in range(2)]
    spaces_of = envs[0].observation_space, envs[0].action_space
    ours = DeviceReplayBuffer(
        buffer_size, *spaces_of, "cpu", NUM_ENVS, shortest_timeout=envs[0].shortest_timeout
    )
    stock = ReplayBuffer(buffer_size, *spaces_of, "cpu", NUM_ENVS)
    obs: Any = envs[0].reset()
    ours_obs, starts = torch.as_tensor(envs[1].reset()), torch.ones(NUM_ENVS, dtype=torch.bool)
    for step_number in range(50):
        if step_number in (15, 22):  # where games begin, and between
            ours.reset()
            stock.reset()
        ours.observe(ours_obs, starts)
        actions = np.arange(NUM_ENVS)
        new_obs, rewards, dones, infos = envs[0].step(actions)
        stock.add(obs, np.array(new_obs), actions, rewards, dones, infos)
        step = envs[1].step_torch(torch.from_numpy(actions))
        ends = (step.terminated, step.truncated, step.game_ended)
        ours.add(step.next_obs, torch.from_numpy(actions), step.rewards, *ends)
        obs, ours_obs, starts = new_obs, step.obs, step.game_ended
        restored = DeviceReplayBuffer(
            buffer_size, *spaces_of, "cpu", NUM_ENVS, shortest_timeout=envs[0].shortest_timeout
        )
        restored.restore(ours.state())
        at = np.indices((stock.size(), NUM_ENVS)).reshape(2, -1)
        for buffer in (ours, restored):
            samples = buffer._samples(*map(torch.from_numpy, at))
            assert_close(samples.observations, torch.from_numpy(stock.observations[tuple(at)]))


def test_a_young_buffer_is_saved_without_the_room_that_it_does_not_use() -> None:
    [buffer] = next(played_buffers(1, 900, 1))
    assert len(buffer.state()["frames"]) == 2


def played_buffers(count: int, buffer_size: int, steps: int) -> Iterator[list[DeviceReplayBuffer]]:
    """Yield buffers that are given the same steps of games, after each of them."""
    env = make_sb3_env("Breakout", NUM_ENVS, GAME, seed=1)
    spaces_of = env.observation_space, env.action_space
    buffers = [
        DeviceReplayBuffer(
            buffer_size, *spaces_of, "cpu", NUM_ENVS, shortest_timeout=env.shortest_timeout
        )
        for _ in range(count)
    ]
    rng = np.random.default_rng(0)
    obs, starts = torch.as_tensor(env.reset()), torch.ones(NUM_ENVS, dtype=torch.bool)
    for _ in range(steps):
        actions = torch.from_numpy(rng.integers(0, 4, NUM_ENVS))
        step = env.step_torch(actions)
        for buffer in buffers:
            buffer.observe(obs, starts)
            ends = (step.terminated, step.truncated, step.game_ended)
            buffer.add(step.next_obs, actions, step.rewards, *ends)
        obs, starts = step.obs, step.game_ended
        yield buffers


@pytest.mark.parametrize("saved_after", [14, 15, 16, 33])  # games end after 15 steps
def test_a_restored_buffer_goes_on_as_the_saved_one(saved_after: int) -> None:
    for step, buffers in enumerate(played_buffers(2, 72, 60), start=1):
        if step == saved_after:
            _, second = buffers
            for tensor in second._tensors().values():
                tensor.fill_(1)
            second.restore(buffers[0].state())
        if step >= saved_after:
            states = [buffer.state() for buffer in buffers]
            slots, columns = np.indices((buffers[0].size(), NUM_ENVS)).reshape(2, -1)
            samples = [
                b._samples(torch.from_numpy(slots), torch.from_numpy(columns)) for b in buffers
            ]
            assert_close(samples[1].observations, samples[0].observations)
            assert_close(samples[1].next_observations, samples[0].next_observations)
            for name in ("kept", "history", "game_ended"):
                assert states[1][name].tolist() == states[0][name].tolist(), name


def test_a_buffer_draws_from_all_that_it_holds_and_nothing_else() -> None:
    for step, [buffer] in enumerate(played_buffers(1, 30 * NUM_ENVS, 40), start=1):
        drawn: list[tuple[int, int]] = []

        def note(slots: torch.Tensor, envs: torch.Tensor) -> Any:
            drawn.extend(zip(slots.tolist(), envs.tolist(), strict=True))  # noqa: B023

        buffer._samples = note  # type: ignore[method-assign]
        if step in (1, 5, 40):
            buffer.sample(2000)
            assert set(drawn) == set(itertools.product(range(min(step, 30)), range(NUM_ENVS)))


def test_a_million_transitions_take_less_than_eight_gigabytes() -> None:
    space, shortest = spaces.Box(0, 255, (4, 84, 84), np.uint8), 108_000 // 4
    buffer = DeviceReplayBuffer(
        1_000_000, space, spaces.Discrete(18), "meta", 128, shortest_timeout=shortest
    )
    tensors = {**buffer._tensors()}.values()
    assert 7.0e9 < sum(tensor.numel() * tensor.element_size() for tensor in tensors) < 7.2e9


def test_dqn_learns_from_the_same_transitions_what_sb3_learns() -> None:
    ours, stock = pair("DQN", learning_starts=30)
    space = ours.observation_space
    rng = np.random.default_rng(0)
    batches = [
        ReplayBufferSamples(
            torch.from_numpy(rng.integers(0, 256, (8, *space.shape), np.uint8)),
            torch.from_numpy(rng.integers(0, 4, (8, 1))),
            torch.from_numpy(rng.integers(0, 256, (8, *space.shape), np.uint8)),
            torch.from_numpy((rng.random((8, 1)) < 0.3).astype(np.float32)),
            torch.from_numpy(rng.standard_normal((8, 1)).astype(np.float32)),
        )
        for _ in range(100)
    ]
    logged = []
    for algorithm in (ours, stock):
        drawn = iter(batches)
        algorithm.replay_buffer.sample = lambda *_, drawn=drawn, **__: next(drawn)
        logged.append(learn(algorithm, 5 * 10 * NUM_ENVS))
    for key, value in stock.policy.state_dict().items():
        assert_close(ours.policy.state_dict()[key], value, rtol=1e-3, atol=1e-5)
    assert ours._n_updates == stock._n_updates > 0
    assert logged[0].keys() == logged[1].keys()
    for key in ("train/loss", "rollout/exploration_rate", "train/learning_rate"):
        assert logged[0][key] == pytest.approx(logged[1][key], rel=1e-3)


@pytest.mark.parametrize(("frames", "steps"), [(60, 40), (400, 110)])
def test_dqn_plays_greedily_as_sb3_does_and_counts_episodes_so(frames: int, steps: int) -> None:
    greedy = {"exploration_initial_eps": 0.0, "exploration_final_eps": 0.0, "learning_rate": 0.0}
    settings = dataclasses.replace(GAME, max_frames_per_episode=frames)
    ours, stock = pair("DQN", settings=settings, buffer_size=steps * NUM_ENVS, **greedy)
    for algorithm in (ours, stock):
        learn(algorithm, steps * NUM_ENVS)
    theirs, slots = stock.replay_buffer, np.arange(steps)
    for env in range(NUM_ENVS):
        samples = ours.replay_buffer._samples(torch.from_numpy(slots), torch.full((steps,), env))
        assert samples.actions[:, 0].tolist() == theirs.actions[slots, env, 0].tolist()
        assert_close(samples.observations, torch.from_numpy(theirs.observations[slots, env]))
    assert ours._episode_num == stock._episode_num > 0
    ended = [[(game["r"], game["l"]) for game in m.ep_info_buffer] for m in (ours, stock)]
    assert ended[0] == ended[1] != []
    if frames == 400:  # long enough to lose lives in games that go on
        assert ours._episode_num > len(ended[0])


def test_a_model_computes_as_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "DEVICE_ALGORITHMS", {"ppo": lambda *_, **given: given})
    settings = TrainingSettings(
        run=RunSettings(on_device=True), acceleration=AccelerationSettings(cuda_graphs=True)
    )
    for device in ("cpu", "auto", "cuda", "cuda:1"):
        given: Any = make_device_model(settings, games(), seed=0, device=device)
        assert given["acceleration"] == settings.acceleration
        assert given["device"] == device
        # Without it the optimizer counts its steps on the host, where no graph sees them.
        is_capturable = given["policy_kwargs"]["optimizer_kwargs"].get("capturable", False)
        assert is_capturable is device.startswith("cuda")
    rmsprop = dataclasses.replace(settings, optimizer=OptimizerSettings(name="RMSprop"))
    with pytest.raises(ValueError, match=r"which RMSprop does not allow: choose optimizer.name = "):
        make_device_model(rmsprop, games(), seed=0, device="cuda")


@pytest.mark.parametrize("is_alias", [False, True])
def test_dqn_refuses_games_that_somebody_else_has_stepped(is_alias: bool) -> None:
    dqn = model(device_algorithms, "DQN")
    learn(dqn, 30 * NUM_ENVS)
    learn(dqn, 10 * NUM_ENVS, reset=False)
    for _ in range(2):
        step = dqn.env.step_torch(torch.full((NUM_ENVS,), 3))
    if is_alias:  # on a GPU the last observation is what the games show now
        dqn._last_obs = step.obs
    with pytest.raises(ValueError, match=r"did not go on from where they were.* Evaluate in other"):
        learn(dqn, 10 * NUM_ENVS, reset=False)
    learn(dqn, 10 * NUM_ENVS)


def test_dqn_learns_from_the_values_of_its_target_network() -> None:
    dqn = model(device_algorithms, "DQN")
    obs, next_obs = torch.randint(256, (2, 5, *dqn.observation_space.shape), dtype=torch.uint8)
    actions, rewards = torch.randint(4, (5, 1)), torch.randn(5, 1)
    dones = torch.tensor([[1.0], [0.0], [0.0], [1.0], [0.0]])
    with torch.no_grad():
        for parameter in dqn.q_net_target.parameters():
            parameter *= -2  # both networks begin with equal weights
        best = dqn.q_net_target(next_obs).amax(dim=1, keepdim=True)
        values = dqn.q_net(obs).gather(1, actions)
    expected = F.smooth_l1_loss(values, rewards + dqn.gamma * best * (1 - dones))

    assert_close(dqn._minibatch(obs, actions, next_obs, dones, rewards), expected)


def test_dqn_explores_in_each_environment_on_its_own() -> None:
    dqn = model(device_algorithms, "DQN")
    obs = torch.as_tensor(games().reset())[:1].expand(4000, -1, -1, -1)
    greedy = int(dqn._choose(obs[:1], torch.tensor(0.0)))
    torch.manual_seed(0)
    for exploration in (0.0, 0.4, 1.0):
        actions = dqn._choose(obs, torch.tensor(exploration))
        # Each agrees when it does not explore, and one time in four when it does.
        share = float((actions == greedy).float().mean())
        assert share == pytest.approx(1 - 0.75 * exploration, abs=0.03)


def test_dqn_plays_at_random_until_it_learns() -> None:
    eps = {"exploration_initial_eps": 0.25, "exploration_final_eps": 0.25}
    dqn, explored = model(device_algorithms, "DQN", learning_starts=6 * NUM_ENVS, **eps), []
    act = dqn._act

    def noting(obs: torch.Tensor, exploration: torch.Tensor) -> Any:
        explored.append(float(exploration))
        return act(obs, exploration)

    dqn._act = noting
    learn(dqn, 10 * NUM_ENVS)
    assert explored == [1.0] * 6 + [0.25] * 4


def test_dqn_refuses_to_count_in_episodes() -> None:
    with pytest.raises(ValueError, match="counts train_freq in steps, not in episodes"):
        model(device_algorithms, "DQN", train_freq=(1, "episode"))


def test_dqn_refuses_games_whose_beginning_it_does_not_see() -> None:
    env = make_sb3_env("Breakout", NUM_ENVS, stagger=2)
    with pytest.raises(ValueError, match=r"needs games from their beginning: .* stagger=0, got 2"):
        device_algorithms.DQN("CnnPolicy", env, buffer_size=8)


class Replayed:
    """Stands in for a CUDA graph: replays by calling the function again.

    While the function is recorded it runs, unlike on a GPU, so the first replay does nothing.
    """

    recorded: ClassVar[list[Recorded]] = []

    def __init__(self) -> None:
        self.replays = 0
        self.addresses: list[int] = []

    def replay(self) -> None:
        self.replays += 1
        graph: Any = self
        [own] = [recorded for recorded in self.recorded if recorded._graph is graph]
        if self.replays == 1:
            self.addresses = [tensor.data_ptr() for tensor in own._inputs]
        # A graph reads from where its inputs lay when it was recorded.
        assert [tensor.data_ptr() for tensor in own._inputs] == self.addresses
        if self.replays > 1:
            results = own._function(*own._inputs)
            is_one = isinstance(results, torch.Tensor)
            for kept, result in zip(
                *([each] if is_one else each for each in (own._outputs, results)), strict=True
            ):
                if isinstance(kept, torch.Tensor):
                    kept.copy_(result)


@pytest.mark.parametrize("name", ALL)
def test_recorded_functions_do_what_they_do_unrecorded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last minibatch of an epoch is smaller.
    keywords: dict[str, Any] = {"batch_size": 16} if name == "PPO" else {}
    keywords["learning_rate"] = lambda left: 0.001 * left
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SB3 advises against it
        plain = model(device_algorithms, name, **keywords)
        expected = [learn(plain, 20 * NUM_ENVS * 4, reset=reset) for reset in (True, False)]

        def record(_: Any, function: Any) -> Recorded:
            Replayed.recorded.append(Recorded(function))
            return Replayed.recorded[-1]

        monkeypatch.setattr(OnDevice, "_recorded", record)
        monkeypatch.setattr(Recorded, "_aside", lambda own, tensors: own._function(*tensors))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Replayed)
        monkeypatch.setattr(torch.cuda, "graph", lambda _: nullcontext())
        recorded = model(device_algorithms, name, **keywords)
        logged, addresses = [], []
        for reset in (True, False):
            logged.append(learn(recorded, 20 * NUM_ENVS * 4, reset=reset))
            # A graph reads and writes where these lay when it was recorded.
            tensors = [group["lr"] for group in recorded.policy.optimizer.param_groups]
            if name == "PPO":
                tensors += [recorded._totals, recorded._scalars]
            addresses.append([name == "A2C" or tensor.data_ptr() for tensor in tensors])

    assert addresses[0] == addresses[1]
    for own, its in zip(logged, expected, strict=True):
        assert [key for key in its if "train/" in key]
        for key in its:
            if "train/" in key:
                assert own[key] == pytest.approx(its[key], rel=1e-3, abs=1e-5), key
    assert sum(own._graph is not None for own in Replayed.recorded) >= (1 if name == "A2C" else 2)
    Replayed.recorded.clear()
    for key, value in plain.policy.state_dict().items():
        assert_close(recorded.policy.state_dict()[key], value, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch's own, in its compiler
@pytest.mark.parametrize("name", ALL)
def test_a_compiled_network_learns_the_same(name: str) -> None:
    plain = model(device_algorithms, name)
    compiled = model(device_algorithms, name, acceleration=AccelerationSettings(compile=True))
    for algorithm in (plain, compiled):
        learn(algorithm, 20 * NUM_ENVS)
    for key, value in plain.policy.state_dict().items():
        assert_close(compiled.policy.state_dict()[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["PPO", "DQN"])
def test_updates_of_several_processes_are_not_recorded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnDevice, "_recorded", lambda _, function: [function])
    alone, together = (model(device_algorithms, name, ranks=Ranks(0, n)) for n in (1, 2))
    assert alone._update == [alone._minibatch]
    assert together._update == together._minibatch  # gradients are exchanged in it
    assert together._act == [together._choose]


def test_an_update_is_recorded_if_its_optimizer_can_be() -> None:
    ppo = model(device_algorithms, "PPO", acceleration=AccelerationSettings(cuda_graphs=True))
    assert ppo._update == ppo._minibatch  # on the CPU nothing is recorded
    ppo.device = torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"optimizer_kwargs=dict\(capturable=True\), or set accel"):
        ppo._recorded_update(ppo._minibatch)
    for group in ppo.policy.optimizer.param_groups:
        group["capturable"] = True
    assert isinstance(ppo._recorded_update(ppo._minibatch), Recorded)
    ppo.policy.optimizer.add_param_group({"params": [torch.ones(1)], "capturable": False})
    with pytest.raises(ValueError, match=r"optimizer_kwargs=dict\(capturable=True\), or set accel"):
        ppo._recorded_update(ppo._minibatch)


def test_a_divergence_may_end_updates_that_are_not_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = AccelerationSettings(cuda_graphs=True)
    ppo = model(device_algorithms, "PPO", acceleration=settings, target_kl=0.1)
    assert "train/approx_kl" in learn(ppo, 2 * 20 * NUM_ENVS)
    monkeypatch.setattr(OnDevice, "_recorded", lambda _, function: Recorded(function))
    with pytest.raises(ValueError, match=r"target_kl may end an update, .*cuda_graphs = false"):
        model(device_algorithms, "PPO", acceleration=settings, target_kl=0.1)


def test_dqn_writes_its_log_whenever_so_many_episodes_have_ended() -> None:
    ours = model(device_algorithms, "DQN")
    written: list[int] = []
    ours.dump_logs = lambda: written.append(ours._episode_num // 4)
    ours.learn(600, log_interval=4)
    assert len(written) >= 3
    assert written == sorted(set(written))
    assert written[-1] == ours._episode_num // 4


def test_numbers_of_python_leave_the_type_of_what_a_callback_sees() -> None:
    rewards = HostView(torch.ones(2))
    assert (2.0 * rewards).dtype == (rewards + 1).dtype == np.float32


@pytest.mark.parametrize("name", ALL)
def test_a_policy_plays_in_evaluation_mode_and_learns_in_training_mode(name: str) -> None:
    ours = model(device_algorithms, name)
    modes: list[bool] = []

    class Modes(BaseCallback):
        def _on_step(self) -> bool:
            modes.append(ours.policy.training)
            return True

    learn(ours, 20 * NUM_ENVS, Modes())
    assert set(modes) == {False}
    assert ours.policy.training


@pytest.mark.parametrize("is_asked_for", [True, False])
def test_functions_are_recorded_on_a_gpu_if_that_is_asked_for(is_asked_for: bool) -> None:
    settings = AccelerationSettings(cuda_graphs=is_asked_for)
    algorithm = model(device_algorithms, "A2C", acceleration=settings)
    assert algorithm._recorded(draw) is draw
    algorithm.device = torch.device("cuda")
    assert isinstance(algorithm._recorded(draw), Recorded) is is_asked_for


def test_streams_wait_for_each_other_around_what_runs_aside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            events.append(f"{self.name} waits for {other.name}")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("main"))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())

    Recorded(lambda _: events.append("runs"))(torch.zeros(1))

    assert events == ["side waits for main", "runs", "main waits for side"]


@pytest.mark.parametrize("name", ["A2C", "DQN"])
def test_each_step_has_a_moment_of_its_own(name: str) -> None:
    class Keep(BaseCallback):
        def _on_step(self) -> bool:
            moments.append(self.locals["new_obs"]._moment)
            return True

    moments: list[Any] = []
    learn(model(device_algorithms, name), 20 * NUM_ENVS, Keep())
    assert len(moments) == len({id(moment) for moment in moments}) == 20


def test_the_games_of_all_ranks_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = model(device_algorithms, "A2C")
    learn(ours, 20 * NUM_ENVS)
    noted = list(ours.ep_info_buffer)
    game = {"r": 7.0, "l": 15, "t": 0.5}  # of another rank
    monkeypatch.setattr(Ranks, "gather", lambda _, games: [games, [game]])
    ours._note_games()
    assert list(ours.ep_info_buffer) == [*noted, game]


def test_a_restored_buffer_knows_of_resets_before_it_was_saved() -> None:
    space, nothing = spaces.Box(0, 255, (2, 3, 4), np.uint8), torch.zeros(1, dtype=torch.bool)
    buffers = [
        DeviceReplayBuffer(20, space, spaces.Discrete(2), "cpu", shortest_timeout=1000)
        for _ in range(2)
    ]
    buffer = buffers[0]
    for step in range(20):  # each game is cut off by a reset after its first step
        if step == 10:
            buffers[1].restore(buffer.state())
            buffer = buffers[1]
        buffer.expect_reset()
        obs, next_obs = (
            torch.full((1, 2, 3, 4), number, dtype=torch.uint8) for number in (100, step)
        )
        buffer.observe(obs, ~nothing)
        buffer.add(next_obs, torch.zeros(1), torch.zeros(1), nothing, nothing, nothing)
    slots = torch.arange(20)
    led_to = buffer._samples(slots, torch.zeros_like(slots)).next_observations[:, -1, 0, 0]
    assert led_to.tolist() == list(range(20))


def test_what_is_added_to_a_rollout_wins_over_what_was_observed() -> None:
    space = spaces.Box(0, 255, (2, 3, 4), np.uint8)
    buffer = DeviceRolloutBuffer(1, space, spaces.Discrete(2), "cpu")
    observed, added = (torch.full((1, 2, 3, 4), n, dtype=torch.uint8) for n in (1, 2))
    buffer.observe(observed)
    buffer.add(added, *[torch.zeros(1)] * 5)
    assert torch.equal(buffer.observations[0], added)
