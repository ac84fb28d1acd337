"""What the terminal shows while a run streams: one line for each step, and live figures."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

MEGABYTE = 1e6
BAR_CELLS = 20


class Progress:
    """Prints a line when a step is reached and, on a terminal, figures that move.

    Resource handling: a context manager; on a terminal it owns one refreshing thread.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._begun = time.monotonic()
        self._seen: dict[str, float] = {}
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=8, transient=True)
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            self._live = None

    def restart_clock(self) -> None:
        """Count the time of the following steps from now."""
        self._begun = time.monotonic()

    def step(self, name: str, text: str) -> None:
        """Print a step; one that was printed with the same text is not repeated."""
        key = f"{name} {text}"
        if key in self._seen:
            return
        self._seen[key] = self.elapsed_s
        line = f"[dim]{self.elapsed_s:7.1f} s[/]  [bold]{name:<11}[/] {escape(text)}"
        self.console.print(line, soft_wrap=True)

    def show(self, figures: "Figures") -> None:
        """Show the live figures of a transfer."""
        if self._live is not None:
            self._live.update(figures.table())

    @property
    def elapsed_s(self) -> float:
        """Seconds since the clock was started."""
        return time.monotonic() - self._begun


class Figures:
    """Rates between one look at a transfer and the next."""

    def __init__(self) -> None:
        self._last: tuple[float, int, int] | None = None
        self._info: Mapping[str, Any] = {}
        self.events_per_s = 0.0
        self.megabytes_per_s = 0.0

    def update(self, info: Mapping[str, Any]) -> Self:
        """Take in the transfer as the service describes it."""
        self._info = info
        now, sent = time.monotonic(), self.hop("producers.sent")
        count, size = int(sent.get("events", 0)), int(sent.get("bytes", 0))
        if self._last is not None and now > self._last[0]:
            passed = now - self._last[0]
            self.events_per_s = (count - self._last[1]) / passed
            self.megabytes_per_s = (size - self._last[2]) / passed / MEGABYTE
        self._last = (now, count, size)
        return self

    def hop(self, name: str) -> Mapping[str, Any]:
        """Return the tally of a hop of the ledger, empty before anybody reported."""
        hops = self._info.get("ledger", {}).get("hops", [])
        return next((hop["tally"] for hop in hops if hop["name"] == name), {})

    def _fill(self) -> str:
        peers: Mapping[str, Mapping[str, Any]] = self._info.get("peers", {})
        buffers = [stats for peer, stats in peers.items() if peer.startswith("buffer/")]
        stats = buffers[0] if buffers else {}
        capacity = float(stats.get("capacity_bytes") or 0)
        share = min(1.0, float(stats.get("queue_bytes", 0)) / capacity) if capacity else 0.0
        full = round(share * BAR_CELLS)
        return f"{'█' * full}{'░' * (BAR_CELLS - full)} {share:4.0%}"

    def table(self) -> Table:
        """Return the figures as a table of one row."""
        table = Table(box=None, padding=(0, 2))
        for title in ("phase", "events sent", "received", "events/s", "MB/s", "buffer"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_row(
            str(self._info.get("phase", "")),
            str(self.hop("producers.sent").get("events", 0)),
            str(self.hop("consumers.received").get("events", 0)),
            f"{self.events_per_s:.0f}",
            f"{self.megabytes_per_s:.0f}",
            self._fill(),
        )
        return table
