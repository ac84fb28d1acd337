"""What all steps promise: labels, dtypes and shapes, untouched inputs, missing values, mistakes."""

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tests.streamer.stepping import (
    Document,
    applied,
    array,
    config_of,
    document,
    event,
    examples,
    known,
    parameters,
    random,
    read_only,
    step_of,
)

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import parse_parameters
from lclstream.streamer.config.registry import StepModel
from lclstream.streamer.config.steps import ValueStep
from lclstream.streamer.steps import Steps
from lclstream.streamer.values import Ragged, Reading, Values

EXAMPLES = list(examples())


def same(first: Reading | None, second: Reading | None) -> bool:
    if isinstance(first, Ragged) and isinstance(second, Ragged):
        return same(first.array, second.array)
    assert isinstance(first, np.ndarray)
    assert isinstance(second, np.ndarray)
    is_float = first.dtype.kind == "f"
    return first.dtype == second.dtype and np.array_equal(first, second, equal_nan=is_float)


def copied(values: Values) -> Values:
    return {
        name: Ragged(value.array.copy()) if isinstance(value, Ragged) else array(value).copy()
        for name, value in values.items()
    }


def test_examples_show_every_step() -> None:
    assert {written["type"] for written, _ in EXAMPLES} == set(StepModel.choices())


def test_models_name_a_class_and_explain_themselves() -> None:
    for kind, model in StepModel.choices().items():
        assert issubclass(model, ValueStep)
        module, _, name = model.implementation.partition(":")
        assert name == kind
        assert hasattr(importlib.import_module(module), name)
        assert len(model.__doc__ or "") > 20


def test_values_are_as_the_configuration_promises() -> None:
    for written, values in EXAMPLES:
        config = config_of(**_kind(written))
        after = applied(step_of(**_kind(written)), values)
        promised = config.known_after(known(values))
        assert set(after) == set(promised), written
        assert set(after) <= set(config.labels_after(tuple(values))), written
        assert list(config.faults(known(values))) == [], written
        for label, mine in promised.items():
            found = known({label: after[label]})[label]
            assert mine.dtype in ("", found.dtype), (written, label)
            assert mine.shape in (None, found.shape), (written, label)
            assert mine.is_ragged in (None, found.is_ragged), (written, label)


def test_values_that_are_missing_stay_missing() -> None:
    for written, values in EXAMPLES:
        config, step = config_of(**_kind(written)), step_of(**_kind(written))
        missing: Values = dict.fromkeys(values)
        after = step.apply(event(), missing)
        if written["type"] in ("SelectEvents", "RequireValues"):
            assert after is None
            continue
        assert after is not None
        assert all(value is None for value in after.values()), written
        named = set(config.labels_after(tuple(values)))
        if written["type"] == "PeaknetPreprocessing":
            named = {label for label in named if not label.endswith("_original_shape")}
        assert set(after) >= named, written
        # One that is there again is treated again.
        assert applied(step, values).keys() >= named, written


def test_memory_of_others_is_left_alone() -> None:
    """Inputs keep their content, and what was returned keeps its own when more events come."""
    for written, values in EXAMPLES:
        before, step = copied(values), step_of(**_kind(written))
        first = applied(step, values)
        kept = copied(first)
        other = {
            name: value if isinstance(value, Ragged) else np.roll(array(value), 5)
            for name, value in values.items()
        }
        for index in range(3):
            step.apply(event(index + 1), read_only(other))
        assert all(same(values[name], before[name]) for name in values), written
        assert all(same(first[name], kept[name]) for name in first), written


def test_memory_order_and_byte_order_do_not_matter() -> None:
    for written, values in EXAMPLES:
        plain = applied(step_of(**_kind(written)), values)
        odd = {name: _oddly_stored(value) for name, value in values.items()}
        for name, value in applied(step_of(**_kind(written)), odd).items():
            first, second = _elements(plain[name]), _elements(value)
            is_float = first.dtype.kind == "f"
            assert np.array_equal(first, second, equal_nan=is_float), (written, name)


def _oddly_stored(value: Reading | None) -> Reading | None:
    if not isinstance(value, np.ndarray):
        return value
    swapped = value.astype(value.dtype.newbyteorder(">"))
    return np.repeat(swapped[..., None], 2, axis=-1)[..., 0] if value.ndim else swapped


def _elements(value: Reading | None) -> np.ndarray[Any, Any]:
    return value.array if isinstance(value, Ragged) else array(value)


def _kind(written: Document) -> Document:
    options = dict(written)
    return {"kind": options.pop("type"), **options}


def problems_of(*steps: Document, **sources: Document) -> list[str]:
    with pytest.raises(InvalidConfigError) as caught:
        parse_parameters(document(*steps, **sources))
    return list(caught.value.problems)


def test_an_unknown_value_gets_a_suggestion() -> None:
    crop = {"type": "Crop", "inputs": ["detector_dat"], "rows": [0, 4]}
    assert problems_of(crop, detector_data=random(8, 8)) == [
        "processing_pipeline.steps.0.inputs.0: there is no such value at this step (did you mean "
        "'detector_data'?), got 'detector_dat'"
    ]


def test_all_mistakes_of_all_steps_are_told_at_once() -> None:
    found = problems_of(
        {"type": "Crop", "inputs": "frame", "rows": [0, 20]},
        {"type": "RenameValues", "names": {"fram": "f"}},
        {"type": "DropValues", "drop": ["frame"]},
        {"type": "Threshold", "inputs": "frame", "minimum": 1},
        frame=random(16, 16),
        other=random(3),
    )
    assert [line.partition(":")[0] for line in found] == [
        "processing_pipeline.steps.0.inputs.0",
        "processing_pipeline.steps.1.names.fram",
        "processing_pipeline.steps.3.inputs.0",
    ]


SOURCES = {
    "image": random(16, 32),
    "stack": random(2, 16, 32),
    "wave": random(128),
    "number": random(1, dtype="float32"),
    "stamp": {"type": "Psana2Timestamp"},
    "name": {"type": "SourceIdentifier"},
    "unknown": {"type": "EventValue", "name": "x"},
}
GEOMETRY = {"center": [8, 16]}


MISFITS: list[tuple[Document, str, str]] = [
    ({"type": "Crop", "inputs": "name", "rows": [0, 1]}, "inputs.0", "rows and columns"),
    ({"type": "Crop", "inputs": "wave", "rows": [0, 1]}, "inputs.0", "rows and columns"),
    ({"type": "Crop", "inputs": "image", "columns": [4, 33]}, "inputs.0", "only 32 columns"),
    ({"type": "Bin", "inputs": "stack", "rows": 3}, "inputs.0", "16 rows, not a multiple of 3"),
    ({"type": "Bin", "inputs": "image", "rows": 40, "remainder": "crop"}, "inputs.0", "only 16"),
    (
        {"type": "Bin", "inputs": "image", "rows": 2, "mask": {"value": "image"},
         "empty": float("nan")},
        "inputs.0", "cannot hold empty",
    ),
    (
        {"type": "MaskPixels", "inputs": "image", "mask": {"value": "image"}, "fill": -1},
        "inputs.0", "is uint16, which cannot hold fill = -1",
    ),
    (
        {"type": "MaskPixels", "inputs": "image", "mask": {"value": "imag"}},
        "mask.value", "did you mean 'image'?",
    ),
    ({"type": "Threshold", "inputs": "image", "minimum": 1, "fill": 0.5}, "inputs.0", "0.5"),
    ({"type": "ConvertType", "inputs": "name", "dtype": "int8"}, "inputs.0", "is text"),
    ({"type": "SelectPanels", "inputs": "stack", "panels": [0, 2]}, "inputs.0", "has 2 panels"),
    ({"type": "SelectPanels", "inputs": "wave", "panels": [0]}, "inputs.0", "not a stack"),
    ({"type": "SplitPanels", "inputs": "image", "panel_shape": [5, 8]}, "inputs.0", "of 5"),
    ({"type": "CommonMode", "inputs": "image", "panel_shape": [4, 5]}, "inputs.0", "of 5"),
    ({"type": "StackValues", "inputs": ["image", "stack"], "output": "b"}, "inputs.1", "shape"),
    ({"type": "StackValues", "inputs": ["wave", "stamp"], "output": "b"}, "inputs.1", "dtype"),
    ({"type": "StackValues", "inputs": ["wave", "wave2"], "output": "b"}, "inputs.1", "'wave'"),
    ({"type": "RenameValues", "names": {"image": "stack"}}, "names.image", "exists already"),
    (
        {"type": "RenameValues", "names": {"image": "b", "stack": "b"}},
        "names.stack", "is made twice",
    ),
    ({"type": "Bin", "inputs": "image", "outputs": "wave", "rows": 2}, "outputs.0", "exists"),
    ({"type": "SelectEvents", "input": "image", "minimum": 0}, "input", "more than one number"),
    ({"type": "SelectEvents", "input": "name", "minimum": 0}, "input", "text"),
    ({"type": "PeakFinder8", "input": "wave", "geometry": GEOMETRY}, "input", "rows and col"),
    ({"type": "PeakFinder8", "input": "stack", "geometry": GEOMETRY}, "input", "panel_corners"),
    (
        {"type": "PeakFinder8", "input": "image", "geometry": GEOMETRY, "hit": "wave"},
        "hit", "exists already",
    ),
    (
        {"type": "PeakFinder8", "input": "image", "geometry": GEOMETRY,
         "mask": {"value": "stack"}},
        "mask.value", "but 'image' has (16, 32)",
    ),
    (
        {"type": "PeakFinder8", "input": "image", "geometry": GEOMETRY, "panel_shape": [16, 5]},
        "input", "not a multiple of 5",
    ),
    (
        {"type": "RadialProfile", "input": "stack", "maximum": 9,
         "geometry": {"center": [0, 0], "panel_corners": [[0, 0]]}},
        "input", "1 panel_corners",
    ),
    (
        {"type": "RadialProfile", "input": "image", "maximum": 9, "geometry": GEOMETRY,
         "unit": "q", "distance_mm": 1, "pixel_um": 1, "wavelength": "wav"},
        "wavelength", "did you mean 'wave'?",
    ),
    ({"type": "WaveformBaseline", "inputs": "wave", "samples": 126}, "inputs.0", "too few"),
    ({"type": "WaveformBaseline", "inputs": "name"}, "inputs.0", "not a waveform"),
    ({"type": "WaveformWindows", "inputs": "image", "threshold": 1}, "inputs.0", "one axis"),
    ({"type": "WindowArrivalTimes", "inputs": "wave"}, "inputs.0", "no such value"),
    (
        {"type": "WindowArrivalTimes", "inputs": "wave", "source": "waveform",
         "thresholds": {"wav": -3}},
        "thresholds.wav", "did you mean 'wave'?",
    ),
    (
        {"type": "WaveformArrivalTimes", "inputs": "wave", "threshold": -1, "roll_off": 256},
        "inputs.0", "too few for roll_off",
    ),
    ({"type": "SpectrumCentroid", "inputs": "wave"}, "inputs.0", "less than 2048"),
    (
        {"type": "PeaknetPreprocessing", "target_height": 4, "target_width": 4,
         "images": ["image"], "larger": "error"},
        "images.0", "larger (16x32)",
    ),
    (
        {"type": "PeaknetPreprocessing", "target_height": 4, "target_width": 4,
         "images": ["stack"]},
        "images.0", "not an image of 2 axes",
    ),
    ({"type": "SelectValues", "keep": ["imag"]}, "keep.0", "did you mean 'image'?"),
    ({"type": "RequireValues", "inputs": "imag"}, "inputs.0", "did you mean 'image'?"),
]  # fmt: skip


def test_what_cannot_be_done_is_told_before_anything_runs() -> None:
    for step, place, text in MISFITS:
        found = problems_of(step, **SOURCES)
        assert found[0].startswith(f"processing_pipeline.steps.0.{place}: "), step
        assert text in found[0], step


CONTRADICTIONS: list[tuple[str, Document, str]] = [
    ("Crop", {"inputs": "a"}, "needs rows, columns or both"),
    ("Crop", {"inputs": "a", "rows": [4, 4]}, "must end behind its begin"),
    ("Crop", {"inputs": "a", "rows": [-1, 4]}, "greater than or equal to 0"),
    ("Crop", {"inputs": ["a", "a"], "rows": [0, 4]}, "more than once"),
    ("Crop", {"inputs": ["a"], "outputs": ["b", "c"], "rows": [0, 4]}, "got 2 for 1"),
    ("Bin", {"inputs": "a"}, "must be more than 1"),
    ("Bin", {"inputs": "a", "rows": 2, "mask": {}}, "needs either file or value"),
    ("Bin", {"inputs": "a", "rows": 2, "mask": {"file": "m.h5"}}, "dataset must say"),
    ("Bin", {"inputs": "a", "rows": 2, "mask": {"value": "m", "dataset": "x"}}, "needs a file"),
    ("Threshold", {"inputs": "a"}, "needs a minimum, a maximum or both"),
    ("Threshold", {"inputs": "a", "minimum": float("nan")}, "finite"),
    ("SelectEvents", {"input": "a"}, "needs a minimum, a maximum or both"),
    ("SelectEvents", {"input": "a", "minimum": 2, "maximum": 1}, "minimum must be <= maximum"),
    ("Prescale", {}, "needs either keep_every or drop_every"),
    ("Prescale", {"keep_every": 2, "drop_every": 2}, "needs either keep_every or drop_every"),
    ("Prescale", {"keep_every": 2, "offset": 2}, "offset must be less than 2"),
    ("ConvertType", {"inputs": "a", "dtype": "complex64"}, "input should be 'int8'"),
    ("ConvertType", {"inputs": "a", "dtype": "float32", "out_of_range": "wrap"}, "integers"),
    ("ConvertType", {"inputs": "a", "dtype": "uint8", "nan": 256}, "cannot hold 256"),
    ("PhotonCounts", {"inputs": "a"}, "needs either gain or gain_file"),
    ("PhotonCounts", {"inputs": "a", "gain": 0}, "greater than 0"),
    ("PeakFinder8", {"input": "a", "geometry": {}}, "needs one of center"),
    (
        "PeakFinder8",
        {"input": "a", "geometry": {"crystfel": "x", "coordinates": "y"}},
        "needs one of center",
    ),
    (
        "PeakFinder8",
        {"input": "a", "geometry": {"crystfel": "x", "panel_corners": [[0, 0]]}},
        "panel_corners needs a center",
    ),
    (
        "PeakFinder8",
        {"input": "a", "geometry": GEOMETRY, "min_pixels": 9, "max_pixels": 8},
        "min_pixels must be <= max_pixels",
    ),
    (
        "PeakFinder8",
        {"input": "a", "geometry": GEOMETRY, "min_radius": 9, "max_radius": 8},
        "max_radius must be > min_radius",
    ),
    (
        "PeakFinder8",
        {"input": "a", "geometry": GEOMETRY, "min_peaks": 9, "max_peaks": 8},
        "min_peaks must be <= max_peaks",
    ),
    ("RadialProfile", {"input": "a", "geometry": GEOMETRY, "maximum": 9, "minimum": 9}, "must"),
    (
        "RadialProfile",
        {"input": "a", "geometry": GEOMETRY, "maximum": 9, "unit": "q"},
        "needs distance_mm and pixel_um",
    ),
    (
        "RadialProfile",
        {"input": "a", "geometry": GEOMETRY, "maximum": 9, "unit": "q", "distance_mm": 9,
         "pixel_um": 9},
        "needs one of wavelength_angstrom",
    ),
    (
        "RadialProfile",
        {"input": "a", "geometry": GEOMETRY, "maximum": 9, "wavelength": "w"},
        "needs unit: q",
    ),
    ("WaveformBaseline", {"inputs": "a", "samples": 3}, "samples must be >= converters"),
    ("WaveformArrivalTimes", {"inputs": "a"}, "needs a threshold, a relative_threshold or both"),
    ("WaveformArrivalTimes", {"inputs": "a", "threshold": 5}, "less than 0"),
    ("WindowArrivalTimes", {"inputs": "a", "thresholds": {"a": 5}}, "less than 0"),
    ("SpectrumCentroid", {"inputs": "a", "low": 0.9, "high": 0.1}, "low must be < high"),
]  # fmt: skip


def test_contradicting_options_are_refused() -> None:
    for kind, options, text in CONTRADICTIONS:
        with pytest.raises(InvalidConfigError) as caught:
            config_of(kind, **options)
        assert text in str(caught.value), (kind, options)


def test_nothing_left_is_a_mistake() -> None:
    assert (
        "no value is left behind the steps" in problems_of({"type": "DropValues", "drop": "x"})[0]
    )


def test_labels_go_through_all_steps() -> None:
    found = parameters(
        {"type": "Crop", "inputs": "image", "outputs": "region", "rows": [0, 4]},
        {"type": "RenameValues", "names": {"image": "whole"}},
        {"type": "DropValues", "drop": ["stamp"]},
        image=random(8, 8),
        stamp={"type": "Psana2Timestamp"},
    )
    assert found.labels == ("whole", "region")


def test_what_is_known_goes_through_all_steps() -> None:
    steps: list[Document] = [
        {"type": "SplitPanels", "inputs": "image", "panel_shape": [8, 8]},
        {"type": "SelectPanels", "inputs": "image", "panels": [1, 3]},
        {"type": "Bin", "inputs": "image", "rows": 2, "columns": 2},
        {"type": "ConvertType", "inputs": "image", "dtype": "uint8", "outputs": "small"},
        {"type": "StackValues", "inputs": ["small", "image"], "output": "both"},
    ]
    found = problems_of(*steps, image=random(16, 16))
    assert "has dtype uint32, but 'small' has uint8" in found[0]
    assert len(found) == 1


def test_vetoed_events_are_counted_by_step() -> None:
    steps = Steps(
        parameters(
            {"type": "Prescale", "keep_every": 2},
            {"type": "SelectEvents", "input": "x", "minimum": 3},
            {"type": "Prescale", "drop_every": 3, "offset": 1},
        )
    )
    kept = [
        index
        for index in range(12)
        if steps.apply(event(index), {"x": np.array(index)}) is not None
    ]
    assert kept == [6, 8]
    assert steps.vetoed == {"Prescale": 6, "SelectEvents": 2, "Prescale_2": 2}


AT_RUN_TIME: list[tuple[str, Document, Any, str]] = [
    ("Crop", {"rows": [0, 9]}, np.zeros((8, 8)), "Crop: 'a' has only 8 rows"),
    ("Crop", {"rows": [0, 9]}, np.zeros(8), "Crop: 'a' has shape (8,), no rows and columns"),
    ("Crop", {"rows": [0, 9]}, Ragged(np.zeros((8, 8))), "number of readings that varies"),
    ("Bin", {"rows": 3}, np.zeros((8, 8)), "'a' has 8 rows, not a multiple of 3"),
    ("SplitPanels", {"panel_shape": [3, 8]}, np.zeros((8, 8)), "not a multiple of 3"),
    ("SelectPanels", {"panels": [8]}, np.zeros((8, 8)), "not panels [8]"),
    ("Threshold", {"minimum": 1}, np.array(b"text"), "is |S4, not numbers"),
    ("Threshold", {"minimum": 1, "fill": -1}, np.zeros(3, "u2"), "cannot hold fill = -1"),
    ("CommonMode", {"panel_shape": [3, 8]}, np.zeros((8, 8)), "not a multiple of 3"),
    ("WaveformBaseline", {}, np.array(3), "is one number, not a waveform"),
    ("WaveformBaseline", {}, np.zeros(40), "has 40 samples, too few"),
    ("WaveformBaseline", {"dtype": "int16"}, np.arange(0, 60_000, 9), "too far for int16"),
    ("WaveformWindows", {"threshold": 1}, np.zeros((8, 8)), "not one axis"),
    ("WaveformArrivalTimes", {"threshold": -1}, np.zeros(63), "of at least 64 samples"),
    ("SpectrumCentroid", {}, np.zeros(2047), "at least 2048 samples"),
]


def test_what_does_not_fit_at_run_time_is_named() -> None:
    for kind, options, value, text in AT_RUN_TIME:
        step = step_of(kind, inputs="a", **options)
        with pytest.raises(InvalidConfigError) as caught:
            step.apply(event(), {"a": value})
        assert text in str(caught.value), (kind, options)


PAGE = Path(__file__).parents[2] / "docs" / "reference" / "processing.md"


def test_the_page_names_every_step_and_its_examples_are_valid() -> None:
    text = PAGE.read_text()
    assert [kind for kind in StepModel.choices() if f"{kind}" not in text] == []
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) > 3
    for block in blocks:
        written = yaml.safe_load(block)
        written = written.get("processing_pipeline", written)
        for each in written["steps"]:
            config_of(**_kind(each))


def test_the_page_names_every_option_of_the_tables() -> None:
    """What stands in braces behind a step are fields of it."""
    for kind, fields in re.findall(r"`(\w+)\{([^}]*)\}", PAGE.read_text()):
        model = StepModel.choices().get(kind)
        if model is not None:
            known_fields = set(model.model_fields)
            assert set(re.split(r", | or ", fields)) <= known_fields, kind
