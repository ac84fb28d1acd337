"""Receives the messages of a stream and keeps account of them.

A stream ends when every peer has ended it: by closing properly, or by a message of zero length,
which some producers send as a farewell. Behind a buffer nobody knows how many producers there
are, so a farewell only counts when nothing follows it. Inside a transfer the receiver reports
what it got to the transfers service, regularly and at the end; the final report says whether all
was read.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from lclstream.buffer.endpoints import Pull, ReceiveTimeoutError
from lclstream.core.errors import BufferClosedError, EndOfStream, InvalidConfigError, LclstreamError
from lclstream.core.ledger import (
    ENV_DELIVERY,
    ENV_REPORT_URL,
    ENV_URL,
    REPORT_INTERVAL_S,
    Reply,
    Report,
    Reporter,
    Tally,
    peer_name,
)
from lclstream.core.tls import Credentials

logger = logging.getLogger(__name__)

# How soon a request to stop is seen while no message comes.
LOOK_S = 0.2
# Other producers behind the same address may go on after one has said farewell.
FAREWELL_SILENCE_S = 2.0

Stats = dict[str, float | int | str]


def in_transfer() -> bool:
    """Return whether this process is a job of a transfer, to which a receiver reports."""
    return bool(os.environ.get(ENV_REPORT_URL))


def url_from_environment() -> str:
    """Return the URL that a transfer gave this job to pull from.

    Raises:
        InvalidConfigError: this is no job of a transfer.
    """
    url = os.environ.get(ENV_URL, "")
    if not url:
        raise InvalidConfigError(f"no URL to pull from: give one, or set {ENV_URL}")
    return url


class Receiver:
    """The receiving end of a stream.

    Call `recv` for the next message and `count` when it has been dealt with; leave the context
    to send the final report. Iterating does `recv` and counts each message without looking
    into it.

    Resource handling: a context manager; owns its sockets and, inside a transfer, one thread
    that reports.

    Error handling: leaving the context with an exception, before the end of the stream, or
    after damaged messages makes the final report a failure that says why.

    Args:
        urls: one address or several; None takes the one of the transfer that this job is in.
        listen: wait for producers at the addresses instead of dialling.
        peers: when listening, how many producers must have come before the end of all is the end;
            when dialling, how many connections to make to each address.
        label: first part of the name under which it reports.
        timeout_s: the longest silence before `recv` raises; None waits as long as it takes.
        report_url: where to report; None reports to the transfer that this job is in, if any and
            if the stream is that transfer's.
        credentials: who reports there.
        acknowledge: whether to tell the buffer which messages are dealt with, which is when the
            next one is asked for: what is not goes to another consumer if this one dies. None:
            as the transfer that this job is in has it.
    """

    def __init__(
        self,
        urls: str | Sequence[str] | None = None,
        *,
        listen: bool = False,
        peers: int = 1,
        label: str = "consumer",
        timeout_s: float | None = None,
        report_url: str | None = None,
        credentials: Credentials | None = None,
        acknowledge: bool | None = None,
    ) -> None:
        if (report_url is None) != (credentials is None):
            raise InvalidConfigError("report_url and credentials go together")
        given = url_from_environment() if urls is None else urls
        addresses = [given] if isinstance(given, str) else list(given)
        self.peer = peer_name(label)
        self.stats: Stats = {}
        """More live figures for the reports; names carry their units."""
        self.damaged = 0
        """Messages that could not be decoded."""
        self.ended = False
        """Whether the end of the stream was reached."""
        self._timeout_s = timeout_s
        self._report_to = (report_url, credentials)
        # A job may read another stream besides; that is not for its transfer's account.
        own = os.environ.get(ENV_URL)
        self._elsewhere = bool(own) and own not in addresses
        self._stopped = ""
        self._drained = False
        self._farewells = 0
        self._farewell_at = 0.0
        self._enough_farewells = peers if listen else peers * len(addresses)
        self._tally = Tally()
        self._lock = threading.Lock()
        self._began = self._last = time.monotonic()
        self._reported = (self._began, 0)
        self._resources = ExitStack()
        self._reporter: Reporter | None = None
        if acknowledge is None:
            delivery = os.environ.get(ENV_DELIVERY, "")
            acknowledge = delivery == "safe" and not (listen or self._elsewhere)
        self._acknowledges = acknowledge
        self._pull = Pull(
            addresses if listen else addresses * peers,
            listen=listen,
            peers=peers,
            acknowledge=acknowledge,
        )
        self._resources.callback(self._pull.close)

    @property
    def urls(self) -> Sequence[str]:
        """The addresses, with the real port in place of 0."""
        return self._pull.urls

    @property
    def tally(self) -> Tally:
        """A copy of what was counted so far."""
        with self._lock:
            tally = Tally()
            tally.merge(self._tally)
            return tally

    def __enter__(self) -> Self:
        try:
            self._reporter = self._make_reporter()
            if self._reporter is not None:
                self._resources.enter_context(self._reporter)
        except BaseException:
            self._resources.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._resources:
            self._pull.close()
            if self._reporter is None:
                return
            report = self.report(final=True, problem=self._problem(error))
            try:
                self._reporter.finish(report)
            except LclstreamError:
                if error is None:
                    raise
                # The error that is on its way says more.
                logger.exception("final_report_failed")

    def __iter__(self) -> Iterator[memoryview]:
        while True:
            try:
                payload = self.recv()
            except EndOfStream:
                return
            if not self._acknowledges:
                self.count(payload)
            yield payload
            if self._acknowledges:
                # Who leaves the loop before leaves this one to another consumer.
                self.count(payload)

    def recv(self) -> memoryview:
        """Return the next message.

        Raises:
            EndOfStream: every peer has ended the stream.
            BufferClosedError: the stream broke, or `stop` was called.
            ReceiveTimeoutError: nothing came within `timeout_s`.
        """
        silent_since = time.monotonic()
        while True:
            if self._stopped:
                raise BufferClosedError(f"stopped before the end of the stream: {self._stopped}")
            try:
                payload = self._pull.recv(LOOK_S)
            except ReceiveTimeoutError:
                if self._drained and not self._pull.connections:
                    # The others took all of it before this consumer came.
                    self.ended = True
                    raise EndOfStream("the stream had ended already") from None
                silence_s = time.monotonic() - max(self._farewell_at, self._last)
                if self._farewells >= self._enough_farewells and silence_s > FAREWELL_SILENCE_S:
                    self.ended = True
                    raise EndOfStream("every peer has said farewell") from None
                if self._timeout_s and time.monotonic() - silent_since > self._timeout_s:
                    raise ReceiveTimeoutError(f"no message within {self._timeout_s} s") from None
            except EndOfStream:
                self.ended = True
                raise
            else:
                if payload:
                    return payload
                self._farewells += 1
                self._farewell_at = time.monotonic()

    def count(self, payload: memoryview | bytes, events: int = 0) -> None:
        """Account for one message that was received."""
        with self._lock:
            self._tally.add(payload, events)
            self._last = time.monotonic()

    def count_damaged(self) -> None:
        """Remember that a message that was counted could not be decoded."""
        self.damaged += 1

    def stop(self, reason: str) -> None:
        """Make `recv` raise soon; may be called from a signal handler or another thread."""
        self._stopped = reason

    def report(self, *, final: bool = False, problem: str = "") -> Report:
        """Return what is reported to the transfers service."""
        with self._lock:
            received = self._tally.snapshot()
            silence_s = time.monotonic() - self._last
        now = time.monotonic()
        before, bytes_before = self._reported
        self._reported = (now, received.bytes)
        stats: Stats = {
            "bytes_per_s": round((received.bytes - bytes_before) / max(now - before, 1e-3)),
            "silence_s": round(silence_s, 3),
            "damaged_messages": self.damaged,
        }
        return Report(
            hop="consumer",
            peer=self.peer,
            final=final,
            ok=not problem,
            error=problem[:10_000],
            received=received,
            stats=stats | self.stats,
        )

    def _problem(self, error: BaseException | None) -> str:
        if isinstance(error, LclstreamError):
            return str(error)
        # GeneratorExit: a loop over the stream was left.
        if error is not None and not isinstance(error, GeneratorExit):
            return f"{type(error).__name__}: {error}"
        if not self.ended:
            return "the consumer left before the end of the stream"
        return f"{self.damaged} damaged messages" if self.damaged else ""

    def _make_reporter(self) -> Reporter | None:
        url, credentials = self._report_to
        if url is not None and credentials is not None:
            return Reporter(url, credentials, self.report, self._obey, REPORT_INTERVAL_S)
        if self._elsewhere:
            logger.info("stream_not_of_this_transfer", extra={"urls": list(self.urls)})
            return None
        return Reporter.from_environment(self.report, self._obey)

    def _obey(self, reply: Reply) -> None:
        if reply.command == "stop":
            self.stop(f"the transfers service says so: {reply.reason or 'no reason given'}")
        # To a consumer: the buffer has given out everything and is gone.
        self._drained = reply.command == "drain"
