"""Which datasets the messages of one form have."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.batching import Column, Form
from lclstream.streamer.serializers.codecs import Codec
from lclstream.streamer.serializers.codecs.workers import Workers
from lclstream.streamer.serializers.hdf5_layout import Item
from lclstream.streamer.serializers.hdf5_template import Dataset

GROUP = "/lclstream"
EVENT_INDEX, TIMESTAMP, STEP, SEQUENCE = (
    f"{GROUP}/{name}" for name in ("event_index", "timestamp", "step", "sequence")
)
# Attribute of a mask: the path of its dataset. And of ragged values: that of their offsets.
MASKED, OFFSETS, UNITS = "dataset", "offsets", "units"
# Rows from this size on are sent from where they lie; below, they are copied into the header.
KEPT_BYTES = 32 << 10
# Rows below this size are not worth compressing.
LEAST_PACKED_BYTES = 64
# Chunks of ragged values are about so large.
RAGGED_CHUNK_BYTES = 64 << 10

NUMBER = np.dtype(np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What all messages of a serializer have in common."""

    paths: Mapping[str, str]
    """By label."""
    units: Mapping[str, str]
    """By label; only of what has any."""
    identification: bool
    codec: Codec | None
    workers: Workers
    """The threads that compress."""
    in_one_piece: bool = False
    """Whether who sends the messages would have to copy pieces together."""


def items_of(recipe: Recipe, form: Form) -> dict[str, Item]:
    """Return the datasets by path, in the order of their data.

    Raises:
        InvalidConfigError: two of them would have the same path.
    """
    found: dict[str, Item] = {}
    for path, item in _items(recipe, form):
        if path in found:
            raise InvalidConfigError(
                f"two datasets would be at {path}: ragged values have their offsets at their own"
                " path with _offsets behind it; choose other fields"
            )
        found[path] = item
    return found


def mask_path(label: str) -> str:
    """Return where the mask of a label lies."""
    return f"{GROUP}/valid/{label.strip('/')}"


def offsets_path(path: str) -> str:
    """Return where the offsets of ragged values lie."""
    return f"{path}_offsets"


def _items(recipe: Recipe, form: Form) -> Iterator[tuple[str, Item]]:
    for column in form.columns:
        path = recipe.paths[column.label]
        units = recipe.units.get(column.label) if recipe.identification else None
        attributes: dict[str, object] = {UNITS: units} if units else {}
        if column.is_ragged:
            yield path, _ragged(recipe, column, attributes | {OFFSETS: offsets_path(path)})
            yield offsets_path(path), Item(dataset=Dataset(dtype=NUMBER), inside=True, more_rows=1)
        else:
            yield path, _fixed(recipe, column, attributes)
    if recipe.identification:
        yield from _identification(recipe, form)


def _fixed(recipe: Recipe, column: Column, attributes: Mapping[str, object]) -> Item:
    size, codec = column.event_bytes, recipe.codec
    is_suited = codec is not None and codec.suits(column.dtype, column.shape)
    filters = tuple(codec.filters(column.dtype)) if codec and is_suited and size else ()
    dataset = Dataset(
        dtype=column.dtype,
        shape=column.shape,
        chunk_rows=1 if size else 0,
        filters=filters,
        attributes=attributes,
    )
    if filters:
        return Item(dataset=dataset, inside=size < LEAST_PACKED_BYTES)
    return Item(dataset=dataset, inside=recipe.in_one_piece or size < KEPT_BYTES)


def _ragged(recipe: Recipe, column: Column, attributes: Mapping[str, object]) -> Item:
    size, codec = column.event_bytes, recipe.codec
    chunk_rows = max(1, RAGGED_CHUNK_BYTES // max(size, 1))
    chunk_shape = (chunk_rows, *column.shape)
    is_suited = codec is not None and codec.suits(column.dtype, chunk_shape)
    filters = tuple(codec.filters(column.dtype)) if codec and is_suited and size else ()
    dataset = Dataset(
        dtype=column.dtype,
        shape=column.shape,
        chunk_rows=chunk_rows if filters else 0,
        filters=filters,
        attributes=attributes,
    )
    return Item(dataset=dataset, inside=False, is_ragged=True)


def _identification(recipe: Recipe, form: Form) -> Iterator[tuple[str, Item]]:
    for path, dtype in ((EVENT_INDEX, NUMBER), (TIMESTAMP, NUMBER), (STEP, np.dtype(np.uint32))):
        yield path, Item(dataset=Dataset(dtype=dtype), inside=True)
    yield SEQUENCE, Item(dataset=Dataset(dtype=NUMBER), inside=True, rows=1)
    for label in form.labels if form.with_masks else ():
        dataset = Dataset(dtype=np.dtype(np.uint8), attributes={MASKED: recipe.paths[label]})
        yield mask_path(label), Item(dataset=dataset, inside=True)
