"""Decodes messages of every format that our streamer sends, told apart by their first bytes."""

import importlib
from collections.abc import Callable, Collection
from typing import Any

from lclstream.client.batches import Batch
from lclstream.core.errors import DecodeError, InvalidConfigError

# First bytes -> the module that decodes such messages; it is imported when one comes.
_MODULES = {
    b"\x89HDF": "decode",
    b"PK": "npz",
    b"YAPN": "fastbinary",
    b"\xff\xff\xff\xff": "arrow",
    b"\xd9\xd9\xf7": "simplon",
}
SHOWN_BYTES = 8
# A map of CBOR, in front of which LCLStreamer has a letter.
_MAPS = range(0xA0, 0xC0)
_LETTERS = b"cm"


def format_of(payload: bytes | bytearray | memoryview) -> str:
    """Return the name of the module here that decodes a message.

    Raises:
        DecodeError: no format of ours begins so.
    """
    head = bytes(memoryview(payload).cast("B")[:SHOWN_BYTES])
    for signature, module in _MODULES.items():
        if head.startswith(signature):
            return module
    without_letter = head[1:] if head[:1] and head[0] in _LETTERS else head
    if without_letter and without_letter[0] in _MAPS:
        return "simplon"
    raise DecodeError(
        f"no known format: {len(payload)} bytes that begin with {head!r}; known are HDF5, NumPy"
        " archives, FastBinary, Arrow and Simplon"
    )


class Decoder:
    """Decodes the messages of one stream in their order, of any formats."""

    def __init__(self) -> None:
        self._decoders: dict[str, Callable[..., Batch]] = {}

    def decode(
        self, payload: bytes | bytearray | memoryview, fields: Collection[str] | None = None
    ) -> Batch:
        """Decode one message.

        Args:
            payload: the message; arrays of the result may be views of it.
            fields: names to decode, or their last parts where they are paths; None for all. Names
                that the message does not have are left out.

        Raises:
            DecodeError: the message is of no known format, or is damaged.
            InvalidConfigError: what decodes it is not installed.
        """
        name = format_of(payload)
        try:
            if name not in self._decoders:
                self._decoders[name] = _decoder(name)
            return self._decoders[name](payload, fields)
        except ImportError as error:
            raise InvalidConfigError(
                f"messages of the format {name} cannot be decoded: {error.name} is not installed"
            ) from None


def _decoder(name: str) -> Callable[..., Batch]:
    module: Any = importlib.import_module(f"lclstream.client.{name}")
    # Formats whose messages hang together have a decoder that remembers.
    made: Callable[..., Batch]
    made = module.Decoder().decode if hasattr(module, "Decoder") else module.decode
    return made


def decode(payload: bytes | bytearray | memoryview, fields: Collection[str] | None = None) -> Batch:
    """Decode one message by itself; see `Decoder.decode`."""
    return Decoder().decode(payload, fields)
