"""The state machine of a transfer: an event and the time go in, a new state and actions come out.

Nothing here does I/O or reads a clock. `states.py` says which phase may follow which; this module
says which trigger an event is, given the jobs and the ledger.

Rules that hold in every order of events:

- producers and consumers are submitted only when the buffer listens;
- each job is submitted at most once and canceled at most once, unless somebody restarts it by
  hand after the end, then it is canceled again;
- in the clean-up producers stop before the buffer drains, and the buffer drains before it is
  stopped, unless the transfer was canceled at once;
- a transfer is `completed` only when every job completed, every process reported its end without
  a fault and the ledger balances; of several consumer jobs those that still wait for their turn
  when the others have taken everything are canceled without being missed.
"""

from dataclasses import replace

from lclstream.core.errors import ConflictError, IllegalTransitionError
from lclstream.jobs.states import JobState
from lclstream.transfers.draft import Draft, Step
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
    TimerFired,
)
from lclstream.transfers.ledger import Ledger
from lclstream.transfers.record import Job, Lease, Role, Transfer, job_key
from lclstream.transfers.states import (
    CLOSING,
    FINAL,
    Phase,
    Timer,
    Trigger,
)
from lclstream.transfers.verdict import ended_badly, faults, is_settled

# A released lease leaves this long for another holder: a cleared task is started again.
RELEASE_GRACE_S = 5.0
# After a restart of the service reports and job states are read anew before any timer fires.
RESUME_GRACE_S = 10.0
BUFFER_NAME = "buffer"

_ORDER = {JobState.NEW: 0, JobState.QUEUED: 1, JobState.ACTIVE: 2}
_FINAL_ORDER = 3
# Of a job that has not begun.
WAITING = (JobState.NEW, JobState.QUEUED)


def advance(transfer: Transfer, event: Event, ledger: Ledger, now: float) -> Step:
    """Return what follows from an event.

    Args:
        transfer: the state before; not changed.
        event: what happened.
        ledger: all reports so far, that of the event included.
        now: Unix time.

    Raises:
        IllegalTransitionError: the event cannot happen in this phase; nothing changes.
        ConflictError: a lease is held by somebody else.
    """
    machine = _Machine(transfer, ledger, now)
    machine.handle(event)
    return machine.step(transfer)


class _Machine(Draft):
    """Knows what each event means."""

    def handle(self, event: Event) -> None:
        """Apply one event."""
        match event:
            case StartAsked():
                self._start(event)
            case JobCreated():
                self._created(event)
            case JobChanged():
                self._changed(event)
            case JobRefused():
                self._refused(event)
            case Reported():
                self._reported(event)
            case DrainAsked():
                self._drain()
            case CancelAsked():
                self._cancel(event)
            case LeaseAsked():
                self._lease(event)
            case TimerFired():
                self._fired(event.timer)
            case Resumed():
                self._resume()

    # Starting.

    def _start(self, event: StartAsked) -> None:
        known = {(job.role, job.name) for job in self.t.jobs}
        name = BUFFER_NAME if event.role is Role.BUFFER else event.name
        if (event.role, name) in known:
            return
        self._may_start(event.role)
        if self.t.buffer is None:
            self.move(Trigger.START)
            self.arm(Timer.START, self.t.limits.start_s)
            self._add(Role.BUFFER, BUFFER_NAME, 0, self.t.buffer_site)
        if event.role is not Role.BUFFER:
            for index in range(event.count):
                self._add(event.role, name, index, event.site)
        self.submit_ready()

    def _may_start(self, role: Role) -> None:
        buffer = self.t.buffer
        closed = self.t.phase in FINAL | CLOSING or (buffer is not None and buffer.is_final)
        if closed or (role is Role.PRODUCER and self.t.phase is Phase.DRAINING):
            raise IllegalTransitionError(self.t.phase.value, f"start a {role.value}")

    def _add(self, role: Role, name: str, index: int, site: str) -> None:
        key = job_key(self.t.id, role, name, index)
        job = Job(key=key, role=role, name=name, index=index, site=site)
        self.t = replace(self.t, jobs=(*self.t.jobs, job))
        self.note(job)

    # Jobs.

    def _created(self, event: JobCreated) -> None:
        job = self.t.job(event.key)
        self.t = self.t.with_job(replace(job, jobid=event.jobid))

    def _changed(self, event: JobChanged) -> None:
        job = self.t.job(event.key)
        if _is_restart(job, event):
            self._restarted(job, event)
        elif not job.is_final and _is_later(job, event):
            self._apply(job, event.state, event.jobndx, event.info)

    def _restarted(self, job: Job, event: JobChanged) -> None:
        """Somebody started an ended job again by hand."""
        if self.t.phase in FINAL | CLOSING:
            if event.state not in _ORDER:
                return
            again = replace(job, state=event.state, jobndx=event.jobndx, canceling=True)
            self.t = self.t.with_job(again)
            self.actions.append(CancelJob(key=job.key))
            self.note(again)
            return
        self._apply(job, event.state, event.jobndx, event.info)

    def _refused(self, event: JobRefused) -> None:
        job = self.t.job(event.key)
        if not job.is_final:
            state = JobState.CANCELED if job.canceling else JobState.FAILED
            self._apply(job, state, job.jobndx, event.reason)

    def _apply(self, job: Job, state: JobState, jobndx: int, info: str) -> None:
        # A cancellation carries index 0 and ends the run that is known.
        ndx = max(job.jobndx, jobndx)
        # Why it was canceled says more than nothing.
        info = info or (job.info if job.canceling else "")
        changed = replace(job, state=state, jobndx=ndx, info=info)
        self.t = self.t.with_job(changed)
        self.note(changed)
        if changed.role is Role.BUFFER and changed.is_final and self.t.phase is Phase.DRAINING:
            # The stream has ended; consumer jobs get time of their own to finish their work.
            self.arm(Timer.DRAIN, self.t.limits.drain_s)
        self._go_on()

    # Reports.

    def _reported(self, event: Reported) -> None:
        if self.t.phase in FINAL:
            return
        if event.final:
            # The ledger changed in a way that a watcher wants to see.
            finals = sum(self.ledger.finals(role) for role in Role)
            self.t = replace(self.t, finals=finals)
        if self.t.phase in CLOSING:
            return
        if event.role is Role.BUFFER and event.pull_url and not self.t.pull_url:
            self.t = replace(self.t, push_url=event.push_url, pull_url=event.pull_url)
            if self.t.phase is Phase.STARTING:
                self.arm(Timer.START, self.t.limits.start_s)
            self.submit_ready()
        if event.role is Role.PRODUCER and self.t.phase is Phase.STARTING and self.t.pull_url:
            self._stream()
        if event.final and not event.ok and event.role is not Role.CONSUMER:
            text = event.error or "ended with a fault"
            self.fail(f"{event.role.value} {event.peer}: {text}")
            return
        self._watch_activity()
        self._go_on()

    def _watch_activity(self) -> None:
        activity = self.ledger.activity()
        if activity != self.t.activity:
            self.t = replace(self.t, activity=activity)
            if self.t.phase is Phase.STREAMING:
                self.arm(Timer.IDLE, self.t.limits.idle_s)

    # Going on: what the jobs and the ledger lead to in the phase where the transfer is.

    def _go_on(self) -> None:
        if self.t.phase is Phase.STARTING and any(
            job.state is JobState.ACTIVE for job in self.t.of_role(Role.PRODUCER)
        ):
            self._stream()
        if self.t.phase in (Phase.STARTING, Phase.STREAMING):
            self._go_on_streaming()
        if self.t.phase is Phase.DRAINING:
            self._go_on_draining()
        if self.t.phase in CLOSING:
            self.clean_up()

    def _stream(self) -> None:
        self.move(Trigger.STREAM)
        self.arm(Timer.IDLE, self.t.limits.idle_s)

    def _go_on_streaming(self) -> None:
        if self._fail_on_dead_job():
            return
        producers = self.t.of_role(Role.PRODUCER)
        buffer = self.t.buffer
        buffer_closed = buffer is not None and buffer.is_final
        if buffer_closed and not producers:
            self.fail("the buffer ended before any producer was started")
        elif buffer_closed or (producers and all(job.is_final for job in producers)):
            self._enter_draining()

    def _enter_draining(self) -> None:
        self.move(Trigger.DRAIN)
        self.arm(Timer.DRAIN, self.t.limits.drain_s)

    def _go_on_draining(self) -> None:
        if self._fail_on_dead_job():
            return
        buffer = self.t.buffer
        if buffer is None or not all(job.is_final for job in self.t.jobs):
            return
        if is_settled(self.t, self.ledger):
            self._judge()
        elif Timer.SETTLE not in self.t.timers:
            # Nothing is left to drain; only reports are missing.
            self.disarm(Timer.DRAIN)
            self.arm(Timer.SETTLE, self.t.limits.settle_s)

    def _judge(self) -> None:
        found = faults(self.t, self.ledger)
        if found:
            self.fail("; ".join(found))
        else:
            self.move(Trigger.COMPLETE)

    def _fail_on_dead_job(self) -> bool:
        """Fail when a job that the transfer cannot do without has ended badly."""
        dead = [
            job
            for job in (*self.t.of_role(Role.BUFFER), *self.t.of_role(Role.PRODUCER))
            if job.is_final and job.state is not JobState.COMPLETED
        ]
        consumers = self.t.of_role(Role.CONSUMER)
        # One consumer that dies leaves its share to the others.
        if consumers and all(job.is_final for job in consumers):
            lost = [job for job in consumers if job.state is not JobState.COMPLETED]
            dead += lost if len(lost) == len(consumers) else []
        if dead:
            self.fail("; ".join(ended_badly(job) for job in dead))
        return bool(dead)

    # Ending early.

    def _drain(self) -> None:
        if self.t.phase is Phase.DRAINING:
            return
        if self.t.phase is not Phase.STREAMING:
            raise IllegalTransitionError(self.t.phase.value, Trigger.DRAIN.value)
        self._enter_draining()
        self._go_on()

    def _cancel(self, event: CancelAsked) -> None:
        if self.t.phase in FINAL:
            return
        if self.t.phase in CLOSING:
            if event.at_once and not self.t.at_once:
                self.t = replace(self.t, at_once=True)
                self.clean_up()
            return
        self.close(Trigger.CANCEL, event.reason, at_once=event.at_once)

    # Leases and timers.

    def _lease(self, event: LeaseAsked) -> None:
        lease = self.t.lease
        if event.release:
            if lease is not None and _holds(lease, event) and Timer.LEASE in self.t.timers:
                soon = min(self.t.timers[Timer.LEASE], self.now + RELEASE_GRACE_S)
                self.arm(Timer.LEASE, soon - self.now)
            return
        if self.t.phase in FINAL | CLOSING:
            raise IllegalTransitionError(self.t.phase.value, "renew a lease")
        if lease is not None and event.generation <= lease.generation and not _holds(lease, event):
            raise ConflictError(
                f"the lease is held by {lease.holder!r} in generation {lease.generation}"
            )
        self.t = replace(
            self.t,
            lease=Lease(holder=event.holder, generation=event.generation, ttl_s=event.ttl_s),
        )
        self.arm(Timer.LEASE, event.ttl_s)

    def _fired(self, timer: Timer) -> None:
        due = self.t.timers.get(timer)
        if due is None or due > self.now:
            return
        self.disarm(timer)
        handlers = {
            Timer.START: self._start_fired,
            Timer.IDLE: self._idle_fired,
            Timer.DRAIN: self._drain_fired,
            Timer.TOTAL: self._total_fired,
            Timer.LEASE: self._lease_fired,
            Timer.SETTLE: self._judge,
            Timer.STOP: self.stop_fired,
        }
        handlers[timer]()

    def _start_fired(self) -> None:
        missing = "no producer runs" if self.t.pull_url else "the buffer does not listen"
        self.fail(f"start: {missing} after {self.t.limits.start_s:g} s", at_once=True)

    def _idle_fired(self) -> None:
        self.fail(f"idle: nothing moved for {self.t.limits.idle_s:g} s")

    def _drain_fired(self) -> None:
        if self._dismiss_late_consumers():
            return
        waits_for = ", ".join(job.title for job in self.t.jobs if not job.is_final)
        text = f"drain: not done after {self.t.limits.drain_s:g} s, waiting for {waits_for}"
        self.fail(text, at_once=True)

    def _dismiss_late_consumers(self) -> bool:
        """Cancel consumer jobs that have not begun, if it is only them that the end waits for."""
        consumers = self.t.of_role(Role.CONSUMER)
        alive = [job for job in self.t.jobs if not job.is_final]
        late = [job for job in consumers if job.state in WAITING and not job.canceling]
        if alive != late or not any(job.state is JobState.COMPLETED for job in consumers):
            return False
        self.arm(Timer.DRAIN, self.t.limits.stop_s)
        for job in late:
            self.cancel_job(replace(job, info="not needed: the others took everything"))
        self._go_on()
        return True

    def _total_fired(self) -> None:
        self.fail(f"total: not done after {self.t.limits.total_s:g} s")

    def _lease_fired(self) -> None:
        lease = self.t.lease
        whose = f" of {lease.holder} (generation {lease.generation})" if lease else ""
        self.close(Trigger.CANCEL, f"lease: that{whose} has lapsed", at_once=False)

    def _resume(self) -> None:
        timers = {
            timer: max(due, self.now + RESUME_GRACE_S) for timer, due in self.t.timers.items()
        }
        self.t = replace(self.t, timers=timers)
        # Nobody could renew a lease or move a message while the service was away.
        if self.t.lease is not None and Timer.LEASE in timers:
            self.arm(Timer.LEASE, self.t.lease.ttl_s)
        if Timer.IDLE in timers:
            self.arm(Timer.IDLE, self.t.limits.idle_s)


def _holds(lease: Lease, event: LeaseAsked) -> bool:
    return (lease.holder, lease.generation) == (event.holder, event.generation)


def _is_restart(job: Job, event: JobChanged) -> bool:
    return event.jobndx > job.jobndx >= 1


def _is_later(job: Job, event: JobChanged) -> bool:
    """Return whether an event is news of the job's current run, not a late or doubled one."""
    if event.state is JobState.CANCELED:
        return True
    order = _ORDER.get(event.state, _FINAL_ORDER)
    return event.jobndx >= job.jobndx and order > _ORDER[job.state]
