"""HDF5 files as event source: every bit and dtype is kept, mistakes are named."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from tests.streamer.conftest import VECTORS

from lclstream.core.errors import DecodeError, InvalidConfigError
from lclstream.streamer.config import parse_parameters
from lclstream.streamer.events import Event, open_event_source
from lclstream.streamer.sources.hdf5 import describe
from lclstream.streamer.values import Ragged

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


def read_all(
    document: dict[str, Any], identifier: object, *wanted: tuple[str, str], **config: Any
) -> list[tuple[Event, list[Any]]]:
    """Return every event with some readings, by name and field."""
    document["source_identifier"] = str(identifier)
    document["event_source"] = {"type": "Hdf5EventSource", **config}
    document["data_sources"] = {
        f"v{number}": {"type": "EventValue", "name": name, "field": field}
        for number, (name, field) in enumerate(wanted)
    } or {"t": {"type": "Psana2Timestamp"}}
    source = open_event_source(parse_parameters(document), 0, 1)
    try:
        return [(event, [event.read(*each) for each in wanted]) for event in source]
    finally:
        source.close()


def frames_of(count: int, first: int = 0) -> np.ndarray[Any, Any]:
    return (np.arange(count * 12, dtype="u2") + 100 * first).reshape(count, 3, 4)


def nexus(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["default"] = "scan"
        entry = file.create_group("scan")
        entry.attrs.update(NX_class="NXentry", default="plot")
        plot = entry.create_group("plot")
        plot.attrs.update(NX_class="NXdata", signal="counts")
        plot["counts"] = h5py.SoftLink("/scan/instrument/eiger/data")
        instrument = entry.create_group("instrument")
        instrument.attrs["NX_class"] = "NXinstrument"
        eiger = instrument.create_group("eiger")
        eiger.attrs["NX_class"] = "NXdetector"
        eiger["data"] = frames_of(3)
        eiger["distance"] = 0.15
        eiger["pixel_mask"] = np.eye(3, 4)
        diode = instrument.create_group("diode")
        diode.attrs["NX_class"] = "NXmonitor"
        diode["data"] = np.arange(3) + 0.5


def test_a_nexus_files_own_names_are_known(document: dict[str, Any], tmp_path: Path) -> None:
    nexus(tmp_path / "one.nxs")
    found = read_all(
        document, tmp_path / "one.nxs", ("signal", ""), ("eiger", "raw.raw"), ("eiger", ""),
        ("diode", "data"), ("eiger", "distance"), ("eiger", "pixel_mask"), ("plot", "counts"),
        constants=["eiger.distance", "/scan/instrument/eiger/pixel_mask"],
    )  # fmt: skip
    assert len(found) == 3
    for number, (_, (signal, raw, whole, diode, distance, mask, counts)) in enumerate(found):
        for each in (signal, raw, whole, counts):
            assert np.array_equal(each, frames_of(3)[number])
        assert (diode, distance) == (number + 0.5, 0.15)
        assert np.array_equal(mask, np.eye(3, 4))
    # Without it only paths count.
    with pytest.raises(InvalidConfigError, match=r"no detector or variable 'signal'"):
        read_all(document, tmp_path / "one.nxs", ("signal", ""), discover=False)


def test_the_links_of_a_detectors_master_file_are_followed(
    document: dict[str, Any], tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "run_master.h5", "w") as file:
        data = file.create_group("entry/data")
        file["entry"].attrs["NX_class"] = "NXentry"
        data.attrs["NX_class"] = "NXdata"
        for number, count in enumerate((2, 3, 1), start=9):
            name = f"data_{number}"
            data[name] = h5py.ExternalLink(f"run_{name}.h5", "/entry/data/data")
            with h5py.File(tmp_path / f"run_{name}.h5", "w") as part:
                part["entry/data/data"] = frames_of(count, number)
    expected = np.concatenate([frames_of(2, 9), frames_of(3, 10), frames_of(1, 11)])
    master = tmp_path / "run_master.h5"
    for name, config in [
        ("signal", {}), ("x", {"names": {"x": "/entry/data/data_*"}, "discover": False}),
    ]:  # fmt: skip
        found = read_all(document, master, (name, ""), **config)
        assert np.array_equal([values[0] for _, values in found], expected)
    (tmp_path / "run_data_10.h5").unlink()
    with pytest.raises(InvalidConfigError, match=r"data_10'.*run_data_10\.h5, in which it is, is"):
        read_all(document, master, ("signal", ""))
    with pytest.raises(InvalidConfigError, match=r"data_10' is in run_data_10\.h5, which is not"):
        read_all(document, master, ("/entry/data/data_10", ""))


def test_a_cxi_file_is_known_by_its_names(document: dict[str, Any], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "hits.cxi", "w") as file:
        file["cxi_version"] = 140
        file["entry_1/instrument_1/detector_1/data"] = frames_of(2)
        file["entry_1/instrument_1/detector_1/mask"] = frames_of(2, 5)
        file["entry_1/instrument_1/detector_1/distance"] = [0.5, 0.6]
        file["entry_1/instrument_1/source_1/energy"] = [1.5e-15, 1.6e-15]
        file["entry_1/data_1/data"] = h5py.SoftLink("/entry_1/instrument_1/detector_1/data")
        file["LCLS/machineTime"] = np.array([1_700_000_000, 1_700_000_001], np.int32)
        file["LCLS/machineTimeNanoSeconds"] = np.array([7, 999_999_999], np.int32)
    found = read_all(
        document, tmp_path / "hits.cxi", ("data_1", ""), ("detector_1", "raw.calib"),
        ("detector_1", "mask"), ("source_1", "energy"), ("signal", ""), ("detector_1", "distance"),
    )  # fmt: skip
    assert [event.timestamp for event, _ in found] == [
        1_700_000_000 << 32 | 7, 1_700_000_001 << 32 | 999_999_999,
    ]  # fmt: skip
    data, calib, mask, energy, signal, distance = found[1][1]
    for each in (data, calib, signal):
        assert np.array_equal(each, frames_of(2)[1])
    assert np.array_equal(mask, frames_of(2, 5)[1])
    assert (energy, distance) == (1.6e-15, 0.6)


def test_real_frames_are_known_by_the_groups_names(document: dict[str, Any]) -> None:
    if not CSPAD.is_file():
        pytest.skip("no real frames on this machine")
    found = read_all(document, CSPAD, ("signal", ""), ("beam", "wavelength"), ("data", "data"))
    assert [round(float(values[1]), 6) for _, values in found] == [1.272607, 1.271876]
    assert all(values[0].shape == (5920, 388) for _, values in found)


def own_file(path: Path, *, as_attributes: bool) -> None:
    """Write what our own serializers write, in HDF5 or in a format without attributes."""
    with h5py.File(path, "w") as file:
        file["cam/frames"] = frames_of(4)
        file["peaks"] = np.arange(10, dtype="f4").reshape(5, 2)
        group = file.create_group("lclstream")
        group["timestamp"] = np.array([2**63 + 1, 2**64 - 1, 5, 6], np.uint64)
        group["event_index"] = np.array([10, 13, 16, 19], np.uint64)
        group["step"] = np.array([0, 0, 1, 1], np.uint32)
        group["valid/frame"] = np.array([1, 0, 1, 1], np.uint8)
        group["valid/frame"].attrs["dataset"] = "/cam/frames"
        offsets = np.array([0, 2, 2, 5, 5], np.uint64)
        if as_attributes:
            file["peaks_offsets"] = offsets
            file["peaks"].attrs["offsets"] = "/peaks_offsets"
        else:
            group["offsets/peaks"] = offsets
        for key, value in (("experiment", "mfx100852324"), ("run", np.uint64(51))):
            if as_attributes:
                group.attrs[key] = value
            else:
                group[key] = np.bytes_(value) if isinstance(value, str) else value


@pytest.mark.parametrize("as_attributes", [True, False])
def test_our_own_files_are_read_as_they_were_sent(
    document: dict[str, Any], tmp_path: Path, as_attributes: bool
) -> None:
    own_file(tmp_path / "own.h5", as_attributes=as_attributes)
    found = read_all(
        document, tmp_path / "own.h5", ("frame", ""), ("/peaks", ""), ("lclstream/event_index", "")
    )
    assert [event.timestamp for event, _ in found] == [2**63 + 1, 2**64 - 1, 5, 6]
    assert [event.step for event, _ in found] == [0, 0, 1, 1]
    assert {(event.run, event.experiment) for event, _ in found} == {(51, "mfx100852324")}
    assert [values[0] is None for _, values in found] == [False, True, False, False]
    assert np.array_equal(found[2][1][0], frames_of(4)[2])
    peaks = [values[1] for _, values in found]
    assert all(isinstance(each, Ragged) for each in peaks)
    assert [each.array.tolist() for each in peaks] == [
        [[0, 1], [2, 3]], [], [[4, 5], [6, 7], [8, 9]], [],
    ]  # fmt: skip
    assert [int(values[2]) for _, values in found] == [10, 13, 16, 19]
    others = read_all(document, tmp_path / "own.h5", ("frame", ""), run=3, experiment="tst")
    assert {(event.run, event.experiment) for event, _ in others} == {(3, "tst")}


def test_offsets_that_lead_outside_are_refused(document: dict[str, Any], tmp_path: Path) -> None:
    own_file(tmp_path / "own.h5", as_attributes=True)
    with h5py.File(tmp_path / "own.h5", "r+") as file:
        file["peaks_offsets"][2:] = 99
    with pytest.raises(DecodeError, match=r"^/peaks in .*own\.h5: event 1 has 2 to 99 of 5"):
        read_all(document, tmp_path / "own.h5", ("/peaks", ""))


def test_what_only_some_files_have_is_missing_in_the_others(
    document: dict[str, Any], tmp_path: Path
) -> None:
    for number, names in enumerate((("a", "b"), ("b",), ("a",))):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            for name in names:
                file[name] = np.arange(2) + 10 * number
            file["c"] = np.arange(2)
    found = read_all(document, tmp_path, ("/a", ""), ("/b", ""), ("/c", ""))
    assert [values[:2] for _, values in found] == [
        [0, 0], [1, 1], [None, 10], [None, 11], [20, None], [21, None],
    ]  # fmt: skip
    # A file with none of them still has its events, if they can be counted.
    with h5py.File(tmp_path / "1.h5", "r+") as file:
        del file["b"], file["c"]
    with pytest.raises(InvalidConfigError, match=r"/1\.h5: no data source names a dataset"):
        read_all(document, tmp_path, ("/a", ""), ("/b", ""))
    with h5py.File(tmp_path / "1.h5", "r+") as file:
        file["lclstream/timestamp"] = np.arange(3, dtype=np.uint64)
    found = read_all(document, tmp_path, ("/a", ""), ("/b", ""))
    assert [values for _, values in found[1:5]] == [[1, 1], *[[None, None]] * 3]


def test_files_are_found_by_folders_and_patterns(document: dict[str, Any], tmp_path: Path) -> None:
    for number in (1, 2, 10):
        with h5py.File(tmp_path / f"run{number}.cxi", "w") as file:
            file["x"] = [number]
    (tmp_path / "notes.txt").write_text("no data")
    for identifier in (
        tmp_path,
        f"{tmp_path}/run*.cxi",
        f"files={tmp_path}/run?.cxi,{tmp_path}/run10.cxi",
    ):
        found = read_all(document, identifier, ("/x", ""))
        assert [values[0] for _, values in found] == [1, 2, 10]
    with pytest.raises(InvalidConfigError, match=r"/none\*: no such file$"):
        read_all(document, f"{tmp_path}/none*", ("/x", ""))


def test_steps_and_time_stamps_are_where_the_configuration_says(
    document: dict[str, Any], tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["x"], file["motor"] = np.arange(4), np.array([0, 0, 1, 1])
        file["stamps"] = np.arange(4) + 7
    found = read_all(document, tmp_path / "scan.h5", step="/motor", timestamp="/stamps")
    assert [(event.step, event.timestamp) for event, _ in found] == [
        (0, 7),
        (0, 8),
        (1, 9),
        (1, 10),
    ]


def test_a_file_may_be_one_event(document: dict[str, Any], tmp_path: Path) -> None:
    for number in range(3):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["frame"], file["energy"] = frames_of(1, number)[0], 9.5 + number
            file["stamp"] = np.uint64(2**63 + number)
    found = read_all(
        document, tmp_path, ("/frame", ""), ("/energy", ""), one_event=True, timestamp="/stamp"
    )
    assert [event.timestamp for event, _ in found] == [2**63, 2**63 + 1, 2**63 + 2]
    assert np.array_equal(
        [values[0] for _, values in found], [frames_of(1, n)[0] for n in range(3)]
    )
    assert [values[1] for _, values in found] == [9.5, 10.5, 11.5]


def test_text_and_lists_of_any_length_are_read(document: dict[str, Any], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["fixed"] = np.array([b"a\xff", "é".encode()])
        file.create_dataset("words", data=[["é", "b"], ["", "ccc"]], dtype=h5py.string_dtype())
        lists = file.create_dataset("lists", (2,), h5py.vlen_dtype(np.dtype("i4")))
        lists[0], lists[1] = [1, 2, 3], []
        file["flags"] = [True, False]
        file["refs"] = np.array([file["flags"].ref] * 2, h5py.ref_dtype)
    found = read_all(
        document, tmp_path / "t.h5", ("/fixed", ""), ("/words", ""), ("/lists", ""), ("/flags", "")
    )
    assert [values[0] for _, values in found] == [b"a\xff", "é"]
    assert [values[1].tolist() for _, values in found] == [["é", "b"], ["", "ccc"]]
    assert [values[2].array.tolist() for _, values in found] == [[1, 2, 3], []]
    assert [values[3] for _, values in found] == [True, False]
    with pytest.raises(InvalidConfigError, match="/refs holds references, which cannot be sent"):
        read_all(document, tmp_path / "t.h5", ("/refs", ""))


class CountedChunks:
    """Counts how often chunks are decompressed: the library asks for their bytes each time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read_bytes(self, work: Any) -> int:
        """Return how many bytes of the file this process read while it did something."""
        before = self._so_far()
        work()
        return self._so_far() - before

    @staticmethod
    def _so_far() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(dict(line.split(": ") for line in lines)["rchar"])


@pytest.mark.parametrize("codec", ["gzip", "bitshuffle"])
def test_a_chunk_of_several_events_is_decompressed_once(
    document: dict[str, Any], tmp_path: Path, codec: str
) -> None:
    path = tmp_path / "chunks.h5"
    data = np.random.default_rng(3).integers(0, 2**16, (40, 128, 256), np.uint16)
    # No more than one of them fits into the library's own cache.
    chunks: dict[str, Any] = {"chunks": (20, 128, 256)}
    chunks |= {"compression": "gzip"} if codec == "gzip" else dict(hdf5plugin.Bitshuffle())
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=data, **chunks)
        file.create_dataset("b", data=data, **chunks)
    stored = path.stat().st_size

    def read(**config: Any) -> None:
        found = read_all(document, path, ("/a", ""), ("/b", ""), **config)
        assert np.array_equal([values[1] for _, values in found], data)

    assert CountedChunks(path).read_bytes(read) < 1.5 * stored


def test_no_dataset_is_loaded_as_a_whole(document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "large.h5"
    with h5py.File(path, "w") as file:
        # 4 GB, of which nothing is stored.
        file.create_dataset("d", (4096, 1024, 512), "u2", chunks=(1, 1024, 512), compression="gzip")
        file.create_dataset("flat", (4096, 1024, 512), "u2")
    document["source_identifier"] = str(path)
    document["event_source"] = {"type": "Hdf5EventSource"}
    document["data_sources"] = {"d": {"type": "EventValue", "name": "/d"}}
    source = open_event_source(parse_parameters(document), 4000, 4096)
    tracemalloc.start()
    try:
        assert not np.any(np.asarray(next(iter(source)).read("/d")))
    finally:
        source.close()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 << 20


def test_virtual_datasets_are_read_and_what_their_files_lack_is_missing(
    document: dict[str, Any], tmp_path: Path
) -> None:
    layout = h5py.VirtualLayout((6, 3, 4), "u2")
    for number in range(3):
        with h5py.File(tmp_path / f"part{number}.h5", "w") as part:
            part.create_dataset(
                "d", data=frames_of(2, number), chunks=(2, 3, 4), compression="gzip"
            )
        layout[2 * number : 2 * number + 2] = h5py.VirtualSource(f"part{number}.h5", "d", (2, 3, 4))
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_virtual_dataset("v", layout)
    expected = np.concatenate([frames_of(2, number) for number in range(3)])
    found = read_all(document, tmp_path / "all.h5", ("/v", ""))
    assert np.array_equal([values[0] for _, values in found], expected)
    (tmp_path / "part1.h5").unlink()
    found = read_all(document, tmp_path / "all.h5", ("/v", ""))
    assert [values[0] is None for _, values in found] == [False, False, True, True, False, False]
    assert np.array_equal(found[5][1][0], expected[5])


def test_inspect_names_links_and_layouts(tmp_path: Path) -> None:
    nexus(tmp_path / "one.nxs")
    with h5py.File(tmp_path / "one.nxs", "r+") as file:
        file["away"] = h5py.ExternalLink("gone.h5", "/x")
        file["near"] = h5py.ExternalLink("two.h5", "/x")
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["x"] = np.zeros(3)
    lines = [" ".join(line.split()) for line in describe(str(tmp_path / "one.nxs"))]
    assert "/scan/instrument/eiger/data: uint16, 3 x 3 x 4" in lines
    assert "/away: in gone.h5, which is not there" in lines
    assert "/near: float64, 3, in two.h5" in lines
    assert "eiger.raw.raw = /scan/instrument/eiger/data" in lines
    assert "signal = /scan/plot/counts" in lines


FUZZ = """
import random, sys
from pathlib import Path
from lclstream.core.errors import LclstreamError
from lclstream.streamer.config import parse_parameters
from lclstream.streamer.events import open_event_source
from lclstream.streamer.sources.hdf5 import describe

original, folder, count = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), int(sys.argv[3])
names = ["frame", "/peaks", "/cam/frames", "lclstream/event_index"]
document = {
    "event_source": {"type": "Hdf5EventSource"},
    "data_sources": {f"v{i}": {"type": "EventValue", "name": n} for i, n in enumerate(names)},
    "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 1},
    "data_serializer": {"type": "HDF5BinarySerializer"},
}
outcomes = {"read": 0, "refused": 0}
chance = random.Random(int(sys.argv[4]))
for number in range(count):
    data = bytearray(original)
    for _ in range(chance.choice((1, 1, 3, 20))):
        at = chance.randrange(len(data))
        match chance.randrange(4):
            case 0: data[at] ^= 1 << chance.randrange(8)
            case 1: data[at : at + 8] = chance.randbytes(8)
            case 2: data[at : at + 4] = b"\\xff" * 4
            case _: del data[at + 1 :]
    path = folder / f"{number}.h5"
    path.write_bytes(data)
    try:
        list(describe(str(path)))
        parameters = parse_parameters(document | {"source_identifier": str(path)})
        source = open_event_source(parameters, 0, 1)
        try:
            for event in source:
                for name in names:
                    event.read(name)
        finally:
            source.close()
    except LclstreamError as error:
        assert str(path) in str(error), error
        outcomes["refused"] += 1
    else:
        outcomes["read"] += 1
    path.unlink()
print(outcomes)
"""


def test_no_damage_does_more_than_be_refused(tmp_path: Path) -> None:
    own_file(tmp_path / "own.h5", as_attributes=True)
    folder = tmp_path / "damaged"
    folder.mkdir()
    count = 10_000 if os.environ.get("LCLSTREAM_SOAK") else 150
    arguments = [str(tmp_path / "own.h5"), str(folder), str(count), "7"]
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_part_of_the_identifier_must_name_a_file(
    document: dict[str, Any], files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for part in (f"{tmp_path}/none*", f"{tmp_path}/empty"):
        with pytest.raises(InvalidConfigError, match=r"/(none\*|empty): no such file$"):
            read_all(document, f"{files[0]},{part}", ("/stamps", ""))
