"""The batches of a rank, filled again and again."""

import threading
import time
from collections.abc import Callable

from lclstream.streamer.batching import Batch, Form
from lclstream.streamer.stopping import StopRequest

# One that is filled while the other one is sent.
LEAST_BATCHES = 2
# As many small ones as this is room for, lest the stages wait for each other all the time.
ROOM_BYTES = 8 << 20
MOST_BATCHES = 16
# How often to look whether everything shall end now, while a receiver takes nothing.
LOOK_INTERVAL_S = 0.5


class SendingEndedError(Exception):
    """Nothing is sent any more; who sends says why."""


class BatchPool:
    """Hands out batches, again and again the same ones as long as the form stays.

    Args:
        make: returns a new batch.
        stop: who asks for the end of everything.
        least: how many batches may be in use, however large they are.
    """

    def __init__(
        self, make: Callable[[Form, int], Batch], stop: StopRequest, least: int = LEAST_BATCHES
    ) -> None:
        self._make = make
        self._stop = stop
        self._least = least
        self._free: list[Batch] = []
        self._limit = least
        self._form: Form | None = None
        self._in_use = 0
        self.waited_s = 0.0
        """Seconds that were spent waiting for a batch."""
        self._ended = False
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """How many batches may be in use."""
        return self._limit

    @property
    def in_use(self) -> int:
        """How many batches are being filled, wait or are being sent."""
        return self._in_use

    @property
    def has_ended(self) -> bool:
        """Whether no batch will be handed out any more."""
        return self._ended

    def take(self, form: Form, capacity: int) -> Batch:
        """Return an empty batch; waits until one is free.

        Raises:
            SendingEndedError: none will become free any more.
        """
        with self._changed:
            if form is not self._form:
                self._form = form
                self._limit = self._how_many(capacity * _event_bytes(form))
                # Batches of a form that is over are let go.
                self._free = [each for each in self._free if each.form == form]
            if not self._can_answer():
                self._wait()
            if self._ended:
                raise SendingEndedError
            self._in_use += 1
            if self._free:
                batch = self._free.pop()
                batch.clear()
                return batch
        return self._make(form, capacity)

    def _wait(self) -> None:
        began = time.perf_counter()
        while not self._changed.wait_for(self._can_answer, LOOK_INTERVAL_S):
            if self._stop.now:
                self._ended = True
        self.waited_s += time.perf_counter() - began

    def _can_answer(self) -> bool:
        return self._in_use < self._limit or self._ended

    def _how_many(self, size_bytes: int) -> int:
        return max(self._least, min(MOST_BATCHES, ROOM_BYTES // max(size_bytes, 1)))

    def give_back(self, batch: Batch) -> None:
        """Make a batch available again."""
        with self._changed:
            self._in_use -= 1
            if batch.form == self._form:
                self._free.append(batch)
                # Where the number of readings varies a batch grows.
                self._limit = min(self._limit, self._how_many(_size_bytes(batch)))
            self._changed.notify()

    def end(self) -> None:
        """Wake who waits: no batch will be handed out any more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def _event_bytes(form: Form) -> int:
    return sum(column.event_bytes for column in form.columns)


def _size_bytes(batch: Batch) -> int:
    fixed = batch.capacity * sum(
        each.event_bytes for each in batch.form.columns if not each.is_ragged
    )
    return fixed + sum(column.room.nbytes for column in batch.ragged.values())
