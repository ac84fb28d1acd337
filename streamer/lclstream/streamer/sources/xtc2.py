"""Events from XTC2 files, without psana and without SLAC's network."""

from collections.abc import Iterator
from itertools import count

from lclstream.streamer.config import Parameters
from lclstream.streamer.config.data_sources import wanted_readings
from lclstream.streamer.events import Event
from lclstream.streamer.sources.xtc2_events import EventBuilder, Stream, Xtc2Readings
from lclstream.streamer.sources.xtc2_files import select


class Xtc2EventSource:
    """Reads all runs of the files that `source_identifier` names.

    Every rank walks the headers of all events and takes those whose index is its own; the
    payload of the others is never read.

    Error handling: `DecodeError` with file and byte when a file is damaged. A file whose end was
    cut off ends before it, with the warning `xtc2_truncated`.
    """

    def __init__(self, parameters: Parameters, rank: int, size: int) -> None:
        """Look into every file: is there what the data sources ask for?

        Raises:
            InvalidConfigError: a file is not there, or a detector or field is in none.
        """
        self._selection = select(parameters.source_identifier)
        self._rank, self._size = rank, size
        for recording in self._selection.recordings:
            builder = EventBuilder(recording)
            # What a run has is known when its first event comes.
            if next(iter(builder), None) is not None:
                for name, field in wanted_readings(parameters.data_sources):
                    builder.layout.require(name, field)

    def __iter__(self) -> Iterator[Event]:
        """Yield this rank's share, in the order of time within each run."""
        for index, builder, streams in self._numbered():
            if index % self._size != self._rank:
                continue
            dgrams = [each.head for each in streams if each.head is not None]
            slow = [each.slow for each in builder.streams]
            yield Event(
                timestamp=dgrams[0].timestamp,
                index=index,
                run=builder.run,
                experiment=builder.experiment,
                run_timestamp=builder.run_timestamp,
                readings=Xtc2Readings(builder.layout, dgrams, slow),
            )

    def _numbered(self) -> Iterator[tuple[int, EventBuilder, list[Stream]]]:
        """Yield the index of each event, its builder, and the streams that take part in it."""
        numbers = count()
        for recording in self._selection.recordings:
            builder = EventBuilder(recording)
            for streams in builder:
                index = next(numbers)
                if 0 < self._selection.max_events <= index:
                    return
                yield index, builder, streams

    def close(self) -> None:
        """Do nothing: the maps of the files go with the last event that uses them."""
