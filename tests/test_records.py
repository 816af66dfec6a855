"""Records: written whole, read as what they were."""

import errno
import json
import math
import os
import platform
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from coordrl import records
from coordrl.files import RunError
from coordrl.records import (
    null_as_nan,
    processor,
    provenance,
    read_json,
    write_figure,
    write_json,
    write_text,
)

RECORDS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.json"))


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json({"seeds": [0, 1]}, path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json({"seeds": {0, 1}}, path)
    assert path.read_text() == '{\n "seeds": [\n  0,\n  1\n ]\n}\n'
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(RunError, match="nowhere"):
        write_json({}, tmp_path / "nowhere" / "record.json")


def test_a_record_is_read_as_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json({"seeds": [0, 1], "loss": 0.1 + 0.2}, path)
    assert read_json(path, lambda record: (record["seeds"], record["loss"])) == ([0, 1], 0.1 + 0.2)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_numbers_that_are_not_finite_are_null_which_stricter_readers_take(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    losses = {"losses": (0.5, math.nan, {"least": -math.inf})}
    write_json({**losses, "own": {3}}, path, default=lambda own: [*own, math.inf])

    record = json.loads(path.read_text(), parse_constant=refuse)

    assert record == {"losses": [0.5, None, {"least": None}], "own": [3, None]}
    first, second, third = null_as_nan(record["losses"])
    assert (first, [math.isnan(own) for own in (second, third["least"])]) == (0.5, [True, True])


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_records_are_json(path: Path) -> None:
    json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize(
    "text",
    ["", '{"curve": [', "[]", "null", '{"curve": 3}', '{"other": []}', "[" * 100_000],
    ids=range(7),
)
def test_a_record_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(RunError, match=r"result\.json cannot be read .*; delete it, and the same"):
        read_json(path, lambda record: [*record["curve"]])


def test_a_record_that_is_missing_or_has_another_shape_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"result\.json cannot be read \(No such file"):
        read_json(tmp_path / "result.json", lambda record: record)
    write_json([3], tmp_path / "result.json")
    with pytest.raises(RunError, match=r"result\.json cannot be read \('list' object has no"):
        read_json(tmp_path / "result.json", lambda record: record.items())


def test_a_text_with_the_bytes_of_any_file_name_is_written(tmp_path: Path) -> None:
    write_text("für \udcfcber", tmp_path / "text")
    assert (tmp_path / "text").read_bytes() == b"f\xc3\xbcr \\udcfcber"


def test_a_figure_is_a_png_of_its_inches_times_dots_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "figure.png"
    write_figure(Figure(figsize=(3, 2)), path, dpi=50)
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", (150, 100))

    def cut_off(self: Figure, file: BinaryIO, **_: object) -> None:
        file.write(b"half of")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(Figure, "savefig", cut_off)
    with pytest.raises(RunError, match=r"cannot write .*figure\.png: No space left"):
        write_figure(Figure(), path)
    assert path.read_bytes() == before


CPUINFO = """processor\t: 0
model name\t: Model 3: the fast one
flags\t\t:

processor\t: 1
model name\t: Model 4
"""


def test_a_machine_is_its_first_processor_and_how_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")

    assert (processor(), records.machine()) == ({}, "riscv64, 7 cores")  # not on Linux
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    name = "Model 3: the fast one"
    assert processor() == {"processor": "0", "model name": name, "flags": ""}
    assert provenance("train") == {
        **{"command": "train", "machine": f"{name}, 7 cores"},
        "torch": str(torch.__version__),
    }
