"""`lclstream buffer serve` as a process of its own."""

import logging
import signal
import socket
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
from tests.buffer.peers import drain, in_thread, until
from tests.buffer.reports import open_desk
from tests.buffer.serving import finish, serving

from lclstream.buffer import Pull, Push
from lclstream.buffer.cli import size_bytes
from lclstream.cli.main import main
from lclstream.core.ledger import Reply, Tally
from lclstream.identity.authority import Authority


def send(addresses: dict[str, list[str]], messages: list[bytes]) -> None:
    with Push(addresses["in"]) as push:
        for message in messages:
            push.send(message)


def receive(addresses: dict[str, list[str]]) -> list[bytes]:
    with Pull(addresses["out"]) as pull:
        return drain(pull)


MESSAGES = [bytes([i]) * (i * 5000) for i in range(100)]


def test_stream_from_end_to_end(tmp_path: Path) -> None:
    options = ("--expect-producers", "2", "--grace", "0.2", "--memory", "1MiB")
    with serving(tmp_path, *options) as (process, addresses):
        received: list[bytes] = []
        with in_thread(lambda: received.extend(receive(addresses))):
            with in_thread(lambda: send(addresses, MESSAGES)):
                send(addresses, MESSAGES)
            code, report = finish(process)
    assert sorted(received) == sorted(2 * MESSAGES)
    assert code == 0
    assert report["complete"] is True
    assert report["received"] == report["sent"]
    assert report["received"]["messages"] == 200
    assert report["addresses"] == addresses
    assert [peer["side"] for peer in report["peers"]].count("in") == 2


def test_sigterm_drains(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, addresses):
        send(addresses, MESSAGES)
        process.send_signal(signal.SIGTERM)
        # What was accepted is delivered to who comes before the deadline.
        assert receive(addresses) == MESSAGES
        code, report = finish(process)
    assert code == 0
    assert report["reason"] == "SIGTERM"


def test_sigterm_with_nobody_there_says_what_is_lost(tmp_path: Path) -> None:
    with serving(tmp_path, "--term-timeout", "0.3") as (process, addresses):
        send(addresses, MESSAGES)
        process.send_signal(signal.SIGTERM)
        code, report = finish(process)
    assert code == 1
    assert report["counters"]["undelivered"] == 100
    assert report["error"] == "100 messages were not delivered; ended because: SIGTERM"


def test_second_sigterm_ends_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, "--term-timeout", "1000") as (process, addresses):
        send(addresses, MESSAGES)
        process.send_signal(signal.SIGTERM)
        until(lambda: "draining" in (tmp_path / "log").read_text())
        process.send_signal(signal.SIGTERM)
        code, report = finish(process)
    assert code == 1
    assert report["reason"] == "SIGTERM again"


@pytest.fixture
def logs_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command sends the logs to the standard error of the moment."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)


@pytest.mark.usefixtures("logs_stay_as_they_are")
def test_taken_port_is_a_wrong_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        code = main(["buffer", "serve", "--in", url, "--ready-file", str(tmp_path / "ready")])
    assert code == 2
    assert f"lclstream: cannot listen on {url}: Address already in use\n" in capsys.readouterr().err
    assert not (tmp_path / "ready").exists()


@pytest.mark.usefixtures("logs_stay_as_they_are")
def test_wrong_values_are_all_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["buffer", "serve", "--grace", "-1", "--max-idle", "-2", "--linger", "nan"]) == 2
    errors = capsys.readouterr().err
    assert "grace_s must be >= 0, got -1.0" in errors
    assert "max_idle_s must be >= 0, got -2.0" in errors
    assert "linger_s must be >= 0, got nan" in errors


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("256MiB", 256 << 20), ("1.5 GB", 1_500_000_000), ("8kB", 8000), ("1b", 1)],
)
def test_sizes(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "1 XB", "-1"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="expected a number and one of"):
        size_bytes(text)


def test_job_of_a_transfer_reports_and_obeys(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "Test CA")
    authority.issue_service(tmp_path / "service", "transfers", hosts=["127.0.0.1"])
    authority.issue_user(tmp_path / "identity", "job:1:buffer", "buffer")
    with open_desk(tmp_path / "service") as desk:
        environment = {"LCLSTREAM_REPORT_URL": desk.url, "LCLSTREAM_IDENTITY": "identity"}
        with serving(tmp_path, "--digest", environment=environment) as (process, addresses):
            until(lambda: bool(desk.reports))
            assert desk.reports[0].addresses is not None
            assert desk.reports[0].addresses.in_ == addresses["in"]
            assert desk.reports[0].addresses.out == addresses["out"]
            send(addresses, MESSAGES)
            until(lambda: desk.reports[-1].stats.get("queue_messages") == 100)
            received: list[bytes] = []
            with in_thread(lambda: received.extend(receive(addresses))):
                desk.reply = Reply(command="drain", reason="all producers have ended")
                code, report = finish(process)
    assert received == MESSAGES
    assert code == 0
    assert report["reason"] == "all producers have ended"
    last = desk.reports[-1]
    expected = Tally()
    for message in MESSAGES:
        expected.add(message)
    assert (last.final, last.ok, last.error) == (True, True, "")
    assert last.received == last.sent == expected.snapshot()
    assert len({one.peer for one in desk.reports}) == 1
    assert {"queue_bytes", "capacity_bytes", "producers", "consumers"} <= last.stats.keys()


def test_transfer_may_stop_its_buffer(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "Test CA")
    authority.issue_service(tmp_path / "service", "transfers", hosts=["127.0.0.1"])
    authority.issue_user(tmp_path / "identity", "job:1:buffer", "buffer")
    with open_desk(tmp_path / "service") as desk:
        desk.reply = Reply(command="stop", reason="canceled")
        environment = {"LCLSTREAM_REPORT_URL": desk.url}
        with serving(tmp_path, environment=environment) as (process, _):
            code, report = finish(process)
    assert code == 1
    assert (report["state"], report["reason"]) == ("incomplete", "canceled")
    assert (desk.reports[-1].final, desk.reports[-1].ok) == (True, False)
    assert desk.reports[-1].error == "ended because: canceled"
