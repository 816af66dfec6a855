"""Checks and defaults of the emulators' arguments, on the CPU and on a GPU."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_SEEDS = 2**31
"""Seeds are below this: ale-py keeps them in signed 32-bit numbers, and negative ones mean none."""


def in_range(name: str, value: int, least: int, most: int | None) -> int:
    """Return ``value`` if it is a whole number from ``least`` to ``most``; None is no limit.

    Raises:
        ValueError: If it is out of range.
        TypeError: If it is not a whole number.

    Example:
        >>> in_range("num_envs", 0, least=1, most=None)
        Traceback (most recent call last):
        ValueError: num_envs must be at least 1, got 0
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ValueError(f"{name} must be {limits}, got {value}")
    return int(value)


def checked_actions(
    actions: ArrayLike, num_envs: int, num_actions: int, game: str
) -> NDArray[np.integer[Any]]:
    """Return the actions of a step as an array.

    Raises:
        ValueError: If there are not ``num_envs`` of them, or one is not in ``[0, num_actions)``.
        TypeError: If they are not whole numbers.

    Example:
        >>> checked_actions([0, 6], num_envs=2, num_actions=6, game="pong")
        Traceback (most recent call last):
        ValueError: actions of pong are 0 to 5, got 6
    """
    chosen = np.asarray(actions)
    if chosen.shape != (num_envs,):
        raise ValueError(f"actions must have shape ({num_envs},), got {chosen.shape}")
    if chosen.dtype.kind not in "iu":
        raise TypeError(f"actions must be whole numbers, got dtype {chosen.dtype}")
    # Unsigned, negative numbers are large, so one comparison is enough.
    if np.maximum.reduce(chosen.astype(np.uint64)) >= num_actions:
        wrong = chosen[(chosen < 0) | (chosen >= num_actions)][0]
        raise ValueError(f"actions of {game} are 0 to {num_actions - 1}, got {wrong}")
    return chosen


def checked_mask(
    mask: NDArray[np.bool_] | None, num_envs: int, *, was_reset: bool
) -> NDArray[np.bool_]:
    """Return a mask of the chosen environments, ``(num_envs,)``; ``None`` means all.

    Raises:
        ValueError: If the mask has another shape or type, or the first reset leaves out
            environments.

    Example:
        >>> checked_mask(None, num_envs=3, was_reset=False)
        array([ True,  True,  True])
        >>> checked_mask(np.array([True, False, True]), num_envs=3, was_reset=False)
        Traceback (most recent call last):
        ValueError: the first reset must be of all environments, got a mask
    """
    if mask is None:
        return np.ones(num_envs, np.bool_)
    mask = np.ascontiguousarray(mask)
    if mask.dtype != np.bool_ or mask.shape != (num_envs,):
        raise ValueError(
            f"mask must be booleans of shape ({num_envs},), got {mask.dtype} of shape {mask.shape}"
        )
    if not was_reset and not mask.all():
        raise ValueError("the first reset must be of all environments, got a mask")
    return mask


def reset_seeds(
    seed: int | Sequence[int] | NDArray[np.integer[Any]] | None,
    chosen: NDArray[np.bool_],
    *,
    was_reset: bool,
) -> NDArray[np.int64]:
    """Return the seed of each environment in a reset, -1 where random numbers continue.

    Args:
        seed: Seed of the first of the ``chosen`` environments, or one for each of them. If None,
            environments that were never reset get a seed from the operating system.
        chosen: Which environments are reset.
        was_reset: Whether they were reset before.

    Raises:
        ValueError: If there are too few or too many seeds, or one is not in ``[0, 2^31)``.
        TypeError: If they are not whole numbers.

    Example:
        >>> reset_seeds(7, np.array([True, False, True]), was_reset=True)
        array([ 7, -1,  8])
    """
    seeds = np.full(len(chosen), -1, np.int64)
    if seed is None:
        if not was_reset:
            seeds[:] = np.random.default_rng().integers(NUM_SEEDS, size=len(chosen))
        return seeds
    count = int(chosen.sum())
    if isinstance(seed, int | np.integer):
        given = np.array([int(seed) + i for i in range(count)])
    else:
        given = np.asarray(seed)
    if given.size and given.dtype.kind not in "iuO":  # O: beyond 64 bits, and so below
        raise TypeError(f"seeds must be whole numbers, got dtype {given.dtype}")
    if given.shape != (count,):
        raise ValueError(f"reset of {count} environments needs {count} seeds, got {given.shape}")
    if count and not 0 <= int(given.min()) <= int(given.max()) < NUM_SEEDS:
        raise ValueError(f"seeds must be in [0, 2^31), got {given.min()} to {given.max()}")
    seeds[chosen] = given
    return seeds


def process_cpu_count() -> int:
    """Return how many processors this process may use, like Python 3.13's ``os``; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
