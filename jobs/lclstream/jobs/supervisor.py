"""Follows every job to its end, whoever ends it.

Two eyes see a job: its own history, which its runner writes (looked at several times a
second), and its backend, which knows when a run is gone without having said so (asked every
few seconds, once for all runs of a cluster).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
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
COMMAND_THREADS = 32
AT_ONCE = 4
"""Submissions that are tried again at the same moment, for each cluster."""

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
        self._commands = ThreadPoolExecutor(COMMAND_THREADS, thread_name_prefix="jobs-command")
        self._scanning = asyncio.Lock()
        self._resuming: dict[str, asyncio.Semaphore] = {}
        self._busy: set[str] = set()
        self._begun: dict[str, float] = {}
        self._hurried: set[str] = set()
        self._gone_since: dict[Run, float] = {}
        self._last_thorough = time.monotonic()

    async def in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that reads or writes files."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*arguments))

    async def with_backend(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that may wait for a batch system.

        These have threads of their own: a cluster that hangs holds up nothing else.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._commands, lambda: function(*arguments))

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
        # A command of a batch system may take a minute; others in this process go on meanwhile.
        await self.in_thread(lambda: self._commands.shutdown(wait=True, cancel_futures=True))
        self._threads.shutdown(wait=True)

    def live(self) -> int:
        """Return the number of jobs that have not ended."""
        return sum(entry.is_live for entry in self.index.all())

    # ---- the history's eye

    async def follow(self) -> None:
        """See what runners wrote, for ever."""
        while True:
            now = time.monotonic()
            thorough = now - self._last_thorough >= THOROUGH_SCAN_S
            if thorough:
                self._last_thorough = now
            try:
                await self.scan(thorough=thorough)
            except OSError:
                # A file system that stutters is no reason to end.
                logger.exception("scan_failed")
            await asyncio.sleep(SCAN_S)

    async def scan(self, *, thorough: bool = False) -> None:
        """Look at the files once and pass on what is new."""
        async with self._scanning:
            changed = await self.in_thread(lambda: self.index.scan(thorough=thorough))
        for entry in self.index.all() if thorough else changed:
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
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._begin_what_is_due(tasks)
                for backend in self.control.backends.values():
                    backend.tidy()
                await asyncio.sleep(LOCAL_POLL_S / 2)

    def _begin_what_is_due(self, tasks: asyncio.TaskGroup) -> None:
        """Ask each group of backends whose time has come, and go on with what was left undone."""
        groups: dict[str, list[Entry]] = {}
        for entry in self.index.all():
            if entry.is_due:
                self._begin(tasks, f"resume {entry.job.jobid}", RESUME_S, self._resume, entry)
            elif entry.is_live and entry.backend in self.control.backends:
                groups.setdefault(self._group(entry), []).append(entry)
        for group, entries in groups.items():
            self._begin(tasks, group, self._interval(group), self._poll_group, entries)

    def _begin(
        self,
        tasks: asyncio.TaskGroup,
        name: str,
        interval_s: float,
        work: Callable[..., Coroutine[Any, Any, None]],
        *arguments: Any,
    ) -> None:
        """Begin something unless it still goes on, or went on too short a time ago."""
        now = time.monotonic()
        if name in self._busy or now - self._begun.get(name, -interval_s) < interval_s:
            return
        self._begun[name] = now
        self._busy.add(name)

        async def guarded() -> None:
            try:
                await work(*arguments)
            except Exception:
                # One damaged folder or strange answer must not end the service for all others.
                logger.exception("supervision_failed", extra={"work": name})

        task = tasks.create_task(guarded(), name=name)
        task.add_done_callback(lambda _: self._busy.discard(name))

    def _group(self, entry: Entry) -> str:
        backend = self.control.backends.get(entry.backend)
        return backend.group if backend is not None else ""

    def _interval(self, group: str) -> float:
        if group == LOCAL:
            return LOCAL_POLL_S
        slow = self.control.config.poll_s
        return min(slow, HURRIED_POLL_S) if group in self._hurried else slow

    def hurry(self, job: Job) -> None:
        """Ask a job's backend soon, because something is about to happen to the job."""
        entry = self.index.entries.get(job.jobid)
        if entry is not None:
            self._hurried.add(self._group(entry))

    async def _resume(self, entry: Entry) -> None:
        """Go on with a submission or cancellation that did not come to its end."""
        jobid = entry.job.jobid
        async with self._resuming.setdefault(self._group(entry), asyncio.Semaphore(AT_ONCE)):
            await self._advance(entry, is_resumed=True)
        await self.refresh(entry.job)
        if not entry.is_due:
            self._begun.pop(f"resume {jobid}", None)

    async def _advance(self, entry: Entry, *, is_resumed: bool = False) -> None:
        job = entry.job
        try:
            await self.with_backend(lambda: self.control.advance(job, is_resumed=is_resumed))
        except LclstreamError as error:
            logger.warning("job_not_advanced", extra={"jobid": job.jobid, "reason": str(error)})
        except (OSError, ValueError):
            # A damaged folder; the other jobs of its group go on.
            logger.exception("job_not_advanced", extra={"jobid": job.jobid})

    async def _poll_group(self, entries: list[Entry]) -> None:
        group = self._group(entries[0])
        try:
            is_restless = await self._poll(entries)
        except SchedulerError as error:
            logger.warning("scheduler_unreachable", extra={"group": group, "reason": str(error)})
            return
        if is_restless:
            self._hurried.add(group)
        else:
            self._hurried.discard(group)

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
        seen = await self.with_backend(backend.poll, list(runs))
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
