"""The streams of producers that speak control frames: how far they are, and whether they ended.

A stream outlives its connection: a producer that lost one connects again, names its stream and
is told how many of its messages were accepted. No input or output.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lclstream.buffer.control import Frame
from lclstream.buffer.store import StreamState
from lclstream.core.errors import DecodeError

# The lower bits of a stream's id number the connections of one producer.
CONNECTION_BITS = 16


@dataclass(slots=True, eq=False)
class Stream:
    """One stream."""

    id: int
    owner: Any = None
    """The connection that it comes over; None while there is none."""
    accepted: int = 0
    """Messages that were received whole, from its beginning."""
    acknowledges: bool = False
    """Whether the producer wants to be told of them."""
    resumed: bool = False
    """Whether `accepted` is still to be told to a producer that waits for it."""
    pending: int = 0
    """How many of them are not on disk yet, in a durable buffer."""
    told: int = 0
    """Messages that the producer was told of."""
    finished: bool = False
    """Whether the producer has said that there is nothing more."""
    missing: int = 0
    """Messages that it has sent then and that never came."""
    lost_at: float = 0.0
    """When its connection went."""

    @property
    def owed(self) -> int | None:
        """What the producer has to be told, if anything: how many messages are in custody."""
        kept = self.accepted - self.pending
        # Who resumes would send again what is still on its way to the disk.
        is_due = not self.pending if self.resumed else kept > self.told
        return kept if self.acknowledges and is_due else None

    @property
    def producer(self) -> int:
        """Which producer it belongs to."""
        return self.id >> CONNECTION_BITS


class Streams:
    """All streams that were ever named."""

    def __init__(self) -> None:
        self.claim: Callable[[int], int] = _of_nobody
        """Asks for a stream that is new here; returns how many of its messages other lanes of
        this buffer have accepted, which then know it no more."""
        self.producers: set[int] = set()
        """Those that have delivered something, or said that there is nothing."""
        self._streams: dict[int, Stream] = {}

    def heard(
        self, owner: Any, stream: Stream | None, kind: Frame, number: int
    ) -> tuple[Stream | None, Any]:
        """Take in a control frame.

        Args:
            owner: the connection that it came over.
            stream: the stream of that connection, as it was returned before.
            kind: of the frame.
            number: that it carries.

        Returns:
            The stream of the connection now, and a connection that has to be closed because
            this one goes on with its stream.

        Raises:
            DecodeError: it has no place here.
        """
        if kind is Frame.STREAM and stream is None:
            return self._open(owner, number)
        if stream is None:
            raise DecodeError(f"{kind.name} without STREAM before it")
        if kind is Frame.FROM and not stream.acknowledges:
            stream.acknowledges = stream.resumed = True
            if number > stream.accepted:
                # Known to another buffer that was here before: it has answered for them.
                stream.accepted = number
            stream.told = stream.accepted
        elif kind is Frame.BYE:
            stream.finished = True
            stream.missing = max(number - stream.accepted, 0)
        else:
            raise DecodeError(f"{kind.name} has no place here")
        return stream, None

    def left(self, stream: Stream, owner: Any, now: float) -> None:
        """Take note that a connection has gone."""
        if stream.owner is owner:
            stream.owner, stream.lost_at = None, now
            stream.acknowledges = False

    def restore(self, states: Mapping[int, StreamState], now: float) -> int:
        """Take over the streams of a buffer that was killed; return how many producers have any."""
        for name, state in states.items():
            stream = Stream(name, accepted=state.accepted, finished=state.finished, lost_at=now)
            self._streams[name] = stream
            self.producers.add(stream.producer)
        return len(self.producers)

    def is_new(self, stream: Stream) -> bool:
        """Return whether this is the first word of its producer, and take note of it."""
        if stream.producer in self.producers:
            return False
        self.producers.add(stream.producer)
        return True

    def release(self, number: int) -> Stream | None:
        """Forget a stream that goes on in another lane; return it as it is, if it was here."""
        return self._streams.pop(number, None)

    @property
    def missing(self) -> int:
        """Messages that producers say they have sent and that never came."""
        return sum(stream.missing for stream in self._streams.values())

    def unfinished(self) -> list[Stream]:
        """Return the streams without a connection that were not finished."""
        return [
            stream
            for stream in self._streams.values()
            if stream.owner is None and not stream.finished
        ]

    def give_up(self) -> None:
        """Wait for none that is without a connection."""
        for stream in self.unfinished():
            stream.lost_at = -math.inf

    def _open(self, owner: Any, number: int) -> tuple[Stream, Any]:
        stream = self._streams.get(number)
        if stream is None:
            stream = self._streams[number] = Stream(number, accepted=self.claim(number))
        before, stream.owner = stream.owner, owner
        stream.finished, stream.missing = False, 0
        stream.acknowledges = False
        return stream, before


def _of_nobody(number: int) -> int:
    """There are no other lanes."""
    del number
    return 0
