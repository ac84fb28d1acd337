"""HDF5 files as event source: every bit and dtype is kept, mistakes are named."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tests.streamer.conftest import VECTORS

from lclstream.core.errors import DecodeError, InvalidConfigError
from lclstream.streamer.config import parse_parameters
from lclstream.streamer.events import Event, open_event_source

CSPAD = VECTORS.parents[1] / "data" / "cxi78513_r0014_cspad.h5"


def events(
    document: dict[str, Any], identifier: str, sources: dict[str, Any], rank: int = 0,
    size: int = 1, **config: Any,
) -> list[tuple[Event, dict[str, Any]]]:  # fmt: skip
    document["source_identifier"] = identifier
    document["event_source"] = {"type": "Hdf5EventSource", **config}
    document["data_sources"] = {
        label: {"type": "EventValue", "name": name} for label, name in sources.items()
    }
    source = open_event_source(parse_parameters(document), rank, size)
    try:
        return [
            (event, {label: event.read(name) for label, name in sources.items()})
            for event in source
        ]
    finally:
        source.close()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for number, count in enumerate((3, 4)):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            first = 100 * number
            file["a/frames"] = (np.arange(count * 6) + first).reshape(count, 2, 3).astype(">i2")
            file["a/energy"] = np.arange(count) + first + 0.5
            file["stamps"] = np.arange(count, dtype=np.uint64) + (1 << 63) + first
            file["names"] = [f"é{row}" for row in range(count)]
            file["short"] = np.zeros(2)
            file["single"] = 1
        paths.append(path)
    return paths


def identifier_of(files: list[Path]) -> str:
    return ",".join(f"files={path}" for path in files)


def test_files_follow_each_other(document: dict[str, Any], files: list[Path]) -> None:
    found = events(
        document, identifier_of(files), {"frame": "/a/frames", "name": "/names"},
        timestamp="/stamps", run=7, experiment="tst000124",
    )  # fmt: skip
    assert [event.index for event, _ in found] == list(range(7))
    assert [event.timestamp - (1 << 63) for event, _ in found] == [0, 1, 2, 100, 101, 102, 103]
    assert {(event.run, event.experiment) for event, _ in found} == {(7, "tst000124")}
    assert found[3][1]["frame"].dtype == np.dtype(">i2")
    assert found[3][1]["frame"].tolist() == [[100, 101, 102], [103, 104, 105]]
    assert found[4][1]["name"] == "é1"


def test_ranks_share_the_events(document: dict[str, Any], files: list[Path]) -> None:
    found = [
        event.index
        for rank in range(3)
        for event, _ in events(document, identifier_of(files), {"e": "/a/energy"}, rank, 3)
    ]
    assert sorted(found) == list(range(7))
    assert found[:3] == [0, 3, 6]


def test_names_stand_for_paths(document: dict[str, Any], files: list[Path]) -> None:
    document["source_identifier"] = str(files[0])
    document["event_source"] = {
        "type": "Hdf5EventSource",
        "names": {"jungfrau.raw.calib": "/a/frames", "SIOC:SYS0:ML00:AO192": "/a/energy"},
    }
    detector = {"type": "Psana2DetectorInterface", "psana_name": "jungfrau"}
    document["data_sources"] = {
        "d": detector | {"psana_fields": "raw.calib"},
        "w": {"type": "Psana2DetectorInterface", "psana_name": "SIOC:SYS0:ML00:AO192"},
    }
    source = open_event_source(parse_parameters(document), 0, 1)
    values = [
        (np.asarray(event.read("jungfrau", "raw.calib")).shape, event.read("SIOC:SYS0:ML00:AO192"))
        for event in source
    ]
    assert values == [((2, 3), 0.5), ((2, 3), 1.5), ((2, 3), 2.5)]


@pytest.mark.parametrize(
    ("sources", "config", "message"),
    [
        ({"x": "/a/frame"}, {}, r"no detector or variable '/a/frame' \(did you mean '/a/frames'"),
        ({"x": "cam"}, {"names": {"cam": "/a/fram"}},
         r"no dataset '/a/fram', which names gives for 'cam' \(did you mean '/a/frames'\?\)"),
        ({"x": "/a/frames", "y": "/short"}, {}, "differ in their events: /a/frames has 3, /short"),
        ({"x": "/single"}, {}, r"/single has no axis of events; if it is the same"),
        ({"x": "/a/frames"}, {"timestamp": "/a/energy"}, "time stamps must be integers of 64 bits"),
    ],
)  # fmt: skip
def test_mistakes_are_named(
    document: dict[str, Any], files: list[Path], sources: dict[str, str], config: Any, message: str
) -> None:
    with pytest.raises(InvalidConfigError, match=message) as caught:
        events(document, str(files[0]), sources, **config)
    assert str(caught.value).startswith(f"{files[0]}: ")


def test_files_that_cannot_be_read_are_named(document: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match=r"/absent\.h5: no such file$"):
        events(document, str(tmp_path / "absent.h5"), {"x": "/x"})
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(InvalidConfigError, match=r"/text\.h5: not a readable HDF5 file"):
        events(document, str(tmp_path / "text.h5"), {"x": "/x"})


def test_a_damaged_event_is_named(document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "damaged.h5"
    with h5py.File(path, "w") as file:
        data = np.random.default_rng(1).integers(0, 9, (4, 50))
        made = file.create_dataset("d", data=data, chunks=(1, 50), compression="gzip")
        place = made.id.get_chunk_info(2).byte_offset
    content = bytearray(path.read_bytes())
    content[place : place + 20] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=r"^cannot read event 2 of /d in .*/damaged\.h5: "):
        events(document, str(path), {"d": "/d"})


def test_real_frames_arrive_bit_for_bit(document: dict[str, Any]) -> None:
    if not CSPAD.is_file():
        pytest.skip("no real frames on this machine")
    found = events(document, str(CSPAD), {"frame": "/entry/data/data"})
    with h5py.File(CSPAD) as file:
        frames = file["entry/data/data"][...]
    assert len(found) == 2
    for (_, values), frame in zip(found, frames, strict=True):
        assert values["frame"].dtype == np.int32
        assert np.array_equal(values["frame"], frame)
