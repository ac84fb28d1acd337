"""How a DAG run ended and, when a test expected something else, why."""

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from lclstream.core.errors import LclstreamError
from lclstream.demo.airflow import Airflow
from lclstream.transfers.client import TransfersClient

LAST_LINES = 25
"""How much of each task's log is quoted."""


def assert_ends(
    airflow: Airflow,
    client: TransfersClient,
    run: tuple[str, str, int],
    expected: str,
    *,
    database: Path | None = None,
    timeout_s: float = 300.0,
) -> None:
    """Wait for the end of a DAG run; if it is not as expected, say what every part did.

    Args:
        airflow: where it runs.
        client: of the transfers service.
        run: ids of the DAG, of its run and of the transfer.
        expected: `success` or `failed`.
        database: the service's, for the history of the transfer.
        timeout_s: how long to wait.
    """
    dag, run_id, transfer = run
    try:
        state = airflow.wait_run(dag, run_id, timeout_s)
    except LclstreamError as error:
        state = f"unknown: {error}"
    if state == expected:
        return
    lines = [f"run {run_id} is {state}, expected {expected}"]
    lines += _tasks(airflow, dag, run_id)
    lines += _transfer(client, transfer)
    lines += _history(database, transfer) if database else []
    raise AssertionError("\n".join(lines))


def _tasks(airflow: Airflow, dag: str, run_id: str) -> list[str]:
    lines = []
    for task in airflow.tasks(dag, run_id):
        for attempt in airflow.tries(dag, run_id, task):
            number = attempt["try_number"]
            span = f"{attempt['start_date']} .. {attempt['end_date']}"
            lines.append(f"task {task}, try {number}: {attempt['state']}, {span}")
            try:
                said = airflow.task_log(dag, run_id, task, number)[-LAST_LINES:]
            except LclstreamError as error:
                said = [f"no log: {error}"]
            lines += [f"    {line}" for line in said]
    return lines


def _transfer(client: TransfersClient, transfer: int) -> list[str]:
    info = client.get(transfer)
    return [
        *(
            f"transfer {each.id}, run {each.run}: {each.phase} {each.reason}"
            for each in client.list()
        ),
        f"transfer {transfer}: {info.phase} {info.reason}, lease {info.lease}",
        *(f"    {job.role} {job.name}[{job.index}]: {job.state} {job.info}" for job in info.jobs),
        *(f"    {hop.name}: {hop.tally}" for hop in info.ledger.hops),
        *(f"    fault: {fault}" for fault in (*info.ledger.faults, info.ledger.difference)),
    ]


def _history(database: Path, transfer: int) -> list[str]:
    wanted = "SELECT time, phase, cause FROM history WHERE transfer = ? ORDER BY id"
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(wanted, (transfer,)).fetchall()
    return [
        f"    {datetime.fromtimestamp(when, UTC):%T.%f} {phase} {cause}"
        for when, phase, cause in rows
        # A row for each report would bury what matters.
        if json.loads(cause).get("final", True)
    ]
