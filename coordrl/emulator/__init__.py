"""An Atari 2600 of our own: many consoles at once, exact to ale-py in every byte.

:class:`Emulator` steps a batch of environments with the rules of ale-py's ``AtariVectorEnv``;
:class:`Console` is a single console, frame by frame, as its ``ALEInterface``. Both need the
compiled part of this package; :func:`available` tells whether it is there.

The compiled part is a set of C++ headers that a GPU runs as well:

- the chips: ``m6507``, whose ``opcodes`` are executed by ``threaded`` on a CPU and by ``staged`` on
  a GPU, ``riot``, ``tia`` and ``cartridge``;
- ``console``, the board, and ``environment``, the game as ale-py plays it, by the game's ``rules``;
- ``agent_step``, the step of an agent, and ``preprocess``, its observations.

Python calls ``host`` on the CPU; :mod:`coordrl.emulator.device` launches ``kernels.cu`` on a GPU.
"""

from coordrl.emulator.arguments import process_cpu_count
from coordrl.emulator.batch import Emulator, Step
from coordrl.emulator.compiled import available, compiled_sources, unavailable_reason
from coordrl.emulator.console import Console
from coordrl.emulator.games import (
    ACTIONS,
    GAMES,
    Game,
    RomError,
    UnknownGameError,
    load_rom,
    rom_file,
)
from coordrl.emulator.settings import Autoreset, observation_shape

__all__ = [
    "ACTIONS",
    "GAMES",
    "Autoreset",
    "Console",
    "Emulator",
    "Game",
    "RomError",
    "Step",
    "UnknownGameError",
    "available",
    "compiled_sources",
    "load_rom",
    "observation_shape",
    "process_cpu_count",
    "rom_file",
    "unavailable_reason",
]
