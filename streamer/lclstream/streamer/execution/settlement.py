"""Which events have arrived for good, so that they need not be sent again after a crash."""

import threading
from collections import deque
from collections.abc import Callable, Iterable

from lclstream.streamer.checkpoint import Checkpoint
from lclstream.streamer.event_set import Run, runs_of
from lclstream.streamer.execution.lanes import Lane
from lclstream.streamer.message import Message


class Settlement:
    """Follows messages from the moment when all handlers have taken them until none can lose them.

    Args:
        lanes: of all handlers; each says how many of its messages, from the first on, are safe.
        checkpoint: told of events that have arrived, if there is one.
        step: usual distance between the events of a rank.
        arrived: told the index of the last event up to which all have arrived.
    """

    def __init__(
        self,
        lanes: Iterable[Lane],
        checkpoint: Checkpoint | None,
        step: int,
        arrived: Callable[[int], None],
    ) -> None:
        self._lanes = list(lanes)
        self._checkpoint, self._step, self._arrived = checkpoint, step, arrived
        self._lock = threading.Lock()
        # Number, last index and events of messages that were taken, in order.
        self._taken: deque[tuple[int, int, list[Run]]] = deque()

    def taken(self, number: int, message: Message) -> None:
        """Note that all handlers have taken a message.

        Args:
            number: of the message among those handed to the handlers, from 1.
            message: its memory is not needed any more on return.

        Raises:
            OSError: the checkpoint cannot be written.
        """
        index = message.index
        if index is not None and len(index):
            runs = [] if self._checkpoint is None else runs_of(index, self._step)
            with self._lock:
                self._taken.append((number, int(index[-1]), runs))
        self.advance()

    def advance(self) -> None:
        """Look at what has become safe meanwhile.

        Raises:
            OSError: the checkpoint cannot be written.
        """
        with self._lock:
            safe = min((lane.settled for lane in self._lanes), default=None)
            last = -1
            while self._taken and (safe is None or self._taken[0][0] <= safe):
                _, last, runs = self._taken.popleft()
                if self._checkpoint is not None:
                    self._checkpoint.add(runs)
            if last >= 0:
                self._arrived(last)
