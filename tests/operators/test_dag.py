"""The DAG files: they keep the rules that make cancelling work, and they stream."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from tests.operators.run_dag import MARK
from tests.operators.world import World, assert_nothing_is_left, conf, find_transfer

from lclstream.transfers.client import TransfersClient
from lclstream.transfers.states import Phase

DAGS = Path(__file__).parents[2] / "dags"
STREAM = "stream_on_run_start"
GOOD, BROKEN_ANALYSIS, BAD_CONFIGURATION, OLD = 101, 102, 103, 104
NAMED = "20260101_7"

pytestmark = pytest.mark.timeout(600)


def misspelt() -> dict[str, Any]:
    wrong = conf(BAD_CONFIGURATION)
    wrong["parameters"]["streamer"]["event_source"]["evnts"] = 3
    return wrong


@pytest.fixture(scope="session")
def ended(
    database: None, world: World, tmp_path_factory: pytest.TempPathFactory
) -> dict[int | str, dict[str, Any]]:
    """Run the DAG for several runs of the experiment; return how each ended, by its number."""
    confs = [
        conf(GOOD, consumers=2),
        conf(BROKEN_ANALYSIS, analysis="#!/bin/sh\necho no >&2\nexit 3\n"),
        misspelt(),
        conf(OLD, max_age_s=3600),
        {**conf(GOOD), "run": NAMED},
    ]
    file = tmp_path_factory.mktemp("dag") / "confs.json"
    file.write_text(json.dumps(confs))
    script = Path(__file__).with_name("run_dag.py")
    done = subprocess.run(
        [sys.executable, str(script), str(DAGS), STREAM, str(file)],
        env=os.environ | {"AIRFLOW_CONN_LCLSTREAM": json.dumps(world.connection)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    results = [json.loads(line.removeprefix(MARK)) for line in lines]
    return dict(zip([each["run"] for each in confs], results, strict=True))


@pytest.fixture
def client(world: World) -> Iterator[TransfersClient]:
    with world.client() as opened:
        yield opened


@pytest.fixture(scope="session")
def dags(database: None) -> dict[str, DAG]:
    bag = DagBag(str(DAGS))
    assert not bag.import_errors
    return dict(bag.dags)


def test_every_dag_keeps_the_rules_of_cancelling(dags: dict[str, DAG]) -> None:
    assert STREAM in dags
    for dag in dags.values():
        assert dag.dagrun_timeout is None, "it skips the teardown"
        assert dag.catchup is False
        assert not dag.max_consecutive_failed_dag_runs
        setups = [task for task in dag.tasks if task.is_setup]
        teardowns = [task for task in dag.tasks if task.is_teardown]
        assert [task.task_type for task in setups] == ["ReserveTransferOperator"]
        assert [task.task_type for task in teardowns] == ["StopTransferOperator"]
        assert all(task.on_failure_fail_dagrun for task in teardowns)
        assert all((task.retries or 0) >= 3 for task in setups + teardowns)
        assert all(task.execution_timeout is None for task in dag.tasks)


def test_the_first_dag_can_be_read_in_a_minute() -> None:
    assert len((DAGS / f"{STREAM}.py").read_text().splitlines()) <= 60


def test_a_run_is_streamed(ended: dict[int, Any], client: TransfersClient) -> None:
    assert ended[GOOD]["state"] == "success"
    assert set(ended[GOOD]["tasks"].values()) == {"success"}
    transfer = find_transfer(client, GOOD)
    assert transfer is not None
    info = client.get(transfer)
    assert info.phase is Phase.COMPLETED
    assert info.ledger.balanced
    assert [hop.tally.messages for hop in info.ledger.hops] == [10] * 4
    assert_nothing_is_left(client, transfer)


def test_a_run_that_has_a_name_keeps_it(ended: dict[str, Any], client: TransfersClient) -> None:
    assert ended[NAMED]["state"] == "success"
    assert find_transfer(client, NAMED) is not None


def test_a_broken_analysis_fails_the_run_and_leaves_nothing(
    ended: dict[int, Any], client: TransfersClient
) -> None:
    assert ended[BROKEN_ANALYSIS]["state"] == "failed"
    tasks = ended[BROKEN_ANALYSIS]["tasks"]
    assert (tasks["supervise"], tasks["stop"]) == ("failed", "failed")
    transfer = find_transfer(client, BROKEN_ANALYSIS)
    assert transfer is not None
    assert_nothing_is_left(client, transfer)


@pytest.mark.parametrize("run", [BAD_CONFIGURATION, OLD], ids=["bad configuration", "old run"])
def test_what_is_refused_starts_nothing(
    ended: dict[int, Any], client: TransfersClient, run: int
) -> None:
    assert ended[run]["state"] == "failed"
    assert ended[run]["tasks"]["reserve"] == "failed"
    assert find_transfer(client, run) is None
