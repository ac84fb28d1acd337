"""From a run event on a real broker to a balanced ledger over two SLURM clusters."""

import io
import json
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from tests.helpers.xtc2_runs import CAMERA, START, MadeEvent, camera_values, write_run
from tests.operators.outcome import assert_ends
from tests.operators.world import processes_of

from lclstream.analysis.recorder import INDEX
from lclstream.analysis.verify import missing
from lclstream.demo.beamline import DAG, Beamline
from lclstream.demo.progress import Progress
from lclstream.demo.run import play
from lclstream.demo.workflow import Source, from_file, parameters, simulated
from lclstream.streamer.sources.xtc2_file import Xtc2File
from lclstream.streamer.sources.xtc2_format import Service, later
from lclstream.transfers.models import TransferInfo

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

EVENTS = 2000
RANKS = 3
CONSUMERS = 2
MEGABYTE = 1_000_000
LEFT_TIMEOUT_S = 30.0


def quiet() -> Progress:
    return Progress(Console(file=io.StringIO()))


def small(events: int, rate_hz: float, experiment: str) -> Source:
    """A stream of 1 MB events that lasts long enough to be disturbed."""
    source = simulated(events, rate_hz=rate_hz, batch=1)
    source.streamer["event_source"]["shape"] = [512, 512]
    source.streamer["source_identifier"] = f"exp={experiment},run=1"
    return Source(
        experiment=experiment, run=None, streamer=source.streamer, description="test stream"
    )


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 180.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)
    return result


def begin(beamline: Beamline, source: Source, analysis: str) -> tuple[int, str, int]:
    """Begin a run and wait until messages flow; return run, DAG run and transfer."""
    wanted = parameters(source, analysis, producers=2, consumers=1)
    watch(beamline, source, wanted)
    run = beamline.begin_run(source.experiment)
    found: list[str] = wait_until(lambda: dag_runs(beamline, source.experiment, run), "a DAG run")
    with beamline.transfers() as transfers:
        transfer = wait_until(
            lambda: next(
                (each.id for each in transfers.list() if each.experiment == source.experiment), None
            ),
            "a transfer",
        )
        wait_until(lambda: transfers.get(transfer).metrics.sent > 3, "messages at the consumer")
    return run, found[0], transfer


def watch(beamline: Beamline, source: Source, wanted: dict[str, Any]) -> None:
    """Give an experiment its workflow and run a watcher that knows it."""
    if "watcher" in beamline.services:
        beamline.services.pop("watcher").stop()
    beamline.begin_experiment(source.experiment, wanted)


def dag_runs(beamline: Beamline, experiment: str, run: int) -> list[str]:
    found = beamline.airflow.call("GET", f"/dags/{DAG}/dagRuns", limit=100)["dag_runs"]
    start = f"arp:{experiment}:r{run}:"
    return [each["dag_run_id"] for each in found if each["dag_run_id"].startswith(start)]


def slurm_jobs(beamline: Beamline) -> list[str]:
    """Return the jobs of both clusters that have not ended."""
    found = []
    for site in (beamline.s3df, beamline.hpc):
        assert site.cluster is not None
        done = subprocess.run(
            ["squeue", "-h", "-o", "%i %j %T", "-t", "PENDING,RUNNING,COMPLETING,SUSPENDED"],
            env=site.cluster.environment | {"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        found += done.stdout.splitlines()
    return found


def listens(url: str) -> bool:
    port = int(url.rsplit(":", 1)[1])
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(
        int(row.split()[1].split(":")[1], 16) == port and row.split()[3] == "0A" for row in rows
    )


def assert_nothing_is_left(beamline: Beamline, transfer: int) -> TransferInfo:
    """Check that within 30 s no job, buffer, port or process of a transfer is left."""
    deadline = time.monotonic() + LEFT_TIMEOUT_S
    with beamline.transfers() as transfers:
        url = transfers.get(transfer).url
        left: dict[str, Any] = {}
        while time.monotonic() < deadline:
            info = transfers.get(transfer)
            left = {
                "phase": "" if info.is_final else info.phase.value,
                "SLURM jobs": slurm_jobs(beamline),
                "processes": processes_of(transfers, transfer),
                "port": url if url and listens(url) else "",
            }
            if not any(left.values()):
                return info
            time.sleep(0.2)
    raise AssertionError(f"left after {LEFT_TIMEOUT_S:g} s: {left}")


VERIFY = "#!/bin/bash\nexec lclstream analyse verify --output {folder}\n"


def test_two_thousand_events_arrive_once_and_unchanged(beamline: Beamline, tmp_path: Path) -> None:
    source = simulated(EVENTS, rate_hz=0, batch=4)
    source.streamer["event_source"]["shape"] = [512, 512]
    (tmp_path / "streamer.json").write_text(json.dumps(source.streamer))
    folder, config = (shlex.quote(str(tmp_path / name)) for name in ("findings", "streamer.json"))
    script = f"#!/bin/bash\nexec lclstream analyse verify --config {config} --output {folder}\n"
    wanted = parameters(source, script, producers=RANKS, consumers=CONSUMERS)
    watch(beamline, source, wanted)
    outcome = play(beamline, source, quiet())
    info = outcome.transfer
    assert outcome.ok, (info.reason, info.ledger, outcome.dag_state)
    sent, *others = info.ledger.hops
    assert sent.tally.events == EVENTS
    assert sent.tally.bytes > EVENTS * MEGABYTE
    assert sent.peers == RANKS
    assert [hop.name for hop in others] == [
        "buffer.received",
        "buffer.sent",
        "consumers.received",
    ]
    # The buffer does not look into what passes.
    assert {hop.tally.digest for hop in others} == {"", sent.tally.digest}
    assert others[-1].peers == CONSUMERS
    findings = [json.loads(path.read_text()) for path in (tmp_path / "findings").glob("*.json")]
    assert len(findings) == CONSUMERS
    assert sum(one["verified"] for one in findings) == EVENTS
    assert all(one["ok"] for one in findings), findings
    assert missing(findings, EVENTS) == []
    assert outcome.counters["LCLStream state"] == "completed"
    assert outcome.counters["LCLStream events"] == str(EVENTS)
    assert_nothing_is_left(beamline, info.id)


def xtc2_file(folder: Path) -> Path:
    """Write a run of a camera with three segments."""
    events = [
        MadeEvent(
            timestamp=later(START, 1_000_000 * (index + 1)),
            values={each.key: camera_values(index, each.segment) for each in CAMERA},
            damage={},
            epics={"gas": 0.5, "note": "steady"},
        )
        for index in range(12)
    ]
    path = folder / "tst000124-r0005-s000-c000.xtc2"
    return write_run(path, events, detectors=CAMERA)


def real_file(name: str) -> Path:
    """Return real detector data, which a checkout does not bring."""
    path = Path(__file__).parents[3] / "shared" / "data" / name
    if not path.is_file():
        pytest.skip(f"no {name} here")
    return path


def frames_of(path: Path, source: Source) -> list[NDArray[Any]]:
    """Read the frames straight from the file, without the streamer."""
    wanted = source.streamer["data_sources"]["detector_data"]
    if path.suffix != ".xtc2":
        with h5py.File(path) as file:
            return list(file[wanted["name"]][...])
    algorithm, _, field = wanted["psana_fields"].partition(".")
    events = [dgram for dgram in Xtc2File(path) if dgram.service is Service.L1ACCEPT]
    stacks = [
        [
            np.asarray(each.value(field))
            for each in sorted(event.contributions(), key=lambda each: each.names.segment)
            if (each.names.detector, each.names.algorithm) == (wanted["psana_name"], algorithm)
        ]
        for event in events
    ]
    return [np.stack(parts) if len(parts) > 1 else parts[0] for parts in stacks]


@pytest.mark.parametrize(
    "find",
    [
        pytest.param(xtc2_file, id="written XTC2"),
        pytest.param(
            lambda _: real_file("mfx101332224_r0007_jungfrau05M.xtc2"), id="real Jungfrau"
        ),
        pytest.param(lambda _: real_file("cxi78513_r0014_cspad.h5"), id="real CSPAD"),
    ],
)
def test_pixels_at_the_consumers_are_those_of_the_file(
    beamline: Beamline, tmp_path: Path, find: Callable[[Path], Path]
) -> None:
    path = find(tmp_path)
    source = from_file(path)
    results = tmp_path / "results"
    script = "#!/bin/bash\nexec lclstream analyse verify --record --output {folder}\n"
    wanted = parameters(
        source,
        script.format(folder=shlex.quote(str(results))),
        producers=RANKS,
        consumers=CONSUMERS,
    )
    watch(beamline, source, wanted)
    outcome = play(beamline, source, quiet())
    assert outcome.ok, (outcome.transfer.reason, outcome.transfer.ledger)
    expected = frames_of(path, source)
    arrived: dict[int, NDArray[Any]] = {}
    for recorded in results.glob("events-*.h5"):
        with h5py.File(recorded) as file:
            if INDEX not in file:
                continue  # this consumer came when the other had taken all
            for index, frame in zip(file[INDEX][...], file["data/detector_data"], strict=True):
                assert index not in arrived
                arrived[int(index)] = frame
    assert sorted(arrived) == list(range(len(expected)))
    for index, frame in enumerate(expected):
        assert arrived[index].dtype == frame.dtype
        assert arrived[index].shape == frame.shape
        assert arrived[index].tobytes() == frame.tobytes()


def test_run_event_delivered_twice_to_two_watchers_is_one_run(beamline: Beamline) -> None:
    from confluent_kafka import Consumer, Producer

    source = small(2, 0, "mfxtwice")
    script = VERIFY.format(folder='"$base/work"')
    watch(beamline, source, parameters(source, script, producers=1, consumers=1))
    beamline.start_watcher("watcher-two").wait_ready()
    try:
        assert play(beamline, source, quiet()).ok
        reader = Consumer(
            {
                "bootstrap.servers": beamline.bootstrap,
                "group.id": "test-reader",
                "auto.offset.reset": "earliest",
            }
        )
        reader.subscribe(["runs"])
        event = None
        deadline = time.monotonic() + 60
        while event is None and time.monotonic() < deadline:
            message = reader.poll(1.0)
            if message is not None and not message.error():
                value = message.value() or b"{}"
                document = json.loads(value)
                if (document.get("experiment_name"), document.get("CRUD")) == (
                    "mfxtwice",
                    "Create",
                ):
                    event = value
        reader.close()
        assert event is not None
        producer = Producer({"bootstrap.servers": beamline.bootstrap})
        for partition in range(4):
            producer.produce("runs", event, partition=partition)
        assert producer.flush(30) == 0
        # The next run is handled after the repeated events of its partition.
        beamline.begin_run("mfxtwice")
        wait_until(lambda: dag_runs(beamline, "mfxtwice", 2), "the second run")
        assert len(dag_runs(beamline, "mfxtwice", 1)) == 1
        wait_until(
            lambda: (
                beamline.airflow.run_state(DAG, dag_runs(beamline, "mfxtwice", 2)[0])
                in ("success", "failed")
            ),
            "the second run ended",
            120,
        )
        beamline.end_run("mfxtwice")
    finally:
        beamline.services.pop("watcher-two").stop()


def test_run_that_is_marked_failed_leaves_nothing(beamline: Beamline) -> None:
    source = small(100_000, 20, "mfxmark")
    _, dag_run, transfer = begin(beamline, source, VERIFY.format(folder='"$base/work"'))
    assert slurm_jobs(beamline)
    beamline.airflow.call("PATCH", f"/dags/{DAG}/dagRuns/{dag_run}", {"state": "failed"})
    info = assert_nothing_is_left(beamline, transfer)
    assert info.phase.value == "canceled"
    assert beamline.airflow.wait_run(DAG, dag_run) == "failed"


def test_task_that_is_cleared_and_scheduler_that_is_killed_leave_nothing(
    beamline: Beamline,
) -> None:
    source = small(100_000, 20, "mfxclear")
    _, dag_run, transfer = begin(beamline, source, VERIFY.format(folder='"$base/work"'))
    body = {"dag_run_id": dag_run, "task_ids": ["supervise"], "dry_run": False}
    body |= {"only_failed": False, "include_downstream": True}
    beamline.airflow.call("POST", f"/dags/{DAG}/clearTaskInstances", body)
    beamline.airflow.kill("scheduler")
    with beamline.transfers() as transfers:
        before = transfers.get(transfer).metrics.sent
        wait_until(lambda: transfers.get(transfer).metrics.sent > before + 5, "the stream goes on")
    beamline.airflow.start_part("scheduler")
    beamline.airflow.wait_task(DAG, dag_run, "supervise", "deferred", 240)
    beamline.airflow.call("PATCH", f"/dags/{DAG}/dagRuns/{dag_run}", {"state": "failed"})
    assert_nothing_is_left(beamline, transfer)
    assert beamline.airflow.wait_run(DAG, dag_run) == "failed"


def test_transfers_service_that_is_killed_resumes(beamline: Beamline) -> None:
    source = small(400, 40, "mfxkill")
    _, dag_run, transfer = begin(beamline, source, VERIFY.format(folder='"$base/work"'))
    beamline.services["transfers"].kill()
    beamline.start_transfers_service().wait_ready()
    with beamline.transfers() as transfers:
        assert_ends(beamline.airflow, transfers, (DAG, dag_run, transfer), "success")
    info = assert_nothing_is_left(beamline, transfer)
    assert info.ledger.balanced
    assert info.ledger.hops[0].tally.events == 400
    assert len(info.jobs) == 3
