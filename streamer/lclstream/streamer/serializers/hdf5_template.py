"""Uncompressed HDF5 files made by copying, without the HDF5 library at work for each message.

A file whose datasets all have their place from the beginning differs from the next one of the
same form only in the bytes of the data. So the library makes one such file for each form; from
it we remember where the data lie and the bytes of everything else. A batch then lives inside
its own message: storing an event into its arrays is writing the file.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import h5py
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a dataset of the file is like."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    chunked: bool
    """Whether each step along axis 0 is a chunk of its own."""


@dataclass(frozen=True, slots=True)
class Run:
    """Steps along axis 0 of a dataset that lie one after the other in the file."""

    start: int
    stop: int
    offset: int


@dataclass(frozen=True, slots=True)
class Template:
    """An HDF5 file without its data."""

    size: int
    runs: Mapping[str, tuple[Run, ...]]
    """Path -> where the data of the dataset lie; one run, unless there are many chunks."""
    datasets: Mapping[str, Dataset]
    pieces: tuple[tuple[int, bytes], ...]
    """(offset, bytes) of all that is not data."""

    def image(self) -> Image:
        """Return a new file whose data are not written yet."""
        image = np.empty(self.size, np.uint8)
        for offset, piece in self.pieces:
            image[offset : offset + len(piece)] = np.frombuffer(piece, np.uint8)
        return image

    def view(self, image: Image, path: str) -> npt.NDArray[np.generic] | None:
        """Return the data of a dataset as an array inside the file; None if not in one run."""
        runs = self.runs[path]
        return self._run(image, path, runs[0]) if len(runs) == 1 else None

    def store(self, image: Image, path: str, array: npt.NDArray[np.generic]) -> None:
        """Copy an array into the file; where it already lies there, nothing happens."""
        runs = self.runs[path]
        if len(runs) > 1 or not np.may_share_memory(image, array):
            for run in runs:
                self._run(image, path, run)[...] = array[run.start : run.stop]

    def _run(self, image: Image, path: str, run: Run) -> npt.NDArray[np.generic]:
        dataset = self.datasets[path]
        shape = (run.stop - run.start, *dataset.shape[1:])
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(image.data, dataset.dtype, count, run.offset).reshape(shape)


def build_template(
    datasets: Mapping[str, Dataset],
    group: str,
    attributes: Mapping[str, object],
    more: Mapping[str, Mapping[str, object]] = MappingProxyType({}),
) -> Template:
    """Let the HDF5 library lay out a file.

    Args:
        datasets: by path; all have at least one axis.
        group: path of the group that gets the attributes.
        attributes: numbers and texts; empty = the group is not made for them.
        more: path of a dataset -> its attributes.
    """
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        made = {path: _create(file, path, dataset) for path, dataset in datasets.items()}
        if attributes:
            file.require_group(group).attrs.update(attributes)
        for path, values in more.items():
            file[path].attrs.update(values)
        file.flush()
        runs = {path: _runs(made[path], dataset) for path, dataset in datasets.items()}
        # An identifier that is still open would keep the file open.
        made.clear()
    content = memory.getbuffer()
    return Template(
        size=len(content),
        runs=runs,
        datasets=dict(datasets),
        pieces=_pieces(content, runs, datasets),
    )


def _create(file: h5py.File, path: str, dataset: Dataset) -> h5py.h5d.DatasetID:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    if dataset.chunked:
        creation.set_chunk((1, *dataset.shape[1:]))
    link = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    link.set_create_intermediate_group(True)
    link.set_char_encoding(h5py.h5t.CSET_UTF8)
    kind = h5py.h5t.py_create(dataset.dtype, logical=True)
    space = h5py.h5s.create_simple(dataset.shape)
    return h5py.h5d.create(file.id, path.encode(), kind, space, creation, link)


def _runs(made: h5py.h5d.DatasetID, dataset: Dataset) -> tuple[Run, ...]:
    if not dataset.chunked:
        offset = made.get_offset()
        # A dataset without elements has no place.
        return () if offset is None else (Run(0, dataset.shape[0], int(offset)),)
    step = made.get_storage_size() // dataset.shape[0]
    places: dict[int, int] = {}
    made.chunk_iter(lambda chunk: places.__setitem__(chunk.chunk_offset[0], chunk.byte_offset))
    runs: list[Run] = []
    for row, offset in sorted(places.items()):
        last = runs[-1] if runs else None
        if last is not None and offset == last.offset + (row - last.start) * step:
            runs[-1] = Run(last.start, row + 1, last.offset)
        else:
            runs.append(Run(row, row + 1, offset))
    return tuple(runs)


def _pieces(
    content: memoryview, runs: Mapping[str, tuple[Run, ...]], datasets: Mapping[str, Dataset]
) -> tuple[tuple[int, bytes], ...]:
    """Return all that lies between the data."""
    taken = []
    for path, each in runs.items():
        dataset = datasets[path]
        step = int(np.prod(dataset.shape[1:], dtype=np.int64)) * dataset.dtype.itemsize
        taken += [(run.offset, run.offset + step * (run.stop - run.start)) for run in each]
    starts = [0, *(end for _, end in sorted(taken))]
    ends = [*(begin for begin, _ in sorted(taken)), len(content)]
    return tuple(
        (start, bytes(content[start:end]))
        for start, end in zip(starts, ends, strict=True)
        if end > start
    )
