"""An agent's network without Stable-Baselines3: from observations to scores of actions."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.dqn.policies import DQNPolicy
from torch import Tensor, nn
from torch.nn import functional as F

from coordrl.agents.agent import Agent
from coordrl.agents.card import AgentError
from coordrl.modes import evaluating


class ActionScores(nn.Module):
    """A policy without spaces and distributions, to export or to embed.

    It shares the policy's weights. Observations are scaled as the policy scales them: pictures to
    [0, 1], RAM not at all.

    Args:
        agent: Agent with uint8 observations and discrete actions.

    Raises:
        AgentError: If the agent is of another kind, or its policy's outputs differ from this
            network's on random observations.

    Example:
        >>> from coordrl.agents import load_agent
        >>> agent = load_agent("agents/Pong-ppo-all-s0")
        >>> ActionScores(agent)(random_observations(agent, 2)).shape  # what export_onnx takes
        torch.Size([2, 6])
    """

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        _require_bytes(agent)
        policy = agent.policy
        obs_space = policy.observation_space
        # As in preprocess_obs of Stable-Baselines3: RAM is not an image.
        self.scale = 255.0 if policy.normalize_images and is_image_space(obs_space) else 1.0
        if isinstance(policy, ActorCriticPolicy):
            self.features = policy.pi_features_extractor
            self.head = nn.Sequential(policy.mlp_extractor.policy_net, policy.action_net)
        else:
            assert isinstance(policy, DQNPolicy)  # agents have no other kind
            self.features, self.head = policy.q_net.features_extractor, policy.q_net.q_net
        self._require_agreement(agent)

    def forward(self, obs: Tensor) -> Tensor:
        """Return scores ``(N, actions)`` of observations ``(N, *shape)``.

        A score is an action's logit (A2C, PPO) or value (DQN); the best action has the largest.
        """
        scores: Tensor = self.head(self.features(obs.float() / self.scale))
        return scores

    def _require_agreement(self, agent: Agent) -> None:
        policy, obs = agent.policy, random_observations(agent)
        with evaluating(policy), torch.no_grad():
            if isinstance(policy, ActorCriticPolicy):
                categorical: Any = policy.get_distribution(obs).distribution
                ours, expected = F.log_softmax(self(obs), dim=1), categorical.logits
            else:
                assert isinstance(policy, DQNPolicy)
                ours, expected = self(obs), policy.q_net(obs)
        if not torch.allclose(ours, expected, rtol=1e-4, atol=1e-5):
            raise AgentError(
                f"the policy, a {type(policy).__name__}, computes something else than its"
                " network; only policies of Stable-Baselines3 itself can be saved as agents, or"
                " exported"
            )


def _require_bytes(agent: Agent) -> None:
    obs_space, action_space = agent.policy.observation_space, agent.policy.action_space
    is_bytes = isinstance(obs_space, spaces.Box) and obs_space.dtype == np.uint8
    if not is_bytes or not isinstance(action_space, spaces.Discrete):
        raise AgentError(
            "only agents that choose one of their actions by bytes have such a network, this one"
            f" observes {obs_space} and acts in {action_space}"
        )


def random_observations(agent: Agent, count: int = 4) -> Tensor:
    """Return random uint8 observations for an agent, ``(count, *shape)``, the same every time.

    Raises:
        AgentError: As for :class:`ActionScores`.
        ValueError: If ``count`` is negative.
    """
    _require_bytes(agent)
    if count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    shape = agent.policy.observation_space.shape
    assert shape is not None  # it is a Box
    random = torch.Generator().manual_seed(0)
    obs = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=random)
    return obs.to(agent.policy.device)
