"""Memory for the results of steps, used again as soon as nobody looks at it any more."""

import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

# Results of earlier events that are still on their way; beyond, memory is not kept.
KEPT = 8
# The room's own list, the variable of the search, and the argument of getrefcount.
OWN_REFERENCES = 3
# Smaller arrays cost the allocator less than the search.
LEAST_BYTES = 1 << 16


class Room:
    """Gives arrays of one shape and dtype.

    A new large array costs a page fault for every 4 kB, often more than the arithmetic on it. A
    view of an array refers to it, so that one that is in use has more references than those of
    the room.
    """

    def __init__(self, initial: float | None = None) -> None:
        """Make an empty room.

        Args:
            initial: what the elements of a new array are; None for anything. In an array that
                is used again they are what they were.
        """
        self._initial = initial
        self._kept: list[npt.NDArray[Any]] = []
        self._form: tuple[tuple[int, ...], np.dtype[Any]] | None = None

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return an array that nobody else uses."""
        if math.prod(shape) * dtype.itemsize < LEAST_BYTES:
            return self._new(shape, dtype)
        if self._form != (shape, dtype):
            self._form = (shape, dtype)
            self._kept.clear()
        for array in self._kept:
            if sys.getrefcount(array) <= OWN_REFERENCES:
                return array
        array = self._new(shape, dtype)
        if len(self._kept) < KEPT:
            self._kept.append(array)
        return array

    def _new(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        if self._initial is None:
            return np.empty(shape, dtype)
        if self._initial == 0:
            return np.zeros(shape, dtype)
        return np.full(shape, self._initial, dtype)


class Rooms:
    """A room for each label."""

    def __init__(self) -> None:
        self._rooms: dict[str, Room] = {}

    def take(self, label: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return an array that nobody else uses; its content is arbitrary."""
        room = self._rooms.get(label)
        if room is None:
            room = self._rooms[label] = Room()
        return room.take(shape, dtype)
