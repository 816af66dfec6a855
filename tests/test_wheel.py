"""What a stranger installs: the archives that ``make wheel`` makes."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "coordrl"


def package_files() -> set[str]:
    """Return the files of the package as they lie in the repository."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_plays(tmp_path: Path) -> None:
    """The wheel is built from the source archive, as an index's users without one get it."""
    build = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (source,) = tmp_path.glob("*.tar.gz")
    (wheel,) = tmp_path.glob("*.whl")

    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert package_files() <= inside
    records = {name for name in inside if name.startswith(("agents/", "benchmarks/"))}
    assert not records, "the archive of sources carries records that nobody installs"

    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        installed = {name for name in archive.namelist() if name.startswith("coordrl/")}
    (native,) = (name for name in installed if name.startswith("coordrl/emulator/_native."))
    assert installed - {native} == package_files() - {"coordrl/emulator/CMakeLists.txt"}

    play = (
        "import coordrl.emulator as e; emulator = e.Emulator('pong', 2); emulator.reset(seed=0);"
        " print(e.__file__, emulator.step([0, 0]).obs.shape)"
    )
    # Without site, whose hooks put an editable install before everything on the path.
    path = [str(tmp_path / "installed"), sysconfig.get_path("purelib")]
    told = subprocess.run(
        [sys.executable, "-S", "-c", play],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    ).stdout
    assert told == f"{path[0]}/coordrl/emulator/__init__.py (2, 4, 84, 84)\n"
