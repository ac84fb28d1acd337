"""What reporting processes are told, and what clients see."""

from dataclasses import replace

import pytest

from lclstream.core.ledger import Report, TallyModel
from lclstream.jobs.states import JobState
from lclstream.transfers.ledger import Ledger
from lclstream.transfers.record import Job, Limits, Role, Transfer
from lclstream.transfers.states import Phase, Stage, Timer
from lclstream.transfers.view import CONSUMER_PATIENCE_S, info_of, reply_to, status_of

LIMITS = Limits(drain_s=100)
CONSUMER = Job(
    key="transfer-1-consumer-c-0",
    role=Role.CONSUMER,
    name="c",
    index=0,
    site="here",
    state=JobState.ACTIVE,
)


def transfer(phase: Phase, stage: Stage = Stage.NONE, *jobs: Job) -> Transfer:
    return Transfer(
        id=1,
        owner="uid:mona",
        created=5.0,
        buffer_site="here",
        limits=LIMITS,
        phase=phase,
        stage=stage,
        jobs=jobs,
        timers={Timer.DRAIN: 1000.0 + LIMITS.drain_s},
    )


def ledger(consumers_seen: int = 0, *, final: bool = False) -> Ledger:
    made = Ledger()
    stats: dict[str, float | int | str] = {
        "consumers_seen": consumers_seen,
        "queue_messages": 4,
        "producers": 2,
    }
    tally = TallyModel(messages=9)
    made.add(Report(hop="buffer", peer="b", received=tally, stats=stats, final=final))
    return made


@pytest.mark.parametrize(
    ("phase", "stage", "producer", "buffer", "consumer"),
    [
        (Phase.STARTING, Stage.NONE, "continue", "continue", "continue"),
        (Phase.STREAMING, Stage.NONE, "continue", "continue", "continue"),
        (Phase.DRAINING, Stage.NONE, "drain", "drain", "continue"),
        (Phase.CANCELING, Stage.PRODUCERS, "stop", "continue", "continue"),
        (Phase.FAILING, Stage.FLUSH, "stop", "drain", "continue"),
        (Phase.FAILING, Stage.JOBS, "stop", "stop", "stop"),
        (Phase.COMPLETED, Stage.NONE, "stop", "stop", "stop"),
    ],
)
def test_commands(phase: Phase, stage: Stage, producer: str, buffer: str, consumer: str) -> None:
    moment = transfer(phase, stage)
    told = [reply_to(moment, ledger(), role, 1000.0).command for role in
            (Role.PRODUCER, Role.BUFFER, Role.CONSUMER)]  # fmt: skip
    assert told == [producer, buffer, consumer]


def test_buffer_waits_for_consumer_jobs_that_it_has_not_seen() -> None:
    late = transfer(Phase.DRAINING, Stage.NONE, CONSUMER)
    assert reply_to(late, ledger(0), Role.BUFFER, 1001.0).command == "continue"
    assert reply_to(late, ledger(1), Role.BUFFER, 1001.0).command == "drain"
    after = 1000.0 + CONSUMER_PATIENCE_S
    assert reply_to(late, ledger(0), Role.BUFFER, after).command == "drain"
    dead = late.with_job(replace(CONSUMER, state=JobState.FAILED))
    assert reply_to(dead, ledger(0), Role.BUFFER, 1001.0).command == "drain"


def test_consumer_learns_that_the_buffer_has_ended() -> None:
    reply = reply_to(
        transfer(Phase.DRAINING, Stage.NONE, CONSUMER), ledger(final=True), Role.CONSUMER, 1001.0
    )
    assert reply.command == "drain"


def test_metrics_come_from_the_buffer() -> None:
    info = info_of(transfer(Phase.STREAMING), ledger(), [], {"experiment": "x", "run": 3}, 7.0)
    assert info.metrics.model_dump() == {
        "time": 7.0,
        "producers": 2,
        "recvd": 9,
        "sent": 0,
        "buffered": 4,
    }
    assert info.peers["buffer/b"]["queue_messages"] == 4
    assert (info.ledger.balanced, info.experiment, info.run) == (None, "x", 3)


def test_status_of_a_reservation() -> None:
    status = status_of(transfer(Phase.REQUESTED), None, {})
    assert (status.time, status.state, status.info) == (5.0, JobState.NEW, "ok")
