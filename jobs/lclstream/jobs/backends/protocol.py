"""What the rest of the component needs of a way to run jobs."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lclstream.jobs.models import BackendConfig, JobSpec
from lclstream.jobs.states import JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of one job, as a backend sees it."""

    jobid: str
    jobndx: int
    folder: Path
    native_id: str = ""
    """What the history says; empty before the run is queued."""
    queued: float = 0.0
    """When it was queued, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a backend says about a run at one moment."""

    state: JobState
    info: str = ""
    """Why, when it failed."""


class Backend(Protocol):
    """Runs jobs. All methods may block and are called from several threads.

    Error handling: `SchedulerError` when the batch system does not answer: trying again helps.
    """

    @property
    def group(self) -> str:
        """Backends of one group can be asked about their runs together, by any of them."""

    def check(self, spec: JobSpec) -> None:
        """Refuse what a job may not ask for, before it is made; raises `RequestError`."""

    def options(self, spec: JobSpec) -> dict[str, str]:
        """Return the attributes that `spec.json` shows: the site's with the job's over them."""

    def submit(self, run: Run, spec: JobSpec) -> str:
        """Start a run and return its native id.

        Raises:
            SubmitError: the batch system refuses the run, also tomorrow.
        """

    def find(self, run: Run) -> str | None:
        """Return the native id of a run whose submission was interrupted; None: there is none."""

    def poll(self, runs: Sequence[Run]) -> Mapping[Run, Sighting]:
        """Say what runs of this group do; a run that is left out is not known to be anything.

        A final state means that no process of the run is left.
        """

    def cancel(self, runs: Sequence[Run], *, force: bool) -> None:
        """Ask runs to end; `force` when asking did not help. Ended ones are no error."""

    def tidy(self) -> None:
        """Release what ended runs left with us; called often, also when none is live."""

    def status(self) -> str | None:
        """Return why no job can start now; None when all is well."""


def runner_command(config: BackendConfig, run: Run) -> list[str]:
    """Return the command that executes a run on the machine where it is started."""
    python = config.attributes.get("psik_python", sys.executable)
    # Isolated: neither the folder nor PYTHON* variables decide what is imported.
    module = ["-I", "-m", "lclstream.jobs.runner"]
    return [python, *module, str(run.folder), str(run.jobndx)]
