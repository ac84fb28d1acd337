"""The service with everything real: mTLS, jobs, buffer, streamer, plain NNG consumers."""

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest
from tests.transfers.world import (
    Service,
    World,
    counts,
    internal,
    paced,
    pull_all,
    wait_end,
    wait_for,
    wait_phase,
)

from lclstream.core.errors import BackendError, ConflictError, InvalidConfigError, NotFoundError
from lclstream.core.ledger import Report
from lclstream.identity.client import sync_client
from lclstream.jobs.states import JobState
from lclstream.transfers.client import AsyncTransfersClient, TransfersClient
from lclstream.transfers.states import Phase

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def mona(service: Service) -> Iterator[TransfersClient]:
    with service.client() as client:
        yield client


def test_old_client_with_a_plain_consumer(service: Service, mona: TransfersClient) -> None:
    with sync_client(service.world.identity("mona"), service.url) as http:
        answer = http.post("/v1/transfers/?user=root", json=internal(), timeout=60).json()
    assert answer["url"].startswith("tcp://127.0.0.1:")
    assert answer["user"] == "uid:mona"
    assert {"time", "jobndx", "state", "info", "id", "url", "user"} <= set(answer)
    received = pull_all(answer["url"], 10)
    assert all(message.startswith(b"\x89HDF") for message in received)
    info = wait_end(mona, answer["id"])
    assert (info.phase, info.reason) == (Phase.COMPLETED, "")
    assert info.ledger.balanced is True
    assert counts(info) == {"producers.sent": 10, "buffer.received": 10, "buffer.sent": 10}
    assert info.ledger.hops[0].tally.events == 50
    assert (info.metrics.recvd, info.metrics.sent, info.metrics.buffered) == (10, 10, 0)
    states = [(entry.client, entry.state) for entry in info.log if entry.client == "producer"]
    assert [state for _, state in states] == [
        JobState.NEW,
        JobState.QUEUED,
        JobState.ACTIVE,
        JobState.COMPLETED,
    ]
    assert service.job_processes(info.id) == []


@pytest.mark.parametrize("delivery", ["fast", "safe"])
def test_held_transfer_with_ranks_and_consumer_jobs(
    service: Service, mona: TransfersClient, delivery: str
) -> None:
    request = {
        "delivery": delivery,
        "streamer": internal(60),
        "experiment": "mfx101332224",
        "run": 42,
        "producers": 3,
        "hold": True,
    }
    key = f"dag-run-{delivery}"
    status = mona.create(request, key=key)
    assert (status.phase, status.url) == (Phase.REQUESTED, "")
    assert mona.create(request, key=key).id == status.id
    script = 'echo "it\'s ${HOME:+set} {} {url} `echo ok`"\nexec lclstream pull -q > data.tar\n'
    consumers = {"role": "consumer", "name": "pull", "script": script, "count": 2}
    # In this order: producers and consumers wait until the buffer listens.
    mona.start(status.id, consumers)
    mona.start(status.id, {"role": "producer"})
    mona.start(status.id, {"role": "buffer"})
    mona.start(status.id, consumers)
    info = wait_end(mona, status.id)
    assert (info.phase, info.reason) == (Phase.COMPLETED, "")
    assert info.ledger.balanced is True
    assert list(counts(info).values()) == [12, 12, 12, 12]
    assert [hop.peers for hop in info.ledger.hops] == [3, 1, 1, 2]
    digests = {hop.tally.digest for hop in info.ledger.hops}
    # A buffer that may splice does not look into what passes.
    assert len(digests - {""}) == 1
    assert ("" in digests) == (delivery == "fast")
    assert (info.experiment, info.run) == ("mfx101332224", 42)
    assert len(info.jobs) == len(service.job_folders(info.id)) == 4
    jobid = next(job.jobid for job in info.jobs if job.role == "consumer")
    assert mona.logs(info.id, jobid)["stdout.1"] == "it's set {} {url} ok\n"
    with pytest.raises(NotFoundError, match="Job not found"):
        mona.logs(info.id, "1.0")


def test_consumer_that_comes_after_the_producer_gets_everything(mona: TransfersClient) -> None:
    number = mona.create({"streamer": internal()}).id
    info = wait_phase(mona, number, Phase.DRAINING)
    assert len(pull_all(info.url, 10)) == 10
    assert wait_end(mona, number).phase is Phase.COMPLETED


def test_consumer_that_never_comes(service: Service, mona: TransfersClient) -> None:
    number = mona.create({"streamer": internal(), "limits": {"drain_s": 2}}).id
    info = wait_end(mona, number)
    assert info.phase is Phase.FAILED
    assert info.reason.startswith("drain: not done after 2 s, waiting for buffer; ")
    assert "fewer than buffer.received (0 of 10)" in info.reason
    assert info.ledger.balanced is False
    assert counts(info) == {"producers.sent": 10, "buffer.received": 10, "buffer.sent": 0}
    assert service.job_processes(number) == []


def test_buffer_that_ends_with_3(service: Service, mona: TransfersClient) -> None:
    number = mona.create({"streamer": internal(), "site": "broken"}).id
    info = wait_end(mona, number)
    assert (info.phase, info.reason) == (Phase.FAILED, "buffer failed: 3")
    assert [(job.role, job.info) for job in info.jobs] == [
        ("buffer", "3"),
        ("producer", "never submitted"),
    ]
    assert len(service.job_folders(number)) == 1


def test_producer_that_crashes_and_what_it_sent_is_delivered(mona: TransfersClient) -> None:
    number = mona.create({"streamer": internal(), "site": "crashing"}).id
    info = wait_for(mona, number, lambda seen: bool(seen.url), "listening")
    assert pull_all(info.url, 7) == [b"message %d" % each for each in range(7)]
    info = wait_end(mona, number)
    assert (info.phase, info.reason) == (Phase.FAILED, "producer failed: 7")
    assert list(counts(info).values()) == [7, 7, 7]


def test_delete_twice_ends_everything(service: Service, mona: TransfersClient) -> None:
    number = mona.create({"streamer": paced()}).id
    wait_phase(mona, number, Phase.STREAMING)
    began = time.monotonic()
    mona.cancel(number)
    mona.cancel(number)
    info = wait_end(mona, number)
    assert (info.phase, info.reason) == (Phase.CANCELED, "canceled by uid:mona")
    assert time.monotonic() - began < 15
    assert service.job_processes(number) == []
    mona.cancel(number)
    with pytest.raises(ConflictError, match="cannot drain in state 'canceled'"):
        mona.drain(number)
    with pytest.raises(ConflictError, match="cannot start a consumer in state 'canceled'"):
        mona.start(number, {"role": "consumer", "script": "true"})


def test_drain_delivers_what_was_read_and_completes(mona: TransfersClient) -> None:
    number = mona.create({"streamer": paced(), "hold": True}).id
    mona.start(number, {"role": "producer"})
    mona.start(number, {"role": "consumer", "script": "exec lclstream pull -q > data.tar\n"})
    wait_for(mona, number, lambda info: counts(info)["buffer.sent"] > 2, "moving")
    mona.drain(number)
    info = wait_end(mona, number)
    assert (info.phase, info.reason) == (Phase.COMPLETED, "")
    assert len(set(counts(info).values())) == 1
    assert len(info.ledger.hops) == 4


def test_delete_while_draining(mona: TransfersClient) -> None:
    number = mona.create({"streamer": internal()}).id
    wait_phase(mona, number, Phase.DRAINING)
    mona.cancel(number, now=True)
    info = wait_end(mona, number)
    assert info.phase is Phase.CANCELED
    assert counts(info)["buffer.sent"] == 0


def test_lease_that_is_not_renewed(service: Service, mona: TransfersClient) -> None:
    number = mona.create({"streamer": paced()}).id
    mona.lease(number, holder="run-1", generation=1, ttl_s=60)
    with pytest.raises(ConflictError, match="held by 'run-1'"):
        mona.lease(number, holder="run-2", generation=1)
    wait_phase(mona, number, Phase.STREAMING)
    info = mona.lease(number, holder="run-1", generation=1, ttl_s=1)
    assert info.lease is not None
    info = wait_end(mona, number)
    assert info.phase is Phase.CANCELED
    assert info.reason == "lease: that of run-1 (generation 1) has lapsed"
    assert service.job_processes(number) == []


def test_start_timer(mona: TransfersClient) -> None:
    number = mona.create({"streamer": internal(), "site": "stuck", "limits": {"start_s": 2}}).id
    info = wait_end(mona, number)
    assert (info.phase, info.reason) == (
        Phase.FAILED,
        "start: the buffer does not listen after 2 s",
    )


def test_site_that_does_not_answer(mona: TransfersClient) -> None:
    number = mona.create({"streamer": internal(), "site": "away"}).id
    wait_phase(mona, number, Phase.STARTING)
    began = time.monotonic()
    mona.cancel(number)
    info = wait_end(mona, number)
    assert info.phase is Phase.CANCELED
    assert "not seen to end within 6 s" in info.reason
    assert time.monotonic() - began < 20


def test_others_see_nothing_and_administrators_everything(service: Service) -> None:
    raw = sync_client(service.world.identity("otto"), service.url)
    with service.client("mona") as mona, service.client("otto") as otto, raw as http:
        number = mona.create({"streamer": internal(), "hold": True}).id
        attempts: list[Callable[[], object]] = [
            lambda: otto.get(number),
            lambda: otto.cancel(number),
            lambda: otto.drain(number),
            lambda: otto.start(number, {"role": "buffer"}),
            lambda: otto.lease(number, holder="x", generation=9),
            lambda: otto.logs(number, "1.0"),
            lambda: http.get(f"/v1/transfers/{number}?user=uid:mona"),
        ]
        for attempt in attempts:
            with pytest.raises(NotFoundError, match="Transfer is not active"):
                attempt()
        assert number not in [each.id for each in otto.list()]
        assert number in [each.id for each in mona.list(final=False)]
        with service.client("admin") as admin:
            assert number in [each.id for each in admin.list()]
            admin.cancel(number)
        assert wait_end(mona, number).reason == "canceled by uid:admin"
        assert number not in [each.id for each in mona.list(final=False)]


def test_bad_requests_name_every_fault(mona: TransfersClient) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        mona.create({"streamer": {**internal(), "event_source": {"type": "Nope"}}, "producer": 3})
    assert "streamer.event_source" in str(caught.value)
    assert "(did you mean 'producers'?)" in str(caught.value)
    with pytest.raises(InvalidConfigError, match=r"no site is named 'god' \(did you mean 'good'"):
        mona.create({"streamer": internal(), "site": "god"})
    with pytest.raises(InvalidConfigError, match="site 'crashing' has no launcher"):
        mona.create({"streamer": internal(), "site": "crashing", "producers": 2})


def test_long_poll(mona: TransfersClient) -> None:
    info = mona.get(mona.create({"streamer": internal(), "hold": True}).id)
    began = time.monotonic()
    assert mona.wait(info.id, info.version, 0.5).version == info.version
    assert 0.4 < time.monotonic() - began < 5
    assert mona.wait(info.id, info.version - 1, 30).version == info.version
    mona.cancel(info.id)
    assert mona.wait(info.id, info.version, 30).phase is Phase.CANCELED
    assert time.monotonic() - began < 10


@pytest.mark.anyio
async def test_asynchronous_client(service: Service) -> None:
    async with AsyncTransfersClient(service.url, service.world.identity("mona")) as mona:
        status = await mona.create({"streamer": internal(), "hold": True}, key="async")
        info = await mona.lease(status.id, holder="me", generation=1)
        assert info.lease is not None
        assert status.id in [each.id for each in await mona.list(limit=5)]
        with pytest.raises(ConflictError, match="cannot drain in state 'requested'"):
            await mona.drain(status.id)
        with pytest.raises(NotFoundError):
            await mona.logs(status.id, "1.0")
        report = Report(hop="consumer", peer="laptop")
        assert (await mona.report(status.id, report)).command == "continue"
        waiting = asyncio.create_task(mona.wait(status.id, info.version, 30))
        await mona.cancel(status.id, now=True)
        assert (await waiting).phase is Phase.CANCELED
        with pytest.raises(ConflictError):
            await mona.start(status.id, {"role": "buffer"})
        assert (await mona.get(status.id)).reason == "canceled by uid:mona"


def test_bare_request_whose_buffer_does_not_come_up(world: World) -> None:
    broken = world.script("broken-at-once", "#!/bin/sh\nexit 3\n")
    sites = [world.site("broken", lclstream=broken)]
    with (
        world.service("bare", sites) as other,
        other.client() as mona,
        sync_client(world.identity("mona"), other.url) as http,
    ):
        with pytest.raises(BackendError, match=r"^transfer 1 did not start: buffer failed: 3$"):
            http.post("/v1/transfers", json=internal(), timeout=60)
        assert mona.get(1).phase is Phase.FAILED
