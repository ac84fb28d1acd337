"""Runs that were ended or killed are continued: nothing is lost, and what is double is known."""

import io
import json
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.buffer.serving import finish, serving
from tests.streamer.conftest import wait_until
from tests.streamer.forked_ranks import ForkedRank, Ranks
from tests.streamer.test_run import pushing, writing

from lclstream.buffer.endpoints import Pull
from lclstream.core.errors import DecodeError, EndOfStream, InvalidConfigError
from lclstream.core.ledger import Tally
from lclstream.streamer.checkpoint import Checkpoint
from lclstream.streamer.config import BinaryFileWritingDataHandlerConfig
from lclstream.streamer.event_set import EventSet, Run, runs_from, runs_of
from lclstream.streamer.handlers.files import BinaryFileWritingDataHandler
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place

pytestmark = pytest.mark.timeout(180)

HASH = "c" * 64
ONLY = Place(0, 1)
SOAK = bool(os.environ.get("LCLSTREAM_SOAK"))


# Sets of events.


def expanded(runs: list[Run]) -> list[int]:
    return [index for first, last, step in runs for index in range(first, last + 1, step)]


@given(
    st.lists(st.integers(1, 9) | st.integers(1, 1 << 40)),
    st.integers(0, 1 << 62),
    st.integers(1, 9),
)
def test_indices_are_kept_exactly(distances: list[int], first: int, step: int) -> None:
    # Also one that is not in order.
    index = np.cumsum([first, *distances]).astype(np.uint64)
    for each in (index, index[::-1].copy(), index[:0]):
        runs = runs_of(each, step)
        assert expanded(runs) == each.tolist()
        assert runs_from(json.loads(json.dumps(runs)), "here") == runs


def test_the_events_of_a_rank_are_one_run() -> None:
    held = EventSet()
    for start in range(5, 3_000_000, 3 * 1000):
        held.add(runs_of(np.arange(start, start + 3000, 3, dtype=np.uint64), 3))
    # Also where a message has one event.
    held.add([(3_000_002, 3_000_002, 3)])
    assert list(held.runs()) == [(5, 3_000_002, 3)]
    assert len(held) == 1_000_000
    assert 5 in held
    assert 3_000_002 in held
    assert 4 not in held
    assert 3_000_005 not in held


@given(st.lists(st.lists(st.integers(0, 200), max_size=30)), st.integers(1, 5))
def test_sets_know_what_was_added(parts: list[list[int]], step: int) -> None:
    held, model = EventSet(), set()
    for part in parts:
        held.add(runs_of(np.array(part, np.uint64), step))
        model |= set(part)
        assert [index in held for index in range(201)] == [index in model for index in range(201)]
    assert bool(held) == bool(model)


@pytest.mark.parametrize(
    "document",
    [
        {},
        [1],
        [[1, 2]],
        [[2, 1, 1]],
        [[0, 4, 3]],
        [[0, 1, 0]],
        [[-1, 1, 1]],
        [[0, 1.0, 1]],
        [[True] * 3],
    ],
)
def test_what_is_no_run_is_refused(document: Any) -> None:
    with pytest.raises(DecodeError, match=r"^here: "):
        runs_from(document, "here")


# What arrived, in a file.


def arrived(path: Path, place: Place, *runs: Run) -> None:
    checkpoint = Checkpoint(path, place, HASH)
    checkpoint.open()
    for run in runs:
        checkpoint.add([run])
    checkpoint.close()
    checkpoint.close()


def test_a_checkpoint_remembers_what_all_ranks_have_added(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state[1]"
    arrived(path, Place(0, 2), (0, 8, 2))
    arrived(path, Place(1, 2), (1, 1, 2), (3, 5, 2))
    arrived(path, Place(0, 2), (10, 10, 2))
    found = Checkpoint(path, Place(0, 3), HASH).events
    assert sorted(found.runs()) == [(0, 10, 2), (1, 5, 2)]
    # What was killed in the middle of a line, and then begun again.
    with path.with_name("state[1].r1").open("ab") as file:
        file.write(b"[[7,9")
    assert 5 in (found := Checkpoint(path, Place(1, 2), HASH).events)
    assert 7 not in found
    arrived(path, Place(1, 2), (7, 9, 2))
    assert sorted(Checkpoint(path, Place(0, 1), HASH).events.runs()) == [(0, 10, 2), (1, 9, 2)]
    assert sorted(each.name for each in path.parent.iterdir()) == ["state[1].r0", "state[1].r1"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'{"rank":0,"ranks":1,"configuration":"dddddddd"}\n', r" is of another configuration "),
        (b"rubbish\n", r", line 1: not JSON"),
        (b"[]\n", r", line 1: names no configuration"),
        (b'{"configuration":"' + HASH.encode() + b'"}\n[[1]]\n', r", line 2: a run of events must"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "state.r0").write_bytes(content)
    with pytest.raises(InvalidConfigError, match=text):
        Checkpoint(tmp_path / "state", Place(0, 1), HASH)


# Manifests and journals.


def writer(folder: Path, place: Place = ONLY, **options: Any) -> BinaryFileWritingDataHandler:
    document = {"write_directory": str(folder), "resume": True, **options}
    config = BinaryFileWritingDataHandlerConfig.model_validate(document)
    return BinaryFileWritingDataHandler(config, place)


def put(handler: BinaryFileWritingDataHandler, *numbers: int) -> None:
    for number in numbers:
        index = np.arange(2 * number, 2 * number + 2, dtype=np.uint64)
        handler.send(Message((memoryview(b"message "), memoryview(b"%d" % number)), 2, index))


def begun(folder: Path, *numbers: int, place: Place = ONLY) -> None:
    """Write files as a rank that is killed then."""
    handler = writer(folder, place)
    handler.prepare(HASH)
    put(handler, *numbers)
    assert handler._journal is not None
    handler._journal.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_numbers_go_on_behind_a_killed_run(tmp_path: Path) -> None:
    begun(tmp_path, 0, 1)
    assert names(tmp_path) == ["r0.journal", "r0_0.h5", "r0_1.h5"]
    # It was about to announce one file, and to write another one.
    (tmp_path / "r0_2.h5").write_bytes(b"message 2")
    (tmp_path / ".r0_3.h5.abcdefgh").write_bytes(b"mess")
    handler = writer(tmp_path)
    held = handler.prepare(HASH)
    assert held is not None
    assert [index for index in range(9) if index in held] == [0, 1, 2, 3]
    put(handler, 2)
    handler.close()
    assert names(tmp_path) == ["r0.manifest.json", *(f"r0_{n}.h5" for n in range(3))]
    assert (tmp_path / "r0_2.h5").read_bytes() == b"message 2"
    manifest = json.loads((tmp_path / "r0.manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["configuration"] == HASH
    assert [each["index"] for each in manifest["files"]] == [[[0, 1, 1]], [[2, 3, 1]], [[4, 5, 1]]]


def test_a_rank_that_is_just_beginning_has_nothing_to_continue(tmp_path: Path) -> None:
    begun(tmp_path, 0)
    (tmp_path / "r1.journal").write_bytes(b'{"rank": 1')
    handler = writer(tmp_path, Place(1, 2))
    held = handler.prepare(HASH)
    assert held is not None
    assert list(held.runs()) == [(0, 1, 1)]
    put(handler, 5)
    lines = (tmp_path / "r1.journal").read_text().splitlines()
    assert [json.loads(line).get("rank") for line in lines] == [1, None]
    handler.close()
    assert names(tmp_path) == ["r0.journal", "r0_0.h5", "r1.manifest.json", "r1_0.h5"]


def test_a_complete_run_has_nothing_to_continue(tmp_path: Path) -> None:
    for _ in range(2):
        handler = writer(tmp_path)
        handler.prepare(HASH)
        put(handler, *() if names(tmp_path) else (0, 1))
        handler.close()
    assert len(json.loads((tmp_path / "r0.manifest.json").read_text())["files"]) == 2


@pytest.mark.parametrize("damage", ["shorter", "gone", "other"])
def test_a_file_that_is_not_whole_is_written_again(tmp_path: Path, damage: str) -> None:
    begun(tmp_path, 0, 1, 2)
    path = tmp_path / "r0_2.h5"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"messagX 2" if damage == "other" else b"mess")
    handler = writer(tmp_path)
    held = handler.prepare(HASH)
    assert held is not None
    assert [index for index in range(9) if index in held] == [0, 1, 2, 3]
    assert names(tmp_path) == ["r0.journal", "r0_0.h5", "r0_1.h5"]
    put(handler, 2)
    handler.close()
    files = json.loads((tmp_path / "r0.manifest.json").read_text())["files"]
    assert [each["file"] for each in files] == ["r0_0.h5", "r0_1.h5", "r0_3.h5"]


def test_ranks_that_are_no_more_are_continued_by_the_others(tmp_path: Path) -> None:
    for rank in range(3):
        begun(tmp_path, rank, place=Place(rank, 3))
    (tmp_path / "r2_1.h5").write_bytes(b"not announced")
    for rank in range(2):
        handler = writer(tmp_path, Place(rank, 2))
        held = handler.prepare(HASH)
        assert held is not None
        assert [index for index in range(9) if index in held] == [0, 1, 2, 3, 4, 5]
        handler.close()
    assert names(tmp_path) == [
        *(f"r{rank}{end}" for rank in range(3) for end in (".manifest.json", "_0.h5"))
    ]
    manifest = json.loads((tmp_path / "r2.manifest.json").read_text())
    assert (manifest["continued"], manifest["complete"]) == (True, False)


def test_what_cannot_be_continued_is_left_as_it_is(tmp_path: Path) -> None:
    begun(tmp_path, 0)
    (tmp_path / "r0_1.h5").touch()
    before = names(tmp_path)
    with pytest.raises(
        InvalidConfigError, match=r"holds files of another configuration \(cccccccc"
    ):
        writer(tmp_path).prepare("d" * 64)
    assert names(tmp_path) == before
    (tmp_path / "r0_7.h5").touch()
    with pytest.raises(
        InvalidConfigError, match=r"r0_7\.h5 is in no manifest or journal: it cannot"
    ):
        writer(tmp_path)
    (tmp_path / "r0_7.h5").unlink()
    (tmp_path / "r0.journal").write_text("rubbish\n")
    with pytest.raises(InvalidConfigError, match=r"^cannot continue the earlier run: .*not JSON"):
        writer(tmp_path)


@pytest.mark.parametrize(
    "document",
    [[], {}, {"rank": "0"}, {"rank": 0, "ranks": 1}, {"rank": 0, "ranks": 1, "files": [{}]},
     {"rank": 0, "ranks": 1, "configuration": 3, "files": []},
     {"rank": 0, "ranks": 1, "files": [{"file": "../x", "bytes": 0, "events": 0, "xxh3_64": ""}]}],
)  # fmt: skip
def test_a_damaged_manifest_is_refused(tmp_path: Path, document: Any) -> None:
    (tmp_path / "r0.manifest.json").write_text(json.dumps(document))
    with pytest.raises(InvalidConfigError, match=r"^cannot continue the earlier run: .*manifest"):
        writer(tmp_path)


def test_continuing_and_replacing_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"overwrite begins anew, resume continues: choose"):
        writer(tmp_path, overwrite=True)


# Whole runs.


@pytest.fixture(scope="module")
def forking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with Ranks(tmp_path_factory.mktemp("ranks")) as made:
        yield made


@pytest.fixture
def ranks(forking: Ranks) -> Iterator[Ranks]:
    yield forking
    forking.kill_all()


def index_in(message: bytes) -> list[int]:
    with h5py.File(io.BytesIO(message)) as file:
        return [int(index) for index in file["lclstream/event_index"][...]]


def in_files(folder: Path) -> list[int]:
    return [index for path in folder.glob("*.h5") for index in index_in(path.read_bytes())]


def test_files_of_killed_ranks_are_continued_by_another_number_of_ranks(
    document: dict[str, Any], ranks: Ranks, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    document["event_source"] |= {"events": 400, "rate_hz": 2000, "shape": [4, 4]}
    document = writing(document, folder)
    running = [ranks.start(document, rank, 3) for rank in range(3)]
    for number, rank in enumerate(running):
        wait_until(partial((folder / f"r{number}_{3 + number}.h5").exists))
        rank.kill()
    before = in_files(folder)
    assert 20 < len(before) < 400
    for size, options in ((2, ("-n", "150")), (4, ())):
        running = [ranks.start(document, rank, size, "--resume", *options) for rank in range(size)]
        assert [rank.wait() for rank in running] == [0] * size
        after = in_files(folder)
        # Nothing twice.
        assert Counter(after).most_common(1)[0][1] == 1
        assert set(before) < set(after)
        left_out = sum(rank.end["events_left_out"] for rank in running)
        read = sum(rank.end["events_read"] for rank in running)
        assert read == len(after) - len(before)
        assert left_out + read == (300 if size == 2 else 400)
        before = after
    assert sorted(before) == list(range(400))
    # And once more, with nothing to do.
    rank = ranks.start(document, 0, 1, "--resume")
    assert (rank.wait(), rank.end["events_left_out"], rank.end["events"]) == (0, 400, 0)


def test_a_changed_configuration_is_not_continued(
    document: dict[str, Any], ranks: Ranks, tmp_path: Path
) -> None:
    document = writing(document, tmp_path / "out")
    assert ranks.start(document, 0, 1, "-n", "4").wait() == 0
    document["event_source"]["seed"] = 1
    rank = ranks.start(document, 0, 1, "--resume")
    assert rank.wait() == 2
    assert "holds files of another configuration" in rank.log
    assert "Traceback" not in rank.log


def test_there_must_be_something_to_continue_from(
    document: dict[str, Any], ranks: Ranks, tmp_path: Path
) -> None:
    rank = ranks.start(document, 0, 1, "--resume")
    assert rank.wait() == 2
    assert "--resume continues from the manifests of files, and no handler writes files" in rank.log


def test_events_before_an_index_are_left_out(
    document: dict[str, Any], ranks: Ranks, tmp_path: Path
) -> None:
    rank = ranks.start(writing(document, tmp_path / "out"), 1, 2, "--resume-from", "7")
    assert rank.wait() == 0, rank.log
    assert sorted(in_files(tmp_path / "out")) == [7, 9, 11, 13, 15, 17, 19]
    assert rank.end["resume_index"] == 20


class Consumers:
    """Takes everything from a buffer, in threads, and acknowledges it."""

    def __init__(self, url: str, count: int) -> None:
        self.events: list[int] = []
        self.tally = Tally()
        self._url = url
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._consume) for _ in range(count)]

    def __enter__(self) -> "Consumers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def have(self, rank: int, size: int, count: int) -> bool:
        """Return whether so many events of a rank have come."""
        with self._lock:
            return sum(index % size == rank for index in self.events) >= count

    def _consume(self) -> None:
        with Pull(self._url, acknowledge=True) as pull:
            while True:
                try:
                    message = bytes(pull.recv(60))
                except EndOfStream:
                    return
                with self._lock:
                    self.tally.add(message)
                    self.events += index_in(message)


@pytest.mark.parametrize("seed", range(5 if SOAK else 1))
def test_killed_ranks_behind_a_buffer_are_continued(
    document: dict[str, Any], ranks: Ranks, tmp_path: Path, seed: int
) -> None:
    """Eight ranks, two consumers: every event arrives, and only the killed ones' twice."""
    chance = random.Random(seed)  # noqa: S311
    count, size = 800, 8
    document["event_source"] |= {"events": count, "rate_hz": 300, "shape": [8, 8]}
    document["processing_pipeline"]["batch_size"] = 4
    state = str(tmp_path / "state")
    with serving(tmp_path, "--delivery", "safe", "--resume-timeout", "0.1") as (buffer, addresses):
        document = pushing(document, addresses["in"][0], delivery="safe")

        def begin(rank: int) -> ForkedRank:
            return ranks.start(document, rank, size, "--resume-file", state)

        with Consumers(addresses["out"][0], 2) as consumers:
            running = [begin(rank) for rank in range(size)]
            for rank in chance.sample(range(size), 3):
                # Some of its events have arrived, many have not.
                wait_until(partial(consumers.have, rank, size, chance.randrange(10, 30)))
                running[rank].kill()
                running[rank] = begin(rank)
            assert [rank.wait() for rank in running] == [0] * size, [r.log for r in running]
            buffer.send_signal(signal.SIGTERM)
        _, report = finish(buffer)
    assert report["counters"]["producers_unfinished"] <= 3
    # They went on where the killed ones knew to have been.
    assert sum(rank.end["events_left_out"] for rank in running) > 0
    times = Counter(consumers.events)
    assert set(times) == set(range(count))
    # An event comes twice if its rank was killed before it knew that it had arrived.
    assert set(times.values()) <= {1, 2}
    twice = sum(times.values()) - count
    assert twice < count // 4
    # The consumers have what the buffer had, to the last bit.
    assert report["received"] == report["sent"]
    assert report["sent"]["digest"] == f"{consumers.tally.digest:016x}"
    assert report["sent"]["messages"] == consumers.tally.messages
    assert report["counters"]["missing_in"] == report["counters"]["undelivered"] == 0
    # And each rank knows that it has nothing more to do.
    again = [begin(rank) for rank in range(size)]
    assert sum(rank.wait() == 0 for rank in again) == size
    assert sum(rank.end["events_left_out"] for rank in again) == count
