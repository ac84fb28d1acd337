"""Threads that compress, for libraries that let other threads run meanwhile."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Does the same to many things, several at a time.

    Resource handling: the threads start when there is something to do, and end with `close`.
    """

    def __init__(self, threads: int) -> None:
        """Prepare.

        Args:
            threads: how many work at a time; with 1 the caller's does all.
        """
        self._pool = ThreadPoolExecutor(threads, "compress") if threads > 1 else None

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the results in the order of the items."""
        return map(work, items) if self._pool is None else self._pool.map(work, items)

    def close(self) -> None:
        """Wait for the threads to end."""
        if self._pool is not None:
            self._pool.shutdown()
