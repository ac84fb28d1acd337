"""An asynchronous client of the jobs service.

```python
async with JobsClient("https://127.0.0.1:14433", Path("identity")) as jobs:
    jobid = await jobs.create(JobSpec(script="echo hello"), submit=True, key="hello-1")
    await jobs.wait(jobid)
    print((await jobs.logs(jobid))["stdout.1"])
```
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from pydantic import TypeAdapter

from lclstream.core.errors import RequestError
from lclstream.identity.client import client
from lclstream.jobs.models import FileStat, JobSpec, JobStepInfo, SystemStatus
from lclstream.jobs.states import FINAL, JobState

TIMEOUT_S = 30.0
"""For one call. A submission takes as long as sbatch does, usually milliseconds."""
SUBMIT_TIMEOUT_S = 90.0
POLL_S = 0.25
FOLLOW_S = 0.5

STEPS = TypeAdapter(list[JobStepInfo])
FILES = TypeAdapter(dict[str, FileStat])
SYSTEMS = TypeAdapter(dict[str, SystemStatus])


class JobsClient:
    """Talks to one jobs service as the owner of an identity folder.

    Resource handling: an asynchronous context manager, owns its connections.

    Error handling: every method raises what the service raised (`NotFoundError`,
    `NotAuthorizedError`, ...) and `UnavailableError` when it does not answer. Calls are not
    repeated here; `create` with a key, `start` with a run, `cancel` and `upload` may be.
    """

    def __init__(self, base_url: str, identity: Path, *, dialect: str = "v3") -> None:
        self.base_url = base_url.rstrip("/").removesuffix(f"/{dialect}")
        self._http = client(identity, f"{self.base_url}/{dialect}", timeout=TIMEOUT_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def create(self, spec: JobSpec, *, submit: bool = False, key: str | None = None) -> str:
        """Make a job and return its id.

        Args:
            spec: what to run.
            submit: whether to start it at once; else upload what it needs and call `start`.
            key: names the request: the same key gives the same job, and never a second one.
        """
        headers = {"Idempotency-Key": key} if key is not None else {}
        answer = await self._http.post(
            "/jobs",
            params={"submit": str(submit).lower()},
            content=spec.model_dump_json(),
            headers={**headers, "content-type": "application/json"},
            timeout=SUBMIT_TIMEOUT_S,
        )
        return str(answer.json())

    async def find(self, key: str) -> str | None:
        """Return the id of the job that was made with a key; None: there is none."""
        steps = STEPS.validate_json((await self._http.get("/jobs", params={"key": key})).content)
        return steps[0].jobid if steps else None

    async def upload(self, jobid: str, files: Mapping[str, bytes]) -> None:
        """Store files in the job's directory, each readable by its owner only.

        Args:
            jobid: the job.
            files: content by name; a name may have folders, which are made.
        """
        # The service unquotes names, because psik quotes them.
        parts = [("files", (name.replace("%", "%25"), data)) for name, data in files.items()]
        await self._http.post(f"{path_of(jobid)}/files", files=parts)

    async def files(self, jobid: str, folder: str = "") -> dict[str, FileStat]:
        """Return what is in the job's directory or in a folder of it."""
        below = f"/{quote(folder)}" if folder else ""
        answer = await self._http.get(f"{path_of(jobid)}/files{below}")
        return FILES.validate_json(answer.content)

    async def download(self, jobid: str, name: str) -> bytes:
        """Return the content of a file in the job's directory."""
        return (await self._http.get(f"{path_of(jobid)}/files/{quote(name)}")).content

    async def start(self, jobid: str, run: int | None = 1) -> None:
        """Start a run.

        Args:
            jobid: the job.
            run: its number; asking again for a run that was started does nothing. None: the
                next one, whichever that is.
        """
        params = {"run": run} if run is not None else {}
        await self._http.post(f"{path_of(jobid)}/start", params=params, timeout=SUBMIT_TIMEOUT_S)

    async def history(self, jobid: str) -> list[JobStepInfo]:
        """Return all transitions, oldest first."""
        return STEPS.validate_json((await self._http.get(path_of(jobid))).content)

    async def state(self, jobid: str) -> JobState:
        """Return the present state."""
        return JobState((await self._http.get(f"{path_of(jobid)}/state")).json())

    async def wait(self, jobid: str) -> JobStepInfo:
        """Wait until the job has ended and return its last transition."""
        while True:
            last = (await self.history(jobid))[-1]
            if last.state in FINAL:
                return last
            await asyncio.sleep(POLL_S)

    async def logs(self, jobid: str, *, limit: int | None = None) -> dict[str, str]:
        """Return all logs by name (`stdout.1`, `console`, ...), of long ones the end.

        Args:
            jobid: the job.
            limit: most bytes of each; the service has a limit of its own.
        """
        params = {"limit": limit} if limit is not None else {}
        answer = await self._http.get(f"{path_of(jobid)}/logs", params=params)
        found: dict[str, str] = answer.json()
        return found

    async def log(self, jobid: str, name: str, offset: int = 0) -> bytes:
        """Return part of one log from a byte on; empty when there is nothing yet."""
        answer = await self._http.get(
            f"{path_of(jobid)}/logs/{quote(name, safe='')}", params={"offset": offset}
        )
        return answer.content

    async def follow(self, jobid: str, name: str) -> AsyncIterator[bytes]:
        """Yield a log as it grows, until the job has ended."""
        offset = 0
        while True:
            # Asked before the log: what is written before the end is read after it.
            ended = (await self.state(jobid)) in FINAL
            try:
                piece = await self.log(jobid, name, offset)
            except RequestError as error:
                if error.status != 404 or ended:
                    raise
                piece = b""
            offset += len(piece)
            if piece:
                yield piece
            elif ended:
                return
            else:
                await asyncio.sleep(FOLLOW_S)

    async def cancel(self, jobid: str) -> None:
        """Ask the job to end; its state says when nothing of it is left."""
        await self._http.delete(path_of(jobid))

    async def list(
        self,
        *,
        state: JobState | None = None,
        backend: str | None = None,
        index: int = 0,
        limit: int | None = None,
    ) -> list[JobStepInfo]:
        """Return the last transition of each of the caller's jobs, newest first."""
        asked: dict[str, Any] = {"state": state, "backend": backend, "index": index, "limit": limit}
        params = {name: value for name, value in asked.items() if value is not None}
        return STEPS.validate_json((await self._http.get("/jobs", params=params)).content)

    async def backends(self) -> dict[str, SystemStatus]:
        """Return the state of the site's backends by name."""
        return SYSTEMS.validate_json((await self._http.get("/backends")).content)


def path_of(jobid: str) -> str:
    """Return the path of a job."""
    return f"/jobs/{quote(jobid, safe='')}"
