"""What a buffer tells of itself, for programs that watch: rates, and Prometheus' text format."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lclstream.buffer.states import BufferState
from lclstream.buffer.statistics import Statistics
from lclstream.core.ledger import TallyModel
from lclstream.core.prometheus import metric

PREFIX = "lclstream_buffer_"
# A rate over less than this says nothing.
RATE_INTERVAL_S = 0.2

TOTALS = {
    "received_messages": "Messages that came from producers.",
    "received_bytes": "Bytes of payload that came from producers.",
    "sent_messages": "Messages that were written whole to consumers.",
    "sent_bytes": "Bytes of payload that were written to consumers.",
}
COUNTERS = {
    "requeued": "Messages taken back from consumers that left, and given to others.",
    "possibly_lost": "Messages that consumers may have had when they left; an upper bound.",
    "undelivered": "Messages that were received and never delivered.",
    "partial_in": "Messages that producers began and did not finish.",
    "refused_peers": "Connections closed because of what they said, or did not say.",
    "refused_messages": "Messages that were too large or malformed.",
    "missing_in": "Messages that producers say they have sent and that never came.",
    "acknowledged": "Messages that consumers said they are done with.",
    "spliced": "Messages that went from connection to connection without entering memory.",
    "spilled": "Messages that were written to disk because memory was full.",
    "disk_refusals": "Times that the disk began to refuse messages.",
    "lost_on_disk": "Messages that cannot be read from disk any more.",
    "kept_on_disk": "Undelivered messages that wait on disk for another start.",
    "producers_seen": "Producers that have delivered something.",
    "producers_broken": "Connections of producers that ended with an error.",
    "producers_unfinished": "Streams of producers that ended without a word.",
    "producers_cut": "Connections of producers closed at a deadline.",
    "consumers_seen": "Connections of consumers.",
    "consumers_broken": "Connections of consumers that ended with an error.",
    "lanes_lost": "Lanes of the buffer that died.",
}
# Not every one of them only grows.
NOT_MONOTONIC = frozenset({"producers_unfinished", "undelivered", "missing_in"})
GAUGES = {
    "queue_messages": "Messages that wait, or are being written to consumers.",
    "queue_bytes": "Bytes of payload that wait, or are being written to consumers.",
    "queue_peak_bytes": "The most that ever waited.",
    "retained_messages": "Messages written to consumers and not acknowledged yet.",
    "oldest_s": "How long the message has waited that has waited the longest, in seconds.",
    "held_bytes": "Memory in use for messages.",
    "held_peak_bytes": "The most memory that ever was.",
    "capacity_bytes": "Bound on the memory in use.",
    "disk_messages": "Messages that wait on disk alone.",
    "spilled_bytes": "What files of messages take of the disk.",
    "producers": "Producers that are connected.",
    "consumers": "Consumers that are connected.",
    "paused_producers": "Producers that are not read from because memory is full.",
    "lanes": "Processes that messages go through.",
}
# The format asks for base units in names.
RENAMED = {"oldest_s": "oldest_seconds"}
PEER_TOTALS = {
    "messages": "Messages over a connection.",
    "bytes": "Bytes of payload over a connection.",
}
PEER_GAUGES = {
    "in_flight_bytes": ("in_flight_bytes", "Written and not acknowledged by the peer's kernel."),
    "stalled_s": ("stalled_seconds", "Since when it has not taken what is being written to it."),
    "unacknowledged_messages": ("unacknowledged_messages", "Written, not known to have arrived."),
}


class Rates:
    """Bytes and messages per second between two looks."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._received = self._sent = TallyModel()
        self._last: dict[str, float] = {}

    def update(self, now: Statistics) -> dict[str, float]:
        """Return the rates since the look before, or those of it if that was a moment ago."""
        moment = time.monotonic()
        seconds = moment - self._at
        if seconds < RATE_INTERVAL_S:
            return self._last
        self._last = {
            "in_bytes_per_s": (now.received.bytes - self._received.bytes) / seconds,
            "out_bytes_per_s": (now.sent.bytes - self._sent.bytes) / seconds,
            "in_messages_per_s": (now.received.messages - self._received.messages) / seconds,
            "out_messages_per_s": (now.sent.messages - self._sent.messages) / seconds,
        }
        self._at, self._received, self._sent = moment, now.received, now.sent
        return self._last


def prometheus(summary: Mapping[str, Any]) -> str:
    """Return figures in Prometheus' text format.

    Args:
        summary: as `GET /v1/statistics` answers it. What it lacks is left out.
    """
    return "".join(line + "\n" for line in _lines(summary))


def _lines(summary: Mapping[str, Any]) -> Iterator[str]:
    counters = summary["counters"]
    for name, text in TOTALS.items():
        side, unit = name.split("_")
        yield from _metric(f"{name}_total", "counter", text, [({}, summary[side][unit])])
    for name, text in COUNTERS.items():
        if name in counters:
            kind = "gauge" if name in NOT_MONOTONIC else "counter"
            suffix = "" if name in NOT_MONOTONIC else "_total"
            yield from _metric(f"{name}{suffix}", kind, text, [({}, counters[name])])
    for name, text in GAUGES.items():
        if name in summary:
            shown = RENAMED.get(name, name)
            yield from _metric(shown, "gauge", text, [({}, summary[name])])
    states = [({"state": state.value}, int(summary["state"] == state)) for state in BufferState]
    yield from _metric("state", "gauge", "1 for the state that the buffer is in.", states)
    yield from _peer_lines([peer for peer in summary["peers"] if not peer["end"]])


def _peer_lines(peers: list[Mapping[str, Any]]) -> Iterator[str]:
    """Of those that are connected: what was is of no use to who watches."""
    labels = [
        {"side": peer["side"], "peer": peer["address"], "identity": peer["identity"]}
        for peer in peers
    ]
    for name, text in PEER_TOTALS.items():
        values = [(each, peer[name]) for each, peer in zip(labels, peers, strict=True)]
        yield from _metric(f"peer_{name}_total", "counter", text, values)
    for name, (shown, text) in PEER_GAUGES.items():
        values = [(each, peer[name]) for each, peer in zip(labels, peers, strict=True)]
        yield from _metric(f"peer_{shown}", "gauge", text, values)


def _metric(
    name: str, kind: str, text: str, values: Iterable[tuple[Mapping[str, str], float]]
) -> Iterator[str]:
    return metric(PREFIX + name, kind, text, values)
