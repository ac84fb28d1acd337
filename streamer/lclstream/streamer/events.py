"""What an event is, and the door through which every event source plugs in.

An event source is a class that is made from the parameters and the place of this process
among its peers, and that is iterated once:

```
class MyEventSource:
    def __init__(self, parameters: Parameters, rank: int, size: int) -> None: ...
    def __iter__(self) -> Iterator[Event]: ...
    def close(self) -> None: ...
```

It may have four things more. `interrupt_by(stop)`, if it waits for what is still to come, is
called before it is iterated and gives it a `lclstream.streamer.stopping.StopRequest` to wait with.
`counts` is a mapping of what it found wrong to how often. `arrays_stay = True` says that what was
read from an event is valid as long as somebody holds it. `first_rank` is the lowest rank that gets
events, where that is not 0: it sends what goes before and behind the messages of all ranks.

It yields the events whose `index % size == rank`, unless the facility's own library hands
them out otherwise. Its configuration is a model of
`lclstream.streamer.config.registry`, which names the class.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from lclstream.core.errors import InvalidConfigError
from lclstream.core.models import near
from lclstream.streamer.config.registry import implementation_of
from lclstream.streamer.values import Ragged

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters

Value: TypeAlias = npt.NDArray[np.generic] | np.generic | Ragged | int | float | str


class Readings(Protocol):
    """The readings of one event; they may be decoded only when they are asked for."""

    def read(self, name: str, field: str) -> Value | None:
        """Return one reading, None when it is missing from this event.

        Args:
            name: the detector, or a process variable such as `SIOC:SYS0:ML00:AO192`.
            field: the dotted path below the detector, e.g. `raw.calib`; empty for a process
                variable.

        The array returned may be a view of the source's memory: it is valid, and must not be
        changed, until the next event is taken from the source.

        Raises:
            InvalidConfigError: the run has no such detector or field at all; use
                `unknown_reading`.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One shot of the detectors."""

    timestamp: int
    """64 bits: seconds << 32 | nanoseconds, exactly as the DAQ wrote it. The seconds of LCLS-II
    count from 1990-01-01, those of LCLS-I from 1970-01-01."""
    index: int
    """Position in the whole source, the same whatever the number of ranks, where the source knows
    it (see psana2); no two events of a run of the streamer have the same."""
    run: int
    experiment: str
    readings: Readings
    run_timestamp: int = 0
    """When the run began, in the same 64 bits; 0 when the source does not know."""
    step: int = 0
    """Number of the scan's step within the run; 0 too when the source knows of none."""

    def read(self, name: str, field: str = "") -> Value | None:
        """Return one reading, None when it is missing from this event.

        Raises:
            InvalidConfigError: the run has no such detector or field at all.
        """
        return self.readings.read(name, field)


class EventSource(Protocol):
    """Gives this rank's share of the events, once."""

    def __init__(self, parameters: "Parameters", rank: int, size: int) -> None:
        """Open the source.

        Raises:
            InvalidConfigError: it does not exist, or what it needs is not installed.
        """

    def __iter__(self) -> Iterator[Event]:
        """Yield the events of this rank in order."""
        ...

    def close(self) -> None:
        """Release files and connections; may be called again."""


def unknown_reading(name: str, field: str, known: Mapping[str, list[str]]) -> InvalidConfigError:
    """Return the error for a reading that a source does not have.

    Args:
        name: the detector or process variable that was asked for.
        field: the field that was asked for, empty for none.
        known: the fields of every detector; `[""]` for what has none.
    """
    if name not in known:
        hint = near(name, list(known)) or f"; there are: {', '.join(sorted(known)) or 'none'}"
        return InvalidConfigError(f"the source has no detector or variable {name!r}{hint}")
    fields = [each for each in known[name] if each]
    hint = near(field, fields) or f"; it has: {', '.join(sorted(fields)) or 'no fields'}"
    return InvalidConfigError(f"{name!r} has no field {field!r}{hint}")


def open_event_source(parameters: "Parameters", rank: int, size: int) -> EventSource:
    """Return the event source that a configuration names, opened.

    Raises:
        InvalidConfigError: it does not exist, or what it needs is not installed.
    """
    kind = implementation_of(parameters.event_source, EventSource)  # type: ignore[type-abstract]
    return kind(parameters, rank, size)
