"""Processes, started by ``torchrun``, that train one model together."""

import datetime
import importlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; by default it is alone.

    Every method but ``share`` is a collective: all ranks call it at the same point. A process that
    is alone exchanges nothing.
    """

    index: int = 0
    """Number of this process. Rank 0 writes files, prints and evaluates."""
    count: int = 1
    """Number of processes."""

    def share(self, total: int, what: str) -> int:
        """Return the equal share of one rank.

        Raises:
            ValueError: If ``total`` is not a multiple of the number of ranks.

        Example:
            >>> Ranks(index=1, count=4).share(64, "run.num_envs")
            16
        """
        if total % self.count:
            raise ValueError(
                f"{what} = {total} is shared by {self.count} processes, so it must be a multiple "
                f"of {self.count}"
            )
        return total // self.count

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all ranks, in place, and return it."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every rank the mean of all ranks' gradients, in one exchange."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        mean = self.sum(torch.cat([gradient.flatten() for gradient in gradients])) / self.count
        parts = torch.split(mean, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def first(self, make: Callable[[], Result]) -> Result:
        """Return what ``make`` returns on rank 0, or raise on every rank what it raises there."""
        if self.count == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.index == 0:
            try:
                outcome[0] = make()
            except Exception as error:  # any, since the other ranks wait for it
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return cast(Result, outcome[0])


def join(device: str) -> Ranks:
    """Join the other processes that ``torchrun`` started; without it, return a lone rank.

    Args:
        device: ``"cuda"`` communicates through NCCL, and gives each process of a host its own GPU,
            which becomes the current one; any other device communicates through gloo.

    Example:
        >>> join("cpu")
        Ranks(index=0, count=1)
    """
    if not dist.is_torchelastic_launched():
        return Ranks()
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        # Before there is a group: its functions keep a group that exists when they are imported, as
        # by an optimizer. Then leave could not end the group's threads, and one that still freed a
        # tensor while Python exited aborted the process.
        importlib.import_module("torch.distributed.nn.functional")
        # A long timeout: the others wait while rank 0 evaluates or writes.
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=datetime.timedelta(hours=2))
    return Ranks(dist.get_rank(), dist.get_world_size())


def is_first() -> bool:
    """Tell whether this process is rank 0 or alone, also before :func:`join`."""
    # RANK alone may come from a launcher that join ignores.
    return not dist.is_torchelastic_launched() or os.environ.get("RANK", "0") == "0"


def leave() -> None:
    """Undo :func:`join`."""
    if dist.is_initialized():
        dist.destroy_process_group()
