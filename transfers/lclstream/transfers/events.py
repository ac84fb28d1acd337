"""What happens to a transfer, and what the machine wants done about it."""

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from lclstream.jobs.states import JobState
from lclstream.transfers.record import Role
from lclstream.transfers.states import Timer


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAsked:
    """Somebody wants the jobs of a role; asking again for the same name changes nothing."""

    role: Role
    name: str
    site: str
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCreated:
    """A site's jobs service has given a job its id; it does not run yet."""

    key: str
    jobid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobChanged:
    """A callback or a poll told a job's state."""

    key: str
    jobndx: int
    state: JobState
    info: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRefused:
    """A site will not run the job, or does not know it any more."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """A process reported; the ledger holds the report already."""

    role: Role
    peer: str
    final: bool = False
    ok: bool = True
    error: str = ""
    push_url: str = ""
    pull_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainAsked:
    """No more data is wanted; what is there shall be delivered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelAsked:
    """The transfer shall end."""

    reason: str
    at_once: bool = False
    """Without waiting for consumers to take what the buffer holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseAsked:
    """A holder renews or releases its lease."""

    holder: str
    generation: int
    ttl_s: float
    release: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerFired:
    """A timer has run out."""

    timer: Timer


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """The service has started again and read the transfer from its store."""


Event = (
    StartAsked
    | JobCreated
    | JobChanged
    | JobRefused
    | Reported
    | DrainAsked
    | CancelAsked
    | LeaseAsked
    | TimerFired
    | Resumed
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitJob:
    """Create the job under its key, give it its files, start it."""

    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelJob:
    """Cancel the job, looked up by its key if its id is not known."""

    key: str


Action = SubmitJob | CancelJob

_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def describe(event: Event) -> dict[str, Any]:
    """Return an event as it is kept in the history."""
    fields: dict[str, Any] = _EVENT.dump_python(event, mode="json")
    return {"event": type(event).__name__, **fields}
