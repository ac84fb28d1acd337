import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.elog.messages import (
    BEGIN,
    EXPERIMENT,
    GOLDEN,
    Message,
    encoded,
    file_document,
    file_message,
    golden,
    job_message,
    position,
    run_message,
)

from lclstream.elog.history import Fact, History, News, texts
from lclstream.elog.models import Event, Trigger, read_event

START, END = Trigger.START_OF_RUN, Trigger.END_OF_RUN
PARAM, MANUAL = Trigger.RUN_PARAM_IS_VALUE, Trigger.MANUAL
FIRST, ALL = Trigger.FIRST_FILE_TRANSFERRED, Trigger.ALL_FILES_TRANSFERRED
NONREC = Trigger.ALL_NONREC_FILES_TRANSFERRED


def events(messages: Iterable[Message]) -> list[Event]:
    places = [(encoded(each), position(each[0], offset)) for offset, each in enumerate(messages)]
    read = [read_event(raw, place) for raw, place in places]
    return [event for event in read if event is not None]


def feed(history: History, messages: Iterable[Message]) -> list[News]:
    return [news for event in events(messages) for news in history.add(event)]


def facts(messages: Iterable[Message], **settings: Any) -> list[Fact]:
    return [each.fact for each in feed(History(**settings), messages)]


# The definitions that the table in the vectors' README speaks of.
WANTED = (
    Fact(START),
    Fact(END),
    Fact(PARAM, "stream", "on"),
    Fact(FIRST, "S3DF"),
    Fact(ALL, "S3DF"),
)


def fired(order: Iterable[Event]) -> dict[int | str, list[Trigger]]:
    """Return the wanted triggers of each run, in the order in which they fired."""
    found: dict[int | str, list[Trigger]] = {}
    history = History()
    for news in (each for event in order for each in history.add(event)):
        if news.fact in WANTED:
            found.setdefault(news.run, []).append(news.fact.trigger)
    return found


def replica() -> list[Message]:
    """Return messages like the golden ones: two runs, the first one's files, a late parameter."""
    on = {"x\uff0ey": 1.5, "stream": "on"}
    arrived = file_document("/a.xtc2", 1, "S3DF")
    return [
        ("file_catalog", file_message("/a.xtc2", 1, "S3DF")[1]),
        file_message("/a.xtc2", 1),
        run_message(1, params={"x\uff0ey": 1.5}),
        run_message(1, crud="Update", ended=True, params=on, files=[arrived]),
        run_message(2),
        run_message(2, crud="Update", ended=True, files=[]),
        run_message(1, crud="Update", params=on),
    ]


REPLICA = events(replica())


def test_the_table_in_the_order_of_arrival() -> None:
    assert fired(REPLICA) == {1: [FIRST, START, END, PARAM, ALL], 2: [START, END]}


@pytest.mark.skipif(not GOLDEN.is_file(), reason="the golden messages are not here")
def test_the_golden_table() -> None:
    messages = golden()
    assert fired(events(messages)) == {1: [FIRST, START, END, PARAM, ALL], 2: [START, END]}
    core = events(each for each in messages if each[0] in ("runs", "file_catalog"))
    assert len(core) == 7
    for order in itertools.permutations(range(7)):
        check(core, order)


@given(st.data())
def test_the_table_in_any_order_with_any_duplicates(data: st.DataObject) -> None:
    every = st.permutations(range(7))
    more = st.lists(st.integers(0, 6), max_size=10)
    order = data.draw(more) + data.draw(every) + data.draw(more)
    check(REPLICA, order)


def check(events: Sequence[Event], order: Sequence[int]) -> None:
    """Compare with what the README says: places 2 and 6 open run 1, 3 ends it; 4 and 5 run 2."""
    first = [order.index(place) for place in range(7)]
    want = {1: {FIRST, END, PARAM, ALL}, 2: {END}}
    if min(first[2], first[6]) < first[3]:
        want[1].add(START)
    if first[4] < first[5]:
        want[2].add(START)
    got = fired(events[place] for place in order)
    assert {run: set(triggers) for run, triggers in got.items()} == want
    assert all(len(triggers) == len(set(triggers)) for triggers in got.values())


def test_a_run_whose_begin_was_missed_starts_with_the_next_open_document() -> None:
    assert facts([run_message(crud="Update")]) == [Fact(START)]


def test_a_run_never_starts_after_its_end() -> None:
    messages = [run_message(crud="Update", ended=True), run_message(), run_message(crud="Update")]
    assert facts(messages) == [Fact(END)]


def test_late_parameters_prove_the_end() -> None:
    # Parameters uploaded after the end carry an end time but neither duration nor files.
    messages = [run_message(crud="Update", ended=True), run_message(crud="Update", ended=True)]
    assert facts(messages) == [Fact(END)]


def test_a_value_fires_once_even_when_it_comes_back() -> None:
    messages = [
        run_message(crud="Update", params={"stream": value}) for value in ("on", "off", "on")
    ]
    assert facts(messages) == [
        Fact(START),
        Fact(PARAM, "stream", "on"),
        Fact(PARAM, "stream", "off"),
    ]


@pytest.mark.parametrize(
    ("value", "same"),
    [("on", ("on",)), (7, ("7",)), (1.5, ("1.5",)), (True, ("True", "true")), (None, ("None",))],
)
def test_values_are_compared_as_text(value: Any, same: tuple[str, ...]) -> None:
    assert texts(value) == same


def test_files_that_arrive_elsewhere_are_another_fact() -> None:
    messages = [
        file_message("/a", 1, "NERSC"),
        file_message("/b", 1, "S3DF"),
        run_message(crud="Update", ended=True, files=[]),
        file_message("/a", 1, "S3DF"),
    ]
    assert facts(messages) == [
        Fact(FIRST, "NERSC"),
        Fact(FIRST, "S3DF"),
        Fact(END),
        Fact(ALL, "S3DF"),
    ]


def test_a_run_without_files_never_has_all_of_them() -> None:
    assert facts([run_message(crud="Update", ended=True, files=[])]) == [Fact(END)]


def test_an_older_document_does_not_take_a_location_away() -> None:
    messages = [
        file_message("/a", 1, "S3DF"),
        file_message("/a", 1),
        run_message(crud="Update", ended=True, files=[file_document("/a")]),
    ]
    assert facts(messages) == [Fact(FIRST, "S3DF"), Fact(END), Fact(ALL, "S3DF")]


def test_chosen_files_may_be_complete_before_the_others() -> None:
    messages = [
        file_message("/a.xtc2", 1, "S3DF"),
        file_message("/a.log", 1),
        run_message(crud="Update", ended=True),
    ]
    chosen = facts(messages, recorded_files=re.compile(r"\.xtc2$"))
    assert Fact(NONREC, "S3DF") in chosen
    assert Fact(ALL, "S3DF") not in chosen
    assert Fact(NONREC, "S3DF") not in facts(messages)


def test_each_press_of_the_button_is_a_fact() -> None:
    messages = [job_message("j1"), job_message("j1"), job_message("j2")]
    assert facts(messages) == [Fact(MANUAL, "j1"), Fact(MANUAL, "j2")]


def test_a_request_that_somebody_took_is_not_taken_again() -> None:
    taken = job_message("j1", crud="Update", status="RUNNING")
    assert facts([taken, job_message("j1")]) == []


@pytest.mark.parametrize("crud", [None, "Delete", "Make_Current", "Paint"])
def test_other_actions_say_nothing_about_a_run(crud: str | None) -> None:
    topic, found = run_message()
    found["CRUD"] = crud
    assert facts([(topic, found)]) == []


def test_runs_of_two_experiments_are_two_runs() -> None:
    messages = [run_message(), run_message(experiment="other"), run_message("1")]
    assert facts(messages) == [Fact(START)] * 3


def test_what_was_not_acted_on_is_stated_again() -> None:
    history = History()
    news = feed(history, [run_message()])
    history.forget(news)
    assert [each.fact for each in feed(history, [run_message()])] == [Fact(START)]
    assert feed(history, [run_message()]) == []


def test_news_say_when_it_happened() -> None:
    begin, end = feed(History(), [run_message(), run_message(crud="Update", ended=True)])
    assert begin.happened_at == BEGIN
    assert (end.happened_at - BEGIN).total_seconds() == 3
    assert end.begin_time == BEGIN


def test_old_runs_are_forgotten() -> None:
    history = History(keep_runs=2)
    feed(history, [run_message(number) for number in (1, 2, 1, 3)])
    known = [number for number in (1, 2, 3) if history.state(EXPERIMENT, number)]
    assert known == [1, 3]
    history.forget(feed(history, [run_message(4)]))
