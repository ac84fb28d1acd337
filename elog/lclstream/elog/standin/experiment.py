"""One experiment of the stand-in: runs, files, samples, entries, workflows.

Every change is also put on `outbox`, in the shape in which the logbook publishes it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lclstream.core.errors import LclstreamError
from lclstream.elog.models import Trigger
from lclstream.elog.standin.documents import (
    Doc,
    naive_time,
    now,
    number_of,
    object_id,
    read_time,
    stored_params,
    stored_time,
)

Publish = Callable[[str, Doc], None]
"""Topic and envelope."""


class RefusedError(LclstreamError):
    """The logbook says no; it travels as 200 with `success: false`."""

    status = 200


@dataclass(slots=True)
class Run:
    """A run with its times unrounded."""

    num: int | str
    kind: str
    begin: datetime
    params: Doc
    sample: str | None
    id: str
    end: datetime | None = None

    def document(self) -> Doc:
        """Return the run as start and parameter messages show it."""
        document: Doc = {
            "num": self.num,
            "type": self.kind,
            "begin_time": stored_time(self.begin),
            "end_time": stored_time(self.end) if self.end else None,
            "params": dict(self.params),
            "editable_params": {},
        }
        if self.sample is not None:
            document["sample"] = self.sample
        document["_id"] = self.id
        return document


@dataclass(slots=True)
class File:
    """A file with its times unrounded."""

    path: str
    size: int
    checksum: str
    created: datetime
    modified: datetime
    run_num: int | str
    id: str
    locations: Doc

    def document(self, form: Callable[[datetime], str]) -> Doc:
        """Return the file, with its times in one of the logbook's forms."""
        document: Doc = {
            "path": self.path,
            "size": self.size,
            "checksum": self.checksum,
            "create_timestamp": form(self.created),
            "run_num": self.run_num,
            "modify_timestamp": form(self.modified),
            "_id": self.id,
        }
        if self.locations:
            document["locations"] = dict(self.locations)
        return document


class Experiment:
    """The state of one experiment; refuses with RefusedError."""

    def __init__(
        self, info: Doc, publish: Publish, *, locations: Iterable[str], string_runs: bool
    ) -> None:
        """Begin an experiment.

        Args:
            info: its document.
            publish: takes each message.
            locations: where files can be and jobs can run.
            string_runs: whether run numbers are strings.
        """
        self.info = info
        self.name: str = info["name"]
        self.locations = tuple(locations)
        self.runs: dict[int | str, Run] = {}
        self.files: dict[str, File] = {}
        self.samples: dict[str, Doc] = {}
        self.sample: str | None = None
        self.entries: list[Doc] = []
        self.definitions: dict[str, Doc] = {}
        self.jobs: dict[str, Doc] = {}
        self.counters: dict[str, list[Doc]] = {}
        """Job, or whatever a poster calls itself -> its counters."""
        self._string_runs = string_runs
        self._publish = publish

    def publish(self, topic: str, crud: str, value: Doc) -> None:
        """Publish a change."""
        envelope = {"experiment_name": self.name, "CRUD": crud, "value": value}
        self._publish(topic, envelope)

    # Runs.

    def current_run(self, *, skip_closed: bool = False) -> Doc | None:
        """Return the last run; its sample as the raw id, as the real call does."""
        if not self.runs:
            return None
        run = next(reversed(self.runs.values()))
        if skip_closed and run.end is not None:
            return None
        document = run.document()
        if run.sample is not None:
            document["sample"] = self.samples[run.sample]["_id"]
        return document

    def run(self, number: Any) -> Run:
        """Return a run by its number; None means the current one."""
        if number is None:
            if not self.runs:
                raise RefusedError("there is no run")
            return next(reversed(self.runs.values()))
        key = number_of(number, as_string=self._string_runs)
        if key not in self.runs:
            raise RefusedError(f"no run {number!r} in {self.name}")
        return self.runs[key]

    def start_run(
        self, params: Mapping[str, Any], *, number: Any = None, kind: str = "DATA", start: str = ""
    ) -> Doc:
        """Begin a run; an open one ends first."""
        key = self._next_number() if number is None else number
        key = number_of(key, as_string=self._string_runs)
        if key in self.runs:
            raise RefusedError(f"run {key} of {self.name} exists")
        if self.runs and self.run(None).end is None:
            self.end_run()
        moment = now()
        run = Run(
            num=key,
            kind=kind,
            begin=_time(start, moment),
            params=stored_params(params),
            sample=self.sample,
            id=object_id(moment),
        )
        self.runs[key] = run
        self.publish("runs", "Create", run.document())
        return run.document()

    def _next_number(self) -> int:
        return max((number for number in map(_as_int, self.runs) if number), default=0) + 1

    def end_run(self, end: str = "") -> Doc:
        """End the open run."""
        run = self.run(None)
        if run.end is not None:
            raise RefusedError(f"run {run.num} of {self.name} has ended already")
        run.end = _time(end, now())
        document = run.document()
        # Only the message of the real end carries these two.
        document["duration"] = round((run.end - run.begin).total_seconds(), 3)
        document["file_catalog"] = self.run_files(run.num)
        self.publish("runs", "Update", document)
        return document

    def add_params(self, number: Any, params: Mapping[str, Any]) -> Doc:
        """Add parameters to a run, open or not."""
        run = self.run(number)
        run.params |= stored_params(params)
        self.publish("runs", "Update", run.document())
        return run.document()

    # Files.

    def run_files(self, number: int | str) -> list[Doc]:
        """Return the files of a run."""
        return [
            file.document(stored_time) for file in self.files.values() if file.run_num == number
        ]

    def register_file(self, given: Mapping[str, Any]) -> Doc:
        """Tell that a file exists."""
        path = given.get("path")
        if not isinstance(path, str) or not path:
            raise RefusedError("a file needs a path")
        moment = now()
        file = File(
            path=path,
            size=int(given.get("size", 0)),
            checksum=str(given.get("checksum", "")),
            created=_time(given.get("create_timestamp"), moment),
            modified=_time(given.get("modify_timestamp"), moment),
            run_num=self.run(given.get("run_num")).num,
            id=object_id(moment),
            locations={},
        )
        self.files[path] = file
        self.publish("file_catalog", "Create", file.document(naive_time))
        return file.document(stored_time)

    def file_available(self, path: str, location: str) -> Doc | None:
        """Tell that a file has arrived; an unknown path publishes null, as the real one does."""
        file = self.files.get(path)
        if file is None:
            self._publish(
                "file_catalog", {"experiment_name": self.name, "CRUD": "Update", "value": None}
            )
            return None
        file.locations[location] = {"asof": stored_time(now())}
        document = file.document(stored_time)
        self.publish("file_catalog", "Update", document)
        return document

    # Samples and entries.

    def create_sample(self, name: str, description: str, params: Mapping[str, Any]) -> Doc:
        """Describe a sample."""
        document = {
            "name": name,
            "description": description,
            "params": stored_params(params),
            "_id": object_id(now()),
        }
        self.samples[name] = document
        self.publish("samples", "Create", document)
        return document

    def make_sample_current(self, name: str) -> Doc:
        """Runs to come are of this sample."""
        if name not in self.samples:
            raise RefusedError(f"no sample {name!r} in {self.name}")
        self.sample = name
        document = {**self.samples[name], "current": True}
        self.publish("samples", "Make_Current", document)
        return document

    def new_entry(
        self, text: str, *, author: str, title: str | None, tags: list[str], run: Any
    ) -> Doc:
        """Write an entry."""
        if not text:
            raise RefusedError("an entry needs log_text")
        moment = now()
        entry: Doc = {
            "relevance_time": stored_time(moment),
            "insert_time": stored_time(moment),
            "author": author,
            "content": text,
            "content_type": "TEXT",
        }
        if title:
            entry["title"] = title
        if run is not None:
            entry["run_num"] = self.run(run).num
        if tags:
            entry["tags"] = tags
        entry["_id"] = object_id(moment)
        if self.sample is not None:
            entry["sample"] = self.sample
        self.entries.append(entry)
        self.publish("elog", "Create", entry)
        return entry

    # Workflows.

    def create_definition(self, given: Mapping[str, Any], user: str) -> Doc:
        """Make a workflow definition, or change the one whose `_id` is given."""
        if given.get("trigger") not in list(Trigger):
            raise RefusedError(f"unknown trigger {given.get('trigger')!r}")
        if given.get("location") not in self.locations:
            raise RefusedError(f"unknown location {given.get('location')!r}")
        if user == "root" or (len(user) == 6 and user.endswith("opr")):
            raise RefusedError(f"a workflow may not run as {user!r}")
        known = str(given.get("_id") or "")
        if any(
            each["name"] == given.get("name") and each["_id"] != known
            for each in self.definitions.values()
        ):
            raise RefusedError(f"a workflow {given.get('name')!r} exists")
        fields = ("name", "executable", "trigger", "location", "parameters")
        document: Doc = {field: given.get(field, "") for field in fields}
        for field in ("run_param_name", "run_param_value"):
            if given.get(field) is not None:
                document[field] = given[field]
        document["run_as_user"] = user
        document["_id"] = known or object_id(now())
        self.definitions[document["_id"]] = document
        return document

    def create_job(self, definition: Any, run: Any, user: str) -> Doc:
        """Press the button."""
        found = [each for each in self.definitions.values() if each["name"] == definition]
        if not found:
            raise RefusedError(f"no workflow {definition!r} in {self.name}")
        job = {
            "run_num": self.run(run).num,
            "def_id": found[0]["_id"],
            "user": user,
            "status": "START",
            "_id": object_id(now()),
        }
        self.jobs[job["_id"]] = job
        return self._publish_job("Create", job)

    def update_job(self, given: Mapping[str, Any]) -> Doc:
        """Change a job; what is empty, zero or null changes nothing, as in the real one."""
        job = self.jobs.get(str(given.get("_id")))
        if job is None:
            raise RefusedError(f"no job {given.get('_id')!r} in {self.name}")
        for field in ("status", "counters", "tool_id", "log_file_path"):
            if given.get(field):
                job[field] = given[field]
        if given.get("counters"):
            self.counters[job["_id"]] = list(given["counters"])
        return self._publish_job("Update", job)

    def set_counters(self, job: str, counters: list[Doc]) -> None:
        """Replace all counters of a job."""
        self.counters[job] = counters
        if job in self.jobs:
            self.jobs[job]["counters"] = counters
            self._publish_job("Update", self.jobs[job])

    def _publish_job(self, crud: str, job: Doc) -> Doc:
        document = {
            **job,
            "experiment": self.name,
            "def": dict(self.definitions[job["def_id"]]),
        }
        self.publish("workflow_jobs", crud, document)
        return document


def _as_int(number: int | str) -> int:
    try:
        return int(number)
    except ValueError:
        return 0


def _time(text: Any, default: datetime) -> datetime:
    try:
        return read_time(text, default)
    except (TypeError, ValueError):
        raise RefusedError(f"not a time: {text!r}") from None
