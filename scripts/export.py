"""Write a saved agent's network for other runtimes, after comparing it with the agent.

python scripts/export.py agents/Pong-ppo-all-s0 --onnx pong.onnx
python scripts/export.py agents/Pong-ppo-all-s0 --program pong.pt2 --dynamic none

The network takes observations as bytes, pictures ``(N, C, H, W)`` or RAM, and returns a number for
each action: the logit of its probability (A2C, PPO) or its value (DQN). The largest is the best
action.
"""

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.dqn.policies import DQNPolicy
from torch import Tensor, nn
from torch.nn import functional as F

from coordrl.agents import Agent, AgentError, load_agent
from coordrl.export import ExportError, export_onnx, export_program
from coordrl.runs import RunError, require_writable


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
    """A policy without its memory of spaces and distributions: observations to action scores.

    Raises:
        AgentError: If the agent does not choose one of its actions by bytes that it observes.
    """

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        policy = agent.policy
        seen, done = policy.observation_space, policy.action_space
        is_bytes = isinstance(seen, spaces.Box) and seen.dtype == np.uint8
        if not is_bytes or not isinstance(done, spaces.Discrete):
            raise AgentError(
                "only agents that choose one of their actions by bytes can be exported, this one"
                f" observes {seen} and acts in {done}"
            )
        # As in preprocess_obs of Stable-Baselines3: RAM is no picture.
        self.scale = 255.0 if policy.normalize_images and is_image_space(seen) else 1.0
        if isinstance(policy, ActorCriticPolicy):
            self.features = policy.pi_features_extractor
            self.head = nn.Sequential(policy.mlp_extractor.policy_net, policy.action_net)
        else:
            assert isinstance(policy, DQNPolicy)  # an agent has no other
            self.features, self.head = policy.q_net.features_extractor, policy.q_net.q_net

    def forward(self, obs: Tensor) -> Tensor:
        """Return scores ``(N, actions)`` of observations ``(N, *shape)``."""
        scores: Tensor = self.head(self.features(obs.float() / self.scale))
        return scores


def require_agreement(scores: ActionScores, agent: Agent, obs: Tensor) -> None:
    """Raise an AgentError unless the network scores observations as the whole policy does."""
    policy = agent.policy
    policy.set_training_mode(False)
    with torch.no_grad():
        if isinstance(policy, ActorCriticPolicy):
            categorical: Any = policy.get_distribution(obs).distribution
            ours, expected = F.log_softmax(scores(obs), dim=1), categorical.logits
        else:
            assert isinstance(policy, DQNPolicy)
            ours, expected = scores(obs), policy.q_net(obs)
    if not torch.allclose(ours, expected, rtol=1e-4, atol=1e-5):
        raise AgentError(
            f"the policy, a {type(policy).__name__}, computes something else than the network that"
            " would be exported; only policies of Stable-Baselines3 itself can be"
        )


def main(argv: Sequence[str] | None = None) -> int:
    arguments = tyro.cli(Arguments, args=argv)
    targets = [(arguments.onnx, export_onnx), (arguments.program, export_program)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if not any(path for path, _ in targets):
            raise ExportError("nothing to write; give --onnx FILE or --program FILE")
        for path, _ in targets:
            if path is not None:
                require_writable(path)
        agent = load_agent(arguments.agent, trust_pickle=arguments.trust_pickle)
        scores = ActionScores(agent)
        shape = agent.policy.observation_space.shape
        assert shape is not None  # a box has one
        random = torch.Generator().manual_seed(0)
        example = torch.randint(256, (4, *shape), dtype=torch.uint8, generator=random)
        require_agreement(scores, agent, example)
        for path, export in targets:
            if path is not None:
                difference = export(scores, example, path, dynamic=arguments.dynamic)
                print(f"{path}: agrees with the agent to {difference:.1e} of its largest score")
    except KeyboardInterrupt:
        print("stopped; no file was written in part", file=sys.stderr)
        return 130
    except (AgentError, ExportError, RunError) as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
