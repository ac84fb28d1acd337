"""What can be done to frames: the models of the steps that choose, join and arrange pixels."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from lclstream.streamer.config.known import INTEGERS, Knowledge, Known
from lclstream.streamer.config.masks import MaskConfig, mask_reads
from lclstream.streamer.config.registry import Finding
from lclstream.streamer.config.steps import Label, Labels, MapStep, Place, ValueStep


def _ascending(value: tuple[int, int]) -> tuple[int, int]:
    if value[0] >= value[1]:
        raise ValueError(f"must end behind its begin, got {list(value)}")
    return value


Span = Annotated[
    tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]], AfterValidator(_ascending)
]
"""First, and first no more."""
Size = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
"""Rows and columns."""


class ImageStep(MapStep):
    """A step on arrays whose last two axes are rows and columns."""

    def objections(self, known: Known) -> Iterator[str]:
        """Yield why something is no image, or what `misfit` finds."""
        if known.is_text or known.is_ragged or (known.ndim is not None and known.ndim < 2):
            yield "is not an array with rows and columns"
        elif known.ndim is not None and known.shape is not None:
            yield from self.shape_objections(known.shape)

    def shape_objections(self, shape: tuple[int, ...]) -> Iterator[str]:
        """Yield why it cannot be done to images of this shape."""
        del shape
        return iter(())


class CropConfig(ImageStep):
    """Cut a region of interest out of images; of stacks, out of every panel."""

    implementation: ClassVar = "lclstream.streamer.steps.shapes:Crop"
    type: Literal["Crop"] = "Crop"
    rows: Span | None = None
    """First row, and first row no more; without it, all."""
    columns: Span | None = None
    """First column, and first column no more; without it, all."""

    @model_validator(mode="after")
    def _something(self) -> "CropConfig":
        if self.rows is None and self.columns is None:
            raise ValueError("needs rows, columns or both")
        return self

    @property
    def spans(self) -> tuple[tuple[str, Span | None], ...]:
        """The two axes, rows first."""
        return (("rows", self.rows), ("columns", self.columns))

    def shape_objections(self, shape: tuple[int, ...]) -> Iterator[str]:
        """Yield which axis is too short."""
        for (name, span), size in zip(self.spans, shape[-2:], strict=True):
            if span is not None and span[1] > size:
                yield f"has only {size} {name}, so that {name} {list(span)} do not exist"

    def changed(self, known: Known) -> Known:
        """Return what is known of the region."""
        if known.shape is None:
            return known
        sizes = [
            size if span is None else span[1] - span[0]
            for (_, span), size in zip(self.spans, known.shape[-2:], strict=False)
        ]
        return known.with_(shape=(*known.shape[:-2], *sizes))


class BinConfig(ImageStep):
    """Join neighbouring pixels into one, as their sum or mean; of stacks, in every panel."""

    implementation: ClassVar = "lclstream.streamer.steps.binning:Bin"
    type: Literal["Bin"] = "Bin"
    rows: int = Field(default=1, ge=1)
    """Pixels that are joined along the rows' axis (downwards)."""
    columns: int = Field(default=1, ge=1)
    """Pixels that are joined along the columns' axis (across)."""
    method: Literal["sum", "mean"] = "sum"
    """Sums of integers are wide enough for the largest sum; means are floats."""
    mask: MaskConfig | None = None
    """Bad pixels take no part: a sum is that of the good ones, a mean divides by their number."""
    empty: float = 0.0
    """What pixels without any good pixel get; may be `.nan` with floats."""
    remainder: Literal["error", "crop"] = "error"
    """What happens to rows and columns at the end that fill no whole pixel."""

    @model_validator(mode="after")
    def _joins(self) -> "BinConfig":
        if self.rows * self.columns == 1:
            raise ValueError("rows or columns must be more than 1")
        return self

    def reads(self) -> Iterator[tuple[Place, str]]:
        """Yield the inputs and the mask."""
        yield from super().reads()
        yield from mask_reads(self.mask)

    def result_dtype(self, dtype: str) -> str:
        """Return the dtype of the result."""
        if dtype != "bool" and dtype not in INTEGERS:
            return "float32" if dtype == "float16" else dtype
        low, high = INTEGERS.get(dtype, (0, 1))
        if self.method == "mean":
            return "float32" if high < 1 << 16 else "float64"
        joined = self.rows * self.columns
        sign = "int" if low else "uint"
        for bits in (8, 16, 32):
            lowest, highest = INTEGERS[f"{sign}{bits}"]
            if lowest <= low * joined and high * joined <= highest:
                return f"{sign}{bits}"
        return f"{sign}64"

    def shape_objections(self, shape: tuple[int, ...]) -> Iterator[str]:
        """Yield which axis is no multiple."""
        for name, size, joined in zip(
            ("rows", "columns"), shape[-2:], (self.rows, self.columns), strict=True
        ):
            if size < joined:
                yield f"has only {size} {name}"
            elif size % joined and self.remainder == "error":
                yield (
                    f"has {size} {name}, not a multiple of {joined}; `remainder: crop` leaves out "
                    "the rest"
                )

    def objections(self, known: Known) -> Iterator[str]:
        """Yield why it cannot be done to one value."""
        yield from super().objections(known)
        if (
            self.mask
            and known.dtype
            and not Known(self.result_dtype(known.dtype)).holds(self.empty)
        ):
            yield f"gives {self.result_dtype(known.dtype)}, which cannot hold empty = {self.empty}"

    def changed(self, known: Known) -> Known:
        """Return what is known of the result."""
        dtype = self.result_dtype(known.dtype)
        if known.shape is None or len(known.shape) < 2:
            return known.with_(dtype=dtype)
        *before, rows, columns = known.shape
        shape = (*before, rows // self.rows, columns // self.columns)
        return known.with_(dtype=dtype, shape=shape)


class SelectPanelsConfig(MapStep):
    """Keep some panels of stacks (panels, ...), in the order given."""

    implementation: ClassVar = "lclstream.streamer.steps.shapes:SelectPanels"
    type: Literal["SelectPanels"] = "SelectPanels"
    panels: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    """Numbers from 0."""

    def objections(self, known: Known) -> Iterator[str]:
        """Yield why it cannot be done to one value."""
        if known.is_ragged or (known.ndim is not None and known.ndim < 2):
            yield "is not a stack of panels"
        elif known.ndim is not None and known.shape is not None:
            missing = [panel for panel in self.panels if panel >= known.shape[0]]
            if missing:
                yield f"has {known.shape[0]} panels, not those numbered {missing}"

    def changed(self, known: Known) -> Known:
        """Return what is known of the result."""
        if not known.shape:
            return known
        return known.with_(shape=(len(self.panels), *known.shape[1:]))


class SplitPanelsConfig(ImageStep):
    """Take images apart into equal panels, row by row: (panels, rows, columns)."""

    implementation: ClassVar = "lclstream.streamer.steps.shapes:SplitPanels"
    type: Literal["SplitPanels"] = "SplitPanels"
    panel_shape: Size
    """Rows and columns of one panel."""

    def shape_objections(self, shape: tuple[int, ...]) -> Iterator[str]:
        """Yield which axis is no multiple."""
        yield from panel_objections(shape, self.panel_shape)

    def changed(self, known: Known) -> Known:
        """Return what is known of the result."""
        if known.shape is None or len(known.shape) < 2:
            return known
        pixels = 1
        for size in known.shape:
            pixels *= size
        rows, columns = self.panel_shape
        return known.with_(shape=(pixels // (rows * columns), rows, columns))


class StackValuesConfig(ValueStep):
    """Put several values of one shape and dtype into one array, along a new first axis."""

    implementation: ClassVar = "lclstream.streamer.steps.shapes:StackValues"
    type: Literal["StackValues"] = "StackValues"
    inputs: Labels
    output: Label
    keep_inputs: bool = False
    """Whether the inputs stay, too."""

    def reads(self) -> Iterator[tuple[Place, str]]:
        """Yield the inputs."""
        return ((("inputs", i), label) for i, label in enumerate(self.inputs))

    def makes(self) -> Iterator[tuple[Place, str]]:
        """Yield the stack."""
        yield ("output",), self.output

    def removes(self) -> tuple[str, ...]:
        """Return the inputs."""
        return () if self.keep_inputs else tuple(self.inputs)

    def misfits(self, known: Knowledge) -> Iterator[Finding]:
        """Yield which value differs from the first."""
        first = known[self.inputs[0]]
        for i, label in enumerate(self.inputs):
            value = known[label]
            if value.is_ragged:
                yield ("inputs", i), "has a number of readings that varies", label
            for name in ("dtype", "shape"):
                mine, other = getattr(value, name), getattr(first, name)
                if mine and other and mine != other:
                    text = f"has {name} {mine}, but {self.inputs[0]!r} has {other}"
                    yield ("inputs", i), text, label

    def learned(self, known: Knowledge) -> dict[str, Known]:
        """Return what is known of the stack."""
        first = known.get(self.inputs[0], Known())
        shape: Any = None if first.ndim is None else (len(self.inputs), *(first.shape or ()))
        return {self.output: Known(first.dtype, shape, is_ragged=False)}


def panel_objections(shape: tuple[int, ...], panel_shape: Size) -> Iterator[str]:
    """Yield why images of this shape are not made of such panels."""
    for name, size, panel in zip(("rows", "columns"), shape[-2:], panel_shape, strict=True):
        if size % panel or size == 0:
            yield f"has {size} {name}, not a multiple of {panel}"
