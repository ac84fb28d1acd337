"""Job folders on disk: making, reading, listing and removing them.

A folder appears under its final name complete or not at all. Secrets are kept out of
`spec.json`, which everybody at the site may read.
"""

import fcntl
import json
import os
import pwd
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from pydantic import ValidationError

from lclstream.core.errors import (
    ConflictError,
    InvalidConfigError,
    NotFoundError,
    RequestError,
    UnavailableError,
)
from lclstream.core.files import write_atomically
from lclstream.core.models import describe
from lclstream.jobs import history, layout
from lclstream.jobs.models import ExtraInfo, JobSpec, JobStepInfo
from lclstream.jobs.states import JobState, Transition, current, last_run

JOB_ID = re.compile(r"[0-9]+(\.[0-9]+)?")
STAGING = ".new"
REMOVED = ".removed"
SERVICE_LOCK = ".service.lock"
# Making or removing a folder takes a fraction of a second.
REMAINS_AGE_S = 3600.0
LOCK_TIMEOUT_S = 5.0
LOCK_RETRY_S = 0.02
# Headers whose values are secrets even though they are not called cb_secret.
SECRET_HEADER = re.compile(r"auth|cookie|key|passw|secret|token", re.IGNORECASE)
FOLDER_MODE = 0o755


class Ownership(TypedDict):
    """Content of `owner.json`."""

    owner: str
    key: str | None


class Job:
    """One job folder. Reads what it is asked for and keeps only what never changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobid = folder.name

    def __repr__(self) -> str:
        return f"Job({str(self.folder)!r})"

    @cached_property
    def spec(self) -> JobSpec:
        """What was asked for, with its secrets."""
        try:
            written = json.loads((self.folder / layout.SPEC).read_text("utf-8"))
            return JobSpec.model_validate(written | self._secrets())
        except FileNotFoundError:
            raise NotFoundError("Job not found") from None
        except ValidationError as error:
            # Not its own text: that shows what was read, secrets too.
            faults = "; ".join(describe(error, JobSpec))
            raise RequestError(f"the folder of job {self.jobid} is damaged: {faults}") from None
        except ValueError as error:
            raise RequestError(f"the folder of job {self.jobid} is damaged: {error}") from error

    def _secrets(self) -> dict[str, Any]:
        return dict(_read_json(layout.secret_file(self.folder)) or {})

    @cached_property
    def ownership(self) -> Ownership:
        """Who made the job; a folder made by psik belongs to the owner of its files."""
        found = _read_json(layout.owner_file(self.folder))
        if found is not None:
            return Ownership(owner=found["owner"], key=found.get("key"))
        return Ownership(owner=file_owner(self.folder), key=None)

    @property
    def owner(self) -> str:
        """Name of the caller that made the job, such as `uid:mona`."""
        return self.ownership["owner"]

    @property
    def is_ours(self) -> bool:
        """Whether we made the folder; psik follows and reports the jobs that it made."""
        return (self.folder / layout.PRIVATE).is_dir()

    @property
    def status_file(self) -> Path:
        """Where the history stands."""
        return self.folder / layout.STATUS

    @property
    def directory(self) -> Path:
        """Where the script runs and files are exchanged."""
        return Path(self.spec.directory or self.folder / layout.WORK)

    def history(self) -> list[Transition]:
        """Return all transitions; raises `NotFoundError` when the job is gone."""
        try:
            return history.read(self.status_file)
        except FileNotFoundError:
            raise NotFoundError("Job not found") from None

    def state(self) -> JobState:
        """Return the present state."""
        return current(self.history())

    def due_run(self) -> int | None:
        """Return the number of a run that was asked for and not queued yet; else None."""
        following = last_run(self.history()) + 1
        return following if layout.submit_mark(self.folder, following).exists() else None

    def prepare(self) -> None:
        """Make our files in a folder that psik made, when we are first asked to act on it."""
        if self.is_ours:
            return
        rows, script = self.history(), self.folder / layout.SCRIPT
        if not script.exists():
            _write(script, self.spec.script, 0o700)
        (self.folder / layout.PRIVATE).mkdir(mode=0o700, exist_ok=True)
        # psik has told the world about its rows.
        self.note_told(len(rows))

    def told(self) -> int:
        """Return how many rows of the history have been told to the callback's receiver."""
        found = _read_json(layout.cursor_file(self.folder))
        return int(found["delivered"]) if found is not None else 0

    def note_told(self, rows: int) -> None:
        """Note how many rows have been told; raises `FileNotFoundError` when the job is gone."""
        _write(layout.cursor_file(self.folder), json.dumps({"delivered": rows}), 0o600)

    @contextmanager
    def exclusively(self, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Be the only process and thread that starts, cancels or removes this job.

        Raises:
            UnavailableError: somebody else is at it for longer than the timeout.
        """
        try:
            self.prepare()
            handle = os.open(
                layout.lock_file(self.folder), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except FileNotFoundError:
            raise NotFoundError("Job not found") from None
        try:
            _lock(handle, timeout_s, f"job {self.jobid} is being started or cancelled")
            yield
        finally:
            os.close(handle)

    def step(self, row: Transition) -> JobStepInfo:
        """Return a row of the history as it goes over the wire."""
        return JobStepInfo(
            jobid=self.jobid,
            name=self.spec.name or "",
            updated=row.time,
            jobndx=row.jobndx,
            state=row.state,
            info=row.info,
        )


class JobStore:
    """All job folders below one prefix."""

    def __init__(self, prefix: Path) -> None:
        try:
            prefix.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"prefix: cannot use {str(prefix)!r}: {error.strerror}"
            raise InvalidConfigError(reason) from error
        self.prefix = prefix.resolve()

    def get(self, jobid: str) -> Job:
        """Return a job.

        Raises:
            RequestError: this is not the id of a job, whatever else it is.
            NotFoundError: there is no such job.
        """
        if not JOB_ID.fullmatch(jobid):
            raise RequestError("Invalid jobid")
        job = Job(self.prefix / jobid)
        if not job.status_file.is_file():
            raise NotFoundError("Job not found")
        return job

    def ids(self) -> list[str]:
        """Return the ids of all jobs, oldest first."""
        with os.scandir(self.prefix) as listing:
            names = [entry.name for entry in listing if JOB_ID.fullmatch(entry.name)]
        return sorted(names, key=float)

    def create(
        self,
        spec: JobSpec,
        extra: ExtraInfo,
        owner: str,
        *,
        key: str | None = None,
        submit: bool = False,
    ) -> Job:
        """Make the folder of a new job.

        Args:
            spec: checked already; without a directory it gets the folder `work`.
            extra: goes into the row `new`.
            owner: caller name.
            key: idempotency key of the request.
            submit: whether the first run is asked for at once.
        """
        above = self.prefix / STAGING
        above.mkdir(mode=0o700, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=above))
        try:
            while True:
                folder = self.prefix / f"{time.time():.3f}"
                _fill(staging, folder, spec, extra)
                _fill_private(staging, spec, Ownership(owner=owner, key=key), submit=submit)
                if _rename_unless_there(staging, folder):
                    return Job(folder)
                time.sleep(0.001)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise

    def remove(self, job: Job) -> None:
        """Delete a job's folder with everything in it.

        Raises:
            ConflictError: the job may still run.
        """
        with job.exclusively():
            state = job.state()
            if state not in {JobState.NEW} and not state.is_final:
                raise ConflictError(f"job {job.jobid} is {state}: cancel it before removing it")
            trash = self.prefix / REMOVED
            trash.mkdir(mode=0o700, exist_ok=True)
            grave = Path(tempfile.mkdtemp(dir=trash))
            job.folder.rename(grave / job.jobid)
        shutil.rmtree(grave)

    def clear_remains(self) -> None:
        """Delete what processes that died left between the folders."""
        for above in (self.prefix / STAGING, self.prefix / REMOVED):
            for left in above.iterdir() if above.is_dir() else ():
                if time.time() - left.stat().st_mtime > REMAINS_AGE_S:
                    shutil.rmtree(left)

    @contextmanager
    def service_lock(self) -> Iterator[None]:
        """Be the only service of this prefix; raises `ConflictError` when there is another."""
        place = self.prefix / SERVICE_LOCK
        handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConflictError(f"another service works on {self.prefix}") from None
            yield
        finally:
            os.close(handle)


def file_owner(path: Path) -> str:
    """Return the caller name of whoever owns a file."""
    return name_of(path.stat().st_uid)


def name_of(uid: int) -> str:
    """Return the caller name of a user of this host."""
    try:
        return f"uid:{pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"uid:{uid}"


def _fill(staging: Path, folder: Path, spec: JobSpec, extra: ExtraInfo) -> None:
    """Write what psik reads."""
    staging.chmod(FOLDER_MODE)
    (staging / layout.LOG).mkdir(exist_ok=True)
    if spec.directory is None:
        (staging / layout.WORK).mkdir(exist_ok=True)
        spec = spec.model_copy(update={"directory": str(folder / layout.WORK)})
    hidden = {name: value for name, value in spec.cb_headers.items() if is_secret(name)}
    shown = {name: value for name, value in spec.cb_headers.items() if name not in hidden}
    public = spec.model_copy(update={"cb_secret": None, "cb_headers": shown})
    _write(staging / layout.SPEC, public.model_dump_json(indent=4) + "\n", 0o644)
    _write(staging / layout.SCRIPT, spec.script, 0o700)
    info = extra.model_dump_json(exclude_defaults=True)
    (staging / layout.STATUS).unlink(missing_ok=True)
    history.record(staging / layout.STATUS, 0, JobState.NEW, info)
    for place in (layout.LOG, layout.WORK):
        if (staging / place).is_dir():
            (staging / place).chmod(FOLDER_MODE)
    (staging / layout.STATUS).chmod(0o644)


def _fill_private(staging: Path, spec: JobSpec, owner: Ownership, *, submit: bool) -> None:
    """Write what only we read."""
    (staging / layout.PRIVATE).mkdir(mode=0o700, exist_ok=True)
    _write(layout.owner_file(staging), json.dumps(owner), 0o600)
    secrets: dict[str, object] = {}
    if spec.cb_secret is not None:
        secrets["cb_secret"] = spec.cb_secret.get_secret_value()
    if any(is_secret(name) for name in spec.cb_headers):
        secrets["cb_headers"] = spec.cb_headers
    if secrets:
        _write(layout.secret_file(staging), json.dumps(secrets), 0o600)
    if submit:
        layout.submit_mark(staging, 1).touch(mode=0o600)


def is_secret(header: str) -> bool:
    """Return whether a header's value must not be shown to others."""
    return SECRET_HEADER.search(header) is not None


def _write(path: Path, text: str, mode: int) -> None:
    write_atomically(path, text.encode(), mode)


def _rename_unless_there(staging: Path, folder: Path) -> bool:
    """Give a folder its name; return False when the name is taken."""
    if folder.exists():
        return False
    try:
        # Fails where a folder with content is; nobody leaves an empty one for long.
        staging.rename(folder)
    except OSError:
        if folder.exists():
            return False
        raise
    return True


def _lock(handle: int, timeout_s: float, what: str) -> None:
    end = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise UnavailableError(what) from None
            time.sleep(LOCK_RETRY_S)
        else:
            return


def _read_json(path: Path) -> Mapping[str, Any] | None:
    try:
        found: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    return found
