"""Where else events come from: detectors that stream, and folders that fill."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lclstream.streamer.config.event_sources import EventFilesConfig, PacedSource
from lclstream.streamer.config.registry import Finding

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters


class SimplonEventSourceConfig(PacedSource):
    """Images of a DECTRIS detector (Stream V2 or V1), or of lclstreamer, through ZeroMQ.

    `source_identifier` is the address, e.g. `tcp://detector:31001`; several, separated by
    commas, are read together. Data sources find the image as `raw.raw` of `detector`, each
    channel as `raw.<channel>`, and every key of the messages under the names `start`, `image`
    and `user_data`.
    """

    implementation: ClassVar = "lclstream.streamer.sources.simplon:SimplonEventSource"
    type: Literal["SimplonEventSource"] = "SimplonEventSource"
    role: Literal["client", "server"] = "client"
    """`client` connects to the addresses, `server` listens there."""
    dialect: Literal["auto", "stream2", "stream1", "lclstreamer"] = "auto"
    """What the messages are; `auto` tells it from the first bytes of each."""
    detector: str = Field(default="detector", min_length=1)
    """Name under which data sources find the images."""
    series: int = Field(default=1, ge=0)
    """Series (or runs) after whose end the source ends; 0 = it ends when nothing more comes."""
    ranks: Literal["one", "share"] = "one"
    """`one`: only a single rank is allowed. `share`: the sender hands each image to one of the
    ranks; start and end reach one rank too, so that the others know no key of `start`, and all
    end when nothing more comes."""
    start_timeout_s: float = Field(default=600.0, gt=0)
    """How long to wait for the first message; then the run fails."""
    idle_timeout_s: float = Field(default=60.0, gt=0)
    """How long nothing may come within a series; then the run fails. Between series, or when
    ranks share, it then ends."""
    late_s: float = Field(default=2.0, ge=0)
    """How long to wait, after the end of a series, for images that are on their way from other
    senders."""
    queue_messages: int = Field(default=32, gt=0)
    """Messages that wait here before the sender has to."""
    max_message_bytes: int = Field(default=1 << 28, gt=0)
    """A sender of a larger message is disconnected."""
    max_image_bytes: int = Field(default=1 << 30, gt=0)
    """An image that would become larger is refused."""
    experiment: str = ""
    """Where the messages do not name one."""
    run: int | None = Field(default=None, ge=0)
    """Where the messages do not name one; without it, the number of the series."""

    @model_validator(mode="after")
    def _one_series_to_share(self) -> Self:
        if self.ranks == "share" and self.series != 1:
            raise ValueError("ranks that share do not see the end of a series: series must be 1")
        if self.ranks == "share" and self.dialect == "lclstreamer":
            raise ValueError("ranks cannot share this dialect: only its start says the shape")
        return self

    def problems(self, parameters: "Parameters") -> Iterator[Finding]:
        """Yield what is wrong with the addresses."""
        identifier = parameters.source_identifier
        urls = [part.strip() for part in identifier.split(",") if part.strip()]
        if not urls:
            yield (), "source_identifier must be an address, e.g. tcp://HOST:31001", identifier
        for url in urls:
            scheme, _, rest = url.partition("://")
            port = rest.rpartition(":")[2]
            is_tcp = scheme == "tcp" and (port == "*" or (port.isdigit() and int(port) < 65536))
            if not is_tcp and not (scheme == "ipc" and rest):
                yield (), "source_identifier must be tcp://HOST:PORT or ipc://PATH", url


class FolderEventSourceConfig(EventFilesConfig):
    """Files that appear in folders, one after the other: HDF5, NeXus, CXI, npz or npy.

    `source_identifier` names the folders, separated by commas. A file is read when it is whole.
    Data sources find what is in HDF5 files as with `Hdf5EventSource`, an array of an npz file by
    its name, and that of an npy file as `data`.
    """

    implementation: ClassVar = "lclstream.streamer.sources.folder:FolderEventSource"
    type: Literal["FolderEventSource"] = "FolderEventSource"
    patterns: list[str] = Field(
        default_factory=lambda: ["*.h5", "*.hdf5", "*.cxi", "*.nxs", "*.npz", "*.npy"],
        min_length=1,
    )
    """Which files count; those that begin with `.` or end as unfinished ones do, never."""
    order: Literal["name", "time"] = "name"
    """Of files that are there at the same time: by name (numbers as numbers), or by when they
    were written last. Several ranks need files to appear in this order."""
    follow: bool = True
    """Whether to wait for more files; without it, those that are there are all."""
    end_file: str = ""
    """Name of a file in one of the folders that says that no more will come."""
    idle_timeout_s: float = Field(default=0.0, ge=0)
    """How long nothing may come before the source ends; 0 = as long as it takes."""
    stable_s: float = Field(default=2.0, ge=0)
    """How long a file must not have changed to count as whole, where nothing else says so."""
    done_suffix: str = ""
    """A file counts as whole when there is one of its name and this, e.g. `.done`."""
    watch: Literal["auto", "poll"] = "auto"
    """`auto` lets the system tell that a file was closed or renamed; `poll` looks again and again,
    as `auto` does too where another machine writes."""
    poll_s: float = Field(default=0.5, gt=0)
    """How often to look."""
    on_error: Literal["stop", "skip"] = "stop"
    """What happens where a file cannot be read: the run fails, or goes on with the next file."""

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.end_file and not self.follow:
            raise ValueError("end_file has no meaning without follow")
        return self

    def problems(self, parameters: "Parameters") -> Iterator[Finding]:
        """Yield that no folder is named."""
        identifier = parameters.source_identifier
        if not identifier.replace(",", " ").strip():
            yield (), "source_identifier must name the folders", identifier
