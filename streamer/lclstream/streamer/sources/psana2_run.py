"""One run of psana2: its detectors, its steps, and the readings of its events."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from lclstream.core.errors import LclstreamError
from lclstream.streamer.events import Value, unknown_reading
from lclstream.streamer.sources.psana_paths import NoSuchFieldError, Reader, as_value
from lclstream.streamer.sources.xtc2_format import FieldType, Service

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)


class Psana2Run:
    """A run as psana2 has it; detectors are made when they are first asked for."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self.experiment: str = run.expt or ""
        self.number: int = run.runnum or 0
        self.timestamp: int = int(getattr(run, "timestamp", 0) or 0)
        self._events: Iterator[Any] = iter(run.events())
        self._detectors: dict[str, Any] = {}
        self._readers: dict[tuple[str, str], FieldReader] = {}
        self._steps = StepCount(run)

    def reader(self, name: str, field: str) -> "FieldReader":
        """Return what reads a field of a detector.

        Raises:
            InvalidConfigError: there is no such detector or field.
        """
        key = name, field
        if key not in self._readers:
            try:
                reader = Reader(self._detector(name), field)
            except NoSuchFieldError:
                raise self.unknown(name, field) from None
            native = native_type(self._run, name, field) if is_stored(reader) else None
            self._readers[key] = FieldReader(reader, name, native)
        return self._readers[key]

    def unknown(self, name: str, field: str) -> Exception:
        """Return the error for what the run does not have."""
        known: dict[str, list[str]] = {}
        for (detector, algorithm), fields in getattr(self._run, "detinfo", {}).items():
            found = fields if isinstance(fields, list) else []
            known.setdefault(detector, []).extend(f"{algorithm}.{each}" for each in found)
        for pair in getattr(self._run, "epicsinfo", {}):
            known |= {each: [""] for each in pair if each}
        return unknown_reading(name, field, known)

    @property
    def step(self) -> int:
        """Number of the scan's step that the last event belongs to, from 0."""
        return max(self._steps.number, 0)

    def __iter__(self) -> "Iterator[Any]":
        """Yield the events that psana2 has for this rank."""
        for event in self._events:
            self._steps.saw_event()
            yield event

    def end(self) -> None:
        """Have no more events sent to this rank, nor to the others."""
        self._run.terminate()
        for _ in self._events:
            pass

    def _detector(self, name: str) -> Any:
        if name not in self._detectors:
            try:
                self._detectors[name] = self._run.Detector(name)
            except KeyError:
                raise self.unknown(name, "") from None
        return self._detectors[name]


class StepCount:
    """Numbers the steps of a run by the transitions that psana2 passes over between events.

    Some runs announce a step twice before it begins, which makes one step.
    """

    def __init__(self, run: Any) -> None:
        """Look at every transition that the run handles."""
        self.number = -1
        self._is_open = self._has_events = False
        handle = getattr(run, "_handle_transition", None)
        if handle is None:
            logger.info("psana_steps_unknown")
            return

        def handled(dgrams: Any) -> Any:
            is_transition = handle(dgrams)
            if is_transition:
                self._after(next(each.service() for each in dgrams if each))
            return is_transition

        run._handle_transition = handled  # noqa: SLF001

    def saw_event(self) -> None:
        """Take note that there was an event since the last transition."""
        self._has_events = True

    def _after(self, service: int) -> None:
        if service == Service.BEGIN_STEP:
            if not self._is_open or self._has_events:
                self.number += 1
            self._is_open, self._has_events = True, False
        elif service == Service.END_STEP:
            self._is_open = False


class FieldReader:
    """Reads a field and tells missing data from mistakes."""

    def __init__(self, reader: Reader, name: str, native: np.dtype[Any] | None) -> None:
        self._reader, self._native = reader, native
        self.what = f"{name}.{reader.field}" if reader.field else name

    def __call__(self, event: Any) -> Value | None:
        """Return the reading of an event, None when it is missing from it."""
        try:
            found = self._reader(event)
        except (LclstreamError, NoSuchFieldError):
            raise
        except Exception as error:
            # Many detectors of psana2 do not look whether all of their segments are there.
            if self._lacks_segments(event):
                return None
            error.add_note(f"while psana2 read {self.what} of the event {event.timestamp}")
            raise
        value = as_value(found, self.what)
        if self._native is not None and isinstance(value, int | float):
            number: Value = self._native.type(value)
            return number
        return value

    def _lacks_segments(self, event: Any) -> bool:
        owner = self._reader.owner
        segments = getattr(owner, "_segments", None)
        return segments is not None and segments(event) is None


class Psana2Readings:
    """The readings of one event, computed by psana2 when they are asked for."""

    __slots__ = ("_event", "_run")

    def __init__(self, run: Psana2Run, event: Any) -> None:
        self._run, self._event = run, event

    def read(self, name: str, field: str) -> Value | None:
        """Return one reading, None when psana2 returns nothing.

        Raises:
            InvalidConfigError: the run has no such detector or field.
        """
        try:
            return self._run.reader(name, field)(self._event)
        except NoSuchFieldError:
            raise self._run.unknown(name, field) from None


def is_stored(reader: Reader) -> bool:
    """Return whether a reading is what is in the data, not something that is computed of it."""
    made_by = getattr(reader.target, "__qualname__", "")
    # psana2 makes functions of the names of fields; process variables are called themselves.
    return not reader.field or "_add_fields" in made_by


def native_type(run: Any, name: str, field: str) -> np.dtype[Any] | None:
    """Return the type of a number in the data; psana2 makes Python's own numbers of it.

    Returns:
        None for what is no single number in the data.
    """
    for config in getattr(run, "configs", None) or ():
        found = getattr(config, "software", None)
        parts = (name, None, *field.split(".")) if field else _variable(run, name)
        for part in parts:
            if part is None:
                found = next(iter(found.values()), None) if isinstance(found, dict) else None
            else:
                found = getattr(found, part, None)
        kind, rank = getattr(found, "_type", None), getattr(found, "_rank", None)
        if kind is not None and rank == 0:
            return FieldType(kind).dtype
    return None


def _variable(run: Any, name: str) -> tuple[str | None, ...]:
    """Return the path of a process variable in the configuration."""
    stores = getattr(getattr(run, "esm", None), "stores", {})
    key = stores["epics"].epics_inv_mapper.get(name, name) if "epics" in stores else name
    return "epics", None, "raw", key
