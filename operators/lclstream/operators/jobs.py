"""The operator that submits what works on a stream: any script, as jobs at any site."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lclstream.operators.reservation import (
    LEASE_S,
    Reservation,
    TransferOperator,
    document,
)
from lclstream.transfers.client import TransfersClient


class SubmitJobOperator(TransferOperator):
    """Submit jobs that pull from the transfer's buffer; they start as soon as it listens.

    The script finds the URL to pull from in `$LCLSTREAM_URL`. Running the task again starts
    nothing twice.
    """

    template_fields: Sequence[str] = (
        "transfer",
        "script",
        "site",
        "count",
        "environment",
        "job_resources",
        "name",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "script": "bash",
        "job_resources": "json",
        "environment": "json",
    }
    role = "consumer"

    def __init__(
        self,
        *,
        transfer: Any,
        script: str,
        site: str | None = None,
        count: int | str = 1,
        environment: Mapping[str, str] | str | None = None,
        job_resources: Mapping[str, Any] | str | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Describe the jobs.

        Args:
            transfer: output of the `ReserveTransferOperator`.
            script: text of the script; a first line such as `#!/bin/bash` chooses who runs it.
            site: where the jobs run; by default where the producers run.
            count: how many jobs share the stream.
            environment: variables for the script.
            job_resources: fields of a ResourceSpec, such as `node_count` or `duration`.
            name: of the jobs, unique in the transfer; by default the task's id. A mapped task
                adds its index.
            kwargs: what every operator of a transfer takes.
        """
        super().__init__(transfer=transfer, **kwargs)
        self.script = script
        self.site = site
        self.count = count
        self.environment = environment
        self.job_resources = job_resources
        self.name = name or self.task_id

    def job_name(self, ti: Any) -> str:
        """Return the name of the jobs; each instance of a mapped task has its own."""
        return str(self.name) if ti.map_index < 0 else f"{self.name}-{ti.map_index}"

    def work(self, context: Any, client: TransfersClient, reservation: Reservation) -> int:
        """Ask the service for them."""
        wanted = {
            "role": "consumer",
            "name": self.job_name(context["ti"]),
            "script": self.script,
            "site": self.site,
            "count": self.count,
            "environment": document(self.environment),
            "resources": document(self.job_resources),
        }
        reservation.lease(client, LEASE_S)
        client.start(reservation.id, {k: v for k, v in wanted.items() if v is not None and v != ""})
        return reservation.id
