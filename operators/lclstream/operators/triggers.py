"""Waits for the end of a transfer in the triggerer, where waiting costs no worker."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from lclstream.core.errors import (
    ConflictError,
    IllegalTransitionError,
    LclstreamError,
    RequestError,
)
from lclstream.operators.hooks import LclstreamHook
from lclstream.operators.progress import Progress
from lclstream.operators.reservation import ALIVE, TAKE_OVER_S
from lclstream.transfers.client import AsyncTransfersClient

WAIT_S = 5.0
"""Longest time without an answer of the service: a progress line is due then."""
RENEWALS = 4
"""How often a lease is renewed in its life."""
OUTAGE_S = 600.0
"""A service that is away for longer is reported; until then it may be restarted in peace."""
RETRY_S = 2.0
KILL_TIMEOUT_S = 10.0


class SuperviseTrigger(BaseTrigger):
    """Watches a transfer, keeps its lease and ends with exactly one event.

    Airflow may run a trigger twice at once for a while; this one only looks and renews, so
    that does no harm. What it says appears in the task's log.
    """

    def __init__(
        self,
        *,
        lclstream_conn_id: str,
        transfer: int,
        holder: str,
        generation: int,
        deadline: float,
        lease_s: float,
    ) -> None:
        """Take what `serialize` gave.

        Args:
            lclstream_conn_id: names the connection; the credentials stay where it points.
            transfer: id of the transfer.
            holder: who keeps the lease.
            generation: counts the holders of one transfer.
            deadline: Unix time at which waiting ends; `defer(timeout=...)` would end it
                without a word to the task.
            lease_s: for how long each renewal holds.
        """
        super().__init__()
        self.lclstream_conn_id = lclstream_conn_id
        self.transfer = transfer
        self.holder = holder
        self.generation = generation
        self.deadline = deadline
        self.lease_s = lease_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments, all of which JSON can hold."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "lclstream_conn_id": self.lclstream_conn_id,
                "transfer": self.transfer,
                "holder": self.holder,
                "generation": self.generation,
                "deadline": self.deadline,
                "lease_s": self.lease_s,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event: `ended`, `deadline`, `superseded` or `lost`, with the reason."""
        hook = LclstreamHook(self.lclstream_conn_id)
        try:
            async with await hook.get_async_conn() as client:
                event = await self._watch(client)
        except ConflictError as error:
            event = {"status": "superseded", "reason": str(error)}
        except LclstreamError as error:
            event = {"status": "lost", "reason": f"{type(error).__name__}: {error}"}
        yield TriggerEvent({"transfer": self.transfer, **event})

    async def _watch(self, client: AsyncTransfersClient) -> dict[str, Any]:
        progress = Progress(self.log.info)
        version = 0
        renewal = time.monotonic()
        outage: float | None = None
        while (left_s := self.deadline - time.time()) > 0:
            # Not the time of day: a step of it must not keep the lease from being renewed.
            now = time.monotonic()
            try:
                if now >= renewal:
                    await self._renew(client)
                    renewal = now + min(self.lease_s / RENEWALS, TAKE_OVER_S / 2)
                info = await client.wait(self.transfer, version, min(WAIT_S, left_s))
            except RequestError:
                raise
            except LclstreamError as error:
                # A stream of hours must not end because its service was unwell for a minute.
                outage = now if outage is None else outage
                if now - outage > OUTAGE_S:
                    raise
                self.log.warning("no answer from the transfers service, waiting: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            outage, version = None, info.version
            progress.show(info)
            if info.is_final:
                return {"status": "ended", "phase": info.phase.value, "reason": info.reason}
        return {"status": "deadline", "reason": "the time that this task may take is over"}

    async def _renew(self, client: AsyncTransfersClient) -> None:
        try:
            await client.lease(
                self.transfer, holder=self.holder, generation=self.generation, ttl_s=self.lease_s
            )
        except IllegalTransitionError as error:
            # A transfer that is about to end needs no lease; its end is what we wait for.
            self.log.info("lease not renewed: %s", error)

    async def on_kill(self) -> None:
        """Give the lease back when somebody ended the task: the service ends the transfer.

        Called also when the task was cleared, and sometimes by a triggerer that stalled and
        lost the trigger to another one. In both cases the task is not over: then the lease
        stays. A newer holder's lease is not touched, that is what its generation is for.
        """
        if await self._task_goes_on():
            self.log.info("the task goes on, the transfer is left alone")
            return
        hook = LclstreamHook(self.lclstream_conn_id)
        async with asyncio.timeout(KILL_TIMEOUT_S), await hook.get_async_conn() as client:
            await client.lease(
                self.transfer,
                holder=self.holder,
                generation=self.generation,
                ttl_s=self.lease_s,
                release=True,
            )
        self.log.info("gave back the lease on transfer %s", self.transfer)

    async def _task_goes_on(self) -> bool:
        ti = self.task_instance
        if ti is None:
            return False
        states = await sync_to_async(RuntimeTaskInstance.get_task_states)(
            dag_id=ti.dag_id, run_ids=[ti.run_id], task_ids=[ti.task_id]
        )
        key = ti.task_id if ti.map_index < 0 else f"{ti.task_id}_{ti.map_index}"
        return states.get(ti.run_id, {}).get(key) in ALIVE
