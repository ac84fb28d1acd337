"""certified 1.3.0 judges our folders, and we use its folders."""

import json
import subprocess
from pathlib import Path

import pytest
from fastapi import FastAPI
from tests.helpers.oracles import oracle

from lclstream.core.http import install_error_handlers
from lclstream.identity.authority import Authority
from lclstream.identity.caller import CallerDep
from lclstream.identity.tls import client_context, server_context
from lclstream.identity.web import WebService, client

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def certified() -> Path:
    return oracle("certified", ["certified[http]==1.3.0"]).with_name("certified")


def run(certified: Path, *arguments: str | Path) -> str:
    command = [str(certified), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def application() -> FastAPI:
    app = FastAPI()
    install_error_handlers(app)

    @app.get("/who")
    async def who(caller: CallerDep) -> str:
        return caller.name

    return app


def test_certified_loads_our_authority(certified: Path, authority: Authority) -> None:
    run(certified, "get-ident", "--config", authority.folder)
    assert "ca_cert" in json.loads(run(certified, "get-signer", "--config", authority.folder))


@pytest.mark.anyio
async def test_our_service_knows_a_user_of_certified(
    certified: Path, authority: Authority, server: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    names = ["Test User", "--uid", "tuser", "--email", "tuser@example.org"]
    run(certified, "init", *names, "--config", theirs)
    # Each side adds the other's authority, as with `certified add-client`.
    (server / "known_clients").mkdir()
    (server / "known_clients/tuser.crt").write_bytes((theirs / "CA.crt").read_bytes())
    (theirs / "known_servers/ours.crt").write_bytes(authority.certificate_pem)
    async with WebService(application(), server) as service, client(theirs, service.url) as http:
        assert (await http.get("/who")).json() == "uid:tuser"


@pytest.mark.anyio
async def test_service_with_a_folder_of_certified(
    certified: Path, user: Path, authority: Authority, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    run(certified, "init", "Their Service", "--host", "127.0.0.1", "--config", theirs)
    (theirs / "known_clients/ours.crt").write_bytes(authority.certificate_pem)
    (user / "known_servers").mkdir()
    (user / "known_servers/theirs.crt").write_bytes((theirs / "CA.crt").read_bytes())
    server_context(theirs)
    client_context(theirs)
    async with WebService(application(), theirs) as service, client(user, service.url) as http:
        assert (await http.get("/who")).json() == "uid:tuser"
