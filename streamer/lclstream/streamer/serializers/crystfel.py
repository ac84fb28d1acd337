"""MessagePack messages of one event each, as CrystFEL's `indexamajig` reads them.

A message is one map. Its keys are names that the geometry file uses:

| value of one event | in the message |
|---|---|
| image, (rows, columns) or a stack of panels one below the other | `{"type": "<i4" or "<f4", \
"shape": [ss, fs], "data": bytes}` |
| number, text | number, text; a bool is 0 or 1 |
| other arrays, also of a number of readings that varies | like an image, with their own type |
| arrays of text or complex numbers | lists; a complex number is [real, imaginary] |
| peaks | `{"fs": [...], "ss": [...], "intensity": [...]}` |

CrystFEL takes the first key that is a *prefix* of the name it looks for. So no key may be a
prefix of another one, and those that the geometry names come first.

Pixels become int32 (from bool and integers; what is out of its range gets its least or greatest
value) or float32 (from floats; infinity where it is out of range, which like NaN is a bad pixel).
A missing image is sent with all pixels NaN, and any other missing reading is left out.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgpack
import numpy as np

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.batching import Batch, Column, Form
from lclstream.streamer.config import Parameters
from lclstream.streamer.config.more_serializers import (
    PEAK_COLUMNS,
    CrystfelMsgpackSerializerConfig,
)
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers.contents import GROUP, BatchSerializer, Provenance
from lclstream.streamer.serializers.held import HeldRows, held_batch
from lclstream.streamer.serializers.pieces import bytes_of, merged
from lclstream.streamer.values import Array

HC_EV_ANGSTROM = 12398.419843320026
"""Photon energy in eV times wavelength in angstrom."""
# What MessagePack can say of the size of a byte string.
MAX_BYTES = (1 << 32) - 1

Piece = bytes | memoryview
Write = Callable[[int], Iterable[Piece]]
"""Row -> the pieces of a value."""


class CrystfelMsgpackSerializer(BatchSerializer):
    """Makes one message of each event; images that need no conversion are not copied."""

    def __init__(
        self, config: CrystfelMsgpackSerializerConfig, parameters: Parameters, place: Place
    ) -> None:
        labels = parameters.labels
        super().__init__(label for label in labels if label in config.needed(labels))
        self._config = config
        self._keys = config.keys_of(labels)
        self._provenance = Provenance(parameters, place)

    def new_batch(self, form: Form, capacity: int) -> Batch:
        """Return an empty batch.

        Raises:
            InvalidConfigError: something that shall be an image or a list of peaks is none.
        """
        for column in form.columns:
            self._check(column)
        return held_batch(form, capacity, self._is_image)

    def messages(self, batch: Batch) -> Iterable[Message]:
        """Yield a message for each event; they are valid until the batch is used again."""
        entries = sorted(self._entries(batch), key=lambda entry: self._rank(entry[0]))
        for row in range(batch.count):
            present = [(key, write) for key, write, valid in entries if valid is None or valid[row]]
            pieces: list[Piece] = [_map_head(len(present))]
            for key, write in present:
                pieces += [msgpack.packb(key), *write(row)]
            yield Message(merged(pieces), 1)

    def _rank(self, key: str) -> tuple[int, int]:
        """Return where a key stands: what the geometry names is first, in its order."""
        named = self._config.geometry_keys
        return (0, named.index(key)) if key in named else (1, 0)

    def _check(self, column: Column) -> None:
        label = column.label
        if self._is_image(column) and column.event_bytes > MAX_BYTES // 4:
            raise InvalidConfigError(f"value {label!r} is too large for a message of MessagePack")
        is_named = label in (self._config.images or ())
        if is_named and not self._is_image(column):
            raise InvalidConfigError(f"value {label!r} is not an image, but {_described(column)}")
        if label == self._config.wavelength and (column.shape or column.dtype.kind not in "iuf"):
            raise InvalidConfigError(f"value {label!r} is not a number, but {_described(column)}")
        if label in self._config.peak_labels and (not column.is_ragged or column.shape):
            raise InvalidConfigError(
                f"value {label!r} is not one number for each peak, but {_described(column)}"
            )

    def _is_image(self, column: Column) -> bool:
        if column.is_ragged or len(column.shape) < 2 or column.dtype.kind not in "biuf":
            return False
        return self._config.images is None or column.label in self._config.images

    def _entries(self, batch: Batch) -> Iterator[tuple[str, Write, Any]]:
        """Yield key, writer and validity of everything that a message may hold."""
        for column in batch.form.columns:
            label, valid = column.label, batch.valid.get(column.label)
            if label == self._config.wavelength:
                energies = [_energy(float(each)) for each in batch.arrays[label][: batch.count]]
                yield self._config.photon_energy_key, _plain(energies), valid
            if label not in self._keys:
                continue
            key = self._keys[label]
            if column.is_ragged:
                yield key, _ragged(batch, label), valid
            elif self._is_image(column):
                yield key, _image(batch.arrays[label], column.shape, valid), None
            else:
                yield key, _value(batch.arrays[label][: batch.count]), valid
        if self._config.peaks is not None:
            yield self._config.peak_list_key, self._peaks(batch), None
        if self._config.identification:
            yield from self._identification(batch)

    def _peaks(self, batch: Batch) -> Write:
        columns = zip(PEAK_COLUMNS, self._config.peak_labels, strict=True)
        ragged = {name: batch.ragged.get(label) for name, label in columns}

        def write(row: int) -> Iterator[Piece]:
            found: dict[str, list[float]] = {}
            for name, column in ragged.items():
                # No event has had any yet where there is no column.
                start, end = (0, 0) if column is None else map(int, column.offsets[row : row + 2])
                found[name] = [] if column is None else column.room[start:end].astype("f8").tolist()
            yield msgpack.packb(found)

        return write

    def _identification(self, batch: Batch) -> Iterator[tuple[str, Write, None]]:
        events = {name: array.tolist() for name, array in self._provenance.of_events(batch)}
        for key in self._config.own_keys(self.labels):
            if key in events:
                yield key, _plain(events[key]), None
        common = dict(self._provenance.of_message(batch))
        valid: Mapping[str, Array] = batch.valid

        def write(row: int) -> Iterator[Piece]:
            missing = [label for label, mask in valid.items() if not mask[row]]
            own = {name: values[row] for name, values in events.items()}
            number = {"sequence": batch.sequence + row}
            yield msgpack.packb(common | number | own | {"missing": missing})

        yield GROUP, write, None


def _energy(wavelength: float) -> float:
    return HC_EV_ANGSTROM / wavelength if wavelength else float("nan")


def _described(column: Column) -> str:
    shape = "x".join(map(str, column.shape)) or "a single number"
    return f"{'a varying number of ' if column.is_ragged else ''}{column.dtype} {shape}"


def _map_head(count: int) -> bytes:
    return bytes([0x80 | count]) if count < 16 else struct.pack(">BH", 0xDE, count)


def _array(array: Array) -> tuple[bytes, memoryview]:
    """Return an array as CrystFEL takes it: what precedes its bytes, and these."""
    data = bytes_of(array)
    head = {"type": array.dtype.str, "shape": list(array.shape)}
    packed = b"".join(msgpack.packb(part) for pair in head.items() for part in pair)
    size = struct.pack(">BI", 0xC6, len(data))
    return b"\x83" + packed + msgpack.packb("data") + size, data


def _image(frames: Array | HeldRows, shape: tuple[int, ...], valid: Any) -> Write:
    def write(row: int) -> tuple[Piece, ...]:
        if valid is not None and not valid[row]:
            return _array(as_frame(np.full(shape, np.nan, "<f4")))
        return _array(as_frame(frames[row]))

    return write


def as_frame(image: Array) -> Array:
    """Return an image as one of int32 or float32, (rows, columns); panels one below the other.

    Args:
        image: of numbers, at least two axes.
    """
    slab = image.reshape(-1, image.shape[-1]) if image.size else image.reshape(0, image.shape[-1])
    if image.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return slab.astype("<f4", copy=False)
    if np.can_cast(image.dtype, np.int32):
        return slab.astype("<i4", copy=False)
    limits = np.iinfo(np.int32)
    low = limits.min if image.dtype.kind == "i" else 0
    return np.clip(slab, low, limits.max).astype("<i4")


def _ragged(batch: Batch, label: str) -> Write:
    column = batch.ragged[label]

    def write(row: int) -> Iterable[Piece]:
        start, end = map(int, column.offsets[row : row + 2])
        return _value(column.room[start:end][None])(0)

    return write


def _value(values: Array) -> Write:
    """Return the writer of what is neither image nor list of peaks; axis 0 = events."""
    if values.dtype.kind == "S":
        return _plain(_each(values, lambda text: text.decode("utf-8", "replace")))
    if values.dtype.kind == "c":
        return _plain(_each(values, lambda number: [number.real, number.imag]))
    if values.ndim > 1:
        return lambda row: _array(np.ascontiguousarray(values[row]))
    numbers: Array = values.astype(np.uint8) if values.dtype.kind == "b" else values
    return _plain(numbers.tolist())


def _each(values: Array, change: Callable[[Any], Any]) -> list[Any]:
    def changed(item: Any) -> Any:
        return [changed(each) for each in item] if isinstance(item, list) else change(item)

    return [changed(item) for item in values.tolist()]


def _plain(values: list[Any]) -> Write:
    return lambda row: (msgpack.packb(values[row]),)
