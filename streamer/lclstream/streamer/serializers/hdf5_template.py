"""HDF5 files without their data, and where in them it stands what the data are like.

A file of one form differs from the next one in the number of its rows and in where its data
lie. So the library makes one such file for each form, with datasets that have no data yet; we
remember where sizes and addresses stand in it, and write those of every message ourselves.

It is read as the oldest version of the file format lays it down, for the library is asked to
write that: superblock 0, object headers 1, data layouts 3.
"""

import io
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import h5py
import numpy as np

from lclstream.core.errors import LclstreamError
from lclstream.streamer.serializers.codecs import Filter
from lclstream.streamer.serializers.hdf5_index import NOWHERE, Image

SIGNATURE = b"\x89HDF\r\n\x1a\n"
ADDRESS = struct.Struct("<Q")
# In the superblock.
END_OF_FILE = 40
# Messages of an object header.
DATASPACE, DATA_LAYOUT, CONTINUATION = 0x01, 0x08, 0x10
CONTIGUOUS, CHUNKED = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What a dataset of the file is like, apart from its number of rows."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...] = ()
    """Of one row."""
    chunk_rows: int = 0
    """Rows of a chunk; 0: the data lie in one piece."""
    filters: tuple[Filter, ...] = ()
    attributes: Mapping[str, object] = field(default_factory=dict)

    @property
    def row_bytes(self) -> int:
        """Size of one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Fields:
    """Where in the file the fields stand that speak of the data of one dataset."""

    rows: tuple[int, ...]
    """The number of rows: now, and at most."""
    address: int
    """The address of the data, or of the index of their chunks."""
    size: int | None
    """The size of the data, where they lie in one piece."""

    def write(self, image: Image, rows: int, address: int | None, size: int) -> None:
        """Fill them in.

        Args:
            image: the file, from its beginning.
            rows: how many the dataset has.
            address: of the data or their index; None when there are no data.
            size: of the data in bytes.
        """
        for at in self.rows:
            ADDRESS.pack_into(image.data, at, rows)
        ADDRESS.pack_into(image.data, self.address, NOWHERE if address is None else address)
        if self.size is not None:
            ADDRESS.pack_into(image.data, self.size, size)


@dataclass(frozen=True, slots=True)
class Template:
    """An HDF5 file without data."""

    content: bytes
    fields: Mapping[str, Fields]
    """By path."""
    filters: Mapping[str, tuple[Filter, ...]]
    """Those of each dataset, with all that they have added to their parameters."""


def build_template(
    datasets: Mapping[str, Dataset],
    group: str = "/",
    attributes: Mapping[str, object] | None = None,
) -> Template:
    """Let the HDF5 library write a file.

    Args:
        datasets: by path.
        group: path of the group that gets the attributes.
        attributes: numbers and texts; none = the group is not made for them.

    Raises:
        ValueError: the library cannot make such a dataset.
    """
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver="earliest") as file:
        made = {path: _create(file, path, dataset) for path, dataset in datasets.items()}
        if attributes:
            file.require_group(group).attrs.update(attributes)
        for path, dataset in datasets.items():
            file[path].attrs.update(dataset.attributes)
        headers = {path: h5py.h5o.get_info(each).addr for path, each in made.items()}
        filters = {path: _filters(each) for path, each in made.items()}
        # An identifier that is still open would keep the file open.
        made.clear()
    content = memory.getvalue()
    if not content.startswith(SIGNATURE + b"\0"):
        raise LclstreamError("the HDF5 library does not write files of version 0")
    fields = {path: _fields(content, header) for path, header in headers.items()}
    return Template(content, fields, filters)


def _create(file: h5py.File, path: str, dataset: Dataset) -> h5py.h5d.DatasetID:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_obj_track_times(False)
    if dataset.chunk_rows:
        creation.set_chunk((dataset.chunk_rows, *dataset.shape))
    for each in dataset.filters:
        creation.set_filter(each.code, h5py.h5z.FLAG_OPTIONAL, each.values)
    link = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    link.set_create_intermediate_group(True)
    link.set_char_encoding(h5py.h5t.CSET_UTF8)
    kind = h5py.h5t.py_create(dataset.dtype, logical=True)
    space = h5py.h5s.create_simple((max(dataset.chunk_rows, 1), *dataset.shape))
    return h5py.h5d.create(file.id, path.encode(), kind, space, creation, link)


def _filters(made: h5py.h5d.DatasetID) -> tuple[Filter, ...]:
    creation = made.get_create_plist()
    found = (creation.get_filter(number) for number in range(creation.get_nfilters()))
    return tuple(Filter(code, tuple(values)) for code, _, values, _ in found)


def _fields(content: bytes, header: int) -> Fields:
    places = dict(_messages(content, header))
    space, layout = places[DATASPACE], places[DATA_LAYOUT]
    version, rank, flags = struct.unpack_from("<BBB", content, space)
    # Version 2 has no reserved bytes behind the first four.
    rows = space + (8 if version == 1 else 4)
    most = (rows + 8 * rank,) if flags & 1 else ()
    version, kind = struct.unpack_from("<BB", content, layout)
    if version != 3 or kind not in (CONTIGUOUS, CHUNKED):
        raise LclstreamError(f"the HDF5 library writes data layouts of version {version}")
    if kind == CHUNKED:
        # Behind the number of axes.
        return Fields((rows, *most), layout + 3, None)
    return Fields((rows, *most), layout + 2, layout + 2 + ADDRESS.size)


def _messages(content: bytes, header: int) -> Iterator[tuple[int, int]]:
    """Yield type and place of the messages of an object header."""
    version, _, count, _, size = struct.unpack_from("<BBHII", content, header)
    if version != 1:
        raise LclstreamError(f"the HDF5 library writes object headers of version {version}")
    # Messages begin at a multiple of 8 behind the header's 12 bytes.
    blocks = [(header + 16, size)]
    for start, length in blocks:
        at = start
        while count and at < start + length:
            kind, size = struct.unpack_from("<HH", content, at)
            if kind == CONTINUATION:
                blocks.append(struct.unpack_from("<QQ", content, at + 8))
            yield kind, at + 8
            at += 8 + size
            count -= 1
