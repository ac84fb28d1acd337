"""Numbers that a person writes, and the dtypes that can hold them; without numpy."""

import math
import struct
from collections.abc import Iterator
from typing import Any

from lclstream.core.models import shown

# Floating point dtype -> how `struct` calls it.
_FLOATS = {"float16": "e", "float32": "f", "float64": "d"}


def shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of a number, or of nested lists of numbers.

    Raises:
        ValueError: they are not regular, or hold something else.
    """
    if not isinstance(value, list):
        if isinstance(value, bool | int | float):
            return ()
        raise ValueError(f"must be made of numbers, got {shown(value)}")
    shapes = {shape_of(each) for each in value}
    if len(shapes) != 1:
        raise ValueError("lists must not be empty, and those within a list equally long")
    return (len(value), *shapes.pop())


def numbers_in(value: Any) -> Iterator[int | float]:
    """Yield every number of nested lists."""
    if not isinstance(value, list):
        yield value
        return
    for each in value:
        yield from numbers_in(each)


def fits(number: int | float, dtype: str) -> bool:
    """Return whether a dtype holds a number without loss; text always does."""
    if dtype in _FLOATS:
        return _fits_float(number, _FLOATS[dtype])
    if dtype == "str":
        return True
    if not math.isfinite(number) or number != int(number):
        return False
    if dtype == "bool":
        return number in (0, 1)
    bits = int(dtype.lstrip("uint"))
    low, high = (0, 1 << bits) if dtype.startswith("u") else (-(1 << bits - 1), 1 << bits - 1)
    return low <= number < high


def _fits_float(number: int | float, code: str) -> bool:
    if isinstance(number, float) and not math.isfinite(number):
        return True
    try:
        (same,) = struct.unpack(code, struct.pack(code, number))
    except (OverflowError, struct.error):
        return False
    return bool(same == number)
