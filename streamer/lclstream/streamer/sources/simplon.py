"""Images that a detector, or another streamer, sends through ZeroMQ."""

import logging
import time
from collections.abc import Iterator, Mapping
from typing import ClassVar

import zmq

from lclstream.core.errors import DecodeError, InvalidConfigError, UnavailableError
from lclstream.streamer.config import Parameters
from lclstream.streamer.config.more_sources import SimplonEventSourceConfig
from lclstream.streamer.events import Event
from lclstream.streamer.sources.simplon_series import SeriesBook
from lclstream.streamer.sources.xtc2_watch import Stop

logger = logging.getLogger(__name__)

# How often to look whether the run shall end, while nothing comes.
LOOK_INTERVAL_S = 0.2


class SimplonEventSource:
    """Takes images from a PULL socket, until the end of a series.

    The sender hands every message to one of those that pull. So one rank does, unless the
    configuration lets the ranks share the images.

    Resource handling: owns a socket and its context; what was read from an event stays valid.

    Error handling: `DecodeError` when a message is damaged, `UnavailableError` when nothing
    comes for too long. `counts` says what came.
    """

    arrays_stay: ClassVar[bool] = True
    """What was read from an event is valid as long as it is held."""

    def __init__(self, parameters: Parameters, rank: int, size: int) -> None:
        """Connect or listen.

        Raises:
            InvalidConfigError: an address cannot be used, or several ranks may not share.
        """
        config = parameters.event_source
        if not isinstance(config, SimplonEventSourceConfig):
            raise InvalidConfigError(f"not a SimplonEventSource: {config.type}")
        if size > 1 and config.ranks == "one":
            raise InvalidConfigError(
                "SimplonEventSource: a message reaches one rank only; run a single rank, or say"
                " `ranks: share` when the images may be shared without start and end"
            )
        del rank
        self._config, self._urls = config, parameters.source_identifier
        urls = [part.strip() for part in self._urls.split(",") if part.strip()]
        self._may_overtake = len(urls) > 1 or config.role == "server"
        self._book = SeriesBook(config)
        self._stop: Stop | None = None
        self._messages = self._bytes = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.set(zmq.RCVHWM, config.queue_messages)
        self._socket.set(zmq.MAXMSGSIZE, config.max_message_bytes)
        self._socket.set(zmq.LINGER, 0)
        self.addresses: list[str] = []
        """Where it connects to or listens, the ports as they are."""
        try:
            for url in urls:
                (self._socket.bind if config.role == "server" else self._socket.connect)(url)
                self.addresses.append(self._socket.get_string(zmq.LAST_ENDPOINT))
        except zmq.ZMQError as error:
            self.close()
            verb = "listen on" if config.role == "server" else "connect to"
            raise InvalidConfigError(f"cannot {verb} {url}: {error.strerror}") from None

    @property
    def counts(self) -> Mapping[str, int]:
        """What came so far: messages, bytes, series, images, images that are missing."""
        return {"messages": self._messages, "bytes": self._bytes, **self._book.counts}

    def interrupt_by(self, stop: Stop) -> None:
        """Let a wish to end cut every wait short."""
        self._stop = stop

    def __iter__(self) -> Iterator[Event]:
        """Yield the images as they come.

        Raises:
            DecodeError: a message is damaged; says which.
            UnavailableError: nothing came for too long.
        """
        while not self._is_over():
            parts = self._next(self._patience_s())
            if parts is None:
                if not self._may_end():
                    raise self._silence()
                break
            self._messages += 1
            self._bytes += sum(part.nbytes for part in parts)
            try:
                event = self._book.take(parts)
            except DecodeError as error:
                text = f"{self._urls}: message {self._messages}: {error}"
                raise DecodeError(text) from None
            if event is not None:
                yield event
        self._book.finish()

    def close(self) -> None:
        """Disconnect; what was not read is gone."""
        if not self._socket.closed:
            self._socket.close(linger=0)
            self._context.term()

    def _is_over(self) -> bool:
        """Return whether no message needs to be waited for any more."""
        book, wanted = self._book, self._config.series
        if self._config.ranks == "share" or not 0 < wanted <= book.ended:
            return False
        return book.missing == 0 and (book.is_counted or not self._may_overtake)

    def _patience_s(self) -> float:
        """Return how long the next message may take."""
        if not self._messages:
            return self._config.start_timeout_s
        is_late = 0 < self._config.series <= self._book.ended
        return self._config.late_s if is_late else self._config.idle_timeout_s

    def _may_end(self) -> bool:
        """Return whether it is no fault that nothing comes."""
        if self._stop is not None and self._stop.wait(0):
            return True
        if not self._messages:
            return False
        if self._config.ranks == "share" or 0 < self._config.series <= self._book.ended:
            return True
        return not self._config.series and not self._book.under_way

    def _silence(self) -> UnavailableError:
        waited = self._patience_s()
        if not self._messages:
            return UnavailableError(f"nothing came from {self._urls} within {waited} s")
        limit = self._config.max_message_bytes
        return UnavailableError(
            f"nothing came from {self._urls} for {waited} s, and {self._book.state()}"
            f" (a message above {limit} bytes is not taken)"
        )

    def _next(self, patience_s: float) -> list[memoryview] | None:
        """Return the parts of the next message, None when none came or the end was asked for."""
        deadline = time.monotonic() + patience_s
        while (left_s := deadline - time.monotonic()) > 0:
            if self._socket.poll(int(1000 * min(left_s, LOOK_INTERVAL_S)) + 1):
                frames = self._socket.recv_multipart(copy=False)
                return [memoryview(frame.buffer) for frame in frames]
            if self._stop is not None and self._stop.wait(0):
                return None
        return None
