"""A beamline in a box: everything the main job needs, on 127.0.0.1.

A logbook that publishes run events, a Kafka broker, an Airflow with our DAGs and plug-in, two
sites with a jobs service and a SLURM cluster each, the transfers service, and the watcher.
"""

import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import yaml

from lclstream.core.errors import InvalidConfigError, UnavailableError
from lclstream.demo.airflow import Airflow
from lclstream.demo.identities import OPERATOR, Identities, create_identities
from lclstream.demo.kafka import FAST_CLIENT, MockKafka
from lclstream.demo.processes import ServiceProcess, lclstream_command
from lclstream.demo.sites import Site, why_no_slurm
from lclstream.elog import calls
from lclstream.elog.client import ElogClient
from lclstream.elog.play import prepare_experiment
from lclstream.identity.client import sync_client
from lclstream.transfers.client import TransfersClient

DAG = "stream_on_run_start"
INSTRUMENT = "MFX"
TOPICS = dict.fromkeys(
    (
        "elog",
        "experiment_switch",
        "experiments",
        "file_catalog",
        "instruments",
        "roles",
        "runs",
        "samples",
        "shifts",
        "workflow_jobs",
    ),
    4,
)
"""Topics of the logbook and their partitions."""
LOGBOOK_EXECUTABLE = "lclstream-arp"
"""What marks a workflow definition in the logbook as ours."""


@dataclass(slots=True, kw_only=True)
class Beamline:
    """Everything that runs, between `start` and `stop`; a context manager.

    Resource handling: owns every process below it; `stop` ends them, last started first. The
    folder is left to the caller.
    """

    folder: Path
    kafka: str | None = None
    """`host:port` of a broker to use; None starts the embedded one."""
    slurm: bool | None = None
    """Whether the sites run SLURM; None = where it is installed."""
    dags: Path | None = None
    """Folder of DAG files; None = the repository's."""
    limits: dict[str, float] = field(default_factory=dict)
    """Time limits of every transfer, in seconds, by name."""
    log: Callable[[str, str], None] = lambda name, text: None
    """Told each step of the start: a short name and a text."""
    identities: Identities = field(init=False)
    airflow: Airflow = field(init=False)
    s3df: Site = field(init=False)
    hpc: Site = field(init=False)
    services: dict[str, ServiceProcess] = field(default_factory=dict)
    bootstrap: str = ""
    elog_url: str = ""
    transfers_url: str = ""
    transfers_config: Path = field(init=False)
    _workflow: Path = field(init=False)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything but the watcher, and wait until it is ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.identities = create_identities(self.folder / "identities")
        self._start_broker()
        self._start_sites()
        self._start_elog()
        self._start_transfers()
        self._start_airflow()

    def stop(self) -> None:
        """End every process; may be called again."""
        self._stack.close()

    def _start_broker(self) -> None:
        if self.kafka is None:
            self.bootstrap = self._stack.enter_context(MockKafka(TOPICS)).bootstrap
            self.log("kafka", f"embedded broker at {self.bootstrap}")
        else:
            self.bootstrap = self.kafka
            self.log("kafka", f"broker at {self.bootstrap}")

    def _start_sites(self) -> None:
        reason = "as asked" if self.slurm is False else why_no_slurm()
        if self.slurm and reason:
            raise UnavailableError(f"no SLURM clusters: {reason}")
        who = self.identities
        self.s3df = Site(name="s3df", folder=self.folder / "s3df", identity=who.s3df_jobs)
        self.hpc = Site(name="hpc", folder=self.folder / "hpc", identity=who.hpc_jobs)
        for site in (self.s3df, self.hpc):
            self._stack.callback(site.stop)
            reason = self._start_site(site, reason)
        for site in (self.s3df, self.hpc):
            site.wait_ready()
            how = "a SLURM cluster" if site.cluster else f"local processes ({reason})"
            self.log("site", f"{site.name}: jobs service at {site.url}, {how}")

    def _start_site(self, site: Site, reason: str | None) -> str | None:
        """Start a site with SLURM unless there is a reason not to; return the reason."""
        if reason is None:
            try:
                site.start(slurm=True)
            except UnavailableError as error:
                # Some containers lack what SLURM wants of a host.
                if self.slurm:
                    raise
                reason = f"SLURM does not start here: {str(error).splitlines()[-1]}"
                self.log("slurm", str(error))
            else:
                return None
        site.start(slurm=False)
        return reason

    def _service(self, name: str, *words: str) -> ServiceProcess:
        process = ServiceProcess(name, lclstream_command(*words), self.folder)
        self._stack.callback(process.stop)
        self.services[name] = process
        return process.start()

    def _config(self, name: str, content: dict[str, Any]) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def _start_elog(self) -> None:
        config = {
            "identity": str(self.identities.elog),
            "kafka": self.bootstrap,
            "ready_file": str(self.folder / "elog.ready"),
        }
        path = self._config("elog", config)
        announced = self._service("elog", "elog", "standin", str(path)).wait_ready()
        self.elog_url = announced["url"]
        self.log("elog", f"logbook at {self.elog_url}")

    def _start_transfers(self) -> None:
        config = {
            "port": 0,
            "identity": str(self.identities.transfers),
            "authority": str(self.identities.authority),
            "database": str(self.folder / "transfers.db"),
            "sites": [self.s3df.describe(), self.hpc.describe()],
            "admins": [f"uid:{OPERATOR}"],
            "limits": self.limits,
            "ready_file": str(self.folder / "transfers.ready"),
        }
        self.transfers_config = self._config("transfers", config)
        announced = self.start_transfers_service().wait_ready()
        self.transfers_url = announced["url"]
        # After a crash it must come back where jobs and operators look for it.
        config["port"] = int(self.transfers_url.rsplit(":", 1)[1])
        self._config("transfers", config)
        self.log("transfers", f"transfers service at {self.transfers_url}")

    def start_transfers_service(self) -> ServiceProcess:
        """Start the transfers service, again after a crash."""
        return self._service("transfers", "transfer", "serve", str(self.transfers_config))

    def _start_airflow(self) -> None:
        who = self.identities
        self.airflow = Airflow(
            self.folder / "airflow",
            dags=self.dags or dags_folder(),
            identity=who.airflow_web,
            connections={
                "lclstream": {
                    "conn_type": "lclstream",
                    "host": self.transfers_url,
                    "extra": {"identity": str(who.airflow)},
                },
                "lclstream_elog": {
                    "conn_type": "lclstream_elog",
                    "host": self.elog_url,
                    "extra": {"identity": str(who.airflow)},
                },
            },
        )
        self._stack.callback(self.airflow.stop)
        self.log("airflow", "scheduler, triggerer, DAG processor and API server are starting")
        self.airflow.start()
        self.airflow.wait_dag(DAG)
        self.log("airflow", f"ready at {self.airflow.url}")

    def begin_experiment(self, experiment: str, parameters: dict[str, Any]) -> None:
        """Register an experiment and its workflow in the logbook, and start the watcher."""
        # The logbook's definition names the workflow; what it does stands in our file.
        workflow = {
            "name": "stream-to-hpc",
            "dag": DAG,
            "trigger": "START_OF_RUN",
            "enabled": False,
            "parameters": parameters,
        }
        path = self._config("workflow", workflow)
        definition = {
            "name": "stream to HPC",
            "executable": LOGBOOK_EXECUTABLE,
            "trigger": "START_OF_RUN",
            "location": "S3DF",
            "parameters": "--workflow stream-to-hpc",
        }
        with self.elog() as elog:
            prepare_experiment(elog, experiment, INSTRUMENT)
            elog.send(calls.create_definition(experiment, definition))
        self._workflow = path
        self.start_watcher("watcher").wait_ready()
        self.log("watcher", f"waits for runs of {experiment}")

    def _watcher(self, name: str) -> dict[str, Any]:
        passwords = self.airflow.home / "simple_auth_manager_passwords.json.generated"
        options = dict(FAST_CLIENT) if self.kafka is None else {"fetch.wait.max.ms": 20}
        return {
            "kafka": {"bootstrap": self.bootstrap, "options": options},
            "airflow": {
                "url": self.airflow.url,
                "username": self.airflow.user,
                "password_file": str(passwords),
                "ca": str(self.identities.airflow_web / "ca.crt"),
            },
            "elog": {"url": self.elog_url, "identity": str(self.identities.watcher)},
            "workflows": [str(self._workflow)],
            "dead_letters": {"file": str(self.folder / "dead-letters.jsonl")},
            "counters_url": f"{self.elog_url}/jid/ws/replace_counters/{{experiment}}/{{event}}",
            "ready_file": str(self.folder / f"{name}.ready"),
        }

    def start_watcher(self, name: str) -> ServiceProcess:
        """Start a watcher of the same group, the first or a further one."""
        config = self._config(name, self._watcher(name))
        return self._service(name, "elog", "watch", str(config))

    def begin_run(self, experiment: str, run: int | None = None) -> int:
        """Begin a run in the logbook and return its number."""
        with self.elog() as elog:
            elog.send(calls.start_run(experiment, {"DAQ Detectors/jungfrau": True}, run=run))
            document = elog.current_run(experiment)
        if document is None:
            raise UnavailableError(f"the logbook does not know a current run of {experiment}")
        return int(document["num"])

    def end_run(self, experiment: str) -> None:
        """End the current run."""
        with self.elog() as elog:
            elog.send(calls.end_run(experiment))

    def counters(self, experiment: str, dag_run: str) -> dict[str, str]:
        """Return the counters that a run of ours has posted to the logbook, by their names."""
        place = f"{quote(experiment, safe='')}/{quote(dag_run, safe='')}"
        with sync_client(self.identities.watcher, self.elog_url) as http:
            answer = http.post(f"/jid/ws/get_counters/{place}", json=[]).json()
        return {re.sub("<[^>]*>", "", each["key"]): str(each["value"]) for each in answer["value"]}

    def elog(self) -> ElogClient:
        """Return a client of the logbook."""
        return ElogClient(self.elog_url, identity=self.identities.watcher)

    def transfers(self) -> TransfersClient:
        """Return a client of the transfers service, as the operator, who may see all."""
        return TransfersClient(self.transfers_url, self.identities.operator)


def dags_folder() -> Path:
    """Return the repository's DAG files.

    Raises:
        InvalidConfigError: this is not run from a checkout.
    """
    spec = find_spec("lclstream.demo")
    places = [Path.cwd()]
    if spec is not None and spec.submodule_search_locations:
        places.insert(0, Path(next(iter(spec.submodule_search_locations))).parents[2])
    for place in places:
        if (place / "dags" / f"{DAG}.py").is_file():
            return place / "dags"
    raise InvalidConfigError(
        f"no dags{os.sep}{DAG}.py: run this in a checkout of lclstream, or give --dags FOLDER"
    )
