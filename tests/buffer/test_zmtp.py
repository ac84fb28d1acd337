"""What is said in ZMTP before and between the messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lclstream.buffer.sp import Protocol
from lclstream.buffer.zmtp import (
    GREETING,
    HANDSHAKE_BYTES,
    MAX_ANSWER_BYTES,
    CommandReader,
    ZmtpHandshake,
    command,
    header,
    ready,
)
from lclstream.core.errors import DecodeError

# Captured from libzmq 4.3.5: ten bytes, then what it sends when it has got 64.
LIBZMQ_FIRST = bytes.fromhex("ff00000000000000017f")
LIBZMQ_GREETING = LIBZMQ_FIRST + b"\x03\x01NULL".ljust(22, b"\0") + bytes(32)
LIBZMQ_READY = b"\x04\x27\x05READY\x0bSocket-Type\0\0\0\x04PUSH\x08Identity\0\0\0\0"


def talk(handshake: ZmtpHandshake, data: bytes, cuts: list[int]) -> bool:
    """Hand over bytes as they are asked for, in pieces."""
    turn, complete = 0, False
    while data:
        assert not complete
        count = min(handshake.missing_bytes, cuts[turn % len(cuts)], len(data))
        complete = handshake.received(data[:count])
        data = data[count:]
        turn += 1
    return complete


@given(st.lists(st.integers(1, 100), min_size=1))
def test_both_sides_of_ours_understand_each_other(cuts: list[int]) -> None:
    pull, push = ZmtpHandshake(Protocol.PULL), ZmtpHandshake(Protocol.PUSH)
    assert not talk(pull, GREETING, cuts)
    assert not talk(push, GREETING, cuts)
    assert len(pull.to_send) == len(push.to_send) == HANDSHAKE_BYTES
    assert talk(pull, bytes(push.to_send[64:]), cuts)
    assert talk(push, bytes(pull.to_send[64:]), cuts)
    assert pull.missing_bytes == 0


@given(st.lists(st.integers(1, 100), min_size=1))
def test_libzmq_is_understood_and_answered_at_once(cuts: list[int]) -> None:
    handshake = ZmtpHandshake(Protocol.PULL)
    assert not talk(handshake, LIBZMQ_FIRST, cuts)
    # It says nothing more before it has seen this.
    assert handshake.to_send == GREETING
    assert not talk(handshake, LIBZMQ_GREETING[10:], cuts)
    assert handshake.to_send == GREETING + ready(Protocol.PULL)
    assert talk(handshake, LIBZMQ_READY, cuts)


def test_ready_is_what_the_protocol_says() -> None:
    assert ready(Protocol.PULL) == b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PULL"
    assert len(GREETING) == 64
    assert header(0) == b"\0\0"
    assert header(255) == b"\0\xff"
    assert header(256) == b"\x02\0\0\0\0\0\0\x01\0"


def greeting(**changes: bytes) -> bytes:
    """Return a greeting with other bytes from the positions on that the keys name."""
    text = bytearray(GREETING)
    for place, value in changes.items():
        start = int(place.removeprefix("at"))
        text[start : start + len(value)] = value
    return bytes(text)


def long_command(size: int) -> bytes:
    return b"\x06" + size.to_bytes(8, "big")


REFUSED = {
    "CURVE": (greeting(at12=b"CURVE"), "expected the ZMTP mechanism 'NULL', got 'CURVE': encrypt"),
    "PLAIN": (greeting(at12=b"PLAIN"), "expected the ZMTP mechanism 'NULL', got 'PLAIN': encrypt"),
    "ZMTP 2": (greeting(at10=b"\x01"), "expected ZMTP 3, got the older revision 1"),
    "ZMTP 1": (greeting(at9=b"\x00"), r"expected a greeting of ZMTP 3, got b'\\xff"),
    "wrong side": (GREETING + ready(Protocol.PULL), "a ZMTP socket of type PUSH, got 'PULL'"),
    "SUB": (
        GREETING + command(b"READY", b"\x0bSocket-Type\0\0\0\x03SUB"),
        "a ZMTP socket of type PUSH, got 'SUB'",
    ),
    "no type": (GREETING + command(b"READY", b""), "does not name its socket type"),
    "cut type": (GREETING + command(b"READY", b"\x0bSocket-Type\0\0"), "does not name"),
    "error": (GREETING + command(b"ERROR", b"\x02no"), "expected the ZMTP command READY"),
    "empty": (GREETING + b"\x04\x00", "READY, got an empty command"),
    "message": (GREETING + b"\x00\x05hello", "expected a ZMTP command, got a frame with flags 0x0"),
    "huge": (GREETING + long_command(2**64 - 1), "a ZMTP command of 18446744073709551615 bytes"),
}


@pytest.mark.parametrize(("said", "reason"), REFUSED.values(), ids=REFUSED)
def test_who_is_not_wanted_hears_why(said: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        talk(ZmtpHandshake(Protocol.PULL), said, [7])


def test_long_ready_with_other_words_is_understood() -> None:
    words = b"\x06X-Long" + (300).to_bytes(4, "big") + bytes(300)
    text = command(b"READY", words + b"\x0bsocket-type\0\0\0\x04PUSH")
    assert text[0] == 6
    assert talk(ZmtpHandshake(Protocol.PULL), GREETING + text, [11])


@given(st.binary(max_size=200), st.lists(st.integers(1, 50), min_size=1))
def test_noise_is_refused_or_waited_for(noise: bytes, cuts: list[int]) -> None:
    handshake = ZmtpHandshake(Protocol.PULL)
    try:
        complete = talk(handshake, GREETING + b"\x04" + noise, cuts)
    except DecodeError:
        return
    assert not complete
    assert handshake.missing_bytes


PING = command(b"PING", b"\0\x0asome words")


@given(st.lists(st.integers(1, 40), min_size=1))
def test_heartbeats_are_answered_and_other_commands_ignored(cuts: list[int]) -> None:
    reader = CommandReader()
    data = PING + command(b"SUBSCRIBE", b"x" * 300) + PING
    position, turn = 0, 0
    while position < len(data):
        count = cuts[turn % len(cuts)]
        assert reader.received(data[position : position + count]) == []
        position, turn = position + count, turn + 1
    assert reader.answers == 2 * command(b"PONG", b"some words")


def test_who_asks_without_end_is_not_answered_without_end() -> None:
    reader = CommandReader()
    reader.received(PING * 1000)
    assert len(reader.answers) <= MAX_ANSWER_BYTES


@pytest.mark.parametrize("said", [b"\x00\x01x", b"\x02", b"\x07", long_command(1 << 20)])
def test_only_commands_may_come_against_the_messages(said: bytes) -> None:
    with pytest.raises(DecodeError):
        CommandReader().received(said)
