"""What a reader of Kafka brings, and who takes it; no Kafka in here."""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from lclstream.elog.models import Position
from lclstream.elog.offsets import Partition


@dataclass(frozen=True, slots=True, kw_only=True)
class RawMessage:
    """A message as the broker has it."""

    value: bytes | None
    position: Position

    @property
    def partition(self) -> Partition:
        """Topic and partition."""
        return self.position.topic, self.position.partition


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderStatistics:
    """How the reader stands; a snapshot."""

    connected: bool = False
    """Whether any broker is reachable; known within seconds."""
    joined: bool = False
    """Whether the group gave us partitions, or none because there are more watchers."""
    partitions: tuple[str, ...] = ()
    """`topic:number` of what we read now."""
    lag_messages: int | None = None
    """Stored messages that are not finished yet; None while unknown."""
    in_flight: int = 0
    paused: bool = False
    """Whether reading waits for messages in flight."""
    committed: int = 0
    """Commits that the broker took."""
    error: str = ""
    """The last trouble with the broker, empty when messages or commits have passed since."""


class Receiver(Protocol):
    """Takes what a reader brings; its methods are called in the event loop and return at once."""

    def assigned(self) -> None:
        """Called when the group has accepted us, also when it left no partition for us."""

    def deliver(self, message: RawMessage) -> None:
        """Called for each message, in the order of its partition."""

    def revoked(self, partitions: frozenset[Partition]) -> None:
        """Called when partitions went to another reader, before anything of them comes again."""


class InLoop:
    """A receiver whose calls go to the event loop, in order."""

    def __init__(self, receiver: Receiver, loop: asyncio.AbstractEventLoop) -> None:
        """Name the receiver and the loop in which it lives."""
        self._receiver, self._loop = receiver, loop

    def assigned(self) -> None:
        """The group has accepted us."""
        self._loop.call_soon_threadsafe(self._receiver.assigned)

    def deliver(self, message: RawMessage) -> None:
        """A message was read."""
        self._loop.call_soon_threadsafe(self._receiver.deliver, message)

    def revoked(self, partitions: frozenset[Partition]) -> None:
        """Partitions went to another reader."""
        self._loop.call_soon_threadsafe(self._receiver.revoked, partitions)
