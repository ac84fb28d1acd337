"""Operators that reserve a transfer and start its buffer and streamer.

They are thin: the transfers service owns the transfer, starts its jobs, keeps its ledger and
ends it also when Airflow is gone. What belongs together in a DAG:

```python
reserve = ReserveTransferOperator(task_id="reserve", ...)
buffer = StartBufferOperator(task_id="start_buffer", transfer=reserve.output)
streamer = SubmitStreamerOperator(task_id="submit_streamer", transfer=reserve.output)
watch = SuperviseTransferOperator(task_id="supervise", transfer=reserve.output)
stop = StopTransferOperator(task_id="stop", transfer=reserve.output)
reserve >> buffer >> streamer >> watch
watch >> stop.as_teardown(setups=reserve, on_failure_fail_dagrun=True)
```

Only a teardown runs after somebody marked the run failed, and only if its setup was well:
hence `reserve`, which the last line makes the setup, does nothing but reserve, and `stop` ends
everything. Without `on_failure_fail_dagrun` such a run could end as a success. No
`dagrun_timeout`: it skips the teardown.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, ClassVar

from airflow.sdk import BaseOperator, BaseOperatorLink
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from lclstream.core.errors import IllegalTransitionError, InvalidConfigError
from lclstream.core.models import parse
from lclstream.operators.elog import ElogHook
from lclstream.operators.hooks import DEFAULT_CONNECTION, LclstreamHook, explained
from lclstream.operators.links import TransferLink, push_links
from lclstream.operators.reservation import (
    ALIVE,
    LEASE_S,
    STOP_S,
    Reservation,
    TransferOperator,
    document,
    wait_final,
)
from lclstream.transfers.client import TransfersClient
from lclstream.transfers.models import TransferInfo, TransferRequest, TransferStatus
from lclstream.transfers.states import CLOSING, FINAL

ENDING = CLOSING | FINAL
PLAIN = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*")


class ReserveTransferOperator(BaseOperator):
    """Write the transfer into the service's ledger; nothing is started.

    The setup of a DAG. Safe to run again: the same task of the same run gets the same transfer,
    unless that one has ended and tasks that start something were cleared as well: then the run
    streams anew and gets a new one.

    Returns (XCom): id, lease holder and generation, for `transfer=reserve.output`.
    """

    template_fields: Sequence[str] = (
        "streamer",
        "experiment",
        "run",
        "producers",
        "site",
        "buffer_site",
        "memory",
        "limits",
        "begin_time",
        "max_age_s",
        "refuse_ended",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"streamer": "json", "limits": "json"}
    operator_extra_links: Collection[BaseOperatorLink] = (TransferLink(),)

    def __init__(
        self,
        *,
        streamer: Any,
        experiment: Any,
        run: Any,
        producers: int | str = 1,
        site: str | None = None,
        buffer_site: str | None = None,
        memory: str | None = None,
        limits: Mapping[str, float] | str | None = None,
        begin_time: Any = None,
        max_age_s: float | str | None = None,
        refuse_ended: bool | str = False,
        elog_conn_id: str = ElogHook.default_conn_name,
        lclstream_conn_id: str = DEFAULT_CONNECTION,
        lease_s: float = LEASE_S,
        **kwargs: Any,
    ) -> None:
        """Describe the stream.

        Args:
            streamer: configuration of the streamer, without handlers; also as YAML or JSON text.
                `{experiment}` and `{run}` in its `source_identifier` are filled in, as in
                `exp={experiment},run={run}`.
            experiment: its name; text, or `dag.param("experiment")`.
            run: its number, or its name where runs have names.
            producers: how many ranks read and send.
            site: where they run; by default the service's first site.
            buffer_site: where the buffer runs; by default where the producers run.
            memory: how much the buffer may hold, e.g. "256MiB".
            limits: `start_s`, `idle_s`, `drain_s`, `total_s`; the service's own are upper bounds.
            begin_time: when the run began, RFC 3339.
            max_age_s: refuse a run that began longer ago: a DAG that was paused keeps the runs
                it got, and streams old ones when it is resumed. None or 0: take any. A transfer
                that has begun is never refused: whoever clears a task takes it over.
            refuse_ended: refuse likewise a run that has ended by now, as the Elog says.
            elog_conn_id: connection of type `lclstream_elog`, for `refuse_ended`.
            lclstream_conn_id: connection of type `lclstream`.
            lease_s: for how long the transfer lives without a sign of Airflow.
            kwargs: what every operator takes.
        """
        settings: dict[str, Any] = {"retries": 3, "retry_delay": timedelta(seconds=5)} | kwargs
        super().__init__(**settings)
        self.streamer = streamer
        self.experiment = experiment
        self.run = run
        self.producers = producers
        self.site = site
        self.buffer_site = buffer_site
        self.memory = memory
        self.limits = limits
        self.begin_time = begin_time
        self.max_age_s = max_age_s
        self.refuse_ended = refuse_ended
        self.elog_conn_id = elog_conn_id
        self.lclstream_conn_id = lclstream_conn_id
        self.lease_s = lease_s

    def execute(self, context: Any) -> dict[str, Any]:
        """Refuse what is too old to begin, else reserve and take the lease."""
        ti = context["ti"]
        holder = f"{ti.dag_id}/{ti.run_id}/{ti.task_id}"
        if ti.map_index >= 0:
            holder += f"/{ti.map_index}"
        with explained(), LclstreamHook(self.lclstream_conn_id).get_conn() as client:
            if not self._has_begun(client, ti, holder):
                self._refuse_stale()
                self._refuse_ended()
            request = self._request()
            reservation = self._reserve(client, request, ti, holder)
        push_links(ti, reservation.id)
        return asdict(reservation)

    def _request(self) -> TransferRequest:
        wanted = {
            "streamer": self._streamer(),
            "experiment": str(self.experiment),
            "run": self.run,
            "producers": self.producers,
            "site": self.site,
            "buffer_site": self.buffer_site,
            "memory": self.memory,
            "limits": document(self.limits),
        }
        given = {name: value for name, value in wanted.items() if value not in (None, "")}
        return parse(TransferRequest, {**given, "hold": True}, f"task {self.task_id!r}")

    def _streamer(self) -> Any:
        """Return the streamer's configuration for this run."""
        streamer = document(self.streamer)
        if not isinstance(streamer, Mapping):
            return streamer
        identifier = streamer.get("source_identifier")
        if not isinstance(identifier, str):
            return streamer
        for name, value in (("experiment", str(self.experiment)), ("run", str(self.run))):
            place = f"{{{name}}}"
            if place not in identifier:
                continue
            # It becomes part of a list of options and paths.
            if not PLAIN.fullmatch(value):
                raise InvalidConfigError(
                    f"source_identifier: {name} must be letters, digits, '_', '.', '+' or '-' to "
                    f"be filled in, got {value!r}"
                )
            identifier = identifier.replace(place, value)
        return {**streamer, "source_identifier": identifier}

    def _reserve(
        self, client: TransfersClient, request: TransferRequest, ti: Any, holder: str
    ) -> Reservation:
        for life in count(1):
            status = client.create(request, key=f"{holder}#{life}")
            info = client.get(status.id)
            if info.phase not in ENDING and (taken := self._take(client, info, holder)):
                return taken
            info = self._ended(client, info.id)
            if not self._starts_again(ti):
                # Somebody cleared the watch while the stream ended; it wants to know how.
                self.log.info(
                    "transfer %s has ended (%s) and is kept: no task that would start another "
                    "one runs again. To stream anew, clear those too",
                    info.id,
                    info.phase,
                )
                return Reservation(id=info.id, holder=holder, generation=_generation(info))
            self.log.info("transfer %s of an earlier try is %s", info.id, info.phase)
        raise AssertionError

    def _take(self, client: TransfersClient, info: TransferInfo, holder: str) -> Reservation | None:
        """Take the lease; None if the transfer began to end before that."""
        reservation = Reservation(id=info.id, holder=holder, generation=_generation(info) + 1)
        try:
            reservation.lease(client, self.lease_s)
        except IllegalTransitionError as error:
            self.log.info("transfer %s: %s", info.id, error)
            return None
        self.log.info("transfer %s is reserved (%s)", info.id, info.phase)
        return reservation

    def _ended(self, client: TransfersClient, transfer: int) -> TransferInfo:
        """Return a transfer of an earlier try once it has ended."""
        info = client.get(transfer)
        if not info.is_final:
            self.log.info("transfer %s of an earlier try is ending", info.id)
            info = wait_final(client, info, STOP_S)
        if not info.is_final:
            raise AirflowException(f"transfer {info.id} of an earlier try is {info.phase} yet")
        return info

    def _starts_again(self, ti: Any) -> bool:
        """Return whether a task after this one is going to start something of a transfer.

        True for an operator that is in no DAG: then nothing is known of who comes after it.
        """
        if not self.has_dag():
            return True
        starters = {task.task_id for task in self.get_flat_relatives() if _starts(task)}
        if not starters:
            return True
        found = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id], task_ids=sorted(starters))
        states = found.get(ti.run_id, {}).values()
        return not states or any(state in ALIVE for state in states)

    def _has_begun(self, client: TransfersClient, ti: Any, holder: str) -> bool:
        """Return whether this run has a transfer that will not be replaced by a new one."""

        def ours(found: Iterable[TransferStatus]) -> bool:
            about = str(self.experiment), str(self.run)
            same = [each.id for each in found if (each.experiment, str(each.run)) == about]
            leases = [client.get(each).lease for each in same]
            return any(lease and lease.holder == holder for lease in leases)

        if ours(client.list(final=False)):
            return True
        return not self._starts_again(ti) and ours(client.list())

    def _refuse_stale(self) -> None:
        if not self.max_age_s or not self.begin_time:
            return
        begun = _moment(str(self.begin_time))
        age_s = (datetime.now(UTC) - begun).total_seconds()
        if age_s > float(self.max_age_s):
            raise AirflowFailException(
                f"run {self.run} of {self.experiment} began {age_s:.0f} s ago, at "
                f"{self.begin_time}; more than {self.max_age_s} s is refused"
            )

    def _refuse_ended(self) -> None:
        # A template that is not native gives text.
        if str(self.refuse_ended).lower() not in ("true", "1"):
            return
        with ElogHook(self.elog_conn_id).get_conn() as elog:
            run = elog.run(str(self.experiment), self.run)
        if run is not None and run.get("end_time"):
            raise AirflowFailException(
                f"run {self.run} of {self.experiment} has ended, at {run['end_time']}"
            )


def _generation(info: TransferInfo) -> int:
    """Return how often the lease was taken."""
    return info.lease.generation if info.lease else 0


def _starts(task: Any) -> bool:
    """Return whether a task starts something of a transfer."""
    kind = getattr(task, "operator_class", type(task))  # of a mapped task
    return issubclass(kind, TransferOperator) and bool(kind.role)


def _moment(text: str) -> datetime:
    """Return a time; one without a zone is UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidConfigError(f"begin_time: expected RFC 3339, got {text!r}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class StartBufferOperator(TransferOperator):
    """Start the buffer; asking twice starts it once."""

    role = "buffer"

    def work(self, context: Any, client: TransfersClient, reservation: Reservation) -> int:
        """Ask the service for it."""
        reservation.lease(client, LEASE_S)
        client.start(reservation.id, {"role": "buffer"})
        return reservation.id


class SubmitStreamerOperator(TransferOperator):
    """Submit the producers; they start as soon as the buffer listens."""

    role = "producer"

    def work(self, context: Any, client: TransfersClient, reservation: Reservation) -> int:
        """Ask the service for them."""
        reservation.lease(client, LEASE_S)
        client.start(reservation.id, {"role": "producer"})
        return reservation.id
