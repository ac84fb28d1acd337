"""The runner as a process of its own, as every backend starts it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.jobs.waiting import soon, spec

from lclstream.jobs import history, layout, processes
from lclstream.jobs.models import ExtraInfo
from lclstream.jobs.states import JobState
from lclstream.jobs.store import Job, JobStore

S = JobState


class Running:
    """A runner started by a test."""

    def __init__(
        self, job: Job, *options: str, ndx: int = 1, variables: Mapping[str, str] | None = None
    ) -> None:
        self.job = job
        command = [sys.executable, "-I", "-m", "lclstream.jobs.runner", str(job.folder), str(ndx)]
        environment = {"PATH": os.environ["PATH"], "TOKEN": "of the service"} | dict(
            variables or {}
        )
        self.process = subprocess.Popen(
            [*command, *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        processes.send(processes.of_run(self.job.folder, 1, None), signal.SIGKILL)

    def end(self) -> int:
        return self.process.wait(20)


def rows(job: Job) -> list[tuple[int, str, str]]:
    return [(row.jobndx, row.state.value, row.info) for row in job.history()[1:]]


def output(job: Job, name: str = "stdout.1") -> str:
    return (job.folder / "log" / name).read_text()


def lines_come(job: Job, count: int = 1) -> None:
    path = job.folder / "log" / "stdout.1"
    soon(lambda: path.exists() and len(path.read_text().splitlines()) >= count)


def gone(pid: int) -> bool:
    process = processes.look(pid)
    return process is None or not process.is_alive


@pytest.fixture
def store(prefix: Path) -> JobStore:
    return JobStore(prefix)


def make(store: JobStore, script: str, **fields: object) -> Job:
    return store.create(spec(script, **fields), ExtraInfo(), "uid:mona")


def run(job: Job, *options: str, variables: Mapping[str, str] | None = None) -> int:
    with Running(job, *options, variables=variables) as running:
        return running.end()


def test_script_runs_to_its_end_and_stdin_is_empty(store: JobStore) -> None:
    # A script on stdin would be eaten by `cat`.
    job = make(store, "echo before\ncat\necho after\necho bad >&2\npwd")
    assert run(job) == 0
    assert output(job) == f"before\nafter\n{job.folder}/work\n"
    assert output(job, "stderr.1") == "bad\n"
    native = json.loads(layout.claim_file(job.folder, 1).read_text())["native_id"]
    assert rows(job) == [(1, "queued", native), (1, "active", ""), (1, "completed", "")]


def test_failure_records_the_exit_code(store: JobStore) -> None:
    job = make(store, "exit 3")
    assert run(job) == 3
    assert rows(job)[-1] == (1, "failed", "3")


def test_script_killed_by_a_signal(store: JobStore) -> None:
    job = make(store, "kill -SEGV $$")
    assert run(job) == 128 + signal.SIGSEGV
    assert rows(job)[-1] == (1, "failed", "-11")


def test_first_line_names_the_interpreter(store: JobStore) -> None:
    script = "import sys\nprint(sys.argv[0], sys.flags.isolated)"
    job = make(store, f"#!{sys.executable} -I\n{script}")
    assert run(job) == 0
    assert output(job) == f"{job.folder}/script 1\n"


@pytest.mark.parametrize(
    ("script", "directory"), [("#!/no/such/interpreter\n", True), ("echo hi", False)]
)
def test_what_cannot_be_run_fails_with_the_reason(
    store: JobStore, script: str, directory: bool
) -> None:
    job = make(store, script)
    if not directory:
        (job.folder / "work").rmdir()
    run(job)
    ndx, state, info = rows(job)[-1]
    assert (ndx, state) == (1, "failed")
    assert info.startswith("cannot run the script: ")
    assert "No such file" in info


def test_environment(store: JobStore) -> None:
    job = make(store, "/usr/bin/env", environment={"A": "a b", "PATH": "/mine"})
    run(job, variables={"LANG": "C.UTF-8", "SECRET_TOKEN": "x", "LCLSTREAM_URL": "x"})
    found = dict(line.split("=", 1) for line in output(job).splitlines())
    for invented in ("PWD", "SHLVL", "_"):
        found.pop(invented, None)
    native = found.pop("jobid")
    assert native == rows(job)[0][2]
    base = str(job.folder)
    assert found == {"A": "a b", "PATH": "/mine", "LANG": "C.UTF-8", "jobndx": "1", "base": base}


def test_empty_environment(store: JobStore) -> None:
    job = make(store, "/usr/bin/env", inherit_environment=False)
    run(job, variables={"LANG": "C", "HOME": "/root"})
    names = {line.split("=")[0] for line in output(job).splitlines()}
    assert names - {"PWD", "SHLVL", "_"} == {"jobid", "jobndx", "base"}


def test_under_slurm_the_batch_system_is_told(store: JobStore) -> None:
    job = make(store, "echo $mpirun $nodes $jobid $SLURM_CONF", inherit_environment=False)
    told = {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "3", "SLURM_CONF": "/c"}
    run(job, variables=told)
    assert output(job) == "srun 3 77 /c\n"
    assert rows(job)[0] == (1, "queued", "77")


def test_descriptors_of_the_starter_are_closed(store: JobStore) -> None:
    job = make(store, "ls -l /proc/self/fd")
    with (job.folder / "spec.json").open() as file:
        os.set_inheritable(file.fileno(), True)
        command = f"exec {sys.executable} -m lclstream.jobs.runner {job.folder} 1"
        subprocess.run(["/bin/sh", "-c", command], close_fds=False, check=True, timeout=20)
    assert "spec.json" not in output(job)
    assert "/dev/null" in output(job)


def test_time_limit_may_be_far_away(store: JobStore) -> None:
    job = make(store, "exit 0")
    assert run(job, "--time-limit-s", "1e15") == 0
    assert rows(job)[-1] == (1, "completed", "")


def test_time_limit_ends_everything(store: JobStore) -> None:
    job = make(store, "sleep 100 & echo $!; sleep 100")
    with Running(job, "--time-limit-s", "0.5") as running:
        lines_come(job)
        assert running.end() == 9
    assert rows(job)[-1] == (1, "failed", "9")
    assert gone(int(output(job)))


def test_time_limit_of_a_script_that_ignores_it(store: JobStore) -> None:
    job = make(store, "trap '' TERM; echo $$; while true; do sleep 0.1; done")
    with Running(job, "--time-limit-s", "0.3", "--grace-s", "0.3") as running:
        assert running.end() == 9
    assert rows(job)[-1] == (1, "failed", "9")
    assert gone(int(output(job)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_records_nothing(store: JobStore, number: signal.Signals) -> None:
    job = make(store, "sleep 100 & echo $!; setsid sleep 100 & echo $!; wait")
    with Running(job) as running:
        lines_come(job, 2)
        running.process.send_signal(number)
        assert running.end() == 128 + number
    assert rows(job)[-1] == (1, "active", "")
    assert all(gone(int(pid)) for pid in output(job).split())


def test_script_may_end_in_its_own_way(store: JobStore) -> None:
    job = make(store, "trap 'echo bye; exit 0' TERM; echo up; while true; do sleep 0.05; done")
    with Running(job) as running:
        lines_come(job)
        running.process.terminate()
        assert running.end() == 143
    assert output(job) == "up\nbye\n"


def test_user_signals_are_passed_on(store: JobStore) -> None:
    job = make(store, "trap 'echo got; exit 5' USR1; echo up; while true; do sleep 0.05; done")
    with Running(job) as running:
        lines_come(job)
        running.process.send_signal(signal.SIGUSR1)
        assert running.end() == 5
    assert output(job) == "up\ngot\n"


def test_what_the_script_leaves_behind_ends_with_it(store: JobStore) -> None:
    job = make(store, "setsid sleep 100 >/dev/null 2>&1 & echo $!")
    assert run(job) == 0
    assert rows(job)[-1] == (1, "completed", "")
    assert gone(int(output(job)))


def test_second_runner_does_nothing(store: JobStore) -> None:
    job = make(store, "echo once; sleep 0.3")
    with Running(job) as first:
        lines_come(job)
        assert Running(job).end() == 0
        assert first.end() == 0
    assert output(job) == "once\n"
    assert [state for _, state, _ in rows(job)] == ["queued", "active", "completed"]


def test_cancelled_before_it_began(store: JobStore) -> None:
    job = make(store, "echo no")
    layout.cancel_mark(job.folder, 1).touch()
    assert run(job) == 0
    assert [state for _, state, _ in rows(job)] == ["queued", "canceled"]
    assert not (job.folder / "log" / "stdout.1").exists()


def test_late_runner_of_a_settled_run_does_nothing(store: JobStore) -> None:
    job = make(store, "echo no")
    history.record(job.status_file, 1, S.QUEUED, "1")
    history.record(job.status_file, 1, S.FAILED, "lost")
    assert run(job) == 7
    assert rows(job)[-1] == (1, "failed", "lost")
    assert not (job.folder / "log" / "stdout.1").exists()


def test_log_is_not_written_through_a_link(store: JobStore, tmp_path: Path) -> None:
    job = make(store, "echo overwritten")
    (tmp_path / "precious").write_text("precious")
    (job.folder / "log" / "stdout.1").symlink_to(tmp_path / "precious")
    run(job)
    assert (tmp_path / "precious").read_text() == "precious"
    assert rows(job)[-1][1] == "failed"


def test_runner_imports_little() -> None:
    code = "import sys, lclstream.jobs.runner; print(*sorted(m.split('.')[0] for m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"pydantic", "httpx", "yaml", "cryptography", "asyncio", "fastapi", "logging", "ssl"}
    assert not heavy & set(done.stdout.split())
