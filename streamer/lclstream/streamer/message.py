"""What a serializer makes and a handler takes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lclstream.core.ledger import digest64, digest64_of_parts

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Message:
    """One message in pieces, so that what lies in different places need not be copied together.

    It is valid until the batch that it was made of is used again.
    """

    parts: tuple[memoryview, ...]
    """Contiguous bytes; one after the other they are the message."""
    events: int
    """How many it holds; 0 for a message that only accompanies the stream."""
    index: "npt.NDArray[np.uint64] | None" = None
    """The `index` of each of these events, shape (events,); the pipeline fills it in."""
    digest: int | None = None
    """64-bit xxh3 hash of the bytes; the pipeline fills it in."""

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

    def hash64(self) -> int:
        """Return the 64-bit xxh3 hash of the bytes; computed here if the pipeline has not."""
        if self.digest is not None:
            return self.digest
        if len(self.parts) == 1:
            return digest64(self.parts[0])
        return digest64_of_parts(self.parts)
