"""The service dies at any moment and comes back: nothing is lost, nothing is done twice."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.jobs.waiting import eventually, soon, spec

from lclstream.identity.client import sync_client
from lclstream.jobs import history, layout, processes
from lclstream.jobs.backends.protocol import Run
from lclstream.jobs.control import JobControl
from lclstream.jobs.models import ServiceConfig
from lclstream.jobs.service import JobsService
from lclstream.jobs.states import JobState
from lclstream.jobs.store import Job

S = JobState


class ServiceProcess:
    """`lclstream job serve` as a process of its own."""

    def __init__(self, config: ServiceConfig, folder: Path) -> None:
        self.ready = folder / "ready.json"
        self.config_file = folder / "jobs.json"
        written = config.model_copy(update={"ready_file": self.ready})
        self.config_file.write_text(written.model_dump_json())
        self.log = folder / "service.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        self.ready.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "lclstream.cli", "job", "serve", str(self.config_file)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        soon(self.is_ready, 30)
        self.url = json.loads(self.ready.read_text())["url"]

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        return self.ready.exists()

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture
def server(config: ServiceConfig, prefix: Path, tmp_path: Path) -> Iterator[ServiceProcess]:
    found = ServiceProcess(config, tmp_path)
    found.start()
    yield found
    if found.process is not None and found.process.poll() is None:
        assert found.end(signal.SIGTERM) == 0


def rows(prefix: Path, jobid: str) -> list[tuple[int, str]]:
    return [(row.jobndx, row.state.value) for row in history.read(prefix / jobid / "status.csv")]


def alive(pid: int) -> bool:
    process = processes.look(pid)
    return process is not None and process.is_alive


def test_jobs_live_on_when_the_service_is_killed(
    server: ServiceProcess, identities: Path, prefix: Path
) -> None:
    scripts = {
        "short": "sleep 1; echo done",
        "long": "echo $$; sleep 100",
        "lost": "echo $$; trap '' TERM; sleep 100",
    }
    with sync_client(identities / "mona", server.url) as http:
        post = {"Idempotency-Key": "k"}
        jobids = {
            name: http.post("/v3/jobs", json={"script": script}).json()
            for name, script in scripts.items()
        }
        keyed = http.post("/v3/jobs", json={"script": "true"}, headers=post).json()
    logs = {name: prefix / jobid / "log" / "stdout.1" for name, jobid in jobids.items()}
    soon(lambda: all(logs[name].exists() and logs[name].read_text() for name in ("long", "lost")))
    server.end(signal.SIGKILL)
    # While nobody looks: one job ends, another loses its runner.
    lost_runner = int(history.read(prefix / jobids["lost"] / "status.csv")[1].info)
    os.kill(lost_runner, signal.SIGKILL)
    soon(lambda: rows(prefix, jobids["short"])[-1] == (1, "completed"))
    assert alive(int(logs["long"].read_text()))
    server.start()
    soon(lambda: rows(prefix, jobids["lost"])[-1] == (1, "failed"))
    soon(lambda: not alive(int(logs["lost"].read_text())))
    assert alive(int(logs["long"].read_text()))
    with sync_client(identities / "mona", server.url) as http:
        listed = {step["jobid"]: step["state"] for step in http.get("/v3/jobs").json()}
        assert listed[jobids["short"]] == "completed"
        assert listed[jobids["long"]] == "active"
        again = http.post("/v3/jobs", json={"script": "true"}, headers=post).json()
        assert again == keyed
        http.delete(f"/v3/jobs/{jobids['long']}")
        soon(lambda: rows(prefix, jobids["long"])[-1] == (0, "canceled"))
    assert not alive(int(logs["long"].read_text()))
    for jobid in (*jobids.values(), keyed):
        assert [state for _, state in rows(prefix, jobid)][:3] == ["new", "queued", "active"]


def test_port_is_free_again_while_a_job_lives(
    config: ServiceConfig, prefix: Path, tmp_path: Path, identities: Path
) -> None:
    server = ServiceProcess(config, tmp_path)
    server.start()
    port = int(server.url.rpartition(":")[2])
    with sync_client(identities / "mona", server.url) as http:
        http.post("/v3/jobs", json={"script": "sleep 100"})
    server.end(signal.SIGKILL)
    # A job that had inherited the listening socket would keep the port.
    server = ServiceProcess(config.model_copy(update={"port": port}), tmp_path)
    server.start()
    assert server.url.endswith(f":{port}")
    assert server.end(signal.SIGTERM) == 0


def interrupted(control: JobControl, script: str) -> Job:
    """Return a job as a service leaves it that dies before it submits."""
    job = control.create(spec(script), "uid:mona")
    layout.submit_mark(job.folder, 1).touch()
    return job


@pytest.mark.anyio
async def test_submission_that_was_interrupted_is_done(
    control: JobControl, config: ServiceConfig
) -> None:
    job = interrupted(control, "echo once >> count")
    async with JobsService(config):

        async def is_done() -> bool:
            return job.state() is S.COMPLETED

        await eventually(is_done)
    assert (job.directory / "count").read_text() == "once\n"


@pytest.mark.anyio
async def test_submission_that_was_done_but_not_noted_is_not_repeated(
    control: JobControl, config: ServiceConfig
) -> None:
    job = interrupted(control, "echo once >> count; sleep 0.5")
    run = Run(jobid=job.jobid, jobndx=1, folder=job.folder)
    # Started, and the service died before it wrote `queued`.
    native = control.backends["default"].submit(run, job.spec)
    async with JobsService(config):

        async def is_done() -> bool:
            return job.state() is S.COMPLETED

        await eventually(is_done)
    assert (job.directory / "count").read_text() == "once\n"
    assert [row.state for row in job.history()] == [S.NEW, S.QUEUED, S.ACTIVE, S.COMPLETED]
    assert job.history()[1].info == native


@pytest.mark.anyio
async def test_cancel_that_was_interrupted_is_done(
    control: JobControl, config: ServiceConfig
) -> None:
    new = interrupted(control, "echo no")
    layout.cancel_mark(new.folder, 1).touch()
    running = control.create(spec("sleep 100"), "uid:mona", submit=True)
    layout.cancel_mark(running.folder, 1).touch()
    async with JobsService(config):

        async def are_done() -> bool:
            return {new.state(), running.state()} == {S.CANCELED}

        await eventually(are_done)
    assert [row.state for row in new.history()] == [S.NEW, S.CANCELED]


@pytest.mark.anyio
async def test_process_with_the_number_of_a_dead_runner_is_left_alone(
    control: JobControl, config: ServiceConfig, tmp_path: Path
) -> None:
    job = control.create(spec("true"), "uid:mona")
    # Somebody else's process now has the number that the runner had.
    stranger = subprocess.Popen(["sleep", "100"], start_new_session=True)  # noqa: ASYNC220
    try:
        history.record(job.status_file, 1, S.QUEUED, str(stranger.pid))
        note = {"pid": stranger.pid, "start": 1, "boot": processes.boot_id()}
        layout.spawn_file(job.folder, 1).write_text(json.dumps(note))
        layout.cancel_mark(job.folder, 1).touch()
        async with JobsService(config):

            async def is_done() -> bool:
                return job.state() is S.CANCELED

            await eventually(is_done)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.anyio
async def test_job_made_beside_the_service_is_followed(
    control: JobControl, config: ServiceConfig
) -> None:
    async with JobsService(config) as service:
        job = control.create(spec("sleep 100"), "uid:mona", submit=True)

        async def is_active() -> bool:
            entry = service.supervisor.index.entries.get(job.jobid)
            return entry is not None and entry.last.state is S.ACTIVE

        await eventually(is_active)
        os.kill(int(job.history()[1].info), signal.SIGKILL)

        async def has_failed() -> bool:
            return job.state() is S.FAILED

        await eventually(has_failed)
