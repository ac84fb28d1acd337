"""What is known about each run, and what a message adds to it.

Messages of the logbook arrive in any order and more than once, within one run too. So a run's
state only grows: a fact that is known stays known, and a run that has ended never reopens.
`after` is a pure function from (state, event) to state; the facts that the new state has and
the old one had not are the news. START_OF_RUN is the only fact that depends on the order: it
is never stated once the end of the run is known.

Facts are independent of workflow definitions; `rules` finds the definitions that wait for one.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from lclstream.elog.models import (
    Event,
    FileDocument,
    JobDocument,
    Position,
    RunDocument,
    Trigger,
)

# Documents of these actions say how things are; a Delete or an unknown action does not.
_STATING = ("Create", "Update")
_JOB_REQUESTED = "START"


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that became true of a run; it is stated once."""

    trigger: Trigger
    name: str = ""
    """Of the parameter, of the location, or the id of the job; else empty."""
    value: str = ""
    """Of the parameter; else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """All that is known about one run."""

    facts: frozenset[Fact] = frozenset()
    ended: bool = False
    begin_time: datetime | None = None
    end_time: datetime | None = None
    files: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    """Path -> the locations that have the file."""
    jobs_taken: frozenset[str] = frozenset()
    """Ids of jobs that were seen beyond the request to start them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """A fact with what a workflow has to know about it."""

    fact: Fact
    experiment: str
    run: int | str
    begin_time: datetime | None
    happened_at: datetime
    """When it became true: begin or end of the run, else when the broker got the message."""
    position: Position
    job: JobDocument | None = None
    """The request of a person; only with MANUAL."""


def after(state: RunState, event: Event, recorded_files: re.Pattern[str] | None) -> RunState:
    """Return the state that follows; never less than before.

    Args:
        state: what is known.
        event: a message, in any order, maybe a repeated one.
        recorded_files: which paths count for ALL_NONREC_FILES_TRANSFERRED; None for no path.
    """
    if event.crud not in _STATING:
        return state
    match event.document:
        case RunDocument() as run:
            state = _after_run(state, run)
        case FileDocument() as file:
            state = replace(state, files=_merged(state.files, [file]))
        case JobDocument() as job:
            state = _after_job(state, event.crud, job)
    return replace(state, facts=state.facts | set(_file_facts(state, recorded_files)))


def _after_run(state: RunState, run: RunDocument) -> RunState:
    ended = state.ended or run.end_time is not None
    facts = set(state.facts)
    if run.end_time is not None:
        facts.add(Fact(Trigger.END_OF_RUN))
    elif not state.ended:
        facts.add(Fact(Trigger.START_OF_RUN))
    for name, value in run.params.items():
        facts.update(Fact(Trigger.RUN_PARAM_IS_VALUE, name, text) for text in texts(value))
    return replace(
        state,
        facts=frozenset(facts),
        ended=ended,
        begin_time=state.begin_time or run.begin_time,
        end_time=state.end_time or run.end_time,
        files=_merged(state.files, run.file_catalog or []),
    )


def _after_job(state: RunState, crud: str, job: JobDocument) -> RunState:
    if crud != "Create" or job.status != _JOB_REQUESTED:
        return replace(state, jobs_taken=state.jobs_taken | {job.id})
    if job.id in state.jobs_taken:
        # Somebody has taken the request already: this message is late.
        return state
    return replace(state, facts=state.facts | {Fact(Trigger.MANUAL, job.id)})


def _merged(
    files: Mapping[str, frozenset[str]], documents: Iterable[FileDocument]
) -> Mapping[str, frozenset[str]]:
    # An older document without a location does not take it away.
    merged = dict(files)
    for file in documents:
        merged[file.path] = merged.get(file.path, frozenset()) | frozenset(file.locations)
    return MappingProxyType(merged)


def _file_facts(state: RunState, recorded_files: re.Pattern[str] | None) -> Iterator[Fact]:
    for location in frozenset().union(*state.files.values()):
        yield Fact(Trigger.FIRST_FILE_TRANSFERRED, location)
    if not state.ended:
        return
    for location in _everywhere(state.files.values()):
        yield Fact(Trigger.ALL_FILES_TRANSFERRED, location)
    if recorded_files is not None:
        chosen = [at for path, at in state.files.items() if recorded_files.search(path)]
        for location in _everywhere(chosen):
            yield Fact(Trigger.ALL_NONREC_FILES_TRANSFERRED, location)


def _everywhere(locations: Iterable[frozenset[str]]) -> frozenset[str]:
    """Return what all sets share; nothing when there is no set."""
    sets = list(locations)
    return frozenset.intersection(*sets) if sets else frozenset()


def texts(value: Any) -> tuple[str, ...]:
    """Return the strings that a parameter's value equals."""
    return (str(value), str(value).lower()) if isinstance(value, bool) else (str(value),)


_ORDER = {
    trigger: place
    for place, trigger in enumerate(
        (
            Trigger.MANUAL,
            Trigger.START_OF_RUN,
            Trigger.END_OF_RUN,
            Trigger.RUN_PARAM_IS_VALUE,
            Trigger.FIRST_FILE_TRANSFERRED,
            Trigger.ALL_FILES_TRANSFERRED,
            Trigger.ALL_NONREC_FILES_TRANSFERRED,
        )
    )
}


class History:
    """The states of the runs seen last.

    Losing a state never doubles anything: what is stated again has the same identity, and Airflow
    knows it. But ALL_FILES_TRANSFERRED needs the end of a run and its files in one memory: a
    watcher that starts between them, or shares the group with another one, may state it late, on
    the files that it knows, or never. The bound keeps years of runs out of memory.
    """

    def __init__(
        self, *, keep_runs: int = 200, recorded_files: re.Pattern[str] | None = None
    ) -> None:
        """Start without knowledge.

        Args:
            keep_runs: how many runs to remember; the one that was quiet longest goes first.
            recorded_files: see `after`.
        """
        self._keep_runs = keep_runs
        self._recorded_files = recorded_files
        self._states: OrderedDict[tuple[str, int | str], RunState] = OrderedDict()

    def add(self, event: Event) -> list[News]:
        """Take in a message and return what it made known, in a fixed order."""
        key = (event.experiment, event.run)
        before = self._states.get(key, RunState())
        state = after(before, event, self._recorded_files)
        self._states[key] = state
        self._states.move_to_end(key)
        while len(self._states) > self._keep_runs:
            self._states.popitem(last=False)
        found = state.facts - before.facts
        ordered = sorted(found, key=lambda fact: (_ORDER[fact.trigger], fact.name, fact.value))
        return [_news(fact, state, event) for fact in ordered]

    def forget(self, news: Iterable[News]) -> None:
        """Take facts back that were not acted on, so that a repeated message states them."""
        for each in news:
            key = (each.experiment, each.run)
            if (state := self._states.get(key)) is not None:
                self._states[key] = replace(state, facts=state.facts - {each.fact})

    def state(self, experiment: str, run: int | str) -> RunState | None:
        """Return what is known about a run, or None."""
        return self._states.get((experiment, run))


def _news(fact: Fact, state: RunState, event: Event) -> News:
    happened_at = {
        Trigger.START_OF_RUN: state.begin_time,
        Trigger.END_OF_RUN: state.end_time,
    }.get(fact.trigger)
    return News(
        fact=fact,
        experiment=event.experiment,
        run=event.run,
        begin_time=state.begin_time,
        happened_at=happened_at or event.position.recorded_at,
        position=event.position,
        job=event.document if isinstance(event.document, JobDocument) else None,
    )
