"""Links from a task to the pages of its transfer, served by our plug-in."""

from typing import Any
from urllib.parse import quote, urlencode

import attrs
from airflow.sdk import BaseOperatorLink
from airflow.sdk.configuration import conf
from airflow.sdk.execution_time.xcom import XCom

PREFIX = "/lclstream"
TRANSFER_KEY = "lclstream_transfer_link"
LOGS_KEY = "lclstream_logs_link"


def page(path: str, **query: str) -> str:
    """Return the address of one of our pages as a browser needs it."""
    site = conf.get("api", "base_url", fallback="").rstrip("/")
    asked = f"?{urlencode(query)}" if query else ""
    return f"{site}{PREFIX}{quote(path)}{asked}"


def push_links(ti: Any, transfer: int, role: str = "", name: str = "") -> None:
    """Store where the links of a task lead; seen at once, also while the task is deferred."""
    query = {key: value for key, value in (("role", role), ("name", name)) if value}
    ti.xcom_push(key=TRANSFER_KEY, value=page(f"/transfers/{transfer}"))
    ti.xcom_push(key=LOGS_KEY, value=page(f"/transfers/{transfer}/logs", **query))


@attrs.define()
class _StoredLink(BaseOperatorLink):
    """A link that the task itself has stored."""

    @property
    def name(self) -> str:
        """The text on the button."""
        raise NotImplementedError

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the address, empty as long as there is no transfer."""
        return str(XCom.get_value(ti_key=ti_key, key=self.xcom_key) or "")


@attrs.define()
class TransferLink(_StoredLink):
    """Leads to the state, the jobs and the ledger of the transfer."""

    @property
    def name(self) -> str:
        """The text on the button."""
        return "Transfer"

    @property
    def xcom_key(self) -> str:
        """Where the address is stored."""
        return TRANSFER_KEY


@attrs.define()
class JobLogsLink(_StoredLink):
    """Leads to what the jobs of the task wrote."""

    @property
    def name(self) -> str:
        """The text on the button."""
        return "Job logs"

    @property
    def xcom_key(self) -> str:
        """Where the address is stored."""
        return LOGS_KEY
