"""Runs one rank of an event source in any environment and writes what it gives as a numpy archive.

    python source_dump.py REQUEST.json

The request is a list; each part holds `document` (a configuration of the streamer), `readings`
(name and field of each), `stop_after` (events; 0 = all) and `out`: behind that the rank is put,
`<out>.<rank>.npz`. An error ends a part; what it was is in its archive.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lclstream.streamer.config import parse_parameters
from lclstream.streamer.events import open_event_source
from lclstream.streamer.rank import place_from_environment


class Lines(logging.Handler):
    """Keeps the names of what was logged, with their values."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        values = {name: getattr(record, name, "") for name in ("setting", "before", "after")}
        self.lines.append(f"{record.getMessage()} {values}")


def main(request: dict[str, Any]) -> None:
    place = place_from_environment()
    log = Lines()
    logger = logging.getLogger("lclstream")
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    found: dict[str, Any] = {}
    error = ""
    events: list[tuple[Any, ...]] = []
    try:
        source = open_event_source(parse_parameters(request["document"]), place.rank, place.size)
        try:
            for event in source:
                row = len(events)
                events.append(
                    (event.index, event.timestamp, event.run, event.run_timestamp, event.step)
                )
                for number, (name, field) in enumerate(request["readings"]):
                    value = event.read(name, field)
                    if value is not None:
                        found[f"{row}/{number}"] = np.array(value)
                found[f"{row}/experiment"] = np.array(event.experiment)
                if len(events) == request.get("stop_after", 0):
                    break
        finally:
            source.close()
    except Exception as failure:
        notes = "; ".join(getattr(failure, "__notes__", []))
        error = f"{type(failure).__name__}: {failure} {notes}".strip()
    logger.removeHandler(log)
    found["events"] = np.array(events, np.uint64).reshape(-1, 5)
    found["error"], found["log"] = np.array(error), np.array(log.lines)
    np.savez(f"{request['out']}.{place.rank}.npz", **found)


if __name__ == "__main__":
    for part in json.loads(Path(sys.argv[1]).read_text()):
        main(part)
