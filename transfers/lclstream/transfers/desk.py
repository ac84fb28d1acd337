"""The front desk of the service: who may do what with which transfer, and the runners behind it.

Knows nothing of HTTP; `routes.py` translates. A transfer that the caller may not see does not
exist for the caller: both are `NotFoundError`.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lclstream.core.errors import (
    BackendError,
    InvalidConfigError,
    NotAuthorizedError,
    NotFoundError,
    RequestError,
)
from lclstream.core.ledger import Reply, Report
from lclstream.core.models import describe, near, parse
from lclstream.identity.caller import Caller
from lclstream.identity.roles import SiteRoles
from lclstream.jobs import signing
from lclstream.jobs.models import Callback
from lclstream.jobs.states import JobState
from lclstream.transfers.actions import Site
from lclstream.transfers.config import TransfersConfig
from lclstream.transfers.events import (
    CancelAsked,
    DrainAsked,
    JobChanged,
    LeaseAsked,
    Reported,
    StartAsked,
)
from lclstream.transfers.models import (
    ConsumerStart,
    LeaseRequest,
    StartRequest,
    TransferInfo,
    TransferRequest,
    TransferStatus,
)
from lclstream.transfers.record import Role, Transfer
from lclstream.transfers.runners import PRODUCER_NAME, UNKNOWN_TRANSFER, Runners
from lclstream.transfers.specs import Specs, check_ranks
from lclstream.transfers.states import CLOSING, FINAL, Phase, Timer
from lclstream.transfers.store import Store, Stored, StoredStart, StoreThread
from lclstream.transfers.view import info_of, reply_to, status_of

logger = logging.getLogger(__name__)

LONGEST_WAIT_S = 60.0
MOST_LISTED = 1000
LISTED_AT_ONCE = 100
DATA_URL = re.compile(r"(tcp|tls\+tcp)://[A-Za-z0-9_.:\[\]-]+:[0-9]{1,5}")
# The words of the reference service.
UNKNOWN_JOB = "Job not found."


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which part of the list of transfers is wanted."""

    index: int = 0
    """How many of the newest to skip."""
    limit: int | None = None
    state: JobState | None = None
    """Only transfers whose buffer job is in this state."""
    final: bool = False
    """Whether ended transfers are listed too."""

    def shows(self, status: TransferStatus) -> bool:
        """Return whether a transfer belongs into the list."""
        is_shown = self.final or status.phase not in FINAL
        return is_shown and self.state in (None, status.state)


class Desk:
    """Creates, shows and changes transfers on behalf of callers."""

    def __init__(
        self,
        config: TransfersConfig,
        sites: Mapping[str, Site],
        specs: Specs,
        store: StoreThread,
        authority: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._sites = sites
        self._specs = specs
        self._store = store
        self._authority = authority
        self._clock = clock
        self._roles = SiteRoles(admins=config.admins)
        self.runners = Runners(sites, specs, store, poll_s=config.poll_s, clock=clock)

    # What clients ask.

    async def create(
        self, caller: Caller, request: TransferRequest, *, key: str | None, wait: bool
    ) -> TransferStatus:
        """Make a transfer and, unless it is held, start it.

        Args:
            caller: its owner.
            request: what is wanted.
            key: the same key of the same owner gives the same transfer.
            wait: whether the answer must have the address to pull from.

        Raises:
            NotAuthorizedError: the caller is a job.
            InvalidConfigError: no such site, or it cannot start so many producers.
            BackendError: the buffer does not come up; the transfer is canceled.
        """
        if caller.job is not None:
            raise NotAuthorizedError(f"{caller.name} may not ask for transfers")
        site = self._site(request.site)
        check_ranks(self._sites[site].config, request.producers)
        buffer_site = self._site(request.buffer_site or site)
        limits = self._config.effective_limits(request.limits)
        now = self._clock()

        def make(number: int) -> Transfer:
            return Transfer(
                id=number,
                owner=caller.name,
                created=now,
                buffer_site=buffer_site,
                ranks=request.producers,
                limits=limits,
                timers={Timer.TOTAL: now + limits.total_s},
            )

        body = request.model_copy(update={"site": site}).model_dump(mode="json")
        transfer, is_new = await self._store.do(Store.create, make, body, key)
        if is_new:
            logger.info("transfer_created", extra={"transfer": transfer.id, "owner": caller.name})
        if transfer.phase is Phase.REQUESTED:
            # Also when it was made before: whoever made it may not have come to this.
            await self.runners.begin(transfer.id)
        if wait:
            await self._wait_address(transfer.id)
        found = await self.runners.look_up(transfer.id)
        return status_of(found.transfer, found.log[-1] if found.log else None, found.request)

    async def list(self, caller: Caller, page: Page) -> list[TransferStatus]:
        """Return the transfers that the caller may see, newest first."""
        owner = None if self._roles.is_admin(caller) else caller.name
        wanted = min(page.limit, MOST_LISTED) if page.limit is not None else MOST_LISTED
        found: list[TransferStatus] = []
        skip, before = page.index, None
        while len(found) < wanted:
            # In parts: who looks for a state that is rare must not hold up the store for long.
            part = await self._store.do(
                Store.summaries, final=page.final, owner=owner, before=before, count=LISTED_AT_ONCE
            )
            shown = [status_of(each.transfer, each.last, each.request) for each in part]
            matching = [each for each in shown if page.shows(each)]
            found += matching[skip:]
            skip = max(0, skip - len(matching))
            if len(part) < LISTED_AT_ONCE:
                break
            before = part[-1].transfer.id
        return found[:wanted]

    async def info(
        self, caller: Caller, number: int, *, wait_s: float = 0.0, since: int | None = None
    ) -> TransferInfo:
        """Return everything about a transfer, at once or as soon as it changes.

        Args:
            caller: who asks.
            number: id of the transfer.
            wait_s: how long to wait for a change, at most `LONGEST_WAIT_S`.
            since: the version that the caller knows; without it there is no waiting.
        """
        await self._visible(caller, number)
        if since is not None and wait_s > 0:
            await self.runners.wait_news(number, since, min(wait_s, LONGEST_WAIT_S))
        found = await self.runners.look_up(number)
        return self._info(found)

    async def start(self, caller: Caller, number: int, wanted: StartRequest) -> TransferInfo:
        """Start jobs of a role, once for each name."""
        found = await self._owned(caller, number)
        role = Role(wanted.role)
        site = str(found.request["site"])
        if isinstance(wanted, ConsumerStart):
            site = self._site(wanted.site or site)
            event = StartAsked(role=role, name=wanted.name, site=site, count=wanted.count)
        else:
            event = StartAsked(role=role, name=PRODUCER_NAME, site=site)
        start = StoredStart(role=role, name=event.name, body=wanted.model_dump(mode="json"))
        await self.runners.post(number, event, start=start)
        return self._info(await self.runners.look_up(number))

    async def drain(self, caller: Caller, number: int) -> TransferInfo:
        """Take in no more data, deliver the rest, end."""
        await self._owned(caller, number)
        await self.runners.post(number, DrainAsked())
        return self._info(await self.runners.look_up(number))

    async def cancel(self, caller: Caller, number: int, *, at_once: bool) -> None:
        """End a transfer; asking again, or after its end, does no harm."""
        found = await self._owned(caller, number)
        if found.transfer.phase not in FINAL:
            reason = f"canceled by {caller.name}"
            await self.runners.post(number, CancelAsked(reason=reason, at_once=at_once))

    async def lease(self, caller: Caller, number: int, wanted: LeaseRequest) -> TransferInfo:
        """Renew or release a lease."""
        await self._owned(caller, number)
        event = LeaseAsked(
            holder=wanted.holder,
            generation=wanted.generation,
            ttl_s=wanted.ttl_s,
            release=wanted.release,
        )
        await self.runners.post(number, event)
        return self._info(await self.runners.look_up(number))

    async def logs(self, caller: Caller, number: int, jobid: str) -> dict[str, str]:
        """Return the logs of one of the transfer's jobs, by name."""
        found = await self._owned(caller, number)
        jobs = [job for job in found.transfer.jobs if jobid and job.jobid == jobid]
        if not jobs:
            raise NotFoundError(UNKNOWN_JOB)
        return await self.runners.performer(found).logs(jobs[0])

    # What jobs and sites tell.

    async def report(self, caller: Caller, number: int, report: Report) -> Reply:
        """Take in a report and return what its process shall do.

        Raises:
            NotFoundError: no such transfer, or nothing of the caller's.
            NotAuthorizedError: the caller has another role.
        """
        found = await self._visible(caller, number)
        job = self._job_of(caller)
        role = job[1] if job else Role.CONSUMER.value
        if report.hop != role:
            raise NotAuthorizedError(f"{caller.name} may not report as {report.hop}")
        if found.transfer.phase in FINAL:
            return reply_to(found.transfer, found.ledger, Role(report.hop), self._clock())
        event = Reported(
            role=Role(report.hop),
            peer=report.peer,
            final=report.final,
            ok=report.ok,
            error=report.error,
            push_url=_data_url(report.addresses.in_) if report.addresses else "",
            pull_url=_data_url(report.addresses.out) if report.addresses else "",
        )
        transfer = await self.runners.post(number, event, report=report)
        return reply_to(transfer, found.ledger, Role(report.hop), self._clock())

    async def callback(self, role: Role, body: bytes, signature: str | None) -> None:
        """Take in a job's new state.

        Args:
            role: of the job, from the path.
            body: raw bytes, as they were signed.
            signature: value of the header, None if it was not sent.

        Raises:
            NotAuthorizedError: signature missing or wrong.
            NotFoundError: no such job.
            InvalidConfigError: not the body of a callback.
        """
        if not signature:
            raise NotAuthorizedError(f"{signing.SIGNATURE} header is missing!")
        try:
            callback = Callback.model_validate_json(body)
        except ValidationError as error:
            raise InvalidConfigError("callback", describe(error)) from None
        keys = await self._store.do(Store.with_jobid, callback.jobid)
        candidates = []
        for number, key in keys:
            job = (await self.runners.look_up(number)).transfer.job(key)
            candidates += [(number, key)] if job.role is role else []
        if not candidates:
            raise NotFoundError(UNKNOWN_JOB)
        number, key = self._signed_by(candidates, body, signature)
        event = JobChanged(
            key=key, jobndx=callback.jobndx, state=callback.state, info=callback.info
        )
        await self.runners.post(number, event)

    def _signed_by(
        self, candidates: Sequence[tuple[int, str]], body: bytes, signature: str
    ) -> tuple[int, str]:
        """Return the job whose secret made a signature: ids of different sites may be equal."""
        refused: NotAuthorizedError | None = None
        for number, key in candidates:
            try:
                signing.verify(self._specs.secret(key), body, signature)
            except NotAuthorizedError as error:
                refused = error
            else:
                return number, key
        raise refused or NotAuthorizedError("nobody signed this")

    async def _wait_address(self, number: int) -> None:
        deadline = self._clock() + self._config.answer_s
        while (left := deadline - self._clock()) > 0 and not self.runners.released:
            found = await self.runners.look_up(number)
            transfer = found.transfer
            if transfer.pull_url or transfer.phase in FINAL | CLOSING:
                break
            await self.runners.wait_news(number, transfer.version, left)
        transfer = (await self.runners.look_up(number)).transfer
        if not transfer.pull_url:
            reason = transfer.reason or "the buffer does not listen yet"
            if transfer.phase not in FINAL | CLOSING:
                await self.runners.post(number, CancelAsked(reason=reason, at_once=True))
            raise BackendError(f"transfer {number} did not start: {reason}")

    # What the caller may.

    async def _visible(self, caller: Caller, number: int) -> Stored:
        """Return a transfer to its owner, administrators and its own jobs."""
        found = await self.runners.look_up(number)
        job = self._job_of(caller)
        is_own_job = job is not None and job[0] == str(number)
        if not (is_own_job or self._roles.may(caller, found.transfer.owner)):
            raise NotFoundError(UNKNOWN_TRANSFER)
        return found

    def _job_of(self, caller: Caller) -> tuple[str, str] | None:
        """Return transfer id and role of a job of ours; another authority may name others so."""
        return caller.job if caller.authority == self._authority else None

    async def _owned(self, caller: Caller, number: int) -> Stored:
        """Return a transfer to its owner and administrators."""
        found = await self._visible(caller, number)
        if not self._roles.may(caller, found.transfer.owner):
            raise NotAuthorizedError(f"{caller.name} may not change transfer {number}")
        return found

    def _info(self, found: Stored) -> TransferInfo:
        return info_of(found.transfer, found.ledger, found.log, found.request, self._clock())

    def _site(self, name: str | None) -> str:
        if name is None:
            return next(iter(self._sites))
        if name not in self._sites:
            known = ", ".join(self._sites)
            raise InvalidConfigError(
                "request body: 1 problem",
                [f"site: no site is named {name!r}{near(name, list(self._sites))}; known: {known}"],
            )
        return name


def parse_request(data: Any) -> tuple[TransferRequest, bool]:
    """Read the body of a request for a transfer.

    Returns:
        The request, and whether it is a bare streamer configuration as old clients send it.

    Raises:
        InvalidConfigError: names every fault.
    """
    if isinstance(data, Mapping) and "streamer" not in data:
        return parse(TransferRequest, {"streamer": data}, "request body"), True
    return parse(TransferRequest, data, "request body"), False


def _data_url(urls: list[str]) -> str:
    """Return the first address of a buffer; it goes into scripts and to clients."""
    url = urls[0] if urls else ""
    if not DATA_URL.fullmatch(url):
        raise RequestError(f"a data address must look like tcp://HOST:PORT, got {url!r}")
    return url
