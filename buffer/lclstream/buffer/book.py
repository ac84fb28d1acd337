"""The accounts of a journal: what was accepted, what was consumed, how far each stream is.

No input or output: `restore` takes what the ledger says, `state` is what it is told.
"""

from typing import Any

from lclstream.buffer.ranges import Ranges
from lclstream.buffer.store import Consumption, StreamState
from lclstream.core.ledger import Tally


class Book:
    """What is known of all messages that a journal ever held."""

    def __init__(self) -> None:
        self.key = 0
        """Seed of the checksums of the records."""
        self.received = Tally()
        self.consumed = Ranges()
        """By position; what is lost as well."""
        self.partly: dict[int, int] = {}
        """How many messages are done with from a position on that is not in `consumed`."""
        self.streams: dict[int, StreamState] = {}
        self.lost = Tally()
        """Messages that cannot be read any more (at least)."""
        self.checkpoint = 0
        """Everything below this position was counted already."""

    def accept(self, stream: int, sequence: int, tally: Tally) -> None:
        """Count messages that are in custody."""
        self.received.merge(tally)
        if stream:
            state = self.streams.setdefault(stream, StreamState())
            state.accepted = max(state.accepted, sequence + tally.messages)

    def consume(self, consumption: Consumption) -> dict[str, Any]:
        """Count messages as consumed and streams as ended, or not; return it for the ledger."""
        # Many small parts that touch become one.
        ranges = Ranges(-1)
        for place, start, end in consumption.spans:
            ranges.add(place.position + start, place.position + end)
        change = {
            "consumed": list(ranges),
            "partly": list(consumption.partly.items()),
            "finished": consumption.finished,
        }
        self._change(change)
        return change

    def lose(self, start: int, end: int, tally: Tally) -> int:
        """Count what cannot be read as lost, unless it was consumed; return how many bytes."""
        lost = sum(stop - begin for begin, stop in self.consumed.missing(start, end))
        if lost:
            self.lost.merge(tally)
            self.consumed.add(start, end)
        return lost

    def state(self, position: int) -> dict[str, Any]:
        """Return everything, for the ledger.

        Args:
            position: up to which `received` has counted.
        """
        received, lost = self.received, self.lost
        return {
            "key": self.key,
            "position": position,
            "received": [received.messages, received.bytes, received.digest],
            "lost": [lost.messages, lost.bytes, lost.digest],
            "partly": list(self.partly.items()),
            "floor": self.consumed.floor,
            "consumed": list(self.consumed),
            "streams": [(name, s.accepted, s.finished) for name, s in self.streams.items()],
        }

    def restore(self, entries: list[dict[str, Any]]) -> None:
        """Take over a state and the changes after it."""
        state = entries[0]
        self.key = state["key"]
        self.checkpoint = state["position"]
        self.received, self.lost = (
            Tally(messages, size, 0, digest)
            for messages, size, digest in (state["received"], state["lost"])
        )
        self.consumed = Ranges(state["floor"], state["consumed"])
        self.partly = dict(state["partly"])
        for name, accepted, finished in state["streams"]:
            self.streams[name] = StreamState(accepted, finished)
        for change in entries[1:]:
            self._change(change)

    def _change(self, change: dict[str, Any]) -> None:
        self.partly.update(change["partly"])
        for start, end in change["consumed"]:
            self.consumed.add(start, end)
        # A segment is done with from its beginning on.
        self.partly = {
            position: messages
            for position, messages in self.partly.items()
            if self.consumed.missing(position, position + 1)
        }
        for name, is_finished in change["finished"]:
            self.streams.setdefault(name, StreamState()).finished = is_finished
