"""The kernels go through NVIDIA's compiler, which needs no GPU, and what comes out is kept."""

import os
import re
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from coordrl.emulator import nvrtc

pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is missing: install coordrl[cuda]")


def test_the_kernels_compile_to_ptx() -> None:
    code, log = nvrtc.compile_kernels("compute_90", nvrtc.defines("pong"))

    entries = re.findall(rb"\.visible \.entry (\w+)\(", code)
    assert sorted(entry.decode() for entry in entries) == sorted(nvrtc.KERNELS)
    assert "fma.rn" not in code.decode(), "products and sums are rounded one by one"
    assert log == ""
    # NVRTC 13.5 makes zeros of a table whose constructor is called without braces.
    assert not re.findall(rb"^\.(?:global|const) [^=\n]*\];", code, re.MULTILINE)
    assert b" "[0] == 32, "the log, of one byte, was written over a constant of Python's"


def function_sizes(cubin: bytes) -> dict[str, int]:
    """Return the bytes of machine code of every function, by its mangled name."""
    sections_at, entry, count = struct.unpack_from("<Q10xHH", cubin, 40)
    sections = [
        struct.unpack_from("<IIQQQQI", cubin, sections_at + i * entry) for i in range(count)
    ]
    sizes = {}
    for _, kind, _, _, at, size, names in sections:
        if kind != 2:  # a table of symbols
            continue
        for symbol in range(at, at + size, 24):
            name, info, *_, length = struct.unpack_from("<IBBHQQ", cubin, symbol)
            if info & 15 == 2:  # a function
                start = sections[names][4] + name
                sizes[cubin[start : cubin.index(b"\0", start)].decode()] = length
    return sizes


@pytest.mark.slow
@pytest.mark.parametrize("game", ["pong", "pitfall2"])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_the_kernels_fit_into_the_gpus_of_three_generations(
    architecture: str, game: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cubin, log = nvrtc.compile_kernels(architecture, nvrtc.defines(game), report=True)

    usage = nvrtc.kernel_usage(log)
    with capsys.disabled():
        for name, kernel in usage.items():
            sys.stdout.write(f"\n{architecture} {game} {name}: {kernel}")
    assert cubin.startswith(b"\x7fELF")
    assert "cannot be statically determined" not in log, "a function calls itself"
    assert set(usage) == set(nvrtc.KERNELS)
    for kernel in usage.values():
        assert kernel.registers <= 255
        assert kernel.shared_bytes <= 48 << 10, "more takes another launch"
        assert kernel.stack_bytes <= 32 << 10
    interpreters = [s for name, s in function_sizes(cubin).items() if "run_instructions" in name]
    assert 0 < sum(interpreters) <= 48 << 10, "it fits into the instruction cache"


COMPILE_WITH_ANOTHER = """
import ctypes, sys
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)  # before cuda.bindings looks for its own
from coordrl.emulator import nvrtc
code, log = nvrtc.compile_kernels("compute_90", nvrtc.defines("pong"))
print(nvrtc._bindings("nvrtc").nvrtcVersion()[1:], len(code) > 100_000, repr(log))
"""


@pytest.mark.slow
def test_the_kernels_compile_with_the_compiler_that_torch_brings(tmp_path: Path) -> None:
    # torch 2.9 to 2.13 for CUDA 13 ask for this one. It breaks where 13.2 and later do not.
    wheel = ["pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path)]
    subprocess.run([sys.executable, "-m", *wheel, "nvidia-cuda-nvrtc==13.0.88"], check=True)
    library = next(tmp_path.rglob("libnvrtc.so.13"))

    told = subprocess.run(
        [sys.executable, "-c", COMPILE_WITH_ANOTHER, str(library)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "LD_LIBRARY_PATH": str(library.parent)},  # for what it opens itself
    )  # fmt: skip

    assert told.stdout == "(13, 0) True ''\n", told.stderr


@pytest.mark.parametrize("margin", ["", "ptxas         ."])  # the latter since NVRTC 13.5
def test_a_report_is_read(margin: str) -> None:
    log = f"""
ptxas info    : Compiling entry function 'play_environments' for 'sm_90'
ptxas info    : Function properties for play_environments
{margin}    1296 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 1408 bytes cumulative stack size, 64 bytes smem
ptxas info    : Function properties for other
{margin}    16 bytes stack frame, 1 bytes spill stores, 2 bytes spill loads
"""
    assert nvrtc.kernel_usage(log) == {"play_environments": nvrtc.Usage(128, 1408, 8, 12, 64)}


def test_a_mistake_is_shown_with_its_place() -> None:
    match = r"(?s)do not compile for compute_90: .*no_such_game"
    with pytest.raises(nvrtc.CudaError, match=match) as caught:
        nvrtc.compile_kernels("compute_90", {"COORDRL_GAME": "no_such_game"})
    assert str(caught.value).endswith('of "kernels.cu".'), "what ends the compiler's text in C"


def test_kernels_are_compiled_once_for_what_they_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def compile_kernels(architecture: str, macros: Any) -> tuple[bytes, str]:
        compiled.append((architecture, macros["COORDRL_GAME"]))
        return b"cubin %d" % len(compiled), ""

    monkeypatch.setenv("COORDRL_CACHE", str(tmp_path))
    monkeypatch.setattr(nvrtc, "compile_kernels", compile_kernels)
    pong, breakout = nvrtc.defines("pong"), nvrtc.defines("breakout")

    assert nvrtc.cached_kernels("sm_90", pong, 13000) == b"cubin 1"
    assert nvrtc.cached_kernels("sm_90", pong, 13000) == b"cubin 1"
    assert nvrtc.cached_kernels("sm_90", breakout, 13000) == b"cubin 2"
    assert nvrtc.cached_kernels("sm_80", pong, 13000) == b"cubin 3"
    assert nvrtc.cached_kernels("sm_90", pong, 13010) == b"cubin 4"
    changed = {**nvrtc.sources(), "tia.hpp": "// another chip"}
    monkeypatch.setattr(nvrtc, "sources", lambda: changed)
    assert nvrtc.cached_kernels("sm_90", pong, 13000) == b"cubin 5"
    assert compiled == [("sm_90", "pong"), ("sm_90", "breakout"), ("sm_80", "pong"),
                        ("sm_90", "pong"), ("sm_90", "pong")]  # fmt: skip
    assert len(list((tmp_path / "kernels").iterdir())) == 5


def test_kernels_that_cannot_be_kept_are_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvrtc, "compile_kernels", lambda *_: (b"cubin", ""))
    (tmp_path / "file").write_text("")
    (tmp_path / "kernels").symlink_to("/proc/self")  # a folder in which no file can be made
    for folder in (tmp_path / "file" / "below", Path("/proc/nowhere"), tmp_path):
        monkeypatch.setenv("COORDRL_CACHE", str(folder))
        assert nvrtc.cached_kernels("sm_90", nvrtc.defines("pong"), 13000) == b"cubin"

    def no_home(_: type[Path]) -> Path:  # as in a container for a user that it has no name for
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("COORDRL_CACHE")
    monkeypatch.setattr(Path, "home", classmethod(no_home))
    assert nvrtc.cached_kernels("sm_90", nvrtc.defines("pong"), 13000) == b"cubin"


def test_a_gpu_without_a_number_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert nvrtc.indexed(torch.device("cuda")) == torch.device("cuda:3")
    for index in (0, 1):
        assert nvrtc.indexed(torch.device("cuda", index)) == torch.device("cuda", index)
    assert nvrtc.indexed(torch.device("cpu")) == torch.device("cpu")


def test_the_kernels_of_the_current_gpu_are_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Compiled twice, too, where the cubin can't be kept.
    loaded: list[torch.device] = []
    driver = SimpleNamespace(cuDriverGetVersion=lambda: (0, 13000))
    compiler = SimpleNamespace(nvrtcVersion=lambda: (0, 13, 0))
    parts = {"driver": driver, "nvrtc": compiler}
    monkeypatch.setattr(nvrtc, "_bindings", parts.__getitem__)
    monkeypatch.setattr(nvrtc, "cached_kernels", lambda *_: b"cubin")
    monkeypatch.setattr(nvrtc, "LoadedKernels", lambda _, device: loaded.append(device))
    monkeypatch.setattr(nvrtc, "_loaded", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))

    for name in ("cuda", "cuda:1", "cuda"):
        nvrtc.kernels_for(["pong", "pong"], torch.device(name))

    assert loaded == [torch.device("cuda:1")]


def test_games_are_compiled_side_by_side_and_loaded_by_who_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = threading.Barrier(2, timeout=60)
    loaders: list[int] = []

    def compiled(_: str, macros: dict[str, str], driver: int) -> str:
        both.wait()  # for the other game, which would come later if it had to wait for this one
        return macros["COORDRL_GAME"]

    def loaded(cubin: str, _: torch.device) -> str:
        loaders.append(threading.get_ident())
        return cubin

    driver = SimpleNamespace(cuDriverGetVersion=lambda: (0, 13000))
    parts = {"driver": driver, "nvrtc": SimpleNamespace(nvrtcVersion=lambda: (0, 13, 0))}
    monkeypatch.setattr(nvrtc, "_bindings", parts.__getitem__)
    monkeypatch.setattr(nvrtc, "process_cpu_count", lambda: 2)
    monkeypatch.setattr(nvrtc, "cached_kernels", compiled)
    monkeypatch.setattr(nvrtc, "LoadedKernels", loaded)
    monkeypatch.setattr(nvrtc, "_loaded", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))

    made: list[Any] = [*nvrtc.kernels_for(["pong", "breakout"], torch.device("cuda:0"))]

    assert made == ["pong", "breakout"]
    assert set(loaders) == {threading.get_ident()}


class Driver:
    """A driver that grants so much shared memory, and has a context for each thread."""

    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)

    def __init__(self) -> None:
        self.context = threading.local()
        self.context.current = "torch's"

    def cuModuleLoadData(self, _: bytes) -> tuple[int, str]:
        return 0, "module"

    def cuModuleGetFunction(self, _: str, name: bytes) -> tuple[int, bytes]:
        return 0, name

    def cuCtxGetCurrent(self) -> tuple[int, str]:
        return 0, self.context.current

    def cuCtxSetCurrent(self, context: str) -> tuple[int]:
        self.context.current = context
        return (0,)

    def cuLaunchKernel(self, *_: Any) -> tuple[int]:
        assert self.context.current == "torch's"
        return (0,)

    def cuFuncSetAttribute(self, _: bytes, attribute: int, value: int) -> tuple[Any]:
        from cuda.bindings.driver import CUresult

        assert attribute == 8
        return (CUresult(0) if value <= 90_000 else CUresult.CUDA_ERROR_INVALID_VALUE,)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> nvrtc.LoadedKernels:
    driver = Driver()
    monkeypatch.setattr(nvrtc, "_bindings", lambda _: driver)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))
    return nvrtc.LoadedKernels(b"cubin", torch.device("cuda:0"))


def test_a_thread_that_has_called_nothing_of_cuda_launches_too(
    loaded: nvrtc.LoadedKernels,
) -> None:
    with ThreadPoolExecutor(1) as other:
        other.submit(loaded.launch, "play_environments", 1, 64).result()


def test_shared_memory_that_a_gpu_has_not_is_said_in_a_sentence(
    loaded: nvrtc.LoadedKernels,
) -> None:
    with pytest.raises(nvrtc.CudaError, match=r"no block .* 100000 spare_bytes .*; ask for fewer"):
        loaded.launch("play_environments", 1, 64, spare_bytes=100_000)


def test_a_gpu_that_the_compiler_does_not_know_is_said_in_a_sentence() -> None:
    match = r"^NVRTC compiles for GPUs from sm_\d+ to sm_\d+, not for sm_20; for a newer .*nvrtc$"
    with pytest.raises(nvrtc.CudaError, match=match):
        nvrtc.compile_kernels("sm_20", nvrtc.defines("pong"))


@pytest.mark.parametrize(
    ("cuda", "match"),
    [
        (
            None,
            r"^device='cuda' needs a torch that was built for CUDA, but torch \S+ was built for",
        ),
        ("13.0", r"^device='cuda' needs an NVIDIA GPU with its driver, but torch sees none$"),
    ],
)
def test_what_a_gpu_needs_is_said_in_a_sentence(
    cuda: str | None, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)

    with pytest.raises(nvrtc.CudaError, match=match):
        nvrtc.require_gpu()


def test_a_driver_that_is_too_old_is_said_in_a_sentence() -> None:
    for driver in (13000, 13020, 14000):
        nvrtc.require_driver(driver, (13, 5))
    match = r"^the GPU's driver is for CUDA 12\.8, and NVRTC 13\.5 compiles .* pip install .*-cu12,"
    with pytest.raises(nvrtc.CudaError, match=match):
        nvrtc.require_driver(12080, (13, 5))


def test_a_missing_compiler_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)

    with pytest.raises(nvrtc.CudaError, match=r"NVRTC, which is missing \(.*\); install coordrl\["):
        nvrtc.compile_kernels("compute_90", nvrtc.defines("pong"))


def test_kernels_are_kept_for_the_compiler_that_made_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = iter([b"of 13.0", b"of 13.1"])
    monkeypatch.setenv("COORDRL_CACHE", str(tmp_path))
    monkeypatch.setattr(nvrtc, "compile_kernels", lambda *_: (next(made), ""))
    for minor in (0, 1):
        monkeypatch.setattr("cuda.bindings.nvrtc.nvrtcVersion", lambda: (0, 13, minor))  # noqa: B023
        cubin = nvrtc.cached_kernels("sm_90", nvrtc.defines("pong"), 13000)
        assert cubin == b"of 13.%d" % minor


def test_kernels_are_kept_in_the_home_folder_if_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COORDRL_CACHE", "")
    assert nvrtc.cache_folder() == tmp_path / ".cache" / "coordrl" / "kernels"
    monkeypatch.delenv("COORDRL_CACHE")
    assert nvrtc.cache_folder() == tmp_path / ".cache" / "coordrl" / "kernels"


def test_a_compiler_that_does_not_work_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cuda.bindings.nvrtc import nvrtcResult

    def missing() -> None:
        raise RuntimeError("Failed to dlopen libnvrtc.so.13\nin a long traceback")

    monkeypatch.setattr("cuda.bindings.nvrtc.nvrtcVersion", missing)
    with pytest.raises(nvrtc.CudaError, match=r"is missing \(Failed to .*13\); install coordrl\["):
        nvrtc.cached_kernels("sm_90", nvrtc.defines("pong"), 13000)

    monkeypatch.setenv("COORDRL_CACHE", str(tmp_path))
    monkeypatch.setattr(nvrtc, "compile_kernels", lambda *_: (b"cubin", ""))
    failed = nvrtcResult.NVRTC_ERROR_OUT_OF_MEMORY
    monkeypatch.setattr("cuda.bindings.nvrtc.nvrtcVersion", lambda: (failed,))
    with pytest.raises(nvrtc.CudaError, match=r"^nvrtcResult says NVRTC_ERROR_OUT_OF_MEMORY$"):
        nvrtc.cached_kernels("sm_90", nvrtc.defines("pong"), 13000)


def test_where_torch_sees_a_gpu_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    nvrtc.require_gpu()
