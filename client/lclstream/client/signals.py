"""Ends a reader properly on SIGINT and SIGTERM: the first signal asks, the second one kills."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

HANDLED = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals(stop: Callable[[str], None]) -> Iterator[list[int]]:
    """Call `stop` with the name of the first signal; yields the signals that came.

    For the main thread of a process only. The handlers from before are in place again after the
    first signal and at the end.
    """
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        restore()
        stop(signal.Signals(number).name)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, handle) for number in HANDLED}
    try:
        yield came
    finally:
        restore()
