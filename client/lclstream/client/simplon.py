"""Decodes Simplon messages: Stream V2 of DECTRIS, and the dialects of LCLStreamer.

An image is a batch of one event. It holds the channels of the image, such as `threshold_1`
(`image` in LCLStreamer's dialects), and every other value that our streamer sends with it. Pixels
are as they were sent: scale and offset of converted ones are in the message, which
`lclstream.streamer.simplon.decode` gives as a whole. A message of the beginning or the end of a
series is a batch without events.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lclstream.client.batches import Array, Batch
from lclstream.core.errors import DecodeError
from lclstream.streamer import simplon
from lclstream.streamer.simplon import ImageMessage, PackedArray, lclstreamer

SIGNATURE = simplon.cbor.MAGIC
"""Of Stream V2; messages of some detectors begin without it."""
IMAGE = "image"
"""Name of the image in LCLStreamer's dialects."""
MAX_UINT64 = (1 << 64) - 1


class Decoder:
    """Decodes the messages of one stream in their order.

    LCLStreamer says the shape of its images only at the start of a run: the decoder remembers it.
    """

    def __init__(self) -> None:
        self._start = lclstreamer.RunStart()

    def decode(
        self,
        payload: bytes | bytearray | memoryview,
        fields: Collection[str] | None = None,
    ) -> Batch:
        """Decode one message.

        Args:
            payload: the message; arrays of the result may be views of it.
            fields: names to decode; None for all. Those that the message lacks are left out.

        Raises:
            DecodeError: the message is none of Simplon, or is damaged.
        """
        view = memoryview(payload).cast("B")
        if lclstreamer.dialect_of(view) == "stream2":
            return _of_stream2(simplon.decode(view), fields, len(view))
        message = lclstreamer.decode(view)
        if isinstance(message, lclstreamer.RunStart):
            self._start = message
        if isinstance(message, lclstreamer.RunImage):
            return self._image(message, fields, len(view))
        return Batch(arrays={}, count=0, run=_run(message.run), size_bytes=len(view))

    def _image(
        self, message: lclstreamer.RunImage, fields: Collection[str] | None, size_bytes: int
    ) -> Batch:
        own = message.fields.get("lclstream")
        own = own if isinstance(own, dict) else {}
        values: dict[str, Any] = dict(own["values"]) if isinstance(own.get("values"), dict) else {}
        arrays = _arrays(values, fields)
        # A frame that is missing has no pixels when there has been none before.
        if message.data and (fields is None or IMAGE in fields):
            arrays[IMAGE] = message.unpack(self._start)[None]
        known = {"timestamp": message.timestamp} | own
        return _batch(arrays, known, {}, _run(message.run), size_bytes)


def decode(payload: bytes | bytearray | memoryview, fields: Collection[str] | None = None) -> Batch:
    """Decode one message by itself; see `Decoder.decode`."""
    return Decoder().decode(payload, fields)


def _of_stream2(message: simplon.Message, fields: Collection[str] | None, size_bytes: int) -> Batch:
    if not isinstance(message, ImageMessage):
        return Batch(arrays={}, count=0, run=message.series_id, size_bytes=size_bytes)
    own = message.user_data if isinstance(message.user_data, dict) else {}
    values: Mapping[str, Any] = own["values"] if isinstance(own.get("values"), dict) else {}
    arrays = _arrays({**values, **message.data}, fields)
    label = own.get("data_source")
    sources = {channel: label for channel in message.data if isinstance(label, str)}
    known = {"event_index": message.image_id} | own
    return _batch(arrays, known, sources, message.series_id, size_bytes)


def _batch(
    arrays: dict[str, Array],
    own: Mapping[str, Any],
    sources: Mapping[str, str],
    run: int | None,
    size_bytes: int,
) -> Batch:
    valid = own.get("valid")
    experiment = own.get("experiment")
    said = _number(own, "run")
    return Batch(
        arrays=arrays,
        count=1,
        indices=_one(own, "event_index"),
        timestamps=_one(own, "timestamp"),
        steps=_one(own, "step"),
        valid={
            str(label): np.array([bool(exists)], np.uint8)
            for label, exists in (valid.items() if isinstance(valid, dict) else ())
        },
        sources=sources,
        experiment=experiment if isinstance(experiment, str) else "",
        run=run if said is None else said,
        rank=_number(own, "rank"),
        sequence=_number(own, "sequence"),
        size_bytes=size_bytes,
    )


def _arrays(values: Mapping[str, Any], fields: Collection[str] | None) -> dict[str, Array]:
    """Return the values with one event along axis 0."""
    return {
        str(name): _array(str(name), value)[None]
        for name, value in values.items()
        if fields is None or name in fields
    }


def _array(name: str, value: Any) -> Array:
    if isinstance(value, PackedArray):
        return value.unpack()
    if isinstance(value, str):
        return np.array(value.encode())
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return np.array([each.encode() for each in value])
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        raise DecodeError(f"value {name!r:.80} of the message is neither number, text nor array")
    return array


def _number(own: Mapping[str, Any], name: str) -> int | None:
    value = own.get(name)
    if value is None or (type(value) is int and 0 <= value <= MAX_UINT64):
        return value
    raise DecodeError(f"{name} must be an integer of 64 bits, got {value!r:.40}")


def _one(own: Mapping[str, Any], name: str) -> npt.NDArray[np.uint64] | None:
    number = _number(own, name)
    return None if number is None else np.array([number], np.uint64)


def _run(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
