"""What the serving process and its lanes tell each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lclstream.buffer.config import BufferConfig
from lclstream.buffer.ending import Action, Facts
from lclstream.buffer.peers import Side
from lclstream.buffer.states import BufferState
from lclstream.buffer.statistics import Statistics

# To a lane.


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The first message: how to work."""

    number: int
    parent: int
    """Process id of the serving process; the lane does not outlive it."""
    config: BufferConfig
    """Without TLS contexts, which cannot travel."""
    identity: Path | None
    """Folder with the certificate for TLS."""
    require_tls: bool
    allowed_names: tuple[str, ...]
    several: bool
    """Whether there are other lanes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A connection that was accepted, from which nothing was read; its socket comes along."""

    side: Side
    address: str
    only_tls: bool
    """Whether it is refused if it is not inside TLS."""
    trusted: bool = False
    """Whether it is of this buffer itself, and let in on any terms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An end of a connection between two lanes; its socket comes along."""

    side: Side
    """IN at the lane that gets the messages."""
    name: int


@dataclass(frozen=True, slots=True)
class Unlink:
    """Hand nothing more on over a link: end it when what has begun is whole."""

    name: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Where the whole buffer is in its life, and what is to be done for that."""

    state: BufferState
    reason: str
    farewell_said: bool
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """Tell the facts as they are now."""

    token: int


@dataclass(frozen=True, slots=True)
class Count:
    """Tell all figures as they are now."""

    token: int
    peers: bool
    """Whether those of each connection are wanted too; there may be a thousand."""


@dataclass(frozen=True, slots=True)
class Release:
    """Let another lane go on with a stream of a producer."""

    stream: int


@dataclass(frozen=True, slots=True)
class Grant:
    """Go on with a stream that was claimed."""

    stream: int
    accepted: int
    """How many of its messages other lanes have accepted."""


# From a lane.


@dataclass(frozen=True, slots=True)
class Claim:
    """A producer has named a stream that is not known here: whose is it?"""

    stream: int


@dataclass(frozen=True, slots=True)
class Released:
    """A stream is known here no more."""

    stream: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The lane can take connections."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The lane cannot work."""

    error: dict[str, Any]
    """As it travels over HTTP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The facts of a lane; links are not in their counts."""

    facts: Facts
    ready_consumers: int
    """Consumers of its own that completed the handshake."""
    producers: frozenset[int]
    """Producers that named themselves; other lanes may know them too."""
    taken: dict[Side, int]
    """Connections that it was passed so far, links not counted."""
    token: int | None = None
    """Of the question that this answers."""


@dataclass(frozen=True, slots=True)
class LinkEnded:
    """This end of a link is closed."""

    name: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of a lane; what came and went over links is not in them."""

    statistics: Statistics
    producers: frozenset[int]
    """Producers that named themselves."""
    token: int | None
    """Of the question that this answers; None: the lane has ended, these are its last."""
