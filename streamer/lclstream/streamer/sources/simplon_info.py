"""What is in Simplon messages, as text for people: of a stream, or stored in files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lclstream.core.errors import DecodeError, UnavailableError
from lclstream.streamer import simplon
from lclstream.streamer.simplon import lclstreamer

# How long to wait for a stream.
PATIENCE_S = 10.0
# Starts, ends and images in front of what is wanted.
MAX_MESSAGES = 20
MAX_TEXT = 60


def describe_stream(urls: str) -> Iterator[str]:
    """Yield the lines of what the first messages of a stream hold, up to the first image.

    These messages are taken out of the stream: another reader does not get them.

    Args:
        urls: to connect to, separated by commas.

    Raises:
        UnavailableError: nothing came.
        DecodeError: a message is damaged.
    """
    import zmq

    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RCVHWM, 1)
        socket.set(zmq.RCVTIMEO, int(1000 * PATIENCE_S))
        for url in filter(None, map(str.strip, urls.split(","))):
            socket.connect(url)
        for number in range(MAX_MESSAGES):
            try:
                message = socket.recv()
            except zmq.Again:
                if number:
                    return
                raise UnavailableError(
                    f"nothing came from {urls} within {PATIENCE_S:.0f} s"
                ) from None
            lines, is_image = describe_message(message)
            yield f"message {number + 1}, {len(message)} bytes, taken out of the stream:"
            yield from lines
            if is_image:
                return


def describe_files(paths: list[Path]) -> Iterator[str]:
    """Yield the lines of what messages in files hold.

    Raises:
        DecodeError: one is damaged.
    """
    for path in paths:
        yield str(path)
        try:
            yield from describe_message(path.read_bytes())[0]
        except DecodeError as error:
            raise DecodeError(f"{path}: {error}") from None


def is_message(head: bytes) -> bool:
    """Return whether a file begins as a message does; that of the variant PR 51 does not."""
    is_map = len(head) > 1 and 0xA0 <= head[1] < 0xC0
    return head.startswith(b"\xd9\xd9\xf7") or (head[:1] in (b"c", b"m") and is_map)


def describe_message(message: bytes) -> tuple[list[str], bool]:
    """Return the lines of one message, and whether it is an image.

    Raises:
        DecodeError: it is damaged.
    """
    dialect = lclstreamer.dialect_of(message)
    if dialect != "stream2":
        run = lclstreamer.decode(message)
        kind = {lclstreamer.RunStart: "start", lclstreamer.RunImage: "image"}.get(type(run), "stop")
        return [f"  {dialect} {kind}", *_fields(run.fields)], kind == "image"
    said = simplon.decode(message)
    if isinstance(said, simplon.ImageMessage):
        identity = f"  image {said.image_id} of series {said.series_id} {said.series_unique_id}"
        channels = [f"  raw.{name}: {_shown(array)}" for name, array in said.data.items()]
        return [identity, *channels, *_fields({"user_data": said.user_data, **said.fields})], True
    kind = "start" if isinstance(said, simplon.StartMessage) else "end"
    identity = f"  {kind} of series {said.series_id} {said.series_unique_id}"
    return [identity, *_fields(said.fields)], False


def _fields(fields: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"  {prefix}{key}: {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, simplon.PackedArray):
        shape = "one dimension" if value.shape is None else " x ".join(map(str, value.shape))
        return f"{value.dtype}, {shape}" + (f", {value.compression}" if value.compression else "")
    if isinstance(value, simplon.DateTime):
        return value.text
    if isinstance(value, memoryview):
        return f"{value.nbytes} bytes"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."
