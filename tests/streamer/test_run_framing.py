"""What goes around the messages of all ranks: said once, by one rank, before and behind all."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, cast

import cbor2
import pynng
import pytest
from tests.streamer.conftest import Start, wait_until
from tests.streamer.test_run import EXIT_S, listening, needs_mpiexec, until_ended

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.execution import framing as framing_module
from lclstream.streamer.execution.framing import Framing, NotBegunError
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place
from lclstream.streamer.stopping import StopRequest

if TYPE_CHECKING:
    from lclstream.streamer.serializers import Serializer

pytestmark = pytest.mark.timeout(120)

SIMPLON = {
    "type": "SimplonBinarySerializer",
    "dialect": "stream2",
    "data_source_to_serialize": "frame",
}


def simplon(document: dict[str, Any], url: str, **handler: Any) -> dict[str, Any]:
    """Return a configuration that sends images to an address."""
    push = {"type": "BinaryDataStreamingDataHandler", "library": "nng", "urls": [url]}
    return document | {"data_serializer": SIMPLON, "data_handlers": [push | handler]}


def kind_of(message: bytes) -> str:
    def read(decoder: Any, tag: Any) -> Any:
        return tag

    return str(cbor2.loads(message, tag_hook=read)["type"])


def test_one_rank_says_beginning_and_end(document: dict[str, Any], start: Start) -> None:
    with pynng.Pull0() as pull:
        process = start(simplon(document, listening(pull)))
        kinds = [kind_of(message) for message in until_ended(pull, process)]
        _, log = process.communicate(timeout=EXIT_S)
    assert process.returncode == 0, log
    assert kinds == ["start", *["image"] * 20, "end"]


@needs_mpiexec
def test_of_several_ranks_one_says_it_before_and_behind_all(
    document: dict[str, Any], start: Start
) -> None:
    # The rank that leads has least to do, and would be behind the others and done before them.
    document["event_source"] |= {"events": 61, "rate_hz": 200}
    with pynng.Pull0() as pull:
        process = start(simplon(document, listening(pull)), ranks=3)
        kinds = [kind_of(message) for message in until_ended(pull, process)]
        _, log = process.communicate(timeout=EXIT_S)
    assert process.returncode == 0, log
    assert kinds == ["start", *["image"] * 61, "end"]


@needs_mpiexec
def test_ranks_without_events_take_part(document: dict[str, Any], start: Start) -> None:
    document["event_source"] |= {"events": 1}
    with pynng.Pull0() as pull:
        process = start(simplon(document, listening(pull)), ranks=3)
        kinds = [kind_of(message) for message in until_ended(pull, process)]
        _, log = process.communicate(timeout=EXIT_S)
    assert process.returncode == 0, log
    assert kinds == ["start", "image", "end"]


def test_ranks_that_mpi_does_not_know_of_are_told_so(
    document: dict[str, Any], start: Start
) -> None:
    process = start(
        simplon(document, "tcp://127.0.0.1:1"),
        SLURM_PROCID="1", SLURM_STEP_NUM_TASKS="2", SLURM_STEP_ID="0",
    )  # fmt: skip
    _, log = process.communicate(timeout=EXIT_S)
    assert process.returncode == 2
    assert "SimplonBinarySerializer sends messages before and behind those of all 2 ranks" in log
    assert "this is rank 1 of 2, but rank 0 of 1 for mpi4py" in log
    assert "Traceback" not in log


# Without processes: ranks are threads, and their mail goes through a box of this test.


class Mail:
    """Messages between ranks, as MPI delivers them."""

    def __init__(self, place: Place, boxes: dict[tuple[int, int, int], list[bool]]) -> None:
        self._rank, self._boxes = place.rank, boxes

    def isend(self, value: bool, rank: int, tag: int) -> object:
        self._boxes.setdefault((self._rank, rank, tag), []).append(value)
        return object()

    def iprobe(self, source: int, tag: int) -> bool:
        return bool(self._boxes.get((source, self._rank, tag)))

    def recv(self, source: int, tag: int) -> bool:
        return self._boxes[source, self._rank, tag].pop(0)


class Talkative:
    """Says one word before and one behind the stream."""

    def begin(self) -> Iterable[Message]:
        return (Message((memoryview(b"begin"),), 0),)

    def end(self) -> Iterable[Message]:
        return (Message((memoryview(b"end"),), 0),)


class Ranks:
    """Some framings, which share a box."""

    def __init__(self, count: int, leader: int, monkeypatch: pytest.MonkeyPatch) -> None:
        boxes: dict[tuple[int, int, int], list[bool]] = {}
        monkeypatch.setattr(framing_module, "world_of", lambda place: Mail(place, boxes))
        self.stop = StopRequest()
        self.said: list[tuple[int, bytes]] = []
        serializer = cast("Serializer", Talkative())
        self.framings = [Framing(serializer, Place(n, count), self.stop) for n in range(count)]
        for each in self.framings:
            each.leader = leader

    def __enter__(self) -> Self:
        self.stop.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop.__exit__(None, None, None)

    def say(self, rank: int) -> Any:
        return lambda messages: self.said.extend((rank, each.tobytes()) for each in messages)

    @contextmanager
    def begun(self, rank: int) -> Iterator[threading.Event]:
        """Let a rank wait for the beginning."""
        begun = threading.Event()

        def wait() -> None:
            self.framings[rank].begin(self.say(rank))
            begun.set()

        thread = threading.Thread(target=wait)
        thread.start()
        yield begun
        thread.join(20)
        assert not thread.is_alive()


def test_the_first_rank_with_events_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    with Ranks(3, 2, monkeypatch) as ranks, ranks.begun(0) as zero, ranks.begun(1) as one:
        assert not zero.is_set()
        ranks.framings[2].begin(ranks.say(2))
        # Once is enough.
        ranks.framings[2].begin(ranks.say(2))
        wait_until(lambda: zero.is_set() and one.is_set())
        for rank in (0, 1):
            ranks.framings[rank].end(ranks.say(rank))
            ranks.framings[rank].done(is_good=True)
        ranks.framings[2].end(ranks.say(2))
    assert ranks.said == [(2, b"begin"), (2, b"end")]


def test_a_rank_that_has_failed_leaves_the_stream_without_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Ranks(3, 0, monkeypatch) as ranks:
        for framing in ranks.framings:
            framing.begin(ranks.say(0))
        ranks.framings[2].done(is_good=False)
        ranks.framings[2].done(is_good=True)
        ranks.framings[1].done(is_good=True)
        ranks.framings[0].end(ranks.say(0))
    assert ranks.said == [(0, b"begin")]


def test_nobody_waits_for_a_leader_that_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Ranks(2, 0, monkeypatch) as ranks:
        ranks.framings[0].done(is_good=False)
        with pytest.raises(NotBegunError, match=r"^rank 0, which begins the stream, has failed$"):
            ranks.framings[1].begin(ranks.say(1))


def test_nobody_waits_when_everything_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with Ranks(2, 0, monkeypatch) as ranks:
        ranks.stop.request("canceled", now=True)
        with pytest.raises(NotBegunError, match=r"^rank 0 was not heard of: canceled$"):
            ranks.framings[1].begin(ranks.say(1))


def test_without_mpi_several_ranks_cannot_say_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mpi4py", None)
    serializer = cast("Serializer", Talkative())
    text = r"^Talkative sends messages before and .* by MPI: mpi4py cannot be used: "
    with StopRequest() as stop, pytest.raises(InvalidConfigError, match=text):
        Framing(serializer, Place(0, 2), stop)
