"""A GPU that is pretended: commands run with ``--device cuda`` where there is none.

Tensors say that they lie on a GPU and compute on the CPU; kernels are those of ``tests/shim``,
behind the real ``cuda.bindings``. It shows what takes a GPU's rules to go wrong: a wait for the
device where none should be or within a capture, host and device mixed in an operation, memory that
a graph or a kernel uses and nobody holds, a stream that does not wait for what another has done. It
can't show speed, room, rounding, what compilers make of the kernels, the order of streams within a
capture, or an operation of torch that CUDA lacks.

``python -m pretended_gpu FOLDER LOG SCRIPT [ARGUMENTS]`` runs a script on it, with the libraries
that :func:`build` has left in a folder, and writes what :class:`Log` has to a file of JSON.
"""

import subprocess
import sys
import sysconfig
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_OURS = tuple(f"{ROOT / folder}/" for folder in ("coordrl", "scripts"))


@dataclass
class Log:
    """What happened on the GPU."""

    waits: Counter[str] = field(default_factory=Counter)
    """What the host waited for, with the functions that led there, the innermost first."""
    problems: list[str] = field(default_factory=list)
    """What would be wrong on a GPU though nothing was raised, likewise."""
    launches: Counter[str] = field(default_factory=Counter)
    """Kernels, captures of graphs and their replays, by name."""


LOG = Log()


def place() -> str:
    """Return which of our functions runs, and those that called it, the outermost last."""
    found: list[str] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_OURS):
            found.append(f"{Path(code.co_filename).stem}.{code.co_name}")
        frame = frame.f_back
    return " < ".join(found)


def build(folder: Path) -> None:
    """Compile the libraries of the GPU into a folder."""
    import torch

    from coordrl.emulator import nvrtc

    for name, text in nvrtc.sources().items():
        (folder / name).write_text(text)
    library = ["g++", "-O1", "-fPIC", "-shared", "-ffp-contract=off"]
    shim = ["-std=c++17", f"-I{HERE.parent / 'shim'}", f"-I{folder}", "-Wl,-soname,libcuda.so.1"]
    torch_home = Path(torch.__file__).parent
    torch_own = ["-std=c++20", f"-I{torch_home / 'include'}", f"-I{sysconfig.get_path('include')}"]
    linked = [f"-L{torch_home / 'lib'}", f"-Wl,-rpath,{torch_home / 'lib'}", "-ltorch_cpu", "-lc10"]
    for source, options, made in (
        ("driver.cpp", [*shim, "-ldl"], "libcuda.so.1"),
        ("device.cpp", [*torch_own, *linked], "libdevice.so"),
    ):
        command = [*library, str(HERE / source), *options, "-o", str(folder / made)]
        subprocess.run(command, check=True)
