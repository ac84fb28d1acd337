"""What the messages of a Simplon stream say besides the image, taken from single events."""

import re
from collections.abc import Container, Iterable
from typing import Any

import numpy as np

from lclstream.streamer.batching import Batch
from lclstream.streamer.config import Parameters
from lclstream.streamer.serializers.contents import Provenance
from lclstream.streamer.values import Array

HC_EV_ANGSTROM = 12398.419843320026
"""Photon energy in eV times wavelength in angstrom."""
NS_PER_S = 1_000_000_000
# psana1 has colons where psana2 has commas.
_RUN = re.compile(r"(?:^|[,:\s])run=(\d{1,18})(?=$|[,:\s])", re.ASCII)
_EXPERIMENT = re.compile(r"(?:^|[,:\s])exp=([^,:\s]+)")


class Row:
    """One event of a batch."""

    def __init__(self, batch: Batch, row: int) -> None:
        self.batch, self.row = batch, row

    @property
    def timestamp(self) -> int:
        """64 bits: seconds since 1990-01-01 << 32 | nanoseconds."""
        return int(self.batch.timestamp[self.row])

    @property
    def index(self) -> int:
        """Position in the whole source."""
        return int(self.batch.index[self.row])

    def exists(self, label: str) -> bool:
        """Return whether the event has a reading."""
        if label not in self.batch.arrays and label not in self.batch.ragged:
            return False
        mask = self.batch.valid.get(label)
        return mask is None or bool(mask[self.row])

    def array(self, label: str) -> Array | None:
        """Return a reading, of ragged ones all; None when it is missing."""
        if not self.exists(label):
            return None
        column = self.batch.ragged.get(label)
        if column is None:
            return self.batch.arrays[label][self.row, ...]
        start, end = map(int, column.offsets[self.row : self.row + 2])
        return column.room[start:end]

    def shape(self, label: str) -> tuple[int, ...] | None:
        """Return the shape of one event's reading; None when there is none so far."""
        columns = (each for each in self.batch.form.columns if each.label == label)
        return next((column.shape for column in columns), None)

    def numbers(self, labels: Iterable[str]) -> list[float]:
        """Return the numbers of some values, one after the other; missing ones are left out."""
        arrays = (self.array(label) for label in labels)
        return [
            float(number)
            for array in arrays
            if array is not None and array.dtype.kind in "biuf"
            for number in array.ravel().tolist()
        ]

    def number(self, labels: Iterable[str]) -> float | None:
        """Return the first number of some values; None where there is none that is finite."""
        return next((each for each in self.numbers(labels) if np.isfinite(each)), None)

    def texts(self, labels: Iterable[str]) -> list[str]:
        """Return what some values say as text, one after the other; missing ones are left out."""
        arrays = (self.array(label) for label in labels)
        return [
            item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)
            for array in arrays
            if array is not None
            for item in array.ravel().tolist()
        ]

    def values(self, without: Container[str]) -> dict[str, Any]:
        """Return what is sent beside the image, by label; missing readings are left out."""
        arrays = {
            column.label: self.array(column.label)
            for column in self.batch.form.columns
            if column.label not in without
        }
        return {label: plain(array) for label, array in arrays.items() if array is not None}

    def identification(self, provenance: Provenance, sequence: int) -> dict[str, Any]:
        """Return what identifies the event and its message.

        Args:
            provenance: of this rank.
            sequence: number of the message in this rank.
        """
        found = {
            "timestamp": self.timestamp,
            "event_index": self.index,
            "step": int(self.batch.step[self.row]),
            **provenance.of_message(self.batch),
            "sequence": sequence,
        }
        valid = {label: bool(mask[self.row]) for label, mask in self.batch.valid.items()}
        return found | {"valid": valid} if valid else found


class Wavelength:
    """Knows wavelength and photon energy of an event from either of them."""

    def __init__(self, wavelengths: tuple[str, ...], energies: tuple[str, ...]) -> None:
        """Remember where they are.

        Args:
            wavelengths: labels of the wavelength in angstrom; may be none.
            energies: labels of the photon energy in eV; may be none.
        """
        self.labels = (*wavelengths, *energies)
        self._wavelengths, self._energies = wavelengths, energies

    def angstrom(self, row: Row) -> float | None:
        """Return the wavelength; None when neither is known."""
        return row.number(self._wavelengths) or _reciprocal(row.number(self._energies))

    def ev(self, row: Row) -> float | None:
        """Return the photon energy; None when neither is known."""
        return row.number(self._energies) or _reciprocal(row.number(self._wavelengths))


def _reciprocal(number: float | None) -> float | None:
    return HC_EV_ANGSTROM / number if number else None


def run_of(parameters: Parameters) -> str:
    """Return the run that `source_identifier` names, empty when it names none or several."""
    return _only(_RUN, parameters)


def experiment_of(parameters: Parameters) -> str:
    """Return the experiment that `source_identifier` names, empty when it names none."""
    return _only(_EXPERIMENT, parameters)


def _only(wanted: re.Pattern[str], parameters: Parameters) -> str:
    found = set(wanted.findall(parameters.source_identifier))
    return found.pop() if len(found) == 1 else ""


def plain(array: Array) -> Any:
    """Return a reading as CBOR can say it: number, text, list of text, or array of numbers."""
    if array.dtype.kind == "S":
        return _decoded(array.tolist())
    if array.dtype.kind == "c":
        real = np.dtype(f"f{array.itemsize // 2}")
        array = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("="), copy=False)
        array = array.reshape(*array.shape, 1).view(real)
    if not array.ndim:
        return array.item()
    return array.view(np.uint8) if array.dtype.kind == "b" else array


def _decoded(item: Any) -> Any:
    if isinstance(item, list):
        return [_decoded(each) for each in item]
    return item.decode("utf-8", "replace")


def nanoseconds(timestamp: int) -> int:
    """Return nanoseconds since 1990-01-01 of a time stamp of the DAQ."""
    return (timestamp >> 32) * NS_PER_S + (timestamp & 0xFFFF_FFFF)
