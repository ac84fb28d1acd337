"""`lclstream buffer`: run the message buffer of a transfer, or one alone."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lclstream.buffer.console import Ends

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
programs (Push0, Pull0) or ZeroMQ programs (PUSH, PULL) that connect. Messages are held in
memory up to --memory; then producers wait, or messages go to files with --spill. The end of
the stream reaches the consumers when the buffer drains: on request of its transfer or with
`lclstream buffer drain`, on SIGTERM, or when the expected producers have come and gone.
"""

EPILOG = """\
examples:
  lclstream buffer serve --in tcp://127.0.0.1:42000 --out tcp://127.0.0.1:42001 \\
      --expect-producers 2                     two ranks push, any number of consumers pull
  lclstream buffer serve --delivery safe --lanes 4 --control unix:/run/user/1000/buffer
                                               four processes; watch it: lclstream buffer top

exit status: 0 everything was delivered, 1 something was not, 2 wrong configuration.
In a job of a transfer (LCLSTREAM_REPORT_URL is set) it reports to the transfer and obeys it.
The first line on standard output is that of --ready-file, the last one a report in JSON.
"""

PUSH_EXAMPLE = """\
examples:
  lclstream buffer push tcp://dtn.example.org:42000 a.h5 b.h5        two messages
  seq 100 | lclstream buffer push tcp://127.0.0.1:42000 --lines -    a hundred messages
"""
PULL_EXAMPLE = """\
examples:
  lclstream buffer pull tcp://127.0.0.1:42001 --out run7       run7/000000, run7/000001, ...
  lclstream buffer pull tcp://127.0.0.1:42001 --lines          messages that are text
  lclstream buffer pull URL | lclstream buffer push URL --framed -       from one to another
"""
WATCH_EXAMPLE = """\
examples:
  lclstream buffer {verb} unix:/run/user/1000/buffer
  lclstream buffer {verb} https://dtn.example.org:42002 --identity ~/identity
"""

CommandGroup = argparse._SubParsersAction  # noqa: SLF001 - argparse gives it no public name


def size_bytes(text: str) -> int:
    """Read a size like `256MiB`, `1.5 GB` or `4096`."""
    match = SIZE.fullmatch(text.strip())
    if not match or match[2].upper() not in UNITS:
        raise argparse.ArgumentTypeError(
            f"expected a number and one of B, kB, MB, GB, KiB, MiB, GiB, got {text!r}"
        )
    return int(float(match[1]) * UNITS[match[2].upper()])


def add_commands(commands: "CommandGroup[argparse.ArgumentParser]") -> None:
    """Add `lclstream buffer`."""
    parser = commands.add_parser(
        "buffer",
        help="run the message buffer between producers and consumers",
        description="The message buffer between producers and consumers: run one, watch it, "
        "tell it to end, and send or receive messages by hand.",
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
    _add_delivery(serve)
    _add_protection(serve)
    _add_ending(serve)
    serve.set_defaults(run=run_serve)
    _add_push(verbs)
    _add_pull(verbs)
    _add_watching(verbs)


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
        help='write {"in": [URL], "out": [URL], "control": [URL]} to this file when the buffer '
        "listens",
    )
    parser.add_argument(
        "--control",
        action="append",
        default=[],
        metavar="URL",
        help="where to be watched and told to end: unix:PATH in a folder of yours, or "
        "https://HOST:PORT (needs --tls); may be repeated",
    )
    parser.add_argument(
        "--forward",
        action="append",
        default=[],
        metavar="URL",
        help="dial this buffer and pass messages on to it, with acknowledgements; tls+tcp:// "
        "shows the certificate of --tls; may be repeated: each message goes to one of them",
    )
    parser.add_argument(
        "--forward-connections",
        type=int,
        default=8,
        metavar="K",
        help="how many connections to each of them; 0: as many as --forward-rate needs over "
        "the distance (default: %(default)s)",
    )
    parser.add_argument(
        "--forward-rate",
        type=size_bytes,
        default="1.25GB",
        metavar="SIZE",
        help="what should go to each of them in a second; what cannot is logged "
        "(default: %(default)s)",
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


def _add_delivery(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--delivery",
        choices=["fast", "safe"],
        default="fast",
        help="what happens to messages that are with a consumer when it leaves: they are gone "
        "with it, or go to another one unless it has acknowledged them (default: %(default)s)",
    )
    parser.add_argument(
        "--lanes",
        type=int,
        default=1,
        metavar="N",
        help="processes that messages go through, one core each; --memory is shared out among "
        "them (default: %(default)s)",
    )
    parser.add_argument(
        "--spill",
        type=Path,
        metavar="DIR",
        help="put messages that do not fit into memory into files here",
    )
    parser.add_argument(
        "--spill-limit",
        type=size_bytes,
        default="0",
        metavar="SIZE",
        help="bound on those files; 0: the disk (default: %(default)s)",
    )
    parser.add_argument(
        "--durable",
        type=Path,
        metavar="DIR",
        help="keep all messages in files here until they are delivered: started again with the "
        "same folder, a buffer that was killed goes on",
    )
    parser.add_argument(
        "--sentinel",
        action="store_true",
        help="end each consumer's stream with an empty message",
    )
    parser.add_argument(
        "--digest",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compute a digest of all messages; costs processor time (default: if delivery is "
        "safe)",
    )


def _add_protection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tls",
        type=Path,
        metavar="DIR",
        help="identity folder: take connections inside TLS from peers with a certificate too",
    )
    parser.add_argument(
        "--require-tls", action="store_true", help="take no connections without TLS"
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NAME",
        help="name in the certificates of peers that may connect; may be repeated (default: any)",
    )
    parser.add_argument(
        "--allow-control",
        action="append",
        default=[],
        metavar="NAME",
        help="name in the certificates of those who may tell it to end over https; may be "
        "repeated (default: nobody)",
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
        ("--resume-timeout", 30.0, "how long a producer of ours may take to connect again"),
        ("--ack-timeout", 0.0, "cut a consumer that acknowledges nothing for so long; 0: never"),
        ("--fail-over", 10.0, "after how long the others of several --forward get its share"),
        ("--dead-after", 30.0, "how long the host of a peer may be silent"),
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


def _add_push(verbs: "CommandGroup[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser(
        "push",
        help="send files, lines or records to a buffer",
        description="Send each file as one message, or what is in it. Ends with 0 only when "
        "every byte has arrived; with --delivery safe, when the buffer has taken it over.",
        epilog=PUSH_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="URL", help="where the buffer takes messages")
    parser.add_argument("files", nargs="+", metavar="FILE", help="file to send; - is stdin")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--lines", action="store_true", help="each line is a message")
    form.add_argument(
        "--framed",
        action="store_true",
        help="messages have their length before them (8 bytes, big endian), as `pull` writes them",
    )
    parser.add_argument(
        "-k",
        "--connections",
        type=int,
        default=1,
        metavar="K",
        help="how many connections to use (default: %(default)s)",
    )
    _add_end(parser)
    parser.set_defaults(run=run_push)


def _add_pull(verbs: "CommandGroup[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser(
        "pull",
        help="receive messages from a buffer",
        description="Receive messages to the end of the stream and write them to files, or to "
        "standard output, each with its length before it (8 bytes, big endian).",
        epilog=PULL_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="URL", help="where the buffer gives messages")
    parser.add_argument(
        "-n", type=int, dest="at_most", metavar="N", help="end after so many messages"
    )
    parser.add_argument(
        "--out", default="-", metavar="DIR", help="folder for the files; - is stdout (default)"
    )
    parser.add_argument(
        "--lines", action="store_true", help="to standard output: put a line end after each"
    )
    _add_end(parser)
    parser.set_defaults(run=run_pull)


def _add_end(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--delivery",
        choices=["fast", "safe"],
        default="fast",
        help="safe: with acknowledgements, so that nothing is lost if one side fails "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="give up when nothing moves for so long"
    )
    parser.add_argument(
        "--tls", type=Path, metavar="DIR", help="identity folder, for addresses tls+tcp://..."
    )


def _add_watching(verbs: "CommandGroup[argparse.ArgumentParser]") -> None:
    stat = _add_watcher(verbs, "stat", "print the figures of a buffer", run_stat)
    stat.add_argument(
        "--prometheus", action="store_true", help="as Prometheus reads them, instead of JSON"
    )
    drain = _add_watcher(verbs, "drain", "have a buffer deliver everything, then end", run_drain)
    drain.add_argument("--reason", default="asked to drain", help="for its report")
    drain.add_argument(
        "--deadline", type=float, metavar="S", help="end in any case after so many seconds"
    )
    drain.add_argument(
        "--now", action="store_true", help="end at once; what is not delivered is counted"
    )
    top = _add_watcher(verbs, "top", "watch a buffer at work; q ends", run_top)
    top.add_argument("--once", action="store_true", help="print the table once")
    top.add_argument(
        "--interval",
        type=float,
        default=1.0,
        metavar="S",
        help="seconds between two looks (default: %(default)s)",
    )


def _add_watcher(
    verbs: "CommandGroup[argparse.ArgumentParser]",
    verb: str,
    text: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        verb,
        help=text,
        description=f"{text[0].upper()}{text[1:]}. The address is what the buffer announces as "
        "`control`.",
        epilog=WATCH_EXAMPLE.format(verb=verb),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="URL", help="unix:PATH or https://HOST:PORT")
    parser.add_argument(
        "--identity", type=Path, metavar="DIR", help="your identity folder, for https"
    )
    parser.set_defaults(run=run)
    return parser


def run_serve(args: argparse.Namespace) -> int:
    """Run `lclstream buffer serve`."""
    from lclstream.buffer.addresses import Address
    from lclstream.buffer.config import BufferConfig, Delivery
    from lclstream.buffer.control_address import ControlAddress
    from lclstream.buffer.service import ServiceConfig, serve
    from lclstream.buffer.transport import server_context
    from lclstream.core.logging import configure
    from lclstream.core.tls import Credentials

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
        resume_timeout_s=args.resume_timeout,
        ack_timeout_s=args.ack_timeout,
        dead_after_s=args.dead_after,
        fail_over_s=args.fail_over,
        delivery=Delivery(args.delivery),
        digest=args.digest,
        sentinel=args.sentinel,
        tls=server_context(Credentials.from_folder(args.tls)) if args.tls else None,
        require_tls=args.require_tls,
        allowed_names=tuple(args.allow),
        spill=args.spill,
        spill_bytes=args.spill_limit,
        durable=args.durable,
        forward=tuple(Address.parse(text) for text in args.forward),
        forward_connections=args.forward_connections,
        forward_rate_bytes=args.forward_rate,
    )
    service = ServiceConfig(
        ready_file=args.ready_file,
        term_timeout_s=args.term_timeout,
        lanes=args.lanes,
        identity=args.tls,
        control=tuple(ControlAddress.parse(text) for text in args.control),
        controllers=tuple(args.allow_control),
    )
    return serve(config, service)


def run_push(args: argparse.Namespace) -> int:
    """Run `lclstream buffer push`."""
    from lclstream.buffer.console import Form, push

    form = Form.LINES if args.lines else Form.FRAMED if args.framed else Form.WHOLE
    count = push(_ends(args), args.files, form, args.timeout)
    sys.stderr.write(f"{count} messages sent\n")
    return 0


def run_pull(args: argparse.Namespace) -> int:
    """Run `lclstream buffer pull`."""
    from lclstream.buffer.console import Form, pull

    count = pull(
        _ends(args),
        output=args.out,
        form=Form.LINES if args.lines else Form.FRAMED,
        at_most=args.at_most,
        timeout_s=args.timeout,
        stdout=sys.stdout.buffer,
    )
    sys.stderr.write(f"{count} messages received\n")
    return 0


def _ends(args: argparse.Namespace) -> "Ends":
    from lclstream.buffer.config import Delivery
    from lclstream.buffer.console import Ends

    return Ends(
        urls=(args.url,),
        delivery=Delivery(args.delivery),
        identity=args.tls,
        connections=getattr(args, "connections", 1),
    )


def run_stat(args: argparse.Namespace) -> int:
    """Run `lclstream buffer stat`."""
    from lclstream.buffer.console import stat

    stat(args.url, args.identity, prometheus=args.prometheus)
    return 0


def run_drain(args: argparse.Namespace) -> int:
    """Run `lclstream buffer drain`."""
    from lclstream.buffer.console import drain

    drain(args.url, args.identity, reason=args.reason, deadline_s=args.deadline, now=args.now)
    return 0


def run_top(args: argparse.Namespace) -> int:
    """Run `lclstream buffer top`."""
    from lclstream.buffer.console import top

    top(args.url, args.identity, once=args.once, interval_s=args.interval)
    return 0
