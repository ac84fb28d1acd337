"""Several lanes behind one pair of addresses."""

import hashlib
import os
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pynng
import pytest
from tests.buffer.peers import PULL_HANDSHAKE, PUSH_HANDSHAKE, in_thread, until
from tests.buffer.serving import END_S, children, finish, is_running, serving

from lclstream.buffer import Pull, Push
from lclstream.buffer.control import FRAME_BYTES, Frame, decode, frame
from lclstream.buffer.control_client import ControlClient
from lclstream.core.errors import EndOfStream

PATIENCE_S = 60.0


def md5(data: bytes | memoryview) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class Collector:
    """Own consumers in threads; `digests` is what they got."""

    def __init__(self) -> None:
        self.digests: list[str] = []
        self.counts: list[int] = []
        self._lock = threading.Lock()

    def pull(self, url: str, *, acknowledge: bool = False, at_most: int | None = None) -> None:
        count = 0
        with Pull(url, acknowledge=acknowledge) as pull:
            try:
                while at_most is None or count < at_most:
                    digest = md5(pull.recv(PATIENCE_S))
                    with self._lock:
                        self.digests.append(digest)
                    count += 1
            except EndOfStream:
                pass
        self.counts.append(count)


@contextmanager
def controlled(folder: Path, *options: str) -> Iterator[tuple[Any, Any, ControlClient]]:
    """Run a buffer that can be asked."""
    # The path of a Unix socket may have 107 characters only.
    folder.chmod(0o700)
    here = Path.cwd()
    os.chdir(folder)
    try:
        with (
            serving(folder, "--control", "unix:control", *options) as (process, addresses),
            ControlClient("unix:control") as client,
        ):
            yield process, addresses, client
    finally:
        os.chdir(here)


def messages(seed: int, count: int) -> list[bytes]:
    return [
        b"%d %d " % (seed, i) + bytes((seed * 7919 + i * 104729) % 300_000) for i in range(count)
    ]


def push_all(url: str, what: list[bytes], delivery: str = "fast") -> None:
    with Push(url, delivery=delivery) as push:
        for message in what:
            push.send(message)


def push_plain(url: str, what: list[bytes], done: threading.Event) -> None:
    with pynng.Push0(dial=url, send_timeout=60_000) as push:
        for message in what:
            push.send(message)
        # It has no linger.
        assert done.wait(PATIENCE_S)


@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize("consumers", [1, 3])
def test_exactly_once(tmp_path: Path, lanes: int, consumers: int) -> None:
    """With one consumer all lanes but one hand their messages on."""
    streams = [messages(seed, 40) for seed in range(4)]
    collector = Collector()
    done = threading.Event()
    with serving(tmp_path, "--lanes", str(lanes), "--digest") as (process, addresses):
        assert len(children(process.pid)) == lanes
        url_in, url_out = addresses["in"][0], addresses["out"][0]
        with ExitStack() as stack:
            for _ in range(consumers):
                stack.enter_context(in_thread(partial(collector.pull, url_out)))
            with ExitStack() as producers:
                for what in streams[:2]:
                    producers.enter_context(in_thread(partial(push_all, url_in, what)))
                for what in streams[2:]:
                    producers.enter_context(in_thread(partial(push_plain, url_in, what, done)))
                until(lambda: len(collector.digests) == 160, PATIENCE_S)
                done.set()
            process.send_signal(signal.SIGTERM)
            code, report = finish(process)
    assert Counter(collector.digests) == Counter(md5(m) for what in streams for m in what)
    assert code == 0
    assert report["received"] == report["sent"]
    assert report["received"]["messages"] == 160
    assert report["received"]["bytes"] == sum(len(m) for what in streams for m in what)
    assert report["counters"]["producers_seen"] == 4
    assert report["counters"]["consumers_seen"] == consumers
    ends = Counter(peer["side"] for peer in report["peers"])
    assert ends == {"in": 4, "out": consumers}
    assert sum(p["messages"] for p in report["peers"] if p["side"] == "in") == 160
    assert sum(p["messages"] for p in report["peers"] if p["side"] == "out") == 160
    assert sorted(p["messages"] for p in report["peers"] if p["side"] == "out") == sorted(
        collector.counts
    )


def test_consumers_that_leave_take_the_links_with_them(tmp_path: Path) -> None:
    """The only consumer goes, another comes to another lane: everything follows it."""
    collector = Collector()
    what = [messages(seed, 30) for seed in range(4)]
    with controlled(tmp_path, "--lanes", "3", "--delivery", "safe") as (process, addresses, client):
        url_in, url_out = addresses["in"][0], addresses["out"][0]
        with ExitStack() as producers:
            for each in what:
                producers.enter_context(in_thread(partial(push_all, url_in, each, "safe")))
            for turn in range(1, 6):
                collector.pull(url_out, acknowledge=True, at_most=20)
                assert len(collector.digests) == 20 * turn
        until(lambda: client.statistics()["received"]["messages"] == 120, PATIENCE_S)
        client.drain("test")
        collector.pull(url_out, acknowledge=True)
        code, report = finish(process)
    assert set(collector.digests) == {md5(m) for each in what for m in each}
    assert len(collector.digests) == 120
    assert (code, report["counters"]["undelivered"]) == (0, 0)
    assert report["sent"]["messages"] == 120


def test_data_waits_in_all_lanes_for_a_consumer_that_comes_late(tmp_path: Path) -> None:
    collector = Collector()
    with serving(tmp_path, "--lanes", "3", "--memory", "96MiB") as (process, addresses):
        for seed in range(3):
            push_all(addresses["in"][0], messages(seed, 20))
        process.send_signal(signal.SIGTERM)
        until(lambda: "flushing" in (tmp_path / "log").read_text(), PATIENCE_S)
        collector.pull(addresses["out"][0])
        code, report = finish(process)
    assert len(collector.digests) == 60
    assert (code, report["reason"]) == (0, "SIGTERM")


def test_deadline_counts_what_all_lanes_hold(tmp_path: Path) -> None:
    """Z2, and that the counts are exact."""
    with serving(tmp_path, "--lanes", "3", "--term-timeout", "0.5") as (process, addresses):
        for seed in range(3):
            push_all(addresses["in"][0], messages(seed, 20))
        process.send_signal(signal.SIGINT)
        code, report = finish(process)
    assert code == 1
    assert report["counters"]["undelivered"] == 60
    assert report["received"]["messages"] == 60
    assert report["sent"]["messages"] == 0
    assert report["reason"] == "SIGINT"


def test_expected_producers_are_counted_over_all_lanes(tmp_path: Path) -> None:
    collector = Collector()
    options = ("--lanes", "2", "--expect-producers", "3", "--grace", "0.2")
    with (
        serving(tmp_path, *options) as (process, addresses),
        in_thread(partial(collector.pull, addresses["out"][0])),
    ):
        for seed in range(2):
            push_all(addresses["in"][0], messages(seed, 10))
        until(lambda: len(collector.digests) == 20, PATIENCE_S)
        assert process.poll() is None
        # Several connections are one producer.
        with Push(addresses["in"][0], connections=4) as push:
            for message in messages(2, 40):
                push.send(message)
        code, report = finish(process)
    assert code == 0
    assert len(collector.digests) == 60
    assert report["reason"] == "all 3 producers have come and gone"
    assert report["counters"]["producers_seen"] == 3


class RawProducer:
    """A producer of ours, frame by frame."""

    def __init__(self, url: str, stream: int, next_number: int) -> None:
        host, port = url.removeprefix("tcp://").split(":")
        self.sock = socket.create_connection((host, int(port)), timeout=20)
        self.sock.sendall(PUSH_HANDSHAKE)
        assert self._read(8) == PULL_HANDSHAKE
        kind, nonce = self._frame()
        assert kind is Frame.HELLO
        self.sock.sendall(
            frame(Frame.HELLO, nonce) + frame(Frame.STREAM, stream) + frame(Frame.FROM, next_number)
        )

    def send(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.sock.sendall(struct.pack(">Q", len(payload)) + payload)

    def accepted(self) -> int:
        kind, number = self._frame()
        assert kind is Frame.ACK
        return number

    def _frame(self) -> tuple[Frame, int]:
        found = decode(self._read(FRAME_BYTES)[8:])
        assert found is not None
        return found

    def _read(self, count: int) -> bytes:
        return self.sock.recv(count, socket.MSG_WAITALL)


def test_stream_goes_on_in_another_lane(tmp_path: Path) -> None:
    """What one lane has accepted another one does not take again."""
    collector = Collector()
    stream = 0xABCDEF << 16
    with serving(tmp_path, "--lanes", "2", "--delivery", "safe") as (process, addresses):
        url = addresses["in"][0]
        first = RawProducer(url, stream, 0)
        first.send(b"one", b"two", b"three")
        while first.accepted() < 3:
            pass
        # The first one still seems to be there, so this goes to the other lane.
        second = RawProducer(url, stream, 0)
        assert second.accepted() == 3
        second.send(b"four")
        while second.accepted() < 4:
            pass
        # And back.
        third = RawProducer(url, stream, 3)
        assert third.accepted() == 4
        third.sock.sendall(frame(Frame.BYE, 4))
        # Each was closed when the next went on.
        assert first.sock.recv(100) == b""
        assert second.sock.recv(100) == b""
        third.sock.shutdown(socket.SHUT_WR)
        process.send_signal(signal.SIGTERM)
        collector.pull(addresses["out"][0])
        code, report = finish(process)
        for each in (first, second, third):
            each.sock.close()
    assert sorted(collector.digests) == sorted(map(md5, (b"one", b"two", b"three", b"four")))
    assert (code, report["received"]["messages"]) == (0, 4)
    assert report["counters"]["producers_seen"] == 1
    assert report["counters"]["producers_unfinished"] == 0


def test_nothing_outlives_a_killed_buffer(tmp_path: Path) -> None:
    with serving(tmp_path, "--lanes", "3") as (process, addresses):
        lanes = children(process.pid)
        assert len(lanes) == 3
        with Pull(addresses["out"][0]), Push(addresses["in"][0]) as push:
            push.send(b"x")
            process.kill()
            process.wait()
            until(lambda: not any(map(is_running, lanes)))
            push.abort()
    assert not any(map(is_running, lanes))


def test_signals_to_all_processes_let_the_lanes_drain(tmp_path: Path) -> None:
    """As a batch system ends a job."""
    with serving(tmp_path, "--lanes", "2") as (process, addresses):
        push_all(addresses["in"][0], messages(0, 20))
        for pid in [*children(process.pid), process.pid]:
            os.kill(pid, signal.SIGTERM)
        collector = Collector()
        collector.pull(addresses["out"][0])
        code, _ = finish(process)
    assert (code, len(collector.digests)) == (0, 20)


def test_lane_that_dies_is_a_fault_and_is_replaced(tmp_path: Path) -> None:
    with controlled(tmp_path, "--lanes", "2") as (process, addresses, client):
        lanes = children(process.pid)
        push_all(addresses["in"][0], [b"lost", b"too"])
        assert client.statistics()["received"]["messages"] == 2
        for pid in lanes:
            os.kill(pid, signal.SIGKILL)
        until(lambda: client.statistics()["counters"]["lanes_lost"] == 2, PATIENCE_S)
        until(lambda: len(children(process.pid)) == 2, PATIENCE_S)
        collector = Collector()
        with in_thread(partial(collector.pull, addresses["out"][0])):
            push_all(addresses["in"][0], [b"after"])
            until(lambda: len(collector.digests) == 1, PATIENCE_S)
            client.drain("test")
            code, report = finish(process)
    assert code == 1
    assert "2 lanes of the buffer died with what they held" in report["error"]
    assert report["received"]["messages"] == 3
    assert report["counters"]["undelivered"] == 2
    assert report["sent"]["messages"] == 1


def test_connections_leave_nothing_behind(tmp_path: Path) -> None:
    """Descriptors and memory do not grow with the number of those that were."""
    with controlled(tmp_path, "--lanes", "2") as (process, addresses, client):
        pids = [process.pid, *children(process.pid)]

        def used() -> tuple[int, int]:
            descriptors = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
            resident = 0
            for pid in pids:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                resident += pages * os.sysconf("SC_PAGE_SIZE")
            return descriptors, resident

        def connect(times: int) -> None:
            before = client.statistics()["counters"]["consumers_seen"]
            for _ in range(times):
                for url, greeting in (
                    (addresses["in"][0], PUSH_HANDSHAKE),
                    (addresses["out"][0], PULL_HANDSHAKE),
                ):
                    host, port = url.removeprefix("tcp://").split(":")
                    with socket.create_connection((host, int(port)), timeout=20) as sock:
                        sock.sendall(greeting)
                        assert len(sock.recv(8, socket.MSG_WAITALL)) == 8
            until(lambda: client.statistics()["counters"]["consumers_seen"] == before + times, 30)
            until(lambda: client.statistics()["consumers"] == 0, 30)
            until(lambda: client.statistics()["producers"] == 0, 30)

        connect(30)
        before = used()
        connect(150)
        after = used()
    assert after[0] <= before[0] + 2
    # The records of the last connections are kept: half a kilobyte each.
    assert after[1] < before[1] + (4 << 20)


def cpu_s(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def test_idle_costs_nothing(tmp_path: Path) -> None:
    """With peers, messages that went through, and one that waits for an acknowledgement."""
    with controlled(tmp_path, "--lanes", "2", "--delivery", "safe") as (process, addresses, client):
        pids = [process.pid, *children(process.pid)]
        with (
            Push(addresses["in"][0], delivery="safe") as push,
            Pull(addresses["out"][0], acknowledge=True) as pull,
            Pull(addresses["out"][0], acknowledge=True) as other,
        ):
            # Who comes first could take them all.
            until(lambda: client.statistics()["consumers"] == 2)
            for _ in range(20):
                push.send(bytes(1000))
            push.flush()
            assert len(pull.recv(END_S)) == 1000
            # What is still to be settled a moment after they have come is over.
            time.sleep(1.0)
            before = cpu_s(pids)
            time.sleep(3.0)
            spent = cpu_s(pids) - before
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
            del other
            push.abort()
    assert spent <= 0.03, spent
