"""The peak finding job: from a stream to a result file and a picture."""

import logging
import os
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lclstream.analysis.fields import frames_name, is_present, mask_name, shapes
from lclstream.analysis.finder import PeakFinder
from lclstream.analysis.result import EventResult, ResultWriter
from lclstream.analysis.results import draw_result, read_result
from lclstream.analysis.settings import PeakSettings
from lclstream.client.decode import Batch, Event
from lclstream.client.streams import Stream
from lclstream.core.errors import DecodeError, InvalidConfigError, StreamError
from lclstream.core.ledger import ENV_TRANSFER

logger = logging.getLogger(__name__)

# A detector whose first readings are missing joins the messages later, but not this late.
PATIENCE_MESSAGES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a job leaves behind."""

    result: Path
    picture: Path
    summary: Mapping[str, Any]


class PeakJob:
    """Finds peaks in every event of a stream.

    Args:
        stream: entered by `run`.
        output: folder of the results, made if missing; several consumers may share it.
        settings: limits of the peak finder.
        frames: dataset of the frames; None to choose by itself.
        mask: dataset of the mask, nonzero = good pixel; None to choose by itself.
    """

    def __init__(
        self,
        stream: Stream,
        output: Path,
        settings: PeakSettings,
        *,
        frames: str | None = None,
        mask: str | None = None,
    ) -> None:
        self._stream = stream
        self._output = output
        self._settings = settings
        self._finder = PeakFinder(settings)
        self._wanted = (frames, mask)
        self._chosen: tuple[str, str | None] | None = None
        self._without_frames = 0
        self._seen = ""
        self._run: tuple[str, int | None] = ("", None)
        self._began = time.time()
        self.outcome: Outcome | None = None
        """What was written, also when `run` raises."""

    def run(self) -> Outcome:
        """Work to the end of the stream and write the results.

        The results are in their place before the final report says that all is well.

        Error handling: when the stream breaks, or the job is told to stop, the results of what
        came before are written and marked incomplete; then the error is raised.
        """
        self._output.mkdir(parents=True, exist_ok=True)
        name = f"peaks-{file_name(self._stream.receiver.peer)}"
        with self._stream, ResultWriter(self._output / f"{name}.h5") as writer:
            problem = self._consume(writer)
            summary = self._summary(writer, problem)
            path = writer.finish({**summary, **self._provenance()})
            title = f"{summary['experiment']} run {summary['run']}: {summary['events']} events"
            picture = draw_result(path.with_suffix(".png"), read_result(path), title)
            self.outcome = Outcome(result=path, picture=picture, summary=summary)
            if problem is not None:
                raise problem
        return self.outcome

    def _consume(self, writer: ResultWriter) -> StreamError | None:
        try:
            for batch in self._stream:
                self._add(batch, writer)
        except StreamError as error:
            return error
        if self._without_frames and self._chosen is None:
            raise self._no_frames()
        return None

    def _add(self, batch: Batch, writer: ResultWriter) -> None:
        frames, mask = self._choose(batch)
        if batch.run is not None:
            self._run = (batch.experiment, batch.run)
        for event in batch:
            writer.add(self._find(event, frames, mask, writer))
        totals = writer.totals
        self._stream.stats.update(
            events=totals.events,
            hits=totals.hits,
            hit_rate=round(totals.hit_rate, 4),
            peaks=totals.peaks,
        )

    def _find(
        self, event: Event, frames: str | None, mask: str | None, writer: ResultWriter
    ) -> EventResult:
        peaks = None
        if frames is not None and _is_usable(event, frames, mask):
            good = None if mask is None else event[mask] != 0
            peaks = self._finder.find(event[frames], good)
            writer.image.add(event[frames], good)
        hit = peaks is not None and len(peaks) >= self._settings.min_peaks
        return EventResult(index=event.index, timestamp=event.timestamp, peaks=peaks, hit=hit)

    def _choose(self, batch: Batch) -> tuple[str | None, str | None]:
        """Return the datasets of frames and mask; no frames when this batch has none."""
        if self._chosen is None:
            frames = frames_name(batch, self._wanted[0])
            if frames is None:
                self._seen = shapes(batch.arrays)
                self._without_frames += 1
                if self._without_frames >= PATIENCE_MESSAGES:
                    raise self._no_frames()
                return None, None
            mask = mask_name(batch, frames, self._wanted[1])
            logger.info("datasets_chosen", extra={"frames": frames, "mask": mask})
            self._chosen = (frames, mask)
            self._stream.select([name for name in self._chosen if name is not None])
        frames, mask = self._chosen
        return (
            frames if frames in batch.arrays else None,
            mask if mask in batch.arrays else None,
        )

    def _no_frames(self) -> InvalidConfigError:
        wanted = self._wanted[0]
        what = "an image" if wanted is None else f"named {wanted!r}"
        return InvalidConfigError(f"no dataset of the stream is {what}: {self._seen}")

    def _summary(self, writer: ResultWriter, problem: StreamError | None) -> dict[str, Any]:
        tally = self._stream.tally.snapshot()
        totals = writer.totals
        experiment, run = self._run
        return {
            "experiment": experiment,
            "run": -1 if run is None else run,
            "events": totals.events,
            "missing_frames": totals.missing_frames,
            "hits": totals.hits,
            "hit_rate": round(totals.hit_rate, 6),
            "peaks": totals.peaks,
            "messages": tally.messages,
            "bytes": tally.bytes,
            "digest": tally.digest,
            "damaged_messages": self._stream.damaged,
            "complete": problem is None and not self._stream.damaged,
            "problem": "" if problem is None else str(problem),
            "elapsed_s": round(time.time() - self._began, 3),
        }

    def _provenance(self) -> dict[str, Any]:
        frames, mask = self._chosen or ("", None)
        return {
            "program": f"lclstream {version('lclstream')} analyse peaks",
            "python": platform.python_version(),
            "host": platform.node(),
            "peer": self._stream.receiver.peer,
            "transfer": os.environ.get(ENV_TRANSFER, ""),
            "urls": list(self._stream.receiver.urls),
            "frames": frames,
            "mask": mask or "",
            "settings": self._settings.model_dump(),
            "began": datetime.fromtimestamp(self._began, UTC).isoformat(),
            "ended": datetime.now(UTC).isoformat(),
        }


def _is_usable(event: Event, frames: str, mask: str | None) -> bool:
    """Return whether an event has a frame, and the mask without which it says nothing.

    Raises:
        DecodeError: they do not fit together.
    """
    # With a slash it is the dataset, whatever the data sources are called.
    if not event.is_valid(f"/{frames}") or not is_present(event[frames]):
        return False
    if mask is None:
        return True
    if not event.is_valid(f"/{mask}"):
        return False
    shape, wanted = event[mask].shape, event[frames].shape
    if shape != wanted:
        raise DecodeError(f"the mask {mask} has shape {shape}, the frames {wanted}")
    return True


def file_name(peer: str) -> str:
    """Return the name of a consumer as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", peer).strip("-.")
