"""The values of one event on their way from the source to a batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Ragged:
    """Readings whose number differs from event to event, such as the peaks of a frame."""

    array: Array
    """Shape (number, *shape of one); the number may be 0."""


Reading: TypeAlias = Array | Ragged
Values: TypeAlias = Mapping[str, Reading | None]
"""Label -> value; None when it is missing from this event."""
