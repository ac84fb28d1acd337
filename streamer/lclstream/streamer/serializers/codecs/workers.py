"""The threads that compress, and the memory in which values wait for them."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from lclstream.streamer.serializers.codecs.libraries import one_thread_each
from lclstream.streamer.values import Array

Result = TypeVar("Result")


class Workers:
    """Threads with a bounded number of tasks ahead of them.

    Resource handling: the threads start with the first tasks and end with `close`.
    """

    def __init__(self, threads: int) -> None:
        """Prepare.

        Args:
            threads: how many compress at a time.
        """
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, "compress", one_thread_each)
        # One for each thread to work on, and one to go on with.
        self._ahead = threading.BoundedSemaphore(2 * threads)

    def submit(self, task: Callable[[], Result]) -> "Future[Result]":
        """Have something done; waits while too much waits to be done."""
        self._ahead.acquire()
        try:
            future = self._pool.submit(task)
        except BaseException:
            self._ahead.release()
            raise
        future.add_done_callback(self._one_less)
        return future

    def _one_less(self, future: "Future[Result]") -> None:
        del future
        self._ahead.release()

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
