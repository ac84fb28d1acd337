"""What people read about a transfer."""

import pytest
from tests.operators.samples import info, streaming

from lclstream.operators.progress import Progress, account, counters, verdict


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def progress(lines: list[str], clock: Clock) -> Progress:
    return Progress(lines.append, clock)


def test_a_line_shows_events_rate_and_fill(
    progress: Progress, lines: list[str], clock: Clock
) -> None:
    progress.show(streaming(10))
    clock.now += 5
    progress.show(streaming(60))
    assert lines[-1] == (
        "transfer 7 streaming; 600 events sent, 60 messages delivered; 60.0 MB at 10.0 MB/s; "
        "2 producers, 2 consumers; buffer 25% full"
    )


def test_figures_wait_their_turn_but_a_phase_is_said_at_once(
    progress: Progress, lines: list[str], clock: Clock
) -> None:
    progress.show(streaming(10))
    clock.now += 1
    progress.show(streaming(20))
    assert len(lines) == 1
    progress.show(info(phase="draining"))
    assert lines[-1].startswith("transfer 7 draining")


def test_a_still_transfer_says_something_once_a_minute(
    progress: Progress, lines: list[str], clock: Clock
) -> None:
    for _ in range(25):
        progress.show(info(phase="starting"))
        clock.now += 5
    assert lines == ["transfer 7 starting"] * 3


def test_each_change_of_a_job_is_said_once(progress: Progress, lines: list[str]) -> None:
    job = {
        "role": "consumer",
        "name": "peaks",
        "index": 1,
        "site": "hpc",
        "jobid": "5",
        "state": "queued",
        "info": "",
    }
    progress.show(info(jobs=[job]))
    progress.show(info(jobs=[job]))
    progress.show(info(jobs=[job | {"state": "failed", "info": "exit 3"}]))
    said = [line for line in lines if line.startswith("job")]
    assert said == [
        "job consumer peaks[1] at hpc: queued",
        "job consumer peaks[1] at hpc: failed (exit 3)",
    ]


def test_account_names_every_hop_and_the_verdict() -> None:
    lines = account(streaming(3))
    assert [line.partition(":")[0] for line in lines[:4]] == [
        "producers.sent",
        "buffer.received",
        "buffer.sent",
        "consumers.received",
    ]
    assert lines[-1] == "ledger open: not everybody has reported"


def test_verdict_says_where_data_was_lost() -> None:
    lost = info(ledger={"hops": [], "balanced": False, "difference": "buffer.sent has 1 less"})
    assert verdict(lost) == "ledger differs: buffer.sent has 1 less"


def test_counters_are_plain_text() -> None:
    shown = counters(info(phase="failed", reason="idle: <b>nothing</b> moved"))
    assert shown["LCLStream state"] == "failed"
    assert shown["LCLStream reason"] == "idle: <b>nothing</b> moved"
    assert all(isinstance(value, str) for value in shown.values())
