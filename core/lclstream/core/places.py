"""Where in a document validation found a fault, as the person who wrote the document sees it.

Pydantic's locations name also which member of a union it tried, as in `codec.gzip.level`. In the
document there is no such step: what is wrong there is `codec.level`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

Location = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """What a location of validation means."""

    path: Location
    """The keys and indices that lead there in the document."""
    annotation: Any
    """What is allowed there; None when that is not known."""
    branch: int | None = None
    """How much of the location leads to the first union whose members are tried in turn."""


def place_of(location: Location, model: type[BaseModel] | None) -> Place:
    """Follow a location through the annotations of a model."""
    annotation: Any = model
    path: list[int | str] = []
    branch = None
    for number, part in enumerate(location):
        members = _members(annotation)
        if members:
            is_tagged = _is_tagged_union(members)
            # A member may be known by its name alone, if it cannot be used.
            is_member = part in getattr(annotation, "tags", tuple)()
            annotation = _chosen(members, part)
            # Who reports a fault without validation need not name the member.
            if annotation is not None or is_member or not is_tagged:
                branch = number if branch is None and not is_tagged else branch
                continue
        if part == "[key]":
            continue
        path.append(part)
        annotation = _below(annotation, part)
    return Place(tuple(path), annotation, branch)


def shown_path(path: Location) -> str:
    """Return a path as text, on one line whatever the keys are."""
    parts = [str(part) for part in path]
    return ".".join(part if part.isprintable() else repr(part) for part in parts)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that an annotation allows itself, not in a list or mapping."""
    if _is_model(annotation):
        # A base that stands for any of its models names them itself.
        choices: Mapping[str, type[BaseModel]] = getattr(annotation, "choices", dict)()
        return list(choices.values()) or [annotation]
    if get_origin(annotation) is Annotated:
        return models_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [model for member in get_args(annotation) for model in models_in(member)]
    return []


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _members(annotation: Any) -> list[Any]:
    """Return the members of a union, nothing when it is none."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if _is_model(annotation):
        return list(getattr(annotation, "choices", dict)().values())
    if get_origin(annotation) not in (Union, UnionType):
        return []
    members = [member for member in get_args(annotation) if member is not type(None)]
    return members if len(members) > 1 else _members(members[0])


def _is_tagged_union(members: list[Any]) -> bool:
    return all(_is_model(each) and "type" in each.model_fields for each in members)


def _chosen(members: list[Any], label: int | str) -> Any:
    """Return the member of a union that a part of a location names."""
    for each in members:
        if _is_model(each):
            info = each.model_fields.get("type")
            tags = get_args(info.annotation) if info is not None else ()
            if label in tags or each.__name__ == label:
                return each
        kind = get_origin(each) or each
        if str(label).startswith(getattr(kind, "__name__", "?")):
            return each
    return None


def _below(annotation: Any, part: int | str) -> Any:
    """Return what is allowed at one key or index."""
    while get_origin(annotation) in (Annotated, Union, UnionType):
        annotation = next(each for each in get_args(annotation) if each is not type(None))
    if _is_model(annotation):
        info = next(
            (info for name, info in annotation.model_fields.items() if part in (name, info.alias)),
            None,
        )
        return info.annotation if info is not None else None
    arguments = get_args(annotation)
    kind = get_origin(annotation)
    if not arguments or not isinstance(kind, type):
        return None
    if issubclass(kind, Mapping):
        return arguments[-1]
    is_row = kind is tuple and arguments[-1] is not Ellipsis
    return (
        arguments[part]
        if is_row and isinstance(part, int) and part < len(arguments)
        else (None if is_row else arguments[0])
    )
