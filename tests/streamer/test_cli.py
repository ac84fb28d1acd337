"""The commands `lclstream streamer ...`."""

import importlib
import json
import logging
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from lclstream.cli.main import main
from lclstream.streamer.config import load_parameters, parse_parameters

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(document: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "lclstreamer.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


SENDS = """\
{path}: no problems found
reads: SimulatedDetectorEventSource exp=tst000124,run=3
sends: 3 events in a message
  timestamp -> /timestamp    uint64, 8 B
  frame -> /frame            {frame}
  wavelength -> /wavelength  {wavelength}
  in all {size}, before compression
as: HDF5BinarySerializer
to: nobody; messages are made and discarded
"""


def test_check_says_what_is_sent(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["streamer", "check", str(path)]) == 0
    assert capsys.readouterr().out == SENDS.format(
        path=path,
        frame="as it is read",
        wavelength="as it is read",
        size="24 B of data in a message, and what 2 of the values hold",
    )


def test_check_reads_the_first_event_to_know_more(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["streamer", "check", "--read", str(path)]) == 0
    assert capsys.readouterr().out == SENDS.format(
        path=path,
        frame="uint16 x 1 x 16 x 32, 1.02 kB",
        wavelength="float64, 8 B",
        size="3.12 kB of data in a message",
    )


def test_check_reads_through_the_steps(
    document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "steps.yaml"
    document["source_identifier"] = "exp=tst000124,run=3"
    # Half of the events lack a frame: one that has it is waited for.
    document["event_source"]["missing_frames"] = 0.5
    document["processing_pipeline"] = {
        "type": "ProcessingPipeline",
        "batch_size": 1,
        "steps": [
            {"type": "ConvertType", "inputs": "frame", "dtype": "float32"},
            {"type": "DropValues", "drop": ["wavelength"]},
        ],
    }
    path.write_text(yaml.safe_dump(document))
    assert main(["streamer", "check", "--read", str(path)]) == 0
    output = capsys.readouterr().out
    assert "step 0: ConvertType\nstep 1: DropValues\nsends: 1 event in a message\n" in output
    assert "  frame -> /frame          float32 x 1 x 16 x 32, 2.05 kB\n" in output
    assert "wavelength" not in output


def test_check_says_what_several_ranks_must_mind(
    document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = ["tcp://0.0.0.0:5000", "tcp://0.0.0.0:5001-5009"]
    handler: dict[str, Any] = {
        "type": "BinaryDataStreamingDataHandler",
        "role": "server",
        "urls": urls,
    }
    document["data_handlers"] = [handler]
    path = tmp_path / "served.yaml"
    path.write_text(yaml.safe_dump(document))
    assert main(["streamer", "check", str(path)]) == 0
    assert capsys.readouterr().err == ""
    assert main(["streamer", "check", "--ranks", "4", str(path)]) == 0
    notices = capsys.readouterr().err.splitlines()
    assert [line.partition(", which")[0] for line in notices] == [
        "notice: data_handlers.0: 4 ranks listen at tcp://0.0.0.0:5000"
    ]
    handler |= {"distribute": True, "urls": urls[:1] * 4}
    path.write_text(yaml.safe_dump(document))
    assert main(["streamer", "check", "--ranks", "4", str(path)]) == 0
    assert capsys.readouterr().err == ""


def test_check_says_what_is_not_installed(
    document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec("psana") is not None:
        pytest.skip("psana is installed")
    document["event_source"] = {"type": "Psana2EventSource"}
    path = tmp_path / "psana.yaml"
    path.write_text(yaml.safe_dump(document))
    assert main(["streamer", "check", str(path)]) == 0
    assert "notice: cannot run here: Psana2EventSource needs psana2" in capsys.readouterr().err
    assert main(["streamer", "run", "-c", str(path)]) == 2
    assert "Psana2EventSource needs psana2" in capsys.readouterr().err


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


def test_convert_writes_files_that_say_the_same(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = load_parameters(path)
    for number, options in enumerate((["--minimal"], [])):
        for suffix in ("yaml", "json", "yml"):
            target = tmp_path / f"{number}.{suffix}"
            assert main(["streamer", "convert", *options, str(path), "-o", str(target)]) == 0
            assert load_parameters(target) == parameters
    assert (tmp_path / "0.json").read_text().startswith("{")
    assert (tmp_path / "0.yaml").read_text().startswith("source_identifier: ")
    assert (tmp_path / "1.yaml").stat().st_size > 2 * (tmp_path / "0.yaml").stat().st_size
    capsys.readouterr()


def test_a_minimal_configuration_has_no_defaults(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["streamer", "convert", "--minimal", "--format", "yaml", str(path)]) == 0
    assert (
        capsys.readouterr().out
        == """\
source_identifier: exp=tst000124,run=3
event_source:
  type: SimulatedDetectorEventSource
  events: 20
  panels: 1
  shape: [16, 32]
data_sources:
  timestamp: {type: Psana2Timestamp}
  frame: {type: EventValue, name: jungfrau, field: raw.raw}
  wavelength: {type: EventValue, name: 'SIOC:SYS0:ML00:AO192'}
processing_pipeline: {type: BatchProcessingPipeline, batch_size: 3}
data_serializer: {type: HDF5BinarySerializer}
"""
    )


def test_convert_overwrites_nothing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = path.read_text()
    assert main(["streamer", "convert", str(path), "-o", str(path)]) == 2
    assert capsys.readouterr().err == f"lclstream: {path} exists already; name another file\n"
    assert path.read_text() == before
    assert main(["streamer", "convert", str(path), "-o", "new.txt"]) == 2
    assert "new.txt: end the name with .json, .yaml, .yml" in capsys.readouterr().err
    target = str(path.with_name("new.json"))
    assert main(["streamer", "convert", "--format", "yaml", str(path), "-o", target]) == 2
    assert "a file of this name holds json, not yaml" in capsys.readouterr().err


def test_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["streamer", "schema"]) == 0
    assert "HDF5BinarySerializerConfig" in json.loads(capsys.readouterr().out)["$defs"]


def test_list_shows_every_type_and_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["streamer", "list"]) == 0
    listed = capsys.readouterr().out
    for name in ("Xtc2EventSource", "Psana2Timestamp", "HDF5BinarySerializer"):
        assert f"  {name} " in listed
    assert main(["streamer", "list", "BatchProcessingPipeline"]) == 0
    assert "batch_size: integer, required\n    Events in one message.\n" in capsys.readouterr().out
    assert main(["streamer", "list", "BatchProcesingPipeline"]) == 1
    assert "did you mean 'BatchProcessingPipeline'?" in capsys.readouterr().err
    assert main(["streamer", "list", "Hdf5Serializer"]) == 1
    assert "it is read as HDF5BinarySerializer" in capsys.readouterr().err
    assert main(["streamer", "list", "Psana1PV"]) == 1
    assert "`lclstream streamer convert` writes what is read instead" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("Psana2DetectorInterface", ["psana_fields: text or list of text or null, default null"]),
        ("ProcessingPipeline", ["steps: list of one of steps, default []"]),
        ("Xtc2EventSource", ["calibration: mapping with or null, default null",
                             "    constants: text, required"]),
        ("HDF5BinarySerializer", ["fields: mapping of text to text, default {}"]),
        ("ConstValue", ["value: integer or number or list of anything, required"]),
    ],
)  # fmt: skip
def test_list_explains_fields(
    name: str, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["streamer", "list", name]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line not in listed] == []


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


VERBS = ("run", "check", "list", "inspect", "convert", "schema")


@pytest.mark.parametrize("verb", [[], *([verb] for verb in VERBS)])
def test_help_explains_with_an_example(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["streamer", *verb, "--help"])
    assert "example:\n  " in capsys.readouterr().out


def test_job_scripts_of_lcls_find_the_command_that_they_call(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`lclstreamer -c FILE -n N -d`, and its variable in the environment."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["lclstreamer"].partition(":")
    command = getattr(importlib.import_module(module), function)
    for words, variable, is_debug in (
        (["-c", str(path), "-n", "4", "-d"], "", True),
        (["--config", str(path), "--num-events", "4"], "1", True),
        (["--config", str(path), "--num-events", "4"], "0", False),
    ):
        monkeypatch.setattr(sys, "argv", ["/usr/bin/lclstreamer", *words])
        monkeypatch.setenv("LCLSTREAMER_DEBUG", variable)
        assert command() == 0
        assert '"events": 4' in capsys.readouterr().err
        assert (logging.getLogger().level == logging.DEBUG) is is_debug
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lclstreamer", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        command()
    assert capsys.readouterr().out.startswith("usage: lclstreamer [-h] [-c PATH] [-n N]")


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
