"""The life of a service, as an object and as a process."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable

import pytest

from lclstream.core.errors import InvalidConfigError
from lclstream.core.lifecycle import Service


class Recorder(Service):
    def __init__(self, work: list[Callable[[], Awaitable[None]]]) -> None:
        super().__init__(work)
        self.seen: list[str] = []

    async def started(self) -> None:
        self.seen.append("started")

    async def stopped(self) -> None:
        self.seen.append("stopped")


@pytest.mark.anyio
async def test_work_ends_last_first_and_resources_after_it() -> None:
    ended: list[str] = []

    def work(name: str) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(name)

        return run

    async with Recorder([work("first"), work("second")]) as service:
        await asyncio.sleep(0)
        assert service.seen == ["started"]
    assert ended == ["second", "first"]
    assert service.seen == ["started", "stopped"]
    service.close()
    await service.wait_closed(1)


@pytest.mark.anyio
async def test_task_that_dies_ends_the_service_with_its_error() -> None:
    async def dies() -> None:
        raise InvalidConfigError("no such queue")

    async def lives() -> None:
        await asyncio.Event().wait()

    service = Recorder([dies, lives])
    with pytest.raises(ExceptionGroup) as caught:
        async with service:
            await service.wait_closed(5)
    assert caught.group_contains(InvalidConfigError)
    assert service.seen == ["started", "stopped"]


@pytest.mark.anyio
async def test_failed_start_releases_what_was_acquired() -> None:
    class Fails(Recorder):
        async def started(self) -> None:
            raise InvalidConfigError("port is taken")

    service = Fails([])
    with pytest.raises(InvalidConfigError):
        await service.__aenter__()
    assert service.seen == ["stopped"]


PROGRAM = """
import asyncio, sys
from lclstream.core.errors import IdentityError, InvalidConfigError
from lclstream.core.lifecycle import Service, serve

class Main(Service):
    async def started(self):
        if sys.argv[1] == "misconfigured":
            raise InvalidConfigError("no such field")
        if sys.argv[1] == "no identity":
            raise IdentityError("no id.key in identity")
        print("ready", flush=True)

async def die():
    raise RuntimeError("broken")

sys.exit(asyncio.run(serve(Main([die] if sys.argv[1] == "dies" else []))))
"""


@pytest.mark.parametrize(
    ("mode", "code", "event"),
    [
        ("dies", 1, "service_died"),
        ("misconfigured", 2, "service_misconfigured"),
        ("no identity", 2, "service_misconfigured"),
    ],
)
def test_exit_code_says_whose_fault_it_was(mode: str, code: int, event: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == code
    assert event in ended.stderr
    assert ("Traceback" in ended.stderr) is (code == 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_is_success(number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "runs"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, number)
        assert process.wait(timeout=10) == 0
