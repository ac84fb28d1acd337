"""Measure the buffer beside other relays and write the figures as JSON."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.buffer import cases, ends, namespace
from benchmarks.buffer.cases import Part
from benchmarks.buffer.cells import Plan
from benchmarks.buffer.connects import connects
from benchmarks.buffer.latency import latency
from benchmarks.buffer.measure import BrokenMeasurementError
from benchmarks.buffer.rows import Row, fact, row
from benchmarks.buffer.spill import spill
from benchmarks.buffer.tls import tls

PARTS: dict[str, Part] = {
    "large": cases.large,
    "medium": cases.medium,
    "small": cases.small,
    "single": cases.single,
    "tls": tls,
    "spill": spill,
    "latency": latency,
    "growth": cases.growth,
    "connects": connects,
    "endpoints": cases.endpoints,
}
WINDOW_S, QUICK_WINDOW_S = 0.6, 0.25
REPETITIONS, QUICK_REPETITIONS = 5, 2
# A third of a window, so that queues and windows of TCP are what they stay.
WARM_UP_FRACTION = 1 / 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0 if everything that exists could be measured."""
    args = parse(arguments)
    logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stderr)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    folder = args.output.parent / "work"
    folder.mkdir(exist_ok=True)
    plan = Plan(
        repetitions=args.repetitions,
        window_s=args.window,
        warm_up_s=args.window * WARM_UP_FRACTION,
        folder=folder.resolve(),
        program=ends.build(folder.resolve()),
    )
    is_own = namespace.enter(args.congestion_control)
    stated = namespace.conditions(is_own=is_own)
    rows = [fact(f"conditions: {name}", value) for name, value in stated.items()]
    for name in args.only or PARTS:
        since = time.monotonic()
        rows += measured(name, plan)
        print(f"{name}: {time.monotonic() - since:.0f} s", file=sys.stderr, flush=True)
        write(args.output, rows)
    after = namespace.conditions(is_own=is_own)["load average"]
    rows.append(fact("conditions: load average afterwards", after))
    write(args.output, rows)
    print(table(rows))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.buffer", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="few and short repetitions")
    parser.add_argument("--repetitions", type=int, metavar="N")
    parser.add_argument("--window", type=float, metavar="S", help="length of a repetition")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--congestion-control", choices=["reno", "cubic"], default="reno")
    parser.add_argument("--output", type=Path, default=Path("build/bench/buffer.json"))
    args = parser.parse_args(arguments)
    args.repetitions = args.repetitions or (QUICK_REPETITIONS if args.quick else REPETITIONS)
    args.window = args.window or (QUICK_WINDOW_S if args.quick else WINDOW_S)
    return args


def measured(name: str, plan: Plan) -> list[Row]:
    """Return the rows of one part, or the one row that says why there are none."""
    try:
        return PARTS[name](plan)
    except BrokenMeasurementError as error:
        return [row(name, "", (), note=str(error))]


def write(path: Path, rows: Sequence[Row]) -> None:
    """Replace the file."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(rows, indent=1) + "\n")
    beside.replace(path)


def table(rows: Sequence[Row]) -> str:
    """Return what has a goal, for people."""
    verdicts = {True: "met", False: "MISSED", None: "not measured"}
    lines = [f"{each['name']}: {each['value']}" for each in rows if each["unit"] == ""]
    for each in rows:
        if each["goal"] is not None:
            figures = " ".join(
                f"{'-' if each[key] is None else each[key]:>10}"
                for key in ("value", "baseline", "ratio")
            )
            verdict = verdicts[each["met"]]
            lines.append(
                f"{each['name']:<78} {figures} {each['unit']:<10} {each['goal']:<18} {verdict}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
