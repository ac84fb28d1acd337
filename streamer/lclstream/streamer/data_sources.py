"""Takes the named values out of an event."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import DataSourceModel, Parameters
from lclstream.streamer.config import data_sources as configs
from lclstream.streamer.config.registry import implementation_of
from lclstream.streamer.events import Event, Value
from lclstream.streamer.values import Array, Ragged, Reading, Values

Reader = Callable[[Event], Value | None]


class CustomSource(Protocol):
    """A data source that brings its own code."""

    def __init__(self, config: DataSourceModel, parameters: Parameters) -> None:
        """Prepare.

        Raises:
            InvalidConfigError: what it needs is not there.
        """

    def read(self, event: Event) -> Value | None:
        """Return the value in an event, None when it is missing."""
        ...


class Extractor:
    """Reads every data source of a configuration from each event."""

    def __init__(self, parameters: Parameters, wanted: list[str]) -> None:
        """Make a reader for each wanted data source.

        Raises:
            InvalidConfigError: a constant does not fit its dtype, or a kind is not supported.
        """
        sources = {name: parameters.data_sources[name] for name in wanted}
        self._readers = {name: _reader(name, each, parameters) for name, each in sources.items()}
        self._required = {name for name, source in sources.items() if source.required}
        self.missing: dict[str, int] = {}
        """Data source -> events that lack it."""
        self.skipped: dict[str, int] = {}
        """Data source -> events that were dropped because it was missing."""
        self._skip = parameters.skip_incomplete_events
        self.may_miss = not self._skip or len(self._required) < len(sources)
        """Whether events that lack a reading are passed on."""

    def extract(self, event: Event) -> Values | None:
        """Return the values of an event, None for a missing one; None when it is dropped.

        Raises:
            InvalidConfigError: the source has no such reading at all, or it cannot be sent.
        """
        values: dict[str, Reading | None] = {}
        missing: list[str] = []
        for name, read in self._readers.items():
            value = read(event)
            if value is not None:
                values[name] = as_reading(value, name)
                continue
            values[name] = None
            self.missing[name] = self.missing.get(name, 0) + 1
            if name in self._required:
                missing.append(name)
        if missing and self._skip:
            for name in missing:
                self.skipped[name] = self.skipped.get(name, 0) + 1
            return None
        return values


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
    if array.dtype.kind == "U":
        array = np.char.encode(array, "utf-8")
    if array.dtype.kind not in "biufcS":
        raise InvalidConfigError(
            f"data source {name!r} gives {type(value).__name__} values, which cannot be sent"
        )
    # An empty text would have no size; HDF5 has no such type.
    return array.astype("S1") if array.dtype == np.dtype("S0") else array


def _reader(name: str, source: DataSourceModel, parameters: Parameters) -> Reader:
    match source:
        case configs.GenericRandomNumpyArrayConfig():
            return _random(source)
        case configs.FloatValueConfig():
            return _constant(np.float64(source.value))
        case configs.IntValueConfig():
            return _constant(_exactly(name, source.value, "int64"))
        case configs.ConstValueConfig():
            return _constant(_exactly(name, source.value, source.dtype))
        case configs.SourceIdentifierConfig():
            return _constant(parameters.source_identifier)
        case configs.Psana1TimestampConfig() | configs.Psana2TimestampConfig():
            exact = source.dtype == "uint64"
            return lambda event: (np.uint64 if exact else np.float64)(event.timestamp)
        case configs.Psana2RunInfoConfig():
            identifier = parameters.source_identifier
            return lambda event: np.array(
                [event.experiment, str(event.run_timestamp), str(event.run), identifier]
            )
        case configs.EventValueConfig():
            return _readings(source.name, (source.field,), source.dtype)
        case configs.DetectorInterface():
            return _readings(source.psana_name, source.fields, source.dtype)
        case configs.Psana1Function():
            return _readings(source.psana_name, (source.field,), source.dtype)
    kind = implementation_of(source, CustomSource)  # type: ignore[type-abstract]
    return kind(source, parameters).read


def _constant(value: Value) -> Reader:
    return lambda event: value


def _exactly(name: str, value: object, dtype: str) -> Array:
    """Return a constant in the dtype asked for, if nothing is lost.

    Raises:
        InvalidConfigError: the value does not fit, or is ragged.
    """
    try:
        exact = np.array(value)
        with np.errstate(all="ignore"):
            array = exact.astype(np.dtype(dtype))
            same = bool(np.array_equal(array.astype(exact.dtype), exact, equal_nan=True))
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidConfigError(
            f"data source {name!r}: {value!r} is not {dtype}: {error}"
        ) from None
    if exact.dtype.kind not in "biuf" or not same:
        raise InvalidConfigError(f"data source {name!r}: {value!r} does not fit into {dtype}")
    return array


def _random(source: configs.GenericRandomNumpyArrayConfig) -> Reader:
    dtype, shape = np.dtype(source.array_dtype), source.array_shape

    def make(event: Event) -> Array:
        generator = np.random.default_rng(event.index)
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
            f"the fields of {name!r} have different shapes and cannot be stacked: {shapes}"
        ) from None
