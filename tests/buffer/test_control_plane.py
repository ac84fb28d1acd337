"""Watching a buffer and telling it what to do, over HTTP."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from lclstream.buffer.control_address import ControlAddress
from lclstream.buffer.control_client import ControlClient
from lclstream.buffer.control_plane import ControlPlane
from lclstream.buffer.http_server import MAX_BODY_BYTES, MAX_CONNECTIONS, MAX_HEAD_BYTES
from lclstream.buffer.statistics import Statistics
from lclstream.core.errors import (
    IdentityError,
    InvalidConfigError,
    LclstreamError,
    NotAuthorizedError,
    NotFoundError,
    UnavailableError,
    UntrustedPeerError,
)
from lclstream.core.ledger import TallyModel
from lclstream.core.tls import Credentials
from lclstream.identity.authority import Authority

Result = TypeVar("Result")

pytestmark = pytest.mark.anyio


def statistics() -> Statistics:
    tally = TallyModel(messages=3, bytes=70)
    return Statistics(
        state="open", reason="", received=tally, sent=tally, queue_messages=0, queue_bytes=0,
        queue_peak_bytes=0, held_bytes=0, held_peak_bytes=0, capacity_bytes=1000, producers=0,
        consumers=0, retained_messages=0, oldest_s=0.0, paused_producers=0,
    )  # fmt: skip


class Recorder:
    """A buffer that only writes down what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.failure: Exception | None = None

    async def summary(self) -> dict[str, Any]:
        if self.failure is not None:
            raise self.failure
        return {"lanes": 1, **statistics().whole()}

    def drain(self, reason: str, deadline_s: float | None) -> None:
        self.told.append(("drain", reason, deadline_s))

    def stop(self, reason: str) -> None:
        self.told.append(("stop", reason))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of ours, where we are: paths of Unix sockets must be short."""
    tmp_path.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@asynccontextmanager
async def plane(
    url: str, credentials: Credentials | None = None, allowed: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Recorder, str]]:
    buffer = Recorder()
    control = ControlPlane(buffer, credentials, allowed)
    control.bind([ControlAddress.parse(url)])
    await control.start()
    try:
        yield buffer, control.urls[0]
    finally:
        await control.close()


async def aside(work: Callable[..., Result], *arguments: str) -> Result:
    """Do something that blocks in a thread that is gone afterwards."""
    with ThreadPoolExecutor(1) as pool:
        return await asyncio.wrap_future(pool.submit(work, *arguments))


async def test_figures_over_a_unix_socket(folder: Path) -> None:
    async with plane("unix:control") as (_, url):
        assert url == f"unix:{folder / 'control'}"
        assert (folder / "control").stat().st_mode & 0o777 == 0o600

        def ask() -> tuple[dict[str, Any], str]:
            with ControlClient("unix:control") as client:
                return client.statistics(), client.metrics()

        values, text = await aside(ask)
    assert values["received"]["messages"] == 3
    assert "\nlclstream_buffer_received_messages_total 3\n" in text
    assert not (folder / "control").exists()


async def test_orders_over_a_unix_socket(folder: Path) -> None:
    async with plane("unix:control") as (buffer, _):

        def order() -> None:
            with ControlClient("unix:control") as client:
                client.drain("done", 2.5)
                client.drain("done")
                client.stop("enough")

        await aside(order)
    assert buffer.told == [("drain", "done", 2.5), ("drain", "done", None), ("stop", "enough")]


async def talk(url: str, data: bytes, timeout_s: float = 10.0) -> bytes:
    """Send bytes and return all that is answered."""
    reader, writer = await asyncio.open_unix_connection(url.removeprefix("unix:"))
    async with asyncio.timeout(timeout_s):
        writer.write(data)
        answer = await reader.read(-1)
    writer.close()
    return answer


def request(line: str, body: bytes = b"", *headers: str) -> bytes:
    head = [line, "Host: buffer", "Connection: close", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("data", "status", "text"),
    [
        (request("GET /health HTTP/1.1"), 200, b'{"state": "open", "reason": ""}'),
        (request("GET /v1/statistics?x=1 HTTP/1.1"), 200, b'"state": "open"'),
        (request("GET / HTTP/1.1"), 404, b"NotFoundError"),
        (request("GET /v1/drain HTTP/1.1"), 405, b"/v1/drain takes POST, not GET"),
        (request("POST /metrics HTTP/1.1"), 405, b"takes GET"),
        (request("POST /v1/drain HTTP/1.1", b"{"), 422, b"InvalidConfigError"),
        (request("POST /v1/drain HTTP/1.1", b'{"deadline": 1}'), 422, b"deadline"),
        (request("POST /v1/drain HTTP/1.1", b'{"deadline_s": -1}'), 422, b"deadline_s"),
        (request("POST /v1/drain HTTP/1.1", b'{"deadline_s": NaN}'), 422, b"deadline_s"),
        (request("POST /v1/stop HTTP/1.1", b'{"reason": ""}'), 422, b"reason"),
        (request("POST /v1/stop HTTP/1.1", bytes(MAX_BODY_BYTES + 1)), 413, b"TooLargeError"),
        (b"nonsense\r\n\r\n", 400, b"not HTTP"),
        (b"GET /" + b"x" * (2 * MAX_HEAD_BYTES), 400, b"not HTTP"),
        (b"GET /health HTTP/1.1\r\n\r\n", 400, b"not HTTP"),
    ],
)
async def test_answers(data: bytes, status: int, text: bytes) -> None:
    async with plane("unix:control") as (buffer, url):
        answer = await talk(url, data)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
    assert text in answer
    assert buffer.told == []


@pytest.mark.usefixtures("folder")
async def test_several_requests_of_one_connection_in_one_packet() -> None:
    async with plane("unix:control") as (_, url):
        asking = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        answer = await talk(url, 2 * asking + request("GET /health HTTP/1.1"))
    assert answer.count(b"HTTP/1.1 200") == 3


@pytest.mark.usefixtures("folder")
async def test_fault_of_ours_is_not_told() -> None:
    async with plane("unix:control") as (buffer, url):
        buffer.failure = RuntimeError("a secret")
        answer = await talk(url, request("GET /health HTTP/1.1"))
        buffer.failure = None
        assert b" 200 " in await talk(url, request("GET /health HTTP/1.1"))
    assert b" 500 " in answer
    assert b"secret" not in answer


@pytest.mark.usefixtures("folder")
async def test_slow_clients_are_cut_off_and_hold_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lclstream.buffer.http_server.REQUEST_TIMEOUT_S", 0.3)
    monkeypatch.setattr("lclstream.buffer.http_server.IDLE_TIMEOUT_S", 0.3)
    async with plane("unix:control") as (_, url):
        slow = [asyncio.create_task(talk(url, b"GET /he")) for _ in range(10)]
        silent = [asyncio.create_task(talk(url, b"")) for _ in range(10)]
        assert b" 200 " in await talk(url, request("GET /health HTTP/1.1"))
        assert set(await asyncio.gather(*slow, *silent)) == {b""}


@pytest.mark.usefixtures("folder")
async def test_there_are_only_so_many_connections() -> None:
    async with plane("unix:control") as (_, url):
        path = url.removeprefix("unix:")
        held = [await asyncio.open_unix_connection(path) for _ in range(MAX_CONNECTIONS)]
        for reader, writer in held:
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" in await reader.readline()
        with pytest.raises((ConnectionError, AssertionError)):
            assert await talk(url, request("GET /health HTTP/1.1"))
        for _, writer in held:
            writer.close()
        while b" 200 " not in await _or_nothing(url):
            pass


async def _or_nothing(url: str) -> bytes:
    try:
        return await talk(url, request("GET /health HTTP/1.1"))
    except ConnectionError:
        return b""


@pytest.fixture
def people(tmp_path: Path) -> Path:
    authority = Authority.create(tmp_path / "ca", "Test CA")
    authority.issue_service(tmp_path / "service", "buffer", hosts=["127.0.0.1"])
    authority.issue_user(tmp_path / "alice", "alice", "user")
    authority.issue_user(tmp_path / "bob", "bob", "user")
    stranger = Authority.create(tmp_path / "other-ca", "Other CA")
    stranger.issue_user(tmp_path / "eve", "alice", "user")
    return tmp_path


async def test_https_wants_certificates_and_names(people: Path) -> None:
    credentials = Credentials.from_folder(people / "service")
    async with plane("https://127.0.0.1:0", credentials, ("alice",)) as (buffer, url):

        def ask(name: str) -> None:
            with ControlClient(url, people / name) as client:
                assert client.statistics()["state"] == "open"
                client.drain(name)

        await aside(ask, "alice")
        with pytest.raises(NotAuthorizedError, match=r"bob.* may not POST to this buffer"):
            await aside(ask, "bob")
        with pytest.raises((UntrustedPeerError, UnavailableError)):
            await aside(ask, "eve")
        with pytest.raises(IdentityError, match="--identity"):
            ControlClient(url)
        assert buffer.told == [("drain", "alice", None)]
        assert url.startswith("https://127.0.0.1:")


async def test_https_tells_nothing_to_who_shows_no_certificate(people: Path) -> None:
    credentials = Credentials.from_folder(people / "service")
    async with plane("https://127.0.0.1:0", credentials) as (_, url):
        port = int(url.rpartition(":")[2])
        context = ssl.create_default_context(cafile=str(people / "alice" / "ca.crt"))
        with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
            await ask_inside_tls(port, context)
        # Neither to who does not even try.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("GET /health HTTP/1.1"))
        assert b"200" not in await reader.read(-1)
        writer.close()


async def ask_inside_tls(port: int, context: ssl.SSLContext) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(request("GET /health HTTP/1.1"))
        if not await reader.read(-1):
            raise EOFError
    finally:
        writer.close()


def test_https_needs_an_identity() -> None:
    with pytest.raises(InvalidConfigError, match="--tls"):
        ControlPlane(Recorder()).bind([ControlAddress.parse("https://127.0.0.1:0")])


async def test_left_over_socket_is_replaced_and_one_in_use_is_not(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind("control")
    async with plane("unix:control"):
        with pytest.raises(InvalidConfigError, match=r"cannot listen on unix:.*in use"):
            async with plane("unix:control"):
                pass
    (folder / "file").write_text("precious")
    with pytest.raises(InvalidConfigError, match="cannot listen on unix:"):
        async with plane("unix:file"):
            pass
    assert (folder / "file").read_text() == "precious"


async def test_folder_of_others_is_refused(folder: Path) -> None:
    (folder / "open").mkdir()
    (folder / "open").chmod(0o777)
    for url in ("unix:open/control", "unix:missing/control"):
        with pytest.raises(InvalidConfigError, match="folder"):
            async with plane(url):
                pass


@pytest.mark.parametrize("text", ["", "unix:", "http://x:1", "https://x", "x:y", "tls:3"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(InvalidConfigError, match="control address must be"):
        ControlAddress.parse(text)


def test_client_rebuilds_the_error() -> None:
    with pytest.raises(InvalidConfigError, match="control address must be"):
        ControlClient("http://127.0.0.1:1")
    with pytest.raises(UnavailableError, match="no buffer at unix:/nowhere/at/all: No such file"):
        ControlClient("unix:/nowhere/at/all")
    assert issubclass(NotFoundError, LclstreamError)
    assert json.loads(json.dumps(statistics().whole()))["state"] == "open"
