"""What the service knows of all jobs without opening their folders again and again."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from lclstream.core.errors import NotFoundError, RequestError
from lclstream.jobs import layout
from lclstream.jobs.states import JobState, Transition
from lclstream.jobs.store import Job, JobStore

logger = logging.getLogger(__name__)

Signature = tuple[int, int, int]


@dataclass(slots=True)
class Entry:
    """One job in the index."""

    job: Job
    owner: str
    backend: str
    has_callback: bool
    rows: list[Transition]
    signature: Signature
    delivered: int = 0
    """Rows whose callbacks are done."""
    is_due: bool = False
    """Whether a run was asked for and not queued yet, or a cancellation not settled."""

    @property
    def last(self) -> Transition:
        """The newest row."""
        return self.rows[-1]

    @property
    def is_live(self) -> bool:
        """Whether something still happens to it."""
        return self.is_due or self.last.state in {JobState.QUEUED, JobState.ACTIVE}

    @property
    def owes_callbacks(self) -> bool:
        """Whether a row has not been told yet."""
        return self.has_callback and self.delivered < len(self.rows)


@dataclass(slots=True)
class JobIndex:
    """All jobs of a store, followed by the change times of their files.

    Only one thread at a time may call the methods that read files.
    """

    store: JobStore
    entries: dict[str, Entry] = field(default_factory=dict)
    _folder_time: int = -1

    def all(self) -> list[Entry]:
        """Return all entries; may be called while another thread scans."""
        return list(self.entries.values())

    def newest_first(self) -> list[Entry]:
        """Return all entries in the order of psik-api."""
        return sorted(self.all(), key=lambda entry: float(entry.job.jobid), reverse=True)

    def scan(self, *, thorough: bool) -> list[Entry]:
        """Return the entries that are new or have changed.

        Args:
            thorough: whether to look also at jobs that ended, which somebody may start again.
        """
        changed = []
        present = self.store.prefix.stat().st_mtime_ns
        if thorough or present != self._folder_time:
            self._folder_time = present
            known = set(self.store.ids())
            for jobid in self.entries.keys() - known:
                del self.entries[jobid]
            changed = [
                found
                for jobid in sorted(known - self.entries.keys())
                if (found := self._load(Job(self.store.prefix / jobid)))
            ]
        for entry in self.all():
            if (thorough or entry.is_live) and self.refresh(entry):
                changed.append(entry)
        return changed

    def add(self, job: Job) -> Entry | None:
        """Return the entry of a job, up to date; None when the folder is damaged or gone."""
        entry = self.entries.get(job.jobid)
        if entry is None:
            return self._load(job)
        self.refresh(entry)
        return entry

    def refresh(self, entry: Entry) -> bool:
        """Read a job's history again if the file has changed; return whether it has."""
        try:
            now = signature(entry.job.status_file)
            due = is_due(entry.job, entry.rows)
            if now == entry.signature and due == entry.is_due:
                return False
            entry.rows = entry.job.history()
        except (OSError, NotFoundError) as error:
            # Removed; or damaged, then the next thorough look tries again.
            self.entries.pop(entry.job.jobid, None)
            if not isinstance(error, FileNotFoundError | NotFoundError):
                _warn(entry.job, error)
            return False
        entry.signature = now
        entry.is_due = is_due(entry.job, entry.rows)
        return True

    def _load(self, job: Job) -> Entry | None:
        try:
            # Before the rows: what is written in between is then seen as a change.
            now = signature(job.status_file)
            rows = job.history()
            if not rows:
                return None
            entry = Entry(
                job=job,
                owner=job.owner,
                backend=job.spec.backend,
                # psik itself tells about the jobs that it made.
                has_callback=job.spec.callback is not None and job.is_ours,
                rows=rows,
                signature=now,
                delivered=job.told(),
                is_due=is_due(job, rows),
            )
        except (RequestError, OSError, ValueError, LookupError, TypeError) as error:
            # Files of ours that somebody else wrote may hold anything; the other jobs go on.
            _warn(job, error)
            return None
        self.entries[job.jobid] = entry
        return entry


def _warn(job: Job, error: Exception) -> None:
    detail = f"{type(error).__name__}: {error}"
    logger.warning("job_folder_damaged", extra={"jobid": job.jobid, "detail": detail})


def signature(path: Path) -> Signature:
    """Return what changes whenever a file does."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def is_due(job: Job, rows: list[Transition]) -> bool:
    """Return whether a run was asked for, or asked to be cancelled, and has no row yet."""
    if rows and rows[-1].state in {JobState.QUEUED, JobState.ACTIVE}:
        return False
    following = max((row.jobndx for row in rows), default=0) + 1
    if layout.submit_mark(job.folder, following).exists():
        return True
    is_new = bool(rows) and rows[-1].state is JobState.NEW
    return is_new and layout.cancel_mark(job.folder, following).exists()
