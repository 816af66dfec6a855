"""What tests of several modules look through."""

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def equal_draws() -> None:
    """Let a test draw the same weights and inputs whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is flushed to the disk and what is renamed, in this order, by names."""
    if sys.platform != "linux":
        pytest.skip("only Linux tells the file of a descriptor by /proc")
    events: list[str] = []
    flush, rename, replace = os.fsync, Path.rename, Path.replace

    def named(path: Path) -> str:
        return "partial" if "partial" in path.name else path.name.lstrip("0")

    def noted_flush(descriptor: int) -> None:
        events.append(f"flush {named(Path(f'/proc/self/fd/{descriptor}').readlink())}")
        flush(descriptor)

    def noted_rename(path: Path, target: Path) -> Path:
        events.append(f"{named(path)} becomes {named(target)}")
        return rename(path, target)

    def noted_replace(path: Path, target: Path) -> Path:
        events.append(f"{named(path)} becomes {named(target)}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_flush)
    monkeypatch.setattr(Path, "rename", noted_rename)
    monkeypatch.setattr(Path, "replace", noted_replace)
    return events


@pytest.fixture
def little_room() -> Iterator[None]:
    """Let no file grow beyond 1000 bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
