"""Decodes messages in FastBinary's layout.

Arrays that are not compressed are not copied: they are read-only views of the message. Every
length is compared with what is there before it is believed.
"""

import functools
import math
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from lclstream.client.batches import Array, Batch
from lclstream.client.named import Load, batch_of, dtype_of
from lclstream.core.errors import DecodeError, InvalidConfigError

SIGNATURE = b"YAPN"
VERSION = 1
MAX_FIELDS = 10_000
MAX_NAME_BYTES = 4096
MAX_AXES = 32
# The header of a Blosc container, and how much LZ4 and Zstandard expand at most.
CONTAINER_HEADER_BYTES = 16
MAX_RATIO = 1 << 16
MAX_ARRAY_BYTES = 16 << 30


def decode(payload: bytes | bytearray | memoryview, fields: Collection[str] | None = None) -> Batch:
    """Decode one message.

    Args:
        payload: the message; arrays of the result may be views of it.
        fields: names to decode; None for all. Names that the message does not have are left out.

    Raises:
        DecodeError: the message is not FastBinary, is damaged, or has no common event axis.
        InvalidConfigError: the codec's library is not installed.
    """
    view = memoryview(payload).cast("B")
    reader = _Reader(view)
    magic, version, count = reader.take("<4sII")
    if magic != SIGNATURE or version != VERSION:
        raise DecodeError(f"not FastBinary of version {VERSION}: begins with {bytes(view[:8])!r}")
    if count > MAX_FIELDS:
        raise DecodeError(f"FastBinary: {count} fields are announced, {MAX_FIELDS} are allowed")
    members: dict[str, Load] = {}
    for _ in range(count):
        name, field = reader.field()
        if name in members:
            raise reader.error(f"field {name!r:.80} is there twice")
        members[name] = functools.partial(_array, name, field)
    if reader.at != len(view):
        raise reader.error(f"{len(view) - reader.at} bytes behind the end of the message")
    return batch_of(members, fields, len(view))


@dataclass(frozen=True, slots=True)
class _Field:
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    codec: int
    size: int
    data: memoryview


class _Reader:
    """Reads one thing after the other."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.at = 0

    def error(self, text: str) -> DecodeError:
        return DecodeError(f"FastBinary, byte {self.at}: {text}")

    def take(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.bytes(struct.calcsize(form)))

    def number(self, form: str) -> int:
        return int(self.take(form)[0])

    def bytes(self, count: int) -> memoryview:
        if count > len(self._view) - self.at:
            left = len(self._view) - self.at
            raise self.error(f"cut off: {count} bytes are announced, {left} are there")
        found = self._view[self.at : self.at + count]
        self.at += count
        return found

    def text(self) -> str:
        size = self.number("<I")
        if size > MAX_NAME_BYTES:
            raise self.error(f"a name of {size} bytes")
        try:
            return str(self.bytes(size), "utf-8")
        except UnicodeDecodeError:
            raise self.error("a name that is not UTF-8") from None

    def field(self) -> tuple[str, _Field]:
        name, dtype = self.text(), dtype_of(self.text())
        axes = self.number("<I")
        if axes > MAX_AXES:
            raise self.error(f"an array of {axes} axes")
        shape = tuple(self.number("<q") for _ in range(axes))
        codec, size, stored = self.take("<BQQ")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
            raise self.error(f"{size} bytes for an array of {dtype} {shape}")
        return name, _Field(dtype, shape, codec, size, self.bytes(stored))


def _array(name: str, field: _Field) -> Array:
    data = field.data
    if field.codec:
        data = memoryview(_decompressed(name, field))
    if len(data) != field.size:
        raise DecodeError(f"field {name!r:.80} has {len(data)} bytes instead of {field.size}")
    if not field.size:
        return np.zeros(field.shape, field.dtype)
    array: Array = np.frombuffer(data, field.dtype).reshape(field.shape)
    array.flags.writeable = False
    return array


def _decompressed(name: str, field: _Field) -> bytes:
    """Return the content of a Blosc container."""
    data = field.data
    if len(data) < CONTAINER_HEADER_BYTES or field.codec > 2:
        raise DecodeError(f"field {name!r:.80} is no Blosc container of codec 1 or 2")
    sizes = [int.from_bytes(data[at : at + 4], "little") for at in (4, 12)]
    limit = min(MAX_ARRAY_BYTES, MAX_RATIO * len(data))
    if sizes != [field.size, len(data)] or field.size > limit:
        raise DecodeError(f"field {name!r:.80}: its Blosc container says other sizes: {sizes}")
    try:
        return _decompressor()(data)
    except (RuntimeError, ValueError) as error:
        raise DecodeError(f"field {name!r:.80} is damaged: {error}") from error


@functools.cache
def _decompressor() -> Callable[[memoryview], bytes]:
    try:
        from numcodecs import blosc
    except ImportError:
        try:
            import blosc2 as blosc
        except ImportError:
            raise InvalidConfigError(
                "compressed FastBinary messages need numcodecs or blosc2, which are not installed"
            ) from None
    found: Callable[[memoryview], bytes] = blosc.decompress
    return found
