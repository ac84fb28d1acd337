"""What the state machine knows of a transfer: immutable values that fit into a database row."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

from pydantic import TypeAdapter

from lclstream.jobs.states import JobState
from lclstream.transfers.states import Phase, Stage, Timer


class Role(StrEnum):
    """What a job does in a transfer; the same words as the hops of the ledger."""

    BUFFER = "buffer"
    PRODUCER = "producer"
    CONSUMER = "consumer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job of a transfer, as far as the transfer knows."""

    key: str
    """`transfer-<id>-<role>-<name>-<index>`; with the name of the database behind it, it is the
    idempotency key of the submission."""
    role: Role
    name: str
    index: int
    site: str
    state: JobState = JobState.NEW
    jobid: str = ""
    """Empty until the site's jobs service has answered."""
    jobndx: int = 0
    info: str = ""
    submitting: bool = False
    """Whether its submission was ordered; it may be on its way."""
    canceling: bool = False
    """Whether its cancellation was ordered."""

    @property
    def is_final(self) -> bool:
        """Whether the job has ended, as its site observed it."""
        return self.state.is_final

    @property
    def title(self) -> str:
        """How messages call the job."""
        if self.role is Role.CONSUMER:
            return f"consumer {self.name}-{self.index}"
        return self.name if self.name == self.role.value else f"{self.role.value} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long each part of a transfer may take, in seconds."""

    start_s: float = 600.0
    """Until the buffer listens, and from then on until a producer runs."""
    idle_s: float = 600.0
    """Without a message and without a change in the number of producers, while streaming."""
    drain_s: float = 300.0
    """For consumers to take what the buffer holds after the producers ended, and then again
    for consumer jobs to end after the buffer."""
    total_s: float = 86_400.0
    """From the request to the end."""
    flush_s: float = 15.0
    """For consumers to take what the buffer holds when the transfer is canceled."""
    stop_s: float = 20.0
    """For canceled jobs to be observed ended; after that the transfer is final without them."""
    settle_s: float = 10.0
    """For final reports after the last job ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who keeps a transfer alive; when it is not renewed in time the transfer is canceled."""

    holder: str
    generation: int
    ttl_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """The whole state of a transfer except its ledger."""

    id: int
    owner: str
    created: float
    """Unix time."""
    buffer_site: str
    ranks: int = 1
    """Producer processes, and so final reports, of each producer job."""
    limits: Limits = field(default_factory=Limits)
    phase: Phase = Phase.REQUESTED
    stage: Stage = Stage.NONE
    reason: str = ""
    push_url: str = ""
    """Where producers push to; empty until the buffer listens."""
    pull_url: str = ""
    """Where consumers pull from; empty until the buffer listens."""
    at_once: bool = False
    """Whether the clean-up drops what the buffer holds."""
    unseen: tuple[str, ...] = ()
    """Keys of jobs whose end was not observed before the transfer had to end."""
    jobs: tuple[Job, ...] = ()
    timers: Mapping[Timer, float] = field(default_factory=dict)
    """Unix time at which each running timer fires."""
    lease: Lease | None = None
    activity: tuple[int, ...] = ()
    """The last figures of the ledger that tell whether something moves."""
    finals: int = 0
    """How many processes have reported their end."""
    version: int = 0
    """Counts the changes that a watcher wants to see."""

    def job(self, key: str) -> Job:
        """Return a job; raises `KeyError` when it is not one of this transfer."""
        for job in self.jobs:
            if job.key == key:
                return job
        raise KeyError(key)

    def of_role(self, role: Role) -> tuple[Job, ...]:
        """Return all jobs of a role."""
        return tuple(job for job in self.jobs if job.role is role)

    @property
    def buffer(self) -> Job | None:
        """The buffer job once it was asked for."""
        return next(iter(self.of_role(Role.BUFFER)), None)

    def with_job(self, changed: Job) -> Self:
        """Return the transfer with one job replaced."""
        return replace(
            self, jobs=tuple(changed if job.key == changed.key else job for job in self.jobs)
        )


def job_key(transfer: int, role: Role, name: str, index: int) -> str:
    """Return the key of a job."""
    return f"transfer-{transfer}-{role.value}-{name}-{index}"


_TRANSFER: TypeAdapter[Transfer] = TypeAdapter(Transfer)


def to_json(transfer: Transfer) -> str:
    """Return a transfer as it is stored."""
    return _TRANSFER.dump_json(transfer).decode()


def from_json(text: str) -> Transfer:
    """Rebuild a stored transfer."""
    return _TRANSFER.validate_json(text)
