"""Follows every job to its end, whoever ends it.

Two eyes see a job: its own history, which its runner writes (looked at several times a
second), and its backend, which knows when a run is gone without having said so (asked every
few seconds, once for all runs of a cluster).
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from lclstream.core.errors import LclstreamError, SchedulerError
from lclstream.jobs.backends.local import LocalBackend
from lclstream.jobs.backends.protocol import Run, Sighting
from lclstream.jobs.callbacks import Outbox, Post
from lclstream.jobs.control import JobControl
from lclstream.jobs.index import Entry, JobIndex
from lclstream.jobs.states import FINAL, JobState
from lclstream.jobs.store import Job

logger = logging.getLogger(__name__)

LOCAL = LocalBackend.group
SCAN_S = 0.2
THOROUGH_SCAN_S = 5.0
LOCAL_POLL_S = 0.5
HURRIED_POLL_S = 1.0
"""How often a cluster is asked while a run of it is being cancelled."""
CONFIRM_S = 1.0
"""How long a run may be gone before that counts: its last row may still be on its way through
a network file system."""
RESUME_S = 2.0
"""How often a submission is tried that the batch system did not answer."""
THREADS = 8

Result = TypeVar("Result")


class Supervisor:
    """The work behind the web service.

    Resource handling: owns a pool of threads and the tasks of the outbox until `close`.
    """

    def __init__(self, control: JobControl, post: Post) -> None:
        self.control = control
        self.index = JobIndex(control.store)
        self.outbox = Outbox(control.config, post, self.in_thread)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="jobs")
        self._scanning = asyncio.Lock()
        self._gone_since: dict[Run, float] = {}
        self._resumed_at: dict[str, float] = {}
        self._polled_at: dict[str, float] = {}
        self._hurried: dict[str, bool] = {}
        self._last_thorough = time.monotonic()

    async def in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that blocks."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*arguments))

    async def open(self) -> None:
        """Read all jobs and take up what was left undone."""
        async with self._scanning:
            found = await self.in_thread(lambda: self.index.scan(thorough=True))
        for entry in found:
            self.control.remember_key(entry.job)
            self.outbox.offer(entry)
        logger.info("jobs_found", extra={"jobs": len(found), "live": self.live()})

    async def close(self) -> None:
        """End all tasks and threads; jobs go on."""
        await self.outbox.close()
        self._threads.shutdown(wait=True)

    def live(self) -> int:
        """Return the number of jobs that have not ended."""
        return sum(entry.is_live for entry in self.index.entries.values())

    # ---- the history's eye

    async def follow(self) -> None:
        """See what runners wrote, for ever."""
        while True:
            now = time.monotonic()
            thorough = now - self._last_thorough >= THOROUGH_SCAN_S
            if thorough:
                self._last_thorough = now
            await self.scan(thorough=thorough)
            await asyncio.sleep(SCAN_S)

    async def scan(self, *, thorough: bool = False) -> None:
        """Look at the files once and pass on what is new."""
        async with self._scanning:
            changed = await self.in_thread(lambda: self.index.scan(thorough=thorough))
        for entry in list(self.index.entries.values()) if thorough else changed:
            self.outbox.offer(entry)

    async def refresh(self, job: Job) -> None:
        """Look at one job now, because something was done to it."""
        async with self._scanning:
            entry = await self.in_thread(self.index.add, job)
        if entry is not None:
            self.outbox.offer(entry)

    # ---- the backends' eye

    async def reconcile(self) -> None:
        """Ask the backends about all runs, for ever."""
        while True:
            await self.reconcile_once()
            await asyncio.sleep(LOCAL_POLL_S / 2)

    async def reconcile_once(self) -> None:
        """Ask each group of backends whose time has come, and go on with what is due."""
        live = [entry for entry in self.index.entries.values() if entry.is_live]
        groups: dict[str, list[Entry]] = {}
        for entry in live:
            if entry.is_due:
                await self._resume(entry)
            elif entry.backend in self.control.backends:
                group = self.control.backends[entry.backend].group
                groups.setdefault(group, []).append(entry)
        async with asyncio.TaskGroup() as tasks:
            for group, entries in groups.items():
                tasks.create_task(self._poll_if_time(group, entries), name=f"poll {group}")

    async def _resume(self, entry: Entry) -> None:
        """Go on with a submission or cancellation that did not come to its end."""
        now = time.monotonic()
        jobid = entry.job.jobid
        if now - self._resumed_at.get(jobid, -RESUME_S) < RESUME_S:
            return
        self._resumed_at[jobid] = now
        await self._advance(entry, is_resumed=True)
        await self.refresh(entry.job)
        if not entry.is_due:
            self._resumed_at.pop(jobid, None)

    async def _advance(self, entry: Entry, *, is_resumed: bool = False) -> None:
        job = entry.job
        try:
            await self.in_thread(lambda: self.control.advance(job, is_resumed=is_resumed))
        except LclstreamError as error:
            logger.warning("job_not_advanced", extra={"jobid": job.jobid, "reason": str(error)})
        except Exception:
            # A damaged folder must not end the service for everybody else.
            logger.exception("job_not_advanced", extra={"jobid": job.jobid})

    async def _poll_if_time(self, group: str, entries: list[Entry]) -> None:
        interval = LOCAL_POLL_S
        if group != LOCAL:
            slow = self.control.config.poll_s
            hurried = self._hurried.get(group, False)
            interval = min(slow, HURRIED_POLL_S) if hurried else slow
        now = time.monotonic()
        if now - self._polled_at.get(group, -interval) < interval:
            return
        self._polled_at[group] = now
        try:
            self._hurried[group] = await self._poll(entries)
        except SchedulerError as error:
            logger.warning("scheduler_unreachable", extra={"group": group, "reason": str(error)})
        except Exception:
            logger.exception("poll_failed", extra={"group": group})

    async def _poll(self, entries: list[Entry]) -> bool:
        """Ask one backend about the runs of its group, and settle those that are gone.

        Returns:
            Whether it is worth to ask again soon: something is about to end.
        """
        cancelling = await self.in_thread(self._cancelling, entries)
        for entry in cancelling:
            await self._advance(entry)
        runs = await self.in_thread(self._runs, entries)
        backend = self.control.backends[entries[0].backend]
        seen = await self.in_thread(backend.poll, list(runs))
        unsure = False
        for run, sighting in seen.items():
            if sighting.state not in FINAL:
                self._gone_since.pop(run, None)
            elif backend.group == LOCAL or self._is_confirmed(run, sighting):
                await self._settle(runs[run], run, sighting)
            else:
                unsure = True
        return unsure or bool(cancelling)

    def _cancelling(self, entries: list[Entry]) -> list[Entry]:
        return [each for each in entries if self.control.is_cancelling(each.job, each.rows)]

    def _runs(self, entries: list[Entry]) -> dict[Run, Entry]:
        found: dict[Run, Entry] = {}
        for entry in entries:
            try:
                found[self.control.run_of(entry.job, entry.rows)] = entry
            except (OSError, ValueError, KeyError) as error:
                extra = {"jobid": entry.job.jobid, "detail": str(error)}
                logger.warning("job_folder_damaged", extra=extra)
        return found

    def _is_confirmed(self, run: Run, sighting: Sighting) -> bool:
        since = self._gone_since.setdefault(run, time.monotonic())
        wait_s = CONFIRM_S if sighting.state is not JobState.CANCELED else 0.0
        return time.monotonic() - since >= wait_s

    async def _settle(self, entry: Entry, run: Run, sighting: Sighting) -> None:
        self._gone_since.pop(run, None)
        try:
            await self.in_thread(self.control.settle, entry.job, run, sighting)
        except FileNotFoundError:
            logger.info("job_removed", extra={"jobid": run.jobid})
        await self.refresh(entry.job)
