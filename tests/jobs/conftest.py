"""Identities, a jobs service with local jobs, and one SLURM cluster for all tests here."""

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lclstream.demo.slurm import SlurmCluster
from lclstream.identity.authority import Authority
from lclstream.jobs import processes
from lclstream.jobs.client import JobsClient
from lclstream.jobs.control import JobControl
from lclstream.jobs.models import BackendConfig, ServiceConfig
from lclstream.jobs.service import JobsService

HOSTS = ["127.0.0.1", "localhost"]


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the identities `service`, `mona`, `oskar` and `admin`."""
    folder = tmp_path_factory.mktemp("identities")
    authority = Authority.create(folder / "authority", "Test Authority")
    authority.issue_service(folder / "service", "Test Jobs", HOSTS)
    for user in ("mona", "oskar", "admin"):
        authority.issue_user(folder / user, user.title(), user)
    return folder


@pytest.fixture
def config(tmp_path: Path, identities: Path) -> ServiceConfig:
    (tmp_path / "shared").mkdir()
    return ServiceConfig(
        prefix=tmp_path / "jobs",
        identity=identities / "service",
        admins=frozenset({"uid:admin"}),
        callback_hosts=frozenset({"127.0.0.1"}),
        directories=(tmp_path / "shared",),
        poll_s=0.5,
    )


@pytest.fixture
def prefix(config: ServiceConfig) -> Iterator[Path]:
    """The folder of all jobs; kills what is left of them at the end of the test."""
    yield config.prefix
    for process in list(processes.everyone()):
        if process.pid != os.getpid() and is_job_below(process.pid, config.prefix):
            processes.send([process.pid], signal.SIGKILL)


def is_job_below(pid: int, prefix: Path) -> bool:
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return f"{prefix}/".encode() in text


@pytest.fixture
def control(config: ServiceConfig, prefix: Path) -> JobControl:
    return JobControl(config)


@pytest.fixture
async def service(config: ServiceConfig, prefix: Path) -> AsyncIterator[JobsService]:
    async with JobsService(config) as running:
        yield running


@pytest.fixture
async def mona(service: JobsService, identities: Path) -> AsyncIterator[JobsClient]:
    async with JobsClient(service.url, identities / "mona") as client:
        yield client


@pytest.fixture
async def oskar(service: JobsService, identities: Path) -> AsyncIterator[JobsClient]:
    async with JobsClient(service.url, identities / "oskar") as client:
        yield client


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A real SLURM cluster of two nodes with four CPUs each."""
    reason = SlurmCluster.available()
    if reason:
        pytest.skip(reason)
    with SlurmCluster("jobs", tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def slurm_config(config: ServiceConfig, cluster: SlurmCluster) -> ServiceConfig:
    """The configuration with the cluster as backend `slurm`."""
    attributes = {"slurm_conf": str(cluster.conf), "--comment": "from the site"}
    backend = BackendConfig(type="slurm", queue_name="main", attributes=attributes)
    return config.model_copy(update={"backends": {"default": BackendConfig(), "slurm": backend}})
