"""``card.json``: what a saved agent is, how it was trained and how well it plays."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from coordrl.agents.network import NetworkSpec
from coordrl.agents.results import EvaluationResult, dump_json
from coordrl.backbone import Coords
from coordrl.config import AtariSettings, Protocol, parse_value
from coordrl.errors import UserError

Algorithm = Literal["A2C", "PPO", "DQN"]

FORMAT_VERSION = 1


class AgentError(UserError, ValueError):
    """An agent cannot be saved, opened or evaluated; the message is one sentence that says why."""


@dataclass(frozen=True)
class AgentCard:
    """Everything about a saved agent but its weights.

    Reading a card runs no code: the network's classes are from a closed list, and the type of
    every value is checked.
    """

    game: str
    """Game as in ``ALE/<game>-v5``."""
    algorithm: Algorithm
    """Class of Stable-Baselines3 that opens ``agent.zip``."""
    coords: Coords
    """Which convolutions see coordinates."""
    seed: int
    """Seed of the training run."""
    protocol: Protocol
    """Rules of training."""
    agent_steps: int
    """Length of the training in agent steps, over all environments."""
    frames: int
    """Length of the training in frames of the emulator."""
    exploration: float
    """Probability of a random action when a DQN agent does not play deterministically."""
    env: AtariSettings
    """How the game was played and seen in training."""
    network: NetworkSpec
    """The policy network, observation and action space."""
    parameters: int
    """Numbers in ``weights.safetensors``."""
    weights_sha256: str
    """SHA-256 of ``weights.safetensors``, in hexadecimal."""
    settings: Any
    """All settings of the training run, by section, as :mod:`coordrl.config` names them."""
    versions: Any
    """Releases of the libraries that the agent was trained with."""
    evaluations: tuple[EvaluationResult, ...] = ()
    """Results of the agent's evaluations."""
    format_version: int = FORMAT_VERSION
    """Version of this layout."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_]{1,64}", self.game):
            raise ValueError(f"game must be a name of letters and digits, got {self.game!r}")
        for name in ("seed", "agent_steps", "frames", "parameters"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.exploration <= 1:
            raise ValueError(f"exploration must be in [0, 1], got {self.exploration}")
        for name in ("settings", "versions"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} must be a table, got {getattr(self, name)!r}")

    @property
    def name(self) -> str:
        """Name of the agent's folder: ``<game>-<algo>-<coords>-s<seed>``."""
        return f"{self.game}-{self.algorithm.lower()}-{self.coords}-s{self.seed}"

    def to_json(self) -> str:
        """Write the card as JSON text for people and programs."""
        fields = dataclasses.asdict(self)
        evaluations = [result.to_json() for result in self.evaluations]
        table = {
            "format_version": fields.pop("format_version"),
            **fields,
            "evaluations": evaluations,
        }
        return dump_json(table)

    @classmethod
    def from_json(cls, text: str) -> "AgentCard":
        """Read a card.

        Raises:
            ValueError: If it is not a card, or has a later format.
        """
        try:
            table = json.loads(text)
        except RecursionError:
            raise ValueError("is nested too deeply to be a card") from None
        if not isinstance(table, dict) or "format_version" not in table:
            raise ValueError("lacks 'format_version', so it is not the card of an agent")
        version = table["format_version"]
        if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
            raise ValueError(
                f"has format version {version!r}, and this coordrl reads up to {FORMAT_VERSION};"
                " upgrade coordrl"
            )
        evaluations = table.pop("evaluations", [])
        if not isinstance(evaluations, list):
            raise ValueError(f"evaluations must be a list, got {evaluations!r}")
        card: AgentCard = parse_value(table, cls)
        results = tuple(EvaluationResult.from_json(result) for result in evaluations)
        return dataclasses.replace(card, evaluations=results)
