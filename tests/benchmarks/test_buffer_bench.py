"""The benchmark measures: rows are whole, and processor time is counted."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.buffer import ends, namespace
from benchmarks.buffer.cases import FAST, KIB, fast, quick_ends
from benchmarks.buffer.cells import Case, Load, Plan, measure
from benchmarks.buffer.measure import Sample, cpu_s
from benchmarks.buffer.rows import CPU_PER_GB, THROUGHPUT, Goal, compared, plain, row

KEYS = {"name", "value", "unit", "baseline", "ratio", "goal", "met"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ends.build(tmp_path_factory.mktemp("program"))


@pytest.fixture
def plan(tmp_path: Path, program: Path) -> Plan:
    return Plan(repetitions=1, window_s=0.2, warm_up_s=0.0, folder=tmp_path, program=program)


def test_one_case_yields_rows_with_processor_time(plan: Plan) -> None:
    load = Load(size_bytes=64 * KIB)
    cases = [
        Case(name="sp direct", load=load, ends=quick_ends(plan, "sp")),
        Case(name=FAST, load=load, ends=quick_ends(plan, "sp"), relay=fast()),
    ]
    outcomes = measure(cases, plan)
    assert [outcome.broken for outcome in outcomes.values()] == ["", ""]
    (sample,) = outcomes[FAST].samples
    assert sample.cpu_s > 0
    assert sample.ends_cpu_s > 0
    assert sample.peak_rss_bytes > 0
    rows = plain("a cell", outcomes, (THROUGHPUT, CPU_PER_GB))
    rows.append(
        compared("a cell", outcomes, THROUGHPUT, FAST, "sp direct", Goal("ratio", ">=", 0.0))
    )
    # A direct connection has no relay that could use processor time.
    assert [each["name"] for each in rows] == [
        "a cell: sp direct: throughput",
        "a cell: buffer fast: throughput",
        "a cell: buffer fast: relay CPU",
        "a cell: buffer fast: throughput against sp direct",
    ]
    assert all(each.keys() >= KEYS and each["value"] > 0 for each in rows)
    assert rows[-1]["met"] is True


def test_what_cannot_be_measured_says_why(plan: Plan) -> None:
    load = Load(size_bytes=KIB)
    case = Case(name=FAST, load=load, ends=quick_ends(plan, "sp"), relay=fast("--no-such-option"))
    outcomes = measure([case], plan)
    assert outcomes[FAST].broken == "`lclstream buffer serve` has no --no-such-option"
    (only,) = plain("a cell", outcomes, (THROUGHPUT,))
    assert (only["value"], only["met"], only["note"]) == (None, None, outcomes[FAST].broken)


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal("value", "<=", 3.0), True),
        (Goal("value", ">=", 3.5), False),
        (Goal("ratio", ">=", 1.5), True),
        (Goal("difference", "<=", 0.5), False),
    ],
)
def test_goal_is_held_against_the_median(goal: Goal, *, met: bool) -> None:
    assert row("x", "s", [3.0, 2.0, 9.0], baselines=[2.0, 1.0, 6.0], goal=goal)["met"] is met


def test_rates_come_from_one_window() -> None:
    sample = Sample(
        seconds=2.0, bytes=4 * 10**9, messages=4, cpu_s=1.0, ends_cpu_s=2.0, peak_rss_bytes=1
    )
    assert sample.bytes_per_s == 2e9
    assert sample.messages_per_s == 2.0
    assert sample.cpu_s_per_gb == 0.25
    assert sample.ends_cpu_s_per_gb == 0.5
    assert sample.cpu_us_per_message == 250_000


def test_processor_time_of_a_busy_process_is_counted() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            while cpu_s([process.pid]) < 0.01:
                pass
        finally:
            process.kill()


def test_conditions_state_the_congestion_control() -> None:
    stated = namespace.conditions(is_own=False)
    assert stated["congestion control"]
    assert stated["network namespace"] == "of the host"


def test_program_writes_a_list_of_rows(tmp_path: Path) -> None:
    output = tmp_path / "buffer.json"
    subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.buffer", "--only", "latency", "--output", output),
            *("--repetitions", "1", "--window", "0.05"),
        ],
        check=True,
        cwd=Path(__file__).parents[2],
        capture_output=True,
    )
    rows: list[dict[str, Any]] = json.loads(output.read_text())
    assert all(each.keys() >= KEYS for each in rows)
    assert [each["name"] for each in rows if each["goal"]] == [
        "latency, 1 KiB: buffer fast: p50 against sp direct"
    ]
