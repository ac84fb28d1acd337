import pytest

from lclstream.core.errors import IllegalTransitionError
from lclstream.transfers.states import (
    CLOSING,
    FINAL,
    TIMERS,
    TRANSITIONS,
    Phase,
    Timer,
    Trigger,
    after,
    diagram,
)


def test_final_phases_lead_nowhere() -> None:
    assert frozenset({Phase.COMPLETED, Phase.CANCELED, Phase.FAILED}) == FINAL
    assert all(not TRANSITIONS[phase] and not TIMERS[phase] for phase in FINAL)


def test_every_phase_is_ranked_and_can_be_reached() -> None:
    assert set(TRANSITIONS) == set(TIMERS) == set(Phase)
    reached = {Phase.REQUESTED}
    for _ in Phase:
        reached |= {target for phase in reached for target in TRANSITIONS[phase].values()}
    assert reached == set(Phase)


@pytest.mark.parametrize("phase", sorted(set(Phase) - FINAL))
def test_every_other_phase_has_a_timer_and_a_way_to_an_end(phase: Phase) -> None:
    assert TIMERS[phase] & {Timer.TOTAL, Timer.STOP}
    ways = {phase}
    for _ in Phase:
        ways |= {target for way in ways for target in TRANSITIONS[way].values()}
    assert ways & FINAL


@pytest.mark.parametrize("phase", sorted(set(Phase) - FINAL - CLOSING))
def test_whatever_runs_can_be_canceled_and_can_fail(phase: Phase) -> None:
    assert after(phase, Trigger.CANCEL) is Phase.CANCELING
    assert after(phase, Trigger.FAIL) is Phase.FAILING


def test_illegal_trigger_names_state_and_event() -> None:
    with pytest.raises(IllegalTransitionError, match=r"^cannot drain in state 'completed'$"):
        after(Phase.COMPLETED, Trigger.DRAIN)


def test_diagram_has_every_row() -> None:
    rows = sum(len(leads_to) for leads_to in TRANSITIONS.values())
    assert diagram().count("-->") == rows + len(FINAL) + 1
