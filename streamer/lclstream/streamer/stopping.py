"""The wish to end early, made by a signal or by the transfers service."""

import contextlib
import math
import os
import select
import signal
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# How long what was read already is still delivered after a signal: SLURM kills 30 s after it,
# and the final report has to be out by then.
SIGNAL_TIMEOUT_S = 20.0


class StopRequest:
    """Remembers that and why the run shall end; wakes who waits.

    May be asked from any thread and from a signal handler: it takes no lock.

    Resource handling: a context manager; owns a pipe.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.signal_number = 0
        self._now = False
        self._patient_until = math.inf
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

    @property
    def now(self) -> bool:
        """Whether what was read already shall be thrown away too."""
        return self._now or time.monotonic() >= self._patient_until

    def request(self, reason: str, *, now: bool = False) -> None:
        """Ask the run to end; the first reason counts."""
        self.reason = self.reason or reason
        self._now = self._now or now
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
        self._patient_until = time.monotonic() + SIGNAL_TIMEOUT_S
        self.request(signal.Signals(number).name)
        signal.signal(number, signal.SIG_DFL)
