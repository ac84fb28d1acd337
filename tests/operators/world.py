"""The real services that our operators talk to, on this machine, with local jobs."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from lclstream.demo.processes import ServiceProcess, lclstream_command
from lclstream.identity.authority import Authority
from lclstream.transfers.client import TransfersClient

PULL = '#!/bin/sh\nset -e\nexec lclstream pull --quiet > "stream.tar"\n'


class World:
    """One facility: an authority, a jobs service, a transfers service."""

    def __init__(self, folder: Path, url: str, identities: Path) -> None:
        self.folder = folder
        self.url = url
        self.database = folder / "transfers.db"
        self.airflow = identities / "airflow"
        self.web = identities / "airflow-web"
        self.connection = {
            "conn_type": "lclstream",
            "host": url,
            "extra": {"identity": str(self.airflow)},
        }

    def client(self) -> TransfersClient:
        """Return a client that acts as Airflow."""
        return TransfersClient(self.url, self.airflow)


@contextmanager
def running(folder: Path) -> Iterator[World]:
    """Start both services; end them and what they left."""
    identities = folder / "identities"
    authority = Authority.create(folder / "authority", "test")
    for name in ("jobs", "transfers", "airflow", "airflow-web"):
        authority.issue_service(identities / name, name, ["127.0.0.1", "localhost"])
    with ExitStack() as stack:
        jobs = _serve(
            stack,
            folder,
            "job",
            {
                "prefix": str(folder / "jobs"),
                "backends": {"local": {"type": "local"}},
                "identity": str(identities / "jobs"),
                "callback_hosts": ["127.0.0.1"],
                "poll_s": 0.5,
            },
        )
        search_path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
        transfers = _serve(
            stack,
            folder,
            "transfer",
            {
                "port": 0,
                "identity": str(identities / "transfers"),
                "authority": str(folder / "authority"),
                "database": str(folder / "transfers.db"),
                "poll_s": 0.5,
                "sites": [
                    {
                        "name": "local",
                        "jobs": jobs,
                        "backend": "local",
                        "environment": {"PATH": search_path},
                        "python": sys.executable,
                    }
                ],
            },
        )
        yield World(folder, transfers, identities)


def _serve(stack: ExitStack, folder: Path, verb: str, config: dict[str, Any]) -> str:
    (folder / "jobs").mkdir(exist_ok=True)
    path = folder / f"{verb}.yaml"
    process = ServiceProcess(verb, lclstream_command(verb, "serve", str(path)), folder)
    path.write_text(yaml.safe_dump({**config, "ready_file": str(process.ready_file)}))
    stack.enter_context(process)
    return str(process.wait_ready()["url"])


def conf(run: int, *, events: int = 20, rate_hz: float = 0.0, **parameters: Any) -> dict[str, Any]:
    """Return what the watcher of the Elog gives to a DAG run."""
    streamer = {
        "event_source": {
            "type": "SimulatedDetectorEventSource",
            "events": events,
            "panels": 1,
            "shape": [32, 32],
            "peaks": 2,
            "rate_hz": rate_hz,
        },
        "data_sources": {
            "frames": {
                "type": "Psana2DetectorInterface",
                "psana_name": "jungfrau",
                "psana_fields": "raw.raw",
            }
        },
        "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 2},
        "data_serializer": {
            "type": "HDF5BinarySerializer",
            "fields": {"frames": "/data/frames"},
        },
    }
    return {
        "experiment": "tst000001",
        "run": run,
        "trigger": "START_OF_RUN",
        "definition": "stream",
        "begin_time": "2026-01-01T00:00:00+00:00",
        "kafka": {"topic": "runs", "partition": 0, "offset": run},
        "parameters": {"streamer": streamer, "analysis": PULL, **parameters},
        "elog_job": None,
    }


def processes_of(client: TransfersClient, transfer: int) -> list[int]:
    """Return the processes of this machine that work for a transfer of this service."""
    service = str(client._http.base_url).rstrip("/")
    mark = f"LCLSTREAM_REPORT_URL={service}/v1/transfers/{transfer}/reports\0".encode()
    return [pid for pid, environment in _environments() if mark in environment + b"\0"]


def _environments() -> Iterator[tuple[int, bytes]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), (entry / "environ").read_bytes()
            except OSError:
                continue


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 120.0) -> Any:
    """Wait for a condition and return what it returned."""
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)
    return result


def find_transfer(client: TransfersClient, run: int | str) -> int | None:
    """Return the newest transfer of a run."""
    for status in client.list():
        if status.run == run:
            return status.id
    return None


def assert_nothing_is_left(
    client: TransfersClient, transfer: int, timeout_s: float = 120.0
) -> None:
    """Check that a transfer has ended, with every job and process of it."""
    info = wait_until(
        lambda: (i := client.get(transfer)).is_final and i, "the transfer ended", timeout_s
    )
    assert all(job.state.value in ("completed", "failed", "canceled") for job in info.jobs)
    wait_until(
        lambda: not processes_of(client, transfer), f"no process of {transfer} is left", 30.0
    )
