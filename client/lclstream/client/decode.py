"""Decodes messages: each is a complete HDF5 file of a batch of events, axis 0 = events.

Data that lie in the message as they are (no compression) are not copied: the arrays are
read-only views of the message. Messages of other streamers, without the group `/lclstream` that
identifies events, are decoded too; their events have no index, and a time stamp only if they
bring one.
"""

import contextlib
import io
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import h5py
import hdf5plugin  # noqa: F401 - makes the codecs known to h5py
import numpy as np
import numpy.typing as npt

from lclstream.core.errors import DecodeError, NotFoundError
from lclstream.core.models import near

Array: TypeAlias = npt.NDArray[np.generic]
Payload: TypeAlias = bytes | bytearray | memoryview

SIGNATURE = b"\x89HDF\r\n\x1a\n"
GROUP = "lclstream"
# Below them by data source; the attribute names the dataset.
MASKS, MASKED = "valid/", "dataset"
# Of the message; everything else is of its events.
SEQUENCE = "sequence"
# More than any detector gives in one batch; a damaged or hostile header may claim anything.
MAX_DATASET_BYTES = 16 << 30
# What h5py raises for damaged files, depending on where the damage is.
H5PY_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, MemoryError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The decoded events of one message."""

    arrays: Mapping[str, Array]
    """Values by dataset path without leading slash; axis 0 = events."""
    count: int
    """Number of events."""
    indices: npt.NDArray[np.uint64] | None = None
    """Position of each event in the whole run; None if the message does not say."""
    timestamps: npt.NDArray[np.uint64] | None = None
    """Seconds << 32 | nanoseconds of each event, as the DAQ wrote it; None if unknown."""
    valid: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """By data source: 1 where the reading exists. What is not here always exists."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Dataset path -> data source, for those that have a mask."""
    experiment: str = ""
    run: int | None = None
    rank: int | None = None
    """Of the producer that sent the message."""
    sequence: int | None = None
    """Number of the message among those of its rank, from 0."""
    size_bytes: int = 0
    """Of the message."""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, name: str) -> Array:
        """Return the values of all events.

        Args:
            name: path of the dataset, or its last part where only one dataset has it.

        Raises:
            NotFoundError: there is no such dataset, or several.
        """
        return self.arrays[self.path(name)]

    def __contains__(self, name: str) -> bool:
        with contextlib.suppress(NotFoundError):
            return bool(self.path(name))
        return False

    def __iter__(self) -> Iterator["Event"]:
        return (Event(self, row) for row in range(self.count))

    def mask(self, name: str) -> npt.NDArray[np.uint8] | None:
        """Return 1 for each event whose reading exists; None if all do.

        Args:
            name: of a data source, or of its dataset as in `__getitem__`; with a leading slash
                it is always a dataset's.
        """
        if name in self.valid:
            return self.valid[name]
        path = self.path(name) if name in self else name.strip("/")
        return self.valid.get(self.sources.get(path, path))

    def path(self, name: str) -> str:
        """Return the full path of a dataset; see `__getitem__`."""
        wanted = name.strip("/")
        if wanted in self.arrays:
            return wanted
        found = [path for path in self.arrays if path.rpartition("/")[2] == wanted]
        if len(found) == 1:
            return found[0]
        if found:
            raise NotFoundError(f"several datasets are named {name!r}: {', '.join(found)}")
        hint = near(wanted, list(self.arrays)) or f"; there are: {', '.join(self.arrays)}"
        raise NotFoundError(f"the message has no dataset {name!r}{hint}")


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a batch."""

    batch: Batch
    row: int

    def __getitem__(self, name: str) -> Array:
        """Return one value, an array without the axis of the events."""
        return np.asarray(self.batch[name][self.row])

    def is_valid(self, name: str) -> bool:
        """Return whether a reading exists in this event.

        Args:
            name: as in `Batch.mask`.
        """
        mask = self.batch.mask(name)
        return mask is None or bool(mask[self.row])

    @property
    def index(self) -> int | None:
        """Position in the whole run."""
        return None if self.batch.indices is None else int(self.batch.indices[self.row])

    @property
    def timestamp(self) -> int | None:
        """Seconds << 32 | nanoseconds, as the DAQ wrote it."""
        return None if self.batch.timestamps is None else int(self.batch.timestamps[self.row])


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
        with h5py.File(_View(view), "r") as file:
            return _batch(file, view, fields)
    except H5PY_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DecodeError(f"damaged HDF5 message of {len(view)} bytes: {reason}") from error


class _View(io.RawIOBase):
    """A message as a file, so that opening it does not copy it."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]
        part = self._view[self._at : self._at + len(into)]
        into[: len(part)] = part
        self._at += len(part)
        return len(part)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at


def _batch(file: h5py.File, view: memoryview, fields: Collection[str] | None) -> Batch:
    datasets: dict[str, h5py.Dataset] = {}
    file.visititems(lambda name, item: _keep(datasets, name, item))
    own = {name.partition("/")[2]: d for name, d in datasets.items() if _is_own(name)}
    data = {name: d for name, d in datasets.items() if not _is_own(name)}
    count = _common_count(data | {name: d for name, d in own.items() if name != SEQUENCE})
    wanted = None if fields is None else {field.strip("/") for field in fields}
    attributes = file[GROUP].attrs if GROUP in file else {}
    masks = {name.removeprefix(MASKS): each for name, each in own.items() if name.startswith(MASKS)}
    return Batch(
        arrays={
            name: _values(dataset, view)
            for name, dataset in data.items()
            if wanted is None or name in wanted or name.rpartition("/")[2] in wanted
        },
        count=count,
        indices=_numbers(own.get("event_index"), view),
        timestamps=_numbers(own.get("timestamp"), view),
        valid={
            source: _values(mask, view).astype(np.uint8, copy=False)
            for source, mask in masks.items()
        },
        sources={
            str(mask.attrs.get(MASKED, source)).strip("/"): source for source, mask in masks.items()
        },
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


def _common_count(datasets: Mapping[str, h5py.Dataset]) -> int:
    """Return the number of events; every dataset must agree."""
    if not datasets:
        raise DecodeError("the message holds no dataset")
    counts = {name: each.shape[0] if each.shape else None for name, each in datasets.items()}
    if len(set(counts.values())) > 1 or None in counts.values():
        raise DecodeError(f"the datasets of the message have no common event axis: {counts}")
    return int(next(iter(datasets.values())).shape[0])


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
    plain = dataset.id.get_create_plist().get_nfilters() == 0
    if not plain or dataset.chunks != (1, *dataset.shape[1:]):
        return None
    chunks: list[h5py.h5d.StoreInfo] = []
    dataset.id.chunk_iter(chunks.append)
    if len(chunks) != dataset.shape[0]:
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
