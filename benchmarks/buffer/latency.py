"""How long a message of 1 KiB is under way: from before the send until after the receive."""

import array
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.buffer.cases import DEVICE, FAST, KIB, LOOP, fast, quick_ends
from benchmarks.buffer.cells import Case, Load, Plan, started
from benchmarks.buffer.counters import Counters
from benchmarks.buffer.ends import End, Ends, Place
from benchmarks.buffer.measure import BrokenMeasurementError, until
from benchmarks.buffer.relays import Running, library, running
from benchmarks.buffer.rows import Goal, Row, row

DIRECT = "sp direct"
PACE_US = 500
TIMEOUT_S = 60.0
NANOSECONDS_PER_US = 1000
# Until caches and connections are warm.
SKIPPED = 50


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Latencies of one run, in microseconds."""

    p50: float
    p99: float


def latency(plan: Plan) -> list[Row]:
    """Measure the buffer and others beside ends that are connected directly."""
    load = Load(size_bytes=KIB)
    samples = plan.folder / "latencies"
    messages = SKIPPED + max(int(plan.window_s * 1e6 / PACE_US), 200)

    def case(name: str, protocol: str, relay: Running | None) -> tuple[Case, Running | None]:
        plain = quick_ends(plan, protocol)
        sends = _with(plain.push, "--pace", str(PACE_US), "--count", str(messages))
        takes = _with(plain.pull, "--samples", str(samples), "--count", str(messages))
        return Case(name=name, load=load, ends=Ends(sends, takes)), relay

    with (
        running(fast(), plan.folder) as ours,
        running(library(LOOP), plan.folder) as loop,
        running(library(DEVICE), plan.folder) as device,
    ):
        cases = [
            case(DIRECT, "sp", None),
            case(FAST, "sp", ours),
            case(LOOP, "zmtp", loop),
            case(DEVICE, "sp", device),
        ]
        results: dict[str, list[Quantiles]] = {case.name: [] for case, _ in cases}
        for _ in range(plan.repetitions):
            for each, relay in cases:
                results[each.name].append(_measure(each, relay, messages, samples, plan))
    return _rows(results)


def _with(end: End, *options: str) -> End:
    def command(role: str, place: Place) -> list[str]:
        return [*end(role, place), *options]

    return command


def _measure(
    case: Case, relay: Running | None, messages: int, samples: Path, plan: Plan
) -> Quantiles:
    samples.unlink(missing_ok=True)
    with Counters(plan.folder / "counters", 2) as counters, started(case, relay, counters) as ends:
        _wait(case, counters, messages, ends)
    values = array.array("Q", samples.read_bytes())[SKIPPED:]
    ordered = sorted(value / NANOSECONDS_PER_US for value in values)
    if len(ordered) != messages - SKIPPED:
        raise BrokenMeasurementError(f"{case.name}: {len(ordered)} of {messages} messages")
    return Quantiles(ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100])


def _wait(
    case: Case, counters: Counters, messages: int, ends: Sequence[subprocess.Popen[bytes]]
) -> None:
    until(
        lambda: counters.read(range(1, 2)).messages == messages,
        TIMEOUT_S,
        f"{case.name}: not all messages arrive",
        ends,
    )


def _rows(results: dict[str, list[Quantiles]]) -> list[Row]:
    name = "latency, 1 KiB"
    direct = [quantiles.p50 for quantiles in results[DIRECT]]
    rows = [
        row(
            f"{name}: {FAST}: p50 against {DIRECT}",
            "us",
            [quantiles.p50 for quantiles in results[FAST]],
            baselines=direct,
            peer=DIRECT,
            goal=Goal("difference", "<=", 20.0),
        )
    ]
    for case, quantiles in results.items():
        rows.append(row(f"{name}: {case}: p50", "us", [each.p50 for each in quantiles]))
        rows.append(row(f"{name}: {case}: p99", "us", [each.p99 for each in quantiles]))
    return rows
