"""Streams from real producers, with reports to a real service."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from tests.client.messages import Producer, message

from lclstream import client
from lclstream.buffer.endpoints import ReceiveTimeoutError
from lclstream.client.decode import decode
from lclstream.client.receive import Receiver
from lclstream.client.streams import stream
from lclstream.core.errors import (
    BufferClosedError,
    DecodeError,
    InvalidConfigError,
    UnavailableError,
)
from lclstream.core.ledger import Reply, Report, Tally
from lclstream.core.tls import Credentials
from lclstream.identity.authority import Authority
from lclstream.identity.caller import CallerDep
from lclstream.identity.web import WebService


class Ledger:
    """A service that keeps the reports it gets, in a thread with its own loop."""

    def __init__(self, folder: Path) -> None:
        authority = Authority.create(folder / "authority", "Test Authority")
        authority.issue_service(folder / "service", "transfers", ["127.0.0.1"])
        authority.issue_job("job:t-1:consumer").save(folder / "identity")
        self.identity = folder / "identity"
        self.reports: list[Report] = []
        self.callers: set[str] = set()
        self.reply = Reply()
        self.arrived = threading.Event()
        self._service = folder / "service"
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> "Ledger":
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._web.close)
        self._thread.join(20)
        assert not self._thread.is_alive()

    @property
    def final(self) -> Report:
        return next(report for report in self.reports if report.final)

    async def _serve(self) -> None:
        app = FastAPI()

        @app.post("/reports")
        async def report(request: Request, caller: CallerDep) -> Reply:
            self.reports.append(Report.model_validate_json(await request.body()))
            self.callers.add(caller.name)
            self.arrived.set()
            return self.reply

        self._loop = asyncio.get_running_loop()
        self._web = WebService(app, self._service)
        async with self._web:
            self.url = f"{self._web.url}/reports"
            self._ready.set()
            await self._web.wait_closed()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path) as ledger:
        yield ledger


@pytest.fixture
def in_transfer(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setenv("LCLSTREAM_TRANSFER", "t-1")
    monkeypatch.setenv("LCLSTREAM_ROLE", "consumer")
    monkeypatch.setenv("LCLSTREAM_REPORT_URL", ledger.url)
    monkeypatch.setenv("LCLSTREAM_IDENTITY", str(ledger.identity))
    return ledger


def tally_of(payloads: list[bytes]) -> Tally:
    tally = Tally()
    for payload in payloads:
        tally.add(payload, events=len(decode(payload)))
    return tally


def test_stream_gives_every_event_and_ends() -> None:
    payloads = [message(3 * i) for i in range(20)]
    with Producer(payloads) as producer, stream(producer.url) as batches:
        indices = [event.index for event in batches.events()]
        assert batches.tally == tally_of(payloads)
    assert indices == list(range(60))
    assert producer.error is None


def test_loop_without_a_context(in_transfer: Ledger) -> None:
    with Producer([message(0), message(3)]) as producer:
        indices = [event.index for batch in stream(producer.url) for event in batch]
    assert indices == [0, 1, 2, 3, 4, 5]
    assert in_transfer.final.ok


def test_loop_that_is_left_early(in_transfer: Ledger) -> None:
    with Producer([message(0), message(3)]) as producer:
        for batch in stream(producer.url):
            assert len(batch) == 3
            break
    assert in_transfer.final.error == "the consumer left before the end of the stream"


def test_public_names_come_when_they_are_used() -> None:
    assert [getattr(client, name).__name__ for name in client.__all__] == client.__all__
    with pytest.raises(AttributeError, match=r"^module 'lclstream\.client' has no attribute 'x'$"):
        _ = client.x


def test_batches_outlive_the_stream() -> None:
    with Producer([message(3 * i) for i in range(5)]) as producer, stream(producer.url) as batches:
        kept = list(batches)
    assert [int(batch.indices[0]) for batch in kept if batch.indices is not None] == [
        0,
        3,
        6,
        9,
        12,
    ]
    assert all(
        (batch["data"] == decode(message(3 * i))["data"]).all() for i, batch in enumerate(kept)
    )


def test_listening_stream_ends_with_the_last_of_its_producers() -> None:
    with stream("tcp://127.0.0.1:0", listen=True, peers=2) as batches:
        url = batches.receiver.urls[0]
        with Producer([message(0)], url) as first:
            got = [next(batches)]
            first.end()
        with Producer([message(3), message(6)], url):
            got += list(batches)
    assert [int(batch.indices[0]) for batch in got if batch.indices is not None] == [0, 3, 6]


def test_empty_message_is_a_farewell() -> None:
    payloads = [message(0), b""]
    with Producer(payloads, end=False) as producer, stream(producer.url) as batches:
        assert len(list(batches)) == 1
        assert batches.tally == tally_of(payloads[:1])


def test_what_follows_a_farewell_is_received() -> None:
    # Two producers behind one buffer.
    payloads = [message(0), b"", message(3), b""]
    with Producer(payloads, end=False) as producer, stream(producer.url) as batches:
        assert [event.index for event in batches.events()] == [0, 1, 2, 3, 4, 5]


def test_every_producer_has_to_say_farewell() -> None:
    with (
        Producer([message(0), b""], end=False) as one,
        Producer([message(3), b""], end=False) as two,
        stream([one.url, two.url]) as batches,
    ):
        assert sorted(event.index or 0 for event in batches.events()) == [0, 1, 2, 3, 4, 5]


def test_damaged_message_is_an_error_and_iteration_goes_on() -> None:
    payloads = [message(0), message(3)[:500], b"nonsense", message(6)]
    with Producer(payloads) as producer, stream(producer.url) as batches:
        next(batches)
        for _ in range(2):
            with pytest.raises(DecodeError):
                next(batches)
        assert len(list(batches)) == 1
        assert batches.damaged == 2
        # What was received is accounted for, damaged or not.
        assert (batches.tally.messages, batches.tally.events) == (4, 6)


def test_damaged_messages_can_be_skipped(caplog: pytest.LogCaptureFixture) -> None:
    with (
        Producer([b"nonsense", message(0)]) as producer,
        stream(producer.url, on_error="skip") as batches,
    ):
        assert len(list(batches)) == 1
        assert batches.damaged == 1
    assert caplog.messages.count("message_damaged") == 1


def test_silence() -> None:
    with (
        Producer([message(0)], end=False) as producer,
        stream(producer.url, timeout_s=0.3) as batches,
    ):
        next(batches)
        with pytest.raises(ReceiveTimeoutError, match=r"^no message within 0\.3 s$"):
            next(batches)


def test_stop_from_another_thread() -> None:
    with Producer([message(0)], end=False) as producer, stream(producer.url) as batches:
        next(batches)
        batches.stop("enough")
        with pytest.raises(BufferClosedError, match=r"^stopped before the end .*: enough$"):
            next(batches)


def test_outside_of_a_transfer_a_url_is_needed() -> None:
    with pytest.raises(InvalidConfigError, match=r"^no URL to pull from"):
        stream()


def test_report_url_needs_credentials() -> None:
    with pytest.raises(InvalidConfigError, match=r"go together$"):
        stream("tcp://127.0.0.1:1", report_url="https://127.0.0.1:1/reports")


def test_job_of_a_transfer_reports(in_transfer: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    payloads = [message(3 * i) for i in range(10)]
    with Producer(payloads) as producer:
        monkeypatch.setenv("LCLSTREAM_URL", producer.url)
        with stream(label="consumer-1") as batches:
            for _ in batches:
                batches.stats["hits"] = 7
    final = in_transfer.final
    assert (final.hop, final.ok, final.error) == ("consumer", True, "")
    assert final.received == tally_of(payloads).snapshot()
    assert final.peer.startswith("consumer-1@")
    assert {report.peer for report in in_transfer.reports} == {final.peer}
    assert final.stats["hits"] == 7
    assert in_transfer.callers == {"cn:job:t-1:consumer"}


def test_another_stream_is_not_for_the_account_of_the_transfer(
    in_transfer: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCLSTREAM_URL", "tcp://127.0.0.1:1")
    with Producer([message(0)]) as producer, stream(producer.url) as batches:
        list(batches)
    assert in_transfer.reports == []


def test_explicit_report_address(ledger: Ledger) -> None:
    credentials = Credentials.from_folder(ledger.identity)
    with (
        Producer([message(0)]) as producer,
        stream(producer.url, report_url=ledger.url, credentials=credentials) as batches,
    ):
        list(batches)
    assert ledger.final.ok


@pytest.mark.parametrize(
    ("payloads", "read", "reason"),
    [
        ([message(0), b"nonsense"], None, "1 damaged messages"),
        ([message(0), message(3)], 1, "the consumer left before the end of the stream"),
    ],
    ids=["damaged", "left early"],
)
def test_incomplete_reading_is_reported(
    in_transfer: Ledger, payloads: list[bytes], read: int | None, reason: str
) -> None:
    with Producer(payloads) as producer, stream(producer.url, on_error="skip") as batches:
        for number, _ in enumerate(batches, 1):
            if number == read:
                break
    assert (in_transfer.final.ok, in_transfer.final.error) == (False, reason)


def test_failure_of_the_reader_is_reported(in_transfer: Ledger) -> None:
    def fail(url: str) -> None:
        with stream(url) as batches:
            for batch in batches:
                _ = len(batch) / 0

    with Producer([message(0)]) as producer, pytest.raises(ZeroDivisionError):
        fail(producer.url)
    final = in_transfer.final
    assert (final.ok, final.error) == (False, "ZeroDivisionError: division by zero")


def test_service_can_stop_a_reader(in_transfer: Ledger) -> None:
    in_transfer.reply = Reply(command="stop", reason="canceled by uid:mona")
    with (
        Producer([message(0)], end=False) as producer,
        pytest.raises(BufferClosedError, match=r"canceled by uid:mona$"),
        stream(producer.url) as batches,
    ):
        list(batches)
    assert not in_transfer.final.ok


def test_consumer_that_comes_after_the_end_got_nothing_and_is_well(in_transfer: Ledger) -> None:
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{gone.getsockname()[1]}"
    in_transfer.reply = Reply(command="drain", reason="the buffer has ended")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LCLSTREAM_URL", url)
        assert list(stream()) == []
    assert in_transfer.final.ok
    assert in_transfer.final.received == Tally().snapshot()


def test_final_report_that_does_not_get_through(
    in_transfer: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCLSTREAM_REPORT_URL", "https://127.0.0.1:1/reports")
    monkeypatch.setattr("lclstream.core.ledger.FINISH_TIMEOUT_S", 0.2)
    monkeypatch.setattr("lclstream.core.ledger.Reporter.finish.__defaults__", (0.2,))
    with (
        Producer([message(0)]) as producer,
        pytest.raises(UnavailableError),
        stream(producer.url) as batches,
    ):
        list(batches)


def test_receiver_gives_raw_messages() -> None:
    payloads = [b"one", b"two" * 100_000, b"three"]
    with Producer(payloads) as producer, Receiver(producer.url) as receiver:
        assert [bytes(payload) for payload in receiver] == payloads
        assert receiver.tally.bytes == sum(map(len, payloads))
        assert receiver.ended


def test_several_connections_to_one_address() -> None:
    payloads = [message(3 * i) for i in range(30)]
    with Producer(payloads) as producer, stream(producer.url, peers=3) as batches:
        assert sorted(event.index or 0 for event in batches.events()) == list(range(90))
