"""What a configuration alone tells about values, so that mistakes show before anything runs.

Of a value that comes from a detector mostly nothing is known; then nothing is found wrong, and
the step says at the first event what does not fit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lclstream.streamer.config import data_sources as sources
from lclstream.streamer.config.registry import DataSourceModel

# Smallest and largest number of each integer dtype.
INTEGERS: Mapping[str, tuple[int, int]] = {
    f"{sign}int{bits}": (-(1 << (bits - 1)) if not sign else 0, (1 << (bits - (not sign))) - 1)
    for sign in ("", "u")
    for bits in (8, 16, 32, 64)
}
FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class Known:
    """What is known about the values of one label."""

    dtype: str = ""
    """Empty: unknown; `str` is text."""
    shape: tuple[int, ...] | None = None
    """Of one event, or of one of its readings where it is ragged. None: unknown."""
    is_ragged: bool | None = None
    """Whether the number of readings differs from event to event. None: unknown."""
    is_variable: bool = False
    """Whether it is a process variable: of unknown shape, and certainly no image."""

    @property
    def ndim(self) -> int | None:
        """Number of axes of one event; None: unknown."""
        if self.shape is None or self.is_ragged is None:
            return None
        return len(self.shape)

    @property
    def is_text(self) -> bool:
        """Whether it is certainly not made of numbers."""
        return self.dtype == "str"

    @property
    def may_be_image(self) -> bool:
        """Whether it can have two or three axes of numbers in each event."""
        if self.is_text or self.is_variable or self.is_ragged:
            return False
        return self.ndim in (None, 2, 3)

    def holds(self, number: float) -> bool:
        """Return whether its dtype can hold a number; True where nothing is known."""
        if self.dtype not in INTEGERS:
            return True
        low, high = INTEGERS[self.dtype]
        return math.isfinite(number) and number == int(number) and low <= number <= high

    def with_(self, **changes: Any) -> "Known":
        """Return the same with changes."""
        return replace(self, **changes)


Knowledge = Mapping[str, Known]
"""Label -> what is known about its values."""


def known_of(source: DataSourceModel) -> Known:
    """Return what is known about the values of a data source."""
    match source:
        case sources.GenericRandomNumpyArrayConfig():
            return Known(source.array_dtype, tuple(source.array_shape), is_ragged=False)
        case sources.FloatValueConfig():
            return Known("float64", (), is_ragged=False)
        case sources.IntValueConfig():
            return Known("int64", (), is_ragged=False)
        case sources.ConstValueConfig():
            return Known(source.dtype, _shape_of(source.value), is_ragged=False)
        case sources.Psana1TimestampConfig() | sources.Psana2TimestampConfig():
            return Known(source.dtype, (), is_ragged=False)
        case sources.SourceIdentifierConfig():
            return Known("str", (), is_ragged=False)
        case sources.Psana2RunInfoConfig():
            return Known("str", () if source.separate_fields else (4,), is_ragged=False)
        case sources.DetectorInterface():
            return Known(source.dtype or "", is_variable=":" in source.psana_name)
        case sources.EventValueConfig():
            return Known(source.dtype or "", is_variable=":" in source.name)
    return Known()


def _shape_of(value: Any) -> tuple[int, ...]:
    return (len(value), *_shape_of(value[0])) if isinstance(value, list) and value else ()
