"""What clients see of a transfer, made from what the service knows. Pure functions."""

from collections.abc import Sequence
from typing import Any

from lclstream.core.ledger import Reply
from lclstream.jobs.states import JobState
from lclstream.transfers.draft import LogEntry
from lclstream.transfers.ledger import Ledger
from lclstream.transfers.models import (
    CLIENT_OF,
    CacheMetrics,
    HopInfo,
    JobInfo,
    LeaseInfo,
    LedgerInfo,
    PortTransition,
    TransferInfo,
    TransferStatus,
)
from lclstream.transfers.record import Role, Transfer
from lclstream.transfers.states import CLOSING, FINAL, Phase, Stage, Timer

# For how long a draining buffer stays for consumer jobs that it has not seen yet.
CONSUMER_PATIENCE_S = 30.0


def info_of(
    transfer: Transfer,
    ledger: Ledger,
    log: Sequence[LogEntry],
    request: dict[str, Any],
    now: float,
) -> TransferInfo:
    """Return everything about one transfer.

    Args:
        transfer: its state.
        ledger: its reports.
        log: what its jobs did, oldest first.
        request: what the client asked for.
        now: Unix time.
    """
    return TransferInfo(
        user=transfer.owner,
        log=[_transition(entry) for entry in log],
        metrics=_metrics(ledger, now),
        id=transfer.id,
        url=transfer.pull_url,
        phase=transfer.phase,
        reason=transfer.reason,
        experiment=request.get("experiment", ""),
        run=request.get("run", ""),
        created=transfer.created,
        version=transfer.version,
        jobs=[
            JobInfo(
                role=job.role,
                name=job.name,
                index=job.index,
                site=job.site,
                jobid=job.jobid,
                state=job.state,
                info=job.info,
            )
            for job in transfer.jobs
        ],
        ledger=_ledger_info(transfer, ledger),
        peers={f"{role.value}/{peer}": each.stats for (role, peer), each in ledger.reports.items()},
        timers={timer.value: due for timer, due in transfer.timers.items()},
        lease=_lease_info(transfer),
    )


def status_of(transfer: Transfer, last: LogEntry | None, request: dict[str, Any]) -> TransferStatus:
    """Return one line of the list, in the manner of LCLStream-API.

    Args:
        transfer: its state.
        last: the newest line of its log, if it has any.
        request: what the client asked for.
    """
    buffer = transfer.buffer
    return TransferStatus(
        time=last.time if last else transfer.created,
        jobndx=last.jobndx if last else 0,
        state=buffer.state if buffer else JobState.NEW,
        info=(last.info or "ok") if last else "ok",
        id=transfer.id,
        url=transfer.pull_url,
        user=transfer.owner,
        phase=transfer.phase,
        reason=transfer.reason,
        experiment=request.get("experiment", ""),
        run=request.get("run", ""),
    )


def reply_to(transfer: Transfer, ledger: Ledger, role: Role, now: float) -> Reply:
    """Return what a reporting process shall do next."""
    if transfer.phase in FINAL or transfer.stage is Stage.JOBS:
        reason = transfer.reason or f"the transfer is {transfer.phase.value}"
        return Reply(command="stop", reason=reason)
    if role is Role.PRODUCER:
        return _reply_to_producer(transfer)
    if role is Role.BUFFER:
        flushing = transfer.stage is Stage.FLUSH
        draining = transfer.phase is Phase.DRAINING and _may_drain(transfer, ledger, now)
        return Reply(command="drain", reason=transfer.reason) if flushing or draining else Reply()
    if ledger.finals(Role.BUFFER):
        return Reply(command="drain", reason="the buffer has given out everything and ended")
    return Reply()


def _reply_to_producer(transfer: Transfer) -> Reply:
    if transfer.phase in CLOSING:
        return Reply(command="stop", reason=transfer.reason)
    if transfer.phase is Phase.DRAINING:
        return Reply(command="drain", reason="no more data is wanted")
    return Reply()


def _may_drain(transfer: Transfer, ledger: Ledger, now: float) -> bool:
    """Return whether a draining buffer may end as soon as it is empty.

    The first consumers may be quick to empty it; a consumer job that comes later would find
    nobody who tells it that the stream has ended.
    """
    jobs = transfer.of_role(Role.CONSUMER)
    seen = sum(int(each.stats.get("consumers_seen", 0)) for each in ledger.of(Role.BUFFER))
    if seen >= len(jobs) or all(job.is_final for job in jobs):
        return True
    patience_s = min(CONSUMER_PATIENCE_S, transfer.limits.drain_s / 2)
    began = transfer.timers.get(Timer.DRAIN, now) - transfer.limits.drain_s
    return now >= began + patience_s


def _transition(entry: LogEntry) -> PortTransition:
    # The reference service says "ok" where a new job has nothing to say.
    info = entry.info or ("ok" if entry.state is JobState.NEW else "")
    return PortTransition(
        time=entry.time,
        client=CLIENT_OF[entry.role],
        state=entry.state,
        info=info,
        jobndx=entry.jobndx,
    )


def _metrics(ledger: Ledger, now: float) -> CacheMetrics:
    received = sent = buffered = producers = 0
    for report in ledger.of(Role.BUFFER):
        received += report.received.messages if report.received else 0
        sent += report.sent.messages if report.sent else 0
        buffered += int(report.stats.get("queue_messages", 0))
        producers += int(report.stats.get("producers", 0))
    return CacheMetrics(time=now, producers=producers, recvd=received, sent=sent, buffered=buffered)


def _ledger_info(transfer: Transfer, ledger: Ledger) -> LedgerInfo:
    differences = ledger.differences()
    is_closed = transfer.phase in FINAL and ledger.is_begun
    return LedgerInfo(
        hops=[HopInfo(name=hop.name, peers=hop.peers, tally=hop.tally) for hop in ledger.hops()],
        balanced=not differences if is_closed else None,
        difference="; ".join(differences),
        faults=[fault for role in Role for fault in ledger.faults(role)],
    )


def _lease_info(transfer: Transfer) -> LeaseInfo | None:
    lease = transfer.lease
    if lease is None:
        return None
    return LeaseInfo(
        holder=lease.holder,
        generation=lease.generation,
        expires=transfer.timers.get(Timer.LEASE),
    )
