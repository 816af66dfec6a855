"""Runs a script on the pretended GPU."""

import ctypes
import json
import os
import runpy
import sys
from pathlib import Path

from pretended_gpu import LOG


def main(folder: str, log: str, script: str, *arguments: str) -> None:
    ctypes.CDLL(f"{folder}/libdevice.so")  # before torch looks for GPUs
    from pretended_gpu.installation import install

    install(Path(folder), int(os.environ.get("PRETENDED_GPU_SPOILS", "0")))
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        Path(log).write_text(json.dumps(vars(LOG)))


main(*sys.argv[1:])
