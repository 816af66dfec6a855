"""Memory that is used again, or fetched anew: what is said of it against what the system counts."""

import subprocess
import sys

import pytest

# Prints, for each size, whether tensors take fresh pages once a large one was freed, and what is
# said of them.
SCRIPT = """
import resource
import torch
from coordrl import memory

def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(size, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def takes_fresh_pages(size):
    torch.zeros(2**25 - 2**20, dtype=torch.uint8)
    return min(faults(size) for _ in range(10)) >= 10  # the system may take some pages meanwhile

def compare():
    for size in (2**20, 2**24, 2**25, 2**27):
        print(int(takes_fresh_pages(size)), int(memory.is_fetched_anew(size)))

compare()
memory.keep_freed_memory()
compare()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other allocators are left as they are")
def test_what_is_said_of_memory_is_what_the_system_counts() -> None:
    script = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    returned = ["0 0", "0 0", "1 1", "1 1"]
    kept = ["0 0", "0 0", "0 0", "0 0"]
    assert script.stdout.splitlines() == returned + kept
