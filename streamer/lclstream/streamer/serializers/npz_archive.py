"""ZIP archives of arrays that are made without copying the arrays.

`numpy.load` reads them, and so does every ZIP program. What `numpy.savez` writes into one place,
the pieces here describe: the archive's own bytes, and the arrays where they are. The data of a
stored array begin at a multiple of 64 bytes, so that they can be used where they lie.
"""

import functools
import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lclstream.streamer.serializers.contents import Data
from lclstream.streamer.serializers.pieces import merged
from lclstream.streamer.serializers.workers import OrderedWorkers

ALIGNMENT = 64
# What does not fit into 32 bits is written as this, and its value elsewhere.
MAX_32 = 0xFFFF_FFFF
MAX_16 = 0xFFFF
# Each block is compressed by itself, so that threads share a large array.
BLOCK_BYTES = 1 << 20

_STORED, _DEFLATED = 0, 8
_UTF8_NAME = 0x800
# 1980-01-01 00:00, the beginning of time for ZIP; equal arrays make equal archives.
_TIME, _DATE = 0, 0x21
_PLAIN_VERSION, _LARGE_VERSION = 20, 45
_EXTRA_LARGE, _EXTRA_ALIGNMENT = 0x0001, 0xD935
_LOCAL = struct.Struct("<IHHHHHIIIHH")
_CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
_END = struct.Struct("<IHHHHIIH")
_LARGE_END = struct.Struct("<IQHHIIQQQQ")
_LOCATOR = struct.Struct("<IIQI")

Piece = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Member:
    """One array as it goes into the archive."""

    name: bytes
    method: int
    checksum: int
    """CRC-32 of what the pieces hold, uncompressed."""
    size: int
    """Uncompressed."""
    pieces: tuple[Piece, ...]

    @property
    def stored(self) -> int:
        """Bytes in the archive."""
        return sum(len(piece) for piece in self.pieces)


class Archive:
    """Collects the pieces of one archive."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._at = 0
        self._directory: list[bytes] = []

    def add(self, member: Member) -> None:
        """Append one array."""
        start, stored = self._at, member.stored
        is_large = max(member.size, stored) >= MAX_32
        extra = struct.pack("<HHQQ", _EXTRA_LARGE, 16, member.size, stored) if is_large else b""
        if member.method == _STORED:
            extra += _alignment(start + _LOCAL.size + len(member.name) + len(extra))
        version = _LARGE_VERSION if is_large else _PLAIN_VERSION
        shown = (MAX_32, MAX_32) if is_large else (stored, member.size)
        flags = 0 if member.name.isascii() else _UTF8_NAME
        form = (flags, member.method, _TIME, _DATE, member.checksum, *shown)
        head = _LOCAL.pack(0x04034B50, version, *form, len(member.name), len(extra))
        self._put(head + member.name + extra, *member.pieces)
        self._directory.append(_entry(member.name, version, form, member.size, stored, start))

    def finish(self) -> tuple[memoryview, ...]:
        """Return the archive; one piece after the other they are it."""
        start, count = self._at, len(self._directory)
        self._put(b"".join(self._directory) + self._end(start, count))
        return merged(self._pieces)

    def _end(self, start: int, count: int) -> bytes:
        size = sum(map(len, self._directory))
        large = b""
        if max(start, size) >= MAX_32 or count >= MAX_16:
            version = (_LARGE_VERSION, _LARGE_VERSION)
            large = _LARGE_END.pack(0x06064B50, 44, *version, 0, 0, count, count, size, start)
            large += _LOCATOR.pack(0x07064B50, 0, start + size, 1)
        counts = (min(count, MAX_16),) * 2
        return large + _END.pack(
            0x06054B50, 0, 0, *counts, min(size, MAX_32), min(start, MAX_32), 0
        )

    def _put(self, *pieces: Piece) -> None:
        self._pieces += pieces
        self._at += sum(map(len, pieces))


def _alignment(offset: int) -> bytes:
    """Return an extra field after which the data begin at a multiple of `ALIGNMENT`."""
    padding = -(offset + 6) % ALIGNMENT
    return struct.pack("<HHH", _EXTRA_ALIGNMENT, 2 + padding, ALIGNMENT) + bytes(padding)


def _entry(
    name: bytes, version: int, form: Sequence[int], size: int, stored: int, start: int
) -> bytes:
    """Return a member's line of the directory."""
    large = []
    if max(size, stored) >= MAX_32:
        large += [size, stored]
    if start >= MAX_32:
        large.append(start)
    extra = struct.pack(f"<HH{len(large)}Q", _EXTRA_LARGE, 8 * len(large), *large) if large else b""
    needed = _LARGE_VERSION if large else version
    lengths = (len(name), len(extra), 0, 0, 0, 0)
    offset = min(start, MAX_32)
    head = _CENTRAL.pack(0x02014B50, needed, needed, *form, *lengths, offset)
    return head + name + extra


@functools.lru_cache(maxsize=256)
def array_header(descr: str, shape: tuple[int, ...]) -> bytes:
    """Return what precedes the data of a C-contiguous array in a `.npy` file."""
    head = io.BytesIO()
    fields = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, fields)
    return head.getvalue()


def stored_member(name: str, data: Data) -> Member:
    """Return an array as it is, not copied."""
    head = array_header(data.dtype.str, data.shape)
    return Member(
        f"{name}.npy".encode(), _STORED, _checksum(head, data), len(head) + data.nbytes,
        (head, *data.parts),
    )  # fmt: skip


def deflated_member(name: str, data: Data, level: int, workers: OrderedWorkers) -> Member:
    """Return an array compressed; the workers share it."""
    head = array_header(data.dtype.str, data.shape)
    blocks: list[Piece] = [head, *(block for part in data.parts for block in _blocks(part))]
    numbered = [(block, number == len(blocks)) for number, block in enumerate(blocks, 1)]
    return Member(
        f"{name}.npy".encode(), _DEFLATED, _checksum(head, data), len(head) + data.nbytes,
        tuple(workers.map(lambda block: _deflated(block, level), numbered)),
    )  # fmt: skip


def _checksum(head: bytes, data: Data) -> int:
    checksum = zlib.crc32(head)
    for part in data.parts:
        checksum = zlib.crc32(part, checksum)
    return checksum


def _blocks(part: memoryview) -> Iterable[memoryview]:
    """Yield what is compressed by itself."""
    return (part[start : start + BLOCK_BYTES] for start in range(0, len(part), BLOCK_BYTES))


def _deflated(block: tuple[Piece, bool], level: int) -> bytes:
    data, is_last = block
    compressor = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = compressor.compress(data)
    return start + compressor.flush(zlib.Z_FINISH if is_last else zlib.Z_FULL_FLUSH)
