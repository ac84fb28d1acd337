"""Where the larger values of a batch are until its message is made: as they came, or compressed.

Both kinds stand in `Batch.arrays` in place of an array and take values as an array does, row by
row in order.
"""

import ctypes
import mmap
import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lclstream.streamer.serializers.codecs import Piece
from lclstream.streamer.serializers.codecs.workers import Staging, Workers
from lclstream.streamer.values import Array

# Smaller rows are compressed several at a time.
TASK_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Section:
    """The data of one dataset as they go into the message."""

    parts: Sequence[memoryview]
    rows: int
    nbytes: int
    sizes: npt.NDArray[np.uint32] | None = None
    """Of each chunk; None: they are all alike."""
    skipped: npt.NDArray[np.uint32] | None = None
    """For each chunk the filters that it did without."""


class KeptRows:
    """Rows that are sent as they are, each from where it lies."""

    def __init__(self, dtype: np.dtype[np.generic], shape: tuple[int, ...], capacity: int) -> None:
        self.dtype, self.shape = dtype, shape
        self.lasting = False
        """Whether arrays that are given may be held; see `Batch.lasting`."""
        self._capacity = capacity
        # Only where an event's own array cannot be held, a row of ours is needed.
        self._own: Array | None = None
        self._rows: list[Array | None] = [None] * capacity
        self._fill: Array | None = None

    def __setitem__(self, row: int, value: Array) -> None:
        """Hold a value, or a copy of it; a number fills the row."""
        if np.shape(value) != self.shape:
            self._rows[row] = self._filled(value)
        elif self.lasting and _lies_right(value, self.dtype):
            self._rows[row] = value
        else:
            if self._own is None:
                self._own = np.empty((self._capacity, *self.shape), self.dtype)
            self._own[row] = value
            self._rows[row] = None

    def section(self, count: int) -> Section:
        """Return the first rows."""
        parts: list[memoryview] = []
        first_own = None
        for row, held in enumerate([*self._rows[:count], _END]):
            if held is None:
                first_own = row if first_own is None else first_own
                continue
            if first_own is not None and self._own is not None:
                parts.append(bytes_of(self._own[first_own:row]))
                first_own = None
            if held is not _END:
                parts.append(bytes_of(held))
        return Section(parts, count, sum(part.nbytes for part in parts))

    def clear(self) -> None:
        """Let the values go."""
        self._rows = [None] * self._capacity

    def _filled(self, value: Array) -> Array:
        if self._fill is None:
            self._fill = np.empty(self.shape, self.dtype)
            self._fill[...] = value
        return self._fill


_END = np.empty(0, np.uint8)


@dataclass(slots=True)
class _Task:
    """Some rows that are being compressed."""

    first: int
    rows: int
    results: "list[Future[list[int]]]" = field(default_factory=list)
    """For each piece of the chunks, the sizes of all rows."""


class PackedRows:
    """Rows that are compressed by other threads from the moment they are given.

    Only the rows that wait for a thread take the room of values; of the others there is the
    result.

    Resource handling: `section` waits for the rows that it returns, `clear` for all.
    """

    def __init__(
        self,
        dtype: np.dtype[np.generic],
        shape: tuple[int, ...],
        capacity: int,
        pieces: Sequence[Piece],
        filters: int,
        workers: Workers,
        staging: Staging,
    ) -> None:
        """Prepare.

        Args:
            dtype: of the values.
            shape: of a row, which is a chunk.
            capacity: how many rows fit.
            pieces: what packs a chunk.
            filters: how many filters a chunk can do without.
            workers: the threads.
            staging: where values wait that cannot be held.
        """
        self.dtype, self.shape, self.capacity = dtype, shape, capacity
        self.lasting = False
        """Whether arrays that are given may be held; see `Batch.lasting`."""
        self._pieces, self._workers, self._staging = pieces, workers, staging
        self._row_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._skip_all = (1 << filters) - 1
        self._slot_bytes = sum(piece.bound for piece in pieces)
        self._room = _lazy_memory(capacity * self._slot_bytes)
        at_a_time = TASK_BYTES // self._row_bytes if len(pieces) == 1 else 1
        self._at_a_time = max(1, min(capacity, at_a_time))
        self._tasks: list[_Task] = []
        self._block: Array | None = None
        self._waiting = 0

    def __setitem__(self, row: int, value: Array) -> None:
        """Begin to compress a value, or a copy of it; a number fills the row."""
        if self._at_a_time == 1 and self._can_hold(value):
            self._submit(_Task(row, 1), _Source(value, None))
            return
        if self._block is None:
            self._block = self._staging.block((self._at_a_time, *self.shape), self.dtype)
        self._block[row % self._at_a_time] = value
        self._waiting = row + 1
        if self._waiting % self._at_a_time == 0:
            self._submit_block(self._waiting)

    def section(self, count: int) -> Section:
        """Return the first rows, compressed."""
        self._submit_block(count)
        sizes, parts = np.zeros(count, np.uint32), list[memoryview]()
        for task in self._tasks:
            rows = min(task.rows, count - task.first)
            if rows <= 0:
                # Of an event that did not fit the batch after all.
                break
            at = task.first * self._slot_bytes
            for piece, result in zip(self._pieces, task.results, strict=True):
                found = result.result()[:rows]
                sizes[task.first : task.first + rows] += np.array(found, np.uint32)
                parts.append(self._room[at : at + sum(found)].data)
                at += piece.bound
        nbytes = sum(part.nbytes for part in parts)
        skipped = np.zeros(count, np.uint32)
        if len(self._pieces) == 1:
            skipped[sizes == self._row_bytes] = self._skip_all
        return Section(parts, count, nbytes, sizes, skipped)

    def clear(self) -> None:
        """Let the results go."""
        self._wait()
        self._tasks.clear()
        self._waiting = 0
        if self._block is not None:
            self._staging.give_back(self._block)
            self._block = None

    def _can_hold(self, value: Array) -> bool:
        return self.lasting and np.shape(value) == self.shape and _lies_right(value, self.dtype)

    def _submit_block(self, end: int) -> None:
        """Begin to compress what waits, without the rows from `end` on."""
        block, self._block = self._block, None
        if block is None:
            return
        first = (self._waiting - 1) // self._at_a_time * self._at_a_time
        rows = min(self._waiting, end) - first
        if rows > 0:
            self._submit(_Task(first, rows), _Source(block, self._staging))
        else:
            self._staging.give_back(block)

    def _submit(self, task: _Task, source: "_Source") -> None:
        self._tasks.append(task)
        source.users = parts = len(self._pieces)
        into = task.first * self._slot_bytes
        for piece in self._pieces:

            def pack(piece: Piece = piece, into: int = into) -> list[int]:
                with source as address:
                    return self._pack(piece, address, into, task.rows)

            task.results.append(self._workers.submit(pack, task.rows * self._row_bytes // parts))
            into += piece.bound

    def _pack(self, piece: Piece, source: int, into: int, rows: int) -> list[int]:
        """Pack rows closely one after the other; return their sizes."""
        at = address_of(self._room) + into
        sizes = []
        for _ in range(rows):
            size = piece.pack(source, at)
            # What does not become smaller is stored as it is.
            if size >= self._row_bytes and len(self._pieces) == 1:
                ctypes.memmove(at, source, self._row_bytes)
                size = self._row_bytes
            sizes.append(size)
            at += size
            source += self._row_bytes
        return sizes

    def _wait(self) -> None:
        wait([result for task in self._tasks for result in task.results])


class _Source:
    """Values that are being compressed, by as many threads as there are pieces."""

    def __init__(self, array: Array, staging: Staging | None) -> None:
        self._array, self._staging = array, staging
        self._lock = threading.Lock()
        self.users = 0

    def __enter__(self) -> int:
        return address_of(self._array)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self.users -= 1
            is_last = not self.users
        if is_last and self._staging is not None:
            self._staging.give_back(self._array)


def bytes_of(array: Array) -> memoryview:
    """Return the bytes of a contiguous array, not copied, whatever its dtype and shape."""
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def address_of(array: Array) -> int:
    """Return where an array lies."""
    return int(array.__array_interface__["data"][0])


def _lazy_memory(size: int) -> npt.NDArray[np.uint8]:
    """Return memory that takes room only where something is written to, page by page."""
    if size < TASK_BYTES:
        return np.empty(size, np.uint8)
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # Large pages would be filled by the beginning of a result.
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def _lies_right(array: Array, dtype: np.dtype[np.generic]) -> bool:
    """Return whether the bytes of an array are those of the message."""
    return array.dtype == dtype and array.flags.c_contiguous
