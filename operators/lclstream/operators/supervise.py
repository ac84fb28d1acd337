"""Operators that watch a transfer to its end, and that end it."""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from lclstream.operators.elog import ElogHook, Poster
from lclstream.operators.hooks import LclstreamHook, explained
from lclstream.operators.progress import account
from lclstream.operators.reservation import (
    LEASE_S,
    STOP_S,
    Reservation,
    TransferOperator,
    wait_final,
)
from lclstream.operators.triggers import SuperviseTrigger
from lclstream.transfers.client import TransfersClient
from lclstream.transfers.models import TransferInfo
from lclstream.transfers.states import Phase

DEADLINE_S = 24 * 3600.0


class SuperviseTransferOperator(TransferOperator):
    """Wait until everything has been delivered, or something failed.

    The task is deferred and occupies no worker. Progress appears in its log.

    Returns (XCom): messages, bytes and events delivered.
    """

    template_fields: Sequence[str] = ("transfer", "deadline_s")

    def __init__(
        self,
        *,
        transfer: Any,
        deadline_s: float | str = DEADLINE_S,
        lease_s: float = LEASE_S,
        **kwargs: Any,
    ) -> None:
        """Set the limits.

        Args:
            transfer: output of the `ReserveTransferOperator`.
            deadline_s: for how long at most; then the task fails and the teardown cancels.
            lease_s: for how long the transfer lives without a sign of Airflow.
            kwargs: what every operator of a transfer takes.
        """
        super().__init__(transfer=transfer, **kwargs)
        self.deadline_s = deadline_s
        self.lease_s = lease_s

    def work(self, context: Any, client: TransfersClient, reservation: Reservation) -> Any:
        """Hand over to the trigger, unless there is nothing to wait for."""
        info = client.get(reservation.id)
        if info.is_final:
            return self._outcome(info)
        if info.phase is Phase.REQUESTED:
            raise AirflowFailException(
                f"transfer {info.id} is only reserved: nobody has started its buffer. After "
                "clearing tasks of a run that had ended, clear the starting tasks as well"
            )
        # Does not return: the task goes on in `finish`.
        return self.defer(
            trigger=SuperviseTrigger(
                lclstream_conn_id=self.lclstream_conn_id,
                transfer=reservation.id,
                holder=reservation.holder,
                generation=reservation.generation,
                deadline=time.time() + float(self.deadline_s),
                lease_s=self.lease_s,
            ),
            method_name="finish",
        )

    def finish(self, context: Any, event: Mapping[str, Any]) -> dict[str, int]:
        """Judge the end that the trigger has seen."""
        if event["status"] != "ended":
            raise AirflowFailException(f"transfer {event['transfer']}: {event['reason']}")
        with explained(), LclstreamHook(self.lclstream_conn_id).get_conn() as client:
            return self._outcome(client.get(event["transfer"]))

    def _outcome(self, info: TransferInfo) -> dict[str, int]:
        for line in account(info):
            self.log.info(line)
        if info.phase is not Phase.COMPLETED:
            raise AirflowFailException(f"transfer {info.id} {info.phase}: {info.reason}")
        last = info.ledger.hops[-1].tally
        return {"messages": last.messages, "bytes": last.bytes, "events": last.events}


class StopTransferOperator(TransferOperator):
    """End the transfer, whatever state it and the other tasks are in: the teardown of a DAG.

    Cancels what has not ended, waits until nothing of it runs any more, and sends the outcome
    to the Elog. Fails at the end if the transfer did not complete or a task before was not
    successful: that is what makes the DAG run fail, also when somebody had marked it.
    """

    def __init__(
        self,
        *,
        transfer: Any,
        stop_s: float = STOP_S,
        elog_conn_id: str = ElogHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        """Set the limits.

        Args:
            transfer: output of the `ReserveTransferOperator`.
            stop_s: for how long to wait for the end of what is cancelled.
            elog_conn_id: connection of type `lclstream_elog`; need not exist.
            kwargs: what every operator of a transfer takes.
        """
        settings: dict[str, Any] = {"retries": 6, "retry_delay": timedelta(seconds=5)} | kwargs
        super().__init__(transfer=transfer, **settings)
        self.stop_s = stop_s
        self.elog_conn_id = elog_conn_id

    def work(self, context: Any, client: TransfersClient, reservation: Reservation) -> None:
        """Cancel, wait, report, judge."""
        info = self._end(client, reservation.id)
        for line in account(info):
            self.log.info(line)
        self._post(context, info)
        faults = self._faults(context, info)
        if faults:
            raise AirflowFailException(f"transfer {info.id} did not end cleanly: {faults}")

    def on_kill(self) -> None:
        """Do nothing: the service goes on ending the transfer by itself."""

    def _end(self, client: TransfersClient, transfer: int) -> TransferInfo:
        info = client.get(transfer)
        if info.is_final:
            return info
        self.log.info("cancelling transfer %s, which is %s", transfer, info.phase)
        client.cancel(transfer)
        info = wait_final(client, info, self.stop_s)
        if not info.is_final:
            self.log.warning("transfer %s still lives, ending it at once", transfer)
            client.cancel(transfer, now=True)
            info = wait_final(client, info, self.stop_s)
        if not info.is_final:
            raise AirflowException(f"transfer {transfer} does not end: it is {info.phase}")
        return info

    def _post(self, context: Any, info: TransferInfo) -> None:
        Poster(
            conf=context["dag_run"].conf or {},
            conn_id=self.elog_conn_id,
            identity=LclstreamHook(self.lclstream_conn_id).settings()[1],
            log=self.log,
        ).post(info)

    def _faults(self, context: Any, info: TransferInfo) -> str:
        faults = []
        if info.phase is not Phase.COMPLETED:
            faults.append(f"{info.phase}: {info.reason or 'no reason given'}")
        # A task that was skipped had no part in it; if it was needed, the phase says so.
        for task, state in sorted(self._states_before(context["ti"]).items()):
            if state not in ("success", "skipped"):
                faults.append(f"task {task} is {state}")
        return "; ".join(faults)

    def _states_before(self, ti: Any) -> dict[str, str | None]:
        """Return the states of the tasks that this one comes after, by id and map index."""
        states = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id])[ti.run_id]
        before = self.get_flat_relative_ids(upstream=True)
        return {
            key: state
            for key, state in states.items()
            if key in before or key.rpartition("_")[0] in before
        }
