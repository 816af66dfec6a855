"""CoordConv layers, CoordConv agents for Stable-Baselines3, and an exact Atari 2600.

The layers can be had from here; everything else is imported from its module. Modules import from
floors below their own only (``tests/test_floors.py``):

- 0: ``layers``, ``config``, ``runs``, ``ranks``, ``digits``
- 1: ``convert``, ``backbone``, ``export``, ``emulator``, ``commands``
- 2: ``extractors``, ``envs``, ``coordinates``, ``generative``, ``detection``, ``recognition``
- 3: ``sb3_envs``, ``algorithms``
- 4: ``device_algorithms``
- 5: ``agents``
- 6: ``training``
- 7: ``study``, ``report``
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
