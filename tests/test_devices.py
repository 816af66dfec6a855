"""Where to compute."""

import pytest
import torch

from coordrl.config import SettingsError
from coordrl.devices import use_device


@pytest.mark.parametrize("has_gpu", [True, False])
def test_a_gpu_is_taken_where_there_is_one(has_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert use_device("auto") == ("cuda" if has_gpu else "cpu")
    assert use_device("cpu") == "cpu"
    if has_gpu:
        assert use_device("cuda") == "cuda"
    else:
        with pytest.raises(SettingsError, match="torch finds no GPU; choose 'cpu'"):
            use_device("cuda")


def test_threads_are_taken_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    use_device("cpu")
    use_device("cpu", threads=3)
    assert taken == [3]
    with pytest.raises(SettingsError, match="threads must be at least 1, got 0"):
        use_device("cpu", threads=0)


def test_freed_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("coordrl.devices.keep_freed_memory", lambda: calls.append("kept"))
    use_device("cpu")
    assert calls == ["kept"]
