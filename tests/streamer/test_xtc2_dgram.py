"""What the writer encodes, the reader decodes to the same bits; damage never gets further."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.xtc2_runs import START, field, same

from lclstream.core.errors import DecodeError
from lclstream.streamer.sources.xtc2_dgram import Dgram, ShapesData, Window, walk
from lclstream.streamer.sources.xtc2_format import (
    XTC_HEADER,
    Damage,
    Field,
    FieldType,
    Names,
    Service,
    XtcType,
)
from lclstream.streamer.sources.xtc2_writer import (
    encode_dgram,
    encode_names,
    encode_shapes_data,
)

WORDS = st.text("abcXYZ019._:-", min_size=1, max_size=20)
TEXTS = st.text("ab \n\u00fc\u2192\U0001f52c", max_size=40)
SCALARS = (FieldType.CHARSTR, FieldType.ENUMVAL, FieldType.ENUMDICT)


@st.composite
def fields(draw: st.DrawFn, name: str) -> tuple[Field, Any]:
    kind = draw(st.sampled_from(FieldType))
    if kind is FieldType.CHARSTR:
        return field(name, kind, 1), draw(TEXTS)
    rank = 0 if kind in SCALARS else draw(st.integers(0, 5))
    shape = tuple(draw(st.integers(0, 3 if rank < 3 else 2)) for _ in range(rank))
    size = math.prod(shape) * kind.dtype.itemsize
    value = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), kind.dtype).reshape(shape)
    return field(name, kind, rank), value if rank else value[()]


@st.composite
def contributions(draw: st.DrawFn) -> tuple[Names, dict[str, Any]]:
    names = draw(st.lists(WORDS, unique=True, min_size=1, max_size=6))
    drawn = [draw(fields(name)) for name in names]
    described = Names(
        names_id=draw(st.integers(0, 0xFFFFF)),
        detector=draw(WORDS),
        detector_type=draw(WORDS),
        serial=draw(WORDS),
        algorithm=draw(WORDS),
        version=draw(st.tuples(st.integers(0, 65535), st.integers(0, 255), st.integers(0, 255))),
        segment=draw(st.integers(0, 2**32 - 1)),
        fields=tuple(each for each, _ in drawn),
    )
    return described, {each.name: value for each, value in drawn}


def decoded(parts: list[bytes | memoryview], names: dict[int, Names]) -> Dgram:
    return Dgram(Window(b"".join(parts), "memory"), 0, names)


@given(contributions(), st.integers(0, 2**64 - 1), st.booleans(), st.integers(0, 65535))
def test_whatever_is_written_is_read_back(
    made: tuple[Names, dict[str, Any]], timestamp: int, data_first: bool, damage: int
) -> None:
    names, values = made
    configure = decoded(encode_dgram(Service.CONFIGURE, 0, encode_names(names)), {})
    assert configure.described() == {names.names_id: names}
    inside = encode_shapes_data(names, values, damage, data_first=data_first)
    dgram = decoded(encode_dgram(Service.L1ACCEPT, timestamp, inside), configure.described())
    assert (dgram.timestamp, dgram.service) == (timestamp, Service.L1ACCEPT)
    (contribution,) = dgram.contributions()
    assert contribution.damage == damage
    assert contribution.names == names
    found = contribution.values()
    assert list(found) == [each.name for each in names.fields]
    assert all(same(found[name], value) for name, value in values.items())
    # One field alone, without decoding those before it.
    assert all(same(contribution.value(each), found[each]) for each in reversed(list(values)))


def contribution(payload: bytes, names: Names) -> ShapesData:
    parts = [XTC_HEADER.pack(names.names_id, 0, XtcType.SHAPES_DATA, 12 + len(payload)), payload]
    (found,) = decoded(
        encode_dgram(Service.L1ACCEPT, START, list(parts)), {names.names_id: names}
    ).contributions()
    return found


PAIR = Names(
    names_id=300,
    detector="cam",
    algorithm="raw",
    fields=(field("frame", FieldType.U2, 2), field("count", FieldType.U4)),
)


def encoded_pair() -> bytes:
    frame = np.arange(6, dtype=np.uint16).reshape(2, 3)
    return b"".join(encode_shapes_data(PAIR, {"frame": frame, "count": 7}))[12:]


def test_what_is_behind_the_shapes_and_data_is_passed_over() -> None:
    shapes = XTC_HEADER.pack(0, 0, XtcType.SHAPES, 12 + 24) + encoded_pair()[12:32] + b"slac"
    data = XTC_HEADER.pack(0, 0, XtcType.DATA, 12 + 16 + 3) + encoded_pair()[44:] + b"ked"
    found = contribution(shapes + data, PAIR)
    assert found.value("frame").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found.value("count") == 7


def test_scalars_need_no_shapes() -> None:
    names = Names(detector="d", algorithm="a", fields=(field("x", FieldType.F8),))
    data = XTC_HEADER.pack(0, 0, XtcType.DATA, 20) + np.float64(2.5).tobytes()
    assert contribution(data, names).values() == {"x": 2.5}
    empty = XTC_HEADER.pack(0, 0, XtcType.SHAPES, 12)
    assert contribution(empty + data, names).values() == {"x": 2.5}


def test_an_array_is_a_view_that_cannot_be_written() -> None:
    frame = contribution(encoded_pair(), PAIR).value("frame")
    assert frame.base is not None
    assert not frame.flags.writeable


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4), r"field 'count' of 4 bytes ends after its data$"),
        ((200, 300), r"field 'frame' of 120000 bytes ends after its data$"),
        ((0, 2**32 - 1), None),
        ((2**32 - 1, 2**32 - 1), r"field 'frame' has impossible shape \(4294967295, 4294967295\)$"),
    ],
)
def test_a_shape_is_not_believed(shape: tuple[int, int], message: str | None) -> None:
    payload = bytearray(encoded_pair())
    payload[12:20] = np.array(shape, "<u4").tobytes()
    found = contribution(bytes(payload), PAIR)
    if message is None:
        assert found.value("frame").shape == shape
        return
    with pytest.raises(DecodeError, match=r"^memory: byte \d+: cam\[0\]\.raw: " + message):
        found.values()


def test_a_shape_that_is_not_there() -> None:
    data = encoded_pair()[32:]
    with pytest.raises(DecodeError, match=r"no shape for field 'frame'$"):
        contribution(data, PAIR).value("count")


def test_an_enumeration_is_found_with_and_without_its_type() -> None:
    labels = [field(f"{each}:Gain", FieldType.ENUMDICT) for each in ("low", "high")]
    value = field("user.gain:Gain", FieldType.ENUMVAL)
    names = Names(detector="d", algorithm="config", fields=(*labels, value))
    values = {"low:Gain": 0, "high:Gain": 3, "user.gain:Gain": 3}
    payload = b"".join(encode_shapes_data(names, values))[12:]
    found = contribution(payload, names)
    assert found.value("user.gain") == found.value("user.gain:Gain") == 3
    assert found.enumerations() == {"Gain": {"low": 0, "high": 3}}


def test_unknown_contributions_are_passed_over() -> None:
    parts = encode_dgram(Service.L1ACCEPT, START, encode_shapes_data(PAIR, _pair_values()))
    assert list(decoded(parts, {}).contributions()) == []


def _pair_values() -> dict[str, Any]:
    return {"frame": np.zeros((1, 1), np.uint16), "count": 1}


@pytest.mark.parametrize("extent", [0, 11, 2**32 - 1])
def test_an_extent_is_not_believed(extent: int) -> None:
    raw = XTC_HEADER.pack(0, 0, XtcType.SHAPES_DATA, extent) + bytes(20)
    with pytest.raises(DecodeError, match=f"^x: byte 0: an xtc of {extent} bytes in 32 bytes$"):
        list(walk(Window(raw, "x"), 0, len(raw)))


def test_deep_nesting_is_no_recursion() -> None:
    depth = 50_000
    raw = b"".join(XTC_HEADER.pack(0, 0, 0, 12 * each) for each in range(depth, 0, -1))
    assert list(walk(Window(raw, "x"), 0, len(raw))) == []


@pytest.mark.parametrize(("at", "value"), [(516, 13), (520, 6)])
def test_a_field_of_unknown_type_or_rank(at: int, value: int) -> None:
    raw = bytearray(b"".join(encode_dgram(Service.CONFIGURE, START, encode_names(PAIR))))
    start = 24 + 12 + 1036 + at
    raw[start : start + 4] = value.to_bytes(4, "little")
    with pytest.raises(DecodeError, match="field 'frame' of type"):
        Dgram(Window(bytes(raw), "x"), 0, {}).described()


def test_damage_has_names() -> None:
    assert Damage(0x1021) == Damage.TRUNCATED | Damage.MISSING_DATA | Damage.USER_DEFINED
