"""How a watcher stands: counters, lag, and what is wrong at the moment."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lclstream.elog.messages import ReaderStatistics


@dataclass(slots=True)
class Counters:
    """What a watcher did since it started."""

    messages: int = 0
    started: int = 0
    """DAG runs that Airflow made for us."""
    existed: int = 0
    """DAG runs that were there already: repeated events and restarts."""
    stale: int = 0
    """Triggers refused because what happened was too long ago."""
    paused: int = 0
    """DAG runs that wait because their DAG is paused."""
    dead_letters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A snapshot of a watcher."""

    reader: ReaderStatistics
    counters: Mapping[str, int]
    troubles: Mapping[str, str]
    """Service -> why it cannot be used now."""

    @classmethod
    def of(
        cls,
        reader: ReaderStatistics,
        counters: Counters,
        troubles: Mapping[str, str],
        *,
        retries: int = 0,
    ) -> "Status":
        """Take a snapshot."""
        found = dict(troubles)
        if reader.error:
            found["kafka"] = reader.error
        elif reader.joined and not reader.connected:
            found["kafka"] = "no broker is reachable"
        return cls(reader=reader, counters={**asdict(counters), "retries": retries}, troubles=found)

    def document(self) -> dict[str, Any]:
        """Return the snapshot as JSON: `state` is ok or degraded."""
        return {
            "state": "degraded" if self.troubles else "ok",
            "troubles": dict(self.troubles),
            "kafka": asdict(self.reader),
            "counters": dict(self.counters),
        }
