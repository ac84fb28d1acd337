"""What goes over the REST interface.

`TransferStatus`, `TransferInfo`, `PortTransition`, `CacheMetrics` and `ClientName` have the fields
of LCLStream-API; where a class has more, old clients do not look at it.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, RootModel, field_validator

from lclstream.core.ledger import TallyModel
from lclstream.core.models import StrictModel, near
from lclstream.jobs.states import JobState
from lclstream.streamer.config import Parameters
from lclstream.transfers.record import Role
from lclstream.transfers.states import Phase

Name = Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
EnvironmentName = Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")]

LONGEST_SCRIPT_BYTES = 256 * 1024
RESERVED_PREFIX = "LCLSTREAM_"


def without_reserved(environment: dict[str, str]) -> dict[str, str]:
    """Refuse variables that the service sets itself."""
    for name in environment:
        if name.startswith(RESERVED_PREFIX):
            raise ValueError(f"{name} is set by the service")
    return environment


def checked_resources(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse what is not a field of `ResourceSpec`, which itself passes over unknown ones."""
    # The jobs' models lead to the web framework, which a client of this service may lack.
    from lclstream.jobs.models import ResourceSpec

    known = sorted(ResourceSpec.model_fields)
    for name in values:
        if name not in known:
            raise ValueError(
                f"unknown field {name!r}{near(name, known)}; allowed: {', '.join(known)}"
            )
    ResourceSpec.model_validate(values)
    return values


class LimitsRequest(StrictModel):
    """Time limits that a request lowers below those of the service; seconds."""

    start_s: float | None = Field(default=None, gt=0)
    """Until the buffer listens, and from then on until a producer runs."""
    idle_s: float | None = Field(default=None, gt=0)
    """Without a message moving, while streaming."""
    drain_s: float | None = Field(default=None, gt=0)
    """For consumers to take what the buffer holds after the producers have ended."""
    total_s: float | None = Field(default=None, gt=0)
    """From the request to the end."""
    flush_s: float | None = Field(default=None, gt=0)
    """For consumers to take what the buffer holds when the transfer is canceled."""


class TransferRequest(StrictModel):
    """A stream to be set up."""

    streamer: Parameters
    """What to read, process and send; its handlers are replaced by one to the buffer."""
    experiment: str = Field(default="", max_length=100)
    run: int | str = ""
    producers: int = Field(default=1, ge=1, le=4096)
    """Processes that read and send, started together by the site's launcher."""
    site: str | None = None
    """Where the producers run; by default the first site of the service."""
    buffer_site: str | None = None
    """Where the buffer runs; by default where the producers run."""
    memory: str | None = Field(default=None, pattern=r"^[1-9][0-9]*(KiB|MiB|GiB)?$")
    """How much the buffer may hold, e.g. `256MiB`; by default what the site says."""
    delivery: Literal["fast", "safe"] = "fast"
    """`safe`: messages are kept until they are acknowledged, so that none is lost when a producer
    or consumer dies; `fast`: at most once, at the least cost."""
    limits: LimitsRequest = Field(default_factory=LimitsRequest)
    hold: bool = False
    """Whether nothing is started until it is asked for: a reservation."""


class BufferStart(StrictModel):
    """Start the buffer of a transfer."""

    role: Literal["buffer"]


class ProducerStart(StrictModel):
    """Start the producers, as soon as the buffer listens."""

    role: Literal["producer"]


class ConsumerStart(StrictModel):
    """Start jobs that pull from the buffer, as soon as it listens."""

    role: Literal["consumer"]
    name: Name = "consumer"
    """Asking twice with one name starts the jobs once."""
    script: str = Field(min_length=1, max_length=LONGEST_SCRIPT_BYTES)
    """Script text; finds the URL to pull from in $LCLSTREAM_URL."""
    site: str | None = None
    """Where the jobs run; by default where the producers run."""
    count: int = Field(default=1, ge=1, le=256)
    environment: dict[EnvironmentName, str] = Field(default_factory=dict)
    """Variables of the script, over those of the site; LCLSTREAM_* is refused."""
    resources: dict[str, Any] = Field(default_factory=dict)
    """Fields of a job's ResourceSpec, over those of the site."""

    @field_validator("environment")
    @classmethod
    def _not_ours(cls, value: dict[str, str]) -> dict[str, str]:
        return without_reserved(value)

    @field_validator("resources")
    @classmethod
    def _fits_resource_spec(cls, value: dict[str, Any]) -> dict[str, Any]:
        return checked_resources(value)


StartRequest = Annotated[BufferStart | ProducerStart | ConsumerStart, Field(discriminator="role")]


class StartBody(RootModel[StartRequest]):
    """Body of a request to start something; one of three forms, told apart by `role`."""


class LeaseRequest(StrictModel):
    """Keep a transfer alive, or let it go."""

    holder: str = Field(min_length=1, max_length=500)
    """Who holds the lease, e.g. a DAG run and its task."""
    generation: int = Field(ge=0)
    """A higher one takes the lease over; a lower one is refused."""
    ttl_s: float = Field(default=60.0, gt=0, le=86_400)
    """The transfer is canceled when nobody renews for so long."""
    release: bool = False
    """Let the lease lapse within seconds, unless somebody takes it over; ignored when another
    holder or generation has it."""


class ClientName(StrEnum):
    """How the log names the jobs; `cache` is the buffer."""

    CACHE = "cache"
    PRODUCER = "producer"
    CONSUMER = "consumer"


CLIENT_OF = {
    Role.BUFFER: ClientName.CACHE,
    Role.PRODUCER: ClientName.PRODUCER,
    Role.CONSUMER: ClientName.CONSUMER,
}


class PortTransition(StrictModel):
    """A job of the transfer changed its state."""

    time: float
    client: ClientName
    state: JobState
    info: str
    jobndx: int


class TransferStatus(StrictModel):
    """A transfer in one line of the list."""

    model_config = ConfigDict(extra="ignore")

    time: float
    """Unix time of the latest change of one of its jobs."""
    jobndx: int
    state: JobState
    """State of the buffer job."""
    info: str
    id: int
    url: str
    """Where to pull from; empty until the buffer listens."""
    user: str
    """Owner, `uid:` or `cn:` and the name in the certificate."""
    phase: Phase
    reason: str = ""
    experiment: str = ""
    run: int | str = ""


class CacheMetrics(StrictModel):
    """What the buffer counted."""

    time: float
    producers: int = 0
    recvd: int = 0
    """Messages taken in."""
    sent: int = 0
    """Messages given out."""
    buffered: int = 0
    """Messages held."""


class JobInfo(StrictModel):
    """One job of a transfer."""

    role: Role
    name: str
    index: int
    site: str
    jobid: str
    """Id at the site's jobs service; empty until it has one."""
    state: JobState
    info: str


class HopInfo(StrictModel):
    """What one hop counted."""

    name: str
    """`producers.sent`, `buffer.received`, `buffer.sent` or `consumers.received`."""
    peers: int
    """Processes that reported."""
    tally: TallyModel


class LedgerInfo(StrictModel):
    """The accounts of a transfer."""

    hops: list[HopInfo]
    balanced: bool | None
    """Whether all hops agree; null while something is on its way."""
    difference: str
    """Which hop differs by how much; empty when all agree."""
    faults: list[str] = Field(default_factory=list)
    """What reporting processes said went wrong."""


class LeaseInfo(StrictModel):
    """Who keeps the transfer alive."""

    holder: str
    generation: int
    expires: float | None
    """Unix time; null once the transfer is ending."""


class TransferInfo(StrictModel):
    """Everything about one transfer."""

    model_config = ConfigDict(extra="ignore")

    user: str
    log: list[PortTransition]
    metrics: CacheMetrics
    id: int
    url: str
    """Where consumers pull from; empty until the buffer listens."""
    phase: Phase
    reason: str
    """Why it was canceled or failed; empty otherwise."""
    experiment: str
    run: int | str
    created: float
    version: int
    """Grows with every change; a client waits for the next one by `?wait=S&since=VERSION`."""
    jobs: list[JobInfo]
    ledger: LedgerInfo
    peers: dict[str, dict[str, float | int | str]] = Field(default_factory=dict)
    """Live figures of each reporting process, by `role/peer`."""
    timers: dict[str, float] = Field(default_factory=dict)
    """Unix time at which each running time limit ends the phase."""
    lease: LeaseInfo | None = None

    @property
    def is_final(self) -> bool:
        """Whether the transfer has ended."""
        return self.phase in (Phase.COMPLETED, Phase.CANCELED, Phase.FAILED)


class Health(StrictModel):
    """Answer of `GET /health`."""

    status: Literal["ok"] = "ok"
    transfers: int
    """How many are not final."""
