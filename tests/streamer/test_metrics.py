"""What a rank tells of itself while it runs."""

import argparse
import gc
import io
import json
import re
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from tests.streamer.conftest import Start, wait_until
from tests.streamer.test_execution import Collector, Stand, event, running
from tests.streamer.test_run import EXIT_S, last_line, writing

from lclstream.core import quiet
from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.cli import add_run_options
from lclstream.streamer.metrics import MetricsServer, ProgressLines, prometheus, statistics
from lclstream.streamer.pacing import paced
from lclstream.streamer.progress import Progress
from lclstream.streamer.rank import Place
from lclstream.streamer.stopping import StopRequest

pytestmark = pytest.mark.timeout(120)

PREFIX = "lclstream_streamer_"
SENT_EVENTS = f'{PREFIX}sent_events_total{{rank="0"}}'
LINE = re.compile(
    r"rank (\d) of (\d), \d+ s: (\d+) events sent, \d+/s, [0-9.]+ MB/s; busy: (.*); waiting: (.*)"
)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310
        return str(answer.read().decode())


def values_of(text: str) -> dict[str, float]:
    """Read Prometheus' format."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_a_running_rank_tells_of_itself(
    document: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    document["event_source"] |= {"events": 100_000, "rate_hz": 300, "missing_scalars": 0.4}
    document["processing_pipeline"] = {
        "type": "ProcessingPipeline", "batch_size": 3,
        "steps": [{"type": "RequireValues", "inputs": ["wavelength"]}],
    }  # fmt: skip
    process = start(
        writing(document, tmp_path / "out"),
        "--metrics", "127.0.0.1:0", "--progress", "0.1", "--workers", "2",
    )  # fmt: skip
    log: list[str] = []
    assert process.stderr is not None
    reading = threading.Thread(target=lambda: log.extend(process.stderr or ()))
    reading.start()
    wait_until(lambda: any("metrics_listening" in line for line in log))
    url = next(json.loads(line)["url"] for line in log if "metrics_listening" in line)
    wait_until(lambda: values_of(get(f"{url}/metrics"))[SENT_EVENTS] > 30)
    found, listed = values_of(get(f"{url}/metrics")), json.loads(get(f"{url}/v1/statistics"))
    with pytest.raises(HTTPError, match=r"404"):
        get(f"{url}/other")
    process.terminate()
    process.wait(EXIT_S)
    reading.join(EXIT_S)
    lines = [match for line in log if (match := LINE.match(line))]
    assert len(lines) > 2
    assert int(lines[-1][3]) >= listed["sent"]["events"] >= found[SENT_EVENTS]
    for stage in ("read", "process", "serialize", "send_0"):
        assert f"{stage} " in lines[-1][4]
        assert found[f'{PREFIX}stage_busy_seconds_total{{rank="0",stage="{stage}"}}'] > 0
        assert listed["stages"][stage]["cpu_s"] > 0
    assert found[f'{PREFIX}queue_room{{rank="0",queue="batches"}}'] >= 2
    vetoed = found[f'{PREFIX}events_vetoed_by_total{{rank="0",step="RequireValues"}}']
    assert vetoed > 0
    assert found[f'{PREFIX}events_without_total{{rank="0",data_source="wavelength"}}'] >= vetoed
    assert listed["counts"]["events_vetoed_by_RequireValues"] >= vetoed
    assert listed["handlers"]["0"]["undelivered"] == 0
    end = last_line("".join(log))
    assert end["events_read"] == end["events"] + end["events_vetoed"]
    assert end["send_0_messages"] == end["messages"]
    assert end["process_busy_s"] >= 0


def test_who_is_at_work_is_seen() -> None:
    slow, quick = Collector(goes=False), Collector()
    with Stand(slow, quick) as stand, running(lambda: stand.run(20)):
        wait_until(lambda: stand.pool.in_use == 2 and len(quick.events) == 4)
        # The others wait for the slow one; that is not their work.
        wait_until(lambda: stand.progress.running_s > 0.3)
        slow.goes.set()
    first, second = (lane.stage for lane in stand.sender.lanes)
    assert first.busy_s > second.busy_s
    assert first.busy_s > first.cpu_s
    assert stand.pool.waited_s > 0
    figures = stand.figures
    assert figures.stages()["read"][0] < stand.progress.running_s - stand.pool.waited_s + 0.05
    assert figures.queues()["send_0"] == (0, 16)
    assert figures.handlers() == {"0": (10, 0), "1": (10, 0)}
    assert figures.report()["send_1_messages"] == 10


def test_waiting_for_the_due_time_is_no_work() -> None:
    waits: list[float] = []
    with StopRequest() as stop:
        events = list(paced((event(n) for n in range(3)), 20, stop, waited=waits.append))
    assert len(events) == 3
    assert sum(waits) > 0.05


def test_a_continued_run_waits_for_no_events_of_the_past() -> None:
    with StopRequest() as stop:
        # At one event a second these would be due in weeks.
        events = list(paced((event(10_000_000 + n) for n in (2, 5)), 100, stop, ranks=3))
    assert [each.index for each in events] == [10_000_002, 10_000_005]


@pytest.mark.parametrize("address", ["", "host", "host:", ":5", "127.0.0.1:70000", "127.0.0.1:x"])
def test_addresses_that_cannot_be(address: str) -> None:
    with pytest.raises(InvalidConfigError, match=r"must be HOST:PORT, got "):
        MetricsServer(address, Place(0, 1), Progress(Place(0, 1)))


def test_an_occupied_address_is_named() -> None:
    progress = Progress(Place(0, 1))
    with MetricsServer("127.0.0.1:0", Place(0, 1), progress) as server:
        address = server.url.removeprefix("http://")
        with pytest.raises(InvalidConfigError, match=rf"^cannot listen on {address} for metrics: "):
            MetricsServer(address, Place(0, 1), progress)
        assert json.loads(get(f"{server.url}/v1/statistics"))["sent"]["messages"] == 0


def test_names_in_metrics_are_escaped() -> None:
    progress = Progress(Place(3, 4))
    progress.missing = {'a "b"\n': 2}
    found = values_of(prometheus(progress))
    assert found[f'{PREFIX}events_without_total{{rank="3",data_source="a \\"b\\"\\n"}}'] == 2
    assert statistics(progress)["stages"] == {}


def test_lines_tell_of_the_time_between_them() -> None:
    progress, out = Progress(Place(0, 1)), io.StringIO()
    with ProgressLines(progress, 0.01, out):
        wait_until(lambda: out.getvalue().count("\n") > 2)
    lines = out.getvalue().splitlines()
    assert all("0 events sent, 0/s, 0.0 MB/s; busy: -; waiting: -" in line for line in lines)


def test_a_quiet_beginning_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    enabled = [True]

    def note(name: str, value: bool | None = None) -> Callable[[], None]:
        def call() -> None:
            calls.append(name)
            if value is not None:
                enabled[0] = value

        return call

    for name, value in (("disable", False), ("enable", True), ("freeze", None)):
        monkeypatch.setattr(gc, name, note(name, value))
    monkeypatch.setattr(gc, "isenabled", lambda: enabled[0])
    quiet.end()
    assert calls == []
    quiet.begin()
    quiet.end()
    quiet.end()
    assert calls == ["disable", "freeze", "enable"]


@pytest.mark.parametrize(
    "words",
    [["--progress", "0"], ["--progress", "soon"], ["--workers", "0"], ["--workers", "x"],
     ["--resume-from", "-1"], ["-n", "x"]],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_run_options(parser)
    with pytest.raises(SystemExit, match=r"^2$"):
        parser.parse_args(words)
    assert f"argument {words[0]}" in capsys.readouterr().err or words[0] == "-n"


def test_progress_has_an_interval_of_its_own() -> None:
    parser = argparse.ArgumentParser()
    add_run_options(parser)
    assert parser.parse_args([]).progress == 0
    assert parser.parse_args(["--progress"]).progress == 5
    assert parser.parse_args(["--progress", "0.5"]).progress == 0.5
