"""Data sources: constants, random numbers, text, several fields; incomplete events."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from lclstream.core.errors import ExtractionError, InvalidConfigError
from lclstream.streamer.batching import Batcher, new_batch
from lclstream.streamer.config import Parameters, parse_parameters
from lclstream.streamer.data_sources import Extractor
from lclstream.streamer.events import Event, open_event_source, unknown_reading


def first_values(document: dict[str, Any], sources: dict[str, Any]) -> dict[str, Any]:
    document["data_sources"] = sources
    parameters = parse_parameters(document)
    extractor = Extractor(parameters, list(sources))
    event = next(iter(open_event_source(parameters, 0, 1)))
    values = extractor.extract(event)
    assert values is not None
    return dict(values)


def test_constants(document: dict[str, Any]) -> None:
    values = first_values(
        document,
        {
            "float": {"type": "FloatValue", "value": 1.5},
            "int": {"type": "IntValue", "value": -3},
            "list": {"type": "ConstValue", "value": "6,1", "dtype": "uint8"},
            "nested": {"type": "ConstValue", "value": [[1.5, 2], [3, 4]], "dtype": "float32"},
            "source": {"type": "SourceIdentifier"},
        },
    )
    assert (values["float"].dtype, values["int"].dtype) == (np.float64, np.int64)
    assert (values["list"].dtype, values["list"].tolist()) == (np.uint8, [6, 1])
    assert (values["nested"].dtype, values["nested"].shape) == (np.float32, (2, 2))
    assert values["source"] == b"exp=tst000124,run=3"


@pytest.mark.parametrize(
    ("value", "dtype"), [(300, "uint8"), (-1, "uint16"), (1.5, "int32"), (0.1, "float16")]
)
def test_a_constant_must_fit_its_dtype(document: dict[str, Any], value: Any, dtype: str) -> None:
    with pytest.raises(
        InvalidConfigError, match=rf"data_sources\.c: {value!r} does not fit into {dtype}"
    ):
        first_values(document, {"c": {"type": "ConstValue", "value": value, "dtype": dtype}})


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "uint16", "int64", "float16", "float32", "float64"]
)
def test_random_arrays(document: dict[str, Any], dtype: str) -> None:
    source = {"type": "GenericRandomNumpyArray", "array_shape": [20, 30], "array_dtype": dtype}
    values = first_values(document, {"new": source, "same": source | {"always_random": False}})
    for array in values.values():
        assert (array.dtype, array.shape) == (np.dtype(dtype), (20, 30))
        assert array.min() >= 0
        assert array.max() < (255 if array.dtype.kind in "iu" else 1.0001)
        assert len(np.unique(array)) > 50


def test_time_stamps_stay_exact_unless_asked(document: dict[str, Any]) -> None:
    values = first_values(
        document,
        {
            "exact": {"type": "Psana2Timestamp"},
            "psana1": {"type": "Psana1Timestamp"},
            "rounded": {"type": "Psana2Timestamp", "dtype": "float64"},
        },
    )
    assert values["exact"].dtype == values["psana1"].dtype == np.uint64
    assert values["exact"] == values["psana1"]
    assert values["rounded"].dtype == np.float64


def test_run_info_and_fields(document: dict[str, Any]) -> None:
    ebeam = {"type": "Psana2DetectorInterface", "psana_name": "ebeamh"}
    values = first_values(
        document,
        {
            "run": {"type": "Psana2RunInfo"},
            "beam": ebeam | {"psana_fields": ["raw.ebeamUndAngX", "raw.ebeamUndPosX"]},
            "narrow": ebeam | {"psana_fields": "raw.ebeamL3Energy", "dtype": "float32"},
            "text": {
                "type": "Psana2DetectorInterface",
                "psana_name": "jungfrau",
                "psana_fields": ["_detid", "raw._det_geotxt_default"],
                "dtype": "str",
            },
        },
    )
    assert values["run"].tolist()[0] == b"tst000124"
    assert values["run"].tolist()[2:] == [b"3", b"exp=tst000124,run=3"]
    assert values["beam"].shape == (2,)
    assert values["narrow"].dtype == np.float32
    assert values["text"].tolist()[0] == b"jungfrau_simulated"


def test_fields_of_different_shapes_are_named(document: dict[str, Any]) -> None:
    source = {
        "type": "Psana2DetectorInterface",
        "psana_name": "jungfrau",
        "psana_fields": ["raw.raw", "raw.image"],
    }
    with pytest.raises(InvalidConfigError, match=r"cannot be stacked: \(1, 16, 32\), \(16, 32\);"):
        first_values(document, {"d": source})


def test_only_incomplete_events_are_dropped_and_counted(document: dict[str, Any]) -> None:
    document["event_source"] |= {"events": 60, "missing_frames": 0.2, "missing_scalars": 0.2}
    document["skip_incomplete_events"] = True
    document["data_sources"]["wavelength"]["required"] = False
    parameters = parse_parameters(document)
    extractor = Extractor(parameters, list(parameters.data_sources))
    assert extractor.may_miss
    kept = 0
    lacking = 0
    for event in open_event_source(parameters, 0, 1):
        values = extractor.extract(event)
        assert (values is None) == (event.read("jungfrau", "raw.raw") is None)
        kept += values is not None
        lacking += values is not None and values["wavelength"] is None
    assert 30 < kept < 60
    assert lacking > 0
    assert extractor.skipped == {"frame": 60 - kept}


class Told:
    """Readings of one event, as a test says; an error is raised."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def read(self, name: str, field: str) -> Any:
        value = self.values[name]
        if isinstance(value, Exception):
            raise value
        return value


def told(index: int, **values: Any) -> Event:
    return Event(timestamp=index, index=index, run=1, experiment="", readings=Told(**values))


def two_sources(**changes: Any) -> Parameters:
    """Return a configuration that reads `a`, which must be there, and `b`, which need not."""
    source = {"type": "EventValue"}
    return parse_parameters(
        {
            "event_source": {"type": "InternalEventSource", "number_of_events_to_generate": 0},
            "data_sources": {
                "a": source | {"name": "a"},
                "b": source | {"name": "b", "required": False},
            },
            "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 100},
            "data_serializer": {"type": "HDF5BinarySerializer"},
            **changes,
        }
    )


# Of 20 events some lack a reading; in one there is a number that is not a number.
EVENTS = [
    told(index, a=None if index in (0, 5, 6) else float(index), b=None if index in (6, 7) else 7)
    for index in range(20)
]
EVENTS[9] = told(9, a=float("nan"), b=7)


def test_incomplete_events_are_dropped_alone() -> None:
    extractor = Extractor(two_sources(skip_incomplete_events=True), ["a", "b"])
    kept = [event.index for event in EVENTS if extractor.extract(event) is not None]
    # Nothing is wrong with a NaN, nor with an event without what need not be there.
    assert kept == [index for index in range(20) if index not in (0, 5, 6)]
    assert extractor.skipped == {"a": 3}
    assert extractor.missing == {"a": 3, "b": 2}
    assert extractor.may_miss


def test_incomplete_events_are_kept_with_masks_and_fills() -> None:
    extractor = Extractor(two_sources(), ["a", "b"])
    batcher = Batcher(("a", "b"), 100, extractor.may_miss, new_batch)
    for event in EVENTS:
        values = extractor.extract(event)
        assert values is not None
        assert not list(batcher.add(event, values)) or event.index < 2
    (batch,) = batcher.finish()
    # Before the first reading its dtype is unknown: that event is in a batch of its own.
    assert batch.index[: batch.count].tolist() == list(range(1, 20))
    assert [1 + row for row in np.flatnonzero(batch.valid["a"][: batch.count] == 0)] == [5, 6]
    assert [1 + row for row in np.flatnonzero(batch.valid["b"][: batch.count] == 0)] == [6, 7]
    assert np.isnan(batch.arrays["a"][[4, 5, 8]]).all()
    assert batch.arrays["b"][[5, 6]].tolist() == [-999, -999]
    assert extractor.skipped == {}
    assert extractor.missing == {"a": 3, "b": 2}


def test_no_masks_where_nothing_can_be_missing() -> None:
    sources = {"a": {"type": "EventValue", "name": "a"}}
    extractor = Extractor(two_sources(skip_incomplete_events=True, data_sources=sources), ["a"])
    assert not extractor.may_miss


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize(
    "error", [TypeError("a bug"), AttributeError("no such"), KeyError("k"), OSError("cable")]
)
def test_a_fault_in_a_source_is_no_missing_reading(error: Exception, skips: bool) -> None:
    extractor = Extractor(two_sources(skip_incomplete_events=skips), ["a", "b"])
    assert extractor.extract(told(0, a=1.0, b=2)) is not None
    message = rf"^data source 'b' failed at event 1: {type(error).__name__}: "
    with pytest.raises(ExtractionError, match=message) as caught:
        extractor.extract(told(1, a=1.0, b=error))
    assert caught.value.__cause__ is error
    assert extractor.missing == extractor.skipped == {}


def test_what_the_source_does_not_have_is_no_missing_reading() -> None:
    extractor = Extractor(two_sources(), ["a", "b"])
    refusal = unknown_reading("b", "", {"a": [""]})
    with pytest.raises(InvalidConfigError, match=r"^the source has no detector or variable 'b'"):
        extractor.extract(told(0, a=1.0, b=refusal))


@pytest.mark.parametrize("value", [object(), [1, "a", None], {"x": 1}])
def test_what_cannot_be_sent_is_named(value: Any) -> None:
    extractor = Extractor(two_sources(), ["a", "b"])
    with pytest.raises((InvalidConfigError, ExtractionError), match=r"^data source 'b' "):
        extractor.extract(told(0, a=1.0, b=value))


@pytest.mark.parametrize("generation", [1, 2])
def test_psana_is_refused_clearly_where_it_is_absent(
    document: dict[str, Any], generation: int
) -> None:
    if find_spec("psana") is not None:
        pytest.skip("psana is installed")
    document["event_source"] = {"type": f"Psana{generation}EventSource"}
    document["source_identifier"] = "exp=tst000124,run=3"
    parameters = parse_parameters(document)
    message = rf"^Psana{generation}EventSource needs psana{generation}, which is not installed"
    with pytest.raises(InvalidConfigError, match=message):
        open_event_source(parameters, 0, 1)
