"""The verbs of `lclstream streamer` that look at configurations and files, and run nothing."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters

CHECK_DESCRIPTION = """\
Print every mistake of a configuration at once: where it is, what is allowed, what was probably
meant. Without mistakes, say what will be read and sent: names, dtypes and shapes of the values as
far as they are known, the size of a message, and what it needs that is not installed here.
Exit 0 when there is no mistake, else 2.
"""
CONVERT_DESCRIPTION = """\
Write a configuration of any earlier version in the present form, and say on stderr what was read
otherwise than it was written. All defaults are spelled out, unless --minimal is given.
"""
LIST_DESCRIPTION = """\
List everything that a configuration can name as a type, with the package of what an installed
package adds; or explain one type, with all its fields.
"""
SCHEMA_DESCRIPTION = """\
Print the JSON schema of a configuration in its present form, with the types of installed packages.
Editors complete and check a configuration with it; what `check` knows beyond that, it cannot say.
"""
INSPECT_DESCRIPTION = """\
List the detectors and fields of XTC2 files, or the datasets of HDF5, NeXus, CXI and NumPy files:
the names that data sources can read. Of a folder, list its files; of an address such as
tcp://detector:31001, the first messages of the stream, which are taken out of it.
"""


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add all of them."""
    verb = add_parser(
        verbs, "check", "look for mistakes in a configuration, without running it",
        CHECK_DESCRIPTION,
        "example:\n  lclstream streamer check lclstreamer.yaml\n"
        "  lclstream streamer check --read --ranks 8 lclstreamer.yaml\n",
    )  # fmt: skip
    verb.add_argument("config", type=Path, help="configuration file, YAML or JSON")
    verb.add_argument(
        "--read", action="store_true",
        help="read the first event too, to know every dtype and shape; nothing is sent",
    )  # fmt: skip
    verb.add_argument(
        "--ranks", type=positive, default=1, metavar="N",
        help="say what is to be minded when N ranks run it (default: %(default)s)",
    )  # fmt: skip
    verb.set_defaults(run=check)

    verb = add_parser(
        verbs, "convert", "bring an old configuration into today's form", CONVERT_DESCRIPTION,
        "example:\n  lclstream streamer convert old.yaml > lclstreamer.json\n"
        "  lclstream streamer convert --minimal old.yaml --output lclstreamer.yaml\n",
    )  # fmt: skip
    verb.add_argument("config", type=Path, help="configuration file, YAML or JSON")
    verb.add_argument("--minimal", action="store_true", help="leave out what has its default value")
    verb.add_argument(
        "--format", choices=("json", "yaml"),
        help="what to write (default: as the suffix of --output says, else json)",
    )  # fmt: skip
    verb.add_argument(
        "--output", "-o", type=Path, metavar="FILE",
        help="write a new file instead of standard output",
    )  # fmt: skip
    verb.set_defaults(run=convert)

    verb = add_parser(
        verbs, "list", "show what a configuration can name", LIST_DESCRIPTION,
        "example:\n  lclstream streamer list\n"
        "  lclstream streamer list SimulatedDetectorEventSource\n",
    )  # fmt: skip
    verb.add_argument("type", nargs="?", help="explain this one")
    verb.set_defaults(run=list_types)

    verb = add_parser(
        verbs, "schema", "print the JSON schema of a configuration", SCHEMA_DESCRIPTION,
        "example:\n  lclstream streamer schema > streamer.schema.json\n",
    )  # fmt: skip
    verb.set_defaults(run=print_schema)

    verb = add_parser(
        verbs, "inspect", "show what is in files, folders or streams", INSPECT_DESCRIPTION,
        "example:\n  lclstream streamer inspect run7.xtc2\n",
    )  # fmt: skip
    verb.add_argument("source", help="source_identifier: files, folders or addresses, with commas")
    verb.set_defaults(run=inspect)


def check(options: argparse.Namespace) -> int:
    """Load a configuration; say what is wrong with it, or what it does."""
    from lclstream.streamer.config.checks import advice_for_ranks
    from lclstream.streamer.config.summary import expected_values, summary
    from lclstream.streamer.requirements import missing_requirements

    parameters = _loaded(options.config)
    missing = missing_requirements(parameters)
    for notice in advice_for_ranks(parameters, options.ranks):
        _say(f"notice: {notice}")
    for text in missing:
        _say(f"notice: cannot run here: {text}")
    values = expected_values(parameters)
    if options.read:
        from lclstream.streamer.first_event import first_values

        values = first_values(parameters)
    print(f"{options.config}: no problems found")  # noqa: T201
    for line in summary(parameters, values):
        print(line)  # noqa: T201
    return 0


def convert(options: argparse.Namespace) -> int:
    """Write a configuration in the present form."""
    from lclstream.core.errors import InvalidConfigError
    from lclstream.streamer.config.writing import as_text, document_of, form_of

    form = form_of(options.output, options.format)
    parameters = _loaded(options.config)
    text = as_text(document_of(parameters, minimal=options.minimal), form)
    if options.output is None:
        sys.stdout.write(text)
        return 0
    try:
        with options.output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InvalidConfigError(f"{options.output} exists already; name another file") from None
    return 0


def list_types(options: argparse.Namespace) -> int:
    """Print what a configuration can name."""
    from lclstream.streamer.config.catalogue import describe_all, describe_one

    print(describe_one(options.type) if options.type else describe_all())  # noqa: T201
    return 0


def print_schema(options: argparse.Namespace) -> int:
    """Print the JSON schema of a configuration."""
    from lclstream.streamer.config.schema import schema
    from lclstream.streamer.config.writing import as_text

    del options
    sys.stdout.write(as_text(schema(), "json"))
    return 0


def inspect(options: argparse.Namespace) -> int:
    """Print what files, folders or streams hold."""
    from lclstream.streamer.sources.inspection import describe

    for line in describe(options.source):
        print(line)  # noqa: T201
    return 0


def add_parser(
    group: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    summary: str,
    description: str,
    epilog: str,
) -> argparse.ArgumentParser:
    """Add a command with its help."""
    return group.add_parser(
        name, help=summary, description=description, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def positive(text: str) -> int:
    """Return a number from the command line.

    Raises:
        argparse.ArgumentTypeError: it is not 1 or more.
    """
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a number, 1 or more, got {text!r}")
    return int(text)


def _loaded(path: Path) -> "Parameters":
    from lclstream.streamer.config import load_parameters

    parameters = load_parameters(path)
    for notice in parameters.notices:
        _say(f"notice: {notice}")
    return parameters


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201
