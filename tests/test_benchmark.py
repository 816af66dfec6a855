"""``scripts/benchmark.py``: what it refuses, prints and keeps."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from rich.console import Console
from torch.testing import assert_close

import benchmark
from benchmarking import cuda, record
from benchmarking.cuda import Cuda, measured_for_targets, target_rows
from benchmarking.device import DeviceTraining, training_row
from benchmarking.generative import tiled, untiled
from benchmarking.layers import Layers
from benchmarking.ratios import Ratio, Row, take_turns, times_as_fast
from benchmarking.record import tables
from coordrl import device_algorithms
from coordrl.emulator.nvrtc import CudaError
from coordrl.envs import games
from coordrl.files import RunError
from coordrl.generative.networks import CoordConvGenerator
from coordrl.layers.base import CoordConv
from coordrl.sb3_envs import VectorEnvAdapter

SCRIPT = benchmark.__file__


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_of_a_benchmark_breaks_no_word(width: int) -> None:
    columns = [f"forward+backward of contestant {i}" for i in range(8)]
    rows: list[Row] = [
        {"layer": name, "num_envs": num_envs, **{c: i + 0.5 for i, c in enumerate(columns)}}
        for name, num_envs in (("Nature 1, batch 8", 4096), ("ResNet stem, batch 32", 65536))
    ]
    console = Console(width=width, record=True, file=io.StringIO())

    for table in tables(rows, width):
        console.print(table)

    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert text.count("forward+backward") == 8
    names = [text.count(str(row[column])) for row in rows for column in ("layer", "num_envs")]
    assert names == [1 if width == 200 else 4] * 4  # once in each table
    for i in range(8):
        assert f" {i} " in text
        assert text.count(f" {i}.5 ") == 2


def number(cell: object) -> float:
    assert isinstance(cell, int | float)
    return cell


def played(num_envs: int, threads: int, frames: int) -> Row:
    """A row of the emulator in ``benchmark.py cuda``."""
    spread = {"num_envs": num_envs, "threads": threads, "spare_bytes": 0}
    memory = {"bytes an environment": 70_000, "of them observations": 56_448}
    return {"game": "pong", **spread, "frames a second": frames, **memory}


def test_what_a_gpu_did_stands_beside_the_targets_and_its_peers() -> None:
    # The median of the games in the fastest way to spread them.
    large = [played(65536, 64, speed) for speed in (4_000_000, 3_100_000, 2_000_000)]
    large += [played(65536, 8, speed) for speed in (2_000_000, 3_000_000, 9_000_000)]
    small = [played(4096, 64, 1_500_000)]
    training = [
        training_row("rate", "ppo", "Pong", 4096, 2_500_000, 10.0),
        training_row("to 18", "ppo", "Pong", 4096, 9_000_000, 100.0, 18.2),
        training_row("stock SB3", "ppo", "Pong", 8, 200_000, 10.0),
    ]

    rows = list(target_rows(measured_for_targets(large + small + training)))

    told = [(row["measured"], row["reached"], row["stock SB3, here"]) for row in rows]
    assert told == [
        ("3,100,000", "must", ""),
        ("1,500,000", "goal", ""),
        ("250,000", "nothing", "20,000"),
        ("100", "must", ""),
        ("13,552", "must", ""),
    ]
    assert rows[2]["CuLE, Titan V"] == "26,000 to 68,000"


def test_a_target_that_was_not_measured_is_not_reached() -> None:
    below = training_row("to 18", "ppo", "Pong", 4096, 9_000_000, 100.0, 17.9)
    broken_off = training_row("to 18", "ppo", "Pong", 4096, 9_000_000, 100.0)

    for training in (below, broken_off):
        rows = target_rows(measured_for_targets([training]))
        assert {(row["measured"], row["reached"]) for row in rows} == {("", "not measured")}


def test_the_benchmark_of_a_gpu_prints_what_was_played_and_trained_and_the_targets(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    trained = training_row("rate", "ppo", "Pong", 4096, 4_000_000, 10.0)
    monkeypatch.setattr(cuda, "require_gpu", lambda: None)
    monkeypatch.setattr(Cuda, "_emulator", lambda _: iter([played(65536, 64, 5_000_000)]))
    monkeypatch.setattr(DeviceTraining, "rows", lambda _: iter([trained]))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    record = tmp_path / "cuda.json"
    options = ["--num-envs", "65536", "--json", str(record)]

    assert benchmark.main(["cuda", *options]) == 0

    rows = json.loads(record.read_text())["rows"]
    assert [row.get("reached") for row in rows] == [
        *(None, None),
        *("goal", "not measured", "must", "not measured", "must"),
    ]
    text = capsys.readouterr().out
    assert "65536 environments in blocks of 64 with 0 spare bytes, median frames a second" in text
    assert all(row["target"].split(",")[0] in text for row in rows[2:])
    in_tables = [line for line in text.splitlines() if line.startswith("│")]
    assert sum("goal" in line for line in in_tables) == 1
    assert sum("measured" in line for line in in_tables) == 2


def test_games_are_measured_one_after_the_other_or_in_one_batch() -> None:
    assert Cuda(games=("Pong", "breakout"))._batches() == [("pong",), ("breakout",)]
    assert Cuda(games=("Pong", "breakout"), together=True)._batches() == [("pong", "breakout")]
    (together,) = Cuda(together=True)._batches()
    assert set(games(atari57=True)) - set(together) == {"skiing"}


def test_environments_that_games_cannot_share_are_refused_before_anything_is_compiled() -> None:
    with pytest.raises(ValueError, match=r"multiples of the 56 games .* got 4096: take 4088"):
        Cuda(together=True).refuse()
    Cuda(together=True, num_envs=(4088, 65520)).refuse()


def test_a_record_of_a_gpu_without_a_compiler_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> dict[str, str]:
        raise CudaError("NVRTC is missing")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(record, "gpu_versions", missing)
    assert record.surroundings()["machine"]["gpu"] == "NVIDIA H200"
    versions = {"gpu": "NVIDIA H200", "driver": "13.0", "nvrtc": "13.5"}
    monkeypatch.setattr(record, "gpu_versions", lambda: versions)
    assert versions.items() <= record.surroundings()["machine"].items()


def test_a_table_of_texts_has_all_of_them() -> None:
    rows = list(target_rows({}))
    parts = list(tables(rows, 120))
    shown = {column.header for part in parts for column in part.columns}
    assert shown == set(rows[0])
    assert all(part.row_count == len(rows) for part in parts)


def test_contestants_take_turns_of_which_the_first_is_not_counted() -> None:
    called: list[str] = []

    def contestant(name: str, cost: float) -> Callable[[], float]:
        def call() -> float:
            called.append(name)
            return cost * called.count(name)

        return call

    contestants = {"ours": contestant("ours", 1.0), "theirs": contestant("theirs", 3.0)}

    costs = take_turns(contestants, seconds=0, least=6)

    assert costs == {"ours": [2, 3, 4, 5, 6, 7], "theirs": [6, 9, 12, 15, 18, 21]}
    turns = [tuple(called[i : i + 2]) for i in range(2, len(called), 2)]
    assert set(turns) == {("ours", "theirs"), ("theirs", "ours")}  # each in its own order
    [(name, ratio)] = times_as_fast(costs).items()
    assert name == "times as fast as theirs"
    assert isinstance(ratio, Ratio)
    assert (ratio.value, ratio.low, ratio.high) == (3, 3, 3)


SMALL_DEVICE = ("run.num_envs=4", "algorithm.n_steps=8", "algorithm.batch_size=16",
                "acceleration.bfloat16=false")  # fmt: skip


def test_the_way_to_a_return_ends_with_the_first_evaluation_that_finds_it() -> None:
    chosen = DeviceTraining(
        device="cpu", updates=1, target=-30, episodes=1, evaluate_every=3, stock_seconds=0,
        set=(SMALL_DEVICE,),
    )  # fmt: skip

    rate, way = chosen.rows()

    assert (rate["training"], rate["raw frames"]) == ("rate", 4 * 8 * 4)
    assert (way["training"], way["raw frames"]) == ("to -30", 3 * 4 * 8 * 4)
    assert -21 <= number(way["mean return"]) <= 21
    summary = chosen.summary([rate, way])
    assert list(summary) == ["raw frames a second, rate", "seconds to -30"]


def test_a_return_that_was_not_reached_has_no_seconds() -> None:
    chosen = DeviceTraining(target=18.0)
    ways = [
        training_row("to 18", "ppo", "Pong", 8, 4000, 10.0, found)
        for found in (math.nan, 17.9, 18.0)
    ]
    assert [chosen.summary([way])["seconds to 18"] for way in ways] == [
        *("not reached", "not reached"),
        10.0,
    ]


def test_a_run_that_is_over_before_it_is_timed_gives_no_rate() -> None:
    short = (*SMALL_DEVICE, "run.total_steps=96")  # three rollouts, the warm-up
    chosen = DeviceTraining(device="cpu", target=None, stock_seconds=0, set=(short,))
    rows = chosen.rows()
    next(rows)
    with pytest.raises(RunError, match=r"is over after 0 updates behind .* asks for 10; raise"):
        next(rows)


def test_what_games_play_before_the_first_rollout_is_on_the_way_to_a_return(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reset, clock, hours = VectorEnvAdapter.reset, time.perf_counter, [0]

    def slow_reset(self: VectorEnvAdapter) -> Any:
        hours[0] += 1
        return reset(self)

    monkeypatch.setattr(VectorEnvAdapter, "reset", slow_reset)
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + 3600 * hours[0])
    chosen = DeviceTraining(
        device="cpu", updates=1, target=-30, episodes=1, evaluate_every=1, stock_seconds=0,
        set=(SMALL_DEVICE, ("run.stagger=2",)),
    )  # fmt: skip

    rate, way = chosen.rows()

    assert rate["raw frames"] == way["raw frames"]
    assert number(way["seconds"]) > 3600 > number(rate["seconds"])


def test_a_rate_is_that_of_a_training_that_has_begun_to_learn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    updates: list[int] = []
    train = device_algorithms.DQN.train

    def counted(self: Any, gradient_steps: int, batch_size: int = 100) -> None:
        updates.append(self.num_timesteps)
        train(self, gradient_steps, batch_size)

    monkeypatch.setattr(device_algorithms.DQN, "train", counted)
    small = ("run.num_envs=4", "algorithm.buffer_size=640", "algorithm.batch_size=4",
             "algorithm.train_freq=8", "acceleration.bfloat16=false")  # fmt: skip
    chosen = DeviceTraining(
        device="cpu", algo="dqn", updates=2, target=None, stock_seconds=0, set=(small,)
    )

    [rate] = chosen.rows()

    # The first three rollouts, of 32 steps each, are not timed.
    assert (rate["raw frames"], updates) == (2 * 32 * 4, [128, 160])


def test_a_process_that_fails_ends_the_benchmark() -> None:
    # Stock SB3's wrappers have no Klax.
    command = [sys.executable, SCRIPT, "training", "--algos", "ppo", "--game", "Klax"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    said = "benchmark.py: a process that trains has failed; what it said is above\n"
    assert done.stderr.endswith(said)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("device --device cpu --evaluate-every 0", "--evaluate-every must be at least 1, got 0"),
        ("device --device cpu --updates 0", "--updates must be at least 1, got 0"),
        ("emulator --steps 0", "--steps must be at least 1, got 0"),
        ("envs --num-envs 8 0", "--num-envs must be at least 1, got 0"),
        ("cuda --turns 1", "--turns must be at least 2, got 1"),
        ("layers --seconds -3", "--seconds must be at least 0, got -3"),
        ("emulator --seconds nan", "--seconds must be at least 0, got nan"),
        ("device --device cpu --target nan", "--target must be a return, or None, got nan"),
        ("envs --games Pongg", "there is no Atari game 'Pongg'; did you mean Pong"),
        ("training --game Pongg", "there is no Atari game 'Pongg'; did you mean Pong"),
        ("layers --json missing/x.json", "cannot write missing/x.json: No such file or directory"),
    ],
)
def test_what_would_measure_nothing_is_refused_before(
    command: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)

    assert benchmark.main(command.split()) == 2

    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("name", ["envs", "emulator", "training", "device", "cuda"])
def test_without_a_compiled_emulator_nothing_is_called_ours(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordrl.emulator.compiled._native", None)

    with pytest.raises(RunError, match="ale-py plays the games instead"):
        benchmark.BENCHMARKS[name]().refuse()

    benchmark.BENCHMARKS["layers"]().refuse()  # plays nothing


def is_told_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_layer_that_is_timed_without_gradient_keeps_its_map(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed: list[int] = []  # maps that each call without gradient computed

    def turns(
        contestants: dict[str, Callable[[], float]], seconds: float
    ) -> dict[str, list[float]]:
        for _ in range(3):
            for name, call in contestants.items():
                with mock.patch.object(
                    CoordConv, "_compute_map", autospec=True, side_effect=CoordConv._compute_map
                ) as compute_map:
                    call()
                if name == "no gradient, ours":
                    computed.append(compute_map.call_count)
        return {name: [1.0, 1.0] for name in contestants}

    monkeypatch.setattr("benchmarking.layers.take_turns", turns)
    formats = {"memory_formats": ("contiguous",), "freed_memory": ("returned",)}

    assert len(list(Layers(only="Nature 3, batch 8", **formats).rows())) == 1  # type: ignore[arg-type]

    assert computed == [1, 0, 0]


@pytest.mark.parametrize("whole", [False, True])
def test_the_tiled_generator_draws_the_same_and_builds_its_coordinates_once(whole: bool) -> None:
    generator, latents = CoordConvGenerator(16, 5, 4), torch.randn(3, 5)
    ours = untiled(generator, latents, whole=whole)
    assert_close(tiled(generator, latents, whole=whole), ours)
    with mock.patch("coordrl.coordinate_grid", side_effect=AssertionError("built again")):
        assert_close(tiled(generator, latents, whole=whole), ours)


def loses_its_gpu() -> None:
    raise RunError("the GPU is gone")


def asks_for_too_much() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 10.25 GiB.")


@pytest.mark.parametrize(
    ("what_happens", "status", "said"),
    [
        (is_told_to_stop, 130, ""),
        (loses_its_gpu, 2, "the GPU is gone"),
        (asks_for_too_much, 2, "benchmark.py: CUDA out of memory. Tried to allocate 10.25 GiB.\n"),
    ],
)
def test_a_measurement_that_is_stopped_keeps_its_rows_and_the_earlier_record(
    what_happens: Callable[[], None],
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def rows(_: Any) -> Any:
        yield {"layer": "Nature 1", "forward ms": 1.5}
        what_happens()
        yield {"layer": "not measured", "forward ms": 0.0}

    monkeypatch.setattr(Layers, "rows", rows)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    path = tmp_path / "layers.json"
    path.write_text("earlier")

    assert benchmark.main(["layers", "--json", str(path)]) == status

    assert path.read_text() == "earlier"
    stopped = tmp_path / "layers.stopped.json"
    assert [row["layer"] for row in json.loads(stopped.read_text())["rows"]] == ["Nature 1"]
    printed, error = capsys.readouterr()
    assert f"stopped; rows that were measured: 1, in {stopped}\n" in error
    assert printed.count("Nature 1") == 2  # as it came, and in the table
    assert said in error


@pytest.mark.slow
def test_ctrl_c_ends_a_benchmark_of_training_and_its_processes() -> None:
    command = [sys.executable, SCRIPT, "training", "--algos", "ppo", "--seconds", "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:  # fmt: skip
        time.sleep(25)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        out, err = process.communicate(timeout=60)

    assert (process.returncode, out) == (130, "")
    assert err.endswith("stopped; rows that were measured: 0\n")
    assert "Traceback" not in err
    time.sleep(5)  # what tracks Python's shared memory ends a little later
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.slow
def test_the_benchmark_of_a_gan_holds_its_ways_to_train_beside_each_other(tmp_path: Path) -> None:
    record = tmp_path / "x.json"
    options = ["--scale", "quick", "--seconds", "0", "--json", str(record)]

    subprocess.run([sys.executable, SCRIPT, "gan", *options], check=True, timeout=300)

    rows = json.loads(record.read_text())["rows"]
    assert [row["coords"] for row in rows] == ["none", "all"]
    # Who is faster is for a record to say.
    for name in ("memory fetched anew / ours", "ours / with bfloat16"):
        assert all(0.1 < row[name]["value"] < 10 for row in rows)


@pytest.mark.slow
def test_stock_sb3_trains_beside_ours() -> None:
    chosen = DeviceTraining(
        device="cpu", updates=1, target=None, stock_seconds=0.1, set=(SMALL_DEVICE,)
    )

    _, stock = chosen.rows()

    # The zoo's rollout: eight games of 128 steps, four frames to a step.
    assert (stock["training"], stock["num_envs"]) == ("stock SB3", 8)
    assert stock["raw frames"] == 8 * 128 * 4
    assert number(stock["seconds"]) > 0.1
