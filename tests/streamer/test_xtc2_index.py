"""Small-data files: they spare headers, and never change what is read."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.helpers.xtc2_runs import (
    CAMERA,
    EXPERIMENT,
    RUN,
    WAVE,
    made_events,
    parameters,
    stream_path,
    write_chunks,
    write_run,
)

from lclstream.core.errors import DecodeError, InvalidConfigError
from lclstream.streamer.sources.xtc2 import Xtc2EventSource
from lclstream.streamer.sources.xtc2_file import Head, Xtc2File
from lclstream.streamer.sources.xtc2_index import ALWAYS_CHECKED, index_path
from lclstream.streamer.sources.xtc2_index_writer import write_index

RANKS = 3
# The event's place, time and label.
Found = tuple[int, int, object]


def read(folder: Path, *, use_index: bool = True) -> tuple[list[Found], dict[str, int]]:
    """Return what all ranks read together, and what they counted."""
    found: list[Found] = []
    counts: dict[str, int] = {}
    for rank in range(RANKS):
        identifier = f"exp={EXPERIMENT},run={RUN},dir={folder}"
        config = parameters(identifier, source={"use_index": use_index})
        source = Xtc2EventSource(config, rank, RANKS)
        found += [(each.index, each.timestamp, each.read("wave", "fex.label")) for each in source]
        counts |= source.counts
    return sorted(found), counts


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return where the headers of recorded files are read, as it happens."""
    places: list[int] = []
    head = Xtc2File.head

    def noted(file: Xtc2File, at: int) -> Head | None:
        if ".smd." not in file.path.name:
            places.append(at)
        return head(file, at)

    monkeypatch.setattr(Xtc2File, "head", noted)
    return places


def test_headers_are_spared(tmp_path: Path, looked_at: list[int]) -> None:
    made = made_events(ALWAYS_CHECKED + 100)
    steady = [dataclasses.replace(each, epics=made[0].epics) for each in made]
    path = write_run(stream_path(tmp_path), steady, detectors=[WAVE])
    expected = read(tmp_path, use_index=False)
    without = len(looked_at)
    looked_at.clear()
    write_index([path])
    looked_at.clear()
    assert read(tmp_path) == expected
    # Those of transitions and of the sample remain.
    assert len(looked_at) <= without - RANKS * 98


def test_an_index_goes_through_all_chunks(tmp_path: Path, looked_at: list[int]) -> None:
    made = made_events(2 * ALWAYS_CHECKED)
    paths = write_chunks(tmp_path, made, cuts=[5, ALWAYS_CHECKED + 5])
    expected = read(tmp_path, use_index=False)
    write_index(paths)
    assert [each.name for each in (tmp_path / "smalldata").iterdir()] == [
        f"{EXPERIMENT}-r0005-s000-c000.smd.xtc2"
    ]
    looked_at.clear()
    assert read(tmp_path) == expected
    assert expected[1] == {}


def test_several_streams(tmp_path: Path) -> None:
    made = made_events(12)
    half = [each for index, each in enumerate(made) if index % 2 == 0]
    write_index([write_run(stream_path(tmp_path, 0), made, detectors=[WAVE])])
    second = write_run(stream_path(tmp_path, 1), half, detectors=CAMERA, epics=False)
    expected = read(tmp_path, use_index=False)
    assert read(tmp_path) == expected
    write_index([second])
    assert read(tmp_path) == expected
    assert len(expected[0]) == 12


@pytest.mark.parametrize("keep", [0, 10, 24, 3000, -1, -24, -25, -100, -200])
def test_an_index_that_is_cut_off_is_used_as_far_as_it_goes(
    tmp_path: Path, keep: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_run(stream_path(tmp_path), made_events(8), detectors=[WAVE])
    expected, _ = read(tmp_path)
    smalldata = write_index([path])
    smalldata.write_bytes(smalldata.read_bytes()[:keep])
    with caplog.at_level(logging.WARNING):
        found, counts = read(tmp_path)
    assert found == expected
    # Each rank says so.
    assert counts == {"index_not_used": 1}
    assert [each.getMessage() for each in caplog.records] == ["xtc2_index_not_used"] * RANKS


def other_run(folder: Path) -> Path:
    """Return an index with the same places and other times."""
    made = made_events(8, first=100)
    other = folder / "other"
    other.mkdir()
    return write_index([write_run(stream_path(other), made, detectors=[WAVE])])


def other_kind(folder: Path) -> Path:
    path = folder / "any"
    path.write_bytes(b"no index at all" * 100)
    return path


def itself(folder: Path) -> Path:
    return stream_path(folder)


@pytest.mark.parametrize("wrong", [other_run, other_kind, itself])
def test_what_does_not_belong_to_the_file_is_not_used(
    tmp_path: Path, wrong: Callable[[Path], Path]
) -> None:
    path = write_run(stream_path(tmp_path), made_events(8), detectors=[WAVE])
    expected, _ = read(tmp_path)
    smalldata = index_path(path)
    smalldata.parent.mkdir()
    smalldata.write_bytes(wrong(tmp_path).read_bytes())
    assert read(tmp_path) == (expected, {"index_not_used": 1})


def test_a_wrong_time_that_nobody_checked_is_noticed_by_whoever_wants_the_event(
    tmp_path: Path,
) -> None:
    made = made_events(ALWAYS_CHECKED + 10)
    path = write_run(stream_path(tmp_path), made, detectors=[WAVE])
    smalldata = write_index([path])
    raw = bytearray(smalldata.read_bytes())
    # Its next dgram is an event, too, so that its end needs no look at the file.
    stamp = made[ALWAYS_CHECKED + 2].timestamp.to_bytes(8, "little")
    assert raw.count(stamp) == 1
    raw[raw.index(stamp)] ^= 1
    smalldata.write_bytes(raw)
    with pytest.raises(DecodeError, match=r"does not belong to this file; remove it, or set use_"):
        read(tmp_path)


def test_one_rank_needs_no_index(tmp_path: Path) -> None:
    path = write_run(stream_path(tmp_path), made_events(4), detectors=[WAVE])
    smalldata = index_path(path)
    smalldata.parent.mkdir()
    smalldata.write_bytes(b"rubbish")
    source = Xtc2EventSource(parameters(str(path)), 0, 1)
    assert len(list(source)) == 4
    assert source.counts == {}


def test_an_index_is_no_recording(tmp_path: Path) -> None:
    smalldata = write_index([write_run(stream_path(tmp_path), made_events(2))])
    with pytest.raises(InvalidConfigError, match=r"only says where events are; name the file"):
        Xtc2EventSource(parameters(str(smalldata)), 0, 1)
    with pytest.raises(InvalidConfigError, match="at least one file"):
        write_index([])


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexed")
    write_index([write_run(stream_path(folder), made_events(9), detectors=[WAVE])])
    return folder


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_whatever_happens_to_an_index_the_events_are_the_same(
    indexed: Path, data: st.DataObject
) -> None:
    expected, _ = read(indexed, use_index=False)
    smalldata = index_path(stream_path(indexed))
    raw = bytearray(smalldata.read_bytes())
    edited = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        new = data.draw(st.binary(min_size=1, max_size=12))
        edited[at : at + len(new)] = new
    # Some file systems wait for the disk where a file is written anew.
    smalldata.unlink()
    smalldata.write_bytes(edited[: data.draw(st.integers(0, len(edited)))])
    try:
        assert read(indexed)[0] == expected
    finally:
        smalldata.write_bytes(raw)
