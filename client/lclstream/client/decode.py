"""Decodes messages: each is a complete HDF5 file of a batch of events, axis 0 = events.

Data that lie in the message as they are (no compression) are not copied: the arrays are
read-only views of the message. Messages of other streamers, without the group `/lclstream` that
identifies events, are decoded too; their events have no index, and a time stamp only if they
bring one.
"""

from collections.abc import Collection, Mapping
from typing import TypeAlias

import h5py
import hdf5plugin  # noqa: F401 - makes the codecs known to h5py
import numpy as np
import numpy.typing as npt

from lclstream.client.batches import Array, Batch, Event, Ragged
from lclstream.client.views import View
from lclstream.core.errors import DecodeError

__all__ = ["Array", "Batch", "Event", "Payload", "Ragged", "decode"]

Payload: TypeAlias = bytes | bytearray | memoryview

SIGNATURE = b"\x89HDF\r\n\x1a\n"
GROUP = "lclstream"
# Below them by data source; the attribute names the dataset.
MASKS, MASKED = "valid/", "dataset"
# Attribute of readings whose number differs from event to event: the dataset that counts them.
OFFSETS = "offsets"
UNITS = "units"
# Of the message; everything else is of its events.
SEQUENCE = "sequence"
# Rows up to this size may be stored as they are although the others are compressed.
SMALL_BYTES = 64
# More than any detector gives in one batch; a damaged or hostile header may claim anything.
MAX_DATASET_BYTES = 16 << 30
# What h5py raises for damaged files, depending on where the damage is.
H5PY_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, MemoryError)


def decode(payload: Payload, fields: Collection[str] | None = None) -> Batch:
    """Decode one message.

    Args:
        payload: the message; arrays of the result may be views of it.
        fields: dataset paths, or their last parts, to decode; None for all. Names that the
            message does not have are left out.

    Raises:
        DecodeError: the message is not HDF5, is damaged, or has no common event axis.
    """
    view = memoryview(payload).cast("B")
    if bytes(view[: len(SIGNATURE)]) != SIGNATURE:
        raise DecodeError(
            f"expected an HDF5 message, got {len(view)} bytes that begin with {bytes(view[:8])!r}"
        )
    try:
        with h5py.File(View(view), "r") as file:
            return _batch(file, view, fields)
    except H5PY_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DecodeError(f"damaged HDF5 message of {len(view)} bytes: {reason}") from error


def _batch(file: h5py.File, view: memoryview, fields: Collection[str] | None) -> Batch:
    datasets: dict[str, h5py.Dataset] = {}
    file.visititems(lambda name, item: _keep(datasets, name, item))
    own = {name.partition("/")[2]: d for name, d in datasets.items() if _is_own(name)}
    data = {name: d for name, d in datasets.items() if not _is_own(name)}
    ragged = _take_ragged(data)
    counted = data | {name: d for name, d in own.items() if name != SEQUENCE}
    count = _common_count(counted, {name: offsets for name, (_, offsets) in ragged.items()})
    wanted = None if fields is None else {field.strip("/") for field in fields}
    attributes = file[GROUP].attrs if GROUP in file else {}
    masks = {name.removeprefix(MASKS): each for name, each in own.items() if name.startswith(MASKS)}

    def is_wanted(name: str) -> bool:
        return wanted is None or name in wanted or name.rpartition("/")[2] in wanted

    return Batch(
        arrays={name: _values(each, view) for name, each in data.items() if is_wanted(name)},
        ragged={
            name: _ragged(name, values, offsets, view)
            for name, (values, offsets) in ragged.items()
            if is_wanted(name)
        },
        count=count,
        indices=_numbers(own.get("event_index"), view),
        timestamps=_numbers(own.get("timestamp"), view),
        steps=_numbers(own.get("step"), view),
        valid={
            source: _values(mask, view).astype(np.uint8, copy=False)
            for source, mask in masks.items()
        },
        sources={
            str(mask.attrs.get(MASKED, source)).strip("/"): source for source, mask in masks.items()
        },
        units={
            name: str(each.attrs[UNITS])
            for name, each in datasets.items()
            if UNITS in each.attrs and is_wanted(name)
        },
        configuration=str(attributes.get("configuration", "")),
        experiment=str(attributes.get("experiment", "")),
        run=_integer(attributes.get("run")),
        rank=_integer(attributes.get("rank")),
        sequence=_integer(own[SEQUENCE][...]) if SEQUENCE in own else None,
        size_bytes=len(view),
    )


def _keep(datasets: dict[str, h5py.Dataset], name: str, item: h5py.HLObject) -> None:
    if isinstance(item, h5py.Dataset):
        # A message must not make us read files of this host.
        if item.external or item.is_virtual:
            raise DecodeError(f"dataset {name!r} of the message lies in another file")
        if item.nbytes > MAX_DATASET_BYTES:
            raise DecodeError(f"dataset {name!r} of the message claims {item.nbytes} bytes")
        datasets[name] = item


def _is_own(name: str) -> bool:
    return name.startswith(f"{GROUP}/")


def _take_ragged(data: dict[str, h5py.Dataset]) -> dict[str, tuple[h5py.Dataset, h5py.Dataset]]:
    """Take out what is ragged: values and offsets, by the path of the values."""
    found: dict[str, tuple[h5py.Dataset, h5py.Dataset]] = {}
    for name, values in list(data.items()):
        if OFFSETS not in values.attrs:
            continue
        path = str(values.attrs[OFFSETS]).strip("/")
        if path not in data:
            raise DecodeError(f"dataset {name!r} of the message has no offsets at {path!r}")
        found[name] = data.pop(name), data.pop(path)
    return found


def _ragged(name: str, values: h5py.Dataset, offsets: h5py.Dataset, view: memoryview) -> Ragged:
    ends = _numbers(offsets, view)
    numbers = np.zeros(0, np.uint64) if ends is None else ends
    # Signed numbers would not show that they go down.
    if numbers[0] or numbers[-1] > len(values) or bool((numbers[1:] < numbers[:-1]).any()):
        raise DecodeError(f"the offsets of dataset {name!r} do not fit its {len(values)} values")
    return Ragged(_values(values, view), numbers)


def _common_count(datasets: Mapping[str, h5py.Dataset], offsets: Mapping[str, h5py.Dataset]) -> int:
    """Return the number of events; every dataset must agree, and offsets have one more."""
    if not datasets and not offsets:
        raise DecodeError("the message holds no dataset")
    counts = {name: each.shape[0] if each.shape else None for name, each in datasets.items()}
    for name, each in offsets.items():
        is_right = len(each.shape) == 1 and each.shape[0] > 0
        counts[name] = each.shape[0] - 1 if is_right else None
    if len(set(counts.values())) > 1 or None in counts.values():
        raise DecodeError(f"the datasets of the message have no common event axis: {counts}")
    return int(next(iter(counts.values())) or 0)


def _values(dataset: h5py.Dataset, view: memoryview) -> Array:
    offset = _offset(dataset)
    if offset is None:
        return np.asarray(dataset[...])
    count = int(np.prod(dataset.shape, dtype=np.int64))
    if offset + count * dataset.dtype.itemsize > len(view):
        raise DecodeError(f"dataset {dataset.name!r} ends behind the end of the message")
    array = np.frombuffer(view, dataset.dtype, count, offset).reshape(dataset.shape)
    array.flags.writeable = False
    return array


def _offset(dataset: h5py.Dataset) -> int | None:
    """Return where the values lie in the message in one piece; None if they do not."""
    if dataset.dtype.kind not in "iufb" or dataset.size == 0:
        return None
    if dataset.chunks is None:
        found = dataset.id.get_offset()
        return None if found is None else int(found)
    if dataset.chunks != (1, *dataset.shape[1:]):
        return None
    filters = dataset.id.get_create_plist().get_nfilters()
    if filters and dataset.nbytes // dataset.shape[0] > SMALL_BYTES:
        # Surely compressed; there may be many of them.
        return None
    chunks: list[h5py.h5d.StoreInfo] = []
    dataset.id.chunk_iter(chunks.append)
    # A chunk may do without the filters of its dataset; very small ones do.
    is_plain = all(chunk.filter_mask == (1 << filters) - 1 for chunk in chunks)
    if len(chunks) != dataset.shape[0] or not is_plain:
        return None
    places = sorted((chunk.chunk_offset[0], chunk.byte_offset) for chunk in chunks)
    first, step = places[0][1], dataset.nbytes // len(places)
    follow_on = all(place == first + row * step for row, place in places)
    return int(first) if follow_on else None


def _numbers(dataset: h5py.Dataset | None, view: memoryview) -> npt.NDArray[np.uint64] | None:
    if dataset is None:
        return None
    values = _values(dataset, view)
    if values.dtype.kind not in "iu":
        raise DecodeError(f"{dataset.name!r} must hold integers, got {values.dtype}")
    return values.astype(np.uint64, copy=False)


def _integer(value: object) -> int | None:
    """Return a number that was stored as a scalar or as an array of one element."""
    return None if value is None else int(np.asarray(value).astype(np.int64).item())
