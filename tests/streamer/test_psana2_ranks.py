"""psana2 with several ranks, and from shared memory: every event comes, and comes once."""

import json
import os
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tests.helpers.area_detectors import (
    EPIX_PANEL,
    epix_configuration,
    epixes,
    frames,
    write_frames,
)
from tests.helpers.psana_environment import Dump, dump, psana_environment, psana_python, tool
from tests.helpers.xtc2_runs import (
    CAMERA,
    EXPERIMENT,
    MadeEvent,
    made_events,
    stream_path,
    write_run,
)

SOAK = bool(os.environ.get("LCLSTREAM_SOAK"))
RUNS, EVENTS = (5, 6), 30

# The first test installs the environment.
pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def psana() -> Path:
    return psana_python()


def made(run: int) -> list[MadeEvent]:
    return [replace(each, damage={}) for each in made_events(EVENTS, first=100 * run)]


@pytest.fixture
def experiment(psana: Path, tmp_path: Path) -> str:
    """Return the identifier of an experiment of two runs in two streams, with their indices."""
    (tmp_path / "smalldata").mkdir()
    for run in RUNS:
        for stream, detectors in enumerate([[CAMERA[0]], CAMERA[1:]]):
            path = stream_path(tmp_path, stream, run=run)
            write_run(path, made(run), detectors=detectors, epics=not stream, run=run)
            index(psana, path)
    return f"exp={EXPERIMENT},dir={tmp_path}"


def index(psana: Path, path: Path) -> None:
    """Make the index of a file, with psana2's own program."""
    smalldata = path.parent / "smalldata" / f"{path.stem}.smd.xtc2"
    program = str(tool(psana, "smdwriter"))
    subprocess.run([program, "-f", path, "-o", smalldata], check=True, capture_output=True)


def document(identifier: str, **config: Any) -> dict[str, Any]:
    camera = {"psana_name": "cam", "psana_fields": "raw.raw", "required": False}
    offline = {"skip_calib_load": "all", "ask_logbook": False, "batch_size": 1}
    return {
        "source_identifier": identifier,
        "event_source": {"type": "Psana2EventSource", **offline, **config},
        "data_sources": {
            "stamp": {"type": "Psana2Timestamp"},
            "camera": {"type": "Psana2DetectorInterface", **camera},
        },
        "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 4},
        "data_serializer": {"type": "HDF5BinarySerializer"},
    }


def streamer(
    psana: Path, folder: Path, config: dict[str, Any], ranks: int = 1, *options: str
) -> "subprocess.Popen[str]":
    """Start the streamer in the environment of psana2, writing files."""
    handler = {
        "type": "BinaryFileWritingDataHandler", "write_directory": str(folder / "out"),
        "file_prefix": uuid.uuid4().hex[:8] if options else "",
    }  # fmt: skip
    path = folder / "config.json"
    path.write_text(json.dumps(config | {"data_handlers": [handler]}))
    launcher = ["mpiexec", "-launcher", "fork", "-n", str(ranks)] if ranks > 1 else []
    return subprocess.Popen(
        [*launcher, str(psana), "-P", "-m", "lclstream.streamer", "-c", str(path), *options],
        env=psana_environment(psana, folder),
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def delivered(folder: Path) -> Iterator[tuple[int, int, Any]]:
    """Yield rank, time stamp and frame of every event in the files."""
    for path in sorted((folder / "out").glob("*.h5")):
        rank = int(path.stem.rpartition("r")[2].partition("_")[0])
        with h5py.File(path) as file:
            for stamp, frame in zip(file["stamp"][()], file["camera"][()], strict=True):
                yield rank, int(stamp), frame


def test_the_ranks_deliver_every_event_once(psana: Path, experiment: str, tmp_path: Path) -> None:
    process = streamer(psana, tmp_path, document(experiment), 4)
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log[-4000:]
    found = list(delivered(tmp_path))
    wanted = {each.timestamp: each for run in RUNS for each in made(run)}
    assert sorted(stamp for _, stamp, _ in found) == sorted(wanted)
    # The first two serve the others.
    assert {rank for rank, _, _ in found} <= {2, 3}
    for _, stamp, frame in found:
        values = wanted[stamp].values
        present = all(each.key in values for each in CAMERA)
        # An incomplete frame is filled with the value for what is missing.
        first = values[CAMERA[1].key]["arrayRaw"][0] if present else -999
        assert (frame[1, 0] == first).all()


@pytest.mark.skipif(not SOAK, reason="takes long: LCLSTREAM_SOAK is not set")
def test_a_rank_may_end_early(psana: Path, experiment: str, tmp_path: Path) -> None:
    request = {"document": document(experiment), "readings": [], "stop_after": 3}
    for ranks in (3, 4):
        (dumps,) = dump(psana, tmp_path, [request], ranks)
        counts = [len(each.events) for each in dumps]
        assert counts[:2] == [0, 0]
        assert all(count <= 3 for count in counts)
        assert max(counts) == 3
        assert_once(dumps)


@pytest.mark.skipif(not SOAK, reason="takes long: LCLSTREAM_SOAK is not set")
def test_coordinates_do_not_wait_for_ranks_that_serve(psana: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    names = epixes(4, is_by_pixel=True)
    (tmp_path / "smalldata").mkdir()
    path = write_frames(
        stream_path(tmp_path),
        names,
        frames(random, names, 6, EPIX_PANEL),
        epix_configuration(random, 4, is_by_pixel=True),
    )
    index(psana, path)
    config = document(f"exp={EXPERIMENT},dir={tmp_path}")
    request = {"document": config, "readings": [["epixquad", "raw._pixel_coords"]]}
    (dumps,) = dump(psana, tmp_path, [request], 4)
    assert [each.error for each in dumps] == [""] * 4
    assert sum(len(each.events) for each in dumps) == 6
    for each in dumps:
        for row in range(len(each.events)):
            assert each.reading(row, 0).shape == (3, 4, *EPIX_PANEL)


@pytest.mark.skipif(not SOAK, reason="takes long: LCLSTREAM_SOAK is not set")
def test_a_run_is_continued_with_other_ranks(psana: Path, experiment: str, tmp_path: Path) -> None:
    resume = ("--resume-file", str(tmp_path / "state"))
    for ranks, (limit, wanted) in zip((3, 4, 1), ((20, 20), (0, 60), (0, 60)), strict=True):
        options = (*resume, "-n", str(limit)) if limit else resume
        process = streamer(psana, tmp_path, document(experiment), ranks, *options)
        _, log = process.communicate(timeout=300)
        assert process.returncode == 0, log[-4000:]
        stamps = [stamp for _, stamp, _ in delivered(tmp_path)]
        assert len(stamps) == len(set(stamps)) == wanted


@pytest.mark.skipif(not SOAK, reason="takes long: LCLSTREAM_SOAK is not set")
def test_all_ranks_end_when_one_fails(psana: Path, experiment: str, tmp_path: Path) -> None:
    config = document(experiment)
    config["data_sources"]["camera"]["psana_fields"] = "raw.nothing"
    process = streamer(psana, tmp_path, config, 4)
    _, log = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "'cam' has no field 'raw.nothing'" in log
    few = streamer(psana, tmp_path, document(experiment), 2)
    _, log = few.communicate(timeout=300)
    assert few.returncode != 0
    assert "of 2 ranks psana2 would use 2 to serve the others" in log


def assert_once(dumps: list[Dump]) -> None:
    indices = Counter(row[0] for each in dumps for row in each.events)
    assert set(indices.values()) <= {1}


@pytest.mark.skipif(not SOAK, reason="takes long: LCLSTREAM_SOAK is not set")
def test_of_files_every_rank_takes_its_share(psana: Path, tmp_path: Path) -> None:
    path = write_run(tmp_path / "one.xtc2", made(5))
    request = {"document": document(f"files={path}"), "readings": [["cam", "raw.raw"]]}
    (dumps,) = dump(psana, tmp_path, [request], 2)
    for rank, each in enumerate(dumps):
        assert [row[0] for row in each.events] == list(range(rank, EVENTS, 2))
    assert_once(dumps)


def test_shared_memory_is_read_until_the_end_is_asked_for(psana: Path, tmp_path: Path) -> None:
    path = write_run(tmp_path / "one.xtc2", made(5))
    tag = f"lclstream{uuid.uuid4().hex[:12]}"
    server = subprocess.Popen(
        [tool(psana, "shmemServer"), "-p", tag, "-n", "4", "-s", "4000000", "-c", "1", "-r", "20",
         "-L", "1", "-f", path],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    process = streamer(psana, tmp_path, document(f"shmem={tag}"))
    try:
        # It begins when there is a client; then the run ends, and the next one is waited for.
        wait_until(lambda: server.poll() is not None or process.poll() is not None)
        wait_until(lambda: any(tmp_path.glob("out/*.h5")) or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    finally:
        for each in (server, process):
            if each.poll() is None:
                each.kill()
            each.wait()
        # The server leaves it behind.
        Path(f"/dev/shm/PdsMonitorSharedMemory_{tag}").unlink(missing_ok=True)  # noqa: S108
    assert process.returncode == 128 + signal.SIGTERM, log[-3000:]
    stamps = [stamp for _, stamp, _ in delivered(tmp_path)]
    known = {each.timestamp for each in made(5)}
    # Whoever is late with an event does not get it.
    assert 4 <= len(stamps) == len(set(stamps))
    assert set(stamps) <= known


def wait_until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not reached in time"
        time.sleep(0.02)
