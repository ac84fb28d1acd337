"""Files that are read while another process writes them."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.xtc2_runs import (
    CAMERA,
    EXPERIMENT,
    RUN,
    WAVE,
    MadeEvent,
    made_events,
    parameters,
    stream_path,
    write_chunks,
    write_run,
)
from tests.streamer.conftest import Start, wait_until

from lclstream.core.errors import DecodeError, NotFoundError
from lclstream.streamer.config import parse_parameters
from lclstream.streamer.events import Event
from lclstream.streamer.pipeline import Pipeline
from lclstream.streamer.progress import Progress
from lclstream.streamer.rank import Place
from lclstream.streamer.sources.xtc2 import Xtc2EventSource
from lclstream.streamer.sources.xtc2_file import Xtc2File
from lclstream.streamer.sources.xtc2_format import Service
from lclstream.streamer.stopping import StopRequest

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0
IDENTIFIER = f"exp={EXPERIMENT},run={RUN},live"

Grow = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def grow(tmp_path: Path) -> Iterator[Grow]:
    """Return a function that starts a process which writes recorded files again."""
    running: list[subprocess.Popen[str]] = []

    def start(folder: Path, *streams: Sequence[Path], **plan: Any) -> "subprocess.Popen[str]":
        again = [[[str(path), str(folder / path.name)] for path in chunks] for chunks in streams]
        file = tmp_path / f"plan{len(running)}.json"
        settings = {"piece": 4000, "pause_s": 0.0005, "seed": 1, **plan}
        file.write_text(json.dumps({"streams": again, **settings}))
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.xtc2_growth", str(file)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return where files are recorded beforehand, and where they grow."""
    recorded, live = tmp_path / "recorded", tmp_path / "live"
    recorded.mkdir()
    live.mkdir()
    return recorded, live


def source_of(folder: Path, rank: int = 0, size: int = 1, **options: Any) -> Xtc2EventSource:
    options = {"live_timeout_s": PATIENCE_S, "live_streams": 1, **options}
    return Xtc2EventSource(parameters(f"{IDENTIFIER},dir={folder}", source=options), rank, size)


def check(events: Sequence[Event], made: Sequence[MadeEvent]) -> None:
    assert [each.timestamp for each in events] == [each.timestamp for each in made]
    for event, one in zip(events, made, strict=True):
        wave = one.values.get(WAVE.key)
        assert event.read("wave", "fex.label") == (wave["label"] if wave else None)
        assert event.read("gas") == one.epics["gas"]


@pytest.mark.parametrize("copies", [False, True])
def test_a_growing_file_is_followed_to_its_end(
    folders: tuple[Path, Path], grow: Grow, copies: bool
) -> None:
    recorded, live = folders
    made = made_events(40)
    path = write_run(stream_path(recorded), made, detectors=[WAVE])
    # In pieces that end anywhere, far smaller than an event.
    writer = grow(live, [path], piece=300, copies=copies)
    source = source_of(live)
    check(list(source), made)
    assert source.counts == {}
    assert writer.wait(PATIENCE_S) == 0


def test_events_come_while_the_file_is_not_complete(folders: tuple[Path, Path]) -> None:
    recorded, live = folders
    made = made_events(3)
    path = write_run(stream_path(recorded), made, detectors=[WAVE])
    growing = live / (path.name + ".inprogress")
    raw = path.read_bytes()
    ends = [each.end for each in Xtc2File(path) if each.service is Service.L1ACCEPT]
    events = iter(source_of(live))
    for index, end in enumerate(ends):
        # Up to the last byte of an event, which then must not have to wait for more.
        growing.write_bytes(raw[:end]) if index == 0 else append(growing, raw[:end])
        assert next(events).timestamp == made[index].timestamp
    append(growing, raw)
    # EndRun is the end, whatever the file is called.
    assert next(events, None) is None


def append(path: Path, whole: bytes) -> None:
    with path.open("ab") as file:
        file.write(whole[file.tell() :])


def test_streams_grow_at_different_speed(folders: tuple[Path, Path], grow: Grow) -> None:
    recorded, live = folders
    made = made_events(30)
    half = [each for index, each in enumerate(made) if index % 2 == 0]
    small = [dataclasses.replace(WAVE, detector=f"wave{number}") for number in range(2)]
    renamed = [
        dataclasses.replace(
            each, values={**each.values, **{one.key: each.values[WAVE.key] for one in small}}
        )
        for each in made
    ]
    paths = [
        write_run(stream_path(recorded, 0), made, detectors=[WAVE]),
        write_run(stream_path(recorded, 1), renamed, detectors=small, epics=False),
        write_run(stream_path(recorded, 2), half, detectors=CAMERA[1:2], epics=False),
    ]
    grow(live, *([path] for path in paths), piece=60_000)
    shares = [list(source_of(live, rank, 2, live_streams=3)) for rank in range(2)]
    events = sorted(itertools.chain(*shares), key=lambda each: each.index)
    check(events, made)
    for index, event in enumerate(events):
        assert event.read("wave1", "fex.label") == made[index].values[WAVE.key]["label"]
        camera = event.read("cam", "raw.arrayRaw")
        has_camera = index % 2 == 0 and not made[index].damage
        assert (camera is not None) == has_camera


@pytest.mark.parametrize("copies", [False, True])
def test_chunks_are_followed(folders: tuple[Path, Path], grow: Grow, copies: bool) -> None:
    recorded, live = folders
    made = made_events(6)
    grow(live, write_chunks(recorded, made, cuts=[2, 3]), piece=400_000, copies=copies)
    source = source_of(live)
    check(list(source), made)
    assert source.counts == {}


def test_a_chunk_that_does_not_come(
    folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    recorded, live = folders
    made = made_events(4)
    first, _ = write_chunks(recorded, made, cuts=[2])
    first.rename(live / first.name)
    source = source_of(live, live_timeout_s=0.05)
    check(list(source), made[:2])
    assert source.counts == {"live_timeouts": 1}
    assert [each.getMessage() for each in caplog.records] == ["xtc2_live_timeout"]


def test_nothing_more_comes(folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    recorded, live = folders
    made = made_events(3)
    path = write_run(stream_path(recorded), made, detectors=[WAVE])
    (live / (path.name + ".inprogress")).write_bytes(path.read_bytes()[:-100])
    source = source_of(live, live_timeout_s=0.05)
    check(list(source), made[:2])
    assert source.counts == {"live_timeouts": 1}
    assert [each.getMessage() for each in caplog.records] == ["xtc2_live_timeout"]


def test_a_stream_that_stops_does_not_hold_up_the_others_for_ever(
    folders: tuple[Path, Path],
) -> None:
    recorded, live = folders
    made = made_events(4)
    path = write_run(stream_path(recorded, 0), made, detectors=[WAVE])
    other = write_run(stream_path(recorded, 1), made, detectors=CAMERA[:1], epics=False)
    path.rename(live / path.name)
    # Only its Configure has come.
    (live / (other.name + ".inprogress")).write_bytes(other.read_bytes()[:20_000])
    source = source_of(live, live_timeout_s=0.05, live_streams=2)
    check(list(source), made)
    assert source.counts == {"live_timeouts": 1}


def test_a_run_that_does_not_begin(folders: tuple[Path, Path]) -> None:
    _, live = folders
    message = rf"^0 instead of 2 streams of {EXPERIMENT}-r0005-s\*-c\*\.xtc2 in .* in 0.05 s$"
    with pytest.raises(NotFoundError, match=message):
        list(source_of(live, live_timeout_s=0.05, live_streams=2))


def test_a_file_gets_its_name_without_an_end(folders: tuple[Path, Path]) -> None:
    recorded, live = folders
    made = made_events(3)
    path = write_run(stream_path(recorded), made, detectors=[WAVE])
    growing = live / (path.name + ".inprogress")
    end = [each.end for each in Xtc2File(path) if each.service is Service.L1ACCEPT][-1]
    growing.write_bytes(path.read_bytes()[:end])
    events = iter(source_of(live))
    found = [next(events) for _ in made]
    growing.rename(live / path.name)
    assert next(events, None) is None
    check(found, made)


def test_a_copy_that_is_not_complete_is_not_the_end(folders: tuple[Path, Path]) -> None:
    recorded, live = folders
    made = made_events(3)
    path = write_run(stream_path(recorded), made, detectors=[WAVE])
    raw = path.read_bytes()
    last = [each.offset for each in Xtc2File(path) if each.service is Service.L1ACCEPT][-1]
    growing, final = live / (path.name + ".inprogress"), live / path.name
    growing.write_bytes(raw[:last])
    events = iter(source_of(live))
    found = [next(events), next(events)]
    final.write_bytes(raw[: last - 10])
    waiting = threading.Timer(0.1, append, [growing, raw])
    waiting.start()
    check([*found, *events], made)
    waiting.join()


def test_room_that_was_made_beforehand_is_not_read(folders: tuple[Path, Path]) -> None:
    recorded, live = folders
    made = made_events(3)
    path = write_run(stream_path(recorded), made, detectors=[WAVE])
    growing = live / (path.name + ".inprogress")
    raw = path.read_bytes()
    middle = [each.end for each in Xtc2File(path) if each.service is Service.L1ACCEPT][1]
    growing.write_bytes(raw[:middle] + bytes(len(raw) - middle))
    events = iter(source_of(live))
    found = [next(events), next(events)]
    with growing.open("r+b") as file:
        file.seek(middle)
        file.write(raw[middle:])
    check([*found, *events], made)


def test_a_file_that_shrinks_is_an_error(folders: tuple[Path, Path]) -> None:
    recorded, live = folders
    made = made_events(2)
    path = write_run(stream_path(recorded), made, detectors=[WAVE])
    growing = live / (path.name + ".inprogress")
    raw = path.read_bytes()
    growing.write_bytes(raw[:-100])
    events = iter(source_of(live))
    next(events)
    os.truncate(growing, len(raw) - 200)
    with pytest.raises(DecodeError, match=r"byte \d+: .*(the rest is gone|has become shorter)$"):
        next(events)


@pytest.mark.parametrize("bytes_there", [None, 0, 9000, -200])
def test_a_wish_to_end_cuts_every_wait_short(
    folders: tuple[Path, Path], bytes_there: int | None
) -> None:
    recorded, live = folders
    path = write_run(stream_path(recorded), made_events(2), detectors=[WAVE])
    if bytes_there is not None:
        growing = live / (path.name + ".inprogress")
        growing.write_bytes(path.read_bytes()[:bytes_there])
    source = source_of(live, live_timeout_s=0)
    with StopRequest() as stop:
        source.interrupt_by(stop)
        found: list[Event] = []
        reader = threading.Thread(target=lambda: found.extend(source))
        reader.start()
        # Whenever the wish comes: before the reader waits, or while it does.
        stop.request("enough")
        reader.join(PATIENCE_S)
        assert not reader.is_alive()
    assert len(found) <= 1


def test_the_last_event_that_is_wanted_is_the_end(folders: tuple[Path, Path]) -> None:
    recorded, live = folders
    made = made_events(2)
    path = write_run(stream_path(recorded), made, detectors=[WAVE])
    (live / (path.name + ".inprogress")).write_bytes(path.read_bytes()[:-100])
    config = parameters(f"{IDENTIFIER},dir={live},max_events=1", source={"live_streams": 1})
    check(list(Xtc2EventSource(config, 0, 1)), made[:1])


def test_a_stream_that_began_late_is_noticed(folders: tuple[Path, Path]) -> None:
    _, live = folders
    made = made_events(2)
    write_run(stream_path(live, 0), made, detectors=[WAVE])
    source = source_of(live, live_streams=1)
    events = iter(source)
    next(events)
    write_run(stream_path(live, 1), made, detectors=CAMERA[:1], epics=False)
    list(events)
    assert source.counts == {"streams_missed": 1}


def test_without_a_number_the_streams_that_appear_together_are_all(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lclstream.streamer.sources.xtc2_live.SETTLE_S", 0.02)
    _, live = folders
    made = made_events(3)
    write_run(stream_path(live, 0), made, detectors=[WAVE])
    write_run(stream_path(live, 1), made, detectors=CAMERA[1:2], epics=False)
    events = list(source_of(live, live_streams=0))
    check(events, made)
    assert events[0].read("cam", "raw.arrayRaw") is not None


def test_files_named_one_by_one_are_followed_too(folders: tuple[Path, Path], grow: Grow) -> None:
    recorded, live = folders
    made = made_events(5)
    path = write_run(recorded / "any.xtc2", made, detectors=[WAVE])
    growing = live / "any.xtc2.inprogress"
    growing.touch()
    grow(live, [path], piece=2000)
    options = {"live": True, "live_timeout_s": PATIENCE_S}
    # By its final name, which it has not got yet.
    source = Xtc2EventSource(parameters(str(live / "any.xtc2"), source=options), 0, 1)
    check(list(source), made)


def streamed(folder: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Return a configuration that writes a file for every event of a run that is followed."""
    return {
        "source_identifier": f"{IDENTIFIER},dir={folder}",
        "event_source": {"type": "Xtc2EventSource", "live_streams": 1, **options},
        "data_sources": {"pulse": {"type": "EventValue", "name": "wave", "field": "fex.pulse"}},
        "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 1},
        "data_serializer": {"type": "HDF5BinarySerializer"},
        "data_handlers": [{"type": "BinaryFileWritingDataHandler", "write_directory": str(output)}],
    }


def test_a_signal_ends_a_streamer_that_waits(
    folders: tuple[Path, Path], tmp_path: Path, start: Start
) -> None:
    recorded, live = folders
    path = write_run(stream_path(recorded), made_events(3), detectors=[WAVE])
    (live / (path.name + ".inprogress")).write_bytes(path.read_bytes()[:-100])
    process = start(streamed(live, tmp_path / "out", live_timeout_s=0))
    wait_until(lambda: len(list(tmp_path.glob("out/*.h5"))) == 2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert len(list(tmp_path.glob("out/*.h5"))) == 2


def test_what_was_found_wrong_is_reported(folders: tuple[Path, Path], tmp_path: Path) -> None:
    recorded, live = folders
    path = write_run(stream_path(recorded), made_events(3), detectors=[WAVE])
    (live / (path.name + ".inprogress")).write_bytes(path.read_bytes()[:-100])
    place = Place(0, 1)
    progress = Progress(place)
    config = parse_parameters(streamed(live, tmp_path / "out", live_timeout_s=0.05))
    with StopRequest() as stop:
        Pipeline(config, place, progress, stop).run()
    assert progress.final_report().stats["source_live_timeouts"] == 1
