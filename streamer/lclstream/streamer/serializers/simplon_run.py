"""The messages that lclstreamer calls SIMPLON: a control message, images, a control message.

The keys and their order are those of lclstreamer; behind them stands `lclstream`, a map of what
identifies the event, and of every other value that is sent. `message_id` is 1 at the start, and
the event's index in the whole source plus 2 in an image. `timestamp` of an image is the 64 bits of
the DAQ as an integer; without identification the float of lclstreamer, which has lost its last
bits.
"""

import time
from typing import Any

import numpy as np

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.batching import Form
from lclstream.streamer.config import Parameters, SimplonBinarySerializerConfig
from lclstream.streamer.config.simplon import labels_of
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers.contents import Provenance
from lclstream.streamer.serializers.simplon_facts import (
    Row,
    Wavelength,
    experiment_of,
    run_of,
)
from lclstream.streamer.simplon import lclstreamer
from lclstream.streamer.simplon.compression import compress_blocks
from lclstream.streamer.values import Array

BEAM = ("angle_x", "angle_y", "position_x", "position_y")
"""What the first readings of the electron beam are."""
# Where lclstreamer puts the beamline's name.
BEAMLINE_LETTERS = 3


class RunStream:
    """Makes the messages of one run."""

    def __init__(
        self, config: SimplonBinarySerializerConfig, parameters: Parameters, place: Place
    ) -> None:
        self._config, self._parameters = config, parameters
        self._is_newer = config.dialect == "lclstreamer-pr51"
        self._provenance = Provenance(parameters, place)
        self._label = config.image_label(parameters)
        self._run = run_of(parameters)
        self._wave = Wavelength(
            labels_of(parameters, config.wavelength_name(parameters)),
            labels_of(parameters, config.photon_energy_source),
        )
        self._beam = labels_of(parameters, config.beam_source)
        self._geometry = labels_of(parameters, config.geometry_source)
        self._run_info = labels_of(parameters, config.run_info_source)
        self._spectrometer = config.spectrometer_source
        self._left_out = {
            self._label, *self._geometry, *self._run_info, *self._beam, *self._wave.labels,
            config.spectrometer_source or "",
        }  # fmt: skip

    def check(self, form: Form) -> None:
        """Look whether images can be made of the frames of a form.

        Raises:
            InvalidConfigError: they cannot.
        """
        column = next((each for each in form.columns if each.label == self._label), None)
        if column is None:
            return
        if column.is_ragged or not column.shape or column.dtype.kind not in "biuf":
            raise InvalidConfigError(
                f"value {self._label!r} is no image of numbers: {column.dtype} {column.shape}"
            )

    def start(self, first: Row | None) -> tuple[memoryview, ...]:
        """Return the message in front of all images.

        Args:
            first: the first event of this rank, from which we know what no configuration says;
                None when it has none.
        """
        config, run_info = self._config, [] if first is None else first.texts(self._run_info)
        if first is not None:
            self._run = str(first.batch.form.run)
        experiment = first.batch.form.experiment if first else experiment_of(self._parameters)
        shape = first.shape(self._label) if first else None
        frames = first.batch.arrays.get(self._label) if first else None
        dtype = "" if frames is None else _name(frames.dtype)
        content = {
            "type": "start",
            "run_id" if self._is_newer else "run_number": self._run,
            "start_time": run_info[1] if len(run_info) > 1 else "N/A",
            "duration": "N/A",
            "beamline": experiment[:BEAMLINE_LETTERS].upper(),
            "experiment": experiment,
            "beam_type": "X-ray",
            "polarization": {
                "fraction": config.polarization_fraction,
                "axis": list(config.polarization_axis or ()),
            },
            "data_collection_rate": config.data_collection_rate,
            "image_dtype" if self._is_newer else "datatype": dtype,
            "shape": "x".join(map(str, shape or ())),
            "algorithm": "bitshuffle-lz4",
            "detector": self._detector(first),
            "message_id": 1,
            "timestamp": time.time(),
        }
        return self._encoded(content, lclstreamer.CONTROL)

    def image(self, row: Row, sequence: int) -> tuple[memoryview, ...]:
        """Return the message of one event.

        Args:
            row: the event.
            sequence: number of the message in this rank.
        """
        exact = self._config.identification
        frame = row.batch.arrays.get(self._label)
        image = np.empty(0, np.uint8) if frame is None else _sendable(frame[row.row, ...])
        content: dict[str, Any] = {
            "type": "image",
            "run_id" if self._is_newer else "run": str(row.batch.form.run),
            "compressed_data": _compressed(image),
            **self._beam_content(row),
            "image_dtype" if self._is_newer else "dtype": image.dtype.name,
            "sum": _sum(image),
            **self._spectrum(row),
            "message_id": row.index + 2,
            "timestamp": row.timestamp if exact else float(row.timestamp),
        }
        if exact:
            own = row.identification(self._provenance, sequence)
            own["shape"] = list(image.shape)
            own["values"] = row.values(self._left_out)
            content["lclstream"] = own
        return self._encoded(content, lclstreamer.IMAGE)

    def end(self) -> tuple[memoryview, ...]:
        """Return the message behind all images."""
        content = {
            "type": "end" if self._is_newer else "stop",
            "run_id" if self._is_newer else "run": self._run,
            "timestamp": time.time(),
        }
        return self._encoded(content, lclstreamer.CONTROL)

    def _encoded(self, content: dict[str, Any], prefix: bytes) -> tuple[memoryview, ...]:
        return lclstreamer.encode(content, b"" if self._is_newer else prefix)

    def _detector(self, first: Row | None) -> dict[str, Any]:
        config = self._config
        geometry = [] if first is None else first.texts(self._geometry)
        thickness: float | str = "???"
        if config.sensor_thickness_um is not None:
            thickness = config.sensor_thickness_um / 1000
        return {
            "name": config.detector_name,
            "id": geometry[0] if len(geometry) > 1 else "",
            "type": config.detector_type,
            "geometry": geometry[-1] if geometry else "",
            "pixel_coords": "",
            "material": config.sensor_material or "???",
            "thickness": thickness,
        }

    def _beam_content(self, row: Row) -> dict[str, Any]:
        found: dict[str, Any] = {}
        beam = row.numbers(self._beam)
        if len(beam) >= len(BEAM):
            found["beam_direction"] = dict(zip(BEAM, beam, strict=False))
        energy, wavelength = self._wave.ev(row), self._wave.angstrom(row)
        if energy is not None and wavelength is not None:
            found |= {"photon_energy": energy, "photon_wavelength": wavelength}
        return found

    def _spectrum(self, row: Row) -> dict[str, Any]:
        spectrum = None if self._spectrometer is None else row.array(self._spectrometer)
        if spectrum is None:
            return {}
        spectrum = _sendable(spectrum)
        return {
            "spectrometer_compressed_data": _compressed(spectrum),
            "spectrometer_dtype": spectrum.dtype.name,
            "spectrometer_shape": "x".join(map(str, spectrum.shape)),
        }


def _sendable(array: Array) -> Array:
    """Return an array as dtype's name alone describes it."""
    if array.dtype.kind == "b":
        return array.view(np.uint8)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _name(dtype: np.dtype[np.generic]) -> str:
    return "uint8" if dtype.kind == "b" else dtype.name


def _compressed(array: Array) -> memoryview:
    if not array.size:
        return memoryview(b"")
    return compress_blocks(array, lclstreamer.BLOCK_ITEMS * array.itemsize).data


def _sum(array: Array) -> float | int:
    total: float | int = array.sum(dtype=np.float64 if array.dtype.kind == "f" else None).item()
    return total
