"""CoordConv layers, CoordConv agents for Stable-Baselines3, and an exact Atari 2600.

The layers can be had from here; everything else is imported from its module. Modules import from
floors below their own only (``tests/test_floors.py``):

- 0: ``memory``, ``modes``, ``config``, ``files``, ``stopping``, ``progress``, ``ranks``, ``digits``
- 1: ``layers``, ``records``, ``runs``, ``devices``
- 2: ``convert``, ``backbone``, ``export``, ``emulator``, ``commands``, ``experiments``
- 3: ``extractors``, ``envs``, ``coordinates``, ``generative``, ``detection``, ``recognition``
- 4: ``sb3_envs``, ``algorithms``
- 5: ``device_algorithms``
- 6: ``agents``
- 7: ``training``
"""

from coordrl.layers import (
    CoordBias,
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
    "CoordConv1d",
    "CoordConv2d",
    "CoordConv3d",
    "CoordConvTranspose1d",
    "CoordConvTranspose2d",
    "CoordConvTranspose3d",
    "CoordinateSystem",
    "coordinate_grid",
]
