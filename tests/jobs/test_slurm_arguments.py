"""What sbatch is told, and what its family says; no SLURM needed."""

from pathlib import Path

import pytest
from tests.jobs.waiting import spec

from lclstream.core.errors import RequestError, SchedulerError, SubmitError
from lclstream.jobs.backends.protocol import Run, Sighting
from lclstream.jobs.backends.slurm import SlurmBackend
from lclstream.jobs.models import BackendConfig
from lclstream.jobs.states import JobState

S = JobState


def backend(**fields: object) -> SlurmBackend:
    return SlurmBackend(BackendConfig.model_validate({"type": "slurm", **fields}))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    folder = tmp_path / "1795210993.191"
    (folder / ".lclstream").mkdir(parents=True)
    return Run(jobid=folder.name, jobndx=1, folder=folder, native_id="15")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands that is the whole PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def say(commands: Path, name: str, *, out: str = "", err: str = "", code: int = 0) -> None:
    script = f'#!/bin/sh\necho "$0 $*" >> {commands}/asked\n'
    script += f"printf '%s' '{out}'\nprintf '%s' '{err}' >&2\nexit {code}\n"
    (commands / name).write_text(script)
    (commands / name).chmod(0o755)


def test_arguments_are_those_of_psik(run: Run) -> None:
    site = backend(
        queue_name="main",
        project_name="lcls:exp1",
        reservation_id="r1",
        attributes={"--comment": "fromcfg", "-C": "cpu", "slurm_conf": "/c", "psik_python": "/p"},
    )
    resources = {
        "duration": 5,
        "node_count": 1,
        "processes_per_node": 2,
        "gpu_cores_per_process": 1,
    }
    asked = spec("true", name="slurmjob", resources=resources, attributes={"--mem": "100"})
    console = f"{run.folder}/log/console"
    assert site.arguments(run, asked) == [
        "--parsable", "--no-requeue", "--open-mode=append",
        f"--chdir={run.folder}", f"--output={console}", f"--error={console}",
        "--job-name=slurmjob", "--time=5", "--nodes=1", "--ntasks-per-node=2",
        "--gpus-per-task=1", "--cpus-per-task=1", "--partition=main", "--account=lcls:exp1",
        "--reservation=r1", "--exclusive", "--comment=fromcfg", "-C", "cpu", "--mem=100",
    ]  # fmt: skip


def test_what_is_not_set_is_left_out(run: Run) -> None:
    resources = {"cpu_cores_per_process": 0, "exclusive_node_use": False, "process_count": 3}
    options = backend().arguments(run, spec("true", resources=resources))[6:]
    assert options == ["--time=10", "--ntasks=3"]


def test_value_is_never_taken_for_an_option(run: Run) -> None:
    asked = spec("true", name="--uid=0", attributes={"--comment": "--uid=0"})
    options = backend().arguments(run, asked)
    assert "--job-name=--uid=0" in options
    assert "--comment=--uid=0" in options
    assert "--uid=0" not in options


def test_percent_in_a_path_is_no_pattern(tmp_path: Path) -> None:
    run = Run(jobid="1", jobndx=1, folder=tmp_path / "50%j")
    assert f"--output={tmp_path}/50%%j/log/console" in backend().arguments(run, spec("true"))


def test_site_decides_what_jobs_may_set() -> None:
    site = backend(attributes={"allow_attributes": "--qos, --mem"})
    site.check(spec("true", attributes={"--qos": "high"}))
    with pytest.raises(RequestError, match=r"attributes '--comment' may not be set; allowed: --me"):
        site.check(spec("true", attributes={"--comment": "x"}))
    with pytest.raises(RequestError, match=r"allowed: none$"):
        backend(attributes={"allow_attributes": ""}).check(spec("x", attributes={"--mem": "1"}))


def test_options_shown_are_those_of_sbatch() -> None:
    site = backend(attributes={"--comment": "site", "slurm_conf": "/c"})
    assert site.options(spec("true", attributes={"--mem": "1"})) == {
        "--comment": "site",
        "--mem": "1",
    }


def test_submission_replaces_itself_by_the_runner(run: Run, commands: Path) -> None:
    say(commands, "sbatch", out="note of a plug-in\n42;cluster\n")
    assert backend(attributes={"psik_python": "/opt/my python"}).submit(run, spec("true")) == "42"
    script = run.folder / ".lclstream" / "batch.1"
    command = f"'/opt/my python' -I -m lclstream.jobs.runner {run.folder} 1"
    assert script.read_text() == f"#!/bin/bash\nexec {command}\n"
    assert (commands / "asked").read_text().strip().endswith(str(script))


def test_service_keeps_its_variables_from_the_batch_system(
    run: Run, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    (commands / "sbatch").write_text(f"#!/bin/sh\nexport -p > {commands}/seen\necho 1\n")
    (commands / "sbatch").chmod(0o755)
    backend(attributes={"slurm_conf": "/my/slurm.conf"}).submit(run, spec("true"))
    seen = (commands / "seen").read_text()
    assert "hunter2" not in seen
    assert "SLURM_CONF='/my/slurm.conf'" in seen


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("sbatch: error: Batch job submission failed: Invalid partition name", SubmitError),
        ("sbatch: error: Batch job submission failed: Requested node configuration", SubmitError),
        ("sbatch: error: Unable to contact slurm controller (connect failure)", SchedulerError),
        ("sbatch: error: Batch job submission failed: Socket timed out", SchedulerError),
        ("sbatch: error: Munge encode failed: Failed to access", SchedulerError),
    ],
)
def test_refusal_or_silence(run: Run, commands: Path, said: str, error: type[Exception]) -> None:
    say(commands, "sbatch", err=said, code=1)
    with pytest.raises(error, match=said.split(":")[-1].split("(")[0].strip()):
        backend().submit(run, spec("true"))


def test_answer_without_a_number_is_a_refusal(run: Run, commands: Path) -> None:
    say(commands, "sbatch", out="welcome\n")
    with pytest.raises(SubmitError, match="instead of a job number"):
        backend().submit(run, spec("true"))


def test_missing_commands(run: Run, commands: Path) -> None:
    with pytest.raises(SchedulerError, match="cannot run squeue: No such file"):
        backend().poll([run])


@pytest.mark.parametrize(
    ("listed", "shown", "seen"),
    [
        ("15|PENDING|Priority", "", Sighting(S.QUEUED, "Priority")),
        ("15|CONFIGURING|None", "", Sighting(S.QUEUED, "None")),
        ("15|RUNNING|None", "", Sighting(S.ACTIVE)),
        ("15|COMPLETING|None", "", Sighting(S.ACTIVE)),
        ("15|COMPLETED|None", "JobState=COMPLETED ExitCode=0:0", Sighting(S.COMPLETED)),
        ("15|CANCELLED|None", "JobState=CANCELLED ExitCode=0:15", Sighting(S.CANCELED)),
        ("15|FAILED|x", "JobState=FAILED ExitCode=3:0", Sighting(S.FAILED, "FAILED 3")),
        ("15|FAILED|x", "JobState=FAILED ExitCode=0:9", Sighting(S.FAILED, "FAILED by signal 9")),
        ("15|TIMEOUT|TimeLimit", "JobState=TIMEOUT ExitCode=0:0", Sighting(S.FAILED, "TIMEOUT")),
        ("15|NODE_FAIL|x", "JobState=NODE_FAIL ExitCode=0:0", Sighting(S.FAILED, "NODE_FAIL")),
        ("15|OUT_OF_MEMORY|x", "JobState=OUT_OF_MEMORY", Sighting(S.FAILED, "OUT_OF_MEMORY")),
        ("", "JobState=PREEMPTED ExitCode=0:0", Sighting(S.FAILED, "PREEMPTED")),
        ("14|RUNNING|None\n151|RUNNING|None", "JobState=COMPLETED", Sighting(S.COMPLETED)),
        ("15|FAILED|x", "JobState=RUNNING ExitCode=0:0", Sighting(S.ACTIVE)),
    ],
)
def test_states_of_slurm(run: Run, commands: Path, listed: str, shown: str, seen: Sighting) -> None:
    say(commands, "squeue", out=f"{listed}\n")
    say(commands, "scontrol", out=f"JobId=15 JobName=x {shown} Reason=None\n")
    assert backend().poll([run]) == {run: seen}


def test_one_squeue_for_all_runs(run: Run, commands: Path, tmp_path: Path) -> None:
    say(commands, "squeue", out="15|RUNNING|None\n16|RUNNING|None\n")
    other = Run(jobid="2", jobndx=1, folder=tmp_path, native_id="16")
    assert set(backend().poll([run, other]).values()) == {Sighting(S.ACTIVE)}
    asked = (commands / "asked").read_text()
    assert len(asked.splitlines()) == 1
    assert "json" not in asked


def test_job_that_could_not_be_launched_fails(run: Run, commands: Path) -> None:
    say(commands, "squeue", out="15|PENDING|launch failed requeued held\n")
    say(commands, "scancel")
    assert backend().poll([run]) == {run: Sighting(S.FAILED, "launch failed requeued held")}
    assert "scancel 15" in (commands / "asked").read_text()


def test_forgotten_job_is_looked_up_in_the_accounting(run: Run, commands: Path) -> None:
    say(commands, "squeue")
    say(commands, "scontrol", err="slurm_load_jobs error: Invalid job id specified", code=1)
    unknown = Sighting(S.FAILED, "unknown to the batch system")
    assert backend().poll([run]) == {run: unknown}
    say(commands, "sacct", err="Slurm accounting storage is disabled", code=1)
    assert backend().poll([run]) == {run: unknown}
    say(commands, "sacct", out="CANCELLED by 1000|0:0\n")
    assert backend().poll([run]) == {run: Sighting(S.CANCELED)}
    say(commands, "sacct", out="TIMEOUT|0:0\n")
    assert backend().poll([run]) == {run: Sighting(S.FAILED, "TIMEOUT")}


def test_silent_controller_says_nothing_about_jobs(run: Run, commands: Path) -> None:
    say(commands, "squeue", err="slurm_load_jobs error: Unable to contact slurm controller", code=1)
    site = backend()
    assert site.status() is None
    with pytest.raises(SchedulerError):
        site.poll([run])
    assert "Unable to contact" in (site.status() or "")
    say(commands, "squeue", out="15|RUNNING|None\n")
    site.poll([run])
    assert site.status() is None


def test_cancel_of_what_has_ended_is_no_error(run: Run, commands: Path) -> None:
    say(commands, "scancel", err="scancel: error: Kill job error: Invalid job id specified", code=1)
    backend().cancel([run], force=False)
    backend().cancel([run], force=True)
    assert "scancel --signal=KILL --full 15" in (commands / "asked").read_text()
    say(commands, "scancel", err="scancel: error: Unable to contact slurm controller", code=1)
    with pytest.raises(SchedulerError):
        backend().cancel([run], force=False)
