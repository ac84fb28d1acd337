"""Zstandard: HDF5's filter 32015; a chunk is one frame."""

import ctypes
import threading
from collections.abc import Sequence

import numpy as np

from lclstream.streamer.serializers.codecs import Filter, Piece
from lclstream.streamer.serializers.codecs.libraries import (
    ADDRESS,
    SIZE,
    extension,
    plugin,
    require_filter,
)

CODE = 32015


class Zstandard:
    """The filter."""

    def __init__(self, level: int) -> None:
        """Load the library.

        Raises:
            ImportError, OSError, AttributeError: it is not installed.
        """
        require_filter(CODE)
        self._level = level
        self._library = _library()

    def suits(self, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bool:
        """Return True: they are bytes to it."""
        del dtype, shape
        return True

    def filters(self, dtype: np.dtype[np.generic]) -> Sequence[Filter]:
        """Return the one filter."""
        del dtype
        return (Filter(CODE, (self._level,)),)

    def pieces(
        self, chunk_bytes: int, filters: Sequence[Filter], parts: int = 1
    ) -> Sequence[Piece]:
        """Return the one piece; readers expect one frame."""
        del filters, parts
        return (_Frame(self._library, chunk_bytes, self._level),)


class _Frame:
    def __init__(self, library: ctypes.CDLL, chunk_bytes: int, level: int) -> None:
        self._library, self._chunk_bytes, self._level = library, chunk_bytes, level
        self.bound = int(library.ZSTD_compressBound(chunk_bytes))
        self._contexts = threading.local()

    def pack(self, source: int, into: int) -> int:
        """Compress a chunk; see `Piece`."""
        context = getattr(self._contexts, "context", None)
        if context is None:
            context = self._contexts.context = _Context(self._library)
        size = self._library.ZSTD_compressCCtx(
            context.address, into, self.bound, source, self._chunk_bytes, self._level
        )
        if self._library.ZSTD_isError(size):
            raise RuntimeError(f"Zstandard failed with code {size}")
        return int(size)


class _Context:
    """The library's memory for one thread, used for chunk after chunk."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._free = library.ZSTD_freeCCtx
        self.address = library.ZSTD_createCCtx()
        if not self.address:
            raise MemoryError("no memory for Zstandard")

    def __del__(self) -> None:
        self._free(self.address)


def _library() -> ctypes.CDLL:
    # The one in numcodecs is built with its assembler, and nearly twice as fast on noise.
    try:
        return _typed(extension("numcodecs.zstd"))
    except (ImportError, OSError, AttributeError):
        return _typed(plugin("zstd"))


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    library.ZSTD_compressBound.argtypes = [SIZE]
    library.ZSTD_compressBound.restype = SIZE
    library.ZSTD_isError.argtypes = [SIZE]
    library.ZSTD_createCCtx.argtypes = []
    library.ZSTD_createCCtx.restype = ADDRESS
    library.ZSTD_freeCCtx.argtypes = [ADDRESS]
    library.ZSTD_freeCCtx.restype = SIZE
    library.ZSTD_compressCCtx.argtypes = [ADDRESS, ADDRESS, SIZE, ADDRESS, SIZE, ctypes.c_int]
    library.ZSTD_compressCCtx.restype = SIZE
    return library
