"""The commands `lclstream streamer ...`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from lclstream.cli.main import main
from lclstream.streamer.config import parse_parameters


@pytest.fixture
def path(document: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "lclstreamer.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_check_finds_nothing_wrong(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["streamer", "check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: no problems found\n"


def test_check_names_every_mistake(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = yaml.safe_load(path.read_text())
    document["processing_pipeline"]["batch_size"] = -1
    document["event_sorce"] = document.pop("event_source")
    path.write_text(yaml.safe_dump(document))
    assert main(["streamer", "check", str(path)]) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == f"lclstream: {path}: 3 problems"
    assert [line.split(":")[0].strip() for line in lines] == [
        "event_source",
        "processing_pipeline.batch_size",
        "event_sorce",
    ]


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["streamer", "check", "absent.yaml"]) == 2
    assert capsys.readouterr().err == (
        "lclstream: cannot read absent.yaml: No such file or directory\n"
    )


def test_convert_prints_the_present_form(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = yaml.safe_load(path.read_text())
    document["data_serializer"]["type"] = "HDF5Serializer"
    path.write_text(yaml.safe_dump(document))
    assert main(["streamer", "convert", str(path)]) == 0
    output = capsys.readouterr()
    assert output.err == "notice: data_serializer: HDF5Serializer is read as HDF5BinarySerializer\n"
    converted = json.loads(output.out)
    assert converted == parse_parameters(document).model_dump(mode="json")
    assert parse_parameters(converted).notices == ()


def test_list_shows_every_type_and_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["streamer", "list"]) == 0
    listed = capsys.readouterr().out
    for name in ("Xtc2EventSource", "Psana2Timestamp", "HDF5BinarySerializer"):
        assert f"  {name} " in listed
    assert main(["streamer", "list", "BatchProcessingPipeline"]) == 0
    assert "batch_size: int, required\n    Events in one message.\n" in capsys.readouterr().out
    assert main(["streamer", "list", "BatchProcesingPipeline"]) == 1
    assert "did you mean 'BatchProcessingPipeline'?" in capsys.readouterr().err


def test_inspect_lists_datasets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "frames.h5"
    with h5py.File(path, "w") as file:
        file["a/frames"] = np.zeros((2, 3, 4), np.uint16)
        file["b"] = 1.5
    assert main(["streamer", "inspect", str(path)]) == 0
    assert capsys.readouterr().out == (
        f"{path}\n  /a/frames: uint16, 2 x 3 x 4\n  /b: float64, one value\n"
    )
    assert main(["streamer", "inspect", str(tmp_path / "absent.h5")]) == 2
    assert capsys.readouterr().err.endswith("/absent.h5: no such file\n")


@pytest.mark.parametrize("verb", [[], ["run"], ["check"], ["list"], ["inspect"], ["convert"]])
def test_help_explains_with_an_example(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["streamer", *verb, "--help"])
    assert "example:\n  " in capsys.readouterr().out


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['lclstreamer', '--help']\n"
        "try:\n    from lclstream.streamer.__main__ import main; main()\n"
        "except SystemExit: pass\n"
        "print([each for each in ('numpy', 'h5py', 'mpi4py', 'httpx') if each in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_a_rank_outside_of_a_transfer_does_not_load_a_web_client() -> None:
    code = "import sys, lclstream.streamer.run; sys.exit('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
