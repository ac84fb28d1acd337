"""Which lane knows which stream of a producer, when the producer comes back to another lane.

A stream has one lane at a time. The lane that a producer names it to claims it; who had it
before lets it go and says how many of its messages were accepted. No input or output.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Dispute:
    """A stream that is on its way from one lane to another."""

    owner: int
    claimants: deque[int] = field(default_factory=deque)


class Custody:
    """All streams that were ever claimed.

    Args:
        have_released: tells a lane (second) to let a stream (first) go.
        grant: tells a lane (second) to go on with a stream (first), of which so many messages
            (third) are accepted.
    """

    def __init__(
        self,
        have_released: Callable[[int, int], None],
        grant: Callable[[int, int, int], None],
    ) -> None:
        self._have_released = have_released
        self._grant = grant
        self._owners: dict[int, int] = {}
        self._disputes: dict[int, Dispute] = {}

    def claimed(self, stream: int, lane: int) -> None:
        """A producer has named a stream to a lane that does not know it."""
        if stream in self._disputes:
            self._disputes[stream].claimants.append(lane)
        elif self._owners.get(stream, lane) == lane:
            self._owners[stream] = lane
            self._grant(stream, lane, 0)
        else:
            owner = self._owners[stream]
            self._disputes[stream] = Dispute(owner, deque([lane]))
            self._have_released(stream, owner)

    def released(self, stream: int, accepted: int) -> None:
        """The lane that had a stream has let it go."""
        dispute = self._disputes.pop(stream)
        lane = dispute.claimants.popleft()
        self._owners[stream] = lane
        self._grant(stream, lane, accepted)
        # Others that came meanwhile.
        for claimant in dispute.claimants:
            self.claimed(stream, claimant)

    def gone(self, lane: int) -> None:
        """A lane has died, and what it knew with it."""
        for stream, owner in list(self._owners.items()):
            if owner == lane:
                del self._owners[stream]
                if stream in self._disputes:
                    self.released(stream, 0)
