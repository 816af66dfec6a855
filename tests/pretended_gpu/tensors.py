"""Tensors of the pretended GPU: each holds one of the host, and obeys other rules."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pretended_gpu import place, streams
from pretended_gpu.graphs import Call
from pretended_gpu.memory import Held, tensors_of

# What returns a tensor whose size depends on values, or a number.
_WAITING = frozenset({
    *("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "repeat_interleave"),
    *("unique_dim", "_unique2", "unique_consecutive", "equal", "bincount", "multinomial"),
})  # fmt: skip
_INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})


class GpuTensor(Tensor):
    """A tensor that says it is on a GPU."""

    held: Held
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: Any, inner: Tensor) -> "GpuTensor":
        made: GpuTensor = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=torch.device("cuda", 0),
        )  # fmt: skip
        made.held = Held(inner)
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return run(func, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.held.inner.data_ptr()

    def tolist(self) -> Any:
        streams.wait("tolist")
        return self.held.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__: Any = numpy

    def __reduce_ex__(self, protocol: Any) -> Any:
        streams.wait("pickle")
        copy = self.held.inner.clone()
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        return copy.__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


class Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what makes tensors on the GPU out of none."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Compute an operation whose arguments or results may lie on the GPU."""
    given = tensors_of((args, kwargs))
    on_gpu = [tensor for tensor in given if isinstance(tensor, GpuTensor)]
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if not on_gpu and (device is None or device.type != "cuda"):
        return func(*args, **kwargs)
    name = func._schema.name.removeprefix("aten::")
    to_host = device is not None and device.type == "cpu"
    if name == "copy_":
        to_host = not isinstance(given[0], GpuTensor)
    _check(func, name, args, len(on_gpu) < len(given), to_host)
    inner_args, inner_kwargs = tree_map(_inner, (tuple(args), dict(kwargs)))
    if "pin_memory" in inner_kwargs:
        inner_kwargs["pin_memory"] = None
    result = Call(func, inner_args, inner_kwargs, [tensor.held.inner for tensor in on_gpu]).run()
    if to_host:
        return result
    known = {id(tensor.held.inner): tensor for tensor in on_gpu}
    return tree_map(lambda x: _outer(x, known), result)


def _inner(value: Any) -> Any:
    if isinstance(value, GpuTensor):
        return value.held.inner
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _outer(value: Any, known: Mapping[int, GpuTensor]) -> Any:
    if not isinstance(value, Tensor):
        return value
    return known[id(value)] if id(value) in known else GpuTensor(value)


def _check(func: Any, name: str, args: Sequence[Any], mixed: bool, to_host: bool) -> None:
    """Wait as a GPU would, and refuse what it would refuse."""
    if name in ("_to_copy", "copy_"):
        if to_host or mixed or not isinstance(args[0], GpuTensor):
            streams.wait("copy to the host" if to_host else "copy from the host")
        return
    if name in _WAITING:
        streams.wait(name)
    if name in _INDEXING:
        indices = tensors_of(args[1])
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            streams.wait(f"{name} by a mask")
        if not all(isinstance(index, GpuTensor) for index in indices):
            streams.wait(f"{name} by indices of the host")
        args = [args[0], *args[2:]]
    # Numbers of the host are arguments of kernels, where each element is computed on its own.
    strangers = [t for t in tensors_of(args) if not isinstance(t, GpuTensor)]
    takes_numbers = torch.Tag.pointwise in func.tags or name in (*_INDEXING, "fill_")
    if any(tensor.ndim > 0 or not takes_numbers for tensor in strangers):
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} at {place()}")
