"""Moves events from their source to the handlers, within bounded memory."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from itertools import chain, islice
from typing import TYPE_CHECKING

from lclstream.core import quiet
from lclstream.streamer.batching import Batcher
from lclstream.streamer.checkpoint import Checkpoint
from lclstream.streamer.config import Parameters
from lclstream.streamer.config.canonical import configuration_hash
from lclstream.streamer.config.event_sources import PacedSource
from lclstream.streamer.data_sources import Extractor
from lclstream.streamer.events import Event, EventSource, open_event_source
from lclstream.streamer.execution.figures import StageFigures
from lclstream.streamer.execution.framing import Framing
from lclstream.streamer.execution.options import RunOptions
from lclstream.streamer.execution.pool import BatchPool, SendingEndedError
from lclstream.streamer.execution.processing import (
    InlineProcessing,
    NoProcessing,
    ParallelProcessing,
    Processing,
    Sink,
)
from lclstream.streamer.execution.sender import Sender, StuckError
from lclstream.streamer.execution.stages import Stage
from lclstream.streamer.handlers import Handler, open_handlers
from lclstream.streamer.pacing import paced
from lclstream.streamer.progress import Progress
from lclstream.streamer.rank import Place
from lclstream.streamer.requirements import require_everything
from lclstream.streamer.serializers import Serializer, open_serializer
from lclstream.streamer.steps import Steps
from lclstream.streamer.stopping import StopRequest
from lclstream.streamer.values import Values

if TYPE_CHECKING:
    from lclstream.streamer.event_set import EventSet

# The time of every single event would cost too much of it.
EVENTS_A_LAP = 32
NO_OPTIONS = RunOptions()

Extracted = tuple[Event, Values]


class Pipeline:
    """One rank's way from the source to the handlers.

    Error handling: when the source or a step fails, what was read before is still delivered. When
    a handler fails, nothing more is read, and the others deliver what was. The error is raised by
    `run` in the end.
    """

    def __init__(
        self,
        parameters: Parameters,
        place: Place,
        progress: Progress,
        stop: StopRequest,
        options: RunOptions = NO_OPTIONS,
    ) -> None:
        self._parameters, self._place = parameters, place
        self._progress, self._stop = progress, stop
        self._options = options
        self._handlers: list[tuple[str, Handler]] = []
        self._held: list[EventSet] = []
        self._leaves_out = False
        self._waited: Callable[[float], None] = lambda seconds: None

    def run(self) -> None:
        """Stream until the source ends or the end is asked for; all is delivered on return.

        Raises:
            InvalidConfigError: something cannot be opened; mistakes show before anything is
                connected.
            DeliveryError: messages could not be delivered; says how many.
        """
        require_everything(self._parameters)
        with ExitStack() as stack:
            serializer = stack.enter_context(
                closing(open_serializer(self._parameters, self._place))
            )
            framing = Framing(serializer, self._place, self._stop)
            # What has failed before it could begin holds up no other rank.
            stack.callback(framing.done, is_good=False)
            source = stack.enter_context(closing(self._opened_source()))
            framing.leader = int(getattr(source, "first_rank", 0))
            try:
                self._stream(source, serializer, framing)
            except StuckError:
                # Who is stuck in a handler holds it: closing it would hang too.
                self._handlers.clear()
                raise
            finally:
                # Those that were opened before the mistake showed; the others are closed.
                for _, handler in self._handlers:
                    handler.abort()

    def _opened_source(self) -> EventSource:
        source = open_event_source(self._parameters, self._place.rank, self._place.size)
        # One that waits for what is still to come must hear of the wish to end.
        if interrupt_by := getattr(source, "interrupt_by", None):
            interrupt_by(self._stop)
        self._progress.of_source = lambda: getattr(source, "counts", {})
        return source

    def _stream(self, source: EventSource, serializer: Serializer, framing: Framing) -> None:
        """Open everything else, and let the events go their way."""
        parameters, progress = self._parameters, self._progress
        with ExitStack() as stack:
            extractor = Extractor(parameters, wanted_values(parameters, serializer.labels))
            steps = [Steps(parameters) for _ in range(parameters.workers)]
            progress.missing, progress.skipped = extractor.missing, extractor.skipped
            progress.vetoed = lambda: sum((Counter(each.vetoed) for each in steps), Counter())
            events = self._extracted(source, extractor)
            # The first event shows whether the source has what the data sources name.
            first = list(islice(events, 1))
            checkpoint = self._take_up()
            if checkpoint is not None:
                stack.enter_context(closing(checkpoint))
            pool = BatchPool(serializer.new_batch, self._stop)
            batch_size = parameters.processing_pipeline.batch_size
            may_miss = extractor.may_miss or steps[0].may_miss
            batcher = Batcher(serializer.labels, batch_size, may_miss, pool.take)
            batcher.lasting = bool(getattr(source, "arrays_stay", False))
            sender = Sender(
                serializer, self._handlers, pool, progress, self._stop, framing, checkpoint
            )
            # Why nothing is sent any more, the sender says when it is left.
            with sender, suppress(SendingEndedError):
                outlet = Outlet(batcher, sender)
                processing = self._processing(source, steps, outlet.add)
                figures = StageFigures(pool, processing, sender, Stage())
                self._waited, progress.figures = figures.waited, figures
                quiet.end()
                drive(chain(self._still_wanted(first), events), processing, outlet, figures)

    def _processing(self, source: EventSource, steps: list[Steps], sink: Sink) -> Processing:
        """Return what applies the steps: in threads if that is wanted, or costs no copy."""
        stays = bool(getattr(source, "arrays_stay", False))
        has_steps = bool(self._parameters.processing_pipeline.all_steps())
        if has_steps and (stays or len(steps) > 1):
            return ParallelProcessing(steps, sink, copies=not stays)
        return InlineProcessing(steps[0], sink) if has_steps else NoProcessing(sink)

    # Events.

    def _extracted(self, source: EventSource, extractor: Extractor) -> Iterator[Extracted]:
        """Yield the events that are complete enough, with their values."""
        progress, extract, stop = self._progress, extractor.extract, self._stop
        for event in self._due(self._wanted(source)):
            # Asked for each event: what is behind the property is not.
            if stop.reason:
                return
            values = extract(event)
            progress.read += 1
            if values is None:
                progress.dropped += 1
            else:
                yield event, values

    def _due(self, events: Iterator[Event]) -> Iterator[Event]:
        """Yield the events no faster than configured."""
        config = self._parameters.event_source
        if not (isinstance(config, PacedSource) and config.rate_hz):
            return events
        ranks, waited = self._place.size, lambda seconds: self._waited(seconds)
        return paced(events, config.rate_hz, self._stop, ranks, waited)

    def _wanted(self, source: Iterable[Event]) -> Iterator[Event]:
        """Yield the events that no earlier run has delivered."""
        for event in islice(source, self._options.limit or None):
            if not (self._leaves_out and self._is_delivered(event.index)):
                yield event
                continue
            self._progress.left_out += 1
            # There may be many of them.
            if self._stop.requested:
                return

    def _still_wanted(self, first: list[Extracted]) -> list[Extracted]:
        """Return the event that was read before it was known which ones are wanted."""
        wanted = [each for each in first if not self._is_delivered(each[0].index)]
        self._progress.read -= len(first) - len(wanted)
        self._progress.left_out += len(first) - len(wanted)
        return wanted

    # What earlier runs have delivered.

    def _take_up(self) -> Checkpoint | None:
        """Open the handlers, and find out what need not be sent again.

        Raises:
            InvalidConfigError: a handler cannot be opened, or an earlier run not continued.
        """
        configuration = configuration_hash(self._parameters)
        path = self._options.resume_file
        checkpoint = None if path is None else Checkpoint(path, self._place, configuration)
        for name, handler in open_handlers(self._parameters, self._place):
            self._handlers.append((name, handler))
        for _, handler in self._handlers:
            if hasattr(handler, "prepare"):
                held = handler.prepare(configuration)
                self._held += [] if held is None else [held]
        if checkpoint is not None:
            self._held.append(checkpoint.events)
            checkpoint.open()
        self._leaves_out = bool(self._held or self._options.resume_from)
        return checkpoint

    def _is_delivered(self, index: int) -> bool:
        """Return whether all who remember what they have delivered have this event."""
        if index < self._options.resume_from:
            return True
        return bool(self._held) and all(index in each for each in self._held)


class Outlet:
    """Where events go when they are processed: into batches, and these to who sends them."""

    def __init__(self, batcher: Batcher, sender: Sender) -> None:
        self._add, self._finish, self._put = batcher.add, batcher.finish, sender.put

    def add(self, event: Event, values: Values | None) -> None:
        """Take what became of an event, None if it was dropped.

        Raises:
            SendingEndedError: nothing is sent any more.
        """
        if values is not None:
            for batch in self._add(event, values):
                self._put(batch)

    def finish(self) -> None:
        """Send the batch under way."""
        for batch in self._finish():
            self._put(batch)


def drive(
    events: Iterable[Extracted], processing: Processing, outlet: Outlet, figures: StageFigures
) -> None:
    """Lead events through the steps until there are no more, or nothing is sent any more.

    Raises:
        SendingEndedError: nothing is sent any more.
        LclstreamError: the source or a step failed; what was read before is on its way.
    """
    pool, add = figures.pool, processing.add
    figures.reading.begin()
    try:
        for number, (event, values) in enumerate(events):
            add(event, values)
            if pool.has_ended:
                break
            if not number % EVENTS_A_LAP:
                figures.read()
    finally:
        try:
            processing.finish()
        finally:
            outlet.finish()
            figures.finish()


def wanted_values(parameters: Parameters, labels: tuple[str, ...]) -> list[str]:
    """Return the values that have to be read for some values of the messages.

    Which of them a step needs, it alone knows: then they all are.
    """
    everything = bool(parameters.processing_pipeline.all_steps())
    read = [value.label for value in parameters.values_read]
    return [label for label in read if everything or label in labels]
