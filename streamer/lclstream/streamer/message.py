"""What a serializer makes and a handler takes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One message in pieces, so that what lies in different places need not be copied together.

    It is valid until the batch that it was made of is used again.
    """

    parts: tuple[memoryview, ...]
    """Contiguous bytes; one after the other they are the message."""
    events: int
    """How many it holds; 0 for a message that only accompanies the stream."""

    @property
    def nbytes(self) -> int:
        """Size of the message in bytes."""
        return sum(part.nbytes for part in self.parts)

    def tobytes(self) -> bytes:
        """Return a copy."""
        return b"".join(self.parts)

    def joined(self) -> memoryview:
        """Return the message in one piece; copies only what lies in several."""
        return self.parts[0] if len(self.parts) == 1 else memoryview(self.tobytes())
