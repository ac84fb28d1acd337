"""Spilling: as fast in as the disk, as fast out as the page cache, and memory within its bound.

In: messages are pushed while nobody pulls, until all are taken in and on the disk. Beside it: as
many bytes written to a file of the same file system, until they are on the disk. Out: a consumer
takes them all. Beside it: a file of the same size that is read, and one that is sent to the same
consumer with sendfile, which is as fast as pages can reach a consumer at all.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.buffer.cases import FAST, MIB, SAFE, acknowledging_ends, quick_ends
from benchmarks.buffer.cells import Case, Load, Plan
from benchmarks.buffer.counters import Counters
from benchmarks.buffer.ends import End, Place
from benchmarks.buffer.measure import BrokenMeasurementError, processes, until
from benchmarks.buffer.relays import Relay, Running, buffer, free_port, running, stop
from benchmarks.buffer.rows import Goal, Row, row

BOUND_BYTES = 64 * MIB
ALLOWED = 1.1
TIMEOUT_S = 120.0
# A buffer that takes in at less than this part of the disk's rate is not at its speed.
AT_SPEED = 0.8
# What a run that is as thorough as can be spills, by the length of its window.
BYTES_PER_WINDOW_S = 2048 * MIB


def spill(plan: Plan) -> list[Row]:
    """Measure in, out and memory, fast and safe."""
    volume = max(int(plan.window_s * BYTES_PER_WINDOW_S) // MIB * MIB, 4 * BOUND_BYTES)
    repetitions = min(plan.repetitions, 3)
    rows: list[Row] = []
    folder = plan.folder / "spill"
    for name, options, ends in (
        (FAST, (), quick_ends(plan, "sp")),
        (SAFE, ("--delivery", "safe"), acknowledging_ends(plan)),
    ):
        relay = buffer(name, *options, "--spill", str(folder), memory=f"{BOUND_BYTES}B")
        case = Case(name=name, load=Load(size_bytes=MIB), relay=relay, ends=ends)
        try:
            relay.check()
            figures = [_repeat(case, relay, volume, folder, plan) for _ in range(repetitions)]
        except BrokenMeasurementError as error:
            rows += _rows(name, [], str(error))
        else:
            rows += _rows(name, figures, "")
    return rows


def _repeat(case: Case, relay: Relay, volume: int, folder: Path, plan: Plan) -> dict[str, float]:
    """Return the rates in GB/s and the memory in MB of one repetition."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    file = folder / "plain"
    figures = {"write": _write(file, volume), "read": _read(file)}
    figures["send"] = _send(file, volume, case.ends.pull, plan)
    file.unlink()
    with running(relay, plan.folder) as relayed:
        figures["in"] = _push(case, relayed, volume, folder, plan)
        figures["out"] = _pull(case, relayed, volume, plan)
        grown = relayed.memory_bytes("VmHWM") - relayed.idle_rss_bytes
        figures["memory"] = grown / 1e6
    shutil.rmtree(folder, ignore_errors=True)
    return figures


def _rows(name: str, figures: list[dict[str, float]], note: str) -> list[Row]:
    def column(key: str) -> list[float]:
        return [figure[key] for figure in figures]

    bound_mb = ALLOWED * BOUND_BYTES / 1e6
    at_speed = Goal("ratio", ">=", AT_SPEED)
    speeds = (
        ("in", "write", "plain writes and fdatasync", at_speed),
        ("out", "send", "sendfile from the page cache", at_speed),
        ("out", "read", "plain reads of the page cache", None),
    )
    return [
        *(
            row(
                f"spill, 1 MiB: {name}: {what} against {peer}",
                "GB/s",
                column(what),
                baselines=column(beside),
                peer=peer,
                goal=goal,
                note=note,
            )
            for what, beside, peer, goal in speeds
        ),
        row(
            f"spill, 1 MiB: {name}: growth of resident memory, bound {BOUND_BYTES / 1e6:.0f} MB",
            "MB",
            column("memory"),
            goal=Goal("value", "<=", bound_mb),
            note=note,
        ),
    ]


def _write(path: Path, volume: int) -> float:
    block = bytes(MIB)
    since = time.monotonic()
    with path.open("wb", buffering=0) as file:
        for _ in range(volume // MIB):
            file.write(block)
        os.fdatasync(file.fileno())
    return volume / (time.monotonic() - since) / 1e9


def _read(path: Path) -> float:
    block = bytearray(MIB)
    total, since = 0, time.monotonic()
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            total += count
    return total / (time.monotonic() - since) / 1e9


@contextmanager
def _end(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            stop([process])


def _place(plan: Plan, port: int, slot: int, *, listens: bool = False) -> Place:
    return Place(
        port=port,
        listens=listens,
        size_bytes=MIB,
        batches=False,
        counters=plan.folder / "counters",
        slot=slot,
    )


def _send(path: Path, volume: int, pull: End, plan: Plan) -> float:
    """Send a file to the consumer that takes from the relay, without any framing."""
    port = free_port()
    takes = [*pull("pull", _place(plan, port, 1, listens=True)), "--protocol", "raw"]
    sends = [
        *(str(plan.program), "push", "--protocol", "raw", "--port", str(port)),
        *("--file", str(path), "--counters", str(plan.folder / "counters"), "--slot", "0"),
    ]
    with Counters(plan.folder / "counters", 2) as counters, _end(takes), _end(sends):
        until(lambda: counters.read(range(1, 2)).bytes > 0, TIMEOUT_S, "sendfile begins")
        since, before = time.monotonic(), counters.read(range(1, 2)).bytes
        until(lambda: counters.read(range(1, 2)).bytes >= volume, TIMEOUT_S, "sendfile ends")
        return (volume - before) / (time.monotonic() - since) / 1e9


def _push(case: Case, relay: Running, volume: int, folder: Path, plan: Plan) -> float:
    command = [
        *case.ends.push("push", _place(plan, relay.port_in, 0)),
        *("--count", str(volume // MIB)),
    ]
    with Counters(plan.folder / "counters", 2) as counters, _end(command) as process:
        until(lambda: bool(counters.read(range(1)).ready), TIMEOUT_S, "a producer", [process])
        since = time.monotonic()
        # It ends when the relay has taken everything and closed the connection.
        until(lambda: process.poll() == 0, TIMEOUT_S, "spilling", [process, relay.process])
        _sync(relay, folder)
        return volume / (time.monotonic() - since) / 1e9


def _sync(relay: Running, folder: Path) -> None:
    """Bring to the disk what the relay has written, also to files that have no name any more."""
    for pid in processes(relay.process.pid):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if not str(link.readlink()).startswith(str(folder.resolve())):
                    continue
                descriptor = os.open(link, os.O_RDONLY)
                try:
                    os.fdatasync(descriptor)
                finally:
                    os.close(descriptor)


def _pull(case: Case, relay: Running, volume: int, plan: Plan) -> float:
    command = case.ends.pull("pull", _place(plan, relay.port_out, 1))
    with Counters(plan.folder / "counters", 2) as counters, _end(command) as process:
        consumer = range(1, 2)
        until(lambda: counters.read(consumer).bytes > 0, TIMEOUT_S, "spilled messages", [process])
        since, before = time.monotonic(), counters.read(consumer).bytes
        until(
            lambda: counters.read(consumer).bytes >= volume,
            TIMEOUT_S,
            "all that was spilled",
            [process, relay.process],
        )
        return (volume - before) / (time.monotonic() - since) / 1e9
