"""Results of evaluations: the returns of episodes and their statistics."""

import dataclasses
import functools
import importlib.resources
import json
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from coordrl.config import AtariSettings, Protocol, parse_value
from coordrl.envs import canonical_game

_BOOTSTRAP_SAMPLES = 10_000
_DRAWN_AT_A_TIME = 1 << 20  # values, which take 16 MB


class Interval(NamedTuple):
    """Confidence interval, ends included."""

    low: float
    high: float


class ReferenceScores(NamedTuple):
    """Mean episode returns that a human-normalized score is relative to."""

    random: float
    human: float


@dataclass(frozen=True)
class EvaluationResult:
    """Episode returns of one agent under one protocol.

    Returns are sums of the game's own points, never clipped. The entries of ``episode_returns``,
    ``episode_lengths`` and ``episode_frames`` belong together, in the order in which the episodes
    ended. Lengths are counted from the end of the reset.

    Example:
        >>> result = EvaluationResult(
        ...     game="Pong", protocol="classic", deterministic=False, seed=0, num_envs=2,
        ...     settings=AtariSettings(), episode_returns=(20.0, 21.0, 18.0),
        ...     episode_lengths=(1800, 1700, 1900), episode_frames=(7199, 6798, 7600), truncated=0)
        >>> round(result.mean, 2), result.median, result.mean_frames
        (19.67, 20.0, 7199.0)
    """

    game: str
    """Game as in ``ALE/<game>-v5``."""
    protocol: Protocol
    """Rules of the evaluation."""
    deterministic: bool
    """Whether the likeliest action was taken instead of one drawn from the policy."""
    seed: int
    """Seed of the evaluation's random streams."""
    num_envs: int
    """Games that were played at the same time; affects the random streams."""
    settings: AtariSettings
    """How the game was played and seen."""
    episode_returns: tuple[float, ...]
    """Sum of the game's points in each episode."""
    episode_lengths: tuple[int, ...]
    """Agent steps of each episode."""
    episode_frames: tuple[int, ...]
    """Frames of each episode, 60 per second."""
    truncated: int
    """Episodes that ended because they reached ``settings.max_frames_per_episode``."""

    def __post_init__(self) -> None:
        counts = [
            len(values)
            for values in (self.episode_returns, self.episode_lengths, self.episode_frames)
        ]
        if len(set(counts)) > 1 or 0 in counts:
            raise ValueError(
                "an evaluation has at least one return, and a length in agent steps and in frames"
                f" for each; got {counts[0]}, {counts[1]} and {counts[2]}"
            )

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.episode_returns)

    @property
    def mean(self) -> float:
        """Mean episode return."""
        return statistics.fmean(self.episode_returns)

    @property
    def median(self) -> float:
        """Median episode return."""
        return statistics.median(self.episode_returns)

    @property
    def mean_frames(self) -> float:
        """Mean length of an episode in frames."""
        return statistics.fmean(self.episode_frames)

    @functools.cached_property
    def interval(self) -> Interval | None:
        """95 % bootstrap interval of the mean; None for a single episode, which has no spread.

        See :func:`bootstrap_interval`.
        """
        if self.episodes == 1:
            return None
        return bootstrap_interval(self.episode_returns, seed=self.seed)

    @property
    def human_normalized(self) -> float | None:
        """Human-normalized mean; see :func:`human_normalized_score`."""
        return human_normalized_score(self.game, self.mean)

    def __str__(self) -> str:
        """Return the mean in one line, with its interval.

        Example:
            >>> print(EvaluationResult(
            ...     game="Pong", protocol="classic", deterministic=False, seed=0, num_envs=1,
            ...     settings=AtariSettings(), episode_returns=(20.0,), episode_lengths=(1800,),
            ...     episode_frames=(7199,), truncated=0))
            mean return 20.0 in 1 game
        """
        mean = f"mean return {self.mean:.1f} in {self.episodes} game{'s' * (self.episodes > 1)}"
        if self.interval is None:
            return mean
        low, high = self.interval
        return f"{mean} (95 % interval {low:.1f} to {high:.1f})"

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON types: the measurements, and the statistics of them."""
        measured = dataclasses.asdict(self)
        return {
            **{key: value for key, value in measured.items() if not key.startswith("episode_")},
            "episodes": self.episodes,
            "mean": self.mean,
            "interval_95": None if self.interval is None else list(self.interval),
            "median": self.median,
            "min": min(self.episode_returns),
            "max": max(self.episode_returns),
            "human_normalized": self.human_normalized,
            "mean_frames": self.mean_frames,
            "episode_returns": list(self.episode_returns),
            "episode_lengths": list(self.episode_lengths),
            "episode_frames": list(self.episode_frames),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "EvaluationResult":
        """Rebuild a result from :meth:`to_json`; the statistics are computed anew.

        Raises:
            ValueError: If a field is missing or of the wrong type.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"an evaluation must be a table, got {data!r}")
        fields = [field.name for field in dataclasses.fields(cls)]
        result: EvaluationResult = parse_value({k: data[k] for k in fields if k in data}, cls)
        return result


def bootstrap_interval(
    values: tuple[float, ...], *, seed: int, confidence: float = 0.95
) -> Interval:
    """Return the percentile-bootstrap interval of the mean (Efron, 1979).

    The values are resampled with replacement 10,000 times; the interval holds the middle
    ``confidence`` of the means. It covers the variation between episodes of one agent; variation
    between training runs needs several seeds. For few values it is too narrow: for 5 or 10 from a
    normal distribution it contains the mean in 80 to 93 % of cases, for one value never.

    Args:
        values: Independent samples, at least one.
        seed: Seed of the resampling.
        confidence: Share of the means inside, in (0, 1).

    Example:
        >>> bootstrap_interval((1.0, 1.0, 1.0), seed=0)
        Interval(low=1.0, high=1.0)
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, len(values)]))
    numbers, means = np.asarray(values), np.empty(_BOOTSTRAP_SAMPLES)
    at_a_time = max(1, _DRAWN_AT_A_TIME // len(values))
    for first in range(0, _BOOTSTRAP_SAMPLES, at_a_time):
        part = means[first : first + at_a_time]
        part[:] = numbers[rng.integers(len(values), size=(len(part), len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def human_normalized_score(game: str, episode_return: float) -> float | None:
    """Return ``(return - random) / (human - random)``, or None for the other 47 games.

    0 is a random player, 1 a professional tester. Both reference scores are for the no-op start
    protocol with a limit of 30 minutes, published with DQN Zoo (``atari_data.py``); scores under
    other rules are only roughly comparable.

    Args:
        game: Name of the game, in any spelling.
        episode_return: Unclipped return, usually a mean.

    Raises:
        ValueError: If there is no such game.

    Example:
        >>> human_normalized_score("Pong", 14.6), human_normalized_score("Pong", -20.7)
        (1.0, 0.0)
        >>> human_normalized_score("Adventure", 1.0) is None
        True
    """
    scores = _reference_scores().get(canonical_game(game))
    if scores is None:
        return None
    return (episode_return - scores.random) / (scores.human - scores.random)


def dump_json(table: Mapping[str, Any]) -> str:
    """Write JSON for people and programs: indented, with lists of numbers on one line.

    Raises:
        ValueError: If a number is not finite.

    Example:
        >>> print(dump_json({"returns": [20.0, 21.0]}), end="")
        {
          "returns": [20.0, 21.0]
        }
    """
    text = json.dumps(table, indent=2, ensure_ascii=False, allow_nan=False)
    # A list begins with a line break; within a string it would be escaped.
    numbers = re.compile(r"\[\n\s*([-\d][-+.,\s\de]*?)\s+\]")
    return numbers.sub(lambda match: f"[{' '.join(match[1].split())}]", text) + "\n"


@functools.cache
def _reference_scores() -> dict[str, ReferenceScores]:
    table = importlib.resources.files("coordrl").joinpath("human_normalized.json")
    games = json.loads(table.read_text(encoding="utf-8"))["games"]
    return {game["game"]: ReferenceScores(game["random"], game["human"]) for game in games}
