"""How Airflow reaches the transfers service: the connection type `lclstream`.

A connection holds the URL of the service and the path of an identity folder (`id.crt`,
`id.key`, `ca.crt`) that workers, triggerers and the API server can read. It holds no secret.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airflow.sdk.bases.hook import BaseHook
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from lclstream.core.errors import InvalidConfigError, LclstreamError
from lclstream.transfers.client import AsyncTransfersClient, TransfersClient

DEFAULT_CONNECTION = "lclstream"


class LclstreamHook(BaseHook):
    """Makes clients of the transfers service that a connection names."""

    conn_name_attr = "lclstream_conn_id"
    default_conn_name = DEFAULT_CONNECTION
    conn_type = "lclstream"
    hook_name = "LCLStream"

    def __init__(self, lclstream_conn_id: str = DEFAULT_CONNECTION) -> None:
        super().__init__()
        self.lclstream_conn_id = lclstream_conn_id
        self._resolved: tuple[str, Path] | None = None

    def get_conn(self) -> TransfersClient:
        """Return a client; a context manager that the caller closes."""
        return TransfersClient(*self.settings())

    async def get_async_conn(self) -> AsyncTransfersClient:
        """Return a client for a trigger; an async context manager that the caller closes."""
        connection = await self.aget_connection(self.lclstream_conn_id)
        return AsyncTransfersClient(*self._read(connection))

    def settings(self) -> tuple[str, Path]:
        """Return the service's URL and our identity folder.

        Asks Airflow once only: a task that is being killed cannot ask any more.
        """
        if self._resolved is None:
            self._resolved = self._read(self.get_connection(self.lclstream_conn_id))
        return self._resolved

    def test_connection(self) -> tuple[bool, str]:
        """Ask the service for its newest transfer, as the button in Airflow does."""
        try:
            with self.get_conn() as client:
                client.list(limit=1)
        except (LclstreamError, OSError) as error:
            return False, str(error)
        return True, "the transfers service answered"

    def _read(self, connection: Any) -> tuple[str, Path]:
        url, identity = connection.host, connection.extra_dejson.get("identity")
        problems = []
        if not str(url or "").startswith("https://"):
            problems.append(f"host: must be the https:// URL of the transfers service, got {url!r}")
        elif connection.port and not url.rpartition(":")[2].isdigit():
            url = f"{url}:{connection.port}"
        if not identity:
            problems.append('extra: must name the identity folder, as {"identity": "/path"}')
        if problems:
            raise InvalidConfigError(f"connection {self.lclstream_conn_id!r}", problems)
        return url, Path(identity)


@contextmanager
def explained() -> Iterator[None]:
    """Let a task fail at once where trying again cannot help, else as Airflow's retries say.

    Raises:
        AirflowFailException: our error, when it is not transient.
        AirflowException: our error, when it is.
    """
    try:
        yield
    except LclstreamError as error:
        kind = AirflowException if error.transient else AirflowFailException
        raise kind(f"{type(error).__name__}: {error}") from error
