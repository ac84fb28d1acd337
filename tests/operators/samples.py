"""Answers of the transfers service, made up."""

from typing import Any

from lclstream.core.ledger import TallyModel
from lclstream.transfers.models import TransferInfo


def info(**changes: Any) -> TransferInfo:
    fields: dict[str, Any] = {
        "id": 7,
        "user": "cn:airflow",
        "log": [],
        "metrics": {"time": 0.0},
        "url": "",
        "phase": "requested",
        "reason": "",
        "experiment": "mfx101332224",
        "run": 42,
        "created": 0.0,
        "version": 1,
        "jobs": [],
        "ledger": {"hops": [], "balanced": None, "difference": ""},
    }
    return TransferInfo.model_validate(fields | changes)


def streaming(megabytes: int, *, fill: float = 0.25) -> TransferInfo:
    tally = TallyModel(messages=megabytes, bytes=megabytes * 1_000_000, events=10 * megabytes)
    names = ("producers.sent", "buffer.received", "buffer.sent", "consumers.received")
    hops = [{"name": name, "peers": 2, "tally": tally} for name in names]
    return info(
        phase="streaming",
        ledger={"hops": hops, "balanced": None, "difference": ""},
        peers={"buffer/b@h:1": {"capacity_bytes": 1000, "queue_bytes": 1000 * fill}},
    )
