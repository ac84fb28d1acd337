"""Waiting for what happens in other processes, with a deadline and never a fixed time."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from lclstream.jobs.models import JobSpec

DEADLINE_S = 15.0
LOOK_S = 0.02


async def eventually(
    condition: Callable[[], Awaitable[bool]], timeout_s: float = DEADLINE_S
) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(timeout_s):
        while True:
            if await condition():
                return
            await asyncio.sleep(LOOK_S)


def soon(condition: Callable[[], bool], timeout_s: float = DEADLINE_S) -> None:
    """Wait until a condition holds, without an event loop."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(LOOK_S)


def spec(script: str, **fields: object) -> JobSpec:
    """Return what a caller asks for."""
    return JobSpec.model_validate({"script": script, **fields})
