"""The thread that makes messages of batches and hands them over, and the batches it shares.

At most `BATCHES` batches exist; when all wait to be sent, reading waits too: that is the
back-pressure of a slow receiver.
"""

import logging
import queue
import threading
from types import TracebackType
from typing import NoReturn, Self

from lclstream.core.errors import DeliveryError, LclstreamError, StreamError, UnavailableError
from lclstream.streamer.batching import Batch, Form
from lclstream.streamer.handlers import Handler
from lclstream.streamer.progress import Progress
from lclstream.streamer.serializers import Serializer
from lclstream.streamer.stopping import StopRequest

logger = logging.getLogger(__name__)

# One that is filled, one that is sent, one in between.
BATCHES = 3
# After this the thread that sends is given up, when everything shall end now.
GIVE_UP_S = 5.0
# How often to look whether everything shall end now, while a receiver takes nothing.
LOOK_INTERVAL_S = 0.5


class SendingEndedError(Exception):
    """The thread that sends has ended; its own error says why."""


class StuckError(StreamError):
    """A handler does not come back; only the end of the process ends it."""


class BatchPool:
    """Hands out batches, again and again the same ones as long as the form stays."""

    def __init__(self, serializer: Serializer, stop: StopRequest, limit: int = BATCHES) -> None:
        self._serializer = serializer
        self._stop = stop
        self._free: list[Batch] = []
        self._available = limit
        self._ended = False
        self._changed = threading.Condition()

    def take(self, form: Form, capacity: int) -> Batch:
        """Return an empty batch; waits until one is free.

        Raises:
            SendingEndedError: none will become free any more.
        """
        with self._changed:
            while not self._changed.wait_for(self._can_answer, LOOK_INTERVAL_S):
                if self._stop.now:
                    self._ended = True
            if self._ended:
                raise SendingEndedError
            self._available -= 1
            # Batches of a form that is over are let go.
            self._free = [each for each in self._free if each.form == form]
            if self._free:
                batch = self._free.pop()
                batch.count = 0
                return batch
        return self._serializer.new_batch(form, capacity)

    def _can_answer(self) -> bool:
        return self._available > 0 or self._ended

    def give_back(self, batch: Batch) -> None:
        """Make a batch available again."""
        with self._changed:
            self._free.append(batch)
            self._available += 1
            self._changed.notify()

    def end(self) -> None:
        """Wake who waits: no batch will be given back any more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class Sender:
    """The thread that makes messages and hands them to every handler.

    Resource handling: a context manager; when it is left the thread has ended, and all handlers
    are closed.

    Error handling: the first error of a handler ends the thread; it is raised on leaving. The
    other handlers still deliver what they got, whatever fails.
    """

    def __init__(
        self,
        serializer: Serializer,
        handlers: list[Handler],
        pool: BatchPool,
        progress: Progress,
        stop: StopRequest,
    ) -> None:
        self._serializer, self._handlers = serializer, handlers
        self._pool, self._progress, self._stop = pool, progress, stop
        self._ready: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._broken: Handler | None = None
        self._is_complete = True
        self._unclosed: list[LclstreamError] = []
        self._put = self._sequence = 0
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)

    def __enter__(self) -> Self:
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
        self._is_complete = error is None
        self._ready.put(None)
        while self._thread.is_alive() and not self._stop.now:
            self._thread.join(LOOK_INTERVAL_S)
        self._thread.join(GIVE_UP_S)
        if self._thread.is_alive():
            what = f"{self._left}" if self._left else "unacknowledged"
            raise StuckError(f"{what} messages thrown away: {self._stop.reason}")
        if self._stop.now:
            if self._left:
                text = f"{self._left} messages thrown away: {self._stop.reason}"
                raise DeliveryError(text, self._left)
            return
        if self._error is not None:
            self._raise_error(self._error)
        # What has failed before says more.
        if self._unclosed and error is None:
            lost = sum(getattr(each, "undelivered", 0) for each in self._unclosed)
            raise DeliveryError("; ".join(map(str, self._unclosed)), lost)

    def _raise_error(self, error: BaseException) -> NoReturn:
        if isinstance(error, UnavailableError | StreamError):
            # Of those that a handler calls lost, one is the message of its last call.
            lost = self._left + max(getattr(error, "undelivered", 1) - 1, 0)
            raise DeliveryError(f"{lost} messages not delivered: {error}", lost)
        raise error

    @property
    def _left(self) -> int:
        return self._put - self._sequence

    def put(self, batch: Batch) -> None:
        """Send a batch as soon as those before it are sent."""
        self._put += 1
        self._ready.put(batch)

    def _run(self) -> None:
        try:
            while (batch := self._ready.get()) is not None:
                if not self._stop.now:
                    self._send(batch)
                self._pool.give_back(batch)
        except BaseException as error:
            self._error = error
        finally:
            self._pool.end()
            self._close_handlers()

    def _send(self, batch: Batch) -> None:
        batch.sequence = self._sequence
        for message in self._serializer.messages(batch):
            for handler in self._handlers:
                self._broken = handler
                handler.send(message)
            self._broken = None
            self._progress.delivered(message.joined(), message.events)
            self._sequence += 1

    def _close_handlers(self) -> None:
        """Let every handler deliver its rest, whatever the others meet."""
        is_complete = self._is_complete and self._error is None
        for handler in self._handlers:
            try:
                if handler is self._broken or self._stop.now:
                    handler.abort()
                else:
                    handler.close(complete=is_complete)
            except LclstreamError as error:
                logger.warning("handler_not_closed", extra={"reason": str(error)})
                self._unclosed.append(error)
            except BaseException as error:
                self._error = self._error or error
