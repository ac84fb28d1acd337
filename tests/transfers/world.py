"""Real services for the tests: an authority, a jobs service and transfers services as processes.

Where a test wants a broken streamer or buffer, its site names another command, as a site may do
by its configuration.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pynng
import yaml

from lclstream.identity.authority import Authority
from lclstream.transfers.client import TransfersClient
from lclstream.transfers.models import TransferInfo
from lclstream.transfers.states import Phase

BIN = Path(sys.executable).parent
LCLSTREAM = BIN / "lclstream"
START_S = 60.0
# Generous, for a busy machine; tests of a limit ask for a lower one.
LIMITS = {"start_s": 90.0, "idle_s": 90.0, "drain_s": 60.0, "total_s": 200.0, "flush_s": 3.0}

T = TypeVar("T")


def until(look: Callable[[], T], what: str, timeout_s: float = 90.0) -> T:
    """Return the first true value that `look` gives; fail after the time has passed."""
    deadline = time.monotonic() + timeout_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)
    return seen


class Process:
    """A service of ours as a process of its own."""

    def __init__(self, words: list[str], ready: Path, log: Path) -> None:
        ready.unlink(missing_ok=True)
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [str(LCLSTREAM), *words], stdout=out, stderr=out, start_new_session=True
            )
        self._ready = ready

    def url(self) -> str:
        """Return where it listens, as soon as it does."""
        until(lambda: self._ready.exists() or self._process.poll() is not None, "start", START_S)
        assert self._ready.exists(), self.log.read_text()
        url: str = json.loads(self._ready.read_text())["url"]
        return url

    def kill(self) -> None:
        """End it without any warning."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it as its service manager would."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        assert self._process.returncode in (0, -signal.SIGKILL), self.log.read_text()


@dataclass
class World:
    """Identities and one jobs service, shared by all tests."""

    folder: Path
    authority: Authority
    jobs: Process
    jobs_folder: Path
    jobs_url: str
    services: list["Service"] = field(default_factory=list)

    def identity(self, name: str) -> Path:
        return self.folder / "ids" / name

    def foreign_job(self, name: str) -> Path:
        """Return an identity with the name of a job, from an authority that does not issue them."""
        folder = self.folder / "ids" / name.replace(":", "-")
        Authority.load(self.folder / "foreign").issue_job(name).save(folder)
        (folder / "ca.crt").write_bytes(self.authority.certificate_pem)
        return folder

    def site(self, name: str, **changes: Any) -> dict[str, Any]:
        """Return a site's configuration."""
        return {
            "name": name,
            "jobs": self.jobs_url,
            "environment": {"PATH": f"{BIN}:{os.defpath}"},
            "resources": {"duration": 5},
            **changes,
        }

    def script(self, name: str, text: str) -> str:
        """Return the path of a new command."""
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    @contextmanager
    def service(
        self, name: str, sites: list[dict[str, Any]], **changes: Any
    ) -> Iterator["Service"]:
        """Run a transfers service."""
        folder = self.folder / name
        folder.mkdir()
        config = {
            "port": 0,
            "identity": str(self.identity("transfers")),
            "authority": str(self.folder / "authority"),
            "database": "transfers.db",
            "admins": ["uid:admin"],
            "ready_file": "ready.json",
            "limits": LIMITS,
            "stop_s": 6.0,
            "settle_s": 3.0,
            "poll_s": 1.0,
            "sites": sites,
            **changes,
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        service = Service(world=self, folder=folder)
        service.start()
        try:
            yield service
        finally:
            service.process.stop()


@dataclass
class Service:
    """A transfers service and clients of it."""

    world: World
    folder: Path
    url: str = ""

    def start(self, name: str = "config") -> None:
        words = ["transfer", "serve", str(self.folder / f"{name}.yaml")]
        ready = self.folder / ("ready.json" if name == "config" else f"{name}.json")
        self.process = Process(words, ready, self.folder / f"{name}.log")
        self.url = self.process.url()

    def client(self, who: str = "mona") -> TransfersClient:
        return TransfersClient(self.url, self.world.identity(who))

    def job_processes(self, transfer: int) -> list[str]:
        """Return the command lines of processes that belong to a transfer of this service."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                environment = path.read_bytes().split(b"\0")
                command = (path.parent / "cmdline").read_bytes()
            except OSError:
                continue
            url = f"LCLSTREAM_REPORT_URL={self.url}/v1/transfers/{transfer}/reports"
            if url.encode() in environment and command:
                found.append(command.replace(b"\0", b" ").decode())
        return found

    def job_folders(self, transfer: int) -> list[Path]:
        """Return the folders of all jobs that the jobs service has for a transfer."""
        return [
            path.parent
            for path in self.world.jobs_folder.glob("*/spec.json")
            if json.loads(path.read_text())["name"].startswith(f"transfer-{transfer}-")
            and f"{self.url.rpartition(':')[2]}/" in json.loads(path.read_text())["callback"]
        ]


def make_world(folder: Path) -> World:
    """Make identities and start the jobs service."""
    authority = Authority.create(folder / "authority", "Test Site")
    for name in ("transfers", "jobs"):
        authority.issue_service(folder / "ids" / name, name, ["127.0.0.1"])
    # Trusted, and with the subject of our own authority.
    foreign = Authority.create(folder / "foreign", "Test Site")
    with (folder / "ids" / "transfers" / "ca.crt").open("ab") as trusted:
        trusted.write(foreign.certificate_pem)
    for name in ("mona", "otto", "admin"):
        authority.issue_user(folder / "ids" / name, name.title(), name)
    jobs_folder = folder / "jobs"
    jobs_folder.mkdir()
    config = {
        "prefix": str(jobs_folder),
        "backends": {"default": {"type": "local"}},
        "identity": str(folder / "ids" / "jobs"),
        "callback_hosts": ["127.0.0.1"],
        "poll_s": 1.0,
        "ready_file": str(folder / "jobs-ready.json"),
    }
    (folder / "jobs.yaml").write_text(yaml.safe_dump(config))
    words = ["job", "serve", str(folder / "jobs.yaml")]
    jobs = Process(words, folder / "jobs-ready.json", folder / "jobs.log")
    return World(folder, authority, jobs, jobs_folder, jobs.url())


def wait_for(
    client: TransfersClient, transfer: int, is_it: Callable[[TransferInfo], bool], what: str
) -> TransferInfo:
    """Return the transfer as soon as it is as wanted."""
    info = client.get(transfer)
    deadline = time.monotonic() + 90.0
    while not is_it(info):
        assert time.monotonic() < deadline, f"not {what}: {info}"
        assert not info.is_final, f"ended before {what}: {info}"
        info = client.wait(transfer, info.version, 0.5)
    return info


def wait_end(client: TransfersClient, transfer: int) -> TransferInfo:
    """Return the transfer as soon as it is final."""
    return wait_for(client, transfer, lambda info: info.is_final, "final")


def wait_phase(client: TransfersClient, transfer: int, phase: Phase) -> TransferInfo:
    """Return the transfer as soon as it is in a phase."""
    return wait_for(client, transfer, lambda info: info.phase is phase, phase.value)


def internal(events: int = 50, batch: int = 5) -> dict[str, Any]:
    """Return a streamer configuration in the manner of old clients: `events / batch` messages."""
    return {
        "source_identifier": "none",
        "skip_incomplete_events": False,
        "event_source": {
            "type": "InternalEventSource",
            "number_of_events_to_generate": events,
        },
        "data_sources": {
            "random": {
                "type": "GenericRandomNumpyArray",
                "array_shape": [20, 2],
                "array_dtype": "float32",
            }
        },
        "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": batch},
        "data_serializer": {
            "type": "HDF5BinarySerializer",
            "compression_level": 3,
            "compression": "gzip",
            "fields": {"random": "/data/random"},
        },
        "data_handlers": [
            {"type": "BinaryDataStreamingDataHandler", "urls": ["tcp://127.0.0.1:1"]}
        ],
    }


def paced(events: int = 10_000, rate_hz: float = 20.0) -> dict[str, Any]:
    """Return a streamer that goes on for long."""
    source = {"type": "SimulatedDetectorEventSource", "events": events, "rate_hz": rate_hz}
    small = {"panels": 1, "shape": [8, 8]}
    return {
        "event_source": source | small,
        "data_sources": {
            "image": {"type": "Psana2DetectorInterface", "psana_name": "jungfrau",
                      "psana_fields": "raw.calib"},
        },
        "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 2},
        "data_serializer": {"type": "HDF5BinarySerializer"},
    }  # fmt: skip


def pull_all(url: str, count: int) -> list[bytes]:
    """Receive messages as any NNG program does."""
    with pynng.Pull0(dial=url, recv_timeout=20_000) as socket:
        return [socket.recv() for _ in range(count)]


def counts(info: TransferInfo) -> dict[str, int]:
    return {hop.name: hop.tally.messages for hop in info.ledger.hops}
