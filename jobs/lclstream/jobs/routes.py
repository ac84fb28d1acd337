"""The REST interface of psik-api, dialect v3: `info` is text.

`v3` returns the application that is mounted at `/v3`; another dialect is another function
here, over the same supervisor.
"""

import datetime
import os
from collections.abc import AsyncIterator
from io import FileIO
from typing import Annotated

from fastapi import APIRouter, FastAPI, File, Header, HTTPException, Query, Request, UploadFile
from fastapi.responses import Response, StreamingResponse

from lclstream.core.errors import (
    InvalidConfigError,
    NotAuthorizedError,
    NotFoundError,
    RequestError,
)
from lclstream.core.http import install_error_handlers
from lclstream.identity.caller import Caller, CallerDep
from lclstream.identity.roles import SiteRoles
from lclstream.jobs import exchange
from lclstream.jobs.exchange import CHUNK_BYTES, JobFiles
from lclstream.jobs.index import Entry
from lclstream.jobs.limits import BodyLimit
from lclstream.jobs.models import FileStat, JobSpec, JobState, JobStepInfo, SystemStatus
from lclstream.jobs.store import Job
from lclstream.jobs.supervisor import Supervisor

# Room for headers and borders of the parts of an upload.
MULTIPART_MARGIN = 1 << 20
MAX_FILES = 1000
RANGE_NOT_SATISFIABLE = 416
IdempotencyKey = Annotated[str | None, Header(max_length=255, pattern=r"^[\x21-\x7e]+$")]


class Access:
    """Finds jobs for callers: each sees and changes its own, administrators all."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.roles = SiteRoles(admins=supervisor.control.config.admins)

    def admit(self, caller: Caller) -> None:
        """Refuse jobs: their certificates are for their transfers, not for making more jobs."""
        if caller.job is not None:
            raise NotAuthorizedError(f"{caller.name} is a job and may not use the jobs service")

    async def job(self, jobid: str, caller: Caller) -> Job:
        """Return a job that the caller may see and change."""
        self.admit(caller)
        job = await self.supervisor.in_thread(self.supervisor.control.store.get, jobid)
        owner = await self.supervisor.in_thread(lambda: job.owner)
        self.roles.require(caller, owner, f"job {jobid}")
        return job

    def entries(self, caller: Caller) -> list[Entry]:
        """Return what the caller may see, newest first."""
        every = self.supervisor.index.newest_first()
        return [entry for entry in every if self.roles.may(caller, entry.owner)]


def v3(supervisor: Supervisor) -> FastAPI:
    """Return the application of dialect v3."""
    app = FastAPI(title="LCLStream jobs", docs_url="/", redoc_url=None)
    install_error_handlers(app)
    access = Access(supervisor)
    for routes in (job_routes, run_routes, log_routes, file_routes, backend_routes):
        app.include_router(routes(access))
    return app


def application(supervisor: Supervisor) -> BodyLimit:
    """Return everything that the service serves."""
    app = FastAPI(title="LCLStream jobs", docs_url=None, redoc_url=None, openapi_url=None)
    install_error_handlers(app)
    app.mount("/v3", v3(supervisor))
    config = supervisor.control.config

    @app.get("/health")
    async def health(caller: CallerDep) -> dict[str, int]:
        return {"jobs": len(supervisor.index.entries), "live": supervisor.live()}

    def limit_of(path: str) -> int:
        is_upload = path.endswith("/files")
        return config.max_upload_bytes + MULTIPART_MARGIN if is_upload else config.max_body_bytes

    return BodyLimit(app, limit_of)


def job_routes(access: Access) -> APIRouter:
    """Return the routes that make and list jobs."""
    router = APIRouter(tags=["jobs"])
    supervisor, control = access.supervisor, access.supervisor.control

    async def create(spec: JobSpec, caller: Caller, key: str | None, *, submit: bool) -> str:
        access.admit(caller)
        job = await supervisor.with_backend(
            lambda: control.create(spec, caller.name, key=key, submit=submit)
        )
        await supervisor.refresh(job)
        return job.jobid

    def step_of_key(owner: str, key: str) -> list[JobStepInfo]:
        # Not from the index, which may not have seen a job that was made a moment ago.
        job = control.find(owner, key)
        return [job.step(job.history()[-1])] if job is not None else []

    @router.get("/jobs")
    async def list_jobs(
        caller: CallerDep,
        index: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int | None, Query(ge=1)] = None,
        backend: str | None = None,
        state: JobState | None = None,
        key: str | None = None,
    ) -> list[JobStepInfo]:
        """Return the last step of each job, newest first; of one job if a key names it."""
        access.admit(caller)
        if key is not None:
            return await supervisor.in_thread(step_of_key, caller.name, key)
        found = [
            entry
            for entry in access.entries(caller)
            if backend in {None, entry.backend} and state in {None, entry.last.state}
        ]
        end = None if limit is None else index + limit
        return [entry.job.step(entry.last) for entry in found[index:end]]

    @router.post("/jobs")
    async def post_job(
        spec: JobSpec,
        caller: CallerDep,
        idempotency_key: IdempotencyKey = None,
        submit: bool = True,
    ) -> str:
        """Make a job, start it unless told otherwise, and return its id."""
        return await create(spec, caller, idempotency_key, submit=submit)

    @router.post("/jobs/new")
    async def post_new(
        spec: JobSpec, caller: CallerDep, idempotency_key: IdempotencyKey = None
    ) -> str:
        """Make a job without starting it."""
        return await create(spec, caller, idempotency_key, submit=False)

    return router


def run_routes(access: Access) -> APIRouter:
    """Return the routes that start, show and cancel one job."""
    router = APIRouter(tags=["jobs"])
    supervisor, control = access.supervisor, access.supervisor.control

    @router.post("/jobs/{jobid}/start")
    async def start(
        jobid: str, caller: CallerDep, run: Annotated[int | None, Query(ge=1)] = None
    ) -> None:
        """Start the next run, or the named one unless it was started before."""
        job = await access.job(jobid, caller)
        await supervisor.with_backend(control.start, job, run)
        await supervisor.refresh(job)

    @router.get("/jobs/{jobid}")
    async def history(jobid: str, caller: CallerDep) -> list[JobStepInfo]:
        """Return the full history."""
        job = await access.job(jobid, caller)
        return await supervisor.in_thread(lambda: [job.step(row) for row in job.history()])

    @router.get("/jobs/{jobid}/state")
    async def state_of(jobid: str, caller: CallerDep) -> JobState:
        """Return the present state."""
        job = await access.job(jobid, caller)
        return await supervisor.in_thread(job.state)

    @router.delete("/jobs/{jobid}")
    async def cancel(jobid: str, caller: CallerDep) -> None:
        """Ask the job to end; its state tells when it has."""
        job = await access.job(jobid, caller)
        await supervisor.with_backend(control.cancel, job)
        await supervisor.refresh(job)
        supervisor.hurry(job)

    return router


def log_routes(access: Access) -> APIRouter:
    """Return the routes of logs."""
    router = APIRouter(tags=["files"])
    supervisor, config = access.supervisor, access.supervisor.control.config

    @router.get("/jobs/{jobid}/logs")
    async def logs(
        jobid: str,
        caller: CallerDep,
        response: Response,
        limit: Annotated[int | None, Query(ge=1)] = None,
    ) -> dict[str, str]:
        """Return all logs, of long ones the end; `x-truncated` names these."""
        job = await access.job(jobid, caller)
        most = min(limit or config.max_log_bytes, config.max_log_bytes)
        found = await supervisor.in_thread(exchange.read_logs, job, most)
        cut = [name for name, piece in found.items() if piece.offset > 0]
        if cut:
            response.headers["x-truncated"] = ", ".join(cut)
        return {name: piece.data.decode(errors="replace") for name, piece in found.items()}

    @router.get("/jobs/{jobid}/logs/{name}", response_class=Response)
    async def log(
        jobid: str,
        name: str,
        caller: CallerDep,
        offset: Annotated[int | None, Query(ge=0)] = None,
        limit: Annotated[int | None, Query(ge=1)] = None,
    ) -> Response:
        """Return part of one log: from `offset` on, or the end.

        To follow it, ask again from `x-log-offset` plus the length of what came.
        """
        job = await access.job(jobid, caller)
        most = min(limit or config.max_log_bytes, config.max_log_bytes)
        piece = await supervisor.in_thread(exchange.read_log, job, name, offset, most)
        headers = {"x-log-offset": str(piece.offset), "x-log-size": str(piece.size)}
        return Response(piece.data, media_type="text/plain", headers=headers)

    return router


def file_routes(access: Access) -> APIRouter:
    """Return the routes of the files in a job's directory."""
    router = APIRouter(tags=["files"])
    supervisor, config = access.supervisor, access.supervisor.control.config

    async def files_of(jobid: str, caller: Caller) -> JobFiles:
        job = await access.job(jobid, caller)
        return await supervisor.in_thread(JobFiles, job, config.directories)

    @router.post("/jobs/{jobid}/files")
    async def upload(
        jobid: str, caller: CallerDep, files: Annotated[list[UploadFile], File()]
    ) -> None:
        """Store files in the job's directory, each readable by its owner only."""
        place = await files_of(jobid, caller)
        if len(files) > MAX_FILES:
            raise InvalidConfigError(f"at most {MAX_FILES} files at once, got {len(files)}")
        for file in files:
            await supervisor.in_thread(place.store, file.filename or "", file.file)

    @router.get("/jobs/{jobid}/files")
    async def listing(jobid: str, caller: CallerDep) -> dict[str, FileStat]:
        """Return what is in the job's directory."""
        place = await files_of(jobid, caller)
        return await supervisor.in_thread(place.listing)

    @router.get("/jobs/{jobid}/files/{path:path}", response_model=dict[str, FileStat])
    async def download(
        jobid: str,
        path: str,
        caller: CallerDep,
        request: Request,
    ) -> Response | dict[str, FileStat]:
        """Return the bytes of a file, or what is in a folder."""
        place = await files_of(jobid, caller)
        if await supervisor.in_thread(place.is_folder, path):
            return await supervisor.in_thread(place.listing, path)
        handle = await supervisor.in_thread(place.open_file, path)
        # An answer that is never sent lets the file go all the same.
        file = os.fdopen(handle, "rb", buffering=0)
        return file_response(supervisor, file, path, request.headers.get("range"))

    return router


def file_response(
    supervisor: Supervisor, file: FileIO, path: str, wanted: str | None
) -> StreamingResponse:
    """Return an answer that sends an open file, or the wanted range of it, and closes it."""
    found = os.fstat(file.fileno())
    try:
        part = exchange.byte_range(wanted, found.st_size)
    except RequestError as error:
        file.close()
        size = {"content-range": f"bytes */{found.st_size}"}
        raise HTTPException(RANGE_NOT_SATISFIABLE, str(error), headers=size) from error
    first, count = part or (0, found.st_size)

    async def body() -> AsyncIterator[bytes]:
        with file:
            position, end = first, first + count
            while position < end:
                size = min(CHUNK_BYTES, end - position)
                chunk = await supervisor.in_thread(os.pread, file.fileno(), size, position)
                if not chunk:
                    return
                position += len(chunk)
                yield chunk

    name = path.rstrip("/").rpartition("/")[2].replace('"', "").encode("ascii", "replace").decode()
    changed = datetime.datetime.fromtimestamp(found.st_mtime, datetime.UTC)
    headers = {
        "accept-ranges": "bytes",
        "content-disposition": f'attachment; filename="{name}"',
        "content-length": str(count),
        "last-modified": changed.strftime("%a, %d %b %Y %H:%M:%S GMT"),
    }
    if part is not None:
        headers["content-range"] = f"bytes {first}-{first + count - 1}/{found.st_size}"
    status = 206 if part is not None else 200
    media = "application/octet-stream"
    return StreamingResponse(body(), status_code=status, media_type=media, headers=headers)


def backend_routes(access: Access) -> APIRouter:
    """Return the routes that show the backends."""
    router = APIRouter(tags=["backends"])
    control = access.supervisor.control

    def status_of(name: str) -> SystemStatus:
        kind = control.config.backends[name].type
        problem = control.backends[name].status()
        return SystemStatus(
            name=name,
            full_name=name,
            description=f"lclstream:{kind} job manager at {control.store.prefix}",
            system_type=kind,
            notes=[problem] if problem else [],
            status="unavailable" if problem else "active",
            updated_at=datetime.datetime.now(datetime.UTC).isoformat(),
        )

    def known(name: str) -> str:
        if name not in control.backends:
            raise NotFoundError("Item not found")
        return name

    @router.get("/backends")
    async def all_backends(caller: CallerDep, name: str | None = None) -> dict[str, SystemStatus]:
        """Return the state of all backends, or of the named one."""
        names = list(control.backends) if name is None else [known(name)]
        return {each: status_of(each) for each in names}

    @router.get("/backends/{name}")
    async def backend(name: str, caller: CallerDep) -> SystemStatus:
        """Return the state of one backend."""
        return status_of(known(name))

    return router
