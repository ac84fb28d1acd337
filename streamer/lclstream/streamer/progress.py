"""What a rank has done so far, for its reports and its last line."""

import threading
import time

from lclstream.core.ledger import Report, Tally, TallyModel, peer_name
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place

MAX_SKIP_FIGURES = 50


class Progress:
    """Counts events and messages; may be asked from any thread."""

    def __init__(self, place: Place) -> None:
        self._lock = threading.Lock()
        self._place = place
        self._peer = peer_name(f"rank-{place.rank}")
        self._tally = Tally()
        self._read = 0
        self._skipped_events = 0
        self._skipped: dict[str, int] = {}
        self._started = self._last_at = time.monotonic()
        self._last = TallyModel()

    @property
    def sent(self) -> TallyModel:
        """What was handed over so far."""
        with self._lock:
            return self._tally.snapshot()

    @property
    def skipped_events(self) -> int:
        """Events dropped because they were incomplete."""
        with self._lock:
            return self._skipped_events

    def read(self, *, dropped: bool, missing: dict[str, int]) -> None:
        """Count one event that was read.

        Args:
            dropped: whether it was incomplete and goes no further.
            missing: data source -> events dropped because of it so far.
        """
        with self._lock:
            self._read += 1
            self._skipped_events += dropped
            if dropped:
                self._skipped = dict(missing)

    def delivered(self, message: Message) -> None:
        """Count one message that every handler has taken."""
        digest = message.hash64()
        with self._lock:
            self._tally.add_counted(message.nbytes, digest, message.events)

    def report(self) -> Report:
        """Return a regular report; rates are those since the one before."""
        now = time.monotonic()
        with self._lock:
            sent = self._tally.snapshot()
            before, since_s = self._last, max(now - self._last_at, 1e-3)
            self._last, self._last_at = sent, now
            return self._made(sent, before, since_s)

    def final_report(self, error: str = "", note: str = "") -> Report:
        """Return the last report; rates are those of the whole run.

        Args:
            error: why the run failed; empty when it did not.
            note: why a run that did not fail ended early.
        """
        since_s = max(time.monotonic() - self._started, 1e-3)
        with self._lock:
            report = self._made(self._tally.snapshot(), TallyModel(), since_s)
        stats = report.stats | ({"ended_early": note} if note else {})
        return report.model_copy(
            update={"final": True, "ok": not error, "error": error[:10_000], "stats": stats}
        )

    def _made(self, sent: TallyModel, before: TallyModel, since_s: float) -> Report:
        stats: dict[str, float | int | str] = {
            "rank": self._place.rank,
            "ranks": self._place.size,
            "events_read": self._read,
            "events_skipped": self._skipped_events,
            "events_per_s": round((sent.events - before.events) / since_s, 3),
            "mb_per_s": round((sent.bytes - before.bytes) / since_s / 1e6, 3),
        }
        for name, count in sorted(self._skipped.items())[:MAX_SKIP_FIGURES]:
            stats[f"events_skipped_without_{name}"] = count
        return Report(hop="producer", peer=self._peer, sent=sent, stats=stats)
