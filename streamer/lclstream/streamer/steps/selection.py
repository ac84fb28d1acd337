"""Steps that choose among values, and among events."""

import math
from typing import cast

from lclstream.streamer.config import Parameters
from lclstream.streamer.config import steps as configs
from lclstream.streamer.events import Event
from lclstream.streamer.steps.mapping import array_of, misfit
from lclstream.streamer.values import Values


class SelectValues:
    """Keeps some values."""

    def __init__(self, config: configs.SelectValuesConfig, parameters: Parameters) -> None:
        del parameters
        self._keep = frozenset(config.keep)

    def apply(self, event: Event, values: Values) -> Values:
        """Return the values that are kept."""
        del event
        return {label: value for label, value in values.items() if label in self._keep}


class DropValues:
    """Drops some values."""

    def __init__(self, config: configs.DropValuesConfig, parameters: Parameters) -> None:
        del parameters
        self._drop = frozenset(config.drop)

    def apply(self, event: Event, values: Values) -> Values:
        """Return the other values."""
        del event
        return {label: value for label, value in values.items() if label not in self._drop}


class RenameValues:
    """Gives values other names."""

    def __init__(self, config: configs.RenameValuesConfig, parameters: Parameters) -> None:
        del parameters
        self._names = config.names

    def apply(self, event: Event, values: Values) -> Values:
        """Return the values by their new names."""
        del event
        return {self._names.get(label, label): value for label, value in values.items()}


class RequireValues:
    """Drops events that lack a value."""

    def __init__(self, config: configs.RequireValuesConfig, parameters: Parameters) -> None:
        del parameters
        self._inputs = config.inputs

    def apply(self, event: Event, values: Values) -> Values | None:
        """Return the values unless one is missing."""
        del event
        return None if any(values.get(label) is None for label in self._inputs) else values


class SelectEvents:
    """Keeps events in which a number lies within limits."""

    def __init__(self, config: configs.SelectEventsConfig, parameters: Parameters) -> None:
        del parameters
        self._config = config
        self._low = -math.inf if config.minimum is None else config.minimum
        self._high = math.inf if config.maximum is None else config.maximum

    def apply(self, event: Event, values: Values) -> Values | None:
        """Return the values if the event is kept.

        Raises:
            InvalidConfigError: the value is not one number.
        """
        del event
        number = self._number(values)
        if number != number:
            return values if self._config.missing == "keep" else None
        return values if (self._low <= number <= self._high) != self._config.inverse else None

    def _number(self, values: Values) -> float | int:
        label = self._config.input
        value = values.get(label)
        if value is None:
            return math.nan
        array = array_of(self._config, label, value)
        if array.size != 1:
            raise misfit(self._config, label, f"has shape {array.shape}, not one number")
        # As a Python number: large integers are compared exactly.
        return cast("float | int", array.item())


class Prescale:
    """Keeps or drops one of every N events."""

    def __init__(self, config: configs.PrescaleConfig, parameters: Parameters) -> None:
        del parameters
        self._every, self._offset = config.every, config.offset
        self._keeps = config.keep_every is not None

    def apply(self, event: Event, values: Values) -> Values | None:
        """Return the values if the event is kept."""
        return values if (event.index % self._every == self._offset) == self._keeps else None
