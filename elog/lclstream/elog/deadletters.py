"""Where messages go that cannot be handled: to a topic, to a file, or to both.

A letter holds the message as it came, where it lay and what was wrong, so that a person can
repair and replay it. The watcher goes on only when the letter is stored.
"""

import base64
import contextlib
import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lclstream.core.errors import BackendError
from lclstream.elog.messages import RawMessage
from lclstream.elog.models import rfc3339
from lclstream.elog.producer import KafkaWriter

logger = logging.getLogger(__name__)


def letter(message: RawMessage, reason: str, dag_run_id: str | None = None) -> dict[str, Any]:
    """Return what is kept of a message.

    Args:
        message: as it came.
        reason: one sentence.
        dag_run_id: the DAG run that could not be made; None when the message is not readable.
    """
    position = message.position
    text: str | None = None
    with contextlib.suppress(UnicodeDecodeError):
        text = message.value.decode() if message.value is not None else None
    unreadable = message.value is not None and text is None
    return {
        "time": rfc3339(datetime.now(UTC)),
        "topic": position.topic,
        "partition": position.partition,
        "offset": position.offset,
        "timestamp": rfc3339(position.recorded_at),
        "error": reason,
        "dag_run_id": dag_run_id,
        "value": text,
        "value_base64": base64.b64encode(message.value or b"").decode() if unreadable else None,
    }


class DeadLetters:
    """Stores letters where the configuration says."""

    def __init__(self, writer: KafkaWriter | None, topic: str | None, file: Path | None) -> None:
        """Name the places; a topic needs a writer."""
        self._writer, self._topic, self._file = writer, topic, file

    async def put(self, content: dict[str, Any]) -> None:
        """Store a letter in every place; a repeated call may store it again.

        Raises:
            DeliveryError: the broker did not take it.
            BackendError: the file could not be written.
        """
        if self._file is not None:
            append_line(self._file, content)
        if self._writer is not None and self._topic is not None:
            await self._writer.publish(self._topic, content, key=_key(content))
        logger.error("dead_letter", extra={name: content[name] for name in _LOGGED})


_LOGGED = ("topic", "partition", "offset", "error", "dag_run_id")


def _key(content: dict[str, Any]) -> str:
    return f"{content['topic']}:{content['partition']}"


def append_line(path: Path, content: dict[str, Any]) -> None:
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
