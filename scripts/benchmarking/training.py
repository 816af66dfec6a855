"""Training through host arrays: stock SB3 with its wrappers, and ours."""

import functools
import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import stable_baselines3
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

from benchmarking.base import CONFIGS, Benchmark
from benchmarking.processes import Learner, train_in_turn
from benchmarking.ratios import Ratio, Row, ratios_of
from coordrl.algorithms import make_model
from coordrl.backbone import Coords
from coordrl.config import Schedule, TrainingSettings, parse_overrides
from coordrl.envs import canonical_game, gymnasium_name
from coordrl.memory import keep_freed_memory
from coordrl.sb3_envs import make_sb3_env
from coordrl.training import load_training_settings


@dataclass(frozen=True)
class Training(Benchmark):
    """Training with the zoo's settings: stock SB3 and ours, each in a process of its own.

    Stock is make_atari_env, VecFrameStack and NatureCNN, for DQN with the zoo's single
    environment. Ours is the training of scripts/train_atari.py with configs/<algorithm>.toml. DQN
    is measured as in the last nine tenths of a run, after its exploration. Ours keeps the memory
    that tensors free, so stock SB3 is also measured with that.
    """

    seconds: float = 60.0
    """Least seconds to spend on each algorithm."""
    algos: tuple[Literal["ppo", "a2c", "dqn"], ...] = ("ppo", "a2c", "dqn")
    """Algorithms to train."""
    game: str = "Pong"
    """Game to train on."""

    def rows(self) -> Iterator[Row]:
        """Yield a row for each algorithm."""
        game = gymnasium_name(canonical_game(self.game))
        for algo in self.algos:
            learners = {
                name: functools.partial(sb3_learner, algo, game, coords, keeps_memory)
                for name, coords, keeps_memory in CONTESTANTS
            }
            costs = train_in_turn(learners, self.seconds)
            row: Row = {"algorithm": algo}
            for name, values in costs.items():
                row[f"{name}: microseconds a step"] = round(statistics.median(values) * 1e6)
            for peer, name in itertools.product(costs, costs):
                if peer.startswith("stock") and name.startswith("ours"):
                    row[f"{peer} / {name}"] = Ratio.of(costs[peer], costs[name])
            yield row

    def summary(self, rows: list[Row]) -> Row:
        """Return how many times as many steps are trained in a CPU second."""
        return ratios_of("algorithm", rows)


CONTESTANTS: tuple[tuple[str, Coords | None, bool], ...] = (
    ("stock", None, False),
    ("stock, memory kept", None, True),
    ("ours, coords none", "none", True),
    ("ours, coords all", "all", True),
)
"""Names, ``coords`` of the network (None: stock SB3's), and whether freed memory is kept."""


def sb3_learner(algo: str, game: str, coords: Coords | None, keeps_memory: bool) -> Learner:
    if keeps_memory:
        keep_freed_memory()
    model = stock_model(algo, game) if coords is None else our_model(algo, game, coords)
    model.set_logger(Logger(None, []))
    steps = {"ppo": 1024, "a2c": 960, "dqn": 320}[algo]

    def learn() -> int:
        model.learn(steps, reset_num_timesteps=False, log_interval=None)
        return steps

    return learn


def as_in_a_long_run(algo: str) -> tuple[str, ...]:
    """Return overrides that give as many updates and as few random actions as later in a run."""
    if algo != "dqn":
        return ()
    return ("algorithm.learning_starts=100", "algorithm.exploration_initial_eps=0.01")


def zoo_settings(algo: str, *overrides: str) -> TrainingSettings:
    texts = (*overrides, *as_in_a_long_run(algo))
    return load_training_settings(CONFIGS / f"{algo}.toml", parse_overrides([texts]))


def our_model(algo: str, game: str, coords: Coords) -> Any:
    settings = zoo_settings(algo, f"run.game={game}", f"extractor.coords={coords}")
    env = make_sb3_env(game, settings.run.num_envs, settings.env, num_threads=1)
    return make_model(settings, env, seed=0)


def stock_model(
    algo: str,
    game: str,
    *,
    device: str = "cpu",
    vec_env: type[DummyVecEnv | SubprocVecEnv] = DummyVecEnv,
) -> Any:
    settings = zoo_settings(algo)
    keywords = dict(settings.algorithm)
    for key, value in keywords.items():
        if isinstance(value, Schedule):
            keywords[key] = LinearSchedule(value.start, value.end, value.end_fraction)
    if algo == "a2c":
        optimizer = {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}}
        keywords["policy_kwargs"] = optimizer
    num_envs = 1 if algo == "dqn" else settings.run.num_envs
    env_id = f"ale_py:{game}NoFrameskip-v4"  # makes subprocesses import ale_py, too
    env = VecFrameStack(make_atari_env(env_id, num_envs, seed=0, vec_env_cls=vec_env), 4)
    algorithm = getattr(stable_baselines3, algo.upper())
    return algorithm("CnnPolicy", env, seed=0, device=device, **keywords)
