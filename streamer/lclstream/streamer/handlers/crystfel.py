"""Answers the requests of CrystFEL's workers with one event each."""

import errno
import logging
import time

import zmq

from lclstream.core.errors import DeliveryError, InvalidConfigError, UnavailableError
from lclstream.streamer.config import CrystfelRequestDataHandlerConfig
from lclstream.streamer.handlers.zeromq import OnePiece, open_url
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place

logger = logging.getLogger(__name__)

# CrystFEL takes what is this short for no event.
IGNORED_BYTES = 15
# How many requests may wait: one of each worker.
WAITING_REQUESTS = 4096


class CrystfelRequestDataHandler:
    """A ROUTER socket: every worker's request is kept until there is an event for it.

    Workers are served in the order of their requests, and share the events. One that has gone
    since its request gets nothing: its event goes to the next. A worker is told nothing at the
    end, for its protocol knows of none: `close` returns when all answers have left, and the log
    says `drained`; then the workers may be told to finish (signal USR1).

    Events wait before this handler, in the queue that each handler has, not in it.

    Resource handling: owns a context with its I/O thread.
    """

    def __init__(self, config: CrystfelRequestDataHandlerConfig, place: Place) -> None:
        """Listen.

        Raises:
            InvalidConfigError: the address cannot be used.
        """
        del place
        self._config = config
        self._request = config.request.encode()
        self._answered = 0
        self._room = OnePiece()
        self._closed = False
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        # Else what is for a worker that has gone would be dropped without a word.
        self._socket.set(zmq.ROUTER_MANDATORY, 1)
        self._socket.set(zmq.RCVHWM, WAITING_REQUESTS)
        self._socket.set(zmq.LINGER, 0)
        self._socket.copy_threshold = 0
        try:
            self.url = open_url(self._socket, config.url, listens=True)
            """Where workers find it, with the real port in place of 0."""
        except InvalidConfigError:
            self.abort()
            raise
        logger.info("listening", extra={"urls": [self.url]})

    def send(self, message: Message) -> None:
        """Give one event to the next worker that asks, or has asked; what has no event is left out.

        Raises:
            UnavailableError: no worker has asked in time.
            DeliveryError: the message holds several events, or the worker did not take it in time.
        """
        if not message.events:
            return
        if message.events > 1:
            raise DeliveryError(f"CrystFEL takes one event each, not {message.events} together", 1)
        if message.nbytes <= IGNORED_BYTES:
            raise DeliveryError(f"CrystFEL ignores messages of {message.nbytes} bytes", 1)
        frame = self._room.joined(message)
        deadline = time.monotonic() + self._config.send_timeout_s
        tracker = None
        while tracker is None:
            tracker = self._answered_by(self._next_request(deadline), frame)
        try:
            tracker.wait(max(deadline - time.monotonic(), 0.001))
        except zmq.NotDone:
            raise DeliveryError(
                f"1 message not taken within {self._config.send_timeout_s} s: {self.url}", 1
            ) from None
        self._answered += 1

    def close(self, *, complete: bool = True) -> None:
        """Wait until all answers have left."""
        del complete
        if not self._closed:
            self._end(self._config.flush_timeout_s)
            logger.info("drained", extra={"url": self.url, "events": self._answered})

    def abort(self) -> None:
        """Close the connections without waiting."""
        if not self._closed:
            self._end(0)

    def _next_request(self, deadline: float) -> bytes:
        """Return who asks next.

        Raises:
            UnavailableError: nobody in time.
        """
        while True:
            remaining_ms = max(int((deadline - time.monotonic()) * 1000), 0)
            if not self._socket.poll(remaining_ms):
                raise UnavailableError(
                    f"no worker has asked within {self._config.send_timeout_s} s: {self.url}"
                )
            frames = self._socket.recv_multipart()
            # A request is its sender, an empty frame, and what it says.
            if len(frames) == 3 and frames[2] == self._request:
                return frames[0]
            logger.warning("request_refused", extra={"request": repr(frames[-1][:40])})

    def _answered_by(self, worker: bytes, frame: memoryview) -> zmq.MessageTracker | None:
        """Answer a worker; return when the answer has left, or None if the worker has."""
        parts: list[bytes | memoryview] = [worker, b"", frame]
        try:
            return self._socket.send_multipart(parts, zmq.DONTWAIT, copy=False, track=True)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, errno.EAGAIN):
                raise
            logger.warning("worker_gone", extra={"reason": str(error)})
            return None

    def _end(self, linger_s: float) -> None:
        self._closed = True
        self._socket.close(linger=int(linger_s * 1000))
        self._context.term()
