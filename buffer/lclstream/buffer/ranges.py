"""A set of numbers as ranges: what of a log has been consumed. No input or output."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Ranges:
    """Half-open ranges that neither touch nor overlap, above a floor below which all is contained.

    Args:
        floor: everything below is contained.
        ranges: what else is.
    """

    __slots__ = ("_ends", "_starts", "floor")

    def __init__(self, floor: int = 0, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self.floor = floor
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, start: int, end: int) -> None:
        """Contain the numbers from `start` to before `end`."""
        start = max(start, self.floor)
        if start >= end:
            return
        # Everything that touches becomes one.
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
        if start == self.floor:
            self.floor = end
            del self._starts[0], self._ends[0]

    def missing(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the parts from `start` to before `end` that are not contained."""
        gaps = []
        start = max(start, self.floor)
        index = bisect_right(self._ends, start)
        while start < end:
            if index == len(self._starts) or self._starts[index] >= end:
                gaps.append((start, end))
                break
            if self._starts[index] > start:
                gaps.append((start, self._starts[index]))
            start = self._ends[index]
            index += 1
        return gaps

    def copy(self) -> "Ranges":
        """Return another one that contains the same."""
        return Ranges(self.floor, self)
