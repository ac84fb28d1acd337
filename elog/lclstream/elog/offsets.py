"""Which offset of each partition may be committed: nothing unfinished lies before it; pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

Partition = tuple[str, int]
"""Topic and number."""


@dataclass(slots=True)
class _Progress:
    # Offsets in the order of delivery, which is their own order.
    pending: dict[int, None] = field(default_factory=dict)
    next: int = 0


class OffsetTracker:
    """Messages finish in any order; a commit covers only what is finished without a gap."""

    def __init__(self) -> None:
        self._partitions: dict[Partition, _Progress] = {}
        self._in_flight = 0

    @property
    def in_flight(self) -> int:
        """How many messages were begun and not finished."""
        return self._in_flight

    def begin(self, partition: Partition, offset: int) -> None:
        """A message was taken; offsets of a partition come in ascending order."""
        progress = self._partitions.setdefault(partition, _Progress())
        if offset not in progress.pending:
            progress.pending[offset] = None
            self._in_flight += 1
        progress.next = offset + 1

    def finish(self, partition: Partition, offset: int) -> None:
        """A message was handled; of a partition that was taken away it is no news."""
        progress = self._partitions.get(partition)
        if progress is not None and offset in progress.pending:
            del progress.pending[offset]
            self._in_flight -= 1

    def drop(self, partitions: Iterable[Partition]) -> None:
        """Partitions were taken away: what is unfinished there comes to somebody else."""
        for partition in partitions:
            progress = self._partitions.pop(partition, None)
            self._in_flight -= len(progress.pending) if progress else 0

    def positions(self) -> dict[Partition, int]:
        """Return for each partition the offset at which a new reader has to begin."""
        return {
            partition: next(iter(progress.pending), progress.next)
            for partition, progress in self._partitions.items()
        }
