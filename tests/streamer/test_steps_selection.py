"""Steps that choose among values and events, and the memory that steps use again."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.streamer.stepping import applied, event, step_of

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.steps.rooms import KEPT, Room
from lclstream.streamer.values import Ragged, Values


def test_values_are_kept_dropped_and_renamed_as_they_are() -> None:
    values: Values = {"a": np.arange(3), "b": Ragged(np.arange(4)), "c": None}
    kept = applied(step_of("SelectValues", keep=["c", "a"]), values)
    assert list(kept) == ["a", "c"]
    assert list(applied(step_of("DropValues", drop=["a"]), values)) == ["b", "c"]
    swapped = applied(step_of("RenameValues", names={"a": "b", "b": "a"}), values)
    assert list(swapped) == ["b", "a", "c"]
    assert isinstance(swapped["a"], Ragged)


def test_events_that_lack_a_value_are_dropped() -> None:
    step = step_of("RequireValues", inputs=["a", "b"])
    assert step.apply(event(), {"a": np.array(1), "b": Ragged(np.zeros(0))}) is not None
    assert step.apply(event(), {"a": np.array(1), "b": None}) is None


def kept(value: Any, **options: Any) -> bool:
    array = None if value is None else np.asarray(value)
    return step_of("SelectEvents", input="x", **options).apply(event(), {"x": array}) is not None


def test_limits_of_numbers_are_inclusive() -> None:
    assert [kept(n, minimum=2, maximum=4) for n in (1.9, 2, 3, 4, 4.1)] == [
        False,
        *[True] * 3,
        False,
    ]
    assert [kept(n, minimum=2, inverse=True) for n in (1, 2, 3)] == [True, False, False]
    assert [kept([[n]], maximum=2) for n in (1, 3)] == [True, False]
    assert [kept(n, minimum=0) for n in (None, np.nan)] == [False, False]
    assert [kept(n, minimum=0, missing="keep") for n in (None, np.nan, -1)] == [True, True, False]
    assert kept(True, minimum=1)


def test_large_integers_are_compared_exactly() -> None:
    limit = float(1 << 62)
    stamps = [np.uint64((1 << 62) - 1), np.uint64(1 << 62)]
    assert [kept(stamp, minimum=limit) for stamp in stamps] == [False, True]


def test_several_numbers_are_none() -> None:
    with pytest.raises(InvalidConfigError, match=r"SelectEvents: 'x' has shape \(2,\)"):
        kept([1, 2], minimum=0)


@given(every=st.integers(2, 9), data=st.data())
@settings(deadline=None, max_examples=30)
def test_prescale_keeps_or_drops_one_of_every_n(every: int, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, every - 1))
    numbers = range(5 * every)
    chosen = [n for n in numbers if n % every == offset]
    keep = step_of("Prescale", keep_every=every, offset=offset)
    drop = step_of("Prescale", drop_every=every, offset=offset)
    assert [n for n in numbers if keep.apply(event(n), {}) is not None] == chosen
    assert [n for n in numbers if drop.apply(event(n), {}) is None] == chosen


SHAPE, KIND = (300, 400), np.dtype(np.float32)


def test_memory_is_used_again_only_when_nobody_looks_at_it() -> None:
    room = Room()
    first = room.take(SHAPE, KIND)
    place = first.ctypes.data
    second = room.take(SHAPE, KIND)
    assert not np.shares_memory(first, second)
    view = np.broadcast_to(first[3:, ::2], (2, 297, 200))
    del first
    assert room.take(SHAPE, KIND).ctypes.data not in (place, second.ctypes.data)
    held = view.data
    del view
    others = [room.take(SHAPE, KIND) for _ in range(KEPT)]
    assert place not in {each.ctypes.data for each in others}
    held.release()
    assert room.take(SHAPE, KIND).ctypes.data == place


def test_memory_of_another_form_is_new() -> None:
    room = Room(initial=0)
    room.take(SHAPE, KIND).fill(1)
    assert (room.take(SHAPE, KIND) == 1).all()
    assert not room.take(SHAPE[::-1], KIND).any()
    assert room.take((2, 2), np.dtype(np.int8)).tolist() == [[0, 0], [0, 0]]
    assert (Room(initial=7).take(SHAPE, KIND) == 7).all()
