"""Runs in psana2's own environment: the processor time of its event loop over a file.

    python psana_loop.py FILE READING REPETITIONS

READING is nothing, or a method of `jungfrau.raw`. Writes seconds per event, one for each
repetition, as JSON.
"""

import json
import os
import sys
import time
from typing import Any

os.environ["PS_PARALLEL"] = "none"

import psana  # noqa: TID253


def main(path: str, reading: str, repetitions: int) -> list[float]:
    """Return the processor time per event of each repetition; one before is not counted."""
    return [once(path, reading) for _ in range(repetitions + 1)][1:]


def once(path: str, reading: str) -> float:
    """Return the processor time per event of all events but the first."""
    source = psana.DataSource(
        files=path, **({} if reading == "calib" else {"skip_calib_load": "all"})
    )
    run = next(source.runs())
    detector: Any = run.Detector("jungfrau").raw if reading else None
    events = run.events()
    look(next(events), detector, reading)
    start, count = time.process_time(), 0
    for event in events:
        look(event, detector, reading)
        count += 1
    return (time.process_time() - start) / count


def look(event: Any, detector: Any, reading: str) -> None:
    """Read what is asked for."""
    if reading and getattr(detector, reading)(event) is None:
        raise SystemExit(f"the event has no {reading}")


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))  # noqa: T201
