"""Pushes messages to ZeroMQ receivers."""

import errno
import logging

import numpy as np
import zmq

from lclstream.core.errors import DeliveryError, InvalidConfigError, UnavailableError
from lclstream.streamer.config import BinaryDataStreamingDataHandlerConfig
from lclstream.streamer.config.handlers import port_range
from lclstream.streamer.message import Message

logger = logging.getLogger(__name__)

# Upstream's high-water mark. One message at a time is under way here anyway.
HIGH_WATER_MARK = 5


class ZmqPushHandler:
    """One PUSH socket, which shares the messages between its addresses.

    A message is handed over when the library has written it into a connection, not merely
    queued it: so its memory can be used again, and none is left in a queue at the end. What
    the receiver's machine then does with it cannot be known with ZeroMQ.

    Receivers expect one frame. A message that lies in one piece is sent from where it lies;
    the pieces of another one are copied together first, for the library would make a frame of
    each: into the same memory every time, which is as large as the largest of them.

    Resource handling: owns a context with its I/O thread, and a monitor.
    """

    def __init__(self, config: BinaryDataStreamingDataHandlerConfig, urls: list[str]) -> None:
        """Connect or bind.

        Raises:
            InvalidConfigError: an address cannot be used.
        """
        self._config = config
        self._listens = config.role == "server"
        self._names = ", ".join(urls)
        self._room = OnePiece()
        self._connected = False
        self._closed = False
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        # Without a connection a message must wait here, not in a queue.
        self._socket.set(zmq.IMMEDIATE, 1)
        self._socket.set(zmq.SNDHWM, HIGH_WATER_MARK)
        self._socket.set(zmq.LINGER, 0)
        # Every message, however small, is tracked until it is in a connection.
        self._socket.copy_threshold = 0
        if config.buffer:
            self._socket.set(zmq.SNDBUF, config.buffer)
        self.urls: list[str] = []
        """The addresses in use, with the real port in place of 0."""
        try:
            for url in urls:
                self.urls.append(open_url(self._socket, url, listens=self._listens))
        except InvalidConfigError:
            self.abort()
            raise
        if self._listens:
            logger.info("listening", extra={"urls": self.urls})

    def send(self, message: Message) -> None:
        """Send one message; it is in a connection when this returns.

        Raises:
            UnavailableError: nobody took it in time.
            DeliveryError: the receiver went away.
        """
        self._send(self._room.joined(message))

    def _send(self, frame: memoryview) -> None:
        self._check_connection()
        timeout_s = self._config.send_timeout_s
        if not self._connected and not self._listens:
            timeout_s = min(timeout_s, self._config.connect_timeout_s)
        self._socket.set(zmq.SNDTIMEO, int(timeout_s * 1000))
        try:
            tracker = self._socket.send(frame, copy=False, track=True)
        except zmq.Again:
            what = "message taken" if self._connected else "connection"
            raise UnavailableError(f"no {what} within {timeout_s} s: {self._names}") from None
        self._connected = True
        try:
            tracker.wait(self._config.send_timeout_s)
        except zmq.NotDone:
            raise DeliveryError(
                f"1 message not taken within {self._config.send_timeout_s} s: {self._names}", 1
            ) from None

    def close(self, *, complete: bool = True) -> None:
        """Let the library end its connections properly.

        Raises:
            DeliveryError: the receiver went away before.
            UnavailableError: nobody took the end of the stream.
        """
        if self._closed:
            return
        try:
            self._check_connection()
            if complete and self._config.end_of_stream:
                for _ in self.urls:
                    self._send(memoryview(b""))
        finally:
            self._end(self._config.flush_timeout_s)

    def abort(self) -> None:
        """Close the connections without waiting."""
        if not self._closed:
            self._end(0)

    def _check_connection(self) -> None:
        # Receivers of a listening socket may come and go.
        if not self._listens and self._monitor.poll(0):
            self._monitor.recv_multipart()
            raise DeliveryError(
                f"connection to {self._names} lost: the messages that it had not read are gone", 1
            )

    def _end(self, linger_s: float) -> None:
        self._closed = True
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=int(linger_s * 1000))
        self._context.term()


class OnePiece:
    """Memory in which the pieces of a message come together."""

    def __init__(self) -> None:
        self._room = bytearray()

    def joined(self, message: Message) -> memoryview:
        """Return a message in one piece; a copy of it is valid until the next call."""
        if len(message.parts) == 1:
            return message.parts[0]
        size_bytes = message.nbytes
        if len(self._room) < size_bytes:
            self._room = bytearray(size_bytes)
        whole = memoryview(self._room)[:size_bytes]
        end = 0
        for part in message.parts:
            begin, end = end, end + part.nbytes
            # Large ones without holding up other threads.
            np.copyto(np.frombuffer(whole[begin:end], np.uint8), np.frombuffer(part, np.uint8))
        return whole


def open_url(opened: "zmq.Socket[bytes]", url: str, *, listens: bool) -> str:
    """Connect a socket to an address, or bind it there; return the address with its real port.

    Raises:
        InvalidConfigError: that is not possible.
    """
    for each in _single(url):
        try:
            (opened.bind if listens else opened.connect)(each)
        except zmq.ZMQError as error:
            if error.errno == errno.EADDRINUSE and each != _single(url)[-1]:
                continue
            verb = "listen on" if listens else "connect to"
            raise InvalidConfigError(
                f"cannot {verb} {url}: {zmq.strerror(error.errno or 0)}"
            ) from None
        break
    return opened.get_string(zmq.LAST_ENDPOINT) if listens else url


def _single(url: str) -> list[str]:
    """Return the addresses of single ports that a range means."""
    if not url.startswith("tcp://"):
        return [url]
    host = url.rpartition(":")[0]
    return [f"{host}:{port}" for port in port_range(url)]
