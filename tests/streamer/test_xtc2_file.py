"""Files as they are found: whole, cut off, damaged, in chunks."""

import dataclasses
from pathlib import Path

import pytest
from tests.helpers.xtc2_runs import (
    START,
    WAVE,
    MadeEvent,
    made_events,
    stream_path,
    write_run,
)

from lclstream.core.errors import DecodeError, NotFoundError
from lclstream.streamer.sources.xtc2_file import Xtc2File
from lclstream.streamer.sources.xtc2_format import (
    DGRAM_HEADER,
    Names,
    Service,
    later,
    to_datetime,
    to_unix_ns,
)
from lclstream.streamer.sources.xtc2_writer import encode_dgram

SERVICES = [
    Service.CONFIGURE,
    Service.BEGIN_RUN,
    Service.BEGIN_STEP,
    Service.ENABLE,
    Service.SLOW_UPDATE,
    Service.L1ACCEPT,
    Service.L1ACCEPT,
    Service.DISABLE,
    Service.END_STEP,
    Service.END_RUN,
]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Return a run of two small events."""
    return write_run(stream_path(tmp_path), made_events(2), detectors=[WAVE])


def test_a_file_is_read_dgram_by_dgram(small: Path) -> None:
    file = Xtc2File(small)
    dgrams = list(file)
    assert [each.service for each in dgrams] == SERVICES
    assert [each.offset for each in dgrams] == [0, *(each.end for each in dgrams[:-1])]
    assert file.truncated_at is None
    assert [each.timestamp for each in file] == [each.timestamp for each in dgrams]


def test_every_cut_ends_cleanly_before_it(small: Path, tmp_path: Path) -> None:
    whole = small.read_bytes()
    ends = [0, *(each.end for each in Xtc2File(small))]
    cut = tmp_path / "cut.xtc2"
    for boundary in ends[1:]:
        before = max(end for end in ends if end < boundary)
        for at in (before + 1, before + DGRAM_HEADER.size - 1, boundary - 1):
            cut.write_bytes(whole[:at])
            file = Xtc2File(cut)
            assert [each.end for each in file] == ends[1 : ends.index(before) + 1]
            assert file.truncated_at == before
        cut.write_bytes(whole[:boundary])
        file = Xtc2File(cut)
        assert list(file)[-1].end == boundary
        assert file.truncated_at is None


def test_an_empty_file_has_no_dgrams(tmp_path: Path) -> None:
    path = tmp_path / "empty.xtc2"
    path.touch()
    file = Xtc2File(path)
    assert list(file) == []
    assert file.truncated_at is None


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"^cannot read .*gone\.xtc2: No such file"):
        Xtc2File(tmp_path / "gone.xtc2")
    with pytest.raises(NotFoundError, match=r": not a file$"):
        Xtc2File(tmp_path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (bytes(24), r"byte 0: a dgram's extent cannot be 0$"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), r"byte 0: a dgram's extent cannot be 0$"),
        (DGRAM_HEADER.pack(0, 13 << 24, 0, 0, 0, 12), r"no dgram starts here .*service 13\)$"),
        (DGRAM_HEADER.pack(0, 12 << 24, 0, 0, 4, 12), r"no dgram starts here .*contents 4, "),
    ],
)
def test_what_is_no_xtc2_is_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "other.xtc2"
    path.write_bytes(raw)
    with pytest.raises(DecodeError, match=message):
        list(Xtc2File(path))


def test_a_second_configure_replaces_the_first(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.xtc2"
    other = dataclasses.replace(WAVE, detector="other")
    second = write_run(tmp_path / "second.xtc2", made_other(other), detectors=[other])
    path.write_bytes(small.read_bytes() + second.read_bytes())
    detectors = [
        each.names.detector
        for dgram in Xtc2File(path)
        if dgram.service is Service.L1ACCEPT
        for each in dgram.contributions()
    ]
    assert detectors == ["wave", "wave", "other"]


def made_other(names: Names) -> list[MadeEvent]:
    """Return one event of a detector that has another name."""
    (event,) = made_events(1)
    return [dataclasses.replace(event, values={names.key: event.values[WAVE.key]})]


def test_readout_groups_do_not_hide_the_service(tmp_path: Path) -> None:
    path = tmp_path / "env.xtc2"
    path.write_bytes(b"".join(encode_dgram(Service.L1ACCEPT, START, [], env=0x4B0003)))
    (dgram,) = Xtc2File(path)
    assert (dgram.service, dgram.env, dgram.timestamp) == (Service.L1ACCEPT, 0xC4B0003, START)


def test_timestamps_are_exact() -> None:
    stamp = 4776162079372773723
    assert later(stamp, 0) == stamp
    assert to_unix_ns(stamp) == ((stamp >> 32) + 631152000) * 10**9 + (stamp & 0xFFFFFFFF)
    assert to_datetime(stamp).isoformat() == "2025-03-28T19:08:11.582256+00:00"
    assert later(1 << 32 | 999_999_999, 2) == 2 << 32 | 1
    assert later(2 << 32 | 1, -2) == 1 << 32 | 999_999_999
