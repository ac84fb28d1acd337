"""Analysis jobs as consumers of a real transfer: jobs service, buffer, MPI ranks, ledger."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.analysis.simulated import SimulatedRun
from tests.transfers.world import Service, make_world, wait_end

from lclstream.analysis.results import merge_results, read_result
from lclstream.analysis.verify import missing, ranges
from lclstream.transfers.models import TransferInfo
from lclstream.transfers.states import Phase

pytestmark = pytest.mark.timeout(240)

EVENTS = 60


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    world = make_world(tmp_path_factory.mktemp("analysis"))
    site = world.site("site", launcher="mpiexec -launcher fork -n {ranks}")
    limits = {"start_s": 60.0, "idle_s": 60.0, "drain_s": 60.0, "total_s": 200.0, "flush_s": 5.0}
    try:
        with world.service("main", [site], limits=limits) as running:
            yield running
    finally:
        world.jobs.stop()


def stream(service: Service, run: SimulatedRun, script: str, consumers: int) -> TransferInfo:
    request = {
        "streamer": json.loads(run.config.read_text()),
        "experiment": "mfx1",
        "run": 7,
        "producers": 3,
        "hold": True,
    }
    with service.client() as mona:
        transfer = mona.create(request).id
        consumer = {"role": "consumer", "name": "analysis", "script": script, "count": consumers}
        mona.start(transfer, consumer)
        mona.start(transfer, {"role": "producer"})
        mona.start(transfer, {"role": "buffer"})
        while not (info := mona.get(transfer)).is_final:
            mona.wait(transfer, info.version, 5)
        return wait_end(mona, transfer)


def test_peaks_of_a_transfer(service: Service, tmp_path: Path) -> None:
    run = SimulatedRun(tmp_path / "stream.json", events=EVENTS, rate_hz=100)
    output = tmp_path / "results"
    info = stream(service, run, f"exec lclstream analyse peaks --output {output}\n", consumers=2)
    assert (info.phase, info.reason) == (Phase.COMPLETED, "")
    assert info.ledger.balanced is True
    received = info.ledger.hops[-1]
    assert (received.name, received.tally.events, received.peers) == (
        "consumers.received", EVENTS, 2,
    )  # fmt: skip
    merged = merge_results(output)
    assert merged.summary["complete"] is True
    assert merged.summary["events"] == EVENTS
    assert (merged.summary["duplicate_events"], merged.summary["gaps_in_index"]) == (0, 0)
    # What the analysis read is what the producers sent.
    assert merged.summary["digest"] == info.ledger.hops[0].tally.digest
    events = read_result(merged.result).events
    assert list(events["hit"].astype(bool)) == run.hits
    assert list(events["timestamp"]) == [event.timestamp for event in run.events]


def test_every_bit_of_a_transfer(service: Service, tmp_path: Path) -> None:
    run = SimulatedRun(tmp_path / "stream.json", events=EVENTS, missing_frames=0.1, field="raw.raw")
    output = tmp_path / "checked"
    script = f"exec lclstream analyse verify --config {run.config} --output {output} --record\n"
    info = stream(service, run, script, consumers=2)
    assert (info.phase, info.reason) == (Phase.COMPLETED, "")
    findings = [json.loads(path.read_text()) for path in output.glob("verify-*.json")]
    assert len(findings) == 2
    assert all(one["ok"] for one in findings)
    assert sum(one["verified"] for one in findings) == EVENTS
    assert missing(findings, EVENTS) == []
    seen = [set(range(first, last + 1)) for one in findings for first, last in one["indices"]]
    assert sum(map(len, seen)) == EVENTS
    assert ranges(set().union(*seen)) == [[0, EVENTS - 1]]
