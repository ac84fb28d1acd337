"""Tells of a rank while it runs: by HTTP, for Prometheus and as JSON, and on the terminal."""

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, TextIO

from lclstream.core.errors import InvalidConfigError, NotFoundError
from lclstream.core.ledger import TallyModel
from lclstream.core.prometheus import MEDIA_TYPE, metric
from lclstream.streamer.progress import Progress, rates
from lclstream.streamer.rank import Place

logger = logging.getLogger(__name__)

PREFIX = "lclstream_streamer_"
GONE_TIMEOUT_S = 5.0


class MetricsServer:
    """Answers `GET /metrics` for Prometheus, and `GET /v1/statistics` as JSON.

    Resource handling: a context manager; owns a thread and a listening socket.
    """

    def __init__(self, address: str, place: Place, progress: Progress) -> None:
        """Listen.

        Args:
            address: `HOST:PORT`. Port 0 is any that is free; of several ranks each adds its own
                number to another one.
            place: this rank.
            progress: what to tell.

        Raises:
            InvalidConfigError: the address cannot be used.
        """
        host, port = split(address)
        self._progress, self._place = progress, place
        try:
            self._listener = socket.create_server((host, port + place.rank if port else 0))
        except (OSError, OverflowError) as error:
            raise InvalidConfigError(f"cannot listen on {address} for metrics: {error}") from None
        self._listener.setblocking(False)
        self.url = f"http://{host}:{self._listener.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        logger.info("metrics_listening", extra={"url": self.url})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(GONE_TIMEOUT_S)
        self._loop.close()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        # Only who asks for metrics pays for it.
        from lclstream.buffer.http_server import Answer, HttpServer, Request

        async def respond(request: Request) -> Answer:
            if request.method == "GET" and request.path == "/metrics":
                text = prometheus(self._progress)
                return Answer(content=text.encode(), media_type=MEDIA_TYPE)
            if request.method == "GET" and request.path == "/v1/statistics":
                return Answer.of(statistics(self._progress))
            raise NotFoundError(f"no {request.method} {request.path}")

        server = HttpServer(self._listener, respond)
        await server.start()
        await self._end.wait()
        await server.close()


def split(address: str) -> tuple[str, int]:
    """Return host and port of an address.

    Raises:
        InvalidConfigError: it is not of the form `HOST:PORT`.
    """
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise InvalidConfigError(f"the address for metrics must be HOST:PORT, got {address!r}")
    return host.strip("[]"), int(port)


def statistics(progress: Progress) -> dict[str, Any]:
    """Return all figures of a rank."""
    sent = progress.sent
    figures = progress.figures
    return {
        "rank": progress.place.rank,
        "ranks": progress.place.size,
        "running_s": round(progress.running_s, 3),
        "sent": sent.model_dump(),
        "resume_index": progress.resume_index,
        "average": rates(sent, TallyModel(), max(progress.running_s, 1e-3)),
        "counts": progress.counts(),
        "stages": {
            name: {"busy_s": busy_s, "cpu_s": cpu_s}
            for name, (busy_s, cpu_s) in figures.stages().items()
        },
        "queues": {
            name: {"waiting": fill, "room": room} for name, (fill, room) in figures.queues().items()
        },
        "handlers": {
            name: {"messages": taken, "undelivered": undelivered}
            for name, (taken, undelivered) in figures.handlers().items()
        },
    }


def prometheus(progress: Progress) -> str:
    """Return the figures of a rank in Prometheus' text format."""
    return "".join(line + "\n" for line in _lines(progress))


def _lines(progress: Progress) -> Iterator[str]:
    rank = {"rank": str(progress.place.rank)}
    sent, counts = progress.sent, progress.counts()
    totals = {
        "sent_messages": ("Messages that every handler has taken.", sent.messages),
        "sent_bytes": ("Bytes of these messages.", sent.bytes),
        "sent_events": ("Events in these messages.", sent.events),
        "events_read": ("Events that were read.", counts["events_read"]),
        "events_skipped": ("Events dropped as incomplete.", counts["events_skipped"]),
        "events_vetoed": ("Events dropped by a step.", counts["events_vetoed"]),
        "events_left_out": ("Events that an earlier run has delivered.", counts["events_left_out"]),
    }
    for name, (text, value) in totals.items():
        yield from _metric(f"{name}_total", "counter", text, [(rank, value)])
    by_name = {
        "events_without": ("data_source", "Events that lack a reading.", progress.missing),
        "events_skipped_without": (
            "data_source", "Events dropped because they lack a reading.", progress.skipped,
        ),
        "events_vetoed_by": ("step", "Events dropped by a step, one by one.", progress.vetoed()),
        "source": ("what", "What the source has found wrong.", progress.of_source()),
    }  # fmt: skip
    for name, (label, text, found) in by_name.items():
        values = [({**rank, label: key}, float(value)) for key, value in sorted(found.items())]
        yield from _metric(f"{name}_total", "counter", text, values)
    yield from _stage_lines(progress, rank)
    running = [(rank, round(progress.running_s, 3))]
    yield from _metric("running_seconds", "gauge", "Since the beginning.", running)


def _stage_lines(progress: Progress, rank: dict[str, str]) -> Iterator[str]:
    figures = progress.figures
    stages, queues, handlers = figures.stages(), figures.queues(), figures.handlers()
    of_pairs = (
        ("stage_busy_seconds_total", "counter", "Time at work.", "stage", stages, 0),
        ("stage_cpu_seconds_total", "counter", "Processor time.", "stage", stages, 1),
        ("queue_waiting", "gauge", "What waits for a stage.", "queue", queues, 0),
        ("queue_room", "gauge", "Bound on it; 0: none of its own.", "queue", queues, 1),
        ("handler_messages_total", "counter", "Messages taken.", "handler", handlers, 0),
        ("handler_undelivered", "gauge", "Messages that are lost.", "handler", handlers, 1),
    )
    for name, kind, text, label, found, place in of_pairs:
        values = [({**rank, label: key}, float(pair[place])) for key, pair in found.items()]
        yield from _metric(name, kind, text, values)


def _metric(
    name: str, kind: str, text: str, values: list[tuple[dict[str, str], float]]
) -> Iterator[str]:
    return metric(PREFIX + name, kind, text, values) if values else iter(())


class ProgressLines:
    """Writes a line about a rank every few seconds.

    Resource handling: a context manager; owns a thread.
    """

    def __init__(self, progress: Progress, interval_s: float, out: TextIO = sys.stderr) -> None:
        self._progress, self._interval_s, self._out = progress, interval_s, out
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        line = self._line_maker()
        while not self._ended.wait(self._interval_s):
            self._write(line())
        # The last one tells of all that was done.
        self._write(line())

    def _write(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()

    def _line_maker(self) -> Callable[[], str]:
        """Return what makes a line of what was done since the line before."""
        progress = self._progress
        before, busy_before, at = TallyModel(), dict[str, float](), 0.0

        def line() -> str:
            nonlocal before, busy_before, at
            now, sent = progress.running_s, progress.sent
            since_s = max(now - at, 1e-3)
            busy = {name: pair[0] for name, pair in progress.figures.stages().items()}
            speed = rates(sent, before, since_s)
            shares = ", ".join(
                f"{name} {min((seconds - busy_before.get(name, 0.0)) / since_s, 1.0):.0%}"
                for name, seconds in busy.items()
            )
            fills = ", ".join(
                f"{name} {fill}" + (f"/{room}" if room else "")
                for name, (fill, room) in progress.figures.queues().items()
            )
            before, busy_before, at = sent, busy, now
            return (
                f"rank {progress.place.rank} of {progress.place.size}, {now:.0f} s:"
                f" {sent.events} events sent, {speed['events_per_s']:.0f}/s,"
                f" {speed['mb_per_s']:.1f} MB/s; busy: {shares or '-'}; waiting: {fills or '-'}"
            )

        return line
