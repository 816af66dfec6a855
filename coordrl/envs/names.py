"""Names of games: that of the ROM file, and other spellings."""

import difflib
import re

from coordrl.emulator import GAMES, UnknownGameError


def games(*, atari57: bool = False) -> tuple[str, ...]:
    """Return the canonical names of all games, in alphabetical order.

    Args:
        atari57: Only the 57 games that agents are usually compared on.

    Example:
        >>> len(games()), games()[0], len(games(atari57=True))
        (104, 'adventure', 57)
    """
    return tuple(name for name, game in GAMES.items() if game.atari57 or not atari57)


def canonical_game(name: str) -> str:
    """Return a game's canonical name, that of its ROM file, for any usual spelling.

    Case, spaces, underscores and Gymnasium's additions to the name do not matter.

    Raises:
        TypeError: If the name is not a str.
        UnknownGameError: If there is no such game; the message suggests the nearest names.

    Example:
        >>> canonical_game("MsPacman"), canonical_game("ALE/Pong-v5")
        ('ms_pacman', 'pong')
        >>> canonical_game("PongNoFrameskip-v4")
        'pong'
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a game must be a text, got {name!r}")
    bare = re.sub(r"^.*/|-v\d+$", "", name.strip().lower())
    bare = re.sub(r"(-?ram)?-?(noframeskip|deterministic)?$", "", bare)
    folded = re.sub(r"[^a-z0-9]", "", bare)
    known = {game.replace("_", ""): game for game in GAMES}
    if folded in known:
        return known[folded]
    near = difflib.get_close_matches(folded, known, n=3, cutoff=0.5)
    hint = " or ".join(gymnasium_name(known[match]) for match in near)
    raise UnknownGameError(
        f"there is no Atari game {name!r}; "
        + (f"did you mean {hint}?" if hint else "coordrl.envs.games() lists all games")
    )


def gymnasium_name(game: str) -> str:
    """Return a game's name as Gymnasium spells it, from its canonical name.

    Example:
        >>> gymnasium_name("ms_pacman")
        'MsPacman'
    """
    return game.title().replace("_", "")
