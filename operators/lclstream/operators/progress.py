"""What people read about a transfer while it runs and when it has ended: plain text."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lclstream.transfers.models import TransferInfo
from lclstream.transfers.record import Role

LINE_S = 5.0
"""Least time between two lines that differ in their figures only."""
STILL_S = 60.0
"""Longest time without a line: a reader wants to see that somebody watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The numbers of a transfer at one moment."""

    phase: str
    events: int
    """Events that the producers have sent."""
    messages: int
    bytes: int
    """Bytes that the last hop which reports has got, consumers or buffer."""
    fill: float | None
    """Part of the buffer's memory that is in use, 0 to 1; None before it listens."""
    peers: tuple[int, int]
    """Producers and consumers that have reported."""

    @classmethod
    def of(cls, info: TransferInfo) -> "Figures":
        """Read the numbers out of the service's answer."""
        hops = {hop.name: hop for hop in info.ledger.hops}
        sent, last = hops.get("producers.sent"), info.ledger.hops[-1:]
        received = hops.get("consumers.received")
        return cls(
            phase=info.phase.value,
            events=sent.tally.events if sent else 0,
            messages=last[0].tally.messages if last else 0,
            bytes=last[0].tally.bytes if last else 0,
            fill=_fill(info),
            peers=(sent.peers if sent else 0, received.peers if received else 0),
        )


class Progress:
    """Turns the answers of the service into a few lines for a task's log."""

    def __init__(
        self, say: Callable[[str], Any], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Prepare.

        Args:
            say: takes each line.
            clock: seconds that only grow.
        """
        self._say = say
        self._clock = clock
        self._last: tuple[float, Figures] | None = None
        self._jobs: dict[tuple[Role, str, int], str] = {}

    def show(self, info: TransferInfo) -> None:
        """Say what has changed; repeats itself once a minute."""
        now, figures = self._clock(), Figures.of(info)
        self._show_jobs(info)
        if self._last is None or self._is_due(self._last, now, figures):
            self._say(self._line(info, figures, now))
            self._last = now, figures

    def _is_due(self, last: tuple[float, Figures], now: float, figures: Figures) -> bool:
        age = now - last[0]
        if figures.phase != last[1].phase or age >= STILL_S:
            return True
        return age >= LINE_S and figures != last[1]

    def _show_jobs(self, info: TransferInfo) -> None:
        for job in info.jobs:
            key = (job.role, job.name, job.index)
            if self._jobs.get(key) != job.state.value:
                self._jobs[key] = job.state.value
                note = f" ({job.info})" if job.info else ""
                self._say(f"job {_title(*key)} at {job.site}: {job.state.value}{note}")

    def _line(self, info: TransferInfo, figures: Figures, now: float) -> str:
        parts = [f"transfer {info.id} {figures.phase}"]
        if figures.messages or figures.events:
            parts.append(f"{figures.events} events sent, {figures.messages} messages delivered")
            parts.append(f"{figures.bytes / 1e6:.1f} MB{self._rate(figures, now)}")
            parts.append(f"{figures.peers[0]} producers, {figures.peers[1]} consumers")
        if figures.fill is not None:
            parts.append(f"buffer {figures.fill:.0%} full")
        if info.reason:
            parts.append(info.reason)
        return "; ".join(parts)

    def _rate(self, figures: Figures, now: float) -> str:
        if self._last is None or now - self._last[0] <= 0:
            return ""
        moved = figures.bytes - self._last[1].bytes
        return f" at {moved / 1e6 / (now - self._last[0]):.1f} MB/s"


def account(info: TransferInfo) -> list[str]:
    """Return one line for each hop of the ledger and one for its verdict."""
    lines = [
        f"{hop.name}: {hop.tally.messages} messages, {hop.tally.bytes} bytes, "
        f"{hop.tally.events} events, digest {hop.tally.digest or 'not computed'} "
        f"({hop.peers} processes)"
        for hop in info.ledger.hops
    ]
    lines += [f"fault: {fault}" for fault in info.ledger.faults]
    return [*lines, verdict(info)]


def verdict(info: TransferInfo) -> str:
    """Return in one sentence how the accounts stand."""
    if info.ledger.balanced is None:
        return "ledger open: not everybody has reported"
    if info.ledger.balanced:
        return "ledger balanced"
    return f"ledger differs: {info.ledger.difference}"


def counters(info: TransferInfo) -> dict[str, str]:
    """Return the outcome as the Elog shows it beside the run: names and values, plain text."""
    figures = Figures.of(info)
    shown = {
        "LCLStream transfer": str(info.id),
        "LCLStream state": info.phase.value,
        "LCLStream events": str(figures.events),
        "LCLStream messages": str(figures.messages),
        "LCLStream MB": f"{figures.bytes / 1e6:.1f}",
        "LCLStream ledger": verdict(info),
    }
    return shown | ({"LCLStream reason": info.reason} if info.reason else {})


def _title(role: Role, name: str, index: int) -> str:
    return role.value if role is Role.BUFFER else f"{role.value} {name}[{index}]"


def _fill(info: TransferInfo) -> float | None:
    """Return how full the buffers are together."""
    stats = [stat for peer, stat in info.peers.items() if peer.startswith(f"{Role.BUFFER.value}/")]
    capacity = _total(stat.get("capacity_bytes") for stat in stats)
    return _total(stat.get("queue_bytes") for stat in stats) / capacity if capacity else None


def _total(values: Iterable[object]) -> float:
    return sum(float(value) for value in values if isinstance(value, int | float))
