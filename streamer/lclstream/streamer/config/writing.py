"""Configurations as files: in the present form, with or without what has its default."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel

from lclstream.core.errors import InvalidConfigError

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters

SUFFIXES = {".json": "json", ".yaml": "yaml", ".yml": "yaml"}


def document_of(parameters: "Parameters", *, minimal: bool) -> dict[str, Any]:
    """Return a configuration as it is written: nothing but text, numbers, lists and mappings.

    Args:
        parameters: the configuration.
        minimal: whether what has its default is left out.
    """
    return _of_model(parameters, parameters.model_dump(mode="json"), minimal=minimal)


def as_text(document: Mapping[str, Any], form: str) -> str:
    """Return a document as `json` or `yaml`; both end with a line break."""
    if form == "json":
        return json.dumps(document, indent=2) + "\n"
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)


def form_of(path: Path | None, wanted: str | None) -> str:
    """Return the form in which to write.

    Args:
        path: the file, whose suffix tells; None: the terminal.
        wanted: what is asked for, if anything.

    Raises:
        InvalidConfigError: the suffix tells nothing, or something else.
    """
    if path is None:
        return wanted or "json"
    form = SUFFIXES.get(path.suffix)
    if form is None:
        raise InvalidConfigError(f"{path}: end the name with {', '.join(SUFFIXES)}")
    if wanted not in (None, form):
        # It could not be read again.
        raise InvalidConfigError(f"{path}: a file of this name holds {form}, not {wanted}")
    return form


class _Dumper(yaml.SafeDumper):
    """Writes what stands at two places twice, not with an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return that there are none."""
        del data
        return True


def _of_model(model: BaseModel, dumped: Mapping[str, Any], *, minimal: bool) -> dict[str, Any]:
    """Return the fields of a model, its type first."""
    fields = sorted(type(model).model_fields, key=lambda name: name != "type")
    return {
        name: _of_value(getattr(model, name), dumped[name], minimal=minimal)
        for name in fields
        if not (minimal and name != "type" and _is_default(model, name))
    }


def _is_default(model: BaseModel, name: str) -> bool:
    info = type(model).model_fields[name]
    if info.is_required():
        return False
    default = info.get_default(call_default_factory=True)
    value = getattr(model, name)
    # 1 and true are equal, 0.0 and -0.0 too, and yet not the same to a reader.
    return bool(value == default) and repr(value) == repr(default)


def _of_value(value: Any, dumped: Any, *, minimal: bool) -> Any:
    if isinstance(value, BaseModel):
        return _of_model(value, dumped, minimal=minimal)
    if isinstance(value, list | tuple):
        return [_of_value(*each, minimal=minimal) for each in zip(value, dumped, strict=True)]
    if isinstance(value, dict):
        return {key: _of_value(value[key], dumped[key], minimal=minimal) for key in value}
    return dumped
