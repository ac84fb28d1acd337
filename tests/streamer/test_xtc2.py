"""The event source: streams joined, events split over ranks, values as they were recorded."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.xtc2_runs import (
    CAMERA,
    EPICS,
    EXPERIMENT,
    RUN,
    START,
    WAVE,
    MadeEvent,
    field,
    made_events,
    parameters,
    same,
    stream_path,
    write_chunks,
    write_run,
)

from lclstream.core.errors import InvalidConfigError, NotFoundError
from lclstream.streamer.events import Event, open_event_source
from lclstream.streamer.sources.xtc2 import Xtc2EventSource
from lclstream.streamer.sources.xtc2_file import Xtc2File
from lclstream.streamer.sources.xtc2_format import Field, FieldType, Names, Service, later
from lclstream.streamer.sources.xtc2_index_writer import write_index
from lclstream.streamer.sources.xtc2_info import describe
from lclstream.streamer.sources.xtc2_writer import Xtc2Writer, encode_dgram

FIXTURE = Path(__file__).parents[3] / "shared/data/mfx101332224_r0007_jungfrau05M.xtc2"


def read(identifier: str, rank: int = 0, size: int = 1) -> list[Event]:
    source = open_event_source(parameters(identifier), rank, size)
    assert isinstance(source, Xtc2EventSource)
    events = list(source)
    source.close()
    return events


def expected_camera(made: MadeEvent) -> Any:
    keys = [each.key for each in CAMERA]
    if made.damage or any(key not in made.values for key in keys):
        return None
    return np.stack([made.values[key]["arrayRaw"] for key in keys])


def check(events: Sequence[Event], made: Sequence[MadeEvent]) -> None:
    assert [each.timestamp for each in events] == [each.timestamp for each in made]
    for event, one in zip(events, made, strict=True):
        camera = expected_camera(one)
        found = event.read("cam", "raw.arrayRaw")
        assert found is camera is None or same(found, camera)
        wave = one.values[WAVE.key]
        for name in ("label", "pulse", "energy", "trace"):
            assert same(event.read("wave", f"fex.{name}"), wave[name])
        assert event.read("wave", "fex.mode") == wave["mode:Mode"]
        assert same(event.read("wave", "fex.offset"), np.float64(wave["offset"]))
        assert event.read("GDET:FEE1:241") == event.read("gas") == one.epics["gas"]
        assert event.read("CXI:NOTE") == event.read("epics", "raw.note") == one.epics["note"]


def test_a_run_in_one_file(tmp_path: Path) -> None:
    made = made_events(5)
    path = write_run(stream_path(tmp_path), made)
    events = read(str(path))
    check(events, made)
    assert [each.index for each in events] == list(range(5))
    assert {(each.experiment, each.run) for each in events} == {(EXPERIMENT, RUN)}
    assert events[0].run_timestamp == later(made[0].timestamp, -50_000)


def test_streams_are_joined_by_timestamp(tmp_path: Path) -> None:
    made = made_events(6)
    # The camera's segments lie in two streams; the second is read at half the rate.
    slow = [each for index, each in enumerate(made) if index % 2 == 0]
    write_run(stream_path(tmp_path, 0), made, detectors=[WAVE, CAMERA[0]])
    write_run(stream_path(tmp_path, 1), slow, detectors=CAMERA[1:], epics=False)
    events = read(f"exp={EXPERIMENT},run={RUN},dir={tmp_path}")
    assert [each.timestamp for each in events] == [each.timestamp for each in made]
    frames = [event.read("cam", "raw.arrayRaw") for event in events]
    # Event 2 lacks a segment, the odd ones lack a stream.
    assert [frame is not None for frame in frames] == [True, False, False, False, True, False]
    assert same(frames[4], expected_camera(made[4]))
    assert [event.read("wave", "fex.label") for event in events] == [
        each.values[WAVE.key]["label"] for each in made
    ]


def test_an_event_of_one_stream_only_is_an_event(tmp_path: Path) -> None:
    made = made_events(4)
    write_run(stream_path(tmp_path, 0), made[:2], detectors=[WAVE])
    write_run(stream_path(tmp_path, 1), made[2:], detectors=[CAMERA[1]])
    events = read(f"exp={EXPERIMENT},run={RUN},dir={tmp_path}")
    assert [each.timestamp for each in events] == [each.timestamp for each in made]
    assert [each.read("wave", "fex.pulse") is None for each in events] == [False, False, True, True]


def test_what_there_is_is_known_before_the_first_event(tmp_path: Path) -> None:
    made = made_events(4)
    write_run(stream_path(tmp_path, 0), made, detectors=[WAVE])
    # The clock of this one is behind: it is configured when others have events.
    write_run(stream_path(tmp_path, 1), made[2:], detectors=CAMERA[1:2], epics=False)
    events = read(f"exp={EXPERIMENT},run={RUN},dir={tmp_path}")
    frames = [event.read("cam", "raw.arrayRaw") for event in events]
    assert [frame is None for frame in frames] == [True, True, False, False]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_ranks_share_the_events(tmp_path: Path, size: int) -> None:
    made = made_events(5)
    path = write_run(stream_path(tmp_path), made)
    shares = [read(str(path), rank, size) for rank in range(size)]
    for rank, share in enumerate(shares):
        assert all(each.index % size == rank for each in share)
    events = sorted((each for share in shares for each in share), key=lambda each: each.index)
    check(events, made)


def test_values_are_those_of_the_events_time(tmp_path: Path) -> None:
    made = made_events(6)
    events = list(read(str(write_run(stream_path(tmp_path), made))))
    # Read after the source has gone on, and in any order.
    assert [each.read("gas") for each in reversed(events)] == [2.5, 2.5, 1.5, 1.5, 0.5, 0.5]


def test_chunks_continue_a_stream(tmp_path: Path) -> None:
    made = made_events(6)
    paths = write_chunks(tmp_path, made, cuts=[2, 3])
    check(read(f"exp={EXPERIMENT},run={RUN},dir={tmp_path}"), made)
    check(read(str(tmp_path)), made)
    check(read(",".join(map(str, reversed(paths)))), made)


def test_a_chunk_that_is_announced_must_be_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = made_events(5)
    paths = write_chunks(tmp_path, made, cuts=[2, 3])
    paths[2].unlink()
    source = open_event_source(parameters(f"exp={EXPERIMENT},run={RUN},dir={tmp_path}"), 0, 1)
    events = iter(source)
    check([next(events) for _ in range(3)], made[:3])
    with pytest.raises(NotFoundError, match=r"-c001\.xtc2 goes on in .*-c002\.xtc2, which is miss"):
        next(events)
    # Who names files wants these.
    with caplog.at_level(logging.WARNING):
        check(read(str(paths[0])), made[:2])
    (record,) = caplog.records
    assert record.__dict__["what"] == "chunk_not_read"
    paths[1].unlink()
    paths[2].touch()
    with pytest.raises(InvalidConfigError, match=r"chunk 1 before .*-c002\.xtc2 is missing$"):
        read(str(tmp_path))


def test_a_stream_that_goes_back_in_time_is_read_as_it_is(tmp_path: Path) -> None:
    made = made_events(6)
    order = [0, 3, 1, 2, 5, 4]
    path = write_run(stream_path(tmp_path, 0), made, detectors=[WAVE])
    dgrams = {each.timestamp: each for each in Xtc2File(path)}
    raw = path.read_bytes()
    events = [raw[each.offset : each.end] for each in (dgrams[one.timestamp] for one in made)]
    others = [
        raw[each.offset : each.end]
        for each in dgrams.values()
        if each.service not in (Service.L1ACCEPT, Service.SLOW_UPDATE)
    ]
    path.write_bytes(b"".join([*others[:4], *(events[index] for index in order), *others[4:]]))
    assert [each.timestamp for each in read(str(path))] == [made[i].timestamp for i in order]
    # Together with another stream: every event still comes, those that go back perhaps alone.
    write_run(stream_path(tmp_path, 1), made, detectors=CAMERA[:1], epics=False)
    found = read(str(tmp_path))
    assert {each.timestamp for each in found} == {each.timestamp for each in made}
    labels = [each.read("wave", "fex.label") for each in found]
    expected = sorted(one.values[WAVE.key]["label"] for one in made)
    assert sorted(str(each) for each in labels if each is not None) == expected


def test_several_runs_follow_each_other(tmp_path: Path) -> None:
    made = made_events(6)
    first = write_run(stream_path(tmp_path, run=5), made[:2])
    second = write_run(stream_path(tmp_path, run=6), made[2:4], run=6)
    # And one more run in the same file, behind a Configure of its own.
    third = write_run(tmp_path / "third.xtc2", made[4:], run=7)
    with second.open("ab") as file:
        file.write(third.read_bytes())
    events = read(f"files={first},files={second}")
    check(events, made)
    assert [each.run for each in events] == [5, 5, 6, 6, 7, 7]
    assert [each.index for each in events] == list(range(6))
    assert len(read(f"{first},{second},max_events=3")) == 3
    assert [each.index for each in read(f"{first},{second},max_events=3", 1, 2)] == [1]


def test_a_file_without_begin_run_is_named_by_its_name(tmp_path: Path) -> None:
    made = made_events(1)[0]
    path = stream_path(tmp_path, run=12)
    file = Xtc2Writer(path, experiment="any", run=1, start=START, detectors=[WAVE])
    with file:
        file.event(made.timestamp, {WAVE.key: made.values[WAVE.key]})
    (event,) = read(str(path))
    assert (event.experiment, event.run, event.run_timestamp) == (EXPERIMENT, 12, 0)


def test_transitions_may_share_a_timestamp_with_events(tmp_path: Path) -> None:
    made = made_events(2)
    path = stream_path(tmp_path)
    file = Xtc2Writer(path, experiment="any", run=1, start=START, detectors=[WAVE], epics=EPICS)
    with file:
        file.begin_run(later(START, 10))
        file.slow_update(made[0].timestamp, made[0].epics)
        file.write(encode_dgram(Service.BEGIN_STEP, made[0].timestamp, []))
        file._last -= 1
        file.event(made[0].timestamp, {WAVE.key: made[0].values[WAVE.key]})
    (event,) = read(str(path))
    assert event.read("gas") == made[0].epics["gas"]


def test_a_cut_file_ends_early_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = made_events(3)
    path = write_run(stream_path(tmp_path), made, detectors=[WAVE])
    raw = path.read_bytes()
    path.write_bytes(raw[:-100])
    with caplog.at_level(logging.WARNING):
        events = read(str(path))
    assert len(events) == 2
    (record,) = caplog.records
    assert record.getMessage() == "xtc2_truncated"
    assert record.__dict__["offset"] + record.__dict__["bytes_left"] == len(raw) - 100


def test_panels_of_several_segments_are_joined(tmp_path: Path) -> None:
    segments = [
        Names(
            detector="jungfrau",
            algorithm="raw",
            segment=segment,
            fields=(field("raw", FieldType.U2, 3), field("count", FieldType.U4)),
        )
        # Not in order, and with a gap.
        for segment in (4, 0, 2)
    ]
    frames = {each.key: np.full((1, 2, 3), each.segment, np.uint16) for each in segments}
    path = stream_path(tmp_path)
    with Xtc2Writer(path, experiment="any", run=1, start=START, detectors=segments) as file:
        file.begin_run(later(START, 1))
        values = {key: {"raw": frame, "count": key[1]} for key, frame in frames.items()}
        file.event(later(START, 10), values)
    (event,) = read(str(path))
    frame = event.read("jungfrau", "raw.raw")
    assert same(frame, np.repeat(np.array([0, 2, 4], np.uint16), 6).reshape(3, 2, 3))
    assert same(event.read("jungfrau", "raw.count"), np.array([0, 2, 4], np.uint32))


def test_what_the_run_does_not_have_is_named(tmp_path: Path) -> None:
    (event, _) = read(str(write_run(stream_path(tmp_path), made_events(2))))
    with pytest.raises(InvalidConfigError, match=r"no detector or variable 'can' .*'cam'"):
        event.read("can", "raw.arrayRaw")
    with pytest.raises(InvalidConfigError, match=r"'cam' has no field 'raw.raw'"):
        event.read("cam", "raw.raw")
    with pytest.raises(InvalidConfigError, match=r"'GDET:FEE1:241'"):
        event.read("GDET:FEE1:242")


def test_what_is_not_there_is_refused_from_the_start(tmp_path: Path) -> None:
    path = write_run(stream_path(tmp_path), made_events(1))
    camera = {
        "type": "Psana2DetectorInterface",
        "psana_name": "cam",
        "psana_fields": "raw.arrayRaw",
    }
    variable = {"type": "EventValue", "name": "CXI:NOTE"}
    open_event_source(parameters(str(path), camera=camera, variable=variable), 0, 1).close()
    wrong = {**camera, "psana_fields": ["raw.arrayRaw", "raw.calib"]}
    with pytest.raises(InvalidConfigError, match=r"^'cam' has no field 'raw.calib'"):
        open_event_source(parameters(str(path), camera=wrong), 0, 1)


def test_a_process_variable_is_missing_before_its_first_update(tmp_path: Path) -> None:
    path = stream_path(tmp_path)
    made = made_events(1)[0]
    file = Xtc2Writer(path, experiment="any", run=1, start=START, detectors=[WAVE], epics=EPICS)
    with file:
        file.begin_run(later(START, 1))
        file.event(made.timestamp, {WAVE.key: made.values[WAVE.key]})
    (event,) = read(str(path))
    assert event.read("gas") is None


def test_a_configuration_is_read_like_a_detector(tmp_path: Path) -> None:
    label = Field(name="high:Gain", type=FieldType.ENUMDICT)
    gain = Field(name="user.gain:Gain", type=FieldType.ENUMVAL)
    config = Names(detector="cam", algorithm="config", fields=(label, gain))
    path = stream_path(tmp_path)
    detectors = [config, WAVE]
    with Xtc2Writer(path, experiment="any", run=1, start=START, detectors=detectors) as file:
        file.begin_run(later(START, 1))
        for step in (1, 2):
            values = {"high:Gain": 1, "user.gain:Gain": step}
            file.transition(Service.BEGIN_STEP, later(START, 10 * step), {config.key: values})
            made = made_events(1)[0].values[WAVE.key]
            file.event(later(START, 10 * step + 1), {WAVE.key: made})
    assert [each.read("cam", "config.user.gain") for each in read(str(path))] == [1, 2]


def test_a_listing_says_what_is_there(tmp_path: Path) -> None:
    path = write_run(stream_path(tmp_path), made_events(3))
    lines = list(describe(str(path)))
    assert lines[0] == f"{path}: {path.stat().st_size} bytes"
    assert "3 L1ACCEPT" in lines[1]
    assert lines[2].startswith("  events from 2024-11-09T11:33:20.001")
    cameras = [line for line in lines if line.startswith("  cam[")]
    assert cameras[1] == "  cam[1] (cspad serial1) raw 2.3.42: arrayRaw int32 rank 2; in 3 events"
    assert [line.rpartition(" in ")[2] for line in cameras] == ["2 events", "3 events", "3 events"]
    assert any("label text, pulse uint64, energy float32" in line for line in lines)
    assert "  epics[0] (epics ) raw 2.0.0: gas float64, note text; in 2 transitions" in lines
    assert lines[-2:] == ["  epics gas: GDET:FEE1:241", "  epics note: CXI:NOTE"]
    assert list(describe(f"exp={EXPERIMENT},run={RUN},live,dir={tmp_path}")) == lines
    with pytest.raises(InvalidConfigError, match=r"no tst000124-r0006-.* so far"):
        list(describe(f"exp={EXPERIMENT},run=6,live,dir={tmp_path}"))
    smalldata = write_index([path])
    assert f"  index: {smalldata}" in describe(str(path))
    path.write_bytes(path.read_bytes()[:-1])
    assert any(line.startswith("  cut off: 23 bytes from byte") for line in describe(str(path)))


@pytest.mark.skipif(not FIXTURE.exists(), reason="real Jungfrau data are not here")
def test_real_jungfrau_data() -> None:
    events = read(str(FIXTURE))
    assert [each.timestamp for each in events] == [4776162079372773723, 4776162079381031262]
    assert {(each.experiment, each.run) for each in events} == {("mfx101332224", 7)}
    assert events[0].run_timestamp == 4776162078881255856
    frames = [event.read("jungfrau", "raw.raw") for event in events]
    pixels, other = (frame for frame in frames if isinstance(frame, np.ndarray))
    assert pixels.dtype == np.dtype(np.uint16)
    assert pixels.shape == other.shape == (1, 512, 1024)
    assert [int(pixels.sum()), int(other.sum())] == [1259083664, 1253622659]
    gain_bits = np.asarray(pixels, np.uint16).ravel() >> 14
    assert np.bincount(gain_bits, minlength=4).tolist() == [523681, 151, 0, 456]
    assert not pixels.flags.writeable
    assert events[0].read("jungfrau", "raw.frame_cnt") == 7665
    assert events[0].read("jungfrau", "config.user.gainMode") == 0
