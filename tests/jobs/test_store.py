import json
import os
import threading
from pathlib import Path

import pytest
from tests.jobs.waiting import spec

from lclstream.core.errors import (
    ConflictError,
    InvalidConfigError,
    NotFoundError,
    RequestError,
    UnavailableError,
)
from lclstream.jobs import history, layout
from lclstream.jobs.models import BackendConfig, ExtraInfo
from lclstream.jobs.states import JobState
from lclstream.jobs.store import Job, JobStore, file_owner

SPEC_OF_PSIK = """\
{
    "name": "hello",
    "directory": "%s/work",
    "script": "echo hi\\n",
    "environment": {
        "A": "1"
    },
    "inherit_environment": true,
    "resources": {
        "duration": 10,
        "node_count": null,
        "process_count": null,
        "processes_per_node": null,
        "cpu_cores_per_process": 1,
        "gpu_cores_per_process": 0,
        "exclusive_node_use": true
    },
    "backend": "default",
    "attributes": {},
    "callback": "https://127.0.0.1/cb",
    "cb_headers": {
        "X-Test": "1"
    },
    "cb_secret": null
}
"""
ASKED = spec(
    "echo hi\n",
    name="hello",
    environment={"A": "1"},
    callback="https://127.0.0.1/cb",
    cb_headers={"X-Test": "1", "Authorization": "Bearer t0ken"},
    cb_secret="s3cret",  # noqa: S106
)


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "jobs")


@pytest.fixture
def job(store: JobStore) -> Job:
    extra = ExtraInfo(backend=BackendConfig(queue_name="milano"))
    return store.create(ASKED, extra, "uid:mona", key="k1")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_folder_is_that_of_psik(job: Job) -> None:
    assert (job.folder / "spec.json").read_text() == SPEC_OF_PSIK % job.folder
    rows = history.read(job.status_file)
    assert [(row.jobndx, row.state, row.info) for row in rows] == [
        (0, JobState.NEW, '{"backend":{"queue_name":"milano"}}')
    ]
    assert {mode(job.folder), mode(job.folder / "work"), mode(job.folder / "log")} == {0o755}
    assert {mode(job.folder / "spec.json"), mode(job.status_file)} == {0o644}
    assert (job.folder / "script").read_text() == "echo hi\n"


def test_modes_do_not_depend_on_the_umask(store: JobStore) -> None:
    before = os.umask(0o077)
    try:
        job = store.create(ASKED, ExtraInfo(), "uid:mona")
    finally:
        os.umask(before)
    assert mode(job.folder) == mode(job.folder / "log") == 0o755
    assert mode(job.status_file) == 0o644


def test_secrets_are_kept_from_others(job: Job) -> None:
    open_to_all = [path for path in job.folder.rglob("*") if path.is_file() and mode(path) & 0o077]
    assert {path.name for path in open_to_all} == {"spec.json", "status.csv"}
    for path in open_to_all:
        assert "s3cret" not in path.read_text()
        assert "t0ken" not in path.read_text()
    assert mode(job.folder / layout.PRIVATE) == 0o700
    assert mode(layout.secret_file(job.folder)) == 0o600


def test_job_is_read_back_with_its_secrets(job: Job, store: JobStore) -> None:
    again = store.get(job.jobid)
    assert again.spec == ASKED.model_copy(update={"directory": str(job.folder / "work")})
    assert (again.owner, again.ownership["key"]) == ("uid:mona", "k1")
    assert again.is_ours
    assert again.state() is JobState.NEW


@pytest.mark.parametrize(
    "jobid",
    ["abc", "..", ".", "", "1795210840.520abc", "1/..", "1795210840.520\n", "-1", "1.", "\u0661"],
)
def test_what_is_no_id(store: JobStore, job: Job, jobid: str) -> None:
    with pytest.raises(RequestError, match=r"^Invalid jobid$"):
        store.get(jobid)


def test_unknown_job(store: JobStore) -> None:
    with pytest.raises(NotFoundError, match=r"^Job not found$"):
        store.get("1795210840.520")


def test_ids_are_never_given_twice(store: JobStore) -> None:
    made: list[str] = []

    def work() -> None:
        for _ in range(10):
            made.append(store.create(spec("ls"), ExtraInfo(), "uid:mona").jobid)  # noqa: PERF401

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 40
    assert store.ids() == sorted(made, key=float)


def test_unfinished_folder_is_no_job(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("lclstream.jobs.store._fill_private", fail)
    with pytest.raises(OSError, match="disk full"):
        store.create(spec("ls"), ExtraInfo(), "uid:mona")
    assert store.ids() == []
    assert list((store.prefix / ".new").iterdir()) == []


def test_given_directory_gets_no_work_folder(store: JobStore, tmp_path: Path) -> None:
    job = store.create(spec("ls", directory=str(tmp_path)), ExtraInfo(), "uid:mona")
    assert job.directory == tmp_path
    assert not (job.folder / "work").exists()


def test_remove(store: JobStore, job: Job) -> None:
    history.record(job.status_file, 1, JobState.QUEUED, "1")
    with pytest.raises(ConflictError, match="cancel it before"):
        store.remove(job)
    history.record(job.status_file, 0, JobState.CANCELED)
    store.remove(job)
    assert store.ids() == []
    assert not job.folder.exists()
    with pytest.raises(NotFoundError):
        job.history()


def test_remove_does_not_follow_links(store: JobStore, job: Job, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (job.folder / "work" / "link").symlink_to(tmp_path / "precious")
    store.remove(job)
    assert (tmp_path / "precious" / "file").exists()


def test_folder_of_psik_belongs_to_who_owns_its_files(store: JobStore) -> None:
    folder = store.prefix / "1795210993.191"
    folder.mkdir()
    (folder / "spec.json").write_text(SPEC_OF_PSIK % folder)
    history.record(folder / "status.csv", 0, JobState.NEW, "{}")
    job = store.get("1795210993.191")
    assert job.owner == file_owner(folder)
    assert not job.is_ours
    assert job.spec.environment == {"A": "1"}


def test_damaged_folder_is_told(store: JobStore, job: Job) -> None:
    (job.folder / "spec.json").write_text('{"script": ')
    with pytest.raises(RequestError, match=f"the folder of job {job.jobid} is damaged"):
        _ = store.get(job.jobid).spec


def test_one_at_a_time(job: Job) -> None:
    with (
        job.exclusively(),
        pytest.raises(UnavailableError, match="being started or cancelled"),
        Job(job.folder).exclusively(0.05),
    ):
        pass


def test_one_service_at_a_time(store: JobStore) -> None:
    with (
        store.service_lock(),
        pytest.raises(ConflictError, match="another service works on"),
        JobStore(store.prefix).service_lock(),
    ):
        pass
    with store.service_lock():
        pass


def test_remains_are_cleared(store: JobStore, job: Job) -> None:
    old, fresh = store.prefix / ".new" / "old", store.prefix / ".new" / "fresh"
    for folder in (old, fresh):
        folder.mkdir()
        (folder / "spec.json").touch()
    os.utime(old, (0, 0))
    store.clear_remains()
    assert not old.exists()
    assert fresh.exists()
    assert json.loads(layout.owner_file(job.folder).read_text())["owner"] == "uid:mona"


def test_damage_does_not_show_secrets(store: JobStore) -> None:
    fields = {"cb_secret": "sesame", "callback": "https://127.0.0.1/cb"}
    job = store.create(spec("true", **fields), ExtraInfo(), "uid:mona")
    written = json.loads((job.folder / layout.SPEC).read_text())
    (job.folder / layout.SPEC).write_text(json.dumps({"bogus": 1, **written, "script": 7}))
    with pytest.raises(RequestError, match=r"is damaged: script: .*; bogus: unknown") as caught:
        _ = store.get(job.jobid).spec
    assert "sesame" not in str(caught.value)


def test_prefix_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidConfigError, match=r"^prefix: cannot use '.*/file/jobs': Not a dir"):
        JobStore(tmp_path / "file" / "jobs")
