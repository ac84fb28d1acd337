"""Messages in the form of the logbook, made here; and the golden ones when they are at hand."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lclstream.elog.models import Position

EXPERIMENT = "tst000123"
BEGIN = datetime(2026, 11, 20, 22, 34, 20, 205000, UTC)
GOLDEN = Path(__file__).parents[3] / "shared" / "vectors" / "elog" / "messages.jsonl"

Message = tuple[str, dict[str, Any]]
"""Topic and envelope."""


def golden() -> list[Message]:
    lines = GOLDEN.read_text(encoding="utf-8").splitlines()
    return [(each["topic"], each["value"]) for each in map(json.loads, lines)]


def position(topic: str = "runs", offset: int = 0, partition: int = 0) -> Position:
    return Position(topic=topic, partition=partition, offset=offset, recorded_at=BEGIN)


def envelope(crud: str | None, value: Any, experiment: str = EXPERIMENT) -> dict[str, Any]:
    found = {"experiment_name": experiment, "CRUD": crud, "value": value}
    return {key: item for key, item in found.items() if key != "CRUD" or item is not None}


def run_message(
    num: int | str = 1,
    *,
    crud: str = "Create",
    ended: bool = False,
    begin: datetime = BEGIN,
    params: dict[str, Any] | None = None,
    files: Sequence[dict[str, Any]] | None = None,
    experiment: str = EXPERIMENT,
) -> Message:
    end = begin + timedelta(seconds=3)
    value: dict[str, Any] = {
        "num": num,
        "type": "DATA",
        "begin_time": begin.isoformat(),
        "end_time": end.isoformat() if ended else None,
        "params": params or {},
        "editable_params": {},
        "_id": "6b00caec2421822fa3668c75",
    }
    if files is not None:
        value |= {"duration": 3.0, "file_catalog": list(files)}
    return "runs", envelope(crud, value, experiment)


def file_document(path: str = "/a.xtc2", num: int = 1, *locations: str) -> dict[str, Any]:
    document: dict[str, Any] = {
        "path": path,
        "size": 1,
        "checksum": "x",
        "create_timestamp": "2026-11-20T22:00:00+00:00",
        "run_num": num,
        "modify_timestamp": "2026-11-20T22:34:20.242000+00:00",
        "_id": "6b00caec2421822fa3668c76",
    }
    if locations:
        document["locations"] = {name: {"asof": BEGIN.isoformat()} for name in locations}
    return document


def file_message(path: str = "/a.xtc2", num: int = 1, *locations: str) -> Message:
    crud = "Update" if locations else "Create"
    return "file_catalog", envelope(crud, file_document(path, num, *locations))


def job_message(
    job: str = "6b00caec2421822fa3668c77",
    *,
    status: str = "START",
    crud: str = "Create",
    executable: str = "/sdf/x/lclstream-arp",
    name: str = "stream",
    parameters: str = "--dag stream_on_run_start",
) -> Message:
    value = {
        "run_num": 1,
        "def_id": "6b00caec2421822fa3668c71",
        "user": "opr",
        "status": status,
        "_id": job,
        "experiment": EXPERIMENT,
        "def": {
            "name": name,
            "executable": executable,
            "trigger": "START_OF_RUN",
            "location": "S3DF",
            "parameters": parameters,
            "run_as_user": "opr",
            "_id": "6b00caec2421822fa3668c71",
        },
    }
    return "workflow_jobs", envelope(crud, value)


def encoded(message: Message) -> bytes:
    return json.dumps(message[1]).encode()
