"""What README shows runs as it stands there, each block by itself."""

import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro

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


class Parsed(Exception):
    """The arguments of a command were understood, which is all that is asked here."""


COMMANDS = [
    words
    for text in (README, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    for block in re.findall(r"^```(?:bash|sh)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if (words := shlex.split(line, comments=True))
]
SCRIPTS = [words for words in COMMANDS if any(word.startswith("scripts/") for word in words)]


@pytest.mark.parametrize("words", SCRIPTS, ids=" ".join)
def test_a_script_understands_its_command(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse_alone(parse: Callable[..., Any]) -> Callable[..., Any]:
        def parsed(*args: Any, **kwargs: Any) -> None:
            parse(*args, **kwargs)
            raise Parsed

        return parsed

    for owner, name in ((tyro, "cli"), (tyro.extras, "subcommand_cli_from_dict")):
        monkeypatch.setattr(owner, name, parse_alone(getattr(owner, name)))
    at = next(i for i, word in enumerate(words) if word.startswith("scripts/"))
    script = importlib.import_module(Path(words[at]).stem)
    with pytest.raises(Parsed):
        script.main(words[at + 1 :])


def test_make_knows_its_commands() -> None:
    goals = {word for words in COMMANDS if words[0] == "make" for word in words[1:2]}
    known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert goals
    assert goals <= {*known}


def test_what_is_cut_short_is_there() -> None:
    assert len(BLOCKS) >= 5
    assert all(text in README for text in SHORTER)


def test_every_file_that_is_named_is_there() -> None:
    texts = {"": README, "benchmarks": (ROOT / "benchmarks" / "README.md").read_text()}
    for folder, text in texts.items():
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (ROOT / folder / link).exists(), link


def test_every_heading_that_is_linked_is_there() -> None:
    texts = {
        path: (ROOT / path).read_text() for path in ("benchmarks/README.md", "CONTRIBUTING.md")
    }
    texts[""] = README
    heads = {path: re.findall(r"^## (.*)$", text, re.MULTILINE) for path, text in texts.items()}
    for path, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", README):
        assert anchor in {head.lower().replace(" ", "-") for head in heads[path]}, anchor
