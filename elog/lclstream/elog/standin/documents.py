"""How the logbook writes documents: ids, times and stored names; pure."""

import itertools
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from lclstream.elog.models import as_utc, escape_name

Doc = dict[str, Any]

_count = itertools.count(secrets.randbelow(1 << 24))


def object_id(moment: datetime) -> str:
    """Return an id in the form of MongoDB: 24 hex digits that begin with the time."""
    seconds = int(moment.timestamp()) & 0xFFFFFFFF
    number = next(_count) & 0xFFFFFF
    return f"{seconds:08x}{secrets.token_hex(5)}{number:06x}"


def stored_time(moment: datetime) -> str:
    """Return a time as read back from the database: milliseconds, with offset."""
    utc = as_utc(moment)
    return utc.replace(microsecond=utc.microsecond // 1000 * 1000).isoformat()


def naive_time(moment: datetime) -> str:
    """Return a time as the code made it: UTC without saying so, microseconds."""
    return as_utc(moment).replace(tzinfo=None).isoformat()


def experiment_time(moment: datetime) -> str:
    """Return a time as it came with the request for an experiment."""
    return as_utc(moment).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def now() -> datetime:
    """Return the time, aware, UTC."""
    return datetime.now(UTC)


def read_time(text: str | None, default: datetime) -> datetime:
    """Read a time of a request; raises ValueError for what is none."""
    return as_utc(datetime.fromisoformat(text)) if text else default


def stored_params(params: Mapping[str, Any]) -> Doc:
    """Return parameters as the database keeps them."""
    return {escape_name(name): value for name, value in params.items()}


def number_of(text: Any, *, as_string: bool = False) -> int | str:
    """Return a run number of a request: an int when it can be one."""
    if as_string:
        return str(text)
    try:
        return int(text)
    except (TypeError, ValueError):
        return str(text)
