"""Control frames: what our own ends and buffers tell each other in between NNG's messages.

A control frame is an SP message with a payload of 13 bytes: `LCLB | type u8 | N u64`, big endian.
Against the direction of the data they are safe: a Push0 socket reads and discards what it gets.
In the direction of the data they travel only on a connection on which HELLO was seen, so a plain
peer never gets one as data, and what a plain peer sends is never taken for one.
"""

import struct
from enum import IntEnum

from lclstream.core.errors import DecodeError

MAGIC = b"LCLB"
CONTROL = struct.Struct(">4sBQ")
CONTROL_BYTES = CONTROL.size
"""Size of the payload: 13."""
# What precedes it on the wire is a message's header.
SIZE = struct.Struct(">Q")
FRAME_BYTES = SIZE.size + CONTROL_BYTES
"""Size on the wire: 21."""
BEGINNING = SIZE.pack(CONTROL_BYTES) + MAGIC


class Frame(IntEnum):
    """The kinds of control frames; N is the number that each carries."""

    ACK = 1
    """Taken over: the first N messages, of this connection by a consumer, of the whole stream by
    a buffer. A consumer that will acknowledge begins with ACK 0."""
    HELLO = 2
    """A buffer greets with a random N; a producer of ours begins with the same."""
    BYE = 3
    """The stream is finished: N messages in all."""
    STREAM = 4
    """The stream's id: the upper 48 bits name the producer, the lower 16 its connection."""
    FROM = 5
    """The next message is number N of the stream, counted from 0; asks for acknowledgements."""
    LITERAL = 6
    """The next message is data, whatever it looks like; N is 0."""


def frame(kind: Frame, number: int) -> bytes:
    """Return a control frame as it goes over the wire, header included."""
    return SIZE.pack(CONTROL_BYTES) + CONTROL.pack(MAGIC, kind, number)


def looks_like_control(payload: bytes | bytearray | memoryview) -> bool:
    """Return whether a message could be taken for a control frame."""
    return len(payload) == CONTROL_BYTES and payload[: len(MAGIC)] == MAGIC


def decode(payload: bytes | bytearray | memoryview) -> tuple[Frame, int]:
    """Return kind and number of a control frame.

    Raises:
        DecodeError: the payload is none.
    """
    if len(payload) != CONTROL_BYTES:
        raise DecodeError(
            f"expected a control frame of {CONTROL_BYTES} bytes, got {len(payload)} bytes"
        )
    magic, kind, number = CONTROL.unpack(payload)
    if magic != MAGIC:
        raise DecodeError(f"expected a control frame, got {bytes(payload)!r}")
    try:
        return Frame(kind), number
    except ValueError:
        raise DecodeError(f"unknown control frame of type {kind}") from None


class ControlReader:
    """Reads a direction in which only control frames may come; the bytes may be cut anywhere."""

    def __init__(self) -> None:
        self._seen = b""

    @property
    def partial(self) -> bool:
        """Whether a frame has begun and is not whole."""
        return bool(self._seen)

    def received(self, data: bytes | memoryview) -> list[tuple[Frame, int]]:
        """Take bytes in; return kind and number of each frame that is whole now.

        Raises:
            DecodeError: something else came; what follows cannot be understood.
        """
        seen = self._seen + bytes(data)
        frames = []
        start = 0
        while start < len(seen):
            beginning = seen[start : start + len(BEGINNING)]
            if not BEGINNING.startswith(beginning):
                raise DecodeError(f"expected a control frame, got {beginning!r}")
            if len(seen) - start < FRAME_BYTES:
                break
            frames.append(decode(seen[start + SIZE.size : start + FRAME_BYTES]))
            start += FRAME_BYTES
        self._seen = seen[start:]
        return frames
