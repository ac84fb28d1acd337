"""What can be learned from diffraction frames: the models of steps that know where pixels are."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lclstream.core.models import StrictModel
from lclstream.streamer.config.known import Knowledge, Known
from lclstream.streamer.config.masks import MaskConfig, mask_reads
from lclstream.streamer.config.pixel_steps import Size, panel_objections
from lclstream.streamer.config.registry import Finding
from lclstream.streamer.config.steps import Label, Place, ValueStep

Position = tuple[
    Annotated[float, Field(allow_inf_nan=False)], Annotated[float, Field(allow_inf_nan=False)]
]
"""Row and column in pixels; the centre of the first pixel is 0, 0."""


class GeometryConfig(StrictModel):
    """Where the pixels are, seen from the beam: by `center`, a file of CrystFEL, or coordinates."""

    center: Position | None = None
    """Row and column where the beam meets the image."""
    panel_corners: list[Position] = Field(default_factory=list)
    """With `center`: row and column, in the assembled image, of the first pixel of each panel of
    a stack. Without it, the frame is one assembled image."""
    crystfel: str = ""
    """Geometry file of CrystFEL (.geom) for this array."""
    coordinates: str = ""
    """NumPy file (.npz) with arrays `x` and `y` of the shape of the frame: the distance of each
    pixel from the beam, in pixels."""

    @model_validator(mode="after")
    def _one_way(self) -> "GeometryConfig":
        given = [
            name
            for name, value in (
                ("center", self.center),
                ("crystfel", self.crystfel),
                ("coordinates", self.coordinates),
            )
            if value
        ]
        if len(given) != 1:
            raise ValueError("needs one of center, crystfel and coordinates")
        if self.panel_corners and self.center is None:
            raise ValueError("panel_corners needs a center")
        return self

    def objections(self, shape: tuple[int, ...]) -> Iterator[str]:
        """Yield why frames of this shape have no such geometry."""
        panels = len(self.panel_corners)
        if self.center is None:
            return
        if panels and shape[:-2] != (panels,):
            yield f"has shape {shape}, but there are {panels} panel_corners"
        elif not panels and any(size != 1 for size in shape[:-2]):
            yield f"is a stack of panels {shape}: give the panel_corners"


class FrameStep(ValueStep):
    """A step that reads a frame, where its pixels are and which are good."""

    input: Label
    """The frame: (rows, columns), or a stack (panels, rows, columns)."""
    geometry: GeometryConfig
    mask: MaskConfig | None = None
    """Bad pixels take no part; those that are not finite never do."""

    def reads(self) -> Iterator[tuple[Place, str]]:
        """Yield the frame and the mask."""
        yield ("input",), self.input
        yield from mask_reads(self.mask)

    def misfits(self, known: Knowledge) -> Iterator[Finding]:
        """Yield why the frame is none."""
        frame = known[self.input]
        if frame.is_text or frame.is_ragged or (frame.ndim is not None and frame.ndim < 2):
            yield ("input",), "is not an array with rows and columns", self.input
        elif frame.ndim is not None and frame.shape is not None:
            for text in (*self.geometry.objections(frame.shape), *self.shape_objections(frame)):
                yield ("input",), text, self.input
            yield from self._mask_misfits(known, frame.shape)

    def shape_objections(self, frame: Known) -> Iterator[str]:
        """Yield why it cannot be done to frames of this shape."""
        del frame
        return iter(())

    def _mask_misfits(self, known: Knowledge, shape: tuple[int, ...]) -> Iterator[Finding]:
        mask = known.get(self.mask.value, Known()) if self.mask else Known()
        if mask.ndim is not None and mask.shape != shape:
            text = f"has shape {mask.shape}, but {self.input!r} has {shape}"
            yield ("mask", "value"), text, self.mask and self.mask.value


class PeakFinder8Config(FrameStep):
    """Find Bragg peaks by the statistics of rings around the beam, and say which events are hits.

    What is brighter than its ring by `min_snr` sigma and `threshold`, touches, is neither too
    small nor too large, and stands out from the pixels around it, is a peak. It adds, ragged
    with one element for each peak, `<output>_fs`, `_ss` (centre of mass, float32), `_panel`
    (int32), `_intensity`, `_snr`, `_maximum` (float32), `_pixels` (int32); and in each event
    `<output>_count` (uint32) and the value named by `hit` (uint8).
    """

    implementation: ClassVar = "lclstream.streamer.steps.peaks:PeakFinder8"
    type: Literal["PeakFinder8"] = "PeakFinder8"
    output: Label = "peaks"
    """What the names of the results begin with."""
    hit: Label = "is_hit"
    """Name of the value that says whether an event is a hit: 1 or 0."""
    panel_shape: Size | None = None
    """Rows and columns of one panel, where a frame (rows, columns) is made of several: peaks
    never reach across. Without it: as in the CrystFEL geometry, or the last two axes."""
    threshold: float = Field(default=0.0, allow_inf_nan=False)
    """Least value of a peak's pixel, in the units of the frame (ADU, keV, photons)."""
    min_snr: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    """Least height of a peak's pixel above its ring in sigma of the ring, and of a peak's sum
    above its surroundings in sigma of these."""
    min_pixels: int = Field(default=2, ge=1)
    """Fewest touching pixels of a peak."""
    max_pixels: int = Field(default=200, ge=1)
    """Most touching pixels of a peak."""
    local_background_radius: int = Field(default=3, ge=1, le=50)
    """Half the radius, in pixels, of the surroundings in which a peak's background is measured."""
    min_radius: float = Field(default=0.0, ge=0)
    """Pixels nearer to the beam take no part, in pixels."""
    max_radius: float | None = Field(default=None, gt=0)
    """Pixels farther from the beam take no part, in pixels; without it, all do."""
    pixels_per_ring: int | None = Field(default=None, ge=50)
    """Measure the background of a ring in so many of its pixels at most, always the same. Some
    hundreds are as good as all and much faster."""
    max_peaks: int = Field(default=2048, ge=1, le=1_000_000)
    """Most peaks of an event; when there are so many, no more are looked for."""
    min_peaks: int = Field(default=10, ge=1)
    """Fewest peaks of a hit."""
    veto: bool = False
    """Drop the events that are no hits."""

    @model_validator(mode="after")
    def _ordered(self) -> "PeakFinder8Config":
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels must be <= max_pixels, got {self.min_pixels}")
        if self.max_radius is not None and self.max_radius <= self.min_radius:
            raise ValueError(f"max_radius must be > min_radius, got {self.max_radius}")
        if self.min_peaks > self.max_peaks:
            raise ValueError(f"min_peaks must be <= max_peaks, got {self.min_peaks}")
        return self

    @property
    def columns(self) -> dict[str, str]:
        """Name of each ragged result -> its dtype."""
        return {
            f"{self.output}_fs": "float32",
            f"{self.output}_ss": "float32",
            f"{self.output}_panel": "int32",
            f"{self.output}_intensity": "float32",
            f"{self.output}_snr": "float32",
            f"{self.output}_maximum": "float32",
            f"{self.output}_pixels": "int32",
        }

    def makes(self) -> Iterator[tuple[Place, str]]:
        """Yield the columns of the list of peaks, their number, and the verdict."""
        for name in (*self.columns, f"{self.output}_count"):
            yield ("output",), name
        yield ("hit",), self.hit

    def learned(self, known: Knowledge) -> dict[str, Known]:
        """Return what is known about them."""
        del known
        ragged = {name: Known(kind, (), is_ragged=True) for name, kind in self.columns.items()}
        count = Known("uint32", (), is_ragged=False)
        return {
            **ragged,
            f"{self.output}_count": count,
            self.hit: count.with_(dtype="uint8"),
        }

    def shape_objections(self, frame: Known) -> Iterator[str]:
        """Yield which axis is no multiple of the panels."""
        if self.panel_shape is not None and frame.shape is not None:
            yield from panel_objections(frame.shape, self.panel_shape)


class RadialProfileConfig(FrameStep):
    """Average frames around the beam: one number for each ring.

    It adds `<output>` (float64, one element for each ring; NaN where a ring has no good pixel)
    and `<output>_pixels` (uint32, how many pixels each ring has).
    """

    implementation: ClassVar = "lclstream.streamer.steps.radial:RadialProfile"
    type: Literal["RadialProfile"] = "RadialProfile"
    # An event's wavelength may be there, and be none.
    may_miss: ClassVar = True
    output: Label = "radial_profile"
    """Name of the result."""
    method: Literal["mean", "sum"] = "mean"
    bins: int = Field(default=500, ge=1, le=100_000)
    """Number of rings, of equal width in `unit`."""
    unit: Literal["pixel", "q"] = "pixel"
    """Distance from the beam in pixels, or q = 4 pi sin(theta) / wavelength in 1/angstrom, where
    2 theta is the angle of scattering."""
    minimum: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Inner edge of the first ring, in `unit`."""
    maximum: float = Field(gt=0, allow_inf_nan=False)
    """Outer edge of the last ring, in `unit`."""
    distance_mm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Sample to detector; for q."""
    pixel_um: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Size of a pixel; for q."""
    wavelength_angstrom: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """For q: of all events."""
    wavelength: Label | None = None
    """For q: name of the value with each event's wavelength in angstrom."""
    photon_energy: Label | None = None
    """For q: name of the value with each event's photon energy in eV."""

    @model_validator(mode="after")
    def _complete(self) -> "RadialProfileConfig":
        if self.maximum <= self.minimum:
            raise ValueError(f"maximum must be > minimum, got {self.maximum}")
        waves = [self.wavelength_angstrom, self.wavelength, self.photon_energy]
        given = sum(each is not None for each in waves)
        if self.unit == "q":
            if self.distance_mm is None or self.pixel_um is None:
                raise ValueError("unit: q needs distance_mm and pixel_um")
            if given != 1:
                raise ValueError(
                    "unit: q needs one of wavelength_angstrom, wavelength and photon_energy"
                )
        elif given:
            raise ValueError("a wavelength or photon energy needs unit: q")
        return self

    def reads(self) -> Iterator[tuple[Place, str]]:
        """Yield the frame, the mask, and each event's wavelength or energy."""
        yield from super().reads()
        if self.wavelength is not None:
            yield ("wavelength",), self.wavelength
        if self.photon_energy is not None:
            yield ("photon_energy",), self.photon_energy

    def makes(self) -> Iterator[tuple[Place, str]]:
        """Yield the profile and its number of pixels."""
        yield ("output",), self.output
        yield ("output",), f"{self.output}_pixels"

    def learned(self, known: Knowledge) -> dict[str, Known]:
        """Return what is known about them."""
        del known
        return {
            self.output: Known("float64", (self.bins,), is_ragged=False),
            f"{self.output}_pixels": Known("uint32", (self.bins,), is_ragged=False),
        }
