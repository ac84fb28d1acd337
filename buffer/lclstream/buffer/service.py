"""The buffer as a process: signals, ready file, reports to the transfer, exit code."""

import json
import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lclstream.buffer.config import BufferConfig
from lclstream.buffer.relay import Buffer
from lclstream.buffer.statistics import Statistics
from lclstream.core.errors import LclstreamError
from lclstream.core.files import announce
from lclstream.core.ledger import Addresses, Reply, Report, Reporter, TallyModel, peer_name

logger = logging.getLogger(__name__)

COMPLETE = 0
INCOMPLETE = 1
# A rate over less than this says nothing.
RATE_INTERVAL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """What the process does beside buffering."""

    ready_file: Path | None = None
    """Gets one JSON object with the addresses when the buffer listens."""
    term_timeout_s: float = 25.0
    """How long SIGTERM lets it drain; SLURM kills 30 s after that signal."""


class Rates:
    """Bytes and messages per second between two looks."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._received = self._sent = TallyModel()
        self._last: dict[str, float] = {}

    def update(self, now: Statistics) -> dict[str, float]:
        """Return the rates since the look before."""
        moment = time.monotonic()
        seconds = moment - self._at
        if seconds < RATE_INTERVAL_S:
            return self._last
        self._last = {
            "in_bytes_per_s": (now.received.bytes - self._received.bytes) / seconds,
            "out_bytes_per_s": (now.sent.bytes - self._sent.bytes) / seconds,
            "in_messages_per_s": (now.received.messages - self._received.messages) / seconds,
            "out_messages_per_s": (now.sent.messages - self._sent.messages) / seconds,
        }
        self._at, self._received, self._sent = moment, now.received, now.sent
        return self._last


class BufferService:
    """Runs one buffer to its end, as a job of a transfer or alone."""

    def __init__(self, config: BufferConfig, service: ServiceConfig) -> None:
        self._buffer = Buffer(config)
        self._service = service
        self._rates = Rates()
        self._peer = peer_name("buffer")
        self._terminations = 0

    def run(self, output: TextIO = sys.stdout) -> int:
        """Serve until the end and print the final report.

        Returns:
            0 if everything received was delivered, else 1.

        Raises:
            LclstreamError: the transfer does not take the final report.
        """
        with self._buffer, self._signals():
            self._announce()
            reporter = Reporter.from_environment(self.report, self.obey)
            if reporter is None:
                self._buffer.wait()
            else:
                with reporter:
                    self._buffer.wait()
                    self._print(output)
                    reporter.finish(self.report())
                return self._code()
        self._print(output)
        return self._code()

    def report(self) -> Report:
        """Return the buffer's part of the ledger as it is now."""
        ended = self._buffer.has_ended
        now = self._buffer.statistics()
        ok = self._buffer.is_complete or not ended
        return Report(
            hop="buffer",
            peer=self._peer,
            final=ended,
            ok=ok,
            error="" if ok else self._fault(now),
            received=now.received,
            sent=now.sent,
            addresses=Addresses.model_validate(self._addresses()),
            stats={**now.flat(), **self._rates.update(now)},
        )

    def obey(self, reply: Reply) -> None:
        """Do what the transfer wants; it says so again and again."""
        if reply.command == "drain":
            self._buffer.drain(reply.reason or "the transfer has no more producers")
        elif reply.command == "stop":
            self._buffer.stop(reply.reason or "the transfer has ended")

    def _addresses(self) -> dict[str, list[str]]:
        return {"in": list(self._buffer.push_urls), "out": list(self._buffer.pull_urls)}

    def _announce(self) -> None:
        announce(self._service.ready_file, self._addresses())
        logger.info("buffer_listening", extra=self._addresses())

    @contextmanager
    def _signals(self) -> Iterator[None]:
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        """Record and wake, nothing else: the interrupted code may hold any lock."""
        del frame
        self._terminations += 1
        name = signal.Signals(number).name
        if self._terminations == 1:
            self._buffer.drain(name, self._service.term_timeout_s)
        else:
            self._buffer.stop(f"{name} again")

    def _print(self, output: TextIO) -> None:
        json.dump(self._summary(), output)
        output.write("\n")
        output.flush()

    def _summary(self) -> dict[str, Any]:
        now = self._buffer.statistics()
        complete = self._buffer.is_complete
        return {
            "complete": complete,
            "error": "" if complete else self._fault(now),
            "addresses": self._addresses(),
            **now.whole(),
        }

    def _fault(self, now: Statistics) -> str:
        return "; ".join([*now.counters.faults(), f"ended because: {now.reason}"])

    def _code(self) -> int:
        return COMPLETE if self._buffer.is_complete else INCOMPLETE


def serve(config: BufferConfig, service: ServiceConfig) -> int:
    """Run a buffer as the whole process and return its exit code.

    Raises:
        InvalidConfigError: an address cannot be bound.
    """
    try:
        return BufferService(config, service).run()
    except LclstreamError:
        logger.exception("buffer_failed")
        raise
