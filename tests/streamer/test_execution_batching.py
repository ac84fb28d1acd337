"""Batches hold what was put into them, whatever the events look like."""

from collections.abc import Iterable
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lclstream.streamer.batching import Batch, Batcher, fits, new_batch
from lclstream.streamer.events import Event
from lclstream.streamer.sources.internal import NoReadings
from lclstream.streamer.values import Array, Ragged, Reading, Values

LABELS = ("frame", "energy", "name", "peaks", "never")


def event(index: int, run: int = 1, step: int = 0) -> Event:
    return Event(
        timestamp=(index << 32) | 999_999_999,
        index=index,
        run=run,
        experiment="e",
        readings=NoReadings(),
        step=step,
    )


def frames() -> st.SearchStrategy[Array]:
    shapes = st.sampled_from([(2, 3), (2, 3), (2, 3), (3, 2), ()])
    dtypes = st.sampled_from(["<u2", "<u2", "<u2", ">u2", "<f4"])
    return st.builds(
        lambda shape, dtype, value: np.full(shape, value, dtype), shapes, dtypes, st.integers(0, 9)
    )


def energies() -> st.SearchStrategy[Array]:
    return st.integers(0, (1 << 64) - 1).map(lambda value: np.array(value, np.uint64))


def names() -> st.SearchStrategy[Array]:
    return st.sampled_from([b"a", b"bc", b"a much longer name"]).map(np.array)


def peaks() -> st.SearchStrategy[Reading]:
    one = st.builds(
        lambda count, value, width: Ragged(np.full((count, width), value, np.float32)),
        st.integers(0, 20),
        st.integers(0, 9),
        st.sampled_from([3, 3, 3, 4]),
    )
    # Now and then the number is the same for a while.
    return st.one_of(one, one, st.just(np.zeros((2, 3), np.float32)))


def all_values() -> st.SearchStrategy[Values]:
    return st.fixed_dictionaries(
        {},
        optional={
            "frame": st.one_of(st.none(), frames(), frames()),
            "energy": st.one_of(st.none(), energies()),
            "name": st.one_of(st.none(), names()),
            "peaks": st.one_of(st.none(), peaks(), peaks()),
            "other": energies(),
        },
    )


def rows_of(batch: Batch) -> Iterable[Values]:
    """Return the events of a batch as they were put in, by what a serializer looks at."""
    for row in range(batch.count):
        values: dict[str, Reading | None] = {}
        for label in LABELS:
            if not batch.valid[label][row]:
                values[label] = None
            elif label in batch.arrays:
                array = batch.arrays[label]
                # A single element would be a number in native order.
                values[label] = array[row : row + 1].reshape(array.shape[1:]).copy()
            else:
                column = batch.ragged[label]
                begin, end = column.offsets[row], column.offsets[row + 1]
                values[label] = Ragged(column.values(batch.count)[begin:end].copy())
        yield values


def same(left: Reading | None, right: Reading | None) -> bool:
    if isinstance(left, Ragged) and isinstance(right, Ragged):
        left, right = left.array, right.array
    if left is None or right is None or isinstance(left, Ragged) or isinstance(right, Ragged):
        return left is right
    text = left.dtype.kind == "S"
    return np.array_equal(left, right) and (text or left.dtype == right.dtype)


@given(st.lists(st.tuples(all_values(), st.integers(1, 2))), st.integers(1, 5))
def test_no_event_is_lost_or_changed(given_values: list[tuple[Values, int]], size: int) -> None:
    runs = sorted(run for _, run in given_values)
    events = [event(n, run, step=n % 3) for n, run in enumerate(runs)]
    free: list[Batch] = []
    got: list[tuple[int, int, int, int, Values]] = []

    def make(form: object, capacity: int) -> Batch:
        for batch in free:
            if batch.form == form:
                free.remove(batch)
                batch.clear()
                return batch
        return new_batch(cast("Batch", form), capacity)  # type: ignore[arg-type]

    def take(batches: Iterable[Batch]) -> None:
        for batch in batches:
            assert 0 < batch.count <= batch.capacity
            for row, values in enumerate(rows_of(batch)):
                stamps = int(batch.index[row]), int(batch.timestamp[row]), int(batch.step[row])
                got.append((*stamps, batch.form.run, values))
            free.append(batch)

    batcher = Batcher(LABELS, size, with_masks=True, make=make)
    for each, (values, _) in zip(events, given_values, strict=True):
        take(batcher.add(each, values))
    take(batcher.finish())
    assert [line[:4] for line in got] == [(e.index, e.timestamp, e.step, e.run) for e in events]
    for (*_, stored), (values, _) in zip(got, given_values, strict=True):
        assert all(same(stored[label], values.get(label)) for label in LABELS)


def filled(kind: str) -> Array:
    batcher = Batcher(("x",), 2, with_masks=True, make=new_batch)
    assert not list(batcher.add(event(0), {"x": np.zeros((), kind)}))
    (batch,) = batcher.add(event(1), {"x": None})
    assert batch.valid["x"].tolist() == [1, 0]
    return cast("Array", batch.arrays["x"][1])


@pytest.mark.parametrize(
    ("kind", "value"),
    [("i2", -999), ("i1", -128), ("u8", 0), ("?", False), ("S9", b"None"), ("i8", -999)],
)
def test_missing_readings_have_documented_values(kind: str, value: object) -> None:
    assert filled(kind) == value


def test_missing_floats_are_nan() -> None:
    assert np.isnan(filled("f4"))
    assert np.isnan(filled("c8"))


def test_the_first_batch_ends_when_a_label_appears() -> None:
    batcher = Batcher(("x", "y"), 10, with_masks=True, make=new_batch)
    assert not list(batcher.add(event(0), {"x": np.array(1)}))
    (first,) = batcher.add(event(1), {"x": np.array(2), "y": np.array(3)})
    (second,) = batcher.finish()
    assert (list(first.arrays), list(second.arrays)) == (["x"], ["x", "y"])
    assert first.valid["y"].tolist()[: first.count] == [0]
    assert batcher.changes == 1


def test_readings_in_any_number_grow_without_limit() -> None:
    batcher = Batcher(("r",), 50, with_masks=False, make=new_batch)
    chance = np.random.default_rng(3)
    wanted = [chance.integers(0, 99, (int(n), 2)) for n in chance.geometric(0.05, 49)]
    for index, array in enumerate(wanted):
        assert not list(batcher.add(event(index), {"r": Ragged(array)}))
    (batch,) = batcher.add(event(49), {})
    column = batch.ragged["r"]
    assert column.offsets.dtype == np.uint64
    lengths = [*(len(array) for array in wanted), 0]
    assert np.diff(column.offsets.astype(int)).tolist() == lengths
    assert np.array_equal(column.values(50), np.concatenate(wanted))


def test_what_fits_a_column() -> None:
    batcher = Batcher(("x",), 1, with_masks=False, make=new_batch)
    (batch,) = batcher.add(event(0), {"x": Ragged(np.zeros((5, 2), np.float32))})
    (column,) = batch.form.columns
    assert fits(Ragged(np.zeros((0, 2), np.float32)), column)
    assert not fits(Ragged(np.zeros((5, 3), np.float32)), column)
    assert not fits(Ragged(np.zeros((5, 2), np.float64)), column)
    assert not fits(np.zeros((5, 2), np.float32), column)
