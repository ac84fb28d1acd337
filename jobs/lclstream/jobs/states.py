"""Where an event leads a job: one table, no I/O.

A job is a script with numbered runs. It is `new` until its first run is handed to a batch
system (`queued`); the run starts (`active`) and ends (`completed` or `failed`). A run that
never starts, because its batch system lost or refused it, fails from `queued`. Whoever owns
the job may cancel it in any state that is not final. From a final state only a restart leads
out: the next run, with the next number.

Every row of a history has a number: 0 for `new` and `canceled`, else the run it is about. A
row about another run than the current one is a late word of a past run, and illegal.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from lclstream.core.errors import IllegalTransitionError


class JobState(StrEnum):
    """What a job is doing."""

    NEW = "new"
    QUEUED = "queued"
    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        """Whether only a restart leads out of it."""
        return self in FINAL


class JobEvent(StrEnum):
    """What happens to a job."""

    SUBMIT = "submit"
    START = "start"
    FINISH = "finish"
    FAIL = "fail"
    CANCEL = "cancel"


S, E = JobState, JobEvent

FINAL = frozenset({S.COMPLETED, S.FAILED, S.CANCELED})

TRANSITIONS: Mapping[JobState, Mapping[JobEvent, JobState]] = MappingProxyType(
    {
        S.NEW: {E.SUBMIT: S.QUEUED, E.CANCEL: S.CANCELED},
        S.QUEUED: {E.START: S.ACTIVE, E.FAIL: S.FAILED, E.CANCEL: S.CANCELED},
        S.ACTIVE: {E.FINISH: S.COMPLETED, E.FAIL: S.FAILED, E.CANCEL: S.CANCELED},
        **{final: {E.SUBMIT: S.QUEUED} for final in sorted(FINAL)},
    }
)

EVENT_BEFORE: Mapping[JobState, JobEvent] = MappingProxyType(
    {state: event for leads in TRANSITIONS.values() for event, state in leads.items()}
)
"""The one event that leads to a state."""


class Transition(NamedTuple):
    """One row of a job's history."""

    time: float
    """When, in seconds since 1970."""
    jobndx: int
    """Number of the run; 0 for `new` and `canceled`."""
    state: JobState
    info: str
    """queued: native id; failed: exit code or reason; new: backend as JSON; else empty."""


def after(state: JobState, event: JobEvent, history: Sequence[str] = ()) -> JobState:
    """Return the state that follows; an illegal event raises and changes nothing."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransitionError(state, event, history) from None


def last_run(history: Sequence[Transition]) -> int:
    """Return the number of the newest run; 0 when there was none."""
    return max((row.jobndx for row in history), default=0)


def current(history: Sequence[Transition]) -> JobState:
    """Return the state that a job is in."""
    return history[-1].state if history else S.NEW


def check_row(history: Sequence[Transition], jobndx: int, state: JobState) -> None:
    """Raise `IllegalTransitionError` unless a row may follow a history."""
    if not history and state is S.NEW and jobndx == 0:
        return
    names = [row.state.value for row in history]
    event = EVENT_BEFORE.get(state)
    if event is None:
        raise IllegalTransitionError(current(history), f"return to '{state}'", names)
    after(current(history), event, names)
    run = last_run(history)
    wanted = {E.SUBMIT: run + 1, E.CANCEL: 0}.get(event, run)
    if jobndx != wanted:
        what = f"{event} run {jobndx} (run {wanted} is due)"
        raise IllegalTransitionError(current(history), what, names)
