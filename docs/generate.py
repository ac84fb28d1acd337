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

READ = """
Nothing in a file can make reading it hang, or need much memory: files are at most 1 MiB, nested at
most 50 deep, and hold at most 100 000 values, also with every alias written out. A key that is
written twice is a mistake, and so are names that are no text, such as `on` without quotes.
"""

STREAMER = """
`lclstream streamer check FILE` says what a configuration will read and send; `check --read` looks
at the first event too. `lclstream streamer convert --minimal FILE` writes it in the present form.
[streamer.schema.json](streamer.schema.json) is the JSON schema of the present form, for editors;
`lclstream streamer schema` prints it with the types of installed packages, which are added as
[Add to the streamer](../how-to/add-to-the-streamer.md) says.

Files of all earlier versions of lclstreamer are read, the oldest form with a section `lclstreamer`
included, and the options of all versions may stand in one file. What is read otherwise than it is
written is said in a notice. Unlike some versions:

- `role` is `client` and `library` is `zmq` where a file does not say;
- readings keep their dtype, and time stamps are uint64, unless `dtype` says otherwise;
- values have the names of `data_sources`. `wire_names: psana` gives those of the newest version:
  `<psana_name>.<field>`, each field by itself. Its names in `fields`, `data_source_to_serialize`,
  `spectrometer_source` and `photon_wavelength_source` are understood in any case;
- several fields of a detector are stacked; `separate_fields: true` sends each by itself, as
  `<name>.<field>`.

Of 60 000 files and documents that were made wrong at random, each was read or refused in
lines that a person can read, in bounded time and memory (`LCLSTREAM_SOAK=1`,
`tests/streamer/test_config_fuzz.py`).

These names of earlier versions are read as others:
"""

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
    from lclstream.streamer.config.choices import own_types_only

    text = "# Configuration\n\n" + NOTICE
    text += "All files are YAML or JSON. What does not fit is refused, with every fault at once.\n"
    text += READ
    with own_types_only():
        return text + "".join(_configurations())


def _configurations() -> Iterator[str]:
    """Yield what is said of each file."""
    from lclstream.elog.config import WatchConfig
    from lclstream.elog.definitions import WorkflowDefinition
    from lclstream.jobs.models import JobSpec, ServiceConfig
    from lclstream.streamer.config import Parameters
    from lclstream.transfers.config import TransfersConfig

    for title, model in (
        ("Streamer: `lclstream streamer run -c FILE`", Parameters),
        ("Transfers service: `lclstream transfer serve FILE`", TransfersConfig),
        ("Jobs service: `lclstream job serve FILE`", ServiceConfig),
        ("Job: `lclstream job run FILE`", JobSpec),
        ("Watcher: `lclstream elog watch FILE`", WatchConfig),
        ("Workflow definition: `workflows` of the watcher", WorkflowDefinition),
    ):
        yield f"\n## {title}\n"
        if model is Parameters:
            yield STREAMER + old_names()
        for each in models(model):
            yield table(each)


def old_names() -> str:
    """Return the table of what names of earlier versions are read as."""
    from lclstream.streamer.config.dialects import ALIASES
    from lclstream.streamer.config.old_sources import OLD_SOURCES, as_of_today

    lines = ["\n| written | in | read as |", "|---|---|---|"]
    for section, aliases in ALIASES.items():
        lines += [f"| `{old}` | `{section}` | `{new}` |" for old, new in aliases.items()]
    for old in OLD_SOURCES:
        read = as_of_today({"type": old, "psana_name": "NAME", "psana_fields": "FIELDS"})
        now = read[0] if read is not None else {}
        options = [f"{key}: {now[key]}" for key in ("psana_fields", "dtype") if now.get(key)]
        shown = f" with `{', '.join(options)}`" if options and "Interface" in now["type"] else ""
        lines.append(f"| `{old}` | `data_sources` | `{now['type']}`{shown} |")
    return "\n".join(lines) + "\n"


def schema() -> str:
    """Return the JSON schema of the streamer's configuration, without types of other packages."""
    from lclstream.streamer.config.schema import schema as make
    from lclstream.streamer.config.writing import as_text

    return as_text(make(plugins=False), "json")


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
        # A base that stands for any of its models names them itself.
        choices: Mapping[str, type[BaseModel]] = getattr(annotation, "choices", dict)()
        return list(choices.values()) or [annotation]
    return [found for part in typing.get_args(annotation) for found in inside(part)]


def table(model: type[BaseModel]) -> str:
    """Return the fields of a model as a table."""
    # Who writes a file knows the type, and not the class.
    tag = getattr(model.model_fields.get("type"), "default", None)
    title = tag if isinstance(tag, str) else model.__name__
    lines = [f"\n### {title}\n", f"{(model.__doc__ or '').strip().splitlines()[0]}\n"]
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
    choices = getattr(annotation, "choices", None)
    if choices is not None and (names := list(choices())):
        return "one of " + ", ".join(f"`{name}`" for name in names)
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
    "reference/streamer.schema.json": schema,
}


def main() -> None:
    """Write all pages."""
    for name, make in PAGES.items():
        (DOCS / name).write_text(make())


if __name__ == "__main__":
    main()
