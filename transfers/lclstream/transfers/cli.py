"""The verbs of `lclstream transfer`."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lclstream.transfers.client import TransfersClient
    from lclstream.transfers.models import TransferInfo

DESCRIPTION = """\
Ask for streams of detector data, and watch, drain and end them.

A transfer is one stream: producers read and send events, a buffer takes the messages in and gives
each to one consumer. The service starts all of it as jobs at its sites and keeps the ledger that
says whether every message has arrived.

All verbs but `serve` talk to a running service: give --server and --identity, or set
LCLSTREAM_SERVER and LCLSTREAM_IDENTITY.
"""
SERVE_EXAMPLE = """\
example of a CONFIG (YAML or JSON); relative paths start at its folder:
  identity: identities/transfers     # folder with id.crt, id.key, ca.crt
  authority: authority               # signs the certificates of jobs
  database: transfers.db
  port: 4433
  admins: ["uid:mona"]
  sites:
    - sites/s3df.yaml                # a site in a file of its own, or written here:
    - name: hpc
      jobs: https://127.0.0.1:4443   # its jobs service
      backend: slurm
      launcher: srun -n {ranks}
      environment: {PATH: "/opt/lclstream/bin:/usr/bin:/bin"}
"""
CREATE_EXAMPLE = """\
example:
  lclstream transfer create request.yaml
with request.yaml:
  experiment: mfx101332224
  run: 42
  producers: 3
  streamer: {event_source: {type: InternalEventSource, ...}, data_sources: ..., ...}
or a bare streamer configuration. Prints the id; then:
  lclstream transfer watch ID
"""
EXIT_NOT_COMPLETED = 1
WATCH_WAIT_S = 1.0

Commands = Any  # argparse names the type of its sub-parsers only in private.


def add_commands(commands: Commands) -> None:
    """Add `transfer` and its verbs."""
    parser = commands.add_parser(
        "transfer",
        help="ask for streams, watch and end them",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=lambda _: parser.print_help() or 0)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    serve = _verb(verbs, "serve", serve_transfers, "run the transfers service", SERVE_EXAMPLE)
    serve.add_argument("config", type=Path, metavar="CONFIG", help="configuration, YAML or JSON")
    serve.add_argument("--log-level", default="INFO", help="least level of logged events")
    create = _client_verb(verbs, "create", create_transfer, "ask for a stream", CREATE_EXAMPLE)
    create.add_argument("request", type=Path, metavar="FILE", help="what to stream, YAML or JSON")
    create.add_argument("--key", help="asking again with the same key gives the same transfer")
    create.add_argument("--hold", action="store_true", help="only reserve it, start nothing")
    listing = _client_verb(
        verbs, "ls", list_transfers, "list your transfers, newest first", _example("ls --all")
    )
    listing.add_argument("--all", action="store_true", help="ended ones too")
    listing.add_argument("--limit", type=int, default=20, help="how many (default: %(default)s)")
    for name, function, text in (
        ("show", show_transfer, "show a transfer, its jobs and its ledger, one line per hop"),
        ("watch", watch_transfer, "follow a transfer to its end; exit 1 unless it completed"),
        ("drain", drain_transfer, "take in no more data, deliver the rest, end"),
        ("cancel", cancel_transfer, "end a transfer"),
        ("logs", show_logs, "print the logs of a transfer's jobs"),
    ):
        verb = _client_verb(verbs, name, function, text, _example(f"{name} 7"))
        verb.add_argument("id", type=int, metavar="ID", help="as `create` and `ls` print it")
        if name == "cancel":
            text = "do not let consumers take what the buffer holds"
            verb.add_argument("--now", action="store_true", help=text)
        if name == "logs":
            text = "only of this job, as `show` prints it"
            verb.add_argument("jobid", nargs="?", metavar="JOBID", help=text)


def _example(words: str) -> str:
    return f"example: lclstream transfer {words}"


def _verb(
    verbs: Commands, name: str, function: Any, text: str, epilog: str
) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(run=function)
    return verb


def _client_verb(
    verbs: Commands, name: str, function: Any, text: str, epilog: str
) -> argparse.ArgumentParser:
    verb = _verb(verbs, name, function, text, epilog)
    verb.add_argument(
        "--server",
        default=os.environ.get("LCLSTREAM_SERVER"),
        metavar="URL",
        help="the service, https://HOST:PORT (default: $LCLSTREAM_SERVER)",
    )
    verb.add_argument(
        "--identity",
        type=Path,
        default=os.environ.get("LCLSTREAM_IDENTITY"),
        metavar="DIR",
        help="folder with your id.crt, id.key and ca.crt (default: $LCLSTREAM_IDENTITY)",
    )
    return verb


def _connect(options: argparse.Namespace) -> "TransfersClient":
    from lclstream.core.errors import InvalidConfigError
    from lclstream.transfers.client import TransfersClient

    problems = []
    if not options.server:
        problems.append("--server: is required, or set LCLSTREAM_SERVER")
    elif not str(options.server).startswith("https://"):
        problems.append(f"--server: must begin with https://, got {options.server!r}")
    if not options.identity:
        problems.append("--identity: is required, or set LCLSTREAM_IDENTITY")
    if problems:
        raise InvalidConfigError("cannot reach the transfers service", problems)
    return TransfersClient(options.server, Path(options.identity))


def serve_transfers(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    import asyncio

    from lclstream.core import logging
    from lclstream.core.lifecycle import serve
    from lclstream.transfers.config import load_config
    from lclstream.transfers.service import TransfersService

    logging.configure(options.log_level)
    config, sites = load_config(options.config)

    async def work() -> int:
        return await serve(TransfersService(config, sites))

    return asyncio.run(work())


def create_transfer(options: argparse.Namespace) -> int:
    """Ask for a transfer and print its id."""
    from lclstream.core.models import parse, read_document
    from lclstream.transfers.models import TransferRequest

    document = read_document(options.request)
    if isinstance(document, dict) and "streamer" not in document:
        document = {"streamer": document}
    if options.hold and isinstance(document, dict):
        document = {**document, "hold": True}
    request = parse(TransferRequest, document, str(options.request))
    with _connect(options) as client:
        status = client.create(request, key=options.key)
    _say(str(status.id))
    return 0


def list_transfers(options: argparse.Namespace) -> int:
    """Print one line for each transfer."""
    with _connect(options) as client:
        found = client.list(limit=options.limit, final=options.all)
    _say(f"{'ID':>6} {'PHASE':<10} {'EXPERIMENT':<16} {'RUN':<6} {'OWNER':<16} REASON")
    for each in found:
        experiment = f"{each.experiment or '-':<16} {str(each.run) or '-':<6}"
        _say(f"{each.id:>6} {each.phase.value:<10} {experiment} {each.user:<16} {each.reason}")
    return 0


def show_transfer(options: argparse.Namespace) -> int:
    """Print all about a transfer."""
    with _connect(options) as client:
        _say("\n".join(lines_of(client.get(options.id))))
    return 0


def watch_transfer(options: argparse.Namespace) -> int:
    """Print a line whenever something has changed, and all at the end."""
    from lclstream.transfers.states import Phase

    with _connect(options) as client:
        info = client.get(options.id)
        line = progress(info)
        _say(line)
        while not info.is_final:
            info = client.wait(info.id, info.version, WATCH_WAIT_S)
            if progress(info) != line:
                line = progress(info)
                _say(f"{time.strftime('%H:%M:%S')} {line}")
    _say("\n".join(lines_of(info)))
    return 0 if info.phase is Phase.COMPLETED else EXIT_NOT_COMPLETED


def drain_transfer(options: argparse.Namespace) -> int:
    """Drain a transfer."""
    with _connect(options) as client:
        _say(f"transfer {options.id} is {client.drain(options.id).phase.value}")
    return 0


def cancel_transfer(options: argparse.Namespace) -> int:
    """Cancel a transfer."""
    with _connect(options) as client:
        client.cancel(options.id, now=options.now)
        _say(f"transfer {options.id} is {client.get(options.id).phase.value}")
    return 0


def show_logs(options: argparse.Namespace) -> int:
    """Print the logs of the transfer's jobs."""
    with _connect(options) as client:
        jobs = [job for job in client.get(options.id).jobs if job.jobid]
        for job in jobs:
            if options.jobid not in (None, job.jobid):
                continue
            for name, text in client.logs(options.id, job.jobid).items():
                _say(f"==> {job.role.value} {job.name}-{job.index} ({job.jobid}) {name} <==")
                _say(text.rstrip("\n"))
    return 0


def progress(info: "TransferInfo") -> str:
    """Return one line about how far a transfer has come."""
    hops = ", ".join(f"{hop.name} {hop.tally.messages}" for hop in info.ledger.hops)
    return f"{info.phase.value:<10} messages: {hops}; buffered {info.metrics.buffered}"


def lines_of(info: "TransferInfo") -> list[str]:
    """Return a transfer as text: what it is, its jobs, its ledger, its verdict."""
    what = " ".join(str(part) for part in (info.experiment, info.run) if part != "")
    lines = [
        f"transfer {info.id} {info.phase.value}" + (f" ({what})" if what else ""),
        f"owner    {info.user}",
        f"url      {info.url or '-'}",
    ]
    lines += [f"reason   {info.reason}"] if info.reason else []
    lines.append("jobs")
    for job in info.jobs:
        name = f"{job.role.value} {job.name}-{job.index}"
        note = f" ({job.info})" if job.info else ""
        lines.append(f"  {name:<28} {job.site:<10} {job.jobid or '-':<16} {job.state.value}{note}")
    lines.append("ledger")
    for hop in info.ledger.hops:
        tally = hop.tally
        events = f"{tally.events} events" if tally.events else ""
        digest = tally.digest or "not computed"
        counts = f"{tally.messages} messages  {tally.bytes} bytes  digest {digest}"
        lines.append(f"  {hop.name:<20} {hop.peers} processes  {counts}  {events}".rstrip())
    return [*lines, f"  {_verdict(info)}"]


def _verdict(info: "TransferInfo") -> str:
    if info.ledger.balanced is None:
        return "open: something is still on its way" if not info.is_final else "nobody reported"
    return "balanced" if info.ledger.balanced else f"differs: {info.ledger.difference}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
