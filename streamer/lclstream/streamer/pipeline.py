"""Moves events from their source to the handlers, within bounded memory."""

from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import chain, islice

from lclstream.streamer.batching import Batcher
from lclstream.streamer.config import Parameters
from lclstream.streamer.config.event_sources import PacedSource
from lclstream.streamer.data_sources import Extractor
from lclstream.streamer.events import Event, EventSource, open_event_source
from lclstream.streamer.execution.pool import BatchPool, SendingEndedError
from lclstream.streamer.execution.processing import InlineProcessing, ParallelProcessing, Sink
from lclstream.streamer.execution.sender import Sender, StuckError
from lclstream.streamer.handlers import Handler, open_handlers
from lclstream.streamer.pacing import paced
from lclstream.streamer.progress import Progress
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers import open_serializer
from lclstream.streamer.steps import Steps
from lclstream.streamer.stopping import StopRequest
from lclstream.streamer.values import Values


class Pipeline:
    """One rank's way from the source to the handlers.

    Error handling: when the source or a step fails, what was read before is still delivered. When
    a handler fails, nothing more is read, and the others deliver what was. The error is raised by
    `run` in the end.
    """

    def __init__(
        self, parameters: Parameters, place: Place, progress: Progress, stop: StopRequest
    ) -> None:
        self._parameters, self._place = parameters, place
        self._progress, self._stop = progress, stop
        self._handlers: list[tuple[str, Handler]] = []

    def run(self, limit: int = 0) -> None:
        """Stream until the source ends or the end is asked for; all is delivered on return.

        Args:
            limit: events that this rank reads at most; 0 = all.

        Raises:
            InvalidConfigError: something cannot be opened; mistakes show before anything is
                connected.
            DeliveryError: messages could not be delivered; says how many.
        """
        source = open_event_source(self._parameters, self._place.rank, self._place.size)
        with closing(source):
            # One that waits for what is still to come must hear of the wish to end.
            if interrupt_by := getattr(source, "interrupt_by", None):
                interrupt_by(self._stop)
            try:
                self._stream(source, limit)
            except StuckError:
                # Who is stuck in a handler holds it: closing it would hang too.
                self._handlers.clear()
                raise
            finally:
                # Those that were opened before the mistake showed; the others are closed.
                for _, handler in self._handlers:
                    handler.abort()

    def _stream(self, source: EventSource, limit: int) -> None:
        parameters = self._parameters
        with closing(open_serializer(parameters, self._place)) as serializer:
            extractor = Extractor(parameters, wanted_sources(parameters, serializer.labels))
            steps = [Steps(parameters) for _ in range(parameters.workers)]
            events = self._extracted(source, extractor, limit)
            # The first event shows whether the source has what the data sources name.
            first = list(islice(events, 1))
            self._handlers += open_handlers(parameters, self._place)
            pool = BatchPool(serializer.new_batch, self._stop)
            batch_size = parameters.processing_pipeline.batch_size
            batcher = Batcher(serializer.labels, batch_size, extractor.may_miss, pool.take)
            with (
                Sender(serializer, self._handlers, pool, self._progress, self._stop) as sender,
                # Why nothing is sent any more, the sender says when it is left.
                suppress(SendingEndedError),
            ):

                def hand_on(event: Event, values: Values | None) -> None:
                    for batch in () if values is None else batcher.add(event, values):
                        sender.put(batch)

                processing = self._processing(source, steps, hand_on)
                try:
                    for event, values in chain(first, events):
                        processing.add(event, values)
                        if pool.has_ended:
                            break
                finally:
                    try:
                        processing.finish()
                    finally:
                        for batch in batcher.finish():
                            sender.put(batch)

    def _processing(
        self, source: EventSource, steps: list[Steps], sink: Sink
    ) -> InlineProcessing | ParallelProcessing:
        """Return what applies the steps: in threads if that is wanted, or costs no copy."""
        stays = bool(getattr(source, "arrays_stay", False))
        has_steps = bool(self._parameters.processing_pipeline.all_steps())
        if has_steps and (stays or len(steps) > 1):
            return ParallelProcessing(steps, sink, copies=not stays)
        return InlineProcessing(steps[0], sink)

    def _extracted(
        self, source: EventSource, extractor: Extractor, limit: int
    ) -> Iterator[tuple[Event, Values]]:
        """Yield the events that are complete enough, with their values."""
        for event in paced(islice(source, limit or None), self._rate_hz, self._stop):
            values = extractor.extract(event)
            self._progress.read(dropped=values is None, missing=extractor.skipped)
            if values is not None:
                yield event, values

    @property
    def _rate_hz(self) -> float:
        config = self._parameters.event_source
        return config.rate_hz if isinstance(config, PacedSource) else 0.0


def wanted_sources(parameters: Parameters, labels: tuple[str, ...]) -> list[str]:
    """Return the data sources that have to be read for some values of the messages.

    Which of them a step needs, it alone knows: then they all are.
    """
    everything = bool(parameters.processing_pipeline.all_steps())
    return [name for name in parameters.data_sources if everything or name in labels]
