import time

import pytest

from lclstream.transfers.clock import steady_clock


def test_it_is_unix_time() -> None:
    assert steady_clock()() == pytest.approx(time.time(), abs=5)


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_a_step_of_the_system_clock_is_not_seen(
    step_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = steady_clock()
    before = clock()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + step_s)
    assert 0 <= clock() - before < 60
