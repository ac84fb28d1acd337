"""Events from XTC2 files, without psana and without SLAC's network."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import Parameters, Xtc2EventSourceConfig
from lclstream.streamer.config.data_sources import wanted_readings
from lclstream.streamer.events import Event
from lclstream.streamer.sources.calibrated import Calibration
from lclstream.streamer.sources.xtc2_events import EventBuilder
from lclstream.streamer.sources.xtc2_files import Recording, Search, select
from lclstream.streamer.sources.xtc2_live import awaited, present
from lclstream.streamer.sources.xtc2_readings import Xtc2Readings
from lclstream.streamer.sources.xtc2_stream import Reading, Stream
from lclstream.streamer.sources.xtc2_watch import Stop, StoppedError, Watch

logger = logging.getLogger(__name__)


class Xtc2EventSource:
    """Reads all runs of the files that `source_identifier` names.

    Every rank walks the headers of all events, or the index beside the files, and takes those
    whose index is its own; the payload of the others is never read.

    Resource handling: `close` releases the files; what was taken from mapped ones stays valid.

    Error handling: `DecodeError` with file and byte when a file is damaged. A file whose end was
    cut off ends before it, with the warning `xtc2_truncated`. `counts` says how often what was
    found wrong.
    """

    arrays_stay: ClassVar[bool] = True
    """What was read from an event is valid as long as it is held."""

    def __init__(self, parameters: Parameters, rank: int, size: int) -> None:
        """Look into every file that is there: has it what the data sources ask for?

        Raises:
            InvalidConfigError: a file is not there, or a detector or field is in none, or its
                calibration constants are missing.
            DecodeError: the beginning of a file is damaged.
        """
        config = parameters.event_source
        if not isinstance(config, Xtc2EventSourceConfig):
            raise InvalidConfigError(f"not an Xtc2EventSource: {config.type}")
        self._config, self._rank, self._size = config, rank, size
        self._selection = select(parameters.source_identifier, is_live=config.live)
        self._watch = Watch(config.live_timeout_s) if self._selection.is_live else None
        self._reading = Reading(
            access=config.access,
            is_share=size > 1 or config.first_event > 0,
            use_index=config.use_index,
            watch=self._watch,
            keep_damaged=config.damaged == "keep",
            skip_errors=config.on_error == "skip",
        )
        self._calibration = Calibration(config.calibration)
        self._builder: EventBuilder | None = None
        wanted = wanted_readings(parameters.data_sources)
        # Of what is still to come nothing is known; the first event will show.
        if self._watch is None and wanted:
            self._look(wanted)

    @property
    def counts(self) -> Mapping[str, int]:
        """What was found wrong so far, and how often: files, readings, waits."""
        return dict(self._reading.counts)

    def interrupt_by(self, stop: Stop) -> None:
        """Let a wish to end cut short every wait for what is still being recorded."""
        if self._watch is not None:
            self._watch.interrupt_by(stop)

    def __iter__(self) -> Iterator[Event]:
        """Yield this rank's share, in the order of time within each run.

        Raises:
            DecodeError: a file is damaged.
            NotFoundError: a chunk is missing, or a run did not begin within the time limit.
        """
        rank, size, reading = self._rank, self._size, self._reading
        first, end = self._config.first_event, self._selection.max_events or float("inf")
        index = -1
        try:
            for recording in self._recordings():
                self._builder = builder = EventBuilder(recording, reading)
                for streams in builder:
                    index += 1
                    if index % size == rank and index >= first:
                        yield self._event(index, builder, streams)
                    # Without a look at the next, which may have to be waited for.
                    if index + 1 >= end:
                        return
                builder.close()
        except StoppedError:
            logger.info("xtc2_stopped_while_waiting", extra={"events": index + 1})
        finally:
            self.close()

    def close(self) -> None:
        """Release the files."""
        if self._builder is not None:
            self._builder.close()

    def _look(self, wanted: list[tuple[str, str]]) -> None:
        for recording in self._selection.recordings:
            # What is wrong is counted when it is read.
            builder = EventBuilder(recording, replace(self._reading, counts=Counter()))
            # What a run has is known when its first event comes.
            if next(iter(builder), None) is not None:
                for name, field in wanted:
                    self._calibration.require(builder.situation, name, field)
            builder.close()

    def _event(self, index: int, builder: EventBuilder, streams: list[Stream]) -> Event:
        situation = builder.situation
        dgrams = {stream.number: stream.dgram() for stream in streams}
        readings = Xtc2Readings(situation, dgrams, self._reading)
        return Event(
            timestamp=streams[0].timestamp,
            index=index,
            run=situation.run,
            experiment=situation.experiment,
            run_timestamp=situation.run_timestamp,
            step=situation.step,
            # What is not calibrated takes no way around.
            readings=self._calibration.readings(situation, readings)
            if self._config.calibration
            else readings,
        )

    def _recordings(self) -> Iterator[Recording]:
        """Yield the runs, those that are still to come when they have begun."""
        yield from self._selection.recordings
        for search in self._selection.searches:
            if self._watch is not None:
                recording = awaited(search, self._watch, self._config.live_streams)
                yield recording
                self._check_whole(search, recording)

    def _check_whole(self, search: Search, read: Recording) -> None:
        """Say it when a stream began so late that we did not see it."""
        there = present(search)
        missed = len(there.streams) - len(read.streams) if there else 0
        if missed > 0:
            extra = {"experiment": search.experiment, "run": search.run, "streams": missed}
            logger.warning("xtc2_streams_missed", extra=extra)
            self._reading.counts["streams_missed"] += missed
