"""The cases of a cell are measured in turns, so that a busy moment hits all alike."""

import logging
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.buffer.counters import Count, Counters
from benchmarks.buffer.ends import Ends, Place
from benchmarks.buffer.measure import BrokenMeasurementError, Sample, cpu_s, until
from benchmarks.buffer.relays import Relay, Running, free_port, running, stop

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 20.0
QUIET_S = 0.15
DRAIN_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How thoroughly to measure."""

    repetitions: int
    window_s: float
    warm_up_s: float
    folder: Path
    program: Path
    """The generators."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What goes through a relay."""

    size_bytes: int
    producers: int = 1
    consumers: int = 1
    batches: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A relay, or none, between ends of one kind."""

    name: str
    load: Load
    ends: Ends
    relay: Relay | None = None


@dataclass(slots=True)
class Outcome:
    """What a case has shown."""

    samples: list[Sample] = field(default_factory=list)
    """One for each repetition, in their order."""
    broken: str = ""
    """Why there is no figure."""


def measure(cases: Sequence[Case], plan: Plan) -> dict[str, Outcome]:
    """Measure cases one after the other, again and again, their relays being kept."""
    outcomes = {case.name: Outcome() for case in cases}
    with ExitStack() as stack:
        relays: dict[str, Running | None] = {}
        for case in cases:
            try:
                relays[case.name] = (
                    stack.enter_context(running(case.relay, plan.folder)) if case.relay else None
                )
            except BrokenMeasurementError as error:
                outcomes[case.name].broken = str(error)
        for repetition in range(plan.repetitions):
            # Who comes first changes too.
            turn = repetition % len(cases)
            for case in [*cases[turn:], *cases[:turn]]:
                outcome = outcomes[case.name]
                if not outcome.broken:
                    _repeat(case, relays[case.name], plan, outcome)
    return outcomes


def _repeat(case: Case, relay: Running | None, plan: Plan, outcome: Outcome) -> None:
    try:
        outcome.samples.append(window(case, relay, plan))
    except BrokenMeasurementError as first:
        logger.warning("measurement_repeated: %s", first)
        try:
            outcome.samples.append(window(case, relay, plan))
        except BrokenMeasurementError as error:
            outcome.broken = str(error)


def window(case: Case, relay: Running | None, plan: Plan) -> Sample:
    """Measure one case once.

    Raises:
        BrokenMeasurementError: nothing arrives, or the relay used no processor time.
    """
    load = case.load
    producers = range(load.producers)
    consumers = range(load.producers, load.producers + load.consumers)
    everyone = range(load.producers + load.consumers)
    with (
        Counters(plan.folder / "counters", len(everyone)) as counters,
        started(case, relay, counters) as ends,
    ):
        needed = [*ends, relay.process] if relay else ends
        until(
            lambda: counters.read(everyone).ready == len(everyone),
            START_TIMEOUT_S,
            f"{case.name}: not all ends are connected",
            needed,
        )
        until(
            lambda: counters.read(consumers).messages > 0,
            START_TIMEOUT_S,
            f"{case.name}: no message arrives",
            needed,
        )
        time.sleep(plan.warm_up_s)
        sample = take(counters, consumers, relay, ends, plan.window_s)
        if not sample.bytes or not sample.messages or not counters.read(producers).bytes:
            raise BrokenMeasurementError(f"{case.name}: nothing moves")
        if relay is not None and not sample.cpu_s:
            raise BrokenMeasurementError(f"{case.name}: the relay used no processor time")
        return sample


def take(
    counters: Counters,
    slots: range,
    relay: Running | None,
    ends: Sequence[subprocess.Popen[bytes]],
    window_s: float,
) -> Sample:
    """Return what happens from now on, counts and processor time over the same window."""

    def look() -> tuple[Count, float, float, float]:
        return (
            counters.read(slots),
            relay.cpu_s() if relay else 0.0,
            time.monotonic(),
            cpu_s(end.pid for end in ends),
        )

    begin, relay_begin_s, since, ends_begin_s = look()
    time.sleep(window_s)
    end, relay_end_s, now, ends_end_s = look()
    return Sample(
        seconds=now - since,
        bytes=end.bytes - begin.bytes,
        messages=end.messages - begin.messages,
        cpu_s=relay_end_s - relay_begin_s,
        ends_cpu_s=ends_end_s - ends_begin_s,
        peak_rss_bytes=relay.memory_bytes("VmHWM") if relay else 0,
    )


@contextmanager
def started(
    case: Case, relay: Running | None, counters: Counters
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the ends; stop the producers first, so that nothing stays in the relay.

    Producers have the first slots, consumers those that follow.
    """
    load = case.load
    pushes: list[subprocess.Popen[bytes]] = []
    pulls: list[subprocess.Popen[bytes]] = []
    direct = [free_port() for _ in range(load.consumers)] if relay is None else []

    def place(role: str, index: int, slot: int) -> Place:
        if relay is None:
            port = direct[index]
        else:
            port = relay.port_out if role == "pull" else relay.port_in
        return Place(
            port=port,
            listens=relay is None and role == "pull",
            size_bytes=load.size_bytes,
            batches=load.batches,
            counters=counters.path,
            slot=slot,
        )

    try:
        for index in range(load.consumers):
            command = case.ends.pull("pull", place("pull", index, load.producers + index))
            pulls.append(subprocess.Popen(command))
        for index in range(load.producers):
            command = case.ends.push("push", place("push", index, index))
            pushes.append(subprocess.Popen(command))
        yield [*pushes, *pulls]
    finally:
        stop(pushes)
        _let_drain(counters, range(load.producers, load.producers + load.consumers))
        stop(pulls)


def _let_drain(counters: Counters, slots: range) -> None:
    """Wait until nothing arrives any more."""
    deadline = time.monotonic() + DRAIN_TIMEOUT_S
    before = -1
    while (now := counters.read(slots).bytes) != before and time.monotonic() < deadline:
        before = now
        time.sleep(QUIET_S)
