"""What LCLStreamer calls SIMPLON: golden messages, and what is better in ours."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bitshuffle
import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.streamer.serializing import (
    STAMP,
    Given,
    Readings,
    events,
    parameters_of,
    sent,
    whole_stream,
)

from lclstream.core.errors import InvalidConfigError
from lclstream.core.models import read_document
from lclstream.streamer.config import load_parameters, parse_parameters
from lclstream.streamer.config.canonical import configuration_hash
from lclstream.streamer.events import Event
from lclstream.streamer.rank import Place

TYPE = "SimplonBinarySerializer"
FOLDER = "simplon-slac66cc566-f64"
BEAM = {
    "data_source_to_serialize": "frame", "polarization_fraction": 0.99,
    "polarization_axis": [1.0, 0.0, 0.0], "data_collection_rate": "120Hz",
    "detector_name": "jungfrau", "detector_type": "AreaDetector", "compression_threads": 1,
}  # fmt: skip
DTYPES = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")


def read(payload: bytes, prefix: bytes) -> dict[str, Any]:
    assert payload[:1] == prefix
    return dict(cbor2.loads(payload[1:]))


def unpacked(message: dict[str, Any], shape: tuple[int, ...]) -> Any:
    """Return an image as dxtbx and others do."""
    data = np.frombuffer(message["compressed_data"], np.uint8)
    return bitshuffle.decompress_lz4(data, shape, np.dtype(message["dtype"]), 4096)


def golden_events() -> list[Event]:
    """Return the events that the golden messages are of."""
    found = []
    for index in range(5):
        frame = np.random.default_rng(1000 + index).poisson(2.0, (2, 16, 32)).astype(float)
        readings: Given = {
            "jungfrau.raw.calib": frame,
            "SIOC:SYS0:ML00:AO192": np.float64(1.30 + 0.001 * index),
            "jungfrau._detid": "fakedet_0001",
            "jungfrau.raw._det_geotxt_default": "# fake geometry\nJUNGFRAU:V1 0 0 0\n",
            "ebeamh.raw.ebeamUndAngX": 0.1,
            "ebeamh.raw.ebeamUndAngY": 0.2,
            "ebeamh.raw.ebeamUndPosX": 0.3,
            "ebeamh.raw.ebeamUndPosY": 0.4,
            "ebeamh.raw.ebeamL3Energy": 3600.0 + index,
        }
        found.append(
            Event(
                timestamp=((1700000000 + index) << 32) | 123456789,
                index=index,
                run=51,
                experiment="mfx100852324",
                readings=Readings(readings),
                run_timestamp=7310000000000000000,
            )
        )
    return found


def test_golden_messages_of_upstream(vectors: Path) -> None:
    golden = [path.read_bytes() for path in sorted((vectors / FOLDER).glob("*.bin"))]
    config = load_parameters(vectors / FOLDER / "lclstreamer.yaml")
    config = config.model_copy(
        update={
            "data_serializer": config.data_serializer.model_copy(
                update={"identification": False, "compression_threads": 1}
            )
        }
    )
    ours = whole_stream(config, golden_events())
    assert len(ours) == len(golden) == 7
    for index, (mine, theirs) in enumerate(zip(ours, golden, strict=True)):
        assert mine[:1] == theirs[:1]
        found, wanted = cbor2.loads(mine[1:]), cbor2.loads(theirs[1:])
        assert list(found) == list(wanted)
        for key, value in wanted.items():
            assert type(found[key]) is type(value) or key == "photon_wavelength"
            if key in ("message_id", "photon_energy", "photon_wavelength") and 0 < index < 6:
                continue
            # The wall clock of whoever sent it.
            if key == "timestamp" and index in (0, 6):
                continue
            # Byte for byte: images too.
            assert found[key] == value, key
        if 0 < index < 6:
            # Theirs are always 1 and 0, and the energy of the electrons.
            wavelength = 1.30 + 0.001 * (index - 1)
            assert found["message_id"] == index + 1
            assert found["photon_wavelength"] == wavelength
            assert found["photon_energy"] == pytest.approx(12398.42 / wavelength, rel=1e-6)


def test_identification_stands_behind_the_keys_of_upstream(vectors: Path) -> None:
    config = load_parameters(vectors / FOLDER / "lclstreamer.yaml")
    _, *images, _ = whole_stream(config, golden_events())
    for index, payload in enumerate(images):
        found = read(payload, b"m")
        assert list(found)[-2:] == ["timestamp", "lclstream"]
        # A double would be 277 less.
        stamp = ((1700000000 + index) << 32) | 123456789
        assert found["timestamp"] == found["lclstream"].pop("timestamp") == stamp
        assert found["lclstream"] == {
            "event_index": index, "step": 0, "sequence": index, "run": 51, "rank": 1, "ranks": 3,
            "format": 1, "experiment": "mfx100852324",
            "source_identifier": "exp=mfx100852324,run=51", "shape": [2, 16, 32],
            "valid": dict.fromkeys(config.data_sources, True), "values": {"timestamp": stamp},
            "configuration_sha256": configuration_hash(config),
        }  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple),
    batch_size=st.integers(1, 4),
    count=st.integers(1, 5),
    threads=st.sampled_from([1, 2]),
)
def test_every_event_of_every_dtype_is_sent(
    dtype: str, shape: tuple[int, ...], batch_size: int, count: int, threads: int
) -> None:
    frames = np.random.default_rng(count).integers(0, 100, (count, *shape)).astype(dtype)
    values: list[Given] = [{"frame": frame} for frame in frames]
    options = BEAM | {"compression_threads": threads}
    start, *images, stop = whole_stream(
        parameters_of(["frame"], batch_size, type=TYPE, **options), events(values)
    )
    first = read(start, b"c")
    assert first["datatype"] == np.dtype(dtype).name
    assert first["shape"] == "x".join(map(str, shape))
    assert len(images) == count
    for index, payload in enumerate(images):
        found = read(payload, b"m")
        image = unpacked(found, shape)
        assert image.dtype == np.dtype(dtype)
        assert np.array_equal(image, frames[index])
        assert found["sum"] == frames[index].sum(dtype=float)
        assert found["message_id"] == index + 2
        assert found["timestamp"] == STAMP + index
    assert read(stop, b"c")["type"] == "stop"


def test_ids_of_messages_are_unique_over_the_ranks() -> None:
    values: list[Given] = [{"frame": np.zeros((2, 2))} for _ in range(6)]
    config = parameters_of(["frame"], 2, type=TYPE, **BEAM)
    ids = [
        cbor2.loads(payload[1:])["message_id"]
        for rank in range(2)
        for payload in sent(config, events(values)[rank::2], Place(rank, 2)).payloads
    ]
    assert sorted(ids) == [2, 3, 4, 5, 6, 7]


def test_missing_frames_and_wavelengths() -> None:
    values: list[Given] = [
        {"frame": None, "photon_wavelength": None},
        {"frame": np.ones((2, 2), np.uint16), "photon_wavelength": 1.25},
        {"frame": None, "photon_wavelength": None},
    ]
    config = parameters_of(values[0], 3, type=TYPE, **BEAM)
    early, good, late = (read(each, b"m") for each in sent(config, events(values)).payloads)
    assert (early["compressed_data"], early["lclstream"]["valid"]["frame"]) == (b"", False)
    assert good["photon_wavelength"] == 1.25
    assert np.array_equal(unpacked(good, (2, 2)), np.ones((2, 2)))
    # What is not known is left out: 0 would be a wavelength.
    assert "photon_wavelength" not in late
    assert "photon_energy" not in late
    assert late["lclstream"]["valid"] == {"frame": False, "photon_wavelength": False}


def test_the_dialect_of_pull_request_51() -> None:
    values: list[Given] = [
        {
            "frame": np.full((3, 4), i, np.uint16),
            "wave": 1.25,
            "spectrum": np.arange(9, dtype=np.float32),
            "x": i,
        }
        for i in range(2)
    ]
    options = BEAM | {
        "dialect": "lclstreamer-pr51", "photon_wavelength_source": "wave",
        "spectrometer_source": "spectrum", "sensor_material": "Si", "sensor_thickness_um": 320,
    }  # fmt: skip
    config = parameters_of(values[0], 2, type=TYPE, **options)
    start, first, second, end = map(cbor2.loads, whole_stream(config, events(values)))
    assert (start["run_id"], start["image_dtype"]) == ("3", "uint16")
    assert (start["detector"]["material"], start["detector"]["thickness"]) == ("Si", 0.32)
    assert list(end) == ["type", "run_id", "timestamp"]
    assert (end["type"], end["run_id"]) == ("end", "3")
    assert (first["run_id"], first["image_dtype"]) == ("3", "uint16")
    assert (first["sum"], second["sum"]) == (0, 12)
    assert type(second["sum"]) is int
    assert (first["message_id"], second["message_id"]) == (2, 3)
    assert second["lclstream"]["values"] == {"x": 1}
    data = np.frombuffer(first["spectrometer_compressed_data"], np.uint8)
    spectrum = bitshuffle.decompress_lz4(data, (9,), np.dtype(first["spectrometer_dtype"]), 4096)
    assert first["spectrometer_shape"] == "9"
    assert np.array_equal(spectrum, np.arange(9))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"detector_name": "", "polarization_axis": None},
            r"dialect lclstreamer needs polarization_axis, detector_name",
        ),
        ({"image_dtype": "uint16"}, r"only dialect stream2 has image_dtype"),
        ({"polarization_axis": [1.0]}, r"polarization_axis: list should have at least 3 items"),
        ({"beam_source": "beam"}, r"beam_source: there is no value 'beam'"),
        ({"photon_energy_source": "e"}, r"photon_energy_source: there is no value 'e'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidConfigError, match=problem):
        parameters_of(["frame"], 1, type=TYPE, **BEAM | options)


@pytest.mark.parametrize("frame", [np.float64(1), np.zeros(3, np.complex64)])
def test_what_is_no_image_is_named(frame: Any) -> None:
    config = parameters_of(["frame"], 1, type=TYPE, **BEAM)
    with pytest.raises(InvalidConfigError, match=r"^value 'frame' is no image of numbers"):
        sent(config, events([{"frame": frame}]))


@pytest.mark.parametrize("given_threads", ["", "2"])
def test_a_rank_compresses_without_threads_of_openmp(given_threads: str) -> None:
    # In a process of its own: the library reads the variable when it is loaded.
    code = """
import ctypes, json, os, threading
from tests.streamer.test_simplon_dialects import BEAM, TYPE, events, parameters_of, sent
import numpy as np
values = [{"frame": np.random.default_rng(1).poisson(2.0, (512, 1024)).astype("u2")}]
sent(parameters_of(["frame"], 1, type=TYPE, **BEAM), events(values))
print(json.dumps([os.environ["OMP_NUM_THREADS"], len(os.listdir("/proc/self/task"))]))
"""
    environment = {key: each for key, each in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment |= {"OPENBLAS_NUM_THREADS": "1"} | (
        {"OMP_NUM_THREADS": given_threads} if given_threads else {}
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True,
        check=True, timeout=50,
    )  # fmt: skip
    variable, threads = json.loads(done.stdout)
    assert variable == (given_threads or "1")
    assert threads == 1


@pytest.mark.parametrize("form", ["own", "psana"])
def test_values_by_themselves_say_the_same(vectors: Path, form: str) -> None:
    """The newest LCLStreamer sends every field by itself."""
    document = read_document(vectors / FOLDER / "lclstreamer.yaml")
    if form == "psana":
        document["wire_names"] = "psana"
    else:
        for name in ("detector_geometry", "beam_data", "run_info"):
            document["data_sources"][name]["separate_fields"] = True
    stacked = load_parameters(vectors / FOLDER / "lclstreamer.yaml")
    ours = whole_stream(parse_parameters(document), golden_events())
    for mine, theirs in zip(ours, whole_stream(stacked, golden_events()), strict=True):
        found, wanted = cbor2.loads(mine[1:]), cbor2.loads(theirs[1:])
        assert list(found) == list(wanted)
        for key in set(found) - {"timestamp", "lclstream"}:
            assert found[key] == wanted[key]
