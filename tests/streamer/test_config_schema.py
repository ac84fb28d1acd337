"""The JSON schema says of the present form of a configuration what the models say."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lclstream.streamer.config import load_parameters
from lclstream.streamer.config.registry import SECTIONS
from lclstream.streamer.config.schema import schema
from lclstream.streamer.config.writing import document_of

FOLDERS = (
    Path(__file__).parent / "configurations",
    Path(__file__).parents[2] / "streamer" / "examples",
)
FILES = sorted(path for folder in FOLDERS for path in folder.glob("*.yaml"))
SCHEMA = schema(plugins=False)


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping of a schema."""
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from parts(each)
    elif isinstance(value, list):
        for each in value:
            yield from parts(each)


def test_every_type_can_be_chosen_where_it_belongs() -> None:
    found = {
        frozenset(each["discriminator"]["mapping"])
        for each in parts(SCHEMA)
        if "discriminator" in each
    }
    assert found == {frozenset(base.section.own) for base in SECTIONS}


def test_every_reference_leads_somewhere() -> None:
    references = {each["$ref"] for each in parts(SCHEMA) if isinstance(each.get("$ref"), str)}
    assert references == {f"#/$defs/{name}" for name in SCHEMA["$defs"]}


def test_every_type_must_be_named_and_explains_itself() -> None:
    for name, model in SCHEMA["$defs"].items():
        assert model["additionalProperties"] is False
        assert model["description"]
        if "type" in model["properties"]:
            assert "type" in model["required"]
            assert model["properties"]["type"]["const"] == name.removesuffix("Config")


def test_it_is_json_and_the_same_every_time() -> None:
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA == schema(plugins=False)
    # No object's address, and nothing of this machine.
    assert not re.search(r"0x[0-9a-f]{6}|/home/|/tmp/", json.dumps(SCHEMA))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("minimal", [True, False], ids=["minimal", "full"])
def test_configurations_fit(path: Path, minimal: bool) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    document = document_of(load_parameters(path), minimal=minimal)
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    assert [error.message for error in validator.iter_errors(document)] == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("data_sorces",), {}),
        (("event_source",), {"type": "Nothing"}),
        (("event_source",), {"events": 3}),
        (("data_sources", "frame", "dtype"), 3),
        (("processing_pipeline", "batch_size"), 0),
        (("data_serializer", "compression"), "gzpi"),
        (("data_handlers",), [{"type": "BinaryFileWritingDataHandler", "file_prefx": "x"}]),
    ],
)
def test_mistakes_do_not_fit(document: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(SCHEMA)
    assert list(validator.iter_errors(document)) == []
    inner = document
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    assert list(validator.iter_errors(document)) != []


def test_the_examples_are_written_in_the_present_form() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for path in FOLDERS[1].glob("*.yaml"):
        errors = list(validator.iter_errors(yaml.safe_load(path.read_text())))
        assert [error.message[:200] for error in errors] == [], path
