"""Put the streams of a run together into events.

Streams are joined by equal 64-bit timestamps. Detectors run at different rates, so an event is
the *union* of what the streams have for its timestamp: a stream that has nothing for it takes no
part, and a detector that is absent reads as missing. Whoever wants complete events only says so
with `skip_incomplete_events`, detector by detector.

Where a detector consists of several segments, its reading is there only when every segment that
the run announced is there, and none was damaged in a way that loses data.
"""

from collections.abc import Iterator

import numpy as np

from lclstream.streamer.sources.xtc2_dgram import ShapesData
from lclstream.streamer.sources.xtc2_files import Recording
from lclstream.streamer.sources.xtc2_format import Service
from lclstream.streamer.sources.xtc2_layout import Layout
from lclstream.streamer.sources.xtc2_live import LiveStream
from lclstream.streamer.sources.xtc2_readings import Situation
from lclstream.streamer.sources.xtc2_stream import END, Reading, Stream

_RUN_FIELDS = {"expt", "runnum"}
_L1ACCEPT = int(Service.L1ACCEPT)


class EventBuilder:
    """Merges the streams of a recording in the order of time.

    Iterating yields, for each event, the streams that take part in it: what comes next in them is
    their part, until the next event is asked for. Payloads are not touched. `situation` is what
    holds for the event.

    Resource handling: `close` releases the files.

    Args:
        recording: whose streams.
        reading: how they are read.
    """

    def __init__(self, recording: Recording, reading: Reading) -> None:
        kind = Stream if reading.watch is None else LiveStream
        self.streams = [
            kind(paths, number, reading, is_whole=recording.is_whole)
            for number, paths in enumerate(recording.streams)
        ]
        self._experiment, self._run = recording.experiment, recording.run
        self._run_timestamp = 0
        self._layout, self._reading = Layout((), reading), reading
        self._step = _StepCount()
        self._transitions = self._events = 0
        self.situation = self._current()

    def __iter__(self) -> Iterator[list[Stream]]:
        """Yield the parts of each event.

        Raises:
            DecodeError: a file is damaged.
            NotFoundError: a chunk is missing.
            StoppedError: the end was asked for while we waited for more.
        """
        streams = self.streams
        for stream in streams:
            stream.advance()
        self._configure()
        while True:
            stamps = [stream.timestamp for stream in streams]
            earliest = min(stamps)
            if earliest == END:
                return
            due = [stream for stream in streams if stream.timestamp == earliest]
            transitions = [stream for stream in due if stream.service != _L1ACCEPT]
            if transitions:
                self._apply(transitions)
                due = transitions
            else:
                self._events += 1
                yield due
            for stream in due:
                stream.advance()

    def close(self) -> None:
        """Release the files; what was taken from them stays valid."""
        for stream in self.streams:
            stream.close()

    def _configure(self) -> None:
        """Let every stream say what it has before the first event, whatever the times are."""
        first = [each for each in self.streams if each.timestamp != END]
        first = [each for each in first if each.service == Service.CONFIGURE]
        self._apply(first)
        for stream in first:
            stream.advance()

    def _apply(self, streams: list[Stream]) -> None:
        self._transitions += 1
        for stream in streams:
            with self._reading.going_on("undecodable_transitions"):
                stream.apply(self._transitions)
        for service in {stream.service for stream in streams}:
            if service == Service.CONFIGURE:
                self._layout = Layout(self.streams, self._reading)
            elif service == Service.BEGIN_RUN:
                self._begin_run(streams)
            self._step.after(service, self._events)
        self.situation = self._current()

    def _current(self) -> Situation:
        return Situation(
            self._layout,
            [stream.slow for stream in self.streams],
            experiment=self._experiment,
            run=self._run,
            run_timestamp=self._run_timestamp,
            step=max(0, self._step.number),
        )

    def _begin_run(self, streams: list[Stream]) -> None:
        """Take over what BeginRun says; a file without it keeps what its name says."""
        self._run_timestamp = streams[0].timestamp
        for stream in streams:
            for _, each in stream.slow.values():
                if each.names.detector == "runinfo":
                    with self._reading.going_on("undecodable_transitions"):
                        found = _run_info(each)
                        self._experiment, self._run = found or (self._experiment, self._run)


class _StepCount:
    """Numbers the steps of a run from 0.

    Some runs announce a step twice before it begins, which makes one step.
    """

    def __init__(self) -> None:
        self.number = -1
        self._is_open = False
        self._events = 0

    def after(self, service: int, events: int) -> None:
        """Take note of a transition, and of how many events there were before it."""
        if service == Service.BEGIN_RUN:
            self.number, self._is_open = -1, False
        elif service == Service.BEGIN_STEP:
            if not self._is_open or events != self._events:
                self.number += 1
            self._is_open, self._events = True, events
        elif service in (Service.ENABLE, Service.END_STEP):
            self._is_open = False


def _run_info(contribution: ShapesData) -> tuple[str, int] | None:
    """Return experiment and run; a damaged announcement of them says nothing."""
    if not contribution.names.index.keys() >= _RUN_FIELDS:
        return None
    experiment, run = contribution.value("expt"), contribution.value("runnum")
    is_sound = isinstance(experiment, str) and isinstance(run, np.integer)
    return (experiment, int(run)) if is_sound else None
