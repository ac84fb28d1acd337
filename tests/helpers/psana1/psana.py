"""Stands in for psana1, which is nowhere to be had: what the documentation says of it, no more.

A test puts events and detectors here, and looks at what was opened.
"""

from collections.abc import Callable, Iterator
from typing import Any

RANK, SIZE = 0, 1
EVENTS: list["Event"] = []
DETECTORS: dict[str, Any] = {}
OPENED: list[tuple[str, Any]] = []
OPTIONS: dict[str, str] = {}


class EventId:
    """Says when an event was."""

    def __init__(self, seconds: int, nanoseconds: int) -> None:
        self._time = seconds, nanoseconds

    def time(self) -> tuple[int, int]:
        return self._time

    def fiducials(self) -> int:
        return 0x1FFFF


class Event:
    """One event, with the values that detectors have for it."""

    def __init__(self, seconds: int, nanoseconds: int, run: int = 0, **values: Any) -> None:
        self._id = EventId(seconds, nanoseconds)
        self._run = run
        self.values = values

    def get(self, kind: type[EventId]) -> EventId:
        assert kind is EventId
        return self._id

    def run(self) -> int:
        return self._run


class Run:
    """The events of a run by their times."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events

    def times(self) -> tuple[int, ...]:
        return tuple(range(len(self._events)))

    def event(self, time: int) -> Event | None:
        event = self._events[time]
        return None if event.values.get("not_in_file") else event


class DataSource:
    """Gives all events to whoever asks."""

    def __init__(self, name: Any) -> None:
        OPENED.append((type(self).__name__, name))
        if "nowhere" in name:
            raise RuntimeError("No data found")

    def events(self) -> Iterator[Event]:
        return iter(EVENTS)

    def runs(self) -> Iterator[Run]:
        for number in sorted({event.run() for event in EVENTS}):
            yield Run([event for event in EVENTS if event.run() == number])


class MPIDataSource(DataSource):
    """Gives every rank its share, in turn."""

    def events(self) -> Iterator[Event]:
        return iter(EVENTS[RANK::SIZE])


class Function:
    """A function of the event that says nothing of its arguments, as those in C++."""

    __signature__ = "unknown"

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


def Detector(name: str) -> Any:  # noqa: N802
    return DETECTORS[name]


def setOption(name: str, value: str) -> None:  # noqa: N802
    OPTIONS[name] = value
