"""PeakNet's preprocessing, bit for bit as both of its versions do it, and what it refuses."""

import io
import itertools
import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.streamer.stepping import (
    Document,
    applied,
    array,
    batches,
    config_of,
    document,
    event,
    frame,
    ragged,
    random,
    step_of,
)

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import Parameters, parse_parameters
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers import open_serializer
from lclstream.streamer.values import Values

Image = np.ndarray[Any, Any]

TARGET = {"target_height": 21, "target_width": 40}


def peaknet(**options: Any) -> Document:
    return {"type": "PeaknetPreprocessing", **TARGET, **options}


def prepared(image: Image, **options: Any) -> Values:
    return applied(step_of("PeaknetPreprocessing", **TARGET, **options), {"x": image})


def short_form(sources: Document, **options: Any) -> Parameters:
    written = document(**sources)
    pipeline = {"type": "PeaknetPreprocessingPipeline", "batch_size": 2, **TARGET, **options}
    return parse_parameters(written | {"processing_pipeline": pipeline})


def second_version(image: Image, eps: float = 1e-5, *, scale: bool = True) -> Image:
    """Return what the version with normalisation makes of one event, in its words."""
    if image.ndim == 2:
        image = image[None]
    _, height, width = image.shape
    down, across = max(21 - height, 0), max(40 - width, 0)
    top, left = down // 2, across // 2
    x = np.pad(image, ((0, 0), (top, down - top), (left, across - left)))
    if not scale:
        return np.asarray(x - x.mean())
    return np.asarray((x - x.mean()) / np.sqrt(x.var(ddof=0) + eps))


def test_golden_messages_of_upstream(vectors: Path) -> None:
    folder = vectors / "peaknet-slac66cc566-center-c3"
    images = [np.random.default_rng(1000 + i).poisson(2.0, (2, 16, 32))[0] for i in range(5)]
    events: list[Values] = [{"x": each.astype(np.float64)} for each in images]
    sources = {"x": random(16, 32, dtype="float64")}
    options = {"pad_style": "center", "add_channel_dim": True, "num_channels": 3}
    steps = parse_parameters(document(peaknet(**options), **sources))
    for parameters in (short_form(sources, **options), steps):
        made = batches(parameters, events)
        golden = sorted(folder.glob("*.bin"))
        assert len(made) == len(golden) == 3
        for batch, path in zip(made, golden, strict=True):
            with h5py.File(io.BytesIO(path.read_bytes())) as file:
                wanted = file["data/data"][...]
            assert batch.arrays["x"].dtype == wanted.dtype
            assert np.array_equal(batch.arrays["x"][: batch.count], wanted)


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 50),
    style=st.sampled_from(["center", "bottom-right"]),
    channels=st.integers(1, 4),
    dtype=st.sampled_from(["u1", "u2", "i4", "f4", "f8"]),
)
def test_padding_of_any_image(
    height: int, width: int, style: str, channels: int, dtype: str
) -> None:
    image = frame(height, width, dtype=dtype)
    down, across = max(21 - height, 0), max(40 - width, 0)
    before = (down // 2, across // 2) if style == "center" else (0, 0)
    wanted = np.pad(image, [(n, d - n) for n, d in zip(before, (down, across), strict=True)])
    found = array(prepared(image, pad_style=style, num_channels=channels)["x"])
    assert found.dtype == image.dtype
    assert found.shape == (channels, *wanted.shape)
    assert all(np.array_equal(each, wanted) for each in found)
    flat = array(prepared(image, pad_style=style, add_channel_dim=False)["x"])
    assert np.array_equal(flat, wanted)


def test_events_of_other_sizes_and_later_ones_leave_no_trace() -> None:
    """The memory of the padding is used again, in other places for other sizes."""
    step = step_of("PeaknetPreprocessing", target_height=300, target_width=300)
    for index, size in enumerate((200, 100, 300, 200, 100, 301)):
        image = frame(size, size, seed=index)
        found = array(applied(step, {"x": image}, index)["x"])[0]
        assert found.sum() == image.sum(), size
        before = max(300 - size, 0) // 2
        assert np.array_equal(found[before : before + size, before : before + size], image)


def test_what_is_no_image_passes() -> None:
    given = {"wave": frame(50), "stack": frame(2, 16, 32), "text": np.array(b"note")}
    after = applied(step_of("PeaknetPreprocessing", **TARGET), given)
    assert all(np.array_equal(array(after[name]), value) for name, value in given.items())


def test_values_of_several_fields_are_images_too() -> None:
    source = {
        "type": "Psana2DetectorInterface",
        "psana_name": "jungfrau",
        "psana_fields": ["raw.image", "raw.other"],
        "separate_fields": True,
    }
    parameters = short_form({"d": source})
    assert parameters.labels == ("d.raw.image", "d.raw.other")
    (batch,) = batches(parameters, [{"d.raw.image": frame(16, 32), "d.raw.other": frame(8, 8)}])
    assert batch.arrays["d.raw.image"].shape == (2, 1, 21, 40)
    assert batch.arrays["d.raw.other"].shape == (2, 1, 21, 40)


@pytest.mark.parametrize("shape", [(16, 32), (3, 16, 32), (3, 5, 41)])
def test_normalisation_is_that_of_the_second_version(shape: tuple[int, ...]) -> None:
    for dtype, scale in itertools.product(("float32", "float64", "uint16"), (True, False)):
        image = frame(*shape, dtype=dtype)
        after = prepared(image, apply_normalization=True, norm_scale_variance=scale)
        found, wanted = array(after["x"]), second_version(image, scale=scale)
        assert found.dtype == wanted.dtype == (np.float32 if dtype == "float32" else np.float64)
        assert np.array_equal(found, wanted)
        shaped = array(after["x_original_shape"])
        assert (shaped.dtype, shaped.tolist()) == (np.int32, [*(1, *shape)[-3:]])


def test_the_second_version_as_it_is_written() -> None:
    """Defaults of its own that are spelt out; batches and companions are its own, too."""
    sources = {"x": random(16, 32, dtype="float64"), "stamp": {"type": "Psana2Timestamp"}}
    options = {
        "apply_normalization": False, "norm_eps": 1e-5, "norm_check_nan": True,
        "norm_scale_variance": True, "merge_batch_and_channel": False,
    }  # fmt: skip
    parameters = short_form(sources, **options)
    assert parameters.labels == ("x", "stamp", "x_original_shape")
    again = parse_parameters(parameters.model_dump(mode="json"))
    assert again.labels == parameters.labels
    assert again == parameters
    images = [frame(16, 32, dtype="float64", seed=i) for i in range(3)]
    events: list[Values] = [{"x": each, "stamp": np.array(5, np.uint64)} for each in images]
    full, last = batches(parameters, events)
    assert full.arrays["x"].shape == (2, 1, 21, 40)
    assert np.array_equal(full.arrays["x_original_shape"], [[1, 16, 32]] * 2)
    assert (last.count, last.arrays["x"].dtype.name) == (1, "float64")


def test_original_shape_in_an_archive_is_that_of_the_whole_batch() -> None:
    written = document(peaknet(original_shape=True), x=random(16, 32, dtype="float64"))
    written["data_serializer"] = {"type": "NumpyBinarySerializer", "use_compression": False}
    parameters = parse_parameters(written)
    serializer = open_serializer(parameters, Place(0, 1))
    (batch,) = batches(parameters, [{"x": frame(16, 32, dtype="float64")}] * 2)
    (message,) = serializer.messages(batch)
    with np.load(io.BytesIO(message.tobytes())) as archive:
        assert archive["x"].shape == (2, 1, 21, 40)
        found = archive["x_original_shape"]
    serializer.close()
    assert (found.dtype, found.tolist()) == (np.int32, [2, 1, 16, 32])


def test_channels_merge_into_events() -> None:
    sources = {"x": random(3, 16, 32, dtype="float32")}
    images = [frame(3, 16, 32, dtype="float32", seed=i) for i in range(3)]
    full, last = batches(
        short_form(sources, merge_batch_and_channel=True), [{"x": each} for each in images]
    )
    column = full.ragged["x"]
    padded = np.pad(np.stack(images), ((0, 0), (0, 0), (2, 3), (4, 4)))
    assert column.values(2).shape == (6, 1, 21, 40)
    assert np.array_equal(column.values(2), padded[:2].reshape(6, 1, 21, 40))
    assert list(column.offsets) == [0, 3, 6]
    assert np.array_equal(last.ragged["x"].values(1), padded[2:].reshape(3, 1, 21, 40))
    assert np.array_equal(full.arrays["x_original_shape"], [[3, 16, 32]] * 2)
    merged = ragged(prepared(images[0][0], merge_batch_and_channel=True, num_channels=2)["x"])
    assert merged.shape == (2, 1, 21, 40)


def test_stacks_and_original_shape_can_be_chosen_in_any_version() -> None:
    stack = frame(2, 16, 32)
    padded = array(prepared(stack, stacks="pad")["x"])
    assert padded.shape == (2, 21, 40)
    kept = prepared(stack, stacks="pass", apply_normalization=True, original_shape=False)
    assert np.array_equal(array(kept["x"]), stack)
    assert set(kept) == {"x"}


def test_padding_need_not_count() -> None:
    image = frame(16, 32, dtype="float32")
    after = prepared(image, apply_normalization=True, norm_padding=False)
    found = array(after["x"])[0].copy()
    inside = found[2:18, 4:36]
    assert found.dtype == np.float32
    assert np.array_equal(inside, (image - image.mean()) / np.sqrt(image.var() + 1e-5))
    found[2:18, 4:36] = 0
    assert not found.any()


def test_larger_images_keep_their_size_lose_their_rim_or_are_refused() -> None:
    image = frame(30, 39)
    assert array(prepared(image)["x"]).shape == (1, 30, 40)
    centre = array(prepared(image, larger="crop")["x"])[0]
    assert np.array_equal(centre[:, :39], image[4:25])
    corner = array(prepared(image, larger="crop", pad_style="bottom-right")["x"])[0]
    assert np.array_equal(corner[:, :39], image[:21])
    with pytest.raises(InvalidConfigError, match=r"larger than 21 rows and 40 columns"):
        prepared(image, larger="error")


def test_nan_is_refused_unless_allowed() -> None:
    image = frame(16, 32, dtype="float64")
    image[3, 4] = np.nan
    with pytest.raises(InvalidConfigError, match=r"'x' of event 0 is NaN after normalisation"):
        prepared(image, apply_normalization=True)
    after = prepared(image, apply_normalization=True, norm_check_nan=False)
    assert np.isnan(array(after["x"])).all()
    assert np.isnan(array(prepared(image)["x"])[0, 5, 8])


def test_constant_images_need_the_epsilon() -> None:
    image = np.full((21, 40), 3.0)
    assert not array(prepared(image, apply_normalization=True)["x"]).any()
    with pytest.raises(InvalidConfigError, match="NaN"):
        prepared(image, apply_normalization=True, norm_eps=0)


def test_named_images_only_are_treated() -> None:
    step = step_of("PeaknetPreprocessing", **TARGET, images=["a"])
    after = applied(step, {"a": frame(4, 4), "b": frame(4, 4)})
    assert (array(after["a"]).shape, array(after["b"]).shape) == ((1, 21, 40), (4, 4))
    with pytest.raises(InvalidConfigError, match="'a' has shape"):
        step.apply(event(), {"a": frame(4)})


def test_images_that_nobody_named_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    step = step_of("PeaknetPreprocessing", **TARGET)
    with caplog.at_level(logging.INFO, logger="lclstream"):
        for _ in range(2):
            applied(step, {"a": frame(4, 4), "b": frame(4)})
    told = [record for record in caplog.records if record.getMessage() == "images_recognised"]
    assert [record.__dict__["values"] for record in told] == [["a"]]


def test_labels_of_companions_follow_what_may_be_an_image() -> None:
    config = config_of("PeaknetPreprocessing", **TARGET, original_shape=True)
    sources = {
        "image": random(16, 32),
        "stack": random(2, 16, 32),
        "wave": random(16),
        "detector": {"type": "EventValue", "name": "jungfrau", "field": "raw.calib"},
        "energy": {"type": "EventValue", "name": "SIOC:SYS0:ML00:AO627"},
    }
    parameters = parse_parameters(document(peaknet(original_shape=True), **sources))
    added = parameters.labels[len(sources) :]
    assert added == ("image_original_shape", "detector_original_shape")
    assert config.labels_after(("a",)) == ("a", "a_original_shape")
