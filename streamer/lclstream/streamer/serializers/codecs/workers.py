"""The threads that compress, and the memory in which values wait for them."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from lclstream.streamer.serializers.codecs.libraries import one_thread_each
from lclstream.streamer.values import Array

Result = TypeVar("Result")


# Small tasks of so many bytes for each thread may be under way or wait.
AHEAD_BYTES = 1 << 20


class Workers:
    """Threads that are given no more than they can do soon.

    One large task at most waits for a thread, so that this has something to go on with; who
    brings the next one is held up, for the memory that it lies in. Of small ones more may wait.

    Resource handling: the threads start with the first tasks and end with `close`.
    """

    def __init__(self, threads: int) -> None:
        """Prepare.

        Args:
            threads: how many compress at a time.
        """
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, "compress", one_thread_each)
        self._ahead_bytes = 0
        self._changed = threading.Condition()

    def submit(self, task: Callable[[], Result], size_bytes: int) -> "Future[Result]":
        """Have something done; waits while too much is under way.

        Args:
            task: what to do.
            size_bytes: how much data it works on.
        """
        most = self.threads * max(size_bytes, AHEAD_BYTES) + size_bytes
        with self._changed:
            self._changed.wait_for(lambda: self._ahead_bytes + size_bytes <= most)
            self._ahead_bytes += size_bytes
        try:
            future = self._pool.submit(task)
        except BaseException:
            self._finish(size_bytes)
            raise
        future.add_done_callback(lambda _: self._finish(size_bytes))
        return future

    def _finish(self, size_bytes: int) -> None:
        with self._changed:
            self._ahead_bytes -= size_bytes
            self._changed.notify_all()

    def close(self) -> None:
        """Wait for the threads to end."""
        self._pool.shutdown()


class Staging:
    """Memory in which values wait to be compressed, used again and again."""

    def __init__(self) -> None:
        self._free: dict[tuple[object, ...], list[Array]] = {}
        self._lock = threading.Lock()

    def block(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
        """Return memory that was given back before, or new memory."""
        with self._lock:
            free = self._free.setdefault((shape, dtype), [])
            if free:
                return free.pop()
        return np.empty(shape, dtype)

    def give_back(self, block: Array) -> None:
        """Keep memory for the next who needs as much."""
        with self._lock:
            self._free.setdefault((block.shape, block.dtype), []).append(block)
