"""How batches become messages: the models of the `data_serializer` section."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from lclstream.streamer.config.registry import SerializerModel
from lclstream.streamer.config.simplon import (
    SimplonBinarySerializerConfig as SimplonBinarySerializerConfig,
)

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters

Compression = Literal[
    "gzip",
    "gzip_with_shuffle",
    "bitshuffle_with_lz4",
    "bitshuffle_with_zstd",
    "blosc2_with_lz4",
    "blosc2_with_zstd",
    "zstd",
    "zfp",
]
HDF5Layout = Literal["fields", "flat"]


class HDF5BinarySerializerConfig(SerializerModel):
    """Each message is one complete HDF5 file of a batch; axis 0 of every dataset = events."""

    implementation: ClassVar = "lclstream.streamer.serializers.hdf5:HDF5BinarySerializer"
    type: Literal["HDF5BinarySerializer"] = "HDF5BinarySerializer"
    compression: Compression | None = None
    """Filter of every dataset; null stores the data as they are. The best of those that lose
    nothing is `blosc2_with_zstd` with level 1, the fastest are those with lz4."""
    compression_level: int = Field(default=3, ge=0)
    """Of gzip and blosc2 (0-9) and zstd (0-22); the other codecs ignore it."""
    compression_threads: int | None = Field(default=None, ge=1, le=1024)
    """How many events are compressed at a time; null: as many as this rank has processors."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Data source -> path of its dataset; a source that is not here is not sent."""
    hdf5_layout: HDF5Layout | None = None
    """`fields`: paths as in `fields`; `flat`: one dataset at the root for each data source.
    Without it: `fields` if there are any, else `flat`."""
    identification: bool = True
    """Whether a group `/lclstream` holds event index, time stamp, step, run, rank and sequence,
    this configuration, and versions."""

    @property
    def layout(self) -> HDF5Layout:
        """The layout in effect."""
        return self.hdf5_layout or ("fields" if self.fields else "flat")

    def paths(self, parameters: "Parameters") -> dict[str, str]:
        """Return the path of the dataset of each value that is sent."""
        if self.layout == "fields":
            return {name: "/" + path.strip("/") for name, path in self.fields.items()}
        return {name: "/" + name.strip("/") for name in parameters.labels}
