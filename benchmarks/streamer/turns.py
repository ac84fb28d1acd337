"""Processor time of cases that take turns, so that all meet the same moments."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.streamer.options import Options


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Something that is measured."""

    work: Callable[[], object]
    """Done again and again."""
    units: float = 1.0
    """What is done each time: events, or megabytes."""
    settle: Callable[[], object] = bool
    """Waits until nothing is left to do in the background."""


def costs(cases: Mapping[str, Case], options: Options) -> dict[str, list[float]]:
    """Return seconds of processor time per unit, all threads of this process included.

    The first turn of each case is not counted: it finds out how often to repeat the work.
    """
    repeats = {name: _repeats(case, options.window_s) for name, case in cases.items()}
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.repetitions):
        for name, case in cases.items():
            found[name].append(_turn(case, repeats[name]) / (repeats[name] * case.units))
    return found


def _turn(case: Case, repeats: int) -> float:
    case.settle()
    start = time.process_time()
    for _ in range(repeats):
        case.work()
    case.settle()
    return time.process_time() - start


def _repeats(case: Case, window_s: float) -> int:
    # Once to make what is made only once.
    _turn(case, 1)
    repeats = 1
    while (spent := _turn(case, repeats)) < window_s / 4:
        repeats *= 2
    return max(1, math.ceil(repeats * window_s / spent))
