"""Runs in psana2's environment, not in ours: writes as JSON what psana2 reads.

    python psana_reader.py REQUEST.json ANSWER.json
    python psana_reader.py          one request per line of the input, one answer per line

The request holds `data_source` (arguments of `psana.DataSource`), `variables` (process
variables) and `detectors` (names whose `raw.raw` is asked for).
"""

import base64
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before psana is imported: no MPI roles, and nobody is asked for calibration constants.
os.environ["PS_PARALLEL"] = "none"
os.environ["LCLS_CALIB_HTTP"] = "http://127.0.0.1:9"
# psana's way to log in at SLAC wants a C library. Nothing here logs in anywhere.
sys.modules["kerberos"] = types.ModuleType("kerberos")

import psana  # noqa: E402
from psana.psexp.ds_base import DataSourceBase  # noqa: E402


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Return what psana2 says about every run and event."""
    # Else it asks SLAC's logbook which files a run has.
    DataSourceBase._get_file_info_from_db = lambda self, run: {}
    source = psana.DataSource(skip_calib_load="all", **request["data_source"])
    return {"runs": [read_run(run, request) for run in source.runs()]}


def read_run(run: Any, request: dict[str, Any]) -> dict[str, Any]:
    variables = {name: run.Detector(name) for name in request["variables"]}
    detectors = {name: run.Detector(name) for name in request["detectors"]}
    events = [
        {
            "timestamp": event.timestamp,
            "values": dict(contributions(event)),
            "variables": {name: plain(read(event)) for name, read in variables.items()},
            "raw": {name: plain(whole(each, event)) for name, each in detectors.items()},
        }
        for event in run.events()
    ]
    return {
        "experiment": run.expt,
        "run": run.runnum,
        "timestamp": run.timestamp,
        "detectors": sorted(run.detnames),
        "variables": sorted(list(pair) for pair in run.epicsinfo),
        "events": events,
    }


def whole(detector: Any, event: Any) -> Any:
    """Return the detector's raw data, None without all segments: its class then fails."""
    return None if detector.raw._segments(event) is None else detector.raw.raw(event)


def contributions(event: Any) -> Iterator[tuple[str, Any]]:
    """Yield `detector segment algorithm` and all fields, as they lie in psana's dgrams."""
    for dgram in filter(None, event._dgrams):
        for detector, segments in visible(dgram):
            for segment, algorithms in segments.items():
                for algorithm, fields in visible(algorithms):
                    found = {name: plain(value) for name, value in visible(fields)}
                    found["damage"] = algorithms._xtc.damage
                    yield f"{detector} {segment} {algorithm}", found


def visible(container: Any) -> list[tuple[str, Any]]:
    return [pair for pair in vars(container).items() if not pair[0].startswith("_")]


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it, to the last bit."""
    if hasattr(value, "dtype"):
        data = base64.b64encode(value.tobytes()).decode()
        return {"dtype": str(value.dtype), "shape": list(value.shape), "data": data}
    # An enumeration is an object with a number and its label.
    return value.value if hasattr(value, "value") else value


def serve() -> None:
    """Answer request after request, so that psana is imported once for many files."""
    # psana and its libraries print as they please.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(main(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        serve()
    else:
        answer = main(json.loads(Path(sys.argv[1]).read_text()))
        Path(sys.argv[2]).write_text(json.dumps(answer))
