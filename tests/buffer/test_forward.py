"""Buffers that are linked: messages and the end of the stream go through all of them."""

import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pynng
import pytest
from cryptography import x509
from tests.buffer.certificates import Authority
from tests.buffer.forwarding import ENDS_QUICKLY, Buffers, Consumers, Network, Producers, until
from tests.buffer.peers import drain, pynng_url

from lclstream.buffer import Pull, Push
from lclstream.core.tls import Credentials

LOCALHOST = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
ONE_PRODUCER = ("--expect-producers", "1", *ENDS_QUICKLY)
TWO_PRODUCERS = ("--expect-producers", "2", *ENDS_QUICKLY)
SAFE = ("--delivery", "safe")


@pytest.fixture
def buffers(tmp_path: Path) -> Iterator[Buffers]:
    with Buffers(tmp_path) as made:
        yield made


@pytest.mark.parametrize("delivery", ["fast", "safe"])
def test_everything_and_the_end_go_through_two_buffers(buffers: Buffers, delivery: str) -> None:
    second = buffers.serve("--delivery", delivery, *ONE_PRODUCER)
    first = buffers.serve(
        "--delivery", delivery, "--forward", second.push_url, "--forward-connections", "4",
        *TWO_PRODUCERS,
    )  # fmt: skip
    consumers = Consumers(second, 2)
    producers = Producers(first.push_url, 2, 150)
    producers.join()
    code, report = first.finish()
    assert code == 0, report
    code, further = second.finish()
    assert code == 0, further
    consumers.join()
    assert consumers.got == producers.sent
    assert report["received"] == report["sent"] == further["received"] == further["sent"]
    links = [peer for peer in report["peers"] if peer["side"] == "out"]
    assert [peer["address"] for peer in links] == [second.push_url] * 4
    assert further["counters"]["producers_seen"] == 1, "all links are one producer"
    assert report["forward"][0]["states"] == {"done": 4}


def test_links_go_through_tls_and_into_a_buffer_that_requires_it(
    buffers: Buffers, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "identities")
    here, there = (folder(authority.issue(name, LOCALHOST)) for name in ("here", "there"))
    second = buffers.serve("--tls", there, "--require-tls", "--allow", "here", *SAFE, *ONE_PRODUCER)
    first = buffers.serve(
        "--tls", here, "--require-tls", "--forward", over_tls(second.push_url),
        "--forward-connections", "2", *ONE_PRODUCER,
    )  # fmt: skip
    identity = Credentials.from_folder(Path(here))
    sizes = [0, 13, 100_000, 3_000_000]
    with Push(over_tls(first.push_url), tls=identity) as push:
        for size in sizes:
            push.send(bytes(size))
    with Pull(over_tls(second.pull_url), tls=identity) as pull:
        assert sorted(map(len, drain(pull))) == sizes
    code, report = first.finish()
    assert code == 0, report
    code, further = second.finish()
    assert code == 0, further
    assert {peer["identity"] for peer in further["peers"]} == {"here"}


def over_tls(url: str) -> str:
    return url if url.startswith("tls+") else f"tls+{url}"


def folder(credentials: Credentials) -> str:
    return str(credentials.certificate.parent)


def test_an_incomplete_stream_is_not_said_to_be_complete(buffers: Buffers) -> None:
    second = buffers.serve("--resume-timeout", "0.5", *SAFE, *ONE_PRODUCER)
    first = buffers.serve(
        "--forward", second.push_url, "--forward-connections", "2", "--resume-timeout", "0.5",
        *SAFE, *ONE_PRODUCER,
    )  # fmt: skip
    consumers = Consumers(second, 1)
    push = Push(first.push_url, delivery="safe")
    push.send(b"whole")
    until(lambda: consumers.count == 1)
    push.abort()
    code, report = first.finish()
    assert code == 1, report
    code, further = second.finish()
    assert code == 1, further
    assert "ended without a word" in further["error"]
    consumers.join()
    assert consumers.count == 1


def test_what_cannot_be_delivered_is_named(buffers: Buffers) -> None:
    with Network("tcp://127.0.0.1:1") as nowhere:
        first = buffers.serve("--forward", nowhere.url, "--term-timeout", "1", *SAFE)
        with Push(first.push_url) as push:
            for _ in range(3):
                push.send(b"stays here")
        first.terminate()
        code, report = first.finish()
    assert code == 1
    assert report["counters"]["undelivered"] == 3
    assert "3 messages were not delivered" in report["error"]
    assert report["forward"][0]["problems"]


def test_who_is_no_buffer_of_ours_gets_nothing(buffers: Buffers) -> None:
    with pynng.Pull0(listen="tcp://127.0.0.1:0", recv_timeout=100) as pull:
        first = buffers.serve("--forward", pynng_url(pull), "--forward-connections", "1", *SAFE)
        with Push(first.push_url) as push:
            push.send(b"not for everybody")
        until(lambda: bool(first.events("forward_lost")))
        assert "no buffer of ours" in first.events("forward_lost")[0]["reason"]
        with pytest.raises(pynng.Timeout):
            pull.recv()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("tcp://127.0.0.1:0", "one port"),
        ("tcp://127.0.0.1:4000-4001", "one port"),
        ("tcp://0.0.0.0:4000", "one host"),
        ("tls+tcp://127.0.0.1:4000", "--tls"),
    ],
)
def test_addresses_that_cannot_be_dialled_are_refused(
    url: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from lclstream.cli.main import main

    assert main(["buffer", "serve", "--forward", url]) == 2
    assert problem in capsys.readouterr().err
