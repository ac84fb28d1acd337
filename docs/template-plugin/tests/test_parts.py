"""The parts in a real run; install the package first: `pip install -e .`."""

import json
import shutil
from pathlib import Path

import pytest

from lclstream.cli.main import main
from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import load_parameters, parse_parameters

EXAMPLE = Path(__file__).parents[1] / "example.yaml"


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(EXAMPLE, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["streamer", "check", "example.yaml"]) == 0
    assert main(["streamer", "run", "-c", "example.yaml"]) == 0
    messages = [json.loads(line) for line in Path("noise.jsonl.r0").read_text().splitlines()]
    # Of 25 events the 10th and the 20th have no frame.
    assert [len(message["index"]) for message in messages] == [4, 4, 4, 4, 4, 3]
    assert [list(message) for message in messages[:1]] == [
        ["rank", "index", "frame", "statistics.mean", "statistics.maximum"]
    ]
    frame, mean = messages[0]["frame"][0], messages[0]["statistics.mean"][0]
    average = sum(map(sum, frame)) / 24
    assert average == pytest.approx(mean - 100, abs=0.6)


def test_mistakes_are_named() -> None:
    document = load_parameters(EXAMPLE).model_dump()
    document["data_sources"]["index"] = document["data_sources"].pop("statistics")
    document["data_sources"]["rank"] = {"type": "IntValue", "value": 1}
    document["processing_pipeline"]["steps"][0]["input"] = "frme"
    document["data_serializer"]["digits"] = 99
    with pytest.raises(InvalidConfigError) as caught:
        parse_parameters(document)
    assert caught.value.problems == (
        "data_serializer.digits: input should be less than or equal to 17, got 99",
        "processing_pipeline.steps.0.input: there is no such value at this step (did you mean"
        " 'frame'?), got 'frme'",
        "data_serializer: no value can be called 'rank' here; the message has one, got 'rank'",
    )
