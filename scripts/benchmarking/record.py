"""The record of a benchmark, and its printed tables."""

import dataclasses
import datetime
import importlib.metadata
import itertools
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarking.games import has_envpool
from benchmarking.ratios import Ratio, Row
from coordrl.emulator.nvrtc import CudaError, gpu_versions
from coordrl.records import processor, write_json

# Flags of /proc/cpuinfo that decide whether bfloat16 pays; the processor's name may not tell.
_MATRIX_FLAGS = {"amx_tile", "amx_bf16", "avx512_bf16"}


def surroundings() -> dict[str, Any]:
    """Return the machine and the versions that a record was made with."""
    facts = processor()
    libraries = ["torch", "numpy", "stable-baselines3", "gymnasium", "ale-py"]
    if has_envpool():
        libraries.append("envpool")
    return {
        "machine": {
            "processor": facts.get("model name", platform.machine()),
            "model": facts.get("model"),
            "matrix instructions": sorted(_MATRIX_FLAGS & set(facts.get("flags", "").split())),
            "cores": os.cpu_count(),
            "torch threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            **_gpu(),
            "load": [round(load, 1) for load in os.getloadavg()],
        },
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in libraries},
        },
    }


def _gpu() -> dict[str, str | None]:
    """Return the GPU and its versions, if any."""
    if not torch.cuda.is_available():
        return {"gpu": None}
    try:
        return {**gpu_versions()}
    except CudaError:
        return {"gpu": torch.cuda.get_device_name()}


def write_record(path: Path, rows: list[Row], summary: Row, command: str) -> None:
    """Write the rows and the summary, with the command, the machine and the versions."""
    record = {
        "command": command,
        "date": datetime.date.today().isoformat(),
        **surroundings(),
        "rows": rows,
        "summary": summary,
    }
    write_json(record, path, default=dataclasses.asdict)


# Columns of numbers that were chosen rather than measured.
_CHOSEN = ("num_envs", "threads", "spare_bytes")


def tables(rows: list[Row], width: int) -> Iterator[Table]:
    """Yield the rows as tables of at most ``width`` characters, without breaking words.

    If the columns do not fit into one table, the first ones, which name a row, are repeated.
    """
    cells = {
        name: [
            f"{cell.value:.2f}" if isinstance(cell, Ratio) else str(cell)
            for cell in (row[name] for row in rows)
        ]
        for name in rows[0]
    }
    widths = {name: max(map(len, [*name.split(), *column])) for name, column in cells.items()}
    names = list(
        itertools.takewhile(lambda name: name in _CHOSEN or isinstance(rows[0][name], str), cells)
    )
    names = names[:1] if len(names) == len(cells) else names  # if all are texts, only the first
    others = list(cells)[len(names) :]
    while others:
        columns = [*names, others.pop(0)]
        while others and 1 + sum(3 + widths[name] for name in [*columns, others[0]]) <= width:
            columns.append(others.pop(0))
        part = Table()
        for name in columns:
            part.add_column(name, width=widths[name])
        for row in zip(*(cells[name] for name in columns), strict=True):
            part.add_row(*row)
        yield part
