"""Stream V2 of DECTRIS: one series of start, images and end over all ranks and runs.

What is no part of the standard stands in `user_data`, which its clients pass on:

| of the start | |
|---|---|
| `detector_dtype`, `image_dtype`, `scale`, `offset`, `masked` | how frames became images |
| `frame_shape` | of a frame, where that is a stack of panels: they are one below the other |
| `geometry` | text |
| `units` | label -> units of the value, as far as the configuration says them |
| `detector_type`, `experiment`, `run`, `ranks`, `source_identifier`, `format` | |

| of an image | |
|---|---|
| `values` | label -> every other value that is sent: number, text or array |
| `scale`, `offset`, `masked`, `detector_dtype`, `image_dtype` | as of the start |
| `timestamp` | 64 bits: seconds since 1990-01-01 << 32, plus nanoseconds |
| `data_source` | the label of the image |
| `event_index`, `run`, `experiment`, `step`, `rank`, `ranks`, `sequence`, `format`, ... | |
| `valid` | label -> whether the reading exists, where it may be missing |

`image_id` is the event's index in the whole source. `series_date` is 1990-01-01, the beginning
of LCLS time, and `start_time` the time of the event since then.
"""

import logging
import math
import os
import time
from typing import Any, Literal

from lclstream.core.errors import InvalidConfigError
from lclstream.core.ledger import ENV_TRANSFER
from lclstream.streamer import simplon
from lclstream.streamer.batching import Form
from lclstream.streamer.config import Parameters, SimplonBinarySerializerConfig
from lclstream.streamer.config.canonical import configuration_hash
from lclstream.streamer.config.simplon import labels_of
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers.contents import FORMAT_VERSION, Provenance
from lclstream.streamer.serializers.simplon_facts import (
    NS_PER_S,
    Row,
    Wavelength,
    experiment_of,
    nanoseconds,
    run_of,
)
from lclstream.streamer.serializers.simplon_pixels import Pixels, pixels_of
from lclstream.streamer.simplon import DateTime, PackedArray, Rational
from lclstream.streamer.values import Array

logger = logging.getLogger(__name__)

LCLS_EPOCH = DateTime("1990-01-01T00:00:00.000000000Z")
# Names one start of a batch job or transfer, the same for all its ranks.
_JOB_VARIABLES = (ENV_TRANSFER, "SLURM_JOB_ID")


class Stream2:
    """Makes the messages of one series."""

    def __init__(
        self, config: SimplonBinarySerializerConfig, parameters: Parameters, place: Place
    ) -> None:
        self._config, self._parameters = config, parameters
        self._provenance = Provenance(parameters, place)
        self._label = config.image_label(parameters)
        self._wave = Wavelength(
            labels_of(parameters, config.wavelength_name(parameters)),
            labels_of(parameters, config.photon_energy_source),
        )
        self._distance = labels_of(parameters, config.detector_distance_source)
        self._geometry = labels_of(parameters, config.geometry_source)
        self._run_info = labels_of(parameters, config.run_info_source)
        number = config.series_id
        self._series_id = int(run_of(parameters) or 1) if number is None else number
        self._series_name = config.series_unique_id or _series_name(parameters, self._series_id)
        self._compress: Literal["bslz4"] | None = None
        if config.compression == "bslz4":
            self._compress = "bslz4"
        # Of every image alike; the start of the series has them already.
        self._left_out = {self._label, *self._geometry, *self._run_info}
        if config.mask_source is not None:
            self._left_out.add(config.mask_source)

    def check(self, form: Form) -> None:
        """Look whether images can be made of the frames of a form.

        Raises:
            InvalidConfigError: they cannot.
        """
        self._pixels(form)

    def start(self, first: Row | None) -> tuple[memoryview, ...]:
        """Return the message in front of all images.

        Args:
            first: the first event of this rank, from which we know what no configuration says;
                None when it has none.
        """
        pixels = None if first is None else self._pixels(first.batch.form)
        fields = self._known() | self._measured(first, pixels)
        fields["user_data"] = self._start_data(first, pixels)
        unknown = [name for name in fields if fields[name] is None]
        if unknown and first is not None:
            logger.warning("simplon_start_incomplete", extra={"unknown": unknown})
        present = {name: fields[name] for name in sorted(fields) if fields[name] is not None}
        return simplon.encode(
            simplon.StartMessage(
                series_id=self._series_id, series_unique_id=self._series_name, fields=present
            )
        )

    def image(self, row: Row, sequence: int) -> tuple[memoryview, ...]:
        """Return the message of one event; as long as no event had a frame it has no channel.

        Args:
            row: the event.
            sequence: number of the message in this rank.
        """
        pixels, data = self._pixels(row.batch.form), {}
        if pixels is not None:
            image = PackedArray.pack(self._image(row, pixels), self._compress)
            data = {self._config.channel: image}
        began = nanoseconds(row.timestamp)
        exposed = round((self._config.count_time_s or 0) * NS_PER_S)
        message = simplon.ImageMessage(
            series_id=self._series_id,
            series_unique_id=self._series_name,
            image_id=row.index,
            series_date=LCLS_EPOCH,
            start_time=Rational(began, NS_PER_S),
            stop_time=Rational(began + exposed, NS_PER_S),
            real_time=Rational(exposed, NS_PER_S),
            user_data=self._image_data(row, pixels, sequence) or None,
            data=data,
        )
        return simplon.encode(message)

    def end(self) -> tuple[memoryview, ...]:
        """Return the message behind all images."""
        return simplon.encode(
            simplon.EndMessage(series_id=self._series_id, series_unique_id=self._series_name)
        )

    def _pixels(self, form: Form) -> Pixels | None:
        """Return how frames become images; None when there is no frame so far."""
        column = next((each for each in form.columns if each.label == self._label), None)
        if column is None:
            return None
        if column.is_ragged or len(column.shape) < 2:
            raise InvalidConfigError(f"value {self._label!r} is no image: {column.shape}")
        config = self._config
        is_masked = config.mask_source is not None
        return pixels_of(column.dtype, config.image_dtype, config.scale, config.offset, is_masked)

    def _image(self, row: Row, pixels: Pixels) -> Array:
        frame = row.batch.arrays[self._label][row.row]
        if not row.exists(self._label):
            return pixels.missing(frame)
        mask = None if self._config.mask_source is None else row.array(self._config.mask_source)
        return pixels.image(frame, mask)

    def _known(self) -> dict[str, Any]:
        """Return what the configuration says; None: it does not."""
        config = self._config
        pixel = config.pixel_size_um or (None, None)
        center = config.beam_center or (None, None)
        return {
            "arm_date": DateTime.of_ns(time.time_ns()),
            "beam_center_x": center[0],
            "beam_center_y": center[1],
            "channels": [config.channel],
            "count_time": config.count_time_s,
            "frame_time": config.frame_time_s,
            "countrate_correction_enabled": False,
            "detector_description": config.detector_name or self._label,
            "flatfield": {},
            "flatfield_enabled": False,
            "goniometer": {},
            "number_of_images": config.number_of_images,
            "pixel_mask": {},
            "pixel_mask_enabled": config.mask_source is not None,
            "pixel_size_x": _scaled(pixel[0], 1e-6),
            "pixel_size_y": _scaled(pixel[1], 1e-6),
            "sensor_material": config.sensor_material or None,
            "sensor_thickness": _scaled(config.sensor_thickness_um, 1e-6),
            "threshold_energy": {},
            "virtual_pixel_interpolation_enabled": False,
        }

    def _measured(self, first: Row | None, pixels: Pixels | None) -> dict[str, Any]:
        """Return what only events say; None: this one does not."""
        geometry = [] if first is None else first.texts(self._geometry)
        distance = self._config.detector_distance_mm
        if first is not None and self._distance:
            distance = first.number(self._distance)
        found = {
            "detector_serial_number": geometry[0] if len(geometry) > 1 else "",
            "detector_translation": None if distance is None else [0.0, 0.0, distance * 1e-3],
            "image_dtype": None,
            "image_size_x": None,
            "image_size_y": None,
            "incident_energy": None if first is None else self._wave.ev(first),
            "incident_wavelength": None if first is None else self._wave.angstrom(first),
        }
        shape = None if first is None else first.shape(self._label)
        if shape is not None and pixels is not None:
            *above, columns = shape
            found["image_dtype"] = pixels.target.name
            found["image_size_x"], found["image_size_y"] = columns, math.prod(above)
            # Frames of floats have none.
            found["saturation_value"] = pixels.saturation or 0
        return found

    def _start_data(self, first: Row | None, pixels: Pixels | None) -> dict[str, Any]:
        found: dict[str, Any] = {} if pixels is None else pixels.described()
        shape = None if first is None else first.shape(self._label)
        if shape is not None:
            found["frame_shape"] = list(shape)
        geometry = [] if first is None else first.texts(self._geometry)
        if geometry:
            found["geometry"] = geometry[-1]
        if self._config.detector_type:
            found["detector_type"] = self._config.detector_type
        if self._provenance.units and self._config.identification:
            found["units"] = self._provenance.units
        if self._config.identification:
            run = run_of(self._parameters) if first is None else first.batch.form.run
            experiment = None if first is None else first.batch.form.experiment
            found |= {
                "experiment": experiment or experiment_of(self._parameters),
                "run": int(run or 0),
                "ranks": self._provenance.place.size,
                "source_identifier": self._provenance.source_identifier,
                "format": FORMAT_VERSION,
            }
        return found

    def _image_data(self, row: Row, pixels: Pixels | None, sequence: int) -> dict[str, Any]:
        found: dict[str, Any] = {} if pixels is None else pixels.described()
        values = row.values(self._left_out)
        if values:
            found["values"] = values
        if self._config.identification:
            found |= row.identification(self._provenance, sequence)
            found["data_source"] = self._label
        return found


def _scaled(number: float | None, factor: float) -> float | None:
    return None if number is None else number * factor


def _series_name(parameters: Parameters, series_id: int) -> str:
    """Return a name that all ranks of one start give the series, and other starts do not."""
    started = next((os.environ[name] for name in _JOB_VARIABLES if os.environ.get(name)), "")
    experiment = experiment_of(parameters) or "lclstream"
    name = f"{experiment}-{series_id}"
    # Without a batch system at least other configurations give other names.
    return f"{name}-{started or configuration_hash(parameters)[:16]}"
