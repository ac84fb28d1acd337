"""How batches become messages: the models of the `data_serializer` section."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from lclstream.core.models import near
from lclstream.streamer.config.registry import Finding, SerializerModel
from lclstream.streamer.config.summary import expected_values

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
# The highest level of the codecs that have levels; zfp compresses numbers of 32 and 64 bits.
MAX_LEVEL = {
    "gzip": 9, "gzip_with_shuffle": 9, "bitshuffle_with_zstd": 22, "blosc2_with_lz4": 9,
    "blosc2_with_zstd": 9, "zstd": 22,
}  # fmt: skip
NOT_FOR_ZFP = ("bool", "int8", "int16", "uint8", "uint16", "float16", "str")
# Below it our own datasets lie.
OWN_GROUP = "/lclstream"


class HDF5BinarySerializerConfig(SerializerModel):
    """Each message is one complete HDF5 file of a batch; axis 0 of every dataset = events."""

    implementation: ClassVar = "lclstream.streamer.serializers.hdf5:HDF5BinarySerializer"
    file_suffixes: ClassVar = ("h5", "hdf5", "cxi", "nxs")
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

    def names_in_messages(self, parameters: "Parameters") -> dict[str, str]:
        """Return the path of the dataset of each value that is sent and exists."""
        paths = self.paths(parameters)
        return {label: paths[label] for label in parameters.labels if label in paths}

    def problems(self, parameters: "Parameters") -> Iterator[Finding]:
        """Yield what cannot be stored, and names that are wrong."""
        yield from self._codec_problems(parameters)
        labels = parameters.labels
        if self.layout == "flat":
            for name, fault in faults_of_paths({name: name for name in labels}):
                yield (), f"value {name!r} {fault}", name
            return
        for name, path in self.fields.items():
            if name not in labels:
                yield ("fields", name), f"no data source has this name{near(name, labels)}", path
        for name, fault in faults_of_paths(self.fields):
            yield ("fields", name), fault, self.fields[name]
        # The masks lie at the names of the values, wherever the data lie.
        for name, fault in faults_of_paths({name: name for name in self.fields}):
            yield ("fields",), f"value {name!r} {fault}, as far as masks are concerned", name

    def advice(self, parameters: "Parameters") -> Iterator[str]:
        """Yield what is lost: precision by the codec, values that have no path."""
        if self.compression == "zfp":
            yield "zfp loses precision and may enlarge noisy frames"
        if self.layout == "fields":
            for name in parameters.labels:
                if name not in self.fields:
                    yield f"{name!r} is not in fields and is not sent"

    def _codec_problems(self, parameters: "Parameters") -> Iterator[Finding]:
        level, highest = self.compression_level, MAX_LEVEL.get(self.compression or "")
        if highest is not None and level > highest:
            text = f"the level of {self.compression} must be 0 to {highest}"
            yield ("compression_level",), text, level
        if self.compression != "zfp":
            return
        paths = self.paths(parameters)
        for name, value in expected_values(parameters).items():
            if value.dtype in NOT_FOR_ZFP and name in paths:
                text = f"zfp cannot compress {value.dtype}, which {name!r} is; choose another"
                yield ("compression",), f"{text} compression or dtype", self.compression


def faults_of_paths(paths: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield which name has a path that cannot be, and why."""
    taken: dict[str, str] = {}
    above: dict[str, str] = {}
    for name, path in paths.items():
        clean = "/" + path.strip("/")
        if clean == "/" or "//" in clean or "\0" in clean:
            yield name, "must be the path of a dataset"
        elif clean == OWN_GROUP or clean.startswith(f"{OWN_GROUP}/"):
            yield name, f"{OWN_GROUP} is the group of our own metadata"
        groups = [clean[:end] for end, letter in enumerate(clean) if letter == "/" and end]
        owner = (
            taken.get(clean) or above.get(clean) or next(filter(None, map(taken.get, groups)), "")
        )
        if owner:
            yield name, f"collides with the path of {owner!r}"
        taken.setdefault(clean, name)
        for group in groups:
            above.setdefault(group, name)
