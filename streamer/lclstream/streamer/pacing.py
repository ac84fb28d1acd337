"""Gives events no faster than asked, and none after the run was asked to end."""

import time
from collections.abc import Callable, Iterable, Iterator

from lclstream.streamer.events import Event
from lclstream.streamer.stopping import StopRequest


def paced(
    events: Iterable[Event],
    rate_hz: float,
    stop: StopRequest,
    ranks: int = 1,
    waited: Callable[[float], None] = lambda seconds: None,
) -> Iterator[Event]:
    """Yield events until the end is asked for.

    Args:
        events: of this rank.
        rate_hz: events per second over all ranks; 0 = no limit. Event i is due i / rate_hz
            seconds after the first one of all ranks, so that the ranks need not know of each
            other.
        stop: who asks for the end.
        ranks: how many share the events.
        waited: called with the seconds after each time of waiting.
    """
    began = time.monotonic()
    first: int | None = None
    for event in events:
        if rate_hz:
            if first is None:
                first = event.index - event.index % ranks
            now = time.monotonic()
            stop.wait(began + (event.index - first) / rate_hz - now)
            waited(time.monotonic() - now)
        # Asked for each event: what is behind the property is not.
        if stop.reason:
            return
        yield event
