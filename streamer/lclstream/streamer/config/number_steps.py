"""What can be done to numbers: the models of the steps that replace, convert and correct them."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lclstream.streamer.config.known import FLOATS, INTEGERS, Known
from lclstream.streamer.config.masks import MaskConfig, mask_reads
from lclstream.streamer.config.pixel_steps import ImageStep, Size, panel_objections
from lclstream.streamer.config.steps import MapStep, Place

NumberType = Literal[
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64",
]  # fmt: skip
OutOfRange = Literal["error", "clip", "wrap"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class MaskPixelsConfig(MapStep):
    """Give bad pixels a value that says so."""

    implementation: ClassVar = "lclstream.streamer.steps.masking:MaskPixels"
    type: Literal["MaskPixels"] = "MaskPixels"
    mask: MaskConfig
    fill: float = 0.0
    """What bad pixels get; may be `.nan` with floats."""

    def reads(self) -> Iterator[tuple[Place, str]]:
        """Yield the inputs and the mask."""
        yield from super().reads()
        yield from mask_reads(self.mask)

    def objections(self, known: Known) -> Iterator[str]:
        """Yield why it cannot be done to one value."""
        yield from super().objections(known)
        if not known.holds(self.fill):
            yield f"is {known.dtype}, which cannot hold fill = {self.fill}"


class ThresholdConfig(MapStep):
    """Replace what is below (or above) a limit; NaN stays."""

    implementation: ClassVar = "lclstream.streamer.steps.masking:Threshold"
    type: Literal["Threshold"] = "Threshold"
    minimum: Finite | None = None
    """What is less than this becomes `fill`."""
    maximum: Finite | None = None
    """What is more than this becomes `fill`."""
    fill: float = 0.0

    @model_validator(mode="after")
    def _limited(self) -> "ThresholdConfig":
        if self.minimum is None and self.maximum is None:
            raise ValueError("needs a minimum, a maximum or both")
        return self

    def objections(self, known: Known) -> Iterator[str]:
        """Yield why it cannot be done to one value."""
        yield from super().objections(known)
        if not known.holds(self.fill):
            yield f"is {known.dtype}, which cannot hold fill = {self.fill}"


class ConvertTypeConfig(MapStep):
    """Change the dtype of numbers: result = input * scale + offset, rounded for integers."""

    implementation: ClassVar = "lclstream.streamer.steps.conversion:ConvertType"
    type: Literal["ConvertType"] = "ConvertType"
    dtype: NumberType
    scale: float = Field(default=1.0, allow_inf_nan=False)
    offset: float = Field(default=0.0, allow_inf_nan=False)
    """In the units of the result."""
    rounding: Literal["nearest", "down", "up", "toward_zero"] = "nearest"
    """Of integers; `nearest` rounds halves to even numbers."""
    out_of_range: OutOfRange = "error"
    """What happens to numbers that the dtype cannot hold (of floats, also to integers that are
    too large to be exact): the run fails, they become the nearest number that it can hold, or
    (integers only) their upper bits are lost."""
    nan: float | None = None
    """What NaN becomes as an integer; without it, the run fails."""

    @model_validator(mode="after")
    def _possible(self) -> "ConvertTypeConfig":
        if self.dtype in FLOATS and self.out_of_range == "wrap":
            raise ValueError("out_of_range: wrap is for integers only")
        if self.nan is not None and not Known(self.dtype).holds(self.nan):
            raise ValueError(f"nan: {self.dtype} cannot hold {self.nan}")
        return self

    def changed(self, known: Known) -> Known:
        """Return what is known of the result."""
        return known.with_(dtype=self.dtype)


class PhotonCountsConfig(MapStep):
    """Turn the signal of a detector into numbers of photons: (input - offset) / gain, rounded."""

    implementation: ClassVar = "lclstream.streamer.steps.conversion:PhotonCounts"
    type: Literal["PhotonCounts"] = "PhotonCounts"
    gain: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """What one photon adds to a pixel, in the units of the input (ADU, keV)."""
    gain_file: str = ""
    """NumPy file (.npy) with the gain of every pixel, in place of one number."""
    offset: float = Field(default=0.0, allow_inf_nan=False)
    """What a pixel without photons reads."""
    least: float = Field(default=0.5, ge=0, le=1)
    """Fraction of a photon's signal from which it is counted: 0.5 rounds, 1 counts whole ones."""
    dtype: NumberType = "uint16"
    out_of_range: Literal["error", "clip"] = "error"
    """What happens to more photons than the dtype can hold. Less than none is none."""
    nan: float | None = None
    """What NaN becomes as an integer; without it, the run fails."""

    @model_validator(mode="after")
    def _one_gain(self) -> "PhotonCountsConfig":
        if (self.gain is None) == (not self.gain_file):
            raise ValueError("needs either gain or gain_file")
        if self.nan is not None and not Known(self.dtype).holds(self.nan):
            raise ValueError(f"nan: {self.dtype} cannot hold {self.nan}")
        return self

    def changed(self, known: Known) -> Known:
        """Return what is known of the result."""
        return known.with_(dtype=self.dtype)


class CommonModeConfig(ImageStep):
    """Subtract what whole panels, rows or columns have in common, such as electronic noise.

    Integers become float32, or float64 where that cannot hold them.
    """

    implementation: ClassVar = "lclstream.streamer.steps.common_mode:CommonMode"
    type: Literal["CommonMode"] = "CommonMode"
    over: Literal["panel", "row", "column"] = "panel"
    """What has a common mode of its own."""
    method: Literal["median", "mean"] = "median"
    below: Finite | None = None
    """Only pixels below this count, so that light does not; in the units of the input."""
    panel_shape: Size | None = None
    """Rows and columns of one panel or ASIC; without it, the last two axes are one panel."""
    mask: MaskConfig | None = None
    """Bad pixels do not count, but are changed like the others."""
    least_pixels: int = Field(default=16, ge=1)
    """What has fewer pixels that count stays as it is."""

    def reads(self) -> Iterator[tuple[Place, str]]:
        """Yield the inputs and the mask."""
        yield from super().reads()
        yield from mask_reads(self.mask)

    def shape_objections(self, shape: tuple[int, ...]) -> Iterator[str]:
        """Yield which axis is no multiple."""
        if self.panel_shape is not None:
            yield from panel_objections(shape, self.panel_shape)

    def changed(self, known: Known) -> Known:
        """Return what is known of the result."""
        if known.dtype not in INTEGERS:
            return known
        return known.with_(dtype="float32" if INTEGERS[known.dtype][1] < 1 << 16 else "float64")
