"""The byte layout of XTC2, the files that LCLS-II detectors are recorded in.

A file is a sequence of *dgrams*: a 12-byte stamp (time, service) and one container, an *xtc*.
An xtc has a header with its extent in bytes, which counts the header, and a payload: other xtcs,
or *Names* (what a contribution looks like, announced in the Configure dgram), or *ShapesData*
(one contribution: a detector segment's values in one event). Everything is little-endian and
packed; nothing is aligned.

Timestamps are 64-bit integers, `seconds << 32 | nanoseconds`, and the seconds count from
1990-01-01 UTC, not from 1970. They are never turned into a float, which would round them to
about a microsecond.

Here are the vocabulary and the layout; `xtc2_dgram` reads, `xtc2_writer` writes.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum, IntFlag
from mmap import mmap
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Bytes: TypeAlias = bytes | bytearray | memoryview | mmap
Version: TypeAlias = tuple[int, int, int]
Key: TypeAlias = tuple[str, int, str]
"""Detector, segment, algorithm."""
Value: TypeAlias = Any
"""A field's value: `str`, numpy scalar or read-only numpy array."""

DGRAM_HEADER = struct.Struct("<QIIHHI")
"""timestamp, env, then the root xtc's src, damage, contains, extent."""
STAMP_BYTES = 12
XTC_HEADER = struct.Struct("<IHHI")
"""src, damage, contains, extent."""
NAMES_HEADER = struct.Struct("<I256s256s256s256sII")
"""array count, detector type, name and serial, algorithm, its version, segment."""
FIELD = struct.Struct("<256sI256sII")
"""algorithm, its version, name, type, rank."""
SHAPE = struct.Struct("<5I")

NAMES_ID_MASK = 0xFFFFF
MAX_RANK = 5

EPOCH = datetime(1990, 1, 1, tzinfo=UTC)
EPOCH_UNIX_S = 631_152_000
NS_PER_S = 1_000_000_000


VARIABLES = ("scan", "epics")
"""Detectors whose fields are variables with names of their own, in which `:` means nothing."""


class Service(IntEnum):
    """What a dgram is: a transition of the data acquisition, or an event (L1ACCEPT)."""

    CLEAR_READOUT = 0
    RESET = 1
    CONFIGURE = 2
    UNCONFIGURE = 3
    BEGIN_RUN = 4
    END_RUN = 5
    BEGIN_STEP = 6
    END_STEP = 7
    ENABLE = 8
    DISABLE = 9
    SLOW_UPDATE = 10
    UNUSED = 11
    L1ACCEPT = 12


class XtcType(IntEnum):
    """What an xtc contains."""

    PARENT = 0
    SHAPES_DATA = 1
    SHAPES = 2
    DATA = 3
    NAMES = 4


class FieldType(IntEnum):
    """How a field's values are stored."""

    U1 = 0
    U2 = 1
    U4 = 2
    U8 = 3
    I1 = 4
    I2 = 5
    I4 = 6
    I8 = 7
    F4 = 8
    F8 = 9
    CHARSTR = 10
    ENUMVAL = 11
    ENUMDICT = 12

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of one element; text is bytes."""
        return _DTYPES[self]


_CODES = ("u1", "<u2", "<u4", "<u8", "i1", "<i2", "<i4", "<i8", "<f4", "<f8", "u1", "<i4", "<i4")
_DTYPES = tuple(np.dtype(code) for code in _CODES)
# For the module struct. A float32 through Python's float would not keep every bit of a NaN.
_STRUCT_CODES = ("B", "H", "I", "Q", "b", "h", "i", "q", "", "d", "B", "i", "i")


class Damage(IntFlag):
    """What the data acquisition knows to be wrong with a dgram or contribution."""

    TRUNCATED = 1 << 0
    OUT_OF_ORDER = 1 << 1
    OUT_OF_SYNCH = 1 << 2
    CORRUPTED = 1 << 3
    DROPPED_CONTRIBUTION = 1 << 4
    MISSING_DATA = 1 << 5
    TIMED_OUT = 1 << 6
    USER_DEFINED = 1 << 12


LOST = int(Damage.TRUNCATED | Damage.CORRUPTED | Damage.DROPPED_CONTRIBUTION | Damage.MISSING_DATA)
"""Damage that means that the values are not what the detector measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a contribution. Text is `CHARSTR` of rank 1, a scalar has rank 0."""

    name: str
    type: FieldType
    rank: int = 0
    algorithm: str = ""
    version: Version = (0, 0, 0)
    dtype: np.dtype[Any] = field(init=False, repr=False, compare=False)
    """Of one element."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", self.type.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What the contributions of one detector segment and algorithm look like.

    Args:
        names_id: 20-bit key by which a contribution finds its Names within one stream.
        detector: such as `jungfrau`; psana's name of the detector.
        detector_type: which class of detectors, such as `jungfrau` or `cspad`.
        serial: identifies the hardware of this segment.
        algorithm: which reading of the detector, such as `raw` or `fex`.
    """

    names_id: int = 0
    detector: str
    detector_type: str = ""
    serial: str = ""
    algorithm: str
    version: Version = (0, 0, 0)
    segment: int = 0
    fields: tuple[Field, ...]
    index: Mapping[str, int] = field(init=False, repr=False, compare=False)
    """Place of each field; an enumeration `mode:Mode` is also found as `mode`."""
    offsets: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Where the values up to and including the first array start, which no shape can move."""
    scalars: tuple["Scalar | None", ...] = field(init=False, repr=False, compare=False)
    """How to decode the scalars among those quickly."""

    def __post_init__(self) -> None:
        index: dict[str, int] = {}
        offsets, offset, fixed = [], 0, True
        for place, each in enumerate(self.fields):
            if each.type is FieldType.ENUMVAL and self.detector not in VARIABLES:
                index.setdefault(each.name.partition(":")[0], place)
            index[each.name] = place
            if fixed:
                offsets.append(offset)
                offset += each.dtype.itemsize
                fixed = each.rank == 0
        object.__setattr__(self, "index", index)
        object.__setattr__(self, "offsets", tuple(offsets))
        scalars = tuple(map(_scalar, self.fields, offsets))
        object.__setattr__(self, "scalars", scalars)

    @property
    def key(self) -> Key:
        """What identifies the contributions for a person."""
        return self.detector, self.segment, self.algorithm


class Scalar(NamedTuple):
    """How to decode a scalar: `type(unpack(buffer, data + offset)[0])`, if it `ends` in the data.

    Several times as fast as an array of no dimensions.
    """

    offset: int
    ends: int
    unpack: Callable[[Bytes, int], tuple[Any, ...]]
    type: Callable[[Any], Any]


def _scalar(each: Field, offset: int) -> Scalar | None:
    dtype, code = each.dtype, _STRUCT_CODES[each.type]
    if each.rank > 0 or not code:
        return None
    unpack = struct.Struct("<" + code).unpack_from
    return Scalar(offset, offset + dtype.itemsize, unpack, dtype.type)


NamesTable: TypeAlias = Mapping[int, Names]
"""The Names of one stream, by `names_id`."""


def text(raw: Bytes) -> str:
    """Return the text before the first NUL; what is not UTF-8 shows as a replacement mark."""
    return bytes(raw).partition(b"\0")[0].decode(errors="replace")


def version(number: int) -> Version:
    """Return major, minor and micro of a packed version."""
    return number >> 16, number >> 8 & 0xFF, number & 0xFF


def later(timestamp: int, nanoseconds: int) -> int:
    """Return the timestamp so many nanoseconds later."""
    total = (timestamp >> 32) * NS_PER_S + (timestamp & 0xFFFFFFFF) + nanoseconds
    return total // NS_PER_S << 32 | total % NS_PER_S


def to_datetime(timestamp: int) -> datetime:
    """Return the UTC time of a 64-bit timestamp, to the microsecond below."""
    since = timedelta(seconds=timestamp >> 32, microseconds=(timestamp & 0xFFFFFFFF) // 1000)
    return EPOCH + since


def to_unix_ns(timestamp: int) -> int:
    """Return the nanoseconds since 1970 of a 64-bit timestamp, exactly."""
    return ((timestamp >> 32) + EPOCH_UNIX_S) * NS_PER_S + (timestamp & 0xFFFFFFFF)
