"""Write a saved agent's network for other runtimes, after comparing it with the agent.

python scripts/export.py agents/Pong-ppo-all-s0 --onnx pong.onnx
python scripts/export.py agents/Pong-ppo-all-s0 --program pong.pt2 --dynamic none

The network takes observations as bytes, ``(N, C, H, W)``, and returns a number for each action: the
logit of its probability (A2C, PPO) or its value (DQN). The largest is the best action.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy
from torch import Tensor, nn

from coordrl.agents import Agent, AgentError, load_agent
from coordrl.export import ExportError, export_onnx, export_program
from coordrl.runs import RunError


@dataclass(frozen=True)
class Arguments:
    """Write an agent's network as ONNX, as a program of torch.export, or both."""

    agent: tyro.conf.Positional[Path]
    """Folder of a saved agent, or a zip of A2C, PPO or DQN of Stable-Baselines3."""
    onnx: Path | None = None
    """ONNX file to write; needs `pip install 'coordrl[export]'`."""
    program: Path | None = None
    """File of torch.export to write, usually named .pt2."""
    dynamic: Literal["none", "batch"] = "batch"
    """Whether the number of observations may differ from call to call."""
    trust_pickle: tyro.conf.FlagCreatePairsOff[bool] = False
    """Open a zip, which runs the code that is pickled in it."""


class ActionScores(nn.Module):
    """A policy without its memory of spaces and distributions: observations to action scores."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        policy = agent.policy
        self.scale = 255.0 if policy.normalize_images else 1.0
        if isinstance(policy, ActorCriticPolicy):
            self.features = policy.pi_features_extractor
            self.head = nn.Sequential(policy.mlp_extractor.policy_net, policy.action_net)
        else:
            assert isinstance(policy, DQNPolicy)  # an agent has no other
            self.features, self.head = policy.q_net.features_extractor, policy.q_net.q_net

    def forward(self, obs: Tensor) -> Tensor:
        """Return scores ``(N, actions)`` of observations ``(N, C, H, W)``."""
        scores: Tensor = self.head(self.features(obs.float() / self.scale))
        return scores


def main(argv: Sequence[str] | None = None) -> int:
    arguments = tyro.cli(Arguments, args=argv)
    targets = [(arguments.onnx, export_onnx), (arguments.program, export_program)]
    try:
        if not any(path for path, _ in targets):
            raise ExportError("nothing to write; give --onnx FILE or --program FILE")
        agent = load_agent(arguments.agent, trust_pickle=arguments.trust_pickle)
        shape = agent.policy.observation_space.shape
        assert shape is not None  # a box has one
        random = torch.Generator().manual_seed(0)
        example = torch.randint(256, (4, *shape), dtype=torch.uint8, generator=random)
        for path, export in targets:
            if path is not None:
                difference = export(ActionScores(agent), example, path, dynamic=arguments.dynamic)
                print(f"{path}: agrees with the agent to {difference:.1e} of its largest score")
    except (AgentError, ExportError, RunError) as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
