"""Saved agents: the two ways to open them agree, damage is told apart, evaluation is fair."""

import base64
import dataclasses
import functools
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import imageio_ffmpeg
import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium import spaces
from gymnasium.vector import VectorWrapper
from numpy.typing import NDArray
from PIL import Image
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecCheckNan, VecNormalize
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

import evaluate_atari
from coordrl.agents import (
    ActionScores,
    Agent,
    AgentCard,
    AgentError,
    Episode,
    EvaluationResult,
    describe,
    evaluate,
    evaluation,
    evaluation_settings,
    human_normalized_score,
    load_agent,
    random_observations,
    record_video,
    save_agent,
    saving,
    video,
)
from coordrl.agents.evaluation import Play, game_for
from coordrl.agents.network import NetworkSpec, TensorType, stored_state
from coordrl.agents.results import bootstrap_interval, dump_json
from coordrl.agents.saving import CARD_FILE, WEIGHTS_FILE, recover_agent
from coordrl.agents.video import _Camera
from coordrl.config import AtariSettings, Protocol, RunSettings, TrainingSettings
from coordrl.emulator.games import palette
from coordrl.envs import AtariVectorEnv
from coordrl.extractors import CoordConvExtractor, policy_kwargs
from coordrl.layers import CoordinateSystem
from coordrl.progress import Progress
from coordrl.sb3_envs import VectorEnvAdapter, make_sb3_env

# Small pictures, not square, and few decisions: a bad game of Breakout is over in 50 steps.
ENV = AtariSettings(stack_size=2, screen_size=(40, 36), frame_skip=16)
SETTINGS = TrainingSettings(run=RunSettings(game="breakout", seed=3), env=ENV)
SMALL: dict[str, Any] = {"features_dim": 16, "specs": [[4, 8, 4], [8, 4, 2]]}
SYSTEM = CoordinateSystem("centers", origin=(-0.1, 0.0), extent=0.2, frequencies=1)


@functools.cache
def breakout(num_envs: int = 1) -> VectorEnvAdapter:
    """Shared by the models: starting a console takes longer than their lessons."""
    return VectorEnvAdapter(AtariVectorEnv("Breakout", num_envs, ENV, num_threads=1))


ARMS: dict[str, Callable[[], BaseAlgorithm]] = {
    "PPO": lambda: ppo(policy_kwargs(coords="all", with_r=True, **SMALL)),
    "PPO, two extractors": lambda: ppo(
        policy_kwargs("first", system=SYSTEM, share_features_extractor=False, **SMALL)
    ),
    "PPO, hidden layers": lambda: ppo(
        policy_kwargs(**SMALL, net_arch={"pi": [5], "vf": [7, 6]}, activation_fn=torch.nn.ReLU)
    ),
    "A2C": lambda: A2C("CnnPolicy", breakout(), policy_kwargs=policy_kwargs(**SMALL), seed=0),
    "DQN": lambda: DQN(
        "CnnPolicy", breakout(), buffer_size=1, policy_kwargs=policy_kwargs(**SMALL), seed=0
    ),
    "NatureCNN": lambda: ppo({"features_extractor_kwargs": {"features_dim": 16}}),
}
EVERY_ARM = pytest.mark.parametrize("arm", ARMS)


def ppo(kwargs: dict[str, Any]) -> PPO:
    return PPO("CnnPolicy", breakout(), n_steps=4, batch_size=4, policy_kwargs=kwargs, seed=0)


def observations(count: int = 5) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 2, 40, 36), np.uint8)


def scores(agent: Agent) -> torch.Tensor:
    """Logits or action values, whose smallest change shows."""
    obs = torch.as_tensor(observations())
    with torch.no_grad():
        if agent.algorithm == "DQN":
            return agent.policy.q_net(obs)  # type: ignore[no-any-return, operator]
        return agent.policy.get_distribution(obs).distribution.logits  # type: ignore[no-any-return, operator]


@pytest.fixture(scope="module")
def models() -> dict[str, BaseAlgorithm]:
    return {name: build() for name, build in ARMS.items()}


@pytest.fixture(scope="module")
def saved(models: dict[str, BaseAlgorithm], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agents") / "saved"
    save_agent(models["PPO"], folder, SETTINGS)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of a saved agent, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "agent"))


class TestSaving:
    def test_the_card_tells_how_long_and_by_what_rules_it_was_trained(self, tmp_path: Path) -> None:
        model = ppo(policy_kwargs(**SMALL))
        model.num_timesteps = 30
        run = dataclasses.replace(SETTINGS.run, protocol="machado")
        card = save_agent(model, tmp_path / "agent", dataclasses.replace(SETTINGS, run=run))
        assert (card.agent_steps, card.frames, card.protocol) == (30, 30 * 16, "machado")

    @pytest.mark.parametrize(
        ("arm", "coords"),
        [("PPO", "all"), ("PPO, two extractors", "first"), ("NatureCNN", "none")],
    )
    def test_the_card_tells_which_convolutions_see_coordinates(
        self, arm: str, coords: str, models: dict[str, BaseAlgorithm], tmp_path: Path
    ) -> None:
        card = save_agent(models[arm], tmp_path / "agent", SETTINGS)
        assert (card.coords, card.name) == (coords, f"Breakout-ppo-{coords}-s3")

    def test_what_the_agent_explores_and_how_it_was_evaluated_comes_back(
        self, tmp_path: Path
    ) -> None:
        model = DQN(
            *("CnnPolicy", breakout()),
            buffer_size=1,
            exploration_final_eps=0.25,
            policy_kwargs=policy_kwargs(**SMALL),
        )
        results = result_of(1.0, 2.0), result_of(-21.0)
        card = save_agent(model, tmp_path / "agent", SETTINGS, evaluations=results)
        assert (card.exploration, card.evaluations) == (0.25, results)
        opened = load_agent(tmp_path / "agent")
        assert (opened.exploration, opened.card) == (0.25, card)

    def test_training_goes_on_with_the_numbers_of_the_one_that_was_saved(
        self, tmp_path: Path
    ) -> None:
        numbers = {"gamma": 0.9, "ent_coef": 0.03, "vf_coef": 0.7, "n_epochs": 3, "n_steps": 4}
        model = PPO(
            *("CnnPolicy", breakout()),
            **{**numbers, "batch_size": 4, "learning_rate": 0.125},  # type: ignore[arg-type]
            policy_kwargs=policy_kwargs(**SMALL),
        )
        save_agent(model, tmp_path / "agent", SETTINGS)
        plain = PPO.load(tmp_path / "agent" / "agent.zip", device="cpu")
        assert {name: getattr(plain, name) for name in numbers} == numbers
        assert [group["lr"] for group in plain.policy.optimizer.param_groups] == [0.125]

    def test_pictures_that_are_not_scaled_stay_so(self, tmp_path: Path) -> None:
        model = ppo({**policy_kwargs(**SMALL), "normalize_images": False})
        save_agent(model, tmp_path / "agent", SETTINGS)
        assert torch.equal(scores(load_agent(tmp_path / "agent")), scores(Agent.of(model)))

    @EVERY_ARM
    def test_folder_zip_and_model_are_the_same_agent(
        self, arm: str, models: dict[str, BaseAlgorithm], tmp_path: Path
    ) -> None:
        model = models[arm]

        card = save_agent(model, tmp_path / "agent", SETTINGS)

        expected = scores(Agent.of(model))
        from_folder = load_agent(tmp_path / "agent")
        from_zip = type(model).load(tmp_path / "agent" / "agent.zip", device="cpu")
        assert torch.equal(scores(from_folder), expected)
        assert torch.equal(scores(Agent.of(from_zip)), expected)
        assert from_folder.card == card
        greedy, _ = from_zip.predict(observations(), deterministic=True)
        assert from_folder.policy.predict(observations(), deterministic=True)[0].tolist() == (
            greedy.tolist()
        )

    @EVERY_ARM
    def test_weights_are_stored_once_and_nothing_else_is(
        self, arm: str, models: dict[str, BaseAlgorithm], tmp_path: Path
    ) -> None:
        model = models[arm]
        network = model.q_net if isinstance(model, DQN) else model.policy
        numbers = sum(p.numel() for p in network.parameters())  # counts what is shared once

        card = save_agent(model, tmp_path / "agent", SETTINGS)

        weights = safetensors.torch.load_file(tmp_path / "agent" / "weights.safetensors")
        assert sum(tensor.numel() for tensor in weights.values()) == card.parameters == numbers
        with zipfile.ZipFile(tmp_path / "agent" / "agent.zip") as archive:
            assert archive.getinfo("policy.pth").file_size < 4 * numbers + 8_000
            with archive.open("policy.optimizer.pth") as file:
                assert torch.load(file, weights_only=True)["state"] == {}

    def test_weights_are_stored_in_one_layout(self) -> None:
        policy = ppo(policy_kwargs(**SMALL)).policy
        policy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert not all(value.is_contiguous() for value in policy.state_dict().values())
        assert all(value.is_contiguous() for value in stored_state(policy).values())

    def test_a_trained_model_leaves_its_run_behind(self, tmp_path: Path) -> None:
        model = PPO(
            *("CnnPolicy", breakout(num_envs=2)),
            n_steps=4,
            batch_size=8,
            tensorboard_log=str(tmp_path / "logs"),
            policy_kwargs=policy_kwargs(**SMALL),
            verbose=0,
        )
        model.learn(8)
        model.verbose = 1

        save_agent(model, tmp_path / "agent", SETTINGS)

        plain = PPO.load(tmp_path / "agent" / "agent.zip", device="cpu")
        assert plain.num_timesteps == 8
        assert plain._last_obs is None
        assert plain._last_episode_starts is None
        assert plain.tensorboard_log is None
        with zipfile.ZipFile(tmp_path / "agent" / "agent.zip") as archive:
            data = archive.read("data").decode()
        assert str(tmp_path) not in data
        names = "ep_info_buffer", "start_time", "verbose", "n_envs"
        left = {name: json.loads(data)[name] for name in names}
        assert left == {"ep_info_buffer": None, "start_time": 0, "verbose": 0, "n_envs": 2}

    def test_what_is_saved_can_be_trained_further_in_plain_sb3(self, saved: Path) -> None:
        model = PPO.load(saved / "agent.zip", device="cpu", env=breakout())
        before = scores(Agent.of(model))

        model.learn(4, reset_num_timesteps=False)

        assert not torch.equal(scores(Agent.of(model)), before)

    def test_what_only_the_gpu_can_go_on_with_stays_behind(self, tmp_path: Path) -> None:
        optimizer = {"optimizer_kwargs": {"eps": 1e-5, "capturable": True}}
        model = ppo({**policy_kwargs(**SMALL), **optimizer})
        model.policy.optimizer.param_groups[0]["lr"] = torch.tensor(0.5)

        save_agent(model, tmp_path / "agent", SETTINGS)

        plain = PPO.load(tmp_path / "agent" / "agent.zip", device="cpu", env=breakout())
        assert plain.policy_kwargs["optimizer_kwargs"] == {"eps": 1e-5}
        assert model.policy_kwargs["optimizer_kwargs"] == {"eps": 1e-5, "capturable": True}
        with (
            zipfile.ZipFile(tmp_path / "agent" / "agent.zip") as archive,
            archive.open("policy.optimizer.pth") as file,
        ):
            (group,) = torch.load(file, weights_only=True)["param_groups"]
        assert (type(group["lr"]), group["lr"], group["capturable"]) == (float, 0.5, False)
        plain.learn(4)

    def test_a_compiled_part_is_saved_under_its_own_name(self, tmp_path: Path) -> None:
        model = ppo(policy_kwargs(**SMALL))
        expected = scores(Agent.of(model))
        whole = model.policy.features_extractor
        model.policy.features_extractor = torch.compile(whole, backend="eager")  # type: ignore[assignment]
        model.policy.pi_features_extractor = model.policy.features_extractor
        model.policy.vf_features_extractor = model.policy.features_extractor

        save_agent(model, tmp_path / "agent", SETTINGS)

        plain = PPO.load(tmp_path / "agent" / "agent.zip", device="cpu")
        assert torch.equal(scores(Agent.of(plain)), expected)
        assert torch.equal(scores(load_agent(tmp_path / "agent")), expected)
        policy = model.policy
        model.policy = torch.compile(policy, backend="eager")  # type: ignore[assignment]
        assert Agent.of(model).policy is policy

    def test_a_schedule_of_ones_own_is_saved_as_its_present_value(self, tmp_path: Path) -> None:
        model = PPO(
            *("CnnPolicy", breakout()),
            learning_rate=lambda left: 0.5 * left,
            clip_range=lambda left: 0.25 * left,
            clip_range_vf=lambda left: 0.75 * left,
            n_steps=4,
            batch_size=4,
            policy_kwargs=policy_kwargs(**SMALL),
        )
        model._current_progress_remaining = 0.25

        save_agent(model, tmp_path / "agent", SETTINGS)

        plain: Any = PPO.load(tmp_path / "agent" / "agent.zip", device="cpu")
        assert (plain.learning_rate, plain.clip_range(1.0)) == (0.125, 0.0625)
        assert plain.clip_range_vf(1.0) == 0.1875

    def test_the_card_tells_where_the_agent_comes_from(self, saved: Path) -> None:
        card = load_agent(saved).card

        assert card is not None
        assert card.name == "Breakout-ppo-all-s3"
        assert (card.game, card.algorithm, card.coords, card.seed) == ("Breakout", "PPO", "all", 3)
        assert card.env == ENV
        assert card.settings["env"]["screen_size"] == [40, 36]
        assert card.network.observation_shape == (2, 40, 36)
        assert card.versions["torch"] == torch.__version__

    def test_the_learning_curve_is_a_table_and_a_picture(
        self, models: dict[str, BaseAlgorithm], tmp_path: Path
    ) -> None:
        save_agent(models["PPO"], tmp_path / "agent", SETTINGS, curve=[(100, -21.0), (200, -20.5)])

        table = (tmp_path / "agent" / "learning_curve.csv").read_text()
        assert table == "agent_steps,episode_return\n100,-21.0\n200,-20.5\n"
        picture = (tmp_path / "agent" / "learning_curve.png").read_bytes()
        assert picture.startswith(b"\x89PNG")

    def test_saving_replaces_an_agent_and_nothing_else(
        self, models: dict[str, BaseAlgorithm], folder: Path, tmp_path: Path
    ) -> None:
        (folder / "game.mp4").write_text("a film")
        (folder / "notes").mkdir()
        (folder / "notes" / "1.txt").write_text("well played")
        (folder / "lost").symlink_to("nowhere")
        (folder / "learning_curve.png").write_text("of the old agent")

        save_agent(models["A2C"], folder, SETTINGS)

        assert load_agent(folder).algorithm == "A2C"
        assert (folder / "game.mp4").read_text() == "a film"
        assert (folder / "notes" / "1.txt").read_text() == "well played"
        assert (folder / "lost").is_symlink()
        assert not (folder / "learning_curve.png").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["agent"]
        precious = tmp_path / "precious"
        precious.mkdir()
        (precious / "thesis.txt").write_text("finished")
        with pytest.raises(AgentError, match="exists and is not a saved agent; choose another"):
            save_agent(models["A2C"], precious, SETTINGS)
        with pytest.raises(AgentError, match=r"thesis.txt exists and is not a saved agent; choose"):
            save_agent(models["A2C"], precious / "thesis.txt", SETTINGS)
        assert (precious / "thesis.txt").read_text() == "finished"

    def test_an_empty_folder_is_taken(
        self, models: dict[str, BaseAlgorithm], tmp_path: Path
    ) -> None:
        (tmp_path / "agent").mkdir()
        save_agent(models["A2C"], tmp_path / "agent", SETTINGS)
        assert load_agent(tmp_path / "agent").algorithm == "A2C"
        assert [path.name for path in tmp_path.iterdir()] == ["agent"]

    def test_an_agent_is_replaced_where_a_link_leads(
        self, models: dict[str, BaseAlgorithm], folder: Path, tmp_path: Path
    ) -> None:
        (folder / "game.mp4").write_text("a film")
        link = tmp_path / "latest"
        link.symlink_to(folder.name)

        save_agent(models["A2C"], link, SETTINGS)

        assert link.is_symlink()
        assert load_agent(folder).algorithm == "A2C"
        assert (folder / "game.mp4").read_text() == "a film"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["agent", "latest"]

    @pytest.mark.parametrize("failing", ["write_text", "rename"])
    def test_an_agent_that_cannot_be_replaced_is_left_or_put_back(
        self,
        failing: str,
        models: dict[str, BaseAlgorithm],
        folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        method = getattr(Path, failing)

        def fail(self: Path, *arguments: Any, **keywords: Any) -> Any:
            if ".partial-" in str(self):
                raise OSError(28, "No space left on device")
            return method(self, *arguments, **keywords)

        monkeypatch.setattr(Path, failing, fail)
        with pytest.raises(AgentError, match=r"cannot write .*: No space left on device"):
            save_agent(models["A2C"], folder, SETTINGS)

        assert load_agent(folder).algorithm == "PPO"
        assert [path.name for path in tmp_path.iterdir()] == ["agent"]

    def test_ctrl_c_in_the_middle_of_replacing_leaves_the_old_agent(
        self, models: dict[str, BaseAlgorithm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "agent"
        save_agent(models["PPO"], folder, SETTINGS)
        rename = Path.rename

        def interrupt(self: Path, target: Path) -> Path:
            if ".partial-" in str(self):
                raise KeyboardInterrupt
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_agent(models["A2C"], folder, SETTINGS)

        assert load_agent(folder).algorithm == "PPO"
        assert [path.name for path in tmp_path.iterdir()] == ["agent"]

    @pytest.mark.skipif(sys.version_info >= (3, 13), reason="such a link has a target there")
    def test_a_link_that_leads_in_a_circle_is_told(
        self, models: dict[str, BaseAlgorithm], tmp_path: Path
    ) -> None:
        link = tmp_path / "agent"
        link.symlink_to(link.name)
        with pytest.raises(AgentError, match=r"^cannot write .*agent: Symlink loop from "):
            save_agent(models["A2C"], link, SETTINGS)
        with pytest.raises(AgentError, match=r"^cannot write .*agent: Symlink loop from "):
            recover_agent(link)

    def test_a_process_of_the_same_number_that_was_killed_is_in_nobodys_way(
        self, models: dict[str, BaseAlgorithm], folder: Path
    ) -> None:
        for word in ("partial", "replaced"):
            folder.with_name(f".agent.{word}-{os.getpid()}").mkdir()
        save_agent(models["A2C"], folder, SETTINGS)
        assert load_agent(folder).algorithm == "A2C"

    @pytest.mark.parametrize("was_replaced", [False, True])
    def test_what_a_killed_process_was_replacing_comes_back(
        self, was_replaced: bool, models: dict[str, BaseAlgorithm], folder: Path
    ) -> None:
        (folder / "game.mp4").write_text("a film")
        folder.rename(folder.with_name(".agent.replaced-1-00"))
        folder.with_name(".agent.partial-1-00").mkdir()
        (folder.with_name(".agent.partial-1-00") / CARD_FILE).write_text("half")
        if was_replaced:
            save_agent(models["A2C"], folder, SETTINGS)

        recover_agent(folder)

        assert load_agent(folder).algorithm == ("A2C" if was_replaced else "PPO")
        assert (folder / "game.mp4").read_text() == "a film"
        assert [path.name for path in folder.parent.iterdir()] == ["agent"]
        recover_agent(folder)  # and nothing more
        assert load_agent(folder).algorithm == ("A2C" if was_replaced else "PPO")

    def test_an_agent_is_on_the_disk_before_it_replaces_another(
        self, models: dict[str, BaseAlgorithm], folder: Path, disk: list[str]
    ) -> None:
        save_agent(models["A2C"], folder, SETTINGS)
        *files, flushed, old_leaves, new_comes, parent = disk
        assert files == [f"flush {name}" for name in ("agent.zip", CARD_FILE, WEIGHTS_FILE)]
        assert (flushed, new_comes) == ("flush partial", "partial becomes agent")
        assert old_leaves.startswith("agent becomes .agent.replaced-")
        assert parent == f"flush {folder.parent.name}"

    def test_a_model_that_a_card_cannot_describe_is_refused(self, tmp_path: Path) -> None:
        for name in ("OwnExtractor", "CoordConvExtractor"):
            extractor = type(name, (CoordConvExtractor,), {})
            own = {**policy_kwargs(**SMALL), "features_extractor_class": extractor}
            with pytest.raises(AgentError, match=r"extractor of a saved agent is one of CoordConv"):
                save_agent(ppo(own), tmp_path / "agent", SETTINGS)
        with pytest.raises(AgentError, match="an agent is a model of A2C, PPO, DQN, got SAC"):
            save_agent(SAC("MlpPolicy", "Pendulum-v1"), tmp_path / "agent", SETTINGS)
        assert not (tmp_path / "agent").exists()

    def test_a_policy_of_ones_own_is_no_agent(self, folder: Path) -> None:
        class Masked(ActorCriticCnnPolicy):
            def _get_action_dist_from_latent(self, latent_pi: torch.Tensor) -> Any:
                logits = self.action_net(latent_pi) + torch.tensor([0.0, 0.0, -1e9, -1e9])
                return self.action_dist.proba_distribution(action_logits=logits)

        class Wide(ActorCriticCnnPolicy):
            def _build_mlp_extractor(self) -> None:
                self.mlp_extractor = MlpExtractor(self.features_dim, [3], torch.nn.Tanh)

        told = {
            Masked: "a Masked, computes something else",
            Wide: "a Wide, is not one of Stable-Bas",
        }
        small = policy_kwargs(**SMALL)
        for policy, message in told.items():
            model = PPO(policy, breakout(), n_steps=4, batch_size=4, policy_kwargs=small)
            with pytest.raises(AgentError, match=f"cannot save this model .* {message}"):
                save_agent(model, folder, SETTINGS)
        assert load_agent(folder).algorithm == "PPO"

    def test_a_zip_opens_on_a_small_machine_and_without_the_users_optimizer(
        self, tmp_path: Path
    ) -> None:
        class Own(torch.optim.Adam):
            pass

        kwargs = {**policy_kwargs(**SMALL), "optimizer_class": Own, "optimizer_kwargs": {"eps": 1}}
        model = DQN("CnnPolicy", breakout(), buffer_size=1, policy_kwargs=kwargs)
        model.buffer_size = 10**9
        save_agent(model, tmp_path / "agent", dataclasses.replace(
            SETTINGS, run=dataclasses.replace(SETTINGS.run, algo="dqn")
        ))  # fmt: skip
        opened = DQN.load(tmp_path / "agent" / "agent.zip", device="cpu")
        assert opened.buffer_size == 100_000
        assert type(opened.policy.optimizer) is torch.optim.Adam
        assert "optimizer_kwargs" not in opened.policy_kwargs

    @pytest.mark.parametrize(
        ("run", "env", "message"),
        [
            ({"game": "Pong"}, {}, r"has 4 actions, and Pong in .* has 6; pass the run.game and"),
            ({"game": "Boxing"}, {"full_action_space": True}, "and Boxing in these settings"),
            ({}, {"full_action_space": True}, r"has 4 actions, and Breakout .* has 18; pass"),
            ({}, {"stack_size": 3}, r"observes \(2, 40, 36\) .* shown as \(3, 40, 36\)"),
            ({"game": "Kaboom"}, {}, "run.game is 'Kaboom', and its environments play breakout"),
            ({}, {"frame_skip": 2}, r"frame_skip=2, .* its environments have .*frame_skip=16"),
        ],
    )
    def test_an_agent_is_not_saved_as_one_of_another_game(
        self,
        run: dict[str, Any],
        env: dict[str, Any],
        message: str,
        models: dict[str, BaseAlgorithm],
        tmp_path: Path,
    ) -> None:
        settings = dataclasses.replace(
            SETTINGS,
            run=dataclasses.replace(SETTINGS.run, **run),
            env=dataclasses.replace(SETTINGS.env, **env),
        )
        with pytest.raises(AgentError, match=f"cannot save this model as an agent: .*{message}"):
            save_agent(models["PPO"], tmp_path / "agent", settings)
        assert not (tmp_path / "agent").exists()

    def test_settings_are_those_of_the_model(
        self, models: dict[str, BaseAlgorithm], tmp_path: Path
    ) -> None:
        card = save_agent(models["A2C"], tmp_path / "agent", SETTINGS)
        assert SETTINGS.run.algo == "ppo"
        assert card.settings["run"]["algo"] == "a2c"
        other = dataclasses.replace(SETTINGS, extractor={"coords": "first"})
        with pytest.raises(AgentError, match=r"extractor\.coords is 'first', and .* has 'all'"):
            save_agent(models["PPO"], tmp_path / "agent", other)

    def test_settings_of_another_kind_are_refused(
        self, models: dict[str, BaseAlgorithm], tmp_path: Path
    ) -> None:
        with pytest.raises(TypeError, match=r"TrainingSettings\(run=.*, got dict$"):
            save_agent(models["PPO"], tmp_path / "agent", {"run": {}})  # type: ignore[arg-type]

    def test_a_dqn_agent_plays_by_its_online_network(self, tmp_path: Path) -> None:
        model: Any = ARMS["DQN"]()
        with torch.no_grad():
            model.q_net.q_net[-1].bias[2] += 1.0  # as after updates that the target has not seen
        save_agent(model, tmp_path / "agent", SETTINGS)
        expected = scores(Agent.of(model))
        from_zip = DQN.load(tmp_path / "agent" / "agent.zip", device="cpu", buffer_size=1)
        assert torch.equal(scores(load_agent(tmp_path / "agent")), expected)
        assert torch.equal(scores(Agent.of(from_zip)), expected)

    def test_games_behind_a_wrapper_of_sb3_are_compared_as_well(self, tmp_path: Path) -> None:
        model = PPO(
            "CnnPolicy",
            VecCheckNan(breakout()),
            n_steps=4,
            batch_size=4,
            policy_kwargs=policy_kwargs(**SMALL),
        )
        kaboom = dataclasses.replace(SETTINGS, run=RunSettings(game="Kaboom"))
        with pytest.raises(AgentError, match="'Kaboom', and its environments play breakout"):
            save_agent(model, tmp_path / "agent", kaboom)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"observation_space": spaces.Box(0, 1, (2, 40, 36))}, "a Box of uint8, got Box"),
            ({"observation_space": spaces.Discrete(4)}, "a Box of uint8, got Discrete"),
            ({"action_space": spaces.Discrete(4, start=1)}, "discrete actions from 0, got Discr"),
            ({"action_space": spaces.Box(0, 1, (4,))}, "discrete actions from 0, got Box"),
        ],
    )
    def test_a_policy_of_other_spaces_is_refused(
        self, changes: dict[str, Any], message: str
    ) -> None:
        policy = ppo(policy_kwargs(**SMALL)).policy
        vars(policy).update(changes)
        with pytest.raises(ValueError, match=message):
            NetworkSpec.of(policy)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_actions": 0}, "must be at least 1, got .* and 0"),
            ({"observation_shape": (4, 0, 84)}, r"must be at least 1, got \(4, 0, 84\)"),
            ({"features_extractor_kwargs": [8]}, r"must be a table, got \[8\]"),
            ({"features_extractor": "Mine"}, "must be one of .*, got 'Mine'"),
        ],
    )
    def test_a_network_that_is_none_is_refused(self, changes: dict[str, Any], message: str) -> None:
        fields: dict[str, Any] = {
            **{"kind": "actor-critic", "observation_shape": (4, 84, 84), "num_actions": 6},
            **{"features_extractor": "NatureCNN", "features_extractor_kwargs": {}},
        }
        with pytest.raises(ValueError, match=message):
            NetworkSpec(**{**fields, **changes})

    def test_an_argument_of_an_extractor_that_is_none_is_named(self) -> None:
        wrong = NetworkSpec("q-network", (2, 40, 36), 4, "NatureCNN", {"features_dim": "many"})
        with pytest.raises(ValueError, match=r"^features_dim must be .*'many'"):
            wrong.build()

    def test_a_network_that_says_nothing_of_coordinates_sees_them_everywhere(self) -> None:
        spec = NetworkSpec("q-network", (2, 40, 36), 4, "CoordConvExtractor", {})
        assert spec.coords == "all"

    @pytest.mark.parametrize(
        "spec",
        [
            NetworkSpec("q-network", (2, 40, 36), 4, "CoordConvExtractor", SMALL, hidden=(5, 3)),
            NetworkSpec(
                *("actor-critic", (2, 40, 36), 4, "CoordConvExtractor", SMALL, (5,), (7, 6)),
                activation="ReLU",
                share_features_extractor=False,
                normalize_images=False,
            ),
        ],
        ids=["values", "actor and critic"],
    )
    def test_a_network_is_described_as_it_was_built(self, spec: NetworkSpec) -> None:
        policy = spec.build()
        assert NetworkSpec.of(policy) == spec
        own = {name: TensorType.of(tensor) for name, tensor in stored_state(policy).items()}
        assert spec.tensor_types() == own


def rewrite_card(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    card = json.loads((folder / "card.json").read_text())
    change(card)
    (folder / "card.json").write_text(json.dumps(card))


def rewrite_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the weights as an attacker would, who brings the card's checksum along."""
    path = folder / "weights.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    change(tensors)
    content = safetensors.torch.save(tensors)
    path.write_bytes(content)
    checksum = hashlib.sha256(content).hexdigest()
    rewrite_card(folder, lambda card: card.update(weights_sha256=checksum))


def set_checksum(folder: Path) -> None:
    checksum = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    rewrite_card(folder, lambda card: card.update(weights_sha256=checksum))


def cut_weights(folder: Path) -> None:
    cut(folder / "weights.safetensors", 0.9)
    set_checksum(folder)


def scribble_on_weights(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"\xff" * 64)
    set_checksum(folder)


def cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])


class TestLoading:
    def test_a_folder_is_opened_without_unpickling(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def forbidden(*_: Any, **__: Any) -> Any:
            raise AssertionError("unpickles")

        (folder / "agent.zip").unlink()
        for module in (pickle, cloudpickle):
            monkeypatch.setattr(module, "loads", forbidden)
            monkeypatch.setattr(module, "load", forbidden)
        monkeypatch.setattr(torch, "load", forbidden)
        monkeypatch.setattr(pickle, "Unpickler", forbidden)

        opened = load_agent(folder)
        assert opened.algorithm == "PPO"
        assert not opened.policy.training

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda f: cut(f / "card.json", 0.5), r"card.json: "),
            (lambda f: (f / "card.json").write_bytes(b"\xff\xfe"), r"card.json: .*utf-8"),
            (lambda f: (f / "card.json").write_text("[" * 100_000), "nested too deeply"),
            (lambda f: (f / "card.json").write_text("[1]"), "lacks 'format_version'"),
            (lambda f: (f / "card.json").write_bytes(b" " * (1 << 24) + b"{}"), "too many"),
            (lambda f: (f / "card.json").unlink(), "not the folder of a saved agent"),
            (lambda f: (f / "weights.safetensors").unlink(), "it has no weights.safetensors"),
            (lambda f: cut(f / "weights.safetensors", 0.9), "SHA-256 is not the card's"),
            (cut_weights, "not a safetensors file"),
            (scribble_on_weights, "not a safetensors file"),
            (lambda f: rewrite_card(f, lambda c: c.pop("seed")), "lacks 'seed'"),
            (lambda f: rewrite_card(f, lambda c: c.update(run="x")), "unknown key 'run'"),
            (lambda f: rewrite_card(f, lambda c: c.update(seed="1")), "seed must be a whole"),
            (lambda f: rewrite_card(f, lambda c: c.update(format_version=2)), "upgrade coordrl"),
            (
                lambda f: rewrite_card(f, lambda c: c.update(format_version=True)),
                "version True",
            ),
            (lambda f: rewrite_card(f, lambda c: c.update(format_version=0)), "version 0, "),
            (lambda f: rewrite_card(f, lambda c: c.update(game="../../x")), "game must be a name"),
            (lambda f: rewrite_card(f, lambda c: c.update(game="Pong/..")), "game must be a name"),
            (lambda f: rewrite_card(f, lambda c: c.update(algorithm="os")), 'one of "A2C"'),
            (lambda f: rewrite_card(f, lambda c: c.update(evaluations=3)), "must be a list"),
            (
                lambda f: rewrite_card(f, lambda c: c.update(evaluations=[3])),
                "must be a table, got 3",
            ),
            (lambda f: rewrite_card(f, lambda c: c.update(seed=10**400)), "seed must be a whole"),
            (lambda f: rewrite_card(f, lambda c: c.update(frames=-1)), "frames must be at least 0"),
            (lambda f: rewrite_card(f, lambda c: c.update(seed=-1)), "seed must be at least 0"),
            (lambda f: rewrite_card(f, lambda c: c.update(versions=1)), "versions must be a table"),
            (
                lambda f: rewrite_card(f, lambda c: c.update(exploration=1.5)),
                r"in \[0, 1\], got 1.5",
            ),
            (
                lambda f: rewrite_card(
                    f, lambda c: c["network"].update(features_extractor="os.system")
                ),
                "features_extractor must be one of CoordConvExtractor",
            ),
            (
                lambda f: rewrite_card(
                    f, lambda c: c["network"]["features_extractor_kwargs"].update(device="cuda")
                ),
                "CoordConvExtractor has no argument 'device'",
            ),
            (
                lambda f: rewrite_card(
                    f, lambda c: c["network"]["features_extractor_kwargs"].update(specs="rm -rf")
                ),
                "cannot build the agent",
            ),
            (
                lambda f: rewrite_card(f, lambda c: c["network"].update(kind="q-network")),
                r"action_net.bias is missing in the network that the card describes, and float32",
            ),
            (
                lambda f: rewrite_card(f, lambda c: c["network"].update(num_actions=5)),
                r"action_net.bias is float32 of shape \(5,\) in .* of shape \(4,\) in weights",
            ),
            (
                lambda f: rewrite_weights(f, lambda w: w.pop("value_net.bias")),
                "value_net.bias .* missing in weights.safetensors",
            ),
            (
                lambda f: rewrite_weights(
                    f, lambda w: w.update({"value_net.bias": torch.zeros(1).double()})
                ),
                "value_net.bias is float32 .* float64",
            ),
            (
                lambda f: rewrite_weights(
                    f, lambda w: w.update({"action_net.bias": torch.tensor([0, 0, torch.nan, 0])})
                ),
                "not finite",
            ),
        ],
    )
    def test_damage_is_named_in_one_sentence(
        self, folder: Path, damage: Callable[[Path], Any], message: str
    ) -> None:
        damage(folder)
        with pytest.raises(AgentError, match=message) as caught:
            load_agent(folder)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600

    def test_the_agents_of_a_run_are_named_where_its_folder_was_meant(
        self, saved: Path, tmp_path: Path
    ) -> None:
        for name in ("last", "best"):
            shutil.copytree(saved, tmp_path / "run" / name)
        with pytest.raises(AgentError, match=r"; its folders with agents are best, last$"):
            load_agent(tmp_path / "run")

    def test_an_agent_that_could_not_be_loaded_is_not_saved(
        self, folder: Path, models: dict[str, BaseAlgorithm], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = (folder / "card.json").read_bytes()
        monkeypatch.setattr("coordrl.agents.saving._MAX_CARD_BYTES", 2000)
        with pytest.raises(AgentError, match=r"its card would have \d,\d+ bytes, of .* 2,000"):
            save_agent(models["PPO"], folder, SETTINGS)
        monkeypatch.setattr("coordrl.agents.saving._MAX_CARD_BYTES", 10)
        with pytest.raises(AgentError, match=r"^\S*/card\.json has more than 10 bytes"):
            load_agent(folder)
        assert (folder / "card.json").read_bytes() == before

    def test_weights_of_as_many_bytes_as_are_read_are_saved_and_no_larger_ones(
        self, folder: Path, models: dict[str, BaseAlgorithm], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        size = (folder / "weights.safetensors").stat().st_size
        monkeypatch.setattr("coordrl.agents.saving._MAX_WEIGHTS_BYTES", size)
        save_agent(models["PPO"], folder, SETTINGS)
        load_agent(folder)
        monkeypatch.setattr("coordrl.agents.saving._MAX_WEIGHTS_BYTES", size - 1)
        with pytest.raises(AgentError, match=f"its weights would have {size:,} bytes, of .* smal"):
            save_agent(models["PPO"], folder, SETTINGS)
        with pytest.raises(AgentError, match=f"/weights.safetensors has more than {size - 1:,} b"):
            load_agent(folder)

    @pytest.mark.parametrize("value", [10**9, 10**18, 10**30], ids=["1e9", "1e18", "1e30"])
    def test_a_card_that_asks_for_a_huge_network_gets_no_memory(
        self, folder: Path, value: int
    ) -> None:
        def enlarge(card: dict[str, Any]) -> None:
            card["network"]["features_extractor_kwargs"]["features_dim"] = value
            card["network"]["hidden"] = [value]

        rewrite_card(folder, enlarge)
        told = "cannot build the agent" if value < 2**63 else r"must be .* below 2\^63, got 10"
        with pytest.raises(AgentError, match=told):
            load_agent(folder)

    def test_a_card_that_asks_for_huge_pictures_gets_no_memory(self, folder: Path) -> None:
        rewrite_card(
            folder, lambda card: card["network"].update(observation_shape=[2, 10**6, 10**6])
        )
        with pytest.raises(AgentError, match="observation"):
            load_agent(folder)

    def test_a_device_that_is_none_is_named(self, saved: Path) -> None:
        with pytest.raises(ValueError, match="device must be 'auto', 'cpu' or 'cuda', got 'tpu'"):
            load_agent(saved, device="tpu")
        if not torch.cuda.is_available():
            with pytest.raises(ValueError, match="device='cuda', but torch finds no GPU; choose"):
                load_agent(saved, device="cuda")

    def test_an_agent_is_opened_on_the_device_that_is_named(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(saving, "_known_device", torch.device)
        assert load_agent(saved, device="meta").policy.device == torch.device("meta")

    def test_an_agent_is_named_in_one_line(self, saved: Path) -> None:
        agent = load_agent(saved)
        assert str(agent) == "Agent(Breakout, PPO, coords='all', seed=3, 0 agent steps)"
        assert str(Agent(agent.policy, agent.algorithm)) == "Agent(PPO, without a card)"

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(AgentError, match=r"there is no agent at .*nowhere; give a saved"):
            load_agent(tmp_path / "nowhere")

    def test_a_file_that_cannot_be_read_is_named(self, folder: Path) -> None:
        (folder / "weights.safetensors").unlink()
        (folder / "weights.safetensors").mkdir()
        with pytest.raises(AgentError, match=r"cannot read .*weights.safetensors: Is a directory"):
            load_agent(folder)


# Of sb3_contrib, with a policy of Stable-Baselines3 itself.
TRPO = b'{"gae_lambda": 1, "normalize_advantage": true, "batch_size": 128, "cg_max_steps": 15}'
QR_DQN = b'{"exploration_fraction": 1, "policy_class": {"__module__": "sb3_contrib.qrdqn"}}'


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def rewrite_zip(source: Path, target: Path, **entries: bytes | None) -> Path:
    """Copy a zip with some entries replaced, or left out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        content = {name: old.read(name) for name in old.namelist()} | entries
        for name, data in content.items():
            if data is not None:
                new.writestr(name, data)
    return target


class TestZips:
    @pytest.mark.parametrize("arm", ["PPO", "A2C", "DQN"])
    def test_a_zip_of_plain_sb3_is_opened_if_trusted(
        self, arm: str, models: dict[str, BaseAlgorithm], tmp_path: Path
    ) -> None:
        model = models[arm]
        model.save(tmp_path / "model.zip")

        agent = load_agent(tmp_path / "model.zip", trust_pickle=True)

        assert (agent.algorithm, agent.card) == (arm, None)
        assert torch.equal(scores(agent), scores(Agent.of(model)))

    def test_a_zip_with_a_buffer_that_sb3_makes_no_longer_is_opened(
        self, models: dict[str, BaseAlgorithm], tmp_path: Path
    ) -> None:
        models["DQN"].save(tmp_path / "model.zip")
        with zipfile.ZipFile(tmp_path / "model.zip") as archive:
            data = json.loads(archive.read("data"))
        data |= {"optimize_memory_usage": True, "replay_buffer_kwargs": {}, "buffer_size": 10**12}
        content = {"data": json.dumps(data).encode()}
        old = rewrite_zip(tmp_path / "model.zip", tmp_path / "old.zip", **content)
        with pytest.raises(ValueError, match="handle_timeout_termination = True simultaneously"):
            DQN.load(old, device="cpu")

        agent = load_agent(old, trust_pickle=True)

        assert torch.equal(scores(agent), scores(Agent.of(models["DQN"])))

    def test_a_bomb_goes_off_only_if_trusted(self, saved: Path, tmp_path: Path) -> None:
        crater = tmp_path / "crater"
        with zipfile.ZipFile(saved / "agent.zip") as archive:
            data = json.loads(archive.read("data"))
        charge = base64.b64encode(pickle.dumps(Bomb(crater))).decode()
        data["verbose"] = {":type:": "int", ":serialized:": charge}
        bomb = rewrite_zip(
            saved / "agent.zip", tmp_path / "bomb.zip", data=json.dumps(data).encode()
        )

        with pytest.raises(AgentError, match=r"would run the Python code .*--trust-pickle"):
            load_agent(bomb)
        assert not crater.exists()

        load_agent(bomb, trust_pickle=True)
        assert crater.exists()

    def test_a_bomb_among_the_weights_never_goes_off(self, saved: Path, tmp_path: Path) -> None:
        crater = tmp_path / "crater"
        content = {"policy.pth": pickle.dumps(Bomb(crater))}
        bomb = rewrite_zip(saved / "agent.zip", tmp_path / "bomb.zip", **content)

        with pytest.raises(AgentError, match=r"PPO.load cannot open"):
            load_agent(bomb, trust_pickle=True)
        assert not crater.exists()

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({"../../evil.pth": b""}, "outside of the archive"),
            ({"/etc/evil.pth": b""}, "outside of the archive"),
            ({"..\\evil.pth": b""}, "outside of the archive"),
            ({"data": None}, "lacks 'data'"),
            ({"policy.pth": None}, "lacks 'data' or 'policy.pth'"),
            ({"data": b"\x80\x04"}, "not a zip of Stable-Baselines3"),
            ({"data": b"[" * 100_000}, "not a zip of Stable-Baselines3"),
            ({"data": b"[]"}, "not a model of A2C, PPO, DQN"),
            ({"data": TRPO}, "not a model of A2C, PPO, DQN"),
            (
                {"data": QR_DQN},
                "its policy comes from sb3_contrib.qrdqn",
            ),
        ],
        ids=[
            "..",
            "/",
            "backslash",
            "no data",
            "no policy",
            "pickle",
            "deep",
            "list",
            "TRPO",
            "QR-DQN",
        ],
    )
    @pytest.mark.parametrize("trust_pickle", [False, True], ids=["untrusted", "trusted"])
    def test_what_is_no_zip_of_ours_is_not_opened(
        self,
        saved: Path,
        tmp_path: Path,
        entries: dict[str, bytes | None],
        message: str,
        trust_pickle: bool,
    ) -> None:
        path = rewrite_zip(saved / "agent.zip", tmp_path / "other.zip", **entries)
        with pytest.raises(AgentError, match=message):
            load_agent(path, trust_pickle=trust_pickle)

    @pytest.mark.parametrize(
        ("limit", "huge"), [("_MAX_DATA_BYTES", "data"), ("_MAX_ZIP_BYTES", "policy.pth")]
    )
    def test_a_zip_that_unpacks_to_too_much_is_not_unpacked(
        self, limit: str, huge: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(saving, limit, 1 << 20)
        path = tmp_path / "huge.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("data", "policy.pth"):
                archive.writestr(name, bytes((1 << 20) + 1) if name == huge else b"")
        assert path.stat().st_size < 10_000
        with pytest.raises(AgentError, match=r"would unpack to 1,048,577 bytes"):
            load_agent(path, trust_pickle=True)

    @pytest.mark.parametrize(
        ("compression", "damage", "message"),
        [
            (zipfile.ZIP_STORED, lambda content, entry: {content: 0}, "Bad CRC-32"),
            (zipfile.ZIP_DEFLATED, lambda content, entry: {content: 255}, "invalid block type"),
            (zipfile.ZIP_LZMA, lambda content, entry: {content + 9: 255}, "Corrupt input data"),
            (
                zipfile.ZIP_STORED,
                lambda content, entry: {content - 28: 1, entry + 8: 1},
                "password",
            ),
            (zipfile.ZIP_STORED, lambda content, entry: {entry + 21: 9, entry + 25: 9}, "EOFError"),
        ],
        ids=["stored", "deflated", "lzma", "encrypted", "longer than the file"],
    )
    def test_a_zip_that_is_encrypted_or_damaged(
        self,
        compression: int,
        damage: Callable[[int, int], dict[int, int]],
        message: str,
        tmp_path: Path,
    ) -> None:
        path = tmp_path / "agent.zip"
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("policy.pth", b"")
            archive.writestr("data", b"{}" * 100)
            content = archive.getinfo("data").header_offset + 30 + len("data")
        spoiled = bytearray(path.read_bytes())
        entry = spoiled.rindex(b"PK\1\2")  # of "data" in the directory
        for place, byte in damage(content, entry).items():
            spoiled[place] = byte
        path.write_bytes(spoiled)
        with pytest.raises(AgentError, match=rf"not a whole zip file: .*{message}.*; copy or"):
            load_agent(path, trust_pickle=True)

    @pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
    def test_a_zip_that_was_cut_off(self, folder: Path, keep: float) -> None:
        cut(folder / "agent.zip", keep)
        with pytest.raises(AgentError, match=r"not a whole zip file: .*; copy or download"):
            load_agent(folder / "agent.zip", trust_pickle=True)


def scripted(returns: list[float], lengths: list[int]) -> type[AtariVectorEnv]:
    """Breakout whose i-th environment plays games of one given return and length."""

    class Scripted(AtariVectorEnv):
        def step(self, actions: Any) -> Any:
            obs, rewards, *_ = super().step(actions)
            self.count = getattr(self, "count", 0) + 1
            ended = np.array([self.count % length == 0 for length in lengths])
            games = {"episode_return": returns, "agent_steps": lengths, "frames": lengths}
            info = {"game": games, "_game": ended}
            return obs, rewards, ended, np.zeros_like(ended), info

    return Scripted


@pytest.fixture(scope="module")
def agent(saved: Path) -> Agent:
    return load_agent(saved)


@pytest.fixture(scope="module")
def idler() -> Agent:
    """An agent whose likeliest action is the first one, to do nothing."""
    model = ppo(policy_kwargs(**SMALL))
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.zero_()
    return Agent.of(model)


class TestEvaluation:
    def test_a_card_cannot_ask_for_more_memory_than_there_is(self, folder: Path) -> None:
        rewrite_card(folder, lambda card: card["env"].update(stack_size=2**18))
        with pytest.raises(AgentError, match=r"observes \(2, 40, 36\), .* as \(262144, 40, 36\)"):
            evaluate(load_agent(folder), episodes=1)
        rewrite_card(folder, lambda card: card["env"].update(stack_size=10**9))
        with pytest.raises(AgentError, match="played so: an observation may have 2,147,483,647 by"):
            evaluate(load_agent(folder), episodes=1)

    def test_a_card_cannot_ask_for_what_the_game_does_not_have(self, folder: Path) -> None:
        rewrite_card(folder, lambda card: card["env"].update(mode=77))
        with pytest.raises(
            AgentError, match=r"^Breakout cannot be played so: breakout has no mode 77; it has 0, 4"
        ):
            evaluate(load_agent(folder), episodes=1)

    def test_short_games_get_no_more_weight_than_long_ones(
        self, agent: Agent, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(evaluation, "AtariVectorEnv", scripted([1.0, 10.0], [1, 9]))

        result = evaluate(agent, episodes=4, num_envs=2)

        assert result.episode_returns == (1.0, 1.0, 10.0, 10.0)
        assert result.episode_lengths == (1, 1, 9, 9)

    def test_equals_sb3_on_the_same_games(self, agent: Agent) -> None:
        result = evaluate(agent, episodes=2, num_envs=1, deterministic=True, seed=5)

        envs = VectorEnvAdapter(AtariVectorEnv("Breakout", 1, result.settings))
        env_stream, _ = np.random.SeedSequence(5).spawn(2)
        envs.seed(int(env_stream.generate_state(1)[0]))
        returns, lengths = evaluate_policy(
            agent.policy, envs, n_eval_episodes=2, return_episode_rewards=True
        )
        assert list(result.episode_returns) == returns
        assert list(result.episode_lengths) == lengths

    def test_same_seed_same_games(self, agent: Agent) -> None:
        first, again, other = (
            evaluate(agent, episodes=2, num_envs=2, seed=seed) for seed in (1, 1, 2)
        )
        assert first == again
        assert first.episode_lengths != other.episode_lengths
        assert (first.seed, other.seed) == (1, 2)

    def test_training_goes_on_as_if_nothing_had_happened(self) -> None:
        def trained(*, evaluates: bool) -> torch.Tensor:
            model = ppo(policy_kwargs(**SMALL))
            model.learn(4)
            if evaluates:
                model.policy.set_training_mode(True)
                evaluate(model, game="Breakout", settings=ENV, episodes=1)
                assert model.policy.training
            model.learn(8, reset_num_timesteps=False)
            return scores(Agent.of(model))

        assert torch.equal(trained(evaluates=True), trained(evaluates=False))

    def test_an_agent_does_not_play_as_in_training(self, folder: Path) -> None:
        agent = load_agent(folder)
        agent.policy.set_training_mode(True)
        with Play(agent, game_for(agent), 1, deterministic=True, seed=0):
            assert not agent.policy.training
        assert agent.policy.training

    def test_the_card_says_by_which_rules_if_nobody_else_does(self, agent: Agent) -> None:
        assert agent.card is not None
        trained = dataclasses.replace(agent.card, protocol="machado")
        match = game_for(dataclasses.replace(agent, card=trained))
        assert (match.game, match.protocol) == ("Breakout", "machado")
        assert match.settings == evaluation_settings("machado", ENV)
        assert game_for(agent, protocol="classic").settings == evaluation_settings("classic", ENV)

    def test_ends_although_the_agent_never_serves(self, idler: Agent) -> None:
        """In Breakout nothing happens until FIRE is pressed, and this agent presses nothing."""
        env = dataclasses.replace(ENV, fire_reset=False, fire_after_life_loss=False, frame_skip=60)
        result = evaluate(
            idler,
            game="Breakout",
            settings=env,
            protocol="machado",
            deterministic=True,
            episodes=1,
        )

        assert result.truncated == 1
        assert result.episode_returns == (0.0,)
        assert 17_900 < result.mean_frames <= 18_000  # the reset counts towards the limit

    @pytest.mark.parametrize(("episodes", "num_envs"), [(3, 2), (5, 3), (2, 4)])
    def test_as_many_episodes_are_played_as_were_asked_for(
        self, agent: Agent, episodes: int, num_envs: int
    ) -> None:
        result = evaluate(agent, episodes=episodes, num_envs=num_envs)
        assert (result.episodes, result.num_envs) == (episodes, min(num_envs, episodes))

    @pytest.mark.parametrize("deterministic", [True, False])
    def test_actions_are_drawn_unless_the_likeliest_are_asked_for(
        self, agent: Agent, deterministic: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        act, asked = Agent.act, []

        def noting(self: Agent, obs: Any, **chosen: Any) -> Any:
            asked.append(chosen["deterministic"])
            return act(self, obs, **chosen)

        monkeypatch.setattr(Agent, "act", noting)
        evaluate(agent, episodes=1, deterministic=deterministic)
        assert set(asked) == {deterministic}

    def test_games_of_an_evaluation_have_seeds_of_their_own(self, agent: Agent) -> None:
        match = game_for(agent, game=None, protocol=None, settings=None)
        with Play(agent, match, 4, deterministic=True, seed=3) as play:
            assert len(set(play.env_seeds.tolist())) == 4
            assert play._random.initial_seed() not in play.env_seeds.tolist()

    def test_what_is_written_of_an_evaluation_is_what_was_measured(self) -> None:
        result = EvaluationResult(
            game="Pong", protocol="classic", deterministic=False, seed=0, num_envs=2, settings=ENV,
            episode_returns=(14.6, -20.7, 14.6, 14.6), episode_lengths=(5, 6, 7, 8),
            episode_frames=(20, 24, 28, 40), truncated=0,
        )  # fmt: skip
        written = result.to_json()
        assert (written["min"], written["max"], written["median"]) == (-20.7, 14.6, 14.6)
        assert written["mean"] == pytest.approx(5.775)
        assert written["human_normalized"] == pytest.approx(0.75)  # -20.7 is 0 and 14.6 is 1
        assert written["mean_frames"] == 28
        low, high = written["interval_95"]
        assert -20.7 <= low < 5.775 < high == pytest.approx(14.6)
        assert EvaluationResult.from_json(written) == result

    def test_games_are_closed_also_where_the_agent_cannot_play_them(
        self, agent: Agent, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[AtariVectorEnv] = []

        def noting(*args: Any, **kwargs: Any) -> AtariVectorEnv:
            made.append(AtariVectorEnv(*args, **kwargs))
            return made[-1]

        monkeypatch.setattr(evaluation, "AtariVectorEnv", noting)
        evaluate(agent, episodes=1)
        with pytest.raises(AgentError, match="Pong has 6"):
            evaluate(agent, game="Pong")
        assert [(games.game, games.closed) for games in made] == [
            ("breakout", True),
            ("pong", True),
        ]

    def test_each_episode_is_reported(self, agent: Agent) -> None:
        seen: list[Episode] = []
        result = evaluate(agent, episodes=3, num_envs=2, on_episode=seen.append)
        assert tuple(episode.episode_return for episode in seen) == result.episode_returns
        assert not agent.policy.training  # as before

    def test_the_protocol_makes_the_rules_and_the_agent_keeps_its_eyes(self) -> None:
        trained = dataclasses.replace(ENV, clip_reward=True, life_loss="reset", noop_max=7)
        expected = dataclasses.replace(
            ENV,
            clip_reward=False,
            life_loss="ignore",
            noop_max=0,
            repeat_action_probability=0.25,
            max_frames_per_episode=18_000,
        )
        assert evaluation_settings("machado", trained) == expected

    @pytest.mark.parametrize("full", [False, True])
    def test_a_zip_without_card_sees_what_its_spaces_say(self, full: bool) -> None:
        settings = AtariSettings(screen_size=(40, 36), full_action_space=full)
        envs = VectorEnvAdapter(AtariVectorEnv("Freeway", 1, settings))
        model = PPO(
            "CnnPolicy", envs, n_steps=4, batch_size=4, policy_kwargs=policy_kwargs(**SMALL)
        )
        match = evaluation.game_for(Agent.of(model), game="freeway", protocol="classic")
        assert (match.game, match.settings.stack_size) == ("Freeway", 4)
        assert match.settings.screen_size == (40, 36)
        assert match.settings.full_action_space is full

    def test_a_model_in_training_is_evaluated_on_what_it_learns_from(self) -> None:
        seen = AtariSettings(frame_skip=3, stack_size=2, screen_size=(36, 40), life_loss="ignore")
        wrapped = VectorWrapper(AtariVectorEnv("Breakout", 2, seen))
        games = VecNormalize(VecCheckNan(VectorEnvAdapter(wrapped)), norm_obs=False)
        model = A2C("CnnPolicy", games, policy_kwargs=policy_kwargs(features_dim=8))
        limits: dict[str, Any] = {"episodes": 1, "num_envs": 1}

        result = evaluate(model, **limits)

        assert result.game == "Breakout"
        assert (result.settings.frame_skip, result.settings.screen_size) == (3, (36, 40))
        assert evaluate(model, game="Breakout", **limits) == result
        other = dataclasses.replace(seen, frame_skip=4)
        assert evaluate(model, settings=other, **limits).settings.frame_skip == 4

    def test_a_model_in_training_is_filmed_in_what_it_is_evaluated_on(self, tmp_path: Path) -> None:
        seen = AtariSettings(frame_skip=3, stack_size=2, screen_size=(36, 40))
        model = A2C(
            "CnnPolicy",
            make_sb3_env("Breakout", 2, seen),
            policy_kwargs=policy_kwargs(features_dim=8),
        )
        frames: list[int] = []

        record_video(model, tmp_path / "game.gif", max_frames=9, on_frame=frames.append)

        assert frames == [3, 6, 9]

    def test_of_the_games_that_share_a_gpu_one_is_named(
        self, models: dict[str, BaseAlgorithm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(breakout().envs, "games", ("kaboom", "breakout"))
        monkeypatch.setattr(breakout().envs, "game", "kaboom+breakout")
        with pytest.raises(AgentError, match="no card that names its game; name it by game="):
            evaluate(models["PPO"], episodes=1)
        assert save_agent(models["PPO"], tmp_path / "agent", SETTINGS).game == "Breakout"

    def test_a_wrong_game_is_refused(self, agent: Agent) -> None:
        with pytest.raises(AgentError, match=r"the agent has 4 actions, and Pong has 6; was"):
            evaluate(agent, game="Pong")
        with pytest.raises(
            AgentError, match=r"observes \(2, 40, 36\), and Breakout .* \(4, 84, 84\)"
        ):
            evaluate(agent, settings=AtariSettings())
        with pytest.raises(
            AgentError, match="no card that names its game; name it by game=, or --env"
        ):
            evaluate(dataclasses.replace(agent, card=None))
        with pytest.raises(ValueError, match="no Atari game 'Pomg'; did you mean Pong"):
            evaluate(agent, game="Pomg")
        for number, least in (("episodes", 1), ("num_envs", 1), ("seed", 0)):
            too_small: dict[str, Any] = {number: -1}
            with pytest.raises(ValueError, match=f"{number} must be at least {least}, got -1"):
                evaluate(agent, **too_small)
            not_whole: dict[str, Any] = {number: 2.0}
            with pytest.raises(TypeError, match=rf"{number} must be a whole number, got 2\.0"):
                evaluate(agent, **not_whole)

    def test_a_film_that_finds_no_room_leaves_the_old_one(
        self, saved: Path, tmp_path: Path, little_room: None
    ) -> None:
        film = tmp_path / "10:30.mp4"
        film.write_bytes(b"old")
        with pytest.raises(AgentError, match=r"10:30\.mp4: the encoder has stopped; is there room"):
            record_video(load_agent(saved), film, max_frames=64)
        assert film.read_bytes() == b"old"
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_model_that_saw_other_numbers_than_bytes_is_not_evaluated(self) -> None:
        env = VecNormalize(breakout())
        small = policy_kwargs(**SMALL)
        model = PPO("CnnPolicy", env, n_steps=4, batch_size=4, policy_kwargs=small)
        with pytest.raises(AgentError, match=r"observes Box\(-10.*, and games are shown in bytes"):
            evaluate(model, game="Breakout", settings=ENV)

    @pytest.mark.parametrize("height", [210, 250])
    def test_one_colored_picture_is_not_taken_for_a_stack(self, height: int) -> None:
        bare = Agent.of(ppo(policy_kwargs(**SMALL)))
        bare.policy.observation_space = spaces.Box(0, 255, (3, height, 160), np.uint8)
        with pytest.raises(AgentError, match="as games in one colored picture are shown"):
            evaluate(bare, game="Breakout")
        bare.policy.observation_space = spaces.Box(0, 255, (4, height, 160), np.uint8)
        assert game_for(bare, game="Breakout").settings.stack_size == 4

    def test_an_agent_without_card_that_sees_no_stack_is_refused(self) -> None:
        bare = Agent.of(ppo(policy_kwargs(**SMALL)))
        bare.policy.observation_space = spaces.Box(0, 255, (4, 128), np.uint8)
        with pytest.raises(AgentError, match=r"evaluated on stacked gray frames \(C, H, W\), and"):
            game_for(bare, game="breakout")


class TestActing:
    def test_actions_are_drawn_as_often_as_they_are_likely(self, saved: Path) -> None:
        agent = load_agent(saved)
        obs = np.repeat(observations(1), 4_000, axis=0)
        with torch.no_grad():
            agent.policy.action_net.bias += torch.arange(4) / 3  # type: ignore[operator, union-attr]
        likely = scores(agent)[0].softmax(dim=0)

        drawn = agent.act(obs, deterministic=False, random=torch.Generator().manual_seed(0))

        often = torch.bincount(torch.as_tensor(drawn), minlength=4) / len(drawn)
        assert float((often - likely).abs().max()) < 4 * 0.5 / len(drawn) ** 0.5

    def test_a_dqn_agent_explores_in_each_environment_by_itself(
        self, models: dict[str, BaseAlgorithm]
    ) -> None:
        dqn = dataclasses.replace(Agent.of(models["DQN"]), exploration=0.25)
        obs = np.repeat(observations(1), 4_000, axis=0)
        random = torch.Generator().manual_seed(0)

        greedy = dqn.act(obs, deterministic=True, random=random)
        drawn = dqn.act(obs, deterministic=False, random=random)

        for seed in (1, 2):  # of other numbers than the agent's
            torch.manual_seed(seed)
            again = dqn.act(obs, deterministic=False, random=torch.Generator().manual_seed(0))
            assert again.tolist() == drawn.tolist()
        assert len(set(greedy.tolist())) == 1
        assert abs((drawn == greedy).mean() - (0.75 + 0.25 / 4)) < 0.03
        assert set(drawn.tolist()) == set(range(4))

    def test_exploration_is_what_training_ends_with(self, models: dict[str, BaseAlgorithm]) -> None:
        assert Agent.of(models["DQN"]).exploration == 0.05
        assert Agent.of(models["PPO"]).exploration == 0


def result_of(*returns: float, **fields: Any) -> EvaluationResult:
    known = EvaluationResult(
        game="Pong",
        protocol="classic",
        deterministic=False,
        seed=0,
        num_envs=1,
        settings=ENV,
        episode_returns=returns,
        episode_lengths=tuple(range(1, len(returns) + 1)),
        episode_frames=tuple(range(16, 16 * len(returns) + 1, 16)),
        truncated=0,
    )
    return dataclasses.replace(known, **fields)


class TestResults:
    def test_statistics_of_a_few_returns(self) -> None:
        result = result_of(1.0, 2.0, 6.0)
        assert (result.mean, result.median, result.episodes) == (3.0, 2.0, 3)
        assert result.mean_frames == 2 * 16
        returns = tuple(points**1.5 for points in range(30))
        for seed in (0, 5):
            interval = bootstrap_interval(returns, seed=seed)
            assert result_of(*returns, seed=seed).interval == interval

    def test_survives_json(self) -> None:
        result = result_of(-21.0, 3.5, protocol="machado", deterministic=True, truncated=1)
        assert EvaluationResult.from_json(json.loads(json.dumps(result.to_json()))) == result

    def test_a_card_keeps_its_evaluations(self, saved: Path) -> None:
        card = load_agent(saved).card
        assert card is not None
        card = dataclasses.replace(card, evaluations=(result_of(1.0, 2.0), result_of(-21.0)))
        assert AgentCard.from_json(card.to_json()).evaluations == card.evaluations

    def test_needs_as_many_lengths_as_returns(self) -> None:
        with pytest.raises(ValueError, match=r"in frames for each; got 2, 1 and 2"):
            result_of(1.0, 2.0, episode_lengths=(1,))

    def test_interval_is_that_of_the_normal_distribution_for_many_values(self) -> None:
        values = tuple(np.random.default_rng(1).normal(5.0, 2.0, size=400).tolist())
        low, high = bootstrap_interval(values, seed=0)
        half = 1.96 * np.std(values) / 400**0.5
        assert low == pytest.approx(np.mean(values) - half, abs=0.02)
        assert high == pytest.approx(np.mean(values) + half, abs=0.02)

    @pytest.mark.parametrize("at_a_time", [1, 7 * 123, 7 * 20_000])
    def test_an_interval_does_not_depend_on_how_many_are_drawn_at_a_time(
        self, at_a_time: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        values = (3.0, -1.5, 4.25, 0.0, 2.0, 2.5, 9.0)
        rng = np.random.default_rng(np.random.SeedSequence([5, len(values)]))
        means = np.array(values)[rng.integers(7, size=(10_000, 7))].mean(axis=1)
        monkeypatch.setattr("coordrl.agents.results._DRAWN_AT_A_TIME", at_a_time)
        expected = np.quantile(means, [0.025, 0.975]).tolist()
        assert list(bootstrap_interval(values, seed=5)) == pytest.approx(expected, rel=1e-12)

    def test_interval_covers_the_true_mean_about_95_times_in_100(self) -> None:
        rng = np.random.default_rng(2)
        hits = 0
        for trial in range(100):
            low, high = bootstrap_interval(tuple(rng.exponential(size=60).tolist()), seed=trial)
            hits += low <= 1.0 <= high
        assert 88 <= hits <= 99

    @pytest.mark.parametrize("count", [5, 10])
    def test_interval_of_few_values_is_too_narrow(self, count: int) -> None:
        rng = np.random.default_rng(2)
        hits = 0
        for trial in range(400):
            low, high = bootstrap_interval(tuple(rng.normal(size=count).tolist()), seed=trial)
            hits += low <= 0.0 <= high
        assert 0.80 < hits / 400 < 0.93

    def test_what_looks_like_a_list_of_numbers_in_a_name_is_left_alone(self) -> None:
        table = {"agent": "runs/[ 1 ]", "returns": [1.0, 2.5]}
        assert json.loads(dump_json(table)) == table
        assert '"returns": [1.0, 2.5]' in dump_json(table)

    def test_what_is_no_number_is_not_written(self) -> None:
        with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
            dump_json({"returns": [1.0, float("nan")]})

    def test_human_normalized_score_of_published_values(self) -> None:
        assert human_normalized_score("Breakout", 30.5) == 1.0
        assert human_normalized_score("MsPacman", 307.3) == 0.0
        assert human_normalized_score("ms_pacman", (307.3 + 6951.6) / 2) == pytest.approx(0.5)
        assert human_normalized_score("Adventure", 0.0) is None


class TestScores:
    @EVERY_ARM
    def test_scores_are_logits_or_values_of_the_policy(
        self, arm: str, models: dict[str, BaseAlgorithm]
    ) -> None:
        agent = Agent.of(models[arm])
        with torch.no_grad():
            found = ActionScores(agent)(torch.as_tensor(observations()))
        if agent.algorithm != "DQN":
            found = found.log_softmax(dim=1)
        torch.testing.assert_close(found, scores(agent))

    def test_pictures_are_scaled_only_if_the_policy_scales_them(self) -> None:
        env = FakeImageEnv(screen_height=4, screen_width=5, n_channels=1, channel_first=True)
        model = PPO(
            "MlpPolicy", env, n_steps=2, batch_size=2, policy_kwargs={"normalize_images": False}
        )
        agent = Agent.of(model)
        obs = random_observations(agent, 3)
        with torch.no_grad():
            found = ActionScores(agent)(obs).log_softmax(dim=1)
            categorical: Any = model.policy.get_distribution(obs).distribution
        torch.testing.assert_close(found, categorical.logits)

    def test_a_policy_in_training_keeps_its_statistics_and_mode(self) -> None:
        spec = {"out_channels": 4, "kernel_size": 8, "stride": 8, "norm": "batch"}
        model = ppo(policy_kwargs(**{**SMALL, "specs": [spec]}))
        model.policy.set_training_mode(True)
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}

        ActionScores(Agent.of(model))

        assert model.policy.training
        torch.testing.assert_close(dict(model.policy.state_dict()), before, rtol=0, atol=0)

    def test_random_observations_are_bytes_and_the_same_every_time(
        self, models: dict[str, BaseAlgorithm]
    ) -> None:
        agent = Agent.of(models["PPO"])
        obs = random_observations(agent, 2)
        assert (obs.shape, obs.dtype) == ((2, 2, 40, 36), torch.uint8)
        assert (int(obs.min()), int(obs.max())) == (0, 255)
        assert torch.equal(obs, random_observations(agent, 2))
        assert random_observations(agent, 0).shape == (0, 2, 40, 36)
        with pytest.raises(ValueError, match="count must be at least 0, got -1"):
            random_observations(agent, -1)

    @pytest.mark.parametrize(
        ("obs_space", "action_space"),
        [
            (spaces.Box(0, 1, (4,), np.float32), spaces.Discrete(3)),
            (spaces.MultiBinary(4), spaces.Discrete(3)),
            (spaces.Box(0, 255, (4,), np.uint8), spaces.Box(-1, 1, (2,), np.float32)),
        ],
        ids=["floats", "bits", "continuous"],
    )
    def test_other_observations_and_actions_are_refused(
        self, obs_space: spaces.Space[Any], action_space: spaces.Space[Any], idler: Agent
    ) -> None:
        policy = ActorCriticPolicy(obs_space, action_space, lambda _: 1e-3)
        agent = dataclasses.replace(idler, policy=policy)
        for build in (ActionScores, random_observations):
            with pytest.raises(AgentError, match="actions by bytes have such a network, this one"):
                build(agent)


class TestDescription:
    @EVERY_ARM
    def test_parameters_add_up(self, arm: str, models: dict[str, BaseAlgorithm]) -> None:
        model = models[arm]
        network = model.q_net if isinstance(model, DQN) else model.policy
        rows = [
            [int(number.replace(",", "")) for number in line.split()[-3:]]
            for line in describe(model).splitlines()[4:]
            if line and line.split()[-1][-1].isdigit()
        ]
        *layers, total = rows
        assert total == [sum(column) for column in zip(*layers, strict=True)]
        assert total[0] == sum(p.numel() for p in network.parameters())

    def test_a_model_stays_as_it_is(self) -> None:
        spec = {"out_channels": 4, "kernel_size": 8, "stride": 8, "norm": "batch"}
        policy = ppo(policy_kwargs(**{**SMALL, "specs": [spec]})).policy
        policy.set_training_mode(True)
        policy.action_net.eval()
        before = {name: value.clone() for name, value in policy.state_dict().items()}
        modes = [module.training for module in policy.modules()]

        describe(policy)

        assert [module.training for module in policy.modules()] == modes
        torch.testing.assert_close(dict(policy.state_dict()), before, rtol=0, atol=0)

        def fail(*_: object) -> None:
            raise RuntimeError("no values today")

        policy.value_net.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="no values today"):
            describe(policy)
        assert [module.training for module in policy.modules()] == modes

    def test_shared_layers_are_told_from_doubled_ones(
        self, models: dict[str, BaseAlgorithm]
    ) -> None:
        shared, doubled = describe(models["PPO"]), describe(models["PPO, two extractors"])
        assert shared.count("actor + critic") == 3
        assert doubled.count("actor + critic") == 0
        assert doubled.count("cnn.0") == 2

    def test_multiply_adds_of_a_small_stack(self, models: dict[str, BaseAlgorithm]) -> None:
        """40 x 36 in steps of 4 under 8 x 8: 9 x 8, and in steps of 2 under 4 x 4: 3 x 3."""
        rows = {
            line.split()[0]: line.split()[-3:]
            for line in describe(models["PPO"]).splitlines()
            if line
        }
        per_sample, coordinates = 9 * 8 * 4 * 2 * 64, 9 * 8 * 4 * 3 * 64
        assert rows["features_extractor.cnn.0"][1:] == [f"{per_sample:,}", f"{coordinates:,}"]
        per_sample, coordinates = 3 * 3 * 8 * 4 * 16, 3 * 3 * 8 * 3 * 16
        assert rows["features_extractor.cnn.2"][1:] == [f"{per_sample:,}", f"{coordinates:,}"]
        assert rows["features_extractor.linear.0"][1:] == [f"{72 * 16:,}", "0"]

    def test_a_channel_of_a_group_sees_the_channels_of_its_group_alone(self) -> None:
        model = ppo(policy_kwargs("none", **SMALL))
        first = model.policy.features_extractor.cnn
        assert isinstance(first, nn.Sequential)
        first[0] = nn.Conv2d(2, 4, 8, 4, groups=2)
        [row] = [line for line in describe(model).splitlines() if "cnn.0 " in line]
        assert "  4 x 9 x 8  " in row
        assert row.split()[-3:] == [str(4 * 64 + 4), f"{9 * 8 * 4 * 1 * 64:,}", "0"]

    def test_numbers_end_under_the_ends_of_their_names(
        self, models: dict[str, BaseAlgorithm]
    ) -> None:
        _, _, head, _, *rows = describe(models["PPO"]).splitlines()
        ends = [head.index(name) + len(name) for name in ("parameters", "per sample", "per batch")]
        assert ends[-1] == len(head)
        for row in rows:
            for end in ends:
                assert row[end - 1] in "0123456789-"
                assert row[end : end + 1] in ("", " ", "-")

    @pytest.mark.parametrize(("arm", "told"), [("DQN", True), ("PPO", False)])
    def test_a_target_network_is_told_of_where_there_is_one(
        self, arm: str, told: bool, models: dict[str, BaseAlgorithm]
    ) -> None:
        text = describe(models[arm])
        assert ("A target network of the same size" in text) is told
        assert ("  action values  " in text) is told
        assert ("  actor + critic  " in text) is not told

    def test_an_agent_is_described_as_its_model(self, models: dict[str, BaseAlgorithm]) -> None:
        assert describe(Agent.of(models["DQN"])) == describe(models["DQN"])

    def test_a_policy_of_several_observations_is_refused(self) -> None:
        space = spaces.Dict(here=spaces.Box(-1, 1, (2,)))
        policy = MultiInputActorCriticPolicy(space, spaces.Discrete(3), lambda _: 1e-3)
        with pytest.raises(AgentError, match="observe a Box can be described, got Dict"):
            describe(policy)

    def test_a_policy_of_another_algorithm_is_refused(self) -> None:
        policy = SACPolicy(spaces.Box(0, 255, (4,), np.uint8), spaces.Box(-1, 1, (2,)), lambda _: 1)
        with pytest.raises(AgentError, match=r"A2C, PPO and DQN can be described, .* SACPolicy"):
            describe(policy)

    def test_hidden_layers_that_nobody_asked_for_are_warned_of(
        self, models: dict[str, BaseAlgorithm]
    ) -> None:
        trapped = ppo(
            {"features_extractor_class": CoordConvExtractor, "features_extractor_kwargs": SMALL}
        )
        assert "hidden layers of 64 and 64 units stand between" in describe(trapped)
        assert "Warning" not in describe(models["PPO"])
        assert "Warning" not in describe(models["NatureCNN"])
        assert "Warning" not in describe(models["PPO, hidden layers"])
        natures = ppo({"features_extractor_kwargs": {"features_dim": 16}, "net_arch": [64, 64]})
        assert "Warning" not in describe(natures)

    def test_leaves_no_hook_behind(self, models: dict[str, BaseAlgorithm]) -> None:
        describe(models["PPO"])
        assert not any(module._forward_hooks for module in models["PPO"].policy.modules())


class TestVideo:
    @pytest.mark.parametrize("fires", [True, False])
    def test_shows_every_frame_of_the_game_that_is_evaluated(
        self, idler: Agent, agent: Agent, fires: bool, tmp_path: Path
    ) -> None:
        """Also the FIRE after a lost life, which the idler never presses by itself."""
        player = idler if fires else agent
        game: dict[str, Any] = {
            "game": "Breakout",
            "settings": dataclasses.replace(ENV, fire_after_life_loss=fires),
            "deterministic": fires,
            "seed": 4,
        }
        result = evaluate(player, episodes=1, num_envs=1, **game)

        episode = record_video(player, tmp_path / "game.mp4", **game)

        frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "game.mp4"))
        assert episode is not None
        assert (episode.episode_return,) == result.episode_returns
        assert (episode.frames,) == (frames,) == result.episode_frames
        assert frames / seconds == pytest.approx(60, rel=0.01)

    def test_a_gif_has_the_very_colors_of_the_console(self, agent: Agent, tmp_path: Path) -> None:
        game = record_video(agent, tmp_path / "game.gif", max_frames=32)

        assert game is None
        with Image.open(tmp_path / "game.gif") as film:
            assert film.n_frames in (26, 27)  # type: ignore[attr-defined] # five sixths of 32
            assert film.info["duration"] == 20  # milliseconds
            frame = np.asarray(film.convert("RGB"))
        assert frame.shape == (630, 800, 3)
        assert frame[3 * 100, 5 * 3].tolist() == [142, 142, 142]  # the wall, color $06
        for line, column in ((0, 4), (2, 0), (2, 4)):
            assert (frame[::3, ::5] == frame[line::3, column::5]).all()

    def test_a_game_with_more_lines_is_filmed_in_its_own_colors(self, tmp_path: Path) -> None:
        envs = VectorEnvAdapter(AtariVectorEnv("Pacman", 1, ENV, num_threads=1))
        policy = PPO("CnnPolicy", envs, policy_kwargs=policy_kwargs(**SMALL), device="cpu")
        envs.close()

        record_video(policy, tmp_path / "game.gif", game="Pacman", settings=ENV, max_frames=8)

        with Image.open(tmp_path / "game.gif") as film:
            frame = np.asarray(film.convert("RGB"))
        assert frame.shape == (750, 800, 3)
        colors = {tuple(color) for color in frame.reshape(-1, 3).tolist()}
        assert colors <= {*palette("PAL")}

    def test_what_cannot_be_written_is_said_before_the_game(
        self, agent: Agent, tmp_path: Path
    ) -> None:
        with pytest.raises(AgentError, match=r"a film ends in .mp4 or .gif, got game.avi"):
            record_video(agent, tmp_path / "game.avi")
        with pytest.raises(AgentError, match=r"cannot write .*: No such file or directory"):
            record_video(agent, tmp_path / "nowhere" / "game.mp4", max_frames=16)
        for max_frames, seed in ((0, 0), (16, -1)):
            with pytest.raises(ValueError, match=r"(max_frames|seed) must be at least \d, got"):
                record_video(agent, tmp_path / "game.gif", max_frames=max_frames, seed=seed)
        with pytest.raises(TypeError, match=r"seed must be a whole number, got 1\.5"):
            record_video(agent, tmp_path / "game.gif", seed=1.5)  # type: ignore[arg-type]
        assert list(tmp_path.iterdir()) == []

    def test_an_encoder_that_stops_is_told_and_leaves_nothing(
        self, agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stopping(*_: object, **__: object) -> Iterator[None]:
            yield
            raise BrokenPipeError

        monkeypatch.setattr(imageio_ffmpeg, "write_frames", stopping)
        with pytest.raises(AgentError, match=r"the encoder has stopped; is there room on the disk"):
            record_video(agent, tmp_path / "game.gif", max_frames=16)
        assert list(tmp_path.iterdir()) == []

    def test_the_last_frame_of_a_step_is_the_screen_behind_it(self, agent: Agent) -> None:
        """Also that of the game's last step."""
        match, seeds = game_for(agent), np.array([3])
        short = dataclasses.replace(match.settings, max_frames_per_episode=5 * ENV.frame_skip)
        match = dataclasses.replace(match, settings=short)
        envs = AtariVectorEnv(
            match.game, 1, short, autoreset_mode="Disabled", render_mode="rgb_array"
        )
        envs.reset(seed=seeds)
        with _Camera(match, 210, seeds) as camera:
            for action in np.array([[1], [2], [3], [3], [2]]):
                envs.step(action)
                frames = list(camera.step(action))
                assert len(frames) == match.settings.frame_skip
                assert np.array_equal(frames[-1], envs.render()[0])
        assert envs.is_over.all()
        envs.close()

    @pytest.mark.parametrize("protocol", ["classic", "machado"])
    def test_a_film_is_the_same_without_the_compiled_emulator(
        self, protocol: Protocol, agent: Agent, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To the end of the game, whose last observation lacks its last frame."""
        match, seeds = game_for(agent, game="Seaquest", protocol=protocol), np.array([2**32 - 1])
        actions = np.random.default_rng(0).integers(18, size=(200, 1))

        def film() -> tuple[list[int], float | None]:
            frames: list[int] = []
            with _Camera(match, 210, seeds) as camera:
                for action in actions:
                    if camera.episode_return is None:
                        frames += [hash(frame.tobytes()) for frame in camera.step(action)]
                return frames, camera.episode_return

        expected = film()
        monkeypatch.setattr(video, "available", lambda: False)
        played_by_ale = functools.partial(AtariVectorEnv, emulator="ale")
        monkeypatch.setattr(video, "AtariVectorEnv", played_by_ale)
        assert film() == expected
        frames, points = expected
        assert points is not None
        assert frames[-1] != frames[-2]


@pytest.fixture(scope="module")
def script() -> Iterator[Callable[..., int]]:
    """The main function of the script, in this process."""
    previous = signal.getsignal(signal.SIGTERM)
    yield lambda *arguments: int(evaluate_atari.main([str(argument) for argument in arguments]))
    signal.signal(signal.SIGTERM, previous)


@pytest.mark.skipif(sys.platform != "linux", reason="names are texts there")
def test_a_folder_of_any_bytes_is_evaluated_and_named(saved: Path, tmp_path: Path) -> None:
    folder, record = tmp_path / os.fsdecode(b"pong-\xff-\xc3\xa9"), tmp_path / "record.json"
    shutil.copytree(saved, folder)
    command = [sys.executable, evaluate_atari.__file__, str(folder), "--json", str(record)]
    ended = subprocess.run(
        [*command, "--episodes", "1", "--num-envs", "1", "--policy", "deterministic"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
        text=True,
    )
    assert "pong-\\udcff-\\xe9: Breakout" in ended.stdout
    assert json.loads(record.read_text())["agent"] == str(folder)


GAMES_OF_TWO = {
    False: EvaluationResult(
        *("Breakout", "machado", False, 7, 2, ENV),
        *((1.0, 2.0, 1006.5), (10, 20, 30), (100, 2000, 3000)),
        truncated=2,
    ),
    True: EvaluationResult(
        *("Breakout", "machado", True, 7, 2, ENV), (4.0,), (40,), (1600,), truncated=0
    ),
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let no game be played; return what the script asks for, each with a name for it."""
    noted: list[dict[str, Any]] = []

    def load(path: Path, **options: Any) -> Agent:
        noted.append({"what": "load", "path": path, **options})
        return Agent.of(ARMS["PPO"]())

    def play(agent: Agent, *, on_episode: Callable[[Episode], None], **options: Any) -> Any:
        noted.append({"what": "play", **options})
        for number in range(options["episodes"]):
            on_episode(Episode(float(number), 5, 20, truncated=False))
        return GAMES_OF_TWO[options["deterministic"]]

    def film(agent: Agent, path: Path, *, on_frame: Callable[[int], None], **options: Any) -> Any:
        noted.append({"what": "film", "path": path, **options})
        on_frame(options["max_frames"])
        return Episode(12.5, 5, 20, truncated=False) if options["deterministic"] else None

    for name, stand_in in {"load_agent": load, "evaluate": play, "record_video": film}.items():
        monkeypatch.setattr(evaluate_atari, name, stand_in)
    return noted


class TestAsked:
    """What the script asks for, and how it tells what came of that."""

    def test_with_no_options_a_hundred_games_of_each_policy_are_played(
        self, script: Callable[..., int], asked: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        assert script("an agent", "--video", tmp_path / "film.gif") == 0
        loaded, filmed, *played = asked
        path = Path("an agent")
        assert loaded == {"what": "load", "path": path, "device": "auto", "trust_pickle": False}
        assert filmed["max_frames"] == 5 * 60 * 60
        games = {
            **{"what": "play", "game": None, "protocol": None, "episodes": 100, "seed": 0},
            **{"num_envs": 8, "num_threads": 0},
        }
        assert played == [{**games, "deterministic": chosen} for chosen in (False, True)]

    @pytest.mark.parametrize("policy", ["stochastic", "deterministic", "both"])
    def test_agent_games_and_film_are_those_of_the_command(
        self,
        policy: str,
        script: Callable[..., int],
        asked: list[dict[str, Any]],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(evaluate_atari, "Progress", functools.partial(Progress, interval=0))
        film = tmp_path / "film.gif"
        code = script(
            *("agent.zip", "--env", "Breakout", "--episodes", 3, "--policy", policy),
            *("--protocol", "machado", "--seed", 7, "--num-envs", 2, "--device", "cpu"),
            *("--video", film, "--video-seconds", 0.51, "--trust-pickle"),
        )

        assert code == 0
        is_chosen = policy == "deterministic"
        match = {"game": "Breakout", "protocol": "machado", "seed": 7}
        games = {"what": "play", **match, "episodes": 3, "num_envs": 2, "num_threads": 0}
        policies = [False, True] if policy == "both" else [is_chosen]
        assert asked == [
            {"what": "load", "path": Path("agent.zip"), "device": "cpu", "trust_pickle": True},
            {"what": "film", "path": film, **match, "deterministic": is_chosen, "max_frames": 31},
            *({**games, "deterministic": chosen} for chosen in policies),
        ]
        out, err = capsys.readouterr()
        told = "12.5 points" if is_chosen else "the beginning of a game"
        assert out.startswith(f"{film}: {told}\n")
        assert "31/31 frames at most" in err
        number = 3 * len(policies)
        assert f"{number}/{number} episodes" in err
        assert "last return 2" in err

    def test_the_table_has_a_column_for_each_policy(
        self,
        script: Callable[..., int],
        asked: list[dict[str, Any]],
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("COLUMNS", "100")
        assert script("an agent", "--episodes", 3) == 0

        title, *table = capsys.readouterr().out.splitlines()
        assert title.strip() == "an agent: Breakout, machado protocol, seed 7"
        low, high = GAMES_OF_TWO[False].interval or (0, 0)
        assert table[-1].startswith("└")  # no empty line follows
        rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table if "│" in line]
        assert [row for row in rows if row] == [
            ["mean", "336.50", "4.00"],
            ["95 % interval of the mean", f"{low:,.2f} .. {high:,.2f}", "-"],
            ["median", "2", "4"],
            ["lowest .. highest", "1 .. 1,006.5", "4 .. 4"],
            ["human-normalized mean", f"{(336.5 - 1.7) / (30.5 - 1.7):.2f}", "0.08"],
            ["episodes", "3", "1"],
            ["of these cut off at the limit", "2", "0"],
            ["mean length, frames", "1,700", "1,600"],
        ]
        assert [word for word in " ".join(table[:3]).split() if word[0].isalpha()] == [
            *("unclipped", "return", "stochastic", "deterministic")
        ]

    def test_a_game_that_no_human_has_played_has_no_human_score(
        self,
        script: Callable[..., int],
        asked: list[dict[str, Any]],
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        unknown = dataclasses.replace(GAMES_OF_TWO[False], game="Pacman")
        monkeypatch.setitem(GAMES_OF_TWO, False, unknown)
        assert unknown.human_normalized is None
        assert script("an agent", "--policy", "stochastic") == 0
        [row] = [line for line in capsys.readouterr().out.splitlines() if "human-normal" in line]
        assert [cell.strip() for cell in row.split("│")[1:-1]] == ["human-normalized mean", "-"]

    def test_sigterm_ends_it_as_ctrl_c_does(
        self,
        script: Callable[..., int],
        asked: list[dict[str, Any]],
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def terminated(*_: Any, **__: Any) -> EvaluationResult:
            signal.raise_signal(signal.SIGTERM)
            return GAMES_OF_TWO[True]

        monkeypatch.setattr(evaluate_atari, "evaluate", terminated)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert script("an agent") == 130
        assert capsys.readouterr().err.endswith("stopped before the end; nothing was reported\n")

    @pytest.mark.parametrize(
        "error",
        [MemoryError("std::bad_alloc"), RuntimeError("CUDA out of memory. Tried to\nallocate")],
        ids=["CPU", "GPU"],
    )
    @pytest.mark.parametrize("deed", ["load_agent", "evaluate"])
    def test_memory_that_is_not_there_is_named(
        self,
        deed: str,
        error: Exception,
        script: Callable[..., int],
        asked: list[dict[str, Any]],
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(*_: Any, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(evaluate_atari, deed, fail)
        assert script("an agent") == 2
        reason = str(error).partition("\n")[0]
        assert capsys.readouterr().err.endswith(
            f"evaluate_atari.py: there is not enough memory; lower --num-envs ({reason})\n"
        )

    def test_other_errors_of_torch_keep_their_traceback(
        self,
        script: Callable[..., int],
        asked: list[dict[str, Any]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        monkeypatch.setattr(evaluate_atari, "evaluate", fail)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            script("an agent")

    @pytest.mark.skipif(os.name != "posix", reason="pipes elsewhere are others")
    @pytest.mark.parametrize("leaves_at", ["record_video", "evaluate"])
    def test_who_reads_may_leave(
        self,
        leaves_at: str,
        script: Callable[..., int],
        asked: list[dict[str, Any]],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        reader, writer = os.pipe()
        deed = getattr(evaluate_atari, leaves_at)

        def leave(*arguments: Any, **options: Any) -> Any:
            os.close(reader)
            return deed(*arguments, **options)

        monkeypatch.setattr(evaluate_atari, leaves_at, leave)
        with os.fdopen(writer, "w") as stdout:
            monkeypatch.setattr(sys, "stdout", stdout)
            options = ("--policy", "stochastic", "--video", tmp_path / "film.gif")
            assert script("an agent", *options) == 0


class TestScript:
    def test_prints_a_table_and_writes_json(
        self,
        script: Callable[..., int],
        saved: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        code = script(saved, "--episodes", 2, "--num-envs", 2, "--json", tmp_path / "out.json")

        assert code == 0
        table = capsys.readouterr().out
        written = json.loads((tmp_path / "out.json").read_text())
        stochastic, deterministic = map(EvaluationResult.from_json, written["results"])
        assert (stochastic.deterministic, deterministic.deterministic) == (False, True)
        agent = load_agent(saved)
        assert stochastic == evaluate(agent, episodes=2, num_envs=2)
        for result in (stochastic, deterministic):
            assert f"{result.mean:,.2f}" in table
            assert result.interval is not None
            assert f"{result.interval.low:,.2f} .. {result.interval.high:,.2f}" in table

    def test_one_game_tells_no_interval(
        self, script: Callable[..., int], saved: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert script(saved, "--episodes", 1, "--policy", "deterministic") == 0
        table = capsys.readouterr().out.splitlines()
        row, *_ = (line for line in table if "95 % interval of the mean" in line)
        assert " - " in row
        assert ".." not in row

    def test_threads_are_those_of_network_and_games(
        self, script: Callable[..., int], saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        taken: list[Any] = []

        def make(*arguments: Any, num_threads: int) -> AtariVectorEnv:
            taken.append(num_threads)
            return AtariVectorEnv(*arguments, num_threads=num_threads)

        monkeypatch.setattr(torch, "set_num_threads", taken.append)
        monkeypatch.setattr(evaluation, "AtariVectorEnv", make)
        arguments = ("--episodes", 1, "--policy", "deterministic")
        assert script(saved, *arguments, "--threads", 2) == 0
        assert script(saved, *arguments) == 0
        assert taken == [2, 2, 0]

    def test_an_ending_is_of_any_case(self, agent: Agent, tmp_path: Path) -> None:
        record_video(agent, tmp_path / "game.GIF", max_frames=4)
        with Image.open(tmp_path / "game.GIF") as film:
            assert film.format == "GIF"

    def test_films(self, script: Callable[..., int], saved: Path, tmp_path: Path) -> None:
        film = tmp_path / "game.mp4"
        arguments = ("--episodes", 1, "--policy", "stochastic", "--video-seconds", 0.5)
        assert script(saved, *arguments, "--video", film) == 0
        assert imageio_ffmpeg.count_frames_and_secs(str(film))[0] == 32  # of whole agent steps

    def test_opens_a_zip_if_told_to(
        self, script: Callable[..., int], saved: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = (saved / "agent.zip", "--env", "Breakout", "--episodes", 1)

        assert script(*arguments) == 2
        assert "--trust-pickle" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nowhere"], "there is no agent at nowhere; give a saved agent's folder"),
            (["{saved}", "--env", "Pomg"], "no Atari game 'Pomg'; did you mean Pong"),
            (["{saved}", "--env", "Pong"], "the agent has 4 actions, and Pong has 6"),
            (["{saved}", "--episodes", "0"], "--episodes must be at least 1, got 0"),
            (
                ["{saved}", "--num-envs", "0", "--video", "{saved}/game.mp4"],
                "--num-envs must be at least 1, got 0",
            ),
            (["{saved}", "--json", "no/where.json"], "cannot write no/where.json: No such file"),
            (["{saved}", "--video", "/proc/film.mp4"], "cannot write /proc/film.mp4: "),
            (["{saved}", "--seed", "-1"], "--seed must be at least 0, got -1"),
            (["{saved}", "--json", "{saved}"], "it is a folder; name a file in it"),
            pytest.param(
                ["{saved}", "--device", "cuda"],
                "--device cuda, but torch finds no GPU; choose --device cpu",
                marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
            ),
            (["{saved}", "--threads", "0"], "--threads must be at least 1, got 0"),
            *(
                (["{saved}", "--video-seconds", number], f"be above 0 and finite, got {number}")
                for number in ("0", "inf", "nan")
            ),
            (["{saved}", "--video", "a.gif", "--json", "a.gif"], "would both be a.gif; name two"),
            (["{saved}", "--video", "game.avi"], "a film ends in .mp4 or .gif, got game.avi"),
            (
                ["{saved}", "--json", "{saved}/card.json", "--episodes", "1"],
                "card.json is part of the agent; name another file for --json",
            ),
            (
                ["{saved}", "--json", "{saved}/learning_curve.csv", "--episodes", "1"],
                "learning_curve.csv is part of the agent; name another file for --json",
            ),
            (
                ["{saved}", "--video", "{saved}/learning_curve.png", "--episodes", "1"],
                "learning_curve.png is part of the agent; name another file for --video",
            ),
            (
                ["{saved}/agent.zip", "--json", "{saved}/agent.zip", "--episodes", "1"],
                "agent.zip is part of the agent; name another file for --json",
            ),
        ],
    )
    def test_bad_input_is_one_sentence_and_exit_code_2(
        self,
        script: Callable[..., int],
        saved: Path,
        capsys: pytest.CaptureFixture[str],
        arguments: list[str],
        message: str,
    ) -> None:
        code = script(*(argument.format(saved=saved) for argument in arguments))

        error = capsys.readouterr().err.splitlines()[-1]
        assert code == 2
        assert error.startswith("evaluate_atari.py: ")
        assert message in error

    def test_a_part_of_the_agent_is_known_by_every_path_to_it(
        self,
        script: Callable[..., int],
        saved: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (tmp_path / "link").symlink_to(saved)
        monkeypatch.chdir(tmp_path)
        for agent, output in {"link": saved / "card.json", str(saved): "link/card.json"}.items():
            assert script(agent, "--json", output) == 2
            said = f"{output} is part of the agent; name another file for --json"
            assert said in capsys.readouterr().err

    def test_a_rom_of_ones_own_has_to_be_the_right_one(
        self,
        script: Callable[..., int],
        saved: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("ALE_ROMS_DIR", "")  # as it is afterwards
        (tmp_path / "breakout.bin").write_bytes(bytes(2048))
        assert script(saved, "--rom-path", tmp_path, "--episodes", 1) == 2
        assert "breakout.bin is not the ROM image of breakout" in capsys.readouterr().err

    def test_a_link_that_leads_in_a_circle_is_no_agent(
        self, script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        link = tmp_path / "agent"
        link.symlink_to(link.name)
        assert script(link, "--json", tmp_path / "results.json") == 2
        assert f"there is no agent at {link}" in capsys.readouterr().err

    def test_a_fault_of_the_program_keeps_its_traceback(
        self, script: Callable[..., int], saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any, **__: Any) -> Any:
            raise ValueError("operands could not be broadcast together")

        monkeypatch.setattr(sys.modules["evaluate_atari"], "evaluate", broken)
        with pytest.raises(ValueError, match="operands could not be broadcast"):
            script(saved, "--episodes", 1)

    def test_an_unknown_flag_is_exit_code_2(
        self, script: Callable[..., int], saved: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="2"):
            script(saved, "--episode", 3)
        assert "--episodes" in capsys.readouterr().err

    def test_ctrl_c_ends_it_without_traceback(
        self,
        script: Callable[..., int],
        saved: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def interrupted(*_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

        monkeypatch.setattr(sys.modules["evaluate_atari"], "evaluate", interrupted)
        assert script(saved) == 130
        assert "stopped before the end" in capsys.readouterr().err


def test_an_agent_comes_back_in_a_folder_of_any_name(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / ".pong [1].replaced-1-00")
    recover_agent(tmp_path / "pong [1]")
    assert load_agent(tmp_path / "pong [1]").algorithm == "PPO"


def test_the_newest_of_the_agents_that_were_being_replaced_comes_back(
    models: dict[str, BaseAlgorithm], saved: Path, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(saved, tmp_path / ".agent.replaced-1-00"))
    save_agent(models["A2C"], tmp_path / ".agent.replaced-0-00", SETTINGS)
    os.utime(old, (0, 0))
    recover_agent(tmp_path / "agent")
    assert load_agent(tmp_path / "agent").algorithm == "A2C"


def test_a_schedule_of_sb3_is_saved_as_it_is(tmp_path: Path) -> None:
    rate = LinearSchedule(0.1, 0.0, 1.0)
    model = PPO("CnnPolicy", breakout(), rate, n_steps=4, batch_size=4,
                policy_kwargs=policy_kwargs(**SMALL))  # fmt: skip
    save_agent(model, tmp_path / "agent", SETTINGS)
    loaded = PPO.load(tmp_path / "agent" / "agent.zip")
    assert [loaded.lr_schedule(left) for left in (1.0, 0.5)] == pytest.approx([0.1, 0.05])
