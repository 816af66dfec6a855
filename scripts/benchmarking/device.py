"""Training that stays on a device, timed and compared with stock SB3 on the same machine."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import SubprocVecEnv

from benchmarking.base import CONFIGS, Benchmark
from benchmarking.ratios import Row
from benchmarking.training import as_in_a_long_run, stock_model
from coordrl.agents import evaluate
from coordrl.config import AtariSettings, SettingsError, parse_overrides
from coordrl.device_algorithms import make_device_model
from coordrl.envs import canonical_game, gymnasium_name
from coordrl.files import RunError
from coordrl.sb3_envs import make_sb3_env
from coordrl.training import load_training_settings


@dataclass(frozen=True)
class DeviceTraining(Benchmark):
    """Training that stays on a device, end to end: its rate, and its time to a return.

    This is the training of scripts/train_atari.py with configs/<algorithm>_cuda.toml, from reset
    games on. Not counted are making the environments and the model, the first updates of the rate,
    which compile, and evaluations, which play on the host. One agent step is four raw frames.

    It is compared with the rate of stock SB3 on the same machine, with the zoo's settings: the
    network on the same device, each game in a process of its own.
    """

    least: ClassVar[Mapping[str, float]] = {
        "updates": 1,
        "episodes": 1,
        "evaluate_every": 1,
        "stock_seconds": 0,
    }

    device: Literal["cuda", "cpu"] = "cuda"
    """Device of everything."""
    algo: Literal["ppo", "a2c", "dqn"] = "ppo"
    """Algorithm to train."""
    game: str = "Pong"
    """Game to train on."""
    updates: int = 10
    """Rollouts with their updates to measure the rate over."""
    target: float | None = 18.0
    """Mean return to train to; if None, only the rate is measured."""
    episodes: int = 30
    """Games of the evaluation that has to reach it."""
    evaluate_every: int = 10
    """Updates between two evaluations. The training's own games would show it too late: of
    thousands that are played at the same time, those that end now began with a much weaker agent.
    """
    stock_seconds: float = 60.0
    """Least seconds to spend on stock SB3; 0 leaves it out."""
    seed: int = 0
    """Seed of weights, games and draws."""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """Any setting by its full name, as in run.num_envs=1024."""

    def refuse(self) -> None:
        """Also reject a target that is not a number."""
        super().refuse()
        if self.target is not None and not math.isfinite(self.target):
            raise SettingsError(f"--target must be a return, or None, got {self.target}")

    def rows(self) -> Iterator[Row]:
        """Yield a row for the rate, one for the training to the target, and one for stock SB3."""
        clock, overrides = WallClock(self, warm_up=3), as_in_a_long_run(self.algo)
        yield clock.run("rate", lambda: clock.updates >= self.updates, *overrides)
        if clock.updates < self.updates:
            raise RunError(
                f"run.total_steps is over after {max(clock.updates, 0)} updates behind a warm-up "
                f"of 3, and --updates asks for {self.updates}; raise the former"
            )
        if self.target is not None:
            clock = WallClock(self, warm_up=0)
            yield clock.run(f"to {self.target:g}", clock.has_reached_target)
        if self.stock_seconds > 0:
            yield self._stock()

    def summary(self, rows: list[Row]) -> Row:
        """Return the rates, and the seconds to the target."""
        rates, seconds = {}, {}
        for row in rows:
            training = row["training"]
            if training in ("rate", "stock SB3"):
                rates[f"raw frames a second, {training}"] = row["raw frames a second"]
            else:
                reached = has_reached(row, self.target or 0.0)
                seconds[f"seconds {training}"] = row["seconds"] if reached else "not reached"
        return {**rates, **seconds}

    def _stock(self) -> Row:
        game = gymnasium_name(canonical_game(self.game))
        model = stock_model(self.algo, game, device=self.device, vec_env=SubprocVecEnv)
        model.set_logger(Logger(None, []))
        model.learn(1, log_interval=None)  # at least a rollout, which fills buffers and caches
        begin, first = time.perf_counter(), model.num_timesteps
        while (seconds := time.perf_counter() - begin) < self.stock_seconds:
            model.learn(1000, reset_num_timesteps=False, log_interval=None)
        model.get_env().close()
        frames = (model.num_timesteps - first) * AtariSettings.frame_skip
        return training_row("stock SB3", self.algo, game, model.n_envs, frames, seconds)


def has_reached(row: Row, target: float) -> bool:
    """Tell whether the last evaluation in a training row reached a target."""
    found = row["mean return"]
    return isinstance(found, float) and found >= target


def training_row(
    name: str,
    algo: str,
    game: str,
    num_envs: int,
    frames: int,
    seconds: float,
    mean_return: float = math.nan,
) -> Row:
    return {
        **{"training": name, "algorithm": algo, "game": game, "num_envs": num_envs},
        **{"raw frames": frames, "seconds": round(seconds, 2)},
        "raw frames a second": round(frames / max(seconds, 1e-9)),
        "mean return": "" if math.isnan(mean_return) else round(float(mean_return), 2),
    }


class WallClock(BaseCallback):
    """Trains until a condition holds between two updates, and times it."""

    def __init__(self, benchmark: DeviceTraining, warm_up: int) -> None:
        super().__init__()
        self.benchmark, self.warm_up, self.updates = benchmark, warm_up, -warm_up
        self.steps, self.seconds, self.mean_return = 0, 0.0, math.nan
        self.steps_before, self.began_at = 0, 0.0

    def run(self, name: str, is_over: Callable[[], bool], *overrides: str) -> Row:
        """Train, and return the measured row."""
        self.is_over, chosen = is_over, self.benchmark
        config = CONFIGS / f"{chosen.algo}_cuda.toml"
        given = itertools.chain.from_iterable(chosen.set)
        texts = (f"run.game={chosen.game}", f"run.seed={chosen.seed}", *overrides, *given)
        settings = load_training_settings(config, parse_overrides([texts]))
        env = make_sb3_env(
            settings.run.game, settings.run.num_envs, settings.env, stagger=settings.run.stagger,
            device=chosen.device,
        )  # fmt: skip
        env.seed(chosen.seed)
        model: Any = make_device_model(settings, env, seed=chosen.seed, device=chosen.device)
        self.settings = settings
        model.set_logger(Logger(None, []))
        self.began_at = time.perf_counter()
        with contextlib.suppress(StopIteration):  # SB3's callbacks cannot stop between rollouts
            model.learn(settings.run.total_steps, callback=self, log_interval=None)
        env.close()
        frames = self.steps * settings.env.frame_skip
        return training_row(
            name, chosen.algo, settings.run.game, settings.run.num_envs, frames, self.seconds,
            self.mean_return,
        )  # fmt: skip

    def has_reached_target(self) -> bool:
        """Evaluate the agent every ``evaluate_every`` updates; tell whether it is good enough."""
        target = self.benchmark.target
        if target is None or self.updates == 0 or self.updates % self.benchmark.evaluate_every != 0:
            return False
        result = evaluate(
            self.model,
            game=self.settings.run.game,
            settings=self.settings.env,
            episodes=self.benchmark.episodes,
            num_envs=self.benchmark.episodes,
            seed=self.benchmark.seed,
        )
        self.mean_return = float(result.mean)
        return self.mean_return >= target

    def _on_rollout_start(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        # Without a warm-up, the staggered start of the games is timed as well.
        if self.updates > 0 or self.warm_up == 0:
            self.seconds += now - self.began_at
            self.steps += self.model.num_timesteps - self.steps_before
        if self.updates >= 0 and self.is_over():
            raise StopIteration
        self.updates += 1
        self.steps_before = self.model.num_timesteps
        self.began_at = time.perf_counter()

    def _on_step(self) -> bool:
        return True
