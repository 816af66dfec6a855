"""State that an environment keeps for its games besides their consoles."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = TypeVar("Array")  # of NumPy on the CPU, of torch on a GPU
Other = TypeVar("Other")


@dataclass
class EpisodeState(Generic[Array]):
    """Five arrays of shape ``(num_envs,)``."""

    game_ended: Array
    """The last step ended the game."""
    life_ended: Array
    """The last step ended a life and with it the episode, but not the game."""
    started_at: Array
    """``frame_number`` when the game began."""
    reset_frames: Array
    """Frames played before the agent's first action."""
    lives: Array
    """Lives left after the last step."""

    def map(self, function: Callable[[Array], Other]) -> "EpisodeState[Other]":
        """Return the state with a function applied to each array."""
        made = {field.name: function(getattr(self, field.name)) for field in fields(self)}
        return EpisodeState(**made)

    def saved(self) -> dict[str, Array]:
        """Return the arrays by their names in saved games."""
        return {f"_{field.name}": getattr(self, field.name) for field in fields(self)}


def new_episode_state(num_envs: int) -> EpisodeState[NDArray[Any]]:
    """Return the state of games that have not begun."""
    return EpisodeState(
        game_ended=np.zeros(num_envs, np.bool_),
        life_ended=np.zeros(num_envs, np.bool_),
        started_at=np.zeros(num_envs, np.int32),
        reset_frames=np.zeros(num_envs, np.int32),
        lives=np.zeros(num_envs, np.int32),
    )


def restored_episode_state(
    arrays: Mapping[str, NDArray[Any]], num_envs: int
) -> EpisodeState[NDArray[Any]]:
    """Return the state that :meth:`EpisodeState.saved` returned the arrays of.

    Raises:
        ValueError: If an array is missing, or has another type or shape.
    """
    state = new_episode_state(num_envs)
    for name, here in state.saved().items():
        if name not in arrays:
            raise ValueError(f"the saved games are damaged: {name!r} is missing")
        array = arrays[name]
        if (array.shape, array.dtype) != (here.shape, here.dtype):
            raise ValueError(
                f"the saved games are damaged: {name} is {array.dtype} of shape {array.shape}"
            )
        here[:] = array
    return state
