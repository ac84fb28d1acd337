"""A buffer for the tests of the ends, and messages that can be told apart."""

from dataclasses import replace

from tests.buffer.peers import drain

from lclstream.buffer.config import BufferConfig, Delivery
from lclstream.buffer.endpoints import Pull
from lclstream.buffer.relay import Buffer

MIB = 1 << 20
END_S = 30.0
QUICK = BufferConfig(
    expect_producers=1, grace_s=0.1, resume_timeout_s=20.0, consumer_timeout_s=20.0, linger_s=0.1
)
SAFE = replace(QUICK, delivery=Delivery.SAFE)


def numbered(count: int, sizes: list[int]) -> list[bytes]:
    return [i.to_bytes(4, "big") + bytes(sizes[i % len(sizes)]) for i in range(count)]


def pull_all(buffer: Buffer, *, acknowledge: bool = True) -> list[bytes]:
    with Pull(buffer.pull_urls[0], acknowledge=acknowledge) as pull:
        return drain(pull, END_S)
