"""The network of an agent as plain data: enough to build it again, and nothing that runs."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.dqn.policies import DQNPolicy
from torch import Tensor, nn

from coordrl.backbone import Coords
from coordrl.config import accepted_keywords, parse_value
from coordrl.extractors import CoordConvExtractor

Kind = Literal["actor-critic", "q-network"]
Activation = Literal["Tanh", "ReLU"]

# The only classes that a card can name.
_EXTRACTORS: dict[str, type[BaseFeaturesExtractor]] = {
    cls.__name__: cls for cls in (CoordConvExtractor, NatureCNN, FlattenExtractor)
}

_MAX_OBSERVATION = 1 << 24


class TensorType(NamedTuple):
    """Shape and type, which must match for a tensor to take the values of another."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorType":
        """Return the type of a tensor, with or without values."""
        return cls(tuple(tensor.shape), tensor.dtype)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} of shape {self.shape}"


@dataclass(frozen=True)
class NetworkSpec:
    """An Atari policy of Stable-Baselines3, described by values of JSON.

    Observations are bytes from 0 to 255, actions are numbered from 0.
    """

    kind: Kind
    """Heads for action probabilities and value (A2C, PPO), or for action values (DQN)."""
    observation_shape: tuple[int, ...]
    """Shape of an observation, channels first."""
    num_actions: int
    """Number of actions, at least 1."""
    features_extractor: str
    """Class between observation and heads, one of three known classes."""
    features_extractor_kwargs: Any
    """Its keyword arguments, by name."""
    hidden: tuple[int, ...] = ()
    """Widths of the layers between features and action head."""
    hidden_critic: tuple[int, ...] = ()
    """Widths of the layers between features and value head; unused by a q-network."""
    activation: Activation = "Tanh"
    """Activation after each hidden layer."""
    share_features_extractor: bool = True
    """Whether actor and critic have one features extractor; unused by a q-network."""
    normalize_images: bool = True
    """Whether images are divided by 255."""

    def __post_init__(self) -> None:
        if self.features_extractor not in _EXTRACTORS:
            raise ValueError(
                f"features_extractor must be one of {', '.join(_EXTRACTORS)},"
                f" got {self.features_extractor!r}"
            )
        if not isinstance(self.features_extractor_kwargs, Mapping):
            raise ValueError(
                f"features_extractor_kwargs must be a table, got {self.features_extractor_kwargs!r}"
            )
        if not self.observation_shape or min(*self.observation_shape, self.num_actions) < 1:
            raise ValueError(
                "observation_shape and num_actions must be at least 1, got"
                f" {self.observation_shape} and {self.num_actions}"
            )

        if math.prod(self.observation_shape) > _MAX_OBSERVATION:
            raise ValueError(
                f"an observation has at most {_MAX_OBSERVATION:,} values,"
                f" got {self.observation_shape}"
            )

    @classmethod
    def of(cls, policy: BasePolicy) -> "NetworkSpec":
        """Describe a policy.

        Raises:
            ValueError: If it is not a policy of A2C, PPO or DQN with uint8 observations, discrete
                actions and a known features extractor.
        """
        observations, actions = policy.observation_space, policy.action_space
        if not isinstance(observations, spaces.Box) or observations.dtype != np.uint8:
            raise ValueError(f"a saved agent observes a Box of uint8, got {observations}")
        if not isinstance(actions, spaces.Discrete) or actions.start != 0:
            raise ValueError(f"a saved agent has discrete actions from 0, got {actions}")
        extractor = policy.features_extractor_class
        if _EXTRACTORS.get(extractor.__name__) is not extractor:
            raise ValueError(
                f"the features extractor of a saved agent is one of {', '.join(_EXTRACTORS)},"
                f" got {extractor.__module__}.{extractor.__qualname__}"
            )
        heads: dict[str, Any]
        if isinstance(policy, ActorCriticPolicy):
            arch = policy.net_arch
            widths = arch if isinstance(arch, dict) else {"pi": arch, "vf": arch}
            heads = {
                "kind": "actor-critic",
                "hidden": widths.get("pi", ()),
                "hidden_critic": widths.get("vf", ()),
                "share_features_extractor": policy.share_features_extractor,
            }
        elif isinstance(policy, DQNPolicy):
            heads = {"kind": "q-network", "hidden": policy.net_arch}
        else:
            raise ValueError(
                f"a saved agent has a policy of A2C, PPO or DQN, got {type(policy).__name__}"
            )
        table = {
            **heads,
            "observation_shape": observations.shape,
            "num_actions": int(actions.n),
            "features_extractor": extractor.__name__,
            "features_extractor_kwargs": plain_values(policy.features_extractor_kwargs),
            "activation": policy.activation_fn.__name__,
            "normalize_images": policy.normalize_images,
        }
        spec: NetworkSpec = parse_value(table, cls)
        return spec

    @property
    def coords(self) -> Coords:
        """Which convolutions see coordinates."""
        if _EXTRACTORS[self.features_extractor] is not CoordConvExtractor:
            return "none"
        coords: Coords = self._extractor_kwargs().get("coords", "all")
        return coords

    def build(self) -> BasePolicy:
        """Build the policy on the current default device, with untrained weights.

        Raises:
            ValueError: If the values do not fit each other.
        """
        return self._build(ActorCriticPolicy, DQNPolicy)

    def tensor_types(self) -> dict[str, TensorType]:
        """Return the types of the built policy's :func:`stored_state`, without building it.

        Raises:
            ValueError: If the values do not fit each other.
        """
        with torch.device("meta"):
            policy = self._build(_ActorCriticWithoutMemory, _QNetworkWithoutMemory)
        state, names = policy.state_dict(), state_names(policy)
        return {name: TensorType.of(state[key]) for key, name in names.items()}

    def _build(
        self, actor_critic: type[ActorCriticPolicy], q_network: type[DQNPolicy]
    ) -> BasePolicy:
        observations = spaces.Box(0, 255, self.observation_shape, np.uint8)
        actions = spaces.Discrete(self.num_actions)
        kwargs: dict[str, Any] = {
            "activation_fn": {"Tanh": nn.Tanh, "ReLU": nn.ReLU}[self.activation],
            "features_extractor_class": _EXTRACTORS[self.features_extractor],
            "features_extractor_kwargs": self._extractor_kwargs(),
            "normalize_images": self.normalize_images,
        }
        if self.kind == "q-network":
            return q_network(observations, actions, _no_learning, list(self.hidden), **kwargs)
        return actor_critic(
            observations,
            actions,
            _no_learning,
            {"pi": list(self.hidden), "vf": list(self.hidden_critic)},
            ortho_init=False,
            share_features_extractor=self.share_features_extractor,
            **kwargs,
        )

    def _extractor_kwargs(self) -> dict[str, Any]:
        extractor = _EXTRACTORS[self.features_extractor]
        known = accepted_keywords(extractor, without={"observation_space"})
        kwargs = {}
        for name, value in self.features_extractor_kwargs.items():
            if name not in known:
                raise ValueError(
                    f"{self.features_extractor} has no argument {name!r};"
                    f" it takes {', '.join(known)}"
                )
            try:
                kwargs[name] = parse_value(value, known[name])
            except ValueError as error:
                raise ValueError(f"{name} {error}") from error
        return kwargs


class _OnMeta:
    """Stays on the meta device: a policy with no layers yet reports the CPU, and moves there."""

    device = torch.device("meta")


class _ActorCriticWithoutMemory(_OnMeta, ActorCriticPolicy):
    pass


class _QNetworkWithoutMemory(_OnMeta, DQNPolicy):
    pass


def _no_learning(_: float) -> float:
    return 0.0


def plain_values(value: Any) -> Any:
    """Return a value with dataclasses, tuples and mappings as dictionaries and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain_values(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {key: plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    return value


def state_names(policy: BasePolicy) -> dict[str, str]:
    """Map each key of the state dict to the key under which its tensor is stored once.

    A shared extractor is in the state dict of an actor-critic policy three times, and DQN's target
    network, an older copy of the online network, is stored as that network. Prefixes that
    ``torch.compile`` adds are left out.

    Example:
        >>> spec = NetworkSpec("actor-critic", (4, 84, 84), 6, "NatureCNN", {})
        >>> state_names(spec.build())["vf_features_extractor.cnn.0.bias"]
        'features_extractor.cnn.0.bias'
    """
    first: dict[int, str] = {}
    owners = {
        name: first.setdefault(id(module), name)
        for name, module in policy.named_modules(remove_duplicate=False)
    }
    names = {}
    for key in policy.state_dict():
        module, _, leaf = key.rpartition(".")
        stored = f"{owners[module]}.{leaf}"
        if stored.startswith("q_net_target."):
            stored = "q_net." + stored.removeprefix("q_net_target.")
        names[key] = stored.replace("_orig_mod.", "")
    return names


def stored_state(policy: BasePolicy) -> dict[str, Tensor]:
    """Return each tensor of the policy once, contiguous on the CPU, by its stored name."""
    state = policy.state_dict()
    stored: dict[str, Tensor] = {}
    for key, name in state_names(policy).items():
        if name not in stored:
            stored[name] = state[key].detach().to("cpu", memory_format=torch.contiguous_format)
    return stored
