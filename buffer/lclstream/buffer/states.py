"""How a buffer lives and ends, as a table.

- *open*: producers come and go, consumers come and go. That no producer is connected means
  nothing: another may come.
- *draining*: the producers' listening socket is closed, so new ones are refused; those that
  are connected finish at their own pace. Entered when somebody who knows says so (an explicit
  request, SIGTERM, the expected number of producers has come and gone, silence beyond
  `max_idle_s`).
- *flushing*: no producer is left. What is queued goes to the consumers, then each consumer's
  connection is half-closed after its last byte and closed when the consumer closes it.
- *complete*: nothing that was received is known to be missing at the consumers.
- *incomplete*: something is; the counts say what.

Every state but the last two has a way out that needs no peer: `stop`, and deadlines.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from lclstream.core.errors import IllegalTransitionError


class BufferState(StrEnum):
    """Where a buffer is in its life."""

    OPEN = "open"
    DRAINING = "draining"
    FLUSHING = "flushing"
    COMPLETE = "complete"
    INCOMPLETE = "incomplete"


class BufferEvent(StrEnum):
    """What moves a buffer from one state to another."""

    DRAIN = "drain"
    """No new producers any more."""
    PRODUCERS_GONE = "part with the producers"
    """The last producer has ended its stream, or was cut at the deadline."""
    FLUSHED = "finish"
    """Everything is delivered and nothing is known to be lost."""
    LOST = "fail"
    """Nothing more can be delivered, and something is missing."""
    STOP = "stop"
    """End now."""


S, E = BufferState, BufferEvent

TRANSITIONS: Mapping[BufferState, Mapping[BufferEvent, BufferState]] = MappingProxyType(
    {
        S.OPEN: {E.DRAIN: S.DRAINING, E.STOP: S.INCOMPLETE},
        S.DRAINING: {E.DRAIN: S.DRAINING, E.PRODUCERS_GONE: S.FLUSHING, E.STOP: S.INCOMPLETE},
        S.FLUSHING: {
            E.DRAIN: S.FLUSHING,
            E.FLUSHED: S.COMPLETE,
            E.LOST: S.INCOMPLETE,
            E.STOP: S.INCOMPLETE,
        },
        **{final: MappingProxyType({}) for final in (S.COMPLETE, S.INCOMPLETE)},
    }
)
FINAL = frozenset(state for state, leads_to in TRANSITIONS.items() if not leads_to)


def after(state: BufferState, event: BufferEvent) -> BufferState:
    """Return the state that follows; an illegal event changes nothing.

    Raises:
        IllegalTransitionError: the state does not know the event.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransitionError(state, event) from None
