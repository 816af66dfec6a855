"""Where tensors of the CPU lie: memory that is used again, or fetched anew each time.

glibc, the C library of most Linux systems, returns a large block to the system when a tensor frees
it, and fetches the next one page by page, zeroed. A convolution with a large output then spends
more time on that than on computing. Other allocators, and GPUs, are left as they are.
"""

import ctypes
import re
import sys

_MALLOPT = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # from glibc's malloc.h
# glibc keeps a block where it has seen a larger one freed, below this many bytes
# (DEFAULT_MMAP_THRESHOLD_MAX in its malloc.c).
_MIN_FETCHED = 2**25
_keeps_all = False


# Of torch on the CPU and on a GPU, and of a driver; not "an illegal memory access". The last is of
# more bytes than can be counted.
_NO_MEMORY = re.compile(
    r"not enough memory|out.of.memory|allocate memory|storage size calculation overflowed",
    re.IGNORECASE,
)


def lacking_memory(error: MemoryError | RuntimeError) -> str | None:
    """Return what an error says of memory that was not enough, in one line; None if it does not.

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
    """Let the process keep memory that tensors have freed, from here on.

    It stays as large as it once was. What this saves depends on the sizes of tensors and on the
    machine: of the processor time of the GAN of ``configs/generative.toml`` at 32x32, 5 % without
    and 26 % with coordinates on one (``benchmarks/gan.json``).

    Example:
        >>> keep_freed_memory()
    """
    global _keeps_all
    if _MALLOPT is not None:
        _MALLOPT(_TRIM_THRESHOLD, 2**31 - 1)
        _MALLOPT(_MMAP_MAX, 0)
        _keeps_all = True


def is_kept() -> bool:
    """Tell whether :func:`keep_freed_memory` was called, and could do what it says."""
    return _keeps_all


def is_fetched_anew(size: int) -> bool:
    """Tell whether a tensor of so many bytes takes fresh memory from the system each time.

    Smaller ones take it at times. What glibc does by default is known, and what
    :func:`keep_freed_memory` has changed, but not what environment variables set, nor another
    allocator that was loaded.

    Example:
        >>> is_fetched_anew(1000)
        False
    """
    return _MALLOPT is not None and not _keeps_all and size >= _MIN_FETCHED
