"""The queue that goes on in files against a trivial model; the disk's threads run step by step."""

import os
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lclstream.buffer.disk import Worker
from lclstream.buffer.journal import Journal
from lclstream.buffer.loop import Loop
from lclstream.buffer.memory import Memory
from lclstream.buffer.segments import Segment, SpOutlet
from lclstream.buffer.sp import header
from lclstream.buffer.spill import ShelvedQueue
from lclstream.buffer.statistics import Counters
from lclstream.buffer.store import Spill, Store
from lclstream.buffer.stored import DiskSegment
from lclstream.core.ledger import Tally

MIB = 1 << 20
CAPACITY = 2 * MIB
SIZES = st.sampled_from([10, 1000, 100_000, 250_000, 300_000, 700_000, 1_040_000])


class StepLoop(Loop):
    """Collects what would be done in the next turns."""

    def __init__(self) -> None:
        super().__init__()
        self.todo: deque[Callable[[], None]] = deque()

    def post(self, work: Callable[[], None]) -> None:
        self.todo.append(work)

    def again(self, work: Callable[[], None]) -> None:
        self.todo.append(work)

    def run_one(self) -> None:
        self.todo.popleft()()


class StepWorker(Worker):
    """Does a job when it is told to."""

    def __init__(self, loop: StepLoop) -> None:
        self.jobs: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()
        self._loop = loop

    def submit(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.jobs.append((work, done))

    def run_one(self) -> None:
        work, done = self.jobs.popleft()
        result = work()
        self._loop.post(lambda: done(result))

    def close(self) -> None:
        while self.jobs:
            self.run_one()


class QueueMachine(RuleBasedStateMachine):
    """Whatever lies where: first in, first out, within the bound, and never stuck."""

    durable = False

    def __init__(self) -> None:
        super().__init__()
        # Where a disk costs no time, if possible.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
        self.folder = tempfile.TemporaryDirectory(dir=memory)

    @initialize(limit=st.sampled_from([0, 1_500_000]))
    def begin(self, limit: int) -> None:
        self.loop = StepLoop()
        self.memory = Memory(CAPACITY)
        path = Path(self.folder.name)
        store: Store = (
            Journal(path, file_bytes=MIB)
            if self.durable
            else Spill(path, file_bytes=MIB, limit_bytes=limit)
        )
        self.is_limited = bool(limit) and not self.durable
        self.queue = ShelvedQueue(store, self.memory, self.loop, Counters())
        self.queue._writer.close()
        self.queue._reader.close()
        self.writer, self.reader = StepWorker(self.loop), StepWorker(self.loop)
        self.queue._writer, self.queue._reader = self.writer, self.reader
        self.model: deque[bytes] = deque()
        self.in_hand: list[tuple[SpOutlet, bytes]] = []
        self.number = 0
        self.wanted: int | None = None

    def receive(self, size: int) -> bool:
        """Take a message in, as a producer would that is not kept waiting."""
        needed = size + 16
        block = self.memory.take(needed, stuck=False)
        if block is None:
            self.queue.make_room(needed)
            block = self.memory.take(needed, stuck=not self.queue.holds_memory)
        if block is None:
            return False
        message = self.number.to_bytes(8) + bytes(size)
        self.number += 1
        run = header(len(message)) + message
        block.view[: len(run)] = run
        tally = Tally()
        tally.add(message)
        segment = Segment(block, 0, len(run), tally)
        block.release()
        self.queue.put(segment)
        self.model.append(message)
        return True

    @rule(size=SIZES)
    def push(self, size: int) -> None:
        self.receive(size)

    @precondition(lambda self: self.writer.jobs)
    @rule()
    def disk_writes(self) -> None:
        self.writer.run_one()

    @precondition(lambda self: self.reader.jobs)
    @rule()
    def disk_reads(self) -> None:
        self.reader.run_one()

    @precondition(lambda self: self.loop.todo)
    @rule()
    def turn(self) -> None:
        self.loop.run_one()

    @rule()
    def deal(self) -> None:
        """One more consumer takes what is next."""
        outlet = SpOutlet()
        self.queue.ready(outlet)
        if not list(self.queue.matches()):
            self.queue.leave(outlet)
            return
        message = self.model.popleft()
        assert outlet.segment is not None
        assert self.bytes_of(outlet.segment) == header(len(message)) + message
        self.in_hand.append((outlet, message))

    def bytes_of(self, segment: Segment) -> bytes:
        if isinstance(segment, DiskSegment) and not segment.stored.is_loaded:
            place = segment.stored.place
            return os.pread(place.file.fd, segment.size_bytes, place.offset + segment.start)
        return bytes(segment.block.view[segment.start : segment.end])

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        outlet, _ = self.in_hand.pop(data.draw(st.integers(0, len(self.in_hand) - 1)))
        assert outlet.segment is not None
        self.queue.written(outlet.segment)
        self.queue.finished()
        outlet.segment.release()

    @precondition(lambda self: self.in_hand)
    @rule()
    def leave(self) -> None:
        """The consumer that took the latest leaves without it."""
        outlet, message = self.in_hand.pop()
        assert outlet.segment is not None
        self.queue.finished()
        self.queue.put_back([outlet.segment])
        self.model.appendleft(message)

    def settle(self) -> None:
        for _ in range(1000):
            for some in (self.writer, self.reader):
                while some.jobs:
                    some.run_one()
            if not self.loop.todo:
                return
            self.loop.run_one()
        raise AssertionError("never comes to rest")

    @rule(size=SIZES)
    def is_never_stuck(self, size: int) -> None:
        """With room on disk, what fits into memory beside what consumers hold comes in."""
        held = sum(1 for outlet, _ in self.in_hand if not isinstance(outlet.segment, DiskSegment))
        if self.is_limited or held:
            return
        for _ in range(20):
            if self.receive(size):
                return
            self.settle()
        raise AssertionError(f"{size} bytes never come in")

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert self.queue.messages == len(self.model)
        assert self.queue.bytes == sum(map(len, self.model))
        assert self.queue.is_empty == (not self.model and not self.in_hand)
        assert self.memory.held_bytes <= CAPACITY

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.settle()
            while self.in_hand:
                self.leave()
            # All that is left comes out, in order.
            while self.model:
                self.settle()
                before = len(self.model)
                self.deal()
                assert len(self.model) < before
                outlet, _ = self.in_hand.pop()
                assert outlet.segment is not None
                self.queue.finished()
                outlet.segment.release()
            self.settle()
            assert self.queue.is_empty
            assert self.memory.held_bytes == 0
            assert not self.queue.clear().messages
            self.queue.close(is_complete=True)
            self.memory.close()
            self.loop.close()
            self.loop.close_wake()
        self.folder.cleanup()


class DurableMachine(QueueMachine):
    durable = True


TestSpilling = QueueMachine.TestCase
TestSpilling.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestDurable = DurableMachine.TestCase
TestDurable.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
