"""Single rows of the tables, read and written inside a transaction of the store."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, CursorResult, Row, Table, func, insert, select, update

from lclstream.core.ledger import Report
from lclstream.jobs.states import JobState
from lclstream.transfers.draft import LogEntry
from lclstream.transfers.events import Action, CancelJob, SubmitJob
from lclstream.transfers.ledger import Ledger
from lclstream.transfers.record import Role, Transfer
from lclstream.transfers.tables import actions, history, log, reports, starts

_KINDS: dict[str, type[Action]] = {"submit": SubmitJob, "cancel": CancelJob}
_KIND_OF = {kind: name for name, kind in _KINDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingAction:
    """An action that was ordered and not yet carried out."""

    id: int
    action: Action


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStart:
    """What was asked for when jobs of a role were started."""

    role: Role
    name: str
    body: dict[str, Any]


def new_id(result: CursorResult[Any]) -> int:
    """Return the id that an inserted row got."""
    key = result.inserted_primary_key
    if key is None:
        raise RuntimeError("the database gave a new row no id")
    return int(key[0])


def upsert(connection: Connection, table: Table, values: dict[str, Any]) -> None:
    """Insert a row, or change the one that has its primary key."""
    keys = [column.name for column in table.primary_key]
    same = [table.c[name] == values[name] for name in keys]
    if connection.scalar(select(func.count()).select_from(table).where(*same)):
        rest = {name: value for name, value in values.items() if name not in keys}
        connection.execute(update(table).where(*same).values(rest))
    else:
        connection.execute(insert(table).values(values))


def write_history(
    connection: Connection, transfer: Transfer, now: float, cause: dict[str, Any]
) -> None:
    """Add what happened to a transfer."""
    connection.execute(
        insert(history).values(
            transfer=transfer.id,
            time=now,
            version=transfer.version,
            phase=transfer.phase.value,
            cause=json.dumps(cause),
        )
    )


def write_log(connection: Connection, transfer: int, entries: Sequence[LogEntry]) -> None:
    """Add lines to the log that clients see."""
    for entry in entries:
        connection.execute(
            insert(log).values(
                transfer=transfer,
                time=entry.time,
                role=entry.role.value,
                state=entry.state.value,
                info=entry.info,
                jobndx=entry.jobndx,
            )
        )


def write_report(connection: Connection, transfer: int, report: Report) -> None:
    """Replace the latest report of a process."""
    body = report.model_dump_json(by_alias=True, exclude_none=True)
    values = {"transfer": transfer, "hop": report.hop, "peer": report.peer, "body": body}
    upsert(connection, reports, values)


def write_start(connection: Connection, transfer: int, start: StoredStart) -> None:
    """Keep what was asked for when jobs were started."""
    values = {
        "transfer": transfer,
        "role": start.role.value,
        "name": start.name,
        "body": json.dumps(start.body),
    }
    upsert(connection, starts, values)


def order(connection: Connection, transfer: int, action: Action) -> PendingAction:
    """Add an action that is to be carried out."""
    kind = _KIND_OF[type(action)]
    row = {"transfer": transfer, "kind": kind, "key": action.key, "is_done": False}
    made = connection.execute(insert(actions).values(row))
    return PendingAction(id=new_id(made), action=action)


def finish(connection: Connection, action: int) -> None:
    """Note that an action was carried out."""
    connection.execute(update(actions).where(actions.c.id == action).values(is_done=True))


def read_ledger(connection: Connection, transfer: int) -> Ledger:
    """Return the latest report of every process."""
    ledger = Ledger()
    for body in connection.scalars(select(reports.c.body).where(reports.c.transfer == transfer)):
        ledger.add(Report.model_validate_json(body))
    return ledger


def read_log(connection: Connection, transfer: int) -> tuple[LogEntry, ...]:
    """Return the log that clients see."""
    rows = connection.execute(select(log).where(log.c.transfer == transfer).order_by(log.c.id))
    return tuple(_entry(row) for row in rows)


def read_last(connection: Connection, transfers: Sequence[int]) -> dict[int, LogEntry]:
    """Return the newest line of the log of each transfer that has one."""
    newest = select(func.max(log.c.id)).where(log.c.transfer.in_(transfers))
    query = select(log).where(log.c.id.in_(newest.group_by(log.c.transfer)))
    return {row.transfer: _entry(row) for row in connection.execute(query)}


def _entry(row: Row[Any]) -> LogEntry:
    return LogEntry(
        time=row.time,
        role=Role(row.role),
        state=JobState(row.state),
        info=row.info,
        jobndx=row.jobndx,
    )


def read_pending(connection: Connection, transfer: int) -> tuple[PendingAction, ...]:
    """Return the actions that are not carried out, in the order in which they were ordered."""
    wanted = (actions.c.transfer == transfer) & ~actions.c.is_done
    rows = connection.execute(select(actions).where(wanted).order_by(actions.c.id))
    return tuple(PendingAction(id=row.id, action=_KINDS[row.kind](key=row.key)) for row in rows)
