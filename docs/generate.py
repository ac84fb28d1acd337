"""Write the pages that are drawn from the code: `python docs/generate.py`.

A test makes them again and compares.
"""

import argparse
import io
import os
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

DOCS = Path(__file__).parent

NOTICE = "<!-- Made by docs/generate.py; do not edit. -->\n\n"


def states() -> str:
    """Return the page of all state machines."""
    from lclstream.buffer import states as buffer
    from lclstream.jobs import states as jobs
    from lclstream.transfers import states as transfers

    text = "# State machines\n\n" + NOTICE
    text += "Each is a table without I/O; an event that a state does not know changes nothing.\n\n"
    for title, module, first in (
        ("Transfer", transfers, transfers.Phase.REQUESTED),
        ("Job", jobs, jobs.JobState.NEW),
        ("Buffer", buffer, buffer.BufferState.OPEN),
    ):
        text += f"## {title}\n\n{module.__doc__}\n```mermaid\n"
        text += diagram(module.TRANSITIONS, first) + "```\n\n"
    return text.rstrip() + "\n"


def diagram(table: Mapping[Any, Mapping[Any, Any]], first: Enum) -> str:
    """Return a table of transitions as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {first.value}"]
    for state, leads_to in table.items():
        for event, target in leads_to.items():
            lines.append(f"    {state.value} --> {target.value}: {event.name.lower()}")
        if not leads_to:
            lines.append(f"    {state.value} --> [*]")
    return "\n".join(lines) + "\n"


def command_line() -> str:
    """Return the page with the help of every command."""
    from lclstream.cli.main import build_parser

    text = "# Command line\n\n" + NOTICE
    text += "Exit codes: 0 done, 1 failed, 2 wrong use or configuration, 130 interrupted.\n"
    for name, parser in parsers(build_parser()):
        text += f"\n## {name}\n\n```text\n{helped(parser)}```\n"
    return text


def parsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield a parser and all that are below it, with the words that lead there."""
    yield parser.prog, parser
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for below in dict.fromkeys(action.choices.values()):
                yield from parsers(below)


def helped(parser: argparse.ArgumentParser) -> str:
    """Return the help text of a parser for a terminal of 100 columns."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        out = io.StringIO()
        with redirect_stdout(out):
            parser.print_help()
        return out.getvalue()
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def configuration() -> str:
    """Return the page of all files that a person writes."""
    from lclstream.elog.config import WatchConfig
    from lclstream.elog.definitions import WorkflowDefinition
    from lclstream.jobs.models import JobSpec, ServiceConfig
    from lclstream.streamer.config import Parameters
    from lclstream.transfers.config import TransfersConfig

    text = "# Configuration\n\n" + NOTICE
    text += "All files are YAML or JSON. What does not fit is refused, with every fault at once.\n"
    for title, model in (
        ("Streamer: `lclstream streamer run -c FILE`", Parameters),
        ("Transfers service: `lclstream transfer serve FILE`", TransfersConfig),
        ("Jobs service: `lclstream job serve FILE`", ServiceConfig),
        ("Job: `lclstream job run FILE`", JobSpec),
        ("Watcher: `lclstream elog watch FILE`", WatchConfig),
        ("Workflow definition: `workflows` of the watcher", WorkflowDefinition),
    ):
        text += f"\n## {title}\n"
        for each in models(model):
            text += table(each)
    return text


def models(model: type[BaseModel]) -> list[type[BaseModel]]:
    """Return a model and all models in its fields, each once, in the order of reading."""
    found = [model]
    for each in found:
        for info in each.model_fields.values():
            found += [inner for inner in inside(info.annotation) if inner not in found]
    return found


def inside(annotation: Any) -> list[type[BaseModel]]:
    """Return the model classes in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in typing.get_args(annotation) for found in inside(part)]


def table(model: type[BaseModel]) -> str:
    """Return the fields of a model as a table."""
    lines = [f"\n### {model.__name__}\n", f"{(model.__doc__ or '').strip().splitlines()[0]}\n"]
    lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, info in model.model_fields.items():
        meaning = " ".join((info.description or "").split())
        cells = (f"`{info.alias or name}`", kind(info.annotation), default(info), meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def kind(annotation: Any) -> str:
    """Return how a person calls a type."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is typing.Annotated:
        return kind(parts[0])
    if origin in (typing.Union, UnionType):
        return " or ".join(dict.fromkeys(kind(part) for part in parts))
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (list, tuple, frozenset, set):
        return "list of " + " or ".join(
            dict.fromkeys(kind(part) for part in parts if part is not Ellipsis)
        )
    if origin is dict:
        return f"map of {kind(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{each.value}`" for each in annotation)
    return {"str": "text", "int": "integer", "float": "number", "bool": "true/false"}.get(
        getattr(annotation, "__name__", ""), getattr(annotation, "__name__", str(annotation))
    )


def default(info: FieldInfo) -> str:
    """Return the default of a field."""
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, frozenset | tuple | list):
        return "`[" + ", ".join(sorted(str(getattr(each, "value", each)) for each in value)) + "]`"
    return "null" if value is None else f"`{value}`"


PAGES: Mapping[str, Callable[[], str]] = {
    "explanations/states.md": states,
    "reference/command-line.md": command_line,
    "reference/configuration.md": configuration,
}


def main() -> None:
    """Write all pages."""
    for name, make in PAGES.items():
        (DOCS / name).write_text(make())


if __name__ == "__main__":
    main()
