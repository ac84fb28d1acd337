"""Tallies, reports and the thread that sends them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lclstream.core.errors import BackendError, IdentityError, LclstreamError, UnavailableError
from lclstream.core.ledger import (
    Reply,
    Report,
    Reporter,
    Tally,
    TallyModel,
    digest64,
    digest64_of_parts,
    identity_folder,
    peer_name,
)
from lclstream.core.tls import Credentials
from lclstream.identity.authority import Authority

messages = st.lists(st.binary(max_size=64), max_size=20)


def tally(payloads: list[bytes]) -> Tally:
    made = Tally()
    for payload in payloads:
        made.add(payload, events=2)
    return made


@given(messages, st.randoms())
def test_order_and_split_do_not_matter(payloads: list[bytes], dice: "object") -> None:
    whole = tally(payloads)
    shuffled = sorted(payloads)
    parts = Tally()
    parts.merge(tally(shuffled[::2]))
    parts.merge(tally(shuffled[1::2]).snapshot())
    assert parts == whole
    assert whole.messages == len(payloads)
    assert whole.bytes == sum(map(len, payloads))
    assert whole.events == 2 * len(payloads)


@given(messages.filter(bool), st.binary(max_size=8))
def test_lost_doubled_or_altered_message_is_seen(payloads: list[bytes], other: bytes) -> None:
    whole = tally(payloads)
    assert tally(payloads[1:]) != whole
    assert tally([*payloads, payloads[0]]) != whole
    if other != payloads[0]:
        assert tally([other, *payloads[1:]]).digest != whole.digest


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_scattered_message_has_the_digest_of_the_whole(parts: list[bytes]) -> None:
    assert digest64_of_parts(parts) == digest64(b"".join(parts))


def test_known_digest() -> None:
    # xxh3_64 of the empty message, a published value.
    assert digest64(b"") == 0x2D06800538D394C2
    made = Tally()
    made.add(b"")
    assert made.snapshot() == TallyModel(messages=1, bytes=0, digest="2d06800538d394c2")


def test_report_travels_with_its_wire_names() -> None:
    text = '{"hop":"buffer","peer":"b","addresses":{"in":["tcp://h:1"],"out":["tcp://h:2"]}}'
    report = Report.model_validate_json(text)
    assert report.addresses is not None
    assert report.addresses.in_ == ["tcp://h:1"]
    again = report.model_dump_json(by_alias=True, exclude_none=True)
    assert Report.model_validate_json(again) == report


@pytest.mark.parametrize(
    "text",
    [
        '{"hop":"relay","peer":"x"}',
        '{"hop":"buffer","peer":""}',
        '{"hop":"buffer","peer":"x","sent":{"messages":-1}}',
        '{"hop":"buffer","peer":"x","sent":{"digest":"XYZ"}}',
        '{"hop":"buffer","peer":"x","secret":1}',
    ],
)
def test_hostile_report_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Report.model_validate_json(text)


def test_identity_folder_lies_in_the_work_folder_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work" / "identity").mkdir(parents=True)
    monkeypatch.chdir("/")
    monkeypatch.setenv("base", str(tmp_path))
    assert identity_folder("identity") == tmp_path / "work" / "identity"
    with pytest.raises(IdentityError, match="no identity folder at elsewhere or "):
        identity_folder("elsewhere")


class Sink:
    """An HTTPS server that keeps reports and answers as it is told."""

    def __init__(self, identity: Path) -> None:
        self.reports: list[Report] = []
        self.reply = Reply()
        self.body: bytes | None = None
        self.status = 200
        self.arrived = threading.Condition()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with sink.arrived:
                    if sink.status == 200:
                        sink.reports.append(Report.model_validate_json(body))
                    sink.arrived.notify_all()
                    answer = sink.body or sink.reply.model_dump_json().encode()
                    status = sink.status
                    if sink.status == 503:
                        sink.status = 200
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *words: object) -> None:
                """Keep the output of the tests clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = Credentials.from_folder(identity).server_context()
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_address[1]}/reports"

    def wait_for(self, count: int) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.reports) >= count, timeout=10)


@contextmanager
def running(sink: Sink) -> Iterator[None]:
    thread = threading.Thread(target=sink.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        sink.server.shutdown()
        sink.server.server_close()
        thread.join()


@pytest.fixture
def identities(tmp_path: Path) -> tuple[Path, Credentials]:
    authority = Authority.create(tmp_path / "ca", "Test CA")
    authority.issue_service(tmp_path / "service", "sink", hosts=["127.0.0.1"])
    authority.issue_user(tmp_path / "user", "Reporter", "reporter")
    return tmp_path / "service", Credentials.from_folder(tmp_path / "user")


def test_reporter_reports_obeys_and_finishes(identities: tuple[Path, Credentials]) -> None:
    service, credentials = identities
    sink = Sink(service)
    sink.reply = Reply(command="drain", reason="all producers have ended")
    replies: list[Reply] = []
    counter = iter(range(1000))

    def snapshot() -> Report:
        return Report(hop="producer", peer="rank-0", stats={"count": next(counter)})

    with running(sink), Reporter(sink.url, credentials, snapshot, replies.append, 0.01) as reporter:
        sink.wait_for(3)
        assert reporter.finish(Report(hop="producer", peer="rank-0", final=True)).command == "drain"
    assert [report.stats["count"] for report in sink.reports[:3]] == [0, 1, 2]
    assert sink.reports[-1].final
    assert replies[0].reason == "all producers have ended"


def test_final_report_outlasts_an_outage(identities: tuple[Path, Credentials]) -> None:
    service, credentials = identities
    sink = Sink(service)
    report = Report(hop="consumer", peer="c", final=True)
    with running(sink), Reporter(sink.url, credentials, lambda: report, interval_s=60) as reporter:
        sink.wait_for(1)
        sink.status = 503
        reporter.finish(report)
    assert len(sink.reports) == 2


def test_final_report_that_is_refused_raises(identities: tuple[Path, Credentials]) -> None:
    service, credentials = identities
    sink = Sink(service)
    report = Report(hop="consumer", peer="c", final=True)
    with running(sink), Reporter(sink.url, credentials, lambda: report, interval_s=60) as reporter:
        sink.wait_for(1)
        sink.status = 403
        with pytest.raises(LclstreamError):
            reporter.finish(report)


def test_final_report_without_a_service_raises(identities: tuple[Path, Credentials]) -> None:
    _, credentials = identities
    report = Report(hop="consumer", peer="c", final=True)
    reporter = Reporter("https://127.0.0.1:9/reports", credentials, lambda: report)
    with pytest.raises(UnavailableError, match=r"^no answer from https://127\.0\.0\.1:9/reports: "):
        reporter.finish(report, timeout_s=0.2)


def test_peer_names_this_process() -> None:
    assert peer_name("rank-3").startswith("rank-3@")


def test_strange_answer_does_not_end_the_reports(identities: tuple[Path, Credentials]) -> None:
    service, credentials = identities
    sink = Sink(service)
    sink.body = b'{"command": "dance"}'
    report = Report(hop="consumer", peer="c")
    with running(sink), Reporter(sink.url, credentials, lambda: report, interval_s=0.01) as each:
        sink.wait_for(3)
        with pytest.raises(BackendError, match=r"did not answer with a reply"):
            each.finish(report)
