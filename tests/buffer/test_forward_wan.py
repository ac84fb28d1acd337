"""Links over a distance: each connection carries a window in a round trip, and no more."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.buffer.forwarding import ENDS_QUICKLY, Buffers, Network, until
from tests.buffer.peers import in_thread

from lclstream.buffer import Pull, Push
from lclstream.core.errors import LclstreamError

# A connection carries a window in a tenth of a second.
DELAY_S = 0.05
WINDOW_BYTES = 128 * 1024
MESSAGE = bytes(32 * 1024)
MEASURED_S = 2.0
OPTIONS = ("--expect-producers", "1", *ENDS_QUICKLY)


@pytest.fixture
def buffers(tmp_path: Path) -> Iterator[Buffers]:
    with Buffers(tmp_path) as made:
        yield made


def rate(buffers: Buffers, connections: int) -> float:
    """Return how many messages come through in a second."""
    second = buffers.serve(*OPTIONS)
    with Network(second.push_url, delay_s=DELAY_S, window_bytes=WINDOW_BYTES) as network:
        first = buffers.serve(
            "--forward", network.url, "--forward-connections", str(connections), *OPTIONS
        )
        until(lambda: network.connections == connections)
        stopped = threading.Event()

        def produce() -> None:
            push = Push(first.push_url, send_timeout_s=1.0)
            with contextlib.suppress(LclstreamError):
                while not stopped.is_set():
                    push.send(MESSAGE)
            push.abort()

        with in_thread(produce), Pull(second.pull_url) as pull:
            # What comes first shows nothing: the way has to fill.
            for _ in range(10 * connections):
                pull.recv()
            begin, count = time.monotonic(), 0
            while time.monotonic() < begin + MEASURED_S:
                pull.recv()
                count += 1
            stopped.set()
        first.close()
        second.close()
    return count / MEASURED_S


def test_eight_connections_carry_more_than_three_times_as_much_as_one(buffers: Buffers) -> None:
    alone, together = rate(buffers, 1), rate(buffers, 8)
    print(f"{together / alone:.1f} times as much")  # noqa: T201
    assert together > 3 * alone


def test_the_number_of_connections_is_chosen_by_the_distance(buffers: Buffers) -> None:
    second = buffers.serve(*OPTIONS)
    with Network(second.push_url) as network:
        first = buffers.serve(
            "--forward", network.url, "--forward-connections", "0", "--forward-rate", "1GB",
            *OPTIONS,
        )  # fmt: skip
        until(lambda: bool(first.events("forward_measured")))
        with Push(first.push_url) as push:
            push.send(b"x")
        with Pull(second.pull_url) as pull:
            assert [bytes(each) for each in pull] == [b"x"]
        code, report = first.finish()
        assert code == 0, report
    (measured,) = first.events("forward_measured")
    assert report["forward"][0]["connections"] == measured["connections"] >= 1
    assert report["forward"][0]["states"] == {"done": measured["connections"]}
