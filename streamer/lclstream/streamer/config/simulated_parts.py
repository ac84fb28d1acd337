"""More detectors of a simulated experiment: cameras and digitisers."""

from typing import Self

from pydantic import Field, model_validator

from lclstream.core.models import StrictModel


class SimulatedCamera(StrictModel):
    """Another area detector in the same beam; it sees the same crystals."""

    name: str = Field(min_length=1)
    """Under which data sources find it; it has the fields of the first detector."""
    panels: int = Field(default=1, ge=1, le=256)
    shape: tuple[int, int] = (256, 256)
    """Rows and columns of one panel."""
    distance_mm: float = Field(default=250.0, gt=0)
    """Sample to detector."""
    pixel_um: float = Field(default=100.0, gt=0)
    peaks: int = Field(default=60, ge=0)
    """Bragg peaks of a hit at most."""
    background_photons: float = Field(default=1.0, ge=0, le=100)
    """Mean photons per pixel and event, without peaks."""
    bad_pixels: float = Field(default=0.001, ge=0, le=0.5)
    """Fraction of the pixels that are dead or hot."""
    missing_frames: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the events without a frame of it."""


class SimulatedDigitizer(StrictModel):
    """A waveform digitiser at electron time-of-flight spectrometers, as TMO's HSD.

    Each segment has a channel 0: `raw.waveforms.<segment>.0` are its samples (uint16) and
    `raw.waveforms.<segment>.times` their times in seconds. `raw.peaks.<segment>.0` followed by
    `.starts`, `.lengths` or `.samples` are the windows around pulses, as the digitiser finds
    them itself: ragged, all samples one window after the other.
    """

    name: str = Field(default="hsd", min_length=1)
    segments: tuple[int, ...] = Field(default=(0,), min_length=1, max_length=64)
    """Numbers of the segments, such as the angles of the spectrometers."""
    samples: int = Field(default=4096, ge=64, le=1 << 22)
    """Of one waveform."""
    rate_ghz: float = Field(default=6.0, gt=0)
    """Samples per nanosecond."""
    baseline_adu: int = Field(default=2048, ge=0, le=65535)
    converters: int = Field(default=4, ge=1, le=64)
    """Interleaved converters, each with an offset of its own."""
    converter_offset_adu: float = Field(default=12.0, ge=0)
    """How far these offsets are from the baseline at most."""
    noise_adu: float = Field(default=4.0, ge=0)
    """Width of the noise."""
    highest_adu: int = Field(default=4095, ge=1, le=65535)
    """Where the converters saturate."""
    hits: float = Field(default=5.0, ge=0, le=1000)
    """Mean pulses in a waveform."""
    lines: tuple[float, ...] = (0.3, 0.42, 0.7)
    """Where electrons of one energy arrive, as fractions of the waveform; half of the pulses are
    there, the others anywhere."""
    pulse_adu: tuple[float, float] = (150.0, 1400.0)
    """Smallest and largest height of a pulse."""
    pulse_samples: float = Field(default=2.5, gt=0, le=1000)
    """Width of a pulse."""
    threshold_adu: float = Field(default=60.0, gt=0)
    """Above the baseline: a window is around what is higher."""
    before: int = Field(default=16, ge=0)
    """Samples of a window in front of that."""
    after: int = Field(default=16, ge=0)
    """Samples of a window behind it. Windows that touch become one."""
    markers: bool = True
    """Whether the first window is the begin of the waveform, for the baseline, and the last two
    are empty ones at its end, as the digitiser has it."""
    marker_samples: int = Field(default=64, ge=1)
    missing: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the events without the waveform of a given segment."""

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if len(set(self.segments)) < len(self.segments) or min(self.segments) < 0:
            raise ValueError("segments must be different numbers, 0 or more")
        if not all(0 <= line < 1 for line in self.lines):
            raise ValueError("lines must be fractions of the waveform, 0 to less than 1")
        if not 0 <= self.pulse_adu[0] <= self.pulse_adu[1]:
            raise ValueError("pulse_adu must be the smallest and the largest height")
        return self
