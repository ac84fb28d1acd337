"""What steps have in common that make one value of each of some others."""

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import Parameters
from lclstream.streamer.config.steps import MapStep, ValueStep
from lclstream.streamer.events import Event
from lclstream.streamer.steps.rooms import Rooms
from lclstream.streamer.values import Ragged, Reading, Values

Numbers: TypeAlias = npt.NDArray[Any]
"""An array of numbers of any dtype."""

Mapped = TypeVar("Mapped", bound=MapStep)


class MappingStep(ABC, Generic[Mapped]):
    """Applies `changed` to every input; what is missing stays missing."""

    def __init__(self, config: Mapped, parameters: Parameters) -> None:
        del parameters
        self.config = config
        self.rooms = Rooms()

    def apply(self, event: Event, values: Values) -> Values | None:
        """Return the values with those that were made."""
        del event
        after = dict(values)
        for label, output in self.config.pairs:
            value = values.get(label)
            after[output] = None if value is None else self.changed(label, value, values)
        return after

    @abstractmethod
    def changed(self, label: str, value: Reading, values: Values) -> Reading | None:
        """Return what becomes of one value.

        Args:
            label: name of the value.
            value: not to be changed.
            values: all values in front of the step.
        """

    def misfit(self, label: str, text: str) -> InvalidConfigError:
        """Return the error for a value that the step cannot treat."""
        return misfit(self.config, label, text)


def misfit(config: ValueStep, label: str, text: str) -> InvalidConfigError:
    """Return the error for a value that a step cannot treat."""
    return InvalidConfigError(f"{config.type}: {label!r} {text}")


def array_of(config: ValueStep, label: str, value: Reading) -> Numbers:
    """Return a value that is one array of numbers.

    Raises:
        InvalidConfigError: it is ragged, or text.
    """
    if isinstance(value, Ragged):
        raise misfit(config, label, "has a number of readings that varies")
    if value.dtype.kind not in "biuf":
        raise misfit(config, label, f"is {value.dtype}, not numbers")
    return value


def image_of(config: ValueStep, label: str, value: Reading) -> Numbers:
    """Return a value that has rows and columns.

    Raises:
        InvalidConfigError: it has not.
    """
    array = array_of(config, label, value)
    if array.ndim < 2 or not array.size:
        raise misfit(config, label, f"has shape {array.shape}, no rows and columns")
    return array


def elements_of(config: ValueStep, label: str, value: Reading) -> Numbers:
    """Return the numbers of a value, ragged or not.

    Raises:
        InvalidConfigError: it is text.
    """
    return array_of(config, label, value.array if isinstance(value, Ragged) else value)


def like(value: Reading, elements: Numbers) -> Reading:
    """Return new elements in the form of a value."""
    return Ragged(elements) if isinstance(value, Ragged) else elements


def exactly(config: ValueStep, label: str, name: str, number: float, dtype: np.dtype[Any]) -> Any:
    """Return a number of the configuration in the dtype of a value.

    Raises:
        InvalidConfigError: the dtype cannot hold it.
    """
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        is_held = np.isfinite(number) and number == int(number) and info.min <= number <= info.max
    else:
        largest = np.finfo(dtype).max if dtype.kind == "f" else 1
        is_whole = dtype.kind == "f" or number in (0, 1)
        is_held = is_whole and (not np.isfinite(number) or abs(number) <= largest)
    if not is_held:
        raise misfit(config, label, f"is {dtype}, which cannot hold {name} = {number}")
    return dtype.type(number)
