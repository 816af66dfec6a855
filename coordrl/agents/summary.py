"""A summary of a policy network that shows what a parameter count does not: what is shared."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.dqn.policies import DQNPolicy
from torch import Tensor, nn

from coordrl.agents.agent import Agent
from coordrl.agents.card import AgentError
from coordrl.layers import CoordConv2d
from coordrl.modes import evaluating

# Stable-Baselines3's default net_arch after any extractor but its own NatureCNN.
_UNASKED_HEAD = [64, 64]


@dataclass
class _Layer:
    """A layer with parameters: its users and its cost."""

    name: str
    module: nn.Module
    users: list[str] = field(default_factory=list)
    output: tuple[int, ...] = ()
    per_sample: int = 0
    per_batch: int = 0

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters(recurse=False))


def describe(model: BaseAlgorithm | BasePolicy | Agent) -> str:
    """Return a table of a policy's layers: their users, outputs, parameters and costs.

    Cost is in multiply-adds of one forward pass: per sample and, for the coordinates of a
    CoordConv layer, once per batch. Layers without parameters are left out. A warning follows the
    table if Stable-Baselines3 has added hidden layers, which it does after any extractor but
    ``NatureCNN`` unless ``net_arch`` is given: two arms of a comparison then differ in more than
    their extractors.

    Args:
        model: Model or policy of A2C, PPO or DQN, or an agent.

    Raises:
        AgentError: If the policy is of another algorithm, or observes something else than a Box.

    Example:
        >>> from coordrl.agents.network import NetworkSpec
        >>> spec = NetworkSpec("actor-critic", (4, 84, 84), 6, "NatureCNN", {"features_dim": 16})
        >>> print(describe(spec.build()))  # doctest: +NORMALIZE_WHITESPACE, +ELLIPSIS
        ActorCriticPolicy: observation (4, 84, 84), 6 actions
        <BLANKLINE>
        layer                        type    used by         output        parameters ...
        ...
        features_extractor.linear.0  Linear  actor + critic  16                50,192 ...
        action_net                   Linear  actor           6                    102 ...
        value_net                    Linear  critic          1                     17 ...
        ...
    """
    policy = _policy_of(model)
    layers = {
        id(module): _Layer(name, module)
        for name, module in policy.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    with evaluating(policy):  # or a batch norm would update its statistics
        for user, forward in _passes(policy):
            with _recording(layers, user):
                forward()
    used = [layer for layer in layers.values() if layer.users]
    shape = tuple(policy.observation_space.shape or ())
    actions = getattr(policy.action_space, "n", policy.action_space)
    lines = [f"{type(policy).__name__}: observation {shape}, {actions} actions", ""]
    lines += _table(used)
    if isinstance(policy, DQNPolicy):
        lines.append("A target network of the same size is used in training.")
    warning = _head_warning(policy)
    if warning:
        lines += ["", warning]
    return "\n".join(lines)


def _policy_of(model: BaseAlgorithm | BasePolicy | Agent) -> BasePolicy:
    if isinstance(model, BasePolicy):
        return model
    return (model if isinstance(model, Agent) else Agent.of(model)).policy


def _passes(policy: BasePolicy) -> list[tuple[str, Callable[[], Any]]]:
    """Return the forward passes of a policy with the names of their users."""
    if not isinstance(policy.observation_space, spaces.Box):
        raise AgentError(
            f"only policies that observe a Box can be described, got {policy.observation_space}"
        )
    obs = torch.zeros((1, *(policy.observation_space.shape or ())), dtype=torch.uint8)
    obs = obs.to(policy.device)
    if isinstance(policy, ActorCriticPolicy):
        return [
            ("actor", lambda: policy.get_distribution(obs)),
            ("critic", lambda: policy.predict_values(obs)),
        ]
    if not isinstance(policy, DQNPolicy):
        raise AgentError(
            "only policies of A2C, PPO and DQN can be described, got one of another algorithm, a"
            f" {type(policy).__name__}"
        )
    return [("action values", lambda: policy.q_net(obs))]


@contextlib.contextmanager
def _recording(layers: dict[int, _Layer], user: str) -> Iterator[None]:
    """Record, while the block runs, which layers run and the shapes of their outputs."""

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        layer = layers[id(module)]
        if user not in layer.users:
            layer.users.append(user)
        layer.output = tuple(output.shape[1:])
        layer.per_sample, layer.per_batch = _multiply_adds(module, output)

    hooks = [layer.module.register_forward_hook(note) for layer in layers.values()]
    try:
        with torch.no_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _multiply_adds(module: nn.Module, y: Tensor) -> tuple[int, int]:
    """Return the multiply-adds of a layer per sample and per batch."""
    if isinstance(module, nn.Linear):
        return module.in_features * module.out_features, 0
    if not isinstance(module, nn.Conv2d):
        return 0, 0
    per_input = y[0].numel() * math.prod(module.kernel_size)
    coords = module.num_coords if isinstance(module, CoordConv2d) else 0
    return per_input * module.in_channels // module.groups, per_input * coords


def _table(layers: list[_Layer]) -> list[str]:
    rows = [
        (
            layer.name,
            type(layer.module).__name__,
            " + ".join(layer.users),
            " x ".join(map(str, layer.output)),
            f"{layer.parameters:,}",
            f"{layer.per_sample:,}",
            f"{layer.per_batch:,}",
        )
        for layer in layers
    ]
    head = ("layer", "type", "used by", "output", "parameters", "per sample", "per batch")
    totals = [
        sum(values)
        for values in zip(*((x.parameters, x.per_sample, x.per_batch) for x in layers), strict=True)
    ]
    foot = ("total", "", "", "", *(f"{total:,}" for total in totals))
    widths = [max(map(len, column)) for column in zip(head, *rows, foot, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [
        "  ".join(
            cell.ljust(width) if index < 4 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows, foot)
    ]
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def _head_warning(policy: BasePolicy) -> str:
    arch = getattr(policy, "net_arch", None)
    widths = list(arch.values()) if isinstance(arch, dict) else [arch]
    if policy.features_extractor_class is NatureCNN or _UNASKED_HEAD not in widths:
        return ""
    return (
        "Warning: hidden layers of 64 and 64 units stand between the features and the heads."
        " Stable-Baselines3 adds them behind any extractor but NatureCNN; without them:"
        " policy_kwargs=dict(..., net_arch=[])."
    )
