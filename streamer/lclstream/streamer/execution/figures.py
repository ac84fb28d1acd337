"""What the stages of a pipeline do just now, as figures for reports and metrics."""

from dataclasses import dataclass, field

from lclstream.streamer.execution.pool import BatchPool
from lclstream.streamer.execution.processing import Processing
from lclstream.streamer.execution.sender import Sender
from lclstream.streamer.execution.stages import Stage
from lclstream.streamer.progress import Figures

# So many handlers are told of one by one: a report has room for a hundred figures.
MOST_HANDLERS = 8


@dataclass(slots=True)
class StageFigures:
    """Asks every stage; may be called from any thread."""

    pool: BatchPool
    processing: Processing
    sender: Sender
    reading: Stage
    paced_s: float = 0.0
    """Seconds that reading waited for the time at which an event was due."""
    _waited_s: float = field(default=0.0, init=False)

    def read(self) -> None:
        """Count the work of reading since the last time; called by the thread that reads."""
        waited_s = self.pool.waited_s + self.processing.waited_s + self.paced_s
        # Batches are waited for elsewhere when steps have threads of their own.
        if self.processing.stages:
            waited_s -= self.pool.waited_s
        self.reading.lap(waited_s - self._waited_s)
        self._waited_s = waited_s

    def finish(self) -> None:
        """Count the last work of reading."""
        self.read()
        self.reading.sample()

    def waited(self, seconds: float) -> None:
        """Add to the time for which reading has waited."""
        self.paced_s += seconds

    def stages(self) -> dict[str, tuple[float, float]]:
        """Return stage -> seconds at work, and of the processor; those of threads together."""
        steps = self.processing.stages
        found = {"read": (self.reading.busy_s, self.reading.cpu_s)}
        if steps:
            busy_s, cpu_s = sum(each.busy_s for each in steps), sum(each.cpu_s for each in steps)
            found["process"] = (busy_s, cpu_s)
        found["serialize"] = (self.sender.stage.busy_s, self.sender.stage.cpu_s)
        for lane in self.sender.lanes[:MOST_HANDLERS]:
            found[f"send_{lane.name}"] = (lane.stage.busy_s, lane.stage.cpu_s)
        return found

    def queues(self) -> dict[str, tuple[int, int]]:
        """Return queue -> how much is in it, and how much there is room for; 0: not bounded."""
        found = {"batches": (self.pool.in_use, self.pool.limit)}
        if self.processing.stages:
            found["steps"] = (self.processing.waiting, 0)
        for lane in self.sender.lanes[:MOST_HANDLERS]:
            found[f"send_{lane.name}"] = (lane.waiting, lane.room)
        return found

    def handlers(self) -> dict[str, tuple[int, int]]:
        """Return handler -> messages that it has taken, and that did not reach the other side."""
        return {lane.name: (lane.taken, lane.undelivered) for lane in self.sender.lanes}

    def report(self) -> Figures:
        """Return all of it, flat."""
        figures: Figures = {}
        for name, (busy_s, cpu_s) in self.stages().items():
            figures[f"{name}_busy_s"] = round(busy_s, 3)
            figures[f"{name}_cpu_s"] = round(cpu_s, 3)
        for name, (fill, room) in self.queues().items():
            figures[f"{name}_waiting"] = fill
            if room:
                figures[f"{name}_room"] = room
        for name, (taken, undelivered) in list(self.handlers().items())[:MOST_HANDLERS]:
            figures[f"send_{name}_messages"] = taken
            figures[f"send_{name}_undelivered"] = undelivered
        return figures
