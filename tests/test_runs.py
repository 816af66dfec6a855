"""Run folders that stay whole, and files that are written whole or not at all."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordrl.files import RunError, atomic_file
from coordrl.runs import RunFolder, open_run

SETTINGS = 'kind = "test"\n\n[run]\nseed = 1\nsteps = 10\n'


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with open_run(tmp_path / "run", SETTINGS) as opened:
        yield opened


def write_checkpoint(folder: RunFolder, step: int, text: str = "weights") -> None:
    with folder.checkpoint(step) as path:
        (path / "state").write_text(text)


def test_a_checkpoint_is_on_the_disk_before_it_gets_its_name(
    folder: RunFolder, disk: list[str]
) -> None:
    with folder.checkpoint(7) as path:
        (path / "optimizer").write_text("moments")
        (path / "state").write_text("weights")

    assert disk == [
        *("flush manifest.json", "flush optimizer", "flush state", "flush partial"),
        *("partial becomes 7", "flush checkpoints"),
    ]


def test_newest_checkpoint_is_found_and_old_ones_are_deleted(folder: RunFolder) -> None:
    assert folder.newest_checkpoint() is None
    for step in (5, 90, 100):
        write_checkpoint(folder, step, text=f"weights {step}")

    newest = folder.newest_checkpoint()

    assert newest is not None
    assert (newest.step, newest.skipped) == (100, ())
    assert (newest.path / "state").read_text() == "weights 100"
    names = sorted(path.name for path in (folder.path / "checkpoints").iterdir())
    assert names == ["000000000090", "000000000100"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: os.truncate(path / "state", 3), r"state has 3 bytes of 7"),
        (lambda path: (path / "state").write_text("weighty"), r"state has changed since"),
        (lambda path: (path / "state").unlink(), r"state is missing"),
        (lambda path: (path / "manifest.json").unlink(), r"manifest.json is missing"),
        (lambda path: os.truncate(path / "manifest.json", 9), r"its manifest cannot be read"),
        (lambda path: (path / "manifest.json").write_text("[]"), r"its manifest cannot be read"),
    ],
    ids=["truncated", "changed", "missing", "no manifest", "cut manifest", "other manifest"],
)
def test_a_damaged_checkpoint_is_passed_over(
    folder: RunFolder, damage: object, message: str
) -> None:
    assert callable(damage)
    write_checkpoint(folder, 1)
    write_checkpoint(folder, 2)

    damage(folder.path / "checkpoints" / "000000000002")
    newest = folder.newest_checkpoint()
    assert newest is not None
    assert newest.step == 1
    assert message in newest.skipped[0]

    damage(folder.path / "checkpoints" / "000000000001")
    both = rf"from \(checkpoint 0+2 is not whole: .*{message}.*; checkpoint 0+1 is .*{message}"
    with pytest.raises(RunError, match=both):
        folder.newest_checkpoint()


def test_a_run_that_goes_back_goes_on_from_there(folder: RunFolder) -> None:
    def names() -> list[str]:
        return sorted(path.name.lstrip("0") for path in (folder.path / "checkpoints").iterdir())

    for step in (90, 100):
        write_checkpoint(folder, step)
    os.truncate(folder.path / "checkpoints" / "000000000100" / "state", 3)

    with folder.checkpoint(95, keep=1) as path:
        (path / "state").write_text("weights")
    assert names() == ["95"]

    write_checkpoint(folder, 98)
    write_checkpoint(folder, 96)
    assert names() == ["95", "96"]


def test_a_checkpoint_that_was_being_written_does_not_count(folder: RunFolder) -> None:
    write_checkpoint(folder, 1)

    def abort_halfway() -> None:
        with folder.checkpoint(2) as path:
            (path / "state").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        abort_halfway()
    newest = folder.newest_checkpoint()
    assert newest is not None
    assert newest.step == 1


def test_what_a_killed_process_has_left_is_no_part_of_a_checkpoint(folder: RunFolder) -> None:
    checkpoints = folder.path / "checkpoints"
    (checkpoints / ".partial-2").mkdir(parents=True)
    (checkpoints / ".partial-2" / "half").write_text("w")
    (checkpoints / ".partial-1").mkdir()  # a step at which no other process will stop
    (checkpoints / "1 (copy)").mkdir()

    write_checkpoint(folder, 2)

    assert sorted(path.name for path in (checkpoints / "000000000002").iterdir()) == [
        *("manifest.json", "state"),
    ]
    newest = folder.newest_checkpoint()
    assert newest is not None
    assert newest.step == 2
    assert not list(checkpoints.glob(".partial*"))
    write_checkpoint(folder, 3)
    write_checkpoint(folder, 4)
    assert (checkpoints / "1 (copy)").is_dir()


def test_a_full_disk_leaves_earlier_checkpoints_alone(folder: RunFolder, little_room: None) -> None:
    write_checkpoint(folder, 1)
    with pytest.raises(RunError, match=r"cannot write the checkpoint of step 2 .*File too large"):
        write_checkpoint(folder, 2, text="x" * 2000)
    names = [path.name for path in (folder.path / "checkpoints").iterdir()]
    assert names == ["000000000001"]


def test_a_failure_to_flush_counts_as_not_written(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_checkpoint(folder, 1)
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(RunError, match="No space left on device; earlier checkpoints are untouch"):
        write_checkpoint(folder, 2)
    newest = folder.newest_checkpoint()
    assert newest is not None
    assert newest.step == 1


def test_a_checkpoint_of_the_same_step_is_replaced(folder: RunFolder) -> None:
    write_checkpoint(folder, 1, text="old")
    write_checkpoint(folder, 1, text="new")
    newest = folder.newest_checkpoint()
    assert newest is not None
    assert (newest.path / "state").read_text() == "new"
    assert list(newest.path.parent.iterdir()) == [newest.path]
    # As when a process is killed before it deletes the old one.
    shutil.copytree(newest.path, newest.path.with_name(f".replaced-{newest.path.name}"))
    write_checkpoint(folder, 1, text="newer")
    assert (newest.path / "state").read_text() == "newer"
    assert list(newest.path.parent.iterdir()) == [newest.path]


def test_a_run_killed_while_replacing_a_checkpoint_has_the_old_one(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[RunFolder] = []
    rename = Path.rename

    def noted(self: Path, target: Path) -> Path:
        left.append(RunFolder(shutil.copytree(folder.path, tmp_path / f"killed {len(left)}")))
        return rename(self, target)

    write_checkpoint(folder, 1, text="old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", noted)
        write_checkpoint(folder, 1, text="new")

    found = [killed.newest_checkpoint() for killed in left]
    texts = [(newest.path / "state").read_text() for newest in found if newest is not None]
    assert texts == ["old", "old"]
    for killed in left:
        write_checkpoint(killed, 2)
        names = sorted(path.name for path in (killed.path / "checkpoints").iterdir())
        assert names == ["000000000001", "000000000002"]


def test_a_checkpoint_that_cannot_be_replaced_is_put_back(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(folder, 1, text="old")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == ".partial-1":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(RunError, match=r"step 1 .*: Input/output error; earlier .* are untouched"):
        write_checkpoint(folder, 1, text="new")

    newest = folder.newest_checkpoint()
    assert newest is not None
    assert (newest.path / "state").read_text() == "old"
    assert [path.name for path in newest.path.parent.iterdir()] == ["000000000001"]


def test_a_checkpoint_has_lost_its_name_before_any_of_it_is_deleted(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(path: Path, **options: object) -> None:
        if path.exists():
            raise KeyboardInterrupt

    write_checkpoint(folder, 1)
    monkeypatch.setattr(shutil, "rmtree", die)
    with pytest.raises(KeyboardInterrupt), folder.checkpoint(2, keep=1) as path:
        (path / "state").write_text("weights")
    names = sorted(path.name for path in (folder.path / "checkpoints").iterdir())
    assert names == [".partial-000000000001", "000000000002"]


def test_an_old_checkpoint_that_cannot_be_deleted_ends_no_run(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(folder, 1)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "000000000001":
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    for step in (2, 3):
        write_checkpoint(folder, step)
    names = sorted(path.name for path in (folder.path / "checkpoints").iterdir())
    assert names == ["000000000001", "000000000002", "000000000003"]


def test_settings_that_were_cut_off_are_not_those_of_the_defaults(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with open_run(run, SETTINGS):
        pass
    (run / "settings.toml").write_text(SETTINGS.partition("\n[run]")[0])
    with (
        pytest.raises(RunError, match=r"settings\.toml was cut off, it lacks \[run\]; put it back"),
        open_run(run, SETTINGS, resume=True, defaults="[run]\nseed = 1\nsteps = 10\n"),
    ):
        pass


def test_a_new_run_refuses_a_folder_with_a_run_or_anything_else(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", SETTINGS):
        pass
    with (
        pytest.raises(RunError, match=r"run already holds a run; add --resume or choose another"),
        open_run(tmp_path / "run", SETTINGS),
    ):
        pass
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to-mother.txt").write_text("Dear")
    with (
        pytest.raises(RunError, match="letters is not empty and holds no run"),
        open_run(tmp_path / "letters", SETTINGS),
    ):
        pass
    with (
        pytest.raises(RunError, match=r"to-mother.txt is a file; choose another"),
        open_run(tmp_path / "letters" / "to-mother.txt", SETTINGS),
    ):
        pass
    assert (tmp_path / "letters" / "to-mother.txt").read_text() == "Dear"


@pytest.mark.parametrize(
    ("denied", "resume"), [("mkdir", False), ("open", False), ("exists", True)]
)
def test_a_folder_that_cannot_be_used_is_told(
    denied: str, resume: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, denied, deny)  # root, who may run this, is denied nothing
    with (
        pytest.raises(RunError, match=r"cannot use the run folder .*run: Permission denied"),
        open_run(tmp_path / "run", SETTINGS, resume=resume),
    ):
        pass


def test_a_new_run_that_keeps_nothing_leaves_its_folder_empty(tmp_path: Path) -> None:
    def fail(*files: str, resume: bool = False) -> None:
        def begin() -> None:
            with open_run(tmp_path / "run", SETTINGS, resume=resume) as folder:
                for name in files:
                    (folder.path / name).touch()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            begin()

    fail()
    fail("curve.csv")  # the folder was free
    (tmp_path / "run" / "curve.csv").unlink()

    fail(resume=True)  # stopped before it had kept anything
    assert (tmp_path / "run" / "settings.toml").exists()

    fail("curve.csv", resume=True)
    assert (tmp_path / "run" / "settings.toml").read_text() == SETTINGS
    with (
        pytest.raises(RunError, match="run already holds a run"),
        open_run(tmp_path / "run", SETTINGS),
    ):
        pass


def test_a_resumed_run_needs_a_run_with_the_same_settings(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match="holds no run to resume; leave out --resume to start one"),
        open_run(tmp_path / "run", SETTINGS, resume=True),
    ):
        pass
    with open_run(tmp_path / "run", SETTINGS):
        pass
    other = SETTINGS.replace("seed = 1", "seed = 2")

    with (
        pytest.raises(RunError, match=r"other settings: run.seed is 1 there and 2 here; choose"),
        open_run(tmp_path / "run", other, resume=True),
    ):
        pass
    assert (tmp_path / "run" / "settings.toml").read_text() == SETTINGS

    with open_run(tmp_path / "run", other, resume=True, may_differ={"run.seed"}):
        assert (tmp_path / "run" / "settings.toml").read_text() == other


def test_a_setting_that_an_older_run_does_not_know_has_its_default(tmp_path: Path) -> None:
    run, later = tmp_path / "run", f"{SETTINGS}stagger = 5\n"
    defaults = "[run]\nstagger = 0\nsteps = 99\n"
    with open_run(run, SETTINGS):
        pass

    with (
        pytest.raises(RunError, match=r"run.stagger is 0 there and 5 here"),
        open_run(run, later, resume=True, defaults=defaults),
    ):
        pass
    with (
        pytest.raises(RunError, match=r"run.stagger is None there and 5 here"),
        open_run(run, later, resume=True),
    ):
        pass
    with open_run(run, later.replace("5", "0"), resume=True, defaults=defaults):
        pass
    with (
        pytest.raises(RunError, match=r"run.stagger is 0 there and None here"),
        open_run(run, SETTINGS, resume=True),
    ):
        pass
    with open_run(tmp_path / "first", SETTINGS):
        pass
    with open_run(tmp_path / "first", f"pace = 2\n{SETTINGS}", resume=True, defaults="pace = 2\n"):
        pass


def test_settings_that_mean_the_same_are_the_same(tmp_path: Path) -> None:
    run, meanings = tmp_path / "run", {"run.split": str.lower}
    with open_run(run, '[run]\nsplit = "Uniform"\n'):
        pass
    with open_run(run, '[run]\nsplit = "UNIFORM"\n', resume=True, meanings=meanings):
        pass
    with (
        pytest.raises(RunError, match=r"run.split is 'UNIFORM' there and 'Quadrant' here"),
        open_run(run, '[run]\nsplit = "Quadrant"\n', resume=True, meanings=meanings),
    ):
        pass


def test_a_run_in_progress_keeps_other_processes_out_until_it_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom coordrl.runs import open_run\n"
        "with open_run(Path(sys.argv[1]), sys.argv[2]):\n    print('open', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run"), SETTINGS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with (
            pytest.raises(RunError, match="run is in use by another process"),
            open_run(tmp_path / "run", SETTINGS, resume=True),
        ):
            pass
        process.kill()
        process.wait()
    with open_run(tmp_path / "run", SETTINGS, resume=True) as folder:
        assert folder.newest_checkpoint() is None


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not locked there")
def test_a_run_goes_on_where_its_folder_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with open_run(tmp_path / "run", SETTINGS) as folder:
        write_checkpoint(folder, 1)
    with open_run(tmp_path / "run", SETTINGS, resume=True) as folder:
        assert folder.newest_checkpoint() is not None


def test_what_the_system_cannot_tidy_up_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    def stay(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(os, "fsync", refuse)
    with open_run(tmp_path / "run", "seed = 0\n") as folder:
        for step in (1, 2):
            with folder.checkpoint(step, keep=1) as path:
                (path / "state").write_text(str(step))
        (tmp_path / "run" / "checkpoints" / ".partial-1").mkdir()
        monkeypatch.setattr(shutil, "rmtree", stay)
        with folder.checkpoint(3, keep=1) as path:
            (path / "state").write_text("3")
        newest = folder.newest_checkpoint()
    assert newest is not None
    assert newest.step == 3


def test_what_was_written_is_flushed_and_not_an_empty_file(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    flush = os.fsync

    def noted(descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            flushed.append(os.fstat(descriptor).st_size)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with atomic_file(folder.path / "curve.csv") as file:
        file.write(b"new")
    write_checkpoint(folder, 7, text="weights")

    manifest = folder.path / "checkpoints" / "000000000007" / "manifest.json"
    assert flushed == [3, manifest.stat().st_size, 7]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is open")
def test_what_is_written_leaves_nothing_open(folder: RunFolder) -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    write_checkpoint(folder, 1)
    before = opened()
    for step in range(2, 5):
        write_checkpoint(folder, step)
        with atomic_file(folder.path / "curve.csv") as file:
            file.write(b"new")
    assert opened() == before


def test_folders_above_a_new_run_are_made(tmp_path: Path) -> None:
    with open_run(tmp_path / "runs" / "Pong", SETTINGS) as folder:
        assert folder.path.is_dir()


def test_a_new_run_that_ctrl_c_ends_can_be_resumed(tmp_path: Path) -> None:
    def begin(*, resume: bool) -> None:
        with open_run(tmp_path / "run", SETTINGS, resume=resume):
            raise KeyboardInterrupt

    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            begin(resume=resume)


def test_settings_that_are_no_utf_8_are_refused_before_there_is_a_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=r"has '\\udcff', which is not; rename that file or folder"),
        open_run(tmp_path / "run", "data = 'b\udcff'\n"),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_settings_that_find_no_room_leave_the_old_ones(tmp_path: Path, little_room: None) -> None:
    with open_run(tmp_path / "run", SETTINGS):
        pass
    longer = f"{SETTINGS}note = '{2000 * 'x'}'\n"
    with (
        pytest.raises(RunError, match=r"settings\.toml: File too large; nothing was overwritten"),
        open_run(tmp_path / "run", longer, resume=True, may_differ={"run.note"}),
    ):
        pass
    assert (tmp_path / "run" / "settings.toml").read_text() == SETTINGS


def test_settings_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", SETTINGS):
        pass
    (tmp_path / "run" / "settings.toml").write_text("seed = ")
    with (
        pytest.raises(RunError, match=r"settings.toml cannot be read: .*; start anew elsewhere"),
        open_run(tmp_path / "run", SETTINGS, resume=True),
    ):
        pass


def test_a_setting_within_a_table_of_a_table_has_its_full_name(tmp_path: Path) -> None:
    nested = "[algorithm]\nlearning_rate = {start = 0.1, end = 0.0}\n"
    with open_run(tmp_path / "run", nested):
        pass
    with (
        pytest.raises(RunError, match=r"settings: algorithm\.learning_rate\.end is 0\.0 there"),
        open_run(tmp_path / "run", nested.replace("end = 0.0", "end = 0.05"), resume=True),
    ):
        pass


@pytest.mark.parametrize("text", ["{}", '{"files": []}', '{"files": {"state": {}}}'])
def test_a_manifest_that_says_something_else_is_no_whole_checkpoint(
    text: str, folder: RunFolder
) -> None:
    write_checkpoint(folder, 1)
    (folder.path / "checkpoints" / "000000000001" / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=r"no whole checkpoint .*its manifest cannot be read"):
        folder.newest_checkpoint()


def test_the_newest_checkpoint_is_that_of_most_steps_not_of_the_latest_file(
    folder: RunFolder,
) -> None:
    for step in (1, 2):
        write_checkpoint(folder, step)
    os.utime(folder.path / "checkpoints" / "000000000002", (0, 0))  # as a copy may have it
    newest = folder.newest_checkpoint()
    assert newest is not None
    assert newest.step == 2
