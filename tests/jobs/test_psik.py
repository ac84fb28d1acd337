"""psik 3.1.1 itself judges: it reads our folders, we read its, and its client drives our service.

psik and certified live in an environment of their own, see `tests/helpers/oracles.py`.
"""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.helpers.oracles import oracle
from tests.jobs.waiting import eventually, soon, spec

from lclstream.cli.main import main
from lclstream.jobs.control import JobControl
from lclstream.jobs.models import ServiceConfig
from lclstream.jobs.service import JobsService
from lclstream.jobs.states import JobState
from lclstream.jobs.store import Job

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]
S = JobState


# One process runs all commands: importing psik anew for each would take seconds.
CONVERSATION = """
import shlex, sys
from certified.certified import app as certified
from psik.psik import app as psik
for line in sys.stdin:
    program, *words = shlex.split(line)
    try:
        {"psik": psik, "certified": certified}[program](words, standalone_mode=False)
    finally:
        print("END", flush=True)
"""


class Psik:
    """The released commands of psik and certified, in an environment of their own."""

    def __init__(self, folder: Path) -> None:
        python = oracle("psik", ["psik==3.1.1", "certified[http]==1.3.0"])
        self.certified = folder / "certified"
        self.config = folder / "psik.json"
        self._output = folder / "output"
        self._seen = 0
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [str(python), "-c", CONVERSATION],
                env={**os.environ, "CERTIFIED_CONFIG": str(self.certified), "COLUMNS": "200"},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            )

    def configure(self, prefix: Path, **backends: object) -> None:
        content: dict[str, object] = {"prefix": str(prefix)}
        self.config.write_text(json.dumps(content | ({"backends": backends} if backends else {})))

    def ask(self, program: str, *words: str) -> None:
        """Begin a command."""
        assert self._process.stdin is not None
        option = ["--config", str(self.config)] if program == "psik" else []
        self._process.stdin.write(f"{shlex.join([program, *words, *option])}\n".encode())
        self._process.stdin.flush()

    def has_ended(self) -> bool:
        assert self._process.poll() is None, self._text()
        return "END\n" in self._text()

    def answer(self) -> str:
        """Return what the command that has ended printed."""
        text = self._text().partition("END\n")[0]
        self._seen += len(text) + len("END\n")
        return text

    def _text(self) -> str:
        return self._output.read_text()[self._seen :]

    def __call__(self, program: str, *words: str) -> str:
        """Run a command and return what it printed."""
        self.ask(program, *words)
        soon(self.has_ended, 60)
        return self.answer()

    async def aside(self, program: str, *words: str) -> str:
        """Run a command beside an event loop and return what it printed."""
        self.ask(program, *words)

        async def has_ended() -> bool:
            return self.has_ended()

        await eventually(has_ended, 60)
        return self.answer()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


@pytest.fixture(scope="module")
def psik_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Psik]:
    found = Psik(tmp_path_factory.mktemp("psik"))
    yield found
    found.end()


@pytest.fixture
def psik(psik_process: Psik, prefix: Path) -> Psik:
    psik_process.configure(prefix)
    return psik_process


def ended(control: JobControl, job: Job, jobndx: int) -> None:
    def has_ended() -> bool:
        control.look([job])
        last = job.history()[-1]
        return last.state.is_final and last.jobndx in {0, jobndx}

    soon(has_ended)


def test_psik_reads_our_folders(
    psik: Psik, control: JobControl, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = spec("exit 3", name="hello", environment={"A": "1"}, cb_secret="s3cret")  # noqa: S106
    job = control.create(asked, "uid:mona", submit=True)
    ended(control, job, 1)
    canceled = control.create(spec("true"), "uid:mona")
    control.cancel(canceled)
    rows = job.history()
    listing = psik("psik", "ls")
    listed = listing.splitlines()
    assert listed[0].split() == ["jobid", "state", "jobndx", "info", "name"]
    assert [line.split() for line in listed[1:]] == [
        [job.jobid, "failed", "1", "3", "hello"],
        [canceled.jobid, "canceled", "0", "None"],
    ]
    shown = psik("psik", "status", job.jobid)
    status = shown.splitlines()
    assert status[:3] == ["hello", f"    base: {job.folder}", f"    work: {job.folder}/work"]
    assert [line.split()[2] for line in status[5:]] == [row.state.value for row in rows]
    # Our command prints what theirs does.
    for words, expected in ((["ls"], listing), (["show", job.jobid], shown)):
        assert main(["job", *words, "--config", str(psik.config)]) == 0
        assert capsys.readouterr().out == expected


def test_psik_restarts_our_job(psik: Psik, control: JobControl) -> None:
    job = control.create(spec("echo $jobndx >> runs"), "uid:mona", submit=True)
    ended(control, job, 1)
    assert psik("psik", "start", job.jobid) == f"Queued {job.jobid}\n"
    ended(control, job, 2)
    control.start(job)
    ended(control, job, 3)
    assert (job.directory / "runs").read_text() == "1\n2\n3\n"
    assert [row.jobndx for row in job.history()] == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_we_read_and_restart_jobs_of_psik(psik: Psik, control: JobControl, tmp_path: Path) -> None:
    asked = tmp_path / "spec.json"
    asked.write_text('{"name": "theirs", "script": "echo $jobndx >> runs"}')
    jobid = psik("psik", "run", str(asked)).split()[1]
    job = control.store.get(jobid)
    ended(control, job, 1)
    assert job.spec.name == "theirs"
    assert not job.is_ours
    with pytest.raises(FileNotFoundError):
        (job.folder / "script").read_bytes()
    control.start(job)
    ended(control, job, 2)
    assert job.history()[-1].state is S.COMPLETED
    assert (job.directory / "runs").read_text() == "1\n2\n"


@pytest.mark.anyio
async def test_client_of_psik_drives_our_service(
    psik: Psik, config: ServiceConfig, prefix: Path, tmp_path: Path
) -> None:
    """Over mutual TLS, with an upload, a poll and a cancel."""
    assert config.identity is not None
    identity = tmp_path / "identity"
    shutil.copytree(config.identity, identity)
    certified = psik.certified
    name = ("Test User", "--uid", "mona", "--email", "mona@example.org")
    psik("certified", "init", *name, "--config", str(certified))
    (identity / "known_clients").mkdir(exist_ok=True)
    shutil.copy(certified / "CA.crt", identity / "known_clients" / "mona.crt")
    shutil.copy(identity / "ca.crt", certified / "known_servers" / "site.crt")
    here = tmp_path / "here"
    (here / "sub").mkdir(parents=True)
    (here / "sub" / "a.txt").write_text("uploaded\n")
    # Without a file beside the folder psik uploads nothing.
    (here / "b.txt").write_text("too\n")
    (tmp_path / "mine").mkdir()
    asked = tmp_path / "spec.json"
    asked.write_text(
        json.dumps({"script": "cat b.txt sub/a.txt; sleep 100", "directory": str(here)})
    )
    async with JobsService(config.model_copy(update={"identity": identity})) as service:
        attributes = {"remote_url": service.url, "remote_backend": "default"}
        psik.configure(tmp_path / "mine", default={"type": "psik", "attributes": attributes})
        mine = (await psik.aside("psik", "run", str(asked))).split()[1]
        (entry,) = service.supervisor.index.entries.values()
        assert entry.owner == "uid:mona"
        log = entry.job.folder / "log" / "stdout.1"

        async def has_printed() -> bool:
            return log.exists() and log.read_text() == "too\nuploaded\n"

        await eventually(has_printed)
        polled = await psik.aside("psik", "poll", mine)
        assert f"queued {entry.job.jobid}" in " ".join(polled.split())
        assert " active" in polled
        await psik.aside("psik", "cancel", mine)

        async def is_cancelled() -> bool:
            return entry.job.state() is S.CANCELED

        await eventually(is_cancelled)
    fetched = tmp_path / "mine" / mine / "log" / "stdout.1"
    assert fetched.read_text() == "too\nuploaded\n"
