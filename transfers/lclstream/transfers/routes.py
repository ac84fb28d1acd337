"""The REST interface under `/v1`: that of LCLStream-API, and what ours adds.

Paths work with and without a slash at the end, as those of the reference do.
"""

import json
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Query, Request

from lclstream.core.errors import InvalidConfigError, TooLargeError
from lclstream.core.http import install_error_handlers
from lclstream.core.ledger import Reply, Report
from lclstream.core.models import parse
from lclstream.identity.caller import CallerDep
from lclstream.jobs.signing import SIGNATURE
from lclstream.jobs.states import JobState
from lclstream.transfers.desk import LONGEST_WAIT_S, Desk, Page, parse_request
from lclstream.transfers.models import (
    Health,
    LeaseRequest,
    StartBody,
    TransferInfo,
    TransferStatus,
)
from lclstream.transfers.record import Role

LARGEST_REQUEST_BYTES = 4 * 1024 * 1024
LARGEST_REPORT_BYTES = 64 * 1024
LARGEST_CALLBACK_BYTES = 64 * 1024
CALLBACK_ROLES = {
    "producer": Role.PRODUCER,
    "forwarder": Role.BUFFER,
    "consumer": Role.CONSUMER,
}

Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=500)]


def make_app(desk: Desk) -> FastAPI:
    """Return the application that serves a desk."""
    app = FastAPI(title="LCLStream transfers", docs_url="/v1/", openapi_url="/v1/openapi.json")
    install_error_handlers(app)
    app.include_router(_transfers(desk), prefix="/v1")
    app.include_router(_changes(desk), prefix="/v1")
    app.include_router(_told(desk), prefix="/v1")

    @app.get("/health")
    async def health() -> Health:
        """Say that the service lives, and how many transfers do."""
        return Health(transfers=desk.runners.active)

    return app


def _transfers(desk: Desk) -> APIRouter:
    """What the reference service has."""
    router = APIRouter(tags=["transfers"])

    @router.get("/transfers")
    @router.get("/transfers/", include_in_schema=False)
    async def list_transfers(
        caller: CallerDep,
        index: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int | None, Query(ge=0)] = None,
        state: JobState | None = None,
        final: bool = False,
    ) -> list[TransferStatus]:
        """List your transfers, newest first; ended ones with `final=true`."""
        return await desk.list(caller, Page(index=index, limit=limit, state=state, final=final))

    @router.post("/transfers")
    @router.post("/transfers/", include_in_schema=False)
    async def create_transfer(
        request: Request, caller: CallerDep, key: Key = None
    ) -> TransferStatus:
        """Ask for a stream: a `TransferRequest`, or a bare streamer configuration.

        A bare one is started at once and answered when its address is known.
        """
        wanted, is_bare = parse_request(await _json(request, LARGEST_REQUEST_BYTES))
        return await desk.create(caller, wanted, key=key, wait=is_bare)

    @router.get("/transfers/{number}")
    @router.get("/transfers/{number}/", include_in_schema=False)
    async def show_transfer(
        caller: CallerDep,
        number: int,
        wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT_S)] = 0.0,
        since: int | None = None,
    ) -> TransferInfo:
        """Show one transfer; with `wait` and `since` as soon as its version is another one."""
        return await desk.info(caller, number, wait_s=wait, since=since)

    @router.delete("/transfers/{number}")
    @router.delete("/transfers/{number}/", include_in_schema=False)
    async def cancel_transfer(caller: CallerDep, number: int, now: bool = False) -> None:
        """Cancel; with `now` without letting consumers take what the buffer holds."""
        await desk.cancel(caller, number, at_once=now)

    return router


def _changes(desk: Desk) -> APIRouter:
    """What a supervisor does with a transfer."""
    router = APIRouter(tags=["supervision"])

    @router.post("/transfers/{number}/start")
    async def start(request: Request, caller: CallerDep, number: int) -> TransferInfo:
        """Start the buffer, the producers or consumers; a `StartBody`."""
        body = parse(StartBody, await _json(request, LARGEST_REQUEST_BYTES), "request body")
        return await desk.start(caller, number, body.root)

    @router.post("/transfers/{number}/drain")
    async def drain(caller: CallerDep, number: int) -> TransferInfo:
        """Take in no more data, deliver the rest, end."""
        return await desk.drain(caller, number)

    @router.post("/transfers/{number}/lease")
    async def lease(request: Request, caller: CallerDep, number: int) -> TransferInfo:
        """Keep a transfer alive or let it go; a `LeaseRequest`."""
        body = parse(LeaseRequest, await _json(request, LARGEST_REPORT_BYTES), "request body")
        return await desk.lease(caller, number, body)

    @router.get("/transfers/{number}/jobs/{jobid}/logs")
    async def logs(caller: CallerDep, number: int, jobid: str) -> dict[str, str]:
        """Show the logs of one of its jobs."""
        return await desk.logs(caller, number, jobid)

    return router


def _told(desk: Desk) -> APIRouter:
    """What jobs and their sites tell."""
    router = APIRouter(tags=["jobs"])

    @router.post("/transfers/{number}/reports")
    async def report(request: Request, caller: CallerDep, number: int) -> Reply:
        """Take in what a process has counted; the answer says what it shall do."""
        body = parse(Report, await _json(request, LARGEST_REPORT_BYTES), "request body")
        return await desk.report(caller, number, body)

    @router.post("/callback/{client}")
    async def callback(request: Request, caller: CallerDep, client: str) -> bool:
        """Take in a job's state from its jobs service; `client` as in the URL it was given."""
        body = await _read(request, LARGEST_CALLBACK_BYTES)
        role = CALLBACK_ROLES.get(client)
        if role is None:
            known = ", ".join(CALLBACK_ROLES)
            raise InvalidConfigError(f"callback of {client!r}: must be one of {known}")
        await desk.callback(role, body, request.headers.get(SIGNATURE))
        return True

    return router


async def _read(request: Request, most_bytes: int) -> bytes:
    """Return the body; raises `TooLargeError` before more than that has been read."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            raise TooLargeError(f"the body of this request must not exceed {most_bytes} bytes")
    return bytes(body)


async def _json(request: Request, most_bytes: int) -> Any:
    try:
        return json.loads(await _read(request, most_bytes))
    except (ValueError, RecursionError) as error:
        raise InvalidConfigError(f"request body: not JSON: {error}") from None
