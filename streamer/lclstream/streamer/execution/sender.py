"""Makes messages of batches and hands them to every handler, beside the thread that reads."""

import queue
import threading
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from lclstream.core.errors import DeliveryError, StreamError
from lclstream.streamer.batching import Batch
from lclstream.streamer.checkpoint import Checkpoint
from lclstream.streamer.execution.framing import Framing
from lclstream.streamer.execution.lanes import Lane
from lclstream.streamer.execution.parcels import Loan, Parcel
from lclstream.streamer.execution.pool import LOOK_INTERVAL_S, BatchPool
from lclstream.streamer.execution.settlement import Settlement
from lclstream.streamer.execution.stages import Stage
from lclstream.streamer.handlers import Handler
from lclstream.streamer.message import Message
from lclstream.streamer.progress import Progress
from lclstream.streamer.serializers import Serializer
from lclstream.streamer.stopping import StopRequest

# After this a thread that sends is given up, when everything shall end now.
GIVE_UP_S = 5.0


class StuckError(StreamError):
    """A handler does not come back; only the end of the process ends it."""


class Sender:
    """The thread that makes messages, and those that hand them to the handlers.

    Resource handling: a context manager; when it is left all threads have ended, and all handlers
    are closed.

    Error handling: when a handler fails no more batches are handed out, so that reading ends; the
    other handlers still deliver all that was read. What failed is raised on leaving.

    Args:
        serializer: makes the messages; not closed here.
        handlers: take the messages; each has a name, for error messages and figures.
        pool: the batches that `put` gets.
        progress: counts what all handlers have taken.
        stop: who asks for the end of everything.
        framing: knows what goes around the messages of all ranks.
        checkpoint: remembers the events that have arrived.
    """

    def __init__(
        self,
        serializer: Serializer,
        handlers: Sequence[tuple[str, Handler]],
        pool: BatchPool,
        progress: Progress,
        stop: StopRequest,
        framing: Framing,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self._framing = framing
        self._serializer, self._pool = serializer, pool
        self._progress, self._stop = progress, stop
        self.lanes = [
            Lane(name, handler, stop, self._passed, pool.end, self._advance)
            for name, handler in handlers
        ]
        self._settlement = Settlement(self.lanes, checkpoint, progress.place.size, progress.arrived)
        self.stage = Stage()
        """Of the serializer."""
        # Its bound are the batches that exist.
        self._ready: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._is_complete = True
        self._sequence = self._number = self._passed_on = 0
        self._moved = threading.Event()
        # Messages that were not made because nobody takes them, and how many events each has.
        self._unmade = self._events_each = 0
        self._thread = threading.Thread(target=self._run, name="serializer", daemon=True)

    @property
    def waiting(self) -> int:
        """Batches that wait to be made into messages."""
        return self._ready.qsize()

    def __enter__(self) -> Self:
        for lane in self.lanes:
            lane.thread.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait until everything is handed over, or shall be thrown away.

        Raises:
            DeliveryError: a handler failed, or everything had to end at once; says how many
                messages are left.
            StuckError: a handler does not come back, and everything shall end now.
        """
        # Once a handler has failed not everything was read.
        self._is_complete = error is None and not self._pool.has_ended
        self._ready.put(None)
        is_good = False
        try:
            self._finish(error)
            is_good = self._is_complete
        finally:
            self._framing.done(is_good=is_good)

    def _finish(self, error: BaseException | None) -> None:
        self._wait()
        if self._stop.now:
            if self._left:
                text = f"{self._left} messages thrown away: {self._stop.reason}"
                raise DeliveryError(text, self._left)
            return
        faults = [self._error, *(lane.error for lane in self.lanes if not lane.is_lost)]
        for fault in faults:
            if fault is not None:
                raise fault
        self._raise_losses(error)

    def _wait(self) -> None:
        threads = [self._thread, *(lane.thread for lane in self.lanes)]
        for thread in threads:
            while thread.is_alive() and not self._stop.now:
                thread.join(LOOK_INTERVAL_S)
        for thread in threads:
            thread.join(GIVE_UP_S)
        if any(thread.is_alive() for thread in threads):
            what = f"{self._left}" if self._left else "unacknowledged"
            raise StuckError(f"{what} messages thrown away: {self._stop.reason}")

    def _raise_losses(self, error: BaseException | None) -> None:
        failed = [lane for lane in self.lanes if lane.error is not None]
        refused = any(lane.refused for lane in failed) or self._unmade
        # What has failed before says more than what could not be closed for it.
        if not failed or (error is not None and not refused):
            return
        lost = max(lane.undelivered for lane in failed) + self._unmade
        reasons = "; ".join(str(lane.error) for lane in failed)
        text = f"{lost} messages not delivered: {reasons}" if refused else reasons
        raise DeliveryError(text, lost) from failed[0].error

    @property
    def _left(self) -> int:
        """Messages that not every handler has got, and batches that none was made of."""
        waiting = max((lane.waiting + lane.refused for lane in self.lanes), default=0)
        return waiting + self._unmade + self._ready.qsize()

    def put(self, batch: Batch) -> None:
        """Send a batch as soon as those before it are sent."""
        self._ready.put(batch)

    # The serializer's thread.

    def _run(self) -> None:
        try:
            while (batch := self._ready.get()) is not None:
                loan = Loan(batch, self._pool.give_back)
                try:
                    self._serialize(batch, loan)
                finally:
                    loan.release()
            if self._is_wanted():
                self._framing.begin(self._say)
                if self._is_complete:
                    self._framing.end(self._say)
        except BaseException as error:
            self._error = error
        finally:
            self.stage.sample()
            self._pool.end()
            is_complete = self._is_complete and self._error is None
            for lane in self.lanes:
                lane.end(is_complete=is_complete)

    def _serialize(self, batch: Batch, loan: Loan) -> None:
        if not self._is_wanted():
            self._leave(batch.count)
            return
        self._framing.begin(self._say)
        batch.sequence = self._sequence
        self.stage.begin()
        try:
            self._serialize_rows(batch, loan)
        finally:
            self.stage.pause()

    def _serialize_rows(self, batch: Batch, loan: Loan) -> None:
        row = 0
        for message in self._serializer.messages(batch):
            self._events_each = message.events or self._events_each
            if not self._is_wanted():
                self._leave(batch.count - row)
                return
            index = batch.index[row : row + message.events]
            row += message.events
            self._sequence += 1
            whole = Message(message.parts, message.events, index, message.hash64())
            self.stage.pause()
            self._hand_over(whole, loan)
            self.stage.begin()

    def _leave(self, events: int) -> None:
        """Count messages that are not made because nobody takes them."""
        self._unmade += -(-events // (self._events_each or events or 1))

    def _is_wanted(self) -> bool:
        """Return whether anybody still takes messages."""
        return not (self._stop.now or (self.lanes and all(lane.error for lane in self.lanes)))

    def _say(self, messages: Iterable[Message]) -> None:
        """Send what goes around the messages; when others wait for it, until it has arrived."""
        for message in messages:
            whole = Message(message.parts, message.events, None, message.hash64())
            self._hand_over(whole, None, must_arrive=self._framing.is_shared)
        while self._framing.is_shared and self._is_wanted() and self._passed_on < self._number:
            self._moved.wait(LOOK_INTERVAL_S)
            self._moved.clear()

    def _hand_over(self, message: Message, loan: Loan | None, *, must_arrive: bool = False) -> None:
        self._number += 1
        if loan is not None:
            loan.claim()
        handlers = max(len(self.lanes), 1)
        parcel = Parcel(message, self._number, handlers, loan, must_arrive=must_arrive)
        if not self.lanes:
            self._passed(parcel, True)
        for lane in self.lanes:
            lane.put(parcel)

    # The handlers' threads.

    def _passed(self, parcel: Parcel, is_taken: bool) -> None:
        with self._lock:
            parcel.pending -= 1
            parcel.delivered = parcel.delivered and is_taken
            is_done = not parcel.pending
            self._passed_on += is_done
        if not is_done:
            self._advance()
            return
        if parcel.must_arrive:
            self._moved.set()
        if parcel.delivered:
            self._progress.delivered(parcel.message)
            self._advance(parcel)
        if parcel.loan is not None:
            parcel.loan.release()

    def _advance(self, parcel: Parcel | None = None) -> None:
        """See which messages cannot be lost any more, those of a parcel among them."""
        try:
            if parcel is not None:
                self._settlement.taken(parcel.number, parcel.message)
            else:
                self._settlement.advance()
        except OSError as error:
            text = f"cannot remember what has arrived: {error.strerror or error}"
            self._error = self._error or DeliveryError(text, 0)
            self._pool.end()
