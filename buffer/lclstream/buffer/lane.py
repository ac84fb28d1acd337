"""A lane: a process with an engine, which gets its connections from the serving process.

`python -m lclstream.buffer.lane FD` is started by `LaneProcess` only. The lane dies with the
serving process, whatever that dies of.
"""

import logging
import socket
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from lclstream.buffer.child import Tether, begin_child
from lclstream.buffer.config import BufferConfig
from lclstream.buffer.door import Door
from lclstream.buffer.ending import Action, Ending, Facts
from lclstream.buffer.linked import LinkedEngine
from lclstream.buffer.loop import READ, WRITE, Loop
from lclstream.buffer.orders import (
    Ask,
    Claim,
    Connection,
    Count,
    Failed,
    Figures,
    Grant,
    Link,
    LinkEnded,
    Order,
    Ready,
    Release,
    Released,
    Setup,
    Told,
    Unlink,
)
from lclstream.buffer.peers import Newcomer, Side
from lclstream.buffer.states import FINAL, BufferState
from lclstream.buffer.transport import server_context
from lclstream.core.errors import LclstreamError
from lclstream.core.logging import configure
from lclstream.core.tls import Credentials

logger = logging.getLogger(__name__)

FAREWELL_TIMEOUT_S = 10.0


class LaneDoor(Door):
    """Gets its connections from the serving process instead of listening."""

    def __init__(
        self,
        config: BufferConfig,
        loop: Loop,
        welcome: Callable[[Newcomer], None],
        refused: Callable[[Newcomer, str], None],
    ) -> None:
        super().__init__(replace(config, inputs=(), outputs=()), loop, welcome, refused)

    def admit(self, sock: socket.socket, connection: Connection) -> None:
        """See an accepted connection through its handshake."""
        self._begin(
            connection.side,
            sock,
            connection.address,
            only_tls=connection.only_tls,
            trusted=connection.trusted,
        )


class LaneEnding:
    """Stands where an engine alone has its `Ending`: the serving process decides.

    Args:
        tell: hears the facts when they have changed, or an answer is wanted, with its token.
    """

    def __init__(self, tell: Callable[[Facts, int | None], None]) -> None:
        self.state = BufferState.OPEN
        self.reason = ""
        self.farewell_said = False
        self._actions: list[Action] = []
        self._tell = tell
        self._known: Facts | None = None
        self._asked: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether the whole buffer has ended."""
        return self.state in FINAL

    def obey(self, order: Order) -> None:
        """Take note of what was decided."""
        self.state, self.reason = order.state, order.reason
        self.farewell_said = order.farewell_said
        self._actions += order.actions

    def answer(self, token: int) -> None:
        """Have the facts told whether they are new or not, once all orders are carried out."""
        self._asked = token

    def step(self, facts: Facts) -> list[Action]:
        """Tell the facts if they are new; return what is to be done."""
        if self._actions:
            # They change the facts.
            actions, self._actions = self._actions, []
            return actions
        # Times change with every byte; they are asked for where they matter.
        timeless = replace(facts, now=0.0, last_activity=0.0)
        if self._asked or timeless != self._known:
            self._known = timeless
            self._tell(facts, self._asked)
            self._asked = None
        return []

    def deadline(self, facts: Facts) -> None:
        """Return when to ask again: never, who decides will say so."""
        del facts

    def drain(self, now: float, reason: str, deadline_s: float | None = None) -> None:
        """Nobody asks a lane alone to drain."""
        raise NotImplementedError

    def stop(self, reason: str) -> None:
        """End now, without the serving process."""
        self.state, self.reason = BufferState.INCOMPLETE, reason


class Lane:
    """Does what the serving process says; tells it what happens.

    Args:
        parent: the way to the serving process.
        setup: how to work.
    """

    def __init__(self, parent: Tether, setup: Setup) -> None:
        config = replace(setup.config, expect_producers=0, max_idle_s=0.0)
        if setup.identity is not None:
            context = server_context(Credentials.from_folder(setup.identity))
            config = replace(
                config,
                tls=context,
                require_tls=setup.require_tls,
                allowed_names=setup.allowed_names,
            )
        self._parent = parent
        self._taken = dict.fromkeys(Side, 0)
        self._ending = LaneEnding(self._tell)
        self._engine = LinkedEngine(config, LaneDoor, self._link_ended)
        self._engine.ending = cast("Ending", self._ending)
        self._door = cast("LaneDoor", self._engine.door)
        self._engine.watch(parent.sock, READ, self._on_parent)
        self._inbox = deque(parent.watched_by(self._engine.change))
        if setup.several:
            self._engine.share_streams(self._claim)

    def run(self) -> None:
        """Serve until the whole buffer has ended."""
        self._parent.send(Ready())
        self._engine.again(self._work_off)
        self._engine.run()
        self._parent.send_last(self._figures(None), FAREWELL_TIMEOUT_S)
        self._engine.close()

    def _on_parent(self, events: int) -> None:
        if events & WRITE:
            self._parent.flush()
        self._inbox += self._parent.receive()
        self._work_off()

    def _work_off(self) -> None:
        while self._inbox:
            self._obey(*self._inbox.popleft())

    def _claim(self, stream: int) -> int:
        """Ask for a stream, and wait: what follows depends on the answer.

        Another lane may be waiting for us meanwhile.
        """
        self._parent.send(Claim(stream))
        accepted: int | None = None
        while accepted is None:
            self._parent.wait()
            self._parent.flush()
            for message, socks in self._parent.receive():
                if isinstance(message, Grant) and message.stream == stream:
                    accepted = message.accepted
                elif isinstance(message, Release):
                    self._obey(message, socks)
                else:
                    self._inbox.append((message, socks))
        if self._inbox:
            self._engine.again(self._work_off)
        return accepted

    def _obey(self, message: Any, socks: list[socket.socket]) -> None:
        engine = self._engine
        if isinstance(message, Connection):
            self._taken[message.side] += 1
            self._door.admit(socks[0], message)
        elif isinstance(message, Link):
            engine.link(message.side, socks[0], message.name)
        elif isinstance(message, Unlink):
            engine.unlink(message.name)
        elif isinstance(message, Order):
            self._ending.obey(message)
            engine.look_again()
        elif isinstance(message, Release):
            self._parent.send(Released(message.stream, engine.release(message.stream)))
        elif isinstance(message, Ask):
            self._ending.answer(message.token)
            engine.look_again()
        elif isinstance(message, Count):
            self._parent.send(self._figures(message.token, peers=message.peers))

    def _tell(self, facts: Facts, token: int | None) -> None:
        self._parent.send(
            Told(
                facts=facts,
                ready_consumers=self._engine.ready_consumers,
                producers=self._engine.named_producers,
                taken=dict(self._taken),
                token=token,
            )
        )

    def _figures(self, token: int | None, *, peers: bool = True) -> Figures:
        statistics = self._engine.external_statistics()
        return Figures(
            statistics=statistics if peers else replace(statistics, peers=()),
            producers=self._engine.named_producers,
            token=token,
        )

    def _link_ended(self, name: int) -> None:
        self._parent.send(LinkEnded(name))


class LaneNumber(logging.Filter):
    """Says in each line of the log which lane wrote it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the number."""
        record.lane = self._number
        return True


def main() -> int:
    """Run a lane as the whole process."""
    parent, setup = begin_child(Setup, lambda setup: setup.parent)
    configure()
    for handler in logging.getLogger().handlers:
        handler.addFilter(LaneNumber(setup.number))
    try:
        lane = Lane(parent, setup)
    except LclstreamError as error:
        parent.send(Failed(error.body()))
        return 1
    try:
        lane.run()
    except Exception:
        logger.exception("lane_died")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
