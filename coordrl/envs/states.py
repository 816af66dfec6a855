"""Saved games as one byte string: arrays, consoles, and a key that says what they belong to."""

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack_state(
    key: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], parts: Mapping[str, bytes]
) -> bytes:
    """Pack arrays and byte strings into one, with a key that says what they belong to.

    Example:
        >>> state = pack_state({"game": "pong"}, {"lives": np.array([3])}, {"console": b"..."})
        >>> unpack_state({"game": "pong"}, state)
        ({'lives': array([3])}, {'console': b'...'})
    """
    file = io.BytesIO()
    texts = {"key": json.dumps(key).encode(), **{f"part_{name}": b for name, b in parts.items()}}
    np.savez(
        file,
        allow_pickle=False,
        **{f"array_{name}": array for name, array in arrays.items()},
        **{name: np.frombuffer(text, np.uint8) for name, text in texts.items()},
    )
    return file.getvalue()


def unpack_state(
    key: Mapping[str, Any], state: bytes
) -> tuple[dict[str, NDArray[Any]], dict[str, bytes]]:
    """Return the arrays and byte strings of :func:`pack_state`.

    Raises:
        ValueError: If the state is damaged or was packed with another ``key``.
    """
    try:
        if not state.startswith(b"PK"):  # NumPy would advise loading it as a pickle
            raise ValueError("it is not a zip file")
        with np.load(io.BytesIO(state), allow_pickle=False) as file:
            contents = {name: file[name] for name in file.files}
        found = json.loads(contents.pop("key").tobytes())
    except (
        *(ValueError, KeyError, OSError, EOFError, RuntimeError),  # zipfile's for flags of others
        *(zipfile.BadZipFile, zlib.error),
    ) as error:
        raise ValueError(f"the saved games are damaged or something else: {error}") from error
    for name, value in json.loads(json.dumps(key)).items():
        if found.get(name) != value:
            raise ValueError(
                f"the games were saved with {name}={found.get(name)!r}, here it is {value!r}"
            )

    def named(kind: str) -> dict[str, NDArray[Any]]:
        return {n.removeprefix(kind): a for n, a in contents.items() if n.startswith(kind)}

    return named("array_"), {name: part.tobytes() for name, part in named("part_").items()}
