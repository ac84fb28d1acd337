"""Where messages go: the models of the `data_handlers` section."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from lclstream.streamer.config.registry import Finding, HandlerModel

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters


class BinaryFileWritingDataHandlerConfig(HandlerModel):
    """Write each message as a file `<prefix_>r<rank>_<number>.<suffix>`."""

    implementation: ClassVar = "lclstream.streamer.handlers.files:BinaryFileWritingDataHandler"
    type: Literal["BinaryFileWritingDataHandler"] = "BinaryFileWritingDataHandler"
    file_prefix: str = ""
    file_suffix: str = "h5"
    write_directory: str = "."
    """Made when it does not exist."""
    overwrite: bool = False
    """Whether files of an earlier run may be replaced; else the run is refused."""
    resume: bool = False
    """Whether an earlier run of the same configuration is continued: events that its files hold
    are left out, and the numbers of the files go on."""

    @field_validator("file_prefix", "file_suffix")
    @classmethod
    def _is_no_path(cls, value: str) -> str:
        if "/" in value or "\0" in value:
            raise ValueError("must not contain '/'; use write_directory for the folder")
        return value

    @model_validator(mode="after")
    def _replaces_or_continues(self) -> Self:
        if self.overwrite and self.resume:
            raise ValueError("overwrite begins anew, resume continues: choose")
        return self

    def advice(self, parameters: "Parameters") -> Iterator[str]:
        """Yield that programs would take the files for something else."""
        suffixes = parameters.data_serializer.file_suffixes
        if suffixes and self.file_suffix not in suffixes:
            kind = getattr(parameters.data_serializer, "type", "")
            yield (
                f"file_suffix is {self.file_suffix!r}, and files of {kind} are known by"
                f" {' or '.join(map(repr, suffixes))}"
            )


class BinaryDataStreamingDataHandlerConfig(HandlerModel):
    """Push each message into a socket."""

    implementation: ClassVar = "lclstream.streamer.handlers.sockets:BinaryDataStreamingDataHandler"
    type: Literal["BinaryDataStreamingDataHandler"] = "BinaryDataStreamingDataHandler"
    library: Literal["nng", "zmq"] = "zmq"
    urls: list[str] = Field(min_length=1)
    """`tcp://HOST:PORT`; several share the messages between them. A `server` may give a range,
    `tcp://HOST:FIRST-LAST`: it listens at the first port that is free, so that several ranks of
    one host can. With nng also `tls+tcp://`, with zmq also `ipc://`."""
    role: Literal["client", "server"] = "client"
    """`client` connects to the urls, `server` listens there."""
    socket_type: Literal["push"] = "push"
    distribute: bool = False
    """Whether each rank uses its own share of the urls instead of all."""
    mirror: bool = False
    """Whether every url gets every message, instead of a share of them."""
    end_of_stream: bool = False
    """Whether each rank, when it has sent everything, sends an empty message: with nng to all its
    receivers, with zmq as many as it has urls."""
    identity: str = ""
    """Folder with `id.crt`, `id.key` and `ca.crt` for `tls+tcp`; in a job of a transfer that of the
    job, unless another one is given."""
    buffer: int = Field(default=0, ge=0)
    """Send buffer of the operating system in bytes; 0 = its default."""
    delivery: Literal["fast", "safe"] = "fast"
    """`safe`: keep messages until our buffer has acknowledged them; needs nng and `client`."""
    connect_timeout_s: float = Field(default=30.0, gt=0)
    """How long a message may wait while nobody is at the other end; then the run fails."""
    send_timeout_s: float = Field(default=600.0, gt=0)
    """How long one message may wait for the other end; then the run fails."""
    flush_timeout_s: float = Field(default=600.0, gt=0)
    """How long to wait at the end until everything has been delivered."""

    @field_validator("urls")
    @classmethod
    def _addresses(cls, urls: list[str], info: ValidationInfo) -> list[str]:
        library = info.data.get("library", "zmq")
        schemes = ("tcp", "tls+tcp") if library == "nng" else ("tcp", "ipc")
        for url in urls:
            scheme, _, rest = url.partition("://")
            if scheme not in schemes:
                allowed = " or ".join(f"{each}://" for each in schemes)
                raise ValueError(f"{url!r} must begin with {allowed} for {library}")
            if scheme != "ipc":
                port_range(f"{scheme}://{rest}")
        return urls

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.delivery == "safe" and (self.library, self.role) != ("nng", "client"):
            raise ValueError("delivery 'safe' needs library 'nng' and role 'client'")
        if self.mirror and self.distribute:
            raise ValueError(
                "mirror gives every url every message, distribute each its own: choose"
            )
        for url in self.urls if self.role == "client" else ():
            if not url.startswith("ipc://") and len(port_range(url)) > 1:
                raise ValueError(f"{url!r}: only a server can have a range of ports")
        return self

    def advice_for_ranks(self, ranks: int) -> Iterator[str]:
        """Yield where more ranks listen than can on one host."""
        at_one = -(-ranks // len(self.urls)) if self.distribute else ranks
        for url in self.urls if self.role == "server" else ():
            if url.startswith("ipc://") or len(port_range(url)) < at_one:
                yield (
                    f"{at_one} ranks listen at {url}, which on one host only one can; give a range"
                    " of ports (tcp://HOST:FIRST-LAST), or more urls and distribute: true"
                )


class CrystfelRequestDataHandlerConfig(HandlerModel):
    """Answer the requests of CrystFEL's `indexamajig --zmq-request=next`, one event each."""

    implementation: ClassVar = "lclstream.streamer.handlers.crystfel:CrystfelRequestDataHandler"
    type: Literal["CrystfelRequestDataHandler"] = "CrystfelRequestDataHandler"
    url: str
    """Where to listen for workers: `tcp://HOST:PORT`, `tcp://HOST:FIRST-LAST` (the first port that
    is free), or `ipc://PATH`."""
    request: str = Field(default="next", min_length=1)
    """What workers say to get an event; other requests are refused with an empty answer."""
    send_timeout_s: float = Field(default=600.0, gt=0)
    """How long an event may wait until a worker asks; then the run fails."""
    flush_timeout_s: float = Field(default=60.0, gt=0)
    """How long to wait at the end until the workers have received what was answered."""

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        if not url.startswith(("tcp://", "ipc://")):
            raise ValueError("must begin with tcp:// or ipc://")
        if url.startswith("tcp://"):
            port_range(url)
        return url

    def problems(self, parameters: "Parameters") -> Iterator[Finding]:
        """Yield whether messages could hold several events: CrystFEL would take only the first."""
        pipeline, serializer = parameters.processing_pipeline, parameters.data_serializer
        if pipeline.batch_size > 1 and not serializer.event_wise:
            text = (
                "takes one event in each message: set batch_size to 1, or choose a serializer that"
                f" makes a message of each event, got batch_size {pipeline.batch_size} with"
                f" {getattr(serializer, 'type', '')}"
            )
            yield (), text, self.type


def port_range(url: str) -> range:
    """Return the ports that an address of TCP names.

    Raises:
        ValueError: it is not of the form `tcp://HOST:PORT` or `tcp://HOST:FIRST-LAST`.
    """
    host, _, ports = url.partition("://")[2].rpartition(":")
    first, dash, last = ports.partition("-")
    ends = (first, last if dash else first)
    numbers = [each for each in ends if each.isascii() and each.isdigit()]
    if not host or len(numbers) < 2 or not int(numbers[0]) <= int(numbers[1]) < 65536:
        raise ValueError(f"{url!r} must be tcp://HOST:PORT")
    return range(int(numbers[0]), int(numbers[1]) + 1)
