"""A rank in a job of a transfer: what it reports, and what it does with the replies."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Any

import pynng
import pytest
from fastapi import FastAPI
from tests.streamer.conftest import Start

from lclstream.core.ledger import Reply, Report, Tally
from lclstream.identity.authority import Authority
from lclstream.identity.web import WebService

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

EXIT_S = 60.0
Answer = Callable[[Report], Reply]


class Transfer:
    """Takes reports as the transfers service does."""

    def __init__(self, folder: Path, answer: Answer = lambda report: Reply()) -> None:
        authority = Authority.create(folder / "authority", "Test Authority")
        authority.issue_service(folder / "server", "transfers", ["127.0.0.1"])
        authority.issue_job("job:t1:producer").save(folder / "identity")
        self.reports: list[Report] = []
        app = FastAPI()

        @app.post("/v1/transfers/t1/reports")
        async def take(report: Report) -> Reply:
            self.reports.append(report)
            return answer(report)

        self.service = WebService(app, folder / "server")
        self._identity = folder / "identity"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LCLSTREAM_REPORT_URL": f"{self.service.url}/v1/transfers/t1/reports",
            "LCLSTREAM_IDENTITY": str(self._identity),
        }

    @property
    def final(self) -> Report:
        (found,) = [report for report in self.reports if report.final]
        assert found is self.reports[-1]
        return found


async def ended(process: Popen[str]) -> str:
    # A pool of its own, whose thread ends with it.
    with ThreadPoolExecutor(1) as pool:
        wait = partial(process.communicate, timeout=EXIT_S)
        _, log = await asyncio.get_running_loop().run_in_executor(pool, wait)
    return log


def pushing(document: dict[str, Any], pull: pynng.Pull0, **options: Any) -> dict[str, Any]:
    pull.listen("tcp://127.0.0.1:0")
    url = f"tcp://{pull.listeners[0].local_address}"
    handler = {"type": "BinaryDataStreamingDataHandler", "urls": [url], "library": "nng"}
    return document | {"data_handlers": [handler | options]}


async def test_the_final_report_balances_with_the_receiver(
    document: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    document["event_source"] |= {"missing_frames": 0.2, "rate_hz": 20}
    document["skip_incomplete_events"] = True
    transfer = Transfer(tmp_path)
    with pynng.Pull0(recv_timeout=30_000) as pull:
        async with transfer.service:
            process = start(pushing(document, pull), **transfer.environment)
            log = await ended(process)
        assert process.returncode == 0, log
        final = transfer.final
        assert final.sent is not None
        received = Tally()
        for _ in range(final.sent.messages):
            received.add(await pull.arecv())
    assert final.ok
    assert final.hop == "producer"
    assert final.peer.startswith("rank-0@")
    assert {report.peer for report in transfer.reports} == {final.peer}
    assert len(transfer.reports) > 2
    assert (received.bytes, f"{received.digest:016x}") == (final.sent.bytes, final.sent.digest)
    assert final.sent.events == 20 - int(final.stats["events_skipped"])
    assert final.sent.events < 20
    assert final.stats["events_read"] == 20
    assert float(final.stats["events_per_s"]) > 0


async def test_a_failing_rank_says_so_in_its_final_report(
    document: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    transfer = Transfer(tmp_path)
    document["data_sources"]["frame"]["name"] = "jungfrua"
    async with transfer.service:
        process = start(document, **transfer.environment)
        await ended(process)
    assert process.returncode == 2
    assert not transfer.final.ok
    assert transfer.final.error == (
        "the source has no detector or variable 'jungfrua' (did you mean 'jungfrau'?)"
    )


async def test_drain_ends_properly_with_what_was_read(
    document: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    document["event_source"] |= {"events": 1_000_000, "rate_hz": 200}

    def drain_once_it_runs(report: Report) -> Reply:
        running = report.sent is not None and report.sent.messages > 3
        return Reply(command="drain", reason="run ended") if running else Reply()

    transfer = Transfer(tmp_path, drain_once_it_runs)
    async with transfer.service:
        process = start(document, **transfer.environment)
        log = await ended(process)
    assert process.returncode == 0, log
    assert transfer.final.ok
    assert transfer.final.stats["ended_early"] == "run ended"
    assert transfer.final.sent is not None
    assert 3 < transfer.final.sent.events < 1_000_000
    assert transfer.final.sent.events == transfer.final.stats["events_read"]


async def test_stop_ends_at_once_though_nobody_takes_anything(
    document: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    document["event_source"] |= {"events": 1_000_000, "shape": [512, 512]}
    before: list[int] = []

    def stop_once_it_hangs(report: Report) -> Reply:
        read = int(report.stats["events_read"])
        hangs = read > 5 and before[-4:] == [read] * 4
        before.append(read)
        return Reply(command="stop", reason="canceled") if hangs else Reply()

    transfer = Transfer(tmp_path, stop_once_it_hangs)
    with pynng.Pull0(recv_buffer_size=1) as pull:
        async with transfer.service:
            process = start(pushing(document, pull), **transfer.environment)
            log = await ended(process)
    assert process.returncode == 1, log
    assert "messages thrown away: canceled" in log
    assert not transfer.final.ok
