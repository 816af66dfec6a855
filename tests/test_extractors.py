"""The Stable-Baselines3 extractor: NatureCNN without coordinates, and a good citizen with them."""

import io
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from stable_baselines3.common.utils import polyak_update
from torch import Tensor

from coordrl.backbone import ConvSpec, Coords
from coordrl.extractors import (
    CoordConvCombinedExtractor,
    CoordConvExtractor,
    policy_kwargs,
)
from coordrl.layers import CoordConv2d, CoordinateSystem

STACK = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
SMALL_SPECS = [[8, 4, 4], [8, 3, 2]]


class Picture(gym.Env[np.ndarray[Any, Any], np.int64]):
    """Noise of some size, a reward for the right action, an end after four steps."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        self.observation_space = gym.spaces.Box(0, 255, (height, width, channels), np.uint8)
        self.action_space = gym.spaces.Discrete(3)
        self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._noise(), {}

    def step(
        self, action: np.int64
    ) -> tuple[np.ndarray[Any, Any], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._noise(), float(action == 1), self.steps >= 4, False, {}

    def _noise(self) -> np.ndarray[Any, Any]:
        shape = self.observation_space.shape
        assert shape is not None
        return self.np_random.integers(0, 256, shape, dtype=np.uint8)


ALGORITHMS: dict[str, Callable[..., BaseAlgorithm]] = {
    "a2c": partial(A2C, n_steps=4),
    "ppo": partial(PPO, n_steps=8, batch_size=4, n_epochs=1),
    "dqn": partial(DQN, buffer_size=20, learning_starts=4),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("coords", ["none", "first", "all"])
def test_trains_saves_and_loads_in_plain_sb3(algorithm: str, coords: Coords) -> None:
    settings = policy_kwargs(coords, specs=SMALL_SPECS, features_dim=16)
    model = ALGORITHMS[algorithm](
        "CnnPolicy", Picture(40, 56, 3), policy_kwargs=settings, seed=0, device="cpu"
    )
    model.learn(16)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)

    loaded = type(model).load(file, device="cpu")

    obs = np.random.default_rng(0).integers(0, 256, (5, 3, 40, 56), dtype=np.uint8)
    ours, theirs = model.get_parameters()["policy"], loaded.get_parameters()["policy"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    actions = [m.predict(obs, deterministic=True)[0].tolist() for m in (model, loaded)]
    assert actions[0] == actions[1]


def test_wrong_coordinates_are_told_where_they_are_written() -> None:
    with pytest.raises(ValueError, match=r"coords must be one of .*, got 'some'"):
        policy_kwargs("some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'with_r=True needs coordinates: coords="first" or'):
        policy_kwargs("none", with_r=True)


@pytest.mark.parametrize("share", [True, False])
def test_policy_is_natures_with_and_without_sharing(share: bool) -> None:
    def policy(**kwargs: Any) -> ActorCriticCnnPolicy:
        torch.manual_seed(7)
        actions = gym.spaces.Discrete(6)
        return ActorCriticCnnPolicy(STACK, actions, lambda _: 1e-4, **kwargs)

    ours = policy(**policy_kwargs("none", share_features_extractor=share))
    natures = policy(share_features_extractor=share)

    assert ours.state_dict().keys() == natures.state_dict().keys()
    for name, value in natures.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    obs = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8)
    actions = torch.tensor([1, 5])
    expected, actual = natures.evaluate_actions(obs, actions), ours.evaluate_actions(obs, actions)
    for theirs, mine in zip(expected, actual, strict=True):
        assert theirs is not None
        assert mine is not None
        assert torch.equal(theirs, mine)


def test_extractor_without_coordinates_is_nature_cnn() -> None:
    torch.manual_seed(1)
    natures = NatureCNN(STACK, features_dim=256)
    torch.manual_seed(1)
    ours = CoordConvExtractor(STACK, features_dim=256, coords="none")
    x = torch.rand(3, 4, 84, 84)

    assert ours.state_dict().keys() == natures.state_dict().keys()
    assert torch.equal(ours(x), natures(x))


def test_orthogonal_initialization_reaches_the_wide_convolution() -> None:
    torch.manual_seed(0)
    policy = ActorCriticCnnPolicy(
        STACK, gym.spaces.Discrete(6), lambda _: 1e-4, **policy_kwargs("all")
    )
    extractor = policy.features_extractor
    assert isinstance(extractor, CoordConvExtractor)
    layer = extractor.cnn[0]

    assert isinstance(layer, CoordConv2d)
    rows = layer.weight.detach().flatten(1)
    assert rows.shape == (32, 6 * 8 * 8)
    torch.testing.assert_close(rows @ rows.T, 2 * torch.eye(32))
    assert layer.bias is not None
    assert torch.equal(layer.bias, torch.zeros(32))


def test_target_network_follows_although_sb3_edits_its_data() -> None:
    settings: dict[str, Any] = {"specs": SMALL_SPECS, "features_dim": 16}
    space = gym.spaces.Box(0, 255, (3, 40, 56), np.uint8)
    online, target = (CoordConvExtractor(space, **settings) for _ in range(2))
    x = torch.rand(5, 3, 40, 56)
    with torch.no_grad():
        assert not torch.equal(target(x), online(x))

        polyak_update(online.parameters(), target.parameters(), tau=1)  # edits through `.data`

        assert torch.equal(target(x), online(x))


def test_policy_kwargs_make_the_extractor_that_they_name() -> None:
    settings = policy_kwargs("first", with_r=True, features_dim=24, specs=[[8, 5, 3], [4, 3, 1]])

    extractor = CoordConvExtractor(STACK, **settings["features_extractor_kwargs"])

    assert extractor.features_dim == 24
    shapes = [tuple(p.shape) for p in extractor.cnn.parameters() if p.ndim == 4]
    assert shapes == [(8, 4 + 3, 5, 5), (4, 8, 3, 3)]


def test_policy_kwargs_are_plain_data_and_have_no_hidden_head() -> None:
    system = CoordinateSystem(origin=(-0.1, 0.0), extent=0.2)
    settings = policy_kwargs("first", system=system, specs=[ConvSpec(8, 3)], ortho_init=False)

    assert settings.pop("features_extractor_class") is CoordConvExtractor
    assert settings["net_arch"] == []
    assert settings["ortho_init"] is False
    plain = json.loads(json.dumps(settings))
    assert (
        policy_kwargs(**plain["features_extractor_kwargs"])["features_extractor_kwargs"]
        == (settings["features_extractor_kwargs"])
    )
    assert CoordConvExtractor(STACK, **plain["features_extractor_kwargs"]).cnn.system == system
    assert policy_kwargs(net_arch=[64])["net_arch"] == [64]
    assert "net_arch" not in policy_kwargs(combined=True)  # SB3's CombinedExtractor has heads, too


@pytest.mark.parametrize("shape", [(1, 36, 36), (7, 50, 121)])
def test_any_image_size_and_channel_count(shape: tuple[int, int, int]) -> None:
    extractor = CoordConvExtractor(gym.spaces.Box(0, 255, shape, np.uint8), 32, with_r=True)
    assert extractor(torch.rand(2, *shape)).shape == (2, 32)


def test_images_that_are_normalized_already_are_taken_as_they_are() -> None:
    space = gym.spaces.Box(-1, 1, (3, 40, 40), np.float32)
    assert CoordConvExtractor(space, 8)(torch.rand(2, 3, 40, 40)).shape == (2, 8)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (gym.spaces.Discrete(3), r"needs a Box of images \(C, H, W\), got Discrete\(3\)"),
        (gym.spaces.Box(0, 255, (84, 84), np.uint8), r"needs a Box of images \(C, H, W\), got Box"),
        (gym.spaces.Box(0, 9, (4, 84, 84), np.uint8), r"uint8 and range 0..255, or floating-point"),
        (gym.spaces.Box(0, 255, (84, 84, 4), np.uint8), "84x4 pixels is too small"),
    ],
)
def test_a_space_without_fitting_images_is_named(space: gym.Space[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoordConvExtractor(space)


# Observations of several kinds. -------------------------------------------------------------------

SEVERAL = gym.spaces.Dict(
    front=gym.spaces.Box(0, 255, (4, 84, 84), np.uint8),
    speed=gym.spaces.Box(-1, 1, (3,), np.float32),
    gear=gym.spaces.Discrete(5),
    back=gym.spaces.Box(0, 255, (1, 36, 40), np.uint8),
)


def several_obs() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "front": torch.rand(2, 4, 84, 84, generator=random),
        "speed": torch.rand(2, 3, generator=random),
        "gear": torch.eye(5)[[1, 4]],
        "back": torch.rand(2, 1, 36, 40, generator=random),
    }


def test_without_coordinates_it_is_sb3s_combined_extractor() -> None:
    torch.manual_seed(0)
    stock = CombinedExtractor(SEVERAL)
    torch.manual_seed(0)
    ours = CoordConvCombinedExtractor(SEVERAL, features_dim=256, coords="none")

    assert ours.features_dim == stock.features_dim == 256 + 5 + 3 + 256
    obs = several_obs()
    assert torch.equal(ours(obs), stock(obs))
    assert list(ours.state_dict()) == list(stock.state_dict())


def test_each_image_sees_the_coordinates_of_its_pixels() -> None:
    small = CoordinateSystem(origin=-0.1, extent=0.2)
    ours = CoordConvCombinedExtractor(SEVERAL, 8, SMALL_SPECS, "first", True, small)
    convolutions = [module for module in ours.modules() if isinstance(module, CoordConv2d)]
    assert [module.in_channels for module in convolutions] == [4, 1]
    assert [(module.with_r, module.system) for module in convolutions] == [(True, small)] * 2
    assert ours(several_obs()).shape == (2, 8 + 8 + 5 + 3)


def test_an_image_of_numbers_is_an_image() -> None:
    space = gym.spaces.Dict(depth=gym.spaces.Box(0, 10, (1, 36, 36), np.float32))
    assert CoordConvCombinedExtractor(space, 7, SMALL_SPECS).features_dim == 7


def test_what_is_no_dict_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a Dict of observations, got Box.*takes a Box of"):
        CoordConvCombinedExtractor(STACK)


class Several(gym.Env[dict[str, Any], np.int64]):
    """Noise of several kinds."""

    observation_space = SEVERAL
    action_space = gym.spaces.Discrete(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.int64) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        end = bool(self.np_random.random() < 0.3)
        return self.observation_space.sample(), float(action == 1), end, False, {}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_observations_of_several_kinds_train_save_and_load(algorithm: str) -> None:
    settings = policy_kwargs("first", features_dim=8, specs=SMALL_SPECS, combined=True)
    model = ALGORITHMS[algorithm]("MultiInputPolicy", Several(), policy_kwargs=settings, seed=0)
    model.learn(16)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = type(model).load(file)
    assert isinstance(loaded.policy.features_extractor_class, type)
    for name, weight in model.policy.state_dict().items():
        assert torch.equal(loaded.policy.state_dict()[name], weight), name


def test_an_image_that_does_not_fit_is_named() -> None:
    space = gym.spaces.Dict(front=STACK, grid=gym.spaces.Box(-1, 1, (2, 3, 4)))
    with pytest.raises(ValueError, match="grid: an input of 3x4 pixels is too small"):
        CoordConvCombinedExtractor(space)


def test_observations_are_found_by_their_names_in_any_order() -> None:
    space = spaces.Dict(here=spaces.Box(-1, 1, (2,)), there=spaces.Box(-1, 1, (3,)))
    extractor = CoordConvCombinedExtractor(space)
    observed = {"there": torch.ones(1, 3), "here": torch.zeros(1, 2)}
    assert extractor(observed).tolist() == [[0.0, 0.0, 1.0, 1.0, 1.0]]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_images_of_any_floating_point_type_are_taken(dtype: type) -> None:
    assert CoordConvExtractor(spaces.Box(0, 1, (1, 36, 40), dtype)).features_dim == 512
