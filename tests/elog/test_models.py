import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.elog.messages import (
    EXPERIMENT,
    GOLDEN,
    encoded,
    envelope,
    file_message,
    golden,
    job_message,
    position,
    run_message,
)

from lclstream.core.errors import DecodeError
from lclstream.elog.models import (
    FileDocument,
    JobDocument,
    RunDocument,
    as_utc,
    escape_name,
    read_envelope,
    read_event,
    rfc3339,
    unescape_name,
)


def run_of(message: tuple[str, dict[str, Any]]) -> RunDocument:
    event = read_event(encoded(message), position(message[0]))
    assert event is not None
    assert isinstance(event.document, RunDocument)
    return event.document


def test_unknown_fields_are_kept() -> None:
    topic, found = run_message()
    found["value"]["weather"] = "rain"
    found["colour"] = "blue"
    assert run_of((topic, found)).model_extra == {"weather": "rain"} | {
        key: found["value"][key] for key in ("editable_params", "_id")
    }
    assert read_envelope(json.dumps(found).encode()).model_extra == {"colour": "blue"}


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-20T22:34:20.205000+00:00", datetime(2026, 11, 20, 22, 34, 20, 205000, UTC)),
        ("2026-11-20T22:34:20.242145", datetime(2026, 11, 20, 22, 34, 20, 242145, UTC)),
        ("2026-11-20T22:34:20.000Z", datetime(2026, 11, 20, 22, 34, 20, tzinfo=UTC)),
        ("2026-11-20T14:34:20-08:00", datetime(2026, 11, 20, 22, 34, 20, tzinfo=UTC)),
    ],
)
def test_every_form_of_time_is_read_as_utc(text: str, moment: datetime) -> None:
    topic, found = run_message()
    found["value"]["begin_time"] = text
    begin = run_of((topic, found)).begin_time
    assert begin == moment
    assert begin.tzinfo is UTC


def test_a_time_that_cannot_be_utc_is_refused() -> None:
    topic, found = run_message()
    found["value"]["begin_time"] = "9999-12-31T23:59:59-05:00"
    with pytest.raises(DecodeError, match=r"begin_time: .*outside the calendar"):
        run_of((topic, found))
    assert as_utc(datetime(2026, 1, 1)).tzinfo is UTC  # noqa: DTZ001


def test_our_own_times_have_milliseconds_and_a_z() -> None:
    assert rfc3339(datetime(2026, 1, 2, 3, 4, 5, 6789, UTC)) == "2026-01-02T03:04:05.006Z"


@given(st.text())
def test_names_survive_storage(name: str) -> None:
    stored = escape_name(name)
    assert "." not in stored
    assert "$" not in stored
    if "\uff0e" not in name and "\uff04" not in name:
        assert unescape_name(stored) == name


def test_parameter_names_are_read_as_written() -> None:
    run = run_of(run_message(params={"x\uff0ey": 1.5, "a\uff04": [1]}))
    assert run.params == {"x.y": 1.5, "a$": [1]}


def test_bare_words_for_numbers_are_read() -> None:
    topic, found = run_message(params={"a": float("nan"), "b": float("inf")})
    assert b"NaN" in encoded((topic, found))
    assert run_of((topic, found)).params["b"] == float("inf")


@pytest.mark.parametrize("number", [7, "7", "grid-12"])
def test_run_numbers_stay_as_given(number: int | str) -> None:
    event = read_event(encoded(run_message(number)), position())
    assert event is not None
    assert event.run == number
    assert type(event.run) is type(number)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (run_message(), RunDocument),
        (file_message(), FileDocument),
        (job_message(), JobDocument),
    ],
)
def test_each_topic_has_its_document(message: tuple[str, dict[str, Any]], kind: type) -> None:
    event = read_event(encoded(message), position(message[0]))
    assert event is not None
    assert isinstance(event.document, kind)
    assert event.experiment == EXPERIMENT
    assert event.run == 1


@pytest.mark.parametrize(
    "found",
    [
        {"value": {"instrument": "TMO", "station": 0, "userid": "opr"}},
        {"experiment_name": "x", "value": {"station": 0}},
        {"instrument_name": "TMO", "CRUD": "Paint", "value": {}},
    ],
)
def test_topics_that_tell_nothing_about_runs_are_no_events(found: dict[str, Any]) -> None:
    raw = json.dumps(found).encode()
    assert read_event(raw, position("experiment_switch")) is None
    assert read_event(raw, position("some_new_topic")) is None


def without(field: str) -> bytes:
    topic, found = run_message()
    del found["value"][field]
    return encoded((topic, found))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (None, r"^the message has no value$"),
        (b"", r"^not JSON"),
        (b"{", r"^not JSON"),
        (b"\xff\xfe", r"^not JSON"),
        (b"[" * 200_000, r"^not JSON"),
        (b"[1]", r"^not a JSON object"),
        (json.dumps(envelope("Update", None)).encode(), r"^value: "),
        (b'{"experiment_name": "x", "CRUD": "Create"}', r"^value: is required"),
        (without("num"), r"^value\.num: is required"),
        (without("end_time"), r"^value\.end_time: is required"),
        (encoded(run_message(True)), r"^value\.num"),
        (encoded(run_message("")), r"^value\.num"),
        (encoded(run_message(experiment="")), r"^experiment_name"),
        (encoded(run_message(experiment="a\nb")), r"^experiment_name: control characters"),
        (b'{"CRUD": "Create", "value": {"num": 1, "end_time": null}}', r"^experiment_name"),
        (encoded(("runs", {"experiment_name": "\ud800", "value": {}})), r"^experiment_name"),
    ],
)
def test_what_cannot_be_understood_is_refused_with_a_reason(raw: bytes | None, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        read_event(raw, position())


@given(st.binary(max_size=200))
def test_garbage_never_breaks_the_reader(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        read_event(raw + b"{", position())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    ),
    st.sampled_from(["runs", "file_catalog", "workflow_jobs"]),
)
def test_any_json_is_an_event_or_refused(value: Any, topic: str) -> None:
    raw = json.dumps(envelope("Create", value)).encode()
    with suppress(DecodeError):
        assert read_event(raw, position(topic)) is not None


@pytest.mark.skipif(not GOLDEN.is_file(), reason="the golden messages are not here")
def test_every_golden_message_is_read_whole() -> None:
    messages = golden()
    assert len(messages) == 12
    for topic, found in messages:
        read = read_envelope(json.dumps(found).encode())
        assert read.value == found["value"]
        event = read_event(json.dumps(found).encode(), position(topic))
        assert (event is None) == (topic not in ("runs", "file_catalog", "workflow_jobs"))
        if event is not None:
            again = event.document.model_dump(by_alias=True)
            assert set(found["value"]) <= set(again)
