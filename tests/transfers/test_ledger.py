import pytest

from lclstream.core.errors import TooLargeError
from lclstream.core.ledger import Hop, Report, Tally, TallyModel
from lclstream.transfers import ledger as module
from lclstream.transfers.ledger import Ledger
from lclstream.transfers.record import Role

PAYLOADS = [b"one", b"two", b"three" * 100]


def tally(*payloads: bytes, events: int = 0) -> TallyModel:
    counted = Tally()
    for payload in payloads:
        counted.add(payload, events)
    return counted.snapshot()


def report(
    hop: Hop,
    peer: str,
    *,
    final: bool = True,
    sent: TallyModel | None = None,
    received: TallyModel | None = None,
) -> Report:
    return Report(hop=hop, peer=peer, final=final, sent=sent, received=received)


def balanced() -> Ledger:
    ledger = Ledger()
    ledger.add(report("producer", "r0", sent=tally(*PAYLOADS[:1], events=5)))
    ledger.add(report("producer", "r1", sent=tally(*PAYLOADS[1:], events=5)))
    all_of_it = tally(*reversed(PAYLOADS))
    ledger.add(report("buffer", "b", received=all_of_it, sent=all_of_it))
    return ledger


def test_activity_shows_what_moves_and_who_produces() -> None:
    ledger = Ledger()
    seen = [ledger.activity()]
    ledger.add(report("producer", "r0", sent=tally(), final=False))
    seen.append(ledger.activity())
    ledger.add(report("producer", "r0", sent=tally(b"one"), final=False))
    seen.append(ledger.activity())
    ledger.add(report("buffer", "b", received=tally(b"one"), sent=tally(), final=False))
    seen.append(ledger.activity())
    ledger.add(report("producer", "r0", sent=tally(b"one"), final=False))
    assert ledger.activity() == seen[-1]
    ledger.add(report("producer", "r0", sent=tally(b"one")))
    seen.append(ledger.activity())
    assert seen == [(0, 0, 0), (0, 0, 1), (1, 3, 1), (2, 6, 1), (2, 6, 0)]


def test_hops_that_agree() -> None:
    ledger = balanced()
    assert ledger.differences() == []
    ledger.add(report("consumer", "c0", received=tally(PAYLOADS[2], events=5)))
    ledger.add(report("consumer", "c1", received=tally(*PAYLOADS[:2], events=5)))
    assert ledger.differences() == []
    names = ["producers.sent", "buffer.received", "buffer.sent", "consumers.received"]
    assert [hop.name for hop in ledger.hops()] == names
    assert [hop.peers for hop in ledger.hops()] == [2, 1, 1, 2]
    assert {hop.tally.messages for hop in ledger.hops()} == {3}


def test_lost_message_is_found_at_its_hop() -> None:
    ledger = balanced()
    ledger.add(report("consumer", "c0", received=tally(*PAYLOADS[:2])))
    assert ledger.differences() == [
        "consumers.received has 1 message (500 bytes) fewer than buffer.sent (2 of 3)"
    ]


def test_doubled_message_is_found() -> None:
    ledger = balanced()
    ledger.add(report("consumer", "c0", received=tally(*PAYLOADS, PAYLOADS[0])))
    assert ledger.differences() == [
        "consumers.received has 1 message (3 bytes) more than buffer.sent (4 of 3)"
    ]


def test_changed_message_is_found() -> None:
    ledger = balanced()
    ledger.add(report("consumer", "c0", received=tally(*PAYLOADS[:1], b"TWO", PAYLOADS[2])))
    assert ledger.differences() == [
        "consumers.received has other contents than buffer.sent: the digests differ"
    ]


def test_events_are_compared_where_consumers_look_inside() -> None:
    ledger = balanced()
    ledger.add(report("consumer", "c0", received=tally(*PAYLOADS, events=4)))
    assert ledger.differences() == ["consumers.received has 12 events, producers.sent has 15"]
    other = balanced()
    other.add(report("consumer", "c0", received=tally(*PAYLOADS)))
    assert other.differences() == []


def test_report_after_the_final_one_is_dropped() -> None:
    ledger = balanced()
    assert not ledger.add(report("producer", "r0", final=False, sent=tally()))
    assert not ledger.add(report("producer", "r0", sent=tally()))
    assert ledger.differences() == []
    assert ledger.finals(Role.PRODUCER) == 2


def test_unfinished_and_faulty_processes_are_named() -> None:
    ledger = Ledger()
    ledger.add(report("producer", "r0", final=False))
    ledger.add(Report(hop="producer", peer="r1", final=True, ok=False, error="disk full"))
    assert ledger.unfinished(Role.PRODUCER) == ["r0"]
    assert ledger.faults(Role.PRODUCER) == ["producer r1: disk full"]


def test_processes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PEERS", 2)
    ledger = Ledger()
    ledger.add(report("consumer", "a", final=False))
    ledger.add(report("consumer", "b", final=False))
    with pytest.raises(TooLargeError, match="more than 2 processes report"):
        ledger.add(report("consumer", "c", final=False))
    ledger.add(report("consumer", "a"))
