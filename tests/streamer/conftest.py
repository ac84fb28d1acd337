"""Streamer processes, configurations, and where the golden messages lie."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

VECTORS = Path(__file__).parents[3] / "shared" / "vectors" / "streamer"
START_TIMEOUT_S = 30.0

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def vectors() -> Path:
    """Return the folder of the golden messages; skips where there is none."""
    if not VECTORS.is_dir():
        pytest.skip("no golden messages on this machine")
    return VECTORS


@pytest.fixture
def document() -> dict[str, Any]:
    """Return a small configuration that runs and discards."""
    return {
        "source_identifier": "exp=tst000124,run=3",
        "event_source": {
            "type": "SimulatedDetectorEventSource",
            "events": 20,
            "panels": 1,
            "shape": [16, 32],
        },
        "data_sources": {
            "timestamp": {"type": "Psana2Timestamp"},
            "frame": {"type": "EventValue", "name": "jungfrau", "field": "raw.raw"},
            "wavelength": {"type": "EventValue", "name": "SIOC:SYS0:ML00:AO192"},
        },
        "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 3},
        "data_serializer": {"type": "HDF5BinarySerializer"},
        "data_handlers": [],
    }


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts the streamer on a configuration; ends what is left."""
    running: list[subprocess.Popen[str]] = []

    def start_one(
        document: dict[str, Any], *options: str, ranks: int = 1, **environment: str
    ) -> "subprocess.Popen[str]":
        config = tmp_path / f"config{len(running)}.yaml"
        config.write_text(yaml.safe_dump(document))
        launcher = ["mpiexec", "-launcher", "fork", "-n", str(ranks)] if ranks > 1 else []
        command = [*launcher, sys.executable, "-m", "lclstream.streamer", "-c", str(config)]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        process = subprocess.Popen(
            [*command, *options],
            env=os.environ | {"PATH": path} | environment,
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        running.append(process)
        return process

    yield start_one
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
    """Wait until a condition holds, or fail."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not reached in time"
        time.sleep(0.02)
