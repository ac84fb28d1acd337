"""One thread and queue for each handler, so that none waits for another one."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable

from lclstream.core.errors import LclstreamError, StreamError, UnavailableError
from lclstream.streamer.execution.parcels import Parcel
from lclstream.streamer.execution.pool import LOOK_INTERVAL_S
from lclstream.streamer.execution.stages import Stage
from lclstream.streamer.handlers import Handler
from lclstream.streamer.stopping import StopRequest

logger = logging.getLogger(__name__)

# Messages that wait for one handler.
LANE_MESSAGES = 16


class Lane:
    """Hands messages to one handler, in their order.

    Error handling: when the handler fails it is given up, and what comes for it is only counted;
    `error` says why. At the end the handler delivers its rest, unless everything ends at once.

    Args:
        name: what the handler is, for messages and figures.
        handler: owned by the lane once it runs.
        stop: who asks for the end of everything.
        passed: called for every parcel, with whether the handler has taken it.
        failed: called when the handler fails.
        closed: called at the end of the thread.
    """

    def __init__(
        self,
        name: str,
        handler: Handler,
        stop: StopRequest,
        passed: Callable[[Parcel, bool], None],
        failed: Callable[[], None],
        closed: Callable[[], None],
    ) -> None:
        self.name = name
        self.error: BaseException | None = None
        """Why the handler failed, or could not be closed."""
        self.taken = 0
        """Messages that the handler has taken."""
        self.refused = 0
        """Messages that came for it and were not taken."""
        self.settled = 0
        """Messages, from the first on, that will not be lost whatever happens to this process."""
        self.stage = Stage()
        self._handler, self._stop = handler, stop
        self._passed, self._failed, self._closed = passed, failed, closed
        self._queue: queue.Queue[Parcel | None] = queue.Queue(LANE_MESSAGES)
        self._is_complete = True
        self._has_ended = False
        self.thread = threading.Thread(target=self._run, name=f"handler {name}", daemon=True)

    @property
    def room(self) -> int:
        """How many can wait."""
        return self._queue.maxsize

    @property
    def waiting(self) -> int:
        """Messages that wait for the handler."""
        return self._queue.qsize()

    @property
    def undelivered(self) -> int:
        """Messages that did not reach the other side, as far as is known."""
        if self.error is None:
            return 0
        # Of those that a handler calls lost, one is the message of its last call; and what it has
        # taken and not delivered, it need not have called lost.
        called_lost = int(getattr(self.error, "undelivered", 0)) - bool(self.refused)
        return self.refused + max(called_lost, self.taken - self.settled)

    @property
    def is_lost(self) -> bool:
        """Whether the error is about the other side, and not a fault of the program."""
        return isinstance(self.error, UnavailableError | StreamError)

    def put(self, parcel: Parcel) -> None:
        """Queue a message; waits while the queue is full."""
        while True:
            try:
                self._queue.put(parcel, timeout=LOOK_INTERVAL_S)
            except queue.Full:
                # Who is stuck does not take it, however long one waits.
                if self._stop.now:
                    self.refused += 1
                    self._passed(parcel, False)
                    return
            else:
                return

    def end(self, *, is_complete: bool) -> None:
        """Let the handler deliver its rest.

        Args:
            is_complete: whether it was given all that there is.
        """
        self._is_complete = is_complete
        self._has_ended = True
        # To wake it; one that has not emptied its queue will see by itself.
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)

    def _next(self) -> Parcel | None:
        """Return the next message; None if there will be no more."""
        while True:
            has_ended = self._has_ended
            try:
                return self._queue.get(block=not has_ended, timeout=LOOK_INTERVAL_S)
            except queue.Empty:
                if has_ended:
                    return None

    def _run(self) -> None:
        while (parcel := self._next()) is not None:
            is_taken = self.error is None and not self._stop.now and self._send(parcel)
            self.taken += is_taken
            self.refused += not is_taken
            self._settle()
            self._passed(parcel, is_taken)
            # Its memory is not to be kept until the next one comes.
            del parcel
        self._close()
        self.stage.sample()
        self._closed()

    def _settle(self) -> None:
        self.settled = min(int(getattr(self._handler, "settled", self.taken)), self.taken)

    def _send(self, parcel: Parcel) -> bool:
        self.stage.begin()
        try:
            self._handler.send(parcel.message)
            if parcel.must_arrive and hasattr(self._handler, "settle"):
                self._handler.settle()
        except BaseException as error:
            self.error = error
            logger.warning("handler_failed", extra={"handler": self.name, "reason": str(error)})
            self._failed()
            return False
        finally:
            self.stage.pause()
        return True

    def _close(self) -> None:
        self._settle()
        try:
            if self.error is not None or self._stop.now:
                self._handler.abort()
            else:
                self._handler.close(complete=self._is_complete)
                self.settled = self.taken
        except LclstreamError as error:
            logger.warning("handler_not_closed", extra={"handler": self.name, "reason": str(error)})
            self.error = self.error or error
        except BaseException as error:
            self.error = self.error or error
