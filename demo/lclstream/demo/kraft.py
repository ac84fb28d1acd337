"""A real Apache Kafka broker for tests: one node in KRaft mode, without ZooKeeper.

Debian has no package with a broker, so the jars named in a `pom.xml` are fetched by Maven once
and kept in a folder. Needs Java 17 or newer, and `mvn` for the first time only.

Times on a shared machine with two cores: jars 50 s the first time (46 MB, and 59 MB that Maven
keeps for itself), format 2 s, start 3 to 6 s, stop 0.6 s.
"""

import base64
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from lclstream.core.errors import BackendError, UnavailableError

RESOLVE_TIMEOUT_S = 600.0
"""Maven fetches about 1000 small files from its repository."""

START_TIMEOUT_S = 90.0
"""A loaded machine with two cores needs 20 s."""

STOP_TIMEOUT_S = 20.0
POLL_S = 0.05
LOG_TAIL_LINES = 20

# Everything internal has one replica, or a single node never becomes ready. A session may be as
# short as the embedded broker allows, so that the same tests run on both. After a crash the
# node registers again only when its old registration has expired, by default after 9 s.
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={data}
num.partitions=4
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=400
group.min.session.timeout.ms=500
"""

# All to stderr: a tool that prints its answer on stdout must not be disturbed.
LOG_PROPERTIES = """\
log4j.rootLogger=WARN, err
log4j.appender.err=org.apache.log4j.ConsoleAppender
log4j.appender.err.target=System.err
log4j.appender.err.layout=org.apache.log4j.PatternLayout
log4j.appender.err.layout.ConversionPattern=%d %p %c: %m%n
log4j.logger.kafka.server.KafkaRaftServer=INFO
"""


def unavailable(jars: Path) -> str | None:
    """Return why no broker can run here, or None.

    Args:
        jars: the folder of `resolve_jars`; when it is filled, Maven is not needed.
    """
    if shutil.which("java") is None:
        return "java is not installed"
    if shutil.which("mvn") is None and not any(jars.glob("lib/kafka_*.jar")):
        return "mvn is not installed and there are no Kafka jars yet"
    return None


def resolve_jars(pom: Path, folder: Path) -> Path:
    """Fetch the broker's jars unless they are there; return the folder that holds them.

    Safe to call from several processes at once; fetches again when the `pom.xml` changed.

    Raises:
        BackendError: Maven failed; says what it printed last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lib, stamp = folder / "lib", folder / "pom.sha256"
    wanted = hashlib.sha256(pom.read_bytes()).hexdigest()
    with _locked(folder / "lock"):
        if stamp.is_file() and stamp.read_text() == wanted:
            return lib
        shutil.rmtree(lib, ignore_errors=True)
        command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
        command += [f"-Dmaven.repo.local={folder / 'repository'}", f"-DoutputDirectory={lib}"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=RESOLVE_TIMEOUT_S
        )
        if done.returncode != 0:
            raise BackendError(f"Maven could not fetch Kafka: {_tail(done.stdout + done.stderr)}")
        stamp.write_text(wanted)
    return lib


class KraftBroker:
    """Runs Apache Kafka on 127.0.0.1 between `start` and `stop`; a context manager.

    `stop` or `kill` followed by `start` is a restart: address and data stay.

    Resource handling: owns one Java process in a session of its own, and a folder that the
    caller removes.
    """

    def __init__(self, jars: Path, folder: Path) -> None:
        """Describe the broker.

        Args:
            jars: what `resolve_jars` returned.
            folder: for configuration, data and log; made if absent.
        """
        self._jars, self._folder = jars, folder
        self._process: subprocess.Popen[bytes] | None = None
        self._port, self._controller = free_ports(2)
        self.start_s = 0.0
        """How long the last start took, in seconds."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def bootstrap(self) -> str:
        """`host:port` for clients."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Format the storage if it is new, start, and wait until clients are served.

        Raises:
            BackendError: the storage could not be formatted.
            UnavailableError: the broker ended or did not answer in time.
        """
        began = time.monotonic()
        self._prepare()
        with (self._folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java("-Xms256m", "-Xmx512m"), "kafka.Kafka", str(self._properties)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait_ready(began + START_TIMEOUT_S)
        except BaseException:
            self.kill()
            raise
        self.start_s = time.monotonic() - began

    def stop(self) -> None:
        """Ask the broker to end and wait; may be called again."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()

    def kill(self) -> None:
        """End the broker at once, as a crash would."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @property
    def _properties(self) -> Path:
        return self._folder / "server.properties"

    def _java(self, *options: str) -> list[str]:
        log = f"-Dlog4j.configuration=file:{self._folder / 'log4j.properties'}"
        return ["java", *options, "-cp", f"{self._jars}/*", log]

    def _prepare(self) -> None:
        data = self._folder / "data"
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "log4j.properties").write_text(LOG_PROPERTIES)
        self._properties.write_text(
            PROPERTIES.format(port=self._port, controller=self._controller, data=data)
        )
        if (data / "meta.properties").exists():
            return
        command = [*self._java(), "kafka.tools.StorageTool", "format"]
        command += ["-t", cluster_id(), "-c", str(self._properties)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=START_TIMEOUT_S
        )
        if done.returncode != 0:
            raise BackendError(f"cannot format Kafka's storage: {_tail(done.stdout + done.stderr)}")

    def _wait_ready(self, until: float) -> None:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        while True:
            if self._process is None or self._process.poll() is not None:
                raise UnavailableError(f"Kafka ended while it started: {self._log_tail()}")
            try:
                if admin.list_topics(timeout=1.0).brokers:
                    return
            except KafkaException:
                if time.monotonic() > until:
                    message = f"Kafka did not answer in time: {self._log_tail()}"
                    raise UnavailableError(message) from None
                time.sleep(POLL_S)

    def _log_tail(self) -> str:
        return _tail((self._folder / "broker.log").read_text(errors="replace"))


def cluster_id() -> str:
    """Return a new cluster id: 16 bytes in URL-safe base 64, never with a leading dash."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # A tool would take it for an option.
        if not text.startswith("-"):
            return text


def free_ports(count: int) -> list[int]:
    """Return TCP ports of 127.0.0.1 that nobody listens on; another process may take them."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-LOG_TAIL_LINES:])
