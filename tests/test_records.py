"""Records: written whole, read as what they were."""

import json
import math
from pathlib import Path

import pytest

from coordrl.files import RunError
from coordrl.records import null_as_nan, read_json, write_json, write_text

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


def test_a_text_with_the_bytes_of_any_file_name_is_written(tmp_path: Path) -> None:
    write_text("von \udcfcber", tmp_path / "text")
    assert (tmp_path / "text").read_bytes() == rb"von \udcfcber"
