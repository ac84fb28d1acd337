"""The DAG in a real Airflow: what people and crashes do to it, and what is left afterwards."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.operators.outcome import assert_ends
from tests.operators.world import (
    World,
    assert_nothing_is_left,
    conf,
    find_transfer,
    processes_of,
    wait_until,
)

from lclstream.demo.airflow import Airflow
from lclstream.transfers.client import TransfersClient
from lclstream.transfers.states import Phase

ROOT = Path(__file__).parents[2]
DAG = "stream_on_run_start"
# Slow enough that everything here happens while it streams.
SLOW: dict[str, Any] = {"events": 4000, "rate_hz": 20.0}

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def airflow(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    with Airflow(
        tmp_path_factory.mktemp("airflow"),
        dags=ROOT / "dags",
        plugins=ROOT / "plugins",
        identity=world.web,
    ) as started:
        extra = json.dumps(world.connection["extra"])
        made = {**world.connection, "connection_id": "lclstream", "extra": extra}
        tried = started.call("POST", "/connections/test", made)
        assert tried == {"status": True, "message": "the transfers service answered"}
        started.call("POST", "/connections", made)
        started.wait_dag(DAG)
        yield started


@pytest.fixture
def client(world: World) -> Iterator[TransfersClient]:
    with world.client() as opened:
        yield opened


def begin(airflow: Airflow, client: TransfersClient, run: int, **stream: Any) -> tuple[str, int]:
    """Start a DAG run and wait until its transfer streams; return both ids."""
    run_id = f"arp:tst000001:r{run}:START_OF_RUN:stream"
    airflow.trigger(DAG, run_id, conf(run, **stream))
    airflow.wait_task(DAG, run_id, "supervise", "deferred", 120)
    transfer = wait_until(lambda: find_transfer(client, run), "the transfer exists")
    wait_until(lambda: client.get(transfer).metrics.sent > 0, "messages are delivered")
    return run_id, transfer


def test_no_import_errors(airflow: Airflow) -> None:
    assert airflow.call("GET", "/importErrors")["import_errors"] == []
    assert airflow.call("GET", "/plugins/importErrors")["import_errors"] == []


def test_a_run_is_streamed_and_every_event_arrives(
    airflow: Airflow, client: TransfersClient, world: World
) -> None:
    run_id = "arp:tst000001:r7:START_OF_RUN:stream"
    airflow.trigger(DAG, run_id, conf(7, consumers=2))
    transfer = wait_until(lambda: find_transfer(client, 7), "the transfer exists")
    assert_ends(airflow, client, (DAG, run_id, transfer), "success", database=world.database)
    info = client.get(transfer)
    assert info.phase is Phase.COMPLETED
    assert info.ledger.balanced
    assert info.ledger.hops[0].tally.events == 20
    assert_nothing_is_left(client, transfer)
    said = "\n".join(airflow.task_log(DAG, run_id, "supervise"))
    assert f"transfer {transfer} completed" in said
    assert "ledger balanced" in said
    links = airflow.call(
        "GET", f"/dags/{DAG}/dagRuns/{run_id}/taskInstances/submit_analysis/links"
    )["extra_links"]
    page = airflow.client.get(links["Transfer"])
    assert "consumers.received" in page.text
    logs = airflow.client.get(links["Job logs"])
    assert "submit_analysis[1]" in logs.text


def test_pages_are_for_people_who_are_logged_in(airflow: Airflow) -> None:
    page = f"{airflow.url}/lclstream/transfers"
    assert airflow.client.get(page).status_code == 200
    stranger = airflow.client.get(page, headers={"Authorization": ""})
    assert stranger.status_code == 401


def test_a_run_that_is_marked_failed_ends_everything(
    airflow: Airflow, client: TransfersClient, world: World
) -> None:
    run_id, transfer = begin(airflow, client, 2, **SLOW)
    assert processes_of(client, transfer)
    airflow.call("PATCH", f"/dags/{DAG}/dagRuns/{run_id}", {"state": "failed"})
    assert_nothing_is_left(client, transfer, 30)
    assert client.get(transfer).phase is Phase.CANCELED
    wait_until(lambda: airflow.tasks(DAG, run_id)["stop"] == "failed", "stop has judged")
    assert_ends(airflow, client, (DAG, run_id, transfer), "failed", database=world.database)


def clear(airflow: Airflow, run_id: str, task: str) -> None:
    """Let a task and those after it run again, as the button in Airflow does."""
    body = {"dag_run_id": run_id, "task_ids": [task], "dry_run": False}
    body |= {"only_failed": False, "include_downstream": True}
    airflow.call("POST", f"/dags/{DAG}/clearTaskInstances", body)


def test_a_cleared_task_takes_the_same_transfer_over(
    airflow: Airflow, client: TransfersClient, world: World
) -> None:
    run_id, transfer = begin(airflow, client, 3, **SLOW)
    clear(airflow, run_id, "supervise")
    wait_until(
        lambda: (lease := client.get(transfer).lease) and lease.generation == 2,
        "the new try has the lease",
    )
    # A transfer that nobody ends streams for minutes: however slow Airflow is, it goes on.
    client.drain(transfer)
    assert_ends(airflow, client, (DAG, run_id, transfer), "success", database=world.database)
    assert find_transfer(client, 3) == transfer
    assert client.get(transfer).ledger.balanced
    assert_nothing_is_left(client, transfer)


def test_a_task_that_is_cleared_after_the_end_judges_the_same_transfer(
    airflow: Airflow, client: TransfersClient, world: World
) -> None:
    """As happens, too, to one that is cleared during the stream when Airflow is slow."""
    run_id = "arp:tst000001:r6:START_OF_RUN:stream"
    airflow.trigger(DAG, run_id, conf(6))
    transfer = wait_until(lambda: find_transfer(client, 6), "the transfer exists")
    assert_ends(airflow, client, (DAG, run_id, transfer), "success", database=world.database)
    before = airflow.tries(DAG, run_id, "supervise")
    clear(airflow, run_id, "supervise")
    assert_ends(airflow, client, (DAG, run_id, transfer), "success", database=world.database)
    assert len(airflow.tries(DAG, run_id, "supervise")) > len(before)
    assert find_transfer(client, 6) == transfer


def test_a_killed_scheduler_disturbs_nothing(
    airflow: Airflow, client: TransfersClient, world: World
) -> None:
    run_id, transfer = begin(airflow, client, 4, events=300, rate_hz=20.0)
    airflow.kill("scheduler")
    since = datetime.now(UTC)
    airflow.start_part("scheduler")
    airflow.wait_healthy(since)
    assert_ends(airflow, client, (DAG, run_id, transfer), "success", database=world.database)
    assert client.get(transfer).ledger.balanced
    assert_nothing_is_left(client, transfer)


def test_a_canceled_transfer_fails_its_run(
    airflow: Airflow, client: TransfersClient, world: World
) -> None:
    run_id, transfer = begin(airflow, client, 5, **SLOW)
    client.cancel(transfer)
    assert_ends(airflow, client, (DAG, run_id, transfer), "failed", database=world.database)
    assert_nothing_is_left(client, transfer, 30)
    assert airflow.tasks(DAG, run_id)["supervise"] == "failed"
