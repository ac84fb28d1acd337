"""What `lclstream buffer push`, `pull`, `stat`, `drain` and `top` do."""

import json
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from lclstream.buffer.config import Delivery
from lclstream.buffer.control_client import ControlClient
from lclstream.buffer.endpoints import Pull, Push
from lclstream.buffer.top import show_once, watch
from lclstream.core.errors import DecodeError, EndOfStream
from lclstream.core.tls import Credentials

LENGTH = struct.Struct(">Q")
STDIO = "-"


class Form(StrEnum):
    """How messages lie in a file."""

    WHOLE = "whole"
    """The file is one message."""
    LINES = "lines"
    """Each line is one, without its end."""
    FRAMED = "framed"
    """Each has its length before it: 8 bytes, big endian."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """How to connect to a buffer."""

    urls: tuple[str, ...]
    delivery: Delivery
    identity: Path | None
    connections: int = 1

    @property
    def credentials(self) -> Credentials | None:
        """For addresses with TLS."""
        return None if self.identity is None else Credentials.from_folder(self.identity)


def push(ends: Ends, files: Sequence[str], form: Form, send_timeout_s: float | None) -> int:
    """Send what is in files; return how many messages that were.

    Raises:
        DeliveryError: not everything arrived.
        OSError: a file cannot be read.
    """
    count = 0
    with Push(
        ends.urls,
        delivery=ends.delivery,
        connections=ends.connections,
        send_timeout_s=send_timeout_s,
        tls=ends.credentials,
    ) as out:
        for name in files:
            for message in _messages(name, form):
                out.send(message)
                count += 1
    return count


def pull(
    ends: Ends,
    *,
    output: str,
    form: Form,
    at_most: int | None,
    timeout_s: float | None,
    stdout: BinaryIO,
) -> int:
    """Receive messages until the end of the stream, or until there are enough.

    Args:
        ends: where from.
        output: a folder, for one file per message, or `-`.
        form: of standard output.
        at_most: how many; None: all.
        timeout_s: give up when nothing comes for so long; None: wait.
        stdout: where `-` leads to.

    Returns:
        How many came.
    """
    folder = None if output == STDIO else Path(output)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with Pull(
        ends.urls, acknowledge=ends.delivery is Delivery.SAFE, tls=ends.credentials
    ) as source:
        while at_most is None or count < at_most:
            try:
                message = source.recv(timeout_s)
            except EndOfStream:
                break
            if folder is not None:
                (folder / f"{count:06d}").write_bytes(message)
            else:
                _write(stdout, message, form)
            count += 1
        if at_most is not None and count == at_most:
            # The last one is finished as well.
            source.done(1)
    return count


def stat(url: str, identity: Path | None, *, prometheus: bool) -> None:
    """Print the figures of a buffer."""
    with ControlClient(url, identity) as client:
        if prometheus:
            sys.stdout.write(client.metrics())
        else:
            sys.stdout.write(json.dumps(client.statistics(), indent=2) + "\n")


def drain(
    url: str, identity: Path | None, *, reason: str, deadline_s: float | None, now: bool
) -> None:
    """Have a buffer deliver everything and end, or end now."""
    with ControlClient(url, identity) as client:
        if now:
            client.stop(reason)
        else:
            client.drain(reason, deadline_s)


def top(url: str, identity: Path | None, *, once: bool, interval_s: float) -> None:
    """Show a buffer at work."""
    with ControlClient(url, identity) as client:
        if once:
            show_once(client.statistics, sys.stdout)
        else:
            watch(client.statistics, sys.stdout, interval_s)


def _messages(name: str, form: Form) -> Iterator[bytes]:
    if name == STDIO:
        yield from _parted(sys.stdin.buffer, form)
    else:
        with Path(name).open("rb") as file:
            yield from _parted(file, form)


def _parted(file: BinaryIO, form: Form) -> Iterator[bytes]:
    if form is Form.WHOLE:
        yield file.read()
    elif form is Form.LINES:
        for line in file:
            yield line.removesuffix(b"\n")
    else:
        while head := file.read(LENGTH.size):
            if len(head) < LENGTH.size:
                raise DecodeError("the input ends inside a length")
            (size,) = LENGTH.unpack(head)
            message = file.read(size)
            if len(message) < size:
                raise DecodeError(f"the input ends inside a message of {size} bytes")
            yield message


def _write(file: BinaryIO, message: memoryview, form: Form) -> None:
    if form is Form.FRAMED:
        file.write(LENGTH.pack(message.nbytes))
    file.write(message)
    if form is Form.LINES:
        file.write(b"\n")
    # Who acknowledges it has handed it on.
    file.flush()
