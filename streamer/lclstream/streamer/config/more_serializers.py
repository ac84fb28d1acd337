"""How batches become messages of other formats than HDF5: more models of `data_serializer`."""

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from lclstream.core.models import near
from lclstream.streamer.config.known import Known
from lclstream.streamer.config.processing import StepsPipeline
from lclstream.streamer.config.registry import Finding, SerializerModel

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters

# Below it our own names lie, in formats whose values have names of their own.
OWN_GROUP = "lclstream"
PEAK_COLUMNS = ("fs", "ss", "intensity")


class NumpyBinarySerializerConfig(SerializerModel):
    """Each message is a NumPy archive (`.npz`) of a batch; axis 0 of every array = events."""

    implementation: ClassVar = "lclstream.streamer.serializers.npz:NumpyBinarySerializer"
    file_suffixes: ClassVar = ("npz",)
    type: Literal["NumpyBinarySerializer"] = "NumpyBinarySerializer"
    use_compression: bool = True
    """Whether the arrays are compressed (deflate: small, but slow)."""
    compression_level: int = Field(default=6, ge=1, le=9)
    compression_threads: int | None = Field(default=None, ge=1, le=1024)
    """How many compress at a time; null: as many as this rank has processors."""
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

    def advice(self, parameters: "Parameters") -> Iterator[str]:
        """Yield which values are not sent."""
        yield from left_out(self.fields, parameters)


class ArrowSerializerConfig(SerializerModel):
    """Each message is an Arrow IPC stream of one record batch; a row = an event."""

    implementation: ClassVar = "lclstream.streamer.serializers.arrow:ArrowSerializer"
    file_suffixes: ClassVar = ("arrow", "arrows")
    type: Literal["ArrowSerializer"] = "ArrowSerializer"
    compression: Literal["lz4", "zstd"] | None = None
    """Codec of the record batch's buffers; null stores the data as they are."""
    identification: bool = True
    """Whether columns `lclstream/...` hold event index and time stamp, and the schema's metadata
    run, rank and sequence."""

    def problems(self, parameters: "Parameters") -> Iterator[Finding]:
        """Yield names that are ours."""
        yield from own_names(parameters)


class CrystfelMsgpackSerializerConfig(SerializerModel):
    """Each message is one event in MessagePack, as CrystFEL reads it (`--data-format=msgpack`)."""

    implementation: ClassVar = "lclstream.streamer.serializers.crystfel:CrystfelMsgpackSerializer"
    file_suffixes: ClassVar = ("msgpack", "msg")
    type: Literal["CrystfelMsgpackSerializer"] = "CrystfelMsgpackSerializer"
    event_wise: ClassVar = True
    fields: dict[str, str] = Field(default_factory=dict)
    """Value -> its key in the message; a value that is not here is not sent. Without any, all
    are sent under their own names, apart from those of `peaks`."""
    geometry_keys: list[str] = Field(default_factory=list)
    """Keys that the geometry file names, such as those of the data and the photon energy: they
    must be there, and come first."""
    images: list[str] | None = None
    """The values that are images. Without it: all with two or more axes."""
    wavelength: str | None = None
    """Value with the wavelength in angstrom, to be sent as photon energy in eV."""
    photon_energy_key: str = Field(default="beam_energy", min_length=1)
    """With `wavelength`: key of the photon energy."""
    peaks: str | None = None
    """What the names of the values with the peaks begin with, as the `output` of `PeakFinder8`:
    `<peaks>_fs`, `<peaks>_ss` and `<peaks>_intensity` are sent as the list of peaks."""
    peak_list_key: str = Field(default="peak_list", min_length=1)
    """With `peaks`: key of the list of peaks."""
    identification: bool = True
    """Whether keys `timestamp` and `event_index`, for CrystFEL's `--copy-header`, and a map
    `lclstream` identify the event."""

    @property
    def peak_labels(self) -> tuple[str, ...]:
        """The values with the columns of the list of peaks."""
        return tuple(f"{self.peaks}_{name}" for name in PEAK_COLUMNS) if self.peaks else ()

    def keys_of(self, labels: tuple[str, ...]) -> dict[str, str]:
        """Return the values that have a key of their own, and the key."""
        if self.fields:
            return {label: key for label, key in self.fields.items() if label in labels}
        begin = f"{self.peaks}_" if self.peaks else None
        return {label: label for label in labels if begin is None or not label.startswith(begin)}

    def needed(self, labels: tuple[str, ...]) -> set[str]:
        """Return the values that anything is made of."""
        return {*self.keys_of(labels), *self.peak_labels, self.wavelength or ""}

    def own_keys(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Return the keys that identify the event and that no value has."""
        taken = self.keys_of(labels).values()
        names = ("timestamp", "event_index", OWN_GROUP) if self.identification else ()
        return tuple(name for name in names if name not in taken)

    def problems(self, parameters: "Parameters") -> Iterator[Finding]:
        """Yield values that do not exist, and keys that CrystFEL would take for others."""
        labels = parameters.labels
        yield from renamed(("fields",), self.fields, labels)
        yield from self._unfit(parameters)
        keys = self.keys_of(labels)
        if OWN_GROUP in keys.values() and self.identification:
            yield ("fields",), f"{OWN_GROUP} is the key of our own metadata", OWN_GROUP
        more = [self.peak_list_key] if self.peaks else []
        more += [self.photon_energy_key] if self.wavelength else []
        every = [*keys.values(), *more, *self.own_keys(labels)]
        yield from _collisions(every)
        for number, key in enumerate(self.geometry_keys):
            if key not in every:
                text = f"no value has this key{near(key, every)}"
                yield ("geometry_keys", number), text, key

    def advice(self, parameters: "Parameters") -> Iterator[str]:
        """Yield which values are not sent."""
        sent = {*self.fields, *self.peak_labels, self.wavelength}
        yield from left_out(sent if self.fields else (), parameters)

    def _unfit(self, parameters: "Parameters") -> Iterator[Finding]:
        """Yield values that do not exist, or are not what they shall be."""
        known = known_of(parameters)
        for place, label in (
            *(("images", label) for label in self.images or ()),
            *(("peaks", label) for label in self.peak_labels),
            *(("wavelength", label) for label in (self.wavelength,) if label is not None),
        ):
            value = known.get(label, Known())
            if label not in parameters.labels:
                text = f"there is no value {label!r}{near(label, parameters.labels)}"
                yield (place,), text, label
            elif place == "images" and not value.may_be_image:
                yield (place,), f"value {label!r} is not an image", label
            elif place == "peaks" and value.is_ragged is False:
                yield (place,), f"value {label!r} is not one number for each peak", label
            elif place == "wavelength" and (value.is_text or value.shape):
                yield (place,), f"value {label!r} is not a number", label


def known_of(parameters: "Parameters") -> Mapping[str, Known]:
    """Return what is known about the values that are sent."""
    pipeline = parameters.processing_pipeline
    if not isinstance(pipeline, StepsPipeline):
        return {}
    return pipeline.known_behind(parameters.sources_by_label)


def _collisions(keys: list[str]) -> Iterator[Finding]:
    """Yield keys that are given twice, or are prefixes of others."""
    for number, key in enumerate(keys):
        for other in keys[number + 1 :]:
            if key == other:
                yield ("fields",), f"the key {key!r} is given twice", key
            elif key.startswith(other) or other.startswith(key):
                shorter, longer = sorted((key, other), key=len)
                taken = f"the key {shorter!r} would be taken for {longer!r}, which begins so"
                yield ("fields",), f"{taken}, by CrystFEL: give one another name", shorter


def left_out(sent: Collection[str | None], parameters: "Parameters") -> Iterator[str]:
    """Yield which values are not sent, where those that are were chosen."""
    for label in parameters.labels if sent else ():
        if label not in sent:
            yield f"{label!r} is not in fields and is not sent"


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
