"""How a connection begins: its first byte tells what it speaks, inside TLS once more.

    00  SP     ff  ZMTP     16  TLS, and inside it one of the others

Nothing is read beyond the handshake: what follows belongs to the first message.
"""

import secrets
import socket
import ssl
from dataclasses import dataclass

from lclstream.buffer.control import Frame, frame
from lclstream.buffer.sp import HANDSHAKE_BYTES, Handshake, Protocol, handshake
from lclstream.buffer.transport import PlainWire, TlsWire, Wire
from lclstream.buffer.zmtp import ZmtpHandshake
from lclstream.core.errors import DecodeError, UntrustedPeerError

FIRST_OF_SP = b"\x00"
FIRST_OF_ZMTP = b"\xff"
FIRST_OF_TLS = b"\x16"
NONCE_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms connections are let in."""

    tls: ssl.SSLContext | None = None
    """Of a server; without it TLS is refused."""
    require_tls: bool = False
    allowed_names: tuple[str, ...] = ()
    """Names of which a peer's certificate must bear one; empty: any that is trusted, or none.
    A connection without TLS shows no certificate, so it is refused then."""

    def authorise(self, names: list[str]) -> str:
        """Return the name under which a peer is let in; empty if it showed no certificate.

        Raises:
            UntrustedPeerError: it bears none of the names that are allowed.
        """
        if not self.allowed_names:
            return names[0] if names else ""
        for name in names:
            if name in self.allowed_names:
                return name
        shown = f"a certificate for {', '.join(names)}" if names else "no certificate"
        raise UntrustedPeerError(f"a peer with {shown} is not on the list of allowed names")


class Opening:
    """Sees one connection through its handshake.

    Args:
        sock: an accepted connection, non-blocking.
        protocol: what this side is.
        terms: who is let in.
    """

    def __init__(self, sock: socket.socket, protocol: Protocol, terms: Terms) -> None:
        self.wire: Wire = PlainWire(sock)
        self.framing = ""
        """`sp` or `zmtp`, once that is known."""
        self.identity = ""
        """The name in the peer's certificate, if it showed one."""
        self.handshake_bytes = 0
        """What was written in the handshake."""
        self.nonce: int | None = None
        """What a producer was greeted with."""
        self._sock = sock
        self._protocol = protocol
        self._terms = terms
        self._begun = False
        self._securing: TlsWire | None = None
        self._handshake: Handshake | ZmtpHandshake | None = None

    def read(self) -> bool:
        """Go on as far as possible; return whether the handshake is complete.

        Raises:
            DecodeError: the peer speaks something else, or has closed.
            UntrustedPeerError: it is not to be let in.
            OSError: the connection is broken, or (BlockingIOError) more has to come.
        """
        if not self._begun:
            self._begin()
        if self._securing is not None and self._securing.shake_hands():
            self.identity = self._terms.authorise(self._securing.peer_names())
            self.wire, self._securing = self._securing, None
        if self._handshake is None:
            first = self._receive(1)
            self._handshake = self._answer(first)
            self._hear(self._handshake, first)
        # Inside TLS epoll does not tell of what was decrypted already: go on until nothing is left.
        while missing := self._handshake.missing_bytes:
            self._hear(self._handshake, self._receive(missing))
        return True

    def _begin(self) -> None:
        first = self._sock.recv(1, socket.MSG_PEEK)
        self._begun = bool(first)
        if first == FIRST_OF_TLS:
            if self._terms.tls is None:
                raise DecodeError("TLS is not served here: dial tcp://, or give the buffer TLS")
            self._securing = TlsWire(self._sock, self._terms.tls)
        elif self._terms.require_tls or self._terms.allowed_names:
            raise DecodeError(f"TLS is required: dial tls+tcp://, got {first!r}")

    def _receive(self, at_most: int) -> bytes:
        data = bytearray(at_most)
        count = self.wire.recv_into(memoryview(data))
        if not count:
            raise DecodeError("closed before the handshake")
        return bytes(data[:count])

    def _answer(self, first: bytes) -> Handshake | ZmtpHandshake:
        """Choose the protocol and send the first word of this side."""
        if first == FIRST_OF_ZMTP:
            self.framing = "zmtp"
            return ZmtpHandshake(self._protocol)
        if first != FIRST_OF_SP:
            raise DecodeError(f"unknown protocol that begins with {first!r}")
        self.framing = "sp"
        self._send(handshake(self._protocol) + self._greeting())
        self.handshake_bytes = HANDSHAKE_BYTES
        return Handshake(self._protocol.peer)

    def _greeting(self) -> bytes:
        """Return what follows our handshake; an NNG producer discards it."""
        if self._protocol is Protocol.PUSH:
            return b""
        self.nonce = int.from_bytes(secrets.token_bytes(NONCE_BYTES))
        return frame(Frame.HELLO, self.nonce)

    def _hear(self, peer: Handshake | ZmtpHandshake, data: bytes) -> None:
        if isinstance(peer, Handshake):
            peer.received(data)
            return
        try:
            peer.received(data)
        finally:
            # A peer that is refused sees at least what it has spoken to.
            self.handshake_bytes += len(peer.to_send)
            self._send(bytes(peer.to_send))
            peer.to_send.clear()

    def _send(self, data: bytes) -> None:
        # So little always fits into a connection on which nothing was sent.
        if data and self.wire.send(memoryview(data)) < len(data):
            raise ConnectionAbortedError("the handshake does not fit into the connection")
