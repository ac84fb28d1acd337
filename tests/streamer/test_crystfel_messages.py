"""Messages for CrystFEL: read as CrystFEL reads them, they hold what went in."""

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.streamer.serializing import (
    STAMP,
    Given,
    document_of,
    events,
    kinds,
    made,
    parameters_of,
    sent,
    shares_memory,
)

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import parse_parameters
from lclstream.streamer.config.canonical import configuration_hash
from lclstream.streamer.values import Ragged

TYPE = "CrystfelMsgpackSerializer"


def pairs(payload: bytes) -> list[tuple[str, Any]]:
    """Return keys and values in the order of the message."""
    found: list[tuple[str, Any]] = []

    def keep(each: Any) -> Any:
        found[:] = each
        return dict(each)

    # The outermost map is the last that is complete.
    msgpack.unpackb(payload, object_pairs_hook=keep)
    return found


def look_up(payload: bytes, wanted: str) -> Any:
    """Return what CrystFEL finds: the first key that the wanted name begins with."""
    return next((value for key, value in pairs(payload) if wanted.startswith(key)), None)


def image(payload: bytes, wanted: str) -> Any:
    """Return an image as CrystFEL reads it: of no other type, and of two axes."""
    found = look_up(payload, wanted)
    assert found["type"] in ("<i4", "<f4")
    assert len(found["shape"]) == 2
    assert len(found["data"]) == 4 * found["shape"][0] * found["shape"][1]
    return np.frombuffer(found["data"], found["type"]).reshape(found["shape"])


def test_an_event_of_a_crystal() -> None:
    frame = np.arange(12, dtype=np.uint16).reshape(3, 4)
    values: list[Given] = [
        {
            "frame": frame + index,
            "energy": 9500.5 + index,
            "distance": 80,
            "peaks_fs": Ragged(np.arange(index, dtype=np.float32) + 0.5),
            "peaks_ss": Ragged(np.arange(index, dtype=np.float32) + 1.5),
            "peaks_intensity": Ragged(np.arange(index, dtype=np.float32) * 100),
            "peaks_snr": Ragged(np.arange(index, dtype=np.float32)),
            "note": "µ",
            "is_hit": np.bool_(index),
        }
        for index in range(3)
    ]
    parameters = parameters_of(
        values[0],
        2,
        type=TYPE,
        fields={
            "note": "note",
            "frame": "detector_data",
            "energy": "beam_energy",
            "distance": "detector_distance",
            "is_hit": "is_hit",
        },
        geometry_keys=["detector_data", "beam_energy", "detector_distance", "peak_list"],
        peaks="peaks",
    )
    payloads = sent(parameters, events(values)).payloads
    assert len(payloads) == 3
    for index, payload in enumerate(payloads):
        assert [key for key, _ in pairs(payload)] == [
            "detector_data", "beam_energy", "detector_distance", "peak_list", "note", "is_hit",
            "timestamp", "event_index", "lclstream",
        ]  # fmt: skip
        data = image(payload, "detector_data")
        assert data.dtype == np.dtype("<i4")
        assert np.array_equal(data, frame + index)
        assert look_up(payload, "beam_energy") == 9500.5 + index
        assert look_up(payload, "detector_distance") == 80
        assert look_up(payload, "note") == "µ"
        assert look_up(payload, "is_hit") == int(bool(index))
        numbers = np.arange(float(index))
        assert look_up(payload, "peak_list") == {
            "fs": (numbers + 0.5).tolist(),
            "ss": (numbers + 1.5).tolist(),
            "intensity": (numbers * 100).tolist(),
        }
        assert all(
            isinstance(number, float)
            for column in look_up(payload, "peak_list").values()
            for number in column
        )
        # Exact: as a double it would be another one.
        assert look_up(payload, "timestamp") == STAMP + index
        assert look_up(payload, "event_index") == index
        assert look_up(payload, "lclstream") == {
            "sequence": index, "run": 3, "rank": 1, "ranks": 3, "format": 1,
            "experiment": "tst000124", "source_identifier": "exp=tst000124,run=3",
            "configuration_sha256": configuration_hash(parameters),
            "event_index": index, "timestamp": STAMP + index, "step": index // 2, "missing": [],
        }  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "wanted", "given_numbers", "found"),
    [
        ("|b1", "<i4", [0, 1], [0, 1]),
        ("|i1", "<i4", [-128, 127], [-128, 127]),
        ("<u2", "<i4", [0, 65535], [0, 65535]),
        (">i2", "<i4", [-32768, 1], [-32768, 1]),
        ("<i4", "<i4", [-(2**31), 2**31 - 1], [-(2**31), 2**31 - 1]),
        ("<u4", "<i4", [0, 2**32 - 1], [0, 2**31 - 1]),
        ("<i8", "<i4", [-(2**40), 2**40], [-(2**31), 2**31 - 1]),
        ("<u8", "<i4", [7, 2**64 - 1], [7, 2**31 - 1]),
        ("<f2", "<f4", [0.5, -2.0], [0.5, -2.0]),
        ("<f4", "<f4", [0.1, np.nan], [np.float32(0.1), np.nan]),
        (">f8", "<f4", [0.1, 1e300], [np.float32(0.1), np.inf]),
    ],
)
def test_pixels_become_one_of_two_types(
    dtype: str, wanted: str, given_numbers: list[Any], found: list[Any]
) -> None:
    values: list[Given] = [{"frame": np.array([given_numbers], dtype)}]
    (payload,) = sent(parameters_of(["frame"], 1, type=TYPE), events(values)).payloads
    data = image(payload, "frame")
    assert data.dtype == np.dtype(wanted)
    assert np.array_equal(data, [found], equal_nan=wanted == "<f4")


@settings(max_examples=60, deadline=None)
@given(
    forms=st.dictionaries(st.sampled_from(["aa", "bb", "cc", "dd"]), kinds(), min_size=1),
    count=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_any_events_come_back(forms: dict[str, Any], count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values: list[Given] = [
        {
            name: None if index and generator.random() < 0.2 else made(generator, kind)
            for name, kind in forms.items()
        }
        for index in range(count)
    ]
    payloads = sent(parameters_of(forms, 2, type=TYPE), events(values)).payloads
    assert len(payloads) == count
    for payload, given_values in zip(payloads, values, strict=True):
        message = msgpack.unpackb(payload)
        missing = [name for name, value in given_values.items() if value is None]
        assert message["lclstream"]["missing"] == missing
        for name, value in given_values.items():
            check(message.get(name), value, forms[name])


def check(found: Any, value: Any, kind: Any) -> None:
    is_image = len(kind.shape) > 1 and not kind.ragged and np.dtype(kind.dtype).kind != "c"
    if value is None:
        # An image that is missing is one of bad pixels.
        assert np.isnan(np.frombuffer(found["data"], "<f4")).all() if is_image else found is None
        return
    array = np.asarray(value.array if isinstance(value, Ragged) else value)
    if array.dtype.kind == "c":
        assert np.array_equal(np.asarray(found).reshape(*array.shape, 2)[..., 0], array.real)
    elif is_image:
        data = np.frombuffer(found["data"], found["type"]).reshape(found["shape"])
        slab = array.reshape(-1, array.shape[-1])
        exact = slab if slab.dtype.kind != "f" else slab.astype(np.float32)
        assert np.array_equal(data, np.clip(exact, -(2**31), 2**31 - 1), equal_nan=True)
    elif array.ndim or kind.ragged:
        data = np.frombuffer(found["data"], found["type"]).reshape(found["shape"])
        assert data.dtype == array.dtype
        assert np.array_equal(data, array)
    else:
        assert found == array.item()


def test_stacks_of_panels_are_one_below_the_other() -> None:
    frame = np.random.default_rng(1).random((3, 4, 5), np.float32)
    result = sent(parameters_of(["frame"], 1, type=TYPE), events([{"frame": frame}]))
    assert np.array_equal(image(result.payloads[0], "frame"), np.concatenate(list(frame)))


def test_frames_that_need_no_conversion_are_sent_from_where_they_are() -> None:
    values: list[Given] = [{"frame": np.zeros((64, 64), np.float32), "a": 1.0}] * 3
    result = sent(parameters_of(values[0], 3, type=TYPE), events(values))
    ((messages,), (batch,)) = (result.messages, result.batches)
    for row, message in enumerate(messages):
        assert shares_memory(message, batch.arrays["frame"][row])
        assert len(message.parts) == 3


def test_wavelengths_are_sent_as_energies() -> None:
    values: list[Given] = [{"wave": 1.3 if index else None} for index in range(2)]
    parameters = parameters_of(
        ["wave"], 2, type=TYPE, wavelength="wave", geometry_keys=["beam_energy"]
    )
    _, payload = sent(parameters, events(values)).payloads
    assert look_up(payload, "beam_energy") == pytest.approx(9537.246, abs=1e-3)


def test_what_is_missing_is_not_there() -> None:
    values: list[Given] = [
        {"frame": np.zeros((2, 2), np.uint16), "energy": 1.0, "peaks_fs": None, "peaks_ss": None,
         "peaks_intensity": None},
        {"frame": None, "energy": None, "peaks_fs": None, "peaks_ss": None,
         "peaks_intensity": None},
    ]  # fmt: skip
    _, payload = sent(
        parameters_of(values[0], 2, type=TYPE, peaks="peaks"), events(values)
    ).payloads
    assert np.isnan(image(payload, "frame")).all()
    assert look_up(payload, "energy") is None
    assert look_up(payload, "peak_list") == {"fs": [], "ss": [], "intensity": []}
    assert look_up(payload, "lclstream")["missing"] == [
        "frame", "energy", "peaks_fs", "peaks_ss", "peaks_intensity",
    ]  # fmt: skip


def test_without_identification_there_is_nothing_else() -> None:
    parameters = parameters_of(["frame"], 1, type=TYPE, identification=False)
    (payload,) = sent(parameters, events([{"frame": np.zeros((2, 2), np.int32)}])).payloads
    assert [key for key, _ in pairs(payload)] == ["frame"]


def test_a_value_of_the_name_of_an_identification_stands_for_it() -> None:
    (payload,) = sent(
        parameters_of(["timestamp"], 1, type=TYPE), events([{"timestamp": np.uint64(STAMP + 9)}])
    ).payloads
    assert [key for key, _ in pairs(payload)] == ["timestamp", "event_index", "lclstream"]
    assert look_up(payload, "timestamp") == STAMP + 9


@pytest.mark.parametrize(
    ("names", "options", "problem"),
    [
        (
            ["detector", "detector_data"],
            {},
            r"the key 'detector' would be taken for 'detector_data', which begins so, by CrystFEL",
        ),
        (["timestamp_us"], {}, r"the key 'timestamp' would be taken for 'timestamp_us'"),
        (["a", "b"], {"fields": {"a": "x", "b": "x"}}, r"the key 'x' is given twice"),
        (["a"], {"fields": {"b": "x"}}, r"fields\.b: there is no value of this name"),
        (["aa"], {"geometry_keys": ["data"]}, r"geometry_keys\.0: no value has this key"),
        (["aaa"], {"images": ["aab"]}, r"images: there is no value 'aab' \(did you mean 'aaa'\?"),
        (["aa"], {"peaks": "peaks"}, r"peaks: there is no value 'peaks_fs'"),
        (["aa"], {"wavelength": "wave"}, r"wavelength: there is no value 'wave'"),
        (
            ["aa", "wave", "beam"],
            {"wavelength": "wave"},
            r"the key 'beam' would be taken for 'beam_energy'",
        ),
        (["aa"], {"fields": {"aa": "lclstream"}}, r"lclstream is the key of our own metadata"),
    ],
)
def test_what_crystfel_would_mistake_is_refused(
    names: list[str], options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidConfigError, match=problem):
        parameters_of(names, 1, type=TYPE, **options)


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("number", {"images": ["number"]}, r"images: value 'number' is not an image"),
        ("x_fs", {"peaks": "x"}, r"peaks: value 'x_fs' is not one number for each peak"),
        ("text", {"wavelength": "text"}, r"wavelength: value 'text' is not a number"),
    ],
)
def test_what_cannot_be_is_refused_before_the_run(
    name: str, options: dict[str, Any], problem: str
) -> None:
    document = document_of(["x_ss", "x_intensity"], 1, type=TYPE, **options)
    kind = {"type": "SourceIdentifier"} if name == "text" else {"type": "FloatValue", "value": 1}
    document["data_sources"][name] = kind
    with pytest.raises(InvalidConfigError, match=problem):
        parse_parameters(document)


def test_keys_that_begin_alike_can_be_renamed() -> None:
    fields = {"detector": "panel_name", "detector_data": "detector_data"}
    values: list[Given] = [{"detector": "epix", "detector_data": np.zeros((2, 3), np.int32)}]
    parameters = parameters_of(values[0], 1, type=TYPE, fields=fields)
    (payload,) = sent(parameters, events(values)).payloads
    assert image(payload, "detector_data").shape == (2, 3)


@pytest.mark.parametrize(
    ("value", "options", "problem"),
    [
        (np.zeros(3), {"images": ["x_fs"]}, r"^value 'x_fs' is not an image, but float64 3$"),
        (np.zeros(3), {"wavelength": "x_fs"}, r"^value 'x_fs' is not a number, but float64 3$"),
        (np.float32(3), {"peaks": "x"}, r"is not one number for each peak, but float32 a single"),
    ],
)
def test_values_that_are_something_else_are_named(
    value: Any, options: dict[str, Any], problem: str
) -> None:
    names = ["x_fs", "x_ss", "x_intensity"]
    parameters = parameters_of(names, 1, type=TYPE, **options)
    with pytest.raises(InvalidConfigError, match=problem):
        sent(parameters, events([dict.fromkeys(names, value)]))


def test_values_that_are_not_sent_are_noticed() -> None:
    names = ["frame", "wave", "rest", "x_fs", "x_ss", "x_intensity"]
    options = {"fields": {"frame": "data"}, "wavelength": "wave", "peaks": "x"}
    parameters = parameters_of(names, 1, type=TYPE, **options)
    assert parameters.notices == ("data_serializer: 'rest' is not in fields and is not sent",)
    assert parameters_of(["frame"], 1, type=TYPE).notices == ()
