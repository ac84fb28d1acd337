"""Clients of the electronic logbook: one for ordinary code, one for asyncio.

```python
with ElogClient("https://logbook:8443", identity=Path("identity")) as elog:
    elog.new_entry("mfx101332224", "transfer completed", tags=["lclstream"], run=42)
```

Every call has a timeout. Only what may be repeated is repeated, once, when no answer came.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from lclstream.core.errors import BackendError, InvalidConfigError, LclstreamError, UnavailableError
from lclstream.core.http import translate_errors
from lclstream.elog import calls
from lclstream.elog.access import is_loopback, read_password, tls_context
from lclstream.elog.calls import Call, Counters

logger = logging.getLogger(__name__)

__all__ = ["AsyncElogClient", "ElogClient", "RunCounters"]

TIMEOUT_S = 10.0
"""For one call; the logbook answers in 20 ms."""

COUNTERS_TIMEOUT_S = 2.0
"""Short: counters are a convenience and must not hold up a stream."""


def _settings(
    url: str, identity: Path | None, ca: Path | None, login: tuple[str, Path] | None
) -> dict[str, Any]:
    """Return the arguments of an httpx client."""
    parts = urlsplit(url)
    if login is not None and parts.scheme != "https" and not is_loopback(parts.hostname):
        raise InvalidConfigError(f"{url}: expected https, a password would travel in the clear")
    return {
        "base_url": url.rstrip("/"),
        "verify": tls_context(identity, ca),
        "auth": (login[0], read_password(login[1], login[0])) if login else None,
        "trust_env": False,
    }


class ElogClient:
    """Calls the logbook; each method waits for the answer.

    Resource handling: a context manager; owns its connections.

    Error handling: RequestError when the logbook refuses (NotFoundError for an unknown
    experiment), BackendError when it fails or something else answers, UnavailableError when
    nothing answers.
    """

    def __init__(
        self,
        url: str,
        *,
        identity: Path | None = None,
        ca: Path | None = None,
        login: tuple[str, Path] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Prepare; nothing is sent before the first call.

        Args:
            url: address in front of `/lgbk`.
            identity: folder with our certificate, key and the trusted authorities.
            ca: authorities to trust when there is no identity; None for the system's.
            login: operator account and the file with its password.
            timeout_s: for one call.
        """
        self._url = url
        settings = _settings(url, identity, ca, login)
        self._http = httpx.Client(timeout=timeout_s, **settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, call: Call) -> Any:
        """Make a call of `lclstream.elog.calls` and return the answer's value."""
        try:
            return self._send(call)
        except UnavailableError:
            if not call.repeatable:
                raise
            return self._send(call)

    def _send(self, call: Call) -> Any:
        with translate_errors(self._url):
            answer = self._http.request(**call.arguments())
        return calls.read_answer(answer)

    def current_run(self, experiment: str) -> dict[str, Any] | None:
        """Return the run that is open, or the last one; None before the first."""
        return _object(self.send(calls.current_run(experiment)))

    def run(self, experiment: str, run: int | str) -> dict[str, Any] | None:
        """Return one run's document; None when there is no such run."""
        return _object(self.send(calls.run_info(experiment, run)))

    def run_files(self, experiment: str, run: int | str) -> list[dict[str, Any]]:
        """Return the documents of a run's files."""
        return _objects(self.send(calls.run_files(experiment, run)))

    def workflow_definitions(self, experiment: str) -> list[dict[str, Any]]:
        """Return the workflow definitions of an experiment."""
        return _objects(self.send(calls.workflow_definitions(experiment)))

    def update_workflow_job(
        self,
        experiment: str,
        job: str,
        *,
        status: str | None = None,
        counters: Counters | None = None,
    ) -> None:
        """Tell the status and all counters of a job that was started by hand."""
        self.send(calls.update_job(experiment, job, status=status, counters=counters))

    def new_entry(
        self,
        experiment: str,
        text: str,
        *,
        title: str | None = None,
        tags: Iterable[str] = (),
        run: int | str | None = None,
    ) -> dict[str, Any] | None:
        """Write an entry for people to read; it is not repeated and cannot be taken back."""
        return _object(
            self.send(calls.new_entry(experiment, text, title=title, tags=tags, run=run))
        )


class AsyncElogClient:
    """What the watcher asks the logbook, for asyncio; otherwise as `ElogClient`."""

    def __init__(
        self,
        url: str,
        *,
        identity: Path | None = None,
        ca: Path | None = None,
        login: tuple[str, Path] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Prepare; the arguments are those of `ElogClient`."""
        self._url = url
        settings = _settings(url, identity, ca, login)
        self._http = httpx.AsyncClient(timeout=timeout_s, **settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def send(self, call: Call) -> Any:
        """Make a call of `lclstream.elog.calls` once and return the answer's value."""
        with translate_errors(self._url):
            answer = await self._http.request(**call.arguments())
        return calls.read_answer(answer)

    async def workflow_definitions(self, experiment: str) -> list[dict[str, Any]]:
        """Return the workflow definitions of an experiment."""
        return _objects(await self.send(calls.workflow_definitions(experiment)))


class RunCounters:
    """The counters that the logbook shows for one run; always posted as a whole.

    Posting never disturbs who counts: what fails is logged, counted in `failures` and made up
    for by the next post.
    """

    def __init__(self, url: str, *, identity: Path | None = None, ca: Path | None = None) -> None:
        """Prepare; nothing is sent before the first post.

        Args:
            url: where this job's counters go; needs no login.
            identity: folder with our certificate, when the service wants one.
            ca: authorities to trust when there is no identity; None for the system's.
        """
        self._url = url
        self._http = httpx.Client(
            verify=tls_context(identity, ca), timeout=COUNTERS_TIMEOUT_S, trust_env=False
        )
        self._counters: dict[str, str | int | float] = {}
        self._posted: Mapping[str, str | int | float] | None = None
        self.failures = 0
        """How many posts did not arrive."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def post(self, counters: Counters) -> bool:
        """Set counters and post all of them; return whether they arrived.

        Args:
            counters: plain names and values; they are escaped here. Nothing is sent when nothing
                changed since the last post that arrived.
        """
        self._counters.update(counters)
        if self._counters == self._posted:
            return True
        try:
            with translate_errors(self._url):
                answer = self._http.post(self._url, json=calls.counter_list(self._counters))
            if not answer.is_success:
                # Who takes counters need not be the logbook: the status is all that is known.
                raise BackendError(f"HTTP {answer.status_code}")
        except LclstreamError as error:
            self.failures += 1
            logger.warning("counters_not_posted", extra={"url": self._url, "reason": str(error)})
            return False
        self._posted = dict(self._counters)
        return True


def _object(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if _is_list(value) else []


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
