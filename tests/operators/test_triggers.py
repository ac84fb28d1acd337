"""The trigger against the real service: one event, whatever happens, and a lease that holds."""

import json
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from airflow.serialization.encoders import encode_trigger
from tests.operators.world import World, conf, wait_until

from lclstream.operators import triggers
from lclstream.operators.triggers import SuperviseTrigger
from lclstream.transfers.client import AsyncTransfersClient, TransfersClient
from lclstream.transfers.models import TransferInfo, TransferRequest
from lclstream.transfers.states import Phase

HOLDER = "stream/arp:tst000001:r1"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def connection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LCLSTREAM", json.dumps(world.connection))


@pytest.fixture
def client(world: World) -> Iterator[TransfersClient]:
    with world.client() as opened:
        yield opened


@pytest.fixture
def transfer(client: TransfersClient, request: pytest.FixtureRequest) -> Iterator[int]:
    """Return the id of a transfer that is reserved, not started."""
    streamer = conf(1)["parameters"]["streamer"]
    wanted = TransferRequest.model_validate({"streamer": streamer, "hold": True})
    made = client.create(wanted, key=request.node.nodeid)
    yield made.id
    if not client.get(made.id).is_final:
        client.cancel(made.id, now=True)


def trigger(transfer: int, **changes: Any) -> SuperviseTrigger:
    arguments: dict[str, Any] = {
        "lclstream_conn_id": "lclstream",
        "transfer": transfer,
        "holder": HOLDER,
        "generation": 1,
        "deadline": time.time() + 30,
        "lease_s": 60.0,
    }
    return SuperviseTrigger(**arguments | changes)


async def events(watch: SuperviseTrigger) -> list[dict[str, Any]]:
    return [event.payload async for event in watch.run()]


def test_what_is_stored_makes_the_same_trigger_again() -> None:
    path, kwargs = trigger(7).serialize()
    module, _, name = path.rpartition(".")
    again = getattr(import_module(module), name)(**json.loads(json.dumps(kwargs)))
    assert again.serialize() == (path, kwargs)
    assert encode_trigger(again)["kwargs"]


def test_what_is_stored_holds_no_secret(world: World) -> None:
    _, kwargs = trigger(7).serialize()
    text = json.dumps(kwargs)
    assert str(world.airflow) not in text
    assert "PRIVATE" not in text


@pytest.mark.anyio
async def test_the_end_of_the_transfer_is_one_event(client: TransfersClient, transfer: int) -> None:
    client.cancel(transfer, now=True)
    [event] = await events(trigger(transfer))
    assert (event["status"], event["phase"]) == ("ended", "canceled")


@pytest.mark.anyio
async def test_the_deadline_is_an_event_and_the_lease_was_renewed(
    client: TransfersClient, transfer: int
) -> None:
    [event] = await events(trigger(transfer, deadline=time.time() + 1.0))
    assert event["status"] == "deadline"
    lease = client.get(transfer).lease
    assert lease is not None
    assert (lease.holder, lease.generation) == (HOLDER, 1)


@pytest.mark.anyio
async def test_a_clock_that_is_set_back_does_not_end_the_renewals(
    client: TransfersClient, transfer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the time of day finds it an hour earlier."""
    renewals = 0
    real_lease, real_time, back_s = AsyncTransfersClient.lease, time.time, 0.0

    def stepping() -> float:
        nonlocal back_s
        back_s += 3600.0
        return real_time() - back_s

    async def counted(self: AsyncTransfersClient, *args: Any, **named: Any) -> TransferInfo:
        nonlocal renewals
        renewals += 1
        if renewals == 3:
            await self.cancel(transfer, now=True)
        return await real_lease(self, *args, **named)

    monkeypatch.setattr(AsyncTransfersClient, "lease", counted)
    monkeypatch.setattr(triggers, "WAIT_S", 0.1)
    watch = trigger(transfer, lease_s=1.0)
    monkeypatch.setattr(time, "time", stepping)
    [event] = await events(watch)
    assert (event["status"], renewals) == ("ended", 3)


@pytest.mark.anyio
async def test_a_long_lease_that_an_older_try_shortens_late_is_renewed_in_time(
    client: TransfersClient, transfer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is killed when the new try has been deferred already."""
    monkeypatch.setattr(triggers, "TAKE_OVER_S", 2.0)
    monkeypatch.setattr(triggers, "WAIT_S", 0.1)
    client.lease(transfer, holder=HOLDER, generation=1, ttl_s=600)
    late = threading.Timer(
        0.5, client.lease, (transfer,), {"holder": HOLDER, "generation": 1, "ttl_s": 2.0}
    )
    late.start()
    [event] = await events(trigger(transfer, deadline=time.time() + 4.0, lease_s=600.0))
    late.join()
    assert event["status"] == "deadline"
    assert not client.get(transfer).is_final


@pytest.mark.anyio
async def test_a_newer_holder_ends_the_older_watch(client: TransfersClient, transfer: int) -> None:
    client.lease(transfer, holder="another run", generation=2, ttl_s=60)
    [event] = await events(trigger(transfer))
    assert event["status"] == "superseded"
    assert "another run" in event["reason"]


@pytest.mark.anyio
async def test_an_unknown_transfer_is_an_event() -> None:
    [event] = await events(trigger(999_999))
    assert event["status"] == "lost"


@pytest.mark.anyio
async def test_a_service_that_stays_away_is_an_event(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = world.connection | {"host": "https://127.0.0.1:1"}
    monkeypatch.setenv("AIRFLOW_CONN_LCLSTREAM", json.dumps(gone))
    monkeypatch.setattr(triggers, "OUTAGE_S", 0.2)
    monkeypatch.setattr(triggers, "RETRY_S", 0.1)
    [event] = await events(trigger(1))
    assert event["status"] == "lost"
    assert "UnavailableError" in event["reason"]


@pytest.mark.anyio
async def test_a_killed_task_gives_the_lease_back(client: TransfersClient, transfer: int) -> None:
    client.lease(transfer, holder=HOLDER, generation=1, ttl_s=600)
    await trigger(transfer).on_kill()
    wait_until(lambda: client.get(transfer).phase is Phase.CANCELED, "it is canceled")


@pytest.mark.anyio
async def test_an_old_trigger_cannot_end_what_a_newer_one_watches(
    client: TransfersClient, transfer: int
) -> None:
    client.lease(transfer, holder=HOLDER, generation=2, ttl_s=600)
    await trigger(transfer, generation=1).on_kill()
    lease = client.get(transfer).lease
    assert lease is not None
    assert lease.expires is not None
    assert lease.expires > time.time() + 500
