"""SB3's Atari policies as functions of tensors that never wait for the device.

SB3 builds a distribution in every call, which checks its arguments and so waits for the device.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor

from coordrl.config import AccelerationSettings

Result = TypeVar("Result")


class Estimates(NamedTuple):
    """Outputs of an actor and its critic for N observations."""

    log_probs: Tensor
    """Logarithm of each action's probability, ``(N, num_actions)``."""
    values: Tensor
    """Estimated returns, ``(N,)``."""


def estimate(policy: ActorCriticPolicy, obs: Tensor, bfloat16: bool = False) -> Estimates:
    """Return the outputs of an actor-critic policy of SB3 for observations.

    Args:
        policy: Policy for discrete actions, with or without a shared features extractor.
        obs: Images ``(N, C, H, W)`` of type uint8.
        bfloat16: Compute the features in bfloat16; the heads stay in float32.
    """
    if policy.share_features_extractor:
        features = actor = _features(policy.features_extractor, policy, obs, bfloat16)
    else:
        actor = _features(policy.pi_features_extractor, policy, obs, bfloat16)
        features = _features(policy.vf_features_extractor, policy, obs, bfloat16)
    logits = policy.action_net(policy.mlp_extractor.forward_actor(actor))
    values = policy.value_net(policy.mlp_extractor.forward_critic(features))
    return Estimates(logits - logits.logsumexp(dim=1, keepdim=True), values.squeeze(1))


def q_values(network: QNetwork, obs: Tensor, bfloat16: bool = False) -> Tensor:
    """Return the action values ``(N, num_actions)`` of images ``(N, C, H, W)`` of type uint8."""
    values: Tensor = network.q_net(_features(network.features_extractor, network, obs, bfloat16))
    return values


def _features(extractor: BaseFeaturesExtractor, model: Any, obs: Tensor, bfloat16: bool) -> Tensor:
    # Whole numbers to 255 are exact in bfloat16, so scaling there rounds as autocast would.
    images = obs.to(torch.bfloat16 if bfloat16 else torch.float32)
    if model.normalize_images:
        images = images / 255
    if not bfloat16:
        features: Tensor = extractor(images)
        return features
    with torch.autocast(obs.device.type, torch.bfloat16):
        features = extractor(images)
    return features.float()


def draw(log_probs: Tensor) -> Tensor:
    """Draw actions ``(N,)``, one from each distribution ``(N, num_actions)``.

    This is the race of exponential variables of ``torch.multinomial``, with the same numbers from
    torch's global generator, but without its check of the probabilities, which waits for the
    device.
    """
    probs = log_probs.softmax(dim=1)
    return (probs / torch.empty_like(probs).exponential_()).argmax(dim=1)


def entropy(log_probs: Tensor) -> Tensor:
    """Return the entropy ``(N,)`` of distributions, in nats.

    Example:
        >>> entropy(torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log())
        tensor([0.6931, 0.3251])
    """
    smallest = torch.finfo(log_probs.dtype).min
    return -(log_probs.clamp(min=smallest) * log_probs.softmax(dim=1)).sum(dim=1)


def accelerated(
    function: Callable[..., Result], settings: AccelerationSettings
) -> Callable[..., Result]:
    """Return a function of a network and images, compiled if the settings ask for it."""
    # One graph per batch size: rollouts have one, minibatches another.
    return torch.compile(function, dynamic=False) if settings.compile else function


class Recorded:
    """A function of tensors, recorded as a CUDA graph and launched without Python overhead.

    The first calls run unrecorded on a side stream, as warm-up for the recording. Calls with other
    shapes than the first are never recorded. The next call overwrites the returned tensors. See
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.

    Args:
        function: Takes and returns tensors on the GPU. Its side effects, such as an optimizer
            step, are recorded as well; it must not copy to the host.
    """

    _WARM_UP = 3

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._calls = 0
        self._shapes: list[torch.Size] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Sequence[Tensor] = ()
        self._outputs: Any = None

    def __call__(self, *tensors: Tensor) -> Any:
        """Return what the function returns for these tensors."""
        # Streams belong to the current GPU, which need not be that of the tensors.
        with torch.cuda.device_of(tensors[0]):  # type: ignore[no-untyped-call]
            return self._call(tensors)

    def _call(self, tensors: Sequence[Tensor]) -> Any:
        shapes = [tensor.shape for tensor in tensors]
        if self._calls == 0:
            self._shapes = shapes
        if shapes != self._shapes:
            return self._function(*tensors)
        if self._calls < self._WARM_UP:
            self._calls += 1
            return self._aside(tensors)
        if self._graph is None:
            self._inputs = [tensor.clone() for tensor in tensors]
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outputs = self._function(*self._inputs)
        for own, given in zip(self._inputs, tensors, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._outputs

    def _aside(self, tensors: Sequence[Tensor]) -> Any:
        main, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(main)
        with torch.cuda.stream(side):
            result = self._function(*tensors)
        main.wait_stream(side)
        return result
