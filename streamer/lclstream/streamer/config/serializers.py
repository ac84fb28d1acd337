"""How batches become messages: the models of the `data_serializer` section."""

from typing import ClassVar, Literal

from pydantic import Field

from lclstream.streamer.config.registry import SerializerModel

Compression = Literal[
    "gzip", "gzip_with_shuffle", "bitshuffle_with_lz4", "bitshuffle_with_zstd", "zfp"
]


class HDF5BinarySerializerConfig(SerializerModel):
    """Each message is one complete HDF5 file of a batch; axis 0 of every dataset = events."""

    implementation: ClassVar = "lclstream.streamer.serializers.hdf5:HDF5BinarySerializer"
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


class SimplonBinarySerializerConfig(SerializerModel):
    """CBOR messages in the manner of DECTRIS Simplon."""

    implementation: ClassVar = "lclstream.streamer.serializers.simplon:SimplonBinarySerializer"
    type: Literal["SimplonBinarySerializer"] = "SimplonBinarySerializer"
    data_source_to_serialize: str
    polarization_fraction: float
    polarization_axis: list[float]
    data_collection_rate: str
    detector_name: str
    detector_type: str
    photon_wavelength_source: str | None = None
    spectrometer_source: str | None = None
