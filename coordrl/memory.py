"""Memory of CPU tensors: reused, or fetched anew from the system each time.

glibc, the C library of most Linux systems, returns a large block to the system when a tensor frees
it, and fetches the next one page by page, zeroed. A convolution with a large output can spend more
time on that than on computing. Other allocators, and GPUs, are left as they are.
"""

import ctypes
import re
import sys

_MALLOPT = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # from glibc's malloc.h
# Below this many bytes, glibc keeps a block if a larger one was freed before
# (DEFAULT_MMAP_THRESHOLD_MAX in its malloc.c).
_MIN_FETCHED = 2**25
_keeps_all = False


# Messages of torch on the CPU and on a GPU, and of a driver; not "an illegal memory access". The
# last is for sizes whose bytes overflow an integer.
_NO_MEMORY = re.compile(
    r"not enough memory|out.of.memory|allocate memory|storage size calculation overflowed",
    re.IGNORECASE,
)


def lacking_memory(error: MemoryError | RuntimeError) -> str | None:
    """Return an out-of-memory error's message in one line; None for any other error.

    Example:
        >>> lacking_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
        'CUDA out of memory. Tried to allocate 2 GiB'
        >>> lacking_memory(RuntimeError("Storage size calculation overflowed with sizes=[1, 9]"))
        'Storage size calculation overflowed with sizes=[1, 9]'
        >>> lacking_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    """
    reason = str(error).strip().partition("\n")[0]
    if isinstance(error, MemoryError):
        return reason or type(error).__name__
    return reason if _NO_MEMORY.search(reason) else None


def keep_freed_memory() -> None:
    """Make the process keep memory that tensors free from here on.

    The process then stays as large as it once was. The saving depends on the sizes of tensors and
    on the machine: on one, the GAN of ``configs/generative.toml`` at 32x32 took 5 % less processor
    time without coordinates and 26 % less with them (``benchmarks/gan.json``).

    Example:
        >>> keep_freed_memory()
    """
    global _keeps_all
    if _MALLOPT is not None:
        _MALLOPT(_TRIM_THRESHOLD, 2**31 - 1)
        _MALLOPT(_MMAP_MAX, 0)
        _keeps_all = True


def is_kept() -> bool:
    """Tell whether :func:`keep_freed_memory` was called and had an effect."""
    return _keeps_all


def is_fetched_anew(size: int) -> bool:
    """Tell whether a tensor of ``size`` bytes takes fresh memory from the system each time.

    Smaller tensors do so at times. This accounts for glibc's defaults and for
    :func:`keep_freed_memory`, but not for environment variables or another allocator.

    Example:
        >>> is_fetched_anew(1000)
        False
    """
    return _MALLOPT is not None and not _keeps_all and size >= _MIN_FETCHED
