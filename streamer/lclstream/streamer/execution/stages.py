"""How long each stage of the pipeline is at work."""

import time

# To ask for the processor time of a thread costs as much as to take in a small event.
SAMPLE_INTERVAL_S = 0.05


class Stage:
    """Measures the work of one thread; what is written by that thread may be read by any.

    A stage works from `begin` to `pause`. `lap` is both, for one that goes on.
    """

    __slots__ = ("_cpu_before", "_sample_at", "_wall", "busy_s", "cpu_s")

    def __init__(self) -> None:
        self.busy_s = 0.0
        """Seconds of work; those of waiting for other stages are not in it."""
        self.cpu_s = 0.0
        """Seconds of processor time of this thread; those of threads that it started are not."""
        self._wall = self._sample_at = 0.0
        self._cpu_before: float | None = None

    def begin(self) -> None:
        """Begin, or go on."""
        if self._cpu_before is None:
            self._cpu_before = time.thread_time()
        self._wall = time.perf_counter()

    def pause(self) -> None:
        """Cease to work."""
        now = time.perf_counter()
        self.busy_s += now - self._wall
        if now >= self._sample_at:
            self.sample()

    def lap(self, waited_s: float = 0.0) -> None:
        """Count what was done since the last time.

        Args:
            waited_s: seconds since then that were no work.
        """
        now = time.perf_counter()
        self.busy_s += max(now - self._wall - waited_s, 0.0)
        self._wall = now
        if now >= self._sample_at:
            self.sample()

    def sample(self) -> None:
        """Look at the processor time; to be called at the end too."""
        if self._cpu_before is not None:
            self.cpu_s = time.thread_time() - self._cpu_before
        self._sample_at = time.perf_counter() + SAMPLE_INTERVAL_S
