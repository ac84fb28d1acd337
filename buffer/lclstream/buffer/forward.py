"""The links of a buffer to others downstream, as the serving process sees them.

Each link is a consumer of this buffer and one stream of a producer of the next one; all links of
a buffer are one producer there. They live in processes of their own.
"""

import asyncio
import json
import logging
import os
import secrets
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lclstream.buffer.addresses import Address
from lclstream.buffer.channel import Channel
from lclstream.buffer.child import start_child
from lclstream.buffer.config import BufferConfig
from lclstream.buffer.forward_orders import (
    Farewell,
    ForwardSetup,
    LinkState,
    LinkTold,
    Slot,
    Slots,
    Upstream,
    Want,
)
from lclstream.buffer.forward_plan import connections_for, warn_if_narrow
from lclstream.buffer.journal import FOLDER_MODE
from lclstream.buffer.orders import Connection
from lclstream.buffer.outgoing import CONNECTION_BITS, PRODUCER_BITS
from lclstream.buffer.pairs import connected_pair
from lclstream.buffer.peers import Side
from lclstream.core.errors import InvalidConfigError, LclstreamError
from lclstream.core.files import write_atomically

logger = logging.getLogger(__name__)

FIRST_RESTART_S = 0.1
LAST_RESTART_S = 5.0
WANT_AGAIN_S = 0.5
ENDED = frozenset({LinkState.DONE, LinkState.GIVEN_UP})
PRODUCER_NAME = "forward.json"
PRODUCER_MODE = 0o600


class WorkerProcess:
    """A process of links, and the channel to it.

    Resource handling: owns both; `close` ends them.
    """

    def __init__(self, setup: ForwardSetup, slots: tuple[Slot, ...]) -> None:
        self.slots = slots
        here, there = socket.socketpair()
        self.channel = Channel(here)
        self._process = start_child("lclstream.buffer.forward_worker", there)
        self.send(replace(setup, slots=slots))

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, message: object, socks: tuple[socket.socket, ...] = ()) -> None:
        """Tell it something; there is little, so what it does not take now goes next time."""
        # That it has gone is noticed where it is listened to.
        with suppress(OSError):
            self.channel.send(message, socks)

    def close(self) -> int:
        """End it if it has not; return its status."""
        self.channel.close()
        self._process.kill()
        return self._process.wait()


class Forwarder:
    """All links of a buffer.

    Lives in an event loop. Nothing here is on the way of a message.

    Resource handling: owns the processes; `close` ends them.

    Error handling: a process that dies is started again; it held no messages.

    Args:
        config: of the buffer.
        identity: folder with the certificate for TLS.
        processes: how many to have at most.
        give: takes over a connection on which the buffer is to serve a consumer.

    Raises:
        InvalidConfigError: an address cannot be dialled.
    """

    def __init__(
        self,
        config: BufferConfig,
        identity: Path | None,
        processes: int,
        give: Callable[[socket.socket, Connection], None],
    ) -> None:
        check(config.forward, identity)
        self._config = config
        self._give = give
        self._most_processes = processes
        self._memory = ProducerMemory(config.durable)
        self._setup = ForwardSetup(
            parent=os.getpid(),
            identity=identity if any(address.tls for address in config.forward) else None,
            dead_after_s=config.dead_after_s,
            fail_over_s=config.fail_over_s if len(config.forward) > 1 else None,
            patience_s=config.farewell_timeout_s,
            slots=(),
        )
        self._slots: dict[int, Slot] = {}
        self._told: dict[int, LinkTold] = {}
        self._workers: list[WorkerProcess] = []
        self._measured: set[Address] = set()
        self._restart_s = FIRST_RESTART_S
        self._farewell: Farewell | None = None
        self._closed = False
        self._over = asyncio.Event()

    @property
    def is_complete(self) -> bool:
        """Whether every buffer downstream knows that the stream has ended."""
        return self._over.is_set() and all(
            told.state is LinkState.DONE for told in self._told.values()
        )

    @property
    def pids(self) -> list[int]:
        """The process ids."""
        return [worker.pid for worker in self._workers]

    def start(self) -> None:
        """Begin to dial."""
        # Where the number depends on the network, the first connection measures it.
        count = self._config.forward_connections or 1
        slots = [self._new_slot(address) for address in self._memory.addresses]
        for address in self._config.forward:
            missing = count - self._memory.addresses.count(address)
            slots += [self._new_slot(address) for _ in range(missing)]
        processes = min(self._most_processes, len(slots))
        for number in range(processes):
            self._start_worker(tuple(slots[number::processes]))

    def farewell(self, *, is_complete: bool) -> None:
        """The buffer has delivered everything: the end of the stream can be passed on.

        Args:
            is_complete: whether that is all there should have been; if not, the buffers
                downstream are not told that the stream has ended.
        """
        if self._farewell is None:
            self._farewell = Farewell(is_complete)
            for worker in self._workers:
                worker.send(self._farewell)

    async def finish(self) -> None:
        """Wait until the end has been passed on, or cannot be."""
        if self._farewell is not None:
            # The links keep their own time.
            with suppress(TimeoutError):
                async with asyncio.timeout(2 * self._config.farewell_timeout_s):
                    await self._over.wait()

    def close(self) -> None:
        """End all processes."""
        self._closed = True
        for worker in list(self._workers):
            self._gone(worker)
        if self.is_complete:
            self._memory.forget()

    def summary(self) -> list[dict[str, Any]]:
        """Return what is known of each address, ready for JSON."""
        return [self._summary(address) for address in self._config.forward]

    def faults(self) -> list[str]:
        """Say which buffers downstream were not told that the stream has ended."""
        return [
            f"{address} was not told that the stream has ended"
            for address in self._config.forward
            if any(told.state is not LinkState.DONE for told in self._links_to(address))
        ]

    def _summary(self, address: Address) -> dict[str, Any]:
        links = self._links_to(address)
        return {
            "url": str(address),
            "connections": len(links),
            "states": dict(Counter(str(told.state) for told in links)),
            "round_trip_s": max((told.rtt_s for told in links), default=0.0),
            "resumed": sum(told.resumed for told in links),
            "problems": sorted({told.problem for told in links if told.problem}),
        }

    def _links_to(self, address: Address) -> list[LinkTold]:
        return [self._told[number] for number, s in self._slots.items() if s.address == address]

    def _new_slot(self, address: Address) -> Slot:
        number = len(self._slots)
        slot = Slot(
            number=number,
            address=address,
            stream=self._memory.producer << CONNECTION_BITS | number,
            is_begun=number < len(self._memory.addresses),
        )
        self._slots[number] = slot
        self._memory.remember([each.address for each in self._slots.values()])
        self._told[number] = LinkTold(
            slot=number,
            state=LinkState.AWAY,
            problem="not tried yet",
            rtt_s=0.0,
            window_bytes=0,
            resumed=0,
        )
        return slot

    # Processes that come and go.

    def _start_worker(self, slots: tuple[Slot, ...]) -> None:
        if self._closed:
            return
        worker = WorkerProcess(self._setup, slots)
        self._workers.append(worker)
        asyncio.get_running_loop().add_reader(worker.channel.sock, self._hear, worker)
        if self._farewell is not None:
            worker.send(self._farewell)

    def _gone(self, worker: WorkerProcess) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(worker.channel.sock)
        self._workers.remove(worker)
        status = worker.close()
        told = [self._told[slot.number] for slot in worker.slots]
        if self._closed or all(each.state in ENDED for each in told):
            return
        logger.error("forward_process_died", extra={"status": status})
        for each in told:
            self._told[each.slot] = replace(
                each, state=LinkState.AWAY, problem="its process died", resumed=each.resumed + 1
            )
        # It may have begun what it had no time to tell of.
        slots = tuple(replace(slot, is_begun=True) for slot in worker.slots)
        loop.call_later(self._restart_s, self._start_worker, slots)
        self._restart_s = min(2 * self._restart_s, LAST_RESTART_S)

    # What they tell.

    def _hear(self, worker: WorkerProcess) -> None:
        try:
            messages = worker.channel.receive()
        except EOFError:
            self._gone(worker)
            return
        for message, _ in messages:
            if isinstance(message, LinkTold):
                self._link_told(worker, message)
            elif isinstance(message, Want):
                if message.soon:
                    # As the one before, the next may end at once.
                    self._provide_later(worker, message.slot)
                else:
                    self._provide(worker, message.slot)

    def _link_told(self, worker: WorkerProcess, told: LinkTold) -> None:
        before = self._told[told.slot]
        # Another process may have had it before.
        self._told[told.slot] = replace(told, resumed=max(told.resumed, before.resumed))
        slot = self._slots[told.slot]
        if all(each.state in ENDED for each in self._told.values()):
            self._over.set()
        if told.state is LinkState.OPEN:
            self._restart_s = FIRST_RESTART_S
            if slot.address not in self._measured:
                self._measured.add(slot.address)
                self._widen(worker, slot.address, told)

    def _widen(self, worker: WorkerProcess, address: Address, told: LinkTold) -> None:
        """Have as many connections as the wanted rate needs, or say that it cannot be reached."""
        config = self._config
        count = config.forward_connections
        if not count:
            count = connections_for(config.forward_rate_bytes, told.rtt_s, told.window_bytes)
            logger.info(
                "forward_measured",
                extra={
                    "url": str(address),
                    "round_trip_ms": round(told.rtt_s * 1e3, 3),
                    "connections": count,
                },
            )
            more = tuple(self._new_slot(address) for _ in range(count - 1))
            if more:
                worker.slots += more
                worker.send(Slots(more))
        warn_if_narrow(
            str(address), count, told.rtt_s, told.window_bytes, config.forward_rate_bytes
        )

    def _provide_later(self, worker: WorkerProcess, slot: int) -> None:
        asyncio.get_running_loop().call_later(WANT_AGAIN_S, self._provide, worker, slot)

    def _provide(self, worker: WorkerProcess, slot: int) -> None:
        """Give a link a connection to this buffer, unless there is nothing more to be had."""
        if self._farewell is not None or worker not in self._workers:
            return
        try:
            # Who sends is the accepted side: it can see exactly what has arrived.
            ours, theirs = connected_pair()
        except OSError as error:
            logger.error("forward_not_connected", extra={"reason": str(error)})  # noqa: TRY400
            self._provide_later(worker, slot)
            return
        worker.send(Upstream(slot), (theirs,))
        address = str(self._slots[slot].address)
        self._give(ours, Connection(side=Side.OUT, address=address, only_tls=False, trusted=True))


def check(addresses: tuple[Address, ...], identity: Path | None) -> None:
    """Refuse addresses that cannot be dialled.

    Raises:
        InvalidConfigError: names them.
    """
    for address in addresses:
        if address.is_wildcard or not address.first_port or address.last_port != address.first_port:
            raise InvalidConfigError(
                f"forward must name one host and one port, got {address}: give what the buffer "
                "downstream announces as `in`"
            )
        if address.tls and identity is None:
            raise InvalidConfigError(
                f"forward to {address} needs --tls, the identity folder to show there"
            )


class ProducerMemory:
    """Under which number this buffer is known downstream, and its links by their numbers.

    A durable buffer that is started again is the same producer as before, and finishes the
    streams that it had begun.

    Args:
        folder: of a durable buffer; None remembers nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.producer = secrets.randbits(PRODUCER_BITS)
        self.addresses: list[Address] = []
        """Where the links of the process before led to."""
        self._path = None if folder is None else folder / PRODUCER_NAME
        if self._path is not None:
            with suppress(FileNotFoundError):
                self._recall(self._path)

    def remember(self, addresses: list[Address]) -> None:
        """Write down where the links lead to."""
        if self._path is None or len(addresses) <= len(self.addresses):
            return
        content = {"producer": self.producer, "links": [str(address) for address in addresses]}
        self._path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        write_atomically(self._path, json.dumps(content).encode(), PRODUCER_MODE)

    def forget(self) -> None:
        """All streams are finished: who comes next is somebody else."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _recall(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text())
            self.producer = int(content["producer"])
            self.addresses = [Address.parse(text) for text in content["links"]]
        except (ValueError, KeyError, TypeError, LclstreamError) as error:
            raise InvalidConfigError(
                f"durable: {path} cannot be read, remove it to begin new streams: {error}"
            ) from error
