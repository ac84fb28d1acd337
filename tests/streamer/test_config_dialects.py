"""Configurations of every earlier version are read, and what is read otherwise is said."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import Parameters, parse_parameters
from lclstream.streamer.config.dialects import ALIASES, modernise
from lclstream.streamer.config.old_sources import OLD_SOURCES

CONFIGURATIONS = Path(__file__).parent / "configurations"
DIALECTS = sorted(path.stem for path in CONFIGURATIONS.glob("*.yaml"))


def document_of(dialect: str) -> Any:
    return yaml.safe_load((CONFIGURATIONS / f"{dialect}.yaml").read_text())


def read(dialect: str) -> Parameters:
    return parse_parameters(document_of(dialect))


@pytest.mark.parametrize(
    ("dialect", "notices"),
    [
        ("paper", [
            "data_serializer: HDF5Serializer is read as HDF5BinarySerializer",
            "data_sources.detector_data: Psana1AreaDetector is read as Psana1DetectorInterface with"
            " psana_fields 'calib'",
            "data_sources.photon_wavelength: Psana1PV is read as Psana1DetectorInterface",
            "data_serializer: zfp loses precision and may enlarge noisy frames",
        ]),
        ("v0.3.0", [
            "data_sources.raw: Psana1AreaDetector is read as Psana1DetectorInterface with"
            " psana_fields 'raw'",
            "data_sources.image: Psana1AssembledAreaDetector is read as Psana1DetectorInterface"
            " with psana_fields 'image'",
            "data_sources.delay: Psana1PV is read as Psana1DetectorInterface",
        ]),
        ("slac", []),
        ("cur", [
            f"data_serializer: {name!r} is not in fields and is not sent" for name in (
                "jungfrau_raw", "beam", "variable", "random", "flat", "text", "number", "numbers",
                "one", "two")
        ]),
        ("amsc", []),
        ("fast", []),
        ("class_map", [
            "the old form with a section 'lclstreamer' was converted",
            "data_serializer: Hdf5Serializer is read as HDF5BinarySerializer",
            "data_serializer: zfp loses precision and may enlarge noisy frames",
        ]),
        ("oldest", [
            "the old form with a section 'lclstreamer' was converted",
            "batch_size is read as processing_pipeline.batch_size",
            "processing_pipeline: NoOpProcessingPipeline is read as BatchProcessingPipeline",
            "data_serializer: Hdf5Serializer is read as HDF5BinarySerializer",
            "data_sources.peaks: Psana2HsdDetector is read as Psana2DetectorInterface with"
            " psana_fields 'raw.peaks'",
            "source_identifier: the mapping is read as 'exp=tmox1016823,run=45'",
        ]),
    ],
)  # fmt: skip
def test_every_dialect_is_read(dialect: str, notices: list[str]) -> None:
    assert list(read(dialect).notices) == notices


def test_options_keep_what_was_written() -> None:
    cur = read("cur").model_dump()
    assert cur["data_sources"]["one"]["value"] == 6
    assert cur["data_sources"]["two"]["value"] == [6, 1]
    assert cur["data_sources"]["flat"]["array_shape"] == (32,)
    assert cur["data_sources"]["text"]["array_shape"] == (32,)
    assert cur["data_serializer"]["compression_level"] == 0
    assert cur["data_handlers"][0]["distribute"] is True
    old = read("class_map").model_dump()
    assert old["processing_pipeline"] == {"type": "BatchProcessingPipeline", "batch_size": 10}
    assert [each["type"] for each in old["data_handlers"]] == ["BinaryFileWritingDataHandler"]
    oldest = read("oldest").model_dump()
    assert oldest["processing_pipeline"]["batch_size"] == 20
    assert [each.get("library") for each in oldest["data_handlers"]] == [None, "nng"]


def test_fields_of_all_dialects_may_stand_in_one_file() -> None:
    document = document_of("cur")
    document["data_sources"] |= document_of("v0.3.0")["data_sources"]
    document["data_sources"] |= document_of("slac")["data_sources"]
    document["data_handlers"] += document_of("v0.3.0")["data_handlers"]
    document["data_serializer"]["fields"] = {}
    parameters = parse_parameters(document)
    assert len(parameters.data_sources) == len(document["data_sources"])
    assert {each.type for each in parameters.data_sources.values()} >= {
        "ConstValue", "IntValue", "Psana1EvrCodes", "Psana2RunInfo", "SourceIdentifier",
    }  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
def test_json_with_every_default_spelled_out_is_read_again(dialect: str) -> None:
    """As the service writes it for its jobs."""
    parameters = read(dialect)
    written = json.dumps(parameters.model_dump(mode="json"), indent=2)
    again = parse_parameters(json.loads(written))
    assert again.model_dump() == parameters.model_dump()
    conversions = [each for each in again.notices if "is read as" in each]
    assert conversions == []


def small(**changes: Any) -> dict[str, Any]:
    """Return a small configuration."""
    return {
        "source_identifier": "exp=tst,run=3",
        "event_source": {"type": "Psana2EventSource"},
        "data_sources": {"a": {"type": "IntValue", "value": 1}},
        "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 3},
        "data_serializer": {"type": "HDF5BinarySerializer"},
        "data_handlers": [],
        **changes,
    }


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ({"type": "GenericRandomTimestamp"}, {"type": "Psana2Timestamp"}),
        ({"type": "GenericRandomWavelength"},
         {"type": "GenericRandomNumpyArray", "array_shape": (), "array_dtype": "float64"}),
        ({"type": "Psana1AreaDetector", "psana_name": "j"},
         {"type": "Psana1DetectorInterface", "psana_name": "j", "psana_fields": "calib"}),
        ({"type": "Psana1AreaDetector", "psana_name": "j", "calibration": False},
         {"type": "Psana1DetectorInterface", "psana_name": "j", "psana_fields": "raw"}),
        ({"type": "Psana1AssembledAreaDetector", "psana_name": "j"},
         {"type": "Psana1DetectorInterface", "psana_name": "j", "psana_fields": "image"}),
        ({"type": "Psana1BbmonDetector", "psana_name": "b", "psana_function": "TotalIntensity"},
         {"type": "Psana1BbmonDetectorTotalIntensity", "psana_name": "b"}),
        ({"type": "Psana1PV", "psana_name": "A:B:C", "psana_function": "sum"},
         {"type": "Psana1DetectorInterface", "psana_name": "A:B:C", "psana_fields": None}),
        ({"type": "Psana1PV", "psana_name": "short"},
         {"type": "Psana1DetectorInterface", "psana_name": "short", "psana_fields": ""}),
        ({"type": "Psana1UsdUsbDetectorCount", "psana_name": "u"},
         {"type": "Psana1DetectorInterface", "psana_name": "u",
          "psana_fields": "get.encoder_count", "dtype": "int64"}),
        ({"type": "Psana2AreaDetector", "psana_name": "j", "calibration": True},
         {"type": "Psana2DetectorInterface", "psana_name": "j", "psana_fields": "raw.calib"}),
        ({"type": "Psana2AreaDetector", "psana_name": "j", "calibration": False},
         {"type": "Psana2DetectorInterface", "psana_name": "j", "psana_fields": "raw.raw"}),
        ({"type": "Psana2AssembledAreaDetector", "psana_name": "j"},
         {"type": "Psana2DetectorInterface", "psana_name": "j", "psana_fields": "raw.image"}),
        ({"type": "Psana2Camera", "psana_name": "c"},
         {"type": "Psana2DetectorInterface", "psana_name": "c", "psana_fields": "raw.raw"}),
        ({"type": "Psana2DetectorValues", "psana_name": "j",
          "psana_fields": ["_detid", "_dettype"]},
         {"type": "Psana2DetectorInterface", "psana_name": "j",
          "psana_fields": ["_detid", "_dettype"], "dtype": "str"}),
        ({"type": "Psana2EBeam", "psana_function": "ebeamL3Energy"},
         {"type": "Psana2DetectorInterface", "psana_name": "ebeam",
          "psana_fields": "raw.ebeamL3Energy"}),
        ({"type": "Psana2Gmd", "psana_name": "xgmd", "psana_function": "milliJoulesPerPulse"},
         {"type": "Psana2DetectorInterface", "psana_name": "xgmd",
          "psana_fields": "raw.milliJoulesPerPulse"}),
        ({"type": "Psana2HsdDetector", "psana_name": "h", "psana_function": "waveforms"},
         {"type": "Psana2DetectorInterface", "psana_name": "h", "psana_fields": "raw.waveforms"}),
        ({"type": "Psana2PV", "psana_name": "A:B"},
         {"type": "Psana2DetectorInterface", "psana_name": "A:B", "psana_fields": None}),
    ],
    ids=lambda value: value["type"] if "calibration" not in value else str(value["calibration"]),
)  # fmt: skip
def test_data_sources_of_old(old: dict[str, Any], now: dict[str, Any]) -> None:
    parameters = parse_parameters(small(data_sources={"x": old}))
    assert parameters.model_dump()["data_sources"]["x"].items() >= now.items()
    (notice,) = parameters.notices
    assert notice.startswith(f"data_sources.x: {old['type']} is read as {now['type']}")


def test_every_source_of_old_is_tried_above() -> None:
    (marker,) = [each for each in test_data_sources_of_old.pytestmark if each.name == "parametrize"]
    assert {old["type"] for old, _ in marker.args[1]} == set(OLD_SOURCES)


@pytest.mark.parametrize(
    ("section", "old"), [(section, old) for section in ALIASES for old in ALIASES[section]]
)
def test_other_names_of_a_type_are_noticed(section: str, old: str) -> None:
    options = {
        "GenericEventSource": {"number_of_events_to_generate": 3},
        "PreprocessingBatchPipeline": {"batch_size": 1, "target_height": 4, "target_width": 4},
        "BatchPipeline": {"batch_size": 3},
    }
    parameters = parse_parameters(small(**{section: {"type": old, **options.get(old, {})}}))
    assert parameters.model_dump()[section]["type"] == ALIASES[section][old]
    assert parameters.notices == (f"{section}: {old} is read as {ALIASES[section][old]}",)


@pytest.mark.parametrize(
    ("changes", "path", "value", "notice"),
    [
        ({"source_identifier": {"exp": "a", "run": 3}}, "source_identifier", "exp=a,run=3",
         "source_identifier: the mapping is read as 'exp=a,run=3'"),
        ({"source_identifier": {"exp": "a", "run": 3}, "event_source": "Psana1EventSource"},
         "source_identifier", "exp=a:run=3",
         "source_identifier: the mapping is read as 'exp=a:run=3'"),
        ({"event_source": "Psana2EventSource"}, "event_source.type", "Psana2EventSource",
         "event_source: Psana2EventSource is read as a mapping with this type"),
        ({"batch_size": 7, "processing_pipeline": {"type": "BatchProcessingPipeline"}},
         "processing_pipeline.batch_size", 7,
         "batch_size is read as processing_pipeline.batch_size"),
        ({"batch_size": 7, "processing_pipeline": "NoOpPipeline"},
         "processing_pipeline.batch_size", 7,
         "batch_size is read as processing_pipeline.batch_size"),
        ({"processing_pipeline": {"type": "NoOpProcessingPipeline"}},
         "processing_pipeline.batch_size", 1,
         "processing_pipeline: NoOpProcessingPipeline is read as BatchProcessingPipeline"),
        ({"event_source": {"type": "GenericEventSource", "events": 9}},
         "event_source.number_of_events_to_generate", 9,
         "event_source: events is read as number_of_events_to_generate"),
        ({"event_source": {"type": "InternalEventSource", "number_of_events_to_generate": 9,
                           "rate": 3}},
         "event_source.number_of_events_to_generate", 9,
         "event_source: InternalEventSource has no option 'rate'; it is left out"),
        ({"event_source": {"type": "Psana2EventSource", "async_on": 0}}, "event_source.type",
         "Psana2EventSource", "event_source: async_on has no meaning any more and is left out"),
        ({"data_handlers": {"type": "BinaryFileWritingDataHandler"}}, "data_handlers.0.type",
         "BinaryFileWritingDataHandler", "data_handlers: one handler is read as a list of one"),
        ({"data_handlers": ["BinaryFileWritingDataHandler"]}, "data_handlers.0.type",
         "BinaryFileWritingDataHandler",
         "data_handlers.0: BinaryFileWritingDataHandler is read as a mapping with this type"),
        ({"data_serializer": {"type": "HDF5BinarySerializer", "compression": "None"}},
         "data_serializer.compression", None,
         "data_serializer.compression: 'None' is read as null"),
        ({"data_sources": {"a": {"type": "IntValue", "value": 1},
                           "async_on": {"async_on": 0}}},
         "data_sources.a.value", 1,
         "data_sources.async_on: async_on has no meaning any more and is left out"),
    ],
)  # fmt: skip
def test_what_older_versions_allowed(
    changes: dict[str, Any], path: str, value: Any, notice: str
) -> None:
    parameters = parse_parameters(small(**changes))
    found: Any = parameters.model_dump()
    for part in path.split("."):
        found = found[int(part) if part.isdigit() else part]
    assert found == value
    assert notice in parameters.notices


def test_data_handlers_may_be_left_empty() -> None:
    assert parse_parameters(small(data_handlers=None)).data_handlers == []


def test_a_batch_size_that_is_there_twice_is_a_mistake() -> None:
    with pytest.raises(InvalidConfigError, match=r"\n  batch_size: unknown field"):
        parse_parameters(small(batch_size=7))


def test_a_null_batch_size_is_a_mistake() -> None:
    with pytest.raises(InvalidConfigError, match=r"\n  processing_pipeline\.batch_size: input"):
        parse_parameters(
            small(processing_pipeline={"type": "BatchProcessingPipeline", "batch_size": None})
        )


def test_what_a_class_map_does_not_know_is_a_mistake() -> None:
    document = document_of("class_map")
    document["event_sorce"] = {}
    document["lclstreamer"]["skip"] = True
    with pytest.raises(InvalidConfigError) as caught:
        parse_parameters(document)
    assert [each.partition(" (")[0] for each in caught.value.problems] == [
        "event_sorce: unknown field",
        "skip: unknown field",
    ]


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        (("float32", "<f4", "f4", "=f4", "single", "numpy.float32", "np.float32"), "float32"),
        (("float64", "float", "double", "f8"), "float64"),
        (("uint16", "<u2", "ushort", " u2 "), "uint16"),
        (("int64", "int", "i8"), "int64"),
        (("int8", "|i1", "byte"), "int8"),
    ],
)
def test_dtypes_may_be_written_as_numpy_does(names: tuple[str, ...], dtype: str) -> None:
    for name in names:
        source = {"type": "GenericRandomNumpyArray", "array_shape": 3, "array_dtype": name}
        parameters = parse_parameters(small(data_sources={"x": source}))
        assert parameters.model_dump()["data_sources"]["x"]["array_dtype"] == dtype


def test_names_of_the_newest_version_are_read_as_ours() -> None:
    interface = {"type": "Psana2DetectorInterface"}
    sources = {
        "frames": interface | {"psana_name": "jungfrau", "psana_fields": "raw.calib"},
        "spectrum": interface | {"psana_name": "feespec", "psana_fields": ["raw.hproj"]},
        "wavelength": interface | {"psana_name": "SIOC:SYS0:ML00:AO192"},
        "beam": interface | {"psana_name": "ebeamh", "psana_fields": ["raw.x", "raw.y"],
                             "separate_fields": True},
        "timestamp": {"type": "Psana2Timestamp"},
    }  # fmt: skip
    fields = {"jungfrau.raw.calib": "/d", "ebeamh.raw.y": "/y", "SIOC:SYS0:ML00:AO192": "/w",
              "timestamp": "/t"}  # fmt: skip
    document = small(
        data_sources=sources, data_serializer={"type": "HDF5BinarySerializer", "fields": fields}
    )
    now, notices = modernise(document)
    assert now["data_serializer"]["fields"] == {
        "frames": "/d", "beam.raw.y": "/y", "wavelength": "/w", "timestamp": "/t",
    }  # fmt: skip
    assert notices == [
        "data_serializer.fields: 'jungfrau.raw.calib' is read as 'frames'",
        "data_serializer.fields: 'ebeamh.raw.y' is read as 'beam.raw.y'",
        "data_serializer.fields: 'SIOC:SYS0:ML00:AO192' is read as 'wavelength'",
    ]
    serializer = {
        "type": "SimplonBinarySerializer", "data_source_to_serialize": "jungfrau.raw.calib",
        "spectrometer_source": "feespec.raw.hproj", "photon_wavelength_source": "wavelength",
    }  # fmt: skip
    now, _ = modernise(document | {"data_serializer": serializer})
    assert now["data_serializer"]["data_source_to_serialize"] == "frames"
    assert now["data_serializer"]["spectrometer_source"] == "spectrum"
    assert now["data_serializer"]["photon_wavelength_source"] == "wavelength"


def test_names_of_the_newest_version_that_mean_two_values_stay() -> None:
    source = {"type": "Psana2DetectorInterface", "psana_name": "j", "psana_fields": "raw.raw"}
    serializer: dict[str, Any] = {
        "type": "HDF5BinarySerializer",
        "fields": {"j.raw.raw": "/x"},
    }
    document = small(data_sources={"a": source, "b": source}, data_serializer=serializer)
    assert modernise(document)[0]["data_serializer"] == serializer
    # Nothing is lost either when our name stands beside it.
    serializer["fields"] |= {"a": "/a"}
    document = small(data_sources={"a": source}, data_serializer=serializer)
    assert modernise(document)[0]["data_serializer"] == serializer


@pytest.mark.parametrize("dialect", ["paper", "cur", "class_map", "oldest"])
def test_what_is_converted_stays_unchanged_itself(dialect: str) -> None:
    document = document_of(dialect)
    before = copy.deepcopy(document)
    modernise(document)
    assert document == before
    now, _ = modernise(document)
    assert modernise(now) == (now, [])
