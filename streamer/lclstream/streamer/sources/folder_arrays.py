"""One file of NumPy arrays as events: npy, or npz as our own serializer writes it and others."""

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lclstream.core.errors import DecodeError, InvalidConfigError
from lclstream.streamer.config.event_sources import EventFilesConfig
from lclstream.streamer.events import Event, Value, unknown_reading
from lclstream.streamer.values import Array, Ragged

OWN = "lclstream/"
# Name of the array of a file that has only one.
ONLY = "data"
MAX_ARRAY_BYTES = 1 << 32
_STAMP, _STEP, _EXPERIMENT, _RUN = (f"{OWN}{name}" for name in
                                    ("timestamp", "step", "experiment", "run"))  # fmt: skip

Name = tuple[str, str]


class ArrayEventFile:
    """The events of one npy or npz file.

    An array of an npz file is read as a whole, when something of it is asked for.

    Args:
        path: of the file.
        config: names, constants and where the time stamps are.

    Raises:
        DecodeError: the file is damaged, or holds more than numbers and text.
    """

    def __init__(self, path: Path, config: EventFilesConfig) -> None:
        self.path, self._config = path, config
        self.absent: frozenset[Name] = frozenset()
        """Readings that this file lacks and others of the source have."""
        self._arrays: dict[str, Array] = {}
        self._archive: Any = None
        self._held = ExitStack()
        self._names: tuple[str, ...] = (ONLY,)
        with _reading(path), ExitStack() as stack:
            if path.suffix != ".npz":
                self._arrays[ONLY] = np.load(path, mmap_mode="r", allow_pickle=False)
                return
            # NumPy does not close what it has opened when it is no archive.
            file = stack.enter_context(path.open("rb"))
            self._archive = stack.enter_context(np.load(file, allow_pickle=False))
            self._names = tuple(self._archive.files)
            self._held = stack.pop_all()

    def close(self) -> None:
        """Close the file."""
        self._arrays.clear()
        self._held.close()

    def has(self, name: Name) -> bool:
        """Return whether the file has a reading."""
        return self._place(name) in self._names

    def count(self, wanted: Iterable[Name]) -> int:
        """Return how many events the file has.

        Raises:
            InvalidConfigError: an array is not there, the arrays differ in their numbers, or
                nothing says how many there are.
            DecodeError: the file is damaged.
        """
        if self._config.one_event:
            return 1
        lengths: dict[str, int] = {}
        for name in wanted:
            place = self._place(name)
            if place not in self._names:
                raise self.unknown(name)
            if not self._is_constant(name, place):
                array, offsets = self._array(place), f"{OWN}offsets/{place.strip('/')}"
                if not array.shape:
                    raise InvalidConfigError(f"{place} has no axis of events")
                is_ragged = offsets in self._names
                lengths[place] = len(self._array(offsets)) - 1 if is_ragged else len(array)
        for place in (self._config.timestamp or _STAMP, self._config.step or _STEP):
            if place in self._names:
                lengths[place] = len(self._array(place))
        if not lengths and self._names == (ONLY,):
            lengths[ONLY] = len(self._array(ONLY))
        if not lengths:
            raise InvalidConfigError("no data source names an array: how many events are there?")
        if len(set(lengths.values())) > 1:
            each = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise InvalidConfigError(f"the arrays differ in their events: {each}")
        return next(iter(lengths.values()))

    def event(self, row: int, index: int) -> Event:
        """Return one event.

        Args:
            row: in this file.
            index: in the whole source.

        Raises:
            DecodeError: the file is damaged.
        """
        stamp, step = (self._whole(name, row) for name in
                       (self._config.timestamp or _STAMP, self._config.step or _STEP))  # fmt: skip
        run = self._single(_RUN)
        experiment = self._single(_EXPERIMENT)
        text = experiment.decode(errors="replace") if isinstance(experiment, bytes) else ""
        return Event(
            timestamp=index if stamp is None else stamp & (1 << 64) - 1,
            index=index,
            run=self._config.run or (run if isinstance(run, int) and run > 0 else 0),
            experiment=self._config.experiment or text.rstrip("\0"),
            step=max(step or 0, 0),
            readings=_ArrayRow(self, row),
        )

    def read(self, name: Name, row: int) -> Value | None:
        """Return one reading, None when it is missing.

        Raises:
            InvalidConfigError: there is no such array.
            DecodeError: the file is damaged.
        """
        place = self._place(name)
        if place not in self._names:
            if name in self.absent:
                return None
            raise self.unknown(name)
        array, clean = self._array(place), place.strip("/")
        if self._config.one_event or self._is_constant(name, place):
            return array[()]
        if self._whole(f"{OWN}valid/{clean}", row) == 0:
            return None
        offsets = f"{OWN}offsets/{clean}"
        if offsets in self._names:
            first, last = self._whole(offsets, row), self._whole(offsets, row + 1)
            if first is None or last is None or not 0 <= first <= last <= len(array):
                raise DecodeError(f"{self.path}: {offsets}: event {row} has {first} to {last}")
            return Ragged(array[first:last])
        value = array[row]
        # Of a mapped file nothing must stay behind.
        return np.array(value) if isinstance(value, np.memmap) else value

    def describe(self) -> Iterator[str]:
        """Yield a line for each array.

        Raises:
            DecodeError: the file is damaged.
        """
        for name in self._names:
            array = self._array(name)
            shape = " x ".join(map(str, array.shape)) or "one value"
            yield f"  {name}: {array.dtype}, {shape}"

    def unknown(self, name: Name) -> InvalidConfigError:
        """Return the error for a reading that the file does not have."""
        known = {each: [""] for each in self._names if not each.startswith(OWN)}
        return unknown_reading(_called(name), "", known)

    def _place(self, name: Name) -> str:
        called = _called(name)
        return self._config.names.get(called, called)

    def _is_constant(self, name: Name, place: str) -> bool:
        return bool({place, _called(name)} & set(self._config.constants))

    def _array(self, name: str) -> Array:
        if name not in self._arrays:
            with _reading(self.path, name):
                self._check_size(name)
                self._arrays[name] = self._archive[name]
        array = self._arrays[name]
        if array.dtype.kind not in "biufcSU":
            raise DecodeError(f"{self.path}: {name} holds {array.dtype}, which cannot be sent")
        return array

    def _check_size(self, name: str) -> None:
        """Look at the header, which takes no memory, before all is read."""
        archive = self._archive.zip
        member = f"{name}.npy" if f"{name}.npy" in archive.namelist() else name
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(
                file
            )
        size = math.prod(shape) * dtype.itemsize
        if size > MAX_ARRAY_BYTES or size > archive.getinfo(member).file_size:
            raise ValueError(f"{size} bytes in an array")

    def _whole(self, name: str, row: int) -> int | None:
        if name not in self._names:
            return None
        array = self._array(name)
        if array.dtype.kind not in "bui":
            raise DecodeError(f"{self.path}: {name} must be integers, got {array.dtype}")
        if not array.shape:
            return int(array)
        if array.ndim != 1 or row >= len(array):
            raise DecodeError(f"{self.path}: {name} has no element for event {row}")
        return int(array[row])

    def _single(self, name: str) -> object:
        if name not in self._names:
            return None
        array = self._array(name)
        return None if array.shape else array.item()


class _ArrayRow:
    """The readings of one event: the same row of every array."""

    __slots__ = ("_file", "_row")

    def __init__(self, file: ArrayEventFile, row: int) -> None:
        self._file, self._row = file, row

    def read(self, name: str, field: str) -> Value | None:
        """Return one reading, None when it is missing.

        Raises:
            InvalidConfigError: there is no such array.
            DecodeError: the file is damaged.
        """
        return self._file.read((name, field), self._row)


def _called(name: Name) -> str:
    return f"{name[0]}.{name[1]}" if name[1] else name[0]


@contextmanager
def _reading(path: Path, name: str = "") -> Iterator[None]:
    """Turn whatever NumPy and zip raise into a `DecodeError` that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise InvalidConfigError(f"{path}: no such file") from None
    except Exception as error:
        what = f"{path}: {name}" if name else str(path)
        raise DecodeError(f"cannot read {what}: {error}") from None
