"""Gives events no faster than asked, and none after the run was asked to end."""

import time
from collections.abc import Iterable, Iterator

from lclstream.streamer.events import Event
from lclstream.streamer.stopping import StopRequest


def paced(events: Iterable[Event], rate_hz: float, stop: StopRequest) -> Iterator[Event]:
    """Yield events until the end is asked for.

    Args:
        events: of this rank.
        rate_hz: events per second over all ranks; 0 = no limit. Event i is due i / rate_hz
            seconds after the beginning, so that the ranks need not know of each other.
        stop: who asks for the end.
    """
    began = time.monotonic()
    for event in events:
        if rate_hz:
            stop.wait(began + event.index / rate_hz - time.monotonic())
        if stop.requested:
            return
        yield event
