"""The listening sockets of a buffer whose connections are passed on to lanes."""

import asyncio
import logging
import socket
from collections.abc import Callable

from lclstream.buffer.addresses import Address, listen, listening_url
from lclstream.buffer.config import BufferConfig
from lclstream.buffer.door import ACCEPT_PAUSE_S, ACCEPTS_PER_EVENT, GONE, OUT_OF_RESOURCES
from lclstream.buffer.orders import Connection
from lclstream.buffer.peers import Side

logger = logging.getLogger(__name__)

Take = Callable[[socket.socket, Connection], None]

# How long connections are left in the backlog when the lanes are behind.
PRESSED_PAUSE_S = 0.02


class Reception:
    """Listens for a buffer.

    Resource handling: the constructor binds the addresses; `close` gives each side up, and what
    was not passed on is closed with it.

    Raises:
        InvalidConfigError: an address cannot be bound.
    """

    def __init__(self, config: BufferConfig) -> None:
        self.urls: dict[Side, list[str]] = {side: [] for side in Side}
        self._listeners: dict[Side, list[socket.socket]] = {side: [] for side in Side}
        self._only_tls: set[socket.socket] = set()
        self._take: Take | None = None
        self._is_pressed: Callable[[], bool] = bool
        try:
            for side, addresses in ((Side.IN, config.inputs), (Side.OUT, config.outputs)):
                for address in addresses:
                    self._listen(side, address, config.advertised_host)
        except BaseException:
            self.abandon()
            raise

    def open(
        self,
        take: Take,
        is_pressed: Callable[[], bool],
    ) -> None:
        """Pass on every connection from now on.

        Args:
            take: takes over an accepted connection.
            is_pressed: tells whether new ones had better wait.
        """
        self._take, self._is_pressed = take, is_pressed
        for side in Side:
            for listener in self._listeners[side]:
                self._watch(side, listener)

    def close(self, side: Side) -> None:
        """Refuse new connections of a side; who has connected already is passed on."""
        for listener in self._listeners[side]:
            self._ignore(listener)
            self._accept(side, listener, at_most=1 << 30, is_last=True)
            listener.close()
        self._listeners[side] = []

    def abandon(self) -> None:
        """Close everything; passes nothing on."""
        for side in Side:
            for listener in self._listeners[side]:
                if self._take is not None:
                    self._ignore(listener)
                listener.close()
            self._listeners[side] = []

    def _listen(self, side: Side, address: Address, advertised_host: str | None) -> None:
        listener = listen(address)
        self._listeners[side].append(listener)
        if address.tls:
            self._only_tls.add(listener)
        self.urls[side].append(listening_url(listener, address, advertised_host))

    def _watch(self, side: Side, listener: socket.socket) -> None:
        if listener in self._listeners[side]:
            asyncio.get_running_loop().add_reader(listener, self._accept, side, listener)

    def _ignore(self, listener: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(listener)

    def _accept(
        self,
        side: Side,
        listener: socket.socket,
        at_most: int = ACCEPTS_PER_EVENT,
        *,
        is_last: bool = False,
    ) -> None:
        if self._take is None:
            return
        for _ in range(at_most):
            if self._is_pressed() and not is_last:
                self._pause(side, listener, PRESSED_PAUSE_S)
                return
            try:
                sock, place = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in GONE:
                    logger.warning("accept_failed", extra={"side": side, "reason": str(error)})
                    continue
                if error.errno not in OUT_OF_RESOURCES:
                    raise
                logger.error("accept_paused", extra={"side": side, "reason": str(error)})  # noqa: TRY400
                if not is_last:
                    self._pause(side, listener, ACCEPT_PAUSE_S)
                return
            connection = Connection(
                side=side,
                address=f"{place[0]}:{place[1]}",
                only_tls=listener in self._only_tls,
            )
            self._take(sock, connection)

    def _pause(self, side: Side, listener: socket.socket, pause_s: float) -> None:
        self._ignore(listener)
        asyncio.get_running_loop().call_later(pause_s, self._watch, side, listener)
