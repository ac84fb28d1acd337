"""Messages on their way to several handlers, and the batches that they lie in."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from lclstream.streamer.batching import Batch
from lclstream.streamer.message import Message


class Loan:
    """A batch that messages lie in: given back when the last of them is done with."""

    def __init__(self, batch: Batch, give_back: Callable[[Batch], None]) -> None:
        self._batch, self._give_back = batch, give_back
        self._lock = threading.Lock()
        # The serializer's own.
        self._claims = 1

    def claim(self) -> None:
        """Keep the batch until one more `release`."""
        with self._lock:
            self._claims += 1

    def release(self) -> None:
        """Give one claim up."""
        with self._lock:
            self._claims -= 1
            is_last = not self._claims
        if is_last:
            self._give_back(self._batch)


@dataclass(slots=True)
class Parcel:
    """One message, for each of some handlers."""

    message: Message
    number: int
    """Among all that are handed to the handlers, from 1."""
    pending: int
    """Handlers that are not done with it."""
    loan: Loan | None
    """Of the batch that it lies in; None for a message of its own memory."""
    must_arrive: bool = False
    """Whether a handler has to wait until the other side has it."""
    delivered: bool = True
    """Whether all handlers so far have taken it."""
