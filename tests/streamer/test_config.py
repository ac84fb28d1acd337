"""What a configuration says about itself: all mistakes at once, what fits together, notices.

Dialects, mistakes, names and the schema have files of their own beside this one.
"""

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


def test_names_must_leave_room_for_the_masks_of_both(document: dict[str, Any]) -> None:
    document["data_sources"] = {name: {"type": "Psana2Timestamp"} for name in ("a", "a/b")}
    document["data_serializer"]["fields"] = {"a": "/x", "a/b": "/y"}
    with pytest.raises(InvalidConfigError) as caught:
        parse_parameters(document)
    assert caught.value.problems == (
        "data_serializer.fields: value 'a/b' collides with the path of 'a', as far as masks are"
        " concerned, got 'a/b'",
    )


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


def test_codec_and_dtype_must_fit_behind_the_steps(document: dict[str, Any]) -> None:
    document["data_sources"]["frame"]["dtype"] = "uint16"
    document["data_serializer"]["compression"] = "zfp"
    convert = {"type": "ConvertType", "inputs": "frame", "dtype": "float32"}
    document["processing_pipeline"] = {
        "type": "ProcessingPipeline", "batch_size": 1, "steps": [convert]
    }  # fmt: skip
    assert parse_parameters(document).labels == ("timestamp", "frame", "wavelength")
    convert["dtype"] = "int8"
    with pytest.raises(InvalidConfigError, match="zfp cannot compress int8, which 'frame' is"):
        parse_parameters(document)


def test_files_are_named_for_what_they_hold(document: dict[str, Any]) -> None:
    handler = {"type": "BinaryFileWritingDataHandler"}
    document["data_handlers"] = [handler]
    assert parse_parameters(document).notices == ()
    document["data_serializer"] = {"type": "NumpyBinarySerializer"}
    assert parse_parameters(document).notices == (
        "data_handlers.0: file_suffix is 'h5', and files of NumpyBinarySerializer are known by"
        " 'npz'",
    )
    handler["file_suffix"] = "npz"
    assert parse_parameters(document).notices == ()


def test_data_source_left_out_of_fields_is_noticed(document: dict[str, Any]) -> None:
    document["data_serializer"]["fields"] = {"frame": "/data/data", "timestamp": "/data/t"}
    assert parse_parameters(document).notices == (
        "data_serializer: 'wavelength' is not in fields and is not sent",
    )


def test_source_identifiers() -> None:
    assert identifier_tokens("exp=a, run=3,live") == [("exp", "a"), ("run", "3"), ("live", "")]
    assert identifier_files("a.h5, files=b.h5,,files=c.h5") == ["a.h5", "b.h5", "c.h5"]


def test_configuration_imports_nothing_heavy() -> None:
    heavy = "numpy h5py pynng zmq mpi4py httpx hdf5plugin cbor2 msgpack numba pyarrow blosc2"
    code = (
        "import sys, lclstream.streamer.config, lclstream.streamer.cli;"
        f"print([name for name in {heavy.split()!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_only_models_that_are_named_are_loaded(document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(document))
    code = (
        "import sys; from pathlib import Path\n"
        "from lclstream.streamer.config import load_parameters\n"
        "before = {name for name in sys.modules if 'streamer.config.' in name}\n"
        "load_parameters(Path(sys.argv[1]))\n"
        "after = {name for name in sys.modules if 'streamer.config.' in name}\n"
        "print(*sorted(name.rpartition('.')[2] for name in before))\n"
        "print(*sorted(name.rpartition('.')[2] for name in after))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    before, after = (set(line.split()) for line in done.stdout.splitlines())
    kinds = {"data_sources", "event_sources", "processing", "serializers"}
    assert not kinds & before
    assert kinds <= after
    others = {"diffraction_steps", "waveform_steps", "simplon", "more_serializers", "handlers"}
    assert not others & after
