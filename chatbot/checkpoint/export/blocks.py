"""Blocks of the tables in a weights file: numbers of four bytes, and arrays with their size before them."""

from __future__ import annotations

import struct

import numpy as np


def numbers_block(*values: int) -> bytes:
    """Return int32 numbers."""
    return struct.pack(f"<{len(values)}i", *values)


def text_block(text: str) -> bytes:
    """Return a text in UTF-8 as an array."""
    return array_block(np.frombuffer(text.encode(), np.uint8))


def array_block(array: np.ndarray) -> bytes:
    """Return the size of an array in bytes, and the array, padded to a multiple of four bytes."""
    content = array.tobytes()
    return numbers_block(len(content)) + content + bytes(-len(content) % 4)
