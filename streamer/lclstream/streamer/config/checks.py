"""What one section of a configuration says about another.

What a model knows of its own, it checks itself (`Choice.problems`); here is what concerns
several, or what no model owns. Of a configuration that has other mistakes, the valid part is
checked, so that all of them are named at once.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from lclstream.core.models import near
from lclstream.streamer.config.partial import PartialParameters, UnknownSectionError
from lclstream.streamer.config.source_identifier import (
    PSANA2_TOKENS,
    identifier_tokens,
    is_runs,
)

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters
    from lclstream.streamer.config.choices import Choice, Finding

Location = tuple[str | int, ...]

# Sources that make their events up need no `source_identifier`; these do.
FROM_FILES = ("Hdf5EventSource", "Psana1EventSource", "Psana2EventSource", "Xtc2EventSource")


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: where it is, what is wrong, what was written there."""

    location: Location
    text: str
    value: Any


# Of one check; whoever has so many mistakes needs no others.
MAX_FINDINGS = 100


def problems_of(parameters: "Parameters | PartialParameters") -> list[Problem]:
    """Return every contradiction between the sections of a configuration."""
    whole = cast("Parameters", parameters)
    found: list[Problem] = []
    if _has_no_values(parameters):
        # Whatever else could be said follows from this.
        return [Problem(("data_sources",), "needs at least one data source", {})]
    for check in (_identifier, _names):
        found += _result((), functools.partial(check, whole), parameters)
    for place, model in _chosen(parameters):
        found += _result(place, functools.partial(model.problems, whole), parameters)
    return found


def advice_of(parameters: "Parameters") -> list[str]:
    """Return what is allowed and yet probably not meant, one sentence each."""
    found = []
    for place, model in _chosen(parameters):
        found += _result(place, functools.partial(_advice, model, parameters), parameters)
        plugin = model.section.plugins.get(getattr(model, "type", ""))
        if plugin is not None and plugin.is_ours:
            text = f"{plugin.name} is ours; that of {plugin.origin} is not used"
            found.append(Problem(place, text, plugin.name))
    return [f"{'.'.join(map(str, each.location))}: {each.text}" for each in found]


def advice_for_ranks(parameters: "Parameters", ranks: int) -> list[str]:
    """Return what several ranks are probably not meant to do, one sentence each."""
    handlers = enumerate(parameters.data_handlers if ranks > 1 else ())
    return [
        f"data_handlers.{number}: {text}"
        for number, handler in handlers
        for text in handler.advice_for_ranks(ranks)
    ]


def _advice(model: "Choice", parameters: "Parameters") -> Iterator["Finding"]:
    for text in model.advice(parameters):
        yield (), text, None


def _result(
    place: Location,
    find: Callable[[], Iterable["Finding"]],
    parameters: "Parameters | PartialParameters",
) -> list[Problem]:
    """Return what a check finds; it may be of another package, and fail."""
    found: list[Problem] = []
    try:
        for location, text, value in itertools.islice(find(), MAX_FINDINGS):
            found.append(Problem((*place, *location), text, value))
    except UnknownSectionError:
        pass
    except Exception as error:
        # What is missing from a part of a configuration is the likely reason.
        if not isinstance(parameters, PartialParameters):
            text = f"could not be checked: {type(error).__name__}: {error}"
            found.append(Problem(place, text, None))
    return found


def _has_no_values(parameters: "Parameters | PartialParameters") -> bool:
    try:
        return not parameters.data_sources
    except UnknownSectionError:
        return False


def _chosen(parameters: "Parameters | PartialParameters") -> list[tuple[Location, "Choice"]]:
    """Return every model of a configuration, with its place."""

    def section(name: str) -> Any:
        try:
            return getattr(parameters, name)
        except UnknownSectionError:
            return None

    single = ("event_source", "processing_pipeline", "data_serializer")
    steps = getattr(section("processing_pipeline"), "steps", ())
    chosen: list[tuple[Location, Any]] = [
        *(((name,), section(name)) for name in single),
        *((("data_sources", name), each) for name, each in (section("data_sources") or {}).items()),
        *((("processing_pipeline", "steps", i), each) for i, each in enumerate(steps)),
        *((("data_handlers", i), each) for i, each in enumerate(section("data_handlers") or ())),
    ]
    return [(place, model) for place, model in chosen if model is not None]


def _identifier(parameters: "Parameters") -> Iterator["Finding"]:
    kind, identifier = parameters.event_source.type, parameters.source_identifier
    if not identifier.strip() and kind in FROM_FILES:
        yield (("source_identifier",), f"must say what {kind} shall read", identifier)
    if kind == "Psana2EventSource":
        for key, value in identifier_tokens(identifier):
            if key not in PSANA2_TOKENS:
                text = f"unknown part {key!r}{near(key, PSANA2_TOKENS)}; allowed: " + ", ".join(
                    PSANA2_TOKENS
                )
                yield (("source_identifier",), text, identifier)
            elif (key == "max_events" and not value.isdigit()) or (
                key == "run" and not is_runs(value)
            ):
                yield (("source_identifier",), f"{key} must be a number", identifier)


def _names(parameters: "Parameters") -> Iterator["Finding"]:
    taken: dict[str, str] = {}
    for value in parameters.values_read:
        other = taken.setdefault(value.label, value.data_source)
        if not value.label:
            yield (("data_sources",), "a data source needs a name", "")
        elif other != value.data_source:
            text = f"its value would be called {value.label!r}, as that of {other!r}"
            yield (("data_sources", value.data_source), text, value.label)
