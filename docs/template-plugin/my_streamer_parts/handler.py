"""Where messages go."""

import os
from pathlib import Path

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place
from my_streamer_parts.config import AppendingDataHandlerConfig


class AppendingDataHandler:
    """Writes one message behind the other."""

    def __init__(self, config: AppendingDataHandlerConfig, place: Place) -> None:
        path = Path(f"{config.path}.r{place.rank}")
        try:
            self._file = path.open("xb")
        except OSError as error:
            raise InvalidConfigError(f"cannot write {path}: {error.strerror}") from None

    def send(self, message: Message) -> None:
        """Take one message; its memory is used again when this returns."""
        for part in message.parts:
            self._file.write(part)

    def close(self, *, complete: bool = True) -> None:
        """Deliver what is left; may be called again.

        Args:
            complete: whether all that the run has was sent.
        """
        del complete
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def abort(self) -> None:
        """Release everything without waiting."""
        self._file.close()
