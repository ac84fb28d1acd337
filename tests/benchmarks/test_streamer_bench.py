"""The benchmark of the streamer measures: rows are whole, and processor time is counted."""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.buffer.measure import BrokenMeasurementError
from benchmarks.streamer import __main__ as program
from benchmarks.streamer import hdf5_codecs, hdf5_memory, hdf5_small
from benchmarks.streamer.options import Options
from benchmarks.streamer.ours import Messages, frame_event
from benchmarks.streamer.turns import Case, costs

KEYS = {"name", "value", "unit", "baseline", "ratio", "goal", "met"}
BRIEF = Options(repetitions=1, window_s=0.002)


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_cases_take_turns_and_cost_what_they_take() -> None:
    turns: list[str] = []

    def work(name: str, seconds: float) -> None:
        turns.append(name)
        burn(seconds)

    cases = {
        "short": Case(work=lambda: work("short", 0.001)),
        "long": Case(work=lambda: work("long", 0.004), units=2),
    }
    found = costs(cases, Options(repetitions=3, window_s=0.01))
    assert all(len(values) == 3 for values in found.values())
    assert min(found["short"]) >= 0.001
    assert min(found["long"]) >= 0.002
    # Many repeats of one are never followed by all those of the other.
    changes = sum(before != after for before, after in itertools.pairwise(turns))
    assert changes >= 5


def test_background_work_is_waited_for_and_counted() -> None:
    left = [0]

    def settle() -> None:
        burn(0.001 * left[0])
        left[0] = 0

    def work() -> None:
        left[0] += 1

    (value,) = costs({"x": Case(work=work, settle=settle)}, BRIEF)["x"]
    assert value >= 0.001


def test_small_events_have_rows() -> None:
    rows = hdf5_small.rows(BRIEF)
    assert len(rows) == 2 * len(hdf5_small.GOALS)
    for row in rows:
        assert row.keys() >= KEYS
        assert row["value"] > 0
        assert row["ratio"] > 0


@pytest.mark.parametrize("codec", ["bitshuffle_with_lz4", "blosc2_with_lz4", "zstd", "zfp"])
def test_codecs_have_rows(codec: str) -> None:
    event = frame_event("float32")
    event["frame"] = np.ascontiguousarray(event["frame"][:, :64, :64])
    rows = hdf5_codecs._of_codec(codec, "float32", event, BRIEF)
    assert all(row["value"] > 0 for row in rows)
    assert all(row["goal"] for row in rows if row["baseline"])


def test_the_peak_of_memory_is_that_of_a_process_of_its_own() -> None:
    assert 1.0 < hdf5_memory._measured("held") < 4.0
    with pytest.raises(BrokenMeasurementError, match=r"^nonsense: .*KeyError"):
        hdf5_memory._measured("nonsense")


def test_messages_take_turns_in_two_batches() -> None:
    maker = Messages({"x": np.zeros(100_000)}, 2, lasting=False)
    try:
        first, second, third = (maker.next().parts[1] for _ in range(3))
    finally:
        maker.close()
    places = [np.frombuffer(part, np.uint8).ctypes.data for part in (first, second, third)]
    assert places[0] == places[2] != places[1]


def test_program_writes_a_list_of_rows(tmp_path: Path) -> None:
    output = tmp_path / "streamer.json"
    subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.streamer", "--only", "socket"),
            *("--repetitions", "1", "--window", "0.01", "--output", output),
        ],
        check=True,
        cwd=Path(__file__).parents[2],
        capture_output=True,
    )
    rows: list[dict[str, Any]] = json.loads(output.read_text())
    assert all(each.keys() >= KEYS for each in rows)
    with_goals = [each for each in rows if each["goal"]]
    assert len(with_goals) == 9
    assert all(each["met"] is not None for each in with_goals)


def test_what_cannot_be_measured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(options: Options) -> None:
        raise BrokenMeasurementError("nothing moved")

    monkeypatch.setattr("benchmarks.streamer.hdf5_small.rows", fail)
    (only,) = program.measured("small", BRIEF)
    assert (only["name"], only["value"], only["note"]) == ("small", None, "nothing moved")
