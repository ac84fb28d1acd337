"""Looks at the first event, to tell what a configuration will send before it is sent."""

from contextlib import closing

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import Parameters
from lclstream.streamer.config.summary import Expected
from lclstream.streamer.data_sources import Extractor
from lclstream.streamer.events import open_event_source
from lclstream.streamer.rank import Place
from lclstream.streamer.steps import Steps
from lclstream.streamer.values import Ragged, Reading

# An event may be dropped, or lack a reading; so many are tried.
EVENTS = 100


def first_values(parameters: Parameters) -> dict[str, Expected]:
    """Return what the values of the first events are that reach the serializer.

    Raises:
        InvalidConfigError: the source cannot be read, has none of what is asked for, or no event
            that is not dropped.
        ExtractionError: reading failed.
    """
    labels = parameters.labels
    found: dict[str, Expected] = {}
    place = Place(0, 1)
    with closing(open_event_source(parameters, place.rank, place.size)) as source:
        extractor = Extractor(parameters, [value.label for value in parameters.values_read])
        steps = Steps(parameters)
        number = 0
        for number, event in enumerate(source, 1):
            values = extractor.extract(event)
            after = (None if values is None else steps.apply(event, values)) or {}
            for label in labels:
                reading = after.get(label)
                if reading is not None:
                    found.setdefault(label, _expected(reading))
            if len(found) == len(labels) or number == EVENTS:
                break
    if not found:
        raise InvalidConfigError(f"none of the first {number} events has anything to send")
    return {label: found.get(label, Expected()) for label in labels}


def _expected(reading: Reading) -> Expected:
    is_ragged = isinstance(reading, Ragged)
    array = reading.array if isinstance(reading, Ragged) else reading
    dtype = "str" if array.dtype.kind == "S" else str(array.dtype)
    return Expected(dtype, array.shape[1:] if is_ragged else array.shape, is_ragged)
