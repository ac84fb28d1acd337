"""Clients of the transfers service, for programs with and without asyncio.

```python
with TransfersClient("https://127.0.0.1:4433", Path("identity")) as transfers:
    status = transfers.create({"streamer": {...}, "experiment": "mfx101332224", "run": 42})
    info = transfers.get(status.id)
    while not info.is_final:
        info = transfers.wait(info.id, info.version)
    print(info.phase, info.ledger.difference)
```
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter

from lclstream.core.ledger import Reply, Report
from lclstream.identity.client import client, sync_client
from lclstream.jobs.states import JobState
from lclstream.transfers.models import TransferInfo, TransferRequest, TransferStatus

TIMEOUT_S = 30.0
# Old clients' form of a request is answered when the buffer listens.
CREATE_TIMEOUT_S = 120.0
WAIT_S = 30.0

_LIST: TypeAdapter[list[TransferStatus]] = TypeAdapter(list[TransferStatus])
_LOGS: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One request, the same for both clients."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = TIMEOUT_S

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `request` of either httpx client."""
        content = {} if self.body is None else {"json": self.body}
        return {
            "method": self.method,
            "url": self.path,
            "params": {name: value for name, value in self.params.items() if value is not None},
            "headers": dict(self.headers),
            "timeout": self.timeout_s,
            **content,
        }


class TransfersClient:
    """Talks to the service; blocks.

    Resource handling: a context manager; owns its connections.

    Error handling: raises the errors of the service, `UnavailableError` when it does not answer.
    """

    def __init__(self, base_url: str, identity: Path) -> None:
        self._http = sync_client(identity, base_url.rstrip("/"))

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
        """Close all connections."""
        self._http.close()

    def create(
        self, request: TransferRequest | Mapping[str, Any], *, key: str | None = None
    ) -> TransferStatus:
        """Ask for a transfer; with a key, asking again gives the same one."""
        return TransferStatus.model_validate_json(self._do(_create(request, key)))

    def list(
        self,
        *,
        index: int = 0,
        limit: int | None = None,
        state: JobState | None = None,
        final: bool = True,
    ) -> list[TransferStatus]:
        """Return transfers, newest first; without `final` only those that are alive."""
        return _LIST.validate_json(self._do(_list(index, limit, state, final)))

    def get(self, transfer: int) -> TransferInfo:
        """Return everything about a transfer."""
        return TransferInfo.model_validate_json(self._do(_get(transfer)))

    def wait(self, transfer: int, since: int, wait_s: float = WAIT_S) -> TransferInfo:
        """Return a transfer when its version is no longer `since`, or the time has passed."""
        return TransferInfo.model_validate_json(self._do(_wait(transfer, since, wait_s)))

    def start(self, transfer: int, wanted: Mapping[str, Any]) -> TransferInfo:
        """Start jobs: `{"role": "buffer"}`, `{"role": "producer"}` or a `ConsumerStart`."""
        return TransferInfo.model_validate_json(self._do(_post(transfer, "start", dict(wanted))))

    def drain(self, transfer: int) -> TransferInfo:
        """Take in no more data, deliver the rest, end."""
        return TransferInfo.model_validate_json(self._do(_post(transfer, "drain")))

    def cancel(self, transfer: int, *, now: bool = False) -> None:
        """End a transfer; `now` without delivering what the buffer holds."""
        self._do(_cancel(transfer, now))

    def lease(
        self,
        transfer: int,
        *,
        holder: str,
        generation: int,
        ttl_s: float = 60.0,
        release: bool = False,
    ) -> TransferInfo:
        """Keep a transfer alive for `ttl_s` seconds more, or let it go."""
        wanted = _lease(transfer, holder, generation, ttl_s, release)
        return TransferInfo.model_validate_json(self._do(wanted))

    def report(self, transfer: int, report: Report) -> Reply:
        """Tell what a consumer outside of the service's jobs has counted."""
        return Reply.model_validate_json(self._do(_report(transfer, report)))

    def logs(self, transfer: int, jobid: str) -> dict[str, str]:
        """Return the logs of one job by name."""
        return _LOGS.validate_json(self._do(_logs(transfer, jobid)))

    def _do(self, call: _Call) -> bytes:
        return self._http.request(**call.arguments()).content


class AsyncTransfersClient:
    """The same for asyncio."""

    def __init__(self, base_url: str, identity: Path) -> None:
        self._http = client(identity, base_url.rstrip("/"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def create(
        self, request: TransferRequest | Mapping[str, Any], *, key: str | None = None
    ) -> TransferStatus:
        """Ask for a transfer; with a key, asking again gives the same one."""
        return TransferStatus.model_validate_json(await self._do(_create(request, key)))

    async def list(
        self,
        *,
        index: int = 0,
        limit: int | None = None,
        state: JobState | None = None,
        final: bool = True,
    ) -> list[TransferStatus]:
        """Return transfers, newest first; without `final` only those that are alive."""
        return _LIST.validate_json(await self._do(_list(index, limit, state, final)))

    async def get(self, transfer: int) -> TransferInfo:
        """Return everything about a transfer."""
        return TransferInfo.model_validate_json(await self._do(_get(transfer)))

    async def wait(self, transfer: int, since: int, wait_s: float = WAIT_S) -> TransferInfo:
        """Return a transfer when its version is no longer `since`, or the time has passed."""
        return TransferInfo.model_validate_json(await self._do(_wait(transfer, since, wait_s)))

    async def start(self, transfer: int, wanted: Mapping[str, Any]) -> TransferInfo:
        """Start jobs: `{"role": "buffer"}`, `{"role": "producer"}` or a `ConsumerStart`."""
        call = _post(transfer, "start", dict(wanted))
        return TransferInfo.model_validate_json(await self._do(call))

    async def drain(self, transfer: int) -> TransferInfo:
        """Take in no more data, deliver the rest, end."""
        return TransferInfo.model_validate_json(await self._do(_post(transfer, "drain")))

    async def cancel(self, transfer: int, *, now: bool = False) -> None:
        """End a transfer; `now` without delivering what the buffer holds."""
        await self._do(_cancel(transfer, now))

    async def lease(
        self,
        transfer: int,
        *,
        holder: str,
        generation: int,
        ttl_s: float = 60.0,
        release: bool = False,
    ) -> TransferInfo:
        """Keep a transfer alive for `ttl_s` seconds more, or let it go."""
        wanted = _lease(transfer, holder, generation, ttl_s, release)
        return TransferInfo.model_validate_json(await self._do(wanted))

    async def report(self, transfer: int, report: Report) -> Reply:
        """Tell what a consumer outside of the service's jobs has counted."""
        return Reply.model_validate_json(await self._do(_report(transfer, report)))

    async def logs(self, transfer: int, jobid: str) -> dict[str, str]:
        """Return the logs of one job by name."""
        return _LOGS.validate_json(await self._do(_logs(transfer, jobid)))

    async def _do(self, call: _Call) -> bytes:
        return (await self._http.request(**call.arguments())).content


def _create(request: TransferRequest | Mapping[str, Any], key: str | None) -> _Call:
    if isinstance(request, TransferRequest):
        body = request.model_dump(mode="json")
    else:
        body = dict(request)
    headers = {"Idempotency-Key": key} if key is not None else {}
    return _Call(
        method="POST",
        path="/v1/transfers",
        body=body,
        headers=headers,
        timeout_s=CREATE_TIMEOUT_S,
    )


def _list(index: int, limit: int | None, state: JobState | None, final: bool) -> _Call:
    params = {
        "index": index,
        "limit": limit,
        "state": state.value if state else None,
        "final": str(final).lower(),
    }
    return _Call(method="GET", path="/v1/transfers", params=params)


def _get(transfer: int) -> _Call:
    return _Call(method="GET", path=f"/v1/transfers/{transfer}")


def _wait(transfer: int, since: int, wait_s: float) -> _Call:
    return _Call(
        method="GET",
        path=f"/v1/transfers/{transfer}",
        params={"wait": wait_s, "since": since},
        timeout_s=wait_s + TIMEOUT_S,
    )


def _post(transfer: int, verb: str, body: Any = None) -> _Call:
    return _Call(method="POST", path=f"/v1/transfers/{transfer}/{verb}", body=body)


def _cancel(transfer: int, now: bool) -> _Call:
    params = {"now": str(now).lower()}
    return _Call(method="DELETE", path=f"/v1/transfers/{transfer}", params=params)


def _lease(transfer: int, holder: str, generation: int, ttl_s: float, release: bool) -> _Call:
    body = {
        "holder": holder,
        "generation": generation,
        "ttl_s": ttl_s,
        "release": release,
    }
    return _post(transfer, "lease", body)


def _report(transfer: int, report: Report) -> _Call:
    body = report.model_dump(mode="json", by_alias=True, exclude_none=True)
    return _post(transfer, "reports", body)


def _logs(transfer: int, jobid: str) -> _Call:
    return _Call(method="GET", path=f"/v1/transfers/{transfer}/jobs/{jobid}/logs")
