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
from collections.abc import Callable, Iterable
from typing import cast

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.batching import Batch
from lclstream.streamer.config import Parameters
from lclstream.streamer.config.more_serializers import FastBinarySerializerConfig
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers.contents import (
    GROUP,
    BatchSerializer,
    Provenance,
    bytes_of,
    merged,
    named_arrays,
)
from lclstream.streamer.values import Array

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

    def messages(self, batch: Batch) -> Iterable[Message]:
        """Return the one message of a batch; it is valid until the batch is used again."""
        contents = list(named_arrays(batch, self._names, f"/{GROUP}", self._provenance))
        pieces: list[bytes | memoryview] = [struct.pack("<III", MAGIC, VERSION, len(contents))]
        for name, array in contents:
            codec, body = self._body(array)
            pieces += [_head(name, array, codec, len(body)), body]
        return (Message(merged(pieces), batch.count),)

    def _body(self, array: Array) -> tuple[int, memoryview | bytes]:
        """Return what is stored of an array, and how."""
        data = bytes_of(array)
        fits = MIN_COMPRESSED_BYTES <= len(data) <= MAX_CONTAINER_BYTES
        if self._compress is None or not fits:
            return 0, data
        body = self._compress(data, array.dtype.itemsize)
        return (self._codec, body) if len(body) < len(data) else (0, data)


def _head(name: str, array: Array, codec: int, stored: int) -> bytes:
    encoded, dtype = name.encode(), array.dtype.str.encode()
    return b"".join(
        (
            struct.pack("<I", len(encoded)), encoded,
            struct.pack("<I", len(dtype)), dtype,
            struct.pack(f"<I{array.ndim}q", array.ndim, *array.shape),
            struct.pack("<BQQ", codec, array.nbytes, stored),
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
