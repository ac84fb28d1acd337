"""The wish to end early, made by a signal or by the transfers service."""

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Remembers that and why the run shall end; wakes who waits.

    May be asked from any thread and from a signal handler: it takes no lock.

    Resource handling: a context manager; owns a pipe.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.signal_number = 0
        self.now = False
        """Whether what was read already shall be thrown away too."""
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._wake)
        os.close(self._waker)

    @property
    def requested(self) -> bool:
        """Whether the run shall end."""
        return bool(self.reason)

    def request(self, reason: str, *, now: bool = False) -> None:
        """Ask the run to end; the first reason counts."""
        self.reason = self.reason or reason
        self.now = self.now or now
        # The pipe may be full of earlier requests, which wake as well.
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker, b".")

    def wait(self, timeout_s: float) -> bool:
        """Wait until the end is asked for, or the time has passed; return whether it is."""
        if timeout_s > 0 and not self.requested:
            select.select([self._wake], [], [], timeout_s)
        return self.requested

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Let the first SIGTERM or SIGINT ask for the end; the second ends at once."""
        before = {number: signal.signal(number, self._received) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal_number = number
        self.request(signal.Signals(number).name)
        signal.signal(number, signal.SIG_DFL)
