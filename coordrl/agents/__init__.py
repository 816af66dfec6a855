"""Agents: describe, save, open, evaluate and film them.

card = save_agent(model, "agents/Pong-ppo-all-s0", settings)
agent = load_agent("agents/Pong-ppo-all-s0")
evaluate(agent, episodes=30).mean
"""

from coordrl.agents.agent import Agent
from coordrl.agents.card import AgentCard, AgentError
from coordrl.agents.evaluation import evaluate, evaluation_settings
from coordrl.agents.results import EvaluationResult, human_normalized_score
from coordrl.agents.saving import load_agent, save_agent
from coordrl.agents.summary import describe

__all__ = [
    "Agent",
    "AgentCard",
    "AgentError",
    "EvaluationResult",
    "describe",
    "evaluate",
    "evaluation_settings",
    "human_normalized_score",
    "load_agent",
    "save_agent",
]
