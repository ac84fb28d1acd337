"""A facility of the demo: its jobs service and, where SLURM is installed, a cluster of its own."""

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lclstream.core.errors import UnavailableError
from lclstream.demo.processes import ServiceProcess, lclstream_command
from lclstream.demo.slurm import SlurmCluster

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
            self.cluster = SlurmCluster(self.name, self.folder / "slurm")
            self.cluster.start()
            backends[BACKEND] = {
                "type": "slurm",
                "attributes": {"slurm_conf": self.cluster.environment["SLURM_CONF"]},
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
        path = self.folder / "jobs-service.yaml"
        path.write_text(yaml.safe_dump(config))
        (self.folder / "jobs").mkdir(exist_ok=True)
        self.jobs = ServiceProcess(
            "jobs-service", lclstream_command("job", "serve", str(path)), self.folder
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
        """End every process of the site."""
        if self.jobs is not None:
            self.jobs.stop()
        if self.cluster is not None:
            self.cluster.stop()


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
