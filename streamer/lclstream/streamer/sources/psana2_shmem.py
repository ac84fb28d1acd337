"""Shared memory of a monitoring node, read by psana2 in a way that can be ended.

psana2 waits for a server in a loop of C that lets no other thread of Python run, not even to see
a signal. Here it is asked to connect only when there is a server; until then Python waits.
"""

import ctypes
import ctypes.util
import errno
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from lclstream.core.errors import UnavailableError
from lclstream.streamer.sources.xtc2_watch import Stop, StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

APPEAR_TIMEOUT_S = 60.0
"""How long a server may take to begin before the first event; later ones may take for ever."""
LOOK_S = 0.2


def is_served(tag: str) -> bool:
    """Return whether a server of shared memory waits for clients.

    Args:
        tag: what psana2 is given as `shmem`.
    """
    library = _message_queues()
    if library is None:
        return True
    queue = library.mq_open(f"/PdsFromMonitorDiscovery_{tag}".encode(), os.O_RDONLY | os.O_NONBLOCK)
    if queue < 0:
        return ctypes.get_errno() != errno.ENOENT
    library.mq_close(queue)
    return True


def wait_for_server(tag: str, timeout_s: float = APPEAR_TIMEOUT_S) -> None:
    """Wait until there is a server.

    Raises:
        UnavailableError: there was none in time.
    """
    deadline = time.monotonic() + timeout_s
    while not is_served(tag):
        if time.monotonic() >= deadline:
            raise UnavailableError(
                f"source_identifier: nobody has served the shared memory {tag!r} for "
                f"{timeout_s:.0f} s"
            )
        time.sleep(LOOK_S)


class SharedMemory:
    """The reader of psana2 that waits for shared memory.

    Args:
        manager: the `DgramManager` of a data source.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._stop: Stop | None = None
        self._connect: Callable[[str], Any] = manager._connect_shmem_cli  # noqa: SLF001
        condition = manager._shmem_cond  # noqa: SLF001
        self._wait: Callable[..., bool] = condition.wait
        manager._connect_shmem_cli = self._connect_when_served  # noqa: SLF001
        condition.wait = self._wait_or_stop

    def interrupt_by(self, stop: Stop) -> None:
        """Let a wish to end cut every wait short."""
        self._stop = stop

    def _connect_when_served(self, tag: str) -> Any:
        """Connect again after a server has gone; runs in a thread of psana2's own."""
        if not is_served(tag):
            logger.info("psana_waits_for_server", extra={"shmem": tag})
        while not is_served(tag):
            time.sleep(LOOK_S)
        return self._connect(tag)

    def _wait_or_stop(self, timeout: float | None = None) -> bool:
        if timeout is not None:
            return self._wait(timeout)
        while not self._wait(LOOK_S):
            if self._stop is not None and self._stop.wait(0):
                raise StoppedError
        return True


def _message_queues() -> Any:
    """Return the C library with message queues; None where there is none."""
    for name in (None, ctypes.util.find_library("rt")):
        try:
            library = ctypes.CDLL(name, use_errno=True)
        except OSError:
            continue
        if hasattr(library, "mq_open"):
            return library
    return None
