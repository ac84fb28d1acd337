"""`lclstream demo`: a beamline in a box."""

import argparse
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lclstream.demo.beamline import Beamline
    from lclstream.demo.progress import Progress
    from lclstream.demo.run import Outcome
    from lclstream.demo.workflow import Source

EVENTS = 300
RANKS = 3
CONSUMERS = 2

DESCRIPTION = """\
Build a beamline in a box on 127.0.0.1 - logbook, Kafka broker, Airflow, two sites with a jobs
service and a SLURM cluster each, transfers service, watcher - begin a run, and follow it: run
event, DAG, jobs, events per second, buffer fill, drained, ledger. An analysis at the second
site finds Bragg peaks in the stream. The last line says whether every event that was sent was
received; the exit code is 0 if so and 1 if not.
"""

EXAMPLES = """\
examples:
  lclstream demo                                  a simulated detector
  lclstream demo --source run7.xtc2               real data: XTC2 or HDF5
  lclstream demo --keep                           leave all up; look at Airflow in a browser
  lclstream demo --kafka broker.example.org:9092  a Kafka broker of yours
"""


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `demo`."""
    parser = commands.add_parser(
        "demo",
        help="run the whole main job in a beamline in a box",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source", type=Path, metavar="FILE", help="stream the events of an XTC2 or HDF5 file"
    )
    parser.add_argument(
        "--events", type=_positive, default=EVENTS, help=f"events to simulate ({EVENTS})"
    )
    parser.add_argument(
        "--rate", type=float, default=60.0, metavar="HZ", help="simulated events per second (60)"
    )
    parser.add_argument(
        "--ranks", type=_positive, default=RANKS, help=f"processes of the streamer ({RANKS})"
    )
    parser.add_argument(
        "--consumers", type=_positive, default=CONSUMERS, help=f"analysis jobs ({CONSUMERS})"
    )
    parser.add_argument(
        "--kafka", metavar="HOST:PORT", help="use this Kafka broker (default: an embedded one)"
    )
    parser.add_argument(
        "--dags",
        type=Path,
        metavar="DIR",
        help="folder of DAG files with stream_on_run_start.py (default: that of the checkout)",
    )
    parser.add_argument(
        "--local", action="store_true", help="run jobs as local processes even if SLURM is there"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/demo"),
        metavar="DIR",
        help="folder for the results (build/demo)",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="keep every event that arrives, in HDF5 files beside the results",
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave everything up until Ctrl-C and print where it is"
    )
    parser.set_defaults(run=run)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def run(options: argparse.Namespace) -> int:
    """Run the demo; return 0 when the ledger balances."""
    from lclstream.demo.beamline import Beamline, dags_folder
    from lclstream.demo.progress import Progress
    from lclstream.demo.workflow import from_file, simulated

    if options.source is None:
        source = simulated(options.events, options.rate)
    else:
        source = from_file(options.source)
    dags = options.dags or dags_folder()
    results = _results_folder(options.output)
    with Progress() as progress, _state_folder() as folder, _terminable():
        beamline = Beamline(
            folder=folder,
            kafka=options.kafka,
            slurm=False if options.local else None,
            dags=dags,
            log=progress.step,
        )
        try:
            with beamline:
                outcome = _stream(beamline, source, results, options, progress)
                if not outcome.ok:
                    _print_logs(beamline, outcome, progress)
                if options.keep:
                    progress.console.print(_last_line(outcome), soft_wrap=True)
                    _wait_for_visitor(beamline, progress)
        except BaseException:
            _keep_logs(folder, results, progress)
            raise
    progress.console.print(_last_line(outcome), soft_wrap=True)
    return 0 if outcome.ok else 1


def _stream(
    beamline: "Beamline",
    source: "Source",
    results: Path,
    options: argparse.Namespace,
    progress: "Progress",
) -> "Outcome":
    from lclstream.demo.run import play
    from lclstream.demo.workflow import parameters

    wanted = parameters(
        source,
        _analysis_script(results, record=options.record),
        producers=options.ranks,
        consumers=options.consumers,
    )
    beamline.begin_experiment(source.experiment, wanted)
    progress.step("ready", f"everything is up after {progress.elapsed_s:.1f} s")
    outcome = play(beamline, source, progress)
    _report(outcome, results, progress)
    return outcome


def _analysis_script(results: Path, *, record: bool) -> str:
    import shlex

    folder = shlex.quote(str(results))
    verb = "verify --record" if record else "peaks"
    return f"#!/bin/bash\nexec lclstream analyse {verb} --output {folder}\n"


def _report(outcome: "Outcome", results: Path, progress: "Progress") -> None:
    from lclstream.demo.run import hop_lines

    out = progress.console.print
    if any(results.glob("peaks-*.h5")):
        from lclstream.analysis.results import merge_results

        merged = merge_results(results)
        progress.step("analysis", _analysis_summary(merged.summary))
        out(f"result   {merged.result}", soft_wrap=True)
        out(f"picture  {merged.picture}", soft_wrap=True)
    else:
        out(f"results  {results}", soft_wrap=True)
    if outcome.first_message_s is not None:
        out(f"first message at a consumer {outcome.first_message_s:.1f} s after the run event")
    for line in hop_lines(outcome.transfer):
        out(line, soft_wrap=True)


def _analysis_summary(summary: Any) -> str:
    names = ("events", "hits", "peaks")
    return ", ".join(f"{summary[name]} {name}" for name in names if name in summary)


def _last_line(outcome: "Outcome") -> str:
    from lclstream.demo.run import verdict

    line = verdict(outcome.transfer)
    if not outcome.ok and outcome.transfer.ledger.balanced:
        line = f"DAG run ended as {outcome.dag_state}, transfer {outcome.transfer.phase}: {line}"
    return line


def _print_logs(beamline: "Beamline", outcome: "Outcome", progress: "Progress") -> None:
    from lclstream.demo.run import job_logs

    for name, text in job_logs(beamline, outcome.transfer):
        progress.console.rule(name)
        progress.console.print(text, markup=False, soft_wrap=True)


def _wait_for_visitor(beamline: "Beamline", progress: "Progress") -> None:
    out = progress.console.print
    airflow = beamline.airflow
    out("")
    out(
        f"Airflow   {airflow.url}  user {airflow.user}  password {airflow.password}", soft_wrap=True
    )
    out(f"Elog      {beamline.elog_url}", soft_wrap=True)
    out(f"identity  {beamline.identities.operator}  (for lclstream transfer ...)", soft_wrap=True)
    out(f"transfers {beamline.transfers_url}", soft_wrap=True)
    out(f"state     {beamline.folder}", soft_wrap=True)
    out("Ctrl-C ends everything.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        out("ending")


def _results_folder(output: Path) -> Path:
    """Make a folder that no other run has."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = output.resolve() / stamp
    number = 1
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
            folder = output.resolve() / f"{stamp}-{number}"
        else:
            return folder


@contextmanager
def _state_folder() -> Iterator[Path]:
    """Make a folder for databases, logs and keys; it and its processes are gone at the end."""
    from lclstream.demo.guardian import Guardian

    folder = Path(tempfile.mkdtemp(prefix="lclstream-demo-"))
    with Guardian(folder):
        yield folder


def _keep_logs(folder: Path, results: Path, progress: "Progress") -> None:
    """Save the logs of a run that broke; keys and databases go with the folder."""
    saved = 0
    for log in sorted(folder.rglob("*.log")):
        target = results / "logs" / log.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, target)
        saved += 1
    if saved:
        progress.console.print(f"logs     {results / 'logs'}", soft_wrap=True)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the demo as Ctrl-C does: everything is stopped."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
