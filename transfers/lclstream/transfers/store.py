"""The durable memory of the service: every change of a transfer in one transaction.

A change is written together with its cause, the lines of the log and the actions that it orders,
before any of these actions is carried out. An action stays unfinished until it was carried out, so
a service that was killed at any point finds on its next start what is left to do.

SQLite in WAL mode by default, any other database by its SQLAlchemy URL. Methods block;
`StoreThread` runs them outside of the event loop, one at a time.
"""

import asyncio
import json
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, insert, select, update

from lclstream.core.ledger import Report
from lclstream.transfers.draft import LogEntry, Step
from lclstream.transfers.events import Event, JobCreated, describe
from lclstream.transfers.ledger import Ledger
from lclstream.transfers.record import Role, Transfer, from_json, to_json
from lclstream.transfers.rows import (
    PendingAction,
    StoredStart,
    finish,
    new_id,
    order,
    read_last,
    read_ledger,
    read_log,
    read_pending,
    upsert,
    write_history,
    write_log,
    write_report,
    write_start,
)
from lclstream.transfers.states import FINAL
from lclstream.transfers.tables import (
    actions,
    history,
    jobs,
    open_database,
    service,
    starts,
    transfers,
)

__all__ = ["PendingAction", "Store", "StoreThread", "Stored", "StoredStart", "Summary"]

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """All that the service knows of one transfer."""

    transfer: Transfer
    request: dict[str, Any]
    ledger: Ledger
    log: tuple[LogEntry, ...]
    pending: tuple[PendingAction, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a list shows of a transfer: without reports, which may be thousands."""

    transfer: Transfer
    request: dict[str, Any]
    last: LogEntry | None
    """The newest line of its log."""


class Store:
    """Reads and writes transfers; not safe for several threads.

    Resource handling: owns a connection pool until `close`. An SQLite file is readable by its
    owner only.
    """

    def __init__(self, database: str) -> None:
        self._engine = open_database(database)
        self._instance = self._read_instance()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def instance(self) -> str:
        """Return a name that no other database has: two may count transfers from 1."""
        return self._instance

    def _read_instance(self) -> str:
        with self._engine.begin() as connection:
            found = connection.scalar(select(service.c.instance))
            if found is None:
                found = secrets.token_hex(6)
                connection.execute(insert(service).values(instance=found))
        return str(found)

    def create(
        self, make: Callable[[int], Transfer], request: dict[str, Any], key: str | None
    ) -> tuple[Transfer, bool]:
        """Store a new transfer, or find the one that its owner made with the same key.

        Args:
            make: returns the transfer for the id that it gets.
            request: what the client asked for, as JSON.
            key: idempotency key of the client.

        Returns:
            The transfer, and whether it is new.
        """
        draft = make(0)
        with self._engine.begin() as connection:
            if key is not None and (found := self._by_key(connection, draft.owner, key)):
                return found, False
            row = {
                "owner": draft.owner,
                "idempotency_key": key,
                "created": draft.created,
                "is_over": False,
                "request": json.dumps(request),
                "state": "",
            }
            made = connection.execute(insert(transfers).values(row))
            transfer = make(new_id(made))
            self._save(connection, transfer)
            write_history(connection, transfer, draft.created, {"event": "Requested"})
        return transfer, True

    def record(
        self,
        cause: Event,
        step: Step,
        now: float,
        *,
        reports: Sequence[Report] = (),
        start: StoredStart | None = None,
    ) -> list[PendingAction]:
        """Write what an event led to, in one transaction.

        Args:
            cause: the event.
            step: what the machine made of it.
            now: Unix time.
            reports: those that came since the last change.
            start: what was asked for, with a `StartAsked`.

        Returns:
            The actions that were ordered, in their order.
        """
        transfer = step.transfer
        with self._engine.begin() as connection:
            self._save(connection, transfer)
            write_history(connection, transfer, now, describe(cause))
            write_log(connection, transfer.id, step.log)
            for report in reports:
                write_report(connection, transfer.id, report)
            if start is not None:
                write_start(connection, transfer.id, start)
            if isinstance(cause, JobCreated):
                values = {"transfer": transfer.id, "key": cause.key, "jobid": cause.jobid}
                upsert(connection, jobs, values)
            return [order(connection, transfer.id, action) for action in step.actions]

    def keep(self, transfer: Transfer, reports: Sequence[Report]) -> None:
        """Write what changes all the time, without history: timers, figures, live reports."""
        with self._engine.begin() as connection:
            self._save(connection, transfer)
            for report in reports:
                write_report(connection, transfer.id, report)

    def finish(self, action: int) -> None:
        """Note that an action was carried out."""
        with self._engine.begin() as connection:
            finish(connection, action)

    def unfinished(self) -> list[int]:
        """Return the ids of transfers that are not final or have unfinished actions."""
        with self._engine.connect() as connection:
            open_ones = connection.scalars(select(transfers.c.id).where(~transfers.c.is_over))
            ordered = connection.scalars(select(actions.c.transfer).where(~actions.c.is_done))
            return sorted({*open_ones, *ordered})

    def load(self, transfer: int) -> Stored | None:
        """Return all about a transfer, None if there is no such one."""
        with self._engine.connect() as connection:
            row = connection.execute(select(transfers).where(transfers.c.id == transfer)).first()
            if row is None:
                return None
            return Stored(
                transfer=from_json(row.state),
                request=json.loads(row.request),
                ledger=read_ledger(connection, transfer),
                log=read_log(connection, transfer),
                pending=read_pending(connection, transfer),
            )

    def start_of(self, transfer: int, role: Role, name: str) -> dict[str, Any]:
        """Return what was asked for when jobs were started; empty if nothing in particular."""
        wanted = (starts.c.transfer == transfer) & (starts.c.role == role) & (starts.c.name == name)
        with self._engine.connect() as connection:
            body = connection.scalar(select(starts.c.body).where(wanted))
        found: dict[str, Any] = json.loads(body) if body is not None else {}
        return found

    def summaries(
        self, *, final: bool, owner: str | None, before: int | None, count: int
    ) -> list[Summary]:
        """Return what a list shows of transfers, newest first.

        Args:
            final: whether ended ones are included.
            owner: only those of this owner; None = all.
            before: only those with a lower id; None = from the newest.
            count: how many at most.
        """
        query = select(transfers).order_by(transfers.c.id.desc()).limit(count)
        if not final:
            query = query.where(~transfers.c.is_over)
        if owner is not None:
            query = query.where(transfers.c.owner == owner)
        if before is not None:
            query = query.where(transfers.c.id < before)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
            last = read_last(connection, [row.id for row in rows])
        return [
            Summary(
                transfer=from_json(row.state),
                request=json.loads(row.request),
                last=last.get(row.id),
            )
            for row in rows
        ]

    def with_jobid(self, jobid: str) -> list[tuple[int, str]]:
        """Return transfer and key of the jobs that have an id; sites may give the same one."""
        query = select(jobs.c.transfer, jobs.c.key).where(jobs.c.jobid == jobid)
        with self._engine.connect() as connection:
            return [(row.transfer, row.key) for row in connection.execute(query)]

    def causes(self, transfer: int) -> list[dict[str, Any]]:
        """Return the history of a transfer: time, version, phase and what caused it."""
        query = select(history).where(history.c.transfer == transfer).order_by(history.c.id)
        with self._engine.connect() as connection:
            return [
                {
                    "time": row.time,
                    "version": row.version,
                    "phase": row.phase,
                    **json.loads(row.cause),
                }
                for row in connection.execute(query)
            ]

    def _by_key(self, connection: Connection, owner: str, key: str) -> Transfer | None:
        wanted = (transfers.c.owner == owner) & (transfers.c.idempotency_key == key)
        state = connection.scalar(select(transfers.c.state).where(wanted))
        return from_json(state) if state is not None else None

    def _save(self, connection: Connection, transfer: Transfer) -> None:
        over = transfer.phase in FINAL and all(job.is_final for job in transfer.jobs)
        connection.execute(
            update(transfers)
            .where(transfers.c.id == transfer.id)
            .values(state=to_json(transfer), is_over=over)
        )


class StoreThread:
    """Runs the store's methods in a thread of its own, in the order in which they are asked for.

    Resource handling: an asynchronous context manager; owns the thread and the store.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._store: Store | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        try:
            self._store = await loop.run_in_executor(self._executor, Store, self._database)
        except BaseException:
            self._executor.shutdown()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.do(Store.close)
        self._store = None
        self._executor.shutdown()

    async def do(
        self,
        method: Callable[..., R],
        *arguments: Any,
        **named: Any,
    ) -> R:
        """Call a method of `Store` and return its result.

        Cancelling the caller does not stop a write that has begun.
        """
        if self._store is None:
            raise RuntimeError("the store is not open")
        store = self._store
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._executor, lambda: method(store, *arguments, **named)
        )
