"""Decodes messages that are NumPy archives (`.npz`).

Arrays that are stored uncompressed are not copied: they are read-only views of the message.
Nothing is unpickled, no array may claim more than its archive can hold, and checksums are
compared.
"""

import functools
import io
import math
import zipfile
import zlib
from collections.abc import Collection
from typing import Any

import numpy as np

from lclstream.client.batches import Array, Batch
from lclstream.client.named import KINDS, batch_of
from lclstream.client.views import View
from lclstream.core.errors import DecodeError

SIGNATURE = b"PK"
MAX_MEMBERS = 10_000
MAX_ARRAY_BYTES = 16 << 30
# Deflate makes at most so much of a byte.
MAX_RATIO = 1032
LOCAL_HEADER_BYTES = 30
LOCAL_SIGNATURE = b"PK\x03\x04"
SUFFIX = ".npy"
# What the standard library raises for damaged archives, depending on where the damage is.
ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, OSError, NotImplementedError,
    OverflowError, RuntimeError, SyntaxError, TypeError, UnicodeError, IndexError,
)  # fmt: skip


def decode(payload: bytes | bytearray | memoryview, fields: Collection[str] | None = None) -> Batch:
    """Decode one message.

    Args:
        payload: the message; arrays of the result may be views of it.
        fields: names to decode; None for all. Names that the message does not have are left out.

    Raises:
        DecodeError: the message is no archive of arrays, is damaged, or has no common event axis.
    """
    view = memoryview(payload).cast("B")
    try:
        with zipfile.ZipFile(View(view)) as archive:
            infos = archive.infolist()
        if len(infos) > MAX_MEMBERS:
            raise DecodeError(f"an archive of {len(infos)} arrays: {MAX_MEMBERS} are allowed")
        members = {_name(info): functools.partial(_array, view, info) for info in infos}
        if len(members) < len(infos):
            raise DecodeError("the archive has two members of one name")
        return batch_of(members, fields, len(view))
    except ZIP_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DecodeError(f"damaged archive of {len(view)} bytes: {reason}") from error


def _name(info: zipfile.ZipInfo) -> str:
    if not info.filename.endswith(SUFFIX):
        raise DecodeError(f"member {info.filename!r:.80} of the archive is no array")
    return info.filename.removesuffix(SUFFIX)


def _array(view: memoryview, info: zipfile.ZipInfo) -> Array:
    content = _content(view, info)
    if zlib.crc32(content) != info.CRC:
        raise DecodeError(f"member {info.filename!r:.80} of the archive is damaged")
    return _parsed(content, info.filename)


def _content(view: memoryview, info: zipfile.ZipInfo) -> memoryview:
    at = info.header_offset
    head = bytes(view[at : at + LOCAL_HEADER_BYTES])
    if head[:4] != LOCAL_SIGNATURE or len(head) < LOCAL_HEADER_BYTES:
        raise DecodeError(f"member {info.filename!r:.80} of the archive is not where it should be")
    name_bytes, extra_bytes = (int.from_bytes(head[i : i + 2], "little") for i in (26, 28))
    start = at + LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    stored = view[start : start + info.compress_size]
    if len(stored) != info.compress_size:
        raise DecodeError(f"member {info.filename!r:.80} ends behind the end of the message")
    if info.compress_type == zipfile.ZIP_STORED:
        if info.compress_size != info.file_size:
            raise DecodeError(f"member {info.filename!r:.80} has two sizes")
        return stored
    if info.compress_type != zipfile.ZIP_DEFLATED or info.flag_bits & 1:
        raise DecodeError(f"member {info.filename!r:.80} is encrypted, or of an unknown method")
    return _inflated(stored, info)


def _inflated(stored: memoryview, info: zipfile.ZipInfo) -> memoryview:
    size = info.file_size
    if size > min(MAX_RATIO * (len(stored) + 1), MAX_ARRAY_BYTES):
        raise DecodeError(f"member {info.filename!r:.80} claims {size} bytes")
    content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, size + 1)
    if len(content) != size:
        raise DecodeError(f"member {info.filename!r:.80} has other than {size} bytes")
    return memoryview(content)


def _parsed(content: memoryview, name: str) -> Array:
    """Return the array of a `.npy` file, a view of it."""
    # Headers are short; numpy itself refuses long ones.
    head = io.BytesIO(bytes(content[: 1 << 16]))
    version = np.lib.format.read_magic(head)
    read: Any = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise DecodeError(f"member {name!r:.80} is of version {version}")
    shape, is_fortran, dtype = read(head)
    size = math.prod(shape) * dtype.itemsize
    if dtype.kind not in KINDS or len(content) - head.tell() != size or min(shape, default=0) < 0:
        raise DecodeError(f"member {name!r:.80} is no array of {dtype} {shape}")
    data = content[head.tell() :]
    if not size:
        return np.zeros(shape, dtype)
    flat: Array = np.frombuffer(data, dtype)
    array = flat.reshape(shape, order="F" if is_fortran else "C")
    array.flags.writeable = False
    return array
