"""Telling callers about new states: every row once it is written, in order, until it is heard.

The number of rows already told stands in the job's folder, so a restart goes on where it was.
A row may be told twice (when we die between the answer and the note), never left out; the
header `x-lclstream-delivery` is the same both times.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import httpx

from lclstream.core.errors import LclstreamError
from lclstream.core.http import translate_errors
from lclstream.identity.tls import client_context
from lclstream.jobs import admission, signing
from lclstream.jobs.index import Entry
from lclstream.jobs.models import Callback, ServiceConfig
from lclstream.jobs.states import JobState, Transition

logger = logging.getLogger(__name__)

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 60.0
REQUEST_TIMEOUT_S = 10.0
AT_ONCE = 32
"""Deliveries in flight; one slow receiver holds up only its own job."""

InThread = Callable[..., Awaitable[object]]


class Post(Protocol):
    """Sends one callback; returns the HTTP status, raises `LclstreamError` without an answer."""

    async def __call__(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        """Send."""


class Sender:
    """Posts callbacks as the owner of an identity folder. Redirects are not followed.

    Resource handling: an asynchronous context manager, owns its connections.
    """

    def __init__(self, identity: Path) -> None:
        self._http = httpx.AsyncClient(
            verify=client_context(identity), trust_env=False, timeout=REQUEST_TIMEOUT_S
        )

    async def __aenter__(self) -> "Sender":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def __call__(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        """Send one callback and return the HTTP status of the answer."""
        with translate_errors(url):
            async with self._http.stream("POST", url, content=body, headers=headers) as answer:
                return answer.status_code


class Outbox:
    """Delivers the callbacks of all jobs, those of one job in order."""

    def __init__(self, config: ServiceConfig, post: Post, in_thread: InThread) -> None:
        self._config = config
        self._post = post
        self._in_thread = in_thread
        self._waiting: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    def offer(self, entry: Entry) -> None:
        """Deliver what a job owes; may be called for every change."""
        jobid = entry.job.jobid
        busy = self._waiting.get(jobid)
        if not entry.owes_callbacks or (busy is not None and not busy.done()):
            return
        task = asyncio.create_task(self._deliver_all(entry), name=f"callbacks {jobid}")
        self._waiting[jobid] = task
        task.add_done_callback(lambda done: self._forget(jobid, done))

    def _forget(self, jobid: str, done: asyncio.Task[None]) -> None:
        if self._waiting.get(jobid) is done:
            del self._waiting[jobid]

    async def close(self) -> None:
        """Stop; what is not delivered is delivered by the next service."""
        tasks = list(self._waiting.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _deliver_all(self, entry: Entry) -> None:
        try:
            while entry.owes_callbacks:
                number = entry.delivered
                if entry.rows[number].state is not JobState.NEW:
                    await self._deliver(entry, number)
                await self._in_thread(entry.job.note_told, number + 1)
                entry.delivered = number + 1
        except FileNotFoundError:
            logger.info("job_removed", extra={"jobid": entry.job.jobid})
        except Exception:
            # One job's fault must not end the others'; the next thorough look tries again.
            logger.exception("callbacks_failed", extra={"jobid": entry.job.jobid})

    async def _deliver(self, entry: Entry, number: int) -> None:
        """Try one row until it is heard or too old."""
        row, spec, jobid = entry.rows[number], entry.job.spec, entry.job.jobid
        url = spec.callback or ""
        log = {"jobid": jobid, "jobndx": row.jobndx, "state": row.state, "url": url}
        attempt = 0
        while True:
            problem = await self._attempt(entry, row, number, url)
            if not problem:
                return
            if time.time() - row.time > self._config.callback_timeout_s:
                logger.error("callback_given_up", extra={**log, "reason": problem})
                return
            delay = min(FIRST_DELAY_S * 2**attempt, LONGEST_DELAY_S)
            attempt = min(attempt + 1, 20)
            logger.warning("callback_failed", extra={**log, "reason": problem, "retry_s": delay})
            # Not all at the same moment after an outage of the receiver.
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311

    async def _attempt(self, entry: Entry, row: Transition, number: int, url: str) -> str:
        """Send one row and return what went wrong; empty when it was heard."""
        spec, jobid = entry.job.spec, entry.job.jobid
        try:
            admission.check_callback(url, self._config.callback_hosts)
            body = body_of(jobid, row)
            secret = spec.cb_secret.get_secret_value() if spec.cb_secret else None
            headers = spec.cb_headers | {
                "content-type": "application/json",
                "accept": "application/json",
                **signing.headers(secret, f"{jobid}/{number}", body),
            }
            async with self._slots:
                status = await self._post(url, body, headers)
        except LclstreamError as error:
            return str(error)
        return "" if 200 <= status < 300 else f"HTTP {status}"


def body_of(jobid: str, row: Transition) -> bytes:
    """Return the body of a callback: compact JSON in psik's order of keys."""
    told = Callback(jobid=jobid, jobndx=row.jobndx, state=row.state, info=row.info)
    return told.model_dump_json().encode()
