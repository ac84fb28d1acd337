"""Paths below a detector: attributes, functions of an event, of nothing, and tables."""

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.sources.psana_paths import (
    NoSuchFieldError,
    Reader,
    as_value,
    takes_event,
)

EVENT = SimpleNamespace(energy=7, numbers=[3, 1, 2])


class Raw:
    _detid = "id-1"

    def __init__(self) -> None:
        self.bound = functools.partial(self.scaled, factor=3)

    def calib(self, evt: Any, **options: Any) -> Any:
        assert options == {}
        return np.full(2, evt.energy)

    def scaled(self, evt: Any, factor: int = 1) -> Any:
        return evt.energy * factor

    def optional(self, evt: Any = None) -> Any:
        return evt

    def geometry(self) -> str:
        return "text"

    def mask(self, width: int = 0) -> int:
        return width

    def tables(self, evt: Any) -> Any:
        return {0: {"times": np.arange(evt.energy), 1: None}, "list": [[1, 2], [3, 4]]}

    def two(self, evt: Any, other: Any) -> Any:
        return evt, other

    @staticmethod
    def anything(*arguments: Any) -> int:
        return len(arguments)

    @property
    def count(self) -> int:
        return 5

    def broken(self, evt: Any) -> Any:
        return evt.energy + None

    def nothing(self, evt: Any) -> None:
        del evt


DETECTOR = SimpleNamespace(raw=Raw(), value=3.5)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("value", 3.5),
        ("raw._detid", "id-1"),
        ("raw.count", 5),
        ("raw.bound", 21),
        ("raw.scaled", 7),
        ("raw.optional", EVENT),
        ("raw.geometry", "text"),
        ("raw.mask", 0),
        ("raw.anything", 1),
        ("raw.tables.0.1", None),
        ("raw.tables.7.times", None),
        ("raw.tables.list.1.0", 3),
        ("raw.tables.list.5", None),
        ("raw.nothing", None),
        ("raw.nothing.below", None),
    ],
)
def test_a_path_leads_to_a_value(path: str, expected: Any) -> None:
    reader = Reader(DETECTOR, path)
    # What was found out for the first event holds for the next.
    assert [reader(EVENT), reader(EVENT)] == [expected, expected]


def test_arrays_come_as_they_are() -> None:
    assert Reader(DETECTOR, "raw.calib")(EVENT).tolist() == [7, 7]
    assert Reader(DETECTOR, "raw.tables.0.times")(EVENT).tolist() == list(range(7))


def test_what_is_called_itself() -> None:
    assert Reader(lambda evt: evt.energy, "")(EVENT) == 7
    assert Reader(lambda: 1, "")(EVENT) == 1


def test_functions_that_do_not_say_what_they_take() -> None:
    for function in (max, dict):
        assert takes_event(function) is None
    assert Reader(max, "")(EVENT.numbers) == 3
    # This one fails as it does for a wrong number of arguments.
    assert Reader(dict, "")(5) == {}


def test_an_error_deeper_inside_is_not_about_arguments() -> None:
    class Opaque:
        __signature__ = "unknown"

        def __call__(self, evt: Any = None) -> Any:
            return evt.energy + None

    with pytest.raises(TypeError, match=r"unsupported operand"):
        Reader(Opaque(), "")(EVENT)


def test_mistakes_in_a_path_are_told_from_missing_data() -> None:
    with pytest.raises(NoSuchFieldError, match=r"^cailb$"):
        Reader(DETECTOR, "raw.cailb")
    with pytest.raises(NoSuchFieldError, match=r"^energi$"):
        Reader(SimpleNamespace(get=lambda evt: evt), "get.energi")(EVENT)
    with pytest.raises(TypeError, match=r"unsupported operand"):
        Reader(DETECTOR, "raw.broken")(EVENT)
    with pytest.raises(InvalidConfigError, match=r"^two\(evt.*wants more than an event$"):
        Reader(DETECTOR, "raw.two")(EVENT)


def test_values_that_can_be_sent() -> None:
    assert as_value(None, "x") is None
    assert as_value("text", "x") == "text"
    assert as_value(b"text", "x") == "text"
    assert as_value(2.5, "x") == 2.5
    listed: Any = as_value([[1, 2], [3, 4]], "x")
    assert listed.shape == (2, 2)
    enumeration: Any = as_value(SimpleNamespace(value=3, names={3: "on"}), "x")
    assert (enumeration, enumeration.dtype) == (3, np.int32)
    with pytest.raises(InvalidConfigError, match=r"^x is a table; add one of its keys .*: 0, a$"):
        as_value({0: 1, "a": 2}, "x")
    with pytest.raises(InvalidConfigError, match=r"^x cannot be sent: "):
        as_value([[1, 2], [3]], "x")
