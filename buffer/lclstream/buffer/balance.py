"""Which lane gets which connection, and which lanes hand messages on; no input or output.

Producers go to the lane with the fewest producers, consumers to the one with the fewest
consumers. A lane with messages, or with producers, and without consumers of its own hands
everything on to a lane that has some, over a link. Links lead only from lanes without to lanes
with consumers, so there are no circles.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lclstream.buffer.peers import Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a lane has to do, links left out."""

    number: int
    producers: int
    """Connected, or on their way."""
    consumers: int
    """Connected, or on their way."""
    ready_consumers: int
    """That can be given messages."""
    is_empty: bool
    """Whether it holds no messages."""


@dataclass(frozen=True, slots=True)
class Route:
    """A link: messages go from one lane to another."""

    source: int
    target: int


def choose(loads: Sequence[Load], side: Side) -> int:
    """Return the lane that gets a new connection."""
    if side is Side.IN:
        # Where consumers are, messages need not be handed on.
        return min(loads, key=lambda load: (load.producers, not load.consumers, load.number)).number
    return min(
        loads,
        key=lambda load: (load.consumers, load.is_empty, not load.producers, load.number),
    ).number


def obsolete(loads: Sequence[Load], routes: Iterable[Route], *, ending: bool) -> list[Route]:
    """Return the links that are no longer to be used.

    Args:
        loads: all lanes.
        routes: the links that are in use.
        ending: whether no producers come any more, so that what is empty has done its part.
    """
    by_number = {load.number: load for load in loads}
    routes = list(routes)
    fed = {route.target for route in routes}
    return [
        route
        for route in routes
        if (source := by_number[route.source]).ready_consumers
        or not by_number[route.target].ready_consumers
        or (ending and source.is_empty and not source.producers and source.number not in fed)
    ]


def missing(loads: Sequence[Load], routes: Iterable[Route]) -> list[Route]:
    """Return the links that are to be made.

    Args:
        loads: all lanes.
        routes: all links that exist, those that come to their end included.
    """
    routes = list(routes)
    sources = {route.source for route in routes}
    fed = {route.target for route in routes}
    targets = [load for load in loads if load.ready_consumers]
    made: list[Route] = []
    for load in loads:
        works = load.producers or not load.is_empty or load.number in fed
        if load.ready_consumers or load.number in sources or not works or not targets:
            continue
        feeders = [route.target for route in (*routes, *made)]
        target = min(
            targets,
            key=lambda each: (feeders.count(each.number), -each.ready_consumers, each.number),
        )
        made.append(Route(load.number, target.number))
    return made
