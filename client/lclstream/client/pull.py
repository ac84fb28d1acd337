"""Writes the messages of a stream as a tar file: what `lclstream pull` does."""

import time
from typing import BinaryIO, TextIO

from lclstream.client.decode import decode
from lclstream.client.receive import Receiver
from lclstream.client.signals import stop_on_signals
from lclstream.client.tar import TarWriter
from lclstream.core.errors import BufferClosedError, DecodeError, EndOfStream, StreamError

PROGRESS_EVERY = 10
MEGABYTE = 1e6


def pull_to_tar(
    receiver: Receiver, file: BinaryIO, names: str, progress: TextIO | None, *, count_events: bool
) -> int:
    """Write every message to its end, or to the first SIGINT or SIGTERM.

    The tar is complete in every case, unless nobody reads it any more.

    Args:
        receiver: entered here.
        file: where the tar goes.
        names: pattern of the members' names.
        progress: gets a line every ten messages; None for none.
        count_events: whether to look into the messages to count events, for the reports.

    Returns:
        The exit code: 0, or 128 + the number of the signal.
    """
    began = time.monotonic()
    with stop_on_signals(receiver.stop) as signals:
        try:
            with receiver, TarWriter(file, names) as tar:
                _copy(receiver, tar, progress, began, count_events=count_events)
        except BufferClosedError:
            if not signals:
                raise
        except BrokenPipeError as error:
            raise StreamError("nobody reads the tar any more") from error
    return 128 + signals[0] if signals else 0


def _copy(
    receiver: Receiver, tar: TarWriter, progress: TextIO | None, began: float, *, count_events: bool
) -> None:
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
