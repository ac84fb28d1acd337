import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.jobs.waiting import soon

from lclstream.cli.main import main
from lclstream.jobs import layout
from lclstream.jobs.store import JobStore


@pytest.fixture
def configured(prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobStore:
    path = tmp_path / "psik.json"
    path.write_text(json.dumps({"prefix": str(prefix)}))
    monkeypatch.setenv("PSIK_CONFIG", str(path))
    return JobStore(prefix)


def write(tmp_path: Path, text: str, name: str = "spec.yaml") -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_from_run_to_rm(
    configured: JobStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write(tmp_path, "name: hello\nscript: |\n  echo hi\n  exit 3\n")
    assert main(["job", "run", "--wait", spec]) == 1
    (jobid,) = configured.ids()
    assert capsys.readouterr().out == f"Queued {jobid}\n"
    assert main(["job", "ls"]) == 0
    assert capsys.readouterr().out == (
        f"jobid                state jobndx info name\n{jobid:<15} failed          1    3 hello\n"
    )
    assert main(["job", "show", jobid]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "hello"
    assert lines[1] == f"    base: {configured.prefix}/{jobid}"
    assert lines[4] == "    time ndx state info"
    assert lines[-1].split()[1:] == ["1", "failed", "3"]
    assert main(["job", "logs", jobid, "stdout.1"]) == 0
    assert capsys.readouterr().out == "hi\n"
    assert main(["job", "logs", jobid]) == 0
    assert "==> stdout.1 <==\nhi\n" in capsys.readouterr().out
    assert main(["job", "start", jobid]) == 0
    job = configured.get(jobid)
    soon(lambda: job.history()[-1][1:3] == (2, "failed"))
    assert main(["job", "rm", jobid]) == 0
    assert capsys.readouterr().out == f"Queued {jobid}\nDeleted {jobid}\n"
    assert configured.ids() == []


def test_no_submit_and_here(
    configured: JobStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = write(tmp_path, '{"script": "pwd"}', "spec.json")
    assert main(["job", "run", "--no-submit", "--here", spec]) == 0
    (jobid,) = configured.ids()
    assert capsys.readouterr().out == f"Created {jobid}\n"
    job = configured.get(jobid)
    assert job.directory == tmp_path
    assert not layout.submit_mark(job.folder, 1).exists()


def test_cancel_waits_for_the_end(
    configured: JobStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["job", "run", write(tmp_path, "script: sleep 100")]) == 0
    (jobid,) = configured.ids()
    assert main(["job", "rm", jobid]) == 1
    assert "cancel it before removing it" in capsys.readouterr().err
    assert main(["job", "cancel", jobid]) == 0
    assert capsys.readouterr().out.endswith(f"Canceled {jobid}\n")
    assert configured.get(jobid).history()[-1][1:3] == (0, "canceled")


def test_killed_runner_is_noticed_without_a_service(
    configured: JobStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["job", "run", write(tmp_path, "script: sleep 100")]) == 0
    (jobid,) = configured.ids()
    job = configured.get(jobid)
    soon(lambda: len(job.history()) == 3)
    os.kill(int(job.history()[1].info), signal.SIGKILL)

    def is_shown() -> bool:
        main(["job", "ls"])
        return " failed " in capsys.readouterr().out

    soon(is_shown)


@pytest.mark.parametrize("jobid", ["..", ".", "/etc", "1/../..", "abc"])
def test_rm_takes_only_ids(
    configured: JobStore, jobid: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["job", "rm", jobid]) == 1
    assert capsys.readouterr().err == "lclstream: Invalid jobid\n"
    assert configured.prefix.is_dir()


def test_faulty_spec_is_explained(
    configured: JobStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write(tmp_path, "scirpt: ls\nresources: {duration: long}\n")
    assert main(["job", "run", spec]) == 2
    text = capsys.readouterr().err
    for expected in (spec, "script: is required", "scirpt: unknown field", "resources.duration"):
        assert expected in text
    assert configured.ids() == []


def test_no_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PSIK_CONFIG", raising=False)
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
    assert main(["job", "ls"]) == 2
    assert "give --config or PSIK_CONFIG" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["serve", "run", "ls", "show", "logs", "start", "cancel", "rm"])
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["job", verb, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "example" in text or "configuration" in text


def test_job_alone_prints_its_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["job"]) == 0
    assert "psik 3 reads" in capsys.readouterr().out


def test_serve_with_a_faulty_configuration(tmp_path: Path) -> None:
    path = write(tmp_path, "prefix: jobs\nidentity: missing\nport: 0\n", "jobs.yaml")
    command = [sys.executable, "-m", "lclstream.cli", "job", "serve", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert "missing" in done.stderr


def test_serve_without_a_usable_identity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"prefix": "jobs", "identity": "nowhere"}
    path = write(tmp_path, json.dumps(config), "jobs.json")
    assert main(["job", "serve", path]) == 2
    assert capsys.readouterr().err == f"lclstream: no identity folder '{tmp_path}/nowhere'\n"


def test_one_damaged_folder_hides_no_other_job(
    configured: JobStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write(tmp_path, "name: hello\nscript: 'true'\n")
    for _ in range(2):
        assert main(["job", "run", "--no-submit", spec]) == 0
    damaged, good = configured.ids()
    (configured.prefix / damaged / layout.SPEC).write_text("{}")
    (configured.prefix / "7").mkdir()
    capsys.readouterr()
    assert main(["job", "ls"]) == 0
    seen = capsys.readouterr()
    assert [line.split()[0] for line in seen.out.splitlines()] == ["jobid", good]
    assert seen.err == f"the folder of job {damaged} is damaged: script: is required\n"


def test_directory_is_relative_to_who_types_it(
    configured: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    spec = write(tmp_path, "script: 'true'\ndirectory: here\n")
    monkeypatch.chdir(tmp_path)
    assert main(["job", "run", "--no-submit", spec]) == 0
    (jobid,) = configured.ids()
    assert configured.get(jobid).directory == tmp_path / "here"
