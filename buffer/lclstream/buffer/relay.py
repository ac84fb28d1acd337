"""The buffer as an object of a program: an engine in a thread of its own."""

import logging
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from lclstream.buffer.config import BufferConfig
from lclstream.buffer.engine import Engine
from lclstream.buffer.peers import Side
from lclstream.buffer.states import BufferState
from lclstream.buffer.statistics import Statistics
from lclstream.core.errors import StreamError

logger = logging.getLogger(__name__)


class Buffer:
    """Takes messages from producers and gives each to exactly one consumer.

    It listens as soon as it exists and serves inside its context.

    Resource handling: a context manager that owns one thread and all sockets; leaving it stops
    the buffer if it has not ended.

    Raises:
        InvalidConfigError: an address cannot be bound.
    """

    def __init__(self, config: BufferConfig | None = None) -> None:
        self._engine = Engine(config or BufferConfig())
        self._thread = threading.Thread(target=self._run, name="buffer", daemon=True)
        self._ended = threading.Event()
        self._failure: Exception | None = None

    @property
    def push_urls(self) -> Sequence[str]:
        """Where producers push to."""
        return tuple(self._engine.door.urls[Side.IN])

    @property
    def pull_urls(self) -> Sequence[str]:
        """Where consumers pull from."""
        return tuple(self._engine.door.urls[Side.OUT])

    @property
    def has_ended(self) -> bool:
        """Whether it has reached its final state."""
        return self._ended.is_set()

    def drain(self, reason: str = "asked to drain", deadline_s: float | None = None) -> None:
        """Refuse new producers, deliver everything, end.

        Args:
            reason: for people.
            deadline_s: end in any case after so long; None: as long as there is progress.
        """
        if not self.has_ended:
            self._engine.drain(reason, deadline_s)

    def stop(self, reason: str = "asked to stop") -> None:
        """End now; what was not delivered is counted."""
        if not self.has_ended:
            self._engine.stop(reason)

    def statistics(self) -> Statistics:
        """Return the figures of this moment, or of the end."""
        return self._engine.statistics()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; return whether it has come.

        Raises:
            StreamError: the engine died of an error of its own.
        """
        if not self._ended.wait(timeout_s):
            return False
        if self._failure is not None:
            raise StreamError(f"the buffer died: {self._failure!r}") from self._failure
        return True

    @property
    def is_complete(self) -> bool:
        """Whether it has ended and everything was delivered."""
        return self._engine.ending.state is BufferState.COMPLETE

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._thread.join()
        self._engine.close()

    def _run(self) -> None:
        try:
            self._engine.run()
        except Exception as error:
            logger.exception("buffer_died")
            self._failure = error
        finally:
            self._ended.set()
