"""What programs that watch are told."""

import re
import time
from dataclasses import fields, replace
from typing import Any

import pytest
from tests.buffer.test_control_plane import statistics

from lclstream.buffer.metrics import COUNTERS, GAUGES, RATE_INTERVAL_S, Rates, prometheus
from lclstream.buffer.statistics import Counters, PeerRecord, Statistics
from lclstream.buffer.totals import rest_of, total
from lclstream.core.ledger import Tally, TallyModel

SAMPLE = re.compile(
    r'(?P<name>[a-z_]+)(\{(?P<labels>[a-z]+="(?:[^"\\\n]|\\.)*"(,[a-z]+="(?:[^"\\\n]|\\.)*")*)\})?'
    r" (?P<value>\S+)"
)


def peer(**changes: Any) -> PeerRecord:
    values: dict[str, Any] = {
        "side": "out", "address": "10.0.0.1:4711", "identity": "", "framing": "sp",
        "messages": 4, "bytes": 40, "digest": "", "in_flight_bytes": 17,
        "unacknowledged_messages": 2, "stalled_s": 1.5, "seconds": 9.0, "end": "",
    }  # fmt: skip
    return PeerRecord(**{**values, **changes})


def summary(now: Statistics) -> dict[str, Any]:
    return {"lanes": 2, **now.whole()}


def samples(text: str) -> dict[str, list[tuple[str, float]]]:
    """Read the format as strictly as it is defined."""
    assert text.endswith("\n")
    found: dict[str, list[tuple[str, float]]] = {}
    kinds: dict[str, str] = {}
    helped: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split()[2]
            assert name not in helped
            helped.add(name)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name in helped
            assert kind == ("counter" if name.endswith("_total") else "gauge")
            kinds[name] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match["name"] in kinds
            found.setdefault(match["name"], []).append(
                (match["labels"] or "", float(match["value"]))
            )
    return found


def test_prometheus_text() -> None:
    now = replace(
        statistics(),
        state="draining",
        oldest_s=2.5,
        counters=Counters(requeued=7, lanes_lost=1),
        peers=(
            peer(),
            peer(side="in", identity='a "b"\\\nc', in_flight_bytes=0, stalled_s=0.0),
            peer(end="closed"),
        ),
    )
    found = samples(prometheus(summary(now)))
    prefix = "lclstream_buffer_"
    assert found[f"{prefix}received_messages_total"] == [("", 3.0)]
    assert found[f"{prefix}sent_bytes_total"] == [("", 70.0)]
    assert found[f"{prefix}requeued_total"] == [("", 7.0)]
    assert found[f"{prefix}lanes_lost_total"] == [("", 1.0)]
    assert found[f"{prefix}oldest_seconds"] == [("", 2.5)]
    assert found[f"{prefix}lanes"] == [("", 2.0)]
    states = dict(found[f"{prefix}state"])
    assert (states['state="draining"'], sum(states.values())) == (1.0, 1.0)
    first = 'side="out",peer="10.0.0.1:4711",identity=""'
    assert found[f"{prefix}peer_in_flight_bytes"][0] == (first, 17.0)
    assert found[f"{prefix}peer_stalled_seconds"][0] == (first, 1.5)
    # Those that have gone are not shown.
    assert len(found[f"{prefix}peer_messages_total"]) == 2
    assert r"a \"b\"\\\nc" in found[f"{prefix}peer_bytes_total"][1][0]


def test_every_figure_is_told() -> None:
    assert {each.name for each in fields(Counters)} == set(COUNTERS)
    others = {"state", "reason", "received", "sent", "counters", "peers", "alarm"}
    assert {each.name for each in fields(Statistics)} - others == set(GAUGES) - {"lanes"}


def test_rates_are_between_two_looks() -> None:
    rates = Rates()
    assert rates.update(statistics()) == {}
    begin = time.monotonic()
    while time.monotonic() < begin + 2 * RATE_INTERVAL_S:
        pass
    now = rates.update(statistics())
    assert 0 < now["in_messages_per_s"] <= 3 / (2 * RATE_INTERVAL_S)
    assert now["out_bytes_per_s"] / now["out_messages_per_s"] == pytest.approx(70 / 3)
    # A moment later it is the same.
    assert rates.update(statistics()) == now


def tallied(*messages: bytes) -> TallyModel:
    tally = Tally()
    for message in messages:
        tally.add(message)
    return tally.snapshot()


def test_lanes_add_up() -> None:
    one = replace(
        statistics(),
        received=tallied(b"a", b"bb"),
        sent=tallied(b"a"),
        counters=Counters(requeued=1, consumers_seen=2),
        oldest_s=1.0,
        peers=(peer(),),
    )
    two = replace(
        statistics(),
        received=tallied(b"ccc"),
        sent=tallied(b"bb", b"ccc"),
        counters=Counters(requeued=2),
        oldest_s=3.0,
        peers=(peer(side="in"),),
    )
    both = total([one, two])
    assert both.received == both.sent == tallied(b"a", b"bb", b"ccc")
    assert (both.counters.requeued, both.counters.consumers_seen) == (3, 2)
    assert (both.oldest_s, both.capacity_bytes) == (3.0, 2000)
    assert len(both.peers) == 2
    assert total([one]) == one


def test_digest_of_one_lane_without_is_of_none() -> None:
    one = replace(statistics(), received=TallyModel(messages=1, bytes=1, digest=""))
    assert total([one, statistics()]).received.digest == ""


def test_dead_lane_holds_nothing() -> None:
    rest = rest_of(replace(statistics(), queue_messages=3, producers=2))
    assert (rest.queue_messages, rest.producers, rest.capacity_bytes) == (0, 0, 0)
    assert rest.received == statistics().received
