"""What every part of the benchmark is told."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """How long to measure."""

    repetitions: int
    """How often every case is measured; the cases take turns."""
    window_s: float
    """Processor time of one measurement of one case, about."""
