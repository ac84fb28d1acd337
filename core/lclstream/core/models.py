"""The strict base of every model a person or a peer writes, and how a bad one is reported.

A configuration is refused as a whole, with one line for every fault: file, field, what was
written, what is allowed, and the name that was probably meant.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from lclstream.core.documents import read_document as read_document
from lclstream.core.errors import InvalidConfigError
from lclstream.core.logging import names_a_secret

SHOWN_VALUE_LENGTH = 60
# Nobody reads more, and each costs a search for the name that was meant.
SHOWN_PROBLEMS = 100

Model = TypeVar("Model", bound=BaseModel)


class StrictModel(BaseModel):
    """Refuses unknown fields, never changes, documents itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


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
    details = error.errors(include_url=False)
    lines = [line(detail, model) for detail in details[:SHOWN_PROBLEMS]]
    more = len(details) - len(lines)
    return [*lines, f"... and {more} more"] if more else lines


def line(detail: ErrorDetails, model: type[BaseModel] | None = None) -> str:
    """Return one fault as a line; the value of what is named like a secret is not shown."""
    field = ".".join(str(part) for part in detail["loc"]) or "(whole document)"
    kind, value = detail["type"], detail["input"]
    if kind == "missing":
        return f"{field}: is required"
    if kind == "union_tag_not_found":
        return f"{field}.type: is required{_allowed_types(detail['loc'], model)}"
    if kind == "extra_forbidden":
        return f"{field}: unknown field{_allowed_fields(detail['loc'], model)}"
    text = f"{field}: {detail['msg'][:1].lower()}{detail['msg'][1:]}"
    if names_a_secret(field):
        return text
    return f"{text}, got {shown(value)}{_suggestion(detail)}"


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
    matches = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def _suggestion(detail: ErrorDetails) -> str:
    context: Mapping[str, Any] = detail.get("ctx", {})
    allowed = str(context.get("expected_tags") or context.get("expected") or "")
    names = [part.strip().strip("'") for part in allowed.replace(" or ", ",").split(",")]
    value = context.get("tag", detail["input"])
    return near(value, names) if isinstance(value, str) and allowed else ""


def _allowed_fields(location: tuple[int | str, ...], model: type[BaseModel] | None) -> str:
    """Return the fields that exist where an unknown one was written."""
    owner = _model_at(location[:-1], model) if model is not None else None
    if owner is None:
        return ""
    names = sorted(owner.model_fields)
    return f"{near(str(location[-1]), names)}; allowed: {', '.join(names)}"


def _allowed_types(location: tuple[int | str, ...], model: type[BaseModel] | None) -> str:
    """Return the types that can be chosen where none was."""
    members = _models_at(location, model) if model is not None else []
    fields = [each.model_fields["type"] for each in members if "type" in each.model_fields]
    names = [str(name) for info in fields for name in get_args(info.annotation)]
    return f"; allowed: {', '.join(names)}" if names else ""


def _model_at(location: tuple[int | str, ...], model: type[BaseModel]) -> type[BaseModel] | None:
    candidates = _models_at(location, model)
    return candidates[0] if len(candidates) == 1 else None


def _models_at(location: tuple[int | str, ...], model: type[BaseModel]) -> list[type[BaseModel]]:
    """Follow a location of validation down to the model classes that it may be in."""
    candidates: list[type[BaseModel]] = [model]
    for part in location:
        below: list[type[BaseModel]] = []
        for candidate in candidates:
            info = candidate.model_fields.get(str(part))
            below += _models_in(info.annotation) if info else []
        if below:
            candidates = below
            continue
        # A union's tag, a key of a mapping or a place in a list: stay, or narrow by the tag.
        tagged = [each for each in candidates if _is_tagged(each, part)]
        candidates = tagged or candidates
    return candidates


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        # A base that stands for any of its models names them itself.
        choices: Mapping[str, type[BaseModel]] = getattr(annotation, "choices", dict)()
        return list(choices.values()) or [annotation]
    return [found for inner in get_args(annotation) for found in _models_in(inner)]


def _is_tagged(model: type[BaseModel], tag: int | str) -> bool:
    """Return whether a model is the member of a tagged union, or of a plain one, named so."""
    info = model.model_fields.get("type")
    return model.__name__ == tag or (info is not None and tag in get_args(info.annotation))


def json_schema(kind: Any) -> dict[str, Any]:
    """Return the JSON schema of a model or of an annotated union."""
    return TypeAdapter(kind).json_schema()
