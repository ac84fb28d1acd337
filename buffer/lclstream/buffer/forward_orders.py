"""What the serving process and the processes of its links tell each other."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lclstream.buffer.addresses import Address


class LinkState(StrEnum):
    """Where a link is."""

    AWAY = "away"
    """There is no connection to the buffer downstream; it is dialled."""
    GREETED = "greeted"
    """Connected; what it is, or how far our stream is there, is not known yet."""
    READY = "ready"
    """It waits for a connection to our own buffer."""
    OPEN = "open"
    """Messages pass."""
    ENDING = "ending"
    """All have passed, and it is being told."""
    DONE = "done"
    """It knows that the stream has ended."""
    GIVEN_UP = "given up"
    """It was not told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One link."""

    number: int
    address: Address
    stream: int
    """Id of its stream; the upper bits are the same for all links of a buffer."""
    is_begun: bool = False
    """Whether the buffer downstream may have heard of the stream."""


# To a process of links.


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardSetup:
    """The first message: how to work."""

    parent: int
    """Process id of the serving process, which is not outlived."""
    identity: Path | None
    """Folder with the certificate for TLS."""
    dead_after_s: float
    """How long the host of a buffer downstream may be silent."""
    fail_over_s: float | None
    """After how long without a connection others get what was meant for it; None: never."""
    patience_s: float
    """How long it is tried to tell the end of the stream."""
    slots: tuple[Slot, ...]
    """The links to begin with."""


@dataclass(frozen=True, slots=True)
class Slots:
    """More links."""

    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Upstream:
    """A connection to our own buffer for a link; its socket comes along."""

    slot: int


@dataclass(frozen=True, slots=True)
class Farewell:
    """Our own buffer has delivered everything."""

    is_complete: bool
    """Whether that is all there should have been: if not, nobody is told that it has ended."""


# From a process of links.


@dataclass(frozen=True, slots=True)
class Want:
    """A link has a connection downstream and needs one to our own buffer."""

    slot: int
    soon: bool = False
    """Whether there is time, because nothing came over the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTold:
    """A link has changed."""

    slot: int
    state: LinkState
    problem: str
    """Why there is no connection; empty if there is one."""
    rtt_s: float
    window_bytes: int
    resumed: int
    """How often it has gone on after its connection broke."""
