"""Training runs: settings, what a run leaves behind, and going on after an interruption."""

import csv
import dataclasses
import errno
import inspect
import itertools
import json
import math
import operator
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)
from torch.testing import assert_close
from torch.utils.tensorboard import SummaryWriter

from coordrl import emulator
from coordrl.agents import AgentError, EvaluationResult, evaluate, load_agent, save_agent
from coordrl.algorithms import make_model
from coordrl.config import (
    AtariSettings,
    Schedule,
    SettingsError,
    TrainingSettings,
    dump_settings,
    parse_override,
)
from coordrl.device_algorithms import make_device_model
from coordrl.device_algorithms.base import OnDevice
from coordrl.emulator.nvrtc import CudaError
from coordrl.envs import AtariVectorEnv
from coordrl.extractors import policy_kwargs
from coordrl.files import RunError
from coordrl.layers import CoordinateSystem
from coordrl.progress import Progress
from coordrl.ranks import Ranks
from coordrl.sb3_envs import VectorEnvAdapter, make_sb3_env
from coordrl.training import default_config, load_training_settings, run_name, train
from coordrl.training.checkpoint import (
    Restored,
    _restore_optimizer,
    read_checkpoint,
    read_checkpoints,
    write_checkpoint,
    write_checkpoints,
)
from coordrl.training.profiling import Profile
from coordrl.training.run import _STREAMS, _environments, _Leader, _seeded_model, _stream
from coordrl.training.settings import DEFAULTS, describe_acceleration
from coordrl.training.tracking import make_logger

CONFIGS = Path(__file__).parents[1] / "configs"

# A game of Breakout is short for those who cannot play it, and the network is as small as it goes.
SMALL = (
    *("run.game=Breakout", "run.num_envs=2", "run.track=none", "run.total_steps=96"),
    *("run.evaluation_episodes=1", "run.evaluation_interval=0", "run.checkpoint_interval=32"),
    *("run.log_interval=16", "env.screen_size=[36, 40]", "env.stack_size=2", "env.noop_max=0"),
    *("extractor.specs=[[4, 8, 8], [4, 3, 1]]", "extractor.features_dim=8"),
)
ALGORITHM = {
    "a2c": ("algorithm.n_steps=4",),
    "ppo": (
        "algorithm.n_steps=8",
        "algorithm.batch_size=8",
        "algorithm.n_epochs=2",
        "algorithm.ent_coef={start = 0.02, end = 0.0}",
    ),
    "dqn": (
        *("algorithm.buffer_size=64", "algorithm.learning_starts=16", "algorithm.batch_size=4"),
        *("algorithm.target_update_interval=8", "algorithm.exploration_final_eps=0.2"),
    ),
}


WHEREVER = pytest.mark.parametrize(
    "where", ["run.on_device=false", "run.on_device=true"], ids=["host", "device"]
)


def settings(algo: str = "ppo", *overrides: str) -> TrainingSettings:
    texts = (*SMALL, f"run.algo={algo}", *ALGORITHM[algo], *overrides)
    return load_training_settings(None, [parse_override(text) for text in texts])


def weights(agent: Path) -> dict[str, torch.Tensor]:
    return load_agent(agent).policy.state_dict()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def note_seeds(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Return a list that takes up, from now on, the seeds that games are given."""
    given: list[int | None] = []
    seed = VectorEnvAdapter.seed

    def noting(self: VectorEnvAdapter, value: int | None = None) -> Any:
        given.append(value)
        return seed(self, value)

    monkeypatch.setattr(VectorEnvAdapter, "seed", noting)
    return given


@pytest.fixture
def signal_at_evaluation(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that lets SIGTERM come while the next evaluation goes on."""

    def cut_off(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr("coordrl.training.run.evaluate", evaluate)
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the signal should have ended the evaluation")

    return lambda: monkeypatch.setattr("coordrl.training.run.evaluate", cut_off)


class TestSettings:
    @pytest.mark.parametrize(
        "name", [path.name for algo in ALGORITHM for path in sorted(CONFIGS.glob(f"{algo}*.toml"))]
    )
    def test_every_configuration_builds_a_model(self, name: str) -> None:
        chosen = load_training_settings(CONFIGS / name)
        assert name.startswith(chosen.run.algo)
        if name == "dqn_cuda.toml":
            chosen = dataclasses.replace(chosen, algorithm={**chosen.algorithm, "buffer_size": 99})
        # A rollout has to hold a minibatch.
        num_envs = {"ppo_cuda.toml": 256, "ppo_cpu.toml": 4}.get(name, 2)
        env = make_sb3_env("Pong", num_envs, chosen.env)
        make = make_device_model if chosen.run.on_device else make_model
        model: Any = make(chosen, env, seed=0)
        env.close()
        for key, value in chosen.algorithm.items():
            made = getattr(model, key)
            made = made(1.0) if callable(made) and not isinstance(made, tuple) else made
            expected = value.start if isinstance(value, Schedule) else value
            if key == "gradient_steps":
                expected *= num_envs
            if key == "train_freq":
                made = made.frequency
            assert made == expected, key

    def test_ppo_has_the_settings_of_the_zoo(self) -> None:
        chosen = load_training_settings(CONFIGS / "ppo.toml")
        assert (chosen.run.num_envs, chosen.run.total_steps) == (8, 10_000_000)
        assert chosen.algorithm["learning_rate"] == Schedule(2.5e-4, 0.0, 1.0)
        assert chosen.algorithm["clip_range"] == Schedule(0.1, 0.0, 1.0)
        assert chosen.env == AtariSettings()

    def test_protocol_gives_the_defaults_of_the_environment(self) -> None:
        texts = ["run.protocol=machado", "env.repeat_action_probability=0.1"]
        chosen = load_training_settings(None, [parse_override(text) for text in texts])
        assert chosen.env.repeat_action_probability == 0.1
        assert chosen.env.full_action_space

    def test_table_of_the_game_is_read_in_any_spelling(self, tmp_path: Path) -> None:
        path = tmp_path / "run.toml"
        path.write_text("[games.ms_pacman.run]\nnum_envs = 3\n[games.Pong.run]\nnum_envs = 5\n")
        override = parse_override("run.game=ALE/MsPacman-v5")
        chosen = load_training_settings(path, [override])
        assert (chosen.run.game, chosen.run.num_envs) == ("MsPacman", 3)
        assert run_name(chosen) == "MsPacman-ppo-all-s0"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("run.game=Pnog", "there is no Atari game 'Pnog'; did you mean Pong"),
            ("run.algo=ddpg", 'run.algo must be one of "a2c", "ppo", "dqn", got \'ddpg\''),
            (
                "algorithm.buffer_size=8",
                r"unknown key 'algorithm.buffer_size'; \[algorithm\] has batch_size, ",
            ),
            ("algorithm.seed=8", "unknown key 'algorithm.seed'"),
            ("extractor.coords=some", 'extractor.coords must be one of "none", "first", "all"'),
            ("run.total_steps=-5", "total_steps must be at least 1, got -5"),
        ],
    )
    def test_mistakes_are_named(self, text: str, message: str) -> None:
        with pytest.raises(SettingsError, match=message):
            load_training_settings(None, [parse_override(text)])

    @pytest.mark.parametrize(
        ("texts", "message"),
        [
            (("algorithm.batch_size=1",), "ppo refuses its settings: `batch_size` must be great"),
            (("env.screen_size=[5, 5]",), "ppo refuses its settings: an input of 5x5 pixels is to"),
            (("env.observation=rgb",), "env.observation = 'rgb': agents are trained on stacked gr"),
            (("env.observation=ram",), "env.observation = 'ram': agents are trained on stacked gr"),
        ],
    )
    def test_settings_that_do_not_fit_each_other_are_named(
        self, texts: tuple[str, ...], message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(SettingsError, match=message):
            train(settings("ppo", *texts), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("texts", "message"),
        [
            (
                ("acceleration.bfloat16=true",),
                r"set run.on_device = true, or .*bfloat16 = false$",
            ),
            (("run.algo=dqn", "algorithm.train_freq=[0, 'step']"), "a number from 1 on, or such a"),
            (("run.algo=dqn", "algorithm.train_freq=[1, 'hour']"), r"or .*, got \[1, 'hour'\]"),
            (("run.algo=dqn", "algorithm.train_freq=[2, 'episode']"), r"as in \[2, \"step\"\]"),
            (
                ("run.algo=dqn", "extractor.share_features_extractor=false"),
                "unknown key 'extractor.share_features_extractor'",
            ),
        ],
    )
    def test_settings_that_would_do_nothing_or_fail_late_are_named(
        self, texts: tuple[str, ...], message: str
    ) -> None:
        with pytest.raises(SettingsError, match=message):
            load_training_settings(None, [parse_override(text) for text in texts])

    def test_dqn_counts_episodes_of_one_game(self) -> None:
        texts = ("run.algo=dqn", "run.num_envs=1", "algorithm.train_freq=[2, 'episode']")
        chosen = load_training_settings(None, [parse_override(text) for text in texts])
        assert list(chosen.algorithm["train_freq"]) == [2, "episode"]

    @pytest.mark.parametrize(("device", "is_told"), [("cpu", False), ("cuda", True)])
    def test_cuda_graphs_are_told_of_where_they_are_used(self, device: str, is_told: bool) -> None:
        chosen = settings("ppo", "run.on_device=true", "acceleration.cuda_graphs=true")
        told = describe_acceleration(chosen, Ranks(), device)
        assert told.endswith("; CUDA graphs") == is_told
        together = describe_acceleration(chosen, Ranks(0, 2), device)
        assert together.endswith("; CUDA graphs of acting alone") == is_told

    def test_what_several_processes_do_on_the_device_is_told(self) -> None:
        chosen = settings(
            *("dqn", "run.on_device=true", "run.num_envs=4", "algorithm.buffer_size=1_000_000"),
            *("acceleration.bfloat16=true", "acceleration.compile=true", "env.screen_size=[84,84]"),
            "algorithm.learning_rate={start=0.001, end=0.0}",
        )
        assert describe_acceleration(chosen, Ranks(0, 2), "cuda") == (
            "on the device: 4 games, 2 in each of 2 processes; replay of 1,000,000 transitions in"
            " 7.1 GB; minibatches of 4; learning rate 0.001 to 0; features in bfloat16; compiled"
        )

    @pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without GPU says")
    def test_a_gpu_that_is_not_there_is_no_reason_to_take_the_cpu(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="torch finds no GPU; choose 'cpu'"):
            train(settings("ppo", "run.device=cuda"), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a recipe for the CPU alone")
    def test_default_configurations_exist(self) -> None:
        for algo in ("a2c", "ppo", "dqn"):
            for device in ("auto", "cpu", "cuda"):
                assert (CONFIGS / default_config(algo, device)).exists()
        assert default_config("ppo", "auto") == "ppo_cpu.toml"

    @pytest.mark.parametrize(("game", "target"), [("ALE/Pong-v5", 20.5), ("SpaceInvaders", None)])
    def test_the_return_at_which_pong_is_learned_ends_no_other_game(
        self, game: str, target: float | None
    ) -> None:
        for config in sorted(CONFIGS.glob("ppo*.toml")):
            chosen = load_training_settings(config, [parse_override(f"run.game={game}")])
            expected = target if config.name == "ppo_cpu.toml" else None
            assert chosen.run.target_return == expected, config

    @pytest.mark.parametrize(
        ("game", "left"),
        [
            ("ALE/Breakout-v5", -0.02),
            ("SpaceInvaders", None),
            ("Seaquest", -0.02),
            ("Pong", None),
        ],
    )
    def test_some_games_have_small_coordinates(self, game: str, left: float | None) -> None:
        chosen = load_training_settings(
            CONFIGS / "ppo_cpu.toml", [parse_override(f"run.game={game}")]
        )
        system = chosen.extractor.get("system")
        assert (None if system is None else system.origin) == left

    def test_the_coordinates_of_a_game_may_be_changed_in_part(self) -> None:
        given = [parse_override("run.game=Breakout"), parse_override("extractor.system.extent=0.1")]
        chosen = load_training_settings(CONFIGS / "ppo_cpu.toml", given)
        assert chosen.extractor["system"] == CoordinateSystem(origin=-0.02, extent=0.1)

    def test_the_coordinates_of_a_run_come_back_from_its_folder(self, tmp_path: Path) -> None:
        given = parse_override("extractor.system={anchor='centers', origin=[-0.1, 0], extent=2}")
        chosen = load_training_settings(None, [given])
        assert chosen.extractor["system"] == CoordinateSystem("centers", origin=(-0.1, 0.0))
        (tmp_path / "settings.toml").write_text(dump_settings(chosen))
        assert load_training_settings(tmp_path / "settings.toml") == chosen
        for wrong, message in (("{orign=0}", "unknown key 'orign'"), ("{extent=0}", "and not 0")):
            with pytest.raises(SettingsError, match=rf"--set: extractor.system .*{message}"):
                load_training_settings(None, [parse_override(f"extractor.system={wrong}")])

    @pytest.mark.parametrize("algo", ["a2c", "dqn"])
    def test_configurations_for_a_gpu_follow_their_rule(self, algo: str) -> None:
        zoo, ours = (
            load_training_settings(CONFIGS / name) for name in (f"{algo}.toml", f"{algo}_cuda.toml")
        )
        assert ours.run.on_device
        update, rate = [], []
        for chosen in (zoo, ours):
            keys = chosen.algorithm
            step = chosen.run.num_envs * keys.get("n_steps", 5)
            update.append(step if algo == "a2c" else keys["batch_size"])
            schedule = keys.get("learning_rate", 7e-4)
            rate.append(schedule.start if isinstance(schedule, Schedule) else schedule)
        assert rate[1] == pytest.approx(rate[0] * (update[1] / update[0]) ** 0.5, rel=1e-3)
        for key in ("ent_coef", "vf_coef", "clip_range", "n_epochs", "exploration_fraction"):
            assert zoo.algorithm.get(key) == ours.algorithm.get(key)
        if algo == "dqn":  # each transition is learned from as often, and by as old a target
            freq, interval = (
                [chosen.algorithm[key] for chosen in (zoo, ours)]
                for key in ("train_freq", "target_update_interval")
            )
            assert update[0] / freq[0] == update[1] / freq[1]
            assert interval[0] / freq[0] == interval[1] / freq[1]

    def test_ppo_on_a_gpu_has_the_recipe_of_the_cpu_for_more_games(self) -> None:
        recipe, ours = (
            load_training_settings(CONFIGS / name) for name in ("ppo_cpu.toml", "ppo_cuda.toml")
        )
        assert ours.run.on_device
        differs = {"n_steps", "batch_size", "learning_rate"}
        assert recipe.algorithm.keys() == ours.algorithm.keys()
        for key in recipe.algorithm.keys() - differs:
            assert recipe.algorithm[key] == ours.algorithm[key], key
        assert ours.algorithm["learning_rate"] == Schedule(1e-3, 0.0)
        n_steps, batch_size = (ours.algorithm[key] for key in ("n_steps", "batch_size"))
        assert n_steps * ours.run.num_envs == 16 * batch_size


class TestRun:
    @WHEREVER
    @pytest.mark.parametrize("algo", ALGORITHM)
    def test_a_run_leaves_agents_curves_and_checkpoints(
        self, algo: str, where: str, tmp_path: Path
    ) -> None:
        chosen = settings(algo, "run.evaluation_interval=48", "run.track=tensorboard", where)
        folder = tmp_path / "run"

        result = train(chosen, folder)

        assert (result.ending, result.steps, result.signal_number) == ("finished", 96, None)
        assert load_training_settings(folder / "settings.toml") == chosen
        assert checkpoints(folder) == [64, 96]
        evaluations = json.loads((folder / "evaluations.json").read_text())
        assert [row["agent_steps"] for row in evaluations] == [48, 96]
        assert result.evaluation is not None
        assert result.evaluation.mean == evaluations[-1]["mean"]
        card = load_agent(result.agent).card
        assert card is not None
        assert (card.agent_steps, card.name) == (96, run_name(chosen))
        assert [played.mean for played in card.evaluations] == [evaluations[-1]["mean"]]
        assert result.best_agent is not None
        assert load_agent(result.best_agent).card is not None
        cls = getattr(stable_baselines3, algo.upper())
        kwargs = {"buffer_size": 1} if algo == "dqn" else {}
        model = cls.load(result.agent / "agent.zip", **kwargs)
        assert same(model.policy.state_dict(), weights(result.agent))
        with zipfile.ZipFile(result.agent / "agent.zip") as archive:
            data = json.loads(archive.read("data"))
        assert data.get("rollout_buffer_class") is data.get("replay_buffer_class") is None
        events = EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        assert [point.step for point in events.Scalars("eval/episode_return_mean")] == [48, 96]

    def test_equal_settings_give_equal_weights_and_another_seed_others(
        self, tmp_path: Path
    ) -> None:
        def learned(name: str, seed: int) -> dict[str, torch.Tensor]:
            chosen = settings("ppo", "run.stagger=5", f"run.seed={seed}")
            return weights(train(chosen, tmp_path / name).agent)

        first, again, other = learned("first", 0), learned("again", 0), learned("other", 1)
        assert same(first, again)
        assert not same(first, other)

    @WHEREVER
    def test_games_have_been_staggered_when_learning_begins(
        self, where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        frames: list[list[int]] = []
        step = AtariVectorEnv.step

        def noting(self: AtariVectorEnv, actions: Any) -> Any:
            result = step(self, actions)
            if self.num_envs == 2:  # not an evaluation
                frames.append(result[4]["episode_frame_number"].tolist())
            return result

        monkeypatch.setattr(AtariVectorEnv, "step", noting)
        chosen = settings("ppo", "run.stagger=8", "run.total_steps=16", where)

        assert train(chosen, tmp_path / "run").steps == 16

        assert len(frames) == 8 + 8
        first, second = np.diff(np.array(frames), axis=0).T.tolist()
        assert first == [4] * 15
        # The second game begins anew before the fifth step.
        assert second == [4] * 3 + [4 - 4 * 4] + [4] * 11

    @pytest.mark.parametrize("algo", ["ppo", "dqn"])
    def test_evaluations_and_checkpoints_do_not_change_what_is_learned(
        self, algo: str, tmp_path: Path
    ) -> None:
        rare = ("run.checkpoint_interval=1000", "run.log_interval=1000")
        often = ("run.evaluation_interval=48", "run.checkpoint_interval=16")
        without = train(settings(algo, *rare), tmp_path / "without")
        watched = train(settings(algo, *often), tmp_path / "watched")
        assert same(weights(without.agent), weights(watched.agent))

    def test_random_streams_differ_from_each_other(self) -> None:
        chosen = settings("ppo")
        streams = [_stream(chosen, name, index) for name in _STREAMS for index in range(3)]
        assert len(set(streams)) == len(_STREAMS) * 3

    @WHEREVER
    def test_the_seed_decides_where_games_begin(self, where: str, tmp_path: Path) -> None:
        random_start = ("run.game=Pong", "env.noop_max=30", "env.max_frames_per_episode=40", where)
        first, again, other = (
            train(settings("a2c", *random_start, seed), tmp_path / name)
            for name, seed in (("a", "run.seed=3"), ("b", "run.seed=3"), ("c", "run.seed=4"))
        )
        assert same(weights(first.agent), weights(again.agent))
        assert not same(weights(first.agent), weights(other.agent))

    @WHEREVER
    def test_games_have_a_random_stream_of_their_own(
        self, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = note_seeds(monkeypatch)
        chosen = settings("ppo", "run.total_steps=16", where)
        train(chosen, tmp_path / "run")
        assert given[-1] == _stream(chosen, "environment")  # SB3 gives them the policy's before

    def test_ranks_share_weights_but_neither_games_nor_random_numbers(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chosen = settings("ppo", "run.on_device=true", "run.num_envs=6", "algorithm.batch_size=8")
        given = note_seeds(monkeypatch)
        models, drawn = [], []
        for index in range(2):
            games = make_sb3_env(chosen.run.game, 3, chosen.env)
            models.append(_seeded_model(chosen, games, "cpu", Ranks(index, 2)))
            first = given[-1]
            assert first is not None
            seeds = list(range(first, first + 3))
            drawn.append((seeds, float(torch.rand(1)), float(np.random.rand())))  # noqa: NPY002
        weights, others = (model.policy.state_dict() for model in models)
        assert all(torch.equal(value, others[name]) for name, value in weights.items())
        # The games are those that one process would play.
        start = _stream(chosen, "environment")
        assert drawn[0][0] + drawn[1][0] == list(range(start, start + 6))
        assert drawn[0][1] != drawn[1][1]
        assert drawn[0][2] != drawn[1][2]

    @WHEREVER
    def test_what_learns_is_where_the_settings_say(
        self, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        models: list[Any] = []
        set_logger = BaseAlgorithm.set_logger

        def noting(self: BaseAlgorithm, logger: Any) -> None:
            models.append(self)
            set_logger(self, logger)

        monkeypatch.setattr(BaseAlgorithm, "set_logger", noting)
        chosen = settings("ppo", "run.total_steps=16", where)
        train(chosen, tmp_path / "run")
        assert {isinstance(model, OnDevice) for model in models} == {chosen.run.on_device}

    @pytest.mark.parametrize(
        ("where", "device", "keywords"),
        [
            ("run.on_device=true", "cuda", {"device": "cuda"}),
            ("run.on_device=true", "cpu", {"num_threads": 3}),
            ("run.on_device=false", "cuda", {"num_threads": 3}),
        ],
    )
    def test_games_are_on_a_gpu_only_if_what_learns_is(
        self,
        where: str,
        device: str,
        keywords: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("coordrl.training.run.make_sb3_env", lambda *_, **options: options)
        made: Any = _environments(settings("ppo", where), device, Ranks(), threads=3)
        assert made == {"stagger": 0, **keywords}

    def test_evaluations_play_as_the_run_is_set_each_with_games_of_its_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[dict[str, Any]] = []

        def noting(model: Any, **chosen: Any) -> Any:
            asked.append(chosen)
            return evaluate(model, **chosen)

        monkeypatch.setattr("coordrl.training.run.evaluate", noting)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        chosen = settings("a2c", "run.protocol=machado", "run.evaluation_interval=32",
                          "env.max_frames_per_episode=400")  # fmt: skip
        train(chosen, tmp_path / "run")
        assert {call["num_threads"] for call in asked} == {3}
        assert [call["protocol"] for call in asked] == ["machado"] * 3
        assert {call["settings"] for call in asked} == {chosen.env}
        assert len({call["seed"] for call in asked}) == 3

    def test_the_curve_is_that_of_the_games_and_the_agents(self, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        result = train(settings("a2c", "env.max_frames_per_episode=40"), folder)
        rows = list(csv.DictReader((folder / "progress.csv").read_text().splitlines()))
        assert {float(row["episode_length"]) for row in rows} == {10.0}  # four frames to a step
        assert all(0 <= float(row["episode_return"]) < 5 for row in rows)
        agents = list(
            csv.DictReader((result.agent / "learning_curve.csv").read_text().splitlines())
        )
        assert [row["episode_return"] for row in agents] == [row["episode_return"] for row in rows]

    def test_a_run_ends_when_an_evaluation_reaches_the_target(self, tmp_path: Path) -> None:
        chosen = settings("ppo", "run.evaluation_interval=32", "run.target_return=0")
        result = train(chosen, tmp_path / "run")
        assert (result.ending, result.steps) == ("target reached", 32)
        assert checkpoints(tmp_path / "run") == [32]

        resumed = train(chosen, tmp_path / "run", resume=True)
        assert (resumed.ending, resumed.steps) == ("target reached", 32)

    def test_an_old_evaluation_reaches_no_target(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chosen = settings("ppo", "run.evaluation_interval=32", "run.target_return=1000")
        between = _Leader.between_updates

        def stop_at_48(run: Any, **options: Any) -> None:
            if run._steps == 48:
                signal.raise_signal(signal.SIGTERM)
            between(run, **options)

        with monkeypatch.context() as patch:
            patch.setattr(_Leader, "between_updates", stop_at_48)
            stopped = train(chosen, tmp_path / "run")
        assert (stopped.ending, stopped.steps) == ("stopped", 48)
        lower = dataclasses.replace(chosen.run, target_return=0.0)
        (tmp_path / "run" / "settings.toml").write_text(
            dump_settings(dataclasses.replace(chosen, run=lower))
        )

        resumed = train(dataclasses.replace(chosen, run=lower), tmp_path / "run", resume=True)

        assert (resumed.ending, resumed.steps) == ("target reached", 64)

    def test_an_evaluation_that_was_interrupted_is_logged_where_it_belongs(
        self, tmp_path: Path, signal_at_evaluation: Callable[[], None]
    ) -> None:
        chosen = settings("ppo", "run.evaluation_interval=48", "run.track=tensorboard",
                          "run.log_interval=16")  # fmt: skip
        signal_at_evaluation()
        stopped = train(chosen, tmp_path / "run")
        assert (stopped.ending, stopped.steps) == ("stopped", 48)
        time.sleep(1)  # TensorBoard reads files of one second in the order of their names alone
        train(chosen, tmp_path / "run", resume=True)

        events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
        logged = [event.step for event in events.Scalars("eval/episode_return_mean")]
        assert logged == [48, 96]

    def test_a_signal_that_comes_when_a_run_is_over_has_not_interrupted_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def save(*args: Any, **kwargs: Any) -> Any:
            signal.raise_signal(signal.SIGTERM)
            monkeypatch.setattr("coordrl.training.run.save_agent", save_agent)
            return save_agent(*args, **kwargs)

        chosen = settings("ppo", "run.evaluation_interval=32", "run.target_return=0")
        monkeypatch.setattr("coordrl.training.run.save_agent", save)  # of the best agent
        result = train(chosen, tmp_path / "run")
        assert (result.ending, result.signal_number) == ("target reached", None)

    def test_an_evaluation_that_a_resumed_run_makes_first_is_kept(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        signal_at_evaluation: Callable[[], None],
    ) -> None:
        chosen = settings("ppo", "run.track=tensorboard")
        signal_at_evaluation()
        assert train(chosen, tmp_path / "run").steps == 96
        time.sleep(1)  # as above
        train(chosen, tmp_path / "run", resume=True)
        time.sleep(1)
        monkeypatch.setattr("coordrl.training.run.evaluate", None)  # is not called again
        assert train(chosen, tmp_path / "run", resume=True).ending == "finished"

        events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
        logged = [event.step for event in events.Scalars("eval/episode_return_mean")]
        assert logged == [96]

    @WHEREVER
    @pytest.mark.parametrize(
        ("algo", "validates"),
        # torch.compile turns torch's validation off, for good and for all of the process.
        [*((algo, True) for algo in ALGORITHM), ("a2c", False), ("ppo", False)],
    )
    def test_weights_that_are_no_numbers_end_a_run_and_leave_its_checkpoints(
        self,
        algo: str,
        validates: bool,
        where: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", validates)
        chosen = settings(algo, where, "run.checkpoint_interval=16", "run.evaluation_interval=0")
        between = _Leader.between_updates

        def spoil(run: Any, **options: Any) -> None:
            between(run, **options)
            if run._steps >= 48:
                with torch.no_grad():
                    next(run._model.policy.parameters()).fill_(math.nan)

        monkeypatch.setattr(_Leader, "between_updates", spoil)
        with pytest.raises(RunError, match=r"weights are no longer finite; the checkpoint of"):
            train(chosen, tmp_path / "run")
        for step in checkpoints(tmp_path / "run"):
            state = torch.load(
                tmp_path / "run" / "checkpoints" / f"{step:012d}" / "state.pt", weights_only=True
            )
            assert all(value.isfinite().all() for value in state["policy"].values())

    @pytest.mark.parametrize(
        "override",
        ["algorithm.buffer_size=1_000_000_000_000", "extractor.features_dim=100_000_000_000"],
    )
    def test_memory_that_is_not_there_is_named(self, override: str, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"there is not enough memory; lower run.num_envs"):
            train(settings("dqn", override), tmp_path / "run")

    def test_memory_that_runs_out_on_the_way_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A GPU's memory goes in the first update: what models allocate beforehand are buffers.
        def fail(_: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")

        monkeypatch.setattr("coordrl.device_algorithms.A2C.train", fail)
        match = r"^there is not enough memory; .*algorithm.batch_size .*\(CUDA out of .* GiB.\)$"
        with pytest.raises(SettingsError, match=match):
            train(settings("a2c", "run.on_device=true"), tmp_path / "run")

    @WHEREVER
    @pytest.mark.parametrize("algo", ALGORITHM)
    def test_profile_divides_the_time(self, algo: str, where: str, tmp_path: Path) -> None:
        profile = train(settings(algo, where), tmp_path / "run", profile=True).profile
        assert profile is not None
        rows = {line[:40].split("  ")[0]: line for line in profile.splitlines()[1:]}
        assert {"environment", "backward", "optimizer", "copies"} <= rows.keys()
        assert {"forward, to act", "forward, to learn", "evaluation"} <= rows.keys()
        shares = [float(row.split("%")[0].split()[-1]) for row in rows.values()]
        assert sum(shares) == pytest.approx(100, abs=1)

    def test_profile_counts_a_phase_without_those_within(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        times = iter([0.0, 1.0, 3.0, 7.0, 15.0])
        monkeypatch.setattr(time, "perf_counter", lambda: next(times))
        profile = Profile()
        with profile.phase("outer"), profile.phase("inner"):
            pass
        assert profile.seconds == {"outer": 2.0 + 8.0, "inner": 4.0}

    def test_a_profile_is_a_table_the_longest_phase_first(self) -> None:
        profile = Profile()
        profile.seconds = {"optimizer": 1.0, "environment": 3.0}
        assert profile.table(steps=2_000).splitlines() == [
            "phase        share  microseconds a step",
            "environment  75.0%                1,500",
            "optimizer    25.0%                  500",
        ]
        assert profile.table(steps=0).splitlines()[2].endswith(" 1,000,000")

    @WHEREVER
    @pytest.mark.parametrize("algo", ["ppo", "dqn"])
    def test_a_profile_counts_batches_as_copies(self, algo: str, where: str) -> None:
        env = make_sb3_env("Breakout", 2, settings(algo).env, seed=0)
        make = make_device_model if where.endswith("true") else make_model
        model: Any = make(settings(algo, where), env, seed=0, device="cpu")
        model.learn(32)
        profile = Profile()
        profile.watch_model(model)
        if algo == "dqn":
            model.replay_buffer.sample(2)
        else:
            next(model.rollout_buffer.get(2))
        assert profile.seconds.keys() == {"copies"}
        env.close()

    @pytest.mark.parametrize(
        ("algo", "network", "phase"),
        [
            ("a2c", "policy.predict_values", "forward, to act"),
            ("dqn", "q_net_target", "forward, to learn"),
        ],
    )
    def test_a_profile_knows_what_values_are_for(self, algo: str, network: str, phase: str) -> None:
        env = make_sb3_env("Breakout", 2, settings(algo).env, seed=0)
        model = make_model(settings(algo), env, seed=0)
        profile = Profile()
        profile.watch_model(model)
        with torch.no_grad():
            operator.attrgetter(network)(model)(torch.zeros(1, 2, 36, 40, dtype=torch.uint8))
        assert profile.seconds.keys() == {phase}
        env.close()

    def test_wandb_that_is_not_installed_is_named_before_anything_is_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "wandb", None)
        with pytest.raises(SettingsError, match=r"needs the package wandb: pip install 'coordrl"):
            train(settings("ppo", "run.track=wandb"), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("fails", ["init", "log", "finish"])
    def test_what_wandb_reports_is_told_in_a_sentence(
        self, fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Error(Exception):
            pass

        def fail(name: str) -> None:
            if name == fails:
                raise Error("No API key configured.\n Use `wandb login`")

        def init(**_: Any) -> Any:
            fail("init")
            log, finish = (lambda *_, _name=name, **__: fail(_name) for name in ("log", "finish"))
            return types.SimpleNamespace(log=log, finish=finish)

        module = types.SimpleNamespace(init=init, Error=Error, __spec__=types.SimpleNamespace())
        monkeypatch.setitem(sys.modules, "wandb", module)
        message = (
            r"^Weights & Biases says: No API key .* Use `wandb login`; .* or choose --track none$"
        )
        with pytest.raises(RunError, match=message):
            train(settings("ppo", "run.track=wandb"), tmp_path / "run")
        kept = [path.name for path in (tmp_path / "run").iterdir()]
        assert ("settings.toml" in kept) == (fails != "init")  # a run that began can be resumed

    @pytest.mark.skipif(sys.platform != "linux", reason="names are texts there")
    def test_a_folder_that_tensorboard_cannot_write_to_is_refused_before_it_is_made(
        self, tmp_path: Path
    ) -> None:
        folder = tmp_path / os.fsdecode(b"\xff")
        with pytest.raises(SettingsError, match=r"needs a path in UTF-8, .* or --track none$"):
            train(settings("ppo", "run.track=tensorboard"), folder)
        assert not folder.exists()
        assert train(settings("ppo", "run.track=none"), folder).agent.exists()

    def test_wandb_gets_one_run_over_an_interruption(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        signal_at_evaluation: Callable[[], None],
    ) -> None:
        started: list[dict[str, Any]] = []
        logged: list[tuple[int, dict[str, float]]] = []
        finished: list[bool] = []

        def init(**kwargs: Any) -> Any:
            started.append(kwargs)
            return types.SimpleNamespace(
                log=lambda numbers, step: logged.append((step, numbers)),
                finish=lambda: finished.append(True),
            )

        spec = types.SimpleNamespace()
        monkeypatch.setitem(
            sys.modules,
            "wandb",
            types.SimpleNamespace(init=init, __spec__=spec),
        )
        chosen = settings("ppo", "run.track=wandb", "run.evaluation_interval=48")
        signal_at_evaluation()
        train(chosen, tmp_path / "run")
        train(chosen, tmp_path / "run", resume=True)

        assert [kwargs["resume"] for kwargs in started] == ["allow", "allow"]
        assert started[0]["id"] == started[1]["id"]
        assert started[0]["config"]["run"]["game"] == "Breakout"
        assert (started[0]["name"], started[0]["dir"]) == ("run", str(tmp_path / "run"))
        assert finished == [True, True]
        assert [step for step, _ in logged] == sorted({step for step, _ in logged})
        assert "eval/episode_return_mean" in logged[-1][1]
        logger = make_logger("wandb", tmp_path / "run", {}, 0)
        for value in (np.int64(3), np.float32(0.5), "a word"):
            logger.record(f"as {type(value).__name__}", value)
        logger.dump(7)
        assert logged[-1] == (7, {"as int64": 3.0, "as float32": 0.5})


class TestResume:
    @pytest.mark.parametrize("algo", ALGORITHM)
    def test_a_stopped_run_goes_on_where_it_was(
        self, algo: str, tmp_path: Path, signal_at_evaluation: Callable[[], None]
    ) -> None:
        chosen = settings(
            algo,
            *("run.evaluation_interval=48", "run.track=tensorboard"),
            "algorithm.learning_rate={start=0.01, end=0.0}",
        )
        folder = tmp_path / "run"
        signal_at_evaluation()

        stopped = train(chosen, folder)
        assert (stopped.ending, stopped.signal_number) == ("stopped", signal.SIGTERM)
        assert (stopped.steps, stopped.evaluation, stopped.best_agent) == (48, None, None)
        assert checkpoints(folder) == [32, 48]

        time.sleep(1)  # TensorBoard reads files of one second in the order of their names alone
        result = train(chosen, folder, resume=True)
        assert (result.ending, result.steps) == ("finished", 96)
        evaluations = json.loads((folder / "evaluations.json").read_text())
        assert [row["agent_steps"] for row in evaluations] == [48, 96]
        events = EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        rates = {p.step: p.value for p in events.Scalars("train/learning_rate")}
        # Logged at a step: the rate of the last update, in the straight line of the whole run.
        assert rates[80] == pytest.approx(0.01 * (1 - 80 / 96))

    @WHEREVER
    @pytest.mark.parametrize("algo", ["a2c", "ppo"])
    def test_the_entropy_bonus_follows_its_schedule(
        self, algo: str, where: str, tmp_path: Path
    ) -> None:
        schedule = "algorithm.ent_coef={start = 0.08, end = 0.02, end_fraction = 0.5}"
        chosen = settings(algo, schedule, "run.track=tensorboard", "run.log_interval=1", where)

        train(chosen, tmp_path / "run")

        events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
        events.Reload()
        points = {point.step: point.value for point in events.Scalars("train/ent_coef")}
        assert {step: points[step] for step in (16, 48, 96)} == pytest.approx(
            {16: 0.06, 48: 0.02, 96: 0.02}
        )

    @pytest.mark.skipif(not emulator.available(), reason="ale-py cannot save a game")
    @WHEREVER
    @pytest.mark.parametrize("algo", ALGORITHM)
    def test_a_killed_run_that_goes_on_learns_bit_for_bit_the_same(
        self, algo: str, where: str, tmp_path: Path
    ) -> None:
        stagger = 0 if algo == "dqn" else 5
        chosen = settings(algo, "run.evaluation_interval=48", f"run.stagger={stagger}", where)
        whole = train(chosen, tmp_path / "whole")
        # As if it had been killed after the checkpoint of step 64, with an evaluation behind it.
        killed = tmp_path / "killed"
        shutil.copytree(tmp_path / "whole", killed)
        for name in ("last", "checkpoints/000000000096"):
            shutil.rmtree(killed / name)

        resumed = train(chosen, killed, resume=True)

        assert same(weights(whole.agent), weights(resumed.agent))
        states = [
            torch.load(folder / "checkpoints" / "000000000096" / "state.pt", weights_only=True)
            for folder in (tmp_path / "whole", killed)
        ]
        for part in ("optimizer", "counters", "episode_starts"):
            assert_close(states[0][part], states[1][part], rtol=0, atol=0)
        drawn = [state["random"] for state in states]
        assert torch.equal(drawn[0]["torch"], drawn[1]["torch"])
        assert torch.equal(*(random["numpy"]["state"]["key"] for random in drawn))
        assert drawn[0]["python"] == drawn[1]["python"]
        assert whole.evaluation == resumed.evaluation

    @pytest.mark.parametrize("checkpoint", [None, 64])
    def test_the_best_agent_of_a_killed_run_is_not_replaced_by_a_worse_one(
        self, checkpoint: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        means = iter([1.0, 3.0, 2.0, 2.0, 4.0])

        def scripted(*args: Any, **kwargs: Any) -> EvaluationResult:
            return dataclasses.replace(evaluate(*args, **kwargs), episode_returns=(next(means),))

        monkeypatch.setattr("coordrl.training.run.evaluate", scripted)
        chosen = settings("a2c", "run.evaluation_interval=48")
        folder = tmp_path / "run"
        train(chosen, folder)  # 1 after 48 steps, 3 after 96
        for path in (folder / "checkpoints").iterdir():
            if checkpoint is None or int(path.name) > checkpoint:
                shutil.rmtree(path)
        best = load_agent(folder / "best").card
        assert best is not None
        assert best.evaluations[0].mean == 3

        train(chosen, folder, resume=True)  # 2 after 96 steps, before it perhaps after 48

        assert load_agent(folder / "best").card == best

    def test_a_best_agent_that_is_lost_is_chosen_anew(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        means = iter([3.0, 2.0, 2.0])

        def scripted(*args: Any, **kwargs: Any) -> EvaluationResult:
            return dataclasses.replace(evaluate(*args, **kwargs), episode_returns=(next(means),))

        monkeypatch.setattr("coordrl.training.run.evaluate", scripted)
        chosen = settings("a2c", "run.evaluation_interval=48")
        folder = tmp_path / "run"
        train(chosen, folder)
        shutil.rmtree(folder / "checkpoints" / "000000000096")
        shutil.rmtree(folder / "best")

        result = train(chosen, folder, resume=True)

        assert result.best_agent is not None
        best = load_agent(result.best_agent).card
        assert best is not None
        assert best.evaluations[0].mean == 2

    def test_the_rate_of_a_resumed_run_is_its_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown: list[tuple[float, int]] = []
        update = Progress.update

        def watched(self: Progress, done: int, *args: Any) -> None:
            update(self, done, *args)
            shown.append((self.rate * (self._marks[-1][0] - self._marks[0][0]), done))

        chosen = settings("a2c")
        train(chosen, tmp_path / "run")
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "000000000096")
        monkeypatch.setattr(Progress, "update", watched)

        train(chosen, tmp_path / "run", resume=True)

        steps, done = shown[0]
        assert steps == pytest.approx(2)  # of a run that had 64
        assert done == 66

    @pytest.mark.parametrize("name", ["best", "last"])
    def test_a_place_that_is_taken_is_told_at_the_start(self, name: str, tmp_path: Path) -> None:
        train(settings("a2c"), tmp_path / "run")
        shutil.rmtree(tmp_path / "run" / name)
        (tmp_path / "run" / name).write_text("mine")
        with pytest.raises(AgentError, match=f"{name} exists and is not a saved agent"):
            train(settings("a2c"), tmp_path / "run", resume=True)

    @pytest.mark.parametrize("method", ["__init__", "add_scalar", "close"])
    @pytest.mark.parametrize(
        "error", [OSError(errno.EFBIG, "File too large"), OSError("is too large")]
    )
    def test_numbers_that_cannot_be_written_are_told(
        self, method: str, error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(SummaryWriter, method, full)
        with pytest.raises(RunError, match=r"for TensorBoard: (File|is) too large; make"):
            train(settings("a2c", "run.track=tensorboard"), tmp_path / "run")

    @pytest.mark.parametrize("lost", ["checkpoints/000000000096", "checkpoints"])
    def test_points_that_a_killed_run_has_left_behind_its_checkpoint_are_hidden(
        self, lost: str, tmp_path: Path
    ) -> None:
        chosen = settings("a2c", "run.track=tensorboard", "run.checkpoint_interval=40")
        folder = tmp_path / "run"
        train(chosen, folder)
        # As if it had been killed between step 96 and its checkpoint, or before there was any.
        shutil.rmtree(folder / lost)
        train(chosen, folder, resume=True)
        events = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=True)
        events.Reload()
        steps = [point.step for point in events.Scalars("train/learning_rate")]
        assert steps == sorted(set(steps))

    @pytest.mark.parametrize("algo", ALGORITHM)
    def test_a_checkpoint_brings_back_the_model_and_all_random_streams(
        self, algo: str, tmp_path: Path
    ) -> None:
        chosen = settings(algo, "env.max_frames_per_episode=40")
        env = make_sb3_env("Breakout", 2, chosen.env, seed=0)
        model: Any = make_model(chosen, env, seed=1)
        model.learn(48)
        write_checkpoint(model, "what was noted", tmp_path)
        expected = (random.random(), np.random.rand(), torch.rand(1))  # noqa: NPY002
        action = model.action_space.sample()

        other: Any = make_model(chosen, env, seed=2)
        assert not same(model.policy.state_dict(), other.policy.state_dict())
        assert read_checkpoint(other, tmp_path).journal == "what was noted"

        drawn = (random.random(), np.random.rand(), torch.rand(1))  # noqa: NPY002
        assert (drawn, other.action_space.sample()) == (expected, action)
        assert same(model.policy.state_dict(), other.policy.state_dict())
        for name in ("num_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining"):
            assert getattr(other, name) == getattr(model, name)
        assert list(other.ep_info_buffer) == list(model.ep_info_buffer)
        assert {episode["l"] for episode in other.ep_info_buffer} == {10}
        first, second = (m.policy.optimizer.state_dict() for m in (model, other))
        assert first["param_groups"] == second["param_groups"]
        for index, values in first["state"].items():
            for name, value in values.items():
                assert torch.equal(
                    torch.as_tensor(value), torch.as_tensor(second["state"][index][name])
                )
        if algo == "dqn":
            assert (other._n_calls, other.exploration_rate) == (
                model._n_calls,
                model.exploration_rate,
            )
            for name, array in model.replay_buffer.state().items():
                np.testing.assert_array_equal(other.replay_buffer.state()[name], array)
        env.close()

    def test_a_checkpoint_is_read_without_running_what_is_in_it(self, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / "crater",)

        chosen = settings("a2c")
        env = make_sb3_env("Breakout", 2, chosen.env)
        torch.save({"format_version": 1, "counters": Bomb()}, tmp_path / "state.pt")
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            read_checkpoint(make_model(chosen, env, seed=0), tmp_path)
        assert not (tmp_path / "crater").exists()
        env.close()

    def test_a_checkpoint_of_more_processes_is_refused(self, tmp_path: Path) -> None:
        chosen = settings("a2c", "run.on_device=true")
        env = make_sb3_env("Breakout", 2, chosen.env, seed=0)
        model = make_device_model(chosen, env, seed=0)
        model.learn(8)
        write_checkpoints(model, "", tmp_path, Ranks())
        assert read_checkpoints(model, tmp_path, Ranks()).new_games is None
        (tmp_path / "rank_1.state.pt").write_bytes((tmp_path / "state.pt").read_bytes())
        with pytest.raises(RunError, match=r"was written by 2 processes, and here are 1; resume"):
            read_checkpoints(model, tmp_path, Ranks())
        env.close()

    def test_each_of_many_processes_reads_its_own_checkpoint(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def read(_: BaseAlgorithm, folder: Path) -> Restored:
            return Restored((folder / "state.pt").read_text())

        monkeypatch.setattr(Ranks, "first", lambda self, make: make())
        monkeypatch.setattr("coordrl.training.checkpoint.read_checkpoint", read)
        (tmp_path / "state.pt").write_text("rank_0")
        for rank in range(1, 12):
            (tmp_path / f"rank_{rank}.state.pt").write_text(f"rank_{rank}")
        model: Any = None
        for rank in (0, 1, 2, 10, 11):
            assert read_checkpoints(model, tmp_path, Ranks(rank, 12)).journal == f"rank_{rank}"

    def test_several_processes_need_the_device(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("coordrl.training.run.join", lambda _: Ranks(0, 2))
        with pytest.raises(SettingsError, match=r"2 processes .* only with run.on_device = true"):
            train(settings("a2c"), tmp_path / "run")
        with pytest.raises(SettingsError, match=r"run.num_envs = 3 is shared by 2 processes, so"):
            train(settings("a2c", "run.on_device=true", "run.num_envs=3"), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_whether_steps_can_be_recorded_is_a_matter_of_where_a_run_goes_on(
        self, tmp_path: Path
    ) -> None:
        chosen = settings("ppo", "run.on_device=true")
        env = make_sb3_env("Breakout", 2, chosen.env, seed=0)
        began, goes_on = (make_device_model(chosen, env, seed=0) for _ in range(2))
        began.learn(16)
        for group in began.policy.optimizer.param_groups:
            group["capturable"] = True  # as on a GPU
        write_checkpoint(began, "", tmp_path)

        read_checkpoint(goes_on, tmp_path)

        assert [g["capturable"] for g in goes_on.policy.optimizer.param_groups] == [False]
        goes_on.learn(16)
        env.close()

    def test_steps_are_counted_where_they_can_be_recorded(self) -> None:
        def adam(device: str, *, capturable: bool) -> torch.optim.Adam:
            weights = torch.ones(3, device=device, requires_grad=True)
            return torch.optim.Adam([weights], capturable=capturable)

        began = adam("cpu", capturable=False)
        began.param_groups[0]["params"][0].grad = torch.ones(3)
        began.step()
        goes_on = adam("meta", capturable=True)

        _restore_optimizer(goes_on, began.state_dict())

        (state,) = goes_on.state.values()
        assert (state["step"].device.type, goes_on.param_groups[0]["capturable"]) == ("meta", True)

    def test_each_group_of_weights_is_recorded_as_where_the_run_goes_on(self) -> None:
        began, goes_on = (
            torch.optim.Adam(
                {"params": [torch.ones(1)], "capturable": capturable} for capturable in groups
            )
            for groups in ((False, True), (True, False))
        )

        _restore_optimizer(goes_on, began.state_dict())

        assert [group["capturable"] for group in goes_on.param_groups] == [True, False]

    def test_a_checkpoint_of_another_format_is_refused(self, tmp_path: Path) -> None:
        chosen = settings("a2c")
        env = make_sb3_env("Breakout", 2, chosen.env)
        model = make_model(chosen, env, seed=0)
        torch.save({"format_version": 99}, tmp_path / "state.pt")
        with pytest.raises(RunError, match="has format 99, and this coordrl goes on from format"):
            read_checkpoint(model, tmp_path)
        env.close()

    def test_what_decides_what_is_learned_may_not_differ(self, tmp_path: Path) -> None:
        train(settings("a2c"), tmp_path / "run")
        for other in ("run.num_envs=4", "algorithm.gamma=0.5",
                      "env.frame_skip=3", "run.seed=1"):  # fmt: skip
            key = other.partition("=")[0]
            with pytest.raises(RunError, match=f"a run with other settings: {key} is"):
                train(settings("a2c", other), tmp_path / "run", resume=True)
        for other in ("run.target_return=800", "run.evaluation_episodes=2", "run.log_interval=8",
                      "run.evaluation_interval=48", "run.checkpoint_interval=16",
                      "run.device=cpu", "run.track=tensorboard"):  # fmt: skip
            goes_on = settings("a2c", other)
            assert train(goes_on, tmp_path / "run", resume=True).ending == "finished"

    @pytest.mark.skipif(not emulator.available(), reason="ale-py cannot save a game")
    @pytest.mark.parametrize("algo", ["ppo", "a2c"])
    def test_a_finished_run_is_trained_further(
        self, algo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        short, long = (
            settings(algo, f"run.total_steps={steps}", "algorithm.ent_coef=0.02")
            for steps in (64, 128)
        )
        at_once = train(long, tmp_path / "once")

        train(short, tmp_path / "twice")
        train(short, tmp_path / "twice", resume=True)
        assert "steps instead of" not in "".join(capsys.readouterr())
        further = train(long, tmp_path / "twice", resume=True)
        assert "the run now has 128 steps instead of 64" in "".join(capsys.readouterr())

        assert (further.ending, further.steps) == ("finished", 128)
        assert same(weights(at_once.agent), weights(further.agent))
        assert "total_steps = 128" in (tmp_path / "twice" / "settings.toml").read_text()

    def test_a_journal_of_another_version_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train(settings("a2c"), tmp_path / "run")
        later = Restored('{"seconds": 1.5, "mood": "good"}')
        monkeypatch.setattr("coordrl.training.run._Leader._restore", lambda self, path: later)
        with pytest.raises(RunError, match=r"journal of another version .*'mood'.*; resume with"):
            train(settings("a2c"), tmp_path / "run", resume=True)

    def test_a_run_of_before_its_length_was_kept_goes_on(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        def without_length(*args: Any) -> Restored:
            restored = read_checkpoints(*args)
            journal = json.loads(restored.journal)
            del journal["total_steps"]
            return restored._replace(journal=json.dumps(journal))

        train(settings("a2c"), tmp_path / "run")
        monkeypatch.setattr("coordrl.training.run.read_checkpoints", without_length)
        longer = settings("a2c", "run.total_steps=104")
        assert train(longer, tmp_path / "run", resume=True).steps == 104
        assert "instead of" not in capfd.readouterr().err

    def test_the_silence_before_staggered_games_is_explained(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        train(settings("a2c", "run.stagger=3"), tmp_path / "run")
        told = capfd.readouterr().err
        assert "playing the games up to 3 steps apart" in told
        assert "no checkpoint was written yet" not in told
        train(settings("a2c", "run.stagger=3"), tmp_path / "run", resume=True)
        assert "apart" not in capfd.readouterr().err

    def test_a_run_of_before_a_setting_was_there_goes_on(self, tmp_path: Path) -> None:
        train(settings("a2c"), tmp_path / "run")
        file = tmp_path / "run" / "settings.toml"
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if not line.startswith("on_device")))
        result = train(settings("a2c"), tmp_path / "run", resume=True)
        assert result.ending == "finished"
        with pytest.raises(RunError, match=r"run\.on_device is False there and True here"):
            train(settings("a2c", "run.on_device=true"), tmp_path / "run", resume=True)

    def test_a_run_goes_on_with_settings_that_leave_defaults_out(self, tmp_path: Path) -> None:
        told = settings("a2c")
        extractor = {key: told.extractor[key] for key in ("specs", "features_dim")}
        untold = dataclasses.replace(told, extractor=extractor)
        assert told.extractor == {**extractor, **DEFAULTS.extractor}
        assert run_name(untold) == run_name(told)
        train(untold, tmp_path / "run")
        for same_run in (untold, told, untold):
            assert train(same_run, tmp_path / "run", resume=True).ending == "finished"
        other = dataclasses.replace(told, extractor={**extractor, "coords": "none"})
        with pytest.raises(RunError, match=r"extractor.coords is 'all' there and 'none' here"):
            train(other, tmp_path / "run", resume=True)

    def test_a_run_is_not_mixed_with_another(self, tmp_path: Path) -> None:
        train(settings("a2c"), tmp_path / "run")
        with pytest.raises(RunError, match="run already holds a run; add --resume"):
            train(settings("a2c"), tmp_path / "run")
        with pytest.raises(RunError, match=r"other settings: run.seed is 0 there and 5 here"):
            train(settings("a2c", "run.seed=5"), tmp_path / "run", resume=True)
        result = train(settings("a2c", "run.log_interval=7"), tmp_path / "run", resume=True)
        assert result.ending == "finished"

    def test_a_checkpoint_that_was_cut_off_is_passed_over(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "run"
        first = train(settings("a2c"), folder)
        state = folder / "checkpoints" / "000000000096" / "state.pt"
        state.write_bytes(state.read_bytes()[:1000])
        capfd.readouterr()

        result = train(settings("a2c"), folder, resume=True)

        assert (result.ending, result.steps) == ("finished", 96)
        said = capfd.readouterr().err
        assert "checkpoint 000000000096 is not whole: state.pt has 1000 bytes of" in said
        assert "going on from the checkpoint of step 64" in said
        assert first.steps == result.steps

        for path in (folder / "checkpoints").glob("*/state.pt"):
            path.write_bytes(b"")
        with pytest.raises(RunError, match="has no whole checkpoint to go on from"):
            train(settings("a2c"), folder, resume=True)

    def test_a_full_disk_ends_the_run_and_spares_what_was_saved(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "run"
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

        def write_on_a_disk_that_fills(model: Any, journal: str, path: Path) -> None:
            if model.num_timesteps > 32:
                resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
            write_checkpoint(model, journal, path)

        replaced = "coordrl.training.checkpoint.write_checkpoint"
        monkeypatch.setattr(replaced, write_on_a_disk_that_fills)
        try:
            with pytest.raises(RunError, match="cannot write the checkpoint of step 64"):
                train(settings("a2c"), folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert checkpoints(folder) == [32]

        monkeypatch.setattr(replaced, write_checkpoint)
        assert train(settings("a2c"), folder, resume=True).ending == "finished"


class TestEdges:
    @WHEREVER
    def test_weights_that_are_no_numbers_are_no_best_agent(
        self, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        between = _Leader.between_updates

        def spoil(run: Any, **options: Any) -> None:
            with torch.no_grad():
                run._model.policy.q_net.q_net[-1].weight.fill_(math.nan)
            between(run, **options)

        monkeypatch.setattr(_Leader, "between_updates", spoil)
        chosen = settings(
            "dqn", where, "run.evaluation_interval=16", "run.checkpoint_interval=1000"
        )
        with pytest.raises(
            RunError, match=r"at step 16 weights are no longer finite; there is no ch"
        ):
            train(chosen, tmp_path / "run")
        assert not (tmp_path / "run" / "best").exists()

    def test_an_evaluation_has_as_many_games_as_the_run_is_set(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        short = ("run.evaluation_episodes=3", "env.max_frames_per_episode=40")
        result = train(settings("a2c", *short, "run.evaluation_interval=48"), tmp_path / "run")
        assert result.evaluation is not None
        assert result.evaluation.episodes == 3
        assert "in 3 games" in capfd.readouterr().err

    @pytest.mark.filterwarnings("ignore:.*ale-py plays the games:RuntimeWarning")
    def test_a_run_whose_games_cannot_be_saved_goes_on_with_new_ones(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        chosen = settings("a2c")
        train(chosen, tmp_path / "run")
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "000000000096")
        monkeypatch.setattr("coordrl.emulator.compiled._native", None)
        given = note_seeds(monkeypatch)
        capfd.readouterr()

        result = train(chosen, tmp_path / "run", resume=True)

        assert (result.ending, result.steps) == ("finished", 96)
        said = "step 64, with new games: ale-py plays here, which cannot go on with a game"
        assert f"going on from the checkpoint of {said}" in capfd.readouterr().err
        assert given[-1] == _stream(chosen, "environment", 64)
        assert not (tmp_path / "run" / "checkpoints" / "000000000096" / "games.bin").exists()

        shutil.rmtree(tmp_path / "run" / "checkpoints" / "000000000064")
        assert train(chosen, tmp_path / "run", resume=True).steps == 96

    @pytest.mark.skipif(not emulator.available(), reason="ale-py cannot save a game")
    def test_games_that_ale_py_has_played_begin_anew(self, tmp_path: Path) -> None:
        chosen = settings("a2c")
        env = make_sb3_env("Breakout", 2, chosen.env, seed=0)
        model = make_model(chosen, env, seed=0)
        model.learn(8)
        write_checkpoint(model, "", tmp_path)
        (tmp_path / "games.bin").unlink()
        told = read_checkpoint(model, tmp_path).new_games
        assert told == "ale-py has played it, which cannot save a game"
        env.close()

    def test_why_new_games_begin_is_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        chosen, folder = settings("a2c"), tmp_path / "run"
        train(chosen, folder)
        restore = VectorEnvAdapter.restore
        monkeypatch.setattr(
            VectorEnvAdapter, "restore", lambda self, state: restore(self, state[:-1])
        )
        train(chosen, folder, resume=True)
        told = capfd.readouterr().err
        assert "with new games: the saved games are damaged or something else" in told

    def test_games_that_cannot_be_saved_for_another_reason_end_the_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(self: VectorEnvAdapter) -> bytes:
            raise ValueError("a mistake in coordrl")

        monkeypatch.setattr(VectorEnvAdapter, "save", fail)
        with pytest.raises(ValueError, match="a mistake in coordrl"):
            train(settings("a2c"), tmp_path / "run")

    def test_what_is_due_is_due_at_multiples_of_its_interval(self, tmp_path: Path) -> None:
        every_40 = ("run.checkpoint_interval=40", "run.evaluation_interval=40")
        train(settings("a2c", *every_40), tmp_path / "run")
        evaluations = json.loads((tmp_path / "run" / "evaluations.json").read_text())
        assert [row["agent_steps"] for row in evaluations] == [40, 80, 96]
        # Updates of 16 steps.
        train(settings("ppo", "run.checkpoint_interval=40"), tmp_path / "ppo")
        assert checkpoints(tmp_path / "ppo") == [80, 96]

    def test_a_run_that_is_over_logs_nothing_twice(self, tmp_path: Path) -> None:
        chosen = settings(
            *("ppo", "run.evaluation_interval=32", "run.target_return=0"),
            "env.max_frames_per_episode=40",
        )
        train(chosen, tmp_path / "run")
        curve = (tmp_path / "run" / "progress.csv").read_text()
        train(chosen, tmp_path / "run", resume=True)
        assert (tmp_path / "run" / "progress.csv").read_text() == curve
        assert curve.count("\n") == 1 + 1

    def test_a_run_that_is_over_is_not_evaluated_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert train(settings("a2c"), tmp_path / "run").ending == "finished"
        monkeypatch.delattr("coordrl.training.run.evaluate")
        again = train(settings("a2c"), tmp_path / "run", resume=True)
        assert again.evaluation is not None

    def test_the_time_of_a_resumed_run_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = itertools.count(step=10.0)
        monkeypatch.setattr(time, "monotonic", lambda: next(clock))
        chosen, folder = settings("a2c", "env.max_frames_per_episode=40"), tmp_path / "run"
        train(chosen, folder)
        shutil.rmtree(folder / "checkpoints" / "000000000096")

        train(chosen, folder, resume=True)

        rows = list(csv.DictReader((folder / "progress.csv").read_text().splitlines()))
        seconds = [float(row["seconds"]) for row in rows]
        assert seconds == sorted(set(seconds))
        state = torch.load(folder / "checkpoints" / "000000000096" / "state.pt", weights_only=True)
        assert json.loads(state["journal"])["seconds"] > seconds[-1]

    @pytest.mark.parametrize(
        ("error", "told", "match"),
        [
            (CudaError("there is no compiler"), SettingsError, "Breakout cannot be played so: th"),
            (RuntimeError("an operator\nin detail"), RuntimeError, "^an operator\nin detail$"),
            (RuntimeError("not enough memory"), SettingsError, r"lower run.num_envs.* \(not enou"),
            (MemoryError(), SettingsError, r"lower run.num_envs.* \(MemoryError\)"),
            (
                CudaError("CUresult says CUDA_ERROR_OUT_OF_MEMORY"),
                SettingsError,
                r"lower run.num_envs.* \(CUresult says CUDA_ERROR_OUT_OF_MEMORY\)",
            ),
            (
                RuntimeError("CUDA error: an illegal memory access was encountered"),
                RuntimeError,
                "^CUDA error: an illegal memory access was encountered$",
            ),
        ],
    )
    def test_games_that_cannot_be_made_are_told_by_what_they_lack(
        self,
        error: Exception,
        told: type[Exception],
        match: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr("coordrl.training.run.make_sb3_env", fail)
        with pytest.raises(told, match=match):
            train(settings("a2c"), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_file_is_read_with_the_algorithm_and_rules_of_its_game(self, tmp_path: Path) -> None:
        path = tmp_path / "run.toml"
        path.write_text(
            "[games.Pong.run]\nprotocol = 'machado'\nalgo = 'dqn'\n"
            "[games.Pong.algorithm]\nbuffer_size = 9\n"
        )
        chosen = load_training_settings(path)
        assert (chosen.run.algo, chosen.algorithm["buffer_size"]) == ("dqn", 9)
        assert chosen.env.full_action_space

        path.write_text("[algorithm]\nbuffer_size = 9\n")
        with pytest.raises(SettingsError, match=r"run.toml: unknown key 'algorithm.buffer_size'"):
            load_training_settings(path)

    @pytest.mark.parametrize("has_gpu", [True, False])
    def test_the_default_configuration_is_that_of_the_gpu_where_there_is_one(
        self, has_gpu: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
        assert default_config("dqn", "auto") == ("dqn_cuda.toml" if has_gpu else "dqn.toml")
        assert default_config("dqn", "cuda") == "dqn_cuda.toml"
        assert default_config("dqn", "cpu") == "dqn.toml"

    def test_the_window_of_the_statistics_stays_as_wide(self, tmp_path: Path) -> None:
        chosen = settings("a2c")
        env = make_sb3_env("Breakout", 2, chosen.env, seed=0)
        model: Any = make_model(chosen, env, seed=0)
        model.learn(8)
        write_checkpoint(model, "", tmp_path)
        read_checkpoint(model, tmp_path)
        assert model.ep_info_buffer.maxlen == model.ep_success_buffer.maxlen == 100
        env.close()

    @pytest.mark.parametrize("journal", ["", "[1]", '{"mood": "good"}'])
    def test_a_journal_that_is_none_is_refused(
        self, journal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train(settings("a2c"), tmp_path / "run")
        restored = Restored(journal)
        monkeypatch.setattr("coordrl.training.run._Leader._restore", lambda self, path: restored)
        with pytest.raises(RunError, match="has a journal of another version of coordrl"):
            train(settings("a2c"), tmp_path / "run", resume=True)

    def test_a_resumed_run_hides_no_point_before_its_checkpoint(self, tmp_path: Path) -> None:
        chosen, folder = settings("a2c", "run.track=tensorboard"), tmp_path / "run"
        train(chosen, folder)
        shutil.rmtree(folder / "checkpoints" / "000000000096")
        time.sleep(1)  # TensorBoard reads files of one second in the order of their names alone
        train(chosen, folder, resume=True)
        events = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=True).Reload()
        steps = [point.step for point in events.Scalars("train/learning_rate")]
        assert steps == [16, 32, 48, 64, 80, 96]

    def test_a_profile_ends_a_phase_that_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        times = iter([0.0, 1.0, 3.0, 7.0, 15.0])
        monkeypatch.setattr(time, "perf_counter", lambda: next(times))
        profile = Profile()
        with pytest.raises(ZeroDivisionError), profile.phase("failed"):
            raise ZeroDivisionError
        with profile.phase("next"):
            pass
        assert profile.seconds == {"failed": 2.0, "next": 8.0}

    @WHEREVER
    def test_a_profile_tells_acting_from_learning(self, where: str, tmp_path: Path) -> None:
        never = ("algorithm.gradient_steps=0", "algorithm.learning_starts=0")
        profile = train(settings("dqn", where, *never), tmp_path / "run", profile=True).profile
        assert profile is not None
        assert "forward, to act" in profile
        assert "forward, to learn" not in profile

    def test_a_profile_counts_the_steps_of_its_own_process(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counted: list[int] = []
        monkeypatch.setattr(Profile, "table", lambda self, steps: counted.append(steps))
        train(settings("a2c"), tmp_path / "run", profile=True)
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "000000000096")
        train(settings("a2c"), tmp_path / "run", resume=True, profile=True)
        assert counted == [96, 32]

    def test_the_progress_shows_the_curve_and_its_last_return(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown: list[tuple[Any, ...]] = []
        monkeypatch.setattr(Progress, "update", lambda self, done, *args: shown.append(args))
        train(settings("a2c", "env.max_frames_per_episode=40"), tmp_path / "run")
        rows = list(csv.DictReader((tmp_path / "run" / "progress.csv").read_text().splitlines()))
        returns = [float(row["episode_return"]) for row in rows]
        assert (f"return {returns[-2]:.1f}", returns[:-1]) in shown

    def test_the_first_of_equally_good_agents_is_the_best(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def equal(*args: Any, **kwargs: Any) -> EvaluationResult:
            return dataclasses.replace(evaluate(*args, **kwargs), episode_returns=(1.0,))

        monkeypatch.setattr("coordrl.training.run.evaluate", equal)
        result = train(settings("a2c", "run.evaluation_interval=48"), tmp_path / "run")
        assert result.best_agent is not None
        card = load_agent(result.best_agent).card
        assert card is not None
        assert card.agent_steps == 48
        assert capfd.readouterr().err.count("the best so far") == 1


def test_what_a_run_is_told_of_its_extractor_is_what_that_has_without_being_told() -> None:
    parameters = inspect.signature(policy_kwargs).parameters
    assert DEFAULTS.extractor == {name: parameters[name].default for name in ("coords", "with_r")}


def test_an_agent_that_was_stopped_later_does_not_take_the_last_evaluation_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    between = _Leader.between_updates

    def stop_at_64(run: Any, **options: Any) -> None:
        if run._steps == 64:
            signal.raise_signal(signal.SIGTERM)
        between(run, **options)

    monkeypatch.setattr(_Leader, "between_updates", stop_at_64)
    result = train(settings("a2c", "run.evaluation_interval=48"), tmp_path / "run")

    assert (result.ending, result.steps) == ("stopped", 64)
    last, best = (load_agent(tmp_path / "run" / name).card for name in ("last", "best"))
    assert last is not None
    assert best is not None
    assert (last.agent_steps, last.evaluations) == (64, ())
    assert (best.agent_steps, len(best.evaluations)) == (48, 1)


def test_agents_that_a_killed_run_was_replacing_come_back(tmp_path: Path) -> None:
    chosen, folder = settings("a2c", "run.evaluation_interval=48"), tmp_path / "run"
    train(chosen, folder)
    card = load_agent(folder / "best").card
    (folder / "last" / "game.mp4").write_text("a film")
    for name in ("best", "last"):
        (folder / name).rename(folder / f".{name}.replaced-1-00")
        (folder / f".{name}.partial-1-00").mkdir()

    result = train(chosen, folder, resume=True)

    assert result.best_agent is not None
    assert load_agent(result.best_agent).card == card
    assert (folder / "last" / "game.mp4").read_text() == "a film"
    assert not list(folder.glob(".*.*-1-00"))
