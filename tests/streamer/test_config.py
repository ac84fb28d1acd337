"""Configurations of every dialect load; wrong ones are refused with every mistake named."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import (
    DataSourceModel,
    HDF5BinarySerializerConfig,
    Parameters,
    load_parameters,
    parse_parameters,
)
from lclstream.streamer.config.data_sources import (
    GenericRandomNumpyArrayConfig,
    Psana1DetectorInterfaceConfig,
)
from lclstream.streamer.config.source_identifier import identifier_files, identifier_tokens

FOLDERS = (
    "hdf5-lclstream_ba23c1c-gzip_with_shuffle",
    "hdf5-slac66cc566-None",
    "hdf5-v0.3.0-nng-bitshuffle_with_lz4",
    "peaknet-slac66cc566-center-c3",
    "simplon-slac66cc566-f64",
)


@pytest.mark.parametrize("folder", FOLDERS)
def test_configurations_of_upstream_load_unchanged(vectors: Path, folder: str) -> None:
    parameters = load_parameters(vectors / folder / "lclstreamer.yaml")
    assert parameters.notices == ()
    assert parameters.processing_pipeline.batch_size == (1 if "simplon" in folder else 2)


def test_json_with_every_default_spelled_out_loads(document: dict[str, Any]) -> None:
    document["data_handlers"] = [
        {"type": "BinaryDataStreamingDataHandler", "urls": ["tcp://127.0.0.1:5000"]},
        {"type": "BinaryFileWritingDataHandler"},
    ]
    parameters = parse_parameters(document)
    again = parse_parameters(json.loads(parameters.model_dump_json()))
    assert again == parameters


def test_request_of_the_transfers_service_of_upstream_loads() -> None:
    request = json.loads("""
    {"source_identifier": "none", "skip_incomplete_events": false,
     "event_source": {"type": "InternalEventSource", "number_of_events_to_generate": 100},
     "data_sources": {"random": {"type": "GenericRandomNumpyArray", "array_shape": [20, 2],
                                 "array_dtype": "float32"}},
     "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 10},
     "data_serializer": {"type": "HDF5BinarySerializer", "compression_level": 3,
                         "compression": "zfp", "fields": {"random": "/data/random"}},
     "data_handlers": [{"type": "BinaryDataStreamingDataHandler",
                        "urls": ["tcp://127.0.0.1:1"]}]}""")
    assert parse_parameters(request).notices == (
        "data_serializer: zfp loses precision and may enlarge noisy frames",
    )


@pytest.mark.parametrize("name", ["HDF5Serializer", "Hdf5Serializer", "Hdf5BinarySerializer"])
def test_other_names_of_the_serializer_are_noticed(document: dict[str, Any], name: str) -> None:
    document["data_serializer"]["type"] = name
    parameters = parse_parameters(document)
    assert isinstance(parameters.data_serializer, HDF5BinarySerializerConfig)
    assert parameters.notices == (f"data_serializer: {name} is read as HDF5BinarySerializer",)


def test_detector_classes_of_the_paper_are_read_as_the_interface(document: dict[str, Any]) -> None:
    document["data_sources"] = {
        "frame": {"type": "Psana1AreaDetector", "psana_name": "Jungfrau1M", "calibration": False}
    }
    parameters = parse_parameters(document)
    assert parameters.data_sources["frame"] == Psana1DetectorInterfaceConfig(
        psana_name="Jungfrau1M", psana_fields="raw"
    )
    assert parameters.notices == (
        "data_sources.frame: Psana1AreaDetector is read as Psana1DetectorInterface"
        " with psana_fields 'raw'",
    )


def test_class_map_form_is_converted() -> None:
    text = """
    lclstreamer: {source_identifier: "exp=xpptut15:run=430", event_source: Psana1EventSource,
                  processing_pipeline: BatchProcessingPipeline, data_serializer: Hdf5Serializer,
                  data_handlers: [BinaryFileWritingDataHandler], skip_incomplete_events: false}
    event_source: {Psana1EventSource: {}}
    data_sources: {t: {type: Psana1Timestamp}}
    processing_pipeline: {BatchProcessingPipeline: {batch_size: 10}}
    data_serializer: {Hdf5Serializer: {compression_level: 3, fields: {t: /data/t}}}
    data_handlers: {BinaryFileWritingDataHandler: {file_prefix: x}}
    """
    parameters = parse_parameters(yaml.safe_load(text))
    assert parameters.processing_pipeline.batch_size == 10
    assert [handler.type for handler in parameters.data_handlers] == [
        "BinaryFileWritingDataHandler"
    ]
    assert len(parameters.notices) == 2


def test_every_mistake_is_named_at_once(document: dict[str, Any]) -> None:
    document["data_source"] = {}
    document["data_sources"]["x"] = {"type": "Psana2Timestam"}
    document["processing_pipeline"]["batch_size"] = 0
    document["data_serializer"] = {
        "type": "HDF5BinarySerializer",
        "compresion": "gzip",
        "compression": "gzip",
        "compression_level": 99,
        "fields": {"framee": "/data/data", "timestamp": "/data/data"},
    }
    with pytest.raises(InvalidConfigError) as caught:
        parse_parameters(document, "f.yaml")
    first, *lines = str(caught.value).split("\n")
    assert first == "f.yaml: 7 problems"
    types = ", ".join(DataSourceModel.section.names)
    fields = ", ".join(sorted(Parameters.model_fields))
    options = ", ".join(sorted(HDF5BinarySerializerConfig.model_fields))
    assert lines == [
        "  data_sources.x.type: there is no 'Psana2Timestam' (did you mean 'Psana2Timestamp'?);"
        f" allowed: {types}",
        "  processing_pipeline.batch_size: input should be greater than 0, got 0",
        "  data_serializer.compresion: unknown field (did you mean 'compression'?); allowed:"
        f" {options}",
        f"  data_source: unknown field (did you mean 'data_sources'?); allowed: {fields}",
        "  data_serializer.compression_level: the level of gzip must be 0 to 9, got 99",
        "  data_serializer.fields.framee: no data source has this name (did you mean 'frame'?),"
        " got '/data/data'",
        "  data_serializer.fields.timestamp: collides with the path of 'framee', got '/data/data'",
    ]


@pytest.mark.parametrize(
    ("section", "value", "line"),
    [
        (
            "source_identifier", "exp=a,rum=3",
            "source_identifier: unknown part 'rum' (did you mean 'run'?); allowed: exp, run, files,"
            " dir, drp, max_events, live, ffb, shmem, got 'exp=a,rum=3'",
        ),
        ("source_identifier", "exp=a,run=x", "source_identifier: run must be a number, got"),
        ("source_identifier", " ", "source_identifier: must say what Psana2EventSource shall read"),
        ("data_sources", {}, "data_sources: needs at least one data source, got {}"),
        ("data_sources", None, "data_sources: input should be a valid dictionary, got None"),
        (
            "data_sources", {"d": {"type": "Psana2DetectorInterface", "psana_name": "jungfrau"}},
            "data_sources.d: psana_fields is required unless",
        ),
        (
            "data_sources",
            {"d": {"type": "GenericRandomNumpyArray", "array_shape": "4,4", "array_dtype": "f9"}},
            "data_sources.d.array_dtype: input should be 'bool', 'int8'",
        ),
        (
            "data_sources", {"lclstream": {"type": "Psana2Timestamp"}},
            "data_serializer: value 'lclstream' /lclstream is the group of our own metadata",
        ),
        (
            "data_serializer", {"type": "SimplonBinarySerializer"},
            "data_serializer.data_source_to_serialize: is required",
        ),
        (
            "data_handlers", [{"type": "BinaryDataStreamingDataHandler", "urls": ["tcp://a"]}],
            "data_handlers.0.urls: 'tcp://a' must be"
            " tcp://HOST:PORT, got ['tcp://a']",
        ),
        (
            "data_handlers",
            [{"type": "BinaryDataStreamingDataHandler", "library": "nng", "urls": ["ipc:///a"]}],
            "data_handlers.0.urls: 'ipc:///a' must"
            " begin with tcp:// or tls+tcp:// for nng, got ['ipc:///a']",
        ),
        (
            "data_sources", {"t": {"required": False}},
            "data_sources.t.type: is required; allowed: ConstValue, EventValue,",
        ),
        (
            "data_handlers", [{"type": "BinaryFileWritingDataHandler", "file_prefix": "../x"}],
            "data_handlers.0.file_prefix: must not",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_explained(
    document: dict[str, Any], section: str, value: Any, line: str
) -> None:
    document["event_source"] = {"type": "Psana2EventSource"}
    document[section] = value
    with pytest.raises(InvalidConfigError) as caught:
        parse_parameters(document)
    assert any(problem.startswith(line) for problem in caught.value.problems), caught.value


def test_names_must_leave_room_for_the_masks_of_both(document: dict[str, Any]) -> None:
    document["data_sources"] = {name: {"type": "Psana2Timestamp"} for name in ("a", "a/b")}
    document["data_serializer"]["fields"] = {"a": "/x", "a/b": "/y"}
    with pytest.raises(InvalidConfigError) as caught:
        parse_parameters(document)
    assert caught.value.problems == (
        "data_serializer.fields: value 'a/b' collides with the path of 'a', as far as masks are"
        " concerned, got 'a/b'",
    )


def test_an_unknown_source_is_one_mistake(document: dict[str, Any]) -> None:
    document["event_source"] = {"type": "SimulatedDetector"}
    document["source_identifier"] = ""
    with pytest.raises(InvalidConfigError) as caught:
        parse_parameters(document)
    (problem,) = caught.value.problems
    assert "(did you mean 'SimulatedDetectorEventSource'?)" in problem


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_codec_and_dtype_must_fit(document: dict[str, Any], dtype: str) -> None:
    document["data_sources"]["frame"]["dtype"] = dtype
    document["data_serializer"]["compression"] = "zfp"
    with pytest.raises(InvalidConfigError) as caught:
        parse_parameters(document)
    assert caught.value.problems == (
        f"data_serializer.compression: zfp cannot compress {dtype}, which 'frame' is; choose"
        " another compression or dtype, got 'zfp'",
    )


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "3"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InvalidConfigError, match=r"bad\.yaml: 1 problem\n  \(whole document\)"):
        load_parameters(path)


def test_data_source_left_out_of_fields_is_noticed(document: dict[str, Any]) -> None:
    document["data_serializer"]["fields"] = {"frame": "/data/data", "timestamp": "/data/t"}
    assert parse_parameters(document).notices == (
        "data_serializer: 'wavelength' is not in fields and is not sent",
    )


def test_shapes_may_be_text_numbers_or_lists(document: dict[str, Any]) -> None:
    source = {"type": "GenericRandomNumpyArray", "array_dtype": "float"}
    document["data_sources"] = {
        "text": source | {"array_shape": "4, 5"},
        "list": source | {"array_shape": [4, 5]},
        "number": source | {"array_shape": 4},
    }
    shapes = [
        each.array_shape
        for each in parse_parameters(document).data_sources.values()
        if isinstance(each, GenericRandomNumpyArrayConfig)
    ]
    assert shapes == [(4, 5), (4, 5), (4,)]


def test_source_identifiers() -> None:
    assert identifier_tokens("exp=a, run=3,live") == [("exp", "a"), ("run", "3"), ("live", "")]
    assert identifier_files("a.h5, files=b.h5,,files=c.h5") == ["a.h5", "b.h5", "c.h5"]


def test_schema_describes_every_type() -> None:
    schema = json.dumps(Parameters.model_json_schema())
    assert "SimulatedDetectorEventSource" in schema


def test_configuration_imports_nothing_heavy() -> None:
    heavy = "numpy h5py pynng zmq mpi4py httpx hdf5plugin"
    code = (
        "import sys, lclstream.streamer.config, lclstream.streamer.cli;"
        f"print([name for name in {heavy.split()!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
