"""Runs of whole messages as they lie in memory: found, counted and hashed, without copying them."""

from typing import NamedTuple

import xxhash

from lclstream.buffer.control import CONTROL_BYTES, looks_like_control
from lclstream.buffer.sp import HEADER, HEADER_BYTES
from lclstream.core.ledger import MODULUS

NO_LIMIT = 1 << 64
# Fewer are counted one by one.
LEAST_UNIFORM = 8


class Run(NamedTuple):
    """Whole messages that lie one after the other in memory."""

    stop: int
    """Where the first message begins that is not whole, too large, or looks like a control
    frame."""
    messages: int
    payload_bytes: int
    digest: int | None
    """Sum of the hashes of the payloads modulo 2**64; None if it was not asked for."""
    next_bytes: int | None
    """Payload size that the header at `stop` claims; None when it is not whole."""
    is_control: bool
    """Whether the message at `stop` is whole and looks like a control frame."""


def walk(
    memory: memoryview,
    start: int,
    end: int,
    *,
    digests: bool,
    controls: bool = False,
    limit_bytes: int = NO_LIMIT,
) -> Run:
    """Find the run of whole messages that begins at `start`.

    Args:
        memory: what was received.
        start: where a header begins.
        end: where nothing was received yet.
        digests: whether to compute the digest.
        controls: whether to stop at what looks like a control frame.
        limit_bytes: stop at a message that is larger.
    """
    if not digests and (count := _uniform(memory, start, end, limit_bytes, controls=controls)):
        (size,) = HEADER.unpack_from(memory, start)
        stop = start + count * (HEADER_BYTES + size)
        rest = walk(memory, stop, end, digests=False, controls=controls, limit_bytes=limit_bytes)
        return rest._replace(
            messages=rest.messages + count, payload_bytes=rest.payload_bytes + count * size
        )
    position, messages, payload_bytes, digest = start, 0, 0, 0
    next_bytes, is_control = None, False
    control_bytes = CONTROL_BYTES if controls else -1
    # The hash of core.ledger.digest64; this loop is most of the work for small messages.
    unpack_from, hash64 = HEADER.unpack_from, xxhash.xxh3_64_intdigest
    while end - position >= HEADER_BYTES:
        (size,) = unpack_from(memory, position)
        payload = position + HEADER_BYTES
        following = payload + size
        if following > end or size > limit_bytes:
            next_bytes = size
            break
        if size == control_bytes and looks_like_control(memory[payload:following]):
            next_bytes, is_control = size, True
            break
        messages += 1
        payload_bytes += size
        if digests:
            digest += hash64(memory[payload:following])
        position = following
    return Run(
        position,
        messages,
        payload_bytes,
        digest % MODULUS if digests else None,
        next_bytes,
        is_control,
    )


def _uniform(memory: memoryview, start: int, end: int, limit_bytes: int, *, controls: bool) -> int:
    """Return how many whole messages there are, if all have the size of the first; else 0.

    A stream has mostly messages of one size. Then one look at each of the eight bytes of all
    headers takes the place of a look at each header.
    """
    if end - start < HEADER_BYTES:
        return 0
    size: int = HEADER.unpack_from(memory, start)[0]
    stride = HEADER_BYTES + size
    count = (end - start) // stride
    if count < LEAST_UNIFORM or size > limit_bytes or (controls and size == CONTROL_BYTES):
        return 0
    stop = start + count * stride
    for place in range(start + HEADER_BYTES - 1, start - 1, -1):
        if memory[place:stop:stride].tobytes() != memory[place : place + 1].tobytes() * count:
            return 0
    return count
