"""The table of a buffer's states."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lclstream.buffer.states import FINAL, TRANSITIONS, BufferEvent, BufferState, after
from lclstream.core.errors import IllegalTransitionError


def test_every_state_is_ranked_and_reachable() -> None:
    assert set(TRANSITIONS) == set(BufferState)
    reached = {BufferState.OPEN}
    for _ in BufferState:
        reached |= {target for state in reached for target in TRANSITIONS[state].values()}
    assert reached == set(BufferState)
    assert {BufferState.COMPLETE, BufferState.INCOMPLETE} == FINAL


@pytest.mark.parametrize("state", sorted(set(BufferState) - FINAL))
def test_every_state_can_be_stopped(state: BufferState) -> None:
    assert after(state, BufferEvent.STOP) is BufferState.INCOMPLETE


@given(st.lists(st.sampled_from(BufferEvent)))
def test_states_never_go_back(events: list[BufferEvent]) -> None:
    order = list(BufferState)
    state = BufferState.OPEN
    for event in events:
        before = state
        if event in TRANSITIONS[before]:
            state = after(before, event)
        assert order.index(state) >= order.index(before)


@pytest.mark.parametrize("state", BufferState)
@pytest.mark.parametrize("event", BufferEvent)
def test_illegal_event_names_state_and_event(state: BufferState, event: BufferEvent) -> None:
    if event in TRANSITIONS[state]:
        return
    with pytest.raises(
        IllegalTransitionError, match=rf"^cannot {event} in state '{state}'$"
    ) as caught:
        after(state, event)
    assert (caught.value.state, caught.value.event) == (state, event)
