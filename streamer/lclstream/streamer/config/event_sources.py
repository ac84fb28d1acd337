"""Where events come from: the models of the `event_source` section."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lclstream.streamer.config.calibration import CalibrationConfig
from lclstream.streamer.config.registry import EventSourceModel
from lclstream.streamer.config.simulated_parts import SimulatedCamera, SimulatedDigitizer


class PacedSource(EventSourceModel):
    """What every source of ours can do: give its events no faster than asked."""

    rate_hz: float = Field(default=0.0, ge=0)
    """Events per second over all ranks, so that a replay looks live; 0 = as fast as possible."""


class InternalEventSourceConfig(EventSourceModel):
    """Empty numbered events, for tests and throughput measurements; split over the ranks."""

    implementation: ClassVar = "lclstream.streamer.sources.internal:InternalEventSource"
    type: Literal["InternalEventSource"] = "InternalEventSource"
    number_of_events_to_generate: int = Field(ge=0)
    """Events over all ranks."""


class SimulatedDetectorEventSourceConfig(PacedSource):
    """X-ray diffraction of randomly oriented crystals on a detector of several panels.

    Event i is a pure function of (these settings, i): a receiver can make it again and compare
    every bit. `source_identifier` may name the experiment and run: `exp=NAME,run=NUMBER`.
    """

    implementation: ClassVar = "lclstream.streamer.sources.simulated:SimulatedDetectorEventSource"
    type: Literal["SimulatedDetectorEventSource"] = "SimulatedDetectorEventSource"
    events: int = Field(default=1000, ge=0)
    """Events over all ranks."""
    seed: int = Field(default=0, ge=0)
    detector: str = Field(default="jungfrau", min_length=1)
    """Name under which data sources find the detector."""
    panels: int = Field(default=2, ge=1, le=256)
    shape: tuple[int, int] = (256, 512)
    """Rows and columns of one panel."""
    hit_rate: float = Field(default=0.5, ge=0, le=1)
    """Fraction of the events in which the beam hits a crystal."""
    peaks: int = Field(default=60, ge=0)
    """Bragg peaks of a hit at most."""
    background_photons: float = Field(default=1.0, ge=0, le=100)
    """Mean photons per pixel and event, without peaks."""
    bad_pixels: float = Field(default=0.001, ge=0, le=0.5)
    """Fraction of the pixels that are dead or hot, the same in every event."""
    missing_frames: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the events without a detector frame."""
    missing_scalars: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the events without a given scalar reading, drawn for each reading."""
    wavelength_angstrom: float = Field(default=1.3, gt=0, le=100)
    distance_mm: float = Field(default=100.0, gt=0)
    """Sample to detector."""
    pixel_um: float = Field(default=75.0, gt=0)
    cell_angstrom: tuple[float, float, float] = (79.1, 79.1, 38.4)
    """Edges of the (rectangular) unit cell."""
    cameras: tuple[SimulatedCamera, ...] = ()
    """More area detectors in the same beam."""
    digitizers: tuple[SimulatedDigitizer, ...] = ()
    """Waveform digitisers, such as those of electron time-of-flight spectrometers."""
    events_per_step: int = Field(default=0, ge=0)
    """Events in one step of a scan; 0 = no scan."""

    @model_validator(mode="after")
    def _different_names(self) -> Self:
        names = [self.detector, "truth", "gmd", "ebeamh"]
        names += [camera.name for camera in self.cameras]
        names += [digitizer.name for digitizer in self.digitizers]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"detectors must have different names: {', '.join(sorted(twice))}")
        return self


class EventFilesConfig(PacedSource):
    """Files that hold events as arrays with the events as first axis."""

    names: dict[str, str] = Field(default_factory=dict)
    """Detector name and field, or variable -> dataset path, e.g. `jungfrau.raw.calib`."""
    discover: bool = True
    """Whether NeXus and CXI files, and those of our own, are searched for names, time stamps and
    what is missing; without it only paths and `names` count."""
    timestamp: str | None = None
    """Path of the dataset of 64-bit time stamps; without it that which the file is known to have,
    else an event's stamp is its index."""
    step: str | None = None
    """Path of the dataset of the numbers of the scan's steps."""
    constants: list[str] = Field(default_factory=list)
    """Paths or names of datasets that are the same for all events, such as masks."""
    one_event: bool = False
    """Whether each file is one event, so that no dataset has an axis of events."""
    experiment: str = ""
    """Without it, as the file says."""
    run: int = Field(default=0, ge=0)
    """0 = as the file says."""
    max_chunk_bytes: int = Field(default=1 << 28, gt=0)
    """Memory for the chunks of one dataset that several events share; larger ones are
    decompressed again for every event."""


class Hdf5EventSourceConfig(EventFilesConfig):
    """HDF5 files of any layout whose datasets have the events as first axis.

    `source_identifier` names the files: paths, folders or patterns, with or without `files=`,
    separated by commas. A data source finds a dataset by its path (`/entry/data/data`), by the
    name that `names` gives it, or by the name that a NeXus or CXI file gives its detectors.
    """

    implementation: ClassVar = "lclstream.streamer.sources.hdf5:Hdf5EventSource"
    type: Literal["Hdf5EventSource"] = "Hdf5EventSource"


class Xtc2EventSourceConfig(PacedSource):
    """XTC2 files as the LCLS-II data acquisition writes them, read without psana.

    `source_identifier` names the files: paths, folders or patterns, separated by commas; or
    `exp=NAME,run=NUMBER`, with `dir=FOLDER` where they are not in the usual place.
    """

    implementation: ClassVar = "lclstream.streamer.sources.xtc2:Xtc2EventSource"
    type: Literal["Xtc2EventSource"] = "Xtc2EventSource"
    live: bool = False
    """Whether to follow files that are still being written, to the end of their run; `live` in
    `source_identifier` does the same."""
    live_timeout_s: float = Field(default=300.0, ge=0)
    """Seconds without anything new after which a stream that is followed counts as ended, and
    for which a run may take to begin; 0 = as long as it takes."""
    live_streams: int = Field(default=0, ge=0, le=1000)
    """How many streams a run that is followed will have; 0 = those that appear within a second.
    Say it when there are several ranks: all must follow the same streams."""
    first_event: int = Field(default=0, ge=0)
    """Index of the first event that is read, such as where an earlier run of ours ended."""
    damaged: Literal["missing", "keep"] = "missing"
    """What becomes of values that the data acquisition marked as truncated, corrupted, dropped or
    missing; they are counted either way."""
    on_error: Literal["stop", "skip"] = "stop"
    """What happens where a file cannot be decoded: the run of ours fails; or the reading is
    missing, or the stream ends there, which is logged and counted."""
    use_index: bool = True
    """Whether several ranks find their events by the small-data files, where there are some."""
    access: Literal["map", "read"] = "map"
    """Whether files are mapped, so that only what is asked for is read; or each event is read into
    memory, which survives files that fail or shrink meanwhile. What is followed is always read."""
    calibration: CalibrationConfig | None = None
    """Constants for `raw.calib` and `raw.image` of Jungfrau and epix10ka detectors."""


class Psana1EventSourceConfig(EventSourceModel):
    """LCLS-I data through psana1; `source_identifier` is a psana1 data source string.

    `:smd` is added unless the string says how events are to be read.
    """

    implementation: ClassVar = "lclstream.streamer.sources.psana1:Psana1EventSource"
    type: Literal["Psana1EventSource"] = "Psana1EventSource"
    calib_dir: str = ""
    """Folder of calibration constants; empty = psana1's own choice."""


class Psana2EventSourceConfig(EventSourceModel):
    """LCLS-II data through psana2; `source_identifier` is e.g. `exp=mfx101332224,run=7`."""

    implementation: ClassVar = "lclstream.streamer.sources.psana2:Psana2EventSource"
    type: Literal["Psana2EventSource"] = "Psana2EventSource"
    calib_url: str = ""
    """Calibration service, such as `https://pswww.slac.stanford.edu/ws`; psana2 trusts what it
    sends. Empty = what the environment says (LCLS_CALIB_HTTP), or psana2's own."""
    skip_calib_load: Literal["all"] | list[str] = Field(default_factory=list)
    """Detectors whose constants are not needed, or `all`: works where no service is reachable."""
    ask_logbook: bool = True
    """Whether the facility's logbook says which files a run has; else the folder does."""
    detectors: list[str] = Field(default_factory=list)
    """Read only streams with these detectors; none = all."""
    xdetectors: list[str] = Field(default_factory=list)
    """Do not read streams with these detectors."""
    small_xtc: list[str] = Field(default_factory=list)
    """Detectors whose small data are taken from the large files."""
    batch_size: int | None = Field(default=None, gt=0)
    """Events that psana2 hands to a rank at once; null = psana2's own choice."""
    timestamps: str = ""
    """Numpy file of the time stamps (uint64) of the events to read; empty = all."""
    intg_det: str = ""
    """Integrating detector, at whose rate psana2 makes its batches."""
    dbsuffix: str = ""
    """Of a private database of calibration constants."""

    def arguments(self) -> dict[str, Any]:
        """Return what psana2's data source is to be told besides what to read."""
        names = (
            "skip_calib_load", "detectors", "xdetectors", "small_xtc", "batch_size", "timestamps",
            "intg_det", "dbsuffix",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names if getattr(self, name)}
