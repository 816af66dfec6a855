"""The games that the emulator plays, and where their ROM images come from.

Everything here is read from ``games.json``, the only place with facts about games; the build writes
the same facts into the compiled part (``generate_games.py``). The ROM images are those that come
with ale-py, or files of your own with the same content.
"""

import difflib
import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from coordrl.errors import UserError


@dataclass(frozen=True)
class Game:
    """Facts about a game. Actions are indices of ``ACTIONS``.

    Example:
        >>> [ACTIONS[action] for action in GAMES["pong"].actions(full=False)]
        ['NOOP', 'FIRE', 'RIGHT', 'LEFT', 'RIGHTFIRE', 'LEFTFIRE']
    """

    name: str
    """The name that ale-py gives the ROM, in lower case with underscores: ``"ms_pacman"``."""
    rom_file: str
    rom_md5: str
    rom_bytes: int
    bank: str
    """Bank scheme of the cartridge, ``"2K"``, ``"4K"``, ``"F8"``, ...: see ``cartridge.hpp``."""
    television: Literal["NTSC", "PAL"]
    height: int
    """Lines of the picture; a line has 160 pixels."""
    paddles: bool
    """Whether it is played with a paddle rather than a joystick."""
    atari57: bool
    """Whether it is one of the 57 games that agents are usually compared on."""
    minimal_actions: tuple[int, ...]
    """The actions that make a difference in this game."""
    legal_actions: tuple[int, ...]
    """All actions that the game allows: 18, less those with FIRE in two games."""
    modes: tuple[int, ...]
    default_mode: int
    difficulties: tuple[int, ...]
    """Positions of the difficulty switches: bit 0 is the left, bit 1 the right one."""
    default_difficulty: int
    lives: int
    """Lives at the start of a game; 0 if the game has none."""

    def actions(self, *, full: bool) -> tuple[int, ...]:
        """Return the legal or the minimal actions; action i of an agent is the i-th of them."""
        return self.legal_actions if full else self.minimal_actions


class RomError(UserError, ValueError):
    """A ROM image that is missing or is not the one that the game's rules were written for."""


class _Games(Mapping[str, Game]):
    """All games by name. The error for an unknown name suggests the nearest one."""

    def __init__(self, games: Mapping[str, Game]) -> None:
        self._games = dict(games)

    def __getitem__(self, name: str) -> Game:
        try:
            return self._games[name]
        except KeyError:
            near = difflib.get_close_matches(str(name).lower(), self._games, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UnknownGameError(
                f"there is no game {name!r} among the {len(self._games)} of ale-py{hint}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._games)

    def __len__(self) -> int:
        return len(self._games)


class UnknownGameError(UserError, KeyError, ValueError):
    """There is no game of this name."""

    def __str__(self) -> str:  # KeyError's own adds quotation marks
        return str(self.args[0])


def load_rom(game: str, path: str | os.PathLike[str] | None = None) -> bytes:
    """Return the ROM image of a game, checked against its MD5 sum.

    Args:
        game: Name of the game, a key of ``GAMES``.
        path: File to read, or folder with the file in it; by default the folder (or file) that the
            environment variable ``ALE_ROMS_DIR`` names, or else the images that ale-py has
            installed.

    Raises:
        UnknownGameError: If there is no such game.
        RomError: If there is no image, or it is not the one that the game's rules are for.

    Example:
        >>> len(load_rom("pong"))
        2048
    """
    return rom_file(game, path).read_bytes()


def rom_file(game: str, path: str | os.PathLike[str] | None = None) -> Path:
    """Return the file with the ROM image of a game, checked as :func:`load_rom` does.

    Raises:
        UnknownGameError: If there is no such game.
        RomError: If there is no image, or it is not the one that the game's rules are for.
    """
    facts = GAMES[game]
    file = Path(path if path is not None else _installed_roms())
    if file.is_dir():
        file = file / facts.rom_file
    try:
        image = file.read_bytes()
    except OSError as error:
        raise RomError(
            f"cannot read the ROM image of {game} from {file}: {error.strerror}"
        ) from None
    if len(image) != facts.rom_bytes:
        raise RomError(
            f"{file} has {len(image)} bytes, but the ROM image of {game} has {facts.rom_bytes}"
        )
    md5 = hashlib.md5(image, usedforsecurity=False).hexdigest()
    if md5 != facts.rom_md5:
        raise RomError(
            f"{file} is not the ROM image of {game} that the rules are for: its MD5 sum is {md5}, "
            f"expected {facts.rom_md5}"
        )
    return file


def palette(television: str) -> list[tuple[int, int, int]]:
    """Return red, green and blue of all 256 color indices, as ale-py shows them.

    The console has 128 colors, at the even indices. An odd index is the gray of the color below
    it: a PAL set that loses color shows that.

    Args:
        television: ``"NTSC"`` or ``"PAL"``.

    Example:
        >>> palette("NTSC")[0x40:0x42]
        [(148, 0, 0), (44, 44, 44)]
    """
    colors: list[tuple[int, int, int]] = []
    for code in _facts()["palettes"][television]:
        red, green, blue = bytes.fromhex(code)
        gray = int(0.2989 * red + 0.5870 * green + 0.1140 * blue + 0.5)
        colors += [(red, green, blue), (gray, gray, gray)]
    return colors


@functools.cache
def _facts() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("games.json").read_text(encoding="utf-8")
    facts: dict[str, Any] = json.loads(text)
    return facts


def _installed_roms() -> Path:
    if os.environ.get("ALE_ROMS_DIR"):  # ale-py looks there first, too
        return Path(os.environ["ALE_ROMS_DIR"])
    spec = importlib.util.find_spec("ale_py")
    if spec is None or spec.origin is None:
        raise RomError("no ROM images: install ale-py, which contains them, or give a rom_path")
    return Path(spec.origin).parent / "roms"


def _game(name: str, facts: Mapping[str, Any]) -> Game:
    illegal = facts["actions"]["illegal"]
    return Game(
        name=name,
        rom_file=facts["rom"]["file"],
        rom_md5=facts["rom"]["md5"],
        rom_bytes=facts["rom"]["bytes"],
        bank=facts["rom"]["bank"],
        television=facts["console"]["tv"],
        height=facts["console"]["height"],
        paddles="paddle" in facts,
        atari57=facts["atari57"],
        minimal_actions=tuple(facts["actions"]["minimal"]),
        legal_actions=tuple(a for a in range(len(ACTIONS)) if a not in illegal),
        modes=tuple(facts["modes"]["available"]),
        default_mode=facts["modes"]["default"],
        difficulties=tuple(facts["difficulties"]["available"]),
        default_difficulty=facts["difficulties"]["default"],
        lives=facts["lives"],
    )


ACTIONS: tuple[str, ...] = tuple(_facts()["actions"])
"""Names of the 18 actions of stick and button, in ale-py's order: NOOP is 0, FIRE is 1."""

GAMES: Mapping[str, Game] = _Games({n: _game(n, facts) for n, facts in _facts()["games"].items()})
"""All games by name, in alphabetical order."""
