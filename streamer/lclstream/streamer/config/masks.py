"""Which pixels are good: how steps that look at pixels are told."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from lclstream.core.models import StrictModel
from lclstream.streamer.config.steps import Place


class MaskConfig(StrictModel):
    """Which pixels are good: an array of the shape of the frames, from a file or an event."""

    file: str = ""
    """NumPy file (.npy, .npz) or HDF5 file with one mask for all events."""
    dataset: str = ""
    """Name of the array in an .npz file, or its path in an HDF5 file."""
    value: str = ""
    """Name of the value that is the mask of each event, such as a mask or status."""
    good: Literal["nonzero", "zero"] = "nonzero"
    """What marks a good pixel: `nonzero` of masks, `zero` of status words."""
    bits: int = Field(default=0, ge=0, lt=1 << 64)
    """Of integers, look at these bits only; 0 = at all."""

    @model_validator(mode="after")
    def _one_origin(self) -> "MaskConfig":
        if bool(self.file) == bool(self.value):
            raise ValueError("needs either file or value")
        if self.dataset and not self.file:
            raise ValueError("dataset needs a file")
        if self.file and not self.dataset and not self.file.endswith(".npy"):
            raise ValueError(f"dataset must say where the mask is in {self.file!r}")
        return self

    def reads(self, place: Place) -> Iterator[tuple[Place, str]]:
        """Yield the value that is the mask, if one is; `place` is where this is written."""
        if self.value:
            yield (*place, "value"), self.value


def mask_reads(mask: MaskConfig | None) -> Iterator[tuple[Place, str]]:
    """Yield what a mask that may not be there reads, for a field called `mask`."""
    return iter(()) if mask is None else mask.reads(("mask",))
