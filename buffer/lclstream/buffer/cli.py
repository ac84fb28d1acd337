"""`lclstream buffer`: run the message buffer of a transfer, or one alone."""

import argparse
import re
from pathlib import Path

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")

DESCRIPTION = """\
Take messages from producers and give each one to exactly one consumer.

Producers push to the addresses of --in, consumers pull from those of --out; both may be NNG
programs (Push0, Pull0). Messages are held in memory up to --memory; then producers wait.
The end of the stream reaches the consumers when the buffer drains: on request of its
transfer, on SIGTERM, or when the expected producers have come and gone.
"""

EPILOG = """\
example, two ranks push and any number of consumers pull:
  lclstream buffer serve --in tcp://127.0.0.1:42000 --out tcp://127.0.0.1:42001 \\
      --expect-producers 2

exit status: 0 everything was delivered, 1 something was not, 2 wrong configuration.
In a job of a transfer (LCLSTREAM_REPORT_URL is set) it reports to the transfer and obeys it.
The last line on standard output is a report in JSON.
"""


def size_bytes(text: str) -> int:
    """Read a size like `256MiB`, `1.5 GB` or `4096`."""
    match = SIZE.fullmatch(text.strip())
    if not match or match[2].upper() not in UNITS:
        raise argparse.ArgumentTypeError(
            f"expected a number and one of B, kB, MB, GB, KiB, MiB, GiB, got {text!r}"
        )
    return int(float(match[1]) * UNITS[match[2].upper()])


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `lclstream buffer`."""
    parser = commands.add_parser(
        "buffer",
        help="run the message buffer between producers and consumers",
        description="The message buffer between producers and consumers.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    serve = verbs.add_parser(
        "serve",
        help="run a buffer until its stream has ended",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_addresses(serve)
    _add_bounds(serve)
    _add_ending(serve)
    serve.set_defaults(run=run_serve)


def _add_addresses(parser: argparse.ArgumentParser) -> None:
    form = "tcp://HOST:PORT, tcp://HOST:FIRST-LAST (first free port) or PORT; port 0 = any"
    for option, name, who in (("--in", "inputs", "producers"), ("--out", "outputs", "consumers")):
        parser.add_argument(
            option,
            dest=name,
            metavar="URL",
            action="append",
            help=f"where {who} connect to: {form}; may be repeated (default: 0, on 127.0.0.1)",
        )
    parser.add_argument(
        "--advertise", metavar="HOST", help="host name in the addresses told to others"
    )
    parser.add_argument(
        "--ready-file",
        type=Path,
        metavar="PATH",
        help='write {"in": [URL], "out": [URL]} to this file when the buffer listens',
    )


def _add_bounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--memory",
        type=size_bytes,
        default="256MiB",
        metavar="SIZE",
        help="bound on everything that is held (default: %(default)s)",
    )
    parser.add_argument(
        "--max-message",
        type=size_bytes,
        default="1GiB",
        metavar="SIZE",
        help="cut off a producer that announces a larger message (default: %(default)s)",
    )


def _add_ending(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--expect-producers",
        type=int,
        default=0,
        metavar="N",
        help="drain when N connections have delivered messages and all are gone; 0: wait to be "
        "told (default: %(default)s)",
    )
    for option, default, text in (
        ("--grace", 2.0, "how long all expected producers must have been gone"),
        ("--max-idle", 0.0, "drain when nothing happened for so long; 0: never"),
        ("--stall-timeout", 60.0, "while draining: give up when no byte has moved for so long"),
        ("--consumer-timeout", 600.0, "while draining: how long to wait for a consumer"),
        ("--linger", 10.0, "how long late consumers of an empty stream still get its end"),
        ("--term-timeout", 25.0, "how long SIGTERM lets it drain; a second one ends at once"),
    ):
        parser.add_argument(
            option,
            type=float,
            default=default,
            metavar="S",
            help=f"{text} (seconds, default: %(default)s)",
        )


def run_serve(args: argparse.Namespace) -> int:
    """Run `lclstream buffer serve`."""
    from lclstream.buffer.addresses import Address
    from lclstream.buffer.config import BufferConfig
    from lclstream.buffer.service import ServiceConfig, serve
    from lclstream.core.logging import configure

    configure()
    config = BufferConfig(
        inputs=tuple(Address.parse(text) for text in args.inputs or ["0"]),
        outputs=tuple(Address.parse(text) for text in args.outputs or ["0"]),
        advertised_host=args.advertise,
        memory_bytes=args.memory,
        max_message_bytes=args.max_message,
        expect_producers=args.expect_producers,
        grace_s=args.grace,
        max_idle_s=args.max_idle,
        stall_timeout_s=args.stall_timeout,
        consumer_timeout_s=args.consumer_timeout,
        linger_s=args.linger,
    )
    service = ServiceConfig(ready_file=args.ready_file, term_timeout_s=args.term_timeout)
    return serve(config, service)
