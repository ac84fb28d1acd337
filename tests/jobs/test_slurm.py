"""Jobs on a real SLURM cluster; all of them at once, because each takes a second or more."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.jobs.waiting import eventually, spec

from lclstream.core.errors import RequestError
from lclstream.demo.slurm import SlurmCluster
from lclstream.jobs import layout
from lclstream.jobs.backends.protocol import Run
from lclstream.jobs.backends.slurm import SlurmBackend
from lclstream.jobs.client import JobsClient
from lclstream.jobs.control import JobControl
from lclstream.jobs.models import BackendConfig, JobSpec, ServiceConfig
from lclstream.jobs.service import JobsService
from lclstream.jobs.states import JobState

pytestmark = [pytest.mark.anyio, pytest.mark.system]
S = JobState
SMALL = {"exclusive_node_use": False, "duration": 1}


def on_slurm(script: str, **fields: object) -> JobSpec:
    return spec(script, backend="slurm", resources=SMALL, **fields)


def ask(cluster: SlurmCluster, *command: str) -> str:
    """Run a command of SLURM as anybody at the site may."""
    done = subprocess.run(
        command, env=os.environ | cluster.environment, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
async def slurm_service(slurm_config: ServiceConfig, prefix: Path) -> AsyncIterator[JobsService]:
    async with JobsService(slurm_config) as running:
        yield running


@pytest.fixture
async def mona(slurm_service: JobsService, identities: Path) -> AsyncIterator[JobsClient]:
    async with JobsClient(slurm_service.url, identities / "mona") as client:
        yield client


async def printed(mona: JobsClient, jobid: str) -> str:
    """Wait for a job's first output and return it."""

    async def has() -> bool:
        return "\n" in (await mona.logs(jobid)).get("stdout.1", "")

    await eventually(has)
    return (await mona.logs(jobid))["stdout.1"]


async def native(mona: JobsClient, jobid: str) -> str:
    return (await mona.history(jobid))[1].info


async def test_jobs_run_and_end_in_every_way(
    mona: JobsClient, cluster: SlurmCluster, identities: Path
) -> None:
    """Each of them ends in another way; SLURM runs them side by side."""

    async def completes() -> None:
        script = "echo $mpirun $nodes $jobid; cat; srun -n1 echo step; echo after >&2"
        jobid = await mona.create(on_slurm(script, name="hello"), submit=True)
        assert (await mona.wait(jobid)).state is S.COMPLETED
        logs = await mona.logs(jobid)
        assert logs["stdout.1"] == f"srun 1 {await native(mona, jobid)}\nstep\n"
        assert logs["stderr.1"] == "after\n"
        shown = ask(cluster, "scontrol", "show", "job", "-o", await native(mona, jobid))
        for expected in (
            "JobName=hello",
            "Partition=main",
            "Comment=from_the_site",
            "TimeLimit=00:01:00",
        ):
            assert expected in shown.replace("from the site", "from_the_site")
        assert "Requeue=0" in shown

    async def fails() -> None:
        jobid = await mona.create(on_slurm("exit 3"), submit=True)
        last = await mona.wait(jobid)
        assert (last.jobndx, last.state, last.info) == (1, S.FAILED, "3")

    async def is_cancelled() -> None:
        jobid = await mona.create(on_slurm("echo up; sleep 100"), submit=True)
        await printed(mona, jobid)
        await mona.cancel(jobid)
        assert (await mona.wait(jobid)).state is S.CANCELED
        state = ask(
            cluster, "squeue", "-h", "-t", "all", "-o", "%T", "-j", await native(mona, jobid)
        )
        assert state.strip() == "CANCELLED"

    async def is_cancelled_by_somebody() -> None:
        jobid = await mona.create(on_slurm("echo up; sleep 100"), submit=True)
        await printed(mona, jobid)
        ask(cluster, "scancel", await native(mona, jobid))
        last = await mona.wait(jobid)
        assert (last.jobndx, last.state) == (0, S.CANCELED)

    async def is_killed_by_somebody() -> None:
        jobid = await mona.create(on_slurm("echo up; sleep 100"), submit=True)
        await printed(mona, jobid)
        number = await native(mona, jobid)
        ask(cluster, "scancel", "--signal=KILL", "--full", number)
        last = await mona.wait(jobid)
        assert last.state in {S.FAILED, S.CANCELED}

    async def loses_its_runner() -> None:
        jobid = await mona.create(on_slurm("echo $PPID; sleep 100"), submit=True)
        os.kill(int(await printed(mona, jobid)), signal.SIGKILL)
        last = await mona.wait(jobid)
        assert (last.jobndx, last.state, last.info) == (1, S.FAILED, "FAILED by signal 9")

    async def is_refused() -> None:
        asked = on_slurm("true", attributes={"--constraint": "no-such-thing"})
        with pytest.raises(RequestError, match="Error creating job: "):
            await mona.create(asked, submit=True, key="refused")
        jobid = await mona.find("refused")
        assert jobid is not None
        last = (await mona.history(jobid))[-1]
        assert (last.jobndx, last.state) == (1, S.FAILED)
        assert "Invalid feature specification" in last.info

    async with asyncio.timeout(40), asyncio.TaskGroup() as tasks:
        for case in (
            completes, fails, is_cancelled, is_cancelled_by_somebody, is_killed_by_somebody,
            loses_its_runner, is_refused,
        ):  # fmt: skip
            tasks.create_task(case())


async def test_attributes_must_be_allowed(mona: JobsClient) -> None:
    for attributes in (
        {"--partition": "other"}, {"--uid": "0"}, {"--chdir": "/etc"}, {"--output": "/etc/x"},
        {"--comment": "fine", "--nodelist": "n1"}, {"slurm_conf": "/mine"}, {"-p": "other"},
        {"psik_python": "/bin/sh"}, {"allow_attributes": "--uid"},
    ):  # fmt: skip
        with pytest.raises(RequestError, match="may not be set; allowed: --comment, "):
            await mona.create(on_slurm("true", attributes=attributes))
    assert await mona.list() == []


async def test_waiting_job_is_cancelled(mona: JobsClient, cluster: SlurmCluster) -> None:
    asked = spec("true", backend="slurm", resources={**SMALL, "node_count": 2})
    ask(cluster, "scontrol", "update", "partition=main", "state=down")
    try:
        waiting = await mona.create(asked, submit=True)
        assert (await mona.history(waiting))[-1].state is S.QUEUED
        await mona.cancel(waiting)
        assert (await mona.wait(waiting)).state is S.CANCELED
    finally:
        ask(cluster, "scontrol", "update", "partition=main", "state=up")


async def test_two_submissions_of_one_run_execute_it_once(
    slurm_config: ServiceConfig, prefix: Path, cluster: SlurmCluster
) -> None:
    """The service died after sbatch, and its sbatch came through only later."""
    control = JobControl(slurm_config)
    job = control.create(on_slurm("echo once >> count; sleep 1"), "uid:mona", trusted=True)
    layout.submit_mark(job.folder, 1).touch()
    backend = control.backends["slurm"]
    assert isinstance(backend, SlurmBackend)
    run = Run(jobid=job.jobid, jobndx=1, folder=job.folder)
    first = backend.submit(run, job.spec)
    assert backend.find(run) == first
    backend.submit(run, job.spec)
    async with JobsService(slurm_config):

        async def is_done() -> bool:
            return job.state() is S.COMPLETED

        await eventually(is_done)
    assert (job.directory / "count").read_text() == "once\n"
    assert [row.state for row in job.history()] == [S.NEW, S.QUEUED, S.ACTIVE, S.COMPLETED]


async def test_cluster_that_does_not_answer(
    slurm_config: ServiceConfig,
    prefix: Path,
    cluster: SlurmCluster,
    tmp_path: Path,
    identities: Path,
) -> None:
    """Its controller is away: nothing is lost, and the job starts when it is back."""
    text = cluster.conf.read_text()
    port = next(line for line in text.splitlines() if line.startswith("SlurmctldPort="))
    conf = tmp_path / "slurm.conf"
    conf.write_text(text.replace(port, "SlurmctldPort=9") + "MessageTimeout=1\n")
    attributes = {"slurm_conf": str(conf)}
    backends = {"slurm": BackendConfig(type="slurm", attributes=attributes)}
    config = slurm_config.model_copy(update={"backends": backends})
    async with (
        JobsService(config) as service,
        JobsClient(service.url, identities / "mona") as mona,
    ):
        jobid = await mona.create(on_slurm("true"), submit=True)
        assert await mona.state(jobid) is S.NEW
        status = (await mona.backends())["slurm"]
        assert status.status == "unavailable"
        assert status.notes
        conf.write_text(text)

        async def is_done() -> bool:
            return await mona.state(jobid) is S.COMPLETED

        await eventually(is_done, 25)
    rows = JobControl(config).store.get(jobid).history()
    assert [row.state for row in rows] == [S.NEW, S.QUEUED, S.ACTIVE, S.COMPLETED]
