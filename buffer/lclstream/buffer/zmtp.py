"""The ZeroMQ protocol ZMTP 3 over a byte stream, without any input or output.

Both sides send a greeting of 64 bytes and, once they have seen the other one's, the command
READY with their socket type. Then the pushing side sends frames, `flags u8 | size u8`, or
`flags u8 | size u64` (big endian) for more than 255 bytes, and the body. Only the mechanism
NULL is spoken: encryption and proof of identity are TLS's affair.

    greeting  ff 00*8 7f | 03 00 | "NULL" 00*16 | 00 | 00*31
    READY     04 1a | 05 "READY" | 0b "Socket-Type" | 00 00 00 04 | "PULL" or "PUSH"

A message of several frames is refused: a frame of its own it would be torn apart, and joined it
would not be what was sent.
"""

import struct
from enum import IntFlag

from lclstream.buffer.control import Frame
from lclstream.buffer.sp import HEADER, Protocol
from lclstream.core.errors import DecodeError

GREETING_BYTES = 64
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
SIGNATURE_END = 9
VERSION = 10
MECHANISM = slice(12, 32)
MAJOR = 3

SHORT_HEADER_BYTES = 2
LONG_HEADER_BYTES = 9
SHORT_BYTES = 256
"""Bodies from this size on have long headers."""
# What commands are for fits in less.
MAX_COMMAND_BYTES = 4096
PING = b"\x04PING"
PING_TTL_BYTES = 2
MAX_CONTEXT_BYTES = 16
# A peer that asks faster than it reads does not get all answers.
MAX_ANSWER_BYTES = 1024


class Flag(IntFlag):
    """The bits of a frame's first byte."""

    MORE = 1
    LONG = 2
    COMMAND = 4


LONG_DATA = Flag.LONG.value
SOCKET_TYPES = {Protocol.PUSH: b"PUSH", Protocol.PULL: b"PULL"}
HANDSHAKE_BYTES = GREETING_BYTES + 28
"""What each side sends before the first message."""


def header(size_bytes: int, flags: int = 0) -> bytes:
    """Return what precedes a body of that size."""
    if size_bytes < SHORT_BYTES:
        return bytes((flags, size_bytes))
    return bytes((flags | LONG_DATA,)) + HEADER.pack(size_bytes)


def repeats(view: memoryview, start: int, size_bytes: int, stride: int, count: int) -> bool:
    """Return whether the same bytes come `count` times, so many bytes apart.

    A stream has mostly messages of one size. Then one look at each byte of all headers takes
    the place of a look at each header.
    """
    stop = start + count * stride
    for place in range(start + size_bytes - 1, start - 1, -1):
        if view[place:stop:stride].tobytes() != view[place : place + 1].tobytes() * count:
            return False
    return True


def command(name: bytes, data: bytes) -> bytes:
    """Return a command as it goes over the wire."""
    body = bytes((len(name),)) + name + data
    return header(len(body), Flag.COMMAND) + body


def ready(protocol: Protocol) -> bytes:
    """Return the command that a socket of this type sends after its greeting."""
    kind = SOCKET_TYPES[protocol]
    return command(b"READY", b"\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind)


def pong(body: bytes | memoryview) -> bytes:
    """Return the answer to a command, empty if it wants none."""
    body = bytes(body)
    if not body.startswith(PING):
        return b""
    context = body[len(PING) + PING_TTL_BYTES :][:MAX_CONTEXT_BYTES]
    return command(b"PONG", context)


def socket_type(body: bytes) -> bytes:
    """Return the socket type that a READY command names.

    Raises:
        DecodeError: it is no READY command, or names none.
    """
    name, data = body[1 : 1 + body[0]], body[1 + body[0] :]
    if name != b"READY":
        raise DecodeError(f"expected the ZMTP command READY, got {body[:64]!r}")
    while data:
        key, data = data[1 : 1 + data[0]], data[1 + data[0] :]
        if len(data) < 4:
            break
        (size,) = struct.unpack_from(">I", data)
        value, data = data[4 : 4 + size], data[4 + size :]
        if key.lower() == b"socket-type":
            return value
    raise DecodeError(f"a ZMTP peer does not name its socket type: {body[:64]!r}")


class ZmtpHandshake:
    """Greets a peer and makes sure that it is the one that is wanted.

    Tell `received` what came; send what `to_send` holds then, and empty it.

    Args:
        protocol: what this side is.
    """

    handshake_bytes = HANDSHAKE_BYTES

    def __init__(self, protocol: Protocol) -> None:
        # A peer may wait for all of it after its own first ten bytes.
        self.to_send = bytearray(GREETING)
        self._protocol = protocol
        self._greeting = b""
        self._ready = b""

    @property
    def missing_bytes(self) -> int:
        """How much to read at most: what follows already belongs to the first message."""
        if len(self._greeting) < GREETING_BYTES:
            return GREETING_BYTES - len(self._greeting)
        return self._ready_bytes() - len(self._ready)

    def received(self, data: bytes) -> bool:
        """Take bytes in, not more than `missing_bytes`; return whether the handshake is complete.

        Raises:
            DecodeError: the peer wants something else, or is of the wrong socket type.
        """
        if len(self._greeting) < GREETING_BYTES:
            self._greeting += data
            self._check_greeting(self._greeting)
            if len(self._greeting) == GREETING_BYTES:
                self.to_send += ready(self._protocol)
            return False
        self._ready += data
        if self.missing_bytes:
            return False
        self._check_ready()
        return True

    def _check_greeting(self, seen: bytes) -> None:
        if seen[0] != GREETING[0] or (len(seen) > SIGNATURE_END and not seen[SIGNATURE_END] & 1):
            raise DecodeError(f"expected a greeting of ZMTP 3, got {seen[:16]!r}")
        if len(seen) > VERSION and seen[VERSION] < MAJOR:
            raise DecodeError(f"expected ZMTP {MAJOR}, got the older revision {seen[VERSION]}")
        if len(seen) >= MECHANISM.stop and seen[MECHANISM] != GREETING[MECHANISM]:
            name = seen[MECHANISM].rstrip(b"\0").decode("latin-1")
            raise DecodeError(
                f"expected the ZMTP mechanism 'NULL', got {name!r}: encrypt with TLS instead"
            )

    def _ready_bytes(self) -> int:
        """Return the size of the READY command as far as it is known."""
        seen = self._ready
        if not seen:
            return SHORT_HEADER_BYTES
        if seen[0] & ~Flag.LONG != Flag.COMMAND:
            raise DecodeError(f"expected a ZMTP command, got a frame with flags {seen[0]:#04x}")
        if not seen[0] & Flag.LONG:
            size = seen[1] if len(seen) > 1 else 0
            return SHORT_HEADER_BYTES + size
        if len(seen) < LONG_HEADER_BYTES:
            return LONG_HEADER_BYTES
        (size,) = HEADER.unpack_from(seen, 1)
        if size > MAX_COMMAND_BYTES:
            raise DecodeError(f"a ZMTP command of {size} bytes is above {MAX_COMMAND_BYTES}")
        return LONG_HEADER_BYTES + int(size)

    def _check_ready(self) -> None:
        start = LONG_HEADER_BYTES if self._ready[0] & Flag.LONG else SHORT_HEADER_BYTES
        body = self._ready[start:]
        if not body:
            raise DecodeError("expected the ZMTP command READY, got an empty command")
        wanted, found = SOCKET_TYPES[self._protocol.peer], socket_type(body)
        if found != wanted:
            raise DecodeError(
                f"expected a ZMTP socket of type {wanted.decode()}, "
                f"got {found[:16].decode('latin-1')!r}"
            )


class CommandReader:
    """Reads a direction in which only commands may come; the bytes may be cut anywhere.

    Answers that are to be sent gather in `answers`: take them out.
    """

    def __init__(self) -> None:
        self.answers = bytearray()
        self._seen = b""

    def received(self, data: bytes | memoryview) -> list[tuple[Frame, int]]:
        """Take bytes in; return none of our control frames: there are none in ZMTP.

        Raises:
            DecodeError: something else came.
        """
        seen = self._seen + bytes(data)
        while seen:
            if seen[0] & ~Flag.LONG != Flag.COMMAND:
                raise DecodeError(f"expected a ZMTP command, got {seen[:16]!r}")
            body, end = command_span(seen, 0, len(seen))
            if end > len(seen):
                break
            answer(self.answers, seen[body:end])
            seen = seen[end:]
        self._seen = seen
        return []


def command_span(memory: bytes | memoryview, start: int, end: int) -> tuple[int, int]:
    """Return where the body of a command begins and ends; as far as is known, beyond `end`.

    Raises:
        DecodeError: it claims to be larger than commands are.
    """
    is_long = memory[start] & Flag.LONG
    body = start + (LONG_HEADER_BYTES if is_long else SHORT_HEADER_BYTES)
    if body > end:
        return body, body
    size = HEADER.unpack_from(memory, start + 1)[0] if is_long else memory[start + 1]
    if size > MAX_COMMAND_BYTES:
        raise DecodeError(f"a ZMTP command of {size} bytes is above {MAX_COMMAND_BYTES}")
    return body, body + size


def answer(answers: bytearray, body: bytes | memoryview) -> None:
    """Append the answer to a command, if it wants one and the peer takes them."""
    text = pong(body)
    if len(answers) + len(text) <= MAX_ANSWER_BYTES:
        answers += text
