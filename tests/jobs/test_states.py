import pytest
from hypothesis import given
from hypothesis import strategies as st

from lclstream.core.errors import IllegalTransitionError
from lclstream.jobs.states import (
    EVENT_BEFORE,
    FINAL,
    TRANSITIONS,
    JobEvent,
    JobState,
    Transition,
    after,
    check_row,
    current,
    last_run,
)

S, E = JobState, JobEvent


def row(jobndx: int, state: JobState) -> Transition:
    return Transition(0.0, jobndx, state, "")


NEW = [row(0, S.NEW)]
QUEUED = [*NEW, row(1, S.QUEUED)]
ACTIVE = [*QUEUED, row(1, S.ACTIVE)]
COMPLETED = [*ACTIVE, row(1, S.COMPLETED)]


def test_every_state_has_a_row_in_the_table() -> None:
    assert set(TRANSITIONS) == set(JobState)


def test_only_a_restart_leads_out_of_a_final_state() -> None:
    for state in JobState:
        leaves_only_by_restart = set(TRANSITIONS[state]) == {E.SUBMIT} and state is not S.NEW
        assert (state in FINAL) == leaves_only_by_restart == state.is_final


def test_every_state_but_new_is_reached_by_one_event() -> None:
    assert set(EVENT_BEFORE) == set(JobState) - {S.NEW}


@pytest.mark.parametrize(
    ("state", "event"),
    [(s, e) for s in JobState for e in JobEvent if e not in TRANSITIONS[s]],
)
def test_what_is_not_in_the_table_is_refused(state: JobState, event: JobEvent) -> None:
    with pytest.raises(IllegalTransitionError, match=f"^cannot {event} in state '{state}'"):
        after(state, event)


@pytest.mark.parametrize(
    ("history", "jobndx", "state"),
    [
        ([], 0, S.NEW),
        (NEW, 1, S.QUEUED),
        (NEW, 0, S.CANCELED),
        (QUEUED, 1, S.ACTIVE),
        (QUEUED, 1, S.FAILED),
        (QUEUED, 0, S.CANCELED),
        (ACTIVE, 1, S.COMPLETED),
        (ACTIVE, 1, S.FAILED),
        (ACTIVE, 0, S.CANCELED),
        (COMPLETED, 2, S.QUEUED),
        ([*QUEUED, row(0, S.CANCELED)], 2, S.QUEUED),
        ([*NEW, row(0, S.CANCELED)], 1, S.QUEUED),
    ],
)
def test_rows_that_may_follow(history: list[Transition], jobndx: int, state: JobState) -> None:
    check_row(history, jobndx, state)


@pytest.mark.parametrize(
    ("history", "jobndx", "state"),
    [
        (NEW, 0, S.NEW),
        (NEW, 2, S.QUEUED),
        (NEW, 1, S.ACTIVE),
        (QUEUED, 1, S.QUEUED),
        (QUEUED, 1, S.COMPLETED),
        (ACTIVE, 1, S.ACTIVE),
        (ACTIVE, 1, S.CANCELED),
        (COMPLETED, 0, S.CANCELED),
        (COMPLETED, 1, S.COMPLETED),
        (COMPLETED, 1, S.QUEUED),
        ([*COMPLETED, row(2, S.QUEUED)], 1, S.FAILED),
    ],
)
def test_rows_that_may_not_follow(history: list[Transition], jobndx: int, state: JobState) -> None:
    with pytest.raises(IllegalTransitionError):
        check_row(history, jobndx, state)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(JobState)), max_size=40))
def test_any_words_leave_a_legal_history(words: list[tuple[int, JobState]]) -> None:
    history = list(NEW)
    for jobndx, state in words:
        try:
            check_row(history, jobndx, state)
        except IllegalTransitionError:
            continue
        was = current(history)
        if was in FINAL:
            assert state is S.QUEUED
            assert jobndx == last_run(history) + 1
        history.append(row(jobndx, state))
    ends = [each.jobndx for each in history if each.state in {S.COMPLETED, S.FAILED}]
    assert len(ends) == len(set(ends))
