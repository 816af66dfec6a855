"""A policy that plays: a greedy or a sampled action for each observation of a batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.dqn.policies import DQNPolicy

from coordrl.agents.card import AgentCard, AgentError, Algorithm

STOCK_ALGORITHMS: Mapping[Algorithm, type[BaseAlgorithm]] = {"A2C": A2C, "PPO": PPO, "DQN": DQN}


@dataclass(frozen=True, eq=False)
class Agent:
    """A policy of Stable-Baselines3 and what is needed to play with it.

    Attributes:
        policy: The network.
        algorithm: Algorithm that trained it.
        exploration: Probability of a random action when a DQN agent does not play
            deterministically; other agents sample from their policy.
        card: The saved agent's card; None for a model that was not loaded from such a folder.
    """

    policy: BasePolicy
    algorithm: Algorithm
    exploration: float = 0.0
    card: AgentCard | None = None

    def __repr__(self) -> str:
        """Describe the agent in one line."""
        if self.card is None:
            return f"Agent({self.algorithm}, without a card)"
        card = self.card
        return (
            f"Agent({card.game}, {card.algorithm}, coords={card.coords!r}, seed={card.seed},"
            f" {card.agent_steps:,} agent steps)"
        )

    @classmethod
    def of(cls, model: BaseAlgorithm) -> "Agent":
        """Take the policy of a model of Stable-Baselines3 or of a subclass; it is not copied.

        Raises:
            AgentError: If the model is not of A2C, PPO or DQN.
        """
        for algorithm, stock in STOCK_ALGORITHMS.items():
            if isinstance(model, stock):
                policy = cast(BasePolicy, getattr(model.policy, "_orig_mod", model.policy))
                final = float(getattr(model, "exploration_final_eps", 0.0))
                return cls(policy, algorithm, final)
        raise AgentError(
            f"an agent is a model of {', '.join(STOCK_ALGORITHMS)}, got {type(model).__name__}"
        )

    def predict(
        self,
        observation: NDArray[np.uint8],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Choose actions by the policy's ``predict``, so that SB3 can evaluate an agent.

        A DQN agent never explores here.

        Example:
            >>> from stable_baselines3.common.evaluation import evaluate_policy
            >>> from coordrl.agents import load_agent
            >>> from coordrl.sb3_envs import make_sb3_env
            >>> agent = load_agent("agents/Breakout-ppo-all-s0")
            >>> mean, deviation = evaluate_policy(
            ...     agent, make_sb3_env("Breakout", num_envs=2, seed=0), n_eval_episodes=2)
            >>> bool(mean > 0)
            True
        """
        actions, state = self.policy.predict(observation, state, episode_start, deterministic)
        return actions, state

    @torch.no_grad()
    def act(
        self, obs: NDArray[np.uint8], *, deterministic: bool, random: torch.Generator
    ) -> NDArray[np.int64]:
        """Choose an action for each observation.

        Unlike ``predict``, this draws nothing from the global random stream, and a DQN agent
        decides for each observation, not for the whole batch, whether to explore.

        Args:
            obs: Batch of observations, of shape ``(N, *observation_shape)`` and type uint8.
            deterministic: Take the likeliest action (A2C, PPO) or the best one (DQN).
            random: Generator on the policy's device to draw actions with.

        Returns:
            Actions, of shape ``(N,)`` and type int64.
        """
        observations = torch.as_tensor(obs, device=self.policy.device)
        if isinstance(self.policy, ActorCriticPolicy):
            distribution = self.policy.get_distribution(observations).distribution
            scores = cast(torch.distributions.Categorical, distribution).logits
        else:
            scores = cast(DQNPolicy, self.policy).q_net(observations)
        actions = scores.argmax(dim=1)
        if not deterministic:
            actions = self._draw(scores, actions, random)
        chosen: NDArray[np.int64] = actions.cpu().numpy()
        return chosen

    def _draw(
        self, scores: torch.Tensor, greedy: torch.Tensor, random: torch.Generator
    ) -> torch.Tensor:
        if self.algorithm != "DQN":
            return torch.multinomial(scores.softmax(dim=1), 1, generator=random).squeeze(1)
        device = scores.device
        explores = torch.rand(len(scores), generator=random, device=device) < self.exploration
        anything = torch.randint(scores.shape[1], greedy.shape, generator=random, device=device)
        return torch.where(explores, anything, greedy)
