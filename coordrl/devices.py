"""Where to compute: a GPU or the CPU, and with how many threads."""

import torch

from coordrl.config import SettingsError
from coordrl.memory import keep_freed_memory


def use_device(name: str, threads: int | None = None) -> str:
    """Return the device to compute on, and prepare the CPU for long work.

    From here on the process takes so many threads, and keeps freed memory; see
    :func:`~coordrl.memory.keep_freed_memory`.

    Args:
        name: ``"cpu"``, ``"cuda"``, or ``"auto"``: a GPU if there is one.
        threads: Threads of PyTorch, 1 or more; as many as it takes itself if None.

    Raises:
        SettingsError: If there is no GPU, or fewer than one thread is asked for.

    Example:
        >>> use_device("cpu")
        'cpu'
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise SettingsError("device = 'cuda', but torch finds no GPU; choose 'cpu'")
    if threads is not None:
        if threads < 1:
            raise SettingsError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    keep_freed_memory()
    if name == "auto":
        return "cuda" if has_gpu else "cpu"
    return name


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was given, so that a clock times that; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
