"""The 6507 of a GPU does instructions in stages: beside what its table of opcodes says."""

import subprocess
from pathlib import Path

from coordrl.emulator import nvrtc

SHIM = Path(__file__).parent / "shim"


def test_every_opcode_does_in_stages_what_the_table_says(tmp_path: Path) -> None:
    for name, text in nvrtc.sources().items():
        (tmp_path / name).write_text(text)
    program = tmp_path / "opcodes"
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined"]
    command += ["-fno-sanitize-recover=all"]
    command += [f"-I{SHIM}", f"-I{tmp_path}", "-o", str(program), str(SHIM / "opcodes_on_cpu.cpp")]
    subprocess.run(command, check=True)

    done = subprocess.run([program], capture_output=True, text=True)

    # Of the others, calls, returns and indirect jumps nearly always are.
    assert done.stdout == "1024000 states, 230 opcodes always taken apart\n", done.stdout
    assert done.returncode == 0
