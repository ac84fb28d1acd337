"""The DAG files: they keep the rules that make cancelling work, and they stream."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
from airflow.models.dagbundle import DagBundleModel
from airflow.sdk import DAG
from airflow.utils.session import create_session
from tests.operators.world import World, assert_nothing_is_left, conf, find_transfer

from lclstream.transfers.client import TransfersClient
from lclstream.transfers.states import Phase

DAGS = Path(__file__).parents[2] / "dags"
STREAM = "stream_on_run_start"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="session")
def dags(database: None) -> Mapping[str, DAG]:
    with create_session() as session:
        session.merge(DagBundleModel(name="tests"))
    bag = DagBag(str(DAGS))
    assert not bag.import_errors
    sync_bag_to_db(bag, bundle_name="tests", bundle_version="1")
    return bag.dags


@pytest.fixture(autouse=True)
def connection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LCLSTREAM", json.dumps(world.connection))


@pytest.fixture
def client(world: World) -> Iterator[TransfersClient]:
    with world.client() as opened:
        yield opened


def run(dags: Mapping[str, DAG], conf: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Run the DAG in this process; return the state of the run and of its tasks."""
    dag_run = dags[STREAM].test(run_conf=dict(conf))
    with create_session() as session:
        session.add(dag_run)
        tasks = {ti.task_id: str(ti.state) for ti in dag_run.get_task_instances(session=session)}
    return str(dag_run.state), tasks


def test_every_dag_keeps_the_rules_of_cancelling(dags: Mapping[str, DAG]) -> None:
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
    assert len((DAGS / f"{STREAM}.py").read_text().splitlines()) < 65


def test_a_run_is_streamed(dags: Mapping[str, DAG], client: TransfersClient) -> None:
    state, tasks = run(dags, conf(101))
    assert (state, set(tasks.values())) == ("success", {"success"})
    transfer = find_transfer(client, 101)
    assert transfer is not None
    info = client.get(transfer)
    assert info.phase is Phase.COMPLETED
    assert info.ledger.balanced
    assert [hop.tally.messages for hop in info.ledger.hops] == [10] * 4
    assert_nothing_is_left(client, transfer)


def test_a_broken_analysis_fails_the_run_and_leaves_nothing(
    dags: Mapping[str, DAG], client: TransfersClient
) -> None:
    state, tasks = run(dags, conf(102, analysis="#!/bin/sh\necho no >&2\nexit 3\n"))
    assert state == "failed"
    assert tasks["supervise"] == "failed"
    assert tasks["stop"] == "failed"
    transfer = find_transfer(client, 102)
    assert transfer is not None
    assert_nothing_is_left(client, transfer)


def test_a_bad_configuration_starts_nothing(
    dags: Mapping[str, DAG], client: TransfersClient
) -> None:
    broken = conf(103)
    broken["parameters"]["streamer"]["event_source"]["evnts"] = 3
    state, tasks = run(dags, broken)
    assert state == "failed"
    assert tasks["reserve"] == "failed"
    assert find_transfer(client, 103) is None


def test_an_old_run_is_refused(dags: Mapping[str, DAG], client: TransfersClient) -> None:
    state, tasks = run(dags, conf(104, max_age_s=3600))
    assert state == "failed"
    assert tasks["reserve"] == "failed"
    assert find_transfer(client, 104) is None
