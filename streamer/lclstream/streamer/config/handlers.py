"""Where messages go: the models of the `data_handlers` section."""

from typing import ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from lclstream.streamer.config.registry import HandlerModel


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

    @field_validator("file_prefix", "file_suffix")
    @classmethod
    def _is_no_path(cls, value: str) -> str:
        if "/" in value or "\0" in value:
            raise ValueError("must not contain '/'; use write_directory for the folder")
        return value


class BinaryDataStreamingDataHandlerConfig(HandlerModel):
    """Push each message into a socket."""

    implementation: ClassVar = "lclstream.streamer.handlers.sockets:BinaryDataStreamingDataHandler"
    type: Literal["BinaryDataStreamingDataHandler"] = "BinaryDataStreamingDataHandler"
    library: Literal["nng", "zmq"] = "zmq"
    urls: list[str] = Field(min_length=1)
    """`tcp://HOST:PORT`; several share the messages between them."""
    role: Literal["client", "server"] = "client"
    """`client` connects to the urls, `server` listens there."""
    socket_type: Literal["push"] = "push"
    distribute: bool = False
    """Whether each rank uses its own share of the urls instead of all."""
    buffer: int = Field(default=0, ge=0)
    """Send buffer of the operating system in bytes, for zmq; 0 = its default."""
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
        schemes = ("tcp",) if library == "nng" else ("tcp", "ipc")
        for url in urls:
            scheme, _, rest = url.partition("://")
            port = rest.rpartition(":")[2]
            if scheme not in schemes:
                allowed = " or ".join(f"{each}://" for each in schemes)
                raise ValueError(f"{url!r} must begin with {allowed} for {library}")
            if scheme == "tcp" and not (port.isdigit() and int(port) < 65536):
                raise ValueError(f"{url!r} must be tcp://HOST:PORT")
        return urls

    @model_validator(mode="after")
    def _acknowledged(self) -> Self:
        if self.delivery == "safe" and (self.library, self.role) != ("nng", "client"):
            raise ValueError("delivery 'safe' needs library 'nng' and role 'client'")
        return self
