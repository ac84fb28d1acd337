"""A thread for work that waits for a disk."""

import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
Post = Callable[[Callable[[], None]], None]


class Worker:
    """Does jobs one after the other and hands the results back to the loop's thread.

    Args:
        name: of the thread.
        post: has the loop's thread do something.

    Error handling: a job that raises anything has a fault of its own; the exception is raised
    again in the loop's thread. What a disk may refuse belongs into the job's result.
    """

    def __init__(self, name: str, post: Post) -> None:
        self._post = post
        self._jobs: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], T], done: Callable[[T], None]) -> None:
        """Have the thread do something, and then the loop's thread something with the result."""

        def job() -> None:
            try:
                result = work()
            except BaseException as error:
                self._post(_raiser(error))
            else:
                self._post(lambda: done(result))

        with self._wake:
            self._jobs.append(job)
            self._wake.notify()

    def close(self) -> None:
        """Wait until all jobs are done."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._jobs and not self._closing:
                    self._wake.wait()
                if not self._jobs:
                    return
                job = self._jobs.popleft()
            job()


def _raiser(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail
