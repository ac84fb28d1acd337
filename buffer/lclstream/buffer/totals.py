"""The figures of several lanes as those of one buffer."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from lclstream.buffer.statistics import Counters, Statistics
from lclstream.core.ledger import Tally, TallyModel

# The oldest message of all is that of the lane with the oldest one.
LARGEST = frozenset({"oldest_s"})
# Not a sum, or not of the lanes.
SET_BY_OTHERS = frozenset({"state", "reason", "lanes"})


def total(parts: Sequence[Statistics]) -> Statistics:
    """Return what several lanes, at least one, did altogether.

    Peaks are those of the lanes added up: an upper bound, they need not have been at one time.
    """
    values: dict[str, Any] = {"state": parts[0].state, "reason": parts[0].reason}
    for each in fields(Statistics):
        if each.name in SET_BY_OTHERS:
            continue
        found = [getattr(part, each.name) for part in parts]
        values[each.name] = _joined(each.name, found)
    return Statistics(**values)


def rest_of(lost: Statistics) -> Statistics:
    """Return the last figures of a lane that has died: it holds nothing any more."""
    values = {each.name: getattr(lost, each.name) for each in fields(Statistics)}
    gone = (
        "queue_messages", "queue_bytes", "held_bytes", "retained_messages",
        "producers", "consumers", "paused_producers", "capacity_bytes", "oldest_s",
        "disk_messages", "spilled_bytes",
    )  # fmt: skip
    values.update(dict.fromkeys(gone, 0))
    values["alarm"] = ""
    return Statistics(**values)


def _joined(name: str, found: list[Any]) -> Any:
    first = found[0]
    if isinstance(first, TallyModel):
        tally = Tally()
        for each in found:
            tally.merge(each)
        return tally.snapshot()
    if isinstance(first, Counters):
        return Counters(
            **{
                each.name: sum(getattr(part, each.name) for part in found)
                for each in fields(Counters)
            }
        )
    if isinstance(first, tuple):
        return tuple(each for part in found for each in part)
    if isinstance(first, str):
        return "; ".join(sorted({text for text in found if text}))
    return max(found) if name in LARGEST else sum(found)
