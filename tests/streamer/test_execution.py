"""Stages side by side: order, bounds, copies, and what happens when one of them fails."""

import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import pytest
from tests.streamer.conftest import wait_until

from lclstream.core.errors import DecodeError, DeliveryError, UnavailableError
from lclstream.streamer.batching import Batch, Batcher, Form, new_batch
from lclstream.streamer.config import parse_parameters
from lclstream.streamer.events import Event
from lclstream.streamer.execution.figures import StageFigures
from lclstream.streamer.execution.framing import Framing
from lclstream.streamer.execution.pool import LEAST_BATCHES, BatchPool, SendingEndedError
from lclstream.streamer.execution.processing import InlineProcessing, ParallelProcessing
from lclstream.streamer.execution.sender import Sender, StuckError
from lclstream.streamer.execution.stages import Stage
from lclstream.streamer.message import Message
from lclstream.streamer.pipeline import Outlet, drive
from lclstream.streamer.progress import Progress
from lclstream.streamer.rank import Place
from lclstream.streamer.sources.internal import NoReadings
from lclstream.streamer.steps import Steps
from lclstream.streamer.stopping import StopRequest
from lclstream.streamer.values import Array, Ragged, Values

if TYPE_CHECKING:
    from lclstream.streamer.handlers import Handler

WAIT_S = 20.0
# Too large for more than the least number of batches.
SIDE = 1 << 10


def event(index: int) -> Event:
    return Event(timestamp=index, index=index, run=1, experiment="e", readings=NoReadings())


class RawSerializer:
    """Sends the arrays of a batch as they lie in memory."""

    def __init__(self) -> None:
        self.labels: tuple[str, ...] = ("frame",)
        self.batches: list[Batch] = []

    def new_batch(self, form: Form, capacity: int) -> Batch:
        self.batches.append(new_batch(form, capacity))
        return self.batches[-1]

    def messages(self, batch: Batch) -> Iterable[Message]:
        frames = batch.arrays["frame"][: batch.count]
        yield Message((batch.index[: batch.count].data, frames.data), batch.count)

    def begin(self) -> Iterable[Message]:
        return ()

    def end(self) -> Iterable[Message]:
        return ()

    def close(self) -> None:
        """Hold nothing."""


class Collector:
    """Takes messages as its test allows."""

    def __init__(
        self, *, goes: bool = True, fails_at: int = -1, error: Exception | None = None
    ) -> None:
        self.goes, self.called = threading.Event(), threading.Event()
        if goes:
            self.goes.set()
        self.events: list[int] = []
        self.messages = 0
        self.ended = ""
        self.on_message: Callable[[Message], None] = lambda message: None
        self.compares = True
        self._fails_at, self._error = fails_at, error

    def send(self, message: Message) -> None:
        self.called.set()
        assert self.goes.wait(WAIT_S)
        if self.messages == self._fails_at:
            assert self._error is not None
            raise self._error
        self.messages += 1
        index = np.frombuffer(message.parts[0], np.uint64)
        assert message.index is not None
        assert index.tolist() == message.index.tolist()
        frames = np.frombuffer(message.parts[1], np.uint16).reshape(len(index), -1)
        # Nobody may have written into the batch meanwhile.
        assert not self.compares or (frames == index[:, None]).all()
        self.events += index.tolist()
        self.on_message(message)

    def close(self, *, complete: bool = True) -> None:
        self.ended = f"closed {complete}"

    def abort(self) -> None:
        self.ended = "aborted"


class Stand:
    """A pipeline without configuration."""

    def __init__(self, *collectors: Collector, batch_size: int = 2) -> None:
        self.serializer = RawSerializer()
        self.progress = Progress(Place(0, 1))
        self.stack = ExitStack()
        self.stop = StopRequest()
        self.pool = BatchPool(self.serializer.new_batch, self.stop)
        handlers = [(str(n), cast("Handler", each)) for n, each in enumerate(collectors)]
        framing = Framing(self.serializer, Place(0, 1), self.stop)
        self.sender = Sender(
            self.serializer, handlers, self.pool, self.progress, self.stop, framing
        )
        batcher = Batcher(("frame",), batch_size, with_masks=False, make=self.pool.take)
        self.outlet = Outlet(batcher, self.sender)
        self.given = 0

    def __enter__(self) -> Self:
        self.stack.enter_context(self.stop)
        self.stack.enter_context(self.sender)
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def frames(self, count: int) -> Iterator[tuple[Event, Values]]:
        """Yield events whose frames, always in the same memory, hold their index."""
        frame = np.empty((SIDE, SIDE), np.uint16)
        for index in range(count):
            frame[:] = index
            self.given = index + 1
            yield event(index), {"frame": frame}

    def run(self, count: int) -> None:
        steps = Steps(parse_parameters(MINIMAL))
        self.drive(self.frames(count), InlineProcessing(steps, self.outlet.add))

    def drive(self, events: Iterable[tuple[Event, Values]], processing: InlineProcessing) -> None:
        self.figures = StageFigures(self.pool, processing, self.sender, Stage())
        drive(events, processing, self.outlet, self.figures)


MINIMAL = {
    "event_source": {"type": "InternalEventSource", "number_of_events_to_generate": 1},
    "data_sources": {"frame": {"type": "FloatValue", "value": 1}},
    "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 1},
    "data_serializer": {"type": "HDF5BinarySerializer"},
}


@contextmanager
def running(work: Callable[[], None]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_every_handler_gets_every_event_in_order() -> None:
    collectors = [Collector() for _ in range(3)]
    with Stand(*collectors) as stand:
        stand.run(9)
    for collector in collectors:
        assert collector.events == list(range(9))
        assert collector.ended == "closed True"
    assert (stand.progress.sent.messages, stand.progress.sent.events) == (5, 9)
    # Again and again the same memory.
    assert len(stand.serializer.batches) == LEAST_BATCHES


def test_a_slow_handler_holds_up_reading_and_all_others_but_not_for_ever() -> None:
    slow, fast = Collector(goes=False), Collector()
    most = 2 * LEAST_BATCHES + 1
    with Stand(slow, fast) as stand, running(lambda: stand.run(20)):
        # The event that finds no batch is in the hands of the reader.
        wait_until(lambda: stand.given == most and len(fast.events) == 2 * LEAST_BATCHES)
        assert stand.pool.in_use == LEAST_BATCHES
        assert stand.progress.sent.messages == 0
        slow.goes.set()
    assert slow.events == fast.events == list(range(20))
    assert stand.given == 20


def test_what_fails_in_one_handler_the_others_still_deliver() -> None:
    broken = Collector(fails_at=3, error=UnavailableError("nobody there"))
    waiting, quick = Collector(goes=False), Collector()
    stand = Stand(broken, waiting, quick)

    def check() -> None:
        with (
            pytest.raises(
                DeliveryError, match=r"^[12] messages not delivered: nobody there$"
            ) as caught,
            stand,
        ):
            stand.run(100)
        # Another batch may have been full already.
        assert caught.value.undelivered in (1, 2)

    with running(check):
        # It fails with its fourth message, which the others must hand back for more to be read.
        waiting.goes.set()
        wait_until(lambda: broken.messages == 3)
    assert broken.events == list(range(6))
    assert broken.ended == "aborted"
    assert waiting.events == quick.events
    assert quick.events[:8] == list(range(8))
    # All that was read, but for the event that was to begin the next batch.
    assert stand.given - 1 <= len(quick.events) <= stand.given <= 12
    assert quick.ended == waiting.ended == "closed False"
    assert stand.progress.sent.events == 6


class Behind(Collector):
    """Has what it has taken only two messages later."""

    @property
    def settled(self) -> int:
        return max(self.messages - 2, 0)


def test_what_a_handler_has_taken_and_not_delivered_is_lost_too() -> None:
    stand = Stand(Behind(fails_at=5, error=UnavailableError("away")), batch_size=20)
    stand.serializer.__class__ = EventWise
    with pytest.raises(DeliveryError, match=r"^17 messages not delivered: away$"), stand:
        stand.run(20)
    # Events are safe in the order in which they were sent.
    assert stand.progress.resume_index == 3


def test_what_has_arrived_follows_the_slowest_handler() -> None:
    late = Behind()
    with Stand(late, Collector(), batch_size=1) as stand:
        stand.run(9)
        wait_until(lambda: len(late.events) == 9)
        assert stand.progress.resume_index <= 7
    # It has closed properly.
    assert stand.progress.resume_index == 9


def test_losses_of_several_handlers_are_all_named() -> None:
    first = Collector(fails_at=0, error=UnavailableError("first away"))
    second = Collector(fails_at=0, error=DeliveryError("second away", 3))
    stand = Stand(first, second)
    text = r" messages not delivered: first away; second away$"
    with pytest.raises(DeliveryError, match=text), stand:
        stand.run(50)
    assert stand.progress.sent.messages == 0


def test_a_fault_of_a_handler_is_not_taken_for_a_loss() -> None:
    stand = Stand(Collector(fails_at=1, error=ZeroDivisionError("bug")), Collector())
    with pytest.raises(ZeroDivisionError, match=r"^bug$"), stand:
        stand.run(50)


def test_a_serializer_that_fails_ends_the_run_and_the_rest_is_delivered() -> None:
    collector = Collector()
    stand = Stand(collector)
    made = stand.serializer.messages

    def messages(batch: Batch) -> Iterable[Message]:
        if batch.sequence == 3:
            raise DecodeError("cannot be written")
        return made(batch)

    stand.serializer.messages = messages  # type: ignore[method-assign]
    with pytest.raises(DecodeError, match=r"^cannot be written$"), stand:
        stand.run(50)
    assert collector.events == list(range(6))
    assert collector.ended == "closed False"


def test_a_source_that_fails_has_delivered_what_came_before() -> None:
    collector = Collector()

    stand = Stand(collector)

    def frames() -> Iterator[tuple[Event, Values]]:
        yield from stand.frames(5)
        raise DecodeError("damaged")

    processing = InlineProcessing(Steps(parse_parameters(MINIMAL)), stand.outlet.add)
    with pytest.raises(DecodeError, match=r"^damaged$"), stand:
        stand.drive(frames(), processing)
    assert collector.events == [0, 1, 2, 3, 4]
    assert collector.ended == "closed False"


def test_stop_throws_away_what_waits() -> None:
    stuck = Collector(goes=False)
    stand = Stand(stuck)

    def check() -> None:
        with pytest.raises(DeliveryError, match=r" messages thrown away: canceled$"), stand:
            stand.run(20)

    with running(check):
        wait_until(lambda: stand.pool.in_use == LEAST_BATCHES)
        stand.stop.request("canceled", now=True)
        stuck.goes.set()
    assert stuck.ended == "aborted"
    assert len(stuck.events) <= 2 * LEAST_BATCHES


class EventWise(RawSerializer):
    """Makes a message of each event."""

    def messages(self, batch: Batch) -> Iterable[Message]:
        for row in range(batch.count):
            frames = batch.arrays["frame"][row : row + 1]
            yield Message((batch.index[row : row + 1].data, frames.data), 1)


def test_messages_of_single_events_are_counted_one_by_one() -> None:
    stand = Stand(Collector(fails_at=7, error=UnavailableError("away")), batch_size=20)
    stand.serializer.__class__ = EventWise
    with pytest.raises(DeliveryError, match=r"^13 messages not delivered: away$"), stand:
        stand.run(20)
    assert stand.progress.sent.messages == 7


def test_a_full_queue_holds_up_the_serializer_until_everything_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lclstream.streamer.execution.sender.GIVE_UP_S", 0.1)
    stuck = Collector(goes=False)
    stand = Stand(stuck, batch_size=40)
    stand.serializer.__class__ = EventWise
    lane = stand.sender.lanes[0]

    def check() -> None:
        with pytest.raises(StuckError, match=r" messages thrown away: canceled$"), stand:
            stand.run(40)

    with running(check):
        wait_until(lambda: stuck.called.is_set() and lane.waiting == lane.room)
        stand.stop.request("canceled", now=True)
    stuck.goes.set()
    lane.thread.join(WAIT_S)
    stand.sender._thread.join(WAIT_S)
    assert stuck.events == [0]
    assert lane.taken + lane.refused >= lane.room


def test_messages_go_out_from_the_memory_of_the_batch() -> None:
    stand = Stand(collector := Collector())
    shared = []

    def compare(message: Message) -> None:
        part = np.frombuffer(message.parts[1], np.uint16)
        shared.append(
            any(np.shares_memory(part, each.arrays["frame"]) for each in stand.serializer.batches)
        )

    collector.on_message = compare
    with stand:
        stand.run(6)
    assert shared == [True] * 3


def test_frames_cost_no_memory_but_that_of_the_batches() -> None:
    frame_bytes = 2 * SIDE * SIDE
    collector = Collector()
    # That would need memory of its own.
    collector.compares = False
    with Stand(collector) as stand:
        collector.goes.clear()
        with running(lambda: stand.run(10)):
            wait_until(lambda: len(stand.serializer.batches) == LEAST_BATCHES)
            collector.goes.set()
        wait_until(lambda: stand.pool.in_use == 0)
        tracemalloc.start()
        try:
            # The frame of this source itself, and not one copy beside the batches.
            stand.run(40)
            wait_until(lambda: stand.pool.in_use == 0)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert frame_bytes < peak_bytes < 1.6 * frame_bytes


def test_small_batches_may_be_more() -> None:
    with StopRequest() as stop:
        pool = BatchPool(new_batch, stop)
        batcher = Batcher(("x",), 1, with_masks=False, make=pool.take)
        batches = [batch for n in range(8) for batch in batcher.add(event(n), {"x": np.array(n)})]
        assert pool.in_use == 8 < pool.limit
        # One whose events turn out to have many readings counts as large.
        batcher = Batcher(("r",), 1, with_masks=False, make=pool.take)
        for batch in batches:
            pool.give_back(batch)
        many = Ragged(np.zeros(3 << 20))
        (batch,) = batcher.add(event(9), {"r": many})
        assert pool.limit > LEAST_BATCHES
        pool.give_back(batch)
        assert pool.limit == LEAST_BATCHES
        pool.end()
        with pytest.raises(SendingEndedError):
            pool.take(batch.form, 1)


# Steps in threads.


class Doing:
    """Steps that do what a test wants."""

    def __init__(self, do: Callable[[int], bool]) -> None:
        self._do = do
        self.vetoed: dict[str, int] = {}

    def apply(self, event: Event, values: Values) -> Values | None:
        return values if self._do(event.index) else None


def several(count: int, do: Callable[[int], bool]) -> list[Steps]:
    return [cast("Steps", Doing(do)) for _ in range(count)]


def test_steps_of_several_events_run_at_the_same_time_and_keep_the_order() -> None:
    second = threading.Event()
    order: list[int] = []
    done: list[int] = []

    def do(index: int) -> bool:
        # Each odd one ends before the even one in front of it.
        if index % 2:
            second.set()
        else:
            assert second.wait(WAIT_S)
            second.clear()
        order.append(index)
        return index % 3 > 0

    def sink(event: Event, values: Values | None) -> None:
        assert (values is None) == (event.index % 3 == 0)
        done.append(event.index)

    processing = ParallelProcessing(several(2, do), sink, copies=False)
    for index in range(40):
        # Two at a time, so that partners are not kept apart.
        processing.add(event(index), {"x": np.zeros(1 << 20, np.uint8)})
        if index % 2:
            wait_until(lambda: processing.waiting == 0)
    processing.finish()
    assert order[:2] == [1, 0]
    assert done == list(range(40))


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 300_000])
def test_many_events_through_threads(workers: int, size: int) -> None:
    done: list[int] = []
    steps = several(workers, lambda index: index % 7 > 0)
    processing = ParallelProcessing(
        steps,
        lambda event, values: done.append(event.index) if values is not None else None,
        copies=False,
    )
    for index in range(3000 if size == 1 else 200):
        processing.add(event(index), {"x": np.zeros(size, np.uint8)})
        assert processing.waiting <= 1024 + 2 * workers
    processing.finish()
    assert processing.waiting == 0
    assert done == [index for index in range(3000 if size == 1 else 200) if index % 7]


def test_views_of_a_source_are_copied_for_threads_only_where_they_change() -> None:
    memory = np.zeros(1000, np.uint16)
    seen: list[tuple[int, int, bool]] = []

    def sink(event: Event, values: Values | None) -> None:
        assert values is not None
        array = cast("Array", values["x"])
        assert len(set(array.tolist())) == 1
        seen.append((event.index, int(array.flat[0]), np.shares_memory(array, memory)))

    for copies in (True, False):
        processing = ParallelProcessing(several(2, lambda index: True), sink, copies=copies)
        for index in range(50 if copies else 1):
            memory[:] = index
            processing.add(event(index), {"x": memory})
        processing.finish()
    assert seen == [*((n, n, False) for n in range(50)), (0, 0, True)]


def add_many(processing: ParallelProcessing) -> None:
    for index in range(10_000):
        processing.add(event(index), {"x": np.zeros(1)})


def test_a_step_that_fails_lets_earlier_events_pass() -> None:
    done: list[int] = []

    def do(index: int) -> bool:
        if index == 5:
            raise ZeroDivisionError("bug")
        return True

    processing = ParallelProcessing(
        several(3, do), lambda event, values: done.append(event.index), copies=False
    )
    with pytest.raises(ZeroDivisionError, match=r"^bug$"):
        add_many(processing)
    with pytest.raises(ZeroDivisionError, match=r"^bug$"):
        processing.finish()
    assert done == [0, 1, 2, 3, 4]


def test_nobody_takes_what_the_steps_give() -> None:
    def sink(event: Event, values: Values | None) -> None:
        raise SendingEndedError

    processing = ParallelProcessing(several(2, lambda index: True), sink, copies=False)
    with pytest.raises(SendingEndedError):
        add_many(processing)
    with pytest.raises(SendingEndedError):
        processing.finish()
