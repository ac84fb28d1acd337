"""What values are called in the messages: as in the configuration, or as psana calls them."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from lclstream.cli.main import main
from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import Parameters, parse_parameters
from lclstream.streamer.data_sources import Extractor
from lclstream.streamer.events import open_event_source
from lclstream.streamer.values import Array, Values

INTERFACE = {"type": "Psana2DetectorInterface"}
SOURCES: dict[str, Any] = {
    "timestamp": {"type": "Psana2Timestamp"},
    "frame": INTERFACE | {"psana_name": "jungfrau", "psana_fields": "raw.raw"},
    "beam": INTERFACE | {
        "psana_name": "ebeamh", "psana_fields": ["raw.ebeamUndAngX", "raw.ebeamL3Energy"]
    },
    "wavelength": INTERFACE | {"psana_name": "SIOC:SYS0:ML00:AO192"},
    "run": {"type": "Psana2RunInfo"},
    "number": {"type": "ConstValue", "value": 3, "dtype": "int8"},
}  # fmt: skip
AS_PSANA = (
    "timestamp", "jungfrau.raw.raw", "ebeamh.raw.ebeamUndAngX", "ebeamh.raw.ebeamL3Energy",
    "SIOC:SYS0:ML00:AO192", "experiment", "run_timestamp", "run_number", "source_identifier",
    "number",
)  # fmt: skip


def parameters_of(document: dict[str, Any], **changes: Any) -> Parameters:
    return parse_parameters({**document, "data_sources": SOURCES, **changes})


def first_values(parameters: Parameters) -> Values:
    extractor = Extractor(parameters, parameters.labels)
    values = extractor.extract(next(iter(open_event_source(parameters, 0, 1))))
    assert values is not None
    return values


def array(values: Values, label: str) -> Array:
    value = values[label]
    assert isinstance(value, np.ndarray)
    return value


def test_our_names_are_those_of_the_configuration(document: dict[str, Any]) -> None:
    parameters = parameters_of(document)
    assert parameters.labels == tuple(SOURCES)
    values = first_values(parameters)
    assert list(values) == list(SOURCES)
    assert array(values, "beam").shape == (2,)
    assert array(values, "run").shape == (4,)


def test_names_of_psana_are_those_of_the_newest_version(document: dict[str, Any]) -> None:
    parameters = parameters_of(document, wire_names="psana")
    assert parameters.labels == AS_PSANA
    values = first_values(parameters)
    assert set(values) == set(AS_PSANA)
    assert array(values, "ebeamh.raw.ebeamL3Energy").shape == ()
    assert array(values, "run_number").item() == b"3"
    ours = first_values(parameters_of(document))
    assert np.array_equal(array(values, "jungfrau.raw.raw"), array(ours, "frame"))
    for part, stacked in zip(AS_PSANA[2:4], array(ours, "beam"), strict=True):
        assert array(values, part) == stacked
    for part, text in zip(AS_PSANA[5:9], array(ours, "run"), strict=True):
        assert array(values, part) == text


def test_fields_can_be_values_of_their_own(document: dict[str, Any]) -> None:
    fields = ["raw.raw", "raw.image", "_detid"]
    frames = INTERFACE | {"psana_name": "jungfrau", "psana_fields": fields}
    document["data_sources"] = {
        "frames": frames | {"separate_fields": True},
        "run": {"type": "Psana2RunInfo", "separate_fields": True},
    }
    parameters = parse_parameters(document)
    run = ("experiment", "run_timestamp", "run_number", "source_identifier")
    assert parameters.labels == (
        *(f"frames.{field}" for field in fields), *(f"run.{part}" for part in run)
    )  # fmt: skip
    values = first_values(parameters)
    # Of different shapes and dtypes, which could not be stacked.
    assert array(values, "frames.raw.raw").ndim == 3
    assert array(values, "frames.raw.image").ndim == 2
    assert array(values, "frames._detid").dtype.kind == "S"
    assert array(values, "run.experiment") == b"tst000124"


def test_only_what_is_wanted_is_read(document: dict[str, Any]) -> None:
    document["data_sources"] = {
        "beam": SOURCES["beam"] | {"separate_fields": True}, "wavelength": SOURCES["wavelength"]
    }  # fmt: skip
    parameters = parse_parameters(document)
    extractor = Extractor(parameters, ["beam.raw.ebeamL3Energy"])
    values = extractor.extract(next(iter(open_event_source(parameters, 0, 1))))
    assert values is not None
    assert list(values) == ["beam.raw.ebeamL3Energy"]
    assert parameters.sources_of(["beam.raw.ebeamL3Energy"]) == ["beam"]


def test_an_event_lacks_a_data_source_when_it_lacks_a_part(document: dict[str, Any]) -> None:
    beam = SOURCES["beam"] | {"separate_fields": True}
    document["event_source"] |= {"events": 60, "missing_scalars": 0.3}
    document["data_sources"] = {"beam": beam, "timestamp": SOURCES["timestamp"]}
    for skips in (False, True):
        document["skip_incomplete_events"] = skips
        parameters = parse_parameters(document)
        extractor = Extractor(parameters, parameters.labels)
        kept = lacking = 0
        for event in open_event_source(parameters, 0, 1):
            values = extractor.extract(event)
            read = [event.read("ebeamh", field) for field in beam["psana_fields"]]
            incomplete = any(each is None for each in read)
            lacking += incomplete
            kept += values is not None
            assert (values is None) == (skips and incomplete)
            for field, reading in zip(beam["psana_fields"], read, strict=True):
                assert values is None or (values[f"beam.{field}"] is None) == (reading is None)
        assert 10 < lacking < 60
        assert extractor.missing == {"beam": lacking}
        assert extractor.skipped == ({"beam": lacking} if skips else {})
        assert kept == 60 - (lacking if skips else 0)


@pytest.mark.parametrize(
    ("sources", "wire_names", "problem"),
    [
        (
            {"a": SOURCES["beam"] | {"separate_fields": True},
             "a.raw.ebeamL3Energy": SOURCES["timestamp"]},
            "own",
            "data_sources.a.raw.ebeamL3Energy: its value would be called 'a.raw.ebeamL3Energy', as"
            " that of 'a'",
        ),
        (
            {"a": SOURCES["frame"], "b": SOURCES["frame"]},
            "psana",
            "data_sources.b: its value would be called 'jungfrau.raw.raw', as that of 'a'",
        ),
        ({"": SOURCES["timestamp"]}, "own", "data_sources: a data source needs a name"),
    ],
)  # fmt: skip
def test_two_values_cannot_have_one_name(
    document: dict[str, Any], sources: dict[str, Any], wire_names: str, problem: str
) -> None:
    document |= {"data_sources": sources, "wire_names": wire_names}
    with pytest.raises(InvalidConfigError) as caught:
        parse_parameters(document)
    assert caught.value.problems[0].startswith(problem)


def test_fields_of_a_message_name_values(document: dict[str, Any]) -> None:
    document["data_sources"] = {"beam": SOURCES["beam"] | {"separate_fields": True}}
    fields = {"beam.raw.ebeamL3Energy": "/energy"}
    document["data_serializer"]["fields"] = fields
    assert parse_parameters(document).notices == (
        "data_serializer: 'beam.raw.ebeamUndAngX' is not in fields and is not sent",
    )
    document["data_serializer"]["fields"] = {"beam": "/energy"}
    with pytest.raises(InvalidConfigError, match=r"fields\.beam: no data source has this name"):
        parse_parameters(document)


def test_steps_see_the_names_of_the_messages(document: dict[str, Any]) -> None:
    steps = [{"type": "ConvertType", "inputs": "jungfrau.raw.raw", "dtype": "float32"}]
    pipeline = {"type": "ProcessingPipeline", "batch_size": 3, "steps": steps}
    parameters = parameters_of(document, wire_names="psana", processing_pipeline=pipeline)
    assert parameters.labels == AS_PSANA
    with pytest.raises(InvalidConfigError, match="there is no such value at this step"):
        parameters_of(document, processing_pipeline=pipeline)


def test_messages_of_the_newest_version(
    document: dict[str, Any], tmp_path: Path, vectors: Path
) -> None:
    """The datasets are called as in messages that were received from it."""
    theirs = next((vectors / "hdf5-lclstream_ba23c1c-gzip_with_shuffle").glob("*.bin"))
    with h5py.File(theirs) as file:
        names = set(file)
    document["data_sources"] = {
        "timestamp": SOURCES["timestamp"] | {"dtype": "float64"},
        "detector_data": INTERFACE | {"psana_name": "jungfrau", "psana_fields": "raw.calib"},
        "photon_wavelength": SOURCES["wavelength"],
    }
    document |= {
        "wire_names": "psana",
        "data_serializer": {"type": "HDF5BinarySerializer", "identification": False},
        "data_handlers": [
            {"type": "BinaryFileWritingDataHandler", "write_directory": str(tmp_path / "out")}
        ],
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(document))
    assert main(["streamer", "run", "-c", str(path)]) == 0
    with h5py.File(tmp_path / "out" / "r0_0.h5") as file:
        assert set(file) == names
