import time

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from lclstream.demo.kraft import KraftBroker, cluster_id, free_ports

DEADLINE_S = 30.0

pytestmark = [
    pytest.mark.system,
    # The first time Maven fetches the broker.
    pytest.mark.timeout(900),
]


def test_messages_outlive_the_death_of_the_broker(kraft: KraftBroker) -> None:
    client: dict[str, str | int | float | bool] = {
        "bootstrap.servers": kraft.bootstrap,
        "log_level": 0,
    }
    admin = AdminClient(client)
    for made in admin.create_topics([NewTopic("kept", 2, 1)]).values():
        made.result(DEADLINE_S)
    producer = Producer({**client, "acks": "all"})
    for number in range(20):
        producer.produce("kept", str(number))
    assert producer.flush(DEADLINE_S) == 0

    kraft.kill()
    kraft.start()
    assert kraft.start_s > 0

    reader = Consumer({**client, "group.id": "readers", "auto.offset.reset": "earliest"})
    reader.subscribe(["kept"])
    seen: set[bytes | None] = set()
    until = time.monotonic() + DEADLINE_S
    while len(seen) < 20:
        assert time.monotonic() < until, f"{len(seen)} of 20 messages"
        message = reader.poll(0.1)
        if message is not None and message.error() is None:
            seen.add(message.value())
    reader.close()


def test_a_cluster_id_is_sixteen_bytes_in_base64() -> None:
    assert len(cluster_id()) == 22


def test_free_ports_differ() -> None:
    assert len(set(free_ports(5))) == 5
