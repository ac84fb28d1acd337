"""A queue that goes on in files: beyond memory (spill), or from the beginning on (durable).

It is still one queue, first in, first out, in up to four pieces:

    head             region              writing              tail
    memory or disk   only on disk        memory, on its way   memory

The head is what `segments.Queue` deals out; behind it lies the region, of which only beginning
and end are known here; what is being written will join it, and so will the tail. Without
pressure a queue that spills is all head. When memory is short what came last is written, so that
memory keeps what goes out first. A durable queue writes everything, group after group, each with
one `fdatasync`; only then it joins the head, its copy in memory with it as long as there is room.

Two threads wait for the disk, so that the loop never does: one writes and gives back, the other
one reads. What the disk refuses waits where it is, which holds up the producers; that is told as
an alarm and tried again.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from lclstream.buffer.config import BufferConfig
from lclstream.buffer.disk import Worker
from lclstream.buffer.disklog import Entry, Place, Span
from lclstream.buffer.journal import Journal, Recovered
from lclstream.buffer.loop import Loop
from lclstream.buffer.memory import Block, Memory, class_bytes
from lclstream.buffer.records import HEAD_BYTES
from lclstream.buffer.segments import Outlet, Queue, Segment
from lclstream.buffer.statistics import Counters
from lclstream.buffer.store import Consumption, Extent, Found, Outcome, Spill, Store
from lclstream.buffer.stored import DiskSegment, Stored, read
from lclstream.core.ledger import Tally

logger = logging.getLogger(__name__)

# Of the memory: from here on messages are written, ...
HIGH_FRACTION = 0.6
# ... so many of them at once, ...
BATCH_FRACTION = 0.25
# ... but these stay if that helps.
KEEP_FRACTION = 0.25
# If somebody waits for memory, down to here.
GO_ON_FRACTION = 0.7
# A durable queue keeps copies in memory up to here.
COPIES_FRACTION = 0.7
DURABLE_BATCH_BYTES = 16 << 20
DURABLE_BATCH_SEGMENTS = 500
# What is on disk is known in the head when less waits there, ...
FEW_SEGMENTS = 16
# ... so much of it at once.
READ_SEGMENTS = 64
HEAD_SEGMENTS = 1024
RETRY_AFTER_S = 1.0

Reading = tuple[list[Found], Extent | None]


class Region:
    """Messages of which is known only where in the files they lie."""

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0
        self.since = 0.0
        """When the first of them came, or was found."""
        self._extents: deque[Extent] = deque()

    def __bool__(self) -> bool:
        return bool(self._extents)

    def append(self, place: Place, segment: Segment) -> None:
        """Add a record at the end."""
        if not self._extents:
            self.since = segment.since
        begin, end = place.offset - HEAD_BYTES, place.offset + place.length
        if self._extents and self._extents[-1][::2] == (place.file, begin):
            begin = self._extents.pop().begin
        self._extents.append(Extent(place.file, begin, end))
        self.messages += segment.tally.messages
        self.bytes += segment.tally.bytes

    def extend(self, extents: Sequence[Extent], tally: Tally) -> None:
        """Add what was there before."""
        self._extents += extents
        self.messages += tally.messages
        self.bytes += tally.bytes

    def take(self) -> Extent:
        """Remove the first extent."""
        return self._extents.popleft()

    def put_back(self, extent: Extent) -> None:
        """Return what is left of the first extent."""
        following = self._extents[0] if self._extents else None
        if following is not None and following[:2] == (extent.file, extent.end):
            extent = Extent(extent.file, extent.begin, self._extents.popleft().end)
        self._extents.appendleft(extent)

    def clear(self) -> tuple[int, int]:
        """Forget everything; return how many messages and bytes that was."""
        counts = self.messages, self.bytes
        self._extents.clear()
        self.messages = self.bytes = 0
        return counts


class ShelvedQueue(Queue):
    """A queue that goes on in a store; for the loop's thread.

    Args:
        store: where to.
        memory: what the messages are received to.
        loop: gets the results of the disk's threads.
        counters: hear of what was spilled, and lost.

    Resource handling: owns the store and two threads until `close`.

    Error handling: what the disk refuses never raises. It is an `alarm`.
    """

    def __init__(self, store: Store, memory: Memory, loop: Loop, counters: Counters) -> None:
        super().__init__()
        self.is_durable = store.is_durable
        self.alarm = ""
        """Why nothing more goes to disk; empty if nothing is wrong."""
        self._store = store
        self._memory = memory
        self._loop = loop
        self._counters = counters
        self._writer = Worker("disk-writer", loop.post)
        self._reader = Worker("disk-reader", loop.post)
        self._region = Region()
        self._reading = False
        self._writing: list[Segment] = []
        # The end of the head, while some of it is written.
        self._aside: deque[Segment] = deque()
        self._tail: deque[Segment] = deque()
        self._wanted_bytes = 0
        self._retry_at: float | None = None
        self._consumption = Consumption()
        self._consuming = False
        # Copies in memory of what is on disk, in the order of the queue.
        self._copies: dict[Stored, None] = {}
        self._loads: deque[tuple[DiskSegment, Callable[[], None]]] = deque()
        self._loading = 0

    # As the queue.

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits and nothing is being written."""
        return super().is_empty and not self._is_shelving

    @property
    def has_waiting(self) -> bool:
        """Whether something waits to be given to a consumer."""
        return super().has_waiting or self._is_shelving

    @property
    def oldest(self) -> float | None:
        """When the message came in that has waited the longest; None if none waits."""
        if self._segments:
            return self._segments[0].since
        if self._region or self._reading:
            return self._region.since
        waiting = self._writing or self._tail
        return waiting[0].since if waiting else None

    @property
    def holds_memory(self) -> bool:
        """Whether memory becomes free when consumers go on, or the disk."""
        return bool(
            self.writing
            or self._writing
            or self._tail
            or any(not isinstance(segment, DiskSegment) for segment in reversed(self._segments))
        )

    @property
    def disk_bytes(self) -> int:
        """What the messages take of the disk."""
        return self._store.disk_bytes

    @property
    def messages_on_disk(self) -> int:
        """How many messages wait on disk alone."""
        return self._region.messages + sum(
            segment.tally.messages
            for segment in self._segments
            if isinstance(segment, DiskSegment) and not segment.stored.is_loaded
        )

    def put(self, segment: Segment) -> None:
        """Append a segment that came in."""
        self._count(segment.tally)
        segment.queued = True
        shelved = self.is_durable or self._is_shelving
        (self._tail if shelved else self._segments).append(segment)
        self._write()

    def put_back(self, segments: Sequence[Segment]) -> None:
        """Put what a consumer did not take before all others, in its order."""
        good = []
        for segment in segments:
            if isinstance(segment, DiskSegment):
                self.written(segment)
                if segment.stored.broken:
                    self._lose(segment)
                    continue
            good.append(segment)
        super().put_back(good)

    def matches(self) -> Iterator[Outlet]:
        """Give segments to idle consumers; yield each consumer that got one."""
        while self._loads and self._load(*self._loads[0]):
            self._loads.popleft()
        yield from super().matches()
        self._refill()

    def clear(self) -> Tally:
        """Drop everything that waits; return what it was. A durable store keeps it."""
        self._writer.close()
        self._reader.close()
        if self.is_durable and self._tail:
            self._store.append([_entry(segment) for segment in self._tail])
        dropped = Tally()
        self._segments += self._aside
        if self._aside:
            self._writing = []
            self._aside.clear()
        for segment in self._segments:
            if isinstance(segment, DiskSegment):
                dropped.merge(segment.tally)
                segment.forget()
        self._segments = deque(s for s in self._segments if not isinstance(s, DiskSegment))
        self._segments += [*self._writing, *self._tail]
        self._writing = []
        self._tail.clear()
        messages, size = self._region.clear()
        dropped.merge(Tally(messages, size, 0, None if messages else 0))
        dropped.merge(super().clear())
        if self.is_durable:
            self._counters.kept_on_disk = dropped.messages
        return dropped

    def close(self, *, is_complete: bool) -> None:
        """Close the store, after `clear`."""
        if self._consumption:
            self._store.consume(self._consumption)
        self._store.close(is_complete=is_complete)

    def deadline(self) -> float | None:
        """Return when `expire` has something to do."""
        return self._retry_at

    def expire(self, now: float) -> None:
        """Try again what the disk has refused."""
        if self._retry_at is not None and self._retry_at <= now:
            self._retry()
            self._consume()

    # What the engine asks for besides.

    def recover(self, now: float) -> Recovered | None:
        """Begin with what a process before has left, if anything."""
        if not isinstance(self._store, Journal):
            return None
        recovered = self._store.recovered
        self._region.extend(recovered.extents, recovered.waiting)
        self._region.since = now
        self._count(recovered.waiting)
        self._refill()
        return recovered

    def make_room(self, size_bytes: int) -> None:
        """Have memory become free: copies of what is on disk now, the rest when it is written."""
        wanted = class_bytes(size_bytes)
        while self._copies and self._memory.held_bytes + wanted > self._memory.capacity_bytes:
            stored, _ = self._copies.popitem()
            if not stored.is_pinned:
                stored.unload()
        self._wanted_bytes = max(self._wanted_bytes, wanted)
        self._write()

    @property
    def is_short(self) -> bool:
        """Whether messages on disk wait for memory, before any that could come in."""
        return bool(self._loads)

    def load(self, segment: Segment, then: Callable[[], None]) -> None:
        """Read a segment to memory and pin it there, then go on.

        Afterwards `is_loaded` tells whether it worked; `broken` is set if the disk failed.
        """
        if not isinstance(segment, DiskSegment):
            then()
        elif self._loads or not self._load(segment, then):
            self._loads.append((segment, then))

    def written(self, segment: Segment) -> None:
        """Take note that a consumer has been written a segment: its copy can go."""
        if isinstance(segment, DiskSegment):
            self._copies.pop(segment.stored, None)
            segment.stored.unload()

    def stream_ended(self, stream: int, *, is_finished: bool) -> None:
        """Have a durable store remember that a stream has ended, or goes on after all."""
        if self.is_durable:
            self._consumption.finished.append((stream, is_finished))
            self._consume()

    # Writing.

    @property
    def _is_shelving(self) -> bool:
        return bool(self._region or self._reading or self._writing or self._aside or self._tail)

    def _write(self) -> None:
        """Begin to write what should be on disk, unless something is being written."""
        if self._writing or self._retry_at is not None:
            return
        batch = self._durable_batch() if self.is_durable else self._spill_batch()
        if not batch:
            return
        for segment in batch:
            segment.queued = False
        self._writing = batch
        entries = [_entry(segment) for segment in batch]
        self._writer.submit(partial(self._store.append, entries), self._wrote)

    def _durable_batch(self) -> list[Segment]:
        batch: list[Segment] = []
        size = 0
        while self._tail and size < DURABLE_BATCH_BYTES and len(batch) < DURABLE_BATCH_SEGMENTS:
            size += self._tail[0].size_bytes
            batch.append(self._tail.popleft())
        return batch

    def _spill_batch(self) -> list[Segment]:
        """Return what came in last, if memory is short."""
        capacity, held = self._memory.capacity_bytes, self._memory.held_bytes
        needed = 0
        if self._wanted_bytes:
            # Until then nobody who waits for memory gets some.
            needed = held + max(self._wanted_bytes - capacity, -int(GO_ON_FRACTION * capacity))
            if needed <= 0:
                self._wanted_bytes = 0
        if held < HIGH_FRACTION * capacity and needed <= 0:
            return []
        enough = max(needed, int(BATCH_FRACTION * capacity))
        if self._is_shelving:
            batch = self._begin_of_tail(enough)
        else:
            batch = self._end_of_head(enough, 0 if needed > 0 else int(KEEP_FRACTION * capacity))
        return batch or self._head_batch(needed)

    def _begin_of_tail(self, enough: int) -> list[Segment]:
        """Remove so much from the tail: what is on disk comes before it."""
        batch: list[Segment] = []
        size = 0
        while self._tail and size < enough:
            size += self._tail[0].size_bytes
            batch.append(self._tail.popleft())
        return batch

    def _end_of_head(self, enough: int, keep: int) -> list[Segment]:
        """Remove what came last from the head, so much of it, as long as something is left."""
        batch: list[Segment] = []
        size = 0
        left = sum(s.size_bytes for s in self._segments if not isinstance(s, DiskSegment))
        while self._segments and size < enough:
            last = self._segments[-1]
            left -= last.size_bytes
            if isinstance(last, DiskSegment) or left < keep:
                break
            size += last.size_bytes
            batch.append(self._segments.pop())
        batch.reverse()
        return batch

    def _head_batch(self, needed: int) -> list[Segment]:
        """Return what is in memory before what is on disk; it keeps its place."""
        if self._reading or needed <= 0:
            # When something was read the head goes on, and this is asked again.
            return []
        size = 0
        while self._segments and size < needed:
            last = self._segments.pop()
            self._aside.appendleft(last)
            if not isinstance(last, DiskSegment):
                size += last.size_bytes
        batch = [segment for segment in self._aside if not isinstance(segment, DiskSegment)]
        if not batch:
            self._segments += self._aside
            self._aside.clear()
        return batch

    def _wrote(self, outcome: Outcome) -> None:
        """Go on with what was written, and what was not."""
        batch, self._writing = self._writing, []
        places = outcome.places
        if self._aside:
            self._wrote_head(dict(zip(batch, places, strict=False)))
            self._tell(outcome.refusal)
            self._settle()
            return
        for segment, place in zip(batch, places, strict=False):
            if self.is_durable:
                self._wrote_durable(segment, place)
            else:
                self._wrote_spilled(segment, place)
        rest = batch[len(places) :]
        for segment in reversed(rest):
            self._tail.appendleft(segment)
            segment.queued = True
        self._tell(outcome.refusal)
        self._settle()

    def _wrote_head(self, places: dict[Segment, Place]) -> None:
        for segment in self._aside:
            place = places.get(segment)
            if place is None:
                self._append_to_head(segment)
                continue
            stored = Stored(place, self._memory, self)
            self._append_to_head(DiskSegment(stored, 0, place.length, segment.tally, segment.since))
            self._counters.spilled += segment.tally.messages
            segment.release()
        self._aside.clear()

    def _wrote_durable(self, segment: Segment, place: Place) -> None:
        self.kept(segment)
        is_next = not self._region and not self._reading and len(self._segments) < HEAD_SEGMENTS
        if not is_next:
            self._region.append(place, segment)
            segment.release()
            return
        stored = Stored(place, self._memory, self)
        self._append_to_head(DiskSegment(stored, 0, place.length, segment.tally, segment.since))
        if self._memory.held_bytes < COPIES_FRACTION * self._memory.capacity_bytes:
            stored.loaded(segment.block, segment.start)  # type: ignore[arg-type]
            self._copies[stored] = None
        else:
            segment.release()

    def _wrote_spilled(self, segment: Segment, place: Place) -> None:
        if self._idle and not (self._segments or self._region or self._reading):
            # A consumer was faster: it need not be read again.
            self._append_to_head(segment)
            self.consumed([Span(place, 0, place.length)])
            return
        self._counters.spilled += segment.tally.messages
        self._region.append(place, segment)
        segment.release()

    def _append_to_head(self, segment: Segment) -> None:
        segment.queued = not isinstance(segment, DiskSegment)
        self._segments.append(segment)

    def _tell(self, refusal: OSError | None) -> None:
        """Raise the alarm, once, or end it."""
        if refusal is None:
            if self.alarm:
                logger.warning("disk_accepts_again")
                self.alarm = ""
            return
        self._retry_at = time.monotonic() + RETRY_AFTER_S
        alarm = f"nothing can be written to disk, producers wait: {refusal}"
        if not self.alarm:
            self._counters.disk_refusals += 1
            logger.error(
                "disk_refuses", extra={"reason": str(refusal), "disk_bytes": self.disk_bytes}
            )
        self.alarm = alarm

    def _retry(self) -> None:
        """Try again what was refused; if nothing of it is left, all is well."""
        self._retry_at = None
        self._write()
        if self.alarm and not self._writing:
            self._tell(None)

    def _settle(self) -> None:
        """Join what need not be apart, and go on with reading and writing."""
        apart = self._region or self._reading or self._writing or self.is_durable
        if self._tail and not apart:
            self._segments += self._tail
            self._tail.clear()
        self._refill()
        self._write()

    # Giving back.

    def consumed(self, spans: list[Span]) -> None:
        """Parts of records are not wanted any more."""
        self._consumption.spans += spans
        self._consume_soon()

    def progressed(self, position: int, messages: int) -> None:
        """So many messages from a position on are done with, in a part that still is wanted."""
        if self.is_durable:
            self._consumption.partly[position] = messages
            self._consume_soon()

    def _consume_soon(self) -> None:
        if not self._consuming:
            self._consuming = True
            # What else is consumed in this turn goes along.
            self._loop.again(self._consume_now)

    def _consume(self) -> None:
        if not self._consuming and self._consumption:
            self._consuming = True
            self._consume_now()

    def _consume_now(self) -> None:
        consumption, self._consumption = self._consumption, Consumption()
        self._writer.submit(partial(self._store.consume, consumption), self._gave_back)

    def _gave_back(self, refusal: OSError | None) -> None:
        self._consuming = False
        if refusal is not None:
            self._tell(refusal)
        elif self.alarm:
            # There may be room now.
            self._retry()
        self._consume()

    # Reading.

    def _refill(self) -> None:
        """Have the head know what comes next."""
        is_enough = len(self._segments) + len(self._aside) >= FEW_SEGMENTS
        if self._reading or self._aside or not self._region or is_enough:
            return
        self._reading = True
        extent = self._region.take()
        self._reader.submit(partial(self._read, extent), self._found)

    def _read(self, extent: Extent) -> Reading | OSError:
        """Run by the reader's thread."""
        try:
            found, rest = self._store.read(extent, READ_SEGMENTS)
            for place, start, end in (each.span for each in found):
                offset = place.offset + start
                os.posix_fadvise(place.file.fd, offset, end - start, os.POSIX_FADV_WILLNEED)
        except OSError as error:
            return error
        return found, rest

    def _found(self, result: Reading | OSError) -> None:
        self._reading = False
        if isinstance(result, OSError):
            logger.error("disk_unreadable", extra={"reason": str(result)})
            result = [], None
        found, rest = result
        if rest is not None:
            self._region.put_back(rest)
        for span, tally, _ in found:
            self._region.messages -= tally.messages
            self._region.bytes -= tally.bytes
            stored = Stored(span.place, self._memory, self)
            self._append_to_head(
                DiskSegment(stored, span.start, span.end, tally, self._region.since)
            )
        if not self._region and self._region.messages:
            messages, size = self._region.clear()
            self._counters.lost_on_disk += messages
            self.messages -= messages
            self.bytes -= size
        self._settle()

    def _load(self, segment: DiskSegment, then: Callable[[], None]) -> bool:
        """Begin to read a segment to memory; return False if there is none."""
        stored = segment.stored
        if stored.is_loading:
            return False
        if stored.is_loaded:
            stored.is_pinned = True
            self._loop.again(then)
            return True
        block = self._memory.take(stored.place.length, stuck=False)
        if block is None:
            self.make_room(stored.place.length)
            block = self._memory.take(stored.place.length, stuck=not self._loading)
        if block is None:
            return False
        self._loading += 1
        stored.is_loading = True
        self._reader.submit(
            partial(_read_whole, stored.place, block), partial(self._loaded, stored, block, then)
        )
        return True

    def _loaded(
        self, stored: Stored, block: Block, then: Callable[[], None], refusal: OSError | None
    ) -> None:
        self._loading -= 1
        stored.is_loading = False
        if refusal is not None:
            stored.broken = True
            block.release()
        else:
            stored.loaded(block, 0)
            stored.is_pinned = stored.is_loaded
        then()

    def _lose(self, segment: DiskSegment) -> None:
        """Count messages that the disk does not give back."""
        place = segment.stored.place
        logger.error("disk_unreadable", extra={"offset": place.offset, "bytes": place.length})
        self._counters.lost_on_disk += segment.tally.messages
        segment.release()


def open_queue(config: BufferConfig, memory: Memory, loop: Loop, counters: Counters) -> Queue:
    """Return the queue that a configuration asks for.

    Raises:
        InvalidConfigError: the folder cannot be used.
    """
    if config.durable is not None:
        store: Store = Journal(config.durable, limit_bytes=config.spill_bytes)
    elif config.spill is not None:
        store = Spill(config.spill, limit_bytes=config.spill_bytes)
    else:
        return Queue()
    return ShelvedQueue(store, memory, loop, counters)


def _entry(segment: Segment) -> Entry:
    view = segment.block.view[segment.start : segment.end]
    stream = segment.stream
    return Entry(view, segment.tally, stream.id if stream else 0, segment.sequence)


def _read_whole(place: Place, block: Block) -> OSError | None:
    """Run by the reader's thread."""
    try:
        read(place, block)
    except OSError as error:
        return error
    return None
