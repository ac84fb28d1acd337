"""Real TLS connections between real services and clients."""

import asyncio
import datetime
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from fastapi import FastAPI

from lclstream.core.errors import (
    BackendError,
    CertificateExpiredError,
    ConflictError,
    IdentityError,
    InvalidConfigError,
    NotAuthenticatedError,
    UnavailableError,
    UntrustedPeerError,
    from_body,
)
from lclstream.core.http import install_error_handlers
from lclstream.core.models import StrictModel
from lclstream.core.tls import Credentials
from lclstream.identity import certificates, keys, names
from lclstream.identity.authority import Authority, IssuedIdentity
from lclstream.identity.caller import CallerDep
from lclstream.identity.certificates import Leaf, Validity
from lclstream.identity.tls import client_context, server_context
from lclstream.identity.web import WebService, client, sync_client


class Thing(StrictModel):
    name: str


def application() -> FastAPI:
    app = FastAPI()
    install_error_handlers(app)

    @app.get("/who")
    async def who(caller: CallerDep) -> dict[str, str | None]:
        return {"name": caller.name, "job": "/".join(caller.job) if caller.job else None}

    @app.get("/authority")
    async def authority(caller: CallerDep) -> str:
        return caller.authority

    @app.post("/typed/{number}")
    async def typed(number: int, thing: Thing, size: float = 0.0) -> float:
        return number * size * len(thing.name)

    @app.get("/conflict")
    async def conflict() -> None:
        raise ConflictError("it is taken")

    return app


@asynccontextmanager
async def served(identity: Path) -> AsyncIterator[WebService]:
    async with WebService(application(), identity) as service:
        yield service


async def who(identity: Path, url: str) -> str:
    async with client(identity, url) as http:
        answer = await http.get("/who")
    return str(answer.json()["name"])


def dated(authority: Authority, folder: Path, begin_days: float, end_days: float) -> Path:
    """Write a user's identity whose certificate holds between two days from now."""
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    days = datetime.timedelta(days=1)
    validity = Validity(begin=now + begin_days * days, end=now + end_days * days)
    leaf = Leaf(subject=names.subject("Old", uid="old"), alternative_names=[], server=False)
    key = keys.generate()
    folder_key = keys.load(authority.folder / "CA.key")
    builder = certificates.leaf_builder(authority.certificate, key, leaf, validity)
    issued = IssuedIdentity(
        cert_pem=certificates.to_pem(builder.sign(folder_key, None)),
        key_pem=keys.to_pem(key),
        ca_pem=authority.certificate_pem,
        serial=1,
    )
    issued.save(folder)
    return folder


@pytest.mark.anyio
async def test_caller_is_the_user_of_the_certificate(server: Path, user: Path) -> None:
    async with served(server) as service:
        assert await who(user, service.url) == "uid:tuser"


@pytest.mark.anyio
async def test_caller_is_a_service_or_a_job(
    authority: Authority, server: Path, tmp_path: Path
) -> None:
    authority.issue_job("job:t-1:producer", hours=1).save(tmp_path / "job")
    async with served(server) as service:
        assert await who(server, service.url) == "cn:Test Service"
        async with client(tmp_path / "job", service.url) as http:
            answer = await http.get("/who")
    assert answer.json() == {"name": "cn:job:t-1:producer", "job": "t-1/producer"}


@pytest.mark.anyio
async def test_client_without_certificate_gets_no_http(
    authority: Authority, server: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = ssl.create_default_context(cafile=str(server / "ca.crt"))
    async with served(server) as service, httpx.AsyncClient(verify=context) as http:
        with pytest.raises(ssl.SSLError, match="certificate required"):
            await http.get(f"{service.url}/who")
    refused = [record for record in caplog.records if record.message == "peer_refused"]
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in [vars(record)["reason"] for record in refused]


@pytest.mark.anyio
async def test_plain_http_is_not_served(server: Path) -> None:
    async with served(server) as service, httpx.AsyncClient(trust_env=False) as http:
        with pytest.raises(httpx.TransportError):
            await http.get(f"http://127.0.0.1:{service.port}/who")


@pytest.mark.anyio
async def test_tls_1_2_is_not_served(server: Path, user: Path) -> None:
    context = client_context(user)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with served(server) as service, httpx.AsyncClient(verify=context) as http:
        with pytest.raises(httpx.ConnectError, match="alert protocol version"):
            await http.get(f"{service.url}/who")


@pytest.mark.anyio
async def test_user_of_another_authority_is_refused(server: Path, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", "Test Authority")
    other.issue_user(tmp_path / "stranger", "Test User", "tuser")
    # The stranger trusts the server; only the server can refuse.
    (tmp_path / "stranger/ca.crt").write_bytes((server / "ca.crt").read_bytes())
    async with served(server) as service:
        with pytest.raises(UntrustedPeerError, match="unknown ca"):
            await who(tmp_path / "stranger", service.url)


@pytest.mark.anyio
async def test_server_of_another_authority_is_refused(
    authority: Authority, user: Path, tmp_path: Path
) -> None:
    other = Authority.create(tmp_path / "other", "Test Authority")
    other.issue_service(tmp_path / "false", "Test Service", ["127.0.0.1"])
    async with served(tmp_path / "false") as service:
        with pytest.raises(UntrustedPeerError, match=r"CERTIFICATE_VERIFY_FAILED"):
            await who(user, service.url)


@pytest.mark.anyio
async def test_server_under_another_name_is_refused(
    authority: Authority, user: Path, tmp_path: Path
) -> None:
    authority.issue_service(tmp_path / "elsewhere", "Elsewhere", ["elsewhere.example.org"])
    async with served(tmp_path / "elsewhere") as service:
        with pytest.raises(UntrustedPeerError, match=r"not valid for '127.0.0.1'"):
            await who(user, service.url)


@pytest.mark.anyio
async def test_user_cannot_be_a_server(authority: Authority, user: Path, tmp_path: Path) -> None:
    authority.issue_user(tmp_path / "mallory", "127.0.0.1", "mallory")
    async with served(tmp_path / "mallory") as service:
        with pytest.raises(UntrustedPeerError, match="unsuitable certificate purpose"):
            await who(user, service.url)


@pytest.mark.anyio
@pytest.mark.parametrize(("begin", "end"), [(-2, -1), (1, 2)], ids=["expired", "not yet valid"])
async def test_client_outside_its_validity_is_refused(
    authority: Authority, server: Path, tmp_path: Path, begin: float, end: float
) -> None:
    folder = dated(authority, tmp_path / "old", begin, end)
    async with served(server) as service:
        with pytest.raises(UntrustedPeerError, match="certificate"):
            await who(folder, service.url)


@pytest.mark.anyio
async def test_certificate_that_expires_ends_an_open_connection(
    authority: Authority, server: Path, tmp_path: Path
) -> None:
    folder = dated(authority, tmp_path / "soon", -1, 2 / 86400)
    async with served(server) as service, client(folder, service.url) as http:
        assert (await http.get("/who")).json()["name"] == "uid:old"
        with pytest.raises(NotAuthenticatedError, match=r"^the client certificate has expired$"):
            await repeated(http)


@pytest.mark.anyio
@pytest.mark.parametrize("listed_before", [True, False], ids=["known list", "first list"])
async def test_revoked_client_is_refused_on_open_and_new_connections(
    authority: Authority, server: Path, user: Path, tmp_path: Path, listed_before: bool
) -> None:
    other = authority.issue_user(tmp_path / "other", "Other User", "other")
    serial = certificates.load(user / "id.crt").serial_number
    if listed_before:
        authority.revoke(other.serial)
        authority.publish(server)
    async with served(server) as service, client(user, service.url) as http:
        assert (await http.get("/who")).json()["name"] == "uid:tuser"
        authority.revoke(serial)
        authority.publish(server)
        with pytest.raises(NotAuthenticatedError, match=r"^the client certificate is revoked$"):
            await http.get("/who")
        with pytest.raises((UnavailableError, UntrustedPeerError)):
            await who(user, service.url)
        assert await who(server, service.url) == "cn:Test Service"
    # A server that starts with the list refuses the client in the handshake.
    async with served(server) as service:
        with pytest.raises(UntrustedPeerError, match=r"(?i)certificate.revoked"):
            await who(user, service.url)
        assert await who(server, service.url) == "cn:Test Service"


@pytest.mark.anyio
async def test_list_of_one_authority_does_not_lock_out_another(
    authority: Authority, server: Path, user: Path, tmp_path: Path
) -> None:
    other = Authority.create(tmp_path / "other", "Other Site")
    other.issue_user(tmp_path / "visitor", "Visitor", "visitor")
    both = authority.certificate_pem + other.certificate_pem
    (server / "ca.crt").write_bytes(both)
    (tmp_path / "visitor/ca.crt").write_bytes(both)
    authority.revoke(certificates.load(user / "id.crt").serial_number)
    authority.publish(server)
    async with served(server) as service:
        assert await who(tmp_path / "visitor", service.url) == "uid:visitor"
        with pytest.raises((UnavailableError, UntrustedPeerError)):
            await who(user, service.url)
        # A server that trusts one authority without a list checks each request instead.
        visitor = certificates.load(tmp_path / "visitor/id.crt").serial_number
        other.revoke(visitor)
        other.publish(server)
        with pytest.raises((UnavailableError, UntrustedPeerError)):
            await who(tmp_path / "visitor", service.url)


@pytest.mark.anyio
async def test_request_without_user_agent_and_accept_is_served(
    server: Path, user: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lclstream.access")
    async with served(server) as service:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", service.port, ssl=client_context(user)
        )
        writer.write(b"GET /who HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    line = next(vars(record) for record in caplog.records if record.name == "lclstream.access")
    expected = {"method": "GET", "path": "/who", "status": 200, "caller": "uid:tuser"}
    assert expected.items() <= line.items()
    assert line["user_agent"] == ""
    assert line["remote_user"] == [("commonName", "Test User"), ("userId", "tuser")]
    assert line["ssl_cipher"].startswith("TLS_AES")


@pytest.mark.anyio
async def test_websocket_upgrade_does_not_go_round_the_caller(server: Path, user: Path) -> None:
    upgrade = (
        b"GET /who HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with served(server) as service:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", service.port, ssl=client_context(user)
        )
        writer.write(upgrade)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert b"101" not in answer


@pytest.mark.anyio
async def test_same_error_on_both_sides(server: Path, user: Path) -> None:
    async with served(server) as service, client(user, service.url) as http:
        with pytest.raises(ConflictError, match=r"^it is taken$"):
            await http.get("/conflict")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b'{"name": 7, "other": 1}', ["body.name", "body.other"]),
        (b'{"name": NaN}', ["body.name"]),
        (b'{"name": "x", "\\ud800": 1}', ["body"]),
        (b'{"name": %s}' % (b"[" * 500 + b"]" * 500), ["body.name"]),
    ],
    ids=["plain", "not a number", "half a character", "deep"],
)
async def test_every_fault_of_a_request_is_named(
    server: Path, user: Path, body: bytes, fields: list[str]
) -> None:
    async with served(server) as service, client(user, service.url) as http:
        http.event_hooks = {}
        answer = await http.post(
            "/typed/x?size=big", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 422
        assert {"type", "loc", "msg"} <= set(answer.json()["detail"][0])
        error = from_body(answer.json(), answer.status_code)
    assert isinstance(error, InvalidConfigError)
    found = [problem.partition(":")[0] for problem in error.problems]
    assert found == ["path.number", "query.size", *fields]


@pytest.mark.anyio
async def test_authority_cannot_be_forged(
    authority: Authority, server: Path, user: Path, tmp_path: Path
) -> None:
    # The same subject, and therefore the same issuer in what it signs.
    twin = Authority.create(tmp_path / "twin", "Test Authority")
    twin.issue_user(tmp_path / "double", "Test User", "tuser")
    both = authority.certificate_pem + twin.certificate_pem
    for folder in (server, user, tmp_path / "double"):
        (folder / "ca.crt").write_bytes(both)
    found = []
    async with served(server) as service:
        for folder in (user, tmp_path / "double"):
            async with client(folder, service.url) as http:
                found.append((await http.get("/authority")).json())
    assert found == [authority.name, twin.name]
    assert authority.name != twin.name


@pytest.mark.anyio
async def test_synchronous_client(server: Path, user: Path) -> None:
    names: list[str] = []
    loop, answered = asyncio.get_running_loop(), asyncio.Event()
    async with served(server) as service:

        def ask() -> None:
            with sync_client(user, service.url) as http:
                names.append(http.get("/who").json()["name"])
            loop.call_soon_threadsafe(answered.set)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        await asyncio.wait_for(answered.wait(), 10)
        thread.join()
    assert names == ["uid:tuser"]


@pytest.mark.anyio
async def test_nobody_there(user: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(UnavailableError, match=f"^no answer from https://127.0.0.1:{port}"):
        await who(user, f"https://127.0.0.1:{port}")


@pytest.mark.anyio
async def test_taken_port(server: Path) -> None:
    async with served(server) as service:
        with pytest.raises(UnavailableError, match="Address already in use"):
            async with WebService(application(), server, port=service.port):
                pass


@pytest.mark.anyio
async def test_key_that_others_can_read_is_refused(server: Path, user: Path) -> None:
    for folder in (server, user):
        (folder / "id.key").chmod(0o644)
    with pytest.raises(IdentityError, match=r"id.key"):
        async with served(server):
            pass
    with pytest.raises(IdentityError, match=r"id.key"):
        client(user)


@pytest.mark.parametrize("damage", ["missing", "no key", "encrypted", "other key", "no authority"])
def test_unusable_folder_is_an_identity_error(
    authority: Authority, server: Path, tmp_path: Path, damage: str
) -> None:
    key = keys.load(server / "id.key")
    if damage == "missing":
        server.rename(tmp_path / "elsewhere")
    elif damage == "no key":
        (server / "id.key").unlink()
    elif damage == "no authority":
        (server / "ca.crt").unlink()
    elif damage == "encrypted":
        cipher = serialization.BestAvailableEncryption(b"secret")
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        (server / "id.key").write_bytes(key.private_bytes(pem, pkcs8, cipher))
    else:
        (server / "id.key").write_bytes(keys.to_pem(keys.generate()))
    for context in (server_context, client_context):
        with pytest.raises(IdentityError, match=r"server"):
            context(server)
    with pytest.raises(IdentityError, match=r"server"):
        Credentials.from_folder(server).client_context()


def test_service_with_an_expired_certificate_does_not_start(
    authority: Authority, tmp_path: Path
) -> None:
    folder = dated(authority, tmp_path / "old", -2, -1)
    with pytest.raises(CertificateExpiredError, match=r"id\.crt holds only from"):
        server_context(folder)


@pytest.mark.anyio
async def test_application_that_does_not_start(server: Path) -> None:
    @asynccontextmanager
    async def fail(app: FastAPI) -> AsyncIterator[None]:
        if app.title:
            raise ValueError("no database")
        yield

    with pytest.raises(BackendError, match=r"^the application did not start"):
        async with WebService(FastAPI(lifespan=fail), server):
            pass


@pytest.mark.anyio
async def test_idle_client_does_not_hold_up_the_end(server: Path, user: Path) -> None:
    async with served(server) as service:
        http = client(user, service.url)
        await http.get("/who")
        began = time.monotonic()
        service.close()
        await service.wait_closed(5)
        assert time.monotonic() - began < 3
        await http.aclose()


@pytest.mark.anyio
async def test_request_in_flight_does_not_hold_up_the_end(
    server: Path, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lclstream.identity.web.GRACE_S", 0.2)
    arrived = asyncio.Event()
    app = FastAPI()

    @app.get("/slow")
    async def slow() -> None:
        arrived.set()
        await asyncio.Event().wait()

    async with WebService(app, server) as service, client(user, service.url) as http:
        request = asyncio.create_task(http.get("/slow"))
        await asyncio.wait_for(arrived.wait(), 10)
        service.close()
        await service.wait_closed(5)
        with pytest.raises((UnavailableError, BackendError)):
            await request


@pytest.mark.anyio
async def test_application_served_without_tls_refuses_everybody() -> None:
    # What no WebService serves has nobody in its scope; a header cannot put somebody there.
    transport = httpx.ASGITransport(application())
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
        answer = await http.get("/who", headers={"X-Remote-User": "uid:root"})
    assert answer.status_code == 401
    assert json.loads(answer.content)["error"] == "NotAuthenticatedError"


async def repeated(http: httpx.AsyncClient) -> None:
    """Ask until it raises, ten seconds at most."""
    async with asyncio.timeout(10):
        while True:
            await http.get("/who")
