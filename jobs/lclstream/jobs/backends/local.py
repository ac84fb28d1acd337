"""Jobs as processes of this host.

Each run is a runner in a session of its own, started by `posix_spawn`: the service itself
never forks, the runner gets none of its descriptors and outlives it. A process is recognised
by its id, its start and the boot of the machine; one that the kernel numbered anew is never
taken for it, let alone signalled.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lclstream.core.errors import RequestError, SubmitError
from lclstream.core.files import write_atomically
from lclstream.jobs import environment, layout, processes
from lclstream.jobs.backends.protocol import Run, Sighting, runner_command
from lclstream.jobs.models import BackendConfig, JobSpec
from lclstream.jobs.states import JobState

LEFTOVER_GRACE_S = 3.0
"""What processes get between SIGTERM and SIGKILL when their runner died before them."""
START_SKEW_S = 5.0
"""How far the start of a process may be from the time in the history that names it."""
RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)


class LocalBackend:
    """Runs jobs on the host of the service."""

    group = "local"

    def __init__(self, config: BackendConfig) -> None:
        self._config = config
        # Sessions whose leader was seen alive, so that what is left of them is known to be ours.
        self._seen: set[int] = set()
        self._leftover_since: dict[Run, float] = {}
        # Runners that nobody has waited for yet: the kernel keeps their numbers until then.
        self._children: set[int] = set()
        self._reaping = threading.Lock()
        self._ended_by: dict[int, int] = {}

    def check(self, spec: JobSpec) -> None:
        """Refuse attributes: there is nothing they could set."""
        if spec.attributes:
            names = ", ".join(repr(name) for name in sorted(spec.attributes))
            raise RequestError(f"backend {spec.backend!r} knows no attributes, got {names}")

    def options(self, spec: JobSpec) -> dict[str, str]:
        """Return nothing."""
        return {}

    def submit(self, run: Run, spec: JobSpec) -> str:
        """Start the runner and return its process id."""
        command = runner_command(self._config, run)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        console = str(run.folder / layout.LOG / layout.CONSOLE)
        try:
            pid = os.posix_spawnp(
                command[0],
                command,
                environment.inherited(os.environ),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, console, flags, 0o644),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[*RESTORED],
            )
        except OSError as error:
            raise SubmitError(f"cannot start {command[0]}: {error.strerror}") from error
        self._ended_by.pop(pid, None)
        self._children.add(pid)
        process = processes.look(pid)
        if process is not None:
            note = {"pid": pid, "start": process.start, "boot": processes.boot_id()}
            place = layout.spawn_file(run.folder, run.jobndx)
            write_atomically(place, json.dumps(note).encode(), 0o600)
        self._seen.add(pid)
        return str(pid)

    def find(self, run: Run) -> str | None:
        """Return the process id of a runner that was started before we were interrupted."""
        for place in (layout.claim_file, layout.spawn_file):
            note = _read(place(run.folder, run.jobndx))
            if note is not None:
                return str(note["pid"])
        return None

    def poll(self, runs: Sequence[Run]) -> Mapping[Run, Sighting]:
        """See whose runner lives; what is left of the others is ended."""
        self.tidy()
        return {run: self._sight(run) for run in runs}

    def _sight(self, run: Run) -> Sighting:
        pid, start = self._runner(run)
        process = processes.look(pid)
        if process is not None and process.is_alive and process.start == start:
            self._seen.add(pid)
            return Sighting(JobState.ACTIVE)
        if self._end_leftovers(run, pid, process):
            return Sighting(JobState.ACTIVE)
        self._seen.discard(pid)
        self._leftover_since.pop(run, None)
        ended_by = self._ended_by.pop(pid, 0)
        how = f" (signal {ended_by})" if ended_by else ""
        return Sighting(JobState.FAILED, f"the runner of the job died{how}")

    def _runner(self, run: Run) -> tuple[int, int | None]:
        """Return process id and start of a run's runner; start None: certainly not there."""
        boot = processes.boot_id()
        for place in (layout.claim_file, layout.spawn_file):
            note = _read(place(run.folder, run.jobndx))
            if note is not None:
                return int(note["pid"]), int(note["start"]) if note["boot"] == boot else None
        # Neither the service nor the runner came to write a note, or psik started the run.
        pid = int(run.native_id) if run.native_id.isdigit() else 0
        process = processes.look(pid) if pid else None
        if process is None or abs(processes.started_at(process) - run.queued) > START_SKEW_S:
            return pid, None
        return pid, process.start

    def tidy(self) -> None:
        """Collect runners that have ended, and keep which signal ended them."""
        # Two threads must not wait for one number: the second could meet its next owner.
        with self._reaping:
            for pid in tuple(self._children):
                found, status = os.waitpid(pid, os.WNOHANG)
                if found == pid:
                    self._children.discard(pid)
                    if os.WIFSIGNALED(status):
                        self._ended_by[pid] = os.WTERMSIG(status)

    def _end_leftovers(self, run: Run, pid: int, present: processes.Process | None) -> bool:
        """End what outlived its runner; return whether there still is something."""
        # Whoever has the number now is another process: its session is not ours.
        reused = present is not None and present.is_alive
        session = pid if pid in self._seen and not reused else None
        left = processes.of_run(run.folder, run.jobndx, session)
        if not left:
            return False
        since = self._leftover_since.setdefault(run, time.monotonic())
        late = time.monotonic() - since > LEFTOVER_GRACE_S
        processes.send(left, signal.SIGKILL if late else signal.SIGTERM)
        return True

    def cancel(self, runs: Sequence[Run], *, force: bool) -> None:
        """Ask runners to end their scripts; `force` kills everything of the run."""
        for run in runs:
            pid, start = self._runner(run)
            process = processes.look(pid)
            alive = process is not None and process.is_alive and process.start == start
            if alive:
                processes.send([pid], signal.SIGKILL if force else signal.SIGTERM)
            if force:
                session = pid if alive else None
                processes.send(processes.of_run(run.folder, run.jobndx, session), signal.SIGKILL)

    def status(self) -> str | None:
        """Return None: this host works as long as this program does."""
        return None


def _read(place: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(place.read_text("utf-8"))
    except FileNotFoundError:
        return None
    return found
