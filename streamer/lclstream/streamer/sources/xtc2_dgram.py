"""Dgrams as they are read: containers walked, contributions decoded when asked for.

Nothing here copies pixels: an array is a read-only view on the buffer that was read. Every
extent, type, rank and size is checked before it is used, because files end up damaged;
`DecodeError` says in which file, at which byte and what is wrong there.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

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
    Damage,
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


class Xtc(NamedTuple):
    """One container: `start` and `end` bound its payload in the buffer."""

    kind: int
    src: int
    damage: int
    start: int
    end: int


class ShapesData:
    """One contribution: its values are decoded when they are asked for.

    Error handling: values that do not fit into the contribution raise `DecodeError`.
    """

    __slots__ = ("_data", "_shapes", "buffer", "damage", "names", "where")

    def __init__(self, buffer: Bytes, names: Names, xtc: Xtc, where: str) -> None:
        self.buffer, self.names, self.where = buffer, names, where
        self.damage = Damage(xtc.damage)
        # What is left out is empty: an empty range at the end.
        self._shapes = self._data = (xtc.end, xtc.end)
        for inner in walk(buffer, xtc.start, xtc.end, where):
            if inner.kind == XtcType.SHAPES:
                self._shapes = (inner.start, inner.end)
            elif inner.kind == XtcType.DATA:
                self._data = (inner.start, inner.end)

    def value(self, name: str) -> Value:
        """Return one field's value.

        Raises:
            KeyError: there is no such field.
            DecodeError: the contribution is too short for it.
        """
        return self._at(self.names.index[name])

    def values(self) -> dict[str, Value]:
        """Return all fields' values by their full names."""
        found, place, offset = {}, 0, self._data[0]
        for each in self.names.fields:
            value, offset, place = self._take(each, offset, place)
            found[each.name] = value
        return found

    def enumerations(self) -> dict[str, dict[str, int]]:
        """Return the labels and numbers of each enumeration type that is described here."""
        found: dict[str, dict[str, int]] = {}
        for each in self.names.fields:
            if each.type is FieldType.ENUMDICT and each.rank == 0:
                label, _, kind = each.name.rpartition(":")
                found.setdefault(kind, {})[label] = int(self.value(each.name))
        return found

    def _at(self, wanted: int) -> Value:
        fields, offsets = self.names.fields, self.names.offsets
        first = min(wanted, len(offsets) - 1)
        offset, place = self._data[0] + offsets[first], 0
        for each in fields[first:wanted]:
            _, offset, place = self._extent(each, offset, place)
        return self._take(fields[wanted], offset, place)[0]

    def _extent(self, each: Field, offset: int, place: int) -> tuple[tuple[int, ...], int, int]:
        """Return a field's shape, where its value ends, and the place of the next shape."""
        size = each.type.dtype.itemsize
        if each.rank == 0:
            shape: tuple[int, ...] = ()
        else:
            at = self._shapes[0] + place * SHAPE.size
            if at + SHAPE.size > self._shapes[1]:
                raise self._bad(at, f"no shape for field {each.name!r}")
            shape = SHAPE.unpack_from(self.buffer, at)[: each.rank]
            place += 1
            # Zeros must not hide dimensions that no array can have.
            if math.prod(length or 1 for length in shape) * size > MAX_ARRAY_BYTES:
                raise self._bad(at, f"field {each.name!r} has impossible shape {shape}")
            size *= math.prod(shape)
        if offset + size > self._data[1]:
            raise self._bad(offset, f"field {each.name!r} of {size} bytes ends after its data")
        return shape, offset + size, place

    def _take(self, each: Field, offset: int, place: int) -> tuple[Value, int, int]:
        shape, end, place = self._extent(each, offset, place)
        if each.type is FieldType.CHARSTR and each.rank == 1:
            return text(self.buffer[offset:end]), end, place
        array: np.ndarray[Any, Any] = np.ndarray(shape, each.type.dtype, self.buffer, offset)
        return (array if each.rank else array[()]), end, place

    def _bad(self, offset: int, what: str) -> DecodeError:
        names = self.names
        owner = f"{names.detector}[{names.segment}].{names.algorithm}"
        return DecodeError(f"{self.where}: byte {offset}: {owner}: {what}")


class Dgram:
    """One transition or event of one stream.

    Resource handling: holds the buffer that it lies in; arrays taken from it do, too.
    """

    __slots__ = (
        "buffer",
        "damage",
        "end",
        "env",
        "names",
        "offset",
        "service",
        "timestamp",
        "where",
    )

    def __init__(self, buffer: Bytes, offset: int, names: NamesTable, where: str) -> None:
        low, high, self.env, _, damage, contains, extent = DGRAM_HEADER.unpack_from(buffer, offset)
        self.buffer, self.offset, self.names, self.where = buffer, offset, names, where
        self.timestamp: int = high << 32 | low
        self.end: int = offset + STAMP_BYTES + extent
        if extent < XTC_HEADER.size:
            raise DecodeError(f"{where}: byte {offset}: a dgram's extent cannot be {extent}")
        kind, service = contains & 0xFFF, self.env >> 24 & 0xF
        if kind != XtcType.PARENT or service > Service.L1ACCEPT:
            found = f"contents {kind}, service {service}"
            raise DecodeError(f"{where}: byte {offset}: no dgram starts here ({found})")
        self.service = Service(service)
        self.damage = Damage(damage)

    def xtcs(self) -> Iterator[Xtc]:
        """Yield what the dgram contains, in order."""
        start = self.offset + DGRAM_HEADER.size
        return walk(self.buffer, start, self.end, self.where)

    def contributions(self) -> Iterator[ShapesData]:
        """Yield the contributions whose Names are known; others cannot be read."""
        for xtc in self.xtcs():
            if xtc.kind == XtcType.SHAPES_DATA:
                names = self.names.get(xtc.src & NAMES_ID_MASK)
                if names is not None:
                    yield ShapesData(self.buffer, names, xtc, self.where)

    def described(self) -> dict[int, Names]:
        """Return the Names that a Configure dgram announces."""
        found = (
            parse_names(self.buffer, xtc, self.where)
            for xtc in self.xtcs()
            if xtc.kind == XtcType.NAMES
        )
        return {names.names_id: names for names in found}


def walk(buffer: Bytes, start: int, end: int, where: str) -> Iterator[Xtc]:
    """Yield the xtcs between two offsets, going into parents.

    Raises:
        DecodeError: an extent leads outside of what contains it.
    """
    ends, at = [end], start
    while ends:
        if at == ends[-1]:
            ends.pop()
            continue
        if at + XTC_HEADER.size > ends[-1]:
            raise DecodeError(f"{where}: byte {at}: {ends[-1] - at} bytes are too few for an xtc")
        src, damage, contains, extent = XTC_HEADER.unpack_from(buffer, at)
        if extent < XTC_HEADER.size or at + extent > ends[-1]:
            room = ends[-1] - at
            raise DecodeError(f"{where}: byte {at}: an xtc of {extent} bytes in {room} bytes")
        kind = contains & 0xFFF
        if kind == XtcType.PARENT:
            ends.append(at + extent)
            at += XTC_HEADER.size
            continue
        yield Xtc(kind, src, damage, at + XTC_HEADER.size, at + extent)
        at += extent


def parse_names(buffer: Bytes, xtc: Xtc, where: str) -> Names:
    """Return the Names that an xtc holds.

    Raises:
        DecodeError: it is too short, or a field has an unknown type or rank.
    """
    if xtc.end - xtc.start < NAMES_HEADER.size:
        raise DecodeError(f"{where}: byte {xtc.start}: {xtc.end - xtc.start} bytes of Names")
    header = NAMES_HEADER.unpack_from(buffer, xtc.start)
    first = xtc.start + NAMES_HEADER.size
    fields = tuple(
        _parse_field(buffer, at, where) for at in range(first, xtc.end - FIELD.size + 1, FIELD.size)
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


def _parse_field(buffer: Bytes, at: int, where: str) -> Field:
    algorithm, number, name, kind, rank = FIELD.unpack_from(buffer, at)
    if kind > FieldType.ENUMDICT or rank > MAX_RANK:
        raise DecodeError(f"{where}: byte {at}: field {text(name)!r} of type {kind}, rank {rank}")
    return Field(
        name=text(name),
        type=FieldType(kind),
        rank=rank,
        algorithm=text(algorithm),
        version=version(number),
    )
