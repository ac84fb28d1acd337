"""What goes before the first and behind the last message of all ranks.

Only one rank sends it. With one rank that is all; several tell each other by MPI when the beginning
has been said, and when each of them has delivered everything. They do so point to point: a rank
that just waits for its source need not take part for the others to go on.
"""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from lclstream.core.errors import InvalidConfigError, StreamError
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place, world_of
from lclstream.streamer.serializers import Serializer
from lclstream.streamer.stopping import StopRequest

logger = logging.getLogger(__name__)

# Nobody else uses these numbers; psana, which uses the same library, keeps to small ones.
BEGUN_TAG, DONE_TAG = 31_415, 31_416
FIRST_LOOK_S = 0.0005
LAST_LOOK_S = 0.02

Say = Callable[[Iterable[Message]], None]


class NotBegunError(StreamError):
    """The rank that begins the stream has failed, or everything ends before it has begun."""


class Framing:
    """Lets one rank speak before and behind all others.

    Args:
        serializer: knows what there is to say.
        place: of this rank.
        stop: who asks for the end of everything.

    Raises:
        InvalidConfigError: there is something to say, and the ranks cannot talk to each other.
    """

    def __init__(self, serializer: Serializer, place: Place, stop: StopRequest) -> None:
        self._serializer, self._stop = serializer, stop
        self._place = place
        self.leader = 0
        """The rank that says it: the first one that gets events."""
        # Each is kept until the end, when it has long left.
        self._told: list[Any] = []
        self._world: Any = None
        self._has_begun = False
        self._is_done = False
        if place.size > 1 and has_something_to_say(serializer):
            try:
                self._world = world_of(place)
            except InvalidConfigError as error:
                raise InvalidConfigError(
                    f"{type(serializer).__name__} sends messages before and behind those of all"
                    f" {place.size} ranks, which must agree on that by MPI: {error}"
                ) from None

    @property
    def leads(self) -> bool:
        """Whether this rank says what there is to say."""
        return self._place.rank == self.leader

    @property
    def is_shared(self) -> bool:
        """Whether other ranks wait for what is said."""
        return self._world is not None

    def begin(self, say: Say) -> None:
        """Say the beginning, or wait until it is said; once, before the first message of a rank.

        Args:
            say: sends messages; where others wait for them, returns when they have arrived.

        Raises:
            NotBegunError: it will not be said.
        """
        if self._has_begun:
            return
        if self.leads:
            say(self._serializer.begin())
            self._tell_others(BEGUN_TAG, is_good=True)
        elif self._world is not None and not self._hears(self.leader, BEGUN_TAG):
            raise NotBegunError(f"rank {self.leader}, which begins the stream, has failed")
        self._has_begun = True

    def end(self, say: Say) -> None:
        """Say the end when all other ranks are done; only of the rank that leads."""
        if not self.leads:
            return
        if self._world is not None:
            others = [rank for rank in range(self._place.size) if rank != self.leader]
            # Every one is heard, whatever the others say.
            good = [self._hears(rank, DONE_TAG) for rank in others]
            if not all(good):
                failed = [rank for rank, is_good in zip(others, good, strict=True) if not is_good]
                logger.warning("stream_not_ended", extra={"failed_ranks": failed})
                return
        say(self._serializer.end())

    def done(self, *, is_good: bool) -> None:
        """Tell the others that this rank sends nothing any more; may be called again.

        Args:
            is_good: whether everything is delivered.
        """
        if self._is_done:
            return
        self._is_done = True
        if self.leads:
            if not self._has_begun:
                self._tell_others(BEGUN_TAG, is_good=False)
        elif self._world is not None:
            self._told.append(self._world.isend(is_good, self.leader, DONE_TAG))

    def _tell_others(self, tag: int, *, is_good: bool) -> None:
        if self._world is None:
            return
        for rank in range(self._place.size):
            if rank != self.leader:
                # Small enough to leave at once, whether or not the other one looks.
                self._told.append(self._world.isend(is_good, rank, tag))

    def _hears(self, rank: int, tag: int) -> bool:
        """Wait for what another rank says."""
        pause_s = FIRST_LOOK_S
        while not self._world.iprobe(rank, tag):
            if self._stop.now:
                raise NotBegunError(f"rank {rank} was not heard of: {self._stop.reason}")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_LOOK_S)
        return bool(self._world.recv(source=rank, tag=tag))


def has_something_to_say(serializer: Serializer) -> bool:
    """Return whether anything goes around the messages of all ranks."""
    return any(True for say in (serializer.begin, serializer.end) for _ in say())
