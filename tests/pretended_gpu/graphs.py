"""CUDA graphs of the pretended GPU: operations on a tape, which are computed again."""

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pretended_gpu import LOG, place, streams
from pretended_gpu.memory import bytes_of, held_tensors, tensors_of


class Call:
    """An operation on tensors of the host, of which ``given`` lie on the GPU."""

    def __init__(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], given: list[Tensor]
    ) -> None:
        self.func, self.args, self.kwargs, self.given = func, args, kwargs, given
        parameters = {parameter.name: parameter for parameter in func._schema.arguments}
        named = {**dict(zip(parameters, args, strict=False)), **kwargs}
        written = tensors_of([
            value for name, value in named.items()
            if (alias := parameters[name].alias_info) is not None and alias.is_write
        ])  # fmt: skip
        self.written = [tensor for tensor in written if any(tensor is own for own in given)]
        aliases = any(returned.alias_info is not None for returned in func._schema.returns)
        self.is_view = aliases and not func._schema.is_mutable
        self.results: list[Tensor] = []

    def run(self) -> Any:
        """Compute it, or record it."""
        if tape is not None:
            tape.keep(self)
        result = self.func(*self.args, **self.kwargs)
        self.results = tensors_of(result)
        if self.is_view:
            return result
        if tape is None:
            self._launch()
        else:
            tape.record(self)
        return result

    def made(self) -> set[int]:
        """Return the storages that it takes for its results."""
        return {storage(t) for t in self.results} - {storage(t) for t in self.given}

    def repeat(self) -> None:
        """Compute it again, with the results in the same place."""
        again = tensors_of(self.func(*self.args, **self.kwargs))
        for own, new in zip(self.results, again, strict=True):
            if own.data_ptr() != new.data_ptr():
                own.copy_(new)
        self._launch()

    def _launch(self) -> None:
        written = [*self.written, *self.results]
        reads, writes = ({bytes_of(t) for t in group} for group in (self.given, written))
        streams.launch(reads, writes, self.made())


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Tape:
    """What was computed within a capture."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._made: set[int] = set()
        self._inputs: dict[int, str] = {}
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def keep(self, call: Call) -> None:
        """Note the memory of others that is used, and what stands where it is written to."""
        for tensor in call.given:
            if storage(tensor) not in self._made:
                self._inputs.setdefault(storage(tensor), f"{tuple(tensor.shape)} of {place()}")
        for tensor in call.written:
            if storage(tensor) not in self._made | self._before.keys():
                memory = tensor.untyped_storage()
                copy = memory.clone()  # type: ignore[no-untyped-call]
                self._before[storage(tensor)] = memory, copy

    def record(self, call: Call) -> None:
        self._made |= call.made()
        self._calls.append(call)

    def rewind(self) -> None:
        """Undo what a capture does not do."""
        for memory, before in self._before.values():
            memory.copy_(before)

    def replay(self) -> None:
        held = {storage(tensor) for tensor in held_tensors()}
        for at, what in self._inputs.items():
            if at not in held:
                streams.problem(f"a graph reads memory that nobody holds: {what}")
        for call in self._calls:
            call.repeat()


tape: Tape | None = None


class CUDAGraph:
    """A tape behind torch's name."""

    def __init__(self) -> None:
        self.tape = Tape()

    def replay(self) -> None:
        LOG.launches["replay"] += 1
        self.tape.replay()


@contextlib.contextmanager
def graph(chosen: CUDAGraph) -> Iterator[None]:
    global tape
    streams.synchronize()
    gc.collect()
    LOG.launches["capture"] += 1
    tape, streams.is_capturing = chosen.tape, True
    try:
        with streams.stream(streams.Stream()):
            yield
    finally:
        tape, streams.is_capturing = None, False
        chosen.tape.rewind()
