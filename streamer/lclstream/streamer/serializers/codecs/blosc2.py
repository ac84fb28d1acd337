"""Blosc2 with LZ4 or Zstandard behind bit shuffling: HDF5's filter 32026.

A chunk is a Blosc2 frame that holds one Blosc2 chunk. Two frames of the same form differ in the
chunk itself and in two sizes, so the library makes one frame, and we the others.
"""

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from lclstream.streamer.serializers.codecs import Filter, Piece
from lclstream.streamer.serializers.codecs.libraries import require_filter

CODE = 32026
BITSHUFFLE = 2
CODES = {"lz4": 1, "zstd": 5}
MAX_ELEMENT_BYTES = 255
# Where a frame tells its own size and that of its chunks, big-endian.
FRAME_SIZE_AT, CHUNKS_SIZE_AT = 16, 39
SIZE_FIELD = struct.Struct(">Q")


class Blosc2:
    """The filter with a codec behind it."""

    def __init__(self, codec: str, level: int) -> None:
        """Load the library.

        Args:
            codec: `lz4` or `zstd`.
            level: 0 to 9, of Blosc2.

        Raises:
            ImportError, OSError: it is not installed.
        """
        import blosc2

        require_filter(CODE)
        # Else all other threads of the process wait while one compresses.
        blosc2.set_releasegil(True)
        self._library: Any = blosc2
        self._codec, self._level = codec, level

    def suits(self, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bool:
        """Return True: elements may have any size."""
        del dtype, shape
        return True

    def filters(self, dtype: np.dtype[np.generic]) -> Sequence[Filter]:
        """Return the one filter; it adds the sizes of an element and of a chunk."""
        del dtype
        return (Filter(CODE, (0, 0, 0, 0, self._level, BITSHUFFLE, CODES[self._codec])),)

    def pieces(
        self, chunk_bytes: int, filters: Sequence[Filter], parts: int = 1
    ) -> Sequence[Piece]:
        """Return the one piece; within it the library can use several threads."""
        element_bytes = filters[0].values[2]
        options = {
            "codec": self._library.Codec[self._codec.upper()],
            "clevel": self._level,
            "typesize": element_bytes if element_bytes <= MAX_ELEMENT_BYTES else 1,
            "filters": [self._library.Filter.NOFILTER] * 5 + [self._library.Filter.BITSHUFFLE],
            "filters_meta": [0] * 6,
            "nthreads": max(1, min(parts, chunk_bytes // LEAST_PART_BYTES)),
        }
        return (_Frame(self._library, chunk_bytes, options),)


# A part below this is not worth a thread's while.
LEAST_PART_BYTES = 512 << 10


class _Frame:
    def __init__(self, library: Any, chunk_bytes: int, options: dict[str, Any]) -> None:
        self._compress, self._options = library.compress2, options
        self._chunk_bytes = chunk_bytes
        self._head, self._tail = _around(library, chunk_bytes, options)
        around = len(self._head) + len(self._tail)
        self.bound = chunk_bytes + library.MAX_OVERHEAD + around

    def pack(self, source: int, into: int) -> int:
        """Compress a chunk; see `Piece`."""
        view = (ctypes.c_char * self._chunk_bytes).from_address(source)
        chunk = self._compress(view, **self._options)
        size = len(self._head) + len(chunk) + len(self._tail)
        if size > self.bound:
            return size
        head = bytearray(self._head)
        SIZE_FIELD.pack_into(head, FRAME_SIZE_AT, size)
        SIZE_FIELD.pack_into(head, CHUNKS_SIZE_AT, len(chunk))
        for part in (bytes(head), chunk, self._tail):
            ctypes.memmove(into, part, len(part))
            into += len(part)
        return size


def _around(library: Any, chunk_bytes: int, options: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return what lies before and behind the chunk in a frame."""
    # Data of one value would be stored without a chunk.
    data = (bytes(range(256)) * (chunk_bytes // 256 + 1))[:chunk_bytes]
    frame = library.SChunk(chunksize=chunk_bytes, data=data, cparams=options, contiguous=True)
    chunk, whole = frame.get_chunk(0), frame.to_cframe()
    head, tail = whole[: whole.index(chunk)], whole[whole.index(chunk) + len(chunk) :]
    told = [SIZE_FIELD.unpack_from(head, at)[0] for at in (FRAME_SIZE_AT, CHUNKS_SIZE_AT)]
    if told != [len(whole), len(chunk)]:
        raise RuntimeError("this version of Blosc2 writes frames of another form")
    return head, tail
