"""Atari games, many at a time, as one :class:`gymnasium.vector.VectorEnv`.

What plays them is our own emulator, or ale-py's vector environment, which gives the same bytes more
slowly and knows fewer settings. Importing this registers the games with Gymnasium, as
``coordrl/Pong-v0``.
"""

from typing import Any, NoReturn

import gymnasium

from coordrl.envs.names import canonical_game, games, gymnasium_name
from coordrl.envs.states import pack_state, unpack_state
from coordrl.envs.vector_env import AtariVectorEnv, Seeds

__all__ = [
    "AtariVectorEnv",
    "Seeds",
    "canonical_game",
    "games",
    "gymnasium_name",
    "pack_state",
    "refuse_single",
    "unpack_state",
]


def refuse_single(**keywords: Any) -> NoReturn:
    """Say what to make instead of the one environment that ``gymnasium.make`` asks for."""
    name = gymnasium_name(keywords["game"])
    raise gymnasium.error.Error(
        f"games of coordrl are played side by side: gymnasium.make_vec('coordrl/{name}-v0', "
        f"num_envs=1), or coordrl.sb3_envs.make_sb3_env('{name}', num_envs=8) for Stable-Baselines3"
    )


for _game in games():
    gymnasium.register(
        id=f"coordrl/{gymnasium_name(_game)}-v0",
        entry_point="coordrl.envs:refuse_single",
        vector_entry_point="coordrl.envs:AtariVectorEnv",
        kwargs={"game": _game},
    )
