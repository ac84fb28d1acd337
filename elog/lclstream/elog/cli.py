"""`lclstream elog`: watch run events, and play the logbook for a demonstration."""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `elog` to the `lclstream` command."""
    parser = commands.add_parser(
        "elog",
        help="turn run events of the electronic logbook into Airflow DAG runs",
        description="What connects the electronic logbook (Elog) with Airflow.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_watch(verbs)
    _add_definitions(verbs)
    _add_standin(verbs)
    _add_play(verbs)


def _add_watch(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser(
        "watch",
        help="watch Kafka and start DAG runs",
        description=(
            "Read the logbook's run events from Kafka and make one DAG run in Airflow for each "
            "workflow definition that waits for one. Run several with the same configuration: "
            "they share the work, and one takes over when another dies."
        ),
        epilog="example: lclstream elog watch /etc/lclstream/watch.yaml",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
    parser.add_argument("--check", action="store_true", help="check the configuration and end")
    parser.set_defaults(run=watch)


def _add_definitions(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser(
        "definitions",
        help="check workflow definitions and list them",
        description=(
            "Read files with workflow definitions, or folders of such files, and print what each "
            "waits for and starts. All faults are reported at once."
        ),
        epilog="example: lclstream elog definitions dags/workflows",
    )
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="file or folder")
    parser.set_defaults(run=definitions)


def _add_standin(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser(
        "standin",
        help="run a logbook for demonstrations and tests",
        description=(
            "Serve the calls of the logbook that LCLStream uses, over HTTPS with client "
            "certificates, and publish on Kafka what the real one publishes. Nothing is kept "
            "when it ends. Its address shows a page with runs, entries and counters."
        ),
        epilog=(
            "example: lclstream elog standin --kafka 127.0.0.1:9092 --identity elog-identity "
            "--ready-file elog.json"
        ),
    )
    parser.add_argument("config", type=Path, nargs="?", metavar="CONFIG", help="YAML file")
    parser.add_argument("--kafka", metavar="HOST:PORT", help="broker to publish to")
    parser.add_argument("--identity", type=Path, metavar="FOLDER", help="certificate and key")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default: any free one)")
    parser.add_argument("--ready-file", type=Path, metavar="FILE", help="gets the URL when ready")
    parser.set_defaults(run=standin)


def _add_play(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = verbs.add_parser(
        "play",
        help="play one run: begin, wait, end",
        description=(
            "Do to a logbook what a beamline does: make the experiment if it is new, begin a "
            "run, wait, and end it. Prints the run's number when it has begun."
        ),
        epilog=(
            "example: lclstream elog play --url https://127.0.0.1:8443 --identity me "
            "--experiment mfx101332224 --seconds 10 --param stream=on"
        ),
    )
    parser.add_argument("--url", required=True, help="address of the logbook")
    parser.add_argument("--identity", type=Path, required=True, metavar="FOLDER", help="who plays")
    parser.add_argument("--experiment", required=True, help="name, such as mfx101332224")
    parser.add_argument("--instrument", default="MFX", help="for a new experiment (default MFX)")
    parser.add_argument("--run-number", type=int, metavar="N", help="default: the next one")
    parser.add_argument("--run-type", default="DATA", help="default DATA")
    parser.add_argument(
        "--seconds", type=float, default=10.0, metavar="S", help="length of the run (default 10)"
    )
    parser.add_argument(
        "--param", action="append", default=[], metavar="NAME=VALUE", help="run parameter (YAML)"
    )
    parser.set_defaults(run=play)


def watch(options: argparse.Namespace) -> int:
    """Run the watcher until it is asked to stop."""
    from lclstream.core.lifecycle import serve
    from lclstream.core.logging import configure
    from lclstream.elog.config import load_config
    from lclstream.elog.service import watch_service

    config = load_config(options.config)
    service = watch_service(config)
    if options.check:
        sys.stdout.write(f"{options.config} is usable\n")
        return 0
    configure()
    return asyncio.run(serve(service))


def definitions(options: argparse.Namespace) -> int:
    """Print workflow definitions, one line of JSON each."""
    from lclstream.elog.definitions import read_definitions

    for each in read_definitions(options.paths):
        document = each.model_dump(mode="json", exclude_defaults=True)
        sys.stdout.write(json.dumps(document) + "\n")
    return 0


def standin(options: argparse.Namespace) -> int:
    """Run the stand-in until it is asked to stop."""
    from lclstream.core.lifecycle import serve
    from lclstream.core.logging import configure
    from lclstream.elog.standin.config import standin_config
    from lclstream.elog.standin.service import standin_service

    given: dict[str, Any] = {
        "kafka": options.kafka,
        "identity": options.identity,
        "host": options.host,
        "port": options.port,
        "ready_file": options.ready_file,
    }
    config = standin_config(
        options.config, {name: value for name, value in given.items() if value is not None}
    )
    configure()
    return asyncio.run(serve(standin_service(config)))


def play(options: argparse.Namespace) -> int:
    """Play one run."""
    from lclstream.elog.play import play_run, read_parameters

    play_run(
        options.url,
        options.identity,
        experiment=options.experiment,
        instrument=options.instrument,
        run=options.run_number,
        run_type=options.run_type,
        parameters=read_parameters(options.param),
        seconds=options.seconds,
        out=sys.stdout,
    )
    return 0
