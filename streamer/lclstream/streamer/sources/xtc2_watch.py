"""Waiting for what is still being recorded."""

import math
import time
from collections.abc import Iterator
from typing import Protocol

FIRST_PAUSE_S = 0.002
"""At 120 events a second the next one comes within a few of these."""
LONGEST_PAUSE_S = 0.05
"""File systems of clusters do not tell what other machines write, so we look now and then."""


class Stop(Protocol):
    """The wish to end, such as `lclstream.streamer.stopping.StopRequest`."""

    def wait(self, timeout_s: float) -> bool:
        """Wait until the end is asked for, or the time has passed; return whether it is."""
        ...


class StoppedError(Exception):
    """The end was asked for while we were waiting."""


class Watch:
    """Waits for what is still being recorded: not for ever, and not against a wish to end.

    Args:
        timeout_s: how long nothing may come before we stop waiting; 0 = as long as it takes.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._stop: Stop | None = None

    def interrupt_by(self, stop: Stop) -> None:
        """Let a wish to end cut every wait short."""
        self._stop = stop

    def looks(self) -> Iterator[None]:
        """Yield whenever it is time to look again, until the time limit has passed.

        The pauses get longer. Start anew when something has come.

        Raises:
            StoppedError: the end was asked for.
        """
        now = time.monotonic()
        deadline, pause_s = now + (self.timeout_s or math.inf), FIRST_PAUSE_S
        while now < deadline:
            if self._pause(min(pause_s, deadline - now)):
                raise StoppedError
            yield
            now, pause_s = time.monotonic(), min(2 * pause_s, LONGEST_PAUSE_S)

    def _pause(self, pause_s: float) -> bool:
        if self._stop is not None:
            return self._stop.wait(pause_s)
        time.sleep(pause_s)
        return False
