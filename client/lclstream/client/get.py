"""Asks for a transfer and receives all of it: what `lclstream get` does."""

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from lclstream.client.pull import pull_to_tar
from lclstream.client.receive import Receiver
from lclstream.core.errors import BackendError, BufferClosedError, UnavailableError
from lclstream.core.tls import Credentials
from lclstream.transfers.client import TransfersClient
from lclstream.transfers.models import TransferInfo

# How long the service may take to settle the account after the last message.
END_TIMEOUT_S = 60.0
LOOK_S = 2.0


class Getter:
    """One transfer, from the request to its end.

    Resource handling: when the data are not received to their end, the transfer is canceled.

    Error handling: `get` raises `BackendError` when the transfer did not complete, although
    its stream has ended: data are missing.

    Args:
        server: URL of the transfers service.
        identity: folder of who asks.
        request: a streamer's parameters, or a transfer request that contains them.
    """

    def __init__(self, server: str, identity: Path, request: Mapping[str, Any]) -> None:
        self._server = server.rstrip("/")
        self._identity = identity
        self._request = request
        self._receiver: Receiver | None = None
        self._stopped = ""

    def stop(self, reason: str) -> None:
        """Give up; may be called from a signal handler."""
        self._stopped = reason
        if self._receiver is not None:
            self._receiver.stop(reason)

    def get(self, file: BinaryIO, names: str, progress: TextIO | None) -> TransferInfo:
        """Write all messages into a tar file and return how the transfer ended.

        Args:
            file: where the tar goes.
            names: pattern of the members' names.
            progress: gets lines for people; None for none.
        """
        with TransfersClient(self._server, self._identity) as transfers:
            # With a key, a repeated request cannot make a second transfer.
            status = transfers.create(self._request, key=uuid.uuid4().hex)
            if progress:
                progress.write(f"transfer {status.id} for {status.user}\n")

            def cancel() -> None:
                transfers.cancel(status.id, now=True)

            try:
                url = status.url or self._listening(transfers, status.id)
                self._receiver = self._open(url, status.id)
                self._look()
            except BaseException:
                cancel()
                raise
            pull_to_tar(self._receiver, file, names, progress, count_events=True, give_up=cancel)
            return self._ended(transfers, status.id)

    def _open(self, url: str, transfer: int) -> Receiver:
        return Receiver(
            url,
            label="get",
            report_url=f"{self._server}/v1/transfers/{transfer}/reports",
            credentials=Credentials.from_folder(self._identity),
        )

    def _look(self) -> None:
        if self._stopped:
            raise BufferClosedError(f"stopped before the beginning: {self._stopped}")

    def _listening(self, transfers: TransfersClient, transfer: int) -> str:
        info = transfers.get(transfer)
        while not info.url:
            self._look()
            if info.is_final:
                raise BackendError(f"transfer {transfer} is {info.phase}: {info.reason}")
            info = transfers.wait(transfer, info.version, LOOK_S)
        return info.url

    def _ended(self, transfers: TransfersClient, transfer: int) -> TransferInfo:
        deadline = time.monotonic() + END_TIMEOUT_S
        info = transfers.get(transfer)
        while not info.is_final:
            if time.monotonic() > deadline:
                raise UnavailableError(f"transfer {transfer} is still {info.phase}")
            info = transfers.wait(transfer, info.version, LOOK_S)
        if info.phase != "completed":
            raise BackendError(f"transfer {transfer} is {info.phase}: {info.reason}")
        return info
