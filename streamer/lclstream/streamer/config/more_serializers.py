"""How batches become messages of other formats than HDF5: more models of `data_serializer`."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from lclstream.core.models import near
from lclstream.streamer.config.registry import Finding, SerializerModel

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters

# Below it our own names lie, in formats whose values have names of their own.
OWN_GROUP = "lclstream"


class NumpyBinarySerializerConfig(SerializerModel):
    """Each message is a NumPy archive (`.npz`) of a batch; axis 0 of every array = events."""

    implementation: ClassVar = "lclstream.streamer.serializers.npz:NumpyBinarySerializer"
    type: Literal["NumpyBinarySerializer"] = "NumpyBinarySerializer"
    use_compression: bool = True
    """Whether the arrays are compressed (deflate: small, but slow)."""
    compression_level: int = Field(default=6, ge=1, le=9)
    threads: int = Field(default=1, ge=1, le=256)
    """How many compress at a time."""
    identification: bool = True
    """Whether arrays `lclstream/...` hold event index, time stamp, run, rank and masks."""

    def problems(self, parameters: "Parameters") -> Iterator[Finding]:
        """Yield names that are ours."""
        yield from own_names(parameters)


class FastBinarySerializerConfig(SerializerModel):
    """Each message is a sequence of named arrays of a batch, in FastBinary's layout."""

    implementation: ClassVar = "lclstream.streamer.serializers.fastbinary:FastBinarySerializer"
    type: Literal["FastBinarySerializer"] = "FastBinarySerializer"
    fields: dict[str, str] = Field(default_factory=dict)
    """Value -> its name in the message, in the order of the message; a value that is not here
    is not sent. Without any, all are sent under their own names."""
    compression: Literal["none", "lz4", "zstd"] | None = None
    """Codec of the Blosc containers; what would not become smaller is sent as it is."""
    compression_level: int = Field(default=3, ge=0, le=9)
    """Of Blosc; 0 does not compress."""
    n_threads: int = Field(default=4, ge=1, le=256)
    """How many compress at a time."""
    identification: bool = True
    """Whether fields `/lclstream/...` hold event index, time stamp, run, rank and masks."""

    def problems(self, parameters: "Parameters") -> Iterator[Finding]:
        """Yield fields that are of no value, have the same name, or have a name of ours."""
        yield from renamed(("fields",), self.fields, parameters.labels)
        yield from taken_names(("fields",), self.fields)
        if not self.fields:
            yield from own_names(parameters)


class ArrowSerializerConfig(SerializerModel):
    """Each message is an Arrow IPC stream of one record batch; a row = an event."""

    implementation: ClassVar = "lclstream.streamer.serializers.arrow:ArrowSerializer"
    type: Literal["ArrowSerializer"] = "ArrowSerializer"
    compression: Literal["lz4", "zstd"] | None = None
    """Codec of the record batch's buffers; null stores the data as they are."""
    identification: bool = True
    """Whether columns `lclstream/...` hold event index and time stamp, and the schema's metadata
    run, rank and sequence."""

    def problems(self, parameters: "Parameters") -> Iterator[Finding]:
        """Yield names that are ours."""
        yield from own_names(parameters)


def renamed(
    place: tuple[str, ...], names: Mapping[str, str], labels: tuple[str, ...]
) -> Iterator[Finding]:
    """Yield what renames a value that does not exist."""
    for label, name in names.items():
        if label not in labels:
            yield (*place, label), f"there is no value of this name{near(label, labels)}", name


def taken_names(place: tuple[str, ...], names: Mapping[str, str]) -> Iterator[Finding]:
    """Yield names that are given twice, are empty, or are ours."""
    owners: dict[str, str] = {}
    for label, name in names.items():
        clean = name.strip("/")
        if not clean:
            yield (*place, label), "must be a name", name
        elif _is_own(clean):
            yield (*place, label), f"{OWN_GROUP}/ is where our own metadata lie", name
        elif name in owners:
            yield (*place, label), f"is the name of {owners[name]!r} too", name
        owners[name] = label


def own_names(parameters: "Parameters") -> Iterator[Finding]:
    """Yield values whose names are ours."""
    for label in parameters.labels:
        if _is_own(label.strip("/")):
            yield (), f"value {label!r}: {OWN_GROUP}/ is where our own metadata lie", label


def _is_own(name: str) -> bool:
    return name == OWN_GROUP or name.startswith(f"{OWN_GROUP}/")
