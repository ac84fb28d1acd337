"""Where a transfer can be, and what leads where.

A transfer is one stream: a buffer job, producer jobs that push into it, consumer jobs that pull
out of it. Its phases:

`requested`   the transfer exists, nothing runs yet (a reservation);
`starting`    the buffer job is submitted; when it listens, producers and consumers are submitted;
`streaming`   a producer runs;
`draining`    no more data comes in; consumers take what the buffer holds;
`completed`   every producer, the buffer and every consumer ended well and the ledger balances;
              consumer jobs that had not begun when others had taken everything are not missed;
`canceling`, `failing`
              something else ended it: producers stop first, consumers may take what the buffer
              holds for a limited time, then everything that still lives is canceled;
`canceled`, `failed`
              nothing of the transfer runs any more.

Inside `canceling` and `failing` a `Stage` says how far the clean-up has come. Every phase that
is not final has a timer that leads out of it (`TIMERS`), so no transfer stays for ever. A
trigger that a phase does not know is illegal and changes nothing.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType

from lclstream.core.errors import IllegalTransitionError


class Phase(StrEnum):
    """Where a transfer as a whole is."""

    REQUESTED = "requested"
    STARTING = "starting"
    STREAMING = "streaming"
    DRAINING = "draining"
    COMPLETED = "completed"
    CANCELING = "canceling"
    CANCELED = "canceled"
    FAILING = "failing"
    FAILED = "failed"


class Trigger(StrEnum):
    """What moves a transfer from one phase to another."""

    START = "start"
    STREAM = "stream"
    DRAIN = "drain"
    COMPLETE = "complete"
    CANCEL = "cancel"
    FAIL = "fail"
    END = "end"


class Stage(StrEnum):
    """How far the clean-up of a canceling or failing transfer has come."""

    NONE = "none"
    PRODUCERS = "producers"
    """Producers are being canceled; the buffer still takes in what they have sent."""
    FLUSH = "flush"
    """The buffer drains and consumers finish what it holds."""
    JOBS = "jobs"
    """Everything that still lives is being canceled."""


class Timer(StrEnum):
    """What limits a phase; the reason of a transfer that it ended carries its name."""

    START = "start"
    IDLE = "idle"
    DRAIN = "drain"
    TOTAL = "total"
    LEASE = "lease"
    SETTLE = "settle"
    """Between the last job's end and the last final report."""
    STOP = "stop"
    """For each stage of the clean-up."""


P, T = Phase, Trigger

TRANSITIONS: Mapping[Phase, Mapping[Trigger, Phase]] = MappingProxyType(
    {
        P.REQUESTED: {T.START: P.STARTING, T.CANCEL: P.CANCELING, T.FAIL: P.FAILING},
        P.STARTING: {
            T.STREAM: P.STREAMING,
            T.DRAIN: P.DRAINING,
            T.CANCEL: P.CANCELING,
            T.FAIL: P.FAILING,
        },
        P.STREAMING: {T.DRAIN: P.DRAINING, T.CANCEL: P.CANCELING, T.FAIL: P.FAILING},
        P.DRAINING: {T.COMPLETE: P.COMPLETED, T.CANCEL: P.CANCELING, T.FAIL: P.FAILING},
        P.CANCELING: {T.END: P.CANCELED},
        P.FAILING: {T.END: P.FAILED},
        P.COMPLETED: {},
        P.CANCELED: {},
        P.FAILED: {},
    }
)

FINAL = frozenset(phase for phase, leads_to in TRANSITIONS.items() if not leads_to)
CLOSING = frozenset({P.CANCELING, P.FAILING})

# The timers that may run in a phase. `total` and `lease` run until the clean-up begins.
TIMERS: Mapping[Phase, frozenset[Timer]] = MappingProxyType(
    {
        P.REQUESTED: frozenset({Timer.TOTAL, Timer.LEASE}),
        P.STARTING: frozenset({Timer.START, Timer.TOTAL, Timer.LEASE}),
        P.STREAMING: frozenset({Timer.IDLE, Timer.TOTAL, Timer.LEASE}),
        P.DRAINING: frozenset({Timer.DRAIN, Timer.SETTLE, Timer.TOTAL, Timer.LEASE}),
        P.CANCELING: frozenset({Timer.STOP}),
        P.FAILING: frozenset({Timer.STOP}),
        **{final: frozenset() for final in FINAL},
    }
)


def after(phase: Phase, trigger: Trigger, history: Sequence[str] = ()) -> Phase:
    """Return the phase that follows.

    Raises:
        IllegalTransitionError: the phase does not know the trigger; nothing changes.
    """
    try:
        return TRANSITIONS[phase][trigger]
    except KeyError:
        raise IllegalTransitionError(phase.value, trigger.value, history) from None


def diagram() -> str:
    """Return the table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.REQUESTED.value}"]
    for phase, leads_to in TRANSITIONS.items():
        lines += [
            f"    {phase.value} --> {target.value}: {trigger.value}"
            for trigger, target in leads_to.items()
        ]
        if not leads_to:
            lines.append(f"    {phase.value} --> [*]")
    return "\n".join(lines) + "\n"
