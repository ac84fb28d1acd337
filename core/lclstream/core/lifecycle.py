"""The life of a service: start, ready, asked to close, closed.

Exit codes of a process that is one service: 0 it was asked to end, 1 it died,
2 it was misconfigured or its own identity cannot be used; so `Restart=on-failure` of a
service manager, with `RestartPreventExitStatus=2`, does the right thing.
"""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

from lclstream.core.errors import is_misconfiguration

logger = logging.getLogger(__name__)

# Long enough for one request in flight and its last write to disk.
CLOSE_TIMEOUT_S = 15.0

Work = Callable[[], Awaitable[None]]


class Service:
    """Works until it is asked to stop or one of its tasks dies.

    A subclass overrides `started` (before the work begins; the service is ready when it
    returns) and `stopped` (after all work has ended), or passes coroutine functions as work.

    Resource handling: owns its tasks and sockets; all are gone when `wait_closed` returns.

    Error handling: the first task to fail ends the others; `wait_closed` raises its error.
    """

    def __init__(self, work: Sequence[Work] = ()) -> None:
        self._work: list[Work] = list(work)
        self._asked = asyncio.Event()
        self._main: asyncio.Task[None] | None = None

    async def started(self) -> None:
        """Acquire what the work needs; what it raises is raised by `async with`."""

    async def stopped(self) -> None:
        """Release what `started` acquired; called also when `started` failed half way."""

    async def __aenter__(self) -> Self:
        try:
            await self.started()
        except BaseException:
            await self.stopped()
            raise
        self._main = asyncio.create_task(self._serve(), name=type(self).__name__)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        await self.wait_closed(CLOSE_TIMEOUT_S)

    def close(self) -> None:
        """Ask the service to stop; returns at once, may be called again."""
        self._asked.set()

    async def wait_closed(self, timeout_s: float | None = None) -> None:
        """Wait until all work has ended.

        Raises:
            ExceptionGroup: what made a task die.
            TimeoutError: the service did not end in time.
        """
        if self._main is not None:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._main)

    async def _serve(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(_named(work), name=getattr(work, "__name__", "work"))
                    for work in self._work
                ]
                await self._asked.wait()
                # Last started, first stopped.
                for task in reversed(running):
                    task.cancel()
                    await asyncio.wait([task])
        finally:
            await self.stopped()


async def _named(work: Work) -> None:
    await work()


async def serve(service: Service) -> int:
    """Run a service as the whole process until SIGINT or SIGTERM; return the exit code."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, service.close)
    try:
        async with service:
            await service.wait_closed()
    except Exception as error:
        if not is_misconfiguration(error):
            logger.exception("service_died")
            return 1
        for each in _single(error):
            # What to change is in the message; where it was noticed helps nobody.
            logger.error("service_misconfigured", extra={"reason": str(each)})  # noqa: TRY400
        return 2
    return 0


def _single(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, or those in a group."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _single(each)
    else:
        yield error
