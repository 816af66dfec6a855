"""The plan of the house: modules import from floors below their own, and from few libraries."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import coordrl

PACKAGE = Path(coordrl.__file__).parent

FLOORS = [
    {"errors"},
    {"memory", "modes", "config", "files", "stopping", "progress", "ranks", "digits"},
    {"layers", "records", "runs", "devices"},
    {"convert", "backbone", "export", "emulator", "commands", "experiments", "resumable"},
    {"extractors", "envs", "coordinates", "generative", "detection", "recognition"},
    {"sb3_envs", "algorithms"},
    {"device_algorithms"},
    {"agents"},
    {"training"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

TORCH_ALONE = {"layers", "convert", "backbone"}
SB3 = {"extractors", "sb3_envs", "algorithms", "device_algorithms", "agents", "training"}
GYMNASIUM = {"envs", "sb3_envs"}
# Spaces are part of what SB3 hands to its extractors, buffers and policies.
GYMNASIUM_SPACES = GYMNASIUM | SB3


def room_of(path: Path) -> str:
    """Return the module or subpackage of coordrl that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of everything that a file imports, at its top or within a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively; name the module"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
EVERY_FILE = pytest.mark.parametrize(
    "path", FILES, ids=[path.relative_to(PACKAGE).as_posix() for path in FILES]
)


def test_the_plan_has_no_empty_rooms() -> None:
    assert {room_of(path) for path in FILES} == set(FLOOR)


@EVERY_FILE
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR, f"give {room} a floor in FLOORS and in coordrl's docstring"

    for name in imports(path):
        top, *rest = name.split(".")
        if top == "coordrl" and rest[0] != room:
            assert rest[0] in FLOOR, f"{name}: import from the module, not from coordrl"
            assert FLOOR[rest[0]] < FLOOR[room], f"{room} must not import {name}"


@EVERY_FILE
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    room = room_of(path)
    for name in imports(path):
        top = name.split(".")[0]
        if room in TORCH_ALONE:
            assert top in {"torch", "coordrl"} | sys.stdlib_module_names, f"{room} imports {name}"
        if top == "stable_baselines3":
            assert room in SB3, f"{room} imports {name}"
        if top == "gymnasium":
            rooms = GYMNASIUM_SPACES if name == "gymnasium.spaces" else GYMNASIUM
            assert room in rooms, f"{room} imports {name}"


def test_the_package_re_exports_layers_alone() -> None:
    names = {name for name in imports(PACKAGE / "__init__.py") if name.startswith("coordrl.")}
    assert names == {f"coordrl.layers.{name}" for name in coordrl.__all__}


def test_the_docstring_lists_the_floors() -> None:
    assert coordrl.__doc__ is not None
    told = dict(re.findall(r"^- (\d): (.*(?:\n  .*)*)$", coordrl.__doc__, flags=re.MULTILINE))
    assert len(told) == len(FLOORS)
    for floor, rooms in enumerate(FLOORS):
        assert set(re.findall(r"``(\w+)``", told[str(floor)])) == rooms
