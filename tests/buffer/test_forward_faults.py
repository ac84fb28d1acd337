"""Links that break, and processes that are killed, while messages pass."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.buffer.forwarding import (
    ENDS_QUICKLY,
    Buffers,
    Consumers,
    Network,
    Producers,
    until,
)

MESSAGES = 200
SAFE = ("--delivery", "safe", "--expect-producers", "1", *ENDS_QUICKLY)


@pytest.fixture
def buffers(tmp_path: Path) -> Iterator[Buffers]:
    with Buffers(tmp_path) as made:
        yield made


def lost_and_doubled(producers: Producers, consumers: Consumers) -> tuple[int, int]:
    lost = producers.sent - consumers.got
    doubled = consumers.got - producers.sent
    assert not set(doubled) - set(producers.sent), "somebody else's"
    return lost.total(), doubled.total()


def test_connections_that_are_cut_lose_and_double_nothing(buffers: Buffers) -> None:
    second = buffers.serve(*SAFE)
    with Network(second.push_url) as network:
        first = buffers.serve("--forward", network.url, "--forward-connections", "3", *SAFE)
        consumers = Consumers(second, 2)
        producers = Producers(first.push_url, 1, MESSAGES, pause_s=0.003)
        for share in range(1, 5):
            until(lambda share=share: consumers.count > share * MESSAGES // 6)  # type: ignore[misc]
            network.cut()
        producers.join()
        code, report = first.finish()
        assert code == 0, report
        code, further = second.finish()
        assert code == 0, further
    consumers.join()
    assert lost_and_doubled(producers, consumers) == (0, 0)
    assert report["forward"][0]["resumed"] > 0


def test_a_killed_process_of_links_loses_nothing(buffers: Buffers) -> None:
    second = buffers.serve(*SAFE)
    first = buffers.serve("--forward", second.push_url, "--forward-connections", "3", *SAFE)
    consumers = Consumers(second, 2)
    producers = Producers(first.push_url, 1, MESSAGES, pause_s=0.003)
    for share in range(1, 4):
        until(lambda share=share: consumers.count > share * MESSAGES // 6)  # type: ignore[misc]
        first.kill_links()
    producers.join()
    code, report = first.finish()
    assert code == 0, report
    code, further = second.finish()
    assert code == 0, further
    consumers.join()
    lost, doubled = lost_and_doubled(producers, consumers)
    assert lost == 0
    assert doubled <= report["counters"]["requeued"], "only what was not acknowledged"


def test_a_durable_buffer_downstream_that_is_killed_goes_on(
    buffers: Buffers, tmp_path: Path
) -> None:
    second = buffers.serve("--durable", str(tmp_path / "journal"), *SAFE)
    first = buffers.serve("--forward", second.push_url, "--forward-connections", "3", *SAFE)
    consumers = Consumers(second, 2)
    producers = Producers(first.push_url, 1, MESSAGES, pause_s=0.003)
    until(lambda: consumers.count > MESSAGES // 4)
    second.crash()
    producers.join()
    code, report = first.finish()
    assert code == 0, report
    code, further = second.finish()
    assert code == 0, further
    consumers.join()
    lost, _ = lost_and_doubled(producers, consumers)
    # Consumers that do not acknowledge had some of what the crash took from its sockets.
    assert further["received"]["messages"] == MESSAGES, "each was accepted once"
    assert lost <= further["counters"]["requeued"] + 64


def test_a_durable_buffer_upstream_that_is_killed_finishes_its_streams(
    buffers: Buffers, tmp_path: Path
) -> None:
    second = buffers.serve(*SAFE)
    first = buffers.serve(
        "--durable", str(tmp_path / "journal"), "--forward", second.push_url,
        "--forward-connections", "3", *SAFE,
    )  # fmt: skip
    consumers = Consumers(second, 2)
    producers = Producers(first.push_url, 1, MESSAGES, pause_s=0.003, safe=True)
    until(lambda: consumers.count > MESSAGES // 4)
    first.crash()
    producers.join()
    code, report = first.finish()
    assert code == 0, report
    code, further = second.finish()
    assert code == 0, further
    consumers.join()
    lost, _ = lost_and_doubled(producers, consumers)
    assert lost == 0
    assert further["counters"]["producers_seen"] == 1


def test_messages_go_to_the_buffer_that_is_there(buffers: Buffers) -> None:
    second = buffers.serve(*SAFE)
    third = buffers.serve(*SAFE)
    with Network(third.push_url) as network:
        first = buffers.serve(
            "--forward", second.push_url, "--forward", network.url, "--forward-connections", "2",
            "--fail-over", "0.5", *SAFE,
        )  # fmt: skip
        here, there = Consumers(second, 1), Consumers(third, 1)
        producers = Producers(first.push_url, 1, 200, pause_s=0.005)
        until(lambda: there.count > 10 and here.count > 10)
        network.close()
        producers.join()
        until(lambda: here.count + there.count >= 200)
        network.open()
        code, report = first.finish()
    assert code == 0, report
    for served in (second, third):
        code, further = served.finish()
        assert code == 0, further
    here.join()
    there.join()
    got = here.got + there.got
    assert not producers.sent - got, "lost"
    assert first.events("forward_failed_over")
