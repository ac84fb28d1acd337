"""Trying again, several at a time."""

import asyncio

import pytest

from lclstream.core.errors import UnavailableError
from lclstream.elog.retries import GivenUpError, Retries

pytestmark = pytest.mark.anyio


async def test_a_service_is_in_trouble_until_nobody_waits_for_it() -> None:
    retries = Retries(first_s=0.01, most_s=0.01, unknown_s=1.0)
    down, asked = True, asyncio.Event()

    async def ask() -> str:
        asked.set()
        if down:
            raise UnavailableError("down")
        return "done"

    waiting = asyncio.create_task(retries.until_done("airflow", ask, lambda: False))
    async with asyncio.timeout(10):
        await asked.wait()
        with pytest.raises(GivenUpError):
            await retries.until_done("airflow", ask, lambda: retries.count > 4)
        assert retries.troubles == {"airflow": "down"}
        down = False
        assert await waiting == "done"
    assert retries.troubles == {}
