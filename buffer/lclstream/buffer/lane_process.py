"""A lane as the serving process sees it: a child process and the channel to it."""

import logging
import socket
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lclstream.buffer.balance import Load
from lclstream.buffer.channel import Channel
from lclstream.buffer.child import start_child
from lclstream.buffer.peers import Side

if TYPE_CHECKING:
    from lclstream.buffer.orders import Told
    from lclstream.buffer.statistics import Statistics

logger = logging.getLogger(__name__)

# After its last figures a lane has only to end.
END_TIMEOUT_S = 2.0


class LaneProcess:
    """One lane; knows what it was given and what it has told.

    Resource handling: owns the process and the channel; `close` ends both.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.ready = False
        self.told: Told | None = None
        self.producers: frozenset[int] = frozenset()
        """Those that named themselves there."""
        self.figures: Statistics | None = None
        """The last that it told."""
        self.finished = False
        """Whether those are the final ones."""
        self.passed = dict.fromkeys(Side, 0)
        here, there = socket.socketpair()
        self.channel = Channel(here)
        self._process = start_child("lclstream.buffer.lane", there)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, message: object, socks: Sequence[socket.socket] = ()) -> bool:
        """Tell the lane something; return whether it has taken everything so far."""
        self.channel.put(message, socks)
        return self.flush()

    def flush(self) -> bool:
        """Send what waits; return whether the lane has taken everything."""
        try:
            return self.channel.flush()
        except OSError:
            # That it has gone is noticed where it is listened to.
            return True

    def on_its_way(self, side: Side) -> int:
        """Return how many connections it was passed and has not seen yet."""
        return self.passed[side] - (self.told.taken[side] if self.told else 0)

    @property
    def load(self) -> Load:
        """What it has to do, as far as it is known."""
        facts = self.told.facts if self.told else None
        return Load(
            number=self.number,
            producers=(facts.producers if facts else 0) + self.on_its_way(Side.IN),
            consumers=(facts.consumers if facts else 0) + self.on_its_way(Side.OUT),
            ready_consumers=self.told.ready_consumers if self.told else 0,
            is_empty=facts.is_empty if facts else True,
        )

    def close(self) -> int:
        """Wait for the process if it has nothing more to do, else kill it; return its status."""
        self.channel.close()
        if self.finished:
            try:
                return self._process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                logger.exception("lane_does_not_end", extra={"lane": self.number})
        elif (status := self._process.poll()) is not None:
            return status
        self.kill()
        return self._process.wait()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
