"""Atari games: many at a time as one :class:`gymnasium.vector.VectorEnv`, or one by one.

Games are played by our own emulator, or by ale-py's vector environment, which gives the same bytes
more slowly and has fewer settings. Importing this package registers the games with Gymnasium, as
``coordrl/Pong-v0``, for ``gymnasium.make_vec`` and, one game at a time, for ``gymnasium.make``.
"""

import gymnasium

from coordrl.envs.names import canonical_game, games, gymnasium_name
from coordrl.envs.single_env import AtariEnv
from coordrl.envs.states import pack_state, unpack_state
from coordrl.envs.vector_env import AtariVectorEnv, Seeds, info_of

__all__ = [
    "AtariEnv",
    "AtariVectorEnv",
    "Seeds",
    "canonical_game",
    "games",
    "gymnasium_name",
    "info_of",
    "pack_state",
    "unpack_state",
]


for _game in games():
    gymnasium.register(
        id=f"coordrl/{gymnasium_name(_game)}-v0",
        entry_point="coordrl.envs:AtariEnv",
        vector_entry_point="coordrl.envs:AtariVectorEnv",
        kwargs={"game": _game},
    )
