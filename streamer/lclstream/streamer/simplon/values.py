"""What the tagged values of messages mean: arrays and times."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from lclstream.core.errors import DecodeError
from lclstream.streamer.simplon.arrays import PackedArray, from_tagged, is_array, to_tagged
from lclstream.streamer.simplon.cbor import Tagged

DATE = 0
NS_PER_S = 1_000_000_000
# What the vendor's own parser takes as floating-point numbers only, at any depth below the key.
FLOATS = frozenset({
    "beam_center_x", "beam_center_y", "count_time", "detector_translation", "frame_time",
    "goniometer", "incident_energy", "incident_wavelength", "pixel_size_x", "pixel_size_y",
    "sensor_thickness", "threshold_energy",
})  # fmt: skip

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FORM = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class DateTime:
    """A time as text, e.g. `2026-01-01T12:00:00.123456789Z`."""

    text: str

    @classmethod
    def of_ns(cls, nanoseconds: int) -> "DateTime":
        """Return the time that many nanoseconds after 1970-01-01 UTC."""
        seconds, rest = divmod(nanoseconds, NS_PER_S)
        whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return cls(f"{whole}.{rest:09}Z")

    def ns(self) -> int:
        """Return nanoseconds since 1970-01-01 UTC; what is finer than these is cut off.

        Raises:
            DecodeError: the text is no time.
        """
        parts = _FORM.fullmatch(self.text)
        if parts is None:
            raise DecodeError(f"not a time: {self.text!r:.60}")
        day, clock, fraction, zone = parts.groups()
        try:
            whole = datetime.fromisoformat(f"{day}T{clock}{zone.upper()}")
        except ValueError as error:
            raise DecodeError(f"not a time: {self.text!r:.60}: {error}") from None
        since = whole - _EPOCH
        rest = int(((fraction or ".")[1:] + "0" * 9)[:9])
        return (since.days * 86400 + since.seconds) * NS_PER_S + rest


def understood(value: Any) -> Any:
    """Return a value with its tags turned into what they mean; unknown ones stay.

    Raises:
        DecodeError: what is tagged as an array is none.
    """
    if isinstance(value, Tagged):
        if is_array(value.tag):
            return from_tagged(value)
        is_date = value.tag == DATE and isinstance(value.value, str)
        return DateTime(value.value) if is_date else value
    if isinstance(value, dict):
        return {key: understood(each) for key, each in value.items()}
    return [understood(each) for each in value] if isinstance(value, list) else value


def written(key: str, value: Any) -> Any:
    """Return a value as `cbor.dumps` takes it.

    Args:
        key: of the message, which decides about what is below it too.
        value: any of those that `encode` takes.

    Raises:
        TypeError: CBOR has no arrays of that dtype.
    """
    below = key if key in FLOATS else ""
    match value:
        case np.generic():
            return written(key, value.item())
        case int() if below and not isinstance(value, bool):
            return float(value)
        case Mapping():
            return {each: written(below, content) for each, content in value.items()}
        case list() | tuple():
            return [written(below, each) for each in value]
        case np.ndarray():
            return to_tagged(PackedArray.pack(value))
        case PackedArray():
            return to_tagged(value)
        case DateTime():
            return Tagged(DATE, value.text)
    return value
