"""What README shows runs as it stands there, each block by itself."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
# Lengths of what trains, cut short.
SHORTER = {"n_steps=128": "n_steps=32", "learn(10_000)": "learn(64)", "num_envs=8": "num_envs=2"}


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_runs_by_itself(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    code = BLOCKS[number]
    for text, shorter in SHORTER.items():
        code = code.replace(text, shorter)
    exec(compile(code, f"README.md, block {number}", "exec"), {"__name__": "__main__"})


def test_what_is_cut_short_is_there() -> None:
    assert len(BLOCKS) >= 5
    assert all(text in README for text in SHORTER)


def test_every_file_that_is_named_is_there() -> None:
    texts = {"": README, "benchmarks": (ROOT / "benchmarks" / "README.md").read_text()}
    for folder, text in texts.items():
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (ROOT / folder / link).exists(), link


def test_every_heading_that_is_linked_is_there() -> None:
    heads = {
        "": re.findall(r"^## (.*)$", README, re.MULTILINE),
        "benchmarks/README.md": re.findall(
            r"^## (.*)$", (ROOT / "benchmarks" / "README.md").read_text(), re.MULTILINE
        ),
    }
    for path, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", README):
        assert anchor in {head.lower().replace(" ", "-") for head in heads[path]}, anchor
