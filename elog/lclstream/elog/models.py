"""What the Elog publishes on Kafka: envelopes and documents, read tolerantly.

The logbook is an outside system: unknown fields are kept, unknown topics and actions are no
errors. What cannot be understood at all (broken JSON, a null value, a run without a number)
raises DecodeError, and the caller puts the message aside.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    StringConstraints,
    ValidationError,
)

from lclstream.core.errors import DecodeError
from lclstream.core.models import describe, shown

RUNS = "runs"
FILE_CATALOG = "file_catalog"
WORKFLOW_JOBS = "workflow_jobs"
EXPERIMENT_SWITCH = "experiment_switch"

# The database below the logbook reserves these two characters.
_STORED = {".": "\uff0e", "$": "\uff04"}
_ESCAPE = str.maketrans(_STORED)
_UNESCAPE = str.maketrans({stored: plain for plain, stored in _STORED.items()})


class Trigger(StrEnum):
    """What a workflow definition can wait for, by the logbook's names."""

    MANUAL = "MANUAL"
    START_OF_RUN = "START_OF_RUN"
    END_OF_RUN = "END_OF_RUN"
    FIRST_FILE_TRANSFERRED = "FIRST_FILE_TRANSFERRED"
    ALL_FILES_TRANSFERRED = "ALL_FILES_TRANSFERRED"
    ALL_NONREC_FILES_TRANSFERRED = "ALL_NONREC_FILES_TRANSFERRED"
    RUN_PARAM_IS_VALUE = "RUN_PARAM_IS_VALUE"


def escape_name(name: str) -> str:
    """Return a parameter's name as the logbook stores it."""
    return name.translate(_ESCAPE)


def unescape_name(name: str) -> str:
    """Return a stored parameter's name as its owner wrote it."""
    return name.translate(_UNESCAPE)


def as_utc(moment: datetime) -> datetime:
    """Return an aware time in UTC; the logbook's naive times are UTC already."""
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("time outside the calendar") from None


def rfc3339(moment: datetime) -> str:
    """Return an aware time as our own documents carry it: UTC, milliseconds, `Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain_names(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {unescape_name(str(name)): item for name, item in value.items()}
    return value


def _nothing_is_empty(value: Any) -> Any:
    return {} if value is None else value


UtcTime = Annotated[datetime, AfterValidator(as_utc)]
ShortText = Annotated[StrictStr, StringConstraints(min_length=1, max_length=200)]
RunNumber = Annotated[StrictInt | ShortText, Field(union_mode="left_to_right")]
"""An int at LCLS, a string at CryoEM; used as given."""
Parameters = Annotated[
    dict[str, Any], BeforeValidator(_plain_names), BeforeValidator(_nothing_is_empty)
]
Locations = Annotated[dict[str, Any], BeforeValidator(_nothing_is_empty)]


class Document(BaseModel):
    """A document of the logbook; keeps the fields that we do not know."""

    model_config = ConfigDict(
        extra="allow", frozen=True, validate_by_name=True, use_attribute_docstrings=True
    )


class FileDocument(Document):
    """A file of a run."""

    path: StrictStr
    run_num: RunNumber
    locations: Locations = {}
    """Name of a site -> since when the file is there; absent when it was only registered."""


class RunDocument(Document):
    """A run; always the whole document, never a part."""

    num: RunNumber
    type: str = "DATA"
    begin_time: UtcTime | None = None
    end_time: UtcTime | None
    """None while the run is open. The field itself is never absent."""
    params: Parameters = {}
    """Names as their owner wrote them, values of any JSON type."""
    file_catalog: list[FileDocument] | None = None
    """Only in the message of the real end; may be empty."""


class DefinitionDocument(Document):
    """A workflow definition as the logbook stores it."""

    id: str = Field(default="", alias="_id")
    name: ShortText
    executable: str | None = None
    parameters: str | None = None
    """One plain command line."""
    trigger: str | None = None
    location: str | None = None
    run_param_name: str | None = None
    run_param_value: str | None = None


class JobDocument(Document):
    """One execution of a definition, wished for or running."""

    id: ShortText = Field(alias="_id")
    run_num: RunNumber
    status: str = ""
    definition: DefinitionDocument | None = Field(default=None, alias="def")


class Envelope(Document):
    """What surrounds every document; not every topic has every field."""

    experiment_name: ShortText | None = None
    crud: str | None = Field(default=None, alias="CRUD")
    value: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a message lies and when the broker got it."""

    topic: str
    partition: int
    offset: int
    recorded_at: datetime
    """Aware, UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A message of the logbook that can change the state of a run."""

    experiment: str
    crud: str | None
    document: RunDocument | FileDocument | JobDocument
    position: Position

    @property
    def run(self) -> int | str:
        """The run's number as given."""
        if isinstance(self.document, RunDocument):
            return self.document.num
        return self.document.run_num


_DOCUMENTS: Mapping[str, type[RunDocument | FileDocument | JobDocument]] = {
    RUNS: RunDocument,
    FILE_CATALOG: FileDocument,
    WORKFLOW_JOBS: JobDocument,
}
D = TypeVar("D", bound=Document)

_NOT_PLAIN = re.compile(r"[\x00-\x1f\x7f]")


def read_event(raw: bytes | None, position: Position) -> Event | None:
    """Read a message.

    Args:
        raw: the message's value.
        position: where it lies; its topic decides what the document must be.

    Returns:
        None for a topic that tells nothing about runs.

    Raises:
        DecodeError: the message cannot be understood; says why.
    """
    kind = _DOCUMENTS.get(position.topic)
    if kind is None:
        return None
    envelope = read_envelope(raw)
    document = _validated(kind, envelope.value, "value.")
    experiment = envelope.experiment_name
    if experiment is None:
        raise DecodeError("experiment_name: is required")
    if _NOT_PLAIN.search(experiment):
        raise DecodeError(f"experiment_name: control characters, got {shown(experiment)}")
    return Event(experiment=experiment, crud=envelope.crud, document=document, position=position)


def read_envelope(raw: bytes | None) -> Envelope:
    """Read what surrounds a document.

    Raises:
        DecodeError: not JSON, not an object, or without a value.
    """
    if raw is None:
        raise DecodeError("the message has no value")
    try:
        # NaN and Infinity occur as bare words, which Python reads.
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not JSON: {shown(str(error))}") from None
    if not isinstance(data, dict):
        raise DecodeError(f"not a JSON object, got {shown(data)}")
    return _validated(Envelope, data, "")


def _validated(kind: type[D], data: Any, where: str) -> D:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise DecodeError("; ".join(where + line for line in describe(error)[:5])) from None
