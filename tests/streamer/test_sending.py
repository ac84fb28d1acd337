"""The end of sending: signals that set a limit, and receivers that never acknowledge."""

import os
import signal
import threading
from typing import Any

import pytest
from tests.streamer.conftest import wait_until

from lclstream.streamer.config import parse_parameters
from lclstream.streamer.execution.framing import Framing
from lclstream.streamer.execution.pool import BatchPool
from lclstream.streamer.execution.sender import Sender, StuckError
from lclstream.streamer.message import Message
from lclstream.streamer.progress import Progress
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers import open_serializer
from lclstream.streamer.stopping import StopRequest


class StuckHandler:
    """Waits for an acknowledgement that does not come until the test ends."""

    def __init__(self) -> None:
        self.closing, self.end = threading.Event(), threading.Event()

    def send(self, message: Message) -> None:
        """Take nothing."""

    def close(self, *, complete: bool = True) -> None:
        """Hang."""
        assert complete
        self.closing.set()
        self.end.wait(60)

    def abort(self) -> None:
        """Do nothing."""


def test_signal_lets_what_was_read_be_delivered_only_for_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lclstream.streamer.stopping.SIGNAL_TIMEOUT_S", 0.3)
    with StopRequest() as stop, stop.on_signals():
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: stop.requested)
        assert not stop.now
        wait_until(lambda: stop.now)


def cancel(stop: StopRequest, handler: StuckHandler) -> None:
    handler.closing.wait(10)
    stop.request("canceled", now=True)


def test_stop_does_not_wait_for_acknowledgements(
    monkeypatch: pytest.MonkeyPatch, document: dict[str, Any]
) -> None:
    monkeypatch.setattr("lclstream.streamer.execution.sender.GIVE_UP_S", 0.1)
    place, handler = Place(0, 1), StuckHandler()
    serializer = open_serializer(parse_parameters(document), place)
    with StopRequest() as stop:
        pool = BatchPool(serializer.new_batch, stop)
        framing = Framing(serializer, place, stop)
        sender = Sender(serializer, [("0", handler)], pool, Progress(place), stop, framing)
        canceler = threading.Thread(target=cancel, args=(stop, handler))
        canceler.start()
        with (
            pytest.raises(StuckError, match=r"^unacknowledged messages thrown away: canceled$"),
            sender,
        ):
            pass
        handler.end.set()
        canceler.join()
        for thread in (sender._thread, *(lane.thread for lane in sender.lanes)):
            thread.join()
