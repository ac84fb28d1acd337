"""Playing the beamline: one run begins, lasts, and ends in a logbook."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import yaml

from lclstream.core.errors import InvalidConfigError, NotFoundError
from lclstream.elog import calls
from lclstream.elog.client import ElogClient

EXPERIMENT_LENGTH = timedelta(days=5)


def read_parameters(lines: Iterable[str]) -> dict[str, Any]:
    """Read `NAME=VALUE` lines; VALUE is YAML.

    Raises:
        InvalidConfigError: a line is not of this form.
    """
    found: dict[str, Any] = {}
    for line in lines:
        name, equals, text = line.partition("=")
        if not name or not equals:
            raise InvalidConfigError(f"--param: expected NAME=VALUE, got {line!r}")
        try:
            found[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InvalidConfigError(f"--param: the value is not YAML, got {line!r}") from None
    return found


def prepare_experiment(client: ElogClient, experiment: str, instrument: str) -> None:
    """Make an experiment unless it exists, and make it the active one of station 0."""
    try:
        client.current_run(experiment)
    except NotFoundError:
        now = datetime.now(UTC)
        client.send(
            calls.register_experiment(
                experiment, instrument, leader="opr", start=now, end=now + EXPERIMENT_LENGTH
            )
        )
        client.send(calls.switch_experiment(experiment, instrument))


def play_run(
    url: str,
    identity: Path,
    *,
    experiment: str,
    instrument: str = "MFX",
    run: int | None = None,
    run_type: str = "DATA",
    parameters: Mapping[str, Any] | None = None,
    seconds: float = 10.0,
    out: TextIO | None = None,
    wait: Callable[[float], object] = time.sleep,
) -> int | str:
    """Begin a run, wait, end it; return its number.

    Args:
        url: address of the logbook.
        identity: who plays.
        experiment: made when it does not exist.
        instrument: for a new experiment.
        run: the number; None for the next one.
        run_type: such as DATA.
        parameters: of the run, given at its begin.
        seconds: how long it lasts. A Ctrl-C ends it early, but ends it.
        out: gets one line of JSON at the begin and one at the end.
        wait: waits for so many seconds.
    """
    with ElogClient(url, identity=identity) as client:
        prepare_experiment(client, experiment, instrument)
        begun = client.send(
            calls.start_run(experiment, parameters or {}, run=run, run_type=run_type)
        )
        number = _number(client, experiment, begun)
        _tell(out, "begun", experiment, number)
        try:
            wait(seconds)
        finally:
            client.send(calls.end_run(experiment))
            _tell(out, "ended", experiment, number)
    return number


def _number(client: ElogClient, experiment: str, begun: Any) -> int | str:
    """Return the number of the run that was begun; the answer need not carry it."""
    document = begun if isinstance(begun, dict) else client.current_run(experiment) or {}
    number: int | str = document.get("num", "?")
    return number


def _tell(out: TextIO | None, state: str, experiment: str, number: int | str) -> None:
    if out is not None:
        line = {"state": state, "experiment": experiment, "run": number}
        out.write(json.dumps(line) + "\n")
        out.flush()
