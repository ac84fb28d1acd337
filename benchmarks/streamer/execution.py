"""A whole rank, from its source into a socket: rate, start, memory, and what a second one adds."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks.buffer.measure import BrokenMeasurementError
from benchmarks.buffer.rows import Goal, Row, row
from benchmarks.streamer.options import Options
from benchmarks.streamer.ours import frame_event, small_event
from benchmarks.streamer.ranks import (
    FRAMES,
    MEMORY_BATCH,
    MODULE,
    SMALL,
    document,
    line_of,
    receiver,
    stream,
)
from benchmarks.streamer.upstream import HIGH_WATER_MARK, message

# Kind of events -> the batch sizes to measure.
BATCHES = {FRAMES: (1, 10), SMALL: (1, 10, 100)}
# What a whole rank may take of the processor, as a part of what the loop takes that it replaces.
CPU_GOAL = 0.5
UPSTREAM = "h5py and zmq"
TIMEOUT_S = 120.0
# What LCLStreamer begins with, before it has read its configuration.
THEIR_IMPORTS = "from mpi4py import MPI; import h5py, hdf5plugin, numpy, pydantic, typer, yaml, zmq"

Work = Callable[[int], None]
"""Sends so many events."""


def rows(options: Options) -> list[Row]:
    """Return the figures of this part."""
    return [*_rates(options), *_second_rank(options), *_starts(options), *_memory(options)]


# Events of one rank.


def _rates(options: Options) -> list[Row]:
    made: list[Row] = []
    for kind, sizes in BATCHES.items():
        for size in sizes:
            with ExitStack() as stack:
                works = {
                    "zmq": _ours(kind, size, "zmq", stack.enter_context(receiver("zmq"))),
                    "nng": _ours(kind, size, "nng", stack.enter_context(receiver("nng"))),
                    UPSTREAM: _upstream(kind, size, stack.enter_context(receiver("zmq")), stack),
                }
                found = {name: _Times() for name in works}
                counts = {
                    name: _count(work, size, options.window_s) for name, work in works.items()
                }
                for _ in range(options.repetitions):
                    for name, work in works.items():
                        found[name].take(work, counts[name])
            made += [
                each
                for library in ("zmq", "nng")
                for each in _of_library(kind, size, library, found)
            ]
    return made


def _of_library(kind: str, size: int, library: str, found: "Mapping[str, _Times]") -> list[Row]:
    mine, theirs = found[library], found[UPSTREAM]
    return [
        row(
            f"{kind}, source to {library}, batch {size}: CPU",
            "us/event",
            mine.cpu_us,
            baselines=theirs.cpu_us,
            peer=UPSTREAM,
            goal=Goal("ratio", "<=", CPU_GOAL),
        ),
        row(
            f"{kind}, source to {library}, batch {size}: rate",
            "events/s",
            mine.per_s,
            baselines=theirs.per_s,
            peer=UPSTREAM,
            goal=Goal("ratio", ">=", 1.0),
        ),
    ]


class _Times:
    """Processor time and rate of some repetitions."""

    def __init__(self) -> None:
        self.cpu_us: list[float] = []
        self.per_s: list[float] = []

    def take(self, work: Work, count: int) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        work(count)
        self.cpu_us.append(1e6 * (time.process_time() - cpu) / count)
        self.per_s.append(count / (time.perf_counter() - wall))


def _count(work: Work, size: int, window_s: float) -> int:
    """Return how many events take about so long; a rank needs a while to open everything."""
    work(size)
    count = 4 * size
    while (spent := _spent(work, count)) < window_s / 2:
        count *= 2
    return max(size, round(count * window_s / spent / size) * size)


def _spent(work: Work, count: int) -> float:
    start = time.process_time()
    work(count)
    return time.process_time() - start


def _ours(kind: str, size: int, library: str, url: str) -> Work:
    return lambda count: stream(document(kind, size, count, library, url))


def _upstream(kind: str, size: int, url: str, stack: ExitStack) -> Work:
    """Return the loop that reads, batches, serializes and sends in series."""
    import zmq

    context = stack.enter_context(zmq.Context())
    socket = stack.enter_context(context.socket(zmq.PUSH))
    socket.sndhwm = HIGH_WATER_MARK
    socket.connect(url)
    values = small_event() if kind == SMALL else frame_event()

    def work(count: int) -> None:
        for _ in range(0, count, size):
            socket.send(message([values] * size))

    return work


# A second rank.


def _second_rank(options: Options) -> list[Row]:
    """Compare two ranks, each with half of the events, with one that has all."""
    kind, size = FRAMES, 10
    one: list[tuple[float, float]] = []
    two: list[tuple[float, float]] = []
    with receiver("nng") as url:
        count = 2 * max(100, round(400 * options.window_s))
        for _ in range(max(1, options.repetitions // 2)):
            one.append(_ranks(kind, size, count, url, ranks=1))
            two.append(_ranks(kind, size, count, url, ranks=2))
    what = f"{kind}, batch {size}, two ranks"
    return [
        row(
            f"{what}: rate", "events/s",
            [wall for wall, _ in two], baselines=[wall for wall, _ in one], peer="one rank",
            goal=Goal("ratio", ">=", 1.5),
            note="ranks and receiver share the processors of one machine",
        ),
        row(
            f"{what}: CPU", "us/event",
            [cpu for _, cpu in two], baselines=[cpu for _, cpu in one], peer="one rank",
            goal=Goal("ratio", "<=", 1.25),
        ),
    ]  # fmt: skip


def _ranks(kind: str, size: int, count: int, url: str, *, ranks: int) -> tuple[float, float]:
    """Return events per second and microseconds of processor time for each."""
    order = json.dumps(document(kind, size, count, "nng", url))
    running = [
        subprocess.Popen(
            [sys.executable, "-m", MODULE, "rank", order],
            env=os.environ | {"PMI_RANK": str(rank), "PMI_SIZE": str(ranks)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        # All begin when all are ready.
        for process in running:
            line_of(process)
        start = time.perf_counter()
        for process in running:
            _let_go(process)
        cpu_s = sum(float(line_of(process)) for process in running)
        return count / (time.perf_counter() - start), 1e6 * cpu_s / count
    finally:
        for process in running:
            process.kill()
            process.communicate()


def _let_go(process: "subprocess.Popen[str]") -> None:
    if process.stdin is not None:
        process.stdin.write("go\n")
        process.stdin.flush()


# The start.


def _starts(options: Options) -> list[Row]:
    """Compare a whole run of one event with the imports alone that LCLStreamer begins with."""
    mine: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    with ExitStack() as stack:
        url = stack.enter_context(receiver("zmq"))
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "start.json"
        path.write_text(json.dumps(document(SMALL, 1, 1, "zmq", url)))
        for _ in range(max(2, options.repetitions)):
            mine.append(_started("-m", "lclstream.streamer", "-c", str(path)))
            theirs.append(_started("-c", THEIR_IMPORTS))
    # The first of each fills the caches.
    del mine[0], theirs[0]
    what = "start to the end of one event"
    return [
        row(
            f"{what}: wall", "s",
            [wall for wall, _ in mine], baselines=[wall for wall, _ in theirs],
            peer="imports alone", goal=Goal("ratio", "<=", 1 / 3),
        ),
        row(
            f"{what}: CPU", "s",
            [cpu for _, cpu in mine], baselines=[cpu for _, cpu in theirs],
            peer="imports alone",
        ),
    ]  # fmt: skip


def _started(*arguments: str) -> tuple[float, float]:
    """Return wall and processor time of a whole process, whose modules are compiled already."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    wall, before = time.perf_counter(), os.times()
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True,
        check=False, timeout=TIMEOUT_S,
    )  # fmt: skip
    if done.returncode:
        raise BrokenMeasurementError(f"a process failed: {done.stderr.strip().splitlines()[-1:]}")
    after = os.times()
    cpu_s = after.children_user + after.children_system
    return time.perf_counter() - wall, cpu_s - before.children_user - before.children_system


# Memory.


def _memory(options: Options) -> list[Row]:
    """Return the peak of a whole rank, above what it has before, in batches and frames."""
    with receiver("nng") as url:
        values = [float(_output("memory", url)) for _ in range(max(1, options.repetitions // 3))]
    return [
        row(
            f"peak memory of a rank, batch {MEMORY_BATCH} of 4 MB", "batches and a frame", values,
            goal=Goal("value", "<=", 2.0),
        )
    ]  # fmt: skip


def _output(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", MODULE, *arguments], capture_output=True, text=True,
        check=False, timeout=TIMEOUT_S,
    )  # fmt: skip
    if done.returncode:
        raise BrokenMeasurementError(f"{arguments}: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout
