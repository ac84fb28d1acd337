"""The messages of DECTRIS Stream V2: one start, then images, then one end for each series."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lclstream.core.errors import DecodeError
from lclstream.streamer.simplon import cbor
from lclstream.streamer.simplon.arrays import PackedArray
from lclstream.streamer.simplon.values import NS_PER_S, DateTime, understood, written


class Rational(NamedTuple):
    """A number of seconds as numerator and denominator."""

    numerator: int
    denominator: int

    def ns(self) -> int:
        """Return whole nanoseconds."""
        return self.numerator * NS_PER_S // self.denominator


@dataclass(frozen=True, slots=True, kw_only=True)
class StartMessage:
    """The beginning of a series: all that is the same for its images."""

    series_id: int = 0
    series_unique_id: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Every further key in order. Arrays are `PackedArray`, times `DateTime`; an array that a
    detector left out may be a byte string of no use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageMessage:
    """One exposure."""

    data: Mapping[str, PackedArray]
    """Channel -> image (rows, columns), in the order of the channels."""
    series_id: int = 0
    series_unique_id: str = ""
    image_id: int | None = None
    """Number within the series, from 0; only a foreign message lacks it."""
    series_date: DateTime | None = None
    """When the series began."""
    start_time: Rational | None = None
    """Since then, like `stop_time`."""
    stop_time: Rational | None = None
    real_time: Rational | None = None
    """How long the exposure was."""
    user_data: Any = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Keys that the standard does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndMessage:
    """The end of a series."""

    series_id: int = 0
    series_unique_id: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Keys that the standard does not know."""


Message = StartMessage | ImageMessage | EndMessage
_IMAGE_TIMES = ("real_time", "series_date", "start_time", "stop_time")


def decode(message: bytes | bytearray | memoryview) -> Message:
    """Return what a message of Stream V2 says.

    Missing keys are no mistake, and neither is a missing magic. Images are views of the message
    until they are unpacked.

    Raises:
        DecodeError: it is not CBOR, of no known type, or a value that everything hangs on is of
            a wrong type; says which and where.
    """
    return decode_map(cbor.loads(message))


def decode_map(value: Any) -> Message:
    """Return what a message says whose CBOR was read already.

    Raises:
        DecodeError: as `decode`.
    """
    if not isinstance(value, dict):
        raise DecodeError(f"a message is a map, not {type(value).__name__}")
    found = {str(key): understood(each) for key, each in value.items()}
    kind = found.pop("type", None)
    identity: dict[str, Any] = {
        "series_id": _number(found, "series_id") or 0,
        "series_unique_id": _text(found, "series_unique_id"),
    }
    if kind == "start":
        return StartMessage(**identity, fields=found)
    if kind == "image":
        return _image(found, identity)
    if kind == "end":
        return EndMessage(**identity, fields=found)
    raise DecodeError(f"a message of type {kind!r:.40}; start, image and end are known")


def encode(message: Message) -> tuple[memoryview, ...]:
    """Return a message in pieces, with the magic and `type` in front.

    Arrays are not copied; what has to be a floating-point number is one, whatever was given.
    NumPy arrays and `PackedArray` may stand anywhere among the values.

    Raises:
        TypeError: a value cannot be written.
        OverflowError: an integer has more than 64 bits.
    """
    kind = {StartMessage: "start", ImageMessage: "image", EndMessage: "end"}[type(message)]
    content: dict[str, Any] = {
        "type": kind,
        "series_id": message.series_id,
        "series_unique_id": message.series_unique_id,
    }
    if isinstance(message, ImageMessage):
        content |= _image_content(message)
    else:
        content |= dict(message.fields)
    return cbor.dumps({key: written(key, each) for key, each in content.items()}, cbor.MAGIC)


def _image_content(message: ImageMessage) -> dict[str, Any]:
    content: dict[str, Any] = {"image_id": message.image_id or 0}
    for key in _IMAGE_TIMES:
        value = getattr(message, key)
        if value is not None:
            content[key] = value
    if message.user_data is not None:
        content["user_data"] = message.user_data
    return content | dict(message.fields) | {"data": message.data}


def _image(found: dict[str, Any], identity: dict[str, Any]) -> ImageMessage:
    data = found.pop("data", None)
    if not isinstance(data, dict) or not all(isinstance(x, PackedArray) for x in data.values()):
        raise DecodeError("image: data must map channels to arrays")
    date = found.pop("series_date", None)
    return ImageMessage(
        **identity,
        data={str(channel): array for channel, array in data.items()},
        image_id=_number(found, "image_id"),
        series_date=date if isinstance(date, DateTime) else None,
        start_time=_rational(found, "start_time"),
        stop_time=_rational(found, "stop_time"),
        real_time=_rational(found, "real_time"),
        user_data=found.pop("user_data", None),
        fields=found,
    )


def _number(found: dict[str, Any], key: str) -> int | None:
    value = found.pop(key, None)
    if value is not None and (type(value) is not int or value < 0):
        raise DecodeError(f"{key} must be a number, 0 or more, got {value!r:.40}")
    return value


def _text(found: dict[str, Any], key: str) -> str:
    value = found.pop(key, "")
    if not isinstance(value, str):
        raise DecodeError(f"{key} must be text, got {value!r:.40}")
    return value


def _rational(found: dict[str, Any], key: str) -> Rational | None:
    match found.pop(key, None):
        case None:
            return None
        case [int() as numerator, int() as denominator] if numerator >= 0 and denominator > 0:
            return Rational(numerator, denominator)
        case other:
            raise DecodeError(f"{key} must be two numbers, the second above 0: {other!r:.60}")
