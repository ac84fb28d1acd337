"""Starting, cancelling and settling jobs: what the service and the command line share.

Whatever is asked for is written into the job's folder first and done afterwards, so that
whoever comes back after a crash goes on with it. All functions block; the service calls them
in threads of its own.
"""

import json
import logging
import threading
import time
from collections.abc import Iterable

from lclstream.core.errors import (
    ConflictError,
    IllegalTransitionError,
    InvalidConfigError,
    NotFoundError,
    RequestError,
    SchedulerError,
    SubmitError,
    UnavailableError,
)
from lclstream.core.models import near
from lclstream.jobs import admission, backends, history, layout
from lclstream.jobs.backends.protocol import Backend, Run, Sighting
from lclstream.jobs.models import ExtraInfo, JobSpec, ServiceConfig
from lclstream.jobs.states import FINAL, JobState, Transition, current, last_run
from lclstream.jobs.store import Job, JobStore

logger = logging.getLogger(__name__)

FORCE_AFTER_S = 10.0
"""How long a run gets to end when it is asked to; the runner's own grace is half of it."""
BUSY_TIMEOUT_S = 0.2
LIVE = frozenset({JobState.QUEUED, JobState.ACTIVE})


class JobControl:
    """Does with jobs what callers ask. Safe to use from several threads and processes."""

    def __init__(self, config: ServiceConfig, store: JobStore | None = None) -> None:
        self.config = config
        self.store = store or JobStore(config.prefix)
        self.backends: dict[str, Backend] = {
            name: backends.make(name, each) for name, each in config.backends.items()
        }
        self._keys: dict[tuple[str, str], str] = {}
        self._key_lock = threading.Lock()
        # How far the cancellation of a run has gone in this process.
        self._forced: dict[tuple[str, int], bool] = {}

    def backend(self, name: str) -> Backend:
        """Return a backend by name; raises `InvalidConfigError` with the names there are."""
        found = self.backends.get(name)
        if found is None:
            names = sorted(self.backends)
            hint = near(name, names)
            allowed = ", ".join(names)
            raise InvalidConfigError(f"backend: got {name!r}{hint}; allowed: {allowed}")
        return found

    # ---- making and starting

    def create(
        self,
        spec: JobSpec,
        owner: str,
        *,
        key: str | None = None,
        submit: bool = False,
        trusted: bool = False,
    ) -> Job:
        """Make a job, and start its first run if asked to.

        Args:
            spec: what to run.
            owner: caller name.
            key: the same key of the same owner names the same job, however often it is asked for.
            submit: whether to start it at once.
            trusted: whether the caller is the owner of the prefix, who needs no permission to
                use its own directories; callbacks and attributes are checked in any case.
        """
        backend = self.backend(spec.backend)
        backend.check(spec)
        # The owner of the prefix may use any directory of its own.
        checked = spec.model_copy(update={"directory": None}) if trusted else spec
        admission.check_spec(checked, self.config.callback_hosts, self.config.directories)
        complete = spec.model_copy(update={"attributes": backend.options(spec)})
        extra = ExtraInfo(backend=self.config.backends[spec.backend])
        with self._key_lock:
            job = self._known(owner, key)
            if job is None:
                job = self.store.create(complete, extra, owner, key=key, submit=submit)
                if key is not None:
                    self._keys[owner, key] = job.jobid
                logger.info("job_created", extra={"jobid": job.jobid, "owner": owner})
        if submit:
            self._start_first(job)
        return job

    def _start_first(self, job: Job) -> None:
        """Start the first run of a job, unless that happened before."""
        was_cancelled = layout.cancel_mark(job.folder, 1).exists()
        if job.state() is JobState.NEW and not was_cancelled:
            self.start(job, 1)

    def remember_key(self, job: Job) -> None:
        """Take note of the idempotency key of a job found on disk."""
        key = job.ownership["key"]
        if key is not None:
            with self._key_lock:
                self._keys[job.owner, key] = job.jobid

    def find(self, owner: str, key: str) -> Job | None:
        """Return the job that an owner made with a key."""
        with self._key_lock:
            return self._known(owner, key)

    def _known(self, owner: str, key: str | None) -> Job | None:
        jobid = self._keys.get((owner, key)) if key is not None else None
        if jobid is None:
            return None
        try:
            return self.store.get(jobid)
        except NotFoundError:
            # It was removed: the key is free again.
            return None

    def start(self, job: Job, jobndx: int | None = None) -> None:
        """Start a run.

        Args:
            job: new or ended.
            jobndx: which run; asking twice for the same one starts it once. None: the next one.

        Raises:
            IllegalTransitionError: it is queued or active.
            ConflictError: this run was cancelled, or is not the next one.
            RequestError: the batch system refused it; the job has failed.
        """
        with job.exclusively():
            rows = job.history()
            following = last_run(rows) + 1
            if jobndx is not None and jobndx < following:
                return
            if jobndx is not None and jobndx > following:
                raise ConflictError(f"run {following} is due before run {jobndx}")
            if current(rows) in LIVE:
                names = [row.state.value for row in rows]
                raise IllegalTransitionError(current(rows), "submit", names)
            cancelled = layout.cancel_mark(job.folder, following)
            if cancelled.exists() and jobndx is not None:
                raise ConflictError(f"run {jobndx} of job {job.jobid} was cancelled")
            cancelled.unlink(missing_ok=True)
            layout.submit_mark(job.folder, following).touch(mode=0o600)
            self._submit(job, following, is_resumed=False)

    def _submit(self, job: Job, jobndx: int, *, is_resumed: bool) -> None:
        """Hand a run to its backend; the caller holds the job's lock."""
        run = Run(jobid=job.jobid, jobndx=jobndx, folder=job.folder)
        log = {"jobid": job.jobid, "jobndx": jobndx, "backend": job.spec.backend}
        try:
            backend = self.backend(job.spec.backend)
            native_id = backend.find(run) if is_resumed else None
            native_id = native_id or backend.submit(run, job.spec)
        except (InvalidConfigError, SubmitError) as error:
            reason = " ".join(str(error).split())
            logger.warning("job_refused", extra={**log, "reason": reason})
            self._record_refusal(job, jobndx, reason)
            raise RequestError(f"Error creating job: {job.jobid}: {reason}") from error
        except SchedulerError as error:
            logger.warning("submission_postponed", extra={**log, "reason": str(error)})
            mark = layout.submit_mark(job.folder, jobndx)
            if time.time() - mark.stat().st_mtime > self.config.submit_timeout_s:
                self._record_refusal(job, jobndx, f"batch system did not answer: {error}")
            return
        with history.locked(job.status_file) as rows:
            # The runner itself may have been quicker.
            if last_run(rows.rows) < jobndx:
                rows.append(jobndx, JobState.QUEUED, native_id)
        logger.info("job_queued", extra={**log, "native_id": native_id})

    @staticmethod
    def _record_refusal(job: Job, jobndx: int, reason: str) -> None:
        with history.locked(job.status_file) as rows:
            if last_run(rows.rows) < jobndx:
                rows.append(jobndx, JobState.QUEUED)
                rows.append(jobndx, JobState.FAILED, reason)

    # ---- ending

    def cancel(self, job: Job) -> None:
        """Ask a job to end; returns at once, the state follows when nothing of it is left.

        A job that has ended already stays as it ended.
        """
        rows = job.history()
        state, due = current(rows), job.due_run()
        if state in FINAL and due is None:
            return
        jobndx = last_run(rows) if state in LIVE else last_run(rows) + 1
        # Written without the lock: a submission that hangs holds it, and looks here afterwards.
        job.prepare()
        layout.cancel_mark(job.folder, jobndx).touch(mode=0o600)
        log = {"jobid": job.jobid, "jobndx": jobndx}
        logger.info("cancel_asked", extra=log)
        try:
            self.advance(job)
        except SchedulerError as error:
            # The mark stays, so it is done when the batch system answers again.
            logger.warning("cancel_postponed", extra={**log, "reason": str(error)})

    def advance(self, job: Job, *, is_resumed: bool = False) -> None:
        """Go on with what was asked for: submit a run that is due, end one that shall end.

        Args:
            job: any.
            is_resumed: whether another process may have begun already.
        """
        try:
            with job.exclusively(BUSY_TIMEOUT_S):
                self._advance(job, is_resumed=is_resumed)
        except UnavailableError:
            # Whoever holds the lock does it, or the next look at the job will.
            logger.debug("job_busy", extra={"jobid": job.jobid})

    def _advance(self, job: Job, *, is_resumed: bool) -> None:
        rows = job.history()
        state, jobndx = current(rows), last_run(rows)
        if state in LIVE:
            if layout.cancel_mark(job.folder, jobndx).exists():
                self._end(job, rows)
            return
        due = job.due_run()
        if layout.cancel_mark(job.folder, jobndx + 1).exists():
            if due is not None:
                layout.submit_mark(job.folder, due).unlink()
            if state is JobState.NEW:
                history.record(job.status_file, 0, JobState.CANCELED)
        elif due is not None:
            self._submit(job, due, is_resumed=is_resumed)

    def _end(self, job: Job, rows: list[Transition]) -> None:
        """Ask the backend to end the current run, and later to kill it."""
        run = self.run_of(job, rows)
        age_s = time.time() - layout.cancel_mark(job.folder, run.jobndx).stat().st_mtime
        force = age_s > FORCE_AFTER_S
        name = (job.jobid, run.jobndx)
        if self._forced.get(name) in {force, True}:
            return
        self.backend(job.spec.backend).cancel([run], force=force)
        self._forced[name] = force

    def settle(self, job: Job, run: Run, sighting: Sighting) -> bool:
        """Record that a run has ended, unless it said so itself; return whether it was news."""
        if sighting.state not in FINAL:
            return False
        cancelled = layout.cancel_mark(job.folder, run.jobndx).exists()
        with history.locked(job.status_file) as rows:
            state = current(rows.rows)
            if state not in LIVE or last_run(rows.rows) != run.jobndx:
                return False
            if cancelled or sighting.state is JobState.CANCELED:
                rows.append(0, JobState.CANCELED)
            else:
                if sighting.state is JobState.COMPLETED and state is JobState.QUEUED:
                    rows.append(run.jobndx, JobState.ACTIVE)
                rows.append(run.jobndx, sighting.state, sighting.info)
            row = rows.rows[-1]
        self._forced.pop((job.jobid, run.jobndx), None)
        logger.info(
            "job_settled",
            extra={"jobid": job.jobid, "jobndx": run.jobndx, "state": row.state, "info": row.info},
        )
        return True

    def look(self, jobs: Iterable[Job]) -> None:
        """Ask the backends that there are about jobs that run, and settle those that are gone.

        The service does the same in its own time; this is for whoever has no service.

        Raises:
            SchedulerError: a batch system does not answer.
        """
        groups: dict[str, tuple[Backend, dict[Run, Job]]] = {}
        for job in jobs:
            rows = job.history()
            # A backend that was taken out of the configuration cannot be asked any more.
            backend = self.backends.get(job.spec.backend)
            if current(rows) in LIVE and backend is not None:
                groups.setdefault(backend.group, (backend, {}))[1][self.run_of(job, rows)] = job
        for backend, runs in groups.values():
            for run, sighting in backend.poll(list(runs)).items():
                self.settle(runs[run], run, sighting)

    def is_cancelling(self, job: Job, rows: list[Transition]) -> bool:
        """Return whether the current run was asked to end and has not ended yet."""
        return current(rows) in LIVE and layout.cancel_mark(job.folder, last_run(rows)).exists()

    def run_of(self, job: Job, rows: list[Transition]) -> Run:
        """Return the current run of a job that has one."""
        jobndx = last_run(rows)
        # Usually `queued`; psik can also start a run without it.
        first = next(row for row in rows if row.jobndx == jobndx)
        claim = layout.claim_file(job.folder, jobndx)
        # If a run was submitted twice by mistake, the one that claimed it is the run.
        native_id = json.loads(claim.read_text())["native_id"] if claim.exists() else first.info
        return Run(
            jobid=job.jobid,
            jobndx=jobndx,
            folder=job.folder,
            native_id=native_id,
            queued=first.time,
        )
