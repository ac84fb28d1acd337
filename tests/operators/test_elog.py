"""The outcome reaches the Elog, and nothing that goes wrong there disturbs a task."""

import json
import logging
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from airflow.sdk.exceptions import AirflowFailException
from fastapi import FastAPI, Request
from tests.operators.samples import streaming

from lclstream.identity.authority import Authority
from lclstream.identity.web import WebService
from lclstream.operators import ReserveTransferOperator
from lclstream.operators.elog import Poster
from lclstream.transfers.states import Phase

INFO = streaming(3).model_copy(update={"phase": Phase.COMPLETED})


@pytest.fixture
def identities(tmp_path: Path) -> Path:
    authority = Authority.create(tmp_path / "authority", "test")
    for name in ("elog", "airflow"):
        authority.issue_service(tmp_path / name, name, ["127.0.0.1"])
    return tmp_path


class Elog:
    """Takes counters and job updates as the logbook does."""

    def __init__(self, identities: Path) -> None:
        self.got: list[tuple[str, Any]] = []
        app = FastAPI()
        self.service = WebService(app, identities / "elog")

        @app.get("/lgbk/tst000001/ws/runs/1")
        async def run() -> dict[str, Any]:
            return {"success": True, "value": {"num": 1, "end_time": "2026-01-01T00:00:00+00:00"}}

        @app.post("/{path:path}")
        async def take(path: str, request: Request) -> dict[str, Any]:
            self.got.append((path, await request.json()))
            return {"success": True, "value": None}

    @property
    def url(self) -> str:
        return self.service.url


async def post(identities: Path, caplog: pytest.LogCaptureFixture, **conf: Any) -> str:
    poster = Poster(
        conf=conf,
        conn_id="lclstream_elog",
        identity=identities / "airflow",
        log=logging.getLogger("task"),
    )
    with caplog.at_level(logging.INFO, logger="task"):
        await anyio.to_thread.run_sync(poster.post, INFO)
    return caplog.messages[-1]


@pytest.mark.anyio
async def test_counters_go_where_the_conf_says(
    identities: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elog = Elog(identities)
    async with elog.service:
        url = f"{elog.url}/jid/ws/replace_counters/tst000001/5"
        assert url in await post(identities, caplog, counters_url=url)
    [(path, counters)] = elog.got
    assert path == "jid/ws/replace_counters/tst000001/5"
    assert {"key": "<b>LCLStream state</b>", "value": "completed"} in counters


@pytest.mark.anyio
async def test_a_job_started_by_hand_gets_its_status(
    identities: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    elog = Elog(identities)
    async with elog.service:
        connection = {"conn_type": "lclstream_elog", "host": elog.url}
        monkeypatch.setenv(
            "AIRFLOW_CONN_LCLSTREAM_ELOG",
            json.dumps(connection | {"extra": {"identity": str(identities / "airflow")}}),
        )
        await post(identities, caplog, elog_job="abc")
    [(path, body)] = elog.got
    assert path == "lgbk/mfx101332224/ws/update_workflow_job"
    assert (body["_id"], body["status"]) == ("abc", "DONE")


@pytest.mark.anyio
async def test_the_connection_may_say_where(
    identities: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    elog = Elog(identities)
    async with elog.service:
        extra = {"counters_url": f"{elog.url}/{{experiment}}/{{run}}"}
        connection = {"conn_type": "lclstream_elog", "host": elog.url, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_LCLSTREAM_ELOG", json.dumps(connection))
        await post(identities, caplog)
    assert [path for path, _ in elog.got] == ["mfx101332224/42"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({}, "nobody has asked"),
        ({"counters_url": "https://127.0.0.1:1/x"}, "did not take it"),
        ({"counters_url": "http://127.0.0.1:1/x"}, "https:// only"),
        ({"elog_job": "abc"}, "did not reach"),
    ],
)
async def test_failures_are_said_and_disturb_nobody(
    identities: Path, caplog: pytest.LogCaptureFixture, conf: dict[str, Any], said: str
) -> None:
    assert said in await post(identities, caplog, **conf)


@pytest.mark.anyio
async def test_a_run_that_has_ended_is_refused(
    identities: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elog = Elog(identities)
    task = ReserveTransferOperator(
        task_id="reserve", streamer={}, experiment="tst000001", run=1, refuse_ended="True"
    )
    async with elog.service:
        extra = {"identity": str(identities / "airflow")}
        connection = {"conn_type": "lclstream_elog", "host": elog.url, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_LCLSTREAM_ELOG", json.dumps(connection))
        with pytest.raises(AirflowFailException, match=r"^run 1 of tst000001 has ended, at 2026"):
            await anyio.to_thread.run_sync(task._refuse_ended)
