import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.elog.messages import BEGIN, encoded, file_message, job_message, position, run_message

from lclstream.elog.definitions import WorkflowDefinition
from lclstream.elog.history import History, News
from lclstream.elog.models import read_event
from lclstream.elog.rules import build, fill, run_id, safe_part, triggers, waits_for

ALLOWED = re.compile(r"^[A-Za-z0-9_.~:+-]+$")


def news_of(message: tuple[str, dict[str, object]]) -> list[News]:
    event = read_event(encoded(message), position(message[0], 7, 3))
    assert event is not None
    return History().add(event)


def definition(**fields: object) -> WorkflowDefinition:
    return WorkflowDefinition.model_validate(
        {"name": "stream", "dag": "stream_on_run_start", "trigger": "START_OF_RUN", **fields}
    )


def test_the_dag_run_carries_the_event() -> None:
    [news] = news_of(run_message(42, experiment="mfx101332224"))
    [wish] = triggers(news, [definition(parameters={"producers": 3})], "https://e/{run}/{event}")
    assert wish.dag == "stream_on_run_start"
    assert wish.dag_run_id == "arp:mfx101332224:r42:START_OF_RUN:stream"
    assert wish.happened_at == BEGIN
    assert wish.conf == {
        "experiment": "mfx101332224",
        "run": 42,
        "trigger": "START_OF_RUN",
        "definition": "stream",
        "begin_time": "2026-11-20T22:34:20.205Z",
        "kafka": {
            "topic": "runs",
            "partition": 3,
            "offset": 7,
            "timestamp": "2026-11-20T22:34:20.205Z",
        },
        "parameters": {"producers": 3},
        "elog_job": None,
        "counters_url": "https://e/42/arp%3Amfx101332224%3Ar42%3ASTART_OF_RUN%3Astream",
    }


@pytest.mark.parametrize(
    ("fields", "fires"),
    [
        ({}, True),
        ({"trigger": "END_OF_RUN"}, False),
        ({"trigger": "MANUAL"}, False),
        ({"enabled": False}, False),
        ({"experiments": ["tst*"]}, True),
        ({"experiments": ["mfx*", "tmo*"]}, False),
    ],
)
def test_a_definition_waits_for_its_trigger_and_experiments(
    fields: dict[str, object], *, fires: bool
) -> None:
    [news] = news_of(run_message())
    assert waits_for(definition(**fields), news) is fires


@pytest.mark.parametrize(
    ("value", "wanted", "fires"),
    [("on", "on", 1), ("off", "on", 0), (7, "7", 1), (True, "True", 1), (True, "true", 1)],
)
def test_a_parameter_must_become_the_value(value: object, wanted: str, fires: int) -> None:
    rule = definition(trigger="RUN_PARAM_IS_VALUE", run_param_name="a.b", run_param_value=wanted)
    news = news_of(run_message(params={"a\uff0eb": value, "c": wanted}))
    assert sum(waits_for(rule, each) for each in news) == fires


def test_files_must_arrive_at_the_location() -> None:
    news = news_of(file_message("/a", 1, "S3DF"))
    for location, fires in (("S3DF", 1), ("NERSC", 0)):
        rule = definition(trigger="FIRST_FILE_TRANSFERRED", location=location)
        assert sum(waits_for(rule, each) for each in news) == fires


def test_each_press_of_the_button_has_an_identity() -> None:
    [first], [second] = news_of(job_message("j1")), news_of(job_message("j2"))
    rule = definition(trigger="MANUAL")
    assert build(first, rule).dag_run_id.endswith(":r1:MANUAL:stream:j1")
    assert build(second, rule).dag_run_id.endswith(":j2")
    assert build(first, rule).conf["elog_job"] == "j1"
    assert build(first, rule).conf["begin_time"] is None


def test_names_that_are_safe_stay() -> None:
    assert safe_part("mfx101332224") == "mfx101332224"
    assert safe_part("a b") == "a_b-" + safe_part("a b")[-8:]


@given(st.text(max_size=300), st.text(max_size=300), st.text(max_size=300))
def test_identities_are_allowed_and_short(experiment: str, run: str, name: str) -> None:
    [news] = news_of(run_message())
    strange = News(
        fact=news.fact,
        experiment=experiment,
        run=run,
        begin_time=None,
        happened_at=BEGIN,
        position=news.position,
    )
    identity = run_id(strange, name)
    assert ALLOWED.match(identity)
    assert len(identity) <= 250


@given(st.text(), st.text())
def test_different_names_have_different_identities(one: str, other: str) -> None:
    assert (safe_part(one) == safe_part(other)) == (one == other)


def test_what_is_filled_into_a_url_cannot_change_it() -> None:
    [news] = news_of(run_message("../x", experiment="a/b?c"))
    assert fill("https://e/{experiment}/{run}", news, "id") == "https://e/a%2Fb%3Fc/..%2Fx"
