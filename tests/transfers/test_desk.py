"""The desk with a store, and sites that are never reached."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.transfers.test_runner import SITE, FakeJobs
from tests.transfers.world import internal

from lclstream.identity.authority import Authority
from lclstream.identity.caller import Caller
from lclstream.transfers import desk as desk_module
from lclstream.transfers.actions import Site
from lclstream.transfers.config import TransfersConfig
from lclstream.transfers.desk import Desk, Page
from lclstream.transfers.models import TransferRequest
from lclstream.transfers.runners import Runners
from lclstream.transfers.specs import Specs
from lclstream.transfers.states import Phase
from lclstream.transfers.store import Store, StoreThread

MONA = Caller("uid:mona")

pytestmark = pytest.mark.anyio


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    authority = Authority.create(tmp_path / "authority", "Test")
    specs = Specs(lambda: "https://me:1", tmp_path, authority, b"key")
    config = TransfersConfig(
        identity=tmp_path, authority=tmp_path / "authority", database="t.db", sites=[SITE]
    )
    async with StoreThread(str(tmp_path / "t.db")) as store:
        sites = {"here": Site(config=SITE, jobs=FakeJobs())}
        made = Desk(config, sites, specs, store, authority.name)
        running = asyncio.create_task(made.runners.run())
        yield made
        running.cancel()
        await asyncio.wait([running])


def request(**changes: Any) -> TransferRequest:
    return TransferRequest.model_validate({"streamer": internal(), **changes})


async def test_a_transfer_begins_with_one_change(desk: Desk) -> None:
    status = await desk.create(MONA, request(), key=None, wait=False)
    causes = await desk._store.do(Store.causes, status.id)
    assert [cause["event"] for cause in causes][:2] == ["Requested", "StartAsked"]
    assert causes[1]["role"] == "producer"
    info = await desk.info(MONA, status.id)
    assert [job.role.value for job in info.jobs] == ["buffer", "producer"]


async def test_asking_again_begins_what_was_not_begun(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(runners: Runners, number: int) -> None:
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(Runners, "begin", lost)
        with pytest.raises(ConnectionError):
            await desk.create(MONA, request(), key="once", wait=False)
    again = await desk.create(MONA, request(), key="once", wait=False)
    assert (again.id, again.phase) == (1, Phase.STARTING)
    held = await desk.create(MONA, request(hold=True), key="held", wait=False)
    assert held.phase is Phase.REQUESTED
    assert (await desk.create(MONA, request(), key="held", wait=False)).phase is Phase.REQUESTED


async def test_a_list_comes_in_parts(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "LISTED_AT_ONCE", 2)
    for _ in range(7):
        await desk.create(MONA, request(hold=True), key=None, wait=False)
    for number in (2, 5):
        await desk.cancel(MONA, number, at_once=True)

    async def ids(**page: Any) -> list[int]:
        return [each.id for each in await desk.list(MONA, Page(**page))]

    assert await ids() == [7, 6, 4, 3, 1]
    assert await ids(final=True) == [7, 6, 5, 4, 3, 2, 1]
    assert await ids(index=1, limit=3) == [6, 4, 3]
    assert await ids(index=4, final=True) == [3, 2, 1]
    assert await ids(limit=0) == []
    assert await ids(index=9) == []
    assert await desk.list(Caller("uid:otto"), Page(final=True)) == []
