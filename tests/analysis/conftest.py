"""Simulated runs, as messages and as what they must contain."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.analysis.simulated import SimulatedRun


@pytest.fixture
def simulated(tmp_path: Path) -> Callable[..., SimulatedRun]:
    def make(**changes: Any) -> SimulatedRun:
        return SimulatedRun(tmp_path / "stream.json", **changes)

    return make
