"""Measure the streamer beside what it replaces and write the figures as JSON.

Every part is a module of this package with a function `rows(options)`.
"""

import argparse
import importlib
import logging
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import cast

from benchmarks.buffer.__main__ import table, write
from benchmarks.buffer.measure import BrokenMeasurementError
from benchmarks.buffer.rows import Row, fact, row
from benchmarks.streamer.options import Options

# Name -> module of this package.
PARTS = {
    "socket": "hdf5_socket",
    "small": "hdf5_small",
    "codecs": "hdf5_codecs",
    "memory": "hdf5_memory",
    "steps": "steps",
    "execution": "execution",
    "sources": "sources",
}
WINDOW_S, QUICK_WINDOW_S = 0.4, 0.05
REPETITIONS, QUICK_REPETITIONS = 7, 2
LIBRARIES = ("numpy", "h5py", "hdf5plugin", "pyzmq", "bitshuffle", "blosc2")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0 if everything could be measured."""
    args = parse(arguments)
    logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stderr)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    options = Options(repetitions=args.repetitions, window_s=args.window)
    rows = [fact(f"conditions: {name}", value) for name, value in conditions().items()]
    for name in args.only or PARTS:
        since = time.monotonic()
        rows += measured(name, options)
        print(f"{name}: {time.monotonic() - since:.0f} s", file=sys.stderr, flush=True)
        write(args.output, rows)
    rows.append(fact("conditions: load average afterwards", load_average()))
    write(args.output, rows)
    print(table(rows))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streamer", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="few and short repetitions")
    parser.add_argument("--repetitions", type=int, metavar="N")
    parser.add_argument("--window", type=float, metavar="S", help="length of a repetition")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--output", type=Path, default=Path("build/bench/streamer.json"))
    args = parser.parse_args(arguments)
    args.repetitions = args.repetitions or (QUICK_REPETITIONS if args.quick else REPETITIONS)
    args.window = args.window or (QUICK_WINDOW_S if args.quick else WINDOW_S)
    return args


def measured(name: str, options: Options) -> list[Row]:
    """Return the rows of one part, or the one row that says why there are none."""
    try:
        part = importlib.import_module(f"benchmarks.streamer.{PARTS[name]}")
        return cast("list[Row]", part.rows(options))
    except BrokenMeasurementError as error:
        return [row(name, "", (), note=str(error))]


def conditions() -> dict[str, str]:
    """Return what the figures depend on."""
    return {
        "processors": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        "load average": load_average(),
    }


def load_average() -> str:
    """Return that of the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    sys.exit(main())
