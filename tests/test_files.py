"""Files that are written whole or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from coordrl.files import RunError, alone_in, atomic_file, make_folder, require_writable


def test_atomic_file_replaces_only_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    path.write_text("old")

    def fail_halfway() -> None:
        with atomic_file(path) as file:
            file.write(b"half a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert path.read_text() == "old"

    with atomic_file(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_replaces_another(tmp_path: Path, disk: list[str]) -> None:
    with atomic_file(tmp_path / "curve.csv") as file:
        file.write(b"new")

    assert disk == ["flush partial", "partial becomes curve.csv", f"flush {tmp_path.name}"]


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not locked there")
def test_two_processes_change_a_file_one_after_the_other(tmp_path: Path) -> None:
    file = tmp_path / "count"
    file.write_text("0")
    program = f"""
import time
from pathlib import Path
from coordrl.files import alone_in
file = Path({str(file)!r})
for _ in range(20):
    with alone_in(file.parent):
        count = int(file.read_text())
        time.sleep(0.005)
        file.write_text(str(count + 1))
"""
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert file.read_text() == "40"


def test_what_a_link_leads_to_is_replaced_and_what_is_no_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    link, pipe = tmp_path / "link.json", tmp_path / "pipe"
    link.symlink_to("real.json")
    os.mkfifo(pipe)

    with atomic_file(link) as file:
        file.write(b"new")

    assert link.is_symlink()
    assert (tmp_path / "real.json").read_text() == "new"
    told = "pipe: it is not a regular file; name another"
    with pytest.raises(RunError, match=told), atomic_file(pipe):
        pass
    with pytest.raises(RunError, match=told):
        require_writable(pipe)
    assert pipe.is_fifo()


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "kernels"
    with atomic_file(path) as first, atomic_file(path) as second:
        first.write(b"the first")
        second.write(b"the second")
    assert path.read_bytes() == b"the first"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_cannot_be_written_is_told_before_and_one_that_can_is_left_alone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "record.json"
    path.write_text("old")

    require_writable(path)
    with pytest.raises(RunError, match=r"cannot write .*below: Not a directory"):
        require_writable(path / "below")
    with (
        pytest.raises(RunError, match=r"cannot write .*below: Not a directory; nothing was"),
        atomic_file(path / "below"),
    ):
        pass
    with pytest.raises(RunError, match="it is a folder; name a file in it"):
        require_writable(tmp_path)

    assert [item.read_text() for item in tmp_path.iterdir()] == ["old"]


@pytest.mark.usefixtures("little_room")
def test_atomic_file_keeps_the_old_one_when_the_disk_is_full(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    path.write_text("old")
    with (
        pytest.raises(RunError, match=r"cannot write .*curve.csv: File too large; nothing was"),
        atomic_file(path) as file,
    ):
        file.write(b"x" * 2000)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_without_a_number_is_told_in_its_words(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=r"cannot write .*curve.csv: the disk is gone; nothing was"),
        atomic_file(tmp_path / "curve.csv"),
    ):
        raise OSError("the disk is gone")


def test_a_folder_for_results_is_made_or_refused_before_the_work(tmp_path: Path) -> None:
    make_folder(tmp_path / "new" / "report")
    assert list((tmp_path / "new" / "report").iterdir()) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"file cannot be a folder for results: File exists"):
        make_folder(tmp_path / "file")
    with pytest.raises(RunError, match=r"/proc/\w+ cannot be a folder for results: "):
        make_folder(Path("/proc/results"))


def test_a_device_is_not_replaced_by_a_file() -> None:
    with pytest.raises(RunError, match=r"/dev/null: it is not a regular file"):
        require_writable(Path("/dev/null"))


def test_a_folder_for_results_that_takes_none_is_refused() -> None:
    with pytest.raises(RunError, match=r"/proc cannot be a folder for results: "):
        make_folder(Path("/proc"))


def test_a_folder_for_results_may_hold_what_is_called_results(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    make_folder(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["results"]


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="such a link is replaced there")
def test_a_link_that_leads_in_a_circle_is_told(tmp_path: Path) -> None:
    link = tmp_path / "record.json"
    link.symlink_to(link.name)
    with pytest.raises(RunError, match=r"cannot write .*record.json: Symlink loop from "):
        require_writable(link)


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not locked there")
def test_where_folders_cannot_be_locked_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with alone_in(tmp_path), alone_in(tmp_path):
        pass
