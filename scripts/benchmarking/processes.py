"""Training in processes that take turns, each with its own memory and allocator."""

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch

from benchmarking.ratios import take_turns
from coordrl.files import RunError

Learner = Callable[[], int]
"""Trains for a while, and returns the number of steps."""


def train_in_turn(
    learners: Mapping[str, Callable[[], Learner]], seconds: float
) -> dict[str, list[float]]:
    """Train in turn, each in a process of its own, and return the CPU seconds per step.

    Args:
        learners: Functions that make each learner, in its process.
        seconds: Least seconds to spend.
    """
    with contextlib.ExitStack() as open_trainers:
        trainers = {
            name: open_trainers.enter_context(Trainer(make)).train
            for name, make in learners.items()
        }
        return take_turns(trainers, seconds)


class Trainer:
    """A process that trains on request, with its own memory and allocator.

    It is ended when its ``with`` block ends, whatever it is doing then.
    """

    def __init__(self, make: Callable[[], Learner]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve_training, args=(make, other))
        self._process.start()
        other.close()  # so that the end of the process is the end of the pipe

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.join()

    def train(self) -> float:
        """Train for a while, and return the CPU seconds per step."""
        try:
            self._connection.send("train")
            cost: float = self._connection.recv()
        except (EOFError, OSError) as error:
            raise RunError("a process that trains has failed; what it said is above") from error
        return cost


def serve_training(make: Callable[[], Learner], connection: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    torch.set_num_threads(1)
    learn = make()
    while True:
        connection.recv()
        start = time.process_time()
        steps = learn()
        connection.send((time.process_time() - start) / steps)
