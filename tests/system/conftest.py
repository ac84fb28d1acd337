"""The whole main job on real parts: Apache Kafka, Airflow and a SLURM cluster at each site."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lclstream.demo.beamline import TOPICS, Beamline
from lclstream.demo.kraft import KraftBroker, resolve_jars, unavailable
from lclstream.demo.sites import why_no_slurm

ROOT = Path(__file__).parents[2]
JARS = ROOT / "build" / "kafka"
POM = ROOT / "tests" / "system" / "kafka" / "pom.xml"


def create_topics(bootstrap: str) -> None:
    """Make the logbook's topics, as a broker's operator does."""
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    admin = AdminClient({"bootstrap.servers": bootstrap})
    made = admin.create_topics([NewTopic(name, parts, 1) for name, parts in TOPICS.items()])
    for future in made.values():
        future.result(timeout=30)


@pytest.fixture(scope="module")
def beamline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beamline]:
    if reason := why_no_slurm() or unavailable(JARS):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("beamline")
    with KraftBroker(resolve_jars(POM, JARS), folder / "kafka") as broker:
        create_topics(broker.bootstrap)
        with Beamline(folder=folder / "state", kafka=broker.bootstrap, slurm=True) as running:
            yield running
