"""The verbs of `lclstream analyse`."""

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lclstream.client.streams import Stream

CommandGroup = argparse._SubParsersAction  # noqa: SLF001 - argparse gives it no public name

EXAMPLES = """examples:
  lclstream analyse peaks --output results                      in a job of a transfer
  lclstream analyse peaks --url tcp://dtn:42001 --output results --snr 6 --min-peaks 15
  lclstream analyse merge results                               after several consumers
  lclstream analyse verify --url tcp://dtn:42001 --config stream.yaml --output checked
"""


def add_commands(commands: "CommandGroup[argparse.ArgumentParser]") -> None:
    """Add `analyse` with its verbs."""
    parser = commands.add_parser(
        "analyse",
        help="find Bragg peaks in a stream, merge and verify results",
        description=textwrap.fill(
            "Consumers of a stream that look at its events. Several may pull from one "
            "stream at the same time and write into one folder; each event goes to one of them."
        ),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_peaks(verbs)
    _add_merge(verbs)
    _add_verify(verbs)


def _add_peaks(verbs: "CommandGroup[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "peaks",
        help="find Bragg peaks in every event",
        description="Find Bragg peaks in every event of a stream and write, at its end, an HDF5 "
        "file (events, peaks, summed image, provenance) and a PNG (mean frame with peaks, hit "
        "rate against time). Prints both paths and a summary as one line of JSON.",
    )
    _add_stream(verb)
    verb.add_argument("--frames", help="dataset of the frames (default: found by its shape)")
    verb.add_argument("--mask", help="dataset of good pixels, nonzero = good (default: *mask)")
    verb.add_argument("--snr", type=float, help="sigma above background of a peak's pixels (5)")
    verb.add_argument("--threshold", type=float, help="least height above background (0)")
    verb.add_argument("--min-pixels", type=int, help="fewest pixels of a peak (2)")
    verb.add_argument("--max-pixels", type=int, help="most pixels of a peak (60)")
    verb.add_argument("--min-peaks", type=int, help="fewest peaks of a hit (10)")
    verb.add_argument("--tile", type=int, help="pixels across which background is measured (32)")
    verb.set_defaults(run=_peaks)


def _add_merge(verbs: "CommandGroup[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "merge",
        help="combine the results of several consumers",
        description="Combine all peaks-*.h5 of a folder into one HDF5 file and one PNG, events "
        "in order. Events that came twice count once and are named in the summary.",
    )
    verb.add_argument("folder", type=Path, help="folder with the results")
    verb.add_argument("--name", default="merged", help="name without suffix (%(default)s)")
    verb.set_defaults(run=_merge)


def _add_verify(verbs: "CommandGroup[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "verify",
        help="check that every event arrives once and unchanged",
        description="Check that no event comes twice and, with the streamer's configuration of a "
        "simulated detector, that every bit is as it must be. Writes the findings as JSON, and "
        "with --record all events as HDF5.",
    )
    _add_stream(verb)
    verb.add_argument("--config", type=Path, help="configuration of the streamer")
    verb.add_argument("--record", action="store_true", help="keep the events in an HDF5 file")
    verb.set_defaults(run=_verify)


def _add_stream(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--url",
        action="append",
        help="address to pull from; repeatable (default: the transfer that this job is in)",
    )
    verb.add_argument("--output", type=Path, required=True, help="folder to write into")
    verb.add_argument(
        "--timeout", type=float, help="fail after this many seconds without a message"
    )


def _peaks(options: argparse.Namespace) -> int:
    from lclstream.analysis.peaks import PeakJob
    from lclstream.analysis.settings import PeakSettings
    from lclstream.client.signals import stop_on_signals
    from lclstream.core.errors import StreamError
    from lclstream.core.models import parse

    given = {name: getattr(options, name) for name in PeakSettings.model_fields}
    settings = parse(
        PeakSettings, {name: value for name, value in given.items() if value is not None}, "options"
    )
    stream = _open(options)
    job = PeakJob(stream, options.output, settings, frames=options.frames, mask=options.mask)
    with stop_on_signals(stream.stop) as signals:
        try:
            job.run()
        except StreamError:
            if not signals:
                raise
        finally:
            if job.outcome is not None:
                _print(job.outcome.result, job.outcome.picture, summary=job.outcome.summary)
    return _code(signals, ok=not stream.damaged)


def _merge(options: argparse.Namespace) -> int:
    from lclstream.analysis.results import merge_results

    merged = merge_results(options.folder, options.name)
    _print(merged.result, merged.picture, summary=merged.summary)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from lclstream.analysis.verifying import VerifyJob
    from lclstream.client.signals import stop_on_signals
    from lclstream.core.errors import StreamError

    stream = _open(options)
    job = VerifyJob(stream, options.output, options.config, record=options.record)
    with stop_on_signals(stream.stop) as signals:
        try:
            job.run()
        except StreamError:
            if not signals:
                raise
        finally:
            _print(*job.written, summary=job.summary)
    return _code(signals, ok=job.ok)


def _open(options: argparse.Namespace) -> "Stream":
    from lclstream.client.streams import stream
    from lclstream.core.logging import configure

    configure()
    return stream(options.url, on_error="skip", timeout_s=options.timeout)


def _print(*paths: Path, summary: Any) -> None:
    sys.stdout.writelines(f"{path}\n" for path in paths)
    sys.stdout.write(json.dumps(summary) + "\n")
    sys.stdout.flush()


def _code(signals: list[int], *, ok: bool) -> int:
    if signals:
        return 128 + signals[0]
    return 0 if ok else 1
