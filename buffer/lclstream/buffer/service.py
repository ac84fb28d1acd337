"""The buffer as a process: lanes, signals, control, ready file, reports to the transfer."""

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lclstream.buffer.config import BufferConfig
from lclstream.buffer.control_address import ControlAddress
from lclstream.buffer.control_plane import ControlPlane
from lclstream.buffer.ending import Action
from lclstream.buffer.forward import Forwarder
from lclstream.buffer.forward import check as check_forward
from lclstream.buffer.journal import check_free, on_remembered_ports, remember_ports
from lclstream.buffer.lanes import Lanes
from lclstream.buffer.metrics import Rates
from lclstream.buffer.peers import Side
from lclstream.buffer.reception import Reception
from lclstream.buffer.statistics import Statistics
from lclstream.core.errors import InvalidConfigError, LclstreamError
from lclstream.core.files import announce
from lclstream.core.ledger import Addresses, Reply, Report, Reporter, peer_name
from lclstream.core.tls import Credentials

logger = logging.getLogger(__name__)

COMPLETE = 0
INCOMPLETE = 1
# The reporter's thread asks for figures; a lane answers within a millisecond.
SNAPSHOT_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """What the process does beside buffering.

    Raises:
        InvalidConfigError: it cannot be done.
    """

    ready_file: Path | None = None
    """Gets one JSON object with the addresses when the buffer listens."""
    term_timeout_s: float = 25.0
    """How long SIGTERM lets it drain; SLURM kills 30 s after that signal."""
    lanes: int = 1
    """Processes that messages go through."""
    identity: Path | None = None
    """Folder with the certificate that peers and watchers are shown."""
    control: tuple[ControlAddress, ...] = ()
    """Where to be watched and told what to do."""
    controllers: tuple[str, ...] = ()
    """Names in certificates of those who may tell it over HTTPS."""

    def __post_init__(self) -> None:
        if self.lanes < 1:
            raise InvalidConfigError(f"lanes must be >= 1, got {self.lanes}")


class BufferService:
    """Runs one buffer to its end, as a job of a transfer or alone.

    Raises:
        InvalidConfigError: an address cannot be bound.
    """

    def __init__(self, config: BufferConfig, service: ServiceConfig) -> None:
        if config.durable is not None and service.lanes > 1:
            raise InvalidConfigError(
                "durable needs one lane: leave --lanes out, or run several buffers"
            )
        credentials = None
        if service.identity is not None:
            credentials = Credentials.from_folder(service.identity)
            # Better now than in the lanes.
            credentials.server_context()
        self._config = config
        self._service = service
        self._rates = Rates()
        self._peer = peer_name("buffer")
        self._terminations = 0
        self._ended = False
        self._loop: asyncio.AbstractEventLoop
        self._lanes: Lanes
        self._forwarder: Forwarder | None = None
        check_forward(config.forward, service.identity)
        if config.durable is not None:
            check_free(config.durable)
        self._reception = Reception(on_remembered_ports(config))
        self._control = ControlPlane(self, credentials, service.controllers)
        try:
            if config.durable is not None:
                remember_ports(config.durable, self._reception.urls)
            self._control.bind(service.control)
        except BaseException:
            self._reception.abandon()
            raise

    def run(self, output: TextIO = sys.stdout) -> int:
        """Serve until the end; print the addresses first and the final report last.

        Returns:
            0 if everything received was delivered, else 1.

        Raises:
            LclstreamError: the transfer does not take the final report.
        """
        try:
            return asyncio.run(self._run(output))
        except BaseExceptionGroup as group:
            # The rest was ended because of the first.
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None

    async def summary(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""
        return self._summary(await self._lanes.statistics())

    def drain(self, reason: str, deadline_s: float | None = None) -> None:
        """Refuse new producers, deliver everything, end."""
        self._lanes.drain(reason, deadline_s)

    def stop(self, reason: str) -> None:
        """End now."""
        self._lanes.stop(reason)

    async def _run(self, output: TextIO) -> int:
        self._loop = asyncio.get_running_loop()
        self._lanes = Lanes(
            self._config, self._service.lanes, self._service.identity, self._on_action
        )
        reporter = Reporter.from_environment(self._report_from_thread, self._obey_from_thread)
        with self._signals():
            try:
                async with asyncio.TaskGroup() as tasks:
                    serving = tasks.create_task(self._lanes.run(), name="lanes")
                    if await self._is_ready(serving):
                        await self._open(output)
                        if reporter is not None:
                            reporter.__enter__()
                if self._forwarder is not None:
                    await self._forwarder.finish()
                self._ended = True
                self._print(output)
                if reporter is not None:
                    await asyncio.to_thread(reporter.finish, self._report(self._final()))
            finally:
                self._reception.abandon()
                if self._forwarder is not None:
                    self._forwarder.close()
                await self._control.close()
                if reporter is not None:
                    # Its thread may be waiting for figures from this one.
                    await asyncio.to_thread(reporter.__exit__, None, None, None)
        return COMPLETE if self._is_complete else INCOMPLETE

    async def _is_ready(self, serving: asyncio.Task[None]) -> bool:
        """Wait until the lanes can work; return False if it has ended before that."""
        ready = asyncio.create_task(self._lanes.ready.wait(), name="ready")
        await asyncio.wait([ready, serving], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        return not serving.done()

    async def _open(self, output: TextIO) -> None:
        """Let everybody in."""
        self._reception.open(self._lanes.take, lambda: self._lanes.is_pressed)
        await self._control.start()
        if self._config.forward:
            self._forwarder = Forwarder(
                self._config, self._service.identity, self._service.lanes, self._lanes.take
            )
            self._forwarder.start()
        self._announce(output)

    @property
    def _is_complete(self) -> bool:
        """Whether everything has ended and was delivered, and everybody knows."""
        return self._lanes.is_complete and (self._forwarder is None or self._forwarder.is_complete)

    def _on_action(self, action: Action) -> None:
        if action is Action.CLOSE_INPUT:
            self._reception.close(Side.IN)
        elif action is Action.SAY_FAREWELL:
            self._reception.close(Side.OUT)
            if self._forwarder is not None:
                self._forwarder.farewell(is_complete=not self._lanes.has_faults)

    # The transfer.

    def _report_from_thread(self) -> Report:
        asked = asyncio.run_coroutine_threadsafe(self._lanes.statistics(peers=False), self._loop)
        return self._report(asked.result(SNAPSHOT_TIMEOUT_S))

    def _obey_from_thread(self, reply: Reply) -> None:
        """Do what the transfer wants; it says so again and again."""
        if reply.command == "drain":
            reason = reply.reason or "the transfer has no more producers"
            self._loop.call_soon_threadsafe(self._lanes.drain, reason)
        elif reply.command == "stop":
            reason = reply.reason or "the transfer has ended"
            self._loop.call_soon_threadsafe(self._lanes.stop, reason)

    def _report(self, now: Statistics) -> Report:
        """Return the buffer's part of the ledger."""
        ok = self._is_complete or not self._ended
        return Report(
            hop="buffer",
            peer=self._peer,
            final=self._ended,
            ok=ok,
            error="" if ok else self._fault(now),
            received=now.received,
            sent=now.sent,
            addresses=Addresses.model_validate(self._data_addresses()),
            stats={**now.flat(), **self._rates.update(now)},
        )

    # Addresses and reports.

    def _data_addresses(self) -> dict[str, list[str]]:
        return {side.value: self._reception.urls[side] for side in Side}

    def _addresses(self) -> dict[str, list[str]]:
        return {**self._data_addresses(), "control": self._control.urls}

    def _announce(self, output: TextIO) -> None:
        json.dump(self._addresses(), output)
        output.write("\n")
        output.flush()
        announce(self._service.ready_file, self._addresses())
        logger.info("buffer_listening", extra=self._addresses())

    def _final(self) -> Statistics:
        return self._lanes.last_statistics()

    def _print(self, output: TextIO) -> None:
        now = self._final()
        json.dump(self._summary(now), output)
        output.write("\n")
        output.flush()

    def _summary(self, now: Statistics) -> dict[str, Any]:
        complete = self._is_complete
        forwarder = self._forwarder
        return {
            "complete": complete,
            "error": "" if complete or not self._ended else self._fault(now),
            "addresses": self._addresses(),
            "lanes": self._service.lanes,
            "lane_pids": self._lanes.pids,
            "forward": forwarder.summary() if forwarder is not None else [],
            "forward_pids": forwarder.pids if forwarder is not None else [],
            **self._rates.update(now),
            **now.whole(),
        }

    def _fault(self, now: Statistics) -> str:
        faults = now.counters.faults()
        if self._forwarder is not None:
            faults += self._forwarder.faults()
        return "; ".join([*faults, f"ended because: {now.reason}"])

    # Signals.

    @contextmanager
    def _signals(self) -> Iterator[None]:
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            self._loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in numbers:
                self._loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        self._terminations += 1
        name = number.name
        if self._terminations == 1:
            self._lanes.drain(name, self._service.term_timeout_s)
        else:
            self._lanes.stop(f"{name} again")


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
