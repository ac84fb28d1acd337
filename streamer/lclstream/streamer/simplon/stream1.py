"""Stream V1 of DECTRIS, which detectors send where V2 is not switched on: JSON and blobs.

A message has several parts. What it says becomes the messages of Stream V2: keys of the
detector's configuration that have another name there have both. V1 knows no date, so that its
images have none.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lclstream.core.errors import DecodeError
from lclstream.streamer.simplon.arrays import MAX_DIMENSIONS, PackedArray
from lclstream.streamer.simplon.compression import LZ4_BLOCK
from lclstream.streamer.simplon.messages import (
    EndMessage,
    ImageMessage,
    Message,
    Rational,
    StartMessage,
)
from lclstream.streamer.simplon.values import NS_PER_S

MAX_PARTS = 32
MAX_JSON_BYTES = 1 << 24
CHANNEL = "default"
"""What the only channel is called here."""

_TYPES = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "float32", "float64")
_ENCODING = re.compile(r"(?:bs(8|16|32)-(lz4)|(lz4))?([<>])")
_NAMES = {
    "bit_depth_image": "image_dtype", "description": "detector_description",
    "detector_number": "detector_serial_number", "wavelength": "incident_wavelength",
    "photon_energy": "incident_energy", "x_pixel_size": "pixel_size_x",
    "y_pixel_size": "pixel_size_y", "x_pixels_in_detector": "image_size_x",
    "y_pixels_in_detector": "image_size_y",
    "countrate_correction_count_cutoff": "saturation_value",
    "countrate_correction_applied": "countrate_correction_enabled",
    "flatfield_correction_applied": "flatfield_enabled",
    "pixel_mask_applied": "pixel_mask_enabled",
    "virtual_pixel_correction_applied": "virtual_pixel_interpolation_enabled",
}  # fmt: skip
_TABLES = {
    "flatfield-1.0": "flatfield", "dpixelmask-1.0": "pixel_mask",
    "dcountrate_table-1.0": "countrate_correction_lookup_table",
}  # fmt: skip


def decode(parts: Sequence[memoryview]) -> Message:
    """Return what a message of Stream V1 says.

    Raises:
        DecodeError: a part is missing, or no JSON, or of a wrong type; says which.
    """
    if not 0 < len(parts) <= MAX_PARTS:
        raise DecodeError(f"a message of {len(parts)} parts; Stream V1 has 1 to {MAX_PARTS}")
    head = _json(parts, 0)
    kind, series = head.get("htype"), _number(head, "series")
    if kind == "dheader-1.0":
        return StartMessage(series_id=series, fields=_start(parts))
    if kind == "dimage-1.0":
        return _image(parts, series, _number(head, "frame"))
    if kind == "dseries_end-1.0":
        return EndMessage(series_id=series)
    raise DecodeError(f"part 1: htype {kind!r:.40} is not known")


def _start(parts: Sequence[memoryview]) -> dict[str, Any]:
    config = _json(parts, 1) if len(parts) > 1 else {}
    fields = dict(config)
    fields |= {new: config[old] for old, new in _NAMES.items() if old in config}
    depth = config.get("bit_depth_image")
    if isinstance(depth, int):
        fields["image_dtype"] = f"uint{depth}"
    counts = config.get("nimages"), config.get("ntrigger", 1)
    if all(type(each) is int for each in counts):
        fields["number_of_images"] = counts[0] * counts[1]
    place = 2
    # Tables come as a pair of parts; what the user appended follows them.
    while place + 1 < len(parts):
        about = _json(parts, place)
        name = _TABLES.get(str(about.get("htype")))
        if name is None:
            break
        dtype = _dtype(about, "<")
        fields[name] = PackedArray(dtype, _shape(about), (parts[place + 1],))
        place += 2
    return fields


def _image(parts: Sequence[memoryview], series: int, frame: int) -> ImageMessage:
    if len(parts) < 4:
        raise DecodeError(f"an image of {len(parts)} parts; it has 4")
    about, times = _json(parts, 1), _json(parts, 3)
    encoding = about.get("encoding")
    match = _ENCODING.fullmatch(encoding) if isinstance(encoding, str) else None
    if match is None:
        raise DecodeError(f"part 2: encoding {encoding!r:.40} is not known")
    bits, shuffled, plain, order = match.groups()
    dtype = _dtype(about, order)
    compression = "bslz4" if shuffled else LZ4_BLOCK if plain else None
    item_bytes = int(bits) // 8 if bits else dtype.itemsize
    array = PackedArray(dtype, _shape(about), (parts[2],), compression, item_bytes)
    return ImageMessage(
        series_id=series,
        image_id=frame,
        data={CHANNEL: array},
        start_time=_time(times, "start_time"),
        stop_time=_time(times, "stop_time"),
        real_time=_time(times, "real_time"),
        user_data=_appendix(parts[4]) if len(parts) > 4 else None,
    )


def _json(parts: Sequence[memoryview], place: int) -> Mapping[str, Any]:
    data = parts[place]
    if data.nbytes > MAX_JSON_BYTES:
        raise DecodeError(f"part {place + 1}: {data.nbytes} bytes of JSON")
    try:
        found = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"part {place + 1}: no JSON: {error}") from None
    if not isinstance(found, dict):
        raise DecodeError(f"part {place + 1}: must be a JSON object")
    return found


def _appendix(data: memoryview) -> Any:
    """Return what the user appended: JSON, or text."""
    text = bytes(data[:MAX_JSON_BYTES]).decode(errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _number(found: Mapping[str, Any], key: str) -> int:
    value = found.get(key, 0)
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise DecodeError(f"{key} must be a number, 0 or more, got {value!r:.40}")
    return value


def _time(found: Mapping[str, Any], key: str) -> Rational | None:
    return Rational(_number(found, key), NS_PER_S) if key in found else None


def _dtype(found: Mapping[str, Any], order: str) -> np.dtype[np.generic]:
    name = found.get("type")
    if name not in _TYPES:
        raise DecodeError(f"type must be that of numbers, got {name!r:.40}")
    dtype: np.dtype[np.generic] = np.dtype(name)
    return dtype.newbyteorder("<" if order == "<" else ">")


def _shape(found: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape with rows first; in the message columns are."""
    shape = found.get("shape")
    is_shape = isinstance(shape, list) and 0 < len(shape) <= MAX_DIMENSIONS
    if not is_shape or not all(type(each) is int and each >= 0 for each in shape or ()):
        raise DecodeError(f"shape must be [columns, rows], got {shape!r:.40}")
    return tuple(reversed(shape or ()))
