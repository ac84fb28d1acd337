"""The bytes of arrays and messages where they lie, in pieces."""

from collections.abc import Iterable

import numpy as np

from lclstream.streamer.values import Array

# Handing over a piece costs more than a copy of this size.
SMALL_BYTES = 2048


def bytes_of(array: Array) -> memoryview:
    """Return the bytes of a contiguous array, not copied, whatever its dtype and shape."""
    if not array.size:
        return memoryview(b"")
    return array.reshape(-1).view(np.uint8).data


def merged(pieces: Iterable[bytes | memoryview]) -> tuple[memoryview, ...]:
    """Return the pieces of a message, small neighbours joined and empty ones left out."""
    found: list[memoryview] = []
    small: list[bytes | memoryview] = []
    for piece in pieces:
        if len(piece) < SMALL_BYTES:
            small.append(piece)
            continue
        if small:
            found.append(memoryview(b"".join(small)))
            small = []
        found.append(memoryview(piece))
    return (*found, memoryview(b"".join(small))) if small else tuple(found)
