"""`lclstream get` against a real transfers service, with real jobs, buffer and streamer."""

import io
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.transfers.world import (
    Service,
    internal,
    make_world,
    paced,
    until,
    wait_end,
)

from lclstream.client.decode import decode
from lclstream.transfers.states import Phase

pytestmark = pytest.mark.timeout(180)

LCLSTREAM = [sys.executable, "-c", "import sys, lclstream.cli.main as m; sys.exit(m.main())"]

Getting = subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    world = make_world(tmp_path_factory.mktemp("get"))
    site = world.site("site", launcher="mpiexec -launcher fork -n {ranks}")
    try:
        with world.service("main", [site]) as running:
            yield running
    finally:
        world.jobs.stop()


@contextmanager
def getting(
    service: Service, folder: Path, document: dict[str, Any], *options: str
) -> Iterator[Getting]:
    (folder / "stream.yaml").write_text(yaml.safe_dump(document))
    identity = str(service.world.identity("mona"))
    command = [*LCLSTREAM, "get", str(folder / "stream.yaml"), "--server", service.url]
    with subprocess.Popen(
        [*command, "--identity", identity, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("form", ["parameters", "request"])
def test_everything_arrives(service: Service, tmp_path: Path, form: str) -> None:
    document = internal(50) if form == "parameters" else {
        "streamer": internal(50), "experiment": "mfx1", "run": 3, "producers": 2,
    }  # fmt: skip
    with getting(service, tmp_path, document) as process:
        archive, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = [tar.extractfile(member) for member in tar]
    batches = [decode(file.read()) for file in files if file is not None]
    indices = [event.index or 0 for batch in batches for event in batch]
    assert sorted(indices) == list(range(50))
    with service.client() as mona:
        info = mona.list(limit=1)[0]
        ledger = mona.get(info.id).ledger
    assert info.phase is Phase.COMPLETED
    assert ledger.balanced is True
    received = ledger.hops[-1]
    assert (received.name, received.tally.events) == ("consumers.received", 50)
    assert errors.decode().splitlines()[-1] == f"transfer {info.id} is completed"


@pytest.mark.parametrize("way", ["signal", "closed pipe"])
def test_reader_who_leaves_cancels_the_transfer(service: Service, tmp_path: Path, way: str) -> None:
    with getting(service, tmp_path, paced(), "-q") as process:
        assert process.stdout is not None
        # The first message is on its way.
        assert process.stdout.read(512)
        with service.client() as mona:
            transfer = mona.list(limit=1)[0].id
            if way == "signal":
                process.send_signal(signal.SIGTERM)
            else:
                process.stdout.close()
                process.stdout = None
            _, errors = process.communicate(timeout=60)
            info = wait_end(mona, transfer)
    assert process.returncode == (143 if way == "signal" else 1), errors
    assert info.phase is Phase.CANCELED
    until(lambda: not service.job_processes(transfer), "end of all jobs")


def test_configuration_that_the_service_refuses(service: Service, tmp_path: Path) -> None:
    with getting(service, tmp_path, internal() | {"event_source": {"type": "Nothing"}}) as process:
        archive, errors = process.communicate(timeout=60)
    assert (process.returncode, archive) == (2, b"")
    assert b"event_source" in errors
