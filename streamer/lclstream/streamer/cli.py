"""The `lclstream streamer` command."""

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lclstream.streamer.verbs import add_parser, add_verbs, positive

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters
    from lclstream.streamer.rank import Place

logger = logging.getLogger(__name__)

PROGRESS_S = 5.0
DEBUG_VARIABLE = "LCLSTREAMER_DEBUG"
DEFAULT_CONFIG = Path("lclstreamer.yaml")

DESCRIPTION = """\
Read detector events, batch them, turn each batch into messages (HDF5 files in memory, or another
format) and send these to sockets or write them to files, as a configuration file says. Reads the
configurations of every version of lclstreamer.
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
    streamer = add_parser(commands, "streamer", "read events and stream them", DESCRIPTION, EXAMPLE)
    verbs = streamer.add_subparsers(title="verbs", metavar="VERB", required=True)

    verb = add_parser(
        verbs, "run", "stream events", RUN_DESCRIPTION,
        "example:\n  mpiexec -n 4 lclstream streamer run -c lclstreamer.yaml -n 100\n",
    )  # fmt: skip
    add_run_options(verb)

    add_verbs(verbs)


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
        "--workers", type=positive, metavar="N",
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
        "--progress", type=_seconds, nargs="?", const=PROGRESS_S, default=0.0, metavar="SECONDS",
        help="write a line about each rank this often: events, rates, which stage is busy, what"
        f" waits (default when given: {PROGRESS_S:g})",
    )  # fmt: skip
    parser.add_argument(
        "--metrics", default="", metavar="HOST:PORT",
        help="tell the same by HTTP: /metrics for Prometheus, /v1/statistics as JSON; port 0 ="
        " any free one, which the log says; rank r adds r to another one",
    )  # fmt: skip
    parser.add_argument(
        "--mpi", action="store_true",
        help="ask the MPI library for rank and size, instead of the environment",
    )  # fmt: skip
    parser.add_argument(
        "--debug", "-d", action="store_true", default=_asked_for(os.environ.get(DEBUG_VARIABLE)),
        help=f"log more; {DEBUG_VARIABLE}=1 in the environment does the same",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Stream as one rank."""
    from lclstream.core import quiet

    quiet.begin()
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
        metrics=options.metrics,
        progress_s=options.progress,
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
    from lclstream.streamer.config.checks import advice_for_ranks

    # Every rank reads the same file; one says it.
    notices = [*parameters.notices, *advice_for_ranks(parameters, place.size)]
    for notice in notices if place.rank == 0 else ():
        logger.warning("configuration_notice", extra={"notice": notice})


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"must be a time in seconds, got {text!r}")
    return seconds


def _asked_for(value: str | None) -> bool:
    return value is not None and value.lower() not in ("", "0", "false", "no", "off")


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a number, 0 or more, got {text!r}")
    return int(text)
