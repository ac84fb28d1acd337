"""What a window of time shows: bytes, messages, and the processor time and memory of a relay."""

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

NANOSECONDS = 1e9
KIB = 1024
GB = 1e9
POLL_S = 0.002
SCHEDSTAT = Path("/proc/self/schedstat")


class BrokenMeasurementError(Exception):
    """Nothing moved where something must: the figure would be none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One window of one case."""

    seconds: float
    bytes: int
    messages: int
    cpu_s: float
    """User and system time of all processes of the relay; 0 without a relay."""
    ends_cpu_s: float
    """The same of all producers and consumers."""
    peak_rss_bytes: int
    """Sum of their peaks since they were started."""

    @property
    def bytes_per_s(self) -> float:
        """Return the rate in bytes."""
        return self.bytes / self.seconds

    @property
    def messages_per_s(self) -> float:
        """Return the rate in messages."""
        return self.messages / self.seconds

    @property
    def cpu_s_per_gb(self) -> float:
        """Return seconds of processor time per 10^9 bytes."""
        return self.cpu_s / (self.bytes / GB)

    @property
    def ends_cpu_s_per_gb(self) -> float:
        """Return the same of the ends."""
        return self.ends_cpu_s / (self.bytes / GB)

    @property
    def cpu_us_per_message(self) -> float:
        """Return microseconds of processor time per message."""
        return 1e6 * self.cpu_s / self.messages


def processes(pid: int) -> Iterator[int]:
    """Yield a process and all that descend from it."""
    yield pid
    for task in _tasks(pid):
        try:
            children = (task / "children").read_text()
        except OSError:
            continue
        for child in children.split():
            yield from processes(int(child))


def cpu_s(pids: Iterable[int]) -> float:
    """Return the processor time that the processes have used.

    The scheduler's own account is exact to the nanosecond, where the kernel keeps it;
    /proc/PID/stat counts ticks of 10 ms.
    """
    return sum(_exact_cpu_s(pid) if SCHEDSTAT.exists() else _ticked_cpu_s(pid) for pid in pids)


def _exact_cpu_s(pid: int) -> float:
    nanoseconds = 0
    for task in _tasks(pid):
        try:
            nanoseconds += int((task / "schedstat").read_text().split()[0])
        except OSError:
            continue
    return nanoseconds / NANOSECONDS


def _ticked_cpu_s(pid: int) -> float:
    try:
        # The name in parentheses may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_bytes(pids: Iterable[int], field: str) -> int:
    """Return the sum of a field of /proc/PID/status, VmHWM (peak) or VmRSS (now)."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(KIB * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
    return total


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def until(
    condition: Callable[[], bool],
    timeout_s: float,
    what: str,
    needed: Sequence[subprocess.Popen[bytes]] = (),
) -> None:
    """Wait for a condition.

    Args:
        condition: tried again and again.
        timeout_s: how long.
        what: is wrong if it does not come true.
        needed: processes without which it never will.

    Raises:
        BrokenMeasurementError: it does not come true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise BrokenMeasurementError(f"{what} within {timeout_s:g} s")
        for process in needed:
            if process.poll():
                raise BrokenMeasurementError(f"{what}: a process ended with {process.poll()}")
        time.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range of repetitions."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))
