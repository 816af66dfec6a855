"""Measure the costs of coordrl and its peers, in turn and in one run.

    python scripts/benchmark.py layers --json benchmarks/layers.json
    python scripts/benchmark.py generators --json benchmarks/generators.json
    python scripts/benchmark.py gan --json benchmarks/gan.json
    python scripts/benchmark.py training --json benchmarks/training.json
    python scripts/benchmark.py envs --json benchmarks/envs.json
    python scripts/benchmark.py device --json benchmarks/device.json  # needs a GPU
    python scripts/benchmark.py emulator --json benchmarks/emulator.json
    python scripts/benchmark.py cuda --json benchmarks/cuda.json

Costs are CPU seconds of the working process, so that other work on the machine affects them little.
What effect it has is the same for all contestants, because they take turns: ratios are reliable
where times are not. A ratio is the median over the turns (where calls differ, as in games, the
ratio of all calls together), with the quartiles. Only cuda and device measure wall-clock time, of
an otherwise idle GPU.

Ctrl-C ends a measurement. The rows so far are printed, and kept beside the record, as
cuda.stopped.json for cuda.json; only a complete record replaces the record itself.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import gymnasium
import torch
import tyro
from rich.console import Console

if __package__ == "scripts":  # python -m scripts.benchmark, whose path has no scripts
    sys.path.insert(0, str(Path(__file__).parent))

from benchmarking.base import Benchmark
from benchmarking.cuda import Cuda
from benchmarking.device import DeviceTraining
from benchmarking.games import Emulators, Envs
from benchmarking.generative import GanTraining, Generators
from benchmarking.layers import Layers
from benchmarking.ratios import Row
from benchmarking.record import tables, write_record
from benchmarking.training import Training
from coordrl.commands import escape_what_stdout_lacks, typed_command
from coordrl.errors import UserError
from coordrl.files import RunError
from coordrl.stopping import StopNow, StopRequest

BENCHMARKS: dict[str, Callable[..., Benchmark]] = {
    "layers": Layers,
    "generators": Generators,
    "gan": GanTraining,
    "training": Training,
    "envs": Envs,
    "device": DeviceTraining,
    "emulator": Emulators,
    "cuda": Cuda,
}

# Errors that are reported in one sentence.
_TOLD = (UserError, gymnasium.error.Error, torch.OutOfMemoryError)


def main(argv: Sequence[str] | None = None) -> int:
    escape_what_stdout_lacks()
    benchmark = tyro.extras.subcommand_cli_from_dict(BENCHMARKS, description=__doc__, args=argv)
    command = typed_command("benchmark.py", argv)
    torch.set_num_threads(1)
    console = Console(soft_wrap=True)
    try:
        benchmark.refuse()
        rows, ended_by = measured(benchmark, console)
        summary = benchmark.summary(rows) if ended_by is None else {}
        for _, group in itertools.groupby(rows, key=tuple):  # rows of the same columns
            for table in tables(list(group), console.width):
                console.print(table)
        for name, value in summary.items():
            console.print(f"{name}: {value}")
        path = benchmark.json
        if path is not None and ended_by is not None:
            path = path.with_suffix(f".stopped{path.suffix}")
        if path is not None and rows:
            write_record(path, rows, summary, command)
        if ended_by is not None:
            where = f", in {path}" if path is not None and rows else ""
            print(f"stopped; rows that were measured: {len(rows)}{where}", file=sys.stderr)
            raise ended_by
    except StopNow:
        return 130
    except _TOLD as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2
    return 0


def measured(benchmark: Benchmark, console: Console) -> tuple[list[Row], Exception | None]:
    """Measure, and return the rows and the signal or error that ended it early, if any.

    The rows are returned in any case: they may have taken an hour.
    """
    rows: list[Row] = []
    try:
        with StopRequest() as stop, stop.interrupting():
            for row in benchmark.rows():
                console.print(", ".join(f"{name} {value}" for name, value in row.items()))
                rows.append(row)
    except Exception as error:
        if not rows and not isinstance(error, StopNow):
            raise
        return rows, error
    if not rows:
        raise RunError("nothing to measure: the settings leave no case")
    return rows, None


if __name__ == "__main__":
    sys.exit(main())
