"""What becomes of the events: the models of processing, serializers and handlers."""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from lclstream.core.models import StrictModel

Compression = Literal[
    "gzip", "gzip_with_shuffle", "bitshuffle_with_lz4", "bitshuffle_with_zstd", "zfp"
]


class BatchProcessingPipelineConfig(StrictModel):
    """Collect events into batches; the last one may be smaller."""

    type: Literal["BatchProcessingPipeline"] = "BatchProcessingPipeline"
    batch_size: int = Field(gt=0)
    """Events in one message."""


class PeaknetPreprocessingPipelineConfig(StrictModel):
    """Pad images for the PeakNet neural network, add channels, and batch."""

    type: Literal["PeaknetPreprocessingPipeline"] = "PeaknetPreprocessingPipeline"
    batch_size: int = Field(gt=0)
    """Events in one message."""
    target_height: int = Field(gt=0)
    target_width: int = Field(gt=0)
    pad_style: Literal["center", "bottom-right"] = "center"
    add_channel_dim: bool = True
    num_channels: int = Field(default=1, gt=0)
    """How often the image is repeated along the channel axis."""


ProcessingPipelineConfig = Annotated[
    BatchProcessingPipelineConfig | PeaknetPreprocessingPipelineConfig,
    Field(discriminator="type"),
]


class HDF5BinarySerializerConfig(StrictModel):
    """Each message is one complete HDF5 file of a batch; axis 0 of every dataset = events."""

    type: Literal["HDF5BinarySerializer"] = "HDF5BinarySerializer"
    compression: Compression | None = None
    """Filter of every dataset; null stores the data as they are."""
    compression_level: int = Field(default=3, ge=0)
    """Of gzip (0-9) and zstd (0-22); the other codecs ignore it."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Data source -> path of its dataset; a source that is not here is not sent."""
    hdf5_layout: Literal["fields", "flat"] | None = None
    """`fields`: paths as in `fields`; `flat`: one dataset at the root for each data source.
    Without it: `fields` if there are any, else `flat`."""
    identification: bool = True
    """Whether a group `/lclstream` holds event index, time stamp, run, rank and sequence."""

    @property
    def layout(self) -> Literal["fields", "flat"]:
        """The layout in effect."""
        return self.hdf5_layout or ("fields" if self.fields else "flat")


class SimplonBinarySerializerConfig(StrictModel):
    """CBOR messages in the manner of DECTRIS Simplon."""

    type: Literal["SimplonBinarySerializer"] = "SimplonBinarySerializer"
    data_source_to_serialize: str
    polarization_fraction: float
    polarization_axis: list[float]
    data_collection_rate: str
    detector_name: str
    detector_type: str
    photon_wavelength_source: str | None = None
    spectrometer_source: str | None = None


DataSerializerConfig = Annotated[
    HDF5BinarySerializerConfig | SimplonBinarySerializerConfig, Field(discriminator="type")
]


class BinaryFileWritingDataHandlerConfig(StrictModel):
    """Write each message as a file `<prefix_>r<rank>_<number>.<suffix>`."""

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


class BinaryDataStreamingDataHandlerConfig(StrictModel):
    """Push each message into a socket."""

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


DataHandlerConfig = Annotated[
    BinaryDataStreamingDataHandlerConfig | BinaryFileWritingDataHandlerConfig,
    Field(discriminator="type"),
]
