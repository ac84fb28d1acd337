"""Blosc2 with LZ4 or Zstandard behind bit shuffling: HDF5's filter 32026.

A chunk is a Blosc2 frame that holds one Blosc2 chunk. Two frames of the same form differ in the
chunk itself and in two sizes, so the library makes one frame, and we the others.
"""

import ctypes
import logging
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lclstream.streamer.serializers.codecs import Filter, Piece
from lclstream.streamer.serializers.codecs.libraries import ADDRESS, require_filter

CODE = 32026
BITSHUFFLE = 2
CODES = {"lz4": 1, "zstd": 5}
MAX_ELEMENT_BYTES = 255
MAX_FILTERS = 6
# Where a frame tells its own size and that of its chunks, big-endian.
FRAME_SIZE_AT, CHUNKS_SIZE_AT = 16, 39
SIZE_FIELD = struct.Struct(">Q")
# A part below this is not worth a thread's while.
LEAST_PART_BYTES = 512 << 10
# Versions of the library whose `blosc2_cparams` is the structure below.
KNOWN_VERSIONS = (b"3.3.",)
AUTOMATIC_SPLIT = 3

# Compresses some bytes at an address into room at another one; returns the size, 0 for no room.
Compress = Callable[[int, int, int, int], int]


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
        # Of what it computes with, which we do not use, this would tell how many threads it has.
        logging.getLogger("numexpr").setLevel(logging.WARNING)
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
            "filters_meta": [0] * MAX_FILTERS,
            "splitmode": self._library.SplitMode.AUTO_SPLIT,
            "nthreads": max(1, min(parts, chunk_bytes // LEAST_PART_BYTES)),
        }
        return (_Frame(self._library, chunk_bytes, options),)


class _Frame:
    def __init__(self, library: Any, chunk_bytes: int, options: dict[str, Any]) -> None:
        self._chunk_bytes = chunk_bytes
        # Data of one value would be stored without a chunk.
        data = (bytes(range(256)) * (chunk_bytes // 256 + 1))[:chunk_bytes]
        frame = library.SChunk(chunksize=chunk_bytes, data=data, cparams=options, contiguous=True)
        chunk, whole = frame.get_chunk(0), frame.to_cframe()
        self._head, self._tail = _around(chunk, whole)
        around = len(self._head) + len(self._tail)
        self.bound = int(chunk_bytes + library.MAX_OVERHEAD + around)
        self._compress = _into_room(library, options, data, chunk)

    def pack(self, source: int, into: int) -> int:
        """Compress a chunk; see `Piece`."""
        start = into + len(self._head)
        room = self.bound - len(self._head) - len(self._tail)
        packed = self._compress(source, self._chunk_bytes, start, room)
        if not packed:
            return self.bound
        size = len(self._head) + packed + len(self._tail)
        head = bytearray(self._head)
        SIZE_FIELD.pack_into(head, FRAME_SIZE_AT, size)
        SIZE_FIELD.pack_into(head, CHUNKS_SIZE_AT, packed)
        ctypes.memmove(into, bytes(head), len(head))
        ctypes.memmove(start + packed, self._tail, len(self._tail))
        return size


def _around(chunk: bytes, frame: bytes) -> tuple[bytes, bytes]:
    """Return what lies before and behind the chunk in a frame."""
    at = frame.index(chunk)
    head, tail = frame[:at], frame[at + len(chunk) :]
    told = [SIZE_FIELD.unpack_from(head, at)[0] for at in (FRAME_SIZE_AT, CHUNKS_SIZE_AT)]
    if told != [len(frame), len(chunk)]:
        raise RuntimeError("this version of Blosc2 writes frames of another form")
    return head, tail


def _into_room(library: Any, options: dict[str, Any], data: bytes, expected: bytes) -> Compress:
    """Return what compresses without a result of its own, where the library is known so well.

    Args:
        library: the Python package.
        options: of `blosc2.compress2`.
        data: an example.
        expected: what becomes of it.
    """
    functions = _functions(library)
    if functions is not None:
        compress = _Contexts(functions, options)
        source, room = np.frombuffer(data, np.uint8), np.empty(len(data) + 64, np.uint8)
        size = compress(source.ctypes.data, len(data), room.ctypes.data, len(room))
        if room[:size].tobytes() == expected:
            return compress

    def copied(source: int, size: int, into: int, room: int) -> int:
        view = (ctypes.c_char * size).from_address(source)
        packed: bytes = library.compress2(view, **options)
        if len(packed) > room:
            return 0
        ctypes.memmove(into, packed, len(packed))
        return len(packed)

    return copied


def _functions(library: Any) -> ctypes.CDLL | None:
    """Return the library itself, which comes with the package; None if it is not known."""
    try:
        functions = ctypes.CDLL(str(Path(library.__file__).parent / "lib" / "libblosc2.so"))
        functions.blosc2_get_version_string.restype = ctypes.c_char_p
        if not functions.blosc2_get_version_string().startswith(KNOWN_VERSIONS):
            return None
        functions.blosc2_init()
    except (OSError, AttributeError):
        return None
    create, compress = functions.blosc2_create_cctx, functions.blosc2_compress_ctx
    create.restype, create.argtypes = ADDRESS, [_Parameters]
    size = ctypes.c_int32
    compress.restype, compress.argtypes = ctypes.c_int, [ADDRESS, ADDRESS, size, ADDRESS, size]
    functions.blosc2_free_ctx.restype, functions.blosc2_free_ctx.argtypes = None, [ADDRESS]
    return functions


class _Parameters(ctypes.Structure):
    """`blosc2_cparams`; what follows these fields are pointers and numbers that may be 0."""

    _fields_ = (
        ("codec", ctypes.c_uint8),
        ("codec_meta", ctypes.c_uint8),
        ("level", ctypes.c_uint8),
        ("use_dict", ctypes.c_int),
        ("element_bytes", ctypes.c_int32),
        ("threads", ctypes.c_int16),
        ("block_bytes", ctypes.c_int32),
        ("split", ctypes.c_int32),
        ("schunk", ctypes.c_void_p),
        ("filters", ctypes.c_uint8 * MAX_FILTERS),
        ("filters_meta", ctypes.c_uint8 * MAX_FILTERS),
        # More than there is: the function reads only what it knows.
        ("others", ctypes.c_uint64 * 32),
    )


class _Contexts:
    """Compresses with a context of the library for each thread, used again and again."""

    def __init__(self, functions: ctypes.CDLL, options: dict[str, Any]) -> None:
        self._functions = functions
        self._parameters = _Parameters(
            codec=int(options["codec"].value),
            level=options["clevel"],
            element_bytes=options["typesize"],
            threads=options["nthreads"],
            split=AUTOMATIC_SPLIT,
            filters=(0, 0, 0, 0, 0, BITSHUFFLE),
        )
        self._contexts = threading.local()

    def __call__(self, source: int, size: int, into: int, room: int) -> int:
        context = getattr(self._contexts, "context", None)
        if context is None:
            context = self._contexts.context = _Context(self._functions, self._parameters)
        packed = self._functions.blosc2_compress_ctx(context.address, source, size, into, room)
        if packed < 0:
            raise RuntimeError(f"Blosc2 failed with code {packed}")
        return int(packed)


class _Context:
    def __init__(self, functions: ctypes.CDLL, parameters: _Parameters) -> None:
        self._free = functions.blosc2_free_ctx
        self.address = functions.blosc2_create_cctx(parameters)
        if not self.address:
            raise MemoryError("no memory for Blosc2")

    def __del__(self) -> None:
        self._free(self.address)
