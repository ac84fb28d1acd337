"""A transfer while one event is applied to it, and how its clean-up goes.

`machine.py` decides what an event means; the changes themselves are made here, where each keeps the
state legal: a phase is left only by a row of the table and takes its timers with it, a job is
canceled only once.
"""

from dataclasses import dataclass, replace

from lclstream.jobs.states import JobState
from lclstream.transfers.events import Action, CancelJob, SubmitJob
from lclstream.transfers.ledger import Ledger
from lclstream.transfers.record import Job, Role, Transfer
from lclstream.transfers.states import TIMERS, Phase, Stage, Timer, Trigger, after


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One line of the log that clients see: a job changed its state."""

    time: float
    role: Role
    state: JobState
    info: str
    jobndx: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What an event led to."""

    transfer: Transfer
    actions: tuple[Action, ...] = ()
    log: tuple[LogEntry, ...] = ()


class Draft:
    """Collects the consequences of one event."""

    def __init__(self, transfer: Transfer, ledger: Ledger, now: float) -> None:
        self.t = transfer
        self.ledger = ledger
        self.now = now
        self.actions: list[Action] = []
        self.log: list[LogEntry] = []

    def step(self, before: Transfer) -> Step:
        """Return the result, with a new version if a watcher sees a difference."""
        if shown(self.t) != shown(before):
            self.t = replace(self.t, version=before.version + 1)
        return Step(transfer=self.t, actions=tuple(self.actions), log=tuple(self.log))

    # Submitting.

    def submit_ready(self) -> None:
        """Submit what may run now: the buffer at once, all others when it listens."""
        for job in self.t.jobs:
            waits = job.role is not Role.BUFFER and not self.t.pull_url
            if not (job.submitting or job.is_final or waits):
                self.t = self.t.with_job(replace(job, submitting=True))
                self.actions.append(SubmitJob(key=job.key))

    # Ending early.

    def fail(self, reason: str, *, at_once: bool = False) -> None:
        """Begin to end the transfer because something went wrong."""
        self.close(Trigger.FAIL, reason, at_once=at_once)

    def close(self, trigger: Trigger, reason: str, *, at_once: bool) -> None:
        """Begin the clean-up of a canceled or failed transfer."""
        self.move(trigger)
        self.t = replace(self.t, reason=reason, at_once=at_once)
        self._enter_stage(Stage.PRODUCERS)
        self.clean_up()

    def clean_up(self) -> None:
        """Go through the stages of the clean-up as far as possible."""
        if self.t.at_once and self.t.stage in (Stage.PRODUCERS, Stage.FLUSH):
            self._enter_stage(Stage.JOBS)
        if self.t.stage is Stage.PRODUCERS and self._all_final(Role.PRODUCER):
            self._enter_stage(Stage.FLUSH if self._can_flush() else Stage.JOBS)
        if self.t.stage is Stage.FLUSH and self._all_final(*Role):
            self._enter_stage(Stage.JOBS)
        if self.t.stage is Stage.JOBS and self._all_final(*Role):
            self._end()

    def _enter_stage(self, stage: Stage) -> None:
        self.t = replace(self.t, stage=stage)
        limits = self.t.limits
        if stage is Stage.PRODUCERS:
            self._cancel_jobs(Role.PRODUCER)
            self.arm(Timer.STOP, limits.stop_s)
        elif stage is Stage.FLUSH:
            canceling = self.t.phase is Phase.CANCELING
            self.arm(Timer.STOP, limits.flush_s if canceling else limits.drain_s)
        else:
            self._cancel_jobs(Role.PRODUCER, Role.CONSUMER, Role.BUFFER)
            self.arm(Timer.STOP, limits.stop_s)

    def _cancel_jobs(self, *roles: Role) -> None:
        for role in roles:
            for job in self.t.of_role(role):
                if not (job.is_final or job.canceling):
                    self.cancel_job(job)

    def cancel_job(self, job: Job) -> None:
        """Cancel a job that lives; one that was never submitted ends at once."""
        if job.submitting:
            self.t = self.t.with_job(replace(job, canceling=True))
            self.actions.append(CancelJob(key=job.key))
        else:
            ended = replace(job, canceling=True, state=JobState.CANCELED, info="never submitted")
            self.t = self.t.with_job(ended)
            self.note(ended)

    def _can_flush(self) -> bool:
        buffer = self.t.buffer
        if buffer is None or buffer.is_final or not self.t.pull_url:
            return False
        # A canceled transfer does not wait for consumers that nobody has seen.
        consumers = self.ledger.unfinished(Role.CONSUMER)
        waiting = [job for job in self.t.of_role(Role.CONSUMER) if not job.is_final]
        return self.t.phase is Phase.FAILING or bool(consumers or waiting)

    def _end(self) -> None:
        reason = self.t.reason
        differences = self.ledger.differences()
        if self.t.phase is Phase.FAILING and differences:
            new = [text for text in differences if text not in reason]
            reason = "; ".join([reason, *new])
        unseen = tuple(job.key for job in self.t.jobs if not job.is_final)
        if unseen:
            reason += f"; not seen to end within {self.t.limits.stop_s:g} s: {', '.join(unseen)}"
        self.move(Trigger.END)
        self.t = replace(self.t, stage=Stage.NONE, reason=reason, unseen=unseen)

    def stop_fired(self) -> None:
        """Go to the next stage of the clean-up whether or not this one was done."""
        if self.t.stage is Stage.PRODUCERS:
            self._enter_stage(Stage.FLUSH if self._can_flush() else Stage.JOBS)
            self.clean_up()
        elif self.t.stage is Stage.FLUSH:
            self._enter_stage(Stage.JOBS)
            self.clean_up()
        else:
            self._end()

    # Small changes.

    def move(self, trigger: Trigger) -> None:
        """Go to another phase; timers that it does not know are gone."""
        phase = after(self.t.phase, trigger)
        kept = {timer: due for timer, due in self.t.timers.items() if timer in TIMERS[phase]}
        self.t = replace(self.t, phase=phase, timers=kept)

    def arm(self, timer: Timer, seconds: float) -> None:
        """Start a timer anew."""
        self.t = replace(self.t, timers={**self.t.timers, timer: self.now + seconds})

    def disarm(self, timer: Timer) -> None:
        """Stop a timer."""
        kept = {each: due for each, due in self.t.timers.items() if each is not timer}
        self.t = replace(self.t, timers=kept)

    def _all_final(self, *roles: Role) -> bool:
        return all(job.is_final for job in self.t.jobs if job.role in roles)

    def note(self, job: Job) -> None:
        """Write a job's state into the log that clients see."""
        self.log.append(
            LogEntry(
                time=self.now, role=job.role, state=job.state, info=job.info, jobndx=job.jobndx
            )
        )


def shown(transfer: Transfer) -> Transfer:
    """Return the part of a transfer whose change a watcher wants to see."""
    return replace(transfer, timers={}, activity=(), lease=None, version=0)
