"""A broker, an Airflow look-alike and watchers of one test."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from confluent_kafka import Consumer, Producer, TopicPartition
from tests.elog.airflow_lookalike import PASSWORD, USER, Airflow
from tests.elog.messages import Message, encoded, run_message

from lclstream.core.lifecycle import Service
from lclstream.elog.config import load_config
from lclstream.elog.service import watch_service

DAG = "stream_on_run_start"
TOPICS = ("runs", "file_catalog", "workflow_jobs")
PARTITIONS = 4
DEADLINE_S = 30.0


class World:
    """What one test of a watcher needs; each has an experiment and a group of its own."""

    def __init__(
        self, bootstrap: str, options: Mapping[str, Any], airflow: Airflow, folder: Path
    ) -> None:
        self.bootstrap, self.options = bootstrap, dict(options)
        self.airflow, self.folder = airflow, folder
        unique = uuid.uuid4().hex[:10]
        self.experiment, self.group = f"tst{unique}", f"group-{unique}"
        self._configs = itertools.count()
        self.dead = folder / "dead.jsonl"
        self.log = folder / "watcher.log"
        (folder / "password").write_text(PASSWORD)
        self.define(name="stream", dag=DAG, trigger="START_OF_RUN")

    def define(self, **definition: Any) -> None:
        """Write a workflow definition for this experiment."""
        path = self.folder / "workflows" / f"{definition['name']}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({"experiments": [self.experiment], **definition}))

    def config(self, **changes: Any) -> Path:
        """Write a configuration; `airflow` and `kafka` are merged, the rest replaces."""
        content: dict[str, Any] = {
            "kafka": {
                "bootstrap": self.bootstrap,
                "group": self.group,
                "options": self.options,
                **changes.pop("kafka", {}),
            },
            "airflow": {
                "url": self.airflow.url,
                "username": USER,
                "password_file": "password",
                "retry_first_s": 0.05,
                "retry_most_s": 0.2,
                "unknown_dag_s": 0.3,
                **changes.pop("airflow", {}),
            },
            "workflows": ["workflows"],
            "dead_letters": {"file": "dead.jsonl"},
            **changes,
        }
        # Each watcher has its own file: another one may not have read its yet.
        path = self.folder / f"watch-{next(self._configs)}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def watcher(self, **changes: Any) -> Service:
        return watch_service(load_config(self.config(**changes)))

    @contextmanager
    def process(self, **changes: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Run a watcher as its own process; kill it at the end."""
        command = "import sys; from lclstream.cli.main import main; sys.exit(main())"
        path = self.config(**changes)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", command, "elog", "watch", str(path)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            process.wait()

    def begin(self, run: int = 1, *, age_s: float = 0.0, **fields: Any) -> Message:
        """Return the message of a run's begin."""
        begin = datetime.now(UTC) - timedelta(seconds=age_s)
        return run_message(run, begin=begin, experiment=self.experiment, **fields)

    def run_id(self, run: int = 1, trigger: str = "START_OF_RUN", name: str = "stream") -> str:
        return f"arp:{self.experiment}:r{run}:{trigger}:{name}"

    def produce(self, *messages: Message | bytes, topic: str = "runs", partition: int = -1) -> None:
        """Publish keyless, by default in random partitions."""
        producer = Producer({"bootstrap.servers": self.bootstrap, "linger.ms": 0})
        for message in messages:
            raw = message if isinstance(message, bytes) else encoded(message)
            name = topic if isinstance(message, bytes) else message[0]
            producer.produce(name, raw, partition=partition)
        assert producer.flush(DEADLINE_S) == 0

    def uncommitted(self) -> int:
        """Return how many messages a new member of the group would get."""
        settings = {"bootstrap.servers": self.bootstrap, "group.id": self.group}
        reader = Consumer({**settings, "enable.auto.commit": False})
        try:
            every = [
                TopicPartition(topic, number) for topic in TOPICS for number in range(PARTITIONS)
            ]
            left = 0
            for partition in reader.committed(every, timeout=DEADLINE_S):
                low, high = reader.get_watermark_offsets(partition, timeout=DEADLINE_S)
                left += high - max(partition.offset, low)
            return left
        finally:
            reader.close()

    def read(self, topic: str, count: int) -> list[Any]:
        """Return the first documents of a topic."""
        settings = {"bootstrap.servers": self.bootstrap, "group.id": f"{self.group}-reader"}
        reader = Consumer({**settings, **self.options, "auto.offset.reset": "earliest"})
        reader.subscribe([topic])
        found: list[Any] = []
        end = time.monotonic() + DEADLINE_S
        try:
            while len(found) < count:
                assert time.monotonic() < end, f"{len(found)} of {count} messages in {topic}"
                message = reader.poll(0.1)
                if message is not None and message.error() is None:
                    found.append(json.loads(message.value() or b"null"))
        finally:
            reader.close()
        return found

    def letters(self) -> list[dict[str, Any]]:
        if not self.dead.is_file():
            return []
        return [json.loads(line) for line in self.dead.read_text().splitlines()]


async def until(condition: Callable[[], bool], what: str = "") -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, what or "the condition did not come true"
        await asyncio.sleep(0.02)


def wait_until(condition: Callable[[], bool], what: str = "") -> None:
    """Wait until a condition holds, in a test without an event loop."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, what or "the condition did not come true"
        time.sleep(0.02)
