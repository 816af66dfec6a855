"""A single console, frame by frame."""

import os

import numpy as np
from numpy.typing import NDArray

from coordrl.config import AtariSettings
from coordrl.emulator import compiled
from coordrl.emulator.arguments import NUM_SEEDS, in_range
from coordrl.emulator.games import ACTIONS, GAMES, load_rom
from coordrl.emulator.settings import native_settings


class Console:
    """One console with one game, frame by frame: ale-py's ``ALEInterface`` without its options.

    Args:
        game: Name of the game, a key of ``GAMES``.
        seed: Seed of the random numbers that repeat actions, 0 to 2^31 - 1.
        repeat_action_probability: Probability that a frame repeats the previous action.
        mode: Game mode, the default one if None; takes effect with the next ``reset_game``.
        difficulty: Difficulty switches, both at B if None, which is ale-py's default.
        rom_path: ROM image to play, or a folder with it; by default the one in ale-py.

    Example:
        >>> console = Console("breakout")
        >>> console.reset_game()
        >>> console.lives, console.act(1), console.screen.shape
        (5, 0, (210, 160))
    """

    def __init__(
        self,
        game: str,
        *,
        seed: int = 0,
        repeat_action_probability: float = 0.0,
        mode: int | None = None,
        difficulty: int | None = None,
        rom_path: str | os.PathLike[str] | None = None,
    ) -> None:
        self.game = GAMES[game]
        settings = AtariSettings(
            repeat_action_probability=repeat_action_probability, mode=mode, difficulty=difficulty
        )
        native = native_settings(self.game, settings, "disabled")
        seed = in_range("seed", seed, 0, NUM_SEEDS - 1)
        self._player = compiled.native().Player(native, load_rom(game, rom_path), seed)

    def reset_game(self) -> None:
        """Begin a game."""
        self._player.begin()

    def act(self, action: int) -> int:
        """Play one frame of an action, an index of ``ACTIONS``, and return its reward."""
        return int(self._player.act(in_range("action", action, 0, len(ACTIONS) - 1)))

    @property
    def ram(self) -> NDArray[np.uint8]:
        """The 128 bytes of RAM."""
        ram = np.empty(128, np.uint8)
        self._player.read_ram(ram)
        return ram

    @property
    def screen(self) -> NDArray[np.uint8]:
        """The color indices of the last frame, ``(height, 160)``."""
        screen = np.empty((self.game.height, 160), np.uint8)
        self._player.read_screen(screen)
        return screen

    @property
    def lives(self) -> int:
        """Lives left, 0 in games without lives."""
        return int(self._player.lives)

    @property
    def game_over(self) -> bool:
        """Whether the game has ended."""
        return bool(self._player.terminal)

    @property
    def frame_number(self) -> int:
        """Frames since the game was loaded, without those of resets."""
        return int(self._player.frame_number)

    @property
    def episode_frame_number(self) -> int:
        """Frames since the last reset, some of the reset's included, as ale-py counts them."""
        return int(self._player.episode_frame_number)

    @property
    def registers(self) -> dict[str, int]:
        """The contents of the chips by register name, to look for differences."""
        return dict(self._player.state())
