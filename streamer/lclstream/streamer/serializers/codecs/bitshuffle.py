"""bitshuffle with LZ4 or Zstandard: HDF5's filter 32008.

A chunk is its size (8 bytes) and the size of its blocks (4 bytes), big-endian, and then the
blocks, each compressed on its own. So several threads can work on one chunk.
"""

import ctypes
import struct
from collections.abc import Callable, Sequence

import numpy as np

from lclstream.streamer.serializers.codecs import Filter, Piece
from lclstream.streamer.serializers.codecs.libraries import (
    ADDRESS,
    SIZE,
    extension,
    plugin,
    require_filter,
)

CODE = 32008
AUTOMATIC_BLOCKS = 0
LZ4, ZSTD = 2, 3
HEADER = struct.Struct(">QI")
# Blocks are about so large, in whole groups of elements, and at least so many elements.
BLOCK_BYTES, GROUP, LEAST_ELEMENTS = 8192, 8, 128
# A part below this is not worth a thread's while.
LEAST_PART_BYTES = 512 << 10

Compress = Callable[..., int]


class Bitshuffle:
    """The filter with a codec behind it."""

    def __init__(self, zstd_level: int | None) -> None:
        """Load the library.

        Args:
            zstd_level: of Zstandard; None for LZ4.

        Raises:
            ImportError, OSError, AttributeError: it is not installed.
        """
        require_filter(CODE)
        self._level = zstd_level
        self._compress = _lz4() if zstd_level is None else _zstd(zstd_level)

    def suits(self, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bool:
        """Return True: elements may have any size."""
        del dtype, shape
        return True

    def filters(self, dtype: np.dtype[np.generic]) -> Sequence[Filter]:
        """Return the one filter; it adds its version and the size of an element in front."""
        del dtype
        codec = (LZ4,) if self._level is None else (ZSTD, self._level)
        return (Filter(CODE, (AUTOMATIC_BLOCKS, *codec)),)

    def pieces(
        self, chunk_bytes: int, filters: Sequence[Filter], parts: int = 1
    ) -> Sequence[Piece]:
        """Return parts of whole blocks."""
        element_bytes = filters[0].values[2]
        block_bytes = default_block(element_bytes) * element_bytes
        parts = max(1, min(parts, chunk_bytes // LEAST_PART_BYTES))
        step = -(-chunk_bytes // (parts * block_bytes)) * block_bytes
        starts = range(0, chunk_bytes, step)
        header = HEADER.pack(chunk_bytes, block_bytes)
        return [
            _Blocks(self._compress, start, min(step, chunk_bytes - start), element_bytes, prefix)
            for start in starts
            for prefix in [b"" if start else header]
        ]


class _Blocks:
    """Some blocks of each chunk, and the header if they are the first ones."""

    def __init__(
        self, compress: Compress, start: int, size: int, element_bytes: int, prefix: bytes
    ) -> None:
        self._compress, self._start, self._prefix = compress, start, prefix
        self._element_bytes, self._elements = element_bytes, size // element_bytes
        blocks = -(-size // (default_block(element_bytes) * element_bytes))
        # A block and its length; LZ4 and Zstandard grow by at most 1/255 and something more.
        self.bound = len(prefix) + size + (size >> 7) + 128 * blocks

    def pack(self, source: int, into: int) -> int:
        """Compress the blocks; see `Piece`."""
        if self._prefix:
            ctypes.memmove(into, self._prefix, len(self._prefix))
            into += len(self._prefix)
        size = self._compress(source + self._start, into, self._elements, self._element_bytes)
        if size < 0:
            raise RuntimeError(f"bitshuffle failed with code {size}")
        return len(self._prefix) + size


def default_block(element_bytes: int) -> int:
    """Return how many elements a block has, as all versions of bitshuffle choose it."""
    return max(LEAST_ELEMENTS, BLOCK_BYTES // element_bytes // GROUP * GROUP)


def _lz4() -> Compress:
    # The package is faster here; hdf5plugin is built for machines of any age.
    try:
        found = extension("bitshuffle.ext").bshuf_compress_lz4
    except (ImportError, OSError, AttributeError):
        found = plugin("bshuf").bshuf_compress_lz4
    return _typed(found)


def _zstd(level: int) -> Compress:
    # hdf5plugin has the newer and faster Zstandard.
    try:
        found = plugin("bshuf").bshuf_compress_zstd
    except (ImportError, OSError, AttributeError):
        found = extension("bitshuffle.ext").bshuf_compress_zstd
    return _typed(found, level)


def _typed(function: Compress, *more: int) -> Compress:
    function.argtypes = [ADDRESS, ADDRESS, SIZE, SIZE, SIZE, *(ctypes.c_int for _ in more)]  # type: ignore[attr-defined]
    function.restype = ctypes.c_int64  # type: ignore[attr-defined]

    def compress(source: int, into: int, elements: int, element_bytes: int) -> int:
        return function(source, into, elements, element_bytes, AUTOMATIC_BLOCKS, *more)

    return compress
