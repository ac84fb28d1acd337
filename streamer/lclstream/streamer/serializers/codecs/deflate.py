"""gzip, with or without shuffling the bytes of the elements before: HDF5's own filters."""

import ctypes
import threading
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from lclstream.streamer.serializers.codecs import Filter, Piece
from lclstream.streamer.serializers.codecs.libraries import plugin

DEFLATE, SHUFFLE = 1, 2
# What the library can shuffle; larger elements are rare enough.
MAX_ELEMENT_BYTES = 255


class Deflate:
    """HDF5's filters 1 and 2."""

    def __init__(self, level: int, *, shuffle: bool) -> None:
        self._level, self._shuffle = level, shuffle

    def suits(self, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bool:
        """Return True: they are bytes to it."""
        del dtype, shape
        return True

    def filters(self, dtype: np.dtype[np.generic]) -> Sequence[Filter]:
        """Return deflate, behind shuffle if it is wanted."""
        deflate = Filter(DEFLATE, (self._level,))
        return (Filter(SHUFFLE, (dtype.itemsize,)), deflate) if self._shuffle else (deflate,)

    def pieces(
        self, chunk_bytes: int, filters: Sequence[Filter], parts: int = 1
    ) -> Sequence[Piece]:
        """Return the one piece; the format knows no parts."""
        del parts
        element_bytes = filters[0].values[0] if self._shuffle else 1
        return (_Deflated(chunk_bytes, element_bytes, self._level),)


class _Deflated:
    def __init__(self, chunk_bytes: int, element_bytes: int, level: int) -> None:
        # zlib's own bound for one call, and something more.
        self.bound = chunk_bytes + (chunk_bytes >> 10) + 64
        self._chunk_bytes, self._element_bytes, self._level = chunk_bytes, element_bytes, level
        self._scratch = threading.local()

    def pack(self, source: int, into: int) -> int:
        """Compress a chunk; see `Piece`."""
        if self._element_bytes > 1:
            source = self._shuffled(source)
        view = (ctypes.c_char * self._chunk_bytes).from_address(source)
        packed = zlib.compress(view, self._level)
        if len(packed) > self.bound:
            return len(packed)
        ctypes.memmove(into, packed, len(packed))
        return len(packed)

    def _shuffled(self, source: int) -> int:
        room = getattr(self._scratch, "room", None)
        if room is None:
            room = self._scratch.room = ctypes.create_string_buffer(self._chunk_bytes)
        address = ctypes.addressof(room)
        _shuffler()(self._element_bytes, self._chunk_bytes, source, address)
        return address


Shuffler = Callable[[int, int, int, int], object]


def _shuffler() -> Shuffler:
    global _found
    if _found is None:
        _found = _find_shuffler()
    return _found


_found: Shuffler | None = None


def _find_shuffler() -> Shuffler:
    try:
        fast = plugin("blosc2").blosc2_shuffle
    except (ImportError, OSError, AttributeError):
        return shuffle
    fast.argtypes = [ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p]

    def shuffle_fast(element_bytes: int, size: int, source: int, into: int) -> None:
        if element_bytes > MAX_ELEMENT_BYTES:
            shuffle(element_bytes, size, source, into)
        else:
            fast(element_bytes, size, source, into)

    return shuffle_fast


def shuffle(element_bytes: int, size: int, source: int, into: int) -> None:
    """Write first the first bytes of all elements, then the second ones, and so on.

    Args:
        element_bytes: size of an element.
        size: bytes of all; what is left of a whole number of elements stays behind.
        source: address of the elements.
        into: address of as much room.
    """
    whole = size - size % element_bytes
    given = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(source))
    room = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(into))
    elements = given[:whole].reshape(-1, element_bytes)
    room[:whole].reshape(element_bytes, -1)[...] = elements.T
    room[whole:] = given[whole:]
