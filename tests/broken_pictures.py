"""Damaged pictures, as tests of several modules write them."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image


def write_broken_chunk(file: Path) -> None:
    """Write a PNG whose second chunk of pixels has no name."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    content = bytearray(file.read_bytes())
    second = content.index(b"IDAT", content.index(b"IDAT") + 4)
    content[second : second + 4] = bytes(4)
    file.write_bytes(content)


def write_promise_of_too_much(file: Path) -> None:
    """Write the start of a BMP of 30,000 x 30,000 pixels."""
    sizes = 54, 0, 54, 40, 30_000, 30_000, 1, 24
    file.write_bytes(struct.pack("<2sIIIIiiHHIIiiII", b"BM", *sizes, *[0] * 6))
