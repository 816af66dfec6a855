"""CoordConv layers, CoordConv agents for Stable-Baselines3, and an exact Atari 2600.

The layers can be imported from here; everything else is imported from its module. Modules import
only from floors below their own (``tests/test_floors.py``):

- 0: ``errors``
- 1: ``memory``, ``modes``, ``config``, ``files``, ``stopping``, ``progress``, ``ranks``, ``digits``
- 2: ``layers``, ``records``, ``runs``, ``devices``
- 3: ``convert``, ``backbone``, ``export``, ``emulator``, ``commands``, ``experiments``,
  ``resumable``
- 4: ``extractors``, ``envs``, ``coordinates``, ``generative``, ``detection``, ``recognition``
- 5: ``sb3_envs``, ``algorithms``
- 6: ``device_algorithms``
- 7: ``agents``
- 8: ``training``
"""

import importlib.metadata

from coordrl.layers import (
    CoordBias,
    CoordConv,
    CoordConv1d,
    CoordConv2d,
    CoordConv3d,
    CoordConvTranspose1d,
    CoordConvTranspose2d,
    CoordConvTranspose3d,
    CoordinateSystem,
    coordinate_grid,
)

__all__ = [
    "CoordBias",
    "CoordConv",
    "CoordConv1d",
    "CoordConv2d",
    "CoordConv3d",
    "CoordConvTranspose1d",
    "CoordConvTranspose2d",
    "CoordConvTranspose3d",
    "CoordinateSystem",
    "coordinate_grid",
]

try:
    __version__ = importlib.metadata.version("coordrl")
except importlib.metadata.PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "unknown"
