"""Reading XTC2 files: our reader beside psana2, which runs in an environment of its own."""

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.buffer.measure import BrokenMeasurementError
from benchmarks.buffer.rows import Goal, Row, row
from benchmarks.streamer.options import Options
from tests.helpers.area_detectors import constants, frames, jungfraus, write_frames
from tests.helpers.calibration_service import calibration_service
from tests.helpers.psana_environment import psana_environment, psana_python

from lclstream.streamer.config import Parameters, parse_parameters
from lclstream.streamer.events import open_event_source

EVENTS = 200
PANEL = (512, 1024)
RANGES = 3
# What psana2 is asked, and what ours is; the share of psana2's time that ours may take.
READINGS = (
    ("", "event loop", 0.2),
    ("raw", "raw frames", 0.2),
    ("calib", "calibrated frames", 0.5),
)
PROGRAM = Path(__file__).with_name("psana_loop.py")


def rows(options: Options) -> list[Row]:
    """Return the processor time per event of a Jungfrau of half a million pixels.

    Raises:
        BrokenMeasurementError: psana2 cannot be installed here.
    """
    try:
        python = psana_python()
    except pytest.skip.Exception as error:
        raise BrokenMeasurementError(str(error)) from None
    with tempfile.TemporaryDirectory() as name, _prepared(Path(name)) as url:
        return [_row(python, Path(name), url, *each, options) for each in READINGS]


@contextmanager
def _prepared(folder: Path) -> Iterator[str]:
    """Write the file and its constants; give psana2 a service that has them too."""
    random = np.random.default_rng(7)
    names = jungfraus(1)
    few = frames(random, names, 8, PANEL)
    write_frames(folder / "run.xtc2", names, [few[i % len(few)] for i in range(EVENTS)])
    found = constants(random, RANGES, 1, PANEL)
    np.savez(folder / "constants.npz", **found)
    with calibration_service() as service:
        service.add_detector("jungfrau_80000-0", "jungfrau_000001")
        for kind, value in found.items():
            service.add("tst000124", "jungfrau_000001", kind, value)
        for (_, short), documents in list(service.documents.items()):
            service.documents["cdb_mfx101332224", short] = documents
        yield service.url


def _row(
    python: Path, folder: Path, url: str, reading: str, title: str, share: float, options: Options
) -> Row:
    theirs = _psana(python, folder, url, reading, options.repetitions)
    ours = [_ours(folder, reading) for _ in range(options.repetitions + 1)][1:]
    return row(
        f"XTC2, Jungfrau 0.5M: {title}", "ms CPU/event", [1e3 * each for each in ours],
        baselines=[1e3 * each for each in theirs], peer="psana2", goal=Goal("ratio", "<=", share),
    )  # fmt: skip


def _psana(python: Path, folder: Path, url: str, reading: str, repetitions: int) -> list[float]:
    done = subprocess.run(
        [str(python), "-P", str(PROGRAM), str(folder / "run.xtc2"), reading, str(repetitions)],
        env=psana_environment(python, folder, LCLS_CALIB_HTTP=url),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BrokenMeasurementError(f"psana2: {done.stderr[-500:]}")
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _ours(folder: Path, reading: str) -> float:
    """Return the processor time per event of all events but the first."""
    source = open_event_source(_parameters(folder, reading), 0, 1)
    events = iter(source)
    next(events).read("jungfrau", f"raw.{reading or 'raw'}")
    start, count = time.process_time(), 0
    for event in events:
        if reading and event.read("jungfrau", f"raw.{reading}") is None:
            raise BrokenMeasurementError(f"ours: the event has no {reading}")
        count += 1
    spent = (time.process_time() - start) / count
    source.close()
    return spent


def _parameters(folder: Path, reading: str) -> Parameters:
    event_source: dict[str, Any] = {"type": "Xtc2EventSource"}
    if reading == "calib":
        event_source["calibration"] = {"constants": str(folder / "constants.npz")}
    field = f"raw.{reading or 'raw'}"
    return parse_parameters(
        {
            "source_identifier": str(folder / "run.xtc2"),
            "event_source": event_source,
            "data_sources": {"frame": {"type": "EventValue", "name": "jungfrau", "field": field}},
            "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 1},
            "data_serializer": {"type": "HDF5BinarySerializer"},
        }
    )
