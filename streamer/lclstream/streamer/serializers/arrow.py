"""Messages that are Arrow IPC streams of one record batch each; a row = an event.

| value of one event | column |
|---|---|
| number | of its type |
| array | `arrow.fixed_shape_tensor` of its shape |
| complex number | `arrow.fixed_shape_tensor` whose last axis is real and imaginary part |
| text | string; binary where it is not UTF-8 |
| array of text | fixed-size list of strings |
| readings of a number that varies | large list of the above |

A missing reading is null. `lclstream.dtype` in a field's metadata is NumPy's name of what was
sent, where Arrow's type does not say it, `lclstream.shape` the shape of an array of text, and
`lclstream.units` the units where the configuration says them.

What identifies the events are the columns `lclstream/event_index`, `lclstream/timestamp` (uint64)
and `lclstream/step` (uint32); what identifies the message is in the metadata of the schema, as
text: `lclstream.sequence`, `.run`, `.rank`, `.ranks`, `.format`, `.experiment`,
`.source_identifier`.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lclstream.streamer.batching import Batch, Column
from lclstream.streamer.config import Parameters
from lclstream.streamer.config.more_serializers import ArrowSerializerConfig
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers.contents import GROUP, BatchSerializer, Provenance
from lclstream.streamer.serializers.pieces import merged
from lclstream.streamer.values import Array

Mask = npt.NDArray[np.uint8]


class ArrowSerializer(BatchSerializer):
    """Makes one stream of each batch; uncompressed arrays are sent from where they are."""

    def __init__(self, config: ArrowSerializerConfig, parameters: Parameters, place: Place) -> None:
        super().__init__(parameters.labels)
        self._identification = config.identification
        self._provenance = Provenance(parameters, place)
        # Ranks share the cores; Arrow's threads would all want all of them.
        self._options = pa.ipc.IpcWriteOptions(compression=config.compression, use_threads=False)

    def messages(self, batch: Batch) -> Iterable[Message]:
        """Return the one message of a batch; it is valid until the batch is used again."""
        columns, fields = [], []
        for name, column, metadata in self._columns(batch):
            columns.append(column)
            fields.append(pa.field(name, column.type, metadata=metadata))
        schema = pa.schema(fields, self._metadata(batch) or None)
        pieces = _Pieces()
        with pa.ipc.new_stream(pa.PythonFile(pieces, "w"), schema, options=self._options) as stream:
            stream.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
        return (Message(merged(pieces.found), batch.count),)

    def _columns(self, batch: Batch) -> Iterator[tuple[str, pa.Array, dict[str, str]]]:
        present = {column.label: column for column in batch.form.columns}
        for label in batch.form.labels:
            mask = batch.valid.get(label)
            mask = None if mask is None else mask[: batch.count]
            if label in present:
                column, metadata = _column(present[label], batch, mask)
                yield label, column, metadata | self._units(label)
            elif self._identification:
                yield label, pa.nulls(batch.count), {}
        if self._identification:
            for name, array in self._provenance.of_events(batch):
                yield f"{GROUP}/{name}", _numbers(array, None), {}

    def _units(self, label: str) -> dict[str, str]:
        units = self._provenance.units.get(label) if self._identification else None
        return {f"{GROUP}.units": units} if units else {}

    def _metadata(self, batch: Batch) -> dict[str, str]:
        if not self._identification:
            return {}
        return {
            f"{GROUP}.{name}": str(value)
            for name, value in self._provenance.of_message(batch).items()
        }


class _Pieces:
    """A file that keeps what is written into it, uncopied."""

    closed = False

    def __init__(self) -> None:
        self.found: list[memoryview] = []

    def write(self, piece: "bytes | pa.Buffer") -> int:
        view = memoryview(piece)
        self.found.append(view)
        return view.nbytes

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _column(column: Column, batch: Batch, mask: Mask | None) -> tuple[pa.Array, dict[str, str]]:
    """Return the values of a label, and what their type does not tell."""
    if not column.is_ragged:
        return _values(batch.arrays[column.label][: batch.count], mask)
    ragged = batch.ragged[column.label]
    values, metadata = _values(ragged.values(batch.count), None)
    kind = pa.large_list(pa.field("item", values.type))
    offsets = pa.py_buffer(ragged.offsets[: batch.count + 1])
    buffers = [_bitmap(mask), offsets]
    return pa.Array.from_buffers(kind, batch.count, buffers, _nulls(mask), 0, [values]), metadata


def _values(array: Array, mask: Mask | None) -> tuple[pa.Array, dict[str, str]]:
    """Return values as an Arrow array, not copied where both have the same layout."""
    if array.dtype.kind == "S":
        return _texts(array, mask)
    metadata = {f"{GROUP}.dtype": array.dtype.str} if not _is_native(array.dtype) else {}
    native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    if array.dtype.kind == "c":
        real = np.dtype(f"f{array.itemsize // 2}")
        native = native.reshape(-1).view(real).reshape(*array.shape, 2)
    if native.ndim == 1:
        return _numbers(native, mask), metadata
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(native.dtype), native.shape[1:])
    items = _numbers(native.reshape(-1), None)
    storage = _fixed_list(kind.storage_type, len(array), items, mask)
    return pa.ExtensionArray.from_storage(kind, storage), metadata


def _texts(array: Array, mask: Mask | None) -> tuple[pa.Array, dict[str, str]]:
    flat: list[bytes] = array.reshape(-1).tolist()
    missing = None if mask is None or array.ndim > 1 else mask == 0
    texts = pa.array(flat, pa.binary(), mask=missing)
    # What is not UTF-8 stays as it is.
    with contextlib.suppress(pa.ArrowInvalid):
        texts = texts.cast(pa.string())
    metadata = {f"{GROUP}.dtype": array.dtype.str}
    if array.ndim == 1:
        return texts, metadata
    kind = pa.list_(texts.type, math.prod(array.shape[1:]))
    metadata[f"{GROUP}.shape"] = "x".join(map(str, array.shape[1:]))
    return _fixed_list(kind, len(array), texts, mask), metadata


def _numbers(array: Array, mask: Mask | None) -> pa.Array:
    kind = pa.from_numpy_dtype(array.dtype)
    if kind == pa.bool_():
        # Arrow has eight to the byte.
        data = pa.py_buffer(np.packbits(array.view(np.uint8), bitorder="little"))
    else:
        data = pa.py_buffer(array)
    return pa.Array.from_buffers(kind, array.size, [_bitmap(mask), data], _nulls(mask))


def _fixed_list(kind: pa.DataType, count: int, items: pa.Array, mask: Mask | None) -> pa.Array:
    return pa.Array.from_buffers(kind, count, [_bitmap(mask)], _nulls(mask), 0, [items])


def _bitmap(mask: Mask | None) -> pa.Buffer | None:
    if mask is None or mask.all():
        return None
    return pa.py_buffer(np.packbits(mask, bitorder="little"))


def _nulls(mask: Mask | None) -> int:
    return 0 if mask is None else int(np.count_nonzero(mask == 0))


def _is_native(dtype: np.dtype[np.generic]) -> bool:
    return dtype.isnative and dtype.kind != "c"
