"""How batches become Simplon messages: the model of `SimplonBinarySerializer`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lclstream.core.models import near
from lclstream.streamer.config.known import Known
from lclstream.streamer.config.more_serializers import known_of
from lclstream.streamer.config.registry import Finding, SerializerModel

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

# What the dialects of LCLStreamer cannot go without, and those that only Stream V2 has.
OF_LCLSTREAMER = (
    "polarization_fraction", "polarization_axis", "data_collection_rate", "detector_name",
    "detector_type",
)  # fmt: skip
OF_STREAM2 = (
    "beam_center", "channel", "compression", "count_time_s", "detector_distance_mm",
    "detector_distance_source", "frame_time_s", "image_dtype", "mask_source", "number_of_images",
    "offset", "pixel_size_um", "scale", "series_id", "series_unique_id",
)  # fmt: skip
# What clients of Stream V2 such as dxtbx expect the start of a series to say.
OF_CLIENTS = (
    "detector_name", "pixel_size_um", "sensor_material", "sensor_thickness_um", "count_time_s",
    "frame_time_s",
)  # fmt: skip
# Where a value may come from, and whether it may be missing from the configuration.
SOURCES = (
    "photon_wavelength_source", "photon_energy_source", "spectrometer_source",
    "detector_distance_source", "mask_source", "geometry_source", "beam_source", "run_info_source",
)  # fmt: skip
# The names that LCLStreamer gives to what it looks for.
WAVELENGTH, GEOMETRY, BEAM, RUN_INFO = (
    "photon_wavelength", "detector_geometry", "beam_data", "run_info",
)  # fmt: skip
# Images of these need a conversion that loses something; it has to be asked for.
WITHOUT_IMAGE = ("int64", "uint64")


class SimplonBinarySerializerConfig(SerializerModel):
    """CBOR messages in the manner of DECTRIS Simplon: a start, one image each event, an end."""

    implementation: ClassVar = "lclstream.streamer.serializers.simplon:SimplonBinarySerializer"
    event_wise: ClassVar = True
    type: Literal["SimplonBinarySerializer"] = "SimplonBinarySerializer"
    dialect: Literal["lclstreamer", "lclstreamer-pr51", "stream2"] = "lclstreamer"
    """`stream2`: Stream V2, which clients of DECTRIS read; the others: what LCLStreamer calls
    SIMPLON, and what its pull request 51 makes of it."""
    data_source_to_serialize: str = Field(min_length=1)
    """The value that is the image, or `<detector>.<field>` of the data source that gives it."""
    polarization_fraction: Finite | None = None
    """Of the beam; LCLStreamer's dialects need it, and the axis."""
    polarization_axis: list[Finite] | None = Field(default=None, min_length=3, max_length=3)
    data_collection_rate: str = ""
    """As text, e.g. `120Hz`."""
    detector_name: str = ""
    detector_type: str = ""
    photon_wavelength_source: str | None = None
    """Value with the wavelength in angstrom; without it, `photon_wavelength` if that exists."""
    photon_energy_source: str | None = None
    """Value with the photon energy in eV; without it, it follows from the wavelength."""
    spectrometer_source: str | None = None
    """Value with a spectrum, which LCLStreamer's dialects send beside the image."""
    geometry_source: str = GEOMETRY
    """Data source with the detector's id and geometry as text; there may be none."""
    beam_source: str = BEAM
    """Data source with angles (x, y) and positions (x, y) of the beam; there may be none. For
    LCLStreamer's dialects."""
    run_info_source: str = RUN_INFO
    """Data source of type `Psana2RunInfo`; there may be none."""
    detector_distance_source: str | None = None
    """Value with the distance from the sample to the detector in mm."""
    detector_distance_mm: Finite | None = None
    """The same where it does not change."""
    mask_source: str | None = None
    """Value of the shape of the image, 0 where a pixel is bad."""
    image_dtype: Literal["native", "uint8", "uint16", "uint32", "float32"] = "native"
    """What pixels are sent as; see the messages' reference for what `native` makes of what. Some
    clients take unsigned integers only."""
    scale: Positive = 1.0
    """With an `image_dtype` of unsigned integers: what a step of 1 means; `user_data` says it."""
    offset: Finite = 0.0
    """With an `image_dtype` of unsigned integers: what 0 means; `user_data` says it."""
    compression: Literal["bslz4", "none"] = "bslz4"
    """Of the images; LCLStreamer's dialects always compress."""
    compression_threads: int | None = Field(default=None, ge=1, le=1024)
    """How many images are compressed at a time; null: as many as this rank has processors."""
    series_id: int | None = Field(default=None, ge=0, lt=1 << 64)
    """Number of the series, the same on all ranks; null: the run in `source_identifier`, or 1."""
    series_unique_id: str = ""
    """Name of the series; empty: of the experiment, the number, and the transfer or batch job."""
    number_of_images: int = Field(default=0, ge=0)
    """How many images are expected; 0: unknown."""
    channel: str = Field(default="threshold_1", min_length=1)
    """What the image is called in the messages."""
    beam_center: tuple[Finite, Finite] | None = None
    """Column and row in pixels where the beam meets the image."""
    pixel_size_um: tuple[Positive, Positive] | None = None
    """Width and height of a pixel."""
    sensor_material: str = ""
    """E.g. `Si`."""
    sensor_thickness_um: Positive | None = None
    count_time_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """How long an exposure is."""
    frame_time_s: Positive | None = None
    """How long from one exposure to the next."""
    identification: bool = True
    """Whether index, time stamp and run of the event, and what is missing from it, are sent."""

    @model_validator(mode="after")
    def _options_of_the_dialect(self) -> "SimplonBinarySerializerConfig":
        if self.dialect != "stream2":
            lacking = [name for name in OF_LCLSTREAMER if getattr(self, name) in (None, "")]
            if lacking:
                raise ValueError(f"dialect {self.dialect} needs {', '.join(lacking)}")
            extra = [name for name in OF_STREAM2 if getattr(self, name) != _default(name)]
            if extra:
                raise ValueError(f"only dialect stream2 has {', '.join(extra)}")
        if not self.image_dtype.startswith("uint") and (self.scale, self.offset) != (1.0, 0.0):
            raise ValueError("scale and offset need an image_dtype of unsigned integers")
        if self.detector_distance_mm is not None and self.detector_distance_source is not None:
            raise ValueError("only one of detector_distance_mm and detector_distance_source")
        return self

    def image_label(self, parameters: "Parameters") -> str:
        """Return the value that is the image."""
        wanted, labels = self.data_source_to_serialize, parameters.labels
        if wanted in labels:
            return wanted
        for value in parameters.values_read:
            readings = value.source.readings()
            path = ".".join(filter(None, readings[0])) if len(readings) == 1 else ""
            if wanted in (value.data_source, path) and value.label in labels:
                return value.label
        return wanted

    def wavelength_name(self, parameters: "Parameters") -> str | None:
        """Return the value with the wavelength; None when there is none."""
        usual = WAVELENGTH if labels_of(parameters, WAVELENGTH) else None
        return self.photon_wavelength_source or usual

    def problems(self, parameters: "Parameters") -> Iterator[Finding]:
        """Yield values that do not exist, or cannot be what they shall be."""
        labels, image = parameters.labels, self.image_label(parameters)
        if image not in labels:
            text = f"there is no value {image!r}{near(image, labels)}"
            yield ("data_source_to_serialize",), text, image
        for field in SOURCES:
            name = getattr(self, field)
            usual = name == type(self).model_fields[field].default
            if name is not None and not usual and not labels_of(parameters, name):
                yield (field,), f"there is no value {name!r}{near(name, labels)}", name
        for text in self._unfit(known_of(parameters).get(image, Known())):
            yield ("data_source_to_serialize",), f"value {image!r} {text}", image

    def advice(self, parameters: "Parameters") -> Iterator[str]:
        """Yield what the start of a series will not say, although clients may want to know."""
        if self.dialect != "stream2":
            return
        unknown = [name for name in OF_CLIENTS if getattr(self, name) in (None, "")]
        if self.detector_distance_mm is None and self.detector_distance_source is None:
            unknown.append("detector_distance_mm")
        if self.wavelength_name(parameters) is None and self.photon_energy_source is None:
            unknown.append("photon_wavelength_source")
        if unknown:
            yield f"not given, although some clients need it: {', '.join(unknown)}"

    def _unfit(self, image: Known) -> Iterator[str]:
        """Yield why something can be no image."""
        if image.is_text or image.is_ragged:
            yield "is not an array of numbers"
        elif self.dialect != "stream2":
            if image.ndim == 0:
                yield "is a single number, and no image"
        elif image.ndim is not None and image.ndim < 2:
            yield f"has {image.ndim} axes: an image needs rows and columns"
        elif image.dtype in WITHOUT_IMAGE and self.image_dtype == "native":
            yield f"is {image.dtype}: choose an image_dtype, for Stream V2 has no such images"


def labels_of(parameters: "Parameters", name: str | None) -> tuple[str, ...]:
    """Return the labels of a value, or of all values that a data source gives; may be none."""
    labels = parameters.labels
    if name is None or name in labels:
        return () if name is None else (name,)
    read = parameters.values_read
    return tuple(
        value.label for value in read if value.data_source == name and value.label in labels
    )


def _default(name: str) -> object:
    return SimplonBinarySerializerConfig.model_fields[name].default
