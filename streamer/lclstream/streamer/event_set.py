"""Sets of events by their index, small also when there are millions of events.

The events of one rank of N usually have the indices r, r + N, r + 2N, ...: such a run is kept
as (first, last, step), and runs that continue each other are joined.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lclstream.core.errors import DecodeError

Run: TypeAlias = tuple[int, int, int]
"""First index, last index (included), step."""

INDEX_LIMIT = 1 << 64
# Fewer events tell nothing about their usual distance.
FEWEST_IN_RUNS = 4


def runs_of(index: npt.NDArray[np.uint64], step: int = 1) -> list[Run]:
    """Return indices as runs, in their order.

    Args:
        index: shape (n,).
        step: the usual distance, to be taken where the indices tell of none.
    """
    count = len(index)
    if count < 2:
        return [(int(each), int(each), step) for each in index]
    distances = np.diff(index.view(np.int64))
    usual = step
    if (distances[0] != step or distances.max() > step) and count >= FEWEST_IN_RUNS:
        found, counts = np.unique(distances, return_counts=True)
        # Else every set of events would have steps of its own, and asking take long.
        if found[0] > 0 and 2 * counts.max() >= len(distances):
            usual = int(found[counts.argmax()])
    ends = [*np.flatnonzero(distances != usual).tolist(), count - 1]
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [
        (int(index[start]), int(index[end]), usual) for start, end in zip(starts, ends, strict=True)
    ]


class EventSet:
    """Remembers which events are in it; asking takes the same time however many there are."""

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self._added: list[Run] = list(runs)
        # Step -> remainder -> firsts and lasts of runs that neither touch nor overlap, in order.
        self._sorted: dict[int, dict[int, tuple[list[int], list[int]]]] = {}

    def add(self, runs: Iterable[Run]) -> None:
        """Add the events of some runs."""
        self._added.extend(runs)

    def __contains__(self, index: int) -> bool:
        if self._added:
            self._sort()
        for step, by_remainder in self._sorted.items():
            found = by_remainder.get(index % step)
            if found is not None:
                place = bisect_right(found[0], index) - 1
                if place >= 0 and index <= found[1][place]:
                    return True
        return False

    def __bool__(self) -> bool:
        return bool(self._added or self._sorted)

    def __len__(self) -> int:
        """Return how many events were added; those that are in runs of several steps count each."""
        return sum((last - first) // step + 1 for first, last, step in self.runs())

    def runs(self) -> Iterator[Run]:
        """Yield the events as runs, in no particular order."""
        if self._added:
            self._sort()
        for step, by_remainder in self._sorted.items():
            for firsts, lasts in by_remainder.values():
                yield from ((first, last, step) for first, last in zip(firsts, lasts, strict=True))

    def _sort(self) -> None:
        added, self._added = self._added, []
        by_kind: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for first, last, step in [*added, *self.runs()]:
            by_kind.setdefault((step, first % step), []).append((first, last))
        self._sorted = {}
        for (step, remainder), intervals in by_kind.items():
            self._sorted.setdefault(step, {})[remainder] = _joined(sorted(intervals), step)


def _joined(intervals: list[tuple[int, int]], step: int) -> tuple[list[int], list[int]]:
    firsts: list[int] = []
    lasts: list[int] = []
    for first, last in intervals:
        if lasts and first <= lasts[-1] + step:
            lasts[-1] = max(lasts[-1], last)
        else:
            firsts.append(first)
            lasts.append(last)
    return firsts, lasts


def runs_from(document: Any, where: str) -> list[Run]:
    """Return runs as they were read from JSON.

    Raises:
        DecodeError: it is something else; names where.
    """
    if not isinstance(document, list):
        raise DecodeError(f"{where}: expected a list of runs of events")
    for each in document:
        whole = isinstance(each, list) and len(each) == 3 and all(type(n) is int for n in each)
        if not whole or not _makes_sense(*each):
            raise DecodeError(f"{where}: a run of events must be [first, last, step], got {each!r}")
    return [(first, last, step) for first, last, step in document]


def _makes_sense(first: int, last: int, step: int) -> bool:
    in_order = 0 <= first <= last < INDEX_LIMIT and 0 < step < INDEX_LIMIT
    return in_order and (last - first) % step == 0
