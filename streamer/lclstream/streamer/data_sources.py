"""Takes the named values out of an event.

Three things are kept apart: a reading that is missing from an event (None), one that the source
does not have at all (`InvalidConfigError`, which ends the run), and a fault of who reads it
(`ExtractionError`, which ends it too): what a bug hides must not look like missing data.
"""

import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import numpy as np

from lclstream.core.errors import ExtractionError, InvalidConfigError, LclstreamError
from lclstream.streamer.config import DataSourceModel, Parameters
from lclstream.streamer.config import data_sources as configs
from lclstream.streamer.config.naming import NamedValue
from lclstream.streamer.config.registry import implementation_of
from lclstream.streamer.events import Event, Value
from lclstream.streamer.values import Array, Ragged, Reading, Values

NUMBERS = frozenset("biufc")
"""The kinds of dtypes of numbers."""

Reader = Callable[[Event], Value | None]


class CustomSource(Protocol):
    """A data source that brings its own code."""

    def __init__(self, config: DataSourceModel, parameters: Parameters) -> None:
        """Prepare.

        Raises:
            InvalidConfigError: what it needs is not there.
        """

    def read(self, event: Event) -> Value | Mapping[str, Value | None] | None:
        """Return the value in an event, None when it is missing.

        One whose model names `parts` returns a mapping with the value of each.
        """
        ...


class Extractor:
    """Reads values from each event."""

    def __init__(self, parameters: Parameters, wanted: Collection[str]) -> None:
        """Prepare to read some of the values of a configuration.

        Args:
            parameters: the configuration.
            wanted: the names of the values, as in `parameters.values_read`.

        Raises:
            InvalidConfigError: what a data source needs is not there.
        """
        values = [value for value in parameters.values_read if value.label in wanted]
        self._readers: list[tuple[str, str, Reader]] = []
        self._sources_of_several: list[_SeveralValues] = []
        for value in values:
            if _is_custom(value.source) and value.part is not None:
                self._add_part(value, parameters)
            else:
                reader = _reader(value, parameters)
                self._readers.append((value.label, value.data_source, reader))
        names = {value.data_source for value in values}
        self._required = {name for name in names if parameters.data_sources[name].required}
        self.missing: dict[str, int] = {}
        """Data source -> events that lack it, or a part of it."""
        self.skipped: dict[str, int] = {}
        """Data source -> events that were dropped because it was missing."""
        self._skip = parameters.skip_incomplete_events
        self.may_miss = not self._skip or len(self._required) < len(names)
        """Whether events that lack a reading are passed on."""

    def _add_part(self, value: NamedValue, parameters: Parameters) -> None:
        several = self._sources_of_several
        if not several or several[-1].name != value.data_source:
            source = parameters.data_sources[value.data_source]
            kind = implementation_of(source, CustomSource)  # type: ignore[type-abstract]
            several.append(_SeveralValues(value.data_source, kind(source, parameters)))
        several[-1].labels[str(value.part)] = value.label

    def extract(self, event: Event) -> Values | None:
        """Return the values of an event, None for a missing one; None when it is dropped.

        Raises:
            InvalidConfigError: the source has no such reading at all, or it cannot be sent.
            ExtractionError: reading it failed, other than by its absence.
        """
        values: dict[str, Reading | None] = {}
        missing: list[str] = []
        source = ""
        try:
            for label, source, read in self._readers:
                value = read(event)
                if type(value) is np.ndarray and value.dtype.kind in NUMBERS:
                    # As nearly all are.
                    values[label] = value
                elif value is None:
                    values[label] = None
                    missing.append(source)
                else:
                    values[label] = as_reading(value, label)
            for several in self._sources_of_several:
                source = several.name
                values |= several.read(event)
                missing += [source for label in several.labels.values() if values[label] is None]
        except LclstreamError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ExtractionError(
                f"data source {source!r} failed at event {event.index}: {reason}"
            ) from error
        return None if missing and self._is_dropped(set(missing)) else values

    def _is_dropped(self, missing: set[str]) -> bool:
        """Return whether an event may not lack these data sources; count them."""
        for name in missing:
            self.missing[name] = self.missing.get(name, 0) + 1
        lacking = self._required & missing if self._skip else set()
        for name in lacking:
            self.skipped[name] = self.skipped.get(name, 0) + 1
        return bool(lacking)


class _SeveralValues:
    """A data source of another package that gives several values."""

    def __init__(self, name: str, source: CustomSource) -> None:
        self.name, self._source = name, source
        self.labels: dict[str, str] = {}
        """Part -> name of the value."""

    def read(self, event: Event) -> dict[str, Reading | None]:
        """Return all of them."""
        found = self._source.read(event)
        if found is None:
            return dict.fromkeys(self.labels.values())
        if not isinstance(found, Mapping):
            raise TypeError(f"must return a mapping of its parts, got {type(found).__name__}")
        values = ((label, found.get(part)) for part, label in self.labels.items())
        return {
            label: None if value is None else as_reading(value, label) for label, value in values
        }


def as_reading(value: Value, name: str) -> Reading:
    """Return a value as an array, or several of a number that varies.

    Raises:
        InvalidConfigError: it is not made of numbers or text.
    """
    if isinstance(value, Ragged):
        return Ragged(as_array(value.array, name))
    return as_array(value, name)


def as_array(value: Value, name: str) -> Array:
    """Return a value as an array that HDF5 can hold; text becomes UTF-8 bytes.

    Raises:
        InvalidConfigError: it is not made of numbers or text.
    """
    array = np.asarray(value)
    if array.dtype.kind in NUMBERS:
        return array
    if array.dtype.kind == "U":
        array = np.char.encode(array, "utf-8")
    if array.dtype.kind != "S":
        raise InvalidConfigError(
            f"data source {name!r} gives {type(value).__name__} values, which cannot be sent"
        )
    # An empty text would have no size; HDF5 has no such type.
    return array.astype("S1") if array.dtype == np.dtype("S0") else array


def _is_custom(source: DataSourceModel) -> bool:
    return bool(source.implementation)


def _reader(value: NamedValue, parameters: Parameters) -> Reader:
    source = value.source
    if _is_custom(source):
        kind = implementation_of(source, CustomSource)  # type: ignore[type-abstract]
        # It gives one value, since its model names no parts.
        return kind(source, parameters).read  # type: ignore[return-value]
    match source:
        case configs.GenericRandomNumpyArrayConfig():
            return _random(source, value.label)
        case configs.FloatValueConfig():
            return _constant(np.array(source.value, dtype=np.float64))
        case configs.IntValueConfig():
            return _constant(np.array(source.value, dtype=np.int64))
        case configs.ConstValueConfig():
            return _constant(np.array(source.value, dtype=source.dtype))
        case configs.SourceIdentifierConfig():
            return _constant(as_array(parameters.source_identifier, value.label))
        case configs.Psana1TimestampConfig() | configs.Psana2TimestampConfig():
            exact = source.dtype == "uint64"
            return lambda event: (np.uint64 if exact else np.float64)(event.timestamp)
        case configs.Psana2RunInfoConfig():
            return _run_info(parameters.source_identifier, value.part)
        case configs.EventValueConfig():
            return _readings(source.name, (source.field,), source.dtype)
        case configs.DetectorInterface():
            return _readings(source.psana_name, source.fields, source.dtype)
        case configs.Psana1Function():
            return _readings(source.psana_name, (source.field,), source.dtype)
    raise InvalidConfigError(
        f"data source {value.data_source!r}: its model names no implementation"
    )


def _constant(value: Array) -> Reader:
    return lambda event: value


def _run_info(identifier: str, part: str | None) -> Reader:
    """Return what reads all that is known about a run, or one part of it."""

    def read(event: Event) -> Value:
        texts = (event.experiment, str(event.run_timestamp), str(event.run), identifier)
        return np.array(texts) if part is None else texts[configs.RUN_INFO.index(part)]

    return read


def _random(source: configs.GenericRandomNumpyArrayConfig, label: str) -> Reader:
    dtype, shape = np.dtype(source.array_dtype), source.array_shape
    # Not the same numbers for two data sources.
    seed = zlib.crc32(label.encode())

    def make(event: Event) -> Array:
        generator = np.random.default_rng((event.index, seed))
        if dtype == np.float64:
            return generator.random(shape)
        if dtype.kind == "f":
            return generator.random(shape, np.float32).astype(dtype, copy=False)
        return generator.integers(0, min(255, np.iinfo(dtype).max + 1), shape, dtype)

    if source.always_random:
        return make
    kept: list[Array] = []

    def repeat(event: Event) -> Array:
        kept[:] = kept or [make(event)]
        return kept[0]

    return repeat


def _readings(name: str, fields: tuple[str, ...], dtype: str | None) -> Reader:
    def read(event: Event) -> Value | None:
        values = [
            value for value in (event.read(name, field) for field in fields) if value is not None
        ]
        if len(values) < len(fields):
            return None
        value = values[0] if len(values) == 1 else _stacked(name, values)
        return value if dtype is None else _converted(value, np.dtype(dtype))

    return read


def _converted(value: Value, dtype: np.dtype[np.generic]) -> Array | Ragged:
    if isinstance(value, Ragged):
        return Ragged(value.array.astype(dtype, copy=False))
    return np.asarray(value).astype(dtype, copy=False)


def _stacked(name: str, values: list[Value]) -> Array:
    arrays = [value.array if isinstance(value, Ragged) else np.asarray(value) for value in values]
    try:
        return np.array(arrays)
    except ValueError:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise InvalidConfigError(
            f"the fields of {name!r} have different shapes and cannot be stacked: {shapes};"
            " `separate_fields: true` sends each by itself"
        ) from None
