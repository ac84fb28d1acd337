"""The compressed byte strings of DECTRIS messages (CBOR tag 56500): `bslz4` and `lz4`.

Both have the framing of the HDF5 filters of these names: the size of the content in bytes (8
bytes, big-endian), the size of a block in bytes (4), then the blocks, each behind its compressed
size (4). What a frame says is checked against its length before memory is given to it: LZ4
expands by 255 at most.
"""

import functools
import importlib
import os
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import numpy.typing as npt

from lclstream.core.errors import DecodeError, InvalidConfigError
from lclstream.streamer.values import Array

LZ4_BLOCK = "lz4-block"
"""One LZ4 block without any framing, as Stream V1 has it."""
ALGORITHMS = ("bslz4", "lz4")
BLOCK_BYTES = 8192
"""Size of a block before compression, as detectors use it."""
HEADER_BYTES = 12
# Elements that do not fill a group of eight are not shuffled, and stored as they are.
GROUP = 8
# Bytes that LZ4 makes of one at most.
MAX_RATIO = 255
# Smaller blocks than any writer makes would only take time.
MIN_BLOCK_BYTES = 128
MAX_ITEM_BYTES = 16

Bytes = npt.NDArray[np.uint8]


@functools.cache
def _bitshuffle() -> ModuleType:
    # Its threads, of several ranks on few cores, hinder each other by a factor of a hundred.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return _library("bitshuffle", "bslz4")


@functools.cache
def _lz4() -> ModuleType:
    return _library("numcodecs.lz4", "lz4")


def _library(module: str, algorithm: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = error.name or module
        raise InvalidConfigError(f"{algorithm} needs {name}, which is not installed") from None


def compress_blocks(array: Array, block_bytes: int = BLOCK_BYTES) -> Bytes:
    """Return an array as bitshuffle-LZ4 blocks without a header, in row-major order.

    Args:
        array: any shape; its items have 1 to 16 bytes.
        block_bytes: size of a block; a multiple of eight items.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    compressed = _bitshuffle().compress_lz4(flat, block_bytes // array.itemsize)
    return np.asarray(compressed, np.uint8)


def compress(array: Array) -> tuple[bytes, Bytes]:
    """Return the header and the blocks of an array as `bslz4`."""
    header = array.nbytes.to_bytes(8, "big") + BLOCK_BYTES.to_bytes(4, "big")
    return header, compress_blocks(array)


def decompress(algorithm: str, item_bytes: int, data: memoryview, limit: int) -> Bytes:
    """Return the content of a compressed byte string.

    Args:
        algorithm: one of `ALGORITHMS`.
        item_bytes: size of the items that bitshuffle took apart; no matter for `lz4`.
        data: header and blocks.
        limit: bytes of the content at most; exactly for `LZ4_BLOCK`.

    Raises:
        DecodeError: the data are damaged, too large or of another algorithm.
    """
    if algorithm == LZ4_BLOCK:
        return _decompress_one(data, limit)
    if algorithm not in ALGORITHMS:
        known = " and ".join(ALGORITHMS)
        raise DecodeError(f"compression {algorithm!r} is not known; {known} are")
    size = content_bytes(data)
    block = int.from_bytes(data[8:HEADER_BYTES], "big")
    if size > limit:
        raise DecodeError(f"{algorithm}: {size} bytes are announced, {limit} expected at most")
    blocks = data[HEADER_BYTES:]
    if algorithm == "bslz4":
        return decompress_blocks(blocks, size, item_bytes, block)
    return _decompress_lz4(blocks, size, block)


def _decompress_one(data: memoryview, size: int) -> Bytes:
    if size > MAX_RATIO * len(data):
        raise DecodeError(f"{size} bytes cannot be in {len(data)} compressed ones")
    content = np.empty(size, np.uint8)
    if size:
        _decompress_block(data, content)
    return content


def content_bytes(data: memoryview) -> int:
    """Return the size that the header of a compressed byte string announces.

    Raises:
        DecodeError: it is cut off, or more than LZ4 could make of what is there.
    """
    if len(data) < HEADER_BYTES:
        raise DecodeError(f"compressed data of {len(data)} bytes have no header")
    size = int.from_bytes(data[:8], "big")
    if size > MAX_RATIO * len(data):
        raise DecodeError(f"{size} bytes cannot be in {len(data)} compressed ones")
    return size


def decompress_blocks(data: memoryview, size: int, item_bytes: int, block_bytes: int) -> Bytes:
    """Return the content of bitshuffle-LZ4 blocks that have no header.

    Args:
        data: the blocks.
        size: bytes of the content.
        item_bytes: size of the items that were taken apart.
        block_bytes: size of a block before compression.

    Raises:
        DecodeError: the blocks are damaged, or do not fit what is said of them.
    """
    if not 0 < item_bytes <= MAX_ITEM_BYTES or size % item_bytes:
        raise DecodeError(f"bslz4: {size} bytes are no items of {item_bytes}")
    if block_bytes < MIN_BLOCK_BYTES or block_bytes % (GROUP * item_bytes):
        raise DecodeError(f"bslz4: blocks of {block_bytes} bytes for items of {item_bytes}")
    if size > MAX_RATIO * len(data):
        raise DecodeError(f"bslz4: {size} bytes cannot be in {len(data)} compressed ones")
    rest = size % (GROUP * item_bytes)
    # The library reads as far as the blocks say, beyond the end of the data too.
    _check(data, -(-(size - rest) // block_bytes), rest)
    if not size:
        return np.empty(0, np.uint8)
    items = size // item_bytes
    source, dtype = np.frombuffer(data, np.uint8), np.dtype(f"V{item_bytes}")
    try:
        found = _bitshuffle().decompress_lz4(source, (items,), dtype, block_bytes // item_bytes)
    except (RuntimeError, ValueError) as error:
        raise DecodeError(f"bslz4: damaged blocks: {error}") from None
    return np.asarray(found).view(np.uint8)


def _check(data: memoryview, count: int, rest: int) -> None:
    """Follow the chain of blocks to its end, which must be that of the data."""
    at, end = 0, len(data) - rest
    for _ in range(count):
        if at + 4 > end:
            break
        at += 4 + int.from_bytes(data[at : at + 4], "big")
        if at > end:
            break
    else:
        if at == end:
            return
    raise DecodeError(f"bslz4: {count} blocks do not fit into {len(data)} bytes")


def _decompress_lz4(data: memoryview, size: int, block_bytes: int) -> Bytes:
    if block_bytes < min(size, MIN_BLOCK_BYTES):
        raise DecodeError(f"lz4: blocks of {block_bytes} bytes for {size} bytes")
    content = np.empty(size, np.uint8)
    at = 0
    for start, block in _lz4_blocks(data, size, block_bytes):
        room = content[start : start + block_bytes]
        if len(block) == len(room):
            room[:] = np.frombuffer(block, np.uint8)
        else:
            _decompress_block(block, room)
        at += 4 + len(block)
    if at != len(data):
        raise DecodeError(f"lz4: {len(data) - at} bytes behind the last block")
    return content


def _lz4_blocks(data: memoryview, size: int, block_bytes: int) -> Iterator[tuple[int, memoryview]]:
    """Yield where each block's content begins, and its compressed bytes."""
    at = 0
    for start in range(0, size, block_bytes or 1):
        length = int.from_bytes(data[at : at + 4], "big")
        at += 4
        if not 0 < length <= len(data) - at:
            raise DecodeError(f"lz4: the block at byte {start} of {size} is cut off")
        yield start, data[at : at + length]
        at += length


def _decompress_block(block: memoryview, room: Bytes) -> None:
    if len(room) >= 1 << 31:
        raise DecodeError(f"lz4: {len(room)} bytes in one block")
    # The library wants the size in front of the block, in a form of its own.
    framed = len(room).to_bytes(4, "little") + block
    try:
        _lz4().decompress(framed, room)
    except (RuntimeError, ValueError) as error:
        raise DecodeError(f"lz4: a damaged block: {error}") from None
