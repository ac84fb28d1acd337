"""Stream V2 as we send it, judged by cbor2 and the vendor's own decompression."""

import struct
from collections.abc import Mapping
from typing import Any

import cbor2
import numpy as np
import pytest
from dectris.compression import decompress
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.streamer.serializing import (
    STAMP,
    Given,
    document_of,
    events,
    parameters_of,
    sent,
    shares_memory,
    whole_stream,
)

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import Parameters, parse_parameters
from lclstream.streamer.config.canonical import configuration_hash
from lclstream.streamer.rank import Place
from lclstream.streamer.values import Ragged

TYPE = "SimplonBinarySerializer"
MAGIC = b"\xd9\xd9\xf7"
TYPED = {
    64: "u1", 69: "<u2", 70: "<u4", 71: "<u8", 72: "i1", 77: "<i2", 78: "<i4", 79: "<i8", 84: "<f2",
    85: "<f4", 86: "<f8",
}  # fmt: skip


def understood(tag: cbor2.CBORTag, immutable: bool = False) -> Any:
    """Return what a tag means to a client of DECTRIS."""
    del immutable
    value = tag.value
    if tag.tag == 40:
        assert len(value[0]) == 2, "clients take two axes only"
        return value[1].reshape(value[0])
    if tag.tag in TYPED:
        if isinstance(value, cbor2.CBORTag):
            value = understood(value)
        return np.frombuffer(value, TYPED[tag.tag])
    if tag.tag == 56500:
        algorithm, item_bytes, data = value
        total, block = struct.unpack(">QI", bytes(data[:12]))
        assert (algorithm, block) == ("bslz4", 8192)
        content = decompress(bytes(data), algorithm, elem_size=item_bytes)
        assert len(content) == total
        return content
    assert tag.tag == 0
    return value


def read(payload: bytes) -> dict[str, Any]:
    """Decode as a client does that insists on all that the standard says."""
    assert payload.startswith(MAGIC)
    found: dict[str, Any] = changeable(cbor2.loads(payload, tag_hook=understood))
    assert next(iter(found)) == "type"
    return found


def changeable(value: Any) -> Any:
    """Return lists and dicts: below a tag, cbor2 gives what cannot be changed."""
    if isinstance(value, Mapping):
        return {key: changeable(each) for key, each in value.items()}
    return [changeable(each) for each in value] if isinstance(value, list | tuple) else value


def parameters(names: Any, batch_size: int = 3, **options: Any) -> Parameters:
    chosen = {"data_source_to_serialize": "frame", "compression_threads": 1} | options
    return parameters_of(names, batch_size, type=TYPE, dialect="stream2", **chosen)


def image_of(frame: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Return the image that is made of a frame, and what is said with it."""
    values: list[Given] = [{"frame": frame} | options.pop("values", {})]
    (payload,) = sent(parameters(values[0], **options), events(values)).payloads
    found = read(payload)
    return found["data"]["threshold_1"], found["user_data"]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("compression", ["bslz4", "none"])
@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        ("|u1", "uint8"), ("<u2", "uint16"), (">u2", "uint16"), ("<u4", "uint32"),
        ("<i4", "int32"), ("<f4", "float32"), ("<f8", "float32"), ("<f2", "float32"),
        ("|i1", "int32"), ("<i2", "int32"), ("|b1", "uint8"),
    ],
)  # fmt: skip
def test_every_event_is_an_image_of_its_own(
    dtype: str, wanted: str, compression: str, threads: int
) -> None:
    frames = np.random.default_rng(1).poisson(0.5, (5, 37, 53)).astype(dtype)
    values: list[Given] = [{"frame": frame} for frame in frames]
    config = parameters(["frame"], compression=compression, compression_threads=threads)
    start, *images, end = map(read, whole_stream(config, events(values)))
    assert (start["type"], end["type"]) == ("start", "end")
    assert (start["image_size_x"], start["image_size_y"]) == (53, 37)
    assert start["image_dtype"] == wanted
    assert len(images) == 5
    for index, image in enumerate(images):
        data = image["data"]["threshold_1"]
        assert data.dtype == np.dtype(wanted)
        assert np.array_equal(data, frames[index].astype(wanted))
        assert image["image_id"] == index
    # One series: what belongs together says so.
    names = {(each["series_id"], each["series_unique_id"]) for each in (start, *images, end)}
    assert len(names) == 1
    assert next(iter(names))[0] == 3


def test_what_a_start_says() -> None:
    values: list[Given] = [
        {
            "frame": np.zeros((2, 3, 4), np.uint16),
            "photon_wavelength": 1.3,
            "distance": np.float32(80),
            "detector_geometry": np.array(["epix_0001", "# geometry\n"]),
        }
    ]
    config = parameters(
        values[0],
        detector_name="ePix10k",
        detector_type="AreaDetector",
        detector_distance_source="distance",
        pixel_size_um=[75, 75],
        beam_center=[2, 3],
        sensor_material="Si",
        sensor_thickness_um=320,
        count_time_s=1e-3,
        frame_time_s=1 / 120,
        series_id=9,
        series_unique_id="series nine",
        number_of_images=7,
    )
    start = read(whole_stream(config, events(values))[0])
    assert list(start) == ["type", "series_id", "series_unique_id", *sorted(list(start)[3:])]
    floats = {
        "beam_center_x": 2.0, "beam_center_y": 3.0, "count_time": 1e-3, "frame_time": 1 / 120,
        "incident_energy": 12398.419843320026 / 1.3, "incident_wavelength": 1.3,
        "pixel_size_x": 75e-6, "pixel_size_y": 75e-6, "sensor_thickness": 320e-6,
    }  # fmt: skip
    for name, wanted in floats.items():
        # The vendor's parser takes nothing else for them.
        assert type(start[name]) is float
        assert start[name] == pytest.approx(wanted)
    assert start["detector_translation"] == pytest.approx([0.0, 0.0, 0.08])
    assert [type(number) for number in start["detector_translation"]] == [float] * 3
    others = {
        "type": "start", "series_id": 9, "series_unique_id": "series nine",
        "channels": ["threshold_1"], "detector_description": "ePix10k",
        "detector_serial_number": "epix_0001", "image_dtype": "uint16", "image_size_x": 4,
        "image_size_y": 6, "number_of_images": 7, "sensor_material": "Si", "pixel_mask": {},
        "flatfield": {}, "goniometer": {}, "threshold_energy": {}, "flatfield_enabled": False,
        "pixel_mask_enabled": False, "countrate_correction_enabled": False,
        "virtual_pixel_interpolation_enabled": False, "saturation_value": 65535,
        "user_data": {
            "detector_dtype": "uint16", "image_dtype": "uint16", "frame_shape": [2, 3, 4],
            "geometry": "# geometry\n", "detector_type": "AreaDetector",
            "experiment": "tst000124", "run": 3, "ranks": 3, "format": 1,
            "source_identifier": "exp=tst000124,run=3",
        },
    }  # fmt: skip
    assert {name: start[name] for name in others} == others
    assert set(start) == {*floats, *others, "arm_date", "detector_translation"}


def test_what_an_image_says() -> None:
    frame = np.zeros((3, 4), np.uint16)
    first_values: Given = {
        "frame": frame,
        "SIOC:SYS0:ML00:AO192": 1.25,
        "note": "µ",
        "spectrum": np.arange(3, dtype=np.int16),
        "flags": np.array([True, False]),
        "peaks": Ragged(np.arange(6.0).reshape(3, 2)),
        "big": np.uint64(2**64 - 1),
        "detector_geometry": np.array(["id", "# geometry\n"]),
        "absent": None,
    }
    second_values: Given = dict.fromkeys(first_values, None) | {"frame": frame, "absent": 1.0}
    values = [first_values, second_values]
    config = parameters(values[0], count_time_s=0.25)
    first, second = (read(payload) for payload in sent(config, events(values)).payloads)
    seconds = STAMP >> 32
    assert (first["real_time"], first["start_time"], first["stop_time"]) == (
        [250_000_000, 10**9],
        [seconds * 10**9, 10**9],
        [seconds * 10**9 + 250_000_000, 10**9],
    )
    assert second["start_time"] == [seconds * 10**9 + 1, 10**9]
    data = first["user_data"]
    shown = {name: data["values"].pop(name) for name in ("spectrum", "flags")}
    # Of three axes or one, arrays of user_data need not be what clients take for an image.
    peaks = data["values"].pop("peaks")
    assert np.array_equal(shown["spectrum"], [0, 1, 2])
    assert np.array_equal(shown["flags"], [1, 0])
    assert np.array_equal(peaks, np.arange(6.0).reshape(3, 2))
    assert data == {
        "detector_dtype": "uint16", "image_dtype": "uint16",
        "values": {"SIOC:SYS0:ML00:AO192": 1.25, "note": "µ", "big": 2**64 - 1},
        # A double would be another number.
        "timestamp": STAMP, "event_index": 0, "step": 0, "sequence": 0, "run": 3, "rank": 1,
        "ranks": 3, "format": 1, "experiment": "tst000124",
        "source_identifier": "exp=tst000124,run=3",
        "configuration_sha256": configuration_hash(config), "data_source": "frame",
        "valid": dict.fromkeys(values[0], True) | {"absent": False},
    }  # fmt: skip
    assert second["user_data"]["values"] == {"absent": 1.0}
    assert second["user_data"]["timestamp"] == STAMP + 1
    assert second["user_data"]["sequence"] == 1
    assert [name for name, exists in second["user_data"]["valid"].items() if exists] == [
        "frame", "absent",
    ]  # fmt: skip


def test_a_start_says_units() -> None:
    document = document_of(
        ["frame", "x"], 1, type=TYPE, dialect="stream2", data_source_to_serialize="frame"
    )
    document["data_sources"]["x"]["units"] = "mm"
    start, *_ = whole_stream(
        parse_parameters(document), events([{"frame": np.zeros((2, 2), np.uint8), "x": 1}])
    )
    assert read(start)["user_data"]["units"] == {"x": "mm"}


def test_without_identification_only_values_and_conversions_are_said() -> None:
    values: list[Given] = [{"frame": np.zeros((3, 4), np.uint16), "x": 1}]
    config = parameters(values[0], identification=False)
    start, image, _ = map(read, whole_stream(config, events(values)))
    conversion = {"detector_dtype": "uint16", "image_dtype": "uint16"}
    assert start["user_data"] == conversion | {"frame_shape": [3, 4]}
    assert image["user_data"] == conversion | {"values": {"x": 1}}


def test_floats_become_integers_with_scale_and_offset() -> None:
    frame = np.array([[-5.0, 0.0, 1.26, 3.0], [1e9, np.nan, np.inf, 655.0]], np.float32)
    image, said = image_of(frame, image_dtype="uint16", scale=0.01, offset=-1.0)
    assert said["scale"] == 0.01
    assert said["offset"] == -1.0
    assert said["masked"] == 65535
    assert image.dtype == np.uint16
    # Below is 0, above is the greatest that is no mask, and what is no number is masked.
    assert image.tolist() == [[0, 100, 226, 400], [65533, 65535, 65535, 65533]]


@settings(max_examples=60, deadline=None)
@given(
    source=st.sampled_from(["<f4", "<f8", "<i2", "<i4", "<u4", "<i8", "<u8", "<f2"]),
    target=st.sampled_from(["uint8", "uint16", "uint32"]),
    scale=st.sampled_from([0.25, 1.0, 3.0]),
    offset=st.sampled_from([0.0, -10.0, 5.5]),
    seed=st.integers(0, 999),
)
def test_conversions_can_be_undone(
    source: str, target: str, scale: float, offset: float, seed: int
) -> None:
    frame = np.random.default_rng(seed).integers(0, 120, (4, 9)).astype(source)
    image, said = image_of(frame, image_dtype=target, scale=scale, offset=offset)
    assert image.dtype == np.dtype(target)
    top = np.iinfo(target).max
    exact = (frame.astype(np.float64) - offset) / scale
    inside = (exact >= 0) & (exact <= top - 2)
    if (scale, offset) != (1.0, 0.0):
        back = image * said["scale"] + said["offset"]
        assert np.abs(back - frame)[inside].max(initial=0) <= scale / 2
    else:
        assert np.array_equal(image[inside], exact[inside])
    assert (image[exact > top - 2] == top - 2).all()
    assert (image[exact < 0] == 0).all()


@pytest.mark.parametrize("dtype", ["<u2", "<f4"])
def test_masked_pixels_have_the_greatest_number(dtype: str) -> None:
    frame = np.array([[1, 65535, 65534], [2, 3, 4]]).astype(dtype)
    mask = np.array([[1, 1, 1], [0, 1, 1]], np.uint8)
    options = {"values": {"mask": mask}, "mask_source": "mask", "image_dtype": "uint16"}
    image, said = image_of(frame, **options)
    assert said["masked"] == 65535
    assert "values" not in said
    # Real pixels never look like masked ones.
    assert image.tolist() == [[1, 65533, 65533], [65535, 3, 4]]


def test_masked_pixels_of_floats_are_no_numbers() -> None:
    mask = np.array([[1, 0]], np.bool_)
    image, said = image_of(np.array([[1.5, 2.5]]), values={"mask": mask}, mask_source="mask")
    assert np.array_equal(image, [[1.5, np.nan]], equal_nan=True)
    assert "masked" not in said


def test_a_mask_of_another_shape_is_named() -> None:
    with pytest.raises(InvalidConfigError, match=r"^the mask has shape \(2,\), the frame \(3, 3\)"):
        image_of(np.zeros((3, 3)), values={"mask": np.ones(2)}, mask_source="mask")


def test_missing_frames_are_masked_altogether() -> None:
    values: list[Given] = [{"frame": np.ones((2, 3, 4), np.uint16)}, {"frame": None}]
    _, missing = sent(parameters(["frame"]), events(values)).payloads
    found = read(missing)
    assert (found["data"]["threshold_1"] == 65535).all()
    assert found["data"]["threshold_1"].shape == (6, 4)
    assert found["user_data"]["valid"] == {"frame": False}


def test_events_before_the_first_frame_are_not_lost() -> None:
    values: list[Given] = [{"frame": None}, {"frame": np.ones((2, 2), np.int32)}]
    start, first, second, end = map(read, whole_stream(parameters(["frame"]), events(values)))
    assert "image_dtype" not in start
    assert (first["data"], first["image_id"]) == ({}, 0)
    assert np.array_equal(second["data"]["threshold_1"], np.ones((2, 2)))
    assert end["type"] == "end"


def test_a_rank_without_events_begins_and_ends_the_same_series() -> None:
    values: list[Given] = [{"frame": np.ones((2, 2), np.int32)}]
    config = parameters(["frame"], pixel_size_um=[75, 75])
    start, end = map(read, whole_stream(config, [], Place(0, 3)))
    _, image, _ = map(read, whole_stream(config, events(values), Place(2, 3)))
    assert (start["type"], end["type"]) == ("start", "end")
    assert start["series_unique_id"] == image["series_unique_id"] == end["series_unique_id"]
    assert start["user_data"]["run"] == 3
    assert start["user_data"]["experiment"] == "tst000124"
    assert start["pixel_size_x"] == pytest.approx(75e-6)


def test_a_job_names_the_series(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parameters(["frame"])
    names = []
    for job in ("", "12", "13"):
        monkeypatch.setenv("LCLSTREAM_TRANSFER", job)
        names.append(read(whole_stream(config, [])[0])["series_unique_id"])
    assert names[1:] == ["tst000124-3-12", "tst000124-3-13"]
    assert names[0].startswith("tst000124-3-")
    assert len(set(names)) == 3


def test_images_that_are_not_changed_are_sent_from_where_they_are() -> None:
    values: list[Given] = [{"frame": np.zeros((64, 64), np.uint16), "a": 1.0}] * 3
    result = sent(parameters(values[0], compression="none"), events(values))
    ((messages,), (batch,)) = (result.messages, result.batches)
    for row, message in enumerate(messages):
        assert shares_memory(message, batch.arrays["frame"][row])
        assert len(message.parts) <= 3


def test_the_image_may_be_named_as_by_psana() -> None:
    document = document_of([], 1, type=TYPE, dialect="stream2")
    document["data_sources"] = {
        "picture": {"type": "EventValue", "name": "jungfrau", "field": "raw.calib"}
    }
    document["data_serializer"]["data_source_to_serialize"] = "jungfrau.raw.calib"
    config = parse_parameters(document)
    frame = np.arange(6, dtype=np.int32).reshape(2, 3)
    (payload,) = sent(config, events([{"jungfrau.raw.calib": frame}])).payloads
    assert np.array_equal(read(payload)["data"]["threshold_1"], frame)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"data_source_to_serialize": "frime"},
            r"there is no value 'frime' \(did you mean 'frame'",
        ),
        ({"mask_source": "mask"}, r"mask_source: there is no value 'mask'"),
        ({"geometry_source": "geo"}, r"geometry_source: there is no value 'geo'"),
        ({"scale": 2.0}, r"scale and offset need an image_dtype of unsigned integers"),
        ({"image_dtype": "uint64"}, r"image_dtype: input should be 'native', 'uint8',"),
        (
            {"detector_distance_mm": 1, "detector_distance_source": "frame"},
            r"only one of detector_distance_mm and detector_distance_source",
        ),
        ({"compression": "lz4"}, r"compression: input should be 'bslz4' or 'none'"),
        ({"series_id": -1}, r"series_id: input should be greater than or equal to 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidConfigError, match=problem):
        parameters(["frame"], **options)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            {"type": "GenericRandomNumpyArray", "array_shape": [9], "array_dtype": "uint16"},
            r"value 'frame' has 1 axes: an image needs rows and columns",
        ),
        (
            {"type": "GenericRandomNumpyArray", "array_shape": [9, 9], "array_dtype": "int64"},
            r"value 'frame' is int64: choose an image_dtype",
        ),
        ({"type": "SourceIdentifier"}, r"value 'frame' is not an array of numbers"),
    ],
)
def test_what_is_no_image_is_named_before_the_run(source: dict[str, Any], problem: str) -> None:
    document = document_of([], 1, type=TYPE, dialect="stream2", data_source_to_serialize="frame")
    document["data_sources"] = {"frame": source}
    with pytest.raises(InvalidConfigError, match=problem):
        parse_parameters(document)


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (np.zeros(3), r"^value 'frame' is no image"),
        (Ragged(np.zeros((3, 4))), r"^value 'frame' is no image"),
        (np.zeros((3, 4), np.int64), r"^frames of int64 need an image_dtype"),
        (np.zeros((3, 4), np.complex64), r"^frames must be of numbers, not of complex64"),
    ],
)
def test_what_is_no_image_is_named_at_the_first_event(frame: Any, problem: str) -> None:
    with pytest.raises(InvalidConfigError, match=problem):
        image_of(frame)


def test_what_clients_may_miss_is_noticed() -> None:
    options: dict[str, Any] = {
        "detector_name": "epix", "pixel_size_um": [75, 75], "sensor_material": "Si",
        "sensor_thickness_um": 320, "count_time_s": 0.0, "frame_time_s": 0.1,
        "detector_distance_mm": 80, "photon_energy_source": "energy",
    }  # fmt: skip
    assert parameters(["frame", "energy"], **options).notices == ()
    (notice,) = parameters(["frame"]).notices
    assert notice.endswith(
        "some clients need it: detector_name, pixel_size_um, sensor_material, sensor_thickness_um,"
        " count_time_s, frame_time_s, detector_distance_mm, photon_wavelength_source"
    )


@pytest.mark.parametrize(
    ("identifier", "series", "name"),
    [
        ("exp=mfx1,run=12", 12, "mfx1-12-"),
        ("exp=xpptut15:run=430:smd", 430, "xpptut15-430-"),
        ("files=/a/run=9x/b.xtc2", 1, "lclstream-1-"),
        ("exp=a,run=1,exp=a,run=2", 1, "a-1-"),
        ("run=all", 1, "lclstream-1-"),
        ("", 1, "lclstream-1-"),
    ],
)
def test_a_series_is_numbered_like_the_run(identifier: str, series: int, name: str) -> None:
    document = document_of(
        ["frame"], 1, type=TYPE, dialect="stream2", data_source_to_serialize="frame"
    )
    document["source_identifier"] = identifier
    start = read(whole_stream(parse_parameters(document), [])[0])
    assert start["series_id"] == series
    assert start["series_unique_id"].startswith(name)


def test_a_series_may_have_the_number_0() -> None:
    assert read(whole_stream(parameters(["frame"], series_id=0), [])[0])["series_id"] == 0
