"""Unix time that a step of the system's clock does not touch.

Timers are kept as Unix times, because they outlive the process. Were they compared with the
system's clock, its correction by an hour would end every transfer, or none for an hour.
"""

import time
from collections.abc import Callable


def steady_clock() -> Callable[[], float]:
    """Return a clock that starts with the system's time and from then on only counts seconds."""
    offset_s = time.time() - time.monotonic()
    return lambda: offset_s + time.monotonic()
