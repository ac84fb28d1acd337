"""What a run announces and says outside of events: steps, variables, labels, segments, damage."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.xtc2_runs import (
    CAMERA,
    EPICS,
    START,
    WAVE,
    field,
    made_events,
    parameters,
    same,
    stream_path,
    wave_values,
    write_run,
)

from lclstream.core.errors import DecodeError, InvalidConfigError
from lclstream.streamer.events import Event
from lclstream.streamer.sources.xtc2 import Xtc2EventSource
from lclstream.streamer.sources.xtc2_file import Xtc2File
from lclstream.streamer.sources.xtc2_format import (
    XTC_HEADER,
    Damage,
    Field,
    FieldType,
    Names,
    Service,
    later,
)
from lclstream.streamer.sources.xtc2_layout import Layout
from lclstream.streamer.sources.xtc2_readings import Xtc2Readings
from lclstream.streamer.sources.xtc2_stream import Reading, Stream
from lclstream.streamer.sources.xtc2_writer import Xtc2Writer, encode_dgram, encode_names

SCAN = {"motor": FieldType.F8, "mode": FieldType.CHARSTR}


def writer(path: Path, *detectors: Names, **options: Any) -> Xtc2Writer:
    return Xtc2Writer(path, experiment="any", run=1, start=START, detectors=detectors, **options)


def source_of(path: Path, rank: int = 0, size: int = 1, **options: Any) -> Xtc2EventSource:
    return Xtc2EventSource(parameters(str(path), source=options), rank, size)


def read(path: Path, **options: Any) -> list[Event]:
    return list(source_of(path, **options))


def wave_event(file: Xtc2Writer, nanoseconds: int, index: int = 0) -> None:
    file.event(later(START, nanoseconds), {WAVE.key: wave_values(index)})


def test_steps_are_numbered_within_their_run(tmp_path: Path) -> None:
    path = stream_path(tmp_path)
    with writer(path, WAVE, scan=SCAN) as file:
        wave_event(file, 5)
        for run, begin in enumerate((100, 1000)):
            file.begin_run(later(START, begin), run=run, scan={"motor": 0.5, "mode": "up"})
            wave_event(file, begin + 10)
            file.next_step(later(START, begin + 20), {"motor": 1.5, "mode": "down"})
            wave_event(file, begin + 30)
            file.next_step(later(START, begin + 40))
            wave_event(file, begin + 50)
            file.end_run(later(START, begin + 60))
    events = read(path)
    assert [each.step for each in events] == [0, 0, 1, 2, 0, 1, 2]
    motors = [None, 0.5, 1.5, 1.5, 0.5, 1.5, 1.5]
    assert [each.read("scan", "raw.motor") for each in events] == motors
    # As psana's Detector("motor").
    assert [each.read("motor") for each in events] == motors
    modes = [None, "up", "down", "down"]
    assert [each.read("mode") for each in events][:4] == modes


def test_a_step_that_is_announced_twice_is_one_step(tmp_path: Path) -> None:
    path = stream_path(tmp_path)
    with writer(path, WAVE) as file:
        file.transition(Service.BEGIN_RUN, later(START, 10))
        file.transition(Service.BEGIN_STEP, later(START, 11))
        file.transition(Service.BEGIN_STEP, later(START, 12))
        wave_event(file, 20)
        # Neither EndStep nor Enable between.
        file.transition(Service.BEGIN_STEP, later(START, 21))
        wave_event(file, 30)
    assert [each.step for each in read(path)] == [0, 1]


def test_values_of_another_run_are_not_those_of_this(tmp_path: Path) -> None:
    path = stream_path(tmp_path)
    config = Names(detector="cam", algorithm="config", fields=(field("gain", FieldType.U4),))
    with writer(path, WAVE, config, epics=EPICS, scan=SCAN) as file:
        for begin in (100, 1000):
            scan = {"motor": 1.0, "mode": "x"} if begin == 100 else {}
            file.begin_run(later(START, begin), scan=scan)
            wave_event(file, begin + 5)
            if begin == 100:
                file.slow_update(later(START, begin + 7), {"gas": 2.5, "note": "first run"})
            wave_event(file, begin + 10)
            file.end_run(later(START, begin + 20))
    events = read(path)
    assert [each.read("GDET:FEE1:241") for each in events] == [None, 2.5, None, None]
    assert [each.read("motor") for each in events] == [1.0, 1.0, None, None]


def test_variables_have_several_names(tmp_path: Path) -> None:
    path = stream_path(tmp_path)
    epics = {
        "beam:energy": ("GDET:FEE1:241:ENRC,in mJ", FieldType.F8),
        "STATE:OF:GUN": ("STATE:OF:GUN", FieldType.ENUMVAL),
        "motor": ("XRT:M1", FieldType.I4),
    }
    with writer(path, WAVE, epics=epics, scan={"motor": FieldType.F8}) as file:
        file.begin_run(later(START, 10), scan={"motor": 0.5})
        file.slow_update(later(START, 20), {"beam:energy": 1.5, "STATE:OF:GUN": 3, "motor": 7})
        wave_event(file, 30)
    (event,) = read(path)
    for name in ("beam:energy", "GDET:FEE1:241:ENRC", "GDET:FEE1:241:ENRC,in mJ"):
        assert event.read(name) == 1.5
    assert event.read("epics", "raw.beam:energy") == 1.5
    assert event.read("STATE:OF:GUN") == 3
    with pytest.raises(InvalidConfigError, match="no detector or variable 'STATE'"):
        event.read("STATE")
    # A process variable goes before a variable of the scan, which keeps its full name.
    assert (event.read("motor"), event.read("XRT:M1")) == (7, 7)
    assert event.read("scan", "raw.motor") == 0.5


LABELLED = Names(
    detector="timer",
    algorithm="raw",
    fields=(
        Field(name="mode:Mode", type=FieldType.ENUMVAL),
        Field(name="slow:Mode", type=FieldType.ENUMDICT),
        Field(name="fast:Mode", type=FieldType.ENUMDICT),
        Field(name="rate", type=FieldType.F4),
    ),
)


def test_an_enumeration_has_a_label(tmp_path: Path) -> None:
    path = stream_path(tmp_path)
    with writer(path, LABELLED) as file:
        file.begin_run(later(START, 10))
        for time, mode in ((20, 4), (30, -1), (40, 9)):
            values = {"mode:Mode": mode, "slow:Mode": -1, "fast:Mode": 4, "rate": 1.0}
            file.event(later(START, time), {LABELLED.key: values})
    events = read(path)
    assert [each.read("timer", "raw.mode") for each in events] == [4, -1, 9]
    assert [each.read("timer", "raw.mode.label") for each in events] == ["fast", "slow", None]
    assert events[0].read("timer", "raw.mode:Mode.label") == "fast"
    with pytest.raises(InvalidConfigError, match=r"no field 'raw.rate.label' \(did you mean"):
        events[0].read("timer", "raw.rate.label")


SEGMENT_SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    # As psana's raw.raw: a new first axis, and panels of three and more dimensions in a row.
    ((), (3,)),
    ((5,), (3, 5)),
    ((2, 5), (3, 2, 5)),
    ((1, 2, 5), (3, 2, 5)),
    ((4, 2, 5), (12, 2, 5)),
    ((2, 4, 2, 5), (24, 2, 5)),
]


@pytest.mark.parametrize(("shape", "stacked"), SEGMENT_SHAPES)
def test_segments_are_stacked_in_the_order_of_their_numbers(
    tmp_path: Path, shape: tuple[int, ...], stacked: tuple[int, ...]
) -> None:
    segments = [
        Names(
            detector="epix",
            detector_type="epix10ka",
            serial=f"s{number}",
            algorithm="raw",
            segment=number,
            fields=(field("raw", FieldType.U2, len(shape)),),
        )
        for number in (7, 2, 5)
    ]
    frames = {each.segment: np.full(shape, each.segment, np.uint16)[()] for each in segments}
    path = stream_path(tmp_path)
    with writer(path, *segments) as file:
        file.begin_run(later(START, 10))
        file.event(later(START, 20), {each.key: {"raw": frames[each.segment]} for each in segments})
        file.event(later(START, 30), {segments[0].key: {"raw": frames[7]}})
    whole, part = read(path)
    expected = np.stack([frames[number] for number in (2, 5, 7)]).reshape(stacked)
    assert same(whole.read("epix", "raw.raw"), expected)
    assert part.read("epix", "raw.raw") is None
    # One of them alone.
    assert same(whole.read("epix[5]", "raw.raw"), frames[5])
    assert same(part.read("epix[7]", "raw.raw"), frames[7])
    assert part.read("epix[5]", "raw.raw") is None
    with pytest.raises(InvalidConfigError, match=r"no detector or variable 'epix\[3\]'"):
        part.read("epix[3]", "raw.raw")
    readings = whole.readings
    assert isinstance(readings, Xtc2Readings)
    detector = readings.detector("epix")
    assert (detector.kind, detector.segments) == ("epix10ka", (2, 5, 7))
    assert detector.serials == {2: "s2", 5: "s5", 7: "s7"}
    assert detector.unique_id == "epix10ka_s2_s5_s7"
    assert detector.fields == ("raw.raw",)
    with pytest.raises(InvalidConfigError, match="no detector or variable 'epics'"):
        readings.detector("epics")


def test_segments_of_different_shapes_can_be_read_one_by_one(tmp_path: Path) -> None:
    segments = [
        Names(
            detector="hsd",
            algorithm="raw",
            segment=number,
            fields=(field("trace", FieldType.U2, 1),),
        )
        for number in range(2)
    ]
    path = stream_path(tmp_path)
    with writer(path, *segments) as file:
        traces = {each.key: {"trace": np.zeros(each.segment + 3, np.uint16)} for each in segments}
        file.event(later(START, 20), traces)
    (event,) = read(path)
    with pytest.raises(DecodeError, match=r"differ in 'raw.trace': .*; hsd\[0\] would be one"):
        event.read("hsd", "raw.trace")
    traces_alone: list[Any] = [event.read(f"hsd[{number}]", "raw.trace") for number in range(2)]
    assert [each.shape for each in traces_alone] == [(3,), (4,)]


def test_segments_of_different_types_are_not_converted(tmp_path: Path) -> None:
    segments = [
        Names(detector="hsd", algorithm="raw", segment=number, fields=(field("sum", kind),))
        for number, kind in enumerate([FieldType.I4, FieldType.F4])
    ]
    path = stream_path(tmp_path)
    with writer(path, *segments) as file:
        file.event(later(START, 20), {each.key: {"sum": 1} for each in segments})
    (event,) = read(path)
    with pytest.raises(DecodeError, match=r"differ in .*: <f4 \(\), <i4 \(\); hsd"):
        event.read("hsd", "raw.sum")


def test_a_configuration_may_be_said_in_parts_and_anew(tmp_path: Path) -> None:
    first, second = (
        Names(detector="hsd", algorithm="config", segment=0, fields=fields)
        for fields in (
            (field("enable", FieldType.U1), field("scale", FieldType.F8)),
            (field("scale", FieldType.F8),),
        )
    )
    names = {**vars_of(first, 0x500), **vars_of(second, 0x501)}
    path = tmp_path / "config.xtc2"
    with writer(path, WAVE) as file:
        parts = [part for each in names.values() for part in encode_names(each)]
        parts += encode_names(WAVE)
        file.write(encode_dgram(Service.CONFIGURE, later(START, 1), parts))
        file._names = {each.key: each for each in (names[0x500], WAVE)}
        values = {"enable": 1, "scale": 0.5}
        file.transition(Service.BEGIN_STEP, later(START, 2), {first.key: values})
        wave_event(file, 3)
        file._names[first.key] = names[0x501]
        file.transition(Service.BEGIN_STEP, later(START, 4), {first.key: {"scale": 2.5}})
        wave_event(file, 5)
    events = read(path)
    assert [each.read("hsd", "config.scale") for each in events] == [0.5, 2.5]
    assert [each.read("hsd", "config.enable") for each in events] == [1, 1]


def vars_of(names: Names, names_id: int) -> dict[int, Names]:
    return {names_id: Names(**{**plain(names), "names_id": names_id})}


def plain(names: Names) -> dict[str, Any]:
    return {key: getattr(names, key) for key in ("detector", "algorithm", "segment", "fields")}


LOSING = (
    Damage.TRUNCATED, Damage.CORRUPTED, Damage.DROPPED_CONTRIBUTION, Damage.MISSING_DATA
)  # fmt: skip


@pytest.mark.parametrize("damage", list(Damage))
def test_damaged_values_are_missing_and_counted(tmp_path: Path, damage: Damage) -> None:
    path = stream_path(tmp_path)
    with writer(path, WAVE) as file:
        file.event(later(START, 20), {WAVE.key: wave_values(0)}, {WAVE.key: damage})
    source = source_of(path)
    (event,) = source
    pulse = event.read("wave", "fex.pulse")
    if damage in LOSING:
        assert pulse is None
        assert source.counts == {"damaged_readings": 1}
    else:
        assert pulse == wave_values(0)["pulse"]
        assert source.counts == {}
    (kept,) = read(path, damaged="keep")
    assert kept.read("wave", "fex.pulse") == wave_values(0)["pulse"]


def test_damage_of_a_container_is_that_of_what_is_in_it(tmp_path: Path) -> None:
    path = stream_path(tmp_path)
    with writer(path, WAVE) as file:
        file.event(later(START, 20), {WAVE.key: wave_values(0)})
    raw = path.read_bytes()
    (event,) = (each for each in Xtc2File(path) if each.service is Service.L1ACCEPT)
    inner = raw[event.offset + 24 : event.end]
    box = XTC_HEADER.pack(0, int(Damage.CORRUPTED), 0, 12 + len(inner)) + inner
    boxed = b"".join(encode_dgram(Service.L1ACCEPT, event.timestamp, [box]))
    path.write_bytes(raw[: event.offset] + boxed)
    (found,) = read(path)
    assert found.read("wave", "fex.pulse") is None
    (kept,) = read(path, damaged="keep")
    assert kept.read("wave", "fex.pulse") == wave_values(0)["pulse"]


def test_what_is_damaged_need_not_be_decodable(tmp_path: Path) -> None:
    path = stream_path(tmp_path)
    with writer(path, WAVE) as file:
        for time, damage in ((20, Damage.TRUNCATED), (30, Damage.TIMED_OUT), (40, 0)):
            file.event(later(START, time), {WAVE.key: wave_values(0)}, {WAVE.key: damage})
    raw = bytearray(path.read_bytes())
    cut, late, dropped = (each for each in Xtc2File(path) if each.service is Service.L1ACCEPT)
    for each in (cut, late):
        raw[each.offset + 44 : each.offset + 48] = b"\xff\0\0\0"
    # The whole event says so: what is in it does not hold together.
    raw[dropped.offset + 16 : dropped.offset + 18] = int(Damage.CORRUPTED).to_bytes(2, "little")
    raw[dropped.offset + 32 : dropped.offset + 36] = b"\xff\0\0\0"
    path.write_bytes(raw)
    for damaged in ("missing", "keep"):
        source = source_of(path, damaged=damaged)
        events = list(source)
        assert events[0].read("wave", "fex.pulse") is None
        with pytest.raises(DecodeError, match="an xtc of 255 bytes"):
            events[1].read("wave", "fex.pulse")
        assert events[2].read("wave", "fex.pulse") is None
        assert source.counts == {"damaged_readings": 2}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Return a file whose second event has a wrong extent, and fourth event does not begin."""
    made = made_events(5)
    path = write_run(stream_path(tmp_path), made, detectors=[WAVE])
    events = [each for each in Xtc2File(path) if each.service is Service.L1ACCEPT]
    raw = bytearray(path.read_bytes())
    inner = events[1].offset + 24 + 12
    raw[inner + 8 : inner + 12] = b"\1\0\0\0"
    raw[events[3].offset + 20 : events[3].offset + 24] = b"\2\0\0\0"
    path.write_bytes(raw)
    return path


def test_what_cannot_be_decoded_is_an_error(broken: Path) -> None:
    events = iter(source_of(broken))
    label = next(events).read("wave", "fex.label")
    assert label == wave_values(0)["label"]
    with pytest.raises(DecodeError, match=rf"^{broken}: byte \d+: an xtc of 1 bytes in \d+ bytes$"):
        next(events).read("wave", "fex.label")
    next(events)
    with pytest.raises(DecodeError, match=rf"^{broken}: byte \d+: a dgram's extent cannot be 2$"):
        next(events)


def test_what_cannot_be_decoded_may_be_passed_over(
    broken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = source_of(broken, on_error="skip")
    with caplog.at_level(logging.WARNING):
        labels = [each.read("wave", "fex.label") for each in source]
    assert labels == [wave_values(0)["label"], None, wave_values(2)["label"]]
    assert source.counts == {"undecodable_readings": 1, "corrupt_file": 1}
    assert [each.getMessage() for each in caplog.records] == ["xtc2_passed_over"] * 2
    assert all(str(broken) in each.__dict__["reason"] for each in caplog.records)


def test_a_transition_that_cannot_be_decoded_may_be_passed_over(tmp_path: Path) -> None:
    path = write_run(stream_path(tmp_path), made_events(3), detectors=[WAVE])
    updates = [each for each in Xtc2File(path) if each.service is Service.SLOW_UPDATE]
    raw = bytearray(path.read_bytes())
    raw[updates[1].offset + 32 : updates[1].offset + 36] = b"\1\0\0\0"
    path.write_bytes(raw)
    with pytest.raises(DecodeError, match="an xtc of 1 bytes"):
        read(path)
    source = source_of(path, on_error="skip")
    assert [each.read("gas") for each in source] == [0.5, 0.5, 0.5]
    assert source.counts == {"undecodable_transitions": 1}


def test_reading_goes_on_where_it_ended(tmp_path: Path) -> None:
    made = made_events(7)
    path = write_run(stream_path(tmp_path), made)
    rest = read(path, first_event=3)
    assert [(each.index, each.timestamp) for each in rest] == [
        (index, made[index].timestamp) for index in range(3, 7)
    ]
    assert rest[0].read("gas") == made[3].epics["gas"]
    shares = [list(source_of(path, rank, 2, first_event=3)) for rank in range(2)]
    assert [[each.index for each in share] for share in shares] == [[4, 6], [3, 5]]
    assert read(path, first_event=7) == []


def test_files_can_be_read_without_a_map(tmp_path: Path) -> None:
    made = made_events(5)
    path = write_run(stream_path(tmp_path), made)
    mapped = read(path)
    source = source_of(path, access="read")
    for ours, other in zip(source, mapped, strict=True):
        for name, reading in (("cam", "raw.arrayRaw"), ("wave", "fex.trace"), ("gas", "")):
            one, two = ours.read(name, reading), other.read(name, reading)
            assert one is two is None or same(one, two)
    # A file that is cut off while it is read ends the reading, not the process.
    events = iter(source_of(path, access="read"))
    next(events)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(DecodeError, match=rf"^{path}: byte \d+: the file has become shorter$"):
        list(events)


def test_pages_that_were_read_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lclstream.streamer.sources.xtc2_file.KEPT_BYTES", 1 << 20)
    made = made_events(12)
    path = write_run(stream_path(tmp_path), made, detectors=CAMERA[2:])
    events = read(path)
    # They come back for whoever still holds a view.
    for event, one in zip(events, made, strict=True):
        values = one.values.get(CAMERA[2].key)
        frame = event.read("cam", "raw.arrayRaw")
        assert frame is None if values is None else same(frame, values["arrayRaw"])


def test_the_layout_lists_what_there_is(tmp_path: Path) -> None:
    path = write_run(stream_path(tmp_path), made_events(1))
    stream = Stream([path], 0, Reading(), is_whole=True)
    stream.advance()
    stream.apply(1)
    layout = Layout([stream], Reading())
    stream.close()
    assert layout.detectors == ("cam", "wave")
    assert layout.detector("cam").unique_id == "cspad_serial0_serial1_serial2"
    layout.require("wave", "fex.mode")
    layout.require("CXI:NOTE", "")
    with pytest.raises(InvalidConfigError, match=r"'wave' has no field 'fex\.modes'"):
        layout.require("wave", "fex.modes")
