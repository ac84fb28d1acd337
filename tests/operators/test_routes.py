"""The pages of the plug-in: every one is for people who are logged in, none runs what jobs say."""

from collections.abc import Iterator
from typing import Any

import pytest
from airflow.api_fastapi.core_api.security import get_user
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from tests.operators.samples import info, streaming

from lclstream.core.errors import NotFoundError
from lclstream.operators.routes import transfers
from lclstream.operators.web import make_app
from lclstream.transfers.models import TransferInfo, TransferStatus

HOSTILE = "<script>alert('run')</script>"
JOB = {
    "role": "consumer",
    "name": "peaks",
    "index": 0,
    "site": "hpc",
    "jobid": "17",
    "state": "failed",
    "info": HOSTILE,
}


class OneTransfer:
    """Answers as a client of the service would; what it shows is the worst a job may write."""

    def list(self, **_: Any) -> list[TransferStatus]:
        status: dict[str, Any] = {
            "time": 0,
            "jobndx": 0,
            "state": "new",
            "info": "",
            "id": 7,
            "url": "",
        }
        status |= {"user": "cn:a", "phase": "failed", "reason": HOSTILE}
        return [TransferStatus.model_validate(status)]

    def get(self, transfer: int) -> TransferInfo:
        if transfer != 7:
            raise NotFoundError(f"no transfer {transfer}")
        return info(phase="failed", reason=HOSTILE, jobs=[JOB], ledger=streaming(3).ledger)

    def logs(self, transfer: int, jobid: str) -> dict[str, str]:
        return {"stderr.1": HOSTILE, "stdout.1": f"{transfer} {jobid}"}


@pytest.fixture
def app() -> FastAPI:
    made = make_app()
    made.dependency_overrides[transfers] = OneTransfer
    return made


@pytest.fixture
def browser(app: FastAPI) -> Iterator[TestClient]:
    app.dependency_overrides[get_user] = lambda: "somebody"
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def paths(app: FastAPI) -> list[str]:
    found = [route for route in app.routes if isinstance(route, APIRoute)]
    # Anything else, say a documentation page, would not have the router's guard.
    assert len(found) == len(app.routes)
    return [route.path.replace("{transfer}", "7") for route in found]


def test_every_route_refuses_who_is_not_logged_in(app: FastAPI) -> None:
    assert len(paths(app)) == 5
    with TestClient(app) as stranger:
        for path in paths(app):
            assert stranger.get(path).status_code == 401, path


def test_every_route_answers_who_is(app: FastAPI, browser: TestClient) -> None:
    for path in paths(app):
        assert browser.get(path).status_code == 200, path


def test_nothing_that_a_job_says_becomes_a_part_of_the_page(
    app: FastAPI, browser: TestClient
) -> None:
    for path in paths(app):
        answer = browser.get(path)
        if "api" not in path:
            assert HOSTILE not in answer.text
            assert "&lt;script&gt;" in answer.text
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_logs_can_be_those_of_one_role_and_name(browser: TestClient) -> None:
    assert "7 17" in browser.get("/transfers/7/logs?role=consumer&name=peaks").text
    assert "7 17" not in browser.get("/transfers/7/logs?role=producer").text
    assert "7 17" not in browser.get("/transfers/7/logs?name=other").text


def test_an_unknown_transfer_is_not_found(browser: TestClient) -> None:
    answer = browser.get("/transfers/8")
    assert answer.status_code == 404
    assert answer.json()["detail"] == "no transfer 8"


def test_a_page_of_a_running_transfer_renews_itself(browser: TestClient, app: FastAPI) -> None:
    assert "refresh" not in browser.get("/transfers/7").text

    class Running(OneTransfer):
        def get(self, transfer: int) -> TransferInfo:
            return streaming(transfer)

    app.dependency_overrides[transfers] = Running
    page = browser.get("/transfers/7").text
    assert 'http-equiv="refresh"' in page
    assert "producers.sent" in page
