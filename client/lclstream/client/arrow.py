"""Decodes messages that are Arrow IPC streams; a row = an event.

Columns whose data lie in the message as numpy has them are not copied: the arrays are read-only
views of the message. Nulls are the missing readings.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lclstream.client.batches import Array, Batch, Ragged
from lclstream.client.named import dtype_of
from lclstream.core.errors import DecodeError

SIGNATURE = b"\xff\xff\xff\xff"
GROUP = "lclstream/"
DTYPE, SHAPE, UNITS = b"lclstream.dtype", b"lclstream.shape", b"lclstream.units"
# What pyarrow raises for damaged messages, depending on where the damage is.
ARROW_ERRORS = (
    pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError,
)  # fmt: skip


def decode(payload: bytes | bytearray | memoryview, fields: Collection[str] | None = None) -> Batch:
    """Decode one message.

    Args:
        payload: the message; arrays of the result may be views of it.
        fields: columns to decode; None for all. Names that the message does not have are left out.

    Raises:
        DecodeError: the message is no Arrow stream, is damaged, or has columns that are neither
            numbers nor text.
    """
    view = memoryview(payload).cast("B")
    try:
        with pa.ipc.open_stream(pa.py_buffer(view)) as stream:
            table = stream.read_all()
        table.validate(full=True)
        return _batch(table, fields, len(view))
    except ARROW_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DecodeError(f"damaged Arrow message of {len(view)} bytes: {reason}") from error


def _batch(table: pa.Table, fields: Collection[str] | None, size_bytes: int) -> Batch:
    names = table.column_names
    if len(set(names)) < len(names):
        raise DecodeError("the message has two columns of one name")
    arrays: dict[str, Array] = {}
    ragged: dict[str, Ragged] = {}
    valid: dict[str, npt.NDArray[np.uint8]] = {}
    for field in table.schema:
        name = field.name
        if name.startswith(GROUP) or (fields is not None and name not in fields):
            continue
        column = _one(table[name])
        if column.null_count:
            valid[name] = np.asarray(column.is_valid(), np.uint8)
        if pa.types.is_null(column.type):
            continue
        values = _values(column, name, field.metadata or {})
        if isinstance(values, Ragged):
            ragged[name] = values
        else:
            arrays[name] = values
    metadata = {key.decode(): each.decode("utf-8", "replace") for key, each in _metadata(table)}
    return Batch(
        arrays=arrays,
        ragged=ragged,
        count=table.num_rows,
        indices=_numbers(table, "event_index"),
        timestamps=_numbers(table, "timestamp"),
        steps=_numbers(table, "step"),
        valid=valid,
        units={
            field.name: field.metadata[UNITS].decode("utf-8", "replace")
            for field in table.schema
            if UNITS in (field.metadata or {})
        },
        experiment=metadata.get("lclstream.experiment", ""),
        run=_integer(metadata, "run"),
        rank=_integer(metadata, "rank"),
        sequence=_integer(metadata, "sequence"),
        size_bytes=size_bytes,
    )


def _metadata(table: pa.Table) -> Any:
    return (table.schema.metadata or {}).items()


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _values(column: pa.Array, name: str, metadata: Mapping[bytes, bytes]) -> Array | Ragged:
    if not (pa.types.is_large_list(column.type) or pa.types.is_list(column.type)):
        return _fixed(column, name, metadata)
    offsets = np.asarray(column.offsets).astype(np.uint64)
    first, last = int(offsets[0]), int(offsets[-1])
    values = _fixed(column.values[first:last], name, metadata)
    return Ragged(values, offsets - np.uint64(first))


def _fixed(column: pa.Array, name: str, metadata: Mapping[bytes, bytes]) -> Array:
    """Return a column whose values are all of one shape."""
    dtype = dtype_of(metadata[DTYPE].decode()) if DTYPE in metadata else None
    if isinstance(column, pa.FixedShapeTensorArray):
        array = _items(column.storage, name).reshape(len(column), *column.type.shape)
    elif pa.types.is_fixed_size_list(column.type):
        shape = [int(size) for size in metadata.get(SHAPE, b"-1").split(b"x")]
        array = _items(column, name).reshape(len(column), *shape)
    else:
        array = _flat(column, name)
    if dtype is None or dtype == array.dtype:
        return array
    if dtype.kind == "c":
        joined: Array = np.ascontiguousarray(array).view(dtype.newbyteorder("="))
        array = joined.reshape(array.shape[:-1])
    return array.astype(dtype)


def _items(column: pa.Array, name: str) -> Array:
    """Return the items of lists of one length, those of nulls too."""
    size = column.type.list_size
    start = column.offset * size
    return _flat(column.values[start : start + len(column) * size], name)


def _flat(column: pa.Array, name: str) -> Array:
    kind, count = column.type, len(column)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        texts = [b"None" if each is None else each for each in column.cast(pa.binary()).to_pylist()]
        return np.array(texts, f"S{max(map(len, texts), default=1) or 1}")
    data = column.buffers()[-1] if pa.types.is_primitive(kind) else None
    if not pa.types.is_primitive(kind) or pa.types.is_temporal(kind):
        raise DecodeError(f"column {name!r} of the message is of {kind}, which is not understood")
    if pa.types.is_boolean(kind):
        if data is None:
            return np.zeros(count, np.bool_)
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        return bits[column.offset : column.offset + count].view(np.bool_)
    dtype = np.dtype(kind.to_pandas_dtype())
    if data is None or not count:
        return np.zeros(count, dtype)
    array: Array = np.frombuffer(data, dtype, count, column.offset * dtype.itemsize)
    array.flags.writeable = False
    return array


def _numbers(table: pa.Table, name: str) -> npt.NDArray[np.uint64] | None:
    if GROUP + name not in table.column_names:
        return None
    array = _flat(_one(table[GROUP + name]), GROUP + name)
    if array.dtype.kind not in "iu":
        raise DecodeError(f"column {GROUP + name!r} must hold integers, got {array.dtype}")
    return array.astype(np.uint64, copy=False)


def _integer(metadata: Mapping[str, str], name: str) -> int | None:
    text = metadata.get(f"lclstream.{name}", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 21 else None
