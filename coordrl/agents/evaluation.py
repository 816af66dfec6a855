"""Evaluation of whole games under one protocol, without bias and on random streams of its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm

from coordrl.agents.agent import Agent
from coordrl.agents.card import AgentError
from coordrl.agents.results import EvaluationResult
from coordrl.config import AtariSettings, Protocol, settings_for
from coordrl.emulator import GAMES, observation_shape
from coordrl.emulator.arguments import in_range
from coordrl.envs import AtariVectorEnv, canonical_game, gymnasium_name
from coordrl.errors import UserError
from coordrl.sb3_envs import atari_games_of


class Episode(NamedTuple):
    """One game from reset to its end."""

    episode_return: float
    agent_steps: int
    frames: int
    truncated: bool


def evaluate(
    agent: Agent | BaseAlgorithm,
    *,
    game: str | None = None,
    protocol: Protocol | None = None,
    settings: AtariSettings | None = None,
    episodes: int = 100,
    deterministic: bool = False,
    seed: int = 0,
    num_envs: int = 8,
    num_threads: int = 0,
    on_episode: Callable[[Episode], None] | None = None,
) -> EvaluationResult:
    """Play whole games and count the game's own points.

    Every environment plays a number of episodes that is fixed beforehand. Counting the first
    ``episodes`` to end instead would favor short episodes, which are often bad ones.

    The evaluation ends whatever the agent does, because an episode ends after at most
    ``max_frames_per_episode`` frames. It draws only from streams seeded with ``seed`` and leaves
    the global ones untouched, so that a training run is the same with and without it; the same
    arguments give the same result on the same device.

    Args:
        agent: A loaded agent, or a model of Stable-Baselines3, which may be in training.
        game: Name of the game; if None, the one named by the agent's card, or the one that the
            model learns from in an AtariVectorEnv.
        protocol: Rules to play by; those of the agent's training if None, ``"classic"`` if the
            agent has no card.
        settings: How the game was seen in training; if None, those of the agent's card, or of the
            model's AtariVectorEnv. Without both, size and number of stacked gray frames follow
            from the observation space. The protocol replaces five of them; see
            :func:`evaluation_settings`.
        episodes: Games to play, at least 1.
        deterministic: Take the likeliest action instead of sampling from the policy. Published
            Atari scores are of sampled actions, unless they say otherwise.
        seed: Seed of the evaluation, at least 0.
        num_envs: Games played at the same time, at least 1.
        num_threads: Threads that play them; 0 takes all cores.
        on_episode: Called after each episode that counts.

    Raises:
        AgentError: If no game is named, or the game's actions or observations differ from the
            agent's.
        ValueError: If there is no such game, or a number is out of range.
        TypeError: If a number is not whole.

    Example:
        >>> from coordrl.agents import load_agent
        >>> result = evaluate(load_agent("agents/Breakout-ppo-all-s0"), episodes=2)
        >>> result.episodes, result.settings.life_loss, result.human_normalized > 0
        (2, 'ignore', True)
    """
    episodes = in_range("episodes", episodes, 1, None)
    num_envs = in_range("num_envs", num_envs, 1, None)
    seed = in_range("seed", seed, 0, None)
    match = game_for(agent, game=game, protocol=protocol, settings=settings)
    num_envs = min(num_envs, episodes)
    with Play(
        agent, match, num_envs, deterministic=deterministic, seed=seed, num_threads=num_threads
    ) as play:
        played: list[Episode] = []
        remaining = np.array([(episodes + i) // num_envs for i in range(num_envs)])
        while remaining.any():
            for i, episode in play.step(play.choose()):
                if remaining[i]:
                    remaining[i] -= 1
                    played.append(episode)
                    if on_episode is not None:
                        on_episode(episode)
    return EvaluationResult(
        game=match.game,
        protocol=match.protocol,
        deterministic=deterministic,
        seed=seed,
        num_envs=num_envs,
        settings=match.settings,
        episode_returns=tuple(episode.episode_return for episode in played),
        episode_lengths=tuple(episode.agent_steps for episode in played),
        episode_frames=tuple(episode.frames for episode in played),
        truncated=sum(episode.truncated for episode in played),
    )


def evaluation_settings(protocol: Protocol, trained: AtariSettings) -> AtariSettings:
    """Return a protocol's evaluation settings for an agent trained with other settings.

    The protocol decides ``noop_max``, ``repeat_action_probability``, ``clip_reward``, ``life_loss``
    and ``max_frames_per_episode``. What the agent was trained with is kept: observation, frame
    skip, actions, FIRE, mode and difficulty.

    Example:
        >>> trained = AtariSettings(stack_size=2, screen_size=(42, 42))
        >>> settings = evaluation_settings("machado", trained)
        >>> settings.stack_size, settings.repeat_action_probability, settings.full_action_space
        (2, 0.25, False)
    """
    rules = settings_for(protocol, training=False)
    return replace(
        trained,
        noop_max=rules.noop_max,
        repeat_action_probability=rules.repeat_action_probability,
        clip_reward=rules.clip_reward,
        life_loss=rules.life_loss,
        max_frames_per_episode=rules.max_frames_per_episode,
    )


@dataclass(frozen=True)
class Match:
    """A game, with the settings that an agent plays it under.

    Attributes:
        game: Game as in ``ALE/<game>-v5``.
        protocol: Rules of the evaluation.
        settings: The rules, and what the agent sees.
    """

    game: str
    protocol: Protocol
    settings: AtariSettings


def game_for(
    agent: Agent | BaseAlgorithm,
    *,
    game: str | None = None,
    protocol: Protocol | None = None,
    settings: AtariSettings | None = None,
) -> Match:
    """Return the match for the arguments of :func:`evaluate`, the agent's card or its games.

    Raises:
        AgentError: If none of them names a game, or an agent without settings does not observe
            stacked gray frames.
        ValueError: If there is no such game.
    """
    if not isinstance(agent, Agent):
        games = atari_games_of(agent)
        if games is not None:
            game = game if game is not None or len(games.games) > 1 else games.game
            settings = settings or games.settings
        agent = Agent.of(agent)
    card = agent.card
    if game is None and card is None:
        raise AgentError("this agent has no card that names its game; name it by game=, or --env")
    name = gymnasium_name(canonical_game(game if game is not None else card.game))  # type: ignore[union-attr]
    if protocol is None:
        protocol = "classic" if card is None else card.protocol
    if settings is None:
        settings = _seen_by(agent) if card is None else card.env
    return Match(name, protocol, evaluation_settings(protocol, settings))


def _seen_by(agent: Agent) -> AtariSettings:
    shape = agent.policy.observation_space.shape
    if shape is None or len(shape) != 3:
        raise AgentError(
            "an agent without a card is evaluated on stacked gray frames (C, H, W),"
            f" and this one observes {agent.policy.observation_space}"
        )
    stack_size, height, width = shape
    if stack_size == 3 and (height, width) in _SCREENS:
        raise AgentError(
            f"this agent observes {shape}, as games in one colored picture are shown; evaluate it"
            " in Python, by settings=AtariSettings(...) as it was trained with"
        )
    return AtariSettings(
        stack_size=stack_size,
        screen_size=(height, width),
        full_action_space=_num_actions(agent.policy.action_space) == _NUM_LEGAL_ACTIONS,
    )


_NUM_LEGAL_ACTIONS = 18
_SCREENS = {(210, 160), (250, 160)}  # of NTSC and of PAL consoles


def _num_actions(space: spaces.Space[Any]) -> int | None:
    return int(space.n) if isinstance(space, spaces.Discrete) else None


class Play:
    """Context manager of an agent in its environments, on random streams of its own.

    Attributes:
        envs: The environments.
        env_seeds: The seed of each.
    """

    def __init__(
        self,
        agent: Agent | BaseAlgorithm,
        match: Match,
        num_envs: int,
        *,
        deterministic: bool,
        seed: int,
        num_threads: int = 0,
    ) -> None:
        agent = agent if isinstance(agent, Agent) else Agent.of(agent)
        self._agent = agent
        self._deterministic = deterministic
        self._was_training = agent.policy.training
        env_stream, policy_stream = np.random.SeedSequence(seed).spawn(2)
        self.env_seeds = env_stream.generate_state(num_envs)
        policy_seed = int(policy_stream.generate_state(1)[0])
        self._random = torch.Generator(agent.policy.device).manual_seed(policy_seed)
        self.envs = _games(agent, match, num_envs, num_threads)
        try:
            _require_actions(agent, self.envs)
            self._obs, _ = self.envs.reset(seed=self.env_seeds)
        except BaseException:
            self.envs.close()
            raise

    def __enter__(self) -> "Play":
        self._agent.policy.set_training_mode(False)
        return self

    def __exit__(self, *_: object) -> None:
        self._agent.policy.set_training_mode(self._was_training)
        self.envs.close()

    def choose(self) -> NDArray[np.int64]:
        """Return the agent's actions for the current observations."""
        return self._agent.act(self._obs, deterministic=self._deterministic, random=self._random)

    def step(self, actions: NDArray[np.int64]) -> list[tuple[int, Episode]]:
        """Play the actions; return the games that ended, each with its environment's index."""
        self._obs, _, _, truncated, info = self.envs.step(actions)
        if "game" not in info:
            return []
        games = info["game"]
        return [
            (
                int(i),
                Episode(
                    float(games["episode_return"][i]),
                    int(games["agent_steps"][i]),
                    int(games["frames"][i]),
                    bool(truncated[i]),
                ),
            )
            for i in np.flatnonzero(info["_game"])
        ]


def _games(agent: Agent, match: Match, num_envs: int, num_threads: int) -> AtariVectorEnv:
    try:
        _require_sight(agent, match)
        return AtariVectorEnv(match.game, num_envs, match.settings, num_threads=num_threads)
    except UserError:
        raise
    except ValueError as error:  # the game or the emulator lacks these settings
        raise AgentError(f"{match.game} cannot be played so: {error}") from error


def _require_sight(agent: Agent, match: Match) -> None:
    # Before games are made: an untrusted card may ask for more memory than there is.
    game = GAMES[canonical_game(match.game)]
    space = agent.policy.observation_space
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        raise AgentError(
            f"the agent observes {space}, and games are shown in bytes; what was normalized outside"
            " of its network (VecNormalize) is evaluated by Stable-Baselines3's evaluate_policy"
        )
    seen = space.shape
    shown = observation_shape(game, match.settings)
    if seen != shown:
        raise AgentError(
            f"the agent observes {seen}, and {gymnasium_name(game.name)} is shown as {shown}"
        )


def _require_actions(agent: Agent, envs: AtariVectorEnv) -> None:
    known, offered = _num_actions(agent.policy.action_space), _num_actions(envs.single_action_space)
    if known != offered:
        raise AgentError(
            f"the agent has {known} actions, and {gymnasium_name(envs.game)} has {offered};"
            " was it trained on another game?"
        )
