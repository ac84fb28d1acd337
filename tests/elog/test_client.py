"""The clients of the logbook, against servers that answer as it does and as it does not."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lclstream.core.errors import (
    BackendError,
    InvalidConfigError,
    NotFoundError,
    RequestError,
    UnavailableError,
)
from lclstream.elog import calls
from lclstream.elog.catalog import FileCatalog, LogbookCatalog
from lclstream.elog.client import AsyncElogClient, ElogClient, RunCounters

JSON = "application/json"


class Server:
    """Answers every request with what was prepared, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, str, bytes]] = []
        """Status, content type, body; the last one stays. Status 0 closes the connection."""
        self.asked: list[tuple[str, str, bytes]] = []
        self.headers: dict[str, str] = {}

    def success(self, value: Any) -> None:
        self.answers = [(200, JSON, json.dumps({"success": True, "value": value}).encode())]


@pytest.fixture
def server() -> Iterator[tuple[Server, str]]:
    found = Server()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            found.asked.append((self.command, self.path, self.rfile.read(size)))
            found.headers = dict(self.headers)
            status, kind, body = found.answers[0]
            if len(found.answers) > 1:
                del found.answers[0]
            if status == 0:
                return
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = False
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    yield found, f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        ((404, "text/html", b"no such experiment"), NotFoundError, r"HTTP 404 no such experiment"),
        ((405, "text/html", b""), RequestError, r"HTTP 405"),
        ((500, "text/html", b"<h1>Oops</h1>"), BackendError, r"HTTP 500 <h1>Oops"),
        ((503, "text/html", b""), UnavailableError, r"HTTP 503"),
        ((200, "text/html", b"login please"), BackendError, r"answered no JSON"),
        ((200, JSON, b"{"), BackendError, r"broken JSON"),
        ((200, JSON, b"[]"), BackendError, r"without success"),
        ((200, JSON, b'{"success": false, "errormsg": "no run"}'), RequestError, r": no run$"),
        ((200, JSON, b'{"success": false}'), RequestError, r"without a reason"),
        ((200, JSON, b'{"success": "yes"}'), RequestError, r"without a reason"),
    ],
)
def test_an_answer_is_judged_by_status_then_type_then_success(
    server: tuple[Server, str], answer: tuple[int, str, bytes], error: type[Exception], reason: str
) -> None:
    prepared, url = server
    prepared.answers = [answer]
    with ElogClient(url) as elog, pytest.raises(error, match=reason) as caught:
        elog.new_entry("x", "text")
    assert type(caught.value) is error


def test_a_missing_value_is_nothing(server: tuple[Server, str]) -> None:
    prepared, url = server
    prepared.answers = [(200, JSON, b'{"success": true}')]
    with ElogClient(url) as elog:
        assert elog.run("x", 1) is None
        assert elog.workflow_definitions("x") == []


def test_what_may_be_repeated_is_repeated_once(server: tuple[Server, str]) -> None:
    prepared, url = server
    fine = (200, JSON, b'{"success": true, "value": {"num": 7}}')
    prepared.answers = [(0, "", b""), fine]
    with ElogClient(url) as elog:
        assert elog.current_run("x") == {"num": 7}
        assert len(prepared.asked) == 2
        prepared.answers = [(0, "", b""), fine]
        with pytest.raises(UnavailableError):
            elog.new_entry("x", "text")
    assert len(prepared.asked) == 3


def test_an_entry_is_sent_as_a_form(server: tuple[Server, str]) -> None:
    prepared, url = server
    prepared.success({"_id": "e1"})
    with ElogClient(url) as elog:
        made = elog.new_entry("a/b", "lost & found", title="T", tags=["lclstream", "x"], run=42)
    assert made == {"_id": "e1"}
    [(method, path, body)] = prepared.asked
    assert (method, path) == ("POST", "/lgbk/a%2Fb/ws/new_elog_entry")
    assert body == b"log_text=lost+%26+found&log_tags=lclstream+x&log_title=T&run_num=42"


def test_a_job_gets_status_and_all_counters(server: tuple[Server, str]) -> None:
    prepared, url = server
    prepared.success(None)
    with ElogClient(url) as elog:
        elog.update_workflow_job("x", "j1", status="DONE", counters={"<Events>": 3, "s": "<b>"})
    assert json.loads(prepared.asked[0][2]) == {
        "_id": "j1",
        "status": "DONE",
        "counters": [
            {"key": "<b>&lt;Events&gt;</b>", "value": 3},
            {"key": "<b>s</b>", "value": "&lt;b&gt;"},
        ],
    }


def test_a_login_is_sent_and_never_in_the_clear(server: tuple[Server, str], tmp_path: Path) -> None:
    prepared, url = server
    prepared.success(None)
    secret = tmp_path / "password"
    secret.write_text("pw")
    with ElogClient(url, login=("tmoopr", secret)) as elog:
        elog.current_run("x")
    assert prepared.headers["Authorization"].startswith("Basic ")
    with pytest.raises(InvalidConfigError, match=r"in the clear"):
        ElogClient("http://logbook.example.org", login=("tmoopr", secret))


def test_counters_are_posted_whole_and_only_when_they_change(server: tuple[Server, str]) -> None:
    prepared, url = server
    prepared.answers = [(200, "text/plain", b"ok")]
    with RunCounters(f"{url}/jid/ws/replace_counters/x/j1") as counters:
        assert counters.post({"Events": 1, "Rate": float("nan")})
        assert counters.post({"Events": 1})
        assert counters.post({"Events": 2})
    assert len(prepared.asked) == 2
    assert "Authorization" not in prepared.headers
    assert json.loads(prepared.asked[1][2]) == [
        {"key": "<b>Events</b>", "value": 2},
        {"key": "<b>Rate</b>", "value": "nan"},
    ]


def test_counters_that_cannot_be_posted_disturb_nobody(
    server: tuple[Server, str], caplog: pytest.LogCaptureFixture
) -> None:
    prepared, url = server
    prepared.answers = [(0, "", b""), (500, JSON, b"{}"), (200, JSON, b"{}")]
    with RunCounters(url) as counters:
        assert not counters.post({"Events": 1})
        assert not counters.post({"Events": 1})
        assert counters.failures == 2
        assert counters.post({"Events": 1})
    assert caplog.messages.count("counters_not_posted") == 2


DEFINITION = {
    "_id": "d1",
    "name": "stream",
    "executable": "/x/lclstream-arp",
    "trigger": "END_OF_RUN",
    "location": "S3DF",
    "parameters": "--dag again",
}


def catalog(client: AsyncElogClient, folder: Path, **settings: Any) -> LogbookCatalog:
    (folder / "a.yaml").write_text("name: ours\ndag: stream\ntrigger: START_OF_RUN\n")
    files = FileCatalog([folder])
    given = {"executables": ["lclstream-arp"], "refresh_s": 60.0, **settings}
    return LogbookCatalog(client, files, **given)


@pytest.mark.anyio
async def test_the_logbooks_definitions_are_asked_for_once(
    server: tuple[Server, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared, url = server
    prepared.success(
        [
            DEFINITION,
            {**DEFINITION, "name": "theirs", "executable": "/x/other"},
            {**DEFINITION, "name": "by-hand", "trigger": "MANUAL"},
            {**DEFINITION, "name": "ours"},
            {**DEFINITION, "name": "broken", "parameters": "--dog x"},
            {"name": 7},
        ]
    )
    async with AsyncElogClient(url) as client:
        book = catalog(client, tmp_path)
        for _ in range(2):
            assert [each.name for each in await book.definitions("tst1")] == ["stream"]
    assert len(prepared.asked) == 1
    assert caplog.messages.count("definition_unusable") == 2


@pytest.mark.anyio
async def test_definitions_outlive_the_logbook(
    server: tuple[Server, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared, url = server
    async with AsyncElogClient(url) as client:
        book = catalog(client, tmp_path, refresh_s=0.0)
        prepared.answers = [(503, JSON, b"{}")]
        with pytest.raises(UnavailableError):
            await book.definitions("tst1")
        prepared.success([DEFINITION])
        assert len(await book.definitions("tst1")) == 1
        prepared.answers = [(503, JSON, b"{}")]
        assert len(await book.definitions("tst1")) == 1
        assert "definitions_outdated" in caplog.messages
        prepared.answers = [(404, "text/html", b"")]
        assert await book.definitions("nobody") == []


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: calls.start_run("x", {}, run=7, run_type="DATA"), "/run_control/x/ws/start_run"),
        (lambda: calls.end_run("x"), "/run_control/x/ws/end_run"),
        (lambda: calls.run_files("x", "a/b"), "/lgbk/x/ws/a%2Fb/files"),
        (lambda: calls.register_file("x", "/p", run=1, size_bytes=2), "/lgbk/x/ws/register_file"),
    ],
)
def test_calls_go_where_the_logbook_has_them(call: Callable[[], calls.Call], expected: str) -> None:
    assert call().path == expected
