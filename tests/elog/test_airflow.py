import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.elog.airflow_lookalike import PASSWORD, USER, Airflow

from lclstream.core.errors import (
    InvalidConfigError,
    NotFoundError,
    RequestError,
    UnavailableError,
    UntrustedPeerError,
)
from lclstream.core.models import parse
from lclstream.elog.access import read_password, tls_context
from lclstream.elog.airflow import AirflowClient, Outcome
from lclstream.elog.config import AirflowConfig

DAG, RUN = "stream", "arp:x:r1:START_OF_RUN:stream"


@pytest.fixture
def airflow() -> Iterator[Airflow]:
    with Airflow(DAG) as running:
        yield running


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n")
    return path


def client(url: str, password: Path, **fields: Any) -> AirflowClient:
    given = {"url": url, "username": USER, "password_file": str(password), **fields}
    return AirflowClient(parse(AirflowConfig, given))


@pytest.mark.anyio
async def test_one_event_makes_one_run(airflow: Airflow, password: Path) -> None:
    async with client(airflow.url, password) as ours:
        assert await ours.start(DAG, RUN, {"run": 1}) is Outcome.STARTED
        assert await ours.start(DAG, RUN, {"run": 1}) is Outcome.EXISTED
    assert airflow.runs[DAG, RUN]["conf"] == {"run": 1}
    assert airflow.logins == 1


@pytest.mark.anyio
async def test_an_expired_token_is_replaced_once(airflow: Airflow, password: Path) -> None:
    async with client(airflow.url, password) as ours:
        await ours.start(DAG, RUN, {})
        airflow.expire_token()
        assert await ours.start(DAG, RUN, {}) is Outcome.EXISTED
    assert airflow.logins == 2


@pytest.mark.anyio
async def test_a_paused_dag_is_noticed_and_remembered(airflow: Airflow, password: Path) -> None:
    airflow.paused[DAG] = True
    async with client(airflow.url, password) as ours:
        assert await ours.is_paused(DAG)
        airflow.paused[DAG] = False
        assert await ours.is_paused(DAG)
        with pytest.raises(NotFoundError, match=r"HTTP 404 for DAG 'other'"):
            await ours.is_paused("other")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, RequestError),
        (422, RequestError),
        (404, NotFoundError),
        (403, UnavailableError),
        (429, UnavailableError),
        (500, UnavailableError),
        (503, UnavailableError),
        (302, UnavailableError),
    ],
)
async def test_each_answer_says_who_must_act(
    airflow: Airflow, password: Path, status: int, error: type[Exception]
) -> None:
    airflow.fail_posts = [status]
    async with client(airflow.url, password) as ours:
        with pytest.raises(error, match=rf"HTTP {status}") as caught:
            await ours.start(DAG, RUN, {})
    assert type(caught.value) is error
    assert not airflow.runs


@pytest.mark.anyio
async def test_a_token_that_is_refused_again_means_that_our_account_is_wrong(
    airflow: Airflow, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("stale")
    given = {"url": airflow.url, "token_file": str(token)}
    async with AirflowClient(parse(AirflowConfig, given)) as ours:
        with pytest.raises(UnavailableError, match=r"HTTP 401"):
            await ours.start(DAG, RUN, {})
        # Somebody renewed it.
        token.write_text("token-0")
        assert await ours.start(DAG, RUN, {}) is Outcome.STARTED


@pytest.mark.anyio
async def test_a_wrong_password_is_trouble_with_a_name(airflow: Airflow, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("guess")
    async with client(airflow.url, wrong) as ours:
        with pytest.raises(UnavailableError, match=r"refused the login of 'watcher': HTTP 401"):
            await ours.start(DAG, RUN, {})


@pytest.mark.anyio
async def test_a_page_of_a_proxy_is_no_success(airflow: Airflow, password: Path) -> None:
    async with client(airflow.url, password) as ours:
        await ours.is_paused(DAG)
        for page in (b"<html>maintenance</html>", b"[]", b"{}", b"\xff"):
            airflow.answer_raw = page
            with pytest.raises(UnavailableError):
                await ours.start(DAG, f"{RUN}{page!r}", {})


@pytest.mark.anyio
async def test_nobody_there_is_unavailable(password: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    async with client(f"http://127.0.0.1:{port}", password) as ours:
        with pytest.raises(UnavailableError, match=rf"no answer from http://127.0.0.1:{port}"):
            await ours.start(DAG, RUN, {})


@pytest.mark.anyio
async def test_an_answer_that_does_not_come_is_unavailable(password: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with client(url, password, timeout_s=0.1) as ours:
            with pytest.raises(UnavailableError, match=r"no answer"):
                await ours.start(DAG, RUN, {})


@pytest.mark.anyio
async def test_plain_http_is_not_taken_for_tls(airflow: Airflow, password: Path) -> None:
    url = airflow.url.replace("http:", "https:")
    async with client(url, password) as ours:
        with pytest.raises((UnavailableError, UntrustedPeerError)):
            await ours.start(DAG, RUN, {})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"url": "http://airflow.example.org"}, r"expected https: a password would travel"),
        ({"url": "ftp://x"}, r"expected https://HOST"),
        ({"token_file": "t"}, r"either username and password_file, or token_file"),
        ({"username": None}, r"either username and password_file, or token_file"),
    ],
)
def test_unsafe_or_unclear_settings_are_refused(fields: dict[str, Any], reason: str) -> None:
    given = {"url": "https://x", "username": "u", "password_file": "p", **fields}
    with pytest.raises(InvalidConfigError, match=reason):
        parse(AirflowConfig, given)


def test_passwords_are_read_from_text_and_from_airflows_own_file(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text('{"admin": "a", "watcher": "w"}')
    assert read_password(path, "watcher") == "w"
    with pytest.raises(InvalidConfigError, match=r"no password of 'other'"):
        read_password(path, "other")
    path.write_text("12345\n")
    assert read_password(path, "watcher") == "12345"
    path.write_text("\n")
    with pytest.raises(InvalidConfigError, match=r"is empty"):
        read_password(path, "watcher")
    with pytest.raises(InvalidConfigError, match=r"cannot read"):
        read_password(tmp_path / "absent", "watcher")


def test_authorities_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match=r"cannot read the certificate authorities"):
        tls_context(None, tmp_path / "absent.crt")
