"""What a buffer counts, and how it tells it."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lclstream.core.ledger import TallyModel


@dataclass(slots=True)
class Counters:
    """Everything that happened; figures of messages unless the name says otherwise."""

    requeued: int = 0
    """Taken back from consumers that left before they were written whole."""
    possibly_lost: int = 0
    """Written to consumers that left, and not acknowledged by their kernels (an upper bound)."""
    undelivered: int = 0
    """Received and never written whole to a consumer."""
    partial_in: int = 0
    """Begun by producers that left, and dropped."""
    refused_peers: int = 0
    """Connections closed because of what they said, or did not say."""
    refused_messages: int = 0
    """Messages whose header claimed too much; the connection was closed."""
    producers_seen: int = 0
    """Connections from which at least one message came."""
    consumers_seen: int = 0
    """Connections of consumers that completed the handshake."""
    producers_broken: int = 0
    """Connections of producers that ended with an error instead of a proper close."""
    producers_cut: int = 0
    """Connections of producers closed by the buffer at a deadline."""
    producers_unfinished: int = 0
    """Streams of producers of ours that ended without a word."""
    missing_in: int = 0
    """Messages that producers of ours say they have sent and that never came."""
    spliced: int = 0
    """Messages that went from connection to connection without entering memory."""
    acknowledged: int = 0
    """Messages that consumers said they are done with."""
    consumers_broken: int = 0
    """Connections of consumers that ended with an error after messages went to them."""
    spilled: int = 0
    """Messages that were written to disk because memory was full."""
    disk_refusals: int = 0
    """How many times the disk began to refuse what should have been written."""
    lost_on_disk: int = 0
    """Messages that cannot be read from disk any more (at least)."""
    kept_on_disk: int = 0
    """Those of the undelivered ones that a durable buffer delivers when it is started again."""
    lanes_lost: int = 0
    """Lanes of the buffer that died; what they held is gone."""

    def faults(self) -> list[str]:
        """Say what makes the delivery incomplete; empty if nothing does."""
        texts = {
            "undelivered": "messages were not delivered",
            "possibly_lost": "messages were possibly lost with their consumer",
            "partial_in": "messages were not sent to their end",
            "refused_messages": "messages were too large or malformed",
            "producers_broken": "producers broke their connection",
            "producers_unfinished": "streams of producers ended without a word",
            "missing_in": "messages that producers sent never came",
            "producers_cut": "producers had not finished in time",
            "lost_on_disk": "messages at least cannot be read from disk any more",
            "lanes_lost": "lanes of the buffer died with what they held",
            "consumers_broken": "consumers broke their connection: what they had is not known",
        }
        return [
            f"{getattr(self, name)} {text}" for name, text in texts.items() if getattr(self, name)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRecord:
    """One connection's part."""

    side: str
    address: str
    identity: str
    """The name in its certificate; empty without one."""
    framing: str
    messages: int
    bytes: int
    digest: str
    in_flight_bytes: int
    """Written and not acknowledged by its kernel."""
    unacknowledged_messages: int
    """Written and not known to have arrived."""
    stalled_s: float
    """Since when it has not taken what is being written to it."""
    seconds: float
    """How long it was, or has been, connected."""
    end: str
    """How it ended; empty while it lasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """A buffer at one moment."""

    state: str
    reason: str
    """Why it drains or stops; empty while it is open."""
    received: TallyModel
    sent: TallyModel
    queue_messages: int
    """Waiting, or being written to consumers."""
    queue_bytes: int
    queue_peak_bytes: int
    held_bytes: int
    held_peak_bytes: int
    capacity_bytes: int
    producers: int
    """Connected now."""
    consumers: int
    """Connected now."""
    retained_messages: int
    """Written to consumers and not acknowledged yet, by themselves or by their kernels."""
    oldest_s: float
    """How long the message has waited that has waited the longest."""
    paused_producers: int
    """Not read from, because memory is full."""
    disk_messages: int = 0
    """Waiting on disk alone."""
    spilled_bytes: int = 0
    """What the files of messages take of the disk."""
    alarm: str = ""
    """What somebody should see to; empty if nothing is wrong."""
    counters: Counters = field(default_factory=Counters)
    peers: tuple[PeerRecord, ...] = ()
    """Connections that are, and the last ones that were."""

    def flat(self) -> dict[str, float | int | str]:
        """Return the figures for a ledger report: one level, no peers."""
        # There may be a thousand peers, and this is asked for twice a second.
        values = asdict(replace(self, peers=()))
        for name in ("received", "sent", "peers"):
            values.pop(name)
        values.update(values.pop("counters"))
        return values

    def whole(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        values = asdict(self)
        values["received"] = self.received.model_dump()
        values["sent"] = self.sent.model_dump()
        return values
