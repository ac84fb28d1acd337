"""Iterate over the events of a stream.

```python
for batch in stream("tcp://dtn.example.org:42001"):
    frames = batch["jungfrau.raw.calib"]  # axis 0 = events

with stream("tcp://dtn.example.org:42001") as batches:
    for event in batches.events():
        print(event.index, event["jungfrau.raw.calib"].sum())
```

`stream()` without a URL pulls from the transfer that this job belongs to and reports to it.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from types import TracebackType
from typing import Literal, Self

from lclstream.client.batches import Batch, Event
from lclstream.client.formats import Decoder
from lclstream.client.receive import Receiver, Stats
from lclstream.core.errors import DecodeError, EndOfStream
from lclstream.core.ledger import Tally
from lclstream.core.tls import Credentials

logger = logging.getLogger(__name__)


class Stream:
    """Decoded batches, one by one, to the end of the stream.

    A message is accounted for when it is taken from the stream.

    Resource handling: as `Receiver`, which it owns. Use it as a context manager, or only
    iterate over it: then it is entered with the first batch and left with the last one.

    Error handling: a message that cannot be decoded is counted and, by default, raises
    `DecodeError`; iteration may go on after that. With `on_error="skip"` it is logged and left
    out. Either way the final report says so.
    """

    def __init__(
        self,
        receiver: Receiver,
        fields: Collection[str] | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        self.receiver = receiver
        self._fields = fields
        self._on_error = on_error
        self._decoder = Decoder()
        self._entered = False

    def __enter__(self) -> Self:
        self.receiver.__enter__()
        self._entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.receiver.__exit__(kind, error, trace)

    def __iter__(self) -> Iterator[Batch]:
        return self if self._entered else self._from_first_to_last()

    def _from_first_to_last(self) -> Iterator[Batch]:
        with self:
            yield from self

    def __next__(self) -> Batch:
        while True:
            try:
                payload = self.receiver.recv()
            except EndOfStream:
                raise StopIteration from None
            try:
                batch = self._decoder.decode(payload, self._fields)
            except DecodeError as error:
                self.receiver.count(payload)
                self.receiver.count_damaged()
                if self._on_error == "raise":
                    raise
                logger.warning("message_damaged", extra={"reason": str(error)})
            else:
                self.receiver.count(payload, len(batch))
                # The beginning and the end of a series hold no events.
                if batch.count:
                    return batch

    def events(self) -> Iterator[Event]:
        """Iterate over single events instead of batches."""
        for batch in self:
            yield from batch

    def select(self, fields: Collection[str]) -> None:
        """Decode only these datasets from the next message on, as with the argument `fields`."""
        self._fields = fields

    def stop(self, reason: str) -> None:
        """End the iteration soon with `BufferClosedError`; for signal handlers and threads."""
        self.receiver.stop(reason)

    @property
    def tally(self) -> Tally:
        """What was received so far."""
        return self.receiver.tally

    @property
    def damaged(self) -> int:
        """Messages that could not be decoded."""
        return self.receiver.damaged

    @property
    def stats(self) -> Stats:
        """More live figures for the reports; change it as the work goes on."""
        return self.receiver.stats


def stream(
    urls: str | Sequence[str] | None = None,
    *,
    listen: bool = False,
    peers: int = 1,
    fields: Collection[str] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    label: str = "consumer",
    timeout_s: float | None = None,
    report_url: str | None = None,
    credentials: Credentials | None = None,
) -> Stream:
    """Open a stream.

    Args:
        urls: as in `Receiver`; None pulls from the transfer that this job belongs to.
        listen: as in `Receiver`.
        peers: as in `Receiver`.
        fields: dataset paths, or their last parts, to decode; None for all.
        on_error: what to do with a message that cannot be decoded.
        label: as in `Receiver`.
        timeout_s: as in `Receiver`.
        report_url: as in `Receiver`.
        credentials: as in `Receiver`.
    """
    receiver = Receiver(
        urls,
        listen=listen,
        peers=peers,
        label=label,
        timeout_s=timeout_s,
        report_url=report_url,
        credentials=credentials,
    )
    return Stream(receiver, fields, on_error)
