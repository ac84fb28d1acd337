"""How long each stage of the pipeline is at work."""

import time


class Stage:
    """Measures the work of one thread; what is written by that thread may be read by any.

    A stage works from `begin` to `pause`. `lap` is both, for one that goes on.
    """

    __slots__ = ("_cpu", "_wall", "busy_s", "cpu_s")

    def __init__(self) -> None:
        self.busy_s = 0.0
        """Seconds of work; those of waiting for other stages are not in it."""
        self.cpu_s = 0.0
        """Seconds of processor time of this thread; those of threads that it started are not."""
        self._wall = self._cpu = 0.0

    def begin(self) -> None:
        """Begin, or go on."""
        self._wall, self._cpu = time.perf_counter(), time.thread_time()

    def pause(self) -> None:
        """Cease to work."""
        self.busy_s += time.perf_counter() - self._wall
        self.cpu_s += time.thread_time() - self._cpu

    def lap(self, waited_s: float = 0.0) -> None:
        """Count what was done since the last time.

        Args:
            waited_s: seconds since then that were no work.
        """
        wall, cpu = time.perf_counter(), time.thread_time()
        self.busy_s += max(wall - self._wall - waited_s, 0.0)
        self.cpu_s += cpu - self._cpu
        self._wall, self._cpu = wall, cpu
