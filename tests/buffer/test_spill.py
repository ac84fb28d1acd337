"""A buffer whose queue goes on in files: everything arrives, in order, and memory is bounded."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pynng
import pytest
import zmq
from tests.buffer.disk_ends import (
    AcknowledgingConsumer,
    PlainProducer,
    numbered,
    peak_bytes,
    pull_plain,
    until,
)
from tests.buffer.loss.nursery import Nursery, RelayProcess, nursery_at

from lclstream.buffer.config import BufferConfig, Delivery
from lclstream.buffer.relay import Buffer

MIB = 1 << 20
MEMORY = "4MiB"


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with nursery_at(tmp_path_factory.mktemp("processes")) as made:
        yield made


def lane_of(buffer: RelayProcess) -> int:
    (lane,) = [pid for pid in buffer.family() if pid != buffer.pid]
    return lane


def digest_of(messages: Iterator[bytes]) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for message in messages:
        digest.update(len(message).to_bytes(8) + message)
    return digest.hexdigest()


# Small enough to come in runs, of the size of a chunk, and far larger than the bound.
SIZES = (100, 5_000, 200_000, 262_136, 1_000_000, 3_000_000, 0)


def stream(total_bytes: int) -> Iterator[bytes]:
    number = 0
    while total_bytes > 0:
        message = numbered(number, SIZES[number % len(SIZES)])
        yield message
        total_bytes -= len(message)
        number += 1


def test_what_does_not_fit_into_memory_arrives_in_order(nursery: Nursery, tmp_path: Path) -> None:
    total = 200_000_000
    idle = nursery.relay("--memory", MEMORY, "--linger", "0")
    buffer = nursery.relay("--memory", MEMORY, "--spill", str(tmp_path), "--digest")
    producer = PlainProducer(buffer.push_url, stream(total))
    producer.join()
    assert producer.error is None
    assert list(tmp_path.iterdir()) == []
    buffer.terminate()
    assert digest_of(pull_plain(buffer.pull_url)) == digest_of(stream(total))
    # Everything held was within the bound, whatever the rest of the program needs.
    overhead = peak_bytes(lane_of(idle))
    peak = peak_bytes(lane_of(buffer)) if buffer.poll() is None else 0
    code, report = buffer.finish()
    assert code == 0
    assert report["received"] == report["sent"]
    assert report["received"]["messages"] == producer.sent
    assert report["counters"]["spilled"] > 0.9 * producer.sent
    assert report["held_peak_bytes"] <= 1.1 * 4 * MIB
    assert peak <= overhead + 16 * MIB
    idle.terminate()
    assert idle.finish()[0] == 0


def test_every_kind_of_consumer_gets_what_was_spilled(tmp_path: Path) -> None:
    """Files are sent by the kernel to plain consumers, and read to memory for others."""
    messages = [numbered(number, size) for number, size in enumerate([10, 3000, 300_000] * 40)]
    config = BufferConfig(memory_bytes=MIB, spill=tmp_path, delivery=Delivery.SAFE)
    with Buffer(config) as buffer, zmq.Context() as context, context.socket(zmq.PULL) as pull:
        PlainProducer(buffer.push_urls[0], iter(messages)).join()
        pull.rcvtimeo = 20_000
        pull.rcvhwm = 1
        pull.connect(buffer.pull_urls[0])
        got = [pull.recv() for _ in range(20)]
        plain = pull_plain(buffer.pull_urls[0], acknowledge=True)
        with pynng.Pull0(dial=buffer.pull_urls[0], recv_timeout=20_000) as nng:
            got += [next(plain) for _ in range(10)]
            got += [nng.recv() for _ in range(5)]
            statistics = buffer.statistics()
            assert statistics.disk_messages > 0
            assert statistics.spilled_bytes > 0
        own = AcknowledgingConsumer(buffer.pull_urls[0])
        plain.close()
        try:
            pull.close(linger=0)
            # Those that left had more at hand than they took.
            until(lambda: not buffer.statistics().queue_messages, "an empty queue")
            buffer.drain()
            until(lambda: buffer.has_ended, "the end")
        finally:
            own.stop()
    assert set(got) <= set(messages)
    assert set(messages) - set(got) <= {*own.got, *messages[:100]}
    assert set(own.got) <= set(messages)


def test_consumers_that_leave_give_back_what_was_spilled(tmp_path: Path) -> None:
    messages = [numbered(number, size) for number, size in enumerate([10, 3000, 300_000] * 60)]
    config = BufferConfig(memory_bytes=MIB, spill=tmp_path, delivery=Delivery.SAFE)
    with Buffer(config) as buffer:
        producer = PlainProducer(buffer.push_urls[0], iter(messages))
        got: set[bytes] = set()
        while got != set(messages):
            # Each takes a few, and leaves with the last of them unfinished.
            pull = pull_plain(buffer.pull_urls[0], acknowledge=True)
            for message in islice(pull, 8):
                got.add(message)
                if got == set(messages):
                    buffer.drain()
                    # The last one may come again, if an acknowledgement was lost with its like.
                    assert set(pull) <= got
            pull.close()
        producer.join()
        until(lambda: buffer.has_ended, "the end")
        report = buffer.statistics()
    assert report.counters.requeued > 0
    assert report.received == report.sent


def test_bound_on_files_is_back_pressure(tmp_path: Path) -> None:
    messages = [numbered(number, 100_000) for number in range(100)]
    config = BufferConfig(memory_bytes=MIB, spill=tmp_path, spill_bytes=2 * MIB)
    with Buffer(config) as buffer:
        producer = PlainProducer(buffer.push_urls[0], iter(messages))
        until(lambda: bool(buffer.statistics().alarm), "an alarm")
        until(lambda: buffer.statistics().paused_producers == 1, "back-pressure")
        statistics = buffer.statistics()
        assert "the limit of 2097152 bytes is reached" in statistics.alarm
        assert statistics.spilled_bytes <= 2 * MIB
        assert statistics.counters.disk_refusals == 1
        pull = pull_plain(buffer.pull_urls[0])
        assert [next(pull) for _ in messages] == messages
        producer.join()
        buffer.drain()
        assert list(pull) == []
        until(lambda: buffer.has_ended, "the end")
        assert buffer.is_complete
        assert buffer.statistics().alarm == ""


def may_mount() -> bool:
    if os.geteuid() or shutil.which("unshare") is None:
        return False
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="needs to be root with a mount namespace of its own")
@pytest.mark.parametrize("kind", ["--spill", "--durable"])
def test_full_disk_is_back_pressure_and_an_alarm(tmp_path: Path, kind: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["unshare", "-m", "sh", "-c"]
    mounted += ['mount -t tmpfs -o size=20m none "$0" && exec "$@"', str(disk)]
    messages = [numbered(number, 100_000) for number in range(600)]
    with nursery_at(tmp_path / "processes", mounted) as nursery:
        buffer = nursery.relay("--memory", MEMORY, kind, str(disk / "folder"))
        producer = PlainProducer(buffer.push_url, iter(messages))
        until(lambda: bool(buffer.events("disk_refuses")), "an alarm")
        assert producer.is_alive()
        pull = pull_plain(buffer.pull_url)
        assert [next(pull) for _ in messages] == messages
        producer.join()
        assert producer.error is None
        buffer.terminate()
        assert list(pull) == []
        code, report = buffer.finish()
    assert code == 0
    assert report["received"]["messages"] == report["sent"]["messages"] == 600
    assert report["counters"]["disk_refusals"] >= 1
    assert report["alarm"] == ""


def test_folder_that_cannot_be_used_is_a_wrong_configuration(
    nursery: Nursery, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    for option in ("--spill", "--durable"):
        buffer = nursery.unready_relay(option, str(file / "folder"))
        assert buffer.wait() == 2, buffer.log()
        assert f"{option.removeprefix('--')}: {file / 'folder'} cannot be" in buffer.log()
