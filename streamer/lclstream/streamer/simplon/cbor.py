"""CBOR (RFC 8949) as Simplon streams use it: read without copies, written in pieces.

Reading never trusts what the bytes say of themselves: depth, number of items and every length
are bounded by what is there. Byte strings stay views of the message, so that an image is not
copied before it is decompressed; written ones are pieces of their own, so that it is not copied
before the socket.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lclstream.core.errors import DecodeError

MAGIC = b"\xd9\xd9\xf7"
"""Tag 55799: what follows is CBOR."""
MAX_DEPTH = 24
MAX_ITEMS = 100_000
# Byte strings from this size on are not copied into the piece around them.
PIECE_BYTES = 1024

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _OTHER = range(8)
_INDEFINITE = 31
_FLOATS = {25: ">e", 26: ">f", 27: ">d"}
_SIMPLE = {20: False, 21: True, 22: None, 23: None}
_BREAK = object()
_UINT64 = 1 << 64


@dataclass(frozen=True, slots=True)
class Tagged:
    """A value with a tag that says what it means."""

    tag: int
    value: Any


@dataclass(frozen=True, slots=True)
class Pieces:
    """One byte string that lies in several places; only written, never read."""

    pieces: tuple[bytes | memoryview, ...]


def loads(message: bytes | bytearray | memoryview) -> Any:
    """Return the one value that a message holds; its magic may be missing.

    Numbers, text, booleans and None are Python's, byte strings are views of the message, arrays
    are lists, maps are dicts in the order of the message, tags are `Tagged`.

    Raises:
        DecodeError: the message is cut, malformed, nested too deeply or of too many items; says
            at which byte.
    """
    reader = _Reader(memoryview(message).cast("B"))
    if bytes(reader.data[:3]) == MAGIC:
        reader.at = 3
    value = reader.value(0)
    if reader.at != len(reader.data):
        raise reader.error(f"{len(reader.data) - reader.at} bytes behind the end of the message")
    return value


class _Reader:
    """Reads one value after the other."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0
        self._items = 0

    def error(self, text: str, at: int | None = None) -> DecodeError:
        return DecodeError(f"CBOR, byte {self.at if at is None else at}: {text}")

    def value(self, depth: int) -> Any:
        found = self._item(depth)
        if found is _BREAK:
            raise self.error("an end of nothing", self.at - 1)
        return found

    def _item(self, depth: int) -> Any:
        start = self.at
        self._items += 1
        if depth > MAX_DEPTH or self._items > MAX_ITEMS:
            limit = f"nested deeper than {MAX_DEPTH}" if depth > MAX_DEPTH else "too many items"
            raise self.error(limit)
        first = self._take(1)[0]
        kind, extra = first >> 5, first & 31
        if kind == _OTHER:
            return self._other(extra, start)
        if extra == _INDEFINITE and kind in (_BYTES, _TEXT, _ARRAY, _MAP):
            return self._indefinite(kind, depth)
        number = self._number(extra, start)
        if kind == _UNSIGNED:
            return number
        if kind == _NEGATIVE:
            return -1 - number
        if kind == _BYTES:
            return self._take(number)
        if kind == _TEXT:
            return self._text(self._take(number), start)
        if kind == _TAG:
            return Tagged(number, self.value(depth + 1))
        return self._collected(kind, iter(range(number)), depth)

    def _take(self, count: int) -> memoryview:
        end = self.at + count
        if end > len(self.data):
            left = len(self.data) - self.at
            raise self.error(f"cut off: {count} bytes are announced, {left} are there")
        found = self.data[self.at : end]
        self.at = end
        return found

    def _number(self, extra: int, start: int) -> int:
        if extra < 24:
            return extra
        if extra > 27:
            raise self.error(f"malformed: additional information {extra}", start)
        return int.from_bytes(self._take(1 << (extra - 24)), "big")

    def _text(self, data: memoryview, start: int) -> str:
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError:
            raise self.error("text that is not UTF-8", start) from None

    def _other(self, extra: int, start: int) -> Any:
        if extra == _INDEFINITE:
            return _BREAK
        if extra in _FLOATS:
            form = _FLOATS[extra]
            return struct.unpack(form, self._take(struct.calcsize(form)))[0]
        if extra in _SIMPLE:
            return _SIMPLE[extra]
        raise self.error(f"unknown simple value {extra}", start)

    def _indefinite(self, kind: int, depth: int) -> Any:
        if kind in (_ARRAY, _MAP):
            return self._collected(kind, None, depth)
        start = self.at
        chunks: list[Any] = []
        wanted = str if kind == _TEXT else memoryview
        while (chunk := self._item(depth + 1)) is not _BREAK:
            if not isinstance(chunk, wanted):
                raise self.error("a string of indefinite length holds something else", start)
            chunks.append(chunk)
        return "".join(chunks) if kind == _TEXT else memoryview(b"".join(chunks))

    def _collected(self, kind: int, counter: Iterator[int] | None, depth: int) -> Any:
        """Return a list or dict; without a counter it goes on to a break."""
        found: list[Any] = []
        pairs: dict[Any, Any] = {}
        while counter is None or next(counter, None) is not None:
            start = self.at
            item = self._item(depth + 1)
            if item is _BREAK and counter is None:
                break
            if item is _BREAK:
                raise self.error("ends before it is complete", start)
            if kind == _ARRAY:
                found.append(item)
                continue
            if not isinstance(item, str | int) or item in pairs:
                what = f"key {item!r} twice" if isinstance(item, str | int) else "unusable key"
                raise self.error(f"a map with {what}", start)
            pairs[item] = self.value(depth + 1)
        return found if kind == _ARRAY else pairs


def dumps(value: Any, prefix: bytes = b"") -> tuple[memoryview, ...]:
    """Return a message in pieces: one after the other they are the message.

    Large byte strings are not copied: their pieces are views of what was given. Lengths are
    definite, numbers as short as possible, and a float is always one of 64 bits.

    Args:
        value: None, booleans, numbers, text, bytes and other contiguous buffers, `Pieces`,
            lists, tuples, mappings, `Tagged`; NumPy's numbers count as Python's.
        prefix: what goes before, such as `MAGIC`.

    Raises:
        TypeError: something else is in it.
        OverflowError: an integer has more than 64 bits.
    """
    writer = _Writer(prefix)
    writer.value(value)
    return tuple(writer.finish())


class _Writer:
    """Collects pieces."""

    def __init__(self, prefix: bytes) -> None:
        self._pieces: list[memoryview] = []
        self._head = bytearray(prefix)

    def finish(self) -> list[memoryview]:
        if self._head:
            self._pieces.append(memoryview(self._head))
            self._head = bytearray()
        return self._pieces

    def value(self, value: Any) -> None:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool):
            self._head.append(0xF6 if value is None else 0xF5 if value else 0xF4)
        elif isinstance(value, int):
            self._number(_UNSIGNED if value >= 0 else _NEGATIVE, value if value >= 0 else ~value)
        elif isinstance(value, float):
            self._head += b"\xfb" + struct.pack(">d", value)
        elif isinstance(value, str):
            encoded = value.encode()
            self._number(_TEXT, len(encoded))
            self._head += encoded
        elif isinstance(value, Mapping):
            self._number(_MAP, len(value))
            for key, each in value.items():
                self.value(key)
                self.value(each)
        elif isinstance(value, list | tuple):
            self._number(_ARRAY, len(value))
            for each in value:
                self.value(each)
        elif isinstance(value, Tagged):
            self._number(_TAG, value.tag)
            self.value(value.value)
        elif isinstance(value, bytes | bytearray | memoryview):
            self._bytes((value,))
        elif isinstance(value, Pieces):
            self._bytes(value.pieces)
        else:
            raise TypeError(f"{type(value).__name__} cannot be written as CBOR")

    def _number(self, kind: int, number: int) -> None:
        if number < 24:
            self._head.append(kind << 5 | number)
            return
        if number >= _UINT64:
            raise OverflowError(f"{number} has more than 64 bits")
        power = max((number.bit_length() + 7) // 8 - 1, 0).bit_length()
        self._head.append(kind << 5 | 24 + power)
        self._head += number.to_bytes(1 << power, "big")

    def _bytes(self, pieces: Iterable[bytes | bytearray | memoryview]) -> None:
        views = [memoryview(piece).cast("B") for piece in pieces]
        self._number(_BYTES, sum(view.nbytes for view in views))
        for view in views:
            if view.nbytes < PIECE_BYTES:
                self._head += view
            else:
                self.finish()
                self._pieces.append(view)
