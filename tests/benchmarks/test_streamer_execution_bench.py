"""The benchmark of whole ranks measures: its processes begin, send, receive and end."""

from collections.abc import Iterator

import pytest
from benchmarks.buffer.measure import BrokenMeasurementError
from benchmarks.streamer import __main__ as program
from benchmarks.streamer import execution, ranks
from benchmarks.streamer.options import Options
from zmq.utils.garbage import gc as collector

KEYS = {"name", "value", "unit", "baseline", "ratio", "goal", "met"}
BRIEF = Options(repetitions=1, window_s=0.002)


@pytest.fixture(autouse=True)
def zmq_collector() -> Iterator[None]:
    """End the thread that pyzmq keeps for the whole process."""
    yield
    collector.stop()


def test_it_is_part_of_the_program() -> None:
    assert program.PARTS["execution"] == "execution"


def test_rates_have_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "BATCHES", {ranks.SMALL: (10,)})
    rows = execution._rates(BRIEF)
    assert len(rows) == 4
    for row in rows:
        assert row.keys() >= KEYS
        assert row["value"] > 0
        assert row["ratio"] > 0


def test_ranks_share_the_events() -> None:
    with ranks.receiver("nng") as url:
        rate, cpu_us = execution._ranks(ranks.SMALL, 5, 41, url, ranks=2)
    assert rate > 0
    assert cpu_us > 0


def test_a_receiver_that_cannot_be_is_noticed() -> None:
    with pytest.raises(BrokenMeasurementError, match=r"^a process has failed: "):
        ranks.receiver("nonsense").__enter__()
