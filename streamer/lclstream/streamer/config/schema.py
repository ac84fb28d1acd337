"""The JSON schema of a configuration in its present form, for editors and other programs."""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from lclstream.streamer.config import Parameters
from lclstream.streamer.config.choices import own_types_only

IDENTIFIER = "urn:lclstream:streamer-configuration"


def schema(*, plugins: bool = True) -> dict[str, Any]:
    """Return the schema, in draft 2020-12 of JSON schema.

    Args:
        plugins: whether the types of installed packages are in it.
    """
    if plugins:
        made = Parameters.model_json_schema(schema_generator=_Generator)
    else:
        with own_types_only():
            made = Parameters.model_json_schema(schema_generator=_Generator)
    head = {
        "$schema": GenerateJsonSchema.schema_dialect,
        "$id": IDENTIFIER,
        "title": "Configuration of the LCLStream streamer",
    }
    return head | {key: value for key, value in made.items() if key not in head}


class _Generator(GenerateJsonSchema):
    """Leaves out titles that only repeat the name of a field; a type must be named."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return that it should not."""
        del schema
        return False

    def model_schema(self, schema: Any) -> dict[str, Any]:
        """Return the schema of a model."""
        made = super().model_schema(schema)
        if "const" in made.get("properties", {}).get("type", {}):
            # It has a default for those who make the model in Python.
            made["required"] = ["type", *(each for each in made.get("required", []))]
        return made
