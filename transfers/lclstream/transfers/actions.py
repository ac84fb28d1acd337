"""Carries out what the machine orders, through the jobs service of each site.

Every action may be carried out twice with the effect of once: a submission is made under the job's
key, which is stored before, and cancelling what has ended is a success.
"""

import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from lclstream.core.errors import LclstreamError, NotFoundError, RequestError, SchedulerError
from lclstream.core.models import parse
from lclstream.jobs.models import JobSpec, JobStepInfo
from lclstream.jobs.states import JobState
from lclstream.transfers.config import SiteConfig
from lclstream.transfers.events import Event, JobChanged, JobCreated, JobRefused
from lclstream.transfers.models import TransferRequest
from lclstream.transfers.record import Job, Transfer
from lclstream.transfers.specs import JobRequest, Specs
from lclstream.transfers.store import Store, StoreThread

logger = logging.getLogger(__name__)


class Jobs(Protocol):
    """What a transfer needs of a site's jobs service."""

    async def create(self, spec: JobSpec, *, submit: bool = False, key: str | None = None) -> str:
        """Make a job without starting it; the same key gives the same job."""

    async def upload(self, jobid: str, files: Mapping[str, bytes]) -> None:
        """Put files into the job's work folder."""

    async def start(self, jobid: str, run: int | None = 1) -> None:
        """Start a run of a job, once for each number."""

    async def history(self, jobid: str) -> list[JobStepInfo]:
        """Return all states that the job went through, oldest first."""

    async def cancel(self, jobid: str) -> None:
        """Cancel a job; does nothing if it has ended."""

    async def find(self, key: str) -> str | None:
        """Return the job that was made under a key."""

    async def logs(self, jobid: str) -> dict[str, str]:
        """Return the job's logs by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A site and the connection to its jobs service."""

    config: SiteConfig
    jobs: Jobs


class Performer:
    """Carries out the actions on one transfer's jobs; the results are events."""

    def __init__(
        self,
        request: Mapping[str, Any],
        sites: Mapping[str, Site],
        specs: Specs,
        store: StoreThread,
    ) -> None:
        self._request = request
        self._sites = sites
        self._specs = specs
        self._store = store

    async def submit(self, transfer: Transfer, job: Job) -> AsyncIterator[Event]:
        """Create, equip and start a job, and yield what happened.

        The generator is not continued when the job is no longer wanted.

        Raises:
            LclstreamError: transient ones; the caller tries again.
        """
        try:
            async for event in self._submit(transfer, job):
                yield event
        except LclstreamError as error:
            if error.transient:
                raise
            logger.warning("job_refused", extra={"job": job.key, "reason": str(error)})
            yield JobRefused(key=job.key, reason=str(error))

    async def _submit(self, transfer: Transfer, job: Job) -> AsyncIterator[Event]:
        site = self._site(job)
        with understandable(site.config.name):
            wanted = JobRequest(
                transfer=transfer,
                job=job,
                request=parse(TransferRequest, self._request, f"request of {transfer.id}"),
                start=await self._store.do(Store.start_of, transfer.id, job.role, job.name),
                site=site.config,
            )
            jobid = job.jobid
            if not jobid:
                key = await self._request_key(job)
                jobid = await site.jobs.create(self._specs.spec(wanted), submit=False, key=key)
                yield JobCreated(key=job.key, jobid=jobid)
            steps = await site.jobs.history(jobid)
            # An earlier attempt whose answer was lost may have started it already.
            if all(step.state is JobState.NEW for step in steps):
                await site.jobs.upload(jobid, self._specs.files(wanted))
                await site.jobs.start(jobid, 1)
            for step in await site.jobs.history(jobid):
                yield changed(job, step)

    async def cancel(self, job: Job) -> AsyncIterator[Event]:
        """Cancel a job, and yield what that showed; its end is seen later.

        Raises:
            LclstreamError: the site did not do it; the caller tries again.
        """
        site = self._site(job)
        with understandable(site.config.name):
            jobid = job.jobid or await site.jobs.find(await self._request_key(job))
        if not jobid:
            yield JobRefused(key=job.key, reason="never submitted")
            return
        if not job.jobid:
            yield JobCreated(key=job.key, jobid=jobid)
        try:
            with understandable(site.config.name):
                await site.jobs.cancel(jobid)
        except NotFoundError:
            yield JobRefused(key=job.key, reason="its site does not know it any more")

    async def look(self, job: Job) -> AsyncIterator[Event]:
        """Ask for a job's states and yield those that are news.

        Raises:
            LclstreamError: the site did not answer.
        """
        try:
            site = self._site(job)
            with understandable(site.config.name):
                steps = await site.jobs.history(job.jobid)
        except NotFoundError:
            yield JobRefused(key=job.key, reason="its site does not know it any more")
            return
        last = steps[-1] if steps else None
        if last is None or (last.state, last.jobndx) == (job.state, job.jobndx):
            return
        for step in steps:
            yield changed(job, step)

    async def logs(self, job: Job) -> dict[str, str]:
        """Return a job's logs by name; empty as long as it is not created."""
        site = self._site(job)
        with understandable(site.config.name):
            return await site.jobs.logs(job.jobid) if job.jobid else {}

    async def _request_key(self, job: Job) -> str:
        """Return the idempotency key of a submission, the same after a restart."""
        return f"{job.key}-{await self._store.do(Store.instance)}"

    def _site(self, job: Job) -> Site:
        try:
            return self._sites[job.site]
        except KeyError:
            known = ", ".join(self._sites)
            raise RequestError(f"no site {job.site!r} is configured; known: {known}") from None


@contextmanager
def understandable(site: str) -> Iterator[None]:
    """Turn what nobody expected of a jobs service into a passing fault of its site.

    Anything else than our errors would end the service, and all transfers with it.

    Raises:
        SchedulerError: the answer could not be read, or there was none for a strange reason.
    """
    try:
        yield
    except LclstreamError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise SchedulerError(f"the jobs service of {site} gave a strange answer: {what}") from error


def changed(job: Job, step: JobStepInfo) -> JobChanged:
    """Return a row of a job's history as an event."""
    return JobChanged(key=job.key, jobndx=step.jobndx, state=step.state, info=step.info)
