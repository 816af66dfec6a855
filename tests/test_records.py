"""Records: written whole, read as what they were."""

import math
from pathlib import Path

import pytest

from coordrl.files import RunError
from coordrl.records import read_json, write_json, write_text


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
    write_json({"seeds": [0, 1], "loss": math.inf}, path)
    assert read_json(path, lambda record: (record["seeds"], record["loss"])) == ([0, 1], math.inf)


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
