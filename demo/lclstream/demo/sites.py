"""A facility of the demo: its jobs service and, where SLURM is installed, a cluster of its own."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lclstream.core.errors import UnavailableError
from lclstream.demo.processes import ServiceProcess, lclstream_command
from lclstream.demo.slurm import SlurmCluster
from lclstream.jobs.config import load
from lclstream.jobs.control import JobControl

logger = logging.getLogger(__name__)

CANCEL_TIMEOUT_S = 15.0
"""A job that ignores SIGTERM is killed after 10 s."""
POLL_S = 0.1
BACKEND = "batch"
TRANSFER_NODE = "transfer-node"
"""Name of the back end for buffers: the host of the jobs service itself."""


@dataclass(slots=True, kw_only=True)
class Site:
    """One facility, between `start` and `stop`."""

    name: str
    folder: Path
    identity: Path
    admins: tuple[str, ...] = ()
    cluster: SlurmCluster | None = None
    jobs: ServiceProcess | None = None
    url: str = ""

    def start(self, *, slurm: bool) -> None:
        """Start the cluster and the jobs service; `wait_ready` waits for them.

        Args:
            slurm: whether jobs run on a SLURM cluster; else as processes of this machine.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        backends: dict[str, Any] = {BACKEND: {"type": "local"}, TRANSFER_NODE: {"type": "local"}}
        if slurm:
            cluster = SlurmCluster(self.name, self.folder / "slurm")
            cluster.start()
            self.cluster = cluster
            backends[BACKEND] = {
                "type": "slurm",
                "attributes": {"slurm_conf": cluster.environment["SLURM_CONF"]},
            }
        config = {
            "prefix": str(self.folder / "jobs"),
            "backends": backends,
            "identity": str(self.identity),
            "admins": list(self.admins),
            "callback_hosts": ["127.0.0.1"],
            "poll_s": 1.0,
            "ready_file": str(self.folder / "jobs-service.ready"),
        }
        self._config.write_text(yaml.safe_dump(config))
        (self.folder / "jobs").mkdir(exist_ok=True)
        self.jobs = ServiceProcess(
            "jobs-service", lclstream_command("job", "serve", str(self._config)), self.folder
        ).start()

    def wait_ready(self) -> None:
        """Wait until the jobs service listens."""
        if self.jobs is None:
            raise UnavailableError(f"site {self.name} was not started")
        self.url = self.jobs.wait_ready()["url"]

    def describe(self) -> dict[str, Any]:
        """Return the site as the transfers service wants it described."""
        return {
            "name": self.name,
            "jobs": self.url,
            "backend": BACKEND,
            "buffer_backend": TRANSFER_NODE,
            "launcher": launcher(),
            "python": sys.executable,
            "environment": {"PATH": search_path()},
            "resources": {"exclusive_node_use": False, "duration": 30},
        }

    def stop(self) -> None:
        """End every process of the site, its jobs included."""
        if self.jobs is not None:
            self.jobs.stop()
            self._end_jobs()
        if self.cluster is not None:
            self.cluster.stop()

    def _end_jobs(self) -> None:
        # Jobs outlive their service on purpose; here nobody will come back for them.
        control = JobControl(load(self._config))
        jobs = [control.store.get(jobid) for jobid in control.store.ids()]
        left = [job for job in jobs if not job.state().is_final]
        for job in left:
            control.cancel(job)
        deadline = time.monotonic() + CANCEL_TIMEOUT_S
        while left and time.monotonic() < deadline:
            control.look(left)
            for job in left:
                control.advance(job)
            left = [job for job in left if not job.state().is_final]
            time.sleep(POLL_S)
        if left:
            logger.warning("jobs_left", extra={"site": self.name, "jobs": [j.jobid for j in left]})

    @property
    def _config(self) -> Path:
        return self.folder / "jobs-service.yaml"


def search_path() -> str:
    """Return a PATH whose first `lclstream` and `mpiexec` are those of this interpreter."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def launcher() -> str:
    """Return the command that starts the ranks of a streamer on one node."""
    command = shutil.which("mpiexec", path=search_path())
    if command is None:
        raise UnavailableError("no mpiexec: install the extra 'mpich'")
    # On several nodes of a cluster that are all this machine, SLURM's own launcher has no use.
    return f"{command} -launcher fork -n {{ranks}}"


def why_no_slurm(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return why the sites cannot have SLURM clusters, None when they can."""
    if environment.get("LCLSTREAM_DEMO_LOCAL"):
        return "LCLSTREAM_DEMO_LOCAL is set"
    return SlurmCluster.available()
