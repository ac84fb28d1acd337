"""Messages that are complete HDF5 files.

For the reader: one dataset for each data source, axis 0 = events, chunks of one event. The
group `/lclstream`, which plain readers ignore, identifies the events:

| what | in `/lclstream` |
|---|---|
| `event_index`, `timestamp` | datasets, uint64, one element for each event |
| `sequence` | dataset, uint64, one element: number of the message of its rank, from 0 |
| `valid/<data source>` | datasets, uint8: 1 where the reading exists. Absent: it always does. \
Their attribute `dataset` is the path of the dataset that they speak of |
| `experiment`, `run`, `rank`, `ranks`, `source_identifier`, `format` | attributes |
"""

import io
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import numpy as np

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.batching import Batch, Column, Form, new_batch
from lclstream.streamer.config import HDF5BinarySerializerConfig, Parameters
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers.hdf5_template import Dataset, Image, Template, build_template
from lclstream.streamer.values import Array

GROUP = "/lclstream"
# Attribute of a mask: the path of its dataset.
MASKED = "dataset"
FORMAT_VERSION = 1
# Forms in use at a time: that of full batches and that of the last one, before and after a
# change of run.
TEMPLATES_KEPT = 4


class HDF5BinarySerializer:
    """Makes one HDF5 file in memory of each batch."""

    def __init__(
        self, config: HDF5BinarySerializerConfig, parameters: Parameters, place: Place
    ) -> None:
        """Load the codec.

        Raises:
            InvalidConfigError: the codec is not installed.
        """
        self._config = config
        self._place = place
        self._source_identifier = parameters.source_identifier
        names = list(parameters.labels)
        if config.layout == "fields":
            self._paths = {name: "/" + path.strip("/") for name, path in config.fields.items()}
        else:
            self._paths = {name: f"/{name}" for name in names}
        self.labels = tuple(name for name in names if name in self._paths)
        """The data sources that are sent, in order."""
        self._filters = _filters(config)
        self._templates: dict[tuple[Form, int], Template] = {}
        # Batches are made by the thread that reads, messages by the one that sends.
        self._lock = threading.Lock()

    def new_batch(self, form: Form, capacity: int) -> Batch:
        """Return an empty batch; without compression it already lies in its message."""
        batch = new_batch(form, capacity)
        if self._filters is None:
            template = self._template(form, capacity)
            batch.image = template.image()
            self._move_inside(batch, template, batch.image)
        return batch

    def messages(self, batch: Batch) -> Iterable[Message]:
        """Return the one message of a batch; it is valid until the batch is used again."""
        return (Message((self._payload(batch),), batch.count),)

    def begin(self) -> Iterable[Message]:
        """Return nothing: every message is a file of its own."""
        return ()

    def end(self) -> Iterable[Message]:
        """Return nothing: every message is a file of its own."""
        return ()

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def _payload(self, batch: Batch) -> memoryview:
        if batch.image is None:
            return self._written(batch)
        image = batch.image
        template = self._template(batch.form, batch.count)
        if not batch.is_full:
            image = template.image()
        for path, array in self._contents(batch).items():
            template.store(image, path, array)
        return image.data

    def _contents(self, batch: Batch) -> dict[str, Array]:
        """Return what each dataset of the message holds, by path."""
        count = batch.count
        found = {self._paths[label]: array[:count] for label, array in batch.arrays.items()}
        if self._config.identification:
            found[f"{GROUP}/event_index"] = batch.index[:count]
            found[f"{GROUP}/timestamp"] = batch.timestamp[:count]
            found[f"{GROUP}/sequence"] = np.array([batch.sequence], np.uint64)
            found |= {_mask(label): mask[:count] for label, mask in batch.valid.items()}
        return found

    def _move_inside(self, batch: Batch, template: Template, image: Image) -> None:
        """Let the arrays of a batch lie in the message where that is possible."""
        arrays = dict(batch.arrays)
        for label in arrays:
            inside = template.view(image, self._paths[label])
            arrays[label] = arrays[label] if inside is None else inside
        batch.arrays = arrays

    def _template(self, form: Form, capacity: int) -> Template:
        key = (form, capacity)
        with self._lock:
            if key not in self._templates:
                while len(self._templates) >= TEMPLATES_KEPT:
                    self._templates.pop(next(iter(self._templates)))
                self._templates[key] = self._new_template(form, capacity)
            return self._templates[key]

    def _new_template(self, form: Form, capacity: int) -> Template:
        datasets = {self._paths[each.label]: _dataset(each, capacity) for each in form.columns}
        datasets |= self._identification(form, capacity)
        return build_template(datasets, GROUP, self._attributes(form), self._links(form))

    def _links(self, form: Form) -> dict[str, dict[str, str]]:
        """Return the attributes of the masks, by their path: what each speaks of."""
        masked = form.labels if self._config.identification and form.with_masks else ()
        return {_mask(label): {MASKED: self._paths[label]} for label in masked}

    def _identification(self, form: Form, count: int) -> dict[str, Dataset]:
        if not self._config.identification:
            return {}
        numbers = Dataset(np.dtype(np.uint64), (count,), chunked=False)
        found = {
            f"{GROUP}/event_index": numbers,
            f"{GROUP}/timestamp": numbers,
            f"{GROUP}/sequence": Dataset(np.dtype(np.uint64), (1,), chunked=False),
        }
        if form.with_masks:
            mask = Dataset(np.dtype(np.uint8), (count,), chunked=False)
            found |= {_mask(label): mask for label in form.labels}
        return found

    def _attributes(self, form: Form) -> Mapping[str, Any]:
        if not self._config.identification:
            return {}
        return {
            "format": np.uint32(FORMAT_VERSION),
            "experiment": form.experiment,
            "run": np.uint64(form.run),
            "rank": np.uint32(self._place.rank),
            "ranks": np.uint32(self._place.size),
            "source_identifier": self._source_identifier,
        }

    def _written(self, batch: Batch) -> memoryview:
        """Let the HDF5 library write the file, filters and all."""
        memory = io.BytesIO()
        with h5py.File(memory, "w") as file:
            for path, array in self._contents(batch).items():
                self._write(file, path, array)
            if self._config.identification:
                file[GROUP].attrs.update(self._attributes(batch.form))
            for path, attributes in self._links(batch.form).items():
                file[path].attrs.update(attributes)
        return memory.getbuffer()

    def _write(self, file: h5py.File, path: str, data: Array) -> None:
        if path.startswith(f"{GROUP}/") or not data.size:
            file.create_dataset(path, data=data)
            return
        suits = self._config.compression != "zfp" or _suits_zfp(data.dtype)
        filters = (self._filters or {}) if suits else {}
        file.create_dataset(path, data=data, chunks=(1, *data.shape[1:]), **filters)


def _mask(label: str) -> str:
    return f"{GROUP}/valid/{label.strip('/')}"


def _dataset(column: Column, count: int) -> Dataset:
    shape = (count, *column.shape)
    return Dataset(column.dtype, shape, chunked=column.event_bytes > 0)


def _suits_zfp(dtype: np.dtype[np.generic]) -> bool:
    # Unsigned numbers are ids and time stamps here; zfp would round them.
    return dtype.kind in "fi" and dtype.itemsize in (4, 8)


def _filters(config: HDF5BinarySerializerConfig) -> dict[str, Any] | None:
    """Return the arguments of `create_dataset` for a codec, None for no compression."""
    level = config.compression_level
    if config.compression is None:
        return None
    if config.compression in ("gzip", "gzip_with_shuffle"):
        shuffle = config.compression == "gzip_with_shuffle"
        return {"compression": "gzip", "compression_opts": level, "shuffle": shuffle}
    try:
        import hdf5plugin
    except ImportError:
        raise InvalidConfigError(
            f"compression {config.compression!r} needs hdf5plugin, which is not installed"
        ) from None
    if config.compression == "zfp":
        return dict(hdf5plugin.Zfp())
    if config.compression == "bitshuffle_with_lz4":
        return dict(hdf5plugin.Bitshuffle(nelems=0, cname="lz4"))
    return dict(hdf5plugin.Bitshuffle(nelems=0, cname="zstd", clevel=level))
