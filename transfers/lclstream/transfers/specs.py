"""The jobs of a transfer as their sites run them: script, environment, files.

A job gets its own short-lived identity in the folder `identity` of its work folder, and learns
from LCLSTREAM_* variables which transfer and role it has, where the data flow and where to report.
Every value that ends up in a script is quoted for the shell.
"""

import hashlib
import hmac
import json
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from lclstream.core.errors import InvalidConfigError
from lclstream.core.ledger import (
    ENV_DELIVERY,
    ENV_IDENTITY,
    ENV_REPORT_URL,
    ENV_ROLE,
    ENV_TRANSFER,
    ENV_URL,
)
from lclstream.core.models import parse
from lclstream.identity.authority import TRUSTED, Authority
from lclstream.jobs.models import JobSpec, ResourceSpec
from lclstream.streamer.config import BinaryDataStreamingDataHandlerConfig
from lclstream.transfers.config import SiteConfig
from lclstream.transfers.models import ConsumerStart, TransferRequest
from lclstream.transfers.record import Job, Role, Transfer

IDENTITY_FOLDER = "identity"
STREAMER_FILE = "lclstreamer.json"
# A job's certificate outlives the transfer by this, for its last report.
CERTIFICATE_MARGIN_S = 3600.0
# A buffer gives up by itself only after this service should have told it to.
PATIENCE_MARGIN_S = 60.0
CALLBACK_PATH = {Role.BUFFER: "forwarder", Role.PRODUCER: "producer", Role.CONSUMER: "consumer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """What a job is made from."""

    transfer: Transfer
    job: Job
    request: TransferRequest
    start: dict[str, Any]
    """Body of the start request, of consumers."""
    site: SiteConfig


class Specs:
    """Makes the specification and the files of each job."""

    def __init__(
        self, url: Callable[[], str], identity: Path, authority: Authority, key: bytes
    ) -> None:
        """Prepare.

        Args:
            url: returns where jobs reach this service; asked when a job is made.
            identity: identity folder of this service.
            authority: signs the certificates of jobs.
            key: what the secrets of callbacks are made from.
        """
        self._url = url
        self._identity = identity
        self._authority = authority
        self._key = key

    def secret(self, job_key: str) -> str:
        """Return the key that signs a job's callbacks; the same after a restart."""
        return hmac.new(self._key, job_key.encode(), hashlib.sha256).hexdigest()

    def spec(self, wanted: JobRequest) -> JobSpec:
        """Return what goes to the jobs service."""
        job, site = wanted.job, wanted.site
        is_buffer = job.role is Role.BUFFER
        backend = site.buffer_backend if is_buffer and site.buffer_backend else site.backend
        return JobSpec(
            name=job.key,
            script=_script(wanted),
            environment=self._environment(wanted),
            resources=_resources(wanted),
            backend=backend,
            attributes=site.attributes if backend == site.backend else {},
            callback=f"{self._url()}/v1/callback/{CALLBACK_PATH[job.role]}",
            cb_secret=SecretStr(self.secret(job.key)),
        )

    def files(self, wanted: JobRequest) -> dict[str, bytes]:
        """Return the files of a job's work folder; each call makes a new certificate."""
        transfer, role = wanted.transfer, wanted.job.role
        issued = self._authority.issue_job(
            f"job:{transfer.id}:{role.value}",
            hours=(transfer.limits.total_s + CERTIFICATE_MARGIN_S) / 3600,
            server=role is Role.BUFFER,
            hosts=[wanted.site.data_host] if role is Role.BUFFER else [],
        )
        content = issued.files()
        content[TRUSTED] = self._trusted(content[TRUSTED])
        files = {f"{IDENTITY_FOLDER}/{name}": data for name, data in content.items()}
        if role is Role.PRODUCER:
            files[STREAMER_FILE] = streamer_file(wanted.request, transfer)
        return files

    def _trusted(self, authority: bytes) -> bytes:
        # The authority of jobs need not be the one that made this service's certificate.
        own = self._identity / TRUSTED
        others = own.read_bytes() if own.is_file() else b""
        return authority if authority.strip() in others else authority + others

    def _environment(self, wanted: JobRequest) -> dict[str, str]:
        transfer, job = wanted.transfer, wanted.job
        own = {
            ENV_TRANSFER: str(transfer.id),
            ENV_ROLE: job.role.value,
            ENV_REPORT_URL: f"{self._url()}/v1/transfers/{transfer.id}/reports",
            ENV_IDENTITY: IDENTITY_FOLDER,
        }
        if job.role is not Role.BUFFER:
            producing = job.role is Role.PRODUCER
            own[ENV_URL] = transfer.push_url if producing else transfer.pull_url
            own[ENV_DELIVERY] = wanted.request.delivery
        return {**wanted.site.environment, **wanted.start.get("environment", {}), **own}


def streamer_file(request: TransferRequest, transfer: Transfer) -> bytes:
    """Return the streamer's configuration, with one handler that pushes into the buffer.

    Whatever handlers were asked for are gone: nobody makes a site's account write elsewhere.
    """
    handler = BinaryDataStreamingDataHandlerConfig(
        urls=[transfer.push_url],
        role="client",
        library="nng",
        delivery=request.delivery,
        # A full buffer lets producers wait; it is the transfer's limits that end this.
        send_timeout_s=transfer.limits.total_s,
        flush_timeout_s=transfer.limits.drain_s,
    )
    parameters = request.streamer.model_dump(mode="json")
    parameters["data_handlers"] = [handler.model_dump(mode="json")]
    return json.dumps(parameters, indent=4).encode()


def check_ranks(site: SiteConfig, ranks: int) -> None:
    """Refuse several producer processes where a site cannot start them.

    Raises:
        InvalidConfigError: the site has no launcher.
    """
    if ranks > 1 and not site.launcher:
        raise InvalidConfigError(
            f"site {site.name!r} has no launcher: producers must be 1, got {ranks}"
        )


def _script(wanted: JobRequest) -> str:
    if wanted.job.role is Role.BUFFER:
        return _shell(_buffer_command(wanted))
    if wanted.job.role is Role.PRODUCER:
        return _shell(_producer_command(wanted))
    return parse(ConsumerStart, wanted.start, f"start of {wanted.job.title}").script


def _shell(words: list[str]) -> str:
    return f"#!/bin/bash\nexec {shlex.join(words)}\n"


def _buffer_command(wanted: JobRequest) -> list[str]:
    site, transfer = wanted.site, wanted.transfer
    address = f"tcp://{site.data_host}:{site.data_ports}"
    return [
        site.lclstream,
        "buffer",
        "serve",
        f"--in={address}",
        f"--out={address}",
        f"--memory={wanted.request.memory or site.buffer_memory}",
        f"--delivery={wanted.request.delivery}",
        # It ends when this service says so, who knows when all producers have ended; connections
        # that come and go say less. Left alone it ends after the longest time of a transfer.
        "--expect-producers=0",
        f"--max-idle={math.ceil(transfer.limits.total_s)}",
        f"--consumer-timeout={math.ceil(transfer.limits.drain_s + PATIENCE_MARGIN_S)}",
        f"--stall-timeout={math.ceil(transfer.limits.drain_s + PATIENCE_MARGIN_S)}",
        "--ready-file=ready.json",
    ]


def _producer_command(wanted: JobRequest) -> list[str]:
    ranks = wanted.transfer.ranks
    launcher = [word.format(ranks=ranks) for word in shlex.split(wanted.site.launcher)]
    return [*launcher, wanted.site.python, "-m", "lclstream.streamer", "--config", STREAMER_FILE]


def _resources(wanted: JobRequest) -> ResourceSpec:
    values: dict[str, Any] = {
        "exclusive_node_use": False,
        "duration": math.ceil(wanted.transfer.limits.total_s / 60) + 1,
        **wanted.site.resources,
        **wanted.start.get("resources", {}),
    }
    if wanted.job.role is Role.PRODUCER:
        values.pop("processes_per_node", None)
        values["process_count"] = wanted.transfer.ranks
    elif wanted.job.role is Role.BUFFER:
        for name in ("node_count", "processes_per_node", "process_count"):
            values.pop(name, None)
    return parse(ResourceSpec, values, f"resources of {wanted.job.title} at {wanted.site.name}")
