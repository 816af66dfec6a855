"""Compiles ``kernels.cu`` for the GPU when it is first needed, and launches it.

The compiler is NVIDIA's NVRTC, a library of 60 MB from PyPI; neither a toolkit nor ``nvcc`` is
needed. The kernels are compiled for one game, with only its rules and the bank scheme of its
cartridge. The result is cached, under a name that depends on all of the compiler's input, in
``kernels`` of ``$COORDRL_CACHE`` or ``~/.cache/coordrl``.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from coordrl.emulator.arguments import process_cpu_count
from coordrl.emulator.games import GAMES
from coordrl.emulator.generate_games import generate
from coordrl.errors import UserError
from coordrl.files import atomic_file

KERNELS = ("play_environments", "show_observations")
_OPTIONS = ("--std=c++17", "--fmad=false", "--device-as-default-execution-space")


class CudaError(UserError, RuntimeError):
    """The emulator can't run on a GPU: there is no GPU, or something that it needs is missing."""


@dataclass(frozen=True)
class Usage:
    """A kernel's use of a GPU, as reported by the assembler."""

    registers: int
    """Registers of a thread, including those of the functions that it calls."""
    stack_bytes: int
    """Local memory of a thread."""
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int
    """Shared memory of a block."""


def kernel_usage(log: str) -> dict[str, Usage]:
    """Return each kernel's usage, from the log of :func:`compile_kernels` with ``report``."""
    pattern = (
        r"Compiling entry function '(\w+)'[^\n]*\n[^\n]*Function properties for \1\n"
        r"(?:ptxas\s+\.)?\s+(\d+) bytes stack frame,"
        r" (\d+) bytes spill stores, (\d+) bytes spill loads\s+"
        r"ptxas info\s+: Used (\d+) registers([^\n]*)"
    )
    usage = {}
    for name, stack, stores, loads, registers, rest in re.findall(pattern, log):
        cumulative = re.search(r"(\d+) bytes cumulative stack", rest)
        shared = re.search(r"(\d+) bytes smem", rest)
        usage[name] = Usage(
            int(registers),
            int(cumulative[1]) if cumulative else int(stack),
            int(stores),
            int(loads),
            int(shared[1]) if shared else 0,
        )
    return usage


def require_gpu() -> None:
    """Raise an error that says what is missing, if there is no usable GPU.

    Raises:
        CudaError: If torch sees no GPU.
    """
    if torch.cuda.is_available():
        return
    if torch.version.cuda is None:
        raise CudaError(
            f"device='cuda' needs a torch that was built for CUDA, but torch {torch.__version__} "
            "was built for CPUs"
        )
    raise CudaError("device='cuda' needs an NVIDIA GPU with its driver, but torch sees none")


def gpu_versions() -> dict[str, str]:
    """Return the GPU, and the CUDA versions of its driver and of NVRTC, for records.

    Raises:
        CudaError: If there is no GPU, or no compiler for it.
    """
    require_gpu()
    driver = _checked(_bindings("driver").cuDriverGetVersion())
    compiler = _checked(_bindings("nvrtc").nvrtcVersion())
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": f"{driver // 1000}.{driver % 1000 // 10}",
        "nvrtc": "{}.{}".format(*compiler),
    }


def indexed(device: torch.device) -> torch.device:
    """Return a device with its index: for ``cuda`` the current GPU, which may change later."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return device
    index: int | None = device.index
    return torch.device("cuda", torch.cuda.current_device() if index is None else index)


def sources() -> dict[str, str]:
    """Return the text of ``kernels.cu`` and of all its includes, by file name."""
    folder = resources.files("coordrl.emulator")
    texts = {
        entry.name: entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith((".hpp", ".cu"))
    }
    facts = json.loads(folder.joinpath("games.json").read_text(encoding="utf-8"))
    return {**texts, "games.hpp": generate(facts)}


def defines(game: str) -> dict[str, str]:
    """Return the macros that specialize the kernels for one game.

    Example:
        >>> defines("pong")
        {'COORDRL_GAME': 'pong', 'COORDRL_BANK': 'k2K'}
    """
    return {"COORDRL_GAME": game, "COORDRL_BANK": f"k{GAMES[game].bank}"}


def options(architecture: str, macros: Mapping[str, str]) -> list[str]:
    """Return the compiler's options, which are the same for NVRTC and nvcc."""
    return [
        *_OPTIONS,
        f"--gpu-architecture={architecture}",
        *(f"-D{name}={value}" for name, value in macros.items()),
    ]


def compile_kernels(
    architecture: str, macros: Mapping[str, str], *, report: bool = False
) -> tuple[bytes, str]:
    """Compile the kernels; no GPU is needed for that.

    Args:
        architecture: Target: ``"sm_90"``, or ``"compute_90"`` for PTX, which a driver compiles
            further.
        macros: Result of :func:`defines`.
        report: Add registers, spills and shared memory of every kernel to the log.

    Returns:
        The cubin or the PTX, and the compiler's log.

    Raises:
        CudaError: If there is no compiler, or the kernels don't compile.
    """
    nvrtc = _bindings("nvrtc")
    texts = {name: text.encode() for name, text in sources().items()}
    main = texts.pop("kernels.cu")
    program = _checked(
        nvrtc.nvrtcCreateProgram(
            main, b"kernels.cu", len(texts), list(texts.values()), [n.encode() for n in texts]
        ),
    )
    try:
        return _compiled(nvrtc, program, architecture, macros, report=report)
    finally:
        _checked(nvrtc.nvrtcDestroyProgram(program))


def _compiled(
    nvrtc: Any, program: Any, architecture: str, macros: Mapping[str, str], *, report: bool
) -> tuple[bytes, str]:
    arguments = options(architecture, macros) + (["--ptxas-options=-v"] if report else [])
    encoded = [argument.encode() for argument in arguments]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
    log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
    log_text = log.rstrip(b"\0").decode()
    if status == nvrtc.nvrtcResult.NVRTC_ERROR_INVALID_OPTION:  # the others are always the same
        known = _checked(nvrtc.nvrtcGetSupportedArchs())
        raise CudaError(
            f"NVRTC compiles for GPUs from sm_{known[0]} to sm_{known[-1]}, not for {architecture};"
            " for a newer one update nvidia-cuda-nvrtc"
        )
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CudaError(f"the kernels do not compile for {architecture}: {log_text.strip()}")
    read = (
        (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
        if architecture.startswith("sm_")
        else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    )
    return _text(*read, program), log_text


def cached_kernels(architecture: str, macros: Mapping[str, str], driver: int) -> bytes:
    """Return the cubin from the cache, or compile it and cache it if possible.

    Args:
        architecture: As for :func:`compile_kernels`.
        macros: As for :func:`compile_kernels`.
        driver: Version of the driver that will load it.

    Raises:
        CudaError: As for :func:`compile_kernels`.
    """
    compiler = _checked(_bindings("nvrtc").nvrtcVersion())
    key = [sources(), options(architecture, macros), compiler, driver]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    name = f"{macros.get('COORDRL_GAME', 'any')}-{architecture}-{digest}.cubin"
    with contextlib.suppress(OSError, RuntimeError):  # the latter for a user without a home
        return (cache_folder() / name).read_bytes()
    cubin, _ = compile_kernels(architecture, macros)
    with contextlib.suppress(OSError, RuntimeError):
        path = cache_folder() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(cubin)
    return cubin


def cache_folder() -> Path:
    """Return the folder of compiled kernels."""
    root = os.environ.get("COORDRL_CACHE") or Path.home() / ".cache" / "coordrl"
    return Path(root) / "kernels"


class LoadedKernels:
    """The kernels of one game on one GPU, launched on torch's current stream.

    Args:
        cubin: Result of :func:`cached_kernels`.
        device: The GPU.

    Raises:
        CudaError: If the driver rejects the cubin.
    """

    def __init__(self, cubin: bytes, device: torch.device) -> None:
        self._driver = _bindings("driver")
        self._device = device
        with torch.cuda.device(device):
            torch.cuda.synchronize(device)  # makes torch's context the driver's current one
            self._module = _checked(self._driver.cuModuleLoadData(cubin))
            self._context = _checked(self._driver.cuCtxGetCurrent())
        self._functions = {
            name: _checked(self._driver.cuModuleGetFunction(self._module, name.encode()))
            for name in KERNELS
        }
        self._spare_bytes = dict.fromkeys(KERNELS, 0)

    def launch(
        self, name: str, blocks: int, threads: int, *arguments: bytes, spare_bytes: int = 0
    ) -> None:
        """Launch a kernel.

        Args:
            name: One of ``KERNELS``.
            blocks: Number of blocks.
            threads: Threads per block.
            arguments: The kernel's parameters as bytes, which the driver copies.
            spare_bytes: Bytes of shared memory that a block reserves beyond what it uses.

        Raises:
            CudaError: If the driver refuses, such as for lack of shared memory.
        """
        function = self._functions[name]
        if spare_bytes > self._spare_bytes[name]:  # more than the default must be requested
            attribute = self._driver.CUfunction_attribute
            most = attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            try:
                _checked(self._driver.cuFuncSetAttribute(function, most, spare_bytes))
            except CudaError as error:
                raise CudaError(
                    f"no block of {name} can have {spare_bytes} spare_bytes of shared memory on "
                    f"this GPU ({error}); ask for fewer"
                ) from error
            self._spare_bytes[name] = spare_bytes
        buffers = [ctypes.create_string_buffer(argument, len(argument)) for argument in arguments]
        addresses = (ctypes.c_void_p * len(buffers))(*map(ctypes.addressof, buffers))
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream(self._device).cuda_stream
            # A thread has no context before its first CUDA call.
            _checked(self._driver.cuCtxSetCurrent(self._context))
            _checked(self._driver.cuLaunchKernel(
                    function, blocks, 1, 1, threads, 1, 1, spare_bytes, stream,
                    ctypes.addressof(addresses), 0,
                ),
            )  # fmt: skip


def require_driver(driver: int, compiler: tuple[int, int]) -> None:
    """Raise an error if the driver is too old for code compiled by NVRTC.

    Args:
        driver: CUDA version of the driver, as it reports it: 12080 is 12.8.
        compiler: Version of NVRTC.

    Raises:
        CudaError: If the compiler's major version is above the driver's.
    """
    if driver // 1000 < compiler[0]:
        raise CudaError(
            f"the GPU's driver is for CUDA {driver // 1000}.{driver % 1000 // 10}, and NVRTC "
            f"{compiler[0]}.{compiler[1]} compiles for later ones; update the driver, or, for CUDA "
            "12, pip uninstall nvidia-cuda-nvrtc and pip install 'cuda-bindings<13' "
            "nvidia-cuda-nvrtc-cu12, which compiles the kernels as well"
        )


_loaded: dict[tuple[str, torch.device], LoadedKernels] = {}


def kernels_for(games: Sequence[str], device: torch.device) -> list[LoadedKernels]:
    """Return the kernels of each game, compiled for a GPU and loaded there.

    NVRTC compiles as many games in parallel as there are processors, each in half a minute or less.
    Kernels that this process has loaded already are reused.

    Raises:
        CudaError: If there is no GPU, no compiler for it, or the kernels do not compile.
    """
    require_gpu()
    device = indexed(device)
    missing = [game for game in dict.fromkeys(games) if (game, device) not in _loaded]
    if missing:
        driver = _checked(_bindings("driver").cuDriverGetVersion())
        require_driver(driver, _checked(_bindings("nvrtc").nvrtcVersion()))
        major, minor = torch.cuda.get_device_capability(device)

        def compiled(game: str) -> bytes:
            return cached_kernels(f"sm_{major}{minor}", defines(game), driver)

        with ThreadPoolExecutor(min(len(missing), process_cpu_count())) as pool:
            # In this thread, which has a context.
            for game, cubin in zip(missing, pool.map(compiled, missing), strict=True):
                _loaded[game, device] = LoadedKernels(cubin, device)
    return [_loaded[game, device] for game in games]


def _bindings(part: str) -> Any:
    try:
        module = __import__(f"cuda.bindings.{part}", fromlist=[part])
        if part == "nvrtc":
            module.nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        raise CudaError(
            "the kernels of device='cuda' are compiled by NVIDIA's NVRTC, which is missing "
            f"({(str(error).splitlines() or [type(error).__name__])[0]}); install coordrl[cuda]"
        ) from error
    return module


def _checked(returned: tuple[Any, ...]) -> Any:
    """Return the result of a call of the driver or of NVRTC, after checking its status."""
    status, *results = returned
    if int(status) != 0:
        raise CudaError(f"{type(status).__name__} says {status.name}")
    return results[0] if len(results) == 1 else tuple(results)


def _text(size: Any, get: Any, program: Any) -> bytes:
    length: int = _checked(size(program))
    # The library writes into the bytes object; Python shares objects of a single byte.
    buffer = bytes(max(length, 2))
    _checked(get(program, buffer))
    return buffer[:length]
