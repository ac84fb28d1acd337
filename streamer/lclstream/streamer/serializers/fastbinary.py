"""Messages in FastBinary's layout: named arrays, one behind the other.

```
u32 magic 0x4E504159 | u32 version = 1 | u32 number of fields
each field: u32 n, n bytes name | u32 n, n bytes dtype as NumPy writes it, e.g. "<f8"
            | u32 number of axes, i64 for each | u8 compression | u64 bytes | u64 stored bytes
            | stored bytes of data
```

All little-endian, nothing between them. Compression 0 is none, 1 and 2 are Blosc containers of
LZ4 and Zstandard. Axis 0 = events. What else there is stands in
`lclstream.streamer.serializers.contents`, in fields below `/lclstream/`; readers that look up
their own fields never see it.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.batching import Batch, Form, new_batch
from lclstream.streamer.config import Parameters
from lclstream.streamer.config.more_serializers import FastBinarySerializerConfig
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers.contents import (
    GROUP,
    BatchSerializer,
    Data,
    Provenance,
    named_data,
)
from lclstream.streamer.serializers.held import held_batch
from lclstream.streamer.serializers.pieces import merged

MAGIC, VERSION = 0x4E504159, 1
CODECS = {"none": 0, "lz4": 1, "zstd": 2}
# A Blosc container holds no more.
MAX_CONTAINER_BYTES = (1 << 31) - 17
# Below this a container is larger than what it holds, or hardly smaller.
MIN_COMPRESSED_BYTES = 128
# Blosc shuffles elements up to this size.
MAX_SHUFFLED_BYTES = 255

Compress = Callable[[memoryview, int], bytes]


class FastBinarySerializer(BatchSerializer):
    """Makes one message of each batch; uncompressed arrays are sent from where they are."""

    def __init__(
        self, config: FastBinarySerializerConfig, parameters: Parameters, place: Place
    ) -> None:
        """Load the codec.

        Raises:
            InvalidConfigError: it is not installed.
        """
        self._names = config.fields or {label: label for label in parameters.labels}
        # As in the fields, so in the message.
        super().__init__(label for label in self._names if label in parameters.labels)
        self._config = config
        self._codec = CODECS[config.compression or "none"]
        self._compress = _compressor(config) if self._codec else None
        self._provenance = Provenance(parameters, place) if config.identification else None

    def new_batch(self, form: Form, capacity: int) -> Batch:
        """Return an empty batch; a codec takes only what lies in one piece."""
        return new_batch(form, capacity) if self._codec else held_batch(form, capacity)

    def messages(self, batch: Batch) -> Iterable[Message]:
        """Return the one message of a batch; it is valid until the batch is used again."""
        contents = list(named_data(batch, self._names, f"/{GROUP}", self._provenance))
        pieces: list[bytes | memoryview] = [struct.pack("<III", MAGIC, VERSION, len(contents))]
        for name, data in contents:
            codec, body = self._body(data)
            pieces += [_head(name, data, codec, sum(map(len, body))), *body]
        return (Message(merged(pieces), batch.count),)

    def _body(self, data: Data) -> tuple[int, Sequence[memoryview | bytes]]:
        """Return how an array is stored, and what is."""
        fits = MIN_COMPRESSED_BYTES <= data.nbytes <= MAX_CONTAINER_BYTES
        if self._compress is None or not fits or len(data.parts) > 1:
            return 0, data.parts
        body = self._compress(data.parts[0], data.dtype.itemsize)
        return (self._codec, (body,)) if len(body) < data.nbytes else (0, data.parts)


def _head(name: str, data: Data, codec: int, stored: int) -> bytes:
    encoded, dtype, axes = name.encode(), data.dtype.str.encode(), len(data.shape)
    return b"".join(
        (
            struct.pack("<I", len(encoded)), encoded,
            struct.pack("<I", len(dtype)), dtype,
            struct.pack(f"<I{axes}q", axes, *data.shape),
            struct.pack("<BQQ", codec, data.nbytes, stored),
        )
    )  # fmt: skip


def _compressor(config: FastBinarySerializerConfig) -> Compress:
    try:
        from numcodecs import blosc
    except ImportError:
        raise InvalidConfigError(
            f"compression {config.compression!r} needs numcodecs, which is not installed"
        ) from None
    codec, level = (config.compression or "none").encode(), config.compression_level
    # Blosc's own threads share one array; they are of the process, not of a serializer.
    blosc.use_threads = config.n_threads > 1
    blosc.set_nthreads(config.n_threads)

    def compress(data: memoryview, itemsize: int) -> bytes:
        size = itemsize if itemsize <= MAX_SHUFFLED_BYTES else 1
        return cast("bytes", blosc.compress(data, codec, level, blosc.BITSHUFFLE, 0, size))

    return compress
