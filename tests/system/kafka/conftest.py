"""A real Apache Kafka broker, shared by the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lclstream.demo.kraft import KraftBroker, resolve_jars, unavailable

POM = Path(__file__).with_name("pom.xml")
# Fetching takes a minute, so the jars stay in the checkout's build folder.
JARS = Path(__file__).parents[3] / "build" / "kafka"


@pytest.fixture(scope="session")
def kraft(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KraftBroker]:
    reason = unavailable(JARS)
    if reason is not None:
        pytest.skip(reason)
    with KraftBroker(resolve_jars(POM, JARS), tmp_path_factory.mktemp("kafka")) as broker:
        yield broker
