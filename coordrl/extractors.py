"""CoordConv for Stable-Baselines3: features extractors, and settings for a fair comparison.

    PPO("CnnPolicy", env, policy_kwargs=policy_kwargs(coords="all"))

Saved agents refer to this module by name, so its path and those of its classes never change.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from coordrl.backbone import (
    NATURE_DQN,
    ConvBackbone,
    ConvSpec,
    Coords,
    conv_specs,
    coordinate_system,
    require_coords,
)
from coordrl.layers.grid import PAPER_SYSTEM, CoordinateSystem


class CoordConvExtractor(BaseFeaturesExtractor):
    """Features of an image: a :class:`~coordrl.backbone.ConvBackbone` and a linear layer.

    With ``coords="none"`` and the default specs it is Stable-Baselines3's ``NatureCNN``: same
    names, parameters and outputs for the same seed. It is not a subclass of ``NatureCNN``, because
    Stable-Baselines3 treats that class and its subclasses as special cases.

    Stable-Baselines3 adds two hidden layers of 64 units after every extractor but its own, which
    spoils a comparison unless ``net_arch=[]`` is set; :func:`policy_kwargs` sets it.

    Args:
        observation_space: Images, channels first, ``(C, H, W)``: either uint8 of range 0..255,
            which Stable-Baselines3 divides by 255 beforehand, or floating-point, which it passes
            on unchanged.
        features_dim: Features for the heads.
        specs: Convolutions, in any form that :func:`~coordrl.backbone.conv_specs` takes.
        coords: Which of them see the coordinates of their pixels.
        with_r: Give those the distance from the center as well.
        system: The coordinate system, in any form that
            :func:`~coordrl.backbone.coordinate_system` takes.

    Raises:
        ValueError: If the space holds no such images, or they are too small for ``specs``.

    Example:
        >>> space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
        >>> extractor = CoordConvExtractor(space, coords="all")
        >>> extractor.features_dim, sum(p.numel() for p in extractor.parameters())
        (512, 1691424)
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        features_dim: int = 512,
        specs: Sequence[ConvSpec | Mapping[str, Any] | Sequence[Any]] = NATURE_DQN,
        coords: Coords = "all",
        with_r: bool = False,
        system: CoordinateSystem | Mapping[str, Any] = PAPER_SYSTEM,
    ) -> None:
        channels, height, width = _image_shape(observation_space)
        super().__init__(observation_space, features_dim)
        self.cnn = ConvBackbone(channels, specs, coords, with_r, system)
        out_height, out_width = self.cnn.out_size(height, width)
        self.flatten = nn.Flatten()
        self.linear = nn.Sequential(
            nn.Linear(self.cnn.out_channels * out_height * out_width, features_dim), nn.ReLU()
        )

    def forward(self, observations: Tensor) -> Tensor:
        """Return the features ``(N, features_dim)`` of images ``(N, C, H, W)``."""
        features: Tensor = self.linear(self.flatten(self.cnn(observations)))
        return features


class CoordConvCombinedExtractor(BaseFeaturesExtractor):
    """Features of a ``Dict`` of observations: each image by a :class:`CoordConvExtractor`.

    Everything else is flattened, and all features are concatenated in the order of the space, as
    in Stable-Baselines3's ``CombinedExtractor``. With ``coords="none"``, the default specs,
    ``features_dim=256`` and uint8 images it equals that extractor: same parameters and outputs for
    the same seed. Floating-point boxes ``(C, H, W)`` are images here, and flattened there.

    Args:
        observation_space: Images as :class:`CoordConvExtractor` takes them, and spaces of any
            other kind.
        features_dim: Features of each image.
        specs: Convolutions, in any form that :func:`~coordrl.backbone.conv_specs` takes.
        coords: Which of them see the coordinates of their pixels.
        with_r: Give those the distance from the center as well.
        system: The coordinate system, in any form that
            :func:`~coordrl.backbone.coordinate_system` takes.

    Raises:
        ValueError: If the space is not a ``Dict``, or an image is too small for ``specs``.

    Example:
        >>> image, speed = spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Box(-1, 1, (3,))
        >>> CoordConvCombinedExtractor(spaces.Dict(image=image, speed=speed)).features_dim
        515
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        features_dim: int = 512,
        specs: Sequence[ConvSpec | Mapping[str, Any] | Sequence[Any]] = NATURE_DQN,
        coords: Coords = "all",
        with_r: bool = False,
        system: CoordinateSystem | Mapping[str, Any] = PAPER_SYSTEM,
    ) -> None:
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f"CoordConvCombinedExtractor needs a Dict of observations, got {observation_space};"
                " CoordConvExtractor takes a Box of images"
            )
        super().__init__(observation_space, features_dim=1)  # placeholder until the parts exist
        extractors: dict[str, nn.Module] = {}
        self._features_dim = 0
        for key, space in observation_space.spaces.items():
            if _is_image(space):
                try:
                    image = CoordConvExtractor(space, features_dim, specs, coords, with_r, system)
                except ValueError as error:
                    raise ValueError(f"{key}: {error}") from error
                extractors[key] = image
                self._features_dim += features_dim
            else:
                extractors[key] = nn.Flatten()
                self._features_dim += int(get_flattened_obs_dim(space))
        self.extractors = nn.ModuleDict(extractors)

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Return the features ``(N, features_dim)`` of a mapping of observations."""
        features = [extract(observations[key]) for key, extract in self.extractors.items()]
        return torch.cat(features, dim=1)


def _is_image(space: spaces.Space[Any]) -> bool:
    """Tell whether a space has images (C, H, W): of bytes, or floating-point."""
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        return False
    return is_image_space(space) or bool(np.issubdtype(space.dtype, np.floating))


def _image_shape(space: spaces.Space[Any]) -> tuple[int, int, int]:
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        raise ValueError(
            f"CoordConvExtractor needs a Box of images (C, H, W), got {space}; colors and stacked"
            " frames go into one axis of channels; CoordConvCombinedExtractor takes a Dict"
        )
    if not _is_image(space):
        raise ValueError(
            "CoordConvExtractor needs images of type uint8 and range 0..255, or floating-point"
            f" images, got {space}"
        )
    channels, height, width = space.shape
    return channels, height, width


def policy_kwargs(
    coords: Coords = "all",
    *,
    with_r: bool = False,
    system: CoordinateSystem | Mapping[str, Any] = PAPER_SYSTEM,
    features_dim: int = 512,
    specs: Sequence[ConvSpec | Mapping[str, Any] | Sequence[Any]] = NATURE_DQN,
    combined: bool = False,
    **policy: Any,
) -> dict[str, Any]:
    """Return ``policy_kwargs`` for the policies of plain PPO, A2C and DQN.

    For ``"CnnPolicy"``, which then has linear heads, as after ``NatureCNN``, or, with ``combined``,
    for ``"MultiInputPolicy"``, which keeps Stable-Baselines3's heads. All values but the class are
    plain numbers, strings, lists and dictionaries, so they can be written as JSON and pickled.

    Args:
        coords: Which convolutions see the coordinates of their pixels.
        with_r: Give those the distance from the center as well.
        system: The coordinate system, in any form that
            :func:`~coordrl.backbone.coordinate_system` takes. With large kernels and a large
            learning rate, small coordinates may learn sooner: ``{"origin": -0.02, "extent":
            0.04}`` did in Breakout and Seaquest, not in Pong (benchmarks/README.md).
        features_dim: Features for the heads; with ``combined``, per image, where
            Stable-Baselines3's own default is 256.
        specs: Convolutions, in any form that :func:`~coordrl.backbone.conv_specs` takes.
        combined: Observations are a ``Dict``, see :class:`CoordConvCombinedExtractor`.
        **policy: Further arguments of the policy, such as ``share_features_extractor``; they win.

    Raises:
        ValueError: If ``coords``, ``specs`` or ``system`` are invalid, or ``with_r`` is set without
            coordinates.

    Example:
        >>> policy_kwargs(coords="first", share_features_extractor=False)["net_arch"]
        []
    """
    require_coords(coords, with_r=with_r)
    heads: dict[str, Any] = {} if combined else {"net_arch": []}
    return {
        "features_extractor_class": CoordConvCombinedExtractor if combined else CoordConvExtractor,
        "features_extractor_kwargs": {
            "features_dim": features_dim,
            "specs": [dataclasses.asdict(spec) for spec in conv_specs(specs)],
            "coords": coords,
            "with_r": with_r,
            "system": dataclasses.asdict(coordinate_system(system)),
        },
        **heads,
        **policy,
    }
