"""Logs as JSON lines: one snake_case event name with its keys and values.

`logger.info("consumer_behind", extra={"lag_messages": n})` becomes
`{"timestamp": ..., "level": "INFO", "logger": ..., "event": "consumer_behind", "lag_messages": 3}`.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SECRET_WORDS = ("secret", "password", "passwd", "token", "authorization", "private_key")
HIDDEN = "**********"


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON; values whose key names a secret are hidden."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
        }
        for key, value in vars(record).items():
            if key not in _STANDARD:
                line[key] = HIDDEN if names_a_secret(key) else value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def names_a_secret(key: str) -> bool:
    """Return whether what has this name must not be shown."""
    return any(word in key.lower() for word in _SECRET_WORDS)


def configure(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send the logs of the whole process as JSON lines to a stream, by default stderr."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # A line for every request of a client hides what matters.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
