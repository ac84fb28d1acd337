"""What decides whether something is a Bragg peak, and an event a hit."""

from pydantic import Field, model_validator

from lclstream.core.models import StrictModel


class PeakSettings(StrictModel):
    """Limits of the peak finder."""

    snr: float = Field(default=5.0, gt=0)
    """A pixel belongs to a peak when it is this many sigma above its background."""
    threshold: float = Field(default=0.0, ge=0)
    """Least height of such a pixel above its background, in the units of the frame."""
    min_pixels: int = Field(default=2, ge=1)
    """Fewest connected pixels of a peak."""
    max_pixels: int = Field(default=60, ge=1)
    """Most connected pixels of a peak; more are a ring, a shadow's edge or a bad region."""
    min_peaks: int = Field(default=10, ge=1)
    """Fewest peaks of a hit."""
    tile: int = Field(default=32, ge=8, le=512)
    """Edge in pixels of the squares in which background mean and sigma are measured."""

    @model_validator(mode="after")
    def _ordered(self) -> "PeakSettings":
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels must be <= max_pixels, got {self.min_pixels}")
        return self
