"""Memory of the pretended GPU, which is the host's, and who holds it."""

import weakref
from typing import Any, ClassVar, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves


class Bytes(NamedTuple):
    """Memory: where its storage begins, and the part that is meant."""

    storage: int
    start: int
    end: int


def bytes_of(tensor: Tensor) -> Bytes:
    """Return the memory of a tensor of the host."""
    start = tensor.data_ptr()
    steps = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    size = (steps + 1) * tensor.element_size() if tensor.numel() else 0
    return Bytes(tensor.untyped_storage().data_ptr(), start, start + size)


class Held:
    """The tensor of the host behind one of the GPU, for as long as anybody has the latter."""

    everything: ClassVar["weakref.WeakSet[Held]"] = weakref.WeakSet()

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner
        self.everything.add(self)


def held_tensors() -> list[Tensor]:
    return [held.inner for held in Held.everything]


def tensors_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
