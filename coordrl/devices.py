"""The device to compute on, a GPU or the CPU, and the number of threads."""

import torch

from coordrl.config import SettingsError
from coordrl.memory import keep_freed_memory


def use_device(name: str, threads: int | None = None) -> str:
    """Return the device to compute on, and prepare the CPU for long work.

    From here on the process uses ``threads`` threads, and keeps freed memory; see
    :func:`~coordrl.memory.keep_freed_memory`.

    Args:
        name: ``"cpu"``, ``"cuda"``, or ``"auto"``: a GPU if there is one.
        threads: Threads of PyTorch, 1 or more; its own default if None.

    Raises:
        SettingsError: If ``"cuda"`` is asked for without a GPU, or ``threads`` is below 1.

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
    """Wait until a GPU has finished its work, so that a clock measures it; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
