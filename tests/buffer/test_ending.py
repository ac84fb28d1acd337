"""When a buffer drains and ends, in virtual time."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lclstream.buffer.config import BufferConfig
from lclstream.buffer.ending import Action, Ending, Facts
from lclstream.buffer.states import BufferState

QUIET = Facts(
    now=0.0,
    producers=0,
    producers_seen=0,
    consumers=0,
    consumers_seen=0,
    is_empty=True,
    last_activity=0.0,
    has_faults=False,
)


def settle(ending: Ending, facts: Facts) -> list[Action]:
    """Do what a shell does: ask until nothing is left to do; return all actions."""
    done: list[Action] = []
    while actions := ending.step(facts):
        done += actions
        if Action.CUT_PRODUCERS in actions:
            facts = replace(facts, producers=0)
    return done


def test_no_producer_yet_or_any_more_means_nothing() -> None:
    ending = Ending(BufferConfig())
    for now in (0.0, 10.0, 1e6):
        assert not settle(ending, replace(QUIET, now=now, producers_seen=3))
        assert ending.deadline(QUIET) is None
    assert ending.state is BufferState.OPEN


def test_expected_producers_must_all_have_come_and_be_gone_for_the_grace() -> None:
    ending = Ending(BufferConfig(expect_producers=2, grace_s=2.0))
    one_gone = replace(QUIET, producers_seen=1, now=100.0)
    assert not settle(ending, one_gone)
    assert ending.deadline(one_gone) is None
    both_gone = replace(QUIET, producers_seen=2, now=200.0)
    assert not settle(ending, both_gone)
    assert ending.deadline(both_gone) == 202.0
    # One comes back within the grace.
    assert not settle(ending, replace(both_gone, producers=1, now=201.0))
    assert not settle(ending, replace(both_gone, now=203.0))
    assert settle(ending, replace(both_gone, now=205.0))[0] is Action.CLOSE_INPUT
    assert ending.reason == "all 2 producers have come and gone"


def test_silence_drains_if_asked_for() -> None:
    ending = Ending(BufferConfig(max_idle_s=5.0))
    facts = replace(QUIET, last_activity=10.0, producers=1, now=14.9)
    assert not settle(ending, facts)
    assert ending.deadline(facts) == 15.0
    assert settle(ending, replace(facts, now=15.0)) == [Action.CLOSE_INPUT]
    assert ending.state is BufferState.DRAINING


def test_draining_waits_for_connected_producers_as_long_as_bytes_move() -> None:
    ending = Ending(BufferConfig(stall_timeout_s=60.0))
    ending.drain(100.0, "asked")
    facts = replace(QUIET, producers=1, producers_seen=1, consumers=1, consumers_seen=1)
    for now in range(100, 1000, 50):
        moment = replace(facts, now=float(now), last_activity=now - 20.0)
        assert settle(ending, moment) in ([], [Action.CLOSE_INPUT])
    assert ending.state is BufferState.DRAINING
    stalled = replace(facts, now=1000.0, last_activity=940.0)
    assert settle(ending, stalled) == [Action.CUT_PRODUCERS, Action.SAY_FAREWELL]


def test_deadline_of_a_drain_holds_although_bytes_move() -> None:
    ending = Ending(BufferConfig())
    ending.drain(0.0, "SIGTERM", 25.0)
    facts = replace(QUIET, producers=1, consumers=1, consumers_seen=1, is_empty=False)
    settle(ending, replace(facts, now=1.0, last_activity=1.0))
    assert ending.deadline(replace(facts, now=1.0, last_activity=1.0)) == 25.0
    settle(ending, replace(facts, now=25.0, last_activity=24.9))
    assert ending.state is BufferState.INCOMPLETE


def test_data_wait_for_a_consumer_but_not_for_ever() -> None:
    ending = Ending(BufferConfig(stall_timeout_s=60.0, consumer_timeout_s=600.0))
    ending.drain(0.0, "asked")
    facts = replace(QUIET, is_empty=False)
    settle(ending, replace(facts, now=599.0))
    assert not ending.is_over
    assert ending.deadline(facts) == 600.0
    settle(ending, replace(facts, now=600.0))
    assert ending.state is BufferState.INCOMPLETE


def test_consumer_that_takes_nothing_ends_the_flush() -> None:
    ending = Ending(BufferConfig(stall_timeout_s=60.0))
    ending.drain(0.0, "asked")
    facts = replace(QUIET, is_empty=False, consumers=1, consumers_seen=1)
    settle(ending, replace(facts, now=60.0))
    assert ending.state is BufferState.INCOMPLETE


def test_farewell_waits_until_consumers_have_closed() -> None:
    ending = Ending(BufferConfig(farewell_timeout_s=30.0))
    ending.drain(0.0, "asked")
    facts = replace(QUIET, consumers=2, consumers_seen=2)
    assert settle(ending, facts) == [Action.CLOSE_INPUT, Action.SAY_FAREWELL]
    assert ending.farewell_said
    assert ending.deadline(facts) == 30.0
    settle(ending, replace(facts, consumers=1, now=29.0))
    assert not ending.is_over
    settle(ending, replace(facts, consumers=0, now=29.5))
    assert ending.state is BufferState.COMPLETE


def test_farewell_ends_with_the_deadline_of_the_drain() -> None:
    ending = Ending(BufferConfig(farewell_timeout_s=30.0))
    ending.drain(0.0, "SIGTERM", 25.0)
    facts = replace(QUIET, consumers=1, consumers_seen=1, now=20.0, last_activity=20.0)
    settle(ending, facts)
    assert ending.deadline(facts) == 25.0


@pytest.mark.parametrize(
    ("has_faults", "expected"),
    [(False, BufferState.COMPLETE), (True, BufferState.INCOMPLETE)],
)
def test_consumers_that_do_not_close(has_faults: bool, expected: BufferState) -> None:
    ending = Ending(BufferConfig(farewell_timeout_s=30.0))
    ending.drain(0.0, "asked")
    facts = replace(QUIET, consumers=1, consumers_seen=1, has_faults=has_faults)
    settle(ending, facts)
    settle(ending, replace(facts, now=30.0))
    assert ending.state is expected


def test_empty_stream_lingers_for_late_consumers() -> None:
    ending = Ending(BufferConfig(linger_s=10.0))
    ending.drain(0.0, "asked")
    assert settle(ending, QUIET) == [Action.CLOSE_INPUT]
    assert ending.farewell_said
    assert ending.deadline(QUIET) == 10.0
    late = replace(QUIET, consumers=1, consumers_seen=1, now=5.0)
    assert not settle(ending, late)
    assert settle(ending, replace(late, consumers=0, now=10.0)) == [Action.SAY_FAREWELL]
    assert ending.state is BufferState.COMPLETE


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["wait", "drain", "stop", "deadline"]),
            st.integers(0, 3),
            st.integers(0, 3),
            st.booleans(),
            st.booleans(),
        ),
        max_size=20,
    )
)
@example([("drain", 0, 0, True, False), ("wait", 0, 0, False, False)])
def test_every_drained_buffer_ends(steps: list[tuple[str, int, int, bool, bool]]) -> None:
    ending = Ending(BufferConfig())
    now = 0.0
    facts = QUIET
    for what, producers, consumers, is_empty, has_faults in steps:
        now += 1.0
        facts = replace(
            facts,
            now=now,
            producers=producers,
            producers_seen=max(producers, facts.producers_seen),
            consumers=consumers,
            consumers_seen=max(consumers, facts.consumers_seen),
            is_empty=is_empty,
            has_faults=has_faults,
        )
        if ending.state is BufferState.FLUSHING:
            facts = replace(facts, producers=0)
        if what == "drain":
            ending.drain(now, "asked")
        elif what == "deadline":
            ending.drain(now, "asked", 5.0)
        elif what == "stop":
            ending.stop("asked")
        settle(ending, facts)
    ending.drain(now, "at last")
    while not ending.is_over:
        deadline = ending.deadline(facts)
        assert deadline is not None, "it would sleep for ever"
        facts = replace(facts, now=max(deadline, facts.now))
        actions = settle(ending, facts)
        if Action.CUT_PRODUCERS in actions:
            facts = replace(facts, producers=0)
        following = ending.deadline(facts)
        assert following is None or following > facts.now, "it would spin"
    assert facts.now < 2000.0
