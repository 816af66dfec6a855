"""Agents: describe, save, open, evaluate and film them.

card = save_agent(model, "agents/Pong-ppo-all-s0", settings)
agent = load_agent("agents/Pong-ppo-all-s0")
evaluate(agent, episodes=30).mean
"""

from coordrl.agents.agent import Agent
from coordrl.agents.card import AgentCard, AgentError
from coordrl.agents.evaluation import Episode, evaluate, evaluation_settings
from coordrl.agents.results import EvaluationResult, dump_json, human_normalized_score
from coordrl.agents.saving import load_agent, save_agent
from coordrl.agents.scores import ActionScores, random_observations
from coordrl.agents.summary import describe
from coordrl.agents.video import record_video

__all__ = [
    "ActionScores",
    "Agent",
    "AgentCard",
    "AgentError",
    "Episode",
    "EvaluationResult",
    "describe",
    "dump_json",
    "evaluate",
    "evaluation_settings",
    "human_normalized_score",
    "load_agent",
    "random_observations",
    "record_video",
    "save_agent",
]
