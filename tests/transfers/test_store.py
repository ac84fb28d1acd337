import asyncio
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lclstream.core.ledger import Report, TallyModel
from lclstream.jobs.states import JobState
from lclstream.transfers.events import (
    CancelAsked,
    CancelJob,
    Event,
    JobChanged,
    JobCreated,
    Reported,
    StartAsked,
    SubmitJob,
)
from lclstream.transfers.machine import advance
from lclstream.transfers.record import Role, Transfer
from lclstream.transfers.states import Phase, Timer
from lclstream.transfers.store import Store, StoredStart, StoreThread

BUFFER = "transfer-1-buffer-buffer-0"
REQUEST = {"experiment": "mfx1", "hold": False}


def make(number: int, owner: str = "uid:mona") -> Transfer:
    return Transfer(
        id=number, owner=owner, created=1.0, buffer_site="here", timers={Timer.TOTAL: 99.0}
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "transfers.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(str(path))
    yield opened
    opened.close()


def do(store: Store, transfer: Transfer, event: Event, report: Report | None = None) -> Transfer:
    stored = store.load(transfer.id)
    assert stored is not None
    if report is not None:
        stored.ledger.add(report)
    step = advance(transfer, event, stored.ledger, now=2.0)
    store.record(event, step, 2.0, reports=[report] if report else [])
    return step.transfer


def started(store: Store) -> Transfer:
    transfer, _ = store.create(make, REQUEST, None)
    return do(store, transfer, StartAsked(role=Role.BUFFER, name="", site="here"))


def test_what_is_written_is_read_again(store: Store, path: Path) -> None:
    transfer = started(store)
    transfer = do(store, transfer, JobCreated(key=BUFFER, jobid="17.5"))
    transfer = do(store, transfer, JobChanged(key=BUFFER, jobndx=1, state=JobState.ACTIVE))
    report = Report(hop="buffer", peer="b", final=True, received=TallyModel(messages=3))
    transfer = do(store, transfer, Reported(role=Role.BUFFER, peer="b", final=True), report)
    other = Store(str(path))
    stored = other.load(transfer.id)
    other.close()
    assert stored is not None
    assert stored.transfer == transfer
    assert stored.request == REQUEST
    assert stored.ledger.reports == {(Role.BUFFER, "b"): report}
    assert [entry.state for entry in stored.log] == [JobState.NEW, JobState.ACTIVE]
    assert [pending.action for pending in stored.pending] == [SubmitJob(key=BUFFER)]


def test_every_database_has_a_name_of_its_own(store: Store, path: Path, tmp_path: Path) -> None:
    names = []
    for place in (path, tmp_path / "other.db"):
        opened = Store(str(place))
        names.append(opened.instance())
        opened.close()
    assert names[0] == store.instance()
    assert names[1] != names[0]


def test_database_is_private_and_durable(store: Store, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_actions_stay_until_they_are_carried_out(store: Store) -> None:
    transfer = started(store)
    do(store, transfer, CancelAsked(reason="asked"))
    stored = store.load(transfer.id)
    assert stored is not None
    assert [p.action for p in stored.pending] == [SubmitJob(key=BUFFER), CancelJob(key=BUFFER)]
    store.finish(stored.pending[0].id)
    stored = store.load(transfer.id)
    assert stored is not None
    assert [p.action for p in stored.pending] == [CancelJob(key=BUFFER)]


def test_same_key_of_the_same_owner_is_the_same_transfer(store: Store) -> None:
    first, is_new = store.create(make, REQUEST, "dag-run-1")
    assert is_new
    again, is_new = store.create(make, REQUEST, "dag-run-1")
    assert (again.id, is_new) == (first.id, False)
    other, is_new = store.create(lambda number: make(number, "uid:otto"), REQUEST, "dag-run-1")
    assert is_new
    assert other.id != first.id
    assert store.create(make, REQUEST, None)[0].id != store.create(make, REQUEST, None)[0].id


def test_only_what_is_over_is_left_alone_after_a_restart(store: Store) -> None:
    canceled, _ = store.create(make, REQUEST, None)
    do(store, canceled, CancelAsked(reason="asked"))
    alive, _ = store.create(make, REQUEST, None)
    assert store.unfinished() == [alive.id]
    # Final, but a job was not seen to end.
    lost = do(store, alive, StartAsked(role=Role.BUFFER, name="", site="here"))
    store.keep(replace(lost, phase=Phase.FAILED, timers={}), [])
    assert store.unfinished() == [alive.id]


def listed(store: Store, **wanted: Any) -> list[int]:
    options = {"final": False, "owner": "uid:mona", "before": None, "count": 9, **wanted}
    return [each.transfer.id for each in store.summaries(**options)]


def test_summaries_by_owner_newest_first(store: Store) -> None:
    first, second = started(store), started(store)
    third, _ = store.create(lambda number: make(number, "uid:otto"), REQUEST, None)
    assert listed(store) == [second.id, first.id]
    assert listed(store, count=1) == [second.id]
    assert listed(store, before=second.id) == [first.id]
    assert listed(store, owner=None) == [third.id, second.id, first.id]
    do(store, third, CancelAsked(reason="asked"))
    assert listed(store, owner=None) == [second.id, first.id]
    assert listed(store, owner=None, final=True) == [third.id, second.id, first.id]


def test_a_summary_has_the_newest_line_of_the_log(store: Store) -> None:
    transfer, other = started(store), started(store)
    fresh, _ = store.create(make, REQUEST, None)
    key = f"transfer-{transfer.id}-buffer-buffer-0"
    do(store, transfer, JobChanged(key=key, jobndx=1, state=JobState.QUEUED))
    found = store.summaries(final=True, owner=None, before=None, count=9)
    states = {each.transfer.id: each.last and each.last.state for each in found}
    assert states == {transfer.id: JobState.QUEUED, other.id: JobState.NEW, fresh.id: None}
    assert [each.request for each in found] == [REQUEST] * 3


def test_jobs_are_found_by_an_id_that_two_sites_may_have_given(store: Store) -> None:
    one, two = started(store), started(store)
    for transfer in (one, two):
        key = f"transfer-{transfer.id}-buffer-buffer-0"
        do(store, transfer, JobCreated(key=key, jobid="17.5"))
    assert [number for number, _ in store.with_jobid("17.5")] == [one.id, two.id]
    assert store.with_jobid("17.6") == []


def test_what_was_asked_for_is_kept(store: Store) -> None:
    transfer, _ = store.create(make, REQUEST, None)
    event = StartAsked(role=Role.CONSUMER, name="peaks", site="here")
    stored = store.load(transfer.id)
    assert stored is not None
    step = advance(transfer, event, stored.ledger, 2.0)
    start = StoredStart(role=Role.CONSUMER, name="peaks", body={"script": "echo"})
    store.record(event, step, 2.0, start=start)
    assert store.start_of(transfer.id, Role.CONSUMER, "peaks") == {"script": "echo"}
    assert store.start_of(transfer.id, Role.CONSUMER, "other") == {}


def test_history_names_every_cause(store: Store) -> None:
    transfer = do(store, started(store), CancelAsked(reason="asked"))
    causes = store.causes(transfer.id)
    assert [cause["event"] for cause in causes] == ["Requested", "StartAsked", "CancelAsked"]
    assert [cause["phase"] for cause in causes] == ["requested", "starting", "canceling"]


def test_a_change_is_written_as_a_whole_or_not_at_all(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer = started(store)
    stored = store.load(transfer.id)
    assert stored is not None
    event = CancelAsked(reason="asked")
    step = advance(transfer, event, stored.ledger, 3.0)

    def broken(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("lclstream.transfers.store.order", broken)
    with pytest.raises(OSError, match="disk full"):
        store.record(event, step, 3.0)
    after = store.load(transfer.id)
    assert after is not None
    assert after.transfer == transfer
    assert len(store.causes(transfer.id)) == 2


@pytest.mark.anyio
async def test_the_thread_serves_in_order_and_ends(path: Path) -> None:
    async with StoreThread(str(path)) as thread:
        made = await asyncio.gather(*(thread.do(Store.create, make, {}, None) for _ in range(5)))
        assert [transfer.id for transfer, _ in made] == [1, 2, 3, 4, 5]
        assert any(each.name.startswith("store") for each in threading.enumerate())
    assert not any(each.name.startswith("store") for each in threading.enumerate())
