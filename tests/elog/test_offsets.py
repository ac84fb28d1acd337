from hypothesis import given
from hypothesis import strategies as st

from lclstream.elog.offsets import OffsetTracker

P = ("runs", 0)


def test_a_gap_holds_the_commit() -> None:
    tracker = OffsetTracker()
    for offset in (4, 5, 9):
        tracker.begin(P, offset)
    tracker.finish(P, 5)
    tracker.finish(P, 9)
    assert tracker.positions() == {P: 4}
    assert tracker.in_flight == 1
    tracker.finish(P, 4)
    assert tracker.positions() == {P: 10}
    assert tracker.in_flight == 0


def test_what_was_taken_away_is_no_concern() -> None:
    tracker = OffsetTracker()
    tracker.begin(P, 4)
    tracker.drop([P, ("other", 1)])
    tracker.finish(P, 4)
    assert tracker.positions() == {}
    assert tracker.in_flight == 0
    tracker.begin(P, 4)
    assert tracker.positions() == {P: 4}


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=40), st.data())
def test_nothing_unfinished_lies_before_a_commit(
    steps: list[tuple[int, bool]], data: st.DataObject
) -> None:
    tracker = OffsetTracker()
    begun: dict[int, list[int]] = {0: [], 1: [], 2: []}
    finished: set[tuple[int, int]] = set()
    for number, begin in steps:
        offsets = begun[number]
        if begin or not offsets:
            offsets.append(offsets[-1] + data.draw(st.integers(1, 3)) if offsets else 0)
            tracker.begin(("t", number), offsets[-1])
        else:
            offset = data.draw(st.sampled_from(offsets))
            tracker.finish(("t", number), offset)
            finished.add((number, offset))
        for (_, part), position in tracker.positions().items():
            unfinished = [each for each in begun[part] if (part, each) not in finished]
            assert position == min(unfinished, default=begun[part][-1] + 1)
    assert tracker.in_flight == sum(len(each) for each in begun.values()) - len(finished)
