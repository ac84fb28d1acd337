"""Random runs of the machine against a world of jobs that behave in every allowed way.

Whatever happens, a transfer reaches a final phase and never leaves it, submits and cancels each
job at most once, and keeps the order of the clean-up.
"""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lclstream.core.errors import ConflictError
from lclstream.core.ledger import Report, TallyModel
from lclstream.jobs.states import JobState
from lclstream.transfers.events import (
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
from lclstream.transfers.machine import advance
from lclstream.transfers.record import Limits, Role, Transfer, from_json, to_json
from lclstream.transfers.states import CLOSING, FINAL, TIMERS, TRANSITIONS, Phase, Stage, Timer

LIMITS = Limits(start_s=9, idle_s=8, drain_s=7, total_s=99, flush_s=4, stop_s=5, settle_s=3)
NEXT = {
    JobState.NEW: [JobState.QUEUED, JobState.CANCELED],
    JobState.QUEUED: [JobState.ACTIVE, JobState.FAILED, JobState.CANCELED],
    JobState.ACTIVE: [JobState.COMPLETED, JobState.FAILED, JobState.CANCELED],
}
MESSAGES = st.integers(min_value=0, max_value=3)


class Transfers(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ledger = Ledger()
        self.t = Transfer(
            id=1, owner="uid:o", created=0.0, buffer_site="here", limits=LIMITS,
            timers={Timer.TOTAL: LIMITS.total_s},
        )  # fmt: skip
        self.submitted: list[str] = []
        self.canceled: list[str] = []
        self.dismissed: set[str] = set()
        # The states of jobs as their sites know them; the machine hears of them late.
        self.world: dict[str, JobState] = {}
        self.heard: list[JobChanged] = []

    def apply(self, event: Event) -> None:
        before = self.t
        try:
            step = advance(before, event, self.ledger, self.now)
        except ConflictError:
            return
        self.t = from_json(to_json(step.transfer))
        assert self.t == step.transfer
        if self.t.phase is not before.phase:
            # From one phase to the next, possibly by several legal steps at once.
            assert self.t.phase in _reachable(before.phase)
        for action in step.actions:
            self.check_order(action)
            if isinstance(action, SubmitJob):
                self.submitted.append(action.key)
                self.world[action.key] = JobState.NEW
            else:
                self.canceled.append(action.key)

    def check_order(self, action: SubmitJob | CancelJob) -> None:
        job = self.t.job(action.key)
        if isinstance(action, SubmitJob):
            assert job.role is Role.BUFFER or self.t.pull_url
            return
        assert action.key in self.submitted
        if job.role is Role.CONSUMER and self.t.phase not in CLOSING:
            # Nobody misses it: another one has ended well.
            assert self.t.phase is Phase.DRAINING
            others = self.t.of_role(Role.CONSUMER)
            assert any(other.state is JobState.COMPLETED for other in others)
            self.dismissed.add(action.key)
            return
        assert self.t.phase in CLOSING
        if job.role is not Role.PRODUCER:
            # Nothing but a producer is canceled before the flush is over.
            assert self.t.stage is Stage.JOBS

    @initialize(hold=st.booleans())
    def begin(self, hold: bool) -> None:
        if not hold:
            self.start(Role.BUFFER)
            self.start(Role.PRODUCER)

    @rule(role=st.sampled_from(Role))
    def start(self, role: Role) -> None:
        count = 2 if role is Role.CONSUMER else 1
        self.apply(StartAsked(role=role, name=role.value, site="here", count=count))

    @precondition(lambda self: self.world)
    @rule(data=st.data())
    def job_moves(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.world)))
        state = self.world[key]
        if state is JobState.NEW:
            self.apply(JobCreated(key=key, jobid=f"{len(self.submitted)}.000"))
        if state in NEXT:
            self.world[key] = data.draw(st.sampled_from(NEXT[state]))
            ndx = 0 if self.world[key] is JobState.CANCELED else 1
            self.heard.append(JobChanged(key=key, jobndx=ndx, state=self.world[key]))

    @precondition(lambda self: self.heard)
    @rule(data=st.data(), again=st.booleans())
    def callback(self, data: st.DataObject, again: bool) -> None:
        event = data.draw(st.sampled_from(self.heard))
        if not again:
            self.heard.remove(event)
        self.apply(event)

    @precondition(lambda self: self.world)
    @rule(data=st.data())
    def refused(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.world)))
        if self.world[key] is JobState.NEW:
            self.world[key] = JobState.FAILED
            self.apply(JobRefused(key=key, reason="no"))

    @rule(role=st.sampled_from(Role), count=MESSAGES, final=st.booleans(), ok=st.booleans())
    def report(self, role: Role, count: int, final: bool, ok: bool) -> None:
        tally = TallyModel(messages=count, bytes=count)
        report = Report(hop=role.value, peer="one", received=tally, sent=tally, final=final, ok=ok)
        self.ledger.add(report)
        urls = {"push_url": "tcp://h:1", "pull_url": "tcp://h:2"} if role is Role.BUFFER else {}
        self.apply(Reported(role=role, peer="one", final=final, ok=ok, **urls))

    @rule(at_once=st.booleans())
    def cancel(self, at_once: bool) -> None:
        self.apply(CancelAsked(reason="asked", at_once=at_once))

    @rule()
    def drain(self) -> None:
        self.apply(DrainAsked())

    @rule(generation=st.integers(0, 3), release=st.booleans())
    def lease(self, generation: int, release: bool) -> None:
        holder = f"try-{generation}"
        self.apply(LeaseAsked(holder=holder, generation=generation, ttl_s=6, release=release))

    @rule()
    def restart(self) -> None:
        self.apply(Resumed())

    @rule(seconds=st.sampled_from([1, 3, 10]))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        for timer, due in list(self.t.timers.items()):
            if due <= self.now:
                self.apply(TimerFired(timer=timer))

    @invariant()
    def never_without_a_timer(self) -> None:
        assert bool(self.t.timers) is (self.t.phase not in FINAL)
        assert set(self.t.timers) <= TIMERS[self.t.phase]
        assert (self.t.stage is Stage.NONE) is (self.t.phase not in CLOSING)

    @invariant()
    def each_job_at_most_once(self) -> None:
        assert len(self.submitted) == len(set(self.submitted))
        assert len(self.canceled) == len(set(self.canceled))

    @invariant()
    def producers_are_dead_before_the_flush(self) -> None:
        if self.t.stage is Stage.FLUSH:
            assert all(job.is_final or job.canceling for job in self.t.of_role(Role.PRODUCER))

    @invariant()
    def a_complete_transfer_is_complete(self) -> None:
        if self.t.phase is Phase.COMPLETED:
            needed = [job for job in self.t.jobs if job.state is not JobState.CANCELED]
            assert all(job.state is JobState.COMPLETED for job in needed)
            assert self.ledger.differences() == []
            assert set(self.canceled) == self.dismissed
        if self.t.phase in FINAL:
            left = [j.key for j in self.t.jobs if not j.is_final and j.key not in self.canceled]
            assert left == []

    def teardown(self) -> None:
        """Nothing happens any more: the timers alone must lead to an end."""
        longest = sum((LIMITS.total_s, LIMITS.drain_s, LIMITS.stop_s * 3, 20))
        deadline = self.now + longest
        while self.t.phase not in FINAL:
            assert self.t.timers
            self.now = max(self.now, min(self.t.timers.values()))
            assert self.now <= deadline
            self.wait(0)
        final = self.t.phase
        for key in self.world:
            self.apply(JobChanged(key=key, jobndx=1, state=JobState.COMPLETED))
        self.cancel(at_once=True)
        self.drain()
        self.start(Role.CONSUMER)
        assert self.t.phase is final


def _reachable(phase: Phase) -> set[Phase]:
    reached = set(TRANSITIONS[phase].values())
    for _ in Phase:
        reached |= {target for each in reached for target in TRANSITIONS[each].values()}
    return reached


TestTransfers = Transfers.TestCase
TestTransfers.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
