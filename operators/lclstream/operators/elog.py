"""Tells the Elog how a transfer ended: as counters beside the run, or of the job that asked.

Where they go, the first of these that exists: `counters_url` in the run's conf, `elog_job` in
the run's conf (a workflow job that somebody started by hand), the counters URL of the connection.
The connection type `lclstream_elog` holds the logbook's URL and, in its extra, `identity` (a
folder with id.crt, id.key, ca.crt) and `counters_url` (`{experiment}` and `{run}` are filled in).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airflow.sdk.bases.hook import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from lclstream.core.errors import InvalidConfigError, LclstreamError
from lclstream.elog.client import ElogClient, RunCounters
from lclstream.operators.progress import counters
from lclstream.transfers.models import TransferInfo
from lclstream.transfers.states import Phase

STATUS = {Phase.COMPLETED: "DONE", Phase.CANCELED: "EXITED", Phase.FAILED: "FAILED"}


class ElogHook(BaseHook):
    """Makes clients of the logbook that a connection names."""

    conn_name_attr = "elog_conn_id"
    default_conn_name = "lclstream_elog"
    conn_type = "lclstream_elog"
    hook_name = "LCLStream Elog"

    def __init__(self, elog_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.elog_conn_id = elog_conn_id

    def get_conn(self) -> ElogClient:
        """Return a client; a context manager that the caller closes."""
        connection = self.get_connection(self.elog_conn_id)
        if not connection.host:
            raise InvalidConfigError(f"connection {self.elog_conn_id!r}: no host, the Elog's URL")
        return ElogClient(connection.host, identity=_identity(connection))

    def test_connection(self) -> tuple[bool, str]:
        """Ask for the definitions of an experiment that does not exist: who answers is there."""
        try:
            with self.get_conn() as client:
                client.workflow_definitions("none")
        except LclstreamError as error:
            return error.status in (400, 404), str(error)
        return True, "the Elog answered"

    def settings(self) -> tuple[Path | None, str]:
        """Return the identity folder and the template of the counters URL."""
        connection = self.get_connection(self.elog_conn_id)
        return _identity(connection), str(connection.extra_dejson.get("counters_url") or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Poster:
    """Posts the outcome of a transfer; a failure to do so is logged and disturbs nobody."""

    conf: Mapping[str, Any]
    """What the watcher of the Elog gave to the DAG run."""
    conn_id: str
    """Connection of type `lclstream_elog`; need not exist when the conf says where."""
    identity: Path
    """What to show to the Elog where the connection does not say."""
    log: Any
    """Logger of the task."""

    def post(self, info: TransferInfo) -> None:
        """Post all counters of a transfer that has ended."""
        try:
            where = self._post(info)
        except (LclstreamError, AirflowNotFoundException) as error:
            self.log.warning("the outcome did not reach the Elog: %s", error)
        else:
            self.log.info("outcome for the Elog: %s", where)

    def _post(self, info: TransferInfo) -> str:
        identity, template = self._settings()
        if url := self.conf.get("counters_url"):
            return self._post_counters(str(url), identity, info)
        if job := self.conf.get("elog_job"):
            with ElogHook(self.conn_id).get_conn() as client:
                client.update_workflow_job(
                    info.experiment, str(job), status=STATUS[info.phase], counters=counters(info)
                )
            return f"workflow job {job}"
        if template:
            names = {"experiment": info.experiment, "run": str(info.run)}
            for name, value in names.items():
                template = template.replace(f"{{{name}}}", quote(value, safe=""))
            return self._post_counters(template, identity, info)
        return "nobody has asked for it"

    def _settings(self) -> tuple[Path, str]:
        try:
            identity, template = ElogHook(self.conn_id).settings()
        except AirflowNotFoundException:
            return self.identity, ""
        return identity or self.identity, template

    def _post_counters(self, url: str, identity: Path, info: TransferInfo) -> str:
        if not url.startswith("https://"):
            raise InvalidConfigError(f"counters go to https:// only, got {url!r}")
        with RunCounters(url, identity=identity) as posted:
            if not posted.post(counters(info)):
                return f"{url} did not take it"
        return url


def _identity(connection: Any) -> Path | None:
    folder = connection.extra_dejson.get("identity")
    return Path(folder) if folder else None
