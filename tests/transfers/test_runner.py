"""A runner with a jobs service that misbehaves, behind the `Jobs` protocol: no callbacks ever."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tests.transfers.world import internal

from lclstream.core.errors import NotFoundError, SubmitError, UnavailableError
from lclstream.core.ledger import Report, TallyModel
from lclstream.identity.authority import Authority
from lclstream.jobs.models import JobSpec, JobStepInfo
from lclstream.jobs.states import JobState
from lclstream.transfers import runner as runner_module
from lclstream.transfers.actions import Performer, Site
from lclstream.transfers.config import SiteConfig
from lclstream.transfers.events import CancelAsked, Reported, Resumed, StartAsked
from lclstream.transfers.models import TransferRequest
from lclstream.transfers.record import Limits, Role, Transfer
from lclstream.transfers.runner import Runner
from lclstream.transfers.specs import Specs
from lclstream.transfers.states import Phase, Timer
from lclstream.transfers.store import Store, StoredStart, StoreThread

pytestmark = pytest.mark.anyio

FULL = TallyModel(messages=3, bytes=30)
LIMITS = Limits(start_s=20, idle_s=20, drain_s=20, total_s=60, flush_s=1, stop_s=2, settle_s=1)
SITE = SiteConfig(name="here", jobs="https://h:1", launcher="mpiexec -n {ranks}")


@dataclass
class FakeJobs:
    """Keeps jobs in memory; `faults` are raised by the next calls, one each."""

    jobs: dict[str, list[JobStepInfo]] = field(default_factory=dict)
    specs: dict[str, JobSpec] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    starts: list[str] = field(default_factory=list)
    cancels: list[str] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)
    answer_lost: bool = False
    """Whether the next creation is done, and its answer lost."""
    started: asyncio.Event = field(default_factory=asyncio.Event)
    obeys: bool = True
    """Whether a canceled job ends."""

    def fail(self) -> None:
        if self.faults:
            raise self.faults.pop(0)

    async def create(self, spec: JobSpec, *, submit: bool = False, key: str | None = None) -> str:
        self.fail()
        assert key is not None
        assert not submit
        if key not in self.keys:
            self.keys[key] = f"{len(self.keys) + 1}.000"
            self.specs[self.keys[key]] = spec
            self.jobs[self.keys[key]] = []
            self.moves(spec.name or "", JobState.NEW, 0)
        if self.answer_lost:
            self.answer_lost = False
            raise UnavailableError("the answer was lost")
        return self.keys[key]

    async def upload(self, jobid: str, files: Mapping[str, bytes]) -> None:
        self.fail()
        self.files[jobid] = dict(files)

    async def start(self, jobid: str, run: int | None = 1) -> None:
        self.fail()
        assert jobid in self.files
        self.starts.append(jobid)
        self.started.set()
        self.moves(self.specs[jobid].name or "", JobState.QUEUED, 1)

    async def history(self, jobid: str) -> list[JobStepInfo]:
        self.fail()
        if jobid not in self.jobs:
            raise NotFoundError("Job not found")
        return list(self.jobs[jobid])

    async def cancel(self, jobid: str) -> None:
        self.fail()
        self.cancels.append(jobid)
        if self.obeys:
            self.moves(self.specs[jobid].name or "", JobState.CANCELED, 0)

    async def find(self, key: str) -> str | None:
        self.fail()
        return self.keys.get(key)

    async def logs(self, jobid: str) -> dict[str, str]:
        return {"stdout.1": jobid}

    def moves(self, name: str, state: JobState, ndx: int = 1) -> None:
        """Let a job go to a state; nobody is told."""
        jobid = next(number for number, spec in self.specs.items() if spec.name == name)
        step = JobStepInfo(jobid=jobid, name=name, updated=1.0, jobndx=ndx, state=state, info="")
        self.jobs[jobid].append(step)


@dataclass
class Bench:
    """A store, a fake site, and runners on them."""

    store: StoreThread
    jobs: FakeJobs
    specs: Specs

    async def new(self, **changes: Any) -> int:
        request = TransferRequest.model_validate(
            {"streamer": internal(), "site": "here", **changes}
        )
        transfer, _ = await self.store.do(
            Store.create,
            lambda number: Transfer(
                id=number, owner="uid:mona", created=0.0, buffer_site="here", limits=LIMITS,
                ranks=request.producers, timers={Timer.TOTAL: 2e10},
            ),
            request.model_dump(mode="json"),
            None,
        )  # fmt: skip
        return transfer.id

    @asynccontextmanager
    async def runner(self, number: int) -> AsyncIterator[Runner]:
        """Run a transfer until the context ends, as if the service were killed then."""
        stored = await self.store.do(Store.load, number)
        assert stored is not None
        site = Site(config=SITE, jobs=self.jobs)
        performer = Performer(stored.request, {"here": site}, self.specs, self.store)
        runner = Runner(stored, performer, self.store, poll_s=0.02)
        self.task = asyncio.create_task(runner.run())
        try:
            yield runner
        finally:
            self.task.cancel()
            await asyncio.wait([self.task])


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(runner_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(runner_module, "CANCEL_AGAIN_S", 0.1)
    authority = Authority.create(tmp_path / "authority", "Test")
    specs = Specs(lambda: "https://me:1", tmp_path, authority, b"key")
    async with StoreThread(str(tmp_path / "t.db")) as store:
        yield Bench(store, FakeJobs(), specs)


async def phase(runner: Runner, wanted: Phase) -> Transfer:
    """Wait until the transfer is in a phase."""
    async with asyncio.timeout(20):
        while runner.transfer.phase is not wanted:
            await runner.wait_news(runner.transfer.version, 1.0)
    return runner.transfer


async def known(bench: Bench, count: int) -> None:
    async with asyncio.timeout(20):
        while len(bench.jobs.starts) < count:
            await bench.jobs.started.wait()
            bench.jobs.started.clear()


async def report(runner: Runner, role: Role, *, final: bool = False, listens: bool = False) -> None:
    sent = Report(hop=role.value, peer="one", final=final, received=FULL, sent=FULL)
    event = Reported(role=role, peer="one", final=final)
    if listens:
        event = replace(event, push_url="tcp://h:1", pull_url="tcp://h:2")
    await runner.post(event, report=sent)


async def start_all(runner: Runner) -> None:
    await runner.post(StartAsked(role=Role.BUFFER, name="", site="here"))
    await runner.post(StartAsked(role=Role.PRODUCER, name="producer", site="here"))


async def test_without_any_callback(bench: Bench) -> None:
    number = await bench.new()
    names = [f"transfer-{number}-{role}-0" for role in ("buffer-buffer", "producer-producer")]
    async with bench.runner(number) as runner:
        await start_all(runner)
        await known(bench, 1)
        await report(runner, Role.BUFFER, listens=True)
        await known(bench, 2)
        bench.jobs.moves(names[1], JobState.ACTIVE)
        await phase(runner, Phase.STREAMING)
        await report(runner, Role.PRODUCER, final=True)
        bench.jobs.moves(names[1], JobState.COMPLETED)
        await phase(runner, Phase.DRAINING)
        await report(runner, Role.BUFFER, final=True, listens=True)
        bench.jobs.moves(names[0], JobState.ACTIVE)
        bench.jobs.moves(names[0], JobState.COMPLETED)
        await phase(runner, Phase.COMPLETED)
    assert bench.jobs.cancels == []
    assert await bench.store.do(Store.unfinished) == []


async def test_answers_that_are_lost_do_not_submit_twice(bench: Bench) -> None:
    number = await bench.new()
    bench.jobs.answer_lost = True
    bench.jobs.faults = [UnavailableError("down"), ValueError("not JSON"), TypeError("?")]
    async with bench.runner(number) as runner:
        await runner.post(StartAsked(role=Role.BUFFER, name="", site="here"))
        await known(bench, 1)
    assert len(bench.jobs.jobs) == len(bench.jobs.starts) == 1


@pytest.mark.parametrize("after", ["order", "create", "upload", "start"])
async def test_killed_during_a_submission(bench: Bench, after: str) -> None:
    number = await bench.new()
    reached, never = asyncio.Event(), asyncio.Event()
    calls = {name: getattr(bench.jobs, name) for name in ("create", "upload", "start")}

    async def hang(*arguments: Any, **named: Any) -> None:
        reached.set()
        await never.wait()

    async def do_and_hang(*arguments: Any, **named: Any) -> None:
        await calls[after](*arguments, **named)
        await hang()

    name = "create" if after == "order" else after
    setattr(bench.jobs, name, hang if after == "order" else do_and_hang)
    async with bench.runner(number) as runner:
        await runner.post(StartAsked(role=Role.BUFFER, name="", site="here"))
        await reached.wait()
    setattr(bench.jobs, name, calls[name])
    async with bench.runner(number) as runner:
        await runner.post(Resumed())
        await known(bench, 1)
        async with asyncio.timeout(10):
            while runner.transfer.jobs[0].state is not JobState.QUEUED:
                await runner.wait_news(runner.transfer.version, 1.0)
    assert len(bench.jobs.jobs) == len(bench.jobs.starts) == 1


async def test_killed_before_a_cancel_was_sent(bench: Bench) -> None:
    number = await bench.new()
    async with bench.runner(number) as runner:
        await runner.post(StartAsked(role=Role.BUFFER, name="", site="here"))
        await known(bench, 1)
        bench.jobs.faults = [UnavailableError("down")] * 3
        await runner.post(CancelAsked(reason="asked"))
    async with bench.runner(number) as runner:
        await phase(runner, Phase.CANCELED)
    assert set(bench.jobs.cancels) == {"1.000"}


async def test_refused_job_ends_the_transfer_with_the_reason(bench: Bench) -> None:
    number = await bench.new()
    bench.jobs.faults = [SubmitError("no such partition")]
    async with bench.runner(number) as runner:
        await runner.post(StartAsked(role=Role.BUFFER, name="", site="here"))
        ended = await phase(runner, Phase.FAILED)
    assert ended.reason == "buffer failed: no such partition"


async def test_canceled_while_its_site_is_away(bench: Bench) -> None:
    number = await bench.new()
    bench.jobs.faults = [UnavailableError("down")] * 20
    async with bench.runner(number) as runner:
        await runner.post(StartAsked(role=Role.BUFFER, name="", site="here"))
        await runner.post(CancelAsked(reason="asked"))
        await phase(runner, Phase.CANCELED)
    # The submission that was on its way was not made any more.
    assert bench.jobs.jobs == {}


async def test_cancel_that_does_not_show_is_sent_again_after_the_end(bench: Bench) -> None:
    number = await bench.new()
    bench.jobs.obeys = False
    async with bench.runner(number) as runner:
        await runner.post(StartAsked(role=Role.BUFFER, name="", site="here"))
        await known(bench, 1)
        await runner.post(CancelAsked(reason="asked"))
        ended = await phase(runner, Phase.CANCELED)
        assert ended.unseen == (f"transfer-{number}-buffer-buffer-0",)
        assert await bench.store.do(Store.unfinished) == [number]
        bench.jobs.obeys = True
        await asyncio.wait_for(bench.task, 10)
        assert await bench.store.do(Store.unfinished) == []
    assert len(bench.jobs.cancels) > 1


async def test_request_that_a_later_version_does_not_understand(bench: Bench) -> None:
    number = await bench.new()
    async with bench.runner(number) as runner:
        runner._performer._request = {"streamer": {}, "old": 1}
        await runner.post(StartAsked(role=Role.BUFFER, name="", site="here"))
        ended = await phase(runner, Phase.FAILED)
    assert ended.reason.startswith(f"buffer failed: request of {number}: ")


async def test_job_that_its_site_forgot(bench: Bench) -> None:
    number = await bench.new()
    async with bench.runner(number) as runner:
        await runner.post(StartAsked(role=Role.BUFFER, name="", site="here"))
        await known(bench, 1)
        bench.jobs.jobs.clear()
        ended = await phase(runner, Phase.FAILED)
    assert ended.reason == "buffer failed: its site does not know it any more"


async def test_jobs_are_made_as_their_roles_need(bench: Bench) -> None:
    number = await bench.new(producers=3)
    async with bench.runner(number) as runner:
        await start_all(runner)
        await known(bench, 1)
        await report(runner, Role.BUFFER, listens=True)
        await known(bench, 2)
    buffer, producer = bench.jobs.specs["1.000"], bench.jobs.specs["2.000"]
    assert buffer.callback == "https://me:1/v1/callback/forwarder"
    assert producer.callback == "https://me:1/v1/callback/producer"
    assert buffer.cb_secret is not None
    assert buffer.cb_secret != producer.cb_secret
    assert producer.script == (
        "#!/bin/bash\nexec mpiexec -n 3 python -m lclstream.streamer --config lclstreamer.json\n"
    )
    assert producer.resources.process_count == 3
    assert producer.environment["LCLSTREAM_URL"] == "tcp://h:1"
    assert producer.environment["LCLSTREAM_ROLE"] == "producer"
    files = bench.jobs.files["2.000"]
    assert set(files) == {
        "identity/id.crt",
        "identity/id.key",
        "identity/ca.crt",
        "lclstreamer.json",
    }
    assert b"tcp://127.0.0.1:1" not in files["lclstreamer.json"]
    assert b'"tcp://h:1"' in files["lclstreamer.json"]


async def test_resources_that_do_not_fit_together_are_refused_at_once(bench: Bench) -> None:
    number = await bench.new(producers=1)
    site = SITE.model_copy(update={"resources": {"processes_per_node": 2}})
    body = {"role": "consumer", "script": "echo", "resources": {"process_count": 4}}
    async with bench.runner(number) as runner:
        runner._performer._sites = {"here": Site(config=site, jobs=bench.jobs)}
        start = StoredStart(role=Role.CONSUMER, name="peaks", body=body)
        await runner.post(StartAsked(role=Role.CONSUMER, name="peaks", site="here"), start=start)
        await known(bench, 1)
        await report(runner, Role.BUFFER, listens=True)
        await phase(runner, Phase.FAILING)
        reason = runner.transfer.reason
    assert reason.startswith("consumer peaks-0 failed: resources of consumer peaks-0 at here: ")
    assert "process_count excludes" in reason


async def test_a_report_after_the_final_one_is_not_stored(bench: Bench) -> None:
    number = await bench.new()
    async with bench.runner(number) as runner:
        await start_all(runner)
        await report(runner, Role.PRODUCER, final=True)
        # It was sent before, and was held up on its way.
        await report(runner, Role.PRODUCER)
        await runner.post(CancelAsked(reason="asked"))
    stored = await bench.store.do(Store.load, number)
    assert stored is not None
    assert stored.ledger.unfinished(Role.PRODUCER) == []
    assert stored.ledger.finals(Role.PRODUCER) == 1


async def test_a_site_that_does_not_answer_is_asked_once_a_round(bench: Bench) -> None:
    number = await bench.new()
    async with bench.runner(number) as runner:
        await start_all(runner)
        await known(bench, 1)
        await report(runner, Role.BUFFER, listens=True)
        await known(bench, 2)
    stored = await bench.store.do(Store.load, number)
    assert stored is not None
    assert all(job.jobid for job in stored.transfer.jobs)
    site = Site(config=SITE, jobs=bench.jobs)
    performer = Performer(stored.request, {"here": site}, bench.specs, bench.store)
    bench.jobs.faults = [UnavailableError("no answer")] * 3
    await Runner(stored, performer, bench.store, poll_s=1.0)._look_at_jobs()
    assert len(bench.jobs.faults) == 2
