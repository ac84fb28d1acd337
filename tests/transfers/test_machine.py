"""The machine with normal and broken runs, event by event, without any I/O."""

import itertools
from collections.abc import Iterable
from dataclasses import replace

import pytest

from lclstream.core.errors import ConflictError, IllegalTransitionError
from lclstream.core.ledger import Report, TallyModel
from lclstream.jobs.states import JobState
from lclstream.transfers.draft import LogEntry
from lclstream.transfers.events import (
    Action,
    CancelAsked,
    CancelJob,
    DrainAsked,
    Event,
    JobChanged,
    JobCreated,
    JobRefused,
    LeaseAsked,
    Reported,
    Resumed,
    StartAsked,
    SubmitJob,
    TimerFired,
)
from lclstream.transfers.ledger import Ledger
from lclstream.transfers.machine import RELEASE_GRACE_S, RESUME_GRACE_S, advance
from lclstream.transfers.record import Limits, Role, Transfer, from_json, to_json
from lclstream.transfers.states import Phase, Stage, Timer

S = JobState
BUFFER = "transfer-7-buffer-buffer-0"
PRODUCER = "transfer-7-producer-producer-0"
CONSUMERS = ["transfer-7-consumer-peaks-0", "transfer-7-consumer-peaks-1"]
FULL = TallyModel(messages=10, bytes=1000, events=100, digest="00000000000000ff")
PART = TallyModel(messages=7, bytes=700, events=70, digest="000000000000000f")
LIMITS = Limits(start_s=60, idle_s=50, drain_s=40, total_s=1000, flush_s=5, stop_s=20, settle_s=3)


class Bench:
    """A transfer, its ledger, and a clock that the test moves."""

    def __init__(self, ranks: int = 1, limits: Limits = LIMITS) -> None:
        self.now = 1000.0
        self.ledger = Ledger()
        self.actions: list[Action] = []
        self.log = list[LogEntry]()
        self.t = Transfer(
            id=7,
            owner="uid:mona",
            created=self.now,
            buffer_site="here",
            ranks=ranks,
            limits=limits,
            timers={Timer.TOTAL: self.now + limits.total_s},
        )

    # Methods, because a type checker believes that an attribute stays what it was.
    def phase(self) -> Phase:
        return self.t.phase

    def stage(self) -> Stage:
        return self.t.stage

    def do(self, *events: Event) -> list[Action]:
        """Apply events; return the actions that they led to."""
        actions: list[Action] = []
        for event in events:
            step = advance(self.t, event, self.ledger, self.now)
            # What is stored must be what continues.
            self.t = from_json(to_json(step.transfer))
            assert self.t == step.transfer
            actions += step.actions
            self.log += step.log
        self.actions += actions
        return actions

    def start(self, role: Role, name: str = "", count: int = 1) -> list[Action]:
        return self.do(StartAsked(role=role, name=name or role.value, site="here", count=count))

    def job(self, key: str, *states: JobState, ndx: int = 1, info: str = "") -> list[Action]:
        return self.do(
            *(
                JobChanged(key=key, jobndx=0 if s is S.CANCELED else ndx, state=s, info=info)
                for s in states
            )
        )

    def report(
        self,
        role: Role,
        peer: str = "one",
        *,
        received: TallyModel | None = None,
        sent: TallyModel | None = None,
        final: bool = False,
        ok: bool = True,
        error: str = "",
        listens: bool = False,
    ) -> list[Action]:
        report = Report(
            hop=role.value,
            peer=peer,
            final=final,
            ok=ok,
            error=error,
            received=received,
            sent=sent,
        )
        self.ledger.add(report)
        urls = {"push_url": "tcp://h:1", "pull_url": "tcp://h:2"} if listens else {}
        return self.do(Reported(role=role, peer=peer, final=final, ok=ok, error=error, **urls))

    def wait(self, seconds: float) -> list[Action]:
        """Let time pass and the timers that are due fire, in their order."""
        self.now += seconds
        actions = []
        while due := [t for t, when in self.t.timers.items() if when <= self.now]:
            timer = min(due, key=lambda each: self.t.timers[each])
            actions += self.do(TimerFired(timer=timer))
        return actions

    def streaming(self, consumers: int = 0) -> "Bench":
        """Go to the phase streaming."""
        self.start(Role.BUFFER)
        self.start(Role.PRODUCER)
        if consumers:
            self.start(Role.CONSUMER, "peaks", consumers)
        self.job(BUFFER, S.QUEUED, S.ACTIVE)
        self.report(Role.BUFFER, listens=True)
        self.job(PRODUCER, S.QUEUED, S.ACTIVE)
        for key in CONSUMERS[:consumers]:
            self.job(key, S.QUEUED, S.ACTIVE)
        assert self.t.phase is Phase.STREAMING
        return self

    def all_reported(self, consumers: int = 0, got: TallyModel = FULL) -> "Bench":
        """Let everybody report a good end."""
        self.report(Role.PRODUCER, sent=FULL, final=True)
        self.report(Role.BUFFER, received=FULL, sent=got, final=True, listens=True)
        for index in range(consumers):
            tally = got if index == 0 else TallyModel()
            self.report(Role.CONSUMER, f"c{index}", received=tally, final=True)
        return self


def cancels(actions: Iterable[Action]) -> list[str]:
    return [action.key for action in actions if isinstance(action, CancelJob)]


def submits(actions: Iterable[Action]) -> list[str]:
    return [action.key for action in actions if isinstance(action, SubmitJob)]


def test_normal_run() -> None:
    bench = Bench()
    assert bench.start(Role.BUFFER) == [SubmitJob(key=BUFFER)]
    assert bench.start(Role.PRODUCER) == []
    assert bench.start(Role.CONSUMER, "peaks", 2) == []
    bench.do(JobCreated(key=BUFFER, jobid="1.001"))
    bench.job(BUFFER, S.QUEUED, S.ACTIVE)
    assert bench.phase() is Phase.STARTING
    assert submits(bench.report(Role.BUFFER, listens=True)) == [PRODUCER, *CONSUMERS]
    assert bench.t.pull_url == "tcp://h:2"
    bench.job(PRODUCER, S.QUEUED, S.ACTIVE)
    assert bench.phase() is Phase.STREAMING
    for key in CONSUMERS:
        bench.job(key, S.QUEUED, S.ACTIVE)
    bench.report(Role.PRODUCER, sent=FULL, final=True)
    bench.job(PRODUCER, S.COMPLETED)
    assert bench.phase() is Phase.DRAINING
    bench.all_reported(consumers=2)
    bench.job(BUFFER, S.COMPLETED)
    bench.job(CONSUMERS[0], S.COMPLETED)
    assert bench.phase() is Phase.DRAINING
    bench.job(CONSUMERS[1], S.COMPLETED)
    assert (bench.phase(), bench.t.reason, bench.t.timers) == (Phase.COMPLETED, "", {})
    assert cancels(bench.actions) == []


def test_a_consumer_without_reports_is_not_counted() -> None:
    bench = Bench().streaming(consumers=1).all_reported()
    bench.job(PRODUCER, S.COMPLETED)
    bench.job(CONSUMERS[0], S.COMPLETED)
    bench.job(BUFFER, S.COMPLETED)
    assert bench.phase() is Phase.COMPLETED


@pytest.mark.parametrize("seed", range(6))
def test_callbacks_of_a_normal_run_in_any_order_and_doubled(seed: int) -> None:
    states = (S.QUEUED, S.ACTIVE, S.COMPLETED)
    order = list(itertools.permutations(states))[seed]
    bench = Bench()
    bench.start(Role.BUFFER)
    bench.start(Role.PRODUCER)
    bench.report(Role.BUFFER, listens=True)
    bench.report(Role.PRODUCER, sent=FULL, final=True)
    bench.report(Role.BUFFER, received=FULL, sent=FULL, final=True, listens=True)
    for state in order:
        bench.job(PRODUCER, state, state)
    for state in order:
        bench.job(BUFFER, state, state)
    assert bench.phase() is Phase.COMPLETED
    assert all(job.state is S.COMPLETED for job in bench.t.jobs)
    assert cancels(bench.actions) == []
    shown = [entry.state for entry in bench.log if entry.role is Role.BUFFER]
    assert shown == sorted(shown, key=[S.NEW, *states].index)


def test_a_late_queued_leaves_the_job_active() -> None:
    bench = Bench()
    bench.start(Role.BUFFER)
    bench.job(BUFFER, S.ACTIVE, S.QUEUED)
    assert bench.t.job(BUFFER).state is S.ACTIVE


def test_old_index_is_ignored_and_canceled_needs_none() -> None:
    bench = Bench().streaming()
    bench.job(PRODUCER, S.FAILED, ndx=0)
    assert bench.phase() is Phase.STREAMING
    bench.job(PRODUCER, S.CANCELED)
    assert bench.phase() is Phase.FAILING
    assert bench.t.reason == "producer canceled"


@pytest.mark.parametrize("role", [Role.PRODUCER, Role.CONSUMER])
def test_any_start_brings_the_buffer(role: Role) -> None:
    bench = Bench()
    assert submits(bench.start(role)) == [BUFFER]
    assert bench.start(Role.BUFFER) == []
    assert bench.start(role) == []
    assert len(bench.t.jobs) == 2


def test_buffer_that_fails_ends_what_was_asked_for() -> None:
    bench = Bench()
    bench.start(Role.PRODUCER)
    bench.job(BUFFER, S.QUEUED, S.ACTIVE)
    bench.job(BUFFER, S.FAILED, info="3")
    assert (bench.phase(), bench.t.reason) == (Phase.FAILED, "buffer failed: 3")
    assert submits(bench.actions) == [BUFFER]
    assert cancels(bench.actions) == []
    assert bench.t.job(PRODUCER).info == "never submitted"


def test_buffer_that_dies_while_streaming_stops_the_producer() -> None:
    bench = Bench().streaming(consumers=1)
    assert cancels(bench.job(BUFFER, S.FAILED, info="time limit")) == [PRODUCER]
    assert cancels(bench.job(PRODUCER, S.CANCELED)) == [CONSUMERS[0]]
    bench.job(CONSUMERS[0], S.CANCELED)
    assert (bench.phase(), bench.t.reason) == (Phase.FAILED, "buffer failed: time limit")


def test_buffer_that_closed_before_the_producers_end_was_heard() -> None:
    bench = Bench().streaming().all_reported()
    bench.job(BUFFER, S.COMPLETED)
    assert bench.phase() is Phase.DRAINING
    bench.job(PRODUCER, S.COMPLETED)
    assert bench.phase() is Phase.COMPLETED


def test_producer_that_crashes_and_what_it_sent_is_delivered() -> None:
    bench = Bench().streaming(consumers=1)
    bench.report(Role.PRODUCER, sent=PART)
    bench.job(PRODUCER, S.FAILED, info="1")
    assert (bench.phase(), bench.stage()) == (Phase.FAILING, Stage.FLUSH)
    assert cancels(bench.actions) == []
    bench.report(Role.BUFFER, received=PART, sent=PART, final=True)
    bench.report(Role.CONSUMER, received=PART, final=True)
    bench.job(BUFFER, S.COMPLETED)
    bench.job(CONSUMERS[0], S.COMPLETED)
    assert (bench.phase(), bench.t.reason) == (Phase.FAILED, "producer failed: 1")
    assert cancels(bench.actions) == []


def test_one_rank_that_reports_a_fault_fails_the_transfer_with_its_words() -> None:
    bench = Bench(ranks=2).streaming()
    actions = bench.report(Role.PRODUCER, "rank-1", final=True, ok=False, error="no such file")
    assert cancels(actions) == [PRODUCER]
    assert bench.t.reason == "producer rank-1: no such file"


def test_a_missing_rank_is_named_after_the_settle_timer() -> None:
    bench = Bench(ranks=3).streaming().all_reported()
    bench.job(PRODUCER, S.COMPLETED)
    bench.job(BUFFER, S.COMPLETED)
    assert bench.phase() is Phase.DRAINING
    assert set(bench.t.timers) == {Timer.SETTLE, Timer.TOTAL}
    bench.wait(LIMITS.settle_s)
    assert bench.phase() is Phase.FAILED
    assert bench.t.reason == "only 1 of 3 producer processes reported their end"


def test_a_report_that_comes_after_the_last_job_completes_the_transfer() -> None:
    bench = Bench().streaming()
    bench.report(Role.CONSUMER, "outside", received=PART)
    bench.all_reported()
    bench.job(PRODUCER, S.COMPLETED)
    bench.job(BUFFER, S.COMPLETED)
    assert bench.phase() is Phase.DRAINING
    bench.report(Role.CONSUMER, "outside", received=FULL, final=True)
    assert bench.phase() is Phase.COMPLETED


def test_lost_messages_are_named_with_their_hop() -> None:
    bench = Bench().streaming(consumers=1).all_reported(consumers=1, got=PART)
    for key in (PRODUCER, CONSUMERS[0], BUFFER):
        bench.job(key, S.COMPLETED)
    assert bench.phase() is Phase.FAILED
    assert bench.t.reason == (
        "buffer.sent has 3 messages (300 bytes) fewer than buffer.received (7 of 10)"
    )


def test_consumer_that_never_comes_fails_by_the_drain_timer_with_counts() -> None:
    bench = Bench().streaming()
    bench.report(Role.PRODUCER, sent=FULL, final=True)
    bench.job(PRODUCER, S.COMPLETED)
    bench.report(Role.BUFFER, received=FULL, sent=TallyModel())
    assert cancels(bench.wait(LIMITS.drain_s)) == [BUFFER]
    bench.report(Role.BUFFER, received=FULL, sent=TallyModel(), final=True, ok=False)
    bench.job(BUFFER, S.CANCELED)
    assert bench.phase() is Phase.FAILED
    assert bench.t.reason == (
        "drain: not done after 40 s, waiting for buffer; "
        "buffer.sent has 10 messages (1000 bytes) fewer than buffer.received (0 of 10)"
    )


def test_consumer_jobs_get_time_after_the_stream_ended() -> None:
    bench = Bench().streaming(consumers=1).all_reported(consumers=1)
    bench.job(PRODUCER, S.COMPLETED)
    bench.wait(LIMITS.drain_s - 1)
    bench.job(BUFFER, S.COMPLETED)
    bench.wait(LIMITS.drain_s - 1)
    assert bench.phase() is Phase.DRAINING
    assert cancels(bench.wait(1)) == [CONSUMERS[0]]


def late_consumer() -> Bench:
    """Return a transfer whose second consumer waits in a queue while the first gets all."""
    bench = Bench()
    bench.start(Role.CONSUMER, "peaks", 2)
    bench.streaming()
    bench.job(CONSUMERS[0], S.QUEUED, S.ACTIVE)
    bench.job(CONSUMERS[1], S.QUEUED)
    return bench


def test_a_consumer_that_nobody_misses_need_not_come() -> None:
    bench = late_consumer().all_reported(consumers=1)
    for key in (PRODUCER, BUFFER, CONSUMERS[0]):
        bench.job(key, S.COMPLETED)
    assert cancels(bench.wait(LIMITS.drain_s)) == [CONSUMERS[1]]
    assert bench.phase() is Phase.DRAINING
    bench.job(CONSUMERS[1], S.CANCELED)
    assert (bench.phase(), bench.t.reason) == (Phase.COMPLETED, "")
    assert bench.t.job(CONSUMERS[1]).info == "not needed: the others took everything"


def test_a_late_consumer_is_missed_where_something_is_missing() -> None:
    bench = late_consumer().all_reported(consumers=1, got=PART)
    for key in (PRODUCER, BUFFER, CONSUMERS[0]):
        bench.job(key, S.COMPLETED)
    bench.wait(LIMITS.drain_s)
    bench.job(CONSUMERS[1], S.CANCELED)
    assert bench.phase() is Phase.FAILED
    assert "fewer than buffer.received" in bench.t.reason


def test_a_late_consumer_that_cannot_be_canceled_fails_the_transfer() -> None:
    bench = late_consumer().all_reported(consumers=1)
    for key in (PRODUCER, BUFFER, CONSUMERS[0]):
        bench.job(key, S.COMPLETED)
    bench.wait(LIMITS.drain_s)
    bench.wait(LIMITS.stop_s)
    assert bench.phase() is Phase.FAILING
    assert bench.t.reason.endswith("waiting for consumer peaks-1")


def test_the_only_consumer_is_always_missed() -> None:
    bench = Bench()
    bench.start(Role.CONSUMER, "peaks", 1)
    bench.streaming().all_reported()
    for key in (PRODUCER, BUFFER):
        bench.job(key, S.COMPLETED)
    bench.wait(LIMITS.drain_s)
    assert bench.phase() is Phase.FAILING


def test_reports_have_their_time_although_the_drain_timer_is_near() -> None:
    bench = Bench().streaming(consumers=1)
    bench.report(Role.CONSUMER, "c0", received=PART)
    bench.all_reported()
    for key in (PRODUCER, BUFFER):
        bench.job(key, S.COMPLETED)
    bench.wait(LIMITS.drain_s - 1)
    bench.job(CONSUMERS[0], S.COMPLETED)
    bench.wait(LIMITS.settle_s - 1)
    assert bench.phase() is Phase.DRAINING
    bench.report(Role.CONSUMER, "c0", received=FULL, final=True)
    assert bench.phase() is Phase.COMPLETED


def test_one_dead_consumer_leaves_the_rest_to_the_other() -> None:
    bench = Bench().streaming(consumers=2)
    bench.job(CONSUMERS[0], S.FAILED, info="9")
    assert bench.phase() is Phase.STREAMING
    bench.job(CONSUMERS[1], S.FAILED, info="9")
    assert bench.phase() is Phase.FAILING
    assert bench.t.reason == "consumer peaks-0 failed: 9; consumer peaks-1 failed: 9"


def test_one_dead_consumer_is_a_fault_at_the_end() -> None:
    bench = Bench().streaming(consumers=2).all_reported(consumers=2)
    bench.job(CONSUMERS[0], S.FAILED, info="9")
    for key in (PRODUCER, CONSUMERS[1], BUFFER):
        bench.job(key, S.COMPLETED)
    assert (bench.phase(), bench.t.reason) == (Phase.FAILED, "consumer peaks-0 failed: 9")


def test_cancel_stops_producers_first_then_flushes_then_stops_the_rest() -> None:
    bench = Bench().streaming(consumers=1)
    assert cancels(bench.do(CancelAsked(reason="asked by uid:mona"))) == [PRODUCER]
    assert bench.stage() is Stage.PRODUCERS
    assert bench.job(PRODUCER, S.CANCELED) == []
    assert bench.stage() is Stage.FLUSH
    assert cancels(bench.wait(LIMITS.flush_s)) == [CONSUMERS[0], BUFFER]
    bench.job(CONSUMERS[0], S.CANCELED)
    assert bench.phase() is Phase.CANCELING
    bench.job(BUFFER, S.CANCELED)
    assert (bench.phase(), bench.t.reason) == (Phase.CANCELED, "asked by uid:mona")


def test_cancel_does_not_wait_for_consumers_that_nobody_has_seen() -> None:
    bench = Bench().streaming()
    bench.do(CancelAsked(reason="asked"))
    assert cancels(bench.job(PRODUCER, S.CANCELED)) == [BUFFER]


def test_cancel_at_once() -> None:
    bench = Bench().streaming(consumers=1)
    bench.do(CancelAsked(reason="asked"))
    actions = bench.do(CancelAsked(reason="asked", at_once=True))
    assert cancels(actions) == [CONSUMERS[0], BUFFER]
    assert bench.do(CancelAsked(reason="asked", at_once=True)) == []


def test_cancel_of_a_reservation_is_done_at_once() -> None:
    bench = Bench()
    assert bench.do(CancelAsked(reason="asked")) == []
    assert bench.phase() is Phase.CANCELED
    assert bench.do(CancelAsked(reason="again")) == []
    with pytest.raises(IllegalTransitionError, match=r"^cannot start a buffer in state 'canceled'"):
        bench.start(Role.BUFFER)


def test_cancel_ends_in_bounded_time_when_no_site_answers() -> None:
    bench = Bench().streaming(consumers=1)
    bench.do(CancelAsked(reason="asked"))
    bench.wait(LIMITS.stop_s)
    bench.wait(LIMITS.flush_s)
    bench.wait(LIMITS.stop_s)
    assert bench.phase() is Phase.CANCELED
    assert bench.t.unseen == (BUFFER, PRODUCER, CONSUMERS[0])
    assert "not seen to end within 20 s" in bench.t.reason
    # The end is still noted when it is seen, and changes nothing else.
    bench.job(PRODUCER, S.CANCELED)
    assert bench.phase() is Phase.CANCELED
    assert bench.t.job(PRODUCER).state is S.CANCELED


def test_a_job_that_is_restarted_after_the_end_is_canceled_again() -> None:
    bench = Bench().streaming()
    bench.do(CancelAsked(reason="asked", at_once=True))
    bench.job(PRODUCER, S.CANCELED)
    bench.job(BUFFER, S.CANCELED)
    assert bench.phase() is Phase.CANCELED
    assert bench.job(PRODUCER, S.QUEUED, S.ACTIVE, ndx=2) == [CancelJob(key=PRODUCER)]
    assert bench.phase() is Phase.CANCELED


def test_a_job_that_is_restarted_in_time_is_the_new_run() -> None:
    bench = Bench().streaming()
    bench.job(PRODUCER, S.COMPLETED)
    bench.job(PRODUCER, S.QUEUED, S.ACTIVE, ndx=2)
    assert bench.t.job(PRODUCER).jobndx == 2
    assert bench.t.job(PRODUCER).state is S.ACTIVE


def test_a_restart_that_has_ended_already_needs_no_cancel() -> None:
    bench = Bench().streaming()
    bench.do(CancelAsked(reason="asked", at_once=True))
    bench.job(PRODUCER, S.CANCELED)
    assert bench.job(PRODUCER, S.COMPLETED, ndx=2) == []


def test_buffer_that_ends_before_any_producer_was_started() -> None:
    bench = Bench()
    bench.start(Role.BUFFER)
    bench.job(BUFFER, S.QUEUED, S.ACTIVE, S.COMPLETED)
    assert bench.phase() is Phase.FAILED
    assert bench.t.reason == "the buffer ended before any producer was started"


def test_producer_that_ends_badly_while_draining() -> None:
    bench = Bench().streaming()
    bench.do(DrainAsked())
    bench.job(PRODUCER, S.FAILED, info="1")
    assert bench.phase() is Phase.FAILING
    assert bench.t.reason == "producer failed: 1"


def test_drain_by_request() -> None:
    bench = Bench().streaming()
    assert bench.do(DrainAsked()) == []
    assert bench.phase() is Phase.DRAINING
    bench.do(DrainAsked())
    with pytest.raises(IllegalTransitionError, match=r"^cannot start a producer in state"):
        bench.start(Role.PRODUCER, "more")
    bench.start(Role.CONSUMER, "late")
    bench.all_reported()
    bench.job(PRODUCER, S.COMPLETED)
    bench.job(BUFFER, S.COMPLETED)
    bench.job("transfer-7-consumer-late-0", S.COMPLETED)
    assert bench.phase() is Phase.COMPLETED
    with pytest.raises(IllegalTransitionError, match=r"^cannot drain in state 'completed'$"):
        bench.do(DrainAsked())


def test_drain_needs_a_stream() -> None:
    with pytest.raises(IllegalTransitionError, match=r"^cannot drain in state 'requested'$"):
        Bench().do(DrainAsked())


def test_a_job_that_the_site_refuses() -> None:
    bench = Bench()
    bench.start(Role.BUFFER)
    bench.do(JobRefused(key=BUFFER, reason="unknown backend 'x'"))
    assert (bench.phase(), bench.t.reason) == (
        Phase.FAILED,
        "buffer failed: unknown backend 'x'",
    )


def test_a_canceled_job_that_was_never_created() -> None:
    bench = Bench()
    bench.start(Role.BUFFER)
    assert cancels(bench.do(CancelAsked(reason="asked"))) == [BUFFER]
    bench.do(JobRefused(key=BUFFER, reason="never submitted"))
    assert bench.phase() is Phase.CANCELED
    assert bench.t.job(BUFFER).state is S.CANCELED


def test_start_timer_names_what_is_missing() -> None:
    bench = Bench()
    bench.start(Role.PRODUCER)
    bench.job(BUFFER, S.QUEUED)
    assert cancels(bench.wait(LIMITS.start_s)) == [BUFFER]
    assert bench.t.reason == "start: the buffer does not listen after 60 s"
    other = Bench()
    other.start(Role.PRODUCER)
    other.wait(LIMITS.start_s - 1)
    other.report(Role.BUFFER, listens=True)
    other.wait(LIMITS.start_s - 1)
    assert other.phase() is Phase.STARTING
    other.wait(1)
    assert other.t.reason == "start: no producer runs after 60 s"


def test_idle_timer_is_moved_by_messages_only() -> None:
    bench = Bench().streaming()
    bench.wait(LIMITS.idle_s - 1)
    bench.report(Role.PRODUCER, sent=PART)
    bench.wait(LIMITS.idle_s - 1)
    bench.report(Role.PRODUCER, sent=PART)
    assert bench.phase() is Phase.STREAMING
    bench.wait(1)
    assert bench.phase() is Phase.FAILING
    assert bench.t.reason == "idle: nothing moved for 50 s"


def test_total_timer() -> None:
    bench = Bench()
    bench.wait(LIMITS.total_s)
    assert (bench.phase(), bench.t.reason) == (Phase.FAILED, "total: not done after 1000 s")


def lease(holder: str, generation: int, *, release: bool = False) -> LeaseAsked:
    return LeaseAsked(holder=holder, generation=generation, ttl_s=25, release=release)


def test_lease_that_is_not_renewed_cancels() -> None:
    bench = Bench().streaming()
    bench.do(lease("run-1", 1))
    bench.wait(24)
    bench.do(lease("run-1", 1))
    bench.wait(24)
    assert bench.phase() is Phase.STREAMING
    bench.wait(1)
    assert bench.phase() is Phase.CANCELING
    assert bench.t.reason == "lease: that of run-1 (generation 1) has lapsed"


def test_lease_is_taken_over_by_a_higher_generation_only() -> None:
    bench = Bench().streaming()
    bench.do(lease("run-1", 2))
    for stale in (lease("run-1", 1), lease("other", 2)):
        with pytest.raises(ConflictError, match=r"^the lease is held by 'run-1' in generation 2$"):
            bench.do(stale)
    bench.do(lease("other", 3))
    assert bench.t.lease is not None
    assert bench.t.lease.holder == "other"


def test_released_lease_lapses_soon_unless_taken_over() -> None:
    bench = Bench().streaming()
    bench.do(lease("try-1", 1), lease("try-1", 1, release=True), lease("try-2", 2))
    bench.do(lease("try-1", 1, release=True))
    bench.wait(RELEASE_GRACE_S)
    assert bench.phase() is Phase.STREAMING
    bench.do(lease("try-2", 2, release=True))
    bench.wait(RELEASE_GRACE_S)
    assert bench.phase() is Phase.CANCELING
    bench.do(lease("try-2", 2, release=True))
    with pytest.raises(IllegalTransitionError, match=r"^cannot renew a lease in state 'canceling'"):
        bench.do(lease("try-2", 2))


def test_resume_gives_time_to_look_before_any_timer_fires() -> None:
    bench = Bench().streaming()
    bench.do(lease("run-1", 1))
    bench.now += 5000
    bench.do(Resumed())
    due = {timer: when - bench.now for timer, when in bench.t.timers.items()}
    assert due == {Timer.TOTAL: RESUME_GRACE_S, Timer.LEASE: 25, Timer.IDLE: LIMITS.idle_s}


def test_version_counts_what_a_watcher_sees() -> None:
    bench = Bench().streaming()
    before = bench.t.version
    bench.report(Role.PRODUCER, sent=PART)
    bench.do(lease("run-1", 1), lease("run-1", 1))
    assert bench.t.version == before
    bench.report(Role.PRODUCER, sent=FULL, final=True)
    assert bench.t.version == before + 1


def test_events_leave_the_state_before_as_it_was() -> None:
    bench = Bench().streaming()
    before = replace(bench.t)
    advance(bench.t, CancelAsked(reason="asked"), bench.ledger, bench.now)
    assert bench.t == before
