"""Callbacks of real jobs to a real receiver behind mutual TLS."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.jobs.sink import Sink
from tests.jobs.waiting import eventually, spec

from lclstream.core.errors import NotAuthorizedError
from lclstream.jobs import history, layout, signing
from lclstream.jobs.client import JobsClient
from lclstream.jobs.models import JobSpec, ServiceConfig
from lclstream.jobs.service import JobsService
from lclstream.jobs.states import JobState

pytestmark = pytest.mark.anyio
SECRET = "s3cret"  # noqa: S105


class Receiver(Sink):
    """A sink with its address."""

    url = ""

    def states(self) -> list[str]:
        return [json.loads(each.body)["state"] for each in self.got]

    async def heard(self, count: int) -> None:
        async def enough() -> bool:
            return len(self.got) >= count

        await eventually(enough)


@pytest.fixture
async def receiver(identities: Path) -> AsyncIterator[Receiver]:
    found = Receiver()
    async with found.service(identities / "service") as service:
        found.url = f"{service.url}/cb"
        yield found


def told(script: str, receiver: Receiver, **fields: object) -> JobSpec:
    return spec(script, callback=receiver.url, **fields)


async def test_every_state_is_told_in_order(mona: JobsClient, receiver: Receiver) -> None:
    headers = {"X-Test": "1", "Authorization": "Bearer t0ken"}
    asked = told("exit 3", receiver, cb_secret=SECRET, cb_headers=headers)
    jobid = await mona.create(asked, submit=True)
    await receiver.heard(3)
    native = (await mona.history(jobid))[1].info
    assert [each.body.decode() for each in receiver.got] == [
        f'{{"jobid":"{jobid}","jobndx":1,"state":"queued","info":"{native}"}}',
        f'{{"jobid":"{jobid}","jobndx":1,"state":"active","info":""}}',
        f'{{"jobid":"{jobid}","jobndx":1,"state":"failed","info":"3"}}',
    ]
    for number, each in enumerate(receiver.got, start=1):
        assert each.caller == "cn:Test Jobs"
        assert each.headers["content-type"] == each.headers["accept"] == "application/json"
        assert each.headers["x-test"] == "1"
        assert each.headers["authorization"] == "Bearer t0ken"
        assert each.headers[signing.DELIVERY] == f"{jobid}/{number}"
        signing.verify(SECRET, each.body, each.headers[signing.SIGNATURE])
        signing.verify_timed(SECRET, each.body, each.headers)


async def test_callbacks_come_soon(mona: JobsClient, receiver: Receiver) -> None:
    jobid = await mona.create(told("sleep 100", receiver), submit=True)
    await receiver.heard(2)
    rows = await mona.history(jobid)
    late = [
        float(each.headers[signing.TIMESTAMP]) - row.updated
        for each, row in zip(receiver.got, rows[1:], strict=True)
    ]
    # A look every 0.2 s, and what a busy test machine adds; asking the backend is slower.
    assert max(late) < 3.0
    await mona.cancel(jobid)
    await mona.wait(jobid)


async def test_unsigned_without_a_secret(mona: JobsClient, receiver: Receiver) -> None:
    await mona.create(told("true", receiver), submit=True)
    await receiver.heard(3)
    assert signing.SIGNATURE not in receiver.got[0].headers


async def test_refused_callback_is_tried_again_and_nothing_overtakes_it(
    mona: JobsClient, receiver: Receiver
) -> None:
    receiver.answers += [500, 503, 302, 201, 202]
    await mona.create(told("true", receiver), submit=True)
    await receiver.heard(6)
    assert receiver.states() == ["queued"] * 4 + ["active", "completed"]
    assert len({each.headers[signing.DELIVERY] for each in receiver.got[:4]}) == 1


async def test_cancel_is_told(mona: JobsClient, receiver: Receiver) -> None:
    jobid = await mona.create(told("true", receiver))
    await mona.cancel(jobid)
    await receiver.heard(1)
    expected = {"jobid": jobid, "jobndx": 0, "state": "canceled", "info": ""}
    assert json.loads(receiver.got[0].body) == expected


async def test_what_was_not_delivered_is_delivered_by_the_next_service(
    config: ServiceConfig, identities: Path, prefix: Path, receiver: Receiver
) -> None:
    receiver.answers += [200, 500, 500, 500, 500, 500, 500, 500]
    async with (
        JobsService(config) as service,
        JobsClient(service.url, identities / "mona") as mona,
    ):
        jobid = await mona.create(told("true", receiver), submit=True)
        await mona.wait(jobid)
        await receiver.heard(3)
    before = len(receiver.got)
    receiver.answers.clear()
    async with JobsService(config):
        await receiver.heard(before + 2)
    states = receiver.states()
    assert states[0] == "queued"
    assert set(states[1:before]) == {"active"}
    assert states[before:] == ["active", "completed"]
    assert json.loads(layout.cursor_file(prefix / jobid).read_text()) == {"delivered": 4}
    async with JobsService(config) as again:
        assert not again.supervisor.index.entries[jobid].owes_callbacks


async def test_receiver_that_is_not_there_holds_up_nobody(
    mona: JobsClient, receiver: Receiver
) -> None:
    await mona.create(spec("true", callback="https://127.0.0.1:9/cb"), submit=True)
    await mona.create(told("true", receiver), submit=True)
    await receiver.heard(3)


async def test_callback_is_given_up_after_a_time(
    config: ServiceConfig, identities: Path, prefix: Path, receiver: Receiver
) -> None:
    receiver.answers += [500] * 50
    hasty = config.model_copy(update={"callback_timeout_s": 0.5})
    async with (
        JobsService(hasty) as service,
        JobsClient(service.url, identities / "mona") as mona,
    ):
        jobid = await mona.create(told("true", receiver), submit=True)

        async def all_done() -> bool:
            return not service.supervisor.index.entries[jobid].owes_callbacks

        await mona.wait(jobid)
        await eventually(all_done)
    assert receiver.states()[-1] == "completed"


@pytest.mark.parametrize("url", ["https://example.org/cb", "http://127.0.0.1:80/cb"])
async def test_other_hosts_get_no_callback(mona: JobsClient, url: str) -> None:
    with pytest.raises(NotAuthorizedError, match="not at an allowed host"):
        await mona.create(spec("true", callback=url))


async def test_jobs_of_psik_are_told_by_psik(
    service: JobsService, prefix: Path, receiver: Receiver
) -> None:
    folder = prefix / "1795210993.191"
    folder.mkdir()
    (folder / "spec.json").write_text(told("true", receiver).model_dump_json())
    history.record(folder / "status.csv", 0, JobState.NEW, "{}")
    history.record(folder / "status.csv", 0, JobState.CANCELED)

    async def is_known() -> bool:
        return "1795210993.191" in service.supervisor.index.entries

    await eventually(is_known)
    assert not service.supervisor.index.entries["1795210993.191"].owes_callbacks
    assert receiver.got == []
