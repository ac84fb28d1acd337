"""All transfers that are alive, each with its runner, and the way to those that are not.

A transfer that is over has no runner; an event for it gets a new one, which ends by itself.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from lclstream.core.errors import BackendError, NotFoundError
from lclstream.core.ledger import Report
from lclstream.transfers.actions import Performer, Site
from lclstream.transfers.events import Event, Resumed, StartAsked
from lclstream.transfers.record import Role, Transfer
from lclstream.transfers.runner import GoneError, Runner
from lclstream.transfers.specs import Specs
from lclstream.transfers.states import Phase
from lclstream.transfers.store import Store, Stored, StoredStart, StoreThread

logger = logging.getLogger(__name__)

PRODUCER_NAME = "producer"
# The words of the reference service.
UNKNOWN_TRANSFER = "Transfer is not active."


class Runners:
    """Finds, makes and resumes runners.

    Resource handling: `run` owns a runner for each transfer that is alive; cancelling it leaves
    all jobs running and the store ready for the next start.
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        specs: Specs,
        store: StoreThread,
        *,
        poll_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sites = sites
        self._specs = specs
        self._store = store
        self._poll_s = poll_s
        self._clock = clock
        self._runners: dict[int, Runner] = {}
        self._making = asyncio.Lock()
        self._group: asyncio.TaskGroup | None = None
        self._resumed = asyncio.Event()
        self.released = False
        """Whether nobody shall wait for news any more."""

    async def run(self) -> None:
        """Resume every transfer that is not over, then work until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for transfer in await self._store.do(Store.unfinished):
                runner = await self._runner(transfer)
                logger.info("transfer_resumed", extra={"transfer": transfer})
                await runner.post(Resumed())
                await self._begin(runner)
            self._resumed.set()
            await asyncio.Event().wait()

    def release_waiters(self) -> None:
        """Answer every client that waits for news: the service is about to end."""
        self.released = True
        for runner in self._runners.values():
            runner.release()

    @property
    def active(self) -> int:
        """How many transfers are alive."""
        return len(self._runners)

    async def begin(self, number: int) -> None:
        """Start what was not held; asking again does no harm."""
        await self._begin(await self._runner(number))

    async def wait_news(self, number: int, since: int, timeout_s: float) -> None:
        """Return when a transfer's version is not `since`, or when nothing can happen to it."""
        await self._resumed.wait()
        runner = self._runners.get(number)
        if runner is not None:
            await runner.wait_news(since, timeout_s)

    async def _begin(self, runner: Runner) -> None:
        if runner.request["hold"] or runner.transfer.phase is not Phase.REQUESTED:
            return
        # One event, which brings the buffer too: a service that is killed between two would leave
        # a buffer to which nobody ever sends.
        site = runner.request["site"]
        await runner.post(StartAsked(role=Role.PRODUCER, name=PRODUCER_NAME, site=site))

    async def post(
        self,
        number: int,
        event: Event,
        *,
        report: Report | None = None,
        start: StoredStart | None = None,
    ) -> Transfer:
        """Let something happen to a transfer and return it afterwards."""
        while True:
            runner = await self._runner(number)
            try:
                return await runner.post(event, report=report, start=start)
            except GoneError:
                continue

    async def _runner(self, number: int) -> Runner:
        """Return the transfer's runner, made anew if it had ended."""
        if number in self._runners:
            return self._runners[number]
        async with self._making:
            if number in self._runners:
                return self._runners[number]
            stored = await self._store.do(Store.load, number)
            if stored is None:
                raise NotFoundError(UNKNOWN_TRANSFER)
            if self._group is None:
                raise BackendError("the service does not run")
            runner = Runner(
                stored,
                self.performer(stored),
                self._store,
                poll_s=self._poll_s,
                clock=self._clock,
            )
            self._runners[number] = runner
            self._group.create_task(self._drive(number, runner), name=f"transfer {number}")
            return runner

    async def _drive(self, number: int, runner: Runner) -> None:
        try:
            await runner.run(on_end=lambda: self._forget(number, runner))
        finally:
            self._forget(number, runner)

    def _forget(self, number: int, runner: Runner) -> None:
        if self._runners.get(number) is runner:
            del self._runners[number]

    def performer(self, stored: Stored) -> Performer:
        """Return who acts on the jobs of a transfer."""
        return Performer(stored.request, self._sites, self._specs, self._store)

    async def look_up(self, number: int) -> Stored:
        """Return what is known of a transfer right now."""
        await self._resumed.wait()
        runner = self._runners.get(number)
        if runner is None:
            stored = await self._store.do(Store.load, number)
            if stored is None:
                raise NotFoundError(UNKNOWN_TRANSFER)
            return stored
        return Stored(
            transfer=runner.transfer,
            request=runner.request,
            ledger=runner.ledger,
            log=tuple(runner.log),
            pending=(),
        )
