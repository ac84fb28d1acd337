"""The watcher on a real Apache Kafka broker, against a look-alike of Airflow on a real port."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from tests.elog.airflow_lookalike import Airflow
from tests.elog.watcher_suite import WatcherSuite
from tests.elog.world import DAG, DEADLINE_S, PARTITIONS, TOPICS, World, until

from lclstream.demo.kafka import FAST_CLIENT
from lclstream.demo.kraft import KraftBroker

pytestmark = [
    pytest.mark.system,
    # The first time Maven fetches the broker.
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def topics(kraft: KraftBroker) -> None:
    admin = AdminClient({"bootstrap.servers": kraft.bootstrap})
    wanted = [NewTopic(name, PARTITIONS, 1) for name in TOPICS]
    for made in admin.create_topics(wanted).values():
        made.result(DEADLINE_S)


@pytest.fixture
def airflow() -> Iterator[Airflow]:
    with Airflow(DAG) as running:
        yield running


@pytest.fixture
def world(kraft: KraftBroker, topics: None, airflow: Airflow, tmp_path: Path) -> World:
    return World(kraft.bootstrap, FAST_CLIENT, airflow, tmp_path)


class TestOnARealBroker(WatcherSuite):
    @pytest.mark.anyio
    async def test_the_broker_dies_and_comes_back(self, world: World, kraft: KraftBroker) -> None:
        async with world.watcher():
            world.produce(world.begin(1))
            await until(lambda: world.uncommitted() == 0)
            kraft.kill()
            kraft.start()
            world.produce(world.begin(2))
            await until(lambda: world.run_id(2) in world.airflow.ids)
            await until(lambda: world.uncommitted() == 0)
        assert set(world.airflow.ids) == {world.run_id(1), world.run_id(2)}
