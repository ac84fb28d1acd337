"""Read what a dotted path names below a detector of psana.

`raw.calib` of a detector means: take its attribute `raw`, of that the attribute `calib`, and call
it with the event. What a path leads to may be a function of the event, a function of nothing, or a
value; which of these is found out once. What a function returns can be gone into further:
`get.TotalIntensity` calls `get` with the event and `TotalIntensity` of the result, and
`raw.waveforms.0.1` takes key 0 of a table, and of what is there key 1.

Nothing that goes wrong in a detector's own code is taken for missing data: a reading is missing
when the library returns nothing.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.events import Value

EVENT_NAMES = frozenset({"evt", "event", "events"})
"""What functions call the event that they want."""


class NoSuchFieldError(LookupError):
    """A path names something that is not there in any event."""


class Reader:
    """Reads one field of one detector from every event."""

    def __init__(self, detector: Any, field: str) -> None:
        """Walk as far as no event is needed.

        Args:
            detector: what psana returned for the detector's name.
            field: the dotted path; empty for what is called itself, such as a process variable.

        Raises:
            NoSuchFieldError: there is no such attribute.
        """
        self.field = field
        self.owner: Any = None
        """The object whose function is called."""
        self._calls: dict[int, bool] = {}
        parts = tuple(part for part in field.split(".") if part)
        found, place = detector, 0
        while place < len(parts) and hasattr(found, parts[place]):
            self.owner, found = found, getattr(found, parts[place])
            place += 1
        self.target = found
        """What the path leads to without an event."""
        self._rest = parts[place:]
        if self._rest and not callable(found) and not _has_parts(found):
            raise NoSuchFieldError(self._rest[0])

    def __call__(self, event: Any) -> Any:
        """Return what the path leads to in an event, None when it is missing from it.

        Raises:
            NoSuchFieldError: what a function returned has no such attribute.
            InvalidConfigError: the path ends in front of what can be sent.
        """
        found = self.target
        for depth, part in enumerate(self._rest):
            if callable(found) and not hasattr(found, part):
                found = self._called(found, depth, event)
            if found is None:
                return None
            found = _part(found, part)
        if callable(found):
            found = self._called(found, len(self._rest), event)
        return found

    def _called(self, function: Any, depth: int, event: Any) -> Any:
        """Call with the event or without, whichever the function at this place takes."""
        wants_event = self._calls.get(depth)
        if wants_event is None:
            wants_event = takes_event(function)
        if wants_event is None:
            return self._tried(function, depth, event)
        self._calls[depth] = wants_event
        return function(event) if wants_event else function()

    def _tried(self, function: Any, depth: int, event: Any) -> Any:
        """Call a function that does not say what it takes, as those written in C++ do not."""
        try:
            found = function(event)
        except TypeError as error:
            # An error from deeper inside is not about the arguments.
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise
            found = function()
            self._calls[depth] = False
        else:
            self._calls[depth] = True
        return found


def takes_event(function: Any) -> bool | None:
    """Return whether a function is to be called with the event; None when it does not say.

    Raises:
        InvalidConfigError: it wants more than an event.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    positional = [
        each
        for each in signature.parameters.values()
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD, each.VAR_POSITIONAL)
    ]
    wanted = [each for each in positional if each.default is each.empty]
    if len([each for each in wanted if each.kind is not each.VAR_POSITIONAL]) > 1:
        name = getattr(function, "__name__", type(function).__name__)
        raise InvalidConfigError(f"{name}{signature} wants more than an event")
    return bool(wanted) or bool(positional and positional[0].name in EVENT_NAMES)


def as_value(found: Any, what: str) -> Value | None:
    """Return what psana gave as a value of ours.

    Raises:
        InvalidConfigError: it is a table or has rows of different lengths.
    """
    if isinstance(found, Mapping):
        keys = ", ".join(map(str, found)) or "nothing"
        raise InvalidConfigError(f"{what} is a table; add one of its keys to the path: {keys}")
    if isinstance(found, bytes):
        return found.decode(errors="replace")
    if isinstance(found, Sequence) and not isinstance(found, str):
        try:
            return np.array(found)
        except ValueError as error:
            raise InvalidConfigError(f"{what} cannot be sent: {error}") from None
    if hasattr(found, "names") and isinstance(getattr(found, "value", None), int):
        # An enumeration of XTC2: a number and the names of all numbers.
        return np.int32(found.value)
    value: Value | None = found
    return value


def _has_parts(found: Any) -> bool:
    return isinstance(found, Mapping) or (
        isinstance(found, Sequence) and not isinstance(found, str | bytes)
    )


def _part(found: Any, part: str) -> Any:
    """Return an attribute, a value of a table, or an element; None when it is not there now."""
    number = int(part) if part.isdecimal() else None
    if isinstance(found, Mapping):
        return found.get(part, None if number is None else found.get(number))
    if number is not None and isinstance(found, Sequence | np.ndarray):
        return found[number] if number < len(found) else None
    try:
        return getattr(found, part)
    except AttributeError:
        raise NoSuchFieldError(part) from None
