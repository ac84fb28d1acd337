"""The verifying job: from a stream to findings, and a recording if wanted."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lclstream.analysis.peaks import file_name
from lclstream.analysis.recorder import Recorder
from lclstream.analysis.verify import Expectation, Verifier
from lclstream.client.streams import Stream
from lclstream.core.errors import StreamError
from lclstream.core.files import write_atomically
from lclstream.streamer.config import load_parameters


class VerifyJob:
    """Verifies every event of a stream.

    Args:
        stream: entered by `run`.
        output: folder of the findings, made if missing; several consumers may share it.
        config: the streamer's configuration file; None only looks for duplicates.
        record: whether to keep all events in an HDF5 file.
    """

    def __init__(
        self, stream: Stream, output: Path, config: Path | None, *, record: bool = False
    ) -> None:
        expectation = None if config is None else Expectation(load_parameters(config))
        self._stream = stream
        self._output = output
        self._record = record
        self._verifier = Verifier(expectation)
        self._problem = ""
        self.written: list[Path] = []
        """The files that `run` has written, also when it raises."""

    def run(self) -> None:
        """Work to the end of the stream.

        Error handling: findings are written when the stream breaks, too; then the error is
        raised. Events that differ raise nothing, see `ok`.
        """
        self._output.mkdir(parents=True, exist_ok=True)
        name = file_name(self._stream.receiver.peer)
        with self._stream, ExitStack() as resources:
            recorder = None
            if self._record:
                recorder = Recorder(self._output / f"events-{name}.h5")
                resources.enter_context(recorder)
            problem = self._consume(recorder)
            if recorder is not None:
                self.written.append(recorder.finish())
            path = self._output / f"verify-{name}.json"
            write_atomically(path, json.dumps(self.summary).encode() + b"\n")
            self.written.append(path)
            if problem is not None:
                raise problem

    @property
    def ok(self) -> bool:
        """Whether all events have come once and unchanged."""
        return self._verifier.findings.ok and not self._stream.damaged and not self._problem

    @property
    def summary(self) -> Mapping[str, Any]:
        """What was found, as JSON data."""
        tally = self._stream.tally.snapshot()
        return {
            "ok": self.ok,
            "problem": self._problem,
            **self._verifier.findings.summary(),
            "messages": tally.messages,
            "bytes": tally.bytes,
            "digest": tally.digest,
            "damaged_messages": self._stream.damaged,
        }

    def _consume(self, recorder: Recorder | None) -> StreamError | None:
        findings = self._verifier.findings
        try:
            for batch in self._stream:
                self._verifier.add(batch)
                if recorder is not None:
                    recorder.add(batch)
                self._stream.stats.update(
                    verified=findings.verified,
                    different=findings.different,
                    duplicates=findings.duplicates,
                )
        except StreamError as error:
            self._problem = str(error)
            return error
        return None
