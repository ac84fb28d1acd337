"""Keeps the events of a stream in one HDF5 file, as they came."""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py
import numpy as np

from lclstream.client.decode import Array, Batch
from lclstream.core.errors import DecodeError

INDEX = "lclstream/event_index"
TIMESTAMP = "lclstream/timestamp"


class Recorder:
    """Appends every dataset of every batch; `finish` gives the file its name.

    The datasets keep their paths and dtypes, axis 0 = events in order of arrival.

    Resource handling: a context manager; without `finish` the unfinished file is removed.

    Error handling: `add` raises `DecodeError` when a dataset changes its dtype or shape.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._beside = path.with_name(f".{path.name}.{os.getpid()}")
        self._file = h5py.File(self._beside, "w")
        self._events = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._beside.unlink(missing_ok=True)

    def add(self, batch: Batch) -> None:
        """Append the events of a batch."""
        for path, values in batch.arrays.items():
            self._append(path, values)
        if batch.indices is not None:
            self._append(INDEX, batch.indices)
        if batch.timestamps is not None:
            self._append(TIMESTAMP, batch.timestamps)
        for name, mask in batch.valid.items():
            self._append(f"lclstream/valid/{name}", mask)
        for path, name in batch.sources.items():
            self._file[f"lclstream/valid/{name}"].attrs["dataset"] = f"/{path}"
        self._events += len(batch)

    def finish(self) -> Path:
        """Complete the file."""
        self._file.visititems(self._complete)
        self._file.close()
        return self._beside.replace(self.path)

    def _complete(self, name: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset):
            item.resize(self._events, axis=0)

    def _append(self, path: str, values: Array) -> None:
        shape = values.shape[1:]
        if path not in self._file:
            chunk = max(1, min(1024, (1 << 20) // max(values[:1].nbytes, 1)))
            self._file.create_dataset(
                path, (0, *shape), values.dtype, maxshape=(None, *shape), chunks=(chunk, *shape)
            )
        dataset = self._file[path]
        if (dataset.dtype, dataset.shape[1:]) != (values.dtype, shape):
            raise DecodeError(f"{path} changes its form to {values.dtype} {shape} within the run")
        # Events that came without this dataset keep zeros.
        dataset.resize(self._events + len(values), axis=0)
        dataset[self._events :] = np.asarray(values)
