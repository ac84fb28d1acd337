"""A wrong configuration is refused with every mistake at once: one clear line each, no traceback.

The mistakes are those that people make with the files of earlier versions, among them all that
were tried on these.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from lclstream.cli.main import main
from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import parse_parameters

DETECTOR = {"type": "Psana2DetectorInterface", "psana_name": "jungfrau", "psana_fields": "raw.raw"}
SOCKET = {"type": "BinaryDataStreamingDataHandler", "urls": ["tcp://127.0.0.1:5000"]}


def good() -> dict[str, Any]:
    """Return a configuration without mistakes."""
    return copy.deepcopy(
        {
            "source_identifier": "exp=tst,run=3",
            "skip_incomplete_events": False,
            "event_source": {"type": "Psana2EventSource"},
            "data_sources": {"timestamp": {"type": "Psana2Timestamp"}, "frame": DETECTOR},
            "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 2},
            "data_serializer": {
                "type": "HDF5BinarySerializer",
                "compression": "gzip",
                "fields": {"timestamp": "/data/t", "frame": "/data/d"},
            },
            "data_handlers": [SOCKET],
        }
    )


MISSING = object()


def changed(document: Any, path: str, value: Any) -> Any:
    """Return a document with one value replaced, added or taken away."""
    *parents, last = path.split(".")
    inner = document
    for part in parents:
        inner = inner[int(part) if part.isdigit() else part]
    if value is MISSING:
        del inner[last]
    else:
        inner[last if isinstance(inner, dict) else int(last)] = value
    return document


def problems(document: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidConfigError) as caught:
        parse_parameters(document)
    return caught.value.problems


MISTAKES = yaml.safe_load((Path(__file__).parent / "mistakes.yaml").read_text())


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake["at"])
def test_one_mistake(mistake: dict[str, Any]) -> None:
    found = problems(changed(good(), mistake["at"], mistake.get("write", MISSING)))
    assert len(found) == len(mistake["says"]), found
    for line, begin in zip(found, mistake["says"], strict=True):
        assert line.startswith(begin), found
        assert "\n" not in line


def test_the_configuration_that_is_changed_is_good() -> None:
    assert parse_parameters(good()).notices == ()


def test_mistakes_of_all_sections_come_at_once() -> None:
    document = good()
    for path, value in (
        ("source_identifier", "exp=a,rum=3"),
        ("event_source.tipe", 1),
        ("data_sources.zork", {"type": "Zork"}),
        ("data_sources.frame.dtype", "float12"),
        ("processing_pipeline.batch_size", 0),
        ("data_serializer.compression_level", 99),
        ("data_serializer.fields.fram", "/x"),
        ("data_serializer.compresion", "gzip"),
        ("data_handlers.0.urls", ["tcp://a"]),
        ("data_source", {}),
    ):
        changed(document, path, value)
    assert [line.split(":")[0] for line in problems(document)] == [
        "event_source.tipe",
        "data_sources.frame.dtype",
        "data_sources.zork.type",
        "processing_pipeline.batch_size",
        "data_serializer.compresion",
        "data_handlers.0.urls",
        "data_source",
        "source_identifier",
        "data_serializer.compression_level",
        "data_serializer.fields.fram",
    ]


def test_what_depends_on_what_is_wrong_is_not_reported_too() -> None:
    """An unknown step leaves it unknown which values there are: then none is missing."""
    document = good()
    document["processing_pipeline"] = {
        "type": "ProcessingPipeline", "batch_size": 2, "steps": [{"type": "Rename"}]
    }  # fmt: skip
    document["data_serializer"]["fields"] = {"renamed": "/x"}
    (line,) = problems(document)
    assert line.startswith("processing_pipeline.steps.0.type: there is no 'Rename'")


def test_a_data_source_that_is_wrong_is_there_by_name() -> None:
    document = good()
    document["data_sources"]["frame"] = {"type": "Zork"}
    (line,) = problems(document)
    assert line.startswith("data_sources.frame.type: there is no 'Zork'")


def test_steps_change_which_values_there_are() -> None:
    document = good()
    document["processing_pipeline"] = {
        "type": "ProcessingPipeline",
        "batch_size": 2,
        "steps": [
            {"type": "RenameValues", "names": {"frame": "image"}},
            {"type": "DropValues", "drop": "frme"},
        ],
    }
    document["data_serializer"]["fields"] = {"timestamp": "/t", "frame": "/f"}
    found = problems(document)
    assert [line.split(":")[0] for line in found] == [
        "processing_pipeline.steps.1.drop.0",
        "data_serializer.fields.frame",
    ]
    document["data_serializer"]["fields"] = {"timestamp": "/t", "image": "/f"}
    document["processing_pipeline"]["steps"].pop()
    assert parse_parameters(document).labels == ("timestamp", "image")


NOT_A_MAPPING = "1 problem\n  (whole document): should be a mapping of fields, got "


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", f"{NOT_A_MAPPING}None"),
        ("- a\n- b\n", f"{NOT_A_MAPPING}['a', 'b']"),
        ("3", f"{NOT_A_MAPPING}3"),
        ("just text", f"{NOT_A_MAPPING}'just text'"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("a: [1", "line 1, column 6: expected ',' or ']'"),
        ("a:\n\tb: 1", "line 2, column 1: found character '\\t' that cannot start any token;"),
        ("a: {{ b }}", "this looks like a template that has not been filled in"),
        ("workers: 1\nworkers: 2", "line 2, column 1: the key 'workers' is written twice"),
        (
            "data_sources: {on: {type: IntValue, value: 1}}",
            "data_sources.1: a name must be text; put it in quotes, got True",
        ),
        (
            "data_sources: {1: {type: IntValue, value: 1}}",
            "data_sources.1: a name must be text; put it in quotes, got 1",
        ),
        ("? [a]\n: b", "line 1, column 3: found unhashable key"),
        ("1: 2", "1: a name must be text; put it in quotes"),
    ],
    ids=lambda value: value[:20],
)
def test_files_that_are_no_configuration(
    tmp_path: Path, content: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    assert main(["streamer", "check", str(path)]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith(f"lclstream: {path}")
    assert reason in complaint
    assert "Traceback" not in complaint


@pytest.mark.parametrize("verb", [["check"], ["convert"], ["run", "-c"]])
def test_every_verb_names_all_mistakes(
    tmp_path: Path, verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    document = changed(good(), "processing_pipeline.batch_size", 0)
    path.write_text(yaml.safe_dump(changed(document, "data_handlers.0.role", "x")))
    assert main(["streamer", *verb, str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"lclstream: {path}: 2 problems\n")


def test_very_many_mistakes_are_reported_in_bounds() -> None:
    document = good()
    document["data_sources"] = {f"s{i}": {"type": f"Psana2Timestam{i}"} for i in range(3000)}
    found = problems(document)
    assert len(found) == 101
    assert found[-1].startswith("... and ")
    document["data_sources"] = {f"s{i}": {"type": "Psana2Timestamp"} for i in range(5000)}
    assert problems(document)[0].startswith("data_sources: dictionary should have at most 4096")
