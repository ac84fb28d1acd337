"""The commands `lclstream pull`, `push` and `get`."""

import argparse
import sys
import textwrap
from pathlib import Path
from typing import BinaryIO, cast

CommandGroup = argparse._SubParsersAction  # noqa: SLF001 - argparse gives it no public name

PULL_EXAMPLE = """examples:
  lclstream pull tcp://dtn.example.org:42001 | tar x        one file per message
  lclstream pull -l tcp://0.0.0.0:3030 -n 2 >run.tar        wait for two producers
"""
PUSH_EXAMPLE = """examples:
  lclstream push -n 1 --addr tcp://dtn.example.org:42000 *.h5     to a buffer
  lclstream push *.h5                                             to whoever pulls from port 3030
"""
GET_EXAMPLE = """example:
  lclstream get stream.yaml --server https://transfers.example.org:4433 \\
      --identity ~/identity >run.tar
"""


def add_commands(commands: "CommandGroup[argparse.ArgumentParser]") -> None:
    """Add `pull`, `push` and `get`."""
    _add_pull(commands)
    _add_push(commands)
    _add_get(commands)


def _add_pull(commands: "CommandGroup[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "pull",
        help="receive a stream as a tar file on stdout",
        description=textwrap.fill(
            "Receive the messages of a stream to its end and write each as one member of "
            "a tar file on stdout. SIGINT and SIGTERM end it early with a complete tar. Without "
            "URL, inside a job of a transfer, it pulls from that transfer and reports to it."
        ),
        epilog=PULL_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("urls", nargs="*", default=[], metavar="URL", help="address to dial")
    where.add_argument("-d", "--dial", action="append", metavar="URL", help="address to dial")
    where.add_argument(
        "-l", "--listen", action="append", metavar="URL", help="address to wait at for producers"
    )
    parser.add_argument(
        "-n",
        "--ndial",
        type=_positive,
        default=1,
        help="connections to each address; with -l the producers that must have come before "
        "the end of all is the end (default: %(default)s)",
    )
    parser.add_argument(
        "--names", default="%05d.h5", help="pattern of the members' names (default: %(default)s)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument(
        "--delivery",
        choices=["fast", "safe"],
        help="safe: tell our buffer which messages are written, so that another consumer gets the "
        "others if this one dies (default: as the transfer that this job is in has it, else fast)",
    )
    parser.set_defaults(run=_pull)


def _add_push(commands: "CommandGroup[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "push",
        help="send files into a stream",
        description=textwrap.fill(
            "Send each file as one message. Ends with 0 only when every byte has "
            "arrived at the other side."
        ),
        epilog=PUSH_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="file to send")
    parser.add_argument(
        "--addr", default="tcp://127.0.0.1:3030", help="address (default: %(default)s)"
    )
    parser.add_argument(
        "-n",
        "--ndial",
        type=int,
        default=0,
        help="connections to dial; 0 waits at the address for whoever pulls (default: %(default)s)",
    )
    parser.add_argument(
        "--delivery",
        choices=["fast", "safe"],
        default="fast",
        help="safe: keep what our buffer has not acknowledged, and send it again if a connection "
        "breaks (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        help="seconds to wait for somebody at the other end (default: %(default)s)",
    )
    parser.set_defaults(run=_push)


def _add_get(commands: "CommandGroup[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "get",
        help="ask for a transfer and receive all of it as a tar file",
        description=textwrap.fill(
            "Ask the transfers service to stream what a configuration says, and write "
            "each message as one member of a tar file on stdout. Ends with 0 only when the service "
            "confirms that everything has arrived. SIGINT, SIGTERM, or closing the pipe cancels "
            "the transfer."
        ),
        epilog=GET_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="streamer configuration, YAML or JSON")
    parser.add_argument("--server", required=True, help="URL of the transfers service")
    parser.add_argument("--identity", type=Path, required=True, help="your identity folder")
    parser.add_argument(
        "-n", "--ndial", type=_positive, default=1, help="ignored; for scripts of older clients"
    )
    parser.add_argument(
        "--names", default="%05d.h5", help="pattern of the members' names (default: %(default)s)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=_get)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, got {text!r}")
    return int(text)


def _pull(options: argparse.Namespace) -> int:
    from lclstream.client.pull import pull_to_tar
    from lclstream.client.receive import Receiver, in_transfer
    from lclstream.client.signals import stop_on_signals
    from lclstream.core.errors import BufferClosedError

    _refuse_terminal()
    urls = options.listen or options.dial or options.urls or None
    acknowledge = None if options.delivery is None else options.delivery == "safe"
    receiver = Receiver(
        urls, listen=bool(options.listen), peers=options.ndial, acknowledge=acknowledge
    )
    progress = None if options.quiet else sys.stderr
    with stop_on_signals(receiver.stop) as signals, _stdout() as file:
        try:
            pull_to_tar(receiver, file, options.names, progress, count_events=in_transfer())
        except BufferClosedError:
            if not signals:
                raise
    return 128 + signals[0] if signals else 0


def _get(options: argparse.Namespace) -> int:
    from lclstream.client.get import Getter
    from lclstream.client.signals import stop_on_signals
    from lclstream.core.errors import BufferClosedError
    from lclstream.core.models import read_document

    _refuse_terminal()
    getter = Getter(options.server, options.identity, read_document(options.config))
    progress = None if options.quiet else sys.stderr
    with stop_on_signals(getter.stop) as signals, _stdout() as file:
        try:
            info = getter.get(file, options.names, progress)
            if progress:
                progress.write(f"transfer {info.id} is {info.phase}\n")
        except BufferClosedError:
            if not signals:
                raise
    return 128 + signals[0] if signals else 0


def _refuse_terminal() -> None:
    from lclstream.core.errors import InvalidConfigError

    if sys.stdout.isatty():
        raise InvalidConfigError("stdout is a terminal: redirect it to a file, or pipe it to tar")


def _stdout() -> BinaryIO:
    # Unbuffered: a message is in the pipe when it is accounted for.
    return cast("BinaryIO", open(sys.stdout.fileno(), "wb", buffering=0, closefd=False))


def _push(options: argparse.Namespace) -> int:
    from lclstream.buffer.endpoints import Push
    from lclstream.core.errors import InvalidConfigError

    missing = [str(path) for path in options.files if not path.is_file()]
    if missing:
        raise InvalidConfigError(f"no such file: {', '.join(missing)}")
    urls = [options.addr] * max(options.ndial, 1)
    with Push(
        urls,
        listen=options.ndial < 1,
        delivery=options.delivery,
        connect_timeout_s=options.timeout,
    ) as push:
        for path in options.files:
            push.send(_content(path))
    sys.stderr.write(f"Sent {len(options.files)} messages\n")
    return 0


def _content(path: Path) -> bytes:
    from lclstream.core.errors import InvalidConfigError

    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidConfigError(f"cannot read {path}: {error.strerror}") from None
