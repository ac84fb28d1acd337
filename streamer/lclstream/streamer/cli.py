"""The `lclstream streamer` command."""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters
    from lclstream.streamer.rank import Place

logger = logging.getLogger(__name__)

DEFAULT_CONFIG = Path("lclstreamer.yaml")

DESCRIPTION = """\
Read detector events, batch them, turn each batch into one message (an HDF5 file in memory)
and send the messages to a socket or write them to files, as a configuration file says.
"""
EXAMPLE = """\
example:
  lclstream streamer check lclstreamer.yaml
  lclstream streamer run -c lclstreamer.yaml -n 100
  mpiexec -n 4 lclstream streamer run -c lclstreamer.yaml
"""
RUN_DESCRIPTION = """\
Stream all events, or the first ones. Under mpiexec or srun the ranks share the events. Ends
when everything is delivered; if something cannot be delivered, says how much and exits with 1.
SIGTERM and Ctrl-C finish the batch under way and deliver it.
"""


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `streamer` and its verbs."""
    streamer = _parser(commands, "streamer", "read events and stream them", DESCRIPTION, EXAMPLE)
    verbs = streamer.add_subparsers(title="verbs", metavar="VERB", required=True)

    verb = _parser(
        verbs, "run", "stream events", RUN_DESCRIPTION,
        "example:\n  mpiexec -n 4 lclstream streamer run -c lclstreamer.yaml -n 100\n",
    )  # fmt: skip
    add_run_options(verb)

    verb = _parser(
        verbs, "check", "look for mistakes in a configuration, without running it",
        "Print every mistake at once: field, value, what is allowed. Exit 0 when there is none,"
        " else 2.",
        "example:\n  lclstream streamer check lclstreamer.yaml\n",
    )  # fmt: skip
    verb.add_argument("config", type=Path, help="configuration file, YAML or JSON")
    verb.set_defaults(run=check)

    verb = _parser(
        verbs, "list", "show what a configuration can name",
        "List the event sources, data sources, processing pipelines, serializers and handlers,"
        " or the fields of one of them.",
        "example:\n  lclstream streamer list\n"
        "  lclstream streamer list SimulatedDetectorEventSource\n",
    )  # fmt: skip
    verb.add_argument("type", nargs="?", help="show the fields of this one")
    verb.set_defaults(run=list_types)

    verb = _parser(
        verbs, "inspect", "show what is in XTC2 or HDF5 files",
        "List the detectors and fields of XTC2 files, or the datasets of HDF5 files: the names"
        " that data sources can read.",
        "example:\n  lclstream streamer inspect run7.xtc2\n",
    )  # fmt: skip
    verb.add_argument("source", help="source_identifier: files, separated by commas")
    verb.set_defaults(run=inspect)

    verb = _parser(
        verbs, "convert", "bring an old configuration into today's form",
        "Print a configuration of any earlier version in the present form, all defaults spelled"
        " out, as JSON (which is YAML too). Says on stderr what was changed.",
        "example:\n  lclstream streamer convert old.yaml > lclstreamer.json\n",
    )  # fmt: skip
    verb.add_argument("config", type=Path, help="configuration file, YAML or JSON")
    verb.set_defaults(run=convert)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `run`, which `python -m lclstream.streamer` shares."""
    parser.add_argument(
        "-c", "--config", type=Path, default=DEFAULT_CONFIG, metavar="PATH",
        help="configuration file, YAML or JSON (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-n", "--num-events", type=_count, default=0, metavar="N",
        help="events that each rank reads at most; 0 = all (default)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=_positive, metavar="N",
        help="threads of each rank that apply the steps of the pipeline (default: as configured)",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true",
        help="continue an earlier run from the manifests of its files: events that they hold are"
        " left out; the number of ranks may be another one",
    )  # fmt: skip
    parser.add_argument(
        "--resume-file", type=Path, metavar="PATH",
        help="remember in PATH.r<rank> which events were delivered, and continue from what is"
        " there",
    )  # fmt: skip
    parser.add_argument(
        "--resume-from", type=_count, default=0, metavar="INDEX",
        help="leave out the events before this one, such as the smallest resume_index in the last"
        " reports of all ranks",
    )  # fmt: skip
    parser.add_argument(
        "--mpi", action="store_true",
        help="ask the MPI library for rank and size, instead of the environment",
    )  # fmt: skip
    parser.add_argument("--debug", "-d", action="store_true", help="log more")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Stream as one rank."""
    from lclstream.core.logging import configure
    from lclstream.streamer.config import load_parameters
    from lclstream.streamer.execution.options import RunOptions
    from lclstream.streamer.rank import place_from_environment, place_from_mpi
    from lclstream.streamer.run import run_rank

    configure("DEBUG" if options.debug else "INFO")
    place = place_from_mpi() if options.mpi else place_from_environment()
    parameters = adapted(load_parameters(options.config), options)
    _notice(parameters, place)
    run_options = RunOptions(
        limit=options.num_events,
        resume_from=options.resume_from,
        resume_file=options.resume_file,
    )
    return run_rank(parameters, place, run_options)


def adapted(parameters: "Parameters", options: argparse.Namespace) -> "Parameters":
    """Return a configuration with what the command line says otherwise.

    Raises:
        InvalidConfigError: it shall be continued, and nothing tells how far it came.
    """
    from lclstream.core.errors import InvalidConfigError
    from lclstream.streamer.config import BinaryFileWritingDataHandlerConfig

    changes: dict[str, object] = {}
    if options.workers is not None:
        changes["workers"] = options.workers
    if options.resume:
        writers = [
            each
            for each in parameters.data_handlers
            if isinstance(each, BinaryFileWritingDataHandlerConfig)
        ]
        if not writers and options.resume_file is None:
            raise InvalidConfigError(
                "--resume continues from the manifests of files, and no handler writes files: give"
                " --resume-file, or --resume-from"
            )
        changes["data_handlers"] = [
            each.model_copy(update={"resume": True, "overwrite": False})
            if each in writers
            else each
            for each in parameters.data_handlers
        ]
    return parameters.model_copy(update=changes)


def _notice(parameters: "Parameters", place: "Place") -> None:
    # Every rank reads the same file; one says it.
    for notice in parameters.notices if place.rank == 0 else ():
        logger.warning("configuration_notice", extra={"notice": notice})


def check(options: argparse.Namespace) -> int:
    """Load a configuration and say what is wrong with it."""
    from lclstream.streamer.config import load_parameters

    parameters = load_parameters(options.config)
    for notice in parameters.notices:
        print(f"notice: {notice}", file=sys.stderr)  # noqa: T201
    print(f"{options.config}: no problems found")  # noqa: T201
    return 0


def convert(options: argparse.Namespace) -> int:
    """Print a configuration in the present form."""
    from lclstream.streamer.config import load_parameters

    parameters = load_parameters(options.config)
    for notice in parameters.notices:
        print(f"notice: {notice}", file=sys.stderr)  # noqa: T201
    print(json.dumps(parameters.model_dump(mode="json"), indent=2))  # noqa: T201
    return 0


def inspect(options: argparse.Namespace) -> int:
    """Print what files hold."""
    if options.source.endswith((".h5", ".hdf5", ".cxi", ".nxs")):
        from lclstream.streamer.sources.hdf5 import describe
    else:
        from lclstream.streamer.sources.xtc2_info import describe
    for line in describe(options.source):
        print(line)  # noqa: T201
    return 0


def list_types(options: argparse.Namespace) -> int:
    """Print what a configuration can name."""
    from lclstream.streamer.config.catalogue import describe_all, describe_one

    print(describe_one(options.type) if options.type else describe_all())  # noqa: T201
    return 0


def _parser(
    group: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    summary: str,
    description: str,
    epilog: str,
) -> argparse.ArgumentParser:
    return group.add_parser(
        name, help=summary, description=description, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a number, 1 or more, got {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a number, 0 or more, got {text!r}")
    return int(text)
