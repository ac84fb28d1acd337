"""The service is killed without warning and started again on the same database and port."""

import pytest
import yaml
from tests.transfers.world import (
    Service,
    World,
    counts,
    internal,
    paced,
    pull_all,
    wait_end,
    wait_for,
    wait_phase,
)

from lclstream.transfers.client import TransfersClient
from lclstream.transfers.states import Phase

PULL = {"role": "consumer", "script": "exec lclstream pull -q > data.tar\n"}

pytestmark = pytest.mark.timeout(180)


def fix_port(service: Service) -> None:
    """Let the next start use the port of this one, as jobs know it."""
    path = service.folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**config, "port": int(service.url.rpartition(":")[2])}))


def restart(service: Service) -> None:
    service.process.kill()
    service.start()


def is_moving(client: TransfersClient, number: int) -> None:
    wait_for(client, number, lambda info: counts(info)["buffer.sent"] > 2, "moving")


def test_kill_with_transfers_running(world: World) -> None:
    with world.service("killed", [world.site("good")]) as service:
        fix_port(service)
        with service.client() as mona:
            held = mona.create({"streamer": internal(), "hold": True}, key="reserved").id
            full = mona.create({"streamer": internal()}).id
            moving = mona.create({"streamer": paced(60, 10.0), "hold": True}).id
            mona.start(moving, PULL)
            mona.start(moving, {"role": "producer"})
            canceled = mona.create({"streamer": paced()}).id
            fresh = mona.create({"streamer": internal()}, key="fresh").id
            # Killed while this one is being submitted.
            restart(service)
        with service.client() as mona:
            assert mona.create({"streamer": internal()}, key="fresh").id == fresh
            wait_phase(mona, canceled, Phase.STREAMING)
            is_moving(mona, moving)
            # Killed while it cancels one and another one streams.
            mona.cancel(canceled)
            restart(service)
        with service.client() as mona:
            for number in (full, fresh):
                ends_well_with_plain_consumer(service, mona, number)
            info = wait_end(mona, moving)
            assert (info.phase, info.reason) == (Phase.COMPLETED, "")
            assert list(counts(info).values()) == [30, 30, 30, 30]
            assert len(service.job_folders(moving)) == 3
            assert wait_end(mona, canceled).phase is Phase.CANCELED
            assert len(service.job_folders(canceled)) == 2
            assert service.job_processes(canceled) == []
            assert mona.get(held).phase is Phase.REQUESTED
            mona.cancel(held)
            assert mona.create({"streamer": internal(), "hold": True}, key="reserved").id == held


def ends_well_with_plain_consumer(service: Service, mona: TransfersClient, number: int) -> None:
    info = wait_phase(mona, number, Phase.DRAINING)
    assert len(pull_all(info.url, 10)) == 10
    info = wait_end(mona, number)
    assert (info.phase, info.reason) == (Phase.COMPLETED, "")
    assert len(service.job_folders(number)) == 2


def test_second_service_on_one_database_is_refused(service: Service) -> None:
    other = Service(world=service.world, folder=service.folder)
    path = service.folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    second = service.folder / "second.yaml"
    second.write_text(yaml.safe_dump({**config, "ready_file": "second.json"}))
    with pytest.raises(AssertionError, match="another transfers service works on"):
        other.start("second")
