"""What data sources find in the messages of a series."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer import simplon
from lclstream.streamer.config.more_sources import SimplonEventSourceConfig
from lclstream.streamer.events import Value, unknown_reading
from lclstream.streamer.simplon import lclstreamer
from lclstream.streamer.sources.simplon_own import is_missing, own_words, restored
from lclstream.streamer.values import Array

START, IMAGE, USER_DATA, OWN = "start", "image", "user_data", "lclstream"
FRAME_FIELDS = ("raw.raw", "raw.calib")
# A detector may leave out any of these: then they are missing, not unknown.
STANDARD = (
    "arm_date", "beam_center_x", "beam_center_y", "channels", "count_time",
    "countrate_correction_enabled", "countrate_correction_lookup_table", "detector_description",
    "detector_serial_number", "detector_translation", "flatfield", "flatfield_enabled",
    "frame_time", "goniometer", "image_dtype", "image_size_x", "image_size_y", "incident_energy",
    "incident_wavelength", "number_of_images", "pixel_mask", "pixel_mask_enabled", "pixel_size_x",
    "pixel_size_y", "saturation_value", "sensor_material", "sensor_thickness", "threshold_energy",
    "user_data", "virtual_pixel_interpolation_enabled",
)  # fmt: skip
TIMES = ("real_time", "start_time", "stop_time")
IDENTITY = ("series_id", "series_unique_id", "image_id", "series_date")


class ImageReadings:
    """The readings of one image message and of the start of its series.

    | name | field | value |
    |---|---|---|
    | the detector | `raw.raw`, `raw.<channel>` | the image of the first channel, or of one |
    | the detector | `raw.calib` | the frame that our own serializer made the image of |
    | `start` | a key, with `.` below it | what the start says; missing where it did not come |
    | `image` | a key | what the image says; times in seconds |
    | `user_data` | a key, with `.` below it | what the user added to the image |
    | a label | | a value that our own serializer sent beside the image |
    """

    __slots__ = ("_config", "_frames", "_image", "_said", "_start")

    def __init__(
        self,
        config: SimplonEventSourceConfig,
        start: simplon.StartMessage | None,
        image: simplon.ImageMessage,
    ) -> None:
        self._config, self._start, self._image = config, start, image
        self._said = own_words(image.user_data)
        self._frames: dict[str, Array] = {}

    def read(self, name: str, field: str) -> Value | None:
        """Return one reading, None when it is missing.

        Raises:
            InvalidConfigError: there can be no such reading.
            DecodeError: an image is damaged.
        """
        limit = self._config.max_image_bytes
        if name == self._config.detector:
            return self._frame(field)
        if name == START:
            return None if self._start is None else found_in(self._start.fields, field, limit)
        if name == IMAGE:
            return self._of_message(field, limit)
        if name == USER_DATA:
            return value_of(resolve(self._image.user_data, field), f"{USER_DATA}.{field}", limit)
        return sent_beside(self._said, name, field, limit, self._known())

    def _frame(self, field: str) -> Array | None:
        channel = field.removeprefix("raw.")
        if field in FRAME_FIELDS and channel not in self._image.data:
            channel = next(iter(self._image.data), "")
        packed = self._image.data.get(channel)
        if packed is None:
            announced = self._start.fields.get("channels") if self._start is not None else ()
            if field in FRAME_FIELDS or (isinstance(announced, list) and channel in announced):
                return None
            raise unknown_reading(self._config.detector, field, self._known())
        if channel not in self._frames:
            self._frames[channel] = packed.unpack(self._config.max_image_bytes)
        image = self._frames[channel]
        if is_missing(image, self._said):
            return None
        is_changed = field == "raw.calib" and channel != "calib"
        return restored(image, self._said, self._frame_shape) if is_changed else image

    @property
    def _frame_shape(self) -> object:
        said = None if self._start is None else self._start.fields.get(USER_DATA)
        return own_words(said).get("frame_shape")

    def _of_message(self, field: str, limit: int) -> Value | None:
        if field in TIMES:
            time = getattr(self._image, field)
            return None if time is None else np.float64(time.numerator / time.denominator)
        if field in IDENTITY:
            return value_of(getattr(self._image, field), field, limit)
        return found_in(self._image.fields, field, limit, (*TIMES, *IDENTITY))

    def _known(self) -> dict[str, list[str]]:
        channels = [f"raw.{channel}" for channel in self._image.data]
        start = {} if self._start is None else self._start.fields
        return {
            self._config.detector: [*FRAME_FIELDS, *channels],
            START: [str(key) for key in start],
            IMAGE: [*TIMES, *IDENTITY, *self._image.fields],
            USER_DATA: [str(key) for key in own_words(self._image.user_data)],
        }


class RunReadings:
    """The readings of one image of lclstreamer's dialect and of the start of its run.

    As those of `ImageReadings`; of the detector there are `_detid` and
    `raw._det_geotxt_default` too, as psana names them.
    """

    __slots__ = ("_config", "_frame", "_image", "_said", "_start")

    def __init__(
        self,
        config: SimplonEventSourceConfig,
        start: lclstreamer.RunStart,
        image: lclstreamer.RunImage,
    ) -> None:
        self._config, self._start, self._image = config, start, image
        self._said = own_words(image.fields.get(OWN))
        self._frame: Array | None = None

    def read(self, name: str, field: str) -> Value | None:
        """Return one reading, None when it is missing.

        Raises:
            InvalidConfigError: there can be no such reading.
            DecodeError: an image is damaged.
        """
        limit = self._config.max_image_bytes
        if name == START:
            return found_in(self._start.fields, field, limit)
        if name == IMAGE:
            return found_in(self._image.fields, field, limit)
        texts = {"_detid": "detector.id", "raw._det_geotxt_default": "detector.geometry"}
        if name != self._config.detector:
            known = {
                self._config.detector: [*FRAME_FIELDS, *texts],
                START: list(self._start.fields),
                IMAGE: list(self._image.fields),
            }
            return sent_beside(self._said, name, field, limit, known)
        if field in texts:
            return found_in(self._start.fields, texts[field], limit)
        if field not in FRAME_FIELDS:
            raise unknown_reading(name, field, {name: [*FRAME_FIELDS, *texts]})
        if self._frame is None:
            self._frame = self._image.unpack(self._start, limit)
        return None if is_missing(self._frame, self._said) else self._frame


def sent_beside(
    said: Mapping[str, Any], name: str, field: str, limit: int, known: dict[str, list[str]]
) -> Value | None:
    """Return a value that our own serializer sent beside an image, None where it was missing.

    Args:
        said: what it added to the message.
        name: the label of the value, or detector and field that are its label.
        field: of the detector; empty for none.
        limit: bytes that an array may have.
        known: what else there is, for the error.

    Raises:
        InvalidConfigError: there is no such value.
        DecodeError: an array is damaged.
    """
    values, valid = own_words(said.get("values")), own_words(said.get("valid"))
    label = f"{name}.{field}" if field else name
    if label not in values and label not in valid:
        labels = {str(each): [""] for each in (*values, *valid)}
        if name in known or not labels:
            raise unknown_reading(name, field, known)
        raise unknown_reading(label, "", known | labels)
    return value_of(values.get(label), label, limit)


def found_in(
    fields: Mapping[str, Any], path: str, limit: int, standard: tuple[str, ...] = STANDARD
) -> Value | None:
    """Return what a message says, None where it leaves out a key of the standard.

    Args:
        fields: of the message.
        path: a key, and those below it behind `.` each; a key may have `.` itself.
        limit: bytes that an array may have.
        standard: keys that may be left out.

    Raises:
        InvalidConfigError: it has no such key.
        DecodeError: an array is damaged.
    """
    found = resolve(fields, path)
    if found is None and path.partition(".")[0] not in (*fields, *standard):
        raise unknown_reading("message", path, {"message": [*fields, *standard]})
    return value_of(found, path, limit)


def resolve(value: Any, path: str) -> Any:
    """Return what a path of keys leads to, None where there is nothing."""
    if not isinstance(value, Mapping):
        return None
    if path in value:
        return value[path]
    for at, letter in enumerate(path):
        if letter == "." and path[:at] in value:
            found = resolve(value[path[:at]], path[at + 1 :])
            if found is not None:
                return found
    return None


def value_of(value: Any, path: str, limit: int) -> Value | None:
    """Return what a message says as a reading.

    Raises:
        InvalidConfigError: it is neither number, text nor array.
        DecodeError: an array is damaged.
    """
    if isinstance(value, simplon.PackedArray):
        return value.unpack(limit)
    if isinstance(value, simplon.DateTime):
        return value.text
    if isinstance(value, bool):
        return np.bool_(value)
    if value is None or isinstance(value, int | float | str):
        return value
    if isinstance(value, memoryview):
        return np.frombuffer(value, np.uint8)
    if isinstance(value, list):
        kinds = {float if isinstance(each, int | float) else type(each) for each in value}
        if kinds <= {float} or kinds == {str}:
            return np.array(value)
    inside = f"; it has: {', '.join(map(str, value))}" if isinstance(value, Mapping) else ""
    raise InvalidConfigError(f"{path!r} is neither number, text nor array{inside}")
