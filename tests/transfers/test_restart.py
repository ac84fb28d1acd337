"""The service is killed without warning and started again on the same database and port."""

import yaml
from tests.transfers.test_service import counts, paced, pull_all
from tests.transfers.world import Service, World, internal, wait_end, wait_for, wait_phase

from lclstream.transfers.client import TransfersClient
from lclstream.transfers.states import Phase


def fix_port(service: Service) -> None:
    """Let the next start use the port of this one, as jobs know it."""
    path = service.folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**config, "port": int(service.url.rpartition(":")[2])}))


def restart(service: Service) -> None:
    service.process.kill()
    service.start()


def test_kill_with_transfers_running(world: World) -> None:
    with world.service("killed", [world.site("good")]) as service:
        fix_port(service)
        with service.client() as mona:
            held = mona.create({"streamer": internal(), "hold": True}, key="reserved").id
            full = mona.create({"streamer": internal()}).id
            streaming = mona.create({"streamer": paced(40, 10.0), "hold": True}).id
            script = "exec lclstream pull -q > data.tar\n"
            mona.start(streaming, {"role": "consumer", "script": script})
            mona.start(streaming, {"role": "producer"})
            fresh = mona.create({"streamer": internal()}, key="fresh").id
            # Killed while this one is being submitted.
            restart(service)
        with service.client() as mona:
            assert mona.create({"streamer": internal()}, key="fresh").id == fresh
            wait_for(mona, streaming, lambda info: counts(info)["buffer.sent"] > 2, "moving")
            restart(service)
        with service.client() as mona:
            finish(service, mona, held, full, streaming, fresh)


def finish(
    service: Service, mona: TransfersClient, held: int, full: int, streaming: int, fresh: int
) -> None:
    """Bring all to their ends and see that nothing was done twice."""
    for number in (full, fresh):
        info = wait_phase(mona, number, Phase.DRAINING)
        assert len(pull_all(info.url, 10)) == 10
        info = wait_end(mona, number)
        assert (info.phase, info.reason) == (Phase.COMPLETED, "")
        assert len(service.job_folders(number)) == 2
    info = wait_end(mona, streaming)
    assert (info.phase, info.reason) == (Phase.COMPLETED, "")
    assert list(counts(info).values()) == [20, 20, 20, 20]
    assert len(service.job_folders(streaming)) == 3
    assert mona.get(held).phase is Phase.REQUESTED
    mona.cancel(held)
    assert mona.create({"streamer": internal(), "hold": True}, key="reserved").id == held


def test_killed_while_it_cancels(world: World) -> None:
    with world.service("cancelling", [world.site("good")]) as service:
        fix_port(service)
        with service.client() as mona:
            number = mona.create({"streamer": paced()}).id
            wait_phase(mona, number, Phase.STREAMING)
            mona.cancel(number)
            restart(service)
        with service.client() as mona:
            info = wait_end(mona, number)
            assert info.phase is Phase.CANCELED
        assert service.job_processes(number) == []
        assert len(service.job_folders(number)) == 2


def test_second_service_on_one_database_is_refused(world: World) -> None:
    with world.service("twice", [world.site("good")]) as service:
        other = Service(world=world, folder=service.folder)
        try:
            other.start()
        except AssertionError as error:
            assert "another transfers service works on" in str(error)  # noqa: PT017
        else:
            raise AssertionError("started")
