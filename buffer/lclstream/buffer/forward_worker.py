"""A process of links: passes messages on to the buffers downstream.

`python -m lclstream.buffer.forward_worker FD` is started by `Forwarder` only, and dies with the
serving process. It holds no messages, so nothing is lost with it.
"""

import logging
import socket
import sys
import time
from contextlib import nullcontext
from typing import Any, cast

from lclstream.buffer.child import Tether, begin_child
from lclstream.buffer.forward_link import ForwardLink
from lclstream.buffer.forward_orders import (
    Farewell,
    ForwardSetup,
    Slot,
    Slots,
    Upstream,
)
from lclstream.buffer.forward_plan import send_buffer
from lclstream.buffer.links import WRITE, Links, SocketOptions, Target
from lclstream.buffer.loop import READ, Loop
from lclstream.buffer.sp import Protocol
from lclstream.core.logging import configure
from lclstream.core.tls import Credentials

logger = logging.getLogger(__name__)


class Worker:
    """The links of one process.

    Args:
        parent: the way to the serving process.
        setup: how to work.
    """

    def __init__(self, parent: Tether, setup: ForwardSetup) -> None:
        self._parent = parent
        self._setup = setup
        self._loop = Loop()
        sndbuf_bytes, self._window_bytes = send_buffer()
        identity = setup.identity
        self._links = Links(
            [str(slot.address) for slot in setup.slots],
            listening=False,
            protocol=Protocol.PUSH,
            options=SocketOptions(
                tls=Credentials.from_folder(identity) if identity is not None else None,
                sndbuf_bytes=sndbuf_bytes,
                dead_after_s=setup.dead_after_s,
            ),
        )
        self._of_target: dict[Target, ForwardLink] = {}
        self._of_slot: dict[int, ForwardLink] = {}
        for slot, target in zip(setup.slots, self._links.targets, strict=True):
            self._begin(slot, target)
        self._farewell: Farewell | None = None
        self._loop.watch(parent.sock, READ, self._on_parent)
        # An epoll descriptor can be watched like a socket.
        self._loop.watch(cast("socket.socket", self._links), READ, lambda _: None)
        for message, socks in parent.watched_by(self._loop.change):
            self._obey(message, socks)

    def run(self) -> None:
        """Work until all buffers downstream know that the stream has ended, or cannot be told."""
        while not all(link.is_over for link in self._of_slot.values()):
            self._loop.turn(self._deadline(), nullcontext())
            for link, events in self._links.wait(0.0):
                if link.is_open and link.target is not None:
                    forward = self._of_target[link.target]
                    if forward.link is not link:
                        forward.connected(link)
                    if events & ~WRITE:
                        forward.readable()
                    if events & WRITE:
                        forward.writable()
            now = time.monotonic()
            for forward in self._of_slot.values():
                forward.expire(now)
        for forward in self._of_slot.values():
            forward.close()
        self._links.close()
        self._loop.close()

    def _begin(self, slot: Slot, target: Target) -> None:
        self._of_target[target] = self._of_slot[slot.number] = ForwardLink(
            slot,
            target,
            self._links,
            self._loop,
            self._parent.send,
            window_bytes=self._window_bytes,
            dead_after_s=self._setup.dead_after_s,
            fail_over_s=self._setup.fail_over_s,
            patience_s=self._setup.patience_s,
        )

    def _deadline(self) -> float | None:
        now = time.monotonic()
        patience_s = self._links.patience_s(now)
        times = [None if patience_s is None else now + patience_s]
        times += [forward.deadline() for forward in self._of_slot.values() if not forward.is_over]
        return min((moment for moment in times if moment is not None), default=None)

    def _on_parent(self, events: int) -> None:
        if events & WRITE:
            self._parent.flush()
        for message, socks in self._parent.receive():
            self._obey(message, socks)

    def _obey(self, message: Any, socks: list[socket.socket]) -> None:
        if isinstance(message, Upstream):
            self._of_slot[message.slot].connect(socks[0])
        elif isinstance(message, Slots):
            for slot in message.slots:
                target = Target(slot.address)
                self._links.targets.append(target)
                self._begin(slot, target)
        elif isinstance(message, Farewell):
            for forward in self._of_slot.values():
                forward.end(is_complete=message.is_complete)


def main() -> int:
    """Work as the whole process."""
    parent, setup = begin_child(ForwardSetup, lambda setup: setup.parent)
    configure()
    try:
        Worker(parent, setup).run()
    except Exception:
        logger.exception("forward_died")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
