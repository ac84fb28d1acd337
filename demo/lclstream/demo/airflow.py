"""A real Airflow without a terminal: scheduler, triggerer, DAG processor and API server.

`airflow standalone` would do, but it ends only its own process when it is asked to stop,
opens two log servers on every interface of the machine, and tells nobody when it is ready.
Here each part is a process in a session of its own, so that one part can be killed and
started again and nothing survives `stop`. The API server speaks TLS with the identity it
is given; workers reach it by the same address and check the same certificate authority.

Data: SQLite and the LocalExecutor under one folder. Good for a demonstration and for tests,
not for a facility.
"""

import json
import os
import secrets
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import httpx

from lclstream.core.errors import BackendError, UnavailableError
from lclstream.core.http import translate_errors
from lclstream.demo.sessions import exited, free_port, kill, members

START_TIMEOUT_S = 300.0
"""A machine with two cores and nothing else to do needs 25 s, a busy one several times that."""

STOP_TIMEOUT_S = 3.0
"""What is given to the processes between the request to end and the kill."""

POLL_S = 0.1
LOCKED_S = 60

PARTS: Mapping[str, Sequence[str]] = {
    # Without the log servers: the API server reads the same folder, and they would listen on
    # fixed ports of all interfaces.
    "api-server": ("api-server",),
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "triggerer": ("triggerer", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
}
HEARTBEATS: Mapping[str, str] = {
    "scheduler": "latest_scheduler_heartbeat",
    "triggerer": "latest_triggerer_heartbeat",
    "dag_processor": "latest_dag_processor_heartbeat",
}

WARM_START = '''\
"""Let the scheduler load what every task needs, before it forks its workers.

Each worker would else load it before its first task, which takes seconds.
"""

import sys

if "scheduler" in sys.argv:
    import airflow.sdk.execution_time.supervisor
    import airflow.sdk.execution_time.task_runner
    import lclstream.operators.jobs
    import lclstream.operators.supervise
    import lclstream.operators.transfer
'''
"""Airflow imports `config/airflow_local_settings.py` when it starts."""


class Airflow:
    """Runs Airflow on 127.0.0.1 between `start` and `stop`; a context manager.

    Resource handling: owns the processes of every part, also those that a killed part left
    behind; all are gone when `stop` returns. `stop` may be called from another thread, then
    a `start` that is under way ends with UnavailableError. The folder is left to the caller.
    """

    def __init__(
        self,
        home: Path,
        *,
        dags: Path,
        identity: Path,
        plugins: Path | None = None,
        connections: Mapping[str, Mapping[str, Any]] | None = None,
        environment: Mapping[str, str] | None = None,
        workers: int = 4,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            home: becomes AIRFLOW_HOME; made when it is missing, reused when it is there.
            dags: the folder of DAG files.
            identity: a folder with id.crt, id.key and ca.crt; the certificate must name
                127.0.0.1.
            plugins: the folder of plug-ins; None leaves only installed ones.
            connections: by their ids, each as Airflow's JSON form wants it.
            environment: more variables for every part, e.g. `AIRFLOW__TRIGGERER__...`.
            workers: how many tasks run at once; each idle worker costs 10 MB.
        """
        self.home = home.resolve()
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.user = "admin"
        self._ca = identity.resolve() / "ca.crt"
        self._environment = self._settings(dags.resolve(), identity.resolve(), plugins, workers)
        for name, connection in (connections or {}).items():
            self._environment[f"AIRFLOW_CONN_{name.upper()}"] = json.dumps(connection)
        self._environment |= environment or {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._sessions: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._client: httpx.Client | None = None

    def _settings(
        self, dags: Path, identity: Path, plugins: Path | None, workers: int
    ) -> dict[str, str]:
        # What the caller's own Airflow is told must not reach this one.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW")}
        settings: dict[str, dict[str, object]] = {
            "core": {
                "dags_folder": dags,
                "plugins_folder": plugins.resolve() if plugins else self.home / "plugins",
                "load_examples": False,
                "dags_are_paused_at_creation": False,
                "parallelism": workers,
                "test_connection": "Enabled",
                "execution_api_server_url": f"{self.url}/execution/",
                # The default asks the name service for a full name, which may hang.
                "hostname_callable": "socket.gethostname",
            },
            "api": {
                "host": "127.0.0.1",
                "port": self.port,
                "base_url": self.url,
                "workers": 1,
                "ssl_cert": identity / "id.crt",
                "ssl_key": identity / "id.key",
                "ssl_ca_file": identity / "ca.crt",
                "client_use_public_certs": False,
            },
            "api_auth": {"jwt_secret": secrets.token_hex(64)},
            "database": {
                # Seconds for which a part waits while another one writes. After the default of 5
                # a request fails, and a task whose state could not be written is set to failed.
                "sql_alchemy_conn": f"sqlite:///{self.home}/airflow.db?timeout={LOCKED_S}",
            },
            "scheduler": {
                "scheduler_idle_sleep_time": 0.1,
                "task_instance_heartbeat_timeout": 60,
                # A killed scheduler's tasks are adopted by the next one after this time. With
                # less, one that is only slow takes itself for dead and runs its tasks anew.
                "scheduler_health_check_threshold": 60,
                "orphaned_tasks_check_interval": 10,
            },
            "triggerer": {"triggerer_health_check_threshold": 10, "job_heartbeat_sec": 2},
            "dag_processor": {"refresh_interval": 5, "min_file_process_interval": 5},
            "logging": {"base_log_folder": self.home / "logs"},
            "usage_data_collection": {"enabled": False},
        }
        return inherited | {
            "AIRFLOW_HOME": str(self.home),
            # Parts talk to 127.0.0.1 by a client that obeys the machine's proxy variables.
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "PATH": f"{Path(sys.executable).parent}:{inherited.get('PATH', '/usr/bin:/bin')}",
            **{
                f"AIRFLOW__{section.upper()}__{option.upper()}": str(value)
                for section, options in settings.items()
                for option, value in options.items()
            },
        }

    @property
    def environment(self) -> dict[str, str]:
        """What an `airflow` command needs in its environment to work on this instance."""
        return dict(self._environment)

    @property
    def password(self) -> str:
        """The password of `user`, made by Airflow at its first start."""
        written = self.home / "simple_auth_manager_passwords.json.generated"
        return str(json.loads(written.read_text())[self.user])

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Make the database, start all parts at once and wait until each has a heartbeat.

        Raises:
            UnavailableError: a part ended, or was not ready in time; names its log file.
        """
        deadline = time.monotonic() + timeout_s
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = self.home / "config" / "airflow_local_settings.py"
        settings.parent.mkdir(exist_ok=True)
        settings.write_text(WARM_START)
        migration = self._spawn("migrate", ("db", "migrate"))
        self._wait(lambda: exited(migration), deadline, "the database was made")
        if migration.wait() != 0:
            raise UnavailableError(
                f"airflow could not make its database, see {self.log('migrate')}"
            )
        since = datetime.now(UTC)
        for part in PARTS:
            self.start_part(part)
        # The first request of a task makes the server build its execution API, which takes
        # seconds; better now than when a run begins.
        with self._connect() as client:
            self._wait(
                lambda: _answers(client, "/execution/health"), deadline, "the API server answered"
            )
        self.wait_healthy(since, deadline - time.monotonic())
        self._client = self._login()

    def start_part(self, part: str) -> None:
        """Start one of `PARTS`, e.g. after `kill`; does not wait."""
        self._running[part] = self._spawn(part, PARTS[part])

    def kill(self, part: str) -> None:
        """End one part's own process as a crash would; what it started lives on."""
        process = self._running.pop(part)
        process.kill()
        process.wait()

    def log(self, part: str) -> Path:
        """Where a part writes what it has to say."""
        return self.home / f"{part}.log"

    def _spawn(self, name: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        with self._lock, self.log(name).open("ab") as log:
            if self._stopping.is_set():
                raise UnavailableError("airflow is being stopped")
            process = subprocess.Popen(
                [sys.executable, "-m", "airflow", *arguments],
                env=self._environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A keyboard interrupt must reach us first, and tasks have groups of their
                # own: only the session tells what belongs to a part.
                start_new_session=True,
            )
            self._sessions.append(process)
        return process

    def wait_healthy(self, since: datetime, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until every part has had a heartbeat after `since`.

        An older heartbeat proves nothing: the database keeps the last one of a dead part.
        """
        with self._connect() as client:
            self._wait(
                lambda: _beats(client, since), time.monotonic() + timeout_s, "all parts were ready"
            )

    def _wait(self, condition: Callable[[], bool], deadline: float, what: str) -> None:
        while not _holds(condition):
            # First of all: parts that end because they were asked to are no news.
            if self._stopping.wait(POLL_S):
                raise UnavailableError("airflow is being stopped")
            for part, process in list(self._running.items()):
                if exited(process):
                    raise UnavailableError(f"airflow {part} ended, see {self.log(part)}")
            if time.monotonic() > deadline:
                raise UnavailableError(f"airflow: time ran out before {what}, see {self.home}")
        if self._stopping.is_set():
            raise UnavailableError("airflow is being stopped")

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End every process that belongs to this Airflow; may be called twice."""
        self._stopping.set()
        with self._lock:
            if self._client:
                self._client.close()
                self._client = None
            deadline = time.monotonic() + timeout_s
            # Each part ends what it started, if it is given the time.
            for process in self._sessions:
                if not exited(process):
                    process.terminate()
            while self._members() and time.monotonic() < deadline:
                time.sleep(POLL_S / 2)
            while left := self._members():
                for pid in left:
                    kill(pid)
                time.sleep(POLL_S / 2)
            # Collected only now: until then the kernel gives the session's number to nobody.
            for process in self._sessions:
                process.wait()
            self._sessions.clear()
            self._running.clear()

    def _members(self) -> list[int]:
        return members({process.pid for process in self._sessions})

    def _connect(self, token: str = "") -> httpx.Client:
        context = ssl.create_default_context(cafile=self._ca)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(
            base_url=self.url, verify=context, headers=headers, trust_env=False, timeout=30
        )

    def _login(self) -> httpx.Client:
        who = {"username": self.user, "password": self.password}
        with self._connect() as client:
            answer = _checked(client.post("/auth/token", json=who))
        return self._connect(token=answer["access_token"])

    @property
    def client(self) -> httpx.Client:
        """A client that is logged in as `user`; closed by `stop`."""
        if self._client is None:
            raise UnavailableError("airflow is not running")
        return self._client

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Ask the REST API below `/api/v2`; returns the decoded answer.

        Raises:
            BackendError: the answer was not a success; quotes it.
            UnavailableError: there was no answer.
        """
        return _checked(self._request(method, f"/api/v2{path}", json=body, params=query))

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        with translate_errors(self.url):
            return self.client.request(method, path, **arguments)

    def wait_dag(self, dag_id: str, timeout_s: float = 60.0) -> None:
        """Wait until a DAG can be run.

        Raises:
            UnavailableError: it is not there in time; quotes Airflow's import errors.
        """
        try:
            self._wait(
                lambda: self._request("GET", f"/api/v2/dags/{dag_id}").is_success,
                time.monotonic() + timeout_s,
                f"DAG {dag_id} was read",
            )
        except UnavailableError as error:
            problems = self.call("GET", "/importErrors")["import_errors"]
            raise UnavailableError(f"{error}; import errors: {problems}") from None

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any] | None = None) -> Any:
        """Start a run under an id of the caller's."""
        body = {"logical_date": None, "dag_run_id": run_id, "conf": dict(conf or {})}
        return self.call("POST", f"/dags/{dag_id}/dagRuns", body)

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return `queued`, `running`, `success` or `failed`."""
        return str(self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def tasks(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """Return the state of each task of a run; None is not yet scheduled."""
        found = self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")
        return {task["task_id"]: task["state"] for task in found["task_instances"]}

    def tries(self, dag_id: str, run_id: str, task_id: str) -> list[dict[str, Any]]:
        """Return all tries of a task, oldest first, as the REST API describes them."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/tries"
        found = self.call("GET", path)["task_instances"]
        return sorted(found, key=lambda each: int(each["try_number"]))

    def wait_run(self, dag_id: str, run_id: str, timeout_s: float = 120.0) -> str:
        """Wait for the end of a run and return its state."""
        with self._naming_tasks(dag_id, run_id):
            self._wait(
                lambda: self.run_state(dag_id, run_id) in {"success", "failed"},
                time.monotonic() + timeout_s,
                f"run {run_id} ended",
            )
        return self.run_state(dag_id, run_id)

    def wait_task(
        self, dag_id: str, run_id: str, task_id: str, state: str, timeout_s: float = 60.0
    ) -> None:
        """Wait until a task is in a state."""
        with self._naming_tasks(dag_id, run_id):
            self._wait(
                lambda: self.tasks(dag_id, run_id).get(task_id) == state,
                time.monotonic() + timeout_s,
                f"task {task_id} was {state}",
            )

    @contextmanager
    def _naming_tasks(self, dag_id: str, run_id: str) -> Iterator[None]:
        try:
            yield
        except UnavailableError as error:
            raise UnavailableError(f"{error}; tasks: {self.tasks(dag_id, run_id)}") from None

    def task_log(self, dag_id: str, run_id: str, task_id: str, attempt: int = 1) -> list[str]:
        """Return the lines that a task wrote, oldest first."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{attempt}"
        content = self.call("GET", path, full_content=True)["content"]
        return [line["event"] if isinstance(line, dict) else str(line) for line in content]


def _holds(condition: Callable[[], bool]) -> bool:
    """Return whether a condition holds; not as long as a busy server gives no answer."""
    try:
        return condition()
    except UnavailableError:
        return False


def _answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).is_success
    except httpx.TransportError:
        return False


def _beats(client: httpx.Client, since: datetime) -> bool:
    with translate_errors(str(client.base_url)):
        answer = client.get("/api/v2/monitor/health", timeout=5)
    health = answer.json() if answer.is_success else {}
    beats = [health.get(part, {}).get(key) for part, key in HEARTBEATS.items()]
    return all(beat and datetime.fromisoformat(beat) > since for beat in beats)


def _checked(response: httpx.Response) -> Any:
    if response.is_error:
        raise BackendError(
            f"airflow answered {response.status_code} to {response.request.method} "
            f"{response.request.url.path}: {response.text[:2000]}"
        )
    return response.json() if response.content else None
