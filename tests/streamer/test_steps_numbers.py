"""Steps that replace, convert and correct numbers: nothing is lost without a word."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.streamer.stepping import applied, array, event, frame, ragged, step_of

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.values import Ragged

Numbers = np.ndarray[Any, Any]

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


def one(kind: str, value: Any, **options: Any) -> Numbers:
    step = step_of(kind, inputs="x", **options)
    return array(applied(step, {"x": np.asarray(value)})["x"])


def refused(kind: str, value: Any, **options: Any) -> str:
    with pytest.raises(InvalidConfigError) as caught:
        one(kind, value, **options)
    return str(caught.value)


def test_threshold_replaces_what_is_beyond() -> None:
    values = np.array([-3.0, 1.0, 2.5, np.nan, np.inf], np.float32)
    found = one("Threshold", values, minimum=1, maximum=100, fill=-1)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([-1, 1, 2.5, np.nan, -1], np.float32))
    assert one("Threshold", [1, 2, 3], minimum=1.5, maximum=2.9).tolist() == [0, 2, 0]
    assert one("Threshold", np.array([0, 5], np.uint16), minimum=-7).tolist() == [0, 5]
    assert one("Threshold", np.array([0, 5], np.uint8), maximum=1e9).tolist() == [0, 5]
    assert one("Threshold", np.array(3), minimum=4).shape == ()


def test_threshold_of_ragged_values() -> None:
    after = applied(step_of("Threshold", inputs="x", minimum=2), {"x": Ragged(np.arange(4))})
    assert ragged(after["x"]).tolist() == [0, 0, 2, 3]


@given(
    dtype=st.sampled_from(INTEGERS),
    target=st.sampled_from(INTEGERS),
    policy=st.sampled_from(["error", "clip", "wrap"]),
    data=st.data(),
)
@settings(deadline=None, max_examples=150)
def test_integers_become_integers(
    dtype: str, target: str, policy: str, data: st.DataObject
) -> None:
    info, limits = np.iinfo(dtype), np.iinfo(target)
    elements = st.integers(int(info.min), int(info.max))
    numbers = data.draw(st.lists(elements, max_size=5))
    fit = all(limits.min <= number <= limits.max for number in numbers)
    if policy == "error" and not fit:
        text = refused("ConvertType", np.array(numbers, dtype), dtype=target)
        assert f"too far for {target} (out_of_range: error)" in text
        return
    found = one("ConvertType", np.array(numbers, dtype), dtype=target, out_of_range=policy)
    wanted = [
        min(max(number, int(limits.min)), int(limits.max))
        if policy == "clip"
        else (number - int(limits.min)) % (1 << limits.bits) + int(limits.min)
        for number in numbers
    ]
    assert (found.dtype.name, found.tolist()) == (target, wanted)


@given(
    target=st.sampled_from(INTEGERS),
    policy=st.sampled_from(["error", "clip"]),
    rounding=st.sampled_from(["nearest", "down", "up", "toward_zero"]),
    numbers=st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=5),
    dtype=st.sampled_from(["float32", "float64"]),
)
@settings(deadline=None, max_examples=150)
def test_floats_become_integers(
    target: str, policy: str, rounding: str, numbers: list[float], dtype: str
) -> None:
    limits = np.iinfo(target)
    functions: dict[str, Any] = {
        "nearest": round, "down": math.floor, "up": math.ceil, "toward_zero": math.trunc,
    }  # fmt: skip
    whole = [functions[rounding](n) if math.isfinite(n) else n for n in numbers]
    fit = all(limits.min <= number <= limits.max for number in whole)
    options = {"dtype": target, "out_of_range": policy, "rounding": rounding}
    if policy == "error" and not fit:
        assert f"too far for {target}" in refused(
            "ConvertType", np.array(numbers, dtype), **options
        )
        return
    found = one("ConvertType", np.array(numbers, dtype), **options)
    wanted = [min(max(number, int(limits.min)), int(limits.max)) for number in whole]
    assert found.tolist() == wanted


def test_wrapping_floats_keeps_the_lower_bits() -> None:
    found = one("ConvertType", [300.0, -1.0, 65536.4], dtype="uint8", out_of_range="wrap")
    assert found.tolist() == [44, 255, 0]
    assert "too far to wrap" in refused("ConvertType", [1e30], dtype="uint8", out_of_range="wrap")


def test_nan_becomes_an_integer_only_if_that_is_said() -> None:
    values = [1.0, np.nan, 3.0]
    assert "holds NaN" in refused("ConvertType", values, dtype="int16")
    assert one("ConvertType", values, dtype="int16", nan=-7).tolist() == [1, -7, 3]
    assert one("ConvertType", [np.nan], dtype="int16", nan=-7).tolist() == [-7]
    assert np.isnan(one("ConvertType", values, dtype="float32")[1])


def test_floats_are_narrowed_with_care() -> None:
    assert "too large for float32" in refused("ConvertType", [1e300], dtype="float32")
    found = one("ConvertType", [1e300, -1e300, np.inf], dtype="float32", out_of_range="clip")
    most = np.finfo(np.float32).max
    assert found.tolist() == [most, -most, np.inf]
    assert one("ConvertType", [0.1], dtype="float32")[0] == np.float32(0.1)


def test_integers_become_floats_only_if_they_stay_exact() -> None:
    assert one("ConvertType", [1 << 24], dtype="float32").tolist() == [1 << 24]
    assert "not exact as float32" in refused("ConvertType", [(1 << 24) + 1], dtype="float32")
    stamp = np.array([(1700000000 << 32) + 1], np.uint64)
    assert "not exact as float64" in refused("ConvertType", stamp, dtype="float64")
    rounded = one("ConvertType", stamp, dtype="float64", out_of_range="clip")
    assert rounded[0] == float(stamp[0])


def test_scale_and_offset() -> None:
    found = one(
        "ConvertType", np.array([0, 10, 11], np.uint16), dtype="float32", scale=0.1, offset=-1
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [-1, 0, 0.1], atol=1e-7)
    assert one("ConvertType", np.array(2.0), dtype="uint32", scale=10000).tolist() == 20000
    assert one("ConvertType", np.array(5, np.int64), dtype="int8", offset=-3).tolist() == 2
    assert one("ConvertType", [], dtype="int8").tolist() == []
    same = np.arange(3, dtype=np.int16)
    assert one("ConvertType", same, dtype="int16") is not None
    assert one("ConvertType", [True, False], dtype="uint8").tolist() == [1, 0]


def test_photons_are_counted() -> None:
    signal = np.array([-30, 0, 12, 13, 37, 38, 250], np.float32)
    found = one("PhotonCounts", signal, gain=25)
    assert (found.dtype, found.tolist()) == (np.uint16, [0, 0, 0, 1, 1, 2, 10])
    assert one("PhotonCounts", signal, gain=25, least=1).tolist() == [0, 0, 0, 0, 1, 1, 10]
    raw = np.array([1000, 1040, 1081], np.uint16)
    assert one("PhotonCounts", raw, gain=40, offset=1000).tolist() == [0, 1, 2]
    assert "too far for uint8" in refused("PhotonCounts", [6400.0], gain=25, dtype="uint8")
    clipped = one("PhotonCounts", [6400.0], gain=25, dtype="uint8", out_of_range="clip")
    assert clipped.tolist() == [255]
    assert "holds NaN" in refused("PhotonCounts", [np.nan], gain=25)
    assert one("PhotonCounts", [np.nan], gain=25, nan=0).tolist() == [0]


def test_every_pixel_can_have_a_gain(tmp_path: Path) -> None:
    gains = np.array([[10.0, 20.0], [30.0, 40.0]])
    np.save(tmp_path / "gains.npy", gains)
    options = {"gain_file": str(tmp_path / "gains.npy"), "inputs": "x"}
    step = step_of("PhotonCounts", **options)
    assert array(applied(step, {"x": gains * 3})["x"]).tolist() == [[3, 3], [3, 3]]
    with pytest.raises(InvalidConfigError, match=r"has shape \(2,\), but gain_file \(2, 2\)"):
        step.apply(event(), {"x": gains[0]})
    np.save(tmp_path / "gains.npy", gains - 10)
    with pytest.raises(InvalidConfigError, match="positive gains only"):
        step_of("PhotonCounts", **options)


def test_counts_of_simulated_photons_are_right() -> None:
    generator = np.random.default_rng(3)
    photons = generator.poisson(1.5, (2, 64, 64))
    signal = photons * 40 + generator.normal(0, 3, photons.shape)
    assert np.array_equal(one("PhotonCounts", signal.astype(np.float32), gain=40), photons)


@pytest.mark.parametrize("over", ["panel", "row", "column"])
def test_common_mode_is_subtracted_from_panels_rows_or_columns(over: str) -> None:
    axes = {"panel": (1, 2), "row": (2,), "column": (1,)}[over]
    stack = frame(3, 20, 30, dtype="float32")
    for method, function in (("median", np.median), ("mean", np.mean)):
        found = one("CommonMode", stack, over=over, method=method)
        wanted = stack - function(stack.astype(np.float64), axis=axes, keepdims=True)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    quarters = one("CommonMode", stack[0], over=over, panel_shape=[10, 15], least_pixels=1)
    corner = stack[0, 10:, 15:]
    axes = {"panel": (0, 1), "row": (1,), "column": (0,)}[over]
    wanted = corner - np.median(corner.astype(np.float64), axis=axes, keepdims=True)
    np.testing.assert_allclose(quarters[10:, 15:], wanted, atol=1e-5)


def test_only_dark_and_good_pixels_count() -> None:
    image, mask = np.full((20, 30), 5.0, np.float32), np.ones((20, 30), np.uint8)
    image[:10] += 1000
    image[12, :] = np.nan
    mask[13, :] = 0
    image[13, :] = 7
    step = step_of("CommonMode", inputs="x", below=500, mask={"value": "m"})
    found = array(applied(step, {"x": image, "m": mask})["x"])
    assert (found[:10] == 1000).all()
    assert (found[14:] == 0).all()
    assert (found[13] == 2).all()
    assert np.isnan(found[12]).all()


def test_what_has_too_few_pixels_stays() -> None:
    image = frame(20, 30, dtype="float32")
    image[4:] += 1000
    found = one("CommonMode", image, over="column", below=500, least_pixels=5)
    assert np.array_equal(found, image)
    assert one("CommonMode", np.full((8, 8), np.nan)).shape == (8, 8)


def test_integers_become_floats_wide_enough() -> None:
    for dtype, wanted in (("uint16", "float32"), ("int32", "float64"), ("float64", "float64")):
        found = one("CommonMode", frame(8, 8, dtype=dtype))
        assert found.dtype == wanted
