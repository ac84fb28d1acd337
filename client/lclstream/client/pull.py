"""Writes the messages of a stream as a tar file: what `lclstream pull` does."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, TextIO

from lclstream.client.decode import decode
from lclstream.client.receive import Receiver
from lclstream.client.tar import TarWriter
from lclstream.core.errors import DecodeError, EndOfStream, StreamError

PROGRESS_EVERY = 10
MEGABYTE = 1e6


def pull_to_tar(
    receiver: Receiver,
    file: BinaryIO,
    names: str = "%05d.h5",
    progress: TextIO | None = None,
    *,
    count_events: bool = False,
    give_up: Callable[[], None] = lambda: None,
) -> int:
    """Write every message to the end of the stream and return how many there were.

    The tar is complete in every case, unless nobody reads it any more.

    Args:
        receiver: entered here.
        file: where the tar goes.
        names: pattern of the members' names.
        progress: gets a line every ten messages; None for none.
        count_events: whether to look into the messages to count events, for the reports.
        give_up: called when the end is not reached, before the final report.

    Error handling: raises what `Receiver.recv` raises, and `StreamError` when nobody reads.
    """
    with receiver, _reader_gone(), TarWriter(file, names) as tar:
        try:
            _copy(receiver, tar, progress, count_events=count_events)
        except BaseException:
            give_up()
            raise
        return tar.count


@contextmanager
def _reader_gone() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise StreamError("nobody reads the tar any more") from error


def _copy(
    receiver: Receiver, tar: TarWriter, progress: TextIO | None, *, count_events: bool
) -> None:
    began = time.monotonic()
    while True:
        try:
            payload = receiver.recv()
        except EndOfStream:
            return
        tar.add(payload)
        receiver.count(payload, _events_in(payload) if count_events else 0)
        if progress and tar.count % PROGRESS_EVERY == 0:
            elapsed_s = max(time.monotonic() - began, 1e-9)
            rate = receiver.tally.bytes / MEGABYTE / elapsed_s
            progress.write(f"At {tar.count}, {elapsed_s:.3f} seconds: {rate:.3f} MB/sec.\n")
            progress.flush()


def _events_in(payload: memoryview) -> int:
    try:
        return len(decode(payload, fields=()))
    except DecodeError:
        # Whatever it is, it goes into the tar as it came.
        return 0
