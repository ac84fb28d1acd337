"""What a configuration will do, in words: what is read, what is sent, where it goes.

Only the configuration is asked, so of what a detector gives mostly the name is known; `check
--read` looks at the first event.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lclstream.streamer.config.known import Known
from lclstream.streamer.config.processing import StepsPipeline

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters

UNITS = ("B", "kB", "MB", "GB", "TB")
ITEM_BYTES = {"bool": 1} | {
    f"{kind}{bits}": bits // 8
    for kind in ("int", "uint", "float", "complex")
    for bits in (8, 16, 32, 64, 128)
}


@dataclass(frozen=True, slots=True)
class Expected:
    """One value of the messages, as far as it is known."""

    dtype: str = ""
    shape: tuple[int, ...] | None = None
    """Of one event, or of one of its readings where their number varies."""
    is_ragged: bool = False

    @property
    def event_bytes(self) -> int | None:
        """Bytes of one event, before compression; None: unknown."""
        if self.shape is None or self.is_ragged or self.dtype not in ITEM_BYTES:
            return None
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def __str__(self) -> str:
        """Return it as people write it, e.g. `uint16 x 512 x 1024`."""
        dtype = {"str": "text"}.get(self.dtype, self.dtype)
        if self.shape is None:
            return f"{dtype}, of the shape that is read" if dtype else "as it is read"
        dtype = dtype or "dtype as it is read"
        varying = ["(number varies)"] if self.is_ragged else []
        return " x ".join([dtype, *varying, *map(str, self.shape)])


def expected_values(parameters: "Parameters") -> dict[str, Expected]:
    """Return what the configuration alone tells about the values that reach the serializer."""
    pipeline = parameters.processing_pipeline
    known: Mapping[str, Known] = {}
    if isinstance(pipeline, StepsPipeline):
        known = pipeline.known_behind(parameters.sources_by_label)
    return {
        label: Expected(each.dtype, each.shape, bool(each.is_ragged))
        for label in parameters.labels
        for each in (known.get(label, Known()),)
    }


def summary(parameters: "Parameters", values: Mapping[str, Expected]) -> Iterator[str]:
    """Yield what a configuration does, line by line.

    Args:
        parameters: the configuration.
        values: what is known about the values that reach the serializer.
    """
    source, pipeline = parameters.event_source.type, parameters.processing_pipeline
    yield f"reads: {source} {parameters.source_identifier}".rstrip()
    for number, step in enumerate(pipeline.all_steps()):
        yield f"step {number}: {step.type}"
    yield f"sends: {pipeline.batch_size} event{'s'[: pipeline.batch_size != 1]} in a message"
    names = parameters.data_serializer.names_in_messages(parameters)
    sent = {label: values[label] for label in names if label in values}
    shown = {
        label: label if names[label] == label else f"{label} -> {names[label]}" for label in sent
    }
    width = max(map(len, shown.values()), default=0)
    for label, value in sent.items():
        size = value.event_bytes
        bytes_each = f", {readable(size)}" if size is not None else ""
        yield f"  {shown[label]:{width}}  {value}{bytes_each}"
    yield f"  {_size(sent, pipeline.batch_size)}"
    yield f"as: {parameters.data_serializer.type}"
    for handler in parameters.data_handlers:
        yield f"to: {handler.type} {_where(handler)}".rstrip()
    if not parameters.data_handlers:
        yield "to: nobody; messages are made and discarded"


def readable(size: float) -> str:
    """Return a number of bytes for people."""
    power = min(int(math.log(max(size, 1), 1000)), len(UNITS) - 1)
    return f"{size / 1000**power:.3g} {UNITS[power]}"


def _size(values: Mapping[str, Expected], batch_size: int) -> str:
    sizes = [value.event_bytes for value in values.values()]
    total = batch_size * sum(size for size in sizes if size is not None)
    unknown = sum(size is None for size in sizes)
    more = f", and what {unknown} of the values hold" if unknown else ""
    return f"in all {readable(total)} of data in a message{more}, before compression"


def _where(handler: object) -> str:
    """Return where a handler sends messages, as far as its fields tell."""
    if urls := getattr(handler, "urls", None) or getattr(handler, "url", None):
        how = [str(getattr(handler, name, "")) for name in ("library", "role")]
        return " ".join(filter(None, [*how, *([urls] if isinstance(urls, str) else urls)]))
    return str(getattr(handler, "write_directory", ""))
