import os
import subprocess
import sys
import time

import pytest
from confluent_kafka import Consumer, KafkaException, Message, Producer

from lclstream.core.errors import BackendError, UnavailableError
from lclstream.demo.kafka import FAST_CLIENT, MockKafka

DEADLINE_S = 15.0


def consumer(broker: MockKafka, group: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": broker.bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            **FAST_CLIENT,
        }
    )


def take(reader: Consumer, count: int) -> list[Message]:
    found: list[Message] = []
    until = time.monotonic() + DEADLINE_S
    while len(found) < count:
        assert time.monotonic() < until, f"{len(found)} of {count} messages"
        message = reader.poll(0.1)
        if message is not None and message.error() is None:
            found.append(message)
    return found


def produce(broker: MockKafka, topic: str, *values: str) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(DEADLINE_S) == 0


def test_a_group_resumes_where_it_committed() -> None:
    with MockKafka({"runs": 2}) as broker:
        produce(broker, "runs", *(str(number) for number in range(10)))
        seen: list[bytes | None] = []
        for _ in range(2):
            reader = consumer(broker, "watchers")
            reader.subscribe(["runs"])
            for message in take(reader, 5):
                seen.append(message.value())
                reader.commit(message=message, asynchronous=False)
            reader.close()
        assert {*seen} == {str(number).encode() for number in range(10)}
        assert len(seen) == 10


def test_topics_are_created_while_it_runs() -> None:
    with MockKafka() as broker:
        broker.create_topic("runs", 3)
        broker.create_topic("runs", 3)
        producer = Producer({"bootstrap.servers": broker.bootstrap})
        partitions = producer.list_topics("runs", timeout=DEADLINE_S).topics["runs"].partitions
        assert sorted(partitions) == [0, 1, 2]


def test_what_was_sent_during_an_outage_arrives_after_it() -> None:
    with MockKafka({"runs": 1}) as broker:
        broker.down()
        producer = Producer(
            {"bootstrap.servers": broker.bootstrap, "reconnect.backoff.max.ms": 200}
        )
        producer.produce("runs", b"late")
        broker.up()
        assert producer.flush(DEADLINE_S) == 0


def test_an_injected_error_reaches_the_client() -> None:
    produce_api, too_large = 0, 10
    with MockKafka({"runs": 1}) as broker:
        broker.fail_next(produce_api, too_large)
        producer = Producer({"bootstrap.servers": broker.bootstrap})
        failures = []
        producer.produce("runs", b"x", on_delivery=lambda error, _: failures.append(error))
        producer.flush(DEADLINE_S)
        assert [error and error.code() for error in failures] == [too_large]


def test_a_refused_command_is_an_error() -> None:
    with MockKafka() as broker, pytest.raises(BackendError, match=r"refused"):
        broker.create_topic("two words")


def test_nothing_answers_after_stop() -> None:
    broker = MockKafka()
    broker.start()
    pid = broker.pid
    broker.stop()
    broker.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(UnavailableError, match=r"does not run"):
        broker.create_topic("runs")
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    with pytest.raises(KafkaException):
        producer.list_topics(timeout=0.2)


def test_the_broker_dies_with_its_owner() -> None:
    script = (
        "import os, signal\n"
        "from lclstream.demo.kafka import MockKafka\n"
        "broker = MockKafka(); broker.start(); print(broker.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False, timeout=30
    )
    pid = int(done.stdout)
    until = time.monotonic() + DEADLINE_S
    while is_running(pid):
        assert time.monotonic() < until, "the broker outlived its owner"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
