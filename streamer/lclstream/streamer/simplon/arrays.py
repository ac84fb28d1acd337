"""Arrays in CBOR: typed arrays and those of several dimensions (RFC 8746), compressed or not."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from lclstream.core.errors import DecodeError
from lclstream.streamer.simplon import compression
from lclstream.streamer.simplon.cbor import Pieces, Tagged
from lclstream.streamer.values import Array

ROW_MAJOR, COLUMN_MAJOR, COMPRESSED = 40, 1040, 56500
MAX_ARRAY_BYTES = 1 << 30
MAX_DIMENSIONS = 8

TYPES: Mapping[int, np.dtype[np.generic]] = {
    tag: np.dtype(name)
    for tag, name in {
        64: "u1", 65: ">u2", 66: ">u4", 67: ">u8", 68: "u1", 69: "<u2", 70: "<u4", 71: "<u8",
        72: "i1", 73: ">i2", 74: ">i4", 75: ">i8", 77: "<i2", 78: "<i4", 79: "<i8",
        80: ">f2", 81: ">f4", 82: ">f8", 84: "<f2", 85: "<f4", 86: "<f8",
    }.items()
}  # fmt: skip
"""Tag of a typed array -> what its items are."""
# 68 means clamped arithmetic, which is none of ours.
_TAGS = {dtype.str: tag for tag, dtype in TYPES.items() if tag != 68}


@dataclass(frozen=True, slots=True)
class PackedArray:
    """An array as it lies in a message, unpacked only when it is asked for."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...] | None
    """None: of one dimension, as long as the content."""
    data: tuple[bytes | memoryview, ...]
    """The content, or what it is compressed to; in pieces."""
    compression: str | None = None
    item_bytes: int = 0
    """Size of the items that bitshuffle takes apart."""
    order: Literal["C", "F"] = "C"

    @classmethod
    def pack(cls, array: Array, compress: Literal["bslz4"] | None = None) -> Self:
        """Return an array ready to be written; without compression it is not copied.

        Args:
            array: of numbers, any shape; in row-major order, or it is copied.
            compress: how; None for not at all.

        Raises:
            TypeError: CBOR has no such type, e.g. complex numbers.
        """
        array = np.ascontiguousarray(array).reshape(array.shape)
        if array.dtype.str not in _TAGS:
            raise TypeError(f"CBOR has no arrays of {array.dtype}")
        dtype, shape = array.dtype, array.shape
        if compress is not None:
            header, blocks = compression.compress(array)
            pieces = (header, blocks.data) if blocks.size else (header,)
            return cls(dtype, shape, pieces, compress, dtype.itemsize)
        # An empty buffer has no bytes that could be looked at.
        content = array.reshape(-1).view(np.uint8).data if array.size else b""
        return cls(dtype, shape, (content,))

    def unpack(self, limit: int = MAX_ARRAY_BYTES) -> Array:
        """Return the array; read-only, and a view of the message, where it is not compressed.

        Args:
            limit: bytes that it may have.

        Raises:
            DecodeError: it is damaged, larger than allowed, or of another size than its shape.
        """
        wanted = limit
        if self.shape is not None:
            wanted = math.prod(self.shape) * self.dtype.itemsize
        if wanted > limit:
            raise DecodeError(f"an array of {wanted} bytes is above the limit of {limit}")
        data = memoryview(self.data[0] if len(self.data) == 1 else b"".join(self.data))
        if self.compression is None:
            content = np.frombuffer(data, np.uint8)
        else:
            content = compression.decompress(self.compression, self.item_bytes, data, wanted)
        if self.shape is not None and content.nbytes != wanted:
            raise DecodeError(f"{content.nbytes} bytes for an array of {wanted}: {self.shape}")
        if content.nbytes % self.dtype.itemsize:
            raise DecodeError(f"{content.nbytes} bytes are no items of {self.dtype}")
        array = content.view(self.dtype)
        return array if self.shape is None else array.reshape(self.shape, order=self.order)


def from_tagged(tagged: Tagged) -> PackedArray:
    """Return the array that a tag announces.

    Raises:
        DecodeError: its content is none.
    """
    if tagged.tag in TYPES:
        return _typed(tagged, None, "C")
    content = tagged.value
    if not isinstance(content, list) or len(content) != 2:
        raise DecodeError(f"tag {tagged.tag}: an array needs its shape and its content")
    shape, typed = content
    if not isinstance(typed, Tagged) or typed.tag not in TYPES:
        raise DecodeError(f"tag {tagged.tag}: the content is no typed array")
    order: Literal["C", "F"] = "F" if tagged.tag == COLUMN_MAJOR else "C"
    return _typed(typed, _shape(shape), order)


def is_array(tag: int) -> bool:
    """Return whether a tag announces an array."""
    return tag in TYPES or tag in (ROW_MAJOR, COLUMN_MAJOR)


def to_tagged(array: PackedArray) -> Tagged:
    """Return an array as `cbor.dumps` takes it; of one dimension, it is a plain typed array."""
    content: Any = Pieces(array.data)
    if array.compression is not None:
        content = Tagged(COMPRESSED, [array.compression, array.item_bytes, content])
    typed = Tagged(_TAGS[array.dtype.str], content)
    if array.shape is None or len(array.shape) < 2:
        return typed
    tag = COLUMN_MAJOR if array.order == "F" else ROW_MAJOR
    return Tagged(tag, [list(array.shape), typed])


def _shape(value: Any) -> tuple[int, ...]:
    is_shape = isinstance(value, Sequence) and all(type(each) is int for each in value)
    if not is_shape or not 0 < len(value) <= MAX_DIMENSIONS or min(value) < 0:
        raise DecodeError(f"not the shape of an array: {value!r:.60}")
    return tuple(value)


def _typed(tagged: Tagged, shape: tuple[int, ...] | None, order: Literal["C", "F"]) -> PackedArray:
    dtype, content = TYPES[tagged.tag], tagged.value
    if isinstance(content, memoryview):
        return PackedArray(dtype, shape, (content,), order=order)
    if not isinstance(content, Tagged) or content.tag != COMPRESSED:
        raise DecodeError(f"tag {tagged.tag}: the content is no byte string")
    match content.value:
        case [str() as algorithm, int() as item_bytes, memoryview() as data]:
            return PackedArray(dtype, shape, (data,), algorithm, item_bytes, order)
    raise DecodeError(f"tag {COMPRESSED}: needs an algorithm, a number and a byte string")
