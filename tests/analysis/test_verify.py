"""Every bit that differs from the source is found."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tests.analysis.simulated import SimulatedRun
from tests.client.messages import Producer

from lclstream.analysis.verify import Expectation, Verifier, missing, ranges
from lclstream.cli.main import main
from lclstream.client.decode import decode
from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import parse_parameters

Make = Callable[..., SimulatedRun]


def changed(payload: bytes, path: str, change: Callable[[Any], Any]) -> bytes:
    memory = io.BytesIO(payload)
    with h5py.File(memory, "r+") as file:
        values = file[path][...]
        file[path][...] = change(values)
    return memory.getvalue()


def flip(values: Any) -> Any:
    raw = bytearray(values.tobytes())
    raw[len(raw) // 2] ^= 1
    return np.frombuffer(bytes(raw), values.dtype).reshape(values.shape)


@pytest.mark.parametrize("compression", [None, "gzip_with_shuffle"])
@pytest.mark.parametrize("field", ["raw.raw", "raw.calib"])
def test_whole_run(simulated: Make, compression: str | None, field: str) -> None:
    run = simulated(field=field, compression=compression, missing_frames=0.2, missing_scalars=0.2)
    verifier = Verifier(Expectation(run.parameters))
    for payload in run.messages:
        verifier.add(decode(payload))
    findings = verifier.findings
    assert findings.examples == []
    assert (findings.verified, findings.ok) == (40, True)
    assert ranges(findings.seen) == [[0, 39]]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("data/data", "data/data differs"),
        ("data/energy", "data/energy differs"),
        ("data/mask", "data/mask differs"),
        ("lclstream/timestamp", "timestamp "),
        ("lclstream/valid/frame", "data/data is marked as missing"),
    ],
)
def test_one_bit(simulated: Make, path: str, text: str) -> None:
    run = simulated(events=4)
    verifier = Verifier(Expectation(run.parameters))
    verifier.add(decode(changed(run.messages[0], path, flip)))
    assert verifier.findings.different == 1
    assert text in verifier.findings.examples[0]
    assert not verifier.findings.ok


def test_events_that_cannot_be(simulated: Make) -> None:
    run = simulated(events=4)
    verifier = Verifier(Expectation(run.parameters))
    verifier.add(decode(changed(run.messages[0], "lclstream/event_index", lambda v: v + 2)))
    assert verifier.findings.different == 4
    assert "the source has no event 4" in verifier.findings.examples[-2:]


def test_other_sources_cannot_be_made_again(simulated: Make) -> None:
    document = json.loads(simulated().config.read_text())
    document["event_source"] = {
        "type": "InternalEventSource", "number_of_events_to_generate": 3,
    }  # fmt: skip
    document["data_sources"] = {"timestamp": {"type": "Psana2Timestamp"}}
    document["data_serializer"]["fields"] = {"timestamp": "/timestamp"}
    with pytest.raises(InvalidConfigError, match=r"^cannot make events of a InternalEventSource"):
        Expectation(parse_parameters(document))


def test_command_verifies_and_records(
    simulated: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = simulated()
    output = tmp_path / "out"
    arguments = ["--config", str(run.config), "--output", str(output), "--record"]
    with Producer(run.messages) as producer:
        assert main(["analyse", "verify", "--url", producer.url, *arguments]) == 0
    events, findings, line = capsys.readouterr().out.splitlines()
    summary = json.loads(line)
    assert json.loads(Path(findings).read_text()) == summary
    assert (summary["ok"], summary["verified"], summary["indices"]) == (True, 40, [[0, 39]])
    assert summary["digest"] == run.tally.snapshot().digest
    with h5py.File(events) as file:
        assert list(file["lclstream/event_index"]) == list(range(40))
        frames = [np.asarray(event.read("jungfrau", "raw.calib")) for event in run.events]
        assert (file["data/data"][...] == np.array(frames)).all()
        assert file["data/data"].dtype == np.float32
    assert missing([summary], 42) == [[40, 41]]


def test_command_fails_on_duplicates_and_differences(simulated: Make, tmp_path: Path) -> None:
    run = simulated()
    arguments = ["--config", str(run.config), "--output", str(tmp_path / "out")]
    for payloads in (
        [run.messages[0], run.messages[0]],
        [changed(run.messages[0], "data/data", flip)],
    ):
        with Producer(payloads) as producer:
            assert main(["analyse", "verify", "--url", producer.url, *arguments]) == 1


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [(set(), []), ({3}, [[3, 3]]), ({0, 1, 2, 5, 7, 6}, [[0, 2], [5, 7]])],
)
def test_ranges(numbers: set[int], expected: list[list[int]]) -> None:
    assert ranges(numbers) == expected
