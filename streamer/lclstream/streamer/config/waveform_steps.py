"""What can be done to waveforms of digitisers: the models of the steps that find arrival times."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lclstream.core.models import near
from lclstream.streamer.config.known import INTEGERS, Knowledge, Known
from lclstream.streamer.config.pixel_steps import Span
from lclstream.streamer.config.registry import Finding
from lclstream.streamer.config.steps import Label, MapStep, PairedStep, Place

Negative = Annotated[float, Field(lt=0, allow_inf_nan=False)]


class WaveformStep(MapStep):
    """A step on arrays whose last axis is time."""

    def objections(self, known: Known) -> Iterator[str]:
        """Yield why something is no waveform, or is too short."""
        if known.is_text or known.is_ragged or known.ndim == 0:
            yield "is not a waveform"
        elif known.ndim is not None and known.shape is not None:
            yield from self.length_objections(known.shape[-1])

    def length_objections(self, samples: int) -> Iterator[str]:
        """Yield why it cannot be done to so few samples."""
        del samples
        return iter(())


class WaveformBaselineConfig(WaveformStep):
    """Subtract the baseline of each of the interleaved converters of a digitiser.

    The baseline of converter a is the mean of the first samples a, a + converters, ..., without
    its fraction.
    """

    implementation: ClassVar = "lclstream.streamer.steps.waveforms:WaveformBaseline"
    type: Literal["WaveformBaseline"] = "WaveformBaseline"
    converters: int = Field(default=4, ge=1, le=64)
    """Interleaved converters: sample i comes from number i % this."""
    samples: int = Field(default=64, ge=1)
    """Samples at the begin of the waveform in which the baseline is measured."""
    dtype: Literal["int16", "int32"] = "int32"
    """Of the result for integers; int16 halves the volume and is enough for 12-bit digitisers.
    What does not fit makes the run fail. Floats stay floats."""

    @model_validator(mode="after")
    def _enough(self) -> "WaveformBaselineConfig":
        if self.samples < self.converters:
            raise ValueError(f"samples must be >= converters, got {self.samples}")
        return self

    def length_objections(self, samples: int) -> Iterator[str]:
        """Yield that the waveform is too short."""
        if samples < self.samples + self.converters - 1:
            yield f"has {samples} samples, too few for a baseline of {self.samples}"

    def changed(self, known: Known) -> Known:
        """Return what is known of the result."""
        return known.with_(dtype=self.dtype) if known.dtype in INTEGERS else known


class WaveformWindowsConfig(PairedStep):
    """Keep only the samples around excursions of a waveform, as the digitiser itself can do.

    For each input it adds three ragged values: `<output>_starts`, `<output>_lengths` (uint32,
    one element for each window) and `<output>_samples` (all samples of all windows, one window
    after the other, of the input's dtype).
    """

    implementation: ClassVar = "lclstream.streamer.steps.waveforms:WaveformWindows"
    type: Literal["WaveformWindows"] = "WaveformWindows"
    keep_inputs: bool = False
    """Whether the waveforms stay, too."""
    threshold: float = Field(allow_inf_nan=False)
    """Samples beyond this belong to an excursion, in the units of the input."""
    polarity: Literal["positive", "negative"] = "positive"
    """Whether excursions are above or below the threshold."""
    before: int = Field(default=16, ge=0)
    """Samples that are kept before an excursion."""
    after: int = Field(default=16, ge=0)
    """Samples that are kept behind an excursion. Windows that touch become one."""
    markers: bool = False
    """Put a window with the first `marker_samples` in front of the others and two empty ones at
    the end of the waveform behind them, as the digitiser does."""
    marker_samples: int = Field(default=64, ge=1)

    def makes(self) -> Iterator[tuple[Place, str]]:
        """Yield the three results of each."""
        field = "inputs" if self.outputs is None else "outputs"
        for i, (_, output) in enumerate(self.pairs):
            for name in window_labels(output):
                yield (field, i), name

    def removes(self) -> tuple[str, ...]:
        """Return the waveforms."""
        return () if self.keep_inputs else tuple(self.inputs)

    def learned(self, known: Knowledge) -> dict[str, Known]:
        """Return what is known about the results."""
        learned: dict[str, Known] = {}
        for label, output in self.pairs:
            starts, lengths, samples = window_labels(output)
            number = Known("uint32", (), is_ragged=True)
            dtype = known.get(label, Known()).dtype
            learned |= {starts: number, lengths: number, samples: number.with_(dtype=dtype)}
        return learned

    def misfits(self, known: Knowledge) -> Iterator[Finding]:
        """Yield what is no waveform."""
        for i, label in enumerate(self.inputs):
            value = known[label]
            if value.is_text or value.is_ragged or value.ndim not in (None, 1):
                yield ("inputs", i), "is not a waveform of one axis", label


class ArrivalStep(PairedStep):
    """A step that makes lists of arrival times, one for each channel."""

    keep_inputs: bool = False
    """Whether what the times are found in stays, too."""

    @property
    def dtypes(self) -> tuple[str, str]:
        """Dtypes of the times and of the slopes."""
        raise NotImplementedError

    def makes(self) -> Iterator[tuple[Place, str]]:
        """Yield times, slopes and number of edges of each channel."""
        field = "inputs" if self.outputs is None else "outputs"
        for i, (_, output) in enumerate(self.pairs):
            for name in arrival_labels(output):
                yield (field, i), name

    def learned(self, known: Knowledge) -> dict[str, Known]:
        """Return what is known about the results."""
        del known
        learned: dict[str, Known] = {}
        for _, output in self.pairs:
            tofs, slopes, nedges = arrival_labels(output)
            kinds = [Known(dtype, (), is_ragged=True) for dtype in self.dtypes]
            learned |= dict(zip((tofs, slopes), kinds, strict=True))
            learned[nedges] = Known("uint32", (), is_ragged=False)
        return learned


class WindowArrivalTimesConfig(ArrivalStep):
    """Find arrival times in windows, by the difference of samples: whole samples, fast.

    An edge is a rise by more than `-threshold` within `distance` samples; its time is the crest
    that follows. An input is the three values that `WaveformWindows` makes of one channel, by
    what their names begin with, or one waveform (samples,). For each it adds, ragged,
    `<output>_tofs` (uint32, samples) and `<output>_slopes` (int32; float64 of floats), and
    `<output>_nedges` (uint32).
    """

    implementation: ClassVar = "lclstream.streamer.steps.arrivals:WindowArrivalTimes"
    type: Literal["WindowArrivalTimes"] = "WindowArrivalTimes"
    source: Literal["windows", "waveform"] = "windows"
    """What the inputs are."""
    threshold: Negative = -512.0
    """An edge begins where sample - (the one `distance` later) is at most this."""
    thresholds: dict[Label, Negative] = Field(default_factory=dict)
    """Input -> threshold, where it differs."""
    separator: Literal["_", "."] = "_"
    """What stands between the name of a channel and `starts`, `lengths` and `samples`; `.` where
    these are separate fields of one data source."""
    distance: int = Field(default=2, ge=1, le=1024)
    """Samples between the two that are compared."""
    markers: bool = False
    """Whether the first window and the last two are markers of the digitiser, and no data."""

    @property
    def dtypes(self) -> tuple[str, str]:
        """Dtypes of the times and of the slopes."""
        return ("uint32", "")

    def windows_of(self, channel: str) -> tuple[str, str, str]:
        """Return the names of the starts, lengths and samples of a channel's windows."""
        return window_labels(channel, self.separator)

    def reads(self) -> Iterator[tuple[Place, str]]:
        """Yield the windows or waveforms."""
        for i, label in enumerate(self.inputs):
            for name in self.windows_of(label) if self.source == "windows" else (label,):
                yield ("inputs", i), name

    def removes(self) -> tuple[str, ...]:
        """Return the windows or waveforms."""
        return () if self.keep_inputs else tuple(label for _, label in self.reads())

    def misfits(self, known: Knowledge) -> Iterator[Finding]:
        """Yield what is no window or waveform, and thresholds of nothing."""
        for place, label in self.reads():
            is_ragged = known[label].is_ragged
            if known[label].is_text or is_ragged not in (None, self.source == "windows"):
                wanted = "windows of samples" if self.source == "windows" else "a waveform"
                yield place, f"is not {wanted}", label
        yield from _of_unknown_channels("thresholds", self.thresholds, self.inputs)


class WaveformArrivalTimesConfig(ArrivalStep):
    """Find arrival times in whole waveforms, by Fourier interpolation: fractions of samples.

    The waveform (without baseline) is mirrored, freed of high frequencies and interpolated; an
    edge is a crest of it, found where -(waveform x its derivative) is at most the threshold and
    then crosses zero. For each channel it adds, ragged, `<output>_tofs` (see `rounding`;
    samples x inflate x expand) and `<output>_slopes` (float64), and `<output>_nedges` (uint32).
    """

    implementation: ClassVar = "lclstream.streamer.steps.arrivals:WaveformArrivalTimes"
    type: Literal["WaveformArrivalTimes"] = "WaveformArrivalTimes"
    threshold: Negative | None = None
    """An edge begins where the logic vector is at most this. A pulse of height A and width sigma
    goes down to about -0.14 x A^2 x samples / (inflate^2 x sigma)."""
    relative_threshold: float | None = Field(default=None, gt=0, lt=1)
    """An edge begins where the logic vector is at most this fraction of its least value in this
    waveform, e.g. 0.02. Together with `threshold` both must hold, so that waveforms without
    pulses have no edges."""
    thresholds: dict[Label, Negative] = Field(default_factory=dict)
    """Input -> `threshold`, where it differs."""
    roll_off: int = Field(default=64, ge=1)
    """Bins of the spectrum, on either side of its end, that the low-pass filter shapes."""
    inflate: int = Field(default=2, ge=1, le=64)
    """How much finer the interpolation is than the samples."""
    expand: int = Field(default=4, ge=1, le=1 << 16)
    """Parts of an interpolated sample in which times are counted."""
    rounding: Literal["stochastic", "nearest", "none"] = "stochastic"
    """`stochastic`: whole numbers (uint32), one more with a probability equal to the fraction,
    so that no bin of a histogram is favoured; the same event gives the same numbers. `nearest`:
    whole numbers (uint32). `none`: float64."""
    seed: int = Field(default=0, ge=0)
    """Of the stochastic rounding."""
    precision: Literal["float32", "float64"] = "float64"
    """Of the transform; float32 is faster, and good to about 0.01 sample."""

    @model_validator(mode="after")
    def _one_threshold(self) -> "WaveformArrivalTimesConfig":
        if self.threshold is None and self.relative_threshold is None:
            raise ValueError("needs a threshold, a relative_threshold or both")
        return self

    @property
    def dtypes(self) -> tuple[str, str]:
        """Dtypes of the times and of the slopes."""
        return ("float64" if self.rounding == "none" else "uint32", "float64")

    def removes(self) -> tuple[str, ...]:
        """Return the waveforms."""
        return () if self.keep_inputs else tuple(self.inputs)

    def misfits(self, known: Knowledge) -> Iterator[Finding]:
        """Yield what is no waveform, or too short for the filter, and thresholds of nothing."""
        for i, label in enumerate(self.inputs):
            value = known[label]
            if value.is_text or value.is_ragged or value.ndim not in (None, 1):
                yield ("inputs", i), "is not a waveform of one axis", label
            elif value.ndim and value.shape and value.shape[0] < max(self.roll_off, 32):
                text = f"has {value.shape[0]} samples, too few for roll_off: {self.roll_off}"
                yield ("inputs", i), text, label
        yield from _of_unknown_channels("thresholds", self.thresholds, self.inputs)


class SpectrumCentroidConfig(PairedStep):
    """Find the centroid of the peak in each spectrum.

    The mean of the samples behind `baseline_start`, without its fraction, is subtracted. Of the
    window, the samples between `low` and `high` of its cumulative sum are the peak. For each
    input it adds `<output>_centroid` (float64, in samples behind the begin of the window; 0:
    there is no peak), `<output>_sum` (float64, of the peak) and `<output>_corrected` (the
    spectrum without baseline; int32, float64 of floats).
    """

    implementation: ClassVar = "lclstream.streamer.steps.spectra:SpectrumCentroid"
    type: Literal["SpectrumCentroid"] = "SpectrumCentroid"
    baseline_start: int = Field(default=1800, ge=0)
    """First sample of the baseline, which goes on to the end of the spectrum."""
    threshold: float = Field(default=1000.0, allow_inf_nan=False)
    """A spectrum whose largest sample above the baseline is less has no peak."""
    window: Span = (1024, 2048)
    """First sample of the window, and first no more."""
    low: float = Field(default=0.1, ge=0, lt=1)
    high: float = Field(default=0.9, gt=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> "SpectrumCentroidConfig":
        if self.low >= self.high:
            raise ValueError(f"low must be < high, got {self.low}")
        return self

    def makes(self) -> Iterator[tuple[Place, str]]:
        """Yield the three results of each."""
        field = "inputs" if self.outputs is None else "outputs"
        for i, (_, output) in enumerate(self.pairs):
            for name in centroid_labels(output):
                yield (field, i), name

    def learned(self, known: Knowledge) -> dict[str, Known]:
        """Return what is known about the results."""
        learned: dict[str, Known] = {}
        for label, output in self.pairs:
            centroid, total, corrected = centroid_labels(output)
            spectrum = known.get(label, Known())
            number = Known("float64", (), is_ragged=False)
            dtype = {True: "int32", False: "float64"}[spectrum.dtype in INTEGERS]
            learned |= {centroid: number, total: number}
            learned[corrected] = spectrum.with_(dtype=dtype if spectrum.dtype else "")
        return learned

    def misfits(self, known: Knowledge) -> Iterator[Finding]:
        """Yield what is no spectrum, or too short."""
        for i, label in enumerate(self.inputs):
            value = known[label]
            if value.is_text or value.is_ragged or value.ndim not in (None, 1):
                yield ("inputs", i), "is not a spectrum of one axis", label
            elif value.shape is not None and value.ndim is not None:
                least = max(self.baseline_start + 1, self.window[1])
                if value.shape[0] < least:
                    text = f"has {value.shape[0]} samples, less than {least}"
                    yield ("inputs", i), text, label


def window_labels(channel: str, separator: str = "_") -> tuple[str, str, str]:
    """Return the names of the starts, lengths and samples of a channel's windows."""
    begin = f"{channel}{separator}"
    return f"{begin}starts", f"{begin}lengths", f"{begin}samples"


def arrival_labels(channel: str) -> tuple[str, str, str]:
    """Return the names of the times, slopes and numbers of edges of a channel."""
    return f"{channel}_tofs", f"{channel}_slopes", f"{channel}_nedges"


def centroid_labels(spectrum: str) -> tuple[str, str, str]:
    """Return the names of the centroid, the sum and the corrected samples of a spectrum."""
    return f"{spectrum}_centroid", f"{spectrum}_sum", f"{spectrum}_corrected"


def _of_unknown_channels(
    field: str, given: dict[str, float], inputs: list[str]
) -> Iterator[Finding]:
    for label in given:
        if label not in inputs:
            yield (field, label), f"is not one of the inputs{near(label, inputs)}", given[label]
