"""The SP protocol of nanomsg and NNG over a byte stream, without any input or output.

Both sides send 8 bytes at once, `00 53 50 00 | protocol u16 | 00 00`, and then, from the
pushing side only, any number of messages: `length u64 | payload`, big endian. The framing is
the same into and out of a relay, so a run of whole messages can be passed on as it lies in
memory, headers included.
"""

import struct
from enum import IntEnum

from lclstream.core.errors import DecodeError

HANDSHAKE_BYTES = 8
HEADER_BYTES = 8
HEADER = struct.Struct(">Q")
MAGIC = b"\x00SP\x00"

# From here on a message gets a memory of its own: below, the work per message counts, above,
# the copies.
LARGE_BYTES = 128 * 1024


class Protocol(IntEnum):
    """The socket types that a handshake can name."""

    PUSH = 0x0050
    PULL = 0x0051

    @property
    def peer(self) -> "Protocol":
        """The only type that this one talks to."""
        return Protocol.PULL if self is Protocol.PUSH else Protocol.PUSH


def handshake(protocol: Protocol) -> bytes:
    """Return the 8 bytes that a socket of this type sends first."""
    return MAGIC + struct.pack(">HH", protocol, 0)


def header(size_bytes: int) -> bytes:
    """Return what precedes a payload of that size."""
    return HEADER.pack(size_bytes)


class Handshake:
    """Collects the first bytes of a peer and refuses a wrong one at its first wrong byte."""

    def __init__(self, wanted: Protocol) -> None:
        self._wanted = handshake(wanted)
        self._seen = b""

    @property
    def missing_bytes(self) -> int:
        """How much to read at most: what follows already belongs to the first message."""
        return HANDSHAKE_BYTES - len(self._seen)

    def received(self, data: bytes) -> bool:
        """Take bytes in; return whether the handshake is complete.

        Raises:
            DecodeError: the peer speaks something else, or is of the wrong socket type.
        """
        self._seen += data
        if not self._wanted.startswith(self._seen):
            raise DecodeError(f"expected the handshake {self._wanted!r}, got {self._seen!r}")
        return not self.missing_bytes


def split(memory: memoryview, start: int, end: int) -> tuple[list[memoryview], int, int | None]:
    """Return the payloads of a run as views, and `stop` and `next_bytes` as of `Run`."""
    messages: list[memoryview] = []
    unpack_from = HEADER.unpack_from
    while end - start >= HEADER_BYTES:
        (size,) = unpack_from(memory, start)
        following = start + HEADER_BYTES + size
        if following > end:
            return messages, start, size
        messages.append(memory[start + HEADER_BYTES : following])
        start = following
    return messages, start, None


def check_size(claimed_bytes: int | None, max_message_bytes: int) -> DecodeError | None:
    """Return what is wrong with the size that a header claims; None if nothing is."""
    if claimed_bytes is None or claimed_bytes <= max_message_bytes:
        return None
    return DecodeError(
        f"a message of {claimed_bytes} bytes is above the limit of {max_message_bytes}"
    )
