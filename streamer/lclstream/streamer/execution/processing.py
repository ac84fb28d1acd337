"""The steps that every event goes through: where it is read, or in threads beside that."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from lclstream.streamer.events import Event
from lclstream.streamer.execution.stages import Stage
from lclstream.streamer.steps import Steps
from lclstream.streamer.values import Ragged, Reading, Values

Sink = Callable[[Event, Values | None], None]
"""Takes what became of an event, None if it was dropped; called in the order of the events."""

# So many events of each thread may be under way, however large they are,
EVENTS_PER_THREAD = 2
# and as many small ones as this is room for.
ROOM_BYTES = 4 << 20
ROOM_EVENTS = 1024
# Small events are taken several at a time, lest threads change for each of them.
EVENTS_AT_A_TIME = 16


class Processing(Protocol):
    """Applies the steps to one event after the other."""

    def add(self, event: Event, values: Values) -> None:
        """Process one event; what becomes of it goes to the sink, at once or later.

        Raises:
            LclstreamError: a step failed.
        """
        ...

    def finish(self) -> None:
        """Wait until every event has gone to the sink.

        Raises:
            LclstreamError: a step failed.
        """
        ...

    @property
    def waiting(self) -> int:
        """Events that are under way."""
        ...

    @property
    def waited_s(self) -> float:
        """Seconds that `add` spent waiting."""
        ...

    @property
    def stages(self) -> "Sequence[Stage]":
        """Of the steps, one for each thread; none where they are part of reading."""
        ...


class NoProcessing:
    """Has no steps to apply."""

    def __init__(self, add: Callable[[Event, Values], None]) -> None:
        # One call less for each event.
        self.add = add
        """Give an event to the sink."""

    def finish(self) -> None:
        """Do nothing: nothing is under way."""

    @property
    def waiting(self) -> int:
        """Events that are under way."""
        return 0

    @property
    def waited_s(self) -> float:
        """Seconds that `add` spent waiting; the pool of batches knows them."""
        return 0.0

    @property
    def stages(self) -> Sequence[Stage]:
        """Of the steps: none, they are part of reading."""
        return ()


class InlineProcessing(NoProcessing):
    """Applies the steps at once, in the thread that reads."""

    def __init__(self, steps: Steps, sink: Sink) -> None:
        apply = steps.apply

        def add(event: Event, values: Values) -> None:
            sink(event, apply(event, values))

        super().__init__(add)


class ParallelProcessing:
    """Applies the steps in several threads, and hands on the events in their order.

    Resource handling: owns its threads, which have ended when `finish` returns.

    Error handling: when a step fails, what came before its event is still handed on. The error is
    raised by `add` or `finish`.

    Args:
        steps: one set for each thread.
        sink: takes the results; called by one thread at a time.
        copies: whether the arrays have to be copied, because they change with the next event.
    """

    def __init__(self, steps: Sequence[Steps], sink: Sink, *, copies: bool) -> None:
        self._sink, self._copies = sink, copies
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._tasks: deque[_Task] = deque()
        self._done: dict[int, _Task] = {}
        self._number = self._next = 0
        self._bytes = 0
        self.waited_s = 0.0
        """Seconds that `add` spent waiting."""
        self.stages = [Stage() for _ in steps]
        """Of the steps, one for each thread."""
        self._is_handing_on = False
        self._ended = False
        self._error: BaseException | None = None
        self._least = EVENTS_PER_THREAD * len(steps)
        self._threads = [
            threading.Thread(target=self._run, args=each, name=f"steps {number}", daemon=True)
            for number, each in enumerate(zip(steps, self.stages, strict=True))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Events that are under way."""
        return self._number - self._next

    def add(self, event: Event, values: Values) -> None:
        """Process one event; waits while too many are under way."""
        if self._copies:
            values = {name: _copied(value) for name, value in values.items()}
        task = _Task(self._number, event, values)
        with self._lock:
            if not self._can_answer(task.size_bytes):
                began = time.perf_counter()
                while not self._can_answer(task.size_bytes):
                    self._room.wait()
                self.waited_s += time.perf_counter() - began
            if self._error is not None:
                raise self._error
            self._tasks.append(task)
            self._number += 1
            self._bytes += task.size_bytes
            self._work.notify()

    def finish(self) -> None:
        """Wait until every event is handed on."""
        with self._lock:
            self._ended = True
            self._work.notify_all()
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def _can_answer(self, size_bytes: int) -> bool:
        return self._error is not None or self._has_room(size_bytes)

    def _has_room(self, size_bytes: int) -> bool:
        under_way = self._number - self._next
        if under_way < self._least:
            return True
        return under_way < ROOM_EVENTS and self._bytes + size_bytes <= ROOM_BYTES

    def _run(self, steps: Steps, stage: Stage) -> None:
        while tasks := self._taken():
            stage.begin()
            for task in tasks:
                task.apply(steps)
            stage.pause()
            self._store(tasks)
        stage.sample()

    def _taken(self) -> "list[_Task]":
        """Return the next events, none when there will be no more."""
        with self._lock:
            while not self._tasks and not self._ended:
                self._work.wait()
            # The share of one thread, lest the others have nothing to do.
            share = -(-len(self._tasks) // len(self._threads))
            return [self._tasks.popleft() for _ in range(min(share, EVENTS_AT_A_TIME))]

    def _store(self, tasks: "list[_Task]") -> None:
        """Add results; hand on those whose turn it is, unless another thread is doing so."""
        with self._lock:
            self._done.update({task.number: task for task in tasks})
            if self._is_handing_on:
                return
            self._is_handing_on = True
        while ready := self._ready():
            self._hand_on(ready)

    def _ready(self) -> "list[_Task]":
        with self._lock:
            ready = []
            number = self._next
            while number in self._done and self._error is None:
                ready.append(self._done.pop(number))
                number += 1
            self._is_handing_on = bool(ready)
            return ready

    def _hand_on(self, tasks: "list[_Task]") -> None:
        try:
            for task in tasks:
                self._sink(task.event, task.result())
        except BaseException as error:
            with self._lock:
                self._error, self._ended = error, True
                self._tasks.clear()
                self._done.clear()
                self._room.notify()
                self._work.notify_all()
            return
        with self._lock:
            self._next += len(tasks)
            self._bytes -= sum(task.size_bytes for task in tasks)
            self._room.notify()


class _Task:
    """One event on its way through the steps."""

    __slots__ = ("error", "event", "number", "size_bytes", "values")

    def __init__(self, number: int, event: Event, values: Values) -> None:
        self.number, self.event = number, event
        self.values: Values | None = values
        self.size_bytes = sum(_size_bytes(value) for value in values.values())
        self.error: BaseException | None = None

    def apply(self, steps: Steps) -> None:
        """Replace the values by what becomes of them."""
        if self.values is None:
            return
        try:
            self.values = steps.apply(self.event, self.values)
        except BaseException as error:
            self.error = error

    def result(self) -> Values | None:
        """Return what became of the values, or raise what a step raised."""
        if self.error is not None:
            raise self.error
        return self.values


def _size_bytes(value: Reading | None) -> int:
    if value is None:
        return 0
    return value.array.nbytes if isinstance(value, Ragged) else value.nbytes


def _copied(value: Reading | None) -> Reading | None:
    if value is None:
        return None
    return Ragged(value.array.copy()) if isinstance(value, Ragged) else value.copy()
