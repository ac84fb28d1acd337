"""Pages about transfers inside Airflow: what the service knows, shown to who is logged in.

The API server asks the transfers service with the identity of its connection, so that a
browser needs no certificate. Nothing can be changed from here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from airflow.api_fastapi.core_api.security import get_user
from airflow.sdk.exceptions import AirflowNotFoundException
from fastapi import APIRouter, Depends
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader

from lclstream.core.errors import UnavailableError
from lclstream.operators.hooks import LclstreamHook
from lclstream.operators.progress import account
from lclstream.transfers.client import TransfersClient
from lclstream.transfers.models import TransferInfo, TransferStatus

SHOWN_LOG_CHARACTERS = 200_000
LISTED = 100
SHOWN_JOBS = 50
HEADERS = {
    # Text of jobs is shown on these pages: nothing in it may run.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "frame-ancestors 'self'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}

# Airflow mounts an application of a plug-in without any guard; this one holds for every route.
router = APIRouter(dependencies=[Depends(get_user)])
pages = Environment(loader=FileSystemLoader(Path(__file__).parent / "pages"), autoescape=True)


def transfers() -> Iterator[TransfersClient]:
    """Open a client for one request."""
    try:
        client = LclstreamHook().get_conn()
    except AirflowNotFoundException as error:
        raise UnavailableError(str(error)) from error
    with client:
        yield client


Transfers = Annotated[TransfersClient, Depends(transfers)]


@router.get("/transfers")
def show_transfers(client: Transfers) -> HTMLResponse:
    """Show the newest transfers."""
    return _page("transfers.html", transfers=client.list(limit=LISTED))


@router.get("/transfers/{transfer}")
def show_transfer(transfer: int, client: Transfers) -> HTMLResponse:
    """Show the state, the jobs and the ledger of a transfer."""
    info = client.get(transfer)
    return _page("transfer.html", info=info, account=account(info))


@router.get("/transfers/{transfer}/logs")
def show_logs(transfer: int, client: Transfers, role: str = "", name: str = "") -> HTMLResponse:
    """Show what the jobs wrote; of one role or name, if asked so."""
    info = client.get(transfer)
    wanted = [
        job
        for job in info.jobs
        if role in ("", job.role.value) and name in ("", job.name) and job.jobid
    ]
    jobs = [(job, _tails(client.logs(transfer, job.jobid))) for job in wanted[:SHOWN_JOBS]]
    return _page("logs.html", info=info, jobs=jobs, asked=" ".join(filter(None, (role, name))))


@router.get("/api/transfers")
def list_transfers(client: Transfers) -> list[TransferStatus]:
    """Return the newest transfers."""
    return client.list(limit=LISTED)


@router.get("/api/transfers/{transfer}")
def read_transfer(transfer: int, client: Transfers) -> TransferInfo:
    """Return everything about a transfer."""
    return client.get(transfer)


def _tails(logs: dict[str, str]) -> dict[str, str]:
    return {file: text[-SHOWN_LOG_CHARACTERS:] for file, text in sorted(logs.items())}


def _page(name: str, **values: Any) -> HTMLResponse:
    return HTMLResponse(pages.get_template(name).render(values), headers=HEADERS)
