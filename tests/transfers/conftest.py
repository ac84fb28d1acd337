from collections.abc import Iterator

import pytest
from tests.transfers.world import Service, World, make_world

BROKEN_BUFFER = "#!/bin/sh\nexit 3\n"
# Dies in the middle of its work, after what it has sent.
CRASHING_STREAMER = """#!/bin/sh
python - <<'END'
import os
from lclstream.buffer.endpoints import Push
from lclstream.core.ledger import Report, Reporter, Tally
tally = Tally()
def report():
    return Report(hop="producer", peer="rank-0", sent=tally.snapshot())
# Reports once, without the thread that reports all the time.
reporter = Reporter.from_environment(report)
with Push([os.environ["LCLSTREAM_URL"]]) as push:
    for number in range(7):
        push.send(b"message %d" % number)
        tally.add(b"message %d" % number)
    push.close(10)
    reporter._post(report())
    os._exit(7)
END
"""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = make_world(tmp_path_factory.mktemp("transfers"))
    yield made
    made.jobs.stop()


@pytest.fixture(scope="session")
def service(world: World) -> Iterator[Service]:
    """A service whose sites work, or fail in one way each."""
    crashing = world.script("crashing-streamer", CRASHING_STREAMER)
    sites = [
        world.site("good", launcher="mpiexec -launcher fork -n {ranks}"),
        world.site("broken", lclstream=world.script("broken-buffer", BROKEN_BUFFER)),
        world.site("crashing", python=crashing),
        world.site("away", jobs="https://127.0.0.1:9"),
        world.site("stuck", lclstream=world.script("stuck-buffer", "#!/bin/sh\nexec sleep 60\n")),
    ]
    with world.service("main", sites) as running:
        yield running
