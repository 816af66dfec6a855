"""Measure what coordrl costs beside its peers: ours and theirs in turn, in one run.

    python scripts/benchmark.py layers --json benchmarks/layers.json
    python scripts/benchmark.py generators --json benchmarks/generators.json
    python scripts/benchmark.py gan --json benchmarks/gan.json
    python scripts/benchmark.py training --json benchmarks/training.json
    python scripts/benchmark.py envs --json benchmarks/envs.json
    python scripts/benchmark.py device --json benchmarks/device.json  # needs a GPU
    python scripts/benchmark.py emulator --json benchmarks/emulator.json
    python scripts/benchmark.py cuda --json benchmarks/cuda.json

Costs are CPU seconds of the process that works, so that other work on the machine distorts them
little. What it does distort, it distorts for all contestants, because they take turns: ratios are
trustworthy where times are not. A ratio is given for the fastest calls (where calls differ, as in
games, for all), beside the quartiles over the turns.
Only ``cuda`` and ``device`` tell the time, that of an otherwise idle GPU.

Ctrl-C ends a measurement. What it had measured is printed, and kept beside the record, as
``cuda.stopped.json`` for ``cuda.json``; the record itself is only replaced by a whole one.
"""

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import math
import multiprocessing
import os
import platform
import random
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import ale_py
import gymnasium
import numpy as np
import stable_baselines3
import torch
import tyro
from ale_py.vector_env import AtariVectorEnv as AleVectorEnv
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecTransposeImage,
)
from torch import Tensor, nn

import coordrl
from coordrl.agents import evaluate
from coordrl.algorithms import make_model
from coordrl.backbone import NATURE_DQN
from coordrl.config import AtariSettings, Schedule, TrainingSettings, parse_override
from coordrl.device_algorithms import make_device_model
from coordrl.emulator import GAMES, available, unavailable_reason
from coordrl.emulator.device import DeviceEmulator, Occupancy
from coordrl.emulator.nvrtc import CudaError, kernels_for, require_gpu
from coordrl.envs import AtariVectorEnv, canonical_game, gymnasium_name
from coordrl.generative.data import SortOfClevr
from coordrl.generative.models import build_model
from coordrl.generative.networks import CoordConvGenerator, convolve_tiled
from coordrl.generative.objectives import ObjectiveName
from coordrl.generative.settings import Arm, Scale, load_generative_settings
from coordrl.generative.table import ARMS
from coordrl.memory import keep_freed_memory
from coordrl.runs import RunError, StopNow, StopRequest, atomic_file, require_writable
from coordrl.sb3_envs import make_sb3_env
from coordrl.training import load_training_settings


@dataclass(frozen=True)
class Ratio:
    """How many times as much one costs as the other."""

    best: float
    """Of the cheapest calls: least disturbed by other work. Where calls differ in what they have to
    do, of all calls together."""
    low: float
    """First quartile over the turns."""
    high: float
    """Third quartile over the turns."""

    @classmethod
    def of(
        cls,
        costs: list[float],
        peers: list[float],
        of_calls: Callable[[list[float]], float] = min,
    ) -> "Ratio":
        """Compare costs, the n-th of which were measured in the same turn."""
        quartiles = statistics.quantiles(
            [cost / peer for cost, peer in zip(costs, peers, strict=True)], n=4
        )
        return cls(of_calls(costs) / of_calls(peers), quartiles[0], quartiles[2])

    def __str__(self) -> str:
        """Return the ratio and its spread."""
        return f"{self.best:.3f} ({self.low:.2f} .. {self.high:.2f})"


Row = dict[str, str | int | float | Ratio]


@dataclass(frozen=True)
class Benchmark:
    """What every benchmark has. A new one is a subclass, and a line in ``BENCHMARKS``."""

    plays: ClassVar[bool] = True
    """Measures our emulator, or what trains with it."""

    json: Path | None = None
    """File to keep the record in, with the command, the machine and the versions."""

    def refuse(self) -> None:
        """Raise a RunError or a ValueError for what would fail, or measure nothing, later on."""
        if self.plays and not available():
            raise RunError(unavailable_reason())
        if self.json is not None:
            require_writable(self.json)
        for name, least in LEAST.items():
            values = getattr(self, name, least)
            for value in values if isinstance(values, tuple) else (values,):
                if not least <= value < math.inf:
                    option = f"--{name.replace('_', '-')}"
                    raise ValueError(f"{option} must be at least {least}, got {value}")

    def rows(self) -> Iterator[Row]:
        """Measure, and yield the rows of the table one after another; columns are keys."""
        raise NotImplementedError

    def summary(self, rows: list[Row]) -> Row:
        """Return what the rows come to."""
        raise NotImplementedError


# The least of what is measured. Of turns, so that there are quartiles.
LEAST = {
    **dict.fromkeys(("num_envs", "steps", "threads", "updates", "episodes", "evaluate_every"), 1),
    **dict.fromkeys(("seconds", "stock_seconds", "spare_bytes", "warm_up"), 0),
    "turns": 2,
}


def take_turns(
    contestants: dict[str, Callable[[], object]], seconds: float, least: int = 5
) -> dict[str, list[float]]:
    """Call the contestants in turn, and return the CPU seconds of each of their calls.

    Each turn has an order of its own, so that none always follows the same other and finds what
    that one has left in the processor's caches. The first calls, which build caches of ours, are
    not counted.
    """
    names = list(contestants)
    for name in names:
        contestants[name]()
    costs: dict[str, list[float]] = {name: [] for name in names}
    shuffle = random.Random(0).shuffle
    end = time.monotonic() + seconds
    turn = 0
    while turn < least or time.monotonic() < end:
        shuffle(names)
        for name in names:
            start = time.process_time()
            contestants[name]()
            costs[name].append(time.process_time() - start)
        turn += 1
    return costs


def geometric_mean(values: list[float]) -> float:
    """Return the n-th root of the product of n values."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def ratios_of(key: str, rows: list[Row]) -> Row:
    """Return every ratio of the rows, named by the row's value in the column ``key``."""
    return {
        f"{row[key]}, {column}": str(cell)
        for row in rows
        for column, cell in row.items()
        if isinstance(cell, Ratio)
    }


Learner = Callable[[], int]
"""Trains for a while, and returns the number of steps it did."""


def train_in_turn(
    learners: Mapping[str, Callable[[], Learner]], seconds: float
) -> dict[str, list[float]]:
    """Train in turn, each in a process of its own, and return the CPU seconds of a step.

    Args:
        learners: What makes each one, in its process.
        seconds: To spend, at least.
    """
    costs: dict[str, list[float]] = {name: [] for name in learners}
    with contextlib.ExitStack() as open_trainers:
        trainers = {
            name: open_trainers.enter_context(Trainer(make)) for name, make in learners.items()
        }
        names, shuffle = list(trainers), random.Random(0).shuffle
        end, turn = time.monotonic() + seconds, 0
        while turn < 4 or time.monotonic() < end:
            shuffle(names)  # as take_turns does
            for name in names:
                costs[name].append(trainers[name].train())
            turn += 1
    return costs


class Trainer:
    """A process that trains when it is told to, with its own memory and allocator.

    It ends with the block that it is opened for, whatever it is doing then.
    """

    def __init__(self, make: Callable[[], Learner]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve_training, args=(make, other))
        self._process.start()
        other.close()  # so that the end of the process is the end of the pipe

    def __enter__(self) -> Self:
        try:
            self.train()  # the first steps fill buffers and caches
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def train(self) -> float:
        """Train for a while, and return the CPU seconds of a step."""
        try:
            self._connection.send("train")
            cost: float = self._connection.recv()
        except (EOFError, OSError) as error:
            raise RunError("a process that trains has failed; what it said is above") from error
        return cost

    def _end(self) -> None:
        self._process.terminate()
        self._process.join()


def serve_training(make: Callable[[], Learner], connection: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who was told to stop ends this process
    torch.set_num_threads(1)
    learn = make()
    while True:
        connection.recv()
        start = time.process_time()
        steps = learn()
        connection.send((time.process_time() - start) / steps)


@dataclass(frozen=True)
class Case:
    """A layer and its input."""

    name: str
    ours: type[nn.Module]
    plain: type[nn.Module]
    channels: tuple[int, int]
    """Of input and output."""
    size: tuple[int, ...]
    arguments: dict[str, int]
    batch: int
    first: bool = False
    """The input is the network's, and needs no gradient."""

    @property
    def title(self) -> str:
        """Name and batch."""
        return f"{self.name}, batch {self.batch}"


def nature(batch: int) -> Iterator[Case]:
    layers = ((4, 84, True), (32, 20, False), (64, 9, False))
    for index, ((channels, side, first), spec) in enumerate(zip(layers, NATURE_DQN, strict=True)):
        yield Case(
            f"Nature {index + 1}",
            coordrl.CoordConv2d,
            nn.Conv2d,
            (channels, spec.out_channels),
            (side, side),
            {"kernel_size": spec.kernel_size, "stride": spec.stride},
            batch,
            first,
        )


CASES = [
    *nature(8),
    *nature(32),
    *nature(256),
    Case(
        "ResNet stem",
        coordrl.CoordConv2d,
        nn.Conv2d,
        (3, 64),
        (224, 224),
        {"kernel_size": 7, "stride": 2, "padding": 3},
        32,
        first=True,
    ),
    Case(
        "3x3, 56x56",
        coordrl.CoordConv2d,
        nn.Conv2d,
        (64, 64),
        (56, 56),
        {"kernel_size": 3, "padding": 1},
        32,
    ),
    Case(
        "1D, 1024",
        coordrl.CoordConv1d,
        nn.Conv1d,
        (64, 64),
        (1024,),
        {"kernel_size": 5, "padding": 2},
        32,
    ),
    Case(
        "3D, 16x32x32",
        coordrl.CoordConv3d,
        nn.Conv3d,
        (16, 16),
        (16, 32, 32),
        {"kernel_size": 3, "padding": 1},
        32,
    ),
    Case(
        "transposed, 16x16",
        coordrl.CoordConvTranspose2d,
        nn.ConvTranspose2d,
        (64, 32),
        (16, 16),
        {"kernel_size": 4, "stride": 2, "padding": 1},
        32,
    ),
]


class Concatenating(nn.Module):
    """The usual CoordConv: append a grid, here one that is kept for a whole batch, and convolve."""

    grid: Tensor

    def __init__(self, case: Case, *, channels_last: bool) -> None:
        super().__init__()
        in_channels, out_channels = case.channels
        self.convolution = case.plain(in_channels + len(case.size), out_channels, **case.arguments)
        grid = coordrl.coordinate_grid(*case.size).expand(case.batch, *[-1] * (len(case.size) + 1))
        # In the input's layout, or the concatenation would have another, and be copied once more.
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.register_buffer("grid", grid.contiguous(memory_format=layout))

    def forward(self, x: Tensor) -> Tensor:
        """Append and convolve."""
        y: Tensor = self.convolution(torch.cat([x, self.grid], dim=1))
        return y


@dataclass(frozen=True)
class Layers(Benchmark):
    """CoordConv by concatenation, ours and CoordBias, as ratios to the plain convolution.

    Forward computes the coordinate map, as in training; without gradient it is remembered. All is
    measured twice: as PyTorch starts, when memory that large tensors free returns to the system,
    and with memory kept, as in our training (``coordrl.memory``).
    """

    plays: ClassVar[bool] = False

    seconds: float = 5.0
    """To spend on each layer, at least."""
    only: str = ""
    """Measure the layers alone whose name and batch, as in "Nature 3, batch 32", contain this."""
    memory_formats: tuple[Literal["contiguous", "channels_last"], ...] = (
        "contiguous",
        "channels_last",
    )
    """Layouts of weights and inputs."""
    freed_memory: tuple[Literal["returned", "kept"], ...] = ("returned", "kept")
    """What becomes of memory that tensors free. Once kept it stays so: this comes last."""
    least_batch: int = 32
    """The summary counts layers from this batch on: below, calls are too short for a layer."""

    def rows(self) -> Iterator[Row]:
        """Yield a row for each layer, memory format and way with freed memory."""
        orders = sorted(self.freed_memory, reverse=True), self.memory_formats, CASES
        for freed_memory, memory_format, case in itertools.product(*orders):
            if freed_memory == "kept":
                keep_freed_memory()
            channels_last = memory_format == "channels_last"
            if self.only in case.title and (len(case.size) == 2 or not channels_last):
                ratios = self._measure(case, channels_last)
                kind = {"memory format": memory_format, "freed memory": freed_memory}
                yield {"layer": case.title, **kind, **ratios}

    def summary(self, rows: list[Row]) -> Row:
        """Return geometric means over the layers of the batches that count."""
        counted = {case.title for case in CASES if case.batch >= self.least_batch}
        values: dict[str, list[float]] = {}
        for row in rows:
            for column, ratio in row.items():
                if isinstance(ratio, Ratio) and row["layer"] in counted:
                    kind = f"{column}, {row['memory format']}, memory {row['freed memory']}"
                    values.setdefault(kind, []).append(ratio.best)
        return {column: round(geometric_mean(ratios), 3) for column, ratios in values.items()}

    def _measure(self, case: Case, channels_last: bool) -> Row:
        layers = {
            "plain": case.plain(*case.channels, **case.arguments),
            "concatenating": Concatenating(case, channels_last=channels_last),
            "ours": case.ours(*case.channels, **case.arguments),
            "coord bias": nn.Sequential(
                case.plain(*case.channels, **case.arguments),
                coordrl.CoordBias(case.channels[1], len(case.size)),
            ),
        }
        x = torch.randn(case.batch, case.channels[0], *case.size)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
            for layer in layers.values():
                layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x.requires_grad_(not case.first)
        gradient = torch.randn_like(layers["plain"](x))

        def train(layer: nn.Module) -> None:
            x.grad = None
            layer.zero_grad()
            layer(x).backward(gradient)

        modes: dict[str, Callable[[nn.Module], object]] = {
            "forward": lambda layer: layer(x),
            "forward+backward": train,
            "no gradient": torch.no_grad()(lambda layer: layer(x)),
        }
        costs = take_turns(
            {
                f"{mode}, {name}": functools.partial(call, layer)
                for mode, call in modes.items()
                for name, layer in layers.items()
            },
            self.seconds,
        )
        row: Row = {"forward ms": round(min(costs["forward, plain"]) * 1000, 2)}
        for mode in modes:
            for name in ("concatenating", "ours", "coord bias"):
                row[f"{mode}: {name}"] = Ratio.of(costs[f"{mode}, {name}"], costs[f"{mode}, plain"])
        return row


def tiled(generator: CoordConvGenerator, latents: Tensor, *, whole: bool) -> Tensor:
    """Return the first layer's output, or the pictures, by the paper's definition.

    The latent vector is tiled over the canvas, and the coordinates are appended.
    """
    size = generator.size
    canvas = latents[:, :, None, None].expand(-1, -1, size, size)
    grid = coordrl.coordinate_grid(size, size).expand(len(latents), -1, -1, -1)
    first, *others = generator.backbone
    assert isinstance(first, nn.Conv2d)
    x = nn.functional.conv2d(torch.cat([canvas, grid], dim=1), first.weight, first.bias)
    for module in others if whole else []:
        x = module(x)
    return x


def untiled(generator: CoordConvGenerator, latents: Tensor, *, whole: bool) -> Tensor:
    """Return the same as :func:`tiled`, by a product of matrices."""
    first = generator.backbone[0]
    assert isinstance(first, coordrl.CoordConv2d)
    size = generator.size
    x: Tensor = generator(latents) if whole else convolve_tiled(first, latents, size, size)
    return x


@dataclass(frozen=True)
class Generators(Benchmark):
    """The paper's CoordConv generator with its latent vector tiled over the canvas, over ours.

    Forward, and backward for the weights.
    """

    plays: ClassVar[bool] = False

    seconds: float = 20.0
    """To spend on each size, at least."""
    sizes: tuple[int, ...] = (16, 32, 64)
    """Heights and widths of the pictures. At 64 the network is the paper's, below it as wide
    as that of the small scales of configs/generative.toml, with 32 latent numbers."""

    def rows(self) -> Iterator[Row]:
        """Yield a row for each size."""
        keep_freed_memory()
        for size in self.sizes:
            latent, channels = (256, 64) if size == 64 else (32, 8)
            generator = CoordConvGenerator(size, latent, channels)
            latents = torch.rand(16, latent) * 2 - 1

            def train(form: Callable[..., Tensor], whole: bool) -> None:
                loss = form(generator, latents, whole=whole).sum()  # noqa: B023
                weights = list(generator.parameters())  # noqa: B023 - called within the loop
                torch.autograd.grad(loss, weights, allow_unused=True)

            costs = take_turns(
                {
                    f"{form.__name__}, {whole}": functools.partial(train, form, whole)
                    for form in (tiled, untiled)
                    for whole in (False, True)
                },
                self.seconds,
            )
            yield {
                "pictures": f"16 of {size}x{size}",
                "latent": latent,
                "ours ms": round(min(costs["untiled, True"]) * 1000, 1),
                "first layer": Ratio.of(costs["tiled, False"], costs["untiled, False"]),
                "generator": Ratio.of(costs["tiled, True"], costs["untiled, True"]),
            }

    def summary(self, rows: list[Row]) -> Row:
        """Return geometric means over the sizes."""
        summary: Row = {}
        for column in ("first layer", "generator"):
            ratios = [ratio.best for row in rows if isinstance(ratio := row[column], Ratio)]
            summary[column] = round(geometric_mean(ratios), 2)
        return summary


@dataclass(frozen=True)
class GanTraining(Benchmark):
    """Training a GAN of configs/generative.toml: what keeping freed memory saves, and bfloat16.

    Each in a process of its own: as scripts/train_gan.py does by default; with PyTorch's memory as
    it is, see :mod:`coordrl.memory`; with ``training.precision=bfloat16``.
    """

    plays: ClassVar[bool] = False

    seconds: float = 60.0
    """To spend on each arm, at least."""
    scale: Scale = "small"
    """How large pictures and networks are."""
    objective: ObjectiveName = "r3gan"
    """The loss, and what goes with it."""

    def rows(self) -> Iterator[Row]:
        """Yield a row for each arm."""
        for coords in ARMS:
            learners = {
                name: functools.partial(gan_learner, self.scale, self.objective, coords, *how)
                for name, how in {
                    "ours": (True, "float32"),
                    "fetched": (False, "float32"),
                    "half": (True, "bfloat16"),
                }.items()
            }
            costs = train_in_turn(learners, self.seconds)
            yield {
                "coords": coords,
                "ours: ms a batch": round(min(costs["ours"]) * 1e3, 1),
                "memory fetched anew / ours": Ratio.of(costs["fetched"], costs["ours"]),
                "ours / with bfloat16": Ratio.of(costs["ours"], costs["half"]),
            }

    def summary(self, rows: list[Row]) -> Row:
        """Return how many times as many batches a CPU second is worth."""
        return ratios_of("coords", rows)


def gan_learner(
    scale: Scale, objective: ObjectiveName, coords: Arm, keeps_memory: bool, precision: str
) -> Learner:
    if keeps_memory:
        keep_freed_memory()
    config = Path(__file__).resolve().parents[1] / "configs" / "generative.toml"
    overrides = (parse_override(f"training.precision={precision}"),)
    settings = load_generative_settings(config, scale, "gan", coords, objective, overrides)
    random_numbers, device = torch.Generator().manual_seed(0), torch.device("cpu")
    model = build_model(settings, random_numbers, device)
    pictures = SortOfClevr(settings.canvas, settings.training.pictures)
    batches = 10

    def learn() -> int:
        for _ in range(batches):
            size = (settings.training.batch_size,)
            indices = torch.randint(len(pictures), size, generator=random_numbers)
            model.learn(pictures.batch(indices, device), random_numbers)
        return batches

    return learn


@dataclass(frozen=True)
class Training(Benchmark):
    """Training with the zoo's settings: stock SB3 and ours, each in a process of its own.

    Stock is ``make_atari_env``, ``VecFrameStack`` and ``NatureCNN``, for DQN with the zoo's single
    environment. Ours is what scripts/train_atari.py runs with ``configs/<algorithm>.toml``. DQN
    is measured as in the last nine tenths of a run, after its exploration. Ours keeps the memory
    that tensors free, so stock SB3 is measured with that as well.
    """

    seconds: float = 60.0
    """To spend on each algorithm, at least."""
    algos: tuple[Literal["ppo", "a2c", "dqn"], ...] = ("ppo", "a2c", "dqn")
    """What to train."""
    game: str = "Pong"
    """Game to train on."""

    def rows(self) -> Iterator[Row]:
        """Yield a row for each algorithm."""
        game = gymnasium_name(canonical_game(self.game))
        for algo in self.algos:
            learners = {
                name: functools.partial(sb3_learner, name, algo, game)
                for name in ("stock", "stock, memory kept", "ours, coords none", "ours, coords all")
            }
            costs = train_in_turn(learners, self.seconds)
            row: Row = {"algorithm": algo}
            for name, values in costs.items():
                row[f"{name}: microseconds a step"] = round(min(values) * 1e6)
            for peer, name in itertools.product(costs, costs):
                if peer.startswith("stock") and name.startswith("ours"):
                    row[f"{peer} / {name}"] = Ratio.of(costs[peer], costs[name])
            yield row

    def summary(self, rows: list[Row]) -> Row:
        """Return how many times as many steps a CPU second is worth."""
        return ratios_of("algorithm", rows)


def sb3_learner(name: str, algo: str, game: str) -> Learner:
    if name != "stock":
        keep_freed_memory()
    is_stock = name.startswith("stock")
    model = stock_model(algo, game) if is_stock else our_model(algo, game, name.split()[-1])
    model.set_logger(Logger(None, []))
    steps = {"ppo": 1024, "a2c": 960, "dqn": 320}[algo]

    def learn() -> int:
        model.learn(steps, reset_num_timesteps=False, log_interval=None)
        return steps

    return learn


def as_in_a_long_run(algo: str) -> tuple[str, ...]:
    """Return overrides: from the start as many updates, and as few random actions, as later on."""
    if algo != "dqn":
        return ()
    return ("algorithm.learning_starts=100", "algorithm.exploration_initial_eps=0.01")


def zoo_settings(algo: str, *overrides: str) -> TrainingSettings:
    config = Path(__file__).resolve().parents[1] / "configs" / f"{algo}.toml"
    texts = (*overrides, *as_in_a_long_run(algo))
    return load_training_settings(config, [parse_override(text) for text in texts])


def our_model(algo: str, game: str, coords: str) -> Any:
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
    env_id = f"ale_py:{game}NoFrameskip-v4"  # processes of their own have to import it, too
    env = VecFrameStack(make_atari_env(env_id, num_envs, seed=0, vec_env_cls=vec_env), 4)
    algorithm = getattr(stable_baselines3, algo.upper())
    return algorithm("CnnPolicy", env, seed=0, device=device, **keywords)


@dataclass(frozen=True)
class Envs(Benchmark):
    """How many times as fast as its peers our environment plays Atari for Stable-Baselines3.

    Over all calls together: games at random differ from call to call, and so do resets.

    All play the classic protocol at random, through SB3's VecEnv: ours; ale-py's vector environment
    in the same adapter; the wrappers of SB3's ``make_atari_env``; EnvPool, where it is installed,
    without an adapter.
    """

    seconds: float = 10.0
    """To spend on each row, at least."""
    games: tuple[str, ...] = ("Pong", "Breakout", "SpaceInvaders", "MsPacman", "BeamRider")
    """Games to play, as Gymnasium spells them."""
    num_envs: tuple[int, ...] = (8, 64)
    """Games that are played at the same time."""
    steps: int = 16
    """Steps of a call."""

    def rows(self) -> Iterator[Row]:
        """Yield a row for each game and number of environments."""
        games = [gymnasium_name(canonical_game(game)) for game in self.games]
        for num_envs in self.num_envs:
            for game in games:
                makers = {"ours": ours, "ale-py": ale_py_adapted, "SB3": sb3_wrapped}
                if importlib.util.find_spec("envpool") is not None:
                    makers["EnvPool"] = envpool
                contestants: dict[str, Callable[[], object]] = {
                    name: functools.partial(play, *make(game, num_envs), self.steps)
                    for name, make in makers.items()
                }
                costs = take_turns(contestants, self.seconds)
                steps = self.steps * num_envs
                row: Row = {"game": game, "num_envs": num_envs}
                calls = len(costs["ours"])
                row |= {"agent steps per CPU second": round(calls * steps / sum(costs["ours"]))}
                row |= {
                    f"times as fast as {name}": Ratio.of(costs[name], costs["ours"], sum)
                    for name in makers
                    if name != "ours"
                }
                yield row

    def summary(self, rows: list[Row]) -> Row:
        """Return geometric means over the rows."""
        return {
            column: round(geometric_mean([row[column].best for row in rows]), 2)  # type: ignore[union-attr]
            for column, value in rows[0].items()
            if isinstance(value, Ratio)
        }


Player = tuple[Callable[[Any], object], Iterator[Any]]
"""A function that plays one action in each environment, and the actions to play."""


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

    Both have ale-py's default settings (84x84 gray, stack 4, four frames a step, of which the last
    two are pooled), seeds and actions, and so play the same games to the last byte. EnvPool is
    set to the same and measured beside them where it is installed; its games are its own.
    """

    seconds: float = 5.0
    """To spend on each game, at least."""
    games: tuple[str, ...] = ()
    """Games to play; the 57 that agents are usually compared on if none is named."""
    num_envs: int = 8
    """Games that are played at the same time."""
    steps: int = 16
    """Steps of a call."""

    def rows(self) -> Iterator[Row]:
        """Yield a row for each game."""
        names = [canonical_game(name) for name in self.games]
        makers = {"ours": our_vector_env, "ale-py": ale_vector_env}
        if importlib.util.find_spec("envpool") is not None:
            makers["EnvPool"] = envpool_vector_env
        for game in names or [name for name, game in GAMES.items() if game.atari57]:
            costs = take_turns(
                {
                    name: functools.partial(play, *make(game, self.num_envs), self.steps)
                    for name, make in makers.items()
                },
                self.seconds,
            )
            frames = 4 * self.steps * self.num_envs * len(costs["ours"])
            row: Row = {"game": gymnasium_name(game)}
            row |= {"frames per CPU second": round(frames / sum(costs["ours"]))}
            row |= {
                f"times as fast as {name}": Ratio.of(costs[name], costs["ours"], sum)
                for name in makers
                if name != "ours"
            }
            yield row

    def summary(self, rows: list[Row]) -> Row:
        """Return geometric means over the games, and where the ratio is least."""
        result: Row = {"games": len(rows)}
        for column, value in rows[0].items():
            if isinstance(value, Ratio):
                ratios = {str(row["game"]): row[column].best for row in rows}  # type: ignore[union-attr]
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


@dataclass(frozen=True)
class DeviceTraining(Benchmark):
    """Training that stays on a device, end to end: its rate, and its time to a return.

    What scripts/train_atari.py runs with ``configs/<algorithm>_cuda.toml``, from reset games on.
    Making the environments and the model is not counted, nor the first updates of the rate, which
    compile; nor are evaluations, which play on the host. One agent step is four raw frames.

    Beside it the rate of stock SB3 on the same machine, with the zoo's settings: the network on the
    same device, each game in a process of its own.
    """

    device: Literal["cuda", "cpu"] = "cuda"
    """Where everything lives."""
    algo: Literal["ppo", "a2c", "dqn"] = "ppo"
    """What to train."""
    game: str = "Pong"
    """Game to train on."""
    updates: int = 10
    """Rollouts with their updates to measure the rate over."""
    target: float | None = 18.0
    """Mean return to train to; without one, only the rate is measured."""
    episodes: int = 30
    """Games of the evaluation that has to reach it."""
    evaluate_every: int = 10
    """Updates between two evaluations. The games of the training itself tell too late: of thousands
    that are played at the same time, those that end now were begun by a much weaker agent."""
    stock_seconds: float = 60.0
    """To spend on stock SB3, at least; 0 leaves it out."""
    seed: int = 0
    """Seed of weights, games and draws."""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """Any setting by its full name, as in run.num_envs=1024."""

    def refuse(self) -> None:
        """Refuse a target that no return can be compared with, too."""
        super().refuse()
        if self.target is not None and not math.isfinite(self.target):
            raise ValueError(f"--target must be a return, or None, got {self.target}")

    def rows(self) -> Iterator[Row]:
        """Yield a row for the rate, one for the way to the target, and one for stock SB3."""
        clock, overrides = TrainingClock(self, warm_up=3), as_in_a_long_run(self.algo)
        yield clock.run("rate", lambda: clock.updates >= self.updates, *overrides)
        if clock.updates < self.updates:
            raise RunError(
                f"run.total_steps is over after {max(clock.updates, 0)} updates behind a warm-up "
                f"of 3, and --updates asks for {self.updates}; raise the former"
            )
        if self.target is not None:
            clock = TrainingClock(self, warm_up=0)
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
    """Tell whether the last evaluation of a training was that good."""
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


class TrainingClock(BaseCallback):
    """Trains until a condition holds between two updates, and times it."""

    def __init__(self, benchmark: DeviceTraining, warm_up: int) -> None:
        super().__init__()
        self.benchmark, self.warm_up, self.updates = benchmark, warm_up, -warm_up
        self.steps, self.seconds, self.mean_return = 0, 0.0, math.nan
        self.steps_before, self.began_at = 0, 0.0

    def run(self, name: str, is_over: Callable[[], bool], *overrides: str) -> Row:
        """Train, and return what was measured."""
        self.is_over, chosen = is_over, self.benchmark
        config = Path(__file__).resolve().parents[1] / "configs" / f"{chosen.algo}_cuda.toml"
        given = itertools.chain.from_iterable(chosen.set)
        texts = (f"run.game={chosen.game}", f"run.seed={chosen.seed}", *overrides, *given)
        settings = load_training_settings(config, [parse_override(text) for text in texts])
        where: Any = {} if chosen.device == "cpu" else {"device": chosen.device}
        env = make_sb3_env(
            settings.run.game, settings.run.num_envs, settings.env, stagger=settings.run.stagger,
            **where,
        )  # fmt: skip
        env.seed(chosen.seed)
        model: Any = make_device_model(settings, env, seed=chosen.seed, device=chosen.device)
        self.settings = settings
        model.set_logger(Logger(None, []))
        self.began_at = time.perf_counter()
        with contextlib.suppress(StopIteration):  # SB3's callbacks end a rollout, not between two
            model.learn(settings.run.total_steps, callback=self, log_interval=None)
        env.close()
        frames = self.steps * settings.env.frame_skip
        return training_row(
            name, chosen.algo, settings.run.game, settings.run.num_envs, frames, self.seconds,
            self.mean_return,
        )  # fmt: skip

    def has_reached_target(self) -> bool:
        """Evaluate the agent, every now and then."""
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
        # Without a warm-up, what the games play before the first rollout is timed as well.
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


@dataclass(frozen=True)
class Cuda(Benchmark):
    """What a GPU does for Atari, beside the targets and what CuLE and stock SB3 do.

    The emulator alone, observations included: every environment plays random actions of the classic
    protocol; a step is timed on the device, as the mean of a number of steps, with no other work
    between them. Then training, as ``device`` measures it. Frames are the emulator's, four to a
    step.
    """

    games: tuple[str, ...] = ()
    """Games to play, as Gymnasium spells them; all of the Atari-57 set if empty."""
    num_envs: tuple[int, ...] = (4096, 65536)
    """Environments that are played at the same time."""
    warm_up: int = 100
    """Steps before the first turn, in which games drift apart."""
    steps: int = 20
    """Steps of a turn."""
    turns: int = 5
    """Turns of each row."""
    threads: tuple[int, ...] = (Occupancy.threads,)
    """Environments of a block: one row for each number."""
    spare_bytes: tuple[int, ...] = (Occupancy.spare_bytes,)
    """Shared memory that a block reserves, so that fewer run at a time: one row for each."""
    training: bool = True
    """Measure training as well, with what ``device`` has as defaults."""

    def rows(self) -> Iterator[Row]:
        """Yield what was played, what was trained, and how both stand to the targets."""
        require_gpu()
        rows = []
        for part in (self._emulator(), DeviceTraining().rows() if self.training else ()):
            for row in part:
                rows.append(row)
                yield row
        yield from target_rows(measured_for_targets(rows))

    def _emulator(self) -> Iterator[Row]:
        """Yield a row for each game, number of environments and way to spread them."""
        chosen = [canonical_game(game) for game in self.games]
        for game in chosen or [name for name, facts in GAMES.items() if facts.atari57]:
            start = time.monotonic()
            kernels_for(game, torch.device("cuda"))
            seconds = time.monotonic() - start
            for num_envs, *spread in itertools.product(
                self.num_envs, self.threads, self.spare_bytes
            ):
                occupancy = Occupancy(*spread)
                yield {
                    "game": game,
                    "num_envs": num_envs,
                    **dataclasses.asdict(occupancy),
                    **self._measure(game, num_envs, occupancy),
                    "compiled in s": round(seconds, 1),
                }

    def summary(self, rows: list[Row]) -> Row:
        """Return the median over the games, and how far the slowest is below it."""
        result: Row = {}
        for way in itertools.product(self.num_envs, self.threads, self.spare_bytes):
            speeds = [
                float(row["frames a second"])  # type: ignore[arg-type]
                for row in rows
                if "threads" in row and (row["num_envs"], row["threads"], row["spare_bytes"]) == way
            ]
            median = statistics.median(speeds)
            name = "{} environments in blocks of {} with {} spare bytes".format(*way)
            result[f"{name}, median frames a second"] = round(median)
            result[f"{name}, slowest over median"] = round(min(speeds) / median, 2)
        return result

    def _measure(self, game: str, num_envs: int, occupancy: Occupancy) -> Row:
        before = torch.cuda.memory_allocated()
        envs = DeviceEmulator(game, num_envs, occupancy=occupancy)
        envs.reset(seed=0)
        memory = (torch.cuda.memory_allocated() - before) // num_envs
        observed = 2 * math.prod(envs.obs_shape)  # and the last ones of episodes
        choices = len(envs.actions)
        shape = (self.steps, num_envs)
        seconds = []
        for turn in range(-(-self.warm_up // self.steps) + self.turns):
            actions = torch.randint(choices, shape, device="cuda")
            begin, end = (
                torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                for _ in range(2)
            )
            begin.record()
            for chosen in actions:
                envs.step(chosen)
            end.record()
            torch.cuda.synchronize()
            if turn * self.steps >= self.warm_up:
                seconds.append(begin.elapsed_time(end) / 1000 / self.steps)
        frames = num_envs * envs.settings.frame_skip
        quartiles = statistics.quantiles(seconds, n=4)
        del envs
        torch.cuda.empty_cache()
        return {
            "frames a second": round(frames / statistics.median(seconds)),
            "first quartile": round(frames / quartiles[2]),
            "third quartile": round(frames / quartiles[0]),
            "bytes an environment": memory,  # without the local memory of the threads that run
            "of them observations": observed,
        }


@dataclass(frozen=True)
class Target:
    """What a GPU is to reach, for one H100, and what CuLE has published (arXiv 1907.08467)."""

    name: str
    must: float
    goal: float
    cule: str = ""

    def row(self, measured: float | None, stock: float | None) -> Row:
        """Return what was measured beside it."""
        less = self.goal < self.must
        reached = "not measured"
        if measured is not None:
            reached = "nothing"
            for name, bound in (("must", self.must), ("goal", self.goal)):
                if measured <= bound if less else measured >= bound:
                    reached = name
        return {
            "target": self.name,
            "measured": "" if measured is None else f"{measured:,.0f}",
            "must": f"{self.must:,.0f}",
            "goal": f"{self.goal:,.0f}",
            "reached": reached,
            "CuLE, Titan V": self.cule,
            "stock SB3, here": "" if stock is None else f"{stock:,.0f}",
        }


LARGE, SMALL = 65536, 4096
PLAYED = "raw frames a second, {:,} environments, median of the games"
TRAINED, STOCK = "raw frames a second of PPO, end to end", "stock SB3"
REACHED, MEMORY = "seconds of PPO to a mean of 18 in Pong", "bytes an environment, no observations"
TARGETS = (
    Target(PLAYED.format(LARGE), 3e6, 5e6, "41,000 to 155,000"),
    Target(PLAYED.format(SMALL), 1e6, 1.5e6, "41,000 to 155,000"),
    Target(TRAINED, 300e3, 1e6, "26,000 to 68,000"),
    Target(REACHED, 180, 60, "186"),
    Target(MEMORY, 48 << 10, 12 << 10),
)


def measured_for_targets(rows: list[Row]) -> dict[str, float]:
    """Return what rows of :class:`Cuda` come to, by the names of targets.

    Of several ways to spread environments the fastest counts.
    """
    measured: dict[str, float] = {}
    played = [row for row in rows if "threads" in row]
    for num_envs in (LARGE, SMALL):
        speeds: dict[tuple[Any, Any], list[float]] = {}
        for row in played:
            if row["num_envs"] == num_envs:
                way = row["threads"], row["spare_bytes"]
                speeds.setdefault(way, []).append(float(row["frames a second"]))  # type: ignore[arg-type]
        if speeds:
            measured[PLAYED.format(num_envs)] = max(map(statistics.median, speeds.values()))
    if played:
        measured[MEMORY] = statistics.median(
            int(row["bytes an environment"]) - int(row["of them observations"])  # type: ignore[arg-type]
            for row in played
        )
    for row in rows:
        match row.get("training"):
            case "rate":
                measured[TRAINED] = float(row["raw frames a second"])  # type: ignore[arg-type]
            case "stock SB3":
                measured[STOCK] = float(row["raw frames a second"])  # type: ignore[arg-type]
            case "to 18" if has_reached(row, 18):
                measured[REACHED] = float(row["seconds"])  # type: ignore[arg-type]
    return measured


def target_rows(measured: dict[str, float]) -> Iterator[Row]:
    """Yield a row for each target; what was not measured says so."""
    for target in TARGETS:
        stock = measured.get(STOCK) if target.name == TRAINED else None
        yield target.row(measured.get(target.name), stock)


BENCHMARKS: dict[str, Callable[..., Benchmark]] = {
    "layers": Layers,
    "generators": Generators,
    "gan": GanTraining,
    "training": Training,
    "envs": Envs,
    "device": DeviceTraining,
    "emulator": Emulators,
    "cuda": Cuda,
}


# Of /proc/cpuinfo: what decides whether bfloat16 pays, which the processor's name may not tell.
_MATRIX_FLAGS = {"amx_tile", "amx_bf16", "avx512_bf16"}


def surroundings() -> dict[str, Any]:
    """Return the machine and the versions that a record was made with."""
    cpuinfo = Path("/proc/cpuinfo")
    first = cpuinfo.read_text().split("\n\n")[0] if cpuinfo.exists() else ""
    pairs = (line.partition(":") for line in first.splitlines())
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    libraries = ["torch", "numpy", "stable-baselines3", "gymnasium", "ale-py"]
    if importlib.util.find_spec("envpool") is not None:
        libraries.append("envpool")
    return {
        "machine": {
            "processor": facts.get("model name", platform.machine()),
            "model": facts.get("model"),
            "matrix instructions": sorted(_MATRIX_FLAGS & set(facts.get("flags", "").split())),
            "cores": os.cpu_count(),
            "torch threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "load": [round(load, 1) for load in os.getloadavg()],
        },
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in libraries},
        },
    }


def main() -> int:
    benchmark = tyro.extras.subcommand_cli_from_dict(BENCHMARKS, description=__doc__)
    torch.set_num_threads(1)
    console = Console(soft_wrap=True)
    try:
        benchmark.refuse()
        rows, ended_by = measured(benchmark, console)
        summary = benchmark.summary(rows) if ended_by is None else {}
        for _, group in itertools.groupby(rows, key=tuple):  # rows of the same columns
            for table in tables(list(group), console.width):
                console.print(table)
        for name, value in summary.items():
            console.print(f"{name}: {value}")
        path = benchmark.json
        if path is not None and ended_by is not None:
            path = path.with_suffix(f".stopped{path.suffix}")
        if path is not None and rows:
            write_record(path, rows, summary)
        if ended_by is not None:
            where = f", in {path}" if path is not None and rows else ""
            console.print(f"stopped; rows that were measured: {len(rows)}{where}", markup=False)
            raise ended_by
    except StopNow:
        return 130
    except (CudaError, RunError, ValueError, gymnasium.error.Error) as error:
        console.print(str(error), markup=False)
        return 2
    return 0


def measured(benchmark: Benchmark, console: Console) -> tuple[list[Row], Exception | None]:
    """Measure, and return the rows, and what ended that early, if anything: a signal, or an error.

    What was measured until then may have taken an hour.
    """
    rows: list[Row] = []
    try:
        with StopRequest() as stop, stop.interrupting():
            for row in benchmark.rows():
                console.print(", ".join(f"{name} {value}" for name, value in row.items()))
                rows.append(row)
    except Exception as error:
        if not rows and not isinstance(error, StopNow):
            raise
        return rows, error
    if not rows:
        raise RunError("nothing to measure: the settings leave no case")
    return rows, None


def write_record(path: Path, rows: list[Row], summary: Row) -> None:
    """Write what was measured, with the command, the machine and the versions."""
    record = {
        "command": shlex.join(["python", "scripts/benchmark.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        **surroundings(),
        "rows": rows,
        "summary": summary,
    }
    with atomic_file(path) as file:
        file.write(json.dumps(record, indent=1, default=dataclasses.asdict).encode())


# Columns of numbers that were chosen and not measured.
_CHOSEN = ("num_envs", "threads", "spare_bytes")


def tables(rows: list[Row], width: int) -> Iterator[Table]:
    """Yield the rows as tables of so many characters at most, in which no word is broken.

    Where the columns do not fit into one table, the first ones, which name a row, are in each.
    """
    cells = {
        name: [
            f"{cell.best:.2f}" if isinstance(cell, Ratio) else str(cell)
            for cell in (row[name] for row in rows)
        ]
        for name in rows[0]
    }
    widths = {name: max(map(len, [*name.split(), *column])) for name, column in cells.items()}
    names = list(
        itertools.takewhile(lambda name: name in _CHOSEN or isinstance(rows[0][name], str), cells)
    )
    names = names[:1] if len(names) == len(cells) else names  # all are texts: the first is a name
    others = list(cells)[len(names) :]
    while others:
        columns = [*names, others.pop(0)]
        while others and 1 + sum(3 + widths[name] for name in [*columns, others[0]]) <= width:
            columns.append(others.pop(0))
        part = Table()
        for name in columns:
            part.add_column(name, width=widths[name])
        for row in zip(*(cells[name] for name in columns), strict=True):
            part.add_row(*row)
        yield part


if __name__ == "__main__":
    sys.exit(main())
