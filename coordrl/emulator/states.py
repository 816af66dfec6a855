r"""The bytes of a saved environment.

========== ===============================================================================
bytes      content
========== ===============================================================================
8          ``b"coordrl\0"``
2, 2, 4    version of this format, length of the key, CRC-32 of all that follows it
(key)      what the state belongs to, as JSON: game, mode, kind of observation, ...
(rest)     the environment's struct and its stack of observations, compressed by zlib
========== ===============================================================================

Numbers are little-endian, also those in the struct: all supported machines are.
"""

import json
import struct
import zlib
from collections.abc import Mapping

_MAGIC = b"coordrl\0"
_VERSION = 1
_HEADER = struct.Struct("<8sHHI")

Key = Mapping[str, object]


def pack(key: Key, *parts: bytes) -> bytes:
    """Return the bytes of a state that belongs to ``key``."""
    key_text = json.dumps(key, sort_keys=True).encode()
    content = zlib.compress(b"".join(parts), level=1)
    checksum = zlib.crc32(content, zlib.crc32(key_text))
    return _HEADER.pack(_MAGIC, _VERSION, len(key_text), checksum) + key_text + content


def unpack(key: Key, state: bytes, *, largest: int) -> bytes:
    """Return the parts that were packed for ``key``, joined.

    Args:
        key: Key that the state must belong to.
        state: Bytes from :func:`pack`.
        largest: Most bytes that a state of this key can have.

    Raises:
        ValueError: If the state is damaged, of another version, or belongs to something else.
    """
    if len(state) < _HEADER.size:
        raise ValueError(f"a saved environment cannot have {len(state)} bytes: it is cut off")
    magic, version, key_length, checksum = _HEADER.unpack_from(state)
    if magic != _MAGIC:
        raise ValueError("these bytes are not a saved environment of coordrl")
    if version != _VERSION:
        raise ValueError(
            f"the environment was saved by another release of coordrl: its format has version "
            f"{version}, this release reads version {_VERSION}"
        )
    if zlib.crc32(state[_HEADER.size :]) != checksum:
        raise ValueError("the saved environment is damaged: its checksum does not match")
    content = _HEADER.size + key_length
    _require_same(key, json.loads(state[_HEADER.size : content]))
    inflate = zlib.decompressobj()
    try:
        unpacked = inflate.decompress(state[content:], largest)
    except zlib.error as error:
        raise ValueError(f"the saved environment is damaged: {error}") from None
    if not inflate.eof:
        raise ValueError("the saved environment is damaged: it has the wrong length")
    return unpacked


def _require_same(expected: Key, found: Key) -> None:
    for name in sorted(set(expected) | set(found)):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"the environment was saved with {name}={found.get(name)!r}, "
                f"this emulator has {expected.get(name)!r}"
            )
