"""zfp: HDF5's filter 32013; what a chunk needs to be read stands in the filter's parameters."""

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from lclstream.streamer.serializers.codecs import Filter, Piece
from lclstream.streamer.serializers.codecs.libraries import ADDRESS, SIZE, plugin, require_filter

CODE = 32013
HEADER_FULL = 7
MAX_DIMENSIONS = 4


class Zfp:
    """The filter with the parameters that it has when none are given: not lossless."""

    def __init__(self) -> None:
        """Load the library.

        Raises:
            ImportError, OSError, AttributeError: it is not installed.
        """
        require_filter(CODE)
        self._library = _typed(plugin("zfp"))

    def suits(self, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bool:
        """Return whether they are numbers that zfp knows, in few enough dimensions.

        Unsigned numbers are ids and time stamps here; zfp would round them.
        """
        known = dtype.kind in "fi" and dtype.itemsize in (4, 8) and dtype.isnative
        return known and sum(extent > 1 for extent in shape) <= MAX_DIMENSIONS

    def filters(self, dtype: np.dtype[np.generic]) -> Sequence[Filter]:
        """Return the one filter; it adds all its parameters."""
        del dtype
        return (Filter(CODE, ()),)

    def pieces(
        self, chunk_bytes: int, filters: Sequence[Filter], parts: int = 1
    ) -> Sequence[Piece]:
        """Return the one piece; the format knows no parts."""
        del parts
        return (_Stream(self._library, chunk_bytes, filters[0].values),)


class _Stream:
    def __init__(self, library: ctypes.CDLL, chunk_bytes: int, values: Sequence[int]) -> None:
        self._library = library
        self._mode, self._metadata = _read_header(library, values)
        with ExitStack() as stack:
            field, stream = self._prepare(stack)
            # At least the chunk itself must fit, which is stored if it is smaller.
            self.bound = max(int(library.zfp_stream_maximum_size(stream, field)), chunk_bytes)

    def pack(self, source: int, into: int) -> int:
        """Compress a chunk; see `Piece`."""
        library = self._library
        with ExitStack() as stack:
            field, stream = self._prepare(stack)
            library.zfp_field_set_pointer(field, source)
            bits = _held(stack, library.stream_open(into, self.bound), library.stream_close)
            library.zfp_stream_set_bit_stream(stream, bits)
            size = int(library.zfp_compress(stream, field))
        if not size:
            raise RuntimeError("zfp failed")
        return size

    def _prepare(self, stack: ExitStack) -> tuple[int, int]:
        library = self._library
        field = _held(stack, library.zfp_field_alloc(), library.zfp_field_free)
        library.zfp_field_set_metadata(field, self._metadata)
        stream = _held(stack, library.zfp_stream_open(None), library.zfp_stream_close)
        library.zfp_stream_set_mode(stream, self._mode)
        return field, stream


def _read_header(library: ctypes.CDLL, values: Sequence[int]) -> tuple[int, int]:
    """Return mode and metadata that a dataset's filter parameters speak of."""
    # The first one is the version of the filter.
    header = (ctypes.c_uint32 * (len(values) - 1))(*values[1:])
    with ExitStack() as stack:
        bits = library.stream_open(ctypes.addressof(header), ctypes.sizeof(header))
        bits = _held(stack, bits, library.stream_close)
        stream = _held(stack, library.zfp_stream_open(bits), library.zfp_stream_close)
        field = _held(stack, library.zfp_field_alloc(), library.zfp_field_free)
        if not library.zfp_read_header(stream, field, HEADER_FULL):
            raise RuntimeError(f"zfp does not know the filter parameters {tuple(values)}")
        return int(library.zfp_stream_mode(stream)), int(library.zfp_field_metadata(field))


def _held(stack: ExitStack, address: int | None, free: "ctypes._NamedFuncPointer") -> int:
    if not address:
        raise MemoryError("no memory for zfp")
    stack.callback(free, address)
    return address


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    number, none = ctypes.c_uint64, None
    types = {
        "stream_open": (ADDRESS, [ADDRESS, SIZE]),
        "stream_close": (none, [ADDRESS]),
        "zfp_stream_open": (ADDRESS, [ADDRESS]),
        "zfp_stream_close": (none, [ADDRESS]),
        "zfp_stream_set_bit_stream": (none, [ADDRESS, ADDRESS]),
        "zfp_stream_set_mode": (ctypes.c_int, [ADDRESS, number]),
        "zfp_stream_mode": (number, [ADDRESS]),
        "zfp_stream_maximum_size": (SIZE, [ADDRESS, ADDRESS]),
        "zfp_field_alloc": (ADDRESS, []),
        "zfp_field_free": (none, [ADDRESS]),
        "zfp_field_set_pointer": (none, [ADDRESS, ADDRESS]),
        "zfp_field_set_metadata": (ctypes.c_int, [ADDRESS, number]),
        "zfp_field_metadata": (number, [ADDRESS]),
        "zfp_read_header": (SIZE, [ADDRESS, ADDRESS, ctypes.c_uint]),
        "zfp_compress": (SIZE, [ADDRESS, ADDRESS]),
    }
    for name, (result, arguments) in types.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
