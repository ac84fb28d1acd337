"""The loss case N7: the host of a consumer vanishes. Two namespaces with a wire between them."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.buffer.loss.nursery import Nursery, nursery_at, until
from tests.buffer.loss.oracle import KIB, judge
from tests.buffer.loss.streams import digests, gather

pytestmark = pytest.mark.timeout(200)
HERE, THERE = "10.213.77.1", "10.213.77.2"
DEAD_AFTER_S = 3


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Wire:
    """Two namespaces, `here` and `there`, and the pair of interfaces that joins them."""

    def __init__(self, name: str) -> None:
        self.here, self.there = f"{name}a", f"{name}b"

    def __enter__(self) -> "Wire":
        for space in (self.here, self.there):
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
        ip(
            "-n",
            self.here,
            "link",
            "add",
            "wire",
            "type",
            "veth",
            "peer",
            "wire",
            "netns",
            self.there,
        )
        for space, address in ((self.here, HERE), (self.there, THERE)):
            ip("-n", space, "addr", "add", f"{address}/24", "dev", "wire")
            ip("-n", space, "link", "set", "wire", "up")
        return self

    def __exit__(self, *error: object) -> None:
        for space in (self.here, self.there):
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)

    def cut(self) -> None:
        ip("-n", self.there, "link", "set", "wire", "down")


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire(f"lcl{os.getpid()}")
    with ExitStack() as stack:
        try:
            stack.enter_context(made)
        except (OSError, subprocess.CalledProcessError) as error:
            made.__exit__()
            pytest.skip(f"no network namespace can be made here: {error}")
        yield made


@pytest.fixture
def here(wire: Wire, tmp_path: Path) -> Iterator[Nursery]:
    with nursery_at(tmp_path / "here", ["ip", "netns", "exec", wire.here]) as made:
        yield made


@pytest.fixture
def there(wire: Wire, tmp_path: Path) -> Iterator[Nursery]:
    with nursery_at(tmp_path / "there", ["ip", "netns", "exec", wire.there]) as made:
        yield made


@pytest.mark.parametrize("kind", ["safe", "pynng", "pyzmq"])
def test_n7_host_of_a_consumer_vanishes(
    wire: Wire, here: Nursery, there: Nursery, kind: str
) -> None:
    """N7: that is noticed within seconds, and what it had not got goes to another one."""
    relay = here.relay(
        "--in", "tcp://127.0.0.1:0", "--out", f"tcp://{HERE}:0", "--delivery", "safe",
        "--dead-after", str(DEAD_AFTER_S), "--memory", "4MiB", "--term-timeout", "60",
    )  # fmt: skip
    options = {"acknowledge": True} if kind == "safe" else {}
    victim = there.consume(kind, relay.pull_url, options=options)
    producer = here.produce("own", relay.push_url, sizes=[100 * KIB] * 400, pause_before=100)
    until(lambda: len(victim.said("got")) >= 99)
    wire.cut()
    producer.tell("go")
    # Nobody else is there yet, so the next messages are on their way to the one that is gone.
    until(lambda: "host does not answer" in relay.log(), 30.0 + DEAD_AFTER_S)
    survivor = here.consume(kind, relay.pull_url, options=options)
    producer.wait()
    relay.terminate()
    code, report = relay.finish()
    victim.kill()
    verdict = judge({0: digests(producer)}, gather(survivor) + victim.got())
    assert not verdict.unknown
    assert report["counters"]["requeued"] > 0
    assert report["received"]["messages"] == report["sent"]["messages"] == 400
    # What a message's end was acknowledged for is not sent again, the rest is: also to a
    # consumer that had it and whose word was cut off.
    assert verdict.twice.total() <= len(victim.got())
    assert not verdict.lost
    if kind == "safe":
        assert code == 0
