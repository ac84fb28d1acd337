"""Steps that choose, join and arrange pixels, beside plain arithmetic."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.streamer.stepping import applied, array, event, frame, step_of

from lclstream.core.errors import InvalidConfigError

Numbers = np.ndarray[Any, Any]


def one(kind: str, value: Numbers, **options: Any) -> Numbers:
    return array(applied(step_of(kind, inputs="x", **options), {"x": value})["x"])


def test_crop_of_images_and_stacks_is_a_view() -> None:
    stack = frame(3, 40, 60)
    found = one("Crop", stack, rows=[10, 20], columns=[5, 60])
    assert np.array_equal(found, stack[:, 10:20, 5:])
    assert np.shares_memory(found, stack)
    assert np.array_equal(one("Crop", stack[0], columns=[0, 1]), stack[0, :, :1])


def test_outputs_leave_the_input() -> None:
    image = frame(8, 8)
    step = step_of("Crop", inputs=["a", "b"], outputs=["c", "d"], rows=[0, 2])
    after = applied(step, {"a": image, "b": None})
    assert list(after) == ["a", "b", "c", "d"]
    assert np.array_equal(array(after["a"]), image)
    assert array(after["c"]).shape == (2, 8)
    assert after["d"] is None


def blocks(image: Numbers, down: int, across: int) -> Numbers:
    """Return each block's pixels along the last axis."""
    *before, rows, columns = image.shape
    rows, columns = rows // down, columns // across
    cut = image[..., : rows * down, : columns * across]
    grid = cut.reshape(*before, rows, down, columns, across).swapaxes(-3, -2)
    return grid.reshape(*before, rows, columns, down * across)


@given(
    rows=st.integers(1, 30),
    columns=st.integers(1, 30),
    down=st.integers(1, 5),
    across=st.integers(1, 5),
    dtype=st.sampled_from(["u1", "u2", "i2", "i4", "f4", "f8", "?"]),
    masked=st.booleans(),
)
@settings(deadline=None, max_examples=80)
def test_bins_are_sums_and_means_of_good_pixels(
    rows: int, columns: int, down: int, across: int, dtype: str, masked: bool
) -> None:
    if down * across == 1 or rows < down or columns < across:
        return
    image = frame(2, rows, columns, dtype=dtype)
    mask = frame(2, rows, columns, seed=4) % 3 if masked else np.ones(image.shape, np.uint8)
    options = {"rows": down, "columns": across, "remainder": "crop"}
    if masked:
        options["mask"] = {"value": "mask"}
    good = blocks(mask != 0, down, across)
    pixels = blocks(image, down, across)
    exact = np.where(good, pixels, 0).sum(axis=-1, dtype=np.float64)
    given = {"x": image, "mask": mask}
    total = array(applied(step_of("Bin", inputs="x", **options), given)["x"])
    if image.dtype.kind == "f":
        np.testing.assert_allclose(total, exact, rtol=1e-5)
    else:
        assert np.array_equal(total, exact)
    mean = array(applied(step_of("Bin", inputs="x", method="mean", **options), given)["x"])
    assert mean.dtype.kind == "f"
    count = good.sum(axis=-1)
    np.testing.assert_allclose(mean, exact / np.maximum(count, 1), rtol=1e-5)


def test_sums_are_as_wide_as_the_largest() -> None:
    most = {"uint8": "uint16", "uint16": "uint32", "int16": "int32", "uint32": "uint64"}
    for dtype, wanted in most.items():
        image = np.full((8, 8), np.iinfo(dtype).max, dtype)
        found = one("Bin", image, rows=4, columns=2)
        assert (found.dtype.name, int(found[0, 0])) == (wanted, 8 * np.iinfo(dtype).max)
    assert one("Bin", np.full((4, 4), 255, np.uint8), rows=2).dtype == np.uint16
    assert one("Bin", np.ones((4, 4), bool), rows=4).tolist() == [[4] * 4]
    assert one("Bin", np.ones((4, 4), np.float16), rows=4).dtype == np.float32


def test_blocks_without_good_pixels_get_their_own_value() -> None:
    image, mask = frame(4, 4, dtype="float32"), np.zeros((4, 4), np.uint8)
    mask[:2, :2] = 1
    image[3, 3] = np.nan
    step = step_of("Bin", inputs="x", rows=2, columns=2, mask={"value": "m"}, empty=float("nan"))
    found = array(applied(step, {"x": image, "m": mask})["x"])
    assert np.isfinite(found).tolist() == [[True, False], [False, False]]
    assert step.apply(event(), {"x": image, "m": None}) == {"x": None, "m": None}


def masks(folder: Path, good: Numbers) -> list[dict[str, Any]]:
    """Return the same mask in every kind of file."""
    np.save(folder / "m.npy", good)
    np.savez(folder / "m.npz", other=good[:1], mask=good.astype(np.float32))
    with h5py.File(folder / "m.h5", "w") as file:
        file["entry/mask"] = good.astype(np.int8)
        file["entry/status"] = np.where(good, 0b0100, 0b0111).astype(np.uint16)
    return [
        {"file": str(folder / "m.npy")},
        {"file": str(folder / "m.npz"), "dataset": "mask"},
        {"file": str(folder / "m.h5"), "dataset": "entry/mask"},
        {"file": str(folder / "m.h5"), "dataset": "/entry/status", "good": "zero", "bits": 3},
        {"value": "mask"},
        {"value": "status", "good": "zero"},
        {"value": "wide", "good": "zero", "bits": 1 << 40},
    ]


def test_masks_from_files_and_values(tmp_path: Path) -> None:
    image = frame(5, 7)
    good = frame(5, 7, seed=2) > 60
    given = {
        "x": image,
        "mask": good,
        "status": (~good).astype(np.int32),
        "wide": np.where(good, 1, 1 << 40).astype(np.uint64),
    }
    for mask in masks(tmp_path, good):
        step = step_of("MaskPixels", inputs="x", mask=mask, fill=9)
        found = array(applied(step, given)["x"])
        assert found.dtype == np.uint16
        assert np.array_equal(found, np.where(good, image, 9)), mask


def test_bits_that_the_status_does_not_have_are_never_set() -> None:
    status = np.full((5, 7), 255, np.uint8)
    mask = {"value": "status", "good": "zero", "bits": 0x100}
    step = step_of("MaskPixels", inputs="x", mask=mask)
    image = frame(5, 7)
    assert np.array_equal(array(applied(step, {"x": image, "status": status})["x"]), image)


BAD_FILES: list[tuple[str, str, str]] = [
    ("none.npy", "", "No such file"),
    ("text.npy", "", "cannot be read"),
    ("m.npz", "wrong", "it has no 'wrong'"),
    ("m.h5", "entry", "is a group"),
    ("m.h5", "nothing", "it has no 'nothing'"),
    ("text.h5", "x", "cannot be read"),
    ("pickle.npy", "", "cannot be read"),
]


def test_masks_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    masks(tmp_path, np.ones((2, 2), bool))
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "text.h5").write_text("no file")
    np.save(tmp_path / "pickle.npy", np.array([{}], object), allow_pickle=True)
    for name, dataset, text in BAD_FILES:
        mask = {"file": str(tmp_path / name), "dataset": dataset}
        with pytest.raises(InvalidConfigError) as caught:
            step_of("MaskPixels", inputs="x", mask=mask)
        assert text in str(caught.value), name
        assert name in str(caught.value)


def test_masks_of_other_frames_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.ones((5, 6), bool))
    step = step_of("MaskPixels", inputs="x", mask={"file": str(tmp_path / "m.npy")})
    with pytest.raises(InvalidConfigError, match=r"has shape \(5, 7\), but its mask has \(5, 6\)"):
        step.apply(event(), {"x": frame(5, 7)})
    step = step_of("MaskPixels", inputs="x", mask={"value": "m", "bits": 1})
    with pytest.raises(InvalidConfigError, match="is float64, no bits"):
        step.apply(event(), {"x": frame(5, 7), "m": np.ones((5, 7))})


def test_panels_are_chosen_in_order() -> None:
    stack = frame(5, 4, 6)
    assert np.array_equal(one("SelectPanels", stack, panels=[4, 0, 0]), stack[[4, 0, 0]])


def test_images_are_taken_apart_and_back() -> None:
    image = frame(6, 8)
    panels = one("SplitPanels", image, panel_shape=[3, 4])
    assert panels.shape == (4, 3, 4)
    assert np.array_equal(panels[1], image[:3, 4:])
    assert np.array_equal(panels[2], image[3:, :4])
    stack = np.stack([image, image + 1])
    both = one("SplitPanels", stack, panel_shape=[3, 4])
    assert np.array_equal(both, np.concatenate([panels, panels + 1]))


def test_values_are_stacked() -> None:
    a, b = frame(3, 4), frame(3, 4, seed=1)
    after = applied(step_of("StackValues", inputs=["a", "b"], output="c"), {"a": a, "b": b})
    assert list(after) == ["c"]
    assert np.array_equal(array(after["c"]), [a, b])
    step = step_of("StackValues", inputs=["a", "b"], output="c", keep_inputs=True)
    assert list(applied(step, {"a": a, "b": b})) == ["a", "b", "c"]
    assert applied(step, {"a": a, "b": None})["c"] is None
    with pytest.raises(InvalidConfigError, match=r"'b' is uint16 \(3, 3\), but 'a' is uint16"):
        step.apply(event(), {"a": a, "b": b[:, :3]})
