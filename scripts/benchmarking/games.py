"""Atari on the CPU: our environments compared with ale-py's, SB3's wrappers and EnvPool."""

import importlib.util
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any, ClassVar, Literal

import ale_py
import gymnasium
import numpy as np
from ale_py.vector_env import AtariVectorEnv as AleVectorEnv
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack, VecTransposeImage

from benchmarking.base import Benchmark
from benchmarking.ratios import Ratio, Row, take_turns, timed, times_as_fast
from coordrl.config import AtariSettings
from coordrl.envs import AtariVectorEnv, canonical_game, games, gymnasium_name
from coordrl.sb3_envs import make_sb3_env


@dataclass(frozen=True)
class Envs(Benchmark):
    """How many times as fast as its peers our environment plays Atari for Stable-Baselines3.

    Ratios are of all calls together, since random games, and resets, differ from call to call.

    All play random actions in the classic protocol, through SB3's VecEnv: ours; ale-py's vector
    environment in the same adapter; the wrappers of SB3's make_atari_env; and EnvPool, if it is
    installed, without an adapter.
    """

    least: ClassVar[Mapping[str, float]] = {"seconds": 0, "num_envs": 1, "steps": 1}

    seconds: float = 10.0
    """Least seconds to spend on each row."""
    games: tuple[str, ...] = ("Pong", "Breakout", "SpaceInvaders", "MsPacman", "BeamRider")
    """Games to play, as Gymnasium spells them."""
    num_envs: tuple[int, ...] = (8, 64)
    """Games that are played at the same time."""
    steps: int = 16
    """Steps of a call."""

    def rows(self) -> Iterator[Row]:
        """Yield a row for each game and number of environments."""
        makers = {"ours": ours, "ale-py": ale_py_adapted, "SB3": sb3_wrapped}
        if has_envpool():
            makers["EnvPool"] = envpool
        names = [gymnasium_name(canonical_game(game)) for game in self.games]
        for num_envs, game in itertools.product(self.num_envs, names):
            costs = take_turns(
                {
                    name: timed(play, *make(game, num_envs), self.steps)
                    for name, make in makers.items()
                },
                self.seconds,
            )
            steps = self.steps * num_envs * len(costs["ours"])
            yield {
                "game": game,
                "num_envs": num_envs,
                "agent steps per CPU second": round(steps / sum(costs["ours"])),
                **times_as_fast(costs),
            }

    def summary(self, rows: list[Row]) -> Row:
        """Return geometric means over the rows."""
        return {
            column: round(geometric_mean([row[column].value for row in rows]), 2)  # type: ignore[union-attr]
            for column, value in rows[0].items()
            if isinstance(value, Ratio)
        }


Player = tuple[Callable[[Any], object], Iterator[Any]]
"""A function that plays one action in each environment, and the actions to play."""


def has_envpool() -> bool:
    return importlib.util.find_spec("envpool") is not None


def play(step: Callable[[Any], object], actions: Iterator[Any], steps: int) -> None:
    for _ in range(steps):
        step(next(actions))


def at_random(num_envs: int, action_space: Any) -> Iterator[Any]:
    generator = np.random.default_rng(0)
    while True:
        yield generator.integers(action_space.n, size=num_envs, dtype=np.int32)


def ours(game: str, num_envs: int, emulator: Literal["coordrl", "ale"] = "coordrl") -> Player:
    envs = make_sb3_env(game, num_envs, seed=0, emulator=emulator)
    envs.reset()
    return envs.step, at_random(num_envs, envs.action_space)


def ale_py_adapted(game: str, num_envs: int) -> Player:
    return ours(game, num_envs, "ale")


def sb3_wrapped(game: str, num_envs: int) -> Player:
    gymnasium.register_envs(ale_py)
    stacked = VecFrameStack(make_atari_env(f"{game}NoFrameskip-v4", num_envs, seed=0), 4)
    envs = VecTransposeImage(stacked)
    envs.reset()
    return envs.step, at_random(num_envs, envs.action_space)


def envpool(game: str, num_envs: int) -> Player:
    envs = importlib.import_module("envpool").make_gymnasium(
        f"{game}-v5", num_envs=num_envs, seed=0, episodic_life=True, reward_clip=True
    )
    envs.reset()
    return envs.step, at_random(num_envs, envs.action_space)


@dataclass(frozen=True)
class Emulators(Benchmark):
    """How many times as fast as ale-py's our vector environment is, alone, on one thread.

    Both have ale-py's default settings (84x84 gray, stack 4, four frames per step, the last two of
    which are pooled) and the same seeds and actions, so they play the same games to the last byte.
    EnvPool, if it is installed, has the same settings, but plays games of its own.
    """

    least: ClassVar[Mapping[str, float]] = {"seconds": 0, "num_envs": 1, "steps": 1}

    seconds: float = 5.0
    """Least seconds to spend on each game."""
    games: tuple[str, ...] = ()
    """Games to play; if empty, the 57 that agents are usually compared on."""
    num_envs: int = 8
    """Games that are played at the same time."""
    steps: int = 16
    """Steps of a call."""

    def rows(self) -> Iterator[Row]:
        """Yield a row for each game."""
        makers = {"ours": our_vector_env, "ale-py": ale_vector_env}
        if has_envpool():
            makers["EnvPool"] = envpool_vector_env
        for game in [canonical_game(name) for name in self.games] or games(atari57=True):
            costs = take_turns(
                {
                    name: timed(play, *make(game, self.num_envs), self.steps)
                    for name, make in makers.items()
                },
                self.seconds,
            )
            frames = 4 * self.steps * self.num_envs * len(costs["ours"])
            yield {
                "game": gymnasium_name(game),
                "frames per CPU second": round(frames / sum(costs["ours"])),
                **times_as_fast(costs),
            }

    def summary(self, rows: list[Row]) -> Row:
        """Return geometric means over the games, and the least ratios with their games."""
        result: Row = {"games": len(rows)}
        for column, value in rows[0].items():
            if isinstance(value, Ratio):
                ratios = {str(row["game"]): row[column].value for row in rows}  # type: ignore[union-attr]
                least = min(ratios, key=ratios.__getitem__)
                result[f"{column}, geometric mean"] = round(geometric_mean([*ratios.values()]), 2)
                result[f"{column}, least"] = f"{ratios[least]:.2f} ({least})"
        return result


def our_vector_env(game: str, num_envs: int) -> Player:
    settings = AtariSettings(life_loss="ignore", fire_after_life_loss=False)
    envs = AtariVectorEnv(
        game,
        num_envs,
        settings,
        num_threads=1,
        autoreset_mode=AutoresetMode.NEXT_STEP,
    )
    envs.reset(seed=0)
    return envs.step, at_random(num_envs, envs.single_action_space)


def ale_vector_env(game: str, num_envs: int) -> Player:
    envs = AleVectorEnv(game, num_envs, num_threads=1, autoreset_mode=AutoresetMode.NEXT_STEP)
    envs.reset(seed=0)
    return envs.step, at_random(num_envs, envs.single_action_space)


def envpool_vector_env(game: str, num_envs: int) -> Player:
    envs = importlib.import_module("envpool").make_gymnasium(
        f"{gymnasium_name(game)}-v5", num_envs=num_envs, num_threads=1, seed=0, reward_clip=True
    )
    envs.reset()
    return envs.step, at_random(num_envs, envs.action_space)
