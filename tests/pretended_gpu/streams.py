"""The streams of the pretended GPU, and what each has to wait for."""

import contextlib
import itertools
import time
from collections.abc import Iterator, Set
from typing import Any, NamedTuple

from pretended_gpu import LOG, place
from pretended_gpu.memory import Bytes

Clock = dict[int, int]
"""How much of each stream lies behind something, by the streams' numbers."""


class _Access(NamedTuple):
    part: Bytes
    stream: int
    writes: bool


class Stream:
    """What is launched on it runs in order, and beside what other streams do unless it waits."""

    _numbers = itertools.count()

    def __init__(self, device: Any = None) -> None:
        self.cuda_stream = next(self._numbers)
        self.clock: Clock = {}

    def wait_stream(self, other: "Stream") -> None:
        """Go on behind what the other one has to do now."""
        advance(self.clock, other.clock)

    def synchronize(self) -> None:
        wait("stream.synchronize")


_host: Clock = {}
_launched: Clock = {}
_accesses: dict[int, dict[_Access, int]] = {}  # by storage; when each was the last of its kind
_streams = [Stream()]  # the current one is last
is_capturing = False


def advance(clock: Clock, other: Clock) -> None:
    for number, count in other.items():
        clock[number] = max(clock.get(number, 0), count)


def current_stream(device: Any = None) -> Stream:
    return _streams[-1]


@contextlib.contextmanager
def stream(chosen: Stream) -> Iterator[None]:
    _streams.append(chosen)
    try:
        yield
    finally:
        _streams.pop()


def wait(what: str) -> None:
    """Have the host wait for the current stream, which it can't while that is captured."""
    if is_capturing:
        raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
    LOG.waits[f"{what}: {place()}"] += 1
    advance(_host, current_stream().clock)


def problem(what: str) -> None:
    LOG.problems.append(f"{what}: {place()}")


def synchronize(device: Any = None) -> None:
    """Have the host wait for all streams."""
    wait("torch.cuda.synchronize")
    advance(_host, _launched)


def launch(reads: Set[Bytes], writes: Set[Bytes], new: Set[int] = frozenset()) -> None:
    """Note what the current stream reads and writes next, and that it has waited for that.

    Args:
        reads: Memory.
        writes: Memory.
        new: Storages that nobody has used before, wherever they lie.
    """
    own, number = current_stream().clock, current_stream().cuda_stream
    advance(own, _host)
    own[number] = _launched[number] = _launched.get(number, 0) + 1
    for storage in new:
        _accesses[storage] = {}
    for part, is_write in (*((part, False) for part in reads), *((part, True) for part in writes)):
        before = _accesses.setdefault(part.storage, {})
        for other, count in before.items():
            apart = other.part.end <= part.start or part.end <= other.part.start
            if not apart and (is_write or other.writes) and own.get(other.stream, 0) < count:
                done = "written" if other.writes else "read"
                problem(f"stream {number} has not waited for what {other.stream} has {done}")
        before[_Access(part, number, is_write)] = own[number]


class Event:
    """A moment of a stream, told by the host's clock."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._time = 0.0

    def record(self) -> None:
        self._time = time.perf_counter()

    def elapsed_time(self, end: "Event") -> float:
        return 1000 * (end._time - self._time)
