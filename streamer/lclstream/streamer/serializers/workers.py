"""Does the same to many things, several at a time, and gives the results in order."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from lclstream.streamer.serializers.codecs.cores import cores_of_rank
from lclstream.streamer.serializers.codecs.libraries import one_thread_each

Item = TypeVar("Item")
Result = TypeVar("Result")


class OrderedWorkers:
    """Threads that compress, for libraries that let other threads run meanwhile.

    Resource handling: the threads start when there is something to do, and end with `close`.
    """

    def __init__(self, threads: int | None) -> None:
        """Prepare.

        Args:
            threads: how many work at a time; with 1 the caller's does all. None: as many as this
                rank has processors.
        """
        threads = threads or cores_of_rank()
        self._pool = (
            ThreadPoolExecutor(threads, "compress", one_thread_each) if threads > 1 else None
        )

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the results in the order of the items; nothing is under way any more behind it."""
        if self._pool is None:
            yield from map(work, items)
            return
        futures = [self._pool.submit(work, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            wait(futures)

    def close(self) -> None:
        """Wait for the threads to end."""
        if self._pool is not None:
            self._pool.shutdown()
