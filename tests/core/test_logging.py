"""Logs as JSON lines, without secrets."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from lclstream.core.logging import HIDDEN, configure


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure("info", stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


def test_event_with_keys_and_values(lines: io.StringIO) -> None:
    logging.getLogger("lclstream.buffer").info("consumer_behind", extra={"lag_messages": 3})
    line = json.loads(lines.getvalue())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "INFO",
        "logger": "lclstream.buffer",
        "event": "consumer_behind",
        "lag_messages": 3,
    }


@pytest.mark.parametrize("key", ["cb_secret", "password", "Authorization", "bearer_token"])
def test_secret_is_hidden(lines: io.StringIO, key: str) -> None:
    logging.getLogger("x").info("job_submitted", extra={key: "hunter2"})
    assert "hunter2" not in lines.getvalue()
    assert json.loads(lines.getvalue())[key] == HIDDEN


def test_newline_in_a_value_forges_no_line(lines: io.StringIO) -> None:
    logging.getLogger("x").info("job_failed", extra={"info": 'x\n{"event": "forged"}'})
    assert len(lines.getvalue().splitlines()) == 1


def test_exception_is_in_the_same_line(lines: io.StringIO) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("x").exception("task_died")
    (line,) = lines.getvalue().splitlines()
    assert "ValueError: broken" in json.loads(line)["exception"]
