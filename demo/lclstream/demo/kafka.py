"""An embedded Kafka broker: librdkafka's mock cluster in a process of its own.

The shared library inside the `confluent-kafka` wheel contains a broker that speaks the Kafka
protocol over TCP. `MockKafka` runs it as `python -m lclstream.demo.kafka`, so that clients in
any process reach it and a client's death does not touch it.

What it is not: nothing is kept on disk, 5 MiB or 100 000 records a partition, no TLS, no SASL,
no creation of topics over the wire. After a member has left a group the next one waits about
`session.timeout.ms`, and a fetch waits the whole `fetch.wait.max.ms`: `FAST_CLIENT` holds the
client settings that make both short.
"""

import ctypes
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Self

from lclstream.core.errors import BackendError, RequestError, UnavailableError

START_TIMEOUT_S = 20.0
"""The process answers after 0.1 s on a quiet machine."""

STOP_TIMEOUT_S = 5.0

REBALANCE_DELAY_MS = 100
"""How long the first member of a group waits for others; librdkafka's default is 3 s."""

FAST_CLIENT: Mapping[str, int] = MappingProxyType(
    {"session.timeout.ms": 1000, "heartbeat.interval.ms": 200, "fetch.wait.max.ms": 20}
)
"""Consumer settings that suit this broker; a real one wants a session of 6 s or more."""

TOPIC_EXISTS = 36
"""Kafka's error code."""

BROKER = 1
"""The only broker of the cluster has this id."""


class MockKafka:
    """Runs the embedded broker between `start` and `stop`; a context manager.

    Resource handling: owns one process, which also ends when this process dies, because its
    standard input closes then.

    Error handling: `start` raises UnavailableError when the broker does not come up; commands
    raise BackendError when the broker refuses them.
    """

    def __init__(self, topics: Mapping[str, int] | None = None) -> None:
        """Describe the broker.

        Args:
            topics: name -> number of partitions of the topics that exist from the start.
        """
        self._topics = dict(topics or {})
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self.bootstrap = ""
        """`host:port` for clients, once started."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the running broker."""
        return self._running().pid

    def start(self) -> None:
        """Start the process and wait until it listens."""
        command = [sys.executable, "-m", "lclstream.demo.kafka"]
        command += [f"{name}:{partitions}" for name, partitions in self._topics.items()]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # A Ctrl-C in the terminal must not end the broker before its clients.
            start_new_session=True,
        )
        try:
            self.bootstrap = str(self._answer(START_TIMEOUT_S)["bootstrap"])
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process; may be called again."""
        process, self._process = self._process, None
        if process is None:
            return
        commands, answers = pipes(process)
        commands.close()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        answers.close()

    def create_topic(self, name: str, partitions: int = 4) -> None:
        """Create a topic, or add nothing when it exists."""
        self._command("topic", name, partitions, allowed=(0, TOPIC_EXISTS))

    def down(self) -> None:
        """Break all connections and refuse new ones, as a broker that died."""
        self._command("down", BROKER)

    def up(self) -> None:
        """Accept connections again; what was stored is still there."""
        self._command("up", BROKER)

    def fail_next(self, api_key: int, *codes: int) -> None:
        """Answer the next requests of a kind with errors.

        Args:
            api_key: 0 Produce, 1 Fetch, 8 OffsetCommit, ...
            codes: Kafka error codes, one for each request, in order.
        """
        self._command("errors", api_key, *codes)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            raise UnavailableError("the embedded Kafka broker does not run")
        return self._process

    def _command(self, *words: object, allowed: tuple[int, ...] = (0,)) -> None:
        commands, _ = pipes(self._running())
        with self._lock:
            commands.write(" ".join(map(str, words)) + "\n")
            commands.flush()
            answer = self._answer(START_TIMEOUT_S)
        if answer["result"] not in allowed:
            raise BackendError(f"the embedded Kafka broker refused {words!r}: {answer['result']}")

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        """Read one line of JSON from the process."""
        process = self._running()
        _, answers = pipes(process)
        # A broker that hangs is killed, so that the read ends.
        alarm = threading.Timer(timeout_s, process.kill)
        alarm.start()
        try:
            line = answers.readline()
        finally:
            alarm.cancel()
            alarm.join()
        if not line:
            raise UnavailableError("the embedded Kafka broker ended or did not answer in time")
        answer: dict[str, Any] = json.loads(line)
        return answer


def pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    """Return the standard input and output of a process that was started with pipes."""
    if process.stdin is None or process.stdout is None:
        raise BackendError("the process was started without pipes")
    return process.stdin, process.stdout


def library() -> ctypes.CDLL:
    """Load the librdkafka that confluent-kafka brings, with the types of what is used.

    Raises:
        BackendError: this build of confluent-kafka has no mock cluster.
    """
    import confluent_kafka

    package = Path(confluent_kafka.__file__).parent
    folders = (package.parent / "confluent_kafka.libs", package / ".dylibs")
    found = [path for folder in folders for path in sorted(folder.glob("librdkafka*"))]
    if not found:
        raise BackendError("the confluent-kafka here has no librdkafka of its own: install a wheel")
    rd = ctypes.CDLL(str(found[0]))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in (
        ("rd_kafka_conf_new", pointer, []),
        ("rd_kafka_new", pointer, [number, pointer, text, ctypes.c_size_t]),
        ("rd_kafka_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_new", pointer, [pointer, number]),
        ("rd_kafka_mock_cluster_bootstraps", text, [pointer]),
        ("rd_kafka_mock_cluster_destroy", None, [pointer]),
        ("rd_kafka_mock_topic_create", number, [pointer, text, number, number]),
        ("rd_kafka_mock_broker_set_down", number, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_up", number, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_group_initial_rebalance_delay_ms", None, [pointer, ctypes.c_int32]),
        (
            "rd_kafka_mock_push_request_errors_array",
            None,
            [pointer, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(number)],
        ),
    ):
        function = getattr(rd, name)
        function.restype, function.argtypes = result, arguments
    return rd


@contextmanager
def cluster(rd: ctypes.CDLL) -> Iterator[int]:
    """Run a mock cluster of one broker in this process; yields its handle."""
    reason = ctypes.create_string_buffer(512)
    producer = 0
    client = rd.rd_kafka_new(producer, rd.rd_kafka_conf_new(), reason, len(reason))
    if not client:
        raise BackendError(f"librdkafka did not start: {reason.value.decode()}")
    handle = rd.rd_kafka_mock_cluster_new(client, 1)
    rd.rd_kafka_mock_group_initial_rebalance_delay_ms(handle, REBALANCE_DELAY_MS)
    try:
        yield handle
    finally:
        rd.rd_kafka_mock_cluster_destroy(handle)
        rd.rd_kafka_destroy(client)


def obey(rd: ctypes.CDLL, handle: int, words: list[str]) -> int:
    """Execute one command line; return librdkafka's code, 0 for success.

    Raises:
        RequestError: the command is unknown.
    """
    match words:
        case ["topic", name, partitions]:
            return int(rd.rd_kafka_mock_topic_create(handle, name.encode(), int(partitions), 1))
        case ["down", broker]:
            return int(rd.rd_kafka_mock_broker_set_down(handle, int(broker)))
        case ["up", broker]:
            return int(rd.rd_kafka_mock_broker_set_up(handle, int(broker)))
        case ["errors", api_key, *codes]:
            array = (ctypes.c_int * len(codes))(*map(int, codes))
            rd.rd_kafka_mock_push_request_errors_array(handle, int(api_key), len(codes), array)
            return 0
    raise RequestError(f"unknown command {words!r}")


def run(topics: list[str], commands: IO[str], answers: IO[str]) -> None:
    """Be the broker until the commands end.

    Args:
        topics: `NAME:PARTITIONS` each.
        commands: one a line; see `obey`.
        answers: gets `{"bootstrap", "pid"}` first, then `{"result"}` for each command.
    """

    def say(**answer: object) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    rd = library()
    with cluster(rd) as handle:
        for topic in topics:
            obey(rd, handle, ["topic", *topic.rsplit(":", 1)])
        say(bootstrap=rd.rd_kafka_mock_cluster_bootstraps(handle).decode(), pid=os.getpid())
        for line in commands:
            try:
                result: int | str = obey(rd, handle, line.split())
            except (RequestError, ValueError) as error:
                result = str(error)
            say(result=result)


if __name__ == "__main__":
    run(sys.argv[1:], sys.stdin, sys.stdout)
