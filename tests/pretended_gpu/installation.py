"""Puts the pretended GPU in the place of torch's."""

import contextlib
import ctypes
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from coordrl.emulator import nvrtc
from coordrl.layers import base
from pretended_gpu import LOG, graphs, streams
from pretended_gpu.memory import bytes_of, held_tensors
from pretended_gpu.tensors import Dispatch

# Of device.py's batch: what kernels read and write; the rest are numbers.
_READ, _WRITTEN = (0, 4, 5, 6, 7, 9), (1, 2, 3, *range(12, 25))


class Generator:
    """Draws on the host, whatever the device."""

    def __new__(cls, device: Any = None) -> Any:
        return _HostGenerator()


_HostGenerator, _as_tensor, _tensor = torch.Generator, torch.as_tensor, torch.tensor


def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Any:
    """Make a tensor on the host and copy it, which a mode sees, unlike what torch does."""
    made = data if isinstance(data, torch.Tensor) else _as_tensor(data)
    return made.to(device=device or made.device, dtype=dtype or made.dtype)


def tensor(data: Any, dtype: Any = None, device: Any = None, **options: Any) -> Any:
    """Likewise."""
    return _tensor(data, dtype=dtype, **options).to(device=device or "cpu")


def memory_allocated(device: Any = None) -> int:
    return sum({graphs.storage(t): t.untyped_storage().nbytes() for t in held_tensors()}.values())


def install(folder: Path, spoiled_launch: int) -> None:
    """Have torch see a GPU.

    Args:
        folder: Where ``build`` has left the libraries.
        spoiled_launch: Which launch that plays goes wrong; 0 for none.
    """
    driver = ctypes.CDLL(str(folder / "libcuda.so.1"))  # which cuda.bindings finds by its name
    driver.note_launches(note_launch)
    driver.spoil_launch(spoiled_launch)
    replaced: dict[Any, dict[str, Any]] = {
        nvrtc: {"compile_kernels": lambda *_, **__: (b"kernels", "")},
        # Layers take tensors that are not torch's own for those of a transformation.
        base: {"is_plain": lambda weight: True},
        torch: {"Generator": Generator, "as_tensor": as_tensor, "tensor": tensor},
        torch.cuda: {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "is_current_stream_capturing": lambda: streams.is_capturing,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_capability": lambda _=None: (9, 0),
            "get_device_properties": lambda _=None: SimpleNamespace(multi_processor_count=132),
            "get_device_name": lambda _=None: "a pretended GPU",
            "memory_allocated": memory_allocated,
            "is_bf16_supported": lambda: True,
            "empty_cache": lambda: None,
            "get_rng_state": lambda _=None: torch.get_rng_state(),
            "set_rng_state": lambda state, _=None: torch.set_rng_state(state),
            **{"device": contextlib.nullcontext, "device_of": contextlib.nullcontext},
            **{"CUDAGraph": graphs.CUDAGraph, "graph": graphs.graph},
            **{"Stream": streams.Stream, "stream": streams.stream, "Event": streams.Event},
            **{"current_stream": streams.current_stream, "synchronize": streams.synchronize},
        },
    }
    for owner, values in replaced.items():
        for name, value in values.items():
            setattr(owner, name, value)
    torch.__future__.set_swap_module_params_on_conversion(True)
    Dispatch().__enter__()  # type: ignore[no-untyped-call]


@ctypes.CFUNCTYPE(  # type: ignore[untyped-decorator]
    ctypes.c_bool, ctypes.c_char_p, ctypes.c_uint64, ctypes.POINTER(ctypes.c_void_p)
)
def note_launch(name: bytes, stream: int, arguments: Any) -> bool:
    """Hold what a kernel of the emulator is given to what is on the GPU; tell if it may run."""
    LOG.launches[name.decode()] += 1
    if streams.is_capturing or stream != streams.current_stream().cuda_stream:
        streams.problem(f"{name.decode()} is captured, or on stream {stream}, not the current one")
    batch = struct.unpack("<25q", ctypes.string_at(arguments[0], 25 * 8))
    reads, writes = [batch[i] for i in _READ], [batch[i] for i in _WRITTEN]
    if name == b"play_environments":
        given = [struct.unpack("<q", ctypes.string_at(arguments[i], 8))[0] for i in (1, 2, 3)]
        reads += [address for address in given if address]
    # Of views that begin at the same byte, a game's own rows are the smallest.
    by_size = sorted(held_tensors(), key=lambda tensor: -tensor.numel())
    known = {tensor.data_ptr(): bytes_of(tensor) for tensor in by_size if tensor.numel()}
    if not known.keys() >= {*reads, *writes}:
        return False
    streams.launch({known[address] for address in reads}, {known[address] for address in writes})
    return True
