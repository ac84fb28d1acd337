"""One task that owns one transfer: all that happens to it goes through one queue.

Requests, callbacks, reports, timers and the results of actions are applied one after the other,
so no two of them race. A change is in the store before anybody hears of it and before its actions
are carried out. Beside the queue run one worker for each job with actions, and a poller.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from lclstream.core.errors import LclstreamError, UnavailableError
from lclstream.core.ledger import Report
from lclstream.transfers.actions import Performer
from lclstream.transfers.draft import LogEntry, Step
from lclstream.transfers.events import (
    Action,
    CancelJob,
    Event,
    JobChanged,
    SubmitJob,
    TimerFired,
)
from lclstream.transfers.machine import advance
from lclstream.transfers.record import Job, Role, Transfer
from lclstream.transfers.states import FINAL
from lclstream.transfers.store import PendingAction, Store, Stored, StoredStart, StoreThread

logger = logging.getLogger(__name__)

# Reports of thousands of ranks within one write to disk; more is refused with 503, tried again.
QUEUE_LENGTH = 10_000
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 15.0
# What changes with every report is written this often.
KEEP_INTERVAL_S = 5.0
# A cancel that has not shown after this long is sent again.
CANCEL_AGAIN_S = 10.0


class GoneError(Exception):
    """The runner has ended; another one has to be made."""


@dataclass(slots=True, kw_only=True)
class _Item:
    """Something that happened, and who waits until it is applied."""

    event: Event | None
    """None only wakes the runner."""
    report: Report | None = None
    start: StoredStart | None = None
    applied: asyncio.Future[Transfer] | None = None


class Runner:
    """Owns one transfer while something of it is alive.

    Resource handling: `run` owns all tasks; cancelling it leaves the jobs running and the store
    as it is, and the next runner continues from there.

    Error handling: a site that does not answer is asked again; a store that fails ends `run`.
    """

    def __init__(
        self,
        stored: Stored,
        performer: Performer,
        store: StoreThread,
        *,
        poll_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.transfer = stored.transfer
        self.request = stored.request
        self.ledger = stored.ledger
        self.log: list[LogEntry] = list(stored.log)
        self._performer = performer
        self._store = store
        self._poll_s = poll_s
        self._clock = clock
        self._queue: asyncio.Queue[_Item] = asyncio.Queue(QUEUE_LENGTH)
        self._ordered: dict[str, deque[PendingAction]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._ended = False
        self._released = False
        self._news = asyncio.Event()
        self._live_reports: dict[tuple[Role, str], Report] = {}
        self._kept_at = clock()
        self._canceled_at: dict[str, float] = {}
        self._pending = stored.pending

    async def post(
        self, event: Event, *, report: Report | None = None, start: StoredStart | None = None
    ) -> Transfer:
        """Let something happen to the transfer and return it afterwards.

        Raises:
            IllegalTransitionError: it cannot happen in this phase.
            UnavailableError: too much waits already, or the service stops.
            GoneError: this runner has ended.
        """
        if self._ended:
            raise GoneError
        applied: asyncio.Future[Transfer] = asyncio.get_running_loop().create_future()
        item = _Item(event=event, report=report, start=start, applied=applied)
        try:
            self._queue.put_nowait(item)
        except asyncio.QueueFull:
            raise UnavailableError(f"transfer {self.transfer.id} is overloaded") from None
        return await applied

    async def wait_news(self, since: int, timeout_s: float) -> None:
        """Return as soon as the transfer's version is not `since`, or the time has passed."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.transfer.version == since and not (self._ended or self._released):
                    await self._news.wait()
        except TimeoutError:
            return

    def release(self) -> None:
        """Let everybody who waits for news go, now and from now on."""
        self._released = True
        self._announce()

    async def run(self, on_end: Callable[[], None] = lambda: None) -> None:
        """Work until the transfer is over.

        Args:
            on_end: called as soon as the runner takes no more events.
        """
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for pending in self._pending:
                    self._order(pending)
                poller = group.create_task(self._poll(), name=f"poll {self.transfer.id}")
                while not self._is_over():
                    await self._apply(await self._next())
                # From here on a new event needs a new runner.
                self._end()
                on_end()
                poller.cancel()
        finally:
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._announce()
        while not self._queue.empty():
            _refuse(self._queue.get_nowait())

    def _is_over(self) -> bool:
        """Return whether nothing of the transfer can happen by itself any more."""
        return (
            self.transfer.phase in FINAL
            and self._queue.empty()
            and not self._ordered
            and all(job.is_final for job in self.transfer.jobs)
        )

    # Events.

    async def _next(self) -> _Item:
        """Return what happens next: a timer that is due before anything that waits."""
        while True:
            timers = self.transfer.timers
            timer = min(timers, key=lambda each: timers[each], default=None)
            left = None if timer is None else timers[timer] - self._clock()
            if timer is not None and left is not None and left <= 0:
                return _Item(event=TimerFired(timer=timer))
            try:
                async with asyncio.timeout(left):
                    return await self._queue.get()
            except TimeoutError:
                continue

    async def _apply(self, item: _Item) -> None:
        try:
            if item.event is not None:
                await self._change(item.event, item)
        except LclstreamError as error:
            if item.applied is None or item.applied.done():
                logger.info(
                    "event_dropped", extra={"transfer": self.transfer.id, "reason": str(error)}
                )
            else:
                item.applied.set_exception(error)
        except BaseException:
            _refuse(item)
            raise
        else:
            if item.applied is not None and not item.applied.done():
                item.applied.set_result(self.transfer)

    async def _change(self, event: Event, item: _Item) -> None:
        now = self._clock()
        before = self.transfer
        if item.report is not None and before.phase not in FINAL:
            self.ledger.add(item.report)
            # What the ledger holds: a report that comes after the final one is not kept.
            key = Role(item.report.hop), item.report.peer
            self._live_reports[key] = self.ledger.reports[key]
        step = advance(before, event, self.ledger, now)
        if not _is_worth_a_row(before, step):
            if isinstance(event, JobChanged):
                extra = {"job": event.key, "state": event.state.value, "jobndx": event.jobndx}
                logger.debug("job_event_late_or_doubled", extra=extra)
            self.transfer = step.transfer
            await self._keep(now)
            return
        reports = self._take_live_reports(now)
        ordered = await self._store.do(
            Store.record, event, step, now, reports=reports, start=item.start
        )
        self.transfer = step.transfer
        self.log += step.log
        self._log_step(before, step)
        for pending in ordered:
            self._order(pending)
        self._announce()

    async def _keep(self, now: float) -> None:
        if now - self._kept_at < KEEP_INTERVAL_S:
            return
        await self._store.do(Store.keep, self.transfer, self._take_live_reports(now))

    def _take_live_reports(self, now: float) -> list[Report]:
        """Return the reports that are not in the store yet, to be written there now."""
        self._kept_at = now
        reports = list(self._live_reports.values())
        self._live_reports.clear()
        return reports

    def _log_step(self, before: Transfer, step: Step) -> None:
        after = step.transfer
        if before.phase is not after.phase:
            extra = {"transfer": after.id, "from": before.phase.value, "to": after.phase.value}
            logger.info("transfer_moved", extra={**extra, "reason": after.reason})

    def _announce(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    # Actions.

    def _order(self, pending: PendingAction) -> None:
        key = pending.action.key
        waiting = self._ordered.get(key)
        if waiting is not None:
            waiting.append(pending)
            return
        self._ordered[key] = deque([pending])
        if self._group is not None:
            self._group.create_task(self._work(key), name=f"actions of {key}")

    async def _work(self, key: str) -> None:
        """Carry out the actions on one job, in their order."""
        waiting = self._ordered[key]
        while waiting:
            await self._carry_out(waiting[0].action)
            await self._store.do(Store.finish, waiting[0].id)
            waiting.popleft()
        del self._ordered[key]
        await self._queue.put(_Item(event=None))

    async def _carry_out(self, action: Action) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            job = self.transfer.job(action.key)
            if job.is_final or (isinstance(action, SubmitJob) and job.canceling):
                return
            try:
                await self._attempt(action, job)
            except LclstreamError as error:
                extra = {"job": job.key, "action": type(action).__name__, "reason": str(error)}
                logger.warning("action_delayed", extra=extra)
            else:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _attempt(self, action: Action, job: Job) -> None:
        if isinstance(action, CancelJob):
            self._canceled_at[job.key] = self._clock()
            await self._feed(self._performer.cancel(job))
        else:
            await self._feed(
                self._performer.submit(self.transfer, job),
                lambda: not self.transfer.job(job.key).canceling,
            )

    async def _feed(
        self, events: AsyncIterator[Event], wanted: Callable[[], bool] = lambda: True
    ) -> None:
        """Apply the events that an action yields, as long as it is still wanted."""
        try:
            async for event in events:
                await self.post(event)
                if not wanted():
                    return
        finally:
            close: Callable[[], Awaitable[None]] | None = getattr(events, "aclose", None)
            if close is not None:
                await close()

    # Polling: a lost callback must not matter.

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await self._look_at_jobs()

    async def _look_at_jobs(self) -> None:
        silent: set[str] = set()
        for job in self.transfer.jobs:
            # A site that does not answer is asked once: its jobs must not hold up all others.
            if not job.jobid or job.is_final or job.site in silent:
                continue
            try:
                await self._feed(self._performer.look(job))
                await self._cancel_again(self.transfer.job(job.key))
            except LclstreamError as error:
                logger.warning("poll_failed", extra={"job": job.key, "reason": str(error)})
                if isinstance(error, UnavailableError):
                    silent.add(job.site)

    async def _cancel_again(self, job: Job) -> None:
        since = self._canceled_at.get(job.key, 0.0)
        is_due = self._clock() - since >= CANCEL_AGAIN_S
        if job.canceling and not job.is_final and job.key not in self._ordered and is_due:
            self._canceled_at[job.key] = self._clock()
            await self._feed(self._performer.cancel(job))


def _refuse(item: _Item) -> None:
    """Tell who waits that it will not be applied; asking again helps."""
    if item.applied is not None and not item.applied.done():
        item.applied.set_exception(UnavailableError("the service stops"))


def _is_worth_a_row(before: Transfer, step: Step) -> bool:
    after = step.transfer
    lease_changed = after.lease != before.lease
    return bool(step.actions or step.log or after.version != before.version or lease_changed)
