"""Dgrams as they are read: containers walked, contributions decoded when asked for.

Nothing here copies pixels: an array is a read-only view on the buffer that was read. Every
extent, type, rank and size is checked before it is used, because files end up damaged;
`DecodeError` says in which file, at which byte and what is wrong there.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from lclstream.core.errors import DecodeError
from lclstream.streamer.sources.xtc2_format import (
    DGRAM_HEADER,
    FIELD,
    MAX_RANK,
    NAMES_HEADER,
    NAMES_ID_MASK,
    SHAPE,
    STAMP_BYTES,
    XTC_HEADER,
    Bytes,
    Field,
    FieldType,
    Names,
    NamesTable,
    Service,
    Value,
    XtcType,
    text,
    version,
)

MAX_ARRAY_BYTES = 1 << 40
"""No value in a file is larger; a shape that says so is damaged."""

_SERVICES = tuple(Service)
_PARENT, _SHAPES_DATA, _SHAPES, _DATA, _NAMES = (int(each) for each in XtcType)
_HEADER_BYTES = XTC_HEADER.size
_unpack_dgram, _unpack_xtc = DGRAM_HEADER.unpack_from, XTC_HEADER.unpack_from


class Window:
    """A piece of a file in memory; offsets count from its beginning."""

    __slots__ = ("base", "buffer", "path")

    def __init__(self, buffer: Bytes, path: str, base: int = 0) -> None:
        """Make one.

        Args:
            buffer: the bytes.
            path: the file, for messages.
            base: byte of the file at which the piece begins.
        """
        self.buffer, self.path, self.base = buffer, path, base

    def bad(self, at: int, what: str) -> DecodeError:
        """Return the error that says what is wrong where."""
        return DecodeError(f"{self.path}: byte {self.base + at}: {what}")


Place: TypeAlias = tuple[int, int, int]
"""Of a contribution: where its payload begins and ends, and its damage."""


class Xtc(NamedTuple):
    """One container: `start` and `end` bound its payload in the window."""

    kind: int
    src: int
    damage: int
    """Its own and that of the containers that it is in, below the dgram's."""
    start: int
    end: int


class ShapesData:
    """One contribution: its values are decoded when they are asked for.

    Error handling: values that do not fit into the contribution raise `DecodeError`.
    """

    __slots__ = ("_data", "_ends", "_shapes", "damage", "names", "window")

    def __init__(self, window: Window, names: Names, start: int, end: int, damage: int = 0) -> None:
        """Find shapes and data.

        Args:
            window: what the contribution lies in.
            names: what it looks like.
            start: where its payload begins.
            end: where that ends.
            damage: bits of `Damage`.

        Raises:
            DecodeError: an extent leads out of it.
        """
        self.window, self.names, self.damage = window, names, damage
        # What is left out is empty: an empty range at the end.
        self._shapes = (end, end)
        self._data = self._ends = end
        at, buffer = start, window.buffer
        while at < end:
            extent = 0
            if at + _HEADER_BYTES <= end:
                _, _, contains, extent = _unpack_xtc(buffer, at)
            inner_end = at + extent
            if extent < _HEADER_BYTES or inner_end > end:
                raise window.bad(at, f"an xtc of {extent} bytes in {end - at} bytes")
            kind = contains & 0xFFF
            if kind == _SHAPES:
                self._shapes = (at + _HEADER_BYTES, inner_end)
            elif kind == _DATA:
                self._data, self._ends = at + _HEADER_BYTES, inner_end
            at = inner_end

    @property
    def data_at(self) -> int:
        """Where its values begin in the window."""
        return self._data

    def value(self, name: str) -> Value:
        """Return one field's value.

        Raises:
            KeyError: there is no such field.
            DecodeError: the contribution is too short for it.
        """
        return self.at(self.names.index[name])

    def at(self, place: int) -> Value:
        """Return the value of the field at a place in `names.fields`.

        Raises:
            DecodeError: the contribution is too short for it.
        """
        names, data = self.names, self._data
        if place < len(names.scalars) and (scalar := names.scalars[place]) is not None:
            offset, ends, unpack, kind = scalar
            if data + ends <= self._ends:
                return kind(unpack(self.window.buffer, data + offset)[0])
        fields, offsets = names.fields, names.offsets
        first = min(place, len(offsets) - 1)
        offset, number = data + offsets[first], 0
        for each in fields[first:place]:
            _, offset, number = self._extent(each, offset, number)
        return self._take(fields[place], offset, number)[0]

    def values(self) -> dict[str, Value]:
        """Return all fields' values by their full names."""
        found, number, offset = {}, 0, self._data
        for each in self.names.fields:
            value, offset, number = self._take(each, offset, number)
            found[each.name] = value
        return found

    def enumerations(self) -> dict[str, dict[str, int]]:
        """Return the labels and numbers of each enumeration type that is described here."""
        found: dict[str, dict[str, int]] = {}
        for place, each in enumerate(self.names.fields):
            if each.type is FieldType.ENUMDICT and each.rank == 0:
                label, _, kind = each.name.rpartition(":")
                found.setdefault(kind, {})[label] = int(self.at(place))
        return found

    def label(self, place: int) -> str | None:
        """Return the label of an enumeration's value, a scalar; None when that value has none."""
        kind = self.names.fields[place].name.partition(":")[2]
        number = int(self.at(place))
        labels = self.enumerations().get(kind, {})
        return next((label for label, each in labels.items() if each == number), None)

    def _extent(self, each: Field, offset: int, number: int) -> tuple[tuple[int, ...], int, int]:
        """Return a field's shape, where its value ends, and the number of the next shape."""
        size = each.dtype.itemsize
        shape: tuple[int, ...] = ()
        if each.rank > 0:
            at = self._shapes[0] + number * SHAPE.size
            if at + SHAPE.size > self._shapes[1]:
                raise self._bad(at, f"no shape for field {each.name!r}")
            shape = SHAPE.unpack_from(self.window.buffer, at)[: each.rank]
            number, count = number + 1, math.prod(shape)
            # Zeros must not hide dimensions that no array can have.
            if (count or math.prod(length or 1 for length in shape)) * size > MAX_ARRAY_BYTES:
                raise self._bad(at, f"field {each.name!r} has impossible shape {shape}")
            size *= count
        if offset + size > self._ends:
            raise self._bad(offset, f"field {each.name!r} of {size} bytes ends after its data")
        return shape, offset + size, number

    def _take(self, each: Field, offset: int, number: int) -> tuple[Value, int, int]:
        shape, end, number = self._extent(each, offset, number)
        buffer = self.window.buffer
        if each.type is FieldType.CHARSTR and each.rank == 1:
            return text(buffer[offset:end]), end, number
        array: np.ndarray[Any, Any] = np.ndarray(shape, each.dtype, buffer, offset)
        return (array if each.rank else array[()]), end, number

    def _bad(self, at: int, what: str) -> DecodeError:
        names = self.names
        owner = f"{names.detector}[{names.segment}].{names.algorithm}"
        return self.window.bad(at, f"{owner}: {what}")


class Dgram:
    """One transition or event of one stream.

    Resource handling: holds the window that it lies in; arrays taken from it do, too.
    """

    __slots__ = ("damage", "end", "env", "names", "offset", "service", "timestamp", "window")

    def __init__(self, window: Window, offset: int, names: NamesTable) -> None:
        """Read its header, of which there must be enough bytes.

        Raises:
            DecodeError: it is none.
        """
        self.window, self.offset, self.names = window, offset, names
        self.timestamp: int
        self.env: int
        self.timestamp, self.env, _, self.damage, contains, extent = _unpack_dgram(
            window.buffer, offset
        )
        self.end = offset + STAMP_BYTES + extent
        """Where it ends in its window."""
        service = self.env >> 24 & 0xF
        if problem := dgram_problem(service, contains, extent):
            raise window.bad(offset, problem)
        self.service = _SERVICES[service]

    def xtcs(self) -> Iterator[Xtc]:
        """Yield what the dgram contains, in order."""
        return walk(self.window, self.offset + DGRAM_HEADER.size, self.end)

    def contributions(self) -> Iterator[ShapesData]:
        """Yield the contributions whose Names are known; others cannot be read."""
        for xtc in self.xtcs():
            if xtc.kind == _SHAPES_DATA:
                names = self.names.get(xtc.src & NAMES_ID_MASK)
                if names is not None:
                    yield ShapesData(self.window, names, xtc.start, xtc.end, xtc.damage)

    def places(self) -> dict[int, Place]:
        """Return where each contribution is, by its `names_id`; the quick way to some of them.

        Raises:
            DecodeError: an extent leads outside of what contains it.
        """
        found: dict[int, Place] = {}
        at, end, buffer = self.offset + DGRAM_HEADER.size, self.end, self.window.buffer
        while at + _HEADER_BYTES <= end:
            src, damage, contains, extent = _unpack_xtc(buffer, at)
            after, kind = at + extent, contains & 0xFFF
            if extent < _HEADER_BYTES or after > end or kind == _PARENT:
                break
            if kind == _SHAPES_DATA:
                found[src & NAMES_ID_MASK] = at + _HEADER_BYTES, after, damage
            at = after
        if at == end:
            return found
        # Something unusual: slower, and sure.
        return {
            xtc.src & NAMES_ID_MASK: (xtc.start, xtc.end, xtc.damage)
            for xtc in self.xtcs()
            if xtc.kind == _SHAPES_DATA
        }

    def described(self) -> dict[int, Names]:
        """Return the Names that a Configure dgram announces."""
        found = (parse_names(self.window, xtc) for xtc in self.xtcs() if xtc.kind == _NAMES)
        return {names.names_id: names for names in found}


def dgram_problem(service: int, contains: int, extent: int) -> str:
    """Return why a header cannot be that of a dgram; empty when it can."""
    if extent < _HEADER_BYTES:
        return f"a dgram's extent cannot be {extent}"
    if contains & 0xFFF != _PARENT or service >= len(_SERVICES):
        return f"no dgram starts here (contents {contains & 0xFFF}, service {service})"
    return ""


def walk(window: Window, start: int, end: int) -> Iterator[Xtc]:
    """Yield the xtcs between two offsets, going into parents.

    Raises:
        DecodeError: an extent leads outside of what contains it.
    """
    buffer = window.buffer
    outer: list[tuple[int, int]] = []
    at, inherited = start, 0
    while True:
        while at == end:
            if not outer:
                return
            end, inherited = outer.pop()
        if at + _HEADER_BYTES > end:
            raise window.bad(at, f"{end - at} bytes are too few for an xtc")
        src, damage, contains, extent = _unpack_xtc(buffer, at)
        if extent < _HEADER_BYTES or at + extent > end:
            raise window.bad(at, f"an xtc of {extent} bytes in {end - at} bytes")
        kind = contains & 0xFFF
        if kind == _PARENT:
            outer.append((end, inherited))
            end, inherited = at + extent, inherited | damage
            at += _HEADER_BYTES
            continue
        yield Xtc(kind, src, damage | inherited, at + _HEADER_BYTES, at + extent)
        at += extent


def parse_names(window: Window, xtc: Xtc) -> Names:
    """Return the Names that an xtc holds.

    Raises:
        DecodeError: it is too short, or a field has an unknown type or rank.
    """
    if xtc.end - xtc.start < NAMES_HEADER.size:
        raise window.bad(xtc.start, f"{xtc.end - xtc.start} bytes of Names")
    header = NAMES_HEADER.unpack_from(window.buffer, xtc.start)
    first = xtc.start + NAMES_HEADER.size
    fields = tuple(
        _parse_field(window, at) for at in range(first, xtc.end - FIELD.size + 1, FIELD.size)
    )
    return Names(
        names_id=xtc.src & NAMES_ID_MASK,
        detector_type=text(header[1]),
        detector=text(header[2]),
        serial=text(header[3]),
        algorithm=text(header[4]),
        version=version(header[5]),
        segment=header[6],
        fields=fields,
    )


def _parse_field(window: Window, at: int) -> Field:
    algorithm, number, name, kind, rank = FIELD.unpack_from(window.buffer, at)
    if kind > FieldType.ENUMDICT or rank > MAX_RANK:
        raise window.bad(at, f"field {text(name)!r} of type {kind}, rank {rank}")
    return Field(
        name=text(name),
        type=FieldType(kind),
        rank=rank,
        algorithm=text(algorithm),
        version=version(number),
    )
