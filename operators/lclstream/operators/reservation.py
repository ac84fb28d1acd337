"""What all tasks of one transfer share: which one it is, its lease, its links."""

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml
from airflow.sdk import BaseOperator, BaseOperatorLink
from airflow.sdk.exceptions import AirflowFailException

from lclstream.core.errors import LclstreamError
from lclstream.operators.hooks import DEFAULT_CONNECTION, LclstreamHook, explained
from lclstream.operators.links import JobLogsLink, TransferLink, push_links
from lclstream.transfers.client import TransfersClient
from lclstream.transfers.models import TransferInfo

LEASE_S = 300.0
"""How long a transfer outlives an Airflow that is gone: longer than a restart takes."""
KILL_TIMEOUT_S = 2.5
"""Airflow kills the process 5 s after it asked `on_kill` to hurry."""
TAKE_OVER_S = 120.0
"""How long a transfer outlives a task that was killed: until its next try, or that of `reserve`,
has been scheduled and started on a busy machine. The next try may be there already: the trigger
renews twice in this time."""
STOP_S = 90.0
"""Longest time for the service to end a transfer: its own limits add up to less."""
WAIT_S = 5.0
# States of a task that will run again, or still runs: somebody cleared it, nobody ended it.
ALIVE = frozenset(
    {
        None,
        "deferred",
        "queued",
        "restarting",
        "running",
        "scheduled",
        "up_for_reschedule",
        "up_for_retry",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What `reserve` hands to the other tasks, by XCom; holds no secret."""

    id: int
    holder: str
    """Who keeps the transfer's lease: the DAG run, and the task that reserved it."""
    generation: int
    """Grows whenever `reserve` runs again, so that what an earlier try says is ignored."""

    @classmethod
    def read(cls, value: object) -> "Reservation":
        """Return what a task got as its `transfer`.

        Raises:
            AirflowFailException: it is something else; says what is wanted.
        """
        if isinstance(value, Mapping) and set(value) == {"id", "holder", "generation"}:
            return cls(**value)
        raise AirflowFailException(
            f"transfer: must be the output of ReserveTransferOperator, "
            f"as in transfer=reserve.output, got {value!r}"
        )

    def lease(self, client: TransfersClient, ttl_s: float) -> None:
        """Take or renew the lease."""
        client.lease(self.id, holder=self.holder, generation=self.generation, ttl_s=ttl_s)


class TransferOperator(BaseOperator):
    """Base of the operators that work on a reserved transfer."""

    template_fields: Sequence[str] = ("transfer",)
    operator_extra_links: Collection[BaseOperatorLink] = (TransferLink(), JobLogsLink())
    role: ClassVar[str] = ""
    """Whose logs the task's link shows; empty: those of all jobs."""

    def __init__(
        self, *, transfer: Any, lclstream_conn_id: str = DEFAULT_CONNECTION, **kwargs: Any
    ) -> None:
        """Take what every task of a transfer needs.

        Args:
            transfer: output of the `ReserveTransferOperator`.
            lclstream_conn_id: connection of type `lclstream`.
            kwargs: what every operator takes.
        """
        super().__init__(**kwargs)
        self.transfer = transfer
        self.lclstream_conn_id = lclstream_conn_id
        self._running: tuple[LclstreamHook, Reservation] | None = None

    def execute(self, context: Any) -> Any:
        """Do the task's work on the transfer; a fault that cannot pass fails the task at once."""
        reservation = Reservation.read(self.transfer)
        hook = LclstreamHook(self.lclstream_conn_id)
        with explained(), hook.get_conn() as client:
            self._running = hook, reservation
            push_links(context["ti"], reservation.id, self.role, self.job_name(context["ti"]))
            return self.work(context, client, reservation)

    def job_name(self, ti: Any) -> str:
        """Return whose logs the task's link shows, among the jobs of its role; empty: all."""
        del ti
        return ""

    def work(self, context: Any, client: TransfersClient, reservation: Reservation) -> Any:
        """Do the task's work with a client that is open."""
        raise NotImplementedError

    def on_kill(self) -> None:
        """Shorten the lease, in one quick call: the service ends the transfer soon.

        A task that is being killed cannot know whether it was ended, or was cleared or lost its
        worker and runs again. Then it, or `reserve`, renews the lease: for this there must be
        time. Where nobody does, the teardown cancels, and if that is gone too, the lease lapses.
        """
        if self._running is None:
            return
        call = threading.Thread(target=self._shorten, args=self._running, daemon=True)
        call.start()
        call.join(KILL_TIMEOUT_S)

    def _shorten(self, hook: LclstreamHook, reservation: Reservation) -> None:
        try:
            with hook.get_conn() as client:
                reservation.lease(client, TAKE_OVER_S)
        except LclstreamError as error:
            self.log.warning("could not shorten the lease: %s", error)


def document(value: Any) -> Any:
    """Return what a structured argument holds; text is read as YAML or JSON.

    A template gives text, unless its DAG renders templates as native objects.
    """
    if not isinstance(value, str) or not value:
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise AirflowFailException(f"neither YAML nor JSON: {error}") from None


def wait_final(client: TransfersClient, info: TransferInfo, timeout_s: float) -> TransferInfo:
    """Wait until a transfer has ended, or the time is over, and return how it is then."""
    deadline = time.monotonic() + timeout_s
    while not info.is_final and (left := deadline - time.monotonic()) > 0:
        info = client.wait(info.id, info.version, min(WAIT_S, left))
    return info
