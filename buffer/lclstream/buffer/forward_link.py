"""One link: a connection from our own buffer, one to the buffer downstream, and what passes.

The link keeps no messages: our own buffer does until the next one has accepted them. Both
connections carry the same bytes, and an acknowledgement that comes from downstream is passed on
with nothing changed but the number at which counting began.

Downstream the link is one stream of a producer. If that connection breaks, the next one asks how
many messages of the stream were accepted; our own buffer is told, and the rest comes again.
"""

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from lclstream.buffer import tcp
from lclstream.buffer.control import ControlReader, Frame, frame
from lclstream.buffer.forward_inlet import Inlet
from lclstream.buffer.forward_orders import LinkState, LinkTold, Slot, Want
from lclstream.buffer.forward_plan import round_trip_s
from lclstream.buffer.forward_scan import Scanner
from lclstream.buffer.links import Link, Links, Target
from lclstream.buffer.loop import Loop
from lclstream.buffer.outgoing import skip
from lclstream.buffer.sp import HANDSHAKE_BYTES, HEADER_BYTES, LARGE_BYTES
from lclstream.buffer.splice import FLAGS, Pipe
from lclstream.core.errors import DecodeError

logger = logging.getLogger(__name__)

CHUNK_BYTES = 256 * 1024
WORDS_BYTES = 4096
# Others want to be served as well.
BYTES_PER_EVENT = 8 << 20
# Less of a message is not worth the system calls.
SPLICED_BYTES = LARGE_BYTES // 2
HELLO_TIMEOUT_S = 5.0
# Who greets and then ends the connection is not dialled again at once.
PAUSE_S = 1.0
CHECK_INTERVAL_S = 5.0
# When nobody listens any more there is nobody who could be told the end.
REFUSED_PATIENCE_S = 5.0
NOT_OURS = "it is no buffer of ours: forward to what `lclstream buffer serve` announces as `in`"


class ForwardLink:
    """Passes messages on over one connection, or others that follow it.

    Resource handling: owns the connection to the own buffer and a pipe; `close` ends both. The
    connection downstream belongs to `links`.

    Args:
        slot: what it is.
        target: what is dialled, one of `links`.
        links: dials.
        loop: watches the connection to the own buffer.
        tell: hears what the serving process has to know.
        window_bytes: what one connection has on its way at most, for reports.
        dead_after_s: how long the host downstream may be silent.
        fail_over_s: after how long without a connection others get what was given to this one;
            None: never.
        patience_s: how long it is tried to tell the end of the stream.
    """

    def __init__(
        self,
        slot: Slot,
        target: Target,
        links: Links,
        loop: Loop,
        tell: Callable[[Want | LinkTold], None],
        *,
        window_bytes: int,
        dead_after_s: float,
        fail_over_s: float | None,
        patience_s: float,
    ) -> None:
        self.slot = slot
        self.state = LinkState.AWAY
        self._target = target
        self._links = links
        self._loop = loop
        self._tell = tell
        self._dead_after_s = dead_after_s
        self._check_interval_s = min(CHECK_INTERVAL_S, dead_after_s / 4)
        self._fail_over_s = fail_over_s
        self._patience_s = patience_s
        self._link: Link | None = None
        self._reader = ControlReader()
        self._is_introduced = False
        self._sent_bytes = 0
        self._answer_by = self._check_at = 0.0
        self._away_since = time.monotonic()
        self._accepted = 0
        """Messages of the stream that the buffer downstream is known to have."""
        self._is_begun = slot.is_begun
        """Whether it has ever heard of the stream."""
        self._inlet: Inlet | None = None
        self._scanner = Scanner()
        self._chunk = memoryview(bytearray(CHUNK_BYTES))
        self._unjudged = b""
        """What has come of a message that may look like a control frame."""
        self._is_large = False
        """Whether the last message was large: then the next one may be."""
        self._outbox: deque[memoryview] = deque()
        self._pipe: Pipe | None = None
        self._piped = 0
        self._farewell_at: float | None = None
        self._half_closed = False
        self._told = LinkTold(
            slot=slot.number,
            state=self.state,
            problem="",
            rtt_s=0.0,
            window_bytes=window_bytes,
            resumed=0,
        )

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in (LinkState.DONE, LinkState.GIVEN_UP)

    @property
    def link(self) -> Link | None:
        """The connection downstream."""
        return self._link

    # What the serving process says.

    def connect(self, sock: socket.socket) -> None:
        """Take over a connection to the own buffer, which was asked for."""
        passed = self._passed
        inlet = Inlet(sock, self._loop, self._move, passed)
        link = self._link
        if link is None or self.state is not LinkState.READY:
            # Downstream has gone meanwhile: it is asked for again.
            inlet.part()
            return
        if self._inlet is not None:
            self._inlet.close()
        self._inlet, self._scanner, self._unjudged = inlet, Scanner(), b""
        self._told = replace(self._told, rtt_s=round_trip_s(link.sock))
        self._become(LinkState.OPEN)
        inlet.watch(True)

    def end(self, *, is_complete: bool) -> None:
        """The own buffer has nothing more; tell the one downstream if that was all."""
        self._farewell_at = time.monotonic()
        if not is_complete:
            self._give_up("the stream is incomplete")
        elif not self._is_begun and self._link is None:
            # It never heard of the stream.
            self._finish(LinkState.DONE)
        else:
            self._say_bye()

    # What happens downstream.

    def connected(self, link: Link) -> None:
        """Go on with a connection that has just come up."""
        self._link = link
        self._reader, self._is_introduced, self._half_closed = ControlReader(), False, False
        self._sent_bytes = HANDSHAKE_BYTES
        now = time.monotonic()
        self._answer_by, self._check_at = now + HELLO_TIMEOUT_S, now + self._check_interval_s
        self._become(LinkState.GREETED)

    def readable(self) -> None:
        """Hear what the buffer downstream says."""
        link = self._link
        words = memoryview(bytearray(WORDS_BYTES))
        try:
            while link is not None and link.is_open:
                count = link.wire.recv_into(words)
                if not count:
                    self._lost("closed by the buffer downstream")
                    return
                for kind, number in self._reader.received(words[:count]):
                    self._heard(kind, number)
        except BlockingIOError:
            return
        except (OSError, DecodeError) as error:
            self._lost(str(error))

    def writable(self) -> None:
        """Send what waits."""
        if self.state is LinkState.OPEN:
            self._move()
        elif self._send():
            self._end_downstream()

    def _heard(self, kind: Frame, number: int) -> None:
        if kind is Frame.HELLO and not self._is_introduced:
            self._is_introduced = self._is_begun = True
            self._outbox.append(
                memoryview(
                    frame(Frame.HELLO, number)
                    + frame(Frame.STREAM, self.slot.stream)
                    + frame(Frame.FROM, self._accepted)
                )
            )
            self._send()
        elif kind is not Frame.ACK or not self._is_introduced:
            raise DecodeError(f"{kind.name} has no place here")
        elif self.state is LinkState.GREETED:
            self._resume(number)
        elif not self._accepted <= number <= self._passed:
            raise DecodeError(f"{number} messages acknowledged, of {self._passed} sent")
        else:
            self._accepted = number
            if self._inlet is not None:
                self._inlet.acknowledge(number)
            self._say_bye()

    def _resume(self, accepted: int) -> None:
        """Go on with the stream where the buffer downstream is."""
        if accepted > self._accepted:
            logger.info(
                "forward_resumed",
                extra={"url": str(self.slot.address), "accepted_messages": accepted},
            )
        self._accepted = max(self._accepted, accepted)
        if self._inlet is not None:
            # What it was given and did not arrive is given to whoever is next.
            self._inlet.acknowledge(self._accepted)
            self._leave_inlet()
        self._become(LinkState.READY)
        if self._farewell_at is None:
            self._tell(Want(self.slot.number))
        else:
            self._say_bye()

    def _lost(self, problem: str) -> None:
        """The connection downstream is of no more use."""
        link, self._link = self._link, None
        if link is None:
            return
        now = time.monotonic()
        is_told = (
            self._half_closed and link.wire.acknowledged_bytes(self._sent_bytes) >= self._sent_bytes
        )
        was_open = self.state is not LinkState.GREETED
        if link.is_open:
            self._links.drop(link, redial=not is_told, problem=problem)
        if not was_open:
            self._target.retry_at = now + PAUSE_S
        self._away_since = now
        self._drop_unsent()
        if is_told:
            self._finish(LinkState.DONE)
            return
        logger.warning("forward_lost", extra={"url": str(self.slot.address), "reason": problem})
        if self._inlet is not None:
            self._inlet.watch(False)
        if was_open:
            self._told = replace(self._told, resumed=self._told.resumed + 1)
        self._become(LinkState.AWAY, problem)

    # What passes.

    @property
    def _passed(self) -> int:
        """Messages of the stream that were taken from the own buffer whole."""
        if self._inlet is None:
            return self._accepted
        return self._inlet.base + self._scanner.messages

    def _move(self) -> None:
        """Pass on what can be passed on now."""
        inlet, budget = self._inlet, BYTES_PER_EVENT
        if inlet is None or self.state is not LinkState.OPEN:
            return
        while self._send() and budget > 0:
            try:
                count = self._receive(inlet)
            except BlockingIOError:
                break
            except (OSError, DecodeError) as error:
                self._inlet_ended(str(error))
                return
            if not count:
                self._inlet_ended("closed by the own buffer")
                return
            budget -= count
        # Only who has sent everything is ready for more.
        if self._inlet is inlet and self.state is LinkState.OPEN:
            inlet.watch(not self._outbox and not self._piped)

    def _receive(self, inlet: Inlet) -> int:
        """Take something from the own buffer, everything before having been sent."""
        link, scanner, chunk = self._link, self._scanner, self._chunk
        assert link is not None  # noqa: S101
        if link.wire.can_splice and scanner.rest_bytes >= SPLICED_BYTES:
            self._pipe = self._pipe or Pipe()
            room = min(scanner.rest_bytes, self._pipe.size_bytes)
            count = os.splice(inlet.sock.fileno(), self._pipe.write_end, room, flags=FLAGS)
            self._piped += count
            scanner.passed(count)
            return count
        kept = len(self._unjudged)
        limit = CHUNK_BYTES
        if self._is_large and link.wire.can_splice and not scanner.rest_bytes:
            # What it says decides whether the rest need come here at all.
            limit = max(HEADER_BYTES, kept + 1)
        count = inlet.receive(chunk[kept:limit])
        if count:
            chunk[:kept] = self._unjudged
            pieces, stop = scanner.scan(chunk, 0, kept + count)
            self._unjudged = bytes(chunk[stop : kept + count])
            self._outbox.extend(pieces)
            self._is_large = scanner.rest_bytes >= SPLICED_BYTES
        return count

    def _send(self) -> bool:
        """Send what waits; return whether that is all gone."""
        link, outbox = self._link, self._outbox
        if link is None:
            return False
        follows = self._scanner.rest_bytes >= SPLICED_BYTES
        try:
            while outbox:
                if follows and link.wire.can_splice:
                    # Let the kernel fill its packets with what is spliced next.
                    count = link.sock.sendmsg(outbox, (), socket.MSG_MORE)
                else:
                    count = link.wire.sendmsg(list(outbox))
                self._sent_bytes += count
                skip(outbox, count)
            while self._piped and self._pipe is not None:
                flags = FLAGS | (os.SPLICE_F_MORE if follows else 0)
                count = os.splice(self._pipe.read_end, link.sock.fileno(), self._piped, flags=flags)
                self._sent_bytes += count
                self._piped -= count
        except BlockingIOError:
            self._links.want_write(link, True)
            return False
        except OSError as error:
            self._lost(str(error))
            return False
        self._links.want_write(link, False)
        return True

    def _inlet_ended(self, problem: str) -> None:
        """Nothing more comes from the own buffer over this connection."""
        inlet = self._inlet
        assert inlet is not None  # noqa: S101
        inlet.watch(False)
        inlet.has_ended = True
        if self._scanner.rest_bytes or self._unjudged:
            # What was sent of the message must be forgotten downstream.
            inlet.close()
            self._inlet = None
            self._lost(f"{problem} inside a message")
        elif self._farewell_at is None:
            # It is one lane that has gone, or we hear of the end in a moment.
            self._become(LinkState.READY)
            self._tell(Want(self.slot.number, soon=not self._scanner.messages))
        else:
            self._say_bye()

    def _leave_inlet(self) -> None:
        inlet, self._inlet = self._inlet, None
        if inlet is not None and inlet.has_ended:
            inlet.close()
        elif inlet is not None:
            inlet.part()

    def _drop_unsent(self) -> None:
        self._outbox.clear()
        if self._piped and self._pipe is not None:
            self._pipe.close()
            self._pipe, self._piped = None, 0

    # The end.

    def _say_bye(self) -> None:
        """Tell the buffer downstream that the stream has ended, if that is known and accepted."""
        inlet = self._inlet
        if self._farewell_at is None or self.state not in (LinkState.READY, LinkState.OPEN):
            return
        if (inlet is None or inlet.has_ended) and self._accepted == self._passed:
            self._become(LinkState.ENDING)
            self._outbox.append(memoryview(frame(Frame.BYE, self._accepted)))
            self.writable()

    def _end_downstream(self) -> None:
        """Half-close; who has read everything closes its side."""
        if self.state is not LinkState.ENDING or self._half_closed or self._link is None:
            return
        try:
            self._half_closed = self._link.wire.end()
        except OSError as error:
            self._lost(str(error))
            return
        self._links.want_write(self._link, not self._half_closed)

    def _give_up(self, problem: str) -> None:
        if self._is_begun:
            logger.error(
                "forward_end_not_told", extra={"url": str(self.slot.address), "reason": problem}
            )
        self._finish(LinkState.GIVEN_UP if self._is_begun else LinkState.DONE, problem)

    def _finish(self, state: LinkState, problem: str = "") -> None:
        link, self._link = self._link, None
        if link is not None and link.is_open:
            self._links.drop(link, redial=False)
        self._target.ended = True
        self._drop_unsent()
        self._leave_inlet()
        self._become(state, problem)

    def close(self) -> None:
        """Let everything go."""
        self._drop_unsent()
        if self._pipe is not None:
            self._pipe.close()

    # Time.

    def deadline(self) -> float | None:
        """Return when `expire` has something to do."""
        times = []
        if self._link is not None:
            times.append(self._check_at)
            if self.state is LinkState.GREETED:
                times.append(self._answer_by)
        elif self._inlet is not None and self._fail_over_s is not None:
            times.append(self._away_since + self._fail_over_s)
        if self._farewell_at is not None:
            times.append(self._farewell_at + self._patience_s)
            if self._link is None:
                times.append(self._refused_until)
        return min(times, default=None)

    def expire(self, now: float) -> None:
        """Do what time has brought."""
        if self.is_over:
            return
        link = self._link
        if link is None:
            self._expire_away(now)
        elif self.state is LinkState.GREETED and now >= self._answer_by:
            self._lost("no answer in time" if self._is_introduced else NOT_OURS)
        elif now >= self._check_at:
            self._check_at = now + self._check_interval_s
            if tcp.is_dead(link.sock, self._dead_after_s):
                self._lost("host does not answer")
        if self._farewell_at is not None and now >= self._farewell_at + self._patience_s:
            self._give_up("not reached in time")

    def _expire_away(self, now: float) -> None:
        target = self._target
        if self._told.problem != target.problem:
            self._become(self.state, target.problem)
        if (
            self._inlet is not None
            and self._fail_over_s is not None
            and now >= self._away_since + self._fail_over_s
        ):
            logger.warning("forward_failed_over", extra={"url": str(self.slot.address)})
            self._leave_inlet()
        if self._farewell_at is not None and (
            not self._is_begun or (target.refused and now >= self._refused_until)
        ):
            self._give_up(target.problem)

    @property
    def _refused_until(self) -> float:
        return max(self._farewell_at or 0.0, self._away_since) + REFUSED_PATIENCE_S

    def _become(self, state: LinkState, problem: str = "") -> None:
        self.state = state
        self._told = replace(self._told, state=state, problem=problem)
        self._tell(self._told)
