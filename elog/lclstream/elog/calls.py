"""The calls of the logbook that we use: what to send and how to read the answer; no I/O.

The logbook answers 200 with `{"success", "value", "errormsg"}`, also when it refuses; 404, 405
and 500 occur too, some with a page instead of JSON. So the status is judged first, then the
content type, then `success`.
"""

import html
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx

from lclstream.core.errors import BackendError, RequestError, for_status
from lclstream.elog.models import as_utc

SHOWN_ANSWER_LENGTH = 200

Counters = Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request; paths start after the address of the logbook."""

    method: str
    path: str
    query: Mapping[str, str] | None = None
    json: Any = None
    form: Mapping[str, str | list[str]] | None = None
    repeatable: bool = False
    """Whether sending it twice changes nothing more than once."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of an httpx client's `request`."""
        found: dict[str, Any] = {"method": self.method, "url": self.path, "params": self.query}
        if self.json is not None:
            # Parameters may be NaN, which httpx would refuse and the logbook takes.
            found["content"] = json.dumps(self.json).encode()
            found["headers"] = {"Content-Type": "application/json"}
        if self.form is not None:
            found["data"] = self.form
        return found


def _get(path: str, **query: str | None) -> Call:
    given = {name: value for name, value in query.items() if value is not None}
    return Call(method="GET", path=path, query=given, repeatable=True)


def _post(path: str, body: Any, **query: str | None) -> Call:
    given = {name: value for name, value in query.items() if value is not None}
    return Call(method="POST", path=path, json=body, query=given)


def _of(experiment: str, call: str) -> str:
    return f"/lgbk/{quote(experiment, safe='')}/ws/{call}"


def _control(experiment: str, call: str) -> str:
    return f"/run_control/{quote(experiment, safe='')}/ws/{call}"


def current_run(experiment: str) -> Call:
    """Ask for the run that is open, or the last one."""
    return _get(_of(experiment, "current_run"))


def run_info(experiment: str, run: int | str) -> Call:
    """Ask for one run."""
    return _get(_of(experiment, f"runs/{quote(str(run), safe='')}"))


def run_files(experiment: str, run: int | str) -> Call:
    """Ask for the files of one run."""
    return _get(_of(experiment, f"{quote(str(run), safe='')}/files"))


def workflow_definitions(experiment: str) -> Call:
    """Ask for the workflow definitions of an experiment."""
    return _get(_of(experiment, "workflow_definitions"))


def workflow_jobs(experiment: str) -> Call:
    """Ask for the workflow jobs of an experiment."""
    return _get(_of(experiment, "workflow_jobs"))


def create_definition(experiment: str, definition: Mapping[str, Any]) -> Call:
    """Make or change a workflow definition; its fields as the logbook names them."""
    return _post(_of(experiment, "create_update_workflow_def"), dict(definition))


def create_job(experiment: str, definition: str, run: int | str) -> Call:
    """Press the button: ask for one execution of a definition."""
    body = {"job_name": definition, "run_num": run}
    return _post(_of(experiment, "create_workflow_job"), body)


def update_job(
    experiment: str, job: str, *, status: str | None = None, counters: Counters | None = None
) -> Call:
    """Tell how a job stands; what is not given stays, an empty value changes nothing."""
    body: dict[str, Any] = {"_id": job}
    if status is not None:
        body["status"] = status
    if counters is not None:
        body["counters"] = counter_list(counters)
    return Call(
        method="POST",
        path=_of(experiment, "update_workflow_job"),
        json=body,
        repeatable=True,
    )


def new_entry(
    experiment: str,
    text: str,
    *,
    title: str | None = None,
    tags: Iterable[str] = (),
    run: int | str | None = None,
) -> Call:
    """Write an entry; it cannot be taken back."""
    form: dict[str, str | list[str]] = {"log_text": text, "log_tags": " ".join(tags)}
    if title is not None:
        form["log_title"] = title
    if run is not None:
        form["run_num"] = str(run)
    return Call(method="POST", path=_of(experiment, "new_elog_entry"), form=form)


def start_run(
    experiment: str,
    parameters: Mapping[str, Any],
    *,
    run: int | str | None = None,
    run_type: str | None = None,
) -> Call:
    """Begin a run; an open one ends first."""
    number = None if run is None else str(run)
    path = _control(experiment, "start_run")
    return _post(path, dict(parameters), run_num=number, run_type=run_type)


def end_run(experiment: str) -> Call:
    """End the open run."""
    return _post(_control(experiment, "end_run"), None)


def add_run_params(
    experiment: str, parameters: Mapping[str, Any], run: int | str | None = None
) -> Call:
    """Add parameters to a run, by default the current one."""
    number = None if run is None else str(run)
    path = _control(experiment, "add_run_params")
    return _post(path, dict(parameters), run_num=number)


def register_file(
    experiment: str, path: str, *, run: int | str | None = None, size_bytes: int | None = None
) -> Call:
    """Tell that a file exists."""
    body: dict[str, Any] = {"path": path, "create_timestamp": file_time(datetime.now(UTC))}
    if run is not None:
        body["run_num"] = run
    if size_bytes is not None:
        body["size"] = size_bytes
    return _post(_of(experiment, "register_file"), body)


def file_available(experiment: str, path: str, location: str, run: int | str) -> Call:
    """Tell that a file has arrived at a location."""
    return _get(
        _of(experiment, "file_available_at_location"),
        location=location,
        file_path=path,
        run_num=str(run),
    )


def register_experiment(
    experiment: str, instrument: str, *, leader: str, start: datetime, end: datetime
) -> Call:
    """Make an experiment."""
    body = {
        "name": experiment,
        "instrument": instrument,
        "description": experiment,
        "start_time": experiment_time(start),
        "end_time": experiment_time(end),
        "leader_account": leader,
        "contact_info": "",
        "posix_group": experiment,
    }
    return _post("/lgbk/ws/register_new_experiment", body, experiment_name=experiment)


def switch_experiment(experiment: str, instrument: str, station: int = 0) -> Call:
    """Make an experiment the active one of a station."""
    body = {
        "experiment_name": experiment,
        "instrument": instrument,
        "station": str(station),
    }
    return _post("/lgbk/ws/switch_experiment", body)


def counter_list(counters: Counters) -> list[dict[str, str | int | float]]:
    """Return counters as the logbook shows them; names and texts cannot become HTML."""
    return [
        {"key": f"<b>{html.escape(name)}</b>", "value": _shown_value(value)}
        for name, value in counters.items()
    ]


def _shown_value(value: str | int | float) -> str | int | float:
    if isinstance(value, float) and not math.isfinite(value):
        # A bare word would not be JSON.
        return str(value)
    return html.escape(value) if isinstance(value, str) else value


def file_time(moment: datetime) -> str:
    """Return a time as `register_file` wants it: whole seconds."""
    return as_utc(moment).strftime("%Y-%m-%dT%H:%M:%SZ")


def experiment_time(moment: datetime) -> str:
    """Return a time as `register_new_experiment` wants it: milliseconds `000`."""
    return as_utc(moment).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def read_answer(answer: httpx.Response) -> Any:
    """Return the `value` of an answer, None when it has none.

    Raises:
        RequestError: the logbook refuses; says why. NotFoundError for an unknown experiment.
        BackendError: the logbook failed, or something else answered in its place.
    """
    where = f"{answer.request.method} {answer.request.url.path}"
    if not answer.is_success:
        text = " ".join(answer.text.split())[:SHOWN_ANSWER_LENGTH]
        raise for_status(answer.status_code)(f"{where}: HTTP {answer.status_code} {text}".strip())
    if not answer.headers.get("content-type", "").startswith("application/json"):
        raise BackendError(f"{where}: answered no JSON, so it is not the logbook")
    try:
        body = answer.json()
    except ValueError:
        raise BackendError(f"{where}: answered broken JSON") from None
    if not isinstance(body, dict) or "success" not in body:
        raise BackendError(f"{where}: answered without success, so it is not the logbook")
    if body["success"] is not True:
        raise RequestError(f"{where}: {body.get('errormsg') or 'refused without a reason'}")
    return body.get("value")
