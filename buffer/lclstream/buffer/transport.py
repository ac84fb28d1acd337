"""What bytes go through: a connection as it is, or inside TLS.

TLS works on memory: what comes is read from the socket in large pieces and decrypted from there,
what goes is encrypted there and written at once. That costs less than letting OpenSSL read a
record at a time, and it never blocks.
"""

import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from errno import ECONNABORTED, ECONNRESET
from typing import Any, Protocol, cast

from lclstream.buffer import tcp
from lclstream.core.tls import Credentials

# Read from a socket at once.
READ_BYTES = 256 * 1024
HANDSHAKE_READ_BYTES = 16 * 1024
# Encrypted before it is written, and small pieces that are put together for it.
ENCRYPTED_BYTES = 256 * 1024
RECORD_BYTES = 16 * 1024
# Header, type and tag of a record, whatever the cipher (but for one that nobody uses).
RECORD_OVERHEAD_BYTES = 22
GATHERED_BYTES = 4 * RECORD_BYTES
# TLS itself has little to say besides the data; a peer that makes it say more does not read.
MAX_UNASKED_BYTES = 64 * 1024
# How finely it is remembered what the encrypted bytes on their way are.
MAX_MARKS = 1024


class CutOffError(ConnectionResetError):
    """TCP has ended and TLS has not: somebody may have cut the stream off.

    It is no proof of that. NNG's TLS closes its connection without waiting until its word of
    the end has gone out, so it mostly does not.
    """

    def __init__(self) -> None:
        super().__init__(ECONNRESET, "closed without the end of TLS")


class Wire(Protocol):
    """A non-blocking connection, whatever protects it.

    Error handling: BlockingIOError means that nothing can be done now; any other OSError that
    the connection is of no more use.
    """

    sock: socket.socket
    """For epoll and what the kernel knows; not for data."""
    can_splice: bool
    """Whether the kernel may move bytes by itself."""

    def recv_into(self, view: memoryview, /) -> int:
        """Read into memory; 0 is the end of the stream."""

    def send(self, view: memoryview, /) -> int:
        """Write; what was not written must come first the next time, unchanged and undiminished."""

    def sendmsg(self, views: Sequence[memoryview], /) -> int:
        """Write several pieces as if they were one; as `send`."""

    def pending(self) -> bool:
        """Return whether something can be read of which epoll does not tell."""

    def end(self) -> bool:
        """Tell the peer that nothing more will be sent.

        Returns:
            Whether it is told; if not, ask again when the connection can be written to.
        """

    def acknowledged_bytes(self, sent_bytes: int) -> int:
        """Return how much of what was sent, so much in all, the peer's kernel has."""


class PlainWire:
    """A TCP connection as it is.

    Args:
        sock: non-blocking.
        dialled: whether this side connected.
    """

    can_splice = True

    def __init__(self, sock: socket.socket, *, dialled: bool = False) -> None:
        self.sock = sock
        self._dialled = dialled
        # The socket's own methods: nothing comes in between.
        self.recv_into: Callable[[memoryview], int] = sock.recv_into
        self.send: Callable[[memoryview], int] = sock.send
        self.sendmsg: Callable[[Sequence[memoryview]], int] = sock.sendmsg

    def pending(self) -> bool:
        """Return False: epoll tells of everything."""
        return False

    def end(self) -> bool:
        """Half-close."""
        self.sock.shutdown(socket.SHUT_WR)
        return True

    def acknowledged_bytes(self, sent_bytes: int) -> int:
        """Return how much of what was sent, so much in all, the peer's kernel has."""
        return tcp.acknowledged_bytes(self.sock, sent_bytes, dialled=self._dialled)


class TlsWire:
    """A TCP connection inside TLS; `shake_hands` comes before anything else.

    Resource handling: holds what one read has brought, and what was encrypted at once.

    Args:
        sock: non-blocking.
        context: of a server, or of a client.
        server_name: whom a client has dialled; None for a server.
    """

    can_splice = False

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, server_name: str | None = None
    ) -> None:
        self.sock = sock
        self._dialled = server_name is not None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, not self._dialled, server_name)
        self._scratch = memoryview(bytearray(HANDSHAKE_READ_BYTES))
        self._more = False
        self._closed = False
        """Whether the peer has said that nothing more will come."""
        self._early = b""
        """What was decrypted before it was asked for."""
        self._unwritten = memoryview(b"")
        """Encrypted."""
        self._owed = 0
        """Bytes given to `send` that are encrypted and not all written: not reported yet."""
        self._ending = False
        self._raw_bytes = self._plain_bytes = 0
        """Written, encrypted and as given."""
        self._marks: deque[tuple[int, int]] = deque()
        """Values of both that belong together."""
        self._passed = (0, 0)
        """The last of them that the peer's kernel has."""

    def shake_hands(self) -> bool:
        """Go on with the handshake; return whether it is complete.

        Raises:
            OSError: it failed, or (BlockingIOError) the peer has to say something first.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                if not self._fill():
                    raise ConnectionAbortedError(ECONNABORTED, "closed in the handshake") from None
            except ssl.SSLError:
                # The peer may read why.
                self._flush()
                raise
            else:
                self._flush()
                self._scratch = memoryview(bytearray(READ_BYTES))
                return True

    def peer_names(self) -> list[str]:
        """Return the names in the peer's certificate; none if it showed none."""
        return certified_names(self._tls.getpeercert() or {})

    def recv_into(self, view: memoryview) -> int:
        """Read into memory: what is there, and what one more read of the socket brings.

        Raises:
            CutOffError: the connection has ended without TLS saying so.
            OSError: it is broken.
        """
        count = self._decrypt(view)
        if count == len(view) or self._closed:
            return count
        try:
            is_open = self._fill()
        except BlockingIOError:
            if count:
                return count
            raise
        if is_open:
            count += self._decrypt(view[count:])
        elif not count:
            raise CutOffError
        if not count and not self._closed:
            raise BlockingIOError
        return count

    def pending(self) -> bool:
        """Return whether the last read may have left something behind."""
        return self._more

    def send(self, view: memoryview) -> int:
        """Write; return how much was written."""
        return self.sendmsg((view,))

    def sendmsg(self, views: Sequence[memoryview]) -> int:
        """Write several pieces as if they were one; as `send`."""
        done = self._owed
        if not self._flush():
            raise BlockingIOError
        self._written(done)
        self._owed = 0
        rest = _skip(views, done)
        while rest:
            piece, rest = _next_piece(rest)
            self._encrypt(piece)
            if not self._flush():
                self._owed = len(piece)
                break
            self._written(len(piece))
            done += len(piece)
        if not done and self._owed:
            raise BlockingIOError
        return done

    def end(self) -> bool:
        """Tell the peer that nothing more will be sent.

        Returns:
            Whether it is told; if not, ask again when the connection can be written to.
        """
        if not self._ending:
            self._ending = True
            # OpenSSL takes data that has come for a fault then.
            self._early = self._read_all()
            # The peer has not said the same, and need not.
            with suppress(ssl.SSLError):
                self._tls.unwrap()
        if not self._flush():
            return False
        self.sock.shutdown(socket.SHUT_WR)
        return True

    def acknowledged_bytes(self, sent_bytes: int) -> int:
        """Return how much of what was sent, so much in all, the peer's kernel has."""
        raw = tcp.acknowledged_bytes(self.sock, self._raw_bytes, dialled=self._dialled)
        while self._marks and self._marks[0][0] <= raw:
            self._passed = self._marks.popleft()
        acknowledged = self._passed[1]
        if self._marks:
            (raw_begin, begin), (raw_end, end) = self._passed, self._marks[0]
            acknowledged += _plain_within(raw - raw_begin, raw_end - raw_begin, end - begin)
        return min(acknowledged, sent_bytes)

    def _fill(self) -> bool:
        """Read from the socket; return whether anything came before its end."""
        count = self.sock.recv_into(self._scratch)
        if count:
            self._incoming.write(self._scratch[:count])
        return count > 0

    def _decrypt(self, view: memoryview) -> int:
        """Decrypt what has come, as far as it fits."""
        count = min(len(self._early), len(view))
        if count:
            view[:count], self._early = self._early[:count], self._early[count:]
        size, read = len(view), cast("Callable[[int, memoryview], int]", self._tls.read)
        try:
            # A record at a time.
            while count < size:
                came = read(size - count, view[count:])
                if not came:
                    self._closed = True
                    break
                count += came
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._closed = True
        except ssl.SSLError:
            if not count:
                raise
        self._more = count == size
        if self._outgoing.pending:
            self._answer()
        return count

    def _read_all(self) -> bytes:
        taken = bytearray()
        scratch = memoryview(bytearray(RECORD_BYTES))
        while count := self._decrypt(scratch):
            taken += scratch[:count]
        return bytes(taken)

    def _answer(self) -> None:
        """Send what TLS itself has to say."""
        if not self._flush() and self._outgoing.pending > MAX_UNASKED_BYTES:
            raise ConnectionAbortedError(ECONNABORTED, "asks for answers and does not read them")

    def _encrypt(self, piece: memoryview) -> None:
        position = 0
        while position < len(piece):
            position += self._tls.write(piece[position:])

    def _flush(self) -> bool:
        """Write what is encrypted; return whether that is all gone."""
        try:
            while True:
                if not self._unwritten:
                    if not self._outgoing.pending:
                        return True
                    self._unwritten = memoryview(self._outgoing.read())
                count = self.sock.send(self._unwritten)
                self._raw_bytes += count
                self._unwritten = self._unwritten[count:]
        except BlockingIOError:
            return False

    def _written(self, count: int) -> None:
        """Take note that so much of what was given is written whole."""
        if not count:
            return
        self._plain_bytes += count
        self._marks.append((self._raw_bytes, self._plain_bytes))
        if len(self._marks) > MAX_MARKS:
            # Every second one: what is acknowledged is told a little later then.
            self._marks = deque(list(self._marks)[1::2])


def _plain_within(raw: int, raw_size: int, size: int) -> int:
    """Return how much is in the whole records at the beginning of what was encrypted at once.

    Args:
        raw: how much of it the peer's kernel has.
        raw_size: of how much, encrypted.
        size: and as it was given.
    """
    records = -(-size // RECORD_BYTES)
    if raw_size != size + records * RECORD_OVERHEAD_BYTES:
        # TLS said something else in between.
        return 0
    return raw // (RECORD_BYTES + RECORD_OVERHEAD_BYTES) * RECORD_BYTES


def _skip(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """Return views without their first bytes."""
    rest = []
    for view in views:
        if count < len(view):
            rest.append(view[count:] if count else view)
        count = max(count - len(view), 0)
    return rest


def _next_piece(views: list[memoryview]) -> tuple[memoryview, list[memoryview]]:
    """Return what to encrypt next, and the rest: small pieces are put together.

    A record for each would cost more than the copy.
    """
    first = views[0]
    if len(first) >= RECORD_BYTES or len(views) == 1:
        return first[:ENCRYPTED_BYTES], _skip(views, min(len(first), ENCRYPTED_BYTES))
    parts: list[memoryview] = []
    size = 0
    for view in views:
        part = view[: GATHERED_BYTES - size]
        parts.append(part)
        size += len(part)
        if size == GATHERED_BYTES:
            break
    return memoryview(b"".join(parts)), _skip(views, size)


class ClientCertificates(StrEnum):
    """Whether a server wants to see the certificate of a client."""

    REQUIRED = "required"
    OPTIONAL = "optional"
    """One that is shown must be trusted."""
    NONE = "none"


VERIFY_MODES = {
    ClientCertificates.REQUIRED: ssl.CERT_REQUIRED,
    ClientCertificates.OPTIONAL: ssl.CERT_OPTIONAL,
    ClientCertificates.NONE: ssl.CERT_NONE,
}


def server_context(
    credentials: Credentials, clients: ClientCertificates = ClientCertificates.REQUIRED
) -> ssl.SSLContext:
    """Return the TLS context of a buffer.

    Raises:
        IdentityError: the credentials cannot be used.
    """
    context = credentials.server_context()
    context.verify_mode = VERIFY_MODES[clients]
    # Nobody resumes. A producer would not read the tickets, and then close with a reset.
    context.num_tickets = 0
    return context


def certified_names(certificate: Mapping[str, Any]) -> list[str]:
    """Return the names in a certificate: alternative names of any kind, then common names."""
    names = [value for _, value in certificate.get("subjectAltName", ())]
    for attributes in certificate.get("subject", ()):
        names += [value for name, value in attributes if name == "commonName"]
    return names
