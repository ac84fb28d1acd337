"""Figures as rows: value, baseline, ratio, goal, and whether it is met."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.buffer.cells import Outcome
from benchmarks.buffer.measure import GB, Sample, Spread

COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge}
ROUNDING_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Goal:
    """What must be reached: the value itself, its ratio to the baseline, or its distance."""

    of: str
    """`value`, `ratio` or `difference`."""
    sign: str
    limit: float

    def __str__(self) -> str:
        return f"{self.of} {self.sign} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Quantity:
    """What is read off a sample."""

    label: str
    unit: str
    read: Callable[[Sample], float]


THROUGHPUT = Quantity("throughput", "GB/s", lambda sample: sample.bytes_per_s / GB)
RATE = Quantity("rate", "messages/s", lambda sample: sample.messages_per_s)
CPU_PER_GB = Quantity("relay CPU", "s/GB", lambda sample: sample.cpu_s_per_gb)
CPU_PER_MESSAGE = Quantity("relay CPU", "us/message", lambda sample: sample.cpu_us_per_message)
ENDS_CPU_PER_GB = Quantity("CPU of the ends", "s/GB", lambda sample: sample.ends_cpu_s_per_gb)
PEAK_RSS = Quantity("peak RSS", "MB", lambda sample: sample.peak_rss_bytes / 1e6)

Row = dict[str, Any]


def row(
    name: str,
    unit: str,
    values: Sequence[float],
    *,
    baselines: Sequence[float] = (),
    peer: str = "",
    goal: Goal | None = None,
    note: str = "",
) -> Row:
    """Return a row from the values of the repetitions.

    The ratio is the median of the ratios within each repetition, as both were measured in the
    same moments. No values: it could not be measured, and `note` says why.
    """
    value = Spread.of(values) if values else None
    baseline = Spread.of(baselines) if baselines and values else None
    pairs = list(zip(values, baselines, strict=False)) if baseline else []
    ratio = Spread.of([mine / theirs for mine, theirs in pairs]) if pairs else None
    met = None
    if goal is not None and value is not None:
        compared = {
            "value": value,
            "ratio": ratio,
            "difference": Spread.of([mine - theirs for mine, theirs in pairs]) if pairs else None,
        }[goal.of]
        met = None if compared is None else COMPARISONS[goal.sign](compared.median, goal.limit)
    return {
        "name": name,
        "value": value and _rounded(value.median),
        "unit": unit,
        "baseline": baseline and _rounded(baseline.median),
        "ratio": ratio and _rounded(ratio.median),
        "goal": goal and str(goal),
        "met": met,
        "peer": peer,
        "range": value and [_rounded(value.low), _rounded(value.high)],
        "ratio_range": ratio and [_rounded(ratio.low), _rounded(ratio.high)],
        "note": note,
    }


def fact(name: str, value: str) -> Row:
    """Return a row that states a condition."""
    return {**row(name, "", ()), "value": value}


def plain(cell: str, outcomes: Mapping[str, Outcome], quantities: Sequence[Quantity]) -> list[Row]:
    """Return everything that was measured, without goals."""
    return [
        row(
            f"{cell}: {case}: {quantity.label}",
            quantity.unit,
            [quantity.read(sample) for sample in outcome.samples],
            note=outcome.broken,
        )
        for case, outcome in outcomes.items()
        for quantity in quantities
        if outcome.broken or any(quantity.read(sample) for sample in outcome.samples)
    ]


def compared(
    cell: str,
    outcomes: Mapping[str, Outcome],
    quantity: Quantity,
    case: str,
    peer: str | None,
    goal: Goal | None,
) -> Row:
    """Return a row that holds one case to its goal, beside a peer or alone."""
    mine, theirs = outcomes[case], outcomes[peer] if peer else None
    broken = mine.broken or (theirs.broken if theirs else "")
    beside = f" against {peer}" if peer else ""
    return row(
        f"{cell}: {case}: {quantity.label}{beside}",
        quantity.unit,
        [] if broken else [quantity.read(sample) for sample in mine.samples],
        baselines=[quantity.read(sample) for sample in theirs.samples] if theirs else [],
        peer=peer or "",
        goal=goal,
        note=broken,
    )


def best(outcomes: Mapping[str, Outcome], names: Sequence[str], quantity: Quantity) -> str:
    """Return the case with the highest median among those that were measured."""
    measured = [name for name in names if name in outcomes and not outcomes[name].broken]
    return max(
        measured or names,
        key=lambda name: (
            Spread.of([quantity.read(sample) for sample in outcomes[name].samples]).median
            if outcomes[name].samples
            else 0.0
        ),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{ROUNDING_DIGITS}g}")
