"""When a buffer drains, flushes and ends: decisions from facts and times, no input or output.

The shell tells `Ending.step` the facts, does the actions that come back, and asks again when
something has happened or `Ending.deadline` has come.
"""

import logging
from dataclasses import dataclass
from enum import StrEnum

from lclstream.buffer.config import BufferConfig
from lclstream.buffer.states import FINAL, BufferEvent, BufferState, after

logger = logging.getLogger(__name__)


class Action(StrEnum):
    """What the shell is to do."""

    CLOSE_INPUT = "close the producers' listening sockets"
    CUT_PRODUCERS = "close the connections of producers that are left"
    SAY_FAREWELL = "close the consumers' listening sockets and half-close every consumer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the shell sees."""

    now: float
    producers: int
    producers_seen: int
    consumers: int
    consumers_seen: int
    is_empty: bool
    """Whether nothing waits for a consumer or is being written to one."""
    last_activity: float
    """When a byte last moved or a peer came or went."""
    has_faults: bool
    """Whether something is known to be missing."""


class Ending:
    """The life of one buffer."""

    def __init__(self, config: BufferConfig) -> None:
        self.state = BufferState.OPEN
        self.reason = ""
        self.farewell_said = False
        """Whether consumers are only to be told that the stream has ended."""
        self._config = config
        self._input_closed = False
        self._gone_since: float | None = None
        self._draining_since = 0.0
        self._give_up_at: float | None = None
        self._linger_until: float | None = None
        self._farewell_until: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether a final state is reached."""
        return self.state in FINAL

    def drain(self, now: float, reason: str, deadline_s: float | None = None) -> None:
        """Refuse new producers and end when everything is delivered.

        Args:
            now: the time.
            reason: for people.
            deadline_s: end in any case after so long; None: as long as there is progress.
        """
        if self.is_over:
            return
        if self.state is BufferState.OPEN:
            self.reason = reason
            self._draining_since = now
        if deadline_s is not None:
            self._give_up_at = min(now + deadline_s, self._give_up_at or now + deadline_s)
        self._go(BufferEvent.DRAIN)

    def stop(self, reason: str) -> None:
        """End now."""
        if not self.is_over:
            self.reason = reason
            self._go(BufferEvent.STOP)

    def step(self, facts: Facts) -> list[Action]:
        """Return what is to be done now; ask again, with new facts, until that is nothing."""
        if self.state is BufferState.OPEN:
            self._look_for_end(facts)
        if self.state is not BufferState.OPEN and not self._input_closed:
            self._input_closed = True
            # Producers that had connected already may come in now.
            return [Action.CLOSE_INPUT]
        actions = []
        if self.state is BufferState.DRAINING:
            if not facts.producers:
                self._go(BufferEvent.PRODUCERS_GONE)
            elif self._is_expired(facts):
                actions.append(Action.CUT_PRODUCERS)
        if self.state is BufferState.FLUSHING:
            actions += self._flush(facts)
        return actions

    def deadline(self, facts: Facts) -> float | None:
        """Return when `step` is to be asked again although nothing has happened."""
        config = self._config
        times: list[float | None] = []
        if self.state is BufferState.OPEN:
            if self._gone_since is not None:
                times.append(self._gone_since + config.grace_s)
            if config.max_idle_s:
                times.append(facts.last_activity + config.max_idle_s)
        elif self.is_over:
            return None
        elif self._farewell_until is not None:
            times.append(self._farewell_until)
        elif self._linger_until is not None and facts.is_empty:
            times += [self._linger_until, self._give_up_at]
        else:
            times += [self._patience_end(facts), self._give_up_at]
        return min((moment for moment in times if moment is not None), default=None)

    def _look_for_end(self, facts: Facts) -> None:
        config = self._config
        come_and_gone = 0 < config.expect_producers <= facts.producers_seen and not facts.producers
        if not come_and_gone:
            self._gone_since = None
        elif self._gone_since is None:
            self._gone_since = facts.now
        if self._gone_since is not None and facts.now >= self._gone_since + config.grace_s:
            self.drain(facts.now, f"all {facts.producers_seen} producers have come and gone")
        elif config.max_idle_s and facts.now >= facts.last_activity + config.max_idle_s:
            self.drain(facts.now, f"nothing happened for {config.max_idle_s} s")

    def _flush(self, facts: Facts) -> list[Action]:
        if self._farewell_until is not None:
            if facts.consumers and facts.now < self._farewell_until:
                return []
            self._go(BufferEvent.LOST if facts.has_faults else BufferEvent.FLUSHED)
            return []
        if not facts.is_empty:
            if self._is_expired(facts):
                self._go(BufferEvent.LOST)
            return []
        if self._must_linger(facts):
            return []
        self.farewell_said = True
        self._farewell_until = facts.now + self._config.farewell_timeout_s
        if self._give_up_at is not None:
            self._farewell_until = min(self._farewell_until, self._give_up_at)
        return [Action.SAY_FAREWELL]

    def _must_linger(self, facts: Facts) -> bool:
        """Wait for consumers that are late for a stream of which nobody got anything."""
        if self._linger_until is None:
            if facts.consumers_seen:
                return False
            self._linger_until = facts.now + self._config.linger_s
            self.farewell_said = True
        is_given_up = self._give_up_at is not None and facts.now >= self._give_up_at
        return facts.now < self._linger_until and not is_given_up

    def _is_expired(self, facts: Facts) -> bool:
        ends = [self._patience_end(facts), self._give_up_at]
        return any(end is not None and facts.now >= end for end in ends)

    def _patience_end(self, facts: Facts) -> float:
        waits_for_consumer = not facts.consumers and not facts.is_empty
        patience_s = (
            self._config.consumer_timeout_s if waits_for_consumer else self._config.stall_timeout_s
        )
        return max(facts.last_activity, self._draining_since) + patience_s

    def _go(self, event: BufferEvent) -> None:
        before, self.state = self.state, after(self.state, event)
        if self.state is not before:
            logger.info("buffer_state", extra={"state": self.state, "reason": self.reason})
