"""The strict base of every model a person or a peer writes, and how a bad one is reported.

A configuration is refused as a whole, with one line for every fault: file, field, what was
written, what is allowed, and the name that was probably meant.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from lclstream.core import quiet
from lclstream.core.documents import read_document as read_document
from lclstream.core.errors import InvalidConfigError
from lclstream.core.logging import names_a_secret
from lclstream.core.places import Location, models_in, place_of, shown_path

SHOWN_VALUE_LENGTH = 60
LINE_LENGTH = 4000
# Of a name that is recognised by a part of it.
SHORTEST_PART = 4
# Nobody reads more, and each costs a search for the name that was meant.
SHOWN_PROBLEMS = 100

Model = TypeVar("Model", bound=BaseModel)


class StrictModel(BaseModel):
    """Refuses unknown fields, never changes, documents itself."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=quiet.wants_field_docs()
    )


def parse(model: type[Model], data: Any, where: str = "input") -> Model:
    """Validate data against a model.

    Args:
        model: the model class.
        data: decoded YAML or JSON.
        where: what the data are, for messages: a file name, `request body`, ...

    Raises:
        InvalidConfigError: names every fault at once.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InvalidConfigError.counted(where, describe(error, model)) from None


def load_file(model: type[Model], path: Path) -> Model:
    """Read a YAML or JSON file into a model.

    Raises:
        InvalidConfigError: the file is missing, not YAML or JSON, or does not fit.
    """
    return parse(model, read_document(path), str(path))


def describe(error: ValidationError, model: type[BaseModel] | None = None) -> list[str]:
    """Return one line for each fault that validation found, for many only the first ones."""
    found = error.errors(include_url=False)
    details = _one_for_each_union(found[: 2 * SHOWN_PROBLEMS], model)
    lines = [_on_one_line(line(detail, model)) for detail in details[:SHOWN_PROBLEMS]]
    more = len(details) - len(lines) + len(found[2 * SHOWN_PROBLEMS :])
    return [*lines, f"... and {more} more"] if more else lines


def line(detail: ErrorDetails, model: type[BaseModel] | None = None) -> str:
    """Return one fault as a line; the value of what is named like a secret is not shown."""
    place = place_of(detail["loc"], model)
    field = shown_path(place.path) or "(whole document)"
    kind, value = detail["type"], detail["input"]
    if kind == "missing":
        return f"{field}: is required"
    if kind == "extra_forbidden":
        return f"{field}: unknown field{_allowed_fields(place.path, detail['loc'], model)}"
    inside = "" if field == "(whole document)" else f"{field}."
    if kind == "union_tag_not_found":
        types = _types(place.annotation)
        return f"{inside}type: is required" + (f"; allowed: {', '.join(types)}" if types else "")
    if kind == "union_tag_invalid":
        return f"{inside}type: {_unknown_type(detail)}"
    text = f"{field}: {_message(detail)}"
    if names_a_secret(field):
        return text
    return f"{text}, got {shown(value)}{_suggestion(detail)}"


def _on_one_line(text: str) -> str:
    """Return a text that can be printed: a line break in a name is escaped, a book is cut."""
    text = text if len(text) <= LINE_LENGTH else f"{text[: LINE_LENGTH - 3]}..."
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def shown(value: Any) -> str:
    """Return a value as a message shows it: short, on one line."""
    try:
        text = repr(value)
    except ValueError:
        # Python writes out no numbers of thousands of digits.
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= SHOWN_VALUE_LENGTH else text[: SHOWN_VALUE_LENGTH - 3] + "..."


def near(word: str, allowed: Sequence[str]) -> str:
    """Return ` (did you mean 'x'?)` when a word is close to an allowed one, else nothing."""
    exact = {name.lower(): name for name in allowed}
    matches = difflib.get_close_matches(word.lower(), list(exact), n=1, cutoff=0.6)
    if not matches and len(word) >= SHORTEST_PART:
        # Only part of the name was written.
        matches = [name for name in exact if word.lower() in name][:1]
    return f" (did you mean {exact[matches[0]]!r}?)" if matches else ""


def _message(detail: ErrorDetails) -> str:
    """Return what validation says, without its manner of speaking."""
    if detail["type"] in ("model_type", "model_attributes_type"):
        return "should be a mapping of fields"
    if detail["loc"][-1:] == ("[key]",) or detail["type"] == "invalid_key":
        return "a name must be text; put it in quotes"
    text = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _one_for_each_union(
    details: list[ErrorDetails], model: type[BaseModel] | None
) -> list[ErrorDetails]:
    """Return one fault where each member of a union was tried and had its own.

    The member that was meant is the one that validation got furthest into; when none was, the
    faults are put together.
    """
    found: dict[Any, list[ErrorDetails]] = {}
    for number, detail in enumerate(details):
        branch = place_of(detail["loc"], model).branch
        found.setdefault(number if branch is None else detail["loc"][:branch], []).append(detail)
    return [each for group in found.values() for each in _meant(group)]


def _meant(group: list[ErrorDetails]) -> list[ErrorDetails]:
    if len(group) == 1:
        return group
    depth = max(len(each["loc"]) for each in group)
    if min(len(each["loc"]) for each in group) < depth:
        return [each for each in group if len(each["loc"]) == depth]
    messages = list(dict.fromkeys(_message(each) for each in group))
    one: Any = {**group[0], "msg": ", or ".join(messages)}
    return [one]


def _unknown_type(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    names = [each.strip().strip("'") for each in str(context.get("expected_tags", "")).split(",")]
    tag = str(context.get("tag", ""))
    return f"there is no {shown(tag)}{near(tag, names)}; allowed: {', '.join(names)}"


def _suggestion(detail: ErrorDetails) -> str:
    allowed = str(detail.get("ctx", {}).get("expected", ""))
    names = [part.strip().strip("'") for part in allowed.replace(" or ", ",").split(",")]
    value = detail["input"]
    return near(value, names) if isinstance(value, str) and allowed else ""


def _allowed_fields(path: Location, location: Location, model: type[BaseModel] | None) -> str:
    """Return the fields that exist where an unknown one was written."""
    owners = models_in(place_of(location[:-1], model).annotation)
    if len(owners) != 1:
        return ""
    names = sorted(owners[0].model_fields)
    return f"{near(str(path[-1]), names)}; allowed: {', '.join(names)}"


def _types(annotation: Any) -> list[str]:
    """Return the types that can be chosen at a place."""
    fields = [each.model_fields.get("type") for each in models_in(annotation)]
    return [str(name) for info in fields if info is not None for name in get_args(info.annotation)]


def json_schema(kind: Any) -> dict[str, Any]:
    """Return the JSON schema of a model or of an annotated union."""
    return TypeAdapter(kind).json_schema()
