"""The REST interface over mutual TLS, with local jobs."""

import asyncio
import json
import os
import signal
import ssl
import stat
from pathlib import Path

import httpx
import pytest
from tests.jobs.waiting import eventually, spec

from lclstream.core.errors import (
    ConflictError,
    InvalidConfigError,
    NotAuthorizedError,
    NotFoundError,
    RequestError,
    TooLargeError,
    UnavailableError,
)
from lclstream.identity.authority import Authority
from lclstream.identity.client import client
from lclstream.identity.tls import client_context
from lclstream.jobs import layout, processes
from lclstream.jobs.client import JobsClient
from lclstream.jobs.models import ServiceConfig
from lclstream.jobs.service import JobsService
from lclstream.jobs.states import JobState

pytestmark = pytest.mark.anyio
S = JobState


def gone(pid: int) -> bool:
    process = processes.look(pid)
    return process is None or not process.is_alive


async def printed(mona: JobsClient, jobid: str, lines: int = 1) -> list[str]:
    """Wait for lines of a job's output and return them."""

    async def has() -> bool:
        return len((await mona.logs(jobid)).get("stdout.1", "").splitlines()) >= lines

    await eventually(has)
    return (await mona.logs(jobid))["stdout.1"].splitlines()


async def active(mona: JobsClient, jobid: str) -> None:
    async def is_active() -> bool:
        return await mona.state(jobid) is S.ACTIVE

    await eventually(is_active)


async def test_job_from_upload_to_logs(mona: JobsClient, service: JobsService) -> None:
    jobid = await mona.create(spec("cat in/a.txt; echo err >&2; echo data > out.txt", name="hello"))
    assert [step.state for step in await mona.history(jobid)] == [S.NEW]
    await mona.upload(jobid, {"in/a.txt": b"Hello World!\n", "100%.txt": b""})
    await mona.start(jobid)
    last = await mona.wait(jobid)
    assert (last.jobid, last.name, last.jobndx, last.state) == (jobid, "hello", 1, S.COMPLETED)
    steps = await mona.history(jobid)
    assert [step.state for step in steps] == [S.NEW, S.QUEUED, S.ACTIVE, S.COMPLETED]
    assert steps[0].info == "{}"
    assert steps[1].info.isdigit()
    logs = {"console": "", "stderr.1": "err\n", "stdout.1": "Hello World!\n"}
    assert await mona.logs(jobid) == logs
    assert await mona.download(jobid, "out.txt") == b"data\n"
    listing = await mona.files(jobid)
    assert {name: found.children for name, found in listing.items()} == {
        "100%.txt": False, "in": True, "out.txt": False,
    }  # fmt: skip
    assert listing["out.txt"].size == 5
    assert list(await mona.files(jobid, "in")) == ["a.txt"]
    stored = service.supervisor.control.store.get(jobid).directory / "in" / "a.txt"
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600


async def test_wire_is_that_of_psik_api(service: JobsService, identities: Path) -> None:
    async with client(identities / "mona", service.url) as http:
        answer = await http.post("/v3/jobs", json={"name": "hello", "script": "true"})
        jobid = answer.json()
        assert answer.text == f'"{jobid}"'
        await ended(http, jobid)
        steps = (await http.get(f"/v3/jobs/{jobid}")).json()
        assert [list(step) for step in steps] == [
            ["jobid", "name", "updated", "jobndx", "state", "info"]
        ] * 4

        async def is_listed() -> bool:
            return bool((await http.get("/v3/jobs")).json() == steps[-1:])

        await eventually(is_listed)
        new = (await http.post("/v3/jobs/new", json={"script": "true"})).json()
        assert (await http.get(f"/v3/jobs/{new}/state")).text == '"new"'
        assert (await http.delete(f"/v3/jobs/{new}")).text == "null"
        assert (await http.get("/v3/openapi.json")).json()["openapi"].startswith("3.1")
        assert (await http.get("/v3/")).status_code == 200
        assert (await http.get("/health")).json() == {"jobs": 2, "live": 0}


async def raw(service: JobsService, identities: Path, user: str = "mona") -> httpx.AsyncClient:
    """Return a client that raises nothing."""
    found = client(identities / user, service.url)
    found.event_hooks = {"response": []}
    return found


async def status_line(service: JobsService, identities: Path, path: str) -> str:
    """Ask for exactly this path, which httpx would tidy up, and return the answer's first line."""
    context = client_context(identities / "mona")
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port, ssl=context)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    line = (await reader.readline()).decode()
    writer.transport.abort()
    return line


async def ended(http: httpx.AsyncClient, jobid: str) -> None:
    """Wait for the end of a job."""

    async def is_final() -> bool:
        return JobState((await http.get(f"/v3/jobs/{jobid}/state")).json()).is_final

    await eventually(is_final)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "detail"),
    [
        ("GET", "/", None, 404, "Not Found"),
        ("GET", "/v3/jobs/abc", None, 400, "Invalid jobid"),
        ("GET", "/v3/jobs/1795210840.520abc", None, 400, "Invalid jobid"),
        ("GET", "/v3/jobs/1795210840.520", None, 404, "Job not found"),
        ("DELETE", "/v3/jobs/1795210840.520", None, 404, "Job not found"),
        ("POST", "/v3/jobs/1795210840.520/start", None, 404, "Job not found"),
        ("GET", "/v3/backends/lsf", None, 404, "Item not found"),
        ("GET", "/v3/backends?name=lsf", None, 404, "Item not found"),
        ("GET", "/v3/jobs?state=bogus", None, 422, None),
        ("POST", "/v3/jobs", {"name": "x"}, 422, None),
        ("POST", "/v3/jobs", {"script": "ls", "bogus": 1}, 422, None),
        (
            "POST",
            "/v3/jobs",
            {"script": "ls", "backend": "defualt"},
            422,
            "backend: got 'defualt' (did you mean 'default'?); allowed: default",
        ),
        (
            "POST",
            "/v3/jobs",
            {"script": "ls", "attributes": {"--uid": "0"}},
            400,
            "backend 'default' knows no attributes, got '--uid'",
        ),
    ],
)
async def test_what_cannot_be_done_is_said(
    service: JobsService,
    identities: Path,
    method: str,
    path: str,
    body: dict[str, object] | None,
    status: int,
    detail: str | None,
) -> None:
    async with await raw(service, identities) as http:
        answer = await http.request(method, path, json=body)
    assert answer.status_code == status
    assert detail is None or answer.json()["detail"] == detail


async def test_validation_has_the_form_of_fastapi(service: JobsService, identities: Path) -> None:
    async with await raw(service, identities) as http:
        answer = await http.post("/v3/jobs", json={"name": "x"})
    missing = {"type": "missing", "loc": ["body", "script"], "msg": "Field required"}
    assert answer.json() == {
        "detail": [{**missing, "input": {"name": "x"}}],
        "error": "InvalidConfigError",
        "problems": ["body.script: is required"],
        "transient": False,
    }


async def test_nobody_without_a_certificate(service: JobsService, identities: Path) -> None:
    context = ssl.create_default_context(cafile=identities / "mona" / "ca.crt")
    async with httpx.AsyncClient(verify=context, trust_env=False) as http:
        for headers in ({}, {"Authorization": "Basic bW9uYTp4"}):
            with pytest.raises((httpx.TransportError, ssl.SSLError)):
                await http.get(f"{service.url}/v3/jobs", headers=headers)


async def test_jobs_belong_to_who_made_them(
    mona: JobsClient, oskar: JobsClient, service: JobsService, identities: Path
) -> None:
    jobid = await mona.create(spec("sleep 100", name="monas"), submit=True)
    attempts = [
        oskar.history(jobid), oskar.state(jobid), oskar.logs(jobid), oskar.log(jobid, "stdout.1"),
        oskar.files(jobid), oskar.download(jobid, "x"), oskar.upload(jobid, {"x": b""}),
        oskar.start(jobid), oskar.cancel(jobid),
    ]  # fmt: skip
    for attempt in attempts:
        with pytest.raises(NotAuthorizedError, match=f"uid:oskar may not access job {jobid}"):
            await attempt
    assert await oskar.list() == []
    await active(mona, jobid)
    async with JobsClient(service.url, identities / "admin") as admin:
        assert [step.jobid for step in await admin.list()] == [jobid]
        await admin.cancel(jobid)
    assert (await mona.wait(jobid)).state is S.CANCELED


async def test_a_job_may_not_make_jobs(service: JobsService, identities: Path) -> None:
    authority = Authority.load(identities / "authority")
    authority.issue_job("job:transfer-1:consumer", hours=1, server=False).save(identities / "job")
    async with JobsClient(service.url, identities / "job") as job:
        for attempt in (job.create(spec("true")), job.list(), job.find("k"), job.state("1.5")):
            with pytest.raises(NotAuthorizedError, match="is a job and may not use"):
                await attempt


async def test_key_of_a_removed_job_is_free(mona: JobsClient, service: JobsService) -> None:
    jobid = await mona.create(spec("true"), key="k")
    store = service.supervisor.control.store
    store.remove(store.get(jobid))
    assert await mona.find("k") is None
    assert await mona.create(spec("true"), key="k") != jobid


async def test_key_names_one_job(mona: JobsClient, oskar: JobsClient) -> None:
    asked = spec("echo $RANDOM")
    jobids = await asyncio.gather(
        *(mona.create(asked, submit=True, key="transfer-1/producer") for _ in range(8))
    )
    assert len(set(jobids)) == 1
    assert await mona.find("transfer-1/producer") == jobids[0]
    assert await oskar.find("transfer-1/producer") is None
    assert await oskar.create(asked, key="transfer-1/producer") != jobids[0]
    assert await mona.create(asked) != jobids[0]
    await mona.wait(jobids[0])
    again = await mona.create(asked, submit=True, key="transfer-1/producer")
    assert again == jobids[0]
    assert [step.jobndx for step in await mona.history(again)] == [0, 1, 1, 1]


async def test_start_names_a_run(mona: JobsClient) -> None:
    jobid = await mona.create(spec("true"))
    await asyncio.gather(*(mona.start(jobid) for _ in range(5)))
    await mona.wait(jobid)
    await mona.start(jobid)
    assert (await mona.history(jobid))[-1].jobndx == 1
    with pytest.raises(ConflictError, match="run 2 is due before run 3"):
        await mona.start(jobid, 3)
    await mona.start(jobid, None)
    assert (await mona.wait(jobid)).jobndx == 2
    steps = [(step.jobndx, step.state) for step in await mona.history(jobid)]
    assert steps[4:] == [(2, S.QUEUED), (2, S.ACTIVE), (2, S.COMPLETED)]


async def test_running_job_is_not_started_again(mona: JobsClient) -> None:
    jobid = await mona.create(spec("sleep 100"), submit=True)
    await active(mona, jobid)
    with pytest.raises(ConflictError, match=r"^cannot submit in state 'active'$"):
        await mona.start(jobid, None)
    await mona.cancel(jobid)
    await mona.wait(jobid)


async def test_cancel_ends_all_processes_of_a_job(mona: JobsClient) -> None:
    script = "sleep 100 & echo $!; setsid sleep 100 & echo $!; echo $$; wait"
    jobid = await mona.create(spec(script), submit=True)
    pids = [int(line) for line in await printed(mona, jobid, 3)]
    assert not any(gone(pid) for pid in pids)
    await mona.cancel(jobid)
    last = await mona.wait(jobid)
    assert (last.jobndx, last.state, last.info) == (0, S.CANCELED, "")
    assert all(gone(pid) for pid in pids)


async def test_cancel_is_for_what_has_not_ended(mona: JobsClient) -> None:
    jobid = await mona.create(spec("true"), submit=True)
    await mona.wait(jobid)
    before = await mona.history(jobid)
    await mona.cancel(jobid)
    await mona.cancel(jobid)
    assert await mona.history(jobid) == before


async def test_cancelled_before_its_start(mona: JobsClient) -> None:
    jobid = await mona.create(spec("echo no"))
    await mona.cancel(jobid)
    assert await mona.state(jobid) is S.CANCELED
    with pytest.raises(ConflictError, match=f"run 1 of job {jobid} was cancelled"):
        await mona.start(jobid)
    assert await mona.state(jobid) is S.CANCELED


async def test_killed_runner_fails_and_its_script_ends(mona: JobsClient) -> None:
    script = "trap '' TERM; sleep 100 & echo $!; echo $$; wait; sleep 100"
    jobid = await mona.create(spec(script), submit=True)
    pids = [int(line) for line in await printed(mona, jobid, 2)]
    runner = int((await mona.history(jobid))[1].info)
    os.kill(runner, signal.SIGKILL)
    last = await mona.wait(jobid)
    assert (last.jobndx, last.state) == (1, S.FAILED)
    assert last.info == "the runner of the job died (signal 9)"
    assert all(gone(pid) for pid in pids)


async def test_directory_is_confined(mona: JobsClient, config: ServiceConfig) -> None:
    for directory in ("/etc", "/", f"{config.directories[0]}/../jobs"):
        with pytest.raises(NotAuthorizedError, match="not below an allowed one"):
            await mona.create(spec("ls", directory=directory))
    place = config.directories[0] / "run42"
    with pytest.raises(InvalidConfigError, match="not an existing folder"):
        await mona.create(spec("ls", directory=str(place)))
    place.mkdir()
    jobid = await mona.create(spec("pwd; cat given", directory=str(place)))
    await mona.upload(jobid, {"given": b"data\n"})
    await mona.start(jobid)
    await mona.wait(jobid)
    assert (await mona.logs(jobid))["stdout.1"] == f"{place}\ndata\n"
    assert await mona.download(jobid, "given") == b"data\n"


async def test_files_are_confined(service: JobsService, identities: Path, tmp_path: Path) -> None:
    async with await raw(service, identities) as http:
        script = f"ln -s / rootlink; ln -s {tmp_path} up; ln -s /etc/passwd ../log/stdout.9"
        jobid = (await http.post("/v3/jobs", json={"script": script})).json()
        jobs = f"/v3/jobs/{jobid}"
        await ended(http, jobid)
        for path in (
            "../spec.json", "%2e%2e/spec.json", "/etc/passwd", "%2Fetc%2Fpasswd", "..",
            "rootlink/etc/passwd", "rootlink", "up/identities", "x%00y",
        ):  # fmt: skip
            line = await status_line(service, identities, f"{jobs}/files/{path}")
            assert line.split()[1] in {"403", "404"}, path
        assert (await http.get(f"{jobs}/files")).json() == {}
        for name in ("../evil.txt", "..%2Fevil.txt", "/tmp/evil", "%2Ftmp%2Fevil", "up/evil", ".."):  # noqa: S108
            answer = await http.post(f"{jobs}/files", files={"files": (name, b"x")})
            assert answer.status_code in {403, 404}, name
        assert (await http.get(f"{jobs}/logs")).json().keys() == {"console", "stderr.1", "stdout.1"}
        assert (await http.get(f"{jobs}/logs/stdout.9")).status_code in {403, 404}
        assert (await http.get(f"{jobs}/logs/..%2Fspec.json")).status_code == 404
    evil = [*tmp_path.rglob("evil*"), *Path("/tmp").glob("evil")]  # noqa: ASYNC240, S108
    assert evil == []


async def test_names_come_quoted_from_psik(service: JobsService, identities: Path) -> None:
    async with await raw(service, identities) as http:
        jobid = (await http.post("/v3/jobs/new", json={"script": "ls"})).json()
        sent = [("files", ("sub%2Fb.txt", b"b")), ("files", ("a.txt", b"a"))]
        answer = await http.post(f"/v3/jobs/{jobid}/files", files=sent)
        assert (answer.status_code, answer.text) == (200, "null")
        assert (await http.get(f"/v3/jobs/{jobid}/files/sub/b.txt")).content == b"b"


async def test_ranges_of_a_file(service: JobsService, identities: Path) -> None:
    async with await raw(service, identities) as http:
        jobid = (await http.post("/v3/jobs/new", json={"script": "ls"})).json()
        await http.post(f"/v3/jobs/{jobid}/files", files={"files": ("f", b"0123456789")})
        url = f"/v3/jobs/{jobid}/files/f"
        whole = await http.get(url)
        assert whole.headers["content-type"] == "application/octet-stream"
        assert whole.headers["accept-ranges"] == "bytes"
        assert whole.headers["content-disposition"] == 'attachment; filename="f"'
        for asked, status, data in (
            ("bytes=2-4", 206, b"234"),
            ("bytes=7-", 206, b"789"),
            ("bytes=-2", 206, b"89"),
            ("bytes=5-99", 206, b"56789"),
            ("bytes=20-30", 416, None),
            ("lines=1-2", 200, b"0123456789"),
        ):
            answer = await http.get(url, headers={"Range": asked})
            assert answer.status_code == status, asked
            assert data is None or answer.content == data, asked


async def test_logs_are_bounded_and_followed(
    config: ServiceConfig, identities: Path, prefix: Path
) -> None:
    small = config.model_copy(update={"max_log_bytes": 10})
    async with (
        JobsService(small) as service,
        JobsClient(service.url, identities / "mona") as mona,
    ):
        script = "for i in 1 2 3 4 5; do echo line $i; sleep 0.1; done"
        jobid = await mona.create(spec(script), submit=True)
        pieces = [piece async for piece in mona.follow(jobid, "stdout.1")]
        assert b"".join(pieces) == b"".join(b"line %d\n" % i for i in range(1, 6))
        assert max(map(len, pieces)) <= 10
        async with client(identities / "mona", service.url) as http:
            answer = await http.get(f"/v3/jobs/{jobid}/logs")
            assert answer.headers["x-truncated"] == "stdout.1"
            assert answer.json()["stdout.1"] == "e 4\nline 5\n"[-10:]
            part = await http.get(f"/v3/jobs/{jobid}/logs/stdout.1?offset=7&limit=4")
            assert part.content == b"line"
            assert part.headers["x-log-offset"] == "7"
            assert part.headers["x-log-size"] == "35"
        with pytest.raises(NotFoundError):
            await mona.log(jobid, "stdout.2")


async def test_requests_are_bounded(config: ServiceConfig, identities: Path, prefix: Path) -> None:
    small = config.model_copy(update={"max_body_bytes": 2000, "max_upload_bytes": 10_000})
    async with (
        JobsService(small) as service,
        JobsClient(service.url, identities / "mona") as mona,
    ):
        with pytest.raises(TooLargeError):
            await mona.create(spec("#" * 3000))
        jobid = await mona.create(spec("ls"))
        await mona.upload(jobid, {"fits": bytes(9000)})
        with pytest.raises(TooLargeError):
            await mona.upload(jobid, {"huge": bytes(2_000_000)})
        assert list(await mona.files(jobid)) == ["fits"]


async def test_list_is_filtered_and_paged(mona: JobsClient) -> None:
    made = [await mona.create(spec("true", name=str(i))) for i in range(3)]
    await mona.cancel(made[0])
    assert [step.jobid for step in await mona.list()] == made[::-1]
    assert [step.jobid for step in await mona.list(index=1, limit=1)] == [made[1]]
    assert [step.name for step in await mona.list(state=S.CANCELED)] == ["0"]
    assert len(await mona.list(backend="default")) == 3
    assert await mona.list(backend="other") == []


async def test_backends(mona: JobsClient, config: ServiceConfig) -> None:
    found = await mona.backends()
    assert list(found) == ["default"]
    assert found["default"].status == "active"
    assert found["default"].description == f"lclstream:local job manager at {config.prefix}"


async def test_secrets_of_the_service_stay_there(
    mona: JobsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    jobid = await mona.create(spec("cat /proc/$PPID/environ; env"), submit=True)
    await mona.wait(jobid)
    assert "hunter2" not in (await mona.logs(jobid))["stdout.1"]


async def test_many_jobs_at_once(mona: JobsClient) -> None:
    made = await asyncio.gather(
        *(mona.create(spec(f"exit {i % 2}"), submit=True) for i in range(20))
    )
    ends = await asyncio.gather(*(mona.wait(jobid) for jobid in made))
    assert [(end.state, end.info) for end in ends] == [
        (S.COMPLETED, ""), (S.FAILED, "1"),
    ] * 10  # fmt: skip


async def test_removed_folder_is_forgotten(mona: JobsClient, service: JobsService) -> None:
    jobid = await mona.create(spec("true"))
    store = service.supervisor.control.store
    store.remove(store.get(jobid))

    async def is_gone() -> bool:
        return await mona.list() == []

    await eventually(is_gone)
    with pytest.raises(NotFoundError):
        await mona.state(jobid)


async def test_damaged_folder_disturbs_no_other(
    mona: JobsClient, service: JobsService, config: ServiceConfig
) -> None:
    jobid = await mona.create(spec("sleep 100"), submit=True)
    await active(mona, jobid)
    layout.claim_file(config.prefix / jobid, 1).write_text("{")
    (config.prefix / "1795210993.191").mkdir()
    (config.prefix / "1795210993.191" / "status.csv").write_text("1,0,new,{}\n")
    (config.prefix / "1795210993.191" / "spec.json").write_text("no json")
    other = await mona.create(spec("true"), submit=True)
    assert (await mona.wait(other)).state is S.COMPLETED
    with pytest.raises((RequestError, NotAuthorizedError)):
        await mona.history("1795210993.191")


async def test_second_service_on_a_prefix_is_refused(
    service: JobsService, config: ServiceConfig
) -> None:
    with pytest.raises(ConflictError, match="another service works on"):
        async with JobsService(config):
            pass
    assert service.url


async def test_ready_file_names_the_url(
    config: ServiceConfig, tmp_path: Path, prefix: Path
) -> None:
    ready = config.model_copy(update={"ready_file": tmp_path / "ready.json"})
    async with JobsService(ready) as service:
        assert json.loads((tmp_path / "ready.json").read_text()) == {"url": service.url}


async def test_service_needs_an_identity(config: ServiceConfig) -> None:
    with pytest.raises(InvalidConfigError, match="identity: is required"):
        JobsService(config.model_copy(update={"identity": None}))


async def test_service_that_is_not_there(identities: Path) -> None:
    async with JobsClient("https://127.0.0.1:9", identities / "mona") as nobody:
        with pytest.raises(UnavailableError):
            await nobody.list()


async def test_no_zombie_stays(mona: JobsClient) -> None:
    jobid = await mona.create(spec("true"), submit=True)
    await mona.wait(jobid)
    runner = int((await mona.history(jobid))[1].info)

    async def is_collected() -> bool:
        return processes.look(runner) is None

    await eventually(is_collected)


async def test_log_is_not_read_through_a_link(mona: JobsClient, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("secret")
    script = f'mv "$base/log" "$base/old"; ln -s {tmp_path}/elsewhere "$base/log"'
    jobid = await mona.create(spec(script), submit=True)
    await mona.wait(jobid)
    with pytest.raises(NotFoundError):
        await mona.log(jobid, "secret")
    with pytest.raises(NotFoundError):
        await mona.logs(jobid)


@pytest.mark.parametrize(
    "damage",
    ["echo '{}' > .lclstream/owner.json", "echo x > .lclstream/owner.json",
     "rm status.csv; mkdir status.csv", "echo '[]' > .lclstream/callbacks.json"],
)  # fmt: skip
async def test_job_that_damages_its_folder_harms_nobody_else(
    config: ServiceConfig, identities: Path, prefix: Path, damage: str
) -> None:
    mark = config.prefix.parent / "damaged"

    async def is_damaged() -> bool:
        return mark.exists()

    async with (
        JobsService(config) as service,
        JobsClient(service.url, identities / "mona") as mona,
    ):
        hostile = spec(f'cd "$base"; {damage}; touch {mark}; sleep 30')
        await mona.create(hostile, submit=True)
        await eventually(is_damaged)
        other = await mona.create(spec("true"), submit=True)
        assert (await mona.wait(other)).state is S.COMPLETED
    # The next service starts all the same.
    async with (
        JobsService(config) as service,
        JobsClient(service.url, identities / "mona") as mona,
    ):
        assert await mona.state(other) is S.COMPLETED
        third = await mona.create(spec("true"), submit=True)
        assert (await mona.wait(third)).state is S.COMPLETED


@pytest.mark.parametrize(
    "body",
    [b'{"script": "x", "name": NaN}', b'{"script": "\\ud800"}', b'{"script": "x", "\\ud800": 1}',
     b'{"script": "x", "environment": {"A": "\\ud800"}}', b'{"script": "x", "backend": "\\ud800"}',
     b'{"script": "x", "resources": {"duration": 1%s}}' % (b"0" * 30)],
)  # fmt: skip
async def test_odd_requests_are_refused_not_fatal(
    service: JobsService, identities: Path, body: bytes
) -> None:
    headers = {"content-type": "application/json"}
    async with client(identities / "mona", service.url) as http:
        with pytest.raises(InvalidConfigError):
            await http.post("/v3/jobs", content=body, headers=headers)


async def test_directories_of_jobs_keep_away_from_those_of_others(config: ServiceConfig) -> None:
    wide = config.model_copy(update={"directories": (config.prefix.parent,)})
    with pytest.raises(InvalidConfigError, match=r"the prefix .* overlap"):
        JobsService(wide)
