"""The log of librdkafka, calmed down: during an outage it repeats itself many times a second."""

import logging
import time

REPEATED_S = 30.0
"""A line of the same kind is logged again only after this time."""


class _Calm(logging.Filter):
    """Drops repetitions and gives each line the form of our own."""

    def __init__(self) -> None:
        super().__init__()
        self._until: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log; called from the threads that poll."""
        text = record.getMessage()
        # The first word is the kind, such as FAIL or CONFWARN.
        kind = text.partition(" ")[0]
        now = time.monotonic()
        if now < self._until.get(kind, 0.0):
            return False
        self._until[kind] = now + REPEATED_S
        record.msg, record.args, record.reason = "librdkafka", (), text
        return True


def client_logger(name: str) -> logging.Logger:
    """Return the logger to hand to a client of librdkafka; `name` is the module that uses it."""
    logger = logging.getLogger(f"{name}.librdkafka")
    if not any(isinstance(each, _Calm) for each in logger.filters):
        logger.addFilter(_Calm())
    return logger
