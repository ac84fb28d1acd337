"""The messages that lclstreamer calls SIMPLON, which no DECTRIS client can read.

A message is a byte that says what it is, `c` for control or `m` for an image, and a plain CBOR
map without tags. The variant of pull request 51 has no such byte and other names. An image's
shape is said only at the start of the run, and its time stamp is a float that has lost its last
bits, unless the writer was ours.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lclstream.core.errors import DecodeError
from lclstream.streamer.simplon import cbor, compression
from lclstream.streamer.simplon.arrays import MAX_ARRAY_BYTES, MAX_DIMENSIONS
from lclstream.streamer.simplon.values import understood, written
from lclstream.streamer.values import Array

CONTROL, IMAGE = b"c", b"m"
BLOCK_ITEMS = 4096
"""Items in one block of compressed data, whatever their size."""
_FIRST_OF_MAP = range(0xA0, 0xC0)
_DTYPE = re.compile(r"u?int(8|16|32|64)|float(16|32|64)|[<>|=]?([iu][1248]|f[248])")
_SIZE = re.compile(r"\d{1,15}", re.ASCII)

Dialect = Literal["stream2", "lclstreamer", "lclstreamer-pr51"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """The beginning of a run."""

    run: str = ""
    dtype: np.dtype[np.generic] | None = None
    shape: tuple[int, ...] | None = None
    """Of every image."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Every key as it was sent, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunImage:
    """One image."""

    data: memoryview
    """Bitshuffle-LZ4 blocks of `BLOCK_ITEMS`, without a header."""
    run: str = ""
    dtype: np.dtype[np.generic] | None = None
    timestamp: int | None = None
    shape: tuple[int, ...] | None = None
    """Only messages of ours say it; those of others have that of the start."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Every key but the data as it was sent, in order."""

    def unpack(self, start: RunStart, limit: int = MAX_ARRAY_BYTES) -> Array:
        """Return the image.

        Args:
            start: that of its run, which has the shape.
            limit: bytes that it may have.

        Raises:
            DecodeError: it is damaged or too large, or nothing says its dtype or shape.
        """
        dtype = self.dtype or start.dtype
        shape = self.shape or start.shape
        if dtype is None or shape is None:
            raise DecodeError("image: neither it nor the start of the run says dtype and shape")
        size = math.prod(shape) * dtype.itemsize
        if size > limit:
            raise DecodeError(f"image of {size} bytes is above the limit of {limit}")
        block = BLOCK_ITEMS * dtype.itemsize
        content = compression.decompress_blocks(self.data, size, dtype.itemsize, block)
        return content.view(dtype).reshape(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStop:
    """The end of a run."""

    run: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


RunMessage = RunStart | RunImage | RunStop


def dialect_of(message: bytes | bytearray | memoryview) -> Dialect:
    """Return which of the dialects a message is of, from its first bytes.

    The variant without a first byte of its own looks like a message of Stream V2 whose magic is
    missing; it is told apart by its keys.

    Raises:
        DecodeError: it is of none.
    """
    head = bytes(message[:4])
    if head[:3] == cbor.MAGIC:
        return "stream2"
    if head[:1] in (CONTROL, IMAGE):
        return "lclstreamer"
    if not head or head[0] not in _FIRST_OF_MAP:
        raise DecodeError(f"neither Stream V2 nor lclstreamer: begins with {head.hex(' ')}")
    value = cbor.loads(message)
    is_ours = isinstance(value, dict) and "run_id" in value and "series_id" not in value
    return "lclstreamer-pr51" if is_ours else "stream2"


def decode(message: bytes | bytearray | memoryview) -> RunMessage:
    """Return what a message says; with a first byte of its own or without.

    Raises:
        DecodeError: it is not CBOR, of no known type, or a value is of a wrong type.
    """
    view = memoryview(message).cast("B")
    has_prefix = bytes(view[:1]) in (CONTROL, IMAGE)
    found = cbor.loads(view[1:] if has_prefix else view)
    if not isinstance(found, dict):
        raise DecodeError(f"a message is a map, not {type(found).__name__}")
    found = {key: understood(each) for key, each in found.items()}
    kind = found.get("type")
    run = str(found.get("run_number", found.get("run", found.get("run_id", ""))))
    if kind == "start":
        return RunStart(run=run, dtype=_dtype(found), shape=_shape(found), fields=found)
    if kind == "image":
        return _image(found, run)
    if kind in ("stop", "end"):
        return RunStop(run=run, fields=found)
    raise DecodeError(f"a message of type {kind!r:.40}; start, image and stop are known")


def encode(fields: Mapping[str, Any], prefix: bytes = b"") -> tuple[memoryview, ...]:
    """Return a message in pieces; a large byte string among the values is not copied.

    Args:
        fields: in the order of the dialect; `compressed_data` as
            `compression.compress_blocks(image, BLOCK_ITEMS * image.itemsize).data`. Arrays may
            stand among what the dialect does not know; they are tagged as in Stream V2.
        prefix: `CONTROL` or `IMAGE`; none for the variant that has none.
    """
    return cbor.dumps({key: written("", each) for key, each in fields.items()}, prefix)


def _image(found: dict[str, Any], run: str) -> RunImage:
    data = found.pop("compressed_data", None)
    if not isinstance(data, memoryview):
        raise DecodeError("image: compressed_data must be a byte string")
    stamp = found.get("timestamp")
    # As a float it is beyond 64 bits too when it is infinite, and no number compares with NaN.
    if isinstance(stamp, int | float) and not 0 <= stamp < 1 << 64:
        raise DecodeError(f"image: timestamp must have 64 bits, got {stamp}")
    timestamp = int(stamp) if isinstance(stamp, int | float) else None
    own = found.get("lclstream")
    shape = _shape(own) if isinstance(own, dict) else None
    return RunImage(
        run=run, data=data, dtype=_dtype(found), timestamp=timestamp, shape=shape, fields=found
    )


def _dtype(found: Mapping[str, Any]) -> np.dtype[np.generic] | None:
    named = found.get("dtype", found.get("datatype", found.get("image_dtype")))
    if named is None:
        return None
    if not isinstance(named, str) or not _DTYPE.fullmatch(named):
        raise DecodeError(f"dtype must be that of numbers, got {named!r:.40}")
    return np.dtype(named)


def _shape(found: Mapping[str, Any]) -> tuple[int, ...] | None:
    written = found.get("shape")
    if written is None:
        return None
    parts = written.split("x") if isinstance(written, str) else written
    if isinstance(parts, list) and 0 < len(parts) <= MAX_DIMENSIONS:
        texts = [str(part) for part in parts]
        if all(_SIZE.fullmatch(text) for text in texts):
            return tuple(map(int, texts))
    raise DecodeError(f"shape must be e.g. 2x512x1024, got {written!r:.40}")
