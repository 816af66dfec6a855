"""Exported models compute what the model computes, from operations that every runtime has."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from torch import Tensor, nn
from torch.testing import assert_close

import export
from coordrl.agents import load_agent
from coordrl.config import AtariSettings
from coordrl.export import ExportError, export_onnx, export_program
from coordrl.extractors import policy_kwargs
from coordrl.files import RunError
from coordrl.layers import (
    CoordBias,
    CoordConv1d,
    CoordConv2d,
    CoordConv3d,
    CoordConvTranspose2d,
    CoordinateSystem,
)
from coordrl.sb3_envs import make_sb3_env

# Each export to ONNX takes seconds.
onnx = pytest.importorskip("onnx", reason="pip install 'coordrl[export]'")


def operations(path: Path) -> list[str]:
    return sorted(node.op_type for node in onnx.load(path).graph.node)


def picture_network() -> nn.Sequential:
    return nn.Sequential(
        CoordConv2d(3, 8, 3, stride=2, padding=1, with_r=True),
        nn.ReLU(),
        CoordConvTranspose2d(8, 4, 4, stride=2, padding=1),
    )


def test_onnx_of_a_picture_of_fixed_size_is_convolutions_and_additions(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"

    difference = export_onnx(picture_network(), torch.randn(2, 3, 10, 14), path)

    assert 0 <= difference < 1e-5
    assert operations(path) == ["Add", "Add", "Conv", "ConvTranspose", "Relu"]


@pytest.mark.slow
def test_onnx_of_any_size_has_no_linspace_and_no_meshgrid(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"

    export_onnx(picture_network(), torch.randn(1, 3, 10, 14), path, dynamic="all")

    network = {"Add", "Conv", "ConvTranspose", "Relu"}
    arithmetic = {"Cast", "Div", "Max", "Mul", "Pow", "Range", "ReduceSum", "Sqrt", "Sub"}
    shapes = {"Concat", "Expand", "Reshape", "Shape", "Squeeze", "Unsqueeze"}
    assert set(operations(path)) <= network | arithmetic | shapes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "shape"), [(CoordConv1d(2, 3, 3), (2, 2, 9)), (CoordConv3d(2, 3, 2), (2, 2, 4, 5, 6))]
)
def test_onnx_of_other_axes(layer: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    assert export_onnx(layer, torch.randn(shape), tmp_path / "model.onnx", dynamic="all") < 1e-5


def test_an_unknown_freedom_of_sizes_is_named(tmp_path: Path) -> None:
    wrong: Any = "width"
    with pytest.raises(ExportError, match=r"dynamic must be one of .*'none'.*, got 'width'"):
        export_program(picture_network(), torch.zeros(1, 3, 10, 14), tmp_path / "x", dynamic=wrong)


@pytest.mark.parametrize("dynamic", ["none", "batch", "all"])
def test_program_computes_what_the_model_does(dynamic: str, tmp_path: Path) -> None:
    model, x = picture_network().train(), torch.randn(1, 3, 10, 14)
    path = tmp_path / "model.pt2"

    assert export_program(model, x, path, dynamic=dynamic) < 1e-5  # type: ignore[arg-type]

    loaded = torch.export.load(path).module()
    batch, height, width = {"none": (1, 10, 14), "batch": (7, 10, 14)}.get(dynamic, (7, 8, 6))
    x = torch.randn(batch, 3, height, width)
    torch.testing.assert_close(loaded(x), model(x))
    assert model.training


class Crop(nn.Module):
    """Layers that see the coordinates of a part of a larger whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bias = CoordConv2d(3, 4, 3, with_r=True), CoordBias(4)
        self.up = CoordConvTranspose2d(4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bias(self.conv(x, origin=(-1.0, 0.0), extent=1.0), origin=0.5)
        up: Tensor = self.up(y, origin=x.mean(dim=(2, 3))[:, :2])
        return up


@pytest.mark.parametrize("dynamic", ["batch", "all"])
def test_program_of_a_crop_computes_what_the_model_does(dynamic: str, tmp_path: Path) -> None:
    model, path = Crop(), tmp_path / "model.pt2"

    assert export_program(model, torch.randn(5, 3, 9, 7), path, dynamic=dynamic) < 1e-5  # type: ignore[arg-type]

    x = torch.randn(3, 3, 9, 7)
    torch.testing.assert_close(torch.export.load(path).module()(x), model(x))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Counting(nn.Module):
    """Computes something else each time."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def test_a_model_that_cannot_be_exported_says_why(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with pytest.raises(ExportError, match=r"torch.export cannot export the model: \w+"):
        export_program(Branching(), torch.ones(2, 1, 3, 3), path)
    assert not path.exists()


class Enlarging(nn.Module):
    """Halves a picture and enlarges it again, as a U-Net does, which takes even sizes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.down = CoordConv2d(3, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        enlarged: Tensor = self.up(self.down(x))
        return x + enlarged


def test_a_model_of_even_sizes_is_compared_at_twice_the_size(tmp_path: Path) -> None:
    path = str(tmp_path / "model.pt2")
    model = Enlarging()

    assert export_program(model, torch.randn(2, 3, 8, 10), path, dynamic="all") < 1e-5

    x = torch.randn(3, 3, 12, 6)
    torch.testing.assert_close(torch.export.load(path).module()(x), model(x))


def test_a_size_that_the_model_itself_does_not_take_is_named(tmp_path: Path) -> None:
    model = nn.Sequential(CoordConv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 7 * 7, 2))
    with pytest.raises(ExportError, match=r"itself takes no input of \(4, 3, 18, 18\), .*'all'"):
        export_program(model, torch.randn(2, 3, 9, 9), tmp_path / "model.pt2", dynamic="all")


def test_a_reason_is_told_to_its_end(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"inferred ranges from model tracing: .*\w"):
        export_program(
            CoordConv2d(3, 4, 1), torch.randn(2, 3, 1, 9), tmp_path / "model.pt2", dynamic="all"
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_program_of_other_types_is_written(dtype: torch.dtype, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 10, 14, dtype=dtype)
    assert export_program(picture_network().to(dtype), x, tmp_path / "model.pt2") < 0.03


class Mask(nn.Module):
    """Which numbers are positive."""

    def forward(self, x: Tensor) -> Tensor:
        return x > 0


def test_a_mask_is_compared(tmp_path: Path) -> None:
    assert export_program(Mask(), torch.randn(2, 3), tmp_path / "mask.pt2") == 0
    assert export_onnx(Mask(), torch.randn(2, 3), tmp_path / "mask.onnx") == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_type_that_onnxruntime_cannot_compute_is_named(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    x = torch.randn(2, 3, 10, 14, dtype=dtype)
    with pytest.raises(ExportError, match=r"onnxruntime cannot run the model: \w+: "):
        export_onnx(picture_network().to(dtype), x, tmp_path / "model.onnx")


def test_a_program_that_computes_something_else_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with pytest.raises(ExportError, match=r"differs from the model by .*; nothing was written"):
        export_program(Counting(), torch.ones(2, 1, 3, 3), path)
    assert not path.exists()


class Deviating(nn.Module):
    """Computes a little more once it is exported."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.share) if torch.compiler.is_compiling() else x


@pytest.mark.parametrize(
    ("dtype", "rounding", "more"),
    [(torch.float32, 3e-5, 3e-4), (torch.float16, 2e-3, 1e-2), (torch.bfloat16, 2e-2, 6e-2)],
)
@pytest.mark.parametrize("size", [0.01, 1.0, 1000.0])
def test_what_rounding_explains_is_a_share_of_the_largest_output(
    dtype: torch.dtype, rounding: float, more: float, size: float, tmp_path: Path
) -> None:
    x = torch.full((2, 1, 3, 3), size, dtype=dtype)
    path = tmp_path / "model.pt2"
    with pytest.raises(ExportError, match=r"differs from the model by .* of its largest output"):
        export_program(Deviating(more), x, path)
    assert not path.exists()
    assert 0 < export_program(Deviating(rounding), x, path) < 2 * rounding
    assert path.exists()


class Shortening(nn.Module):
    """Returns less once it is exported."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] if torch.compiler.is_compiling() else x


def test_a_program_that_returns_another_shape_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with pytest.raises(
        ExportError, match=r"returns \(2, 1, 3\) for .* \(2, 4, 3\), the model \(2, 4,"
    ):
        export_program(Shortening(), torch.ones(2, 4, 3), path)
    assert not path.exists()


def test_a_model_in_training_is_exported_as_it_predicts_and_goes_on_training(
    tmp_path: Path,
) -> None:
    model = nn.Sequential(CoordConv2d(3, 4, 3), nn.Dropout(0.5), nn.BatchNorm2d(4).eval())
    x = torch.randn(2, 3, 9, 9)

    export_program(model, x, tmp_path / "model.pt2")

    assert [module.training for module in model.modules()] == [True, True, True, False]
    program = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(program(x), model.eval()(x))


class Breaking(nn.Module):
    """Computes NaN once it is exported, and only then."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.nan if torch.compiler.is_compiling() else x


def test_a_program_that_computes_nan_where_the_model_does_not_is_not_written(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.pt2"
    with pytest.raises(ExportError, match="differs from the model by nan"):
        export_program(Breaking(), torch.ones(2, 1, 3, 3), path)
    assert not path.exists()


def test_a_model_without_finite_outputs_cannot_be_compared(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with pytest.raises(ExportError, match="output for the example is not finite"):
        export_program(nn.ReLU(), torch.full((2, 1, 3, 3), torch.nan), path)
    assert not path.exists()


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write .*model\.pt2"):
        export_program(nn.ReLU(), torch.ones(2, 1, 3, 3), tmp_path / "missing" / "model.pt2")


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=f"needs the package {package}; pip install"):
        export_onnx(nn.ReLU(), torch.ones(2, 1, 3, 3), tmp_path / "model.onnx")


def saved(algorithm: str, path: Path) -> BaseAlgorithm:
    env = FakeImageEnv(screen_height=40, screen_width=48, n_channels=4, channel_first=True)
    settings = policy_kwargs("all", specs=[[8, 4, 4], [8, 3, 2]], features_dim=16)
    model: BaseAlgorithm
    if algorithm == "DQN":
        model = DQN("CnnPolicy", env, policy_kwargs=settings, buffer_size=1, device="cpu")
    else:
        model = PPO("CnnPolicy", env, policy_kwargs=settings, n_steps=2, batch_size=2, device="cpu")
    model.save(path)
    return model


@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
def test_an_exported_agent_chooses_the_actions_of_the_agent(
    algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(algorithm, tmp_path / "agent.zip")
    path = tmp_path / "agent.pt2"

    arguments = [str(tmp_path / "agent.zip"), "--program", str(path), "--trust-pickle"]
    assert export.main(arguments) == 0

    assert "agrees with the agent to" in capsys.readouterr().out
    agent = load_agent(tmp_path / "agent.zip", trust_pickle=True)
    obs = np.random.default_rng(0).integers(0, 256, (9, 4, 40, 48), dtype=np.uint8)
    scores = torch.export.load(path).module()(torch.from_numpy(obs))
    expected, _ = agent.policy.predict(obs, deterministic=True)
    assert scores.argmax(dim=1).tolist() == expected.tolist()


def test_an_exported_agent_of_ram_chooses_the_actions_of_the_agent(tmp_path: Path) -> None:
    env = make_sb3_env("Pong", 2, AtariSettings(observation="ram", stack_size=1))
    torch.manual_seed(0)
    PPO("MlpPolicy", env, n_steps=2, batch_size=2, device="cpu").save(tmp_path / "agent.zip")
    env.close()
    path = tmp_path / "agent.pt2"

    arguments = [str(tmp_path / "agent.zip"), "--program", str(path), "--trust-pickle"]
    assert export.main(arguments) == 0

    policy = load_agent(tmp_path / "agent.zip", trust_pickle=True).policy
    assert isinstance(policy, ActorCriticPolicy)
    obs = torch.randint(256, (9, *policy.observation_space.shape), dtype=torch.uint8)  # type: ignore[misc]
    scores = torch.export.load(path).module()(obs)
    with torch.no_grad():
        categorical: Any = policy.get_distribution(obs).distribution
    assert_close(scores.log_softmax(dim=1), categorical.logits)


class Doubling(ActorCriticCnnPolicy):
    """A policy whose choice is not the network's alone."""

    def get_distribution(self, obs: Any) -> Distribution:
        categorical: Any = super().get_distribution(obs).distribution
        logits = 2 * categorical.logits
        return CategoricalDistribution(logits.shape[1]).proba_distribution(logits)


@pytest.mark.parametrize(
    ("policy", "env", "message"),
    [
        (
            "MlpPolicy",
            "Pendulum-v1",
            "only agents that choose one of their actions by bytes have",
        ),
        (
            "MlpPolicy",
            "CartPole-v1",
            "only agents that choose one of their actions by bytes have",
        ),
        (Doubling, None, "a Doubling, computes something else than its network"),
    ],
)
def test_what_is_not_exported_is_named(
    policy: Any, env: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = FakeImageEnv(screen_height=40, screen_width=48, n_channels=4, channel_first=True)
    path = tmp_path / "agent.zip"
    PPO(policy, env or pictures, n_steps=2, batch_size=2, device="cpu").save(path)

    assert export.main([str(path), "--program", str(tmp_path / "x.pt2"), "--trust-pickle"]) == 2

    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.pt2").exists()


def test_the_script_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(tmp_path / "nobody")]) == 2
    assert "nothing to write; give --onnx FILE or --program FILE" in capsys.readouterr().err
    assert export.main([str(tmp_path / "nobody"), "--onnx", "x.onnx"]) == 2
    assert "there is no agent at" in capsys.readouterr().err
    (tmp_path / "circle").symlink_to("circle")
    assert export.main([str(tmp_path / "circle"), "--onnx", "x.onnx"]) == 2
    assert "there is no agent at" in capsys.readouterr().err


def test_angles_are_exported_at_odd_sizes(tmp_path: Path) -> None:
    layer = CoordConv2d(3, 4, 3, system=CoordinateSystem(with_angle=True))
    difference = export_onnx(layer, torch.randn(2, 3, 9, 9), tmp_path / "x.onnx", dynamic="all")
    assert difference < 1e-5


def test_one_file_does_not_replace_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved("PPO", tmp_path / "agent.zip")
    zipped, both = str(tmp_path / "agent.zip"), str(tmp_path / "both")
    assert export.main([zipped, "--onnx", both, "--program", both, "--trust-pickle"]) == 2
    assert "--onnx and --program would both be" in capsys.readouterr().err
    assert export.main([zipped, "--program", zipped, "--trust-pickle"]) == 2
    assert "agent.zip is part of the agent; name a file elsewhere" in capsys.readouterr().err


class Several(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


def test_a_model_that_returns_more_than_a_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="must return one tensor, got a tuple; wrap it"):
        export_program(Several(), torch.randn(2, 3), tmp_path / "x.pt2", dynamic="none")
