"""Where messages go that cannot be handled: to a topic, to a file, or to both.

A letter holds the message as it came, unless that is long, where it lay and what was wrong, so
that a person can repair and replay it. The watcher goes on only when the letter is stored.
"""

import base64
import contextlib
import json
import logging
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lclstream.core.errors import BackendError
from lclstream.elog.messages import RawMessage
from lclstream.elog.models import rfc3339
from lclstream.elog.producer import KafkaWriter

logger = logging.getLogger(__name__)

LONGEST_VALUE_BYTES = 128 * 1024
"""A longer message is not in its letter: escaped as JSON it may be more than a broker takes."""

Letter = dict[str, Any]
Place = Callable[[Letter], Awaitable[None]]
"""Stores a letter; raises BackendError or DeliveryError when trying again may help."""


def letter(message: RawMessage, reason: str, dag_run_id: str | None = None) -> Letter:
    """Return what is kept of a message.

    Args:
        message: as it came.
        reason: one sentence.
        dag_run_id: the DAG run that could not be made; None when the message is not readable.
    """
    position, value = message.position, message.value
    if value is not None and len(value) > LONGEST_VALUE_BYTES:
        reason += f" (the message is left out, its {len(value)} bytes lie at its offset)"
        value = None
    text: str | None = None
    with contextlib.suppress(UnicodeDecodeError):
        text = value.decode() if value is not None else None
    unreadable = value is not None and text is None
    return {
        "time": rfc3339(datetime.now(UTC)),
        "topic": position.topic,
        "partition": position.partition,
        "offset": position.offset,
        "timestamp": rfc3339(position.recorded_at),
        "error": reason,
        "dag_run_id": dag_run_id,
        "value": text,
        "value_base64": base64.b64encode(value or b"").decode() if unreadable else None,
    }


class DeadLetters:
    """Stores letters where the configuration says."""

    def __init__(self, writer: KafkaWriter | None, topic: str | None, file: Path | None) -> None:
        """Name the places; a topic needs a writer."""
        self._writer, self._topic, self._file = writer, topic, file

    def places(self) -> list[Place]:
        """Return what stores a letter, one for each place: each is tried until it has it."""
        return [
            *([self._append] if self._file is not None else []),
            *([self._publish] if self._writer is not None and self._topic is not None else []),
        ]

    async def _append(self, content: Letter) -> None:
        if self._file is not None:
            append_line(self._file, content)

    async def _publish(self, content: Letter) -> None:
        if self._writer is not None and self._topic is not None:
            await self._writer.publish(self._topic, content, key=_key(content))


def log(content: Letter) -> None:
    """Say that a letter is stored."""
    logger.error("dead_letter", extra={name: content[name] for name in _LOGGED})


_LOGGED = ("topic", "partition", "offset", "error", "dag_run_id")


def _key(content: Letter) -> str:
    return f"{content['topic']}:{content['partition']}"


def append_line(path: Path, content: Letter) -> None:
    """Append one line of JSON and make it last; several processes may do so.

    Raises:
        BackendError: the file cannot be written.
    """
    line = json.dumps(content).encode() + b"\n"
    try:
        # One write of the whole line: another process cannot come between.
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        try:
            os.write(handle, line)
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise BackendError(f"cannot write {path}: {error.strerror}") from error
