"""One rank of the streamer as a process: signals, reports to the transfer, exit code."""

import logging
import os
import sys
import threading
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from lclstream.core.errors import LclstreamError
from lclstream.core.ledger import Reply, Reporter
from lclstream.streamer.config import Parameters
from lclstream.streamer.execution.options import RunOptions
from lclstream.streamer.execution.sender import StuckError
from lclstream.streamer.pipeline import NO_OPTIONS, Pipeline
from lclstream.streamer.progress import Progress
from lclstream.streamer.rank import Place
from lclstream.streamer.stopping import StopRequest

logger = logging.getLogger(__name__)

# As shells report a process that a signal ended.
EXIT_SIGNAL = 128


def run_rank(parameters: Parameters, place: Place, options: RunOptions = NO_OPTIONS) -> int:
    """Stream this rank's events and return the exit code.

    In a job of a transfer it reports as a producer and obeys the replies. The first SIGTERM or
    SIGINT ends the run after the batch under way, which is still delivered; since not
    everything was streamed, the run then counts as failed.

    Args:
        parameters: the configuration.
        place: rank and number of ranks.
        options: what the command line adds.

    Returns:
        0 everything, or as much as the transfer wanted, is delivered; 128 + number of the signal
        that ended the run.

    Raises:
        LclstreamError: the run failed; the transfer was told, if it could be reached.
    """
    progress = Progress(place)
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        if threading.current_thread() is threading.main_thread():
            stack.enter_context(stop.on_signals())
        reporter = Reporter.from_environment(progress.report, lambda reply: obey(reply, stop))
        if reporter is not None:
            stack.enter_context(reporter)
        if options.metrics:
            stack.enter_context(metrics_server(options.metrics, place, progress))
        lines = progress_lines(progress, options.progress_s)
        try:
            with lines:
                Pipeline(parameters, place, progress, stop, options).run()
        except BaseException as error:
            _tell_failure(reporter, progress, error)
            if isinstance(error, StuckError):
                _leave_at_once(error)
            raise
        failure = _ended_by_signal(stop, progress)
        if reporter is not None:
            reporter.finish(progress.final_report(failure, stop.reason))
        _log_end(place, progress, stop)
        return EXIT_SIGNAL + stop.signal_number if failure else 0


def metrics_server(address: str, place: Place, progress: Progress) -> AbstractContextManager[Any]:
    """Return what tells of the rank by HTTP.

    Raises:
        InvalidConfigError: the address cannot be used.
    """
    from lclstream.streamer.metrics import MetricsServer

    return MetricsServer(address, place, progress)


def progress_lines(progress: Progress, interval_s: float) -> AbstractContextManager[Any]:
    """Return what tells of the rank on the terminal; nothing does if the interval is 0."""
    if not interval_s:
        return nullcontext()
    from lclstream.streamer.metrics import ProgressLines

    return ProgressLines(progress, interval_s)


def obey(reply: Reply, stop: StopRequest) -> None:
    """Do what the transfers service wants."""
    if reply.command != "continue" and not (stop.requested and reply.command == "drain"):
        reason = reply.reason or f"the transfer said {reply.command}"
        stop.request(reason, now=reply.command == "stop")


def _ended_by_signal(stop: StopRequest, progress: Progress) -> str:
    # A reason that came before the signal was not the signal's.
    if not stop.signal_number or stop.reason not in ("SIGTERM", "SIGINT"):
        return ""
    return f"ended by {stop.reason} after {progress.sent.events} events"


def _tell_failure(reporter: Reporter | None, progress: Progress, error: BaseException) -> None:
    if reporter is None:
        return
    text = str(error) or type(error).__name__
    try:
        reporter.finish(progress.final_report(text))
    except LclstreamError as unreported:
        # The error that is on its way matters more.
        logger.warning("final_report_failed", extra={"reason": str(unreported)})


def _log_end(place: Place, progress: Progress, stop: StopRequest) -> None:
    report = progress.final_report(note=stop.reason)
    sent = progress.sent
    logger.info(
        "rank_finished",
        extra={
            "rank": place.rank, "messages": sent.messages, "bytes": sent.bytes,
            "events": sent.events, "digest": sent.digest, **report.stats,
        },
    )  # fmt: skip


def _leave_at_once(error: StuckError) -> None:
    """End the process although a thread of it hangs in a socket."""
    logger.error("left_at_once", extra={"reason": str(error)})
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)
