"""What a rank has done so far, for its reports and its last line."""

import threading
import time
from typing import TYPE_CHECKING, Protocol, TypeAlias

from lclstream.core.ledger import Report, Tally, TallyModel, peer_name
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# A report holds 100 figures at most.
MAX_FIGURES = 90

Figures: TypeAlias = dict[str, float | int | str]


class StageSource(Protocol):
    """What tells of the stages; see `lclstream.streamer.execution.figures.StageFigures`."""

    def stages(self) -> dict[str, tuple[float, float]]:
        """Return stage -> seconds at work, and of the processor."""
        ...

    def queues(self) -> dict[str, tuple[int, int]]:
        """Return queue -> how much is in it, and how much there is room for."""
        ...

    def handlers(self) -> dict[str, tuple[int, int]]:
        """Return handler -> messages that it has taken, and that were lost."""
        ...

    def report(self) -> Figures:
        """Return all of it, flat."""
        ...


class NoStages:
    """What there is to tell before there is a pipeline."""

    def stages(self) -> dict[str, tuple[float, float]]:
        """Return nothing."""
        return {}

    def queues(self) -> dict[str, tuple[int, int]]:
        """Return nothing."""
        return {}

    def handlers(self) -> dict[str, tuple[int, int]]:
        """Return nothing."""
        return {}

    def report(self) -> Figures:
        """Return nothing."""
        return {}


class Progress:
    """Counts events and messages; may be asked from any thread.

    What is counted for each event is added to by the thread that reads alone, without a lock.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.read = 0
        """Events that were read, those that were left out excepted."""
        self.dropped = 0
        """Events that went no further because they were incomplete."""
        self.left_out = 0
        """Events that an earlier run has delivered."""
        self.missing: Mapping[str, int] = {}
        """Data source -> events without it."""
        self.skipped: Mapping[str, int] = {}
        """Data source -> events dropped because it was missing."""
        self.vetoed: Callable[[], Mapping[str, int]] = dict
        """Returns step -> events that it dropped."""
        self.of_source: Callable[[], Mapping[str, int]] = dict
        """Returns what the source found wrong, and how often."""
        self.figures: StageSource = NoStages()
        """How the stages of the pipeline do just now."""
        self._lock = threading.Lock()
        self._peer = peer_name(f"rank-{place.rank}")
        self._tally = Tally()
        self.resume_index = 0
        """All events of this rank with a smaller index have arrived for good."""
        self._started = self._last_at = time.monotonic()
        self._last = TallyModel()

    @property
    def sent(self) -> TallyModel:
        """What was handed over so far."""
        with self._lock:
            return self._tally.snapshot()

    @property
    def running_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._started

    def delivered(self, message: Message) -> None:
        """Count one message that every handler has taken."""
        digest = message.hash64()
        with self._lock:
            self._tally.add_counted(message.nbytes, digest, message.events)

    def arrived(self, index: int) -> None:
        """Note that all events of this rank up to an index have arrived for good."""
        self.resume_index = index + 1

    def counts(self) -> dict[str, int]:
        """Return what became of the events that were read, in numbers that only grow."""
        vetoed = self.vetoed()
        counts = {
            "events_read": self.read,
            "events_skipped": self.dropped,
            "events_vetoed": sum(vetoed.values()),
            "events_left_out": self.left_out,
        }
        for name, count in sorted(self.missing.items()):
            counts[f"events_without_{name}"] = count
        for name, count in sorted(self.skipped.items()):
            counts[f"events_skipped_without_{name}"] = count
        for name, count in sorted(vetoed.items()):
            counts[f"events_vetoed_by_{name}"] = count
        for name, count in sorted(self.of_source().items()):
            counts[f"source_{name}"] = count
        return counts

    def report(self) -> Report:
        """Return a regular report; rates are those since the one before."""
        now = time.monotonic()
        with self._lock:
            sent = self._tally.snapshot()
            before, since_s = self._last, max(now - self._last_at, 1e-3)
            self._last, self._last_at = sent, now
        return self._made(sent, rates(sent, before, since_s))

    def final_report(self, error: str = "", note: str = "") -> Report:
        """Return the last report; rates are those of the whole run.

        Args:
            error: why the run failed; empty when it did not.
            note: why a run that did not fail ended early.
        """
        sent = self.sent
        report = self._made(sent, rates(sent, TallyModel(), max(self.running_s, 1e-3)))
        stats = report.stats | ({"ended_early": note} if note else {})
        return report.model_copy(
            update={"final": True, "ok": not error, "error": error[:10_000], "stats": stats}
        )

    def _made(self, sent: TallyModel, speeds: Figures) -> Report:
        stats: Figures = {
            "rank": self.place.rank,
            "ranks": self.place.size,
            "resume_index": self.resume_index,
            **speeds,
        }
        for name, figure in [*self.counts().items(), *self.figures.report().items()]:
            if len(stats) < MAX_FIGURES:
                stats[name] = figure
        return Report(hop="producer", peer=self._peer, sent=sent, stats=stats)


def rates(sent: TallyModel, before: TallyModel, since_s: float) -> Figures:
    """Return events and megabytes per second between two tallies."""
    return {
        "events_per_s": round((sent.events - before.events) / since_s, 3),
        "mb_per_s": round((sent.bytes - before.bytes) / since_s / 1e6, 3),
    }
