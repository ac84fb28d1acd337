"""psana2 itself, as released on PyPI, reads what we write and agrees with what we read."""

import base64
import json
import math
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.oracles import oracle
from tests.helpers.xtc2_runs import (
    CAMERA,
    EPICS,
    EXPERIMENT,
    RUN,
    WAVE,
    MadeEvent,
    made_events,
    parameters,
    same,
    stream_path,
    write_run,
)

from lclstream.streamer.events import Event
from lclstream.streamer.sources.xtc2 import Xtc2EventSource
from lclstream.streamer.sources.xtc2_file import Xtc2File
from lclstream.streamer.sources.xtc2_format import Key, Service

FIXTURE = Path(__file__).parents[3] / "shared/data/mfx101332224_r0007_jungfrau05M.xtc2"
READER = Path(__file__).parents[1] / "helpers" / "psana_reader.py"

# mpich is the library that psana's mpi4py wants to find; kerberos would have to be compiled and
# only serves to log in at SLAC.
REQUIREMENTS = ["psana==4.3.4", "mpich"]
WITHOUT = ["pykerberos"]

# The first test installs the environment.
pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@pytest.fixture
def psana() -> Path:
    """Return the Python of an environment with psana2."""
    wheels = {(3, 11), (3, 12), (3, 13)}
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip(f"psana has no wheel for {sys.platform} {platform.machine()}")
    if sys.version_info[:2] not in wheels:
        pytest.skip(f"psana has no wheel for Python {platform.python_version()}")
    return oracle("psana", REQUIREMENTS, without=WITHOUT)


def run(*command: str | Path, folder: Path) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def ask(psana: Path, folder: Path, **request: Any) -> list[dict[str, Any]]:
    """Return the runs as psana2 reads them."""
    question, answer = folder / "request.json", folder / "answer.json"
    question.write_text(json.dumps({"variables": [], "detectors": [], **request}))
    # Without the folder of the script on the path, where other files lie.
    run(psana, "-P", READER, question, answer, folder=folder)
    found: list[dict[str, Any]] = json.loads(answer.read_text())["runs"]
    return found


def value_of(plain: Any) -> Any:
    if isinstance(plain, dict):
        raw = base64.b64decode(plain["data"])
        return np.frombuffer(raw, plain["dtype"]).reshape(plain["shape"])
    return plain


def agree(theirs: Any, ours: Any) -> bool:
    """Return whether psana2's value is ours; it gives scalars as Python's own numbers."""
    theirs = value_of(theirs)
    if isinstance(ours, np.ndarray):
        return same(theirs, ours)
    ours = ours.item() if isinstance(ours, np.generic) else ours
    both_nan = isinstance(ours, float) and math.isnan(ours) and math.isnan(theirs)
    return bool(both_nan or (type(theirs) is type(ours) and theirs == ours))


def check_values(found: dict[str, Any], key: Key, values: Any, damage: int) -> None:
    fields = found[" ".join(map(str, key))]
    assert fields.pop("damage") == damage
    # psana2 shows an enumeration without the name of its type.
    wanted = {name.partition(":")[0]: value for name, value in values.items()}
    assert fields.keys() == wanted.keys()
    for name, value in wanted.items():
        assert agree(fields[name], value), (key, name)


def check_run(found: dict[str, Any], made: list[MadeEvent]) -> None:
    assert (found["experiment"], found["run"]) == (EXPERIMENT, RUN)
    # It lists the detectors that it has a class for.
    assert found["detectors"] == ["cam", "epicsinfo"]
    assert found["variables"] == sorted([key, name] for key, (name, _) in EPICS.items())
    assert [each["timestamp"] for each in found["events"]] == [each.timestamp for each in made]
    for event, one in zip(found["events"], made, strict=True):
        assert len(event["values"]) == len(one.values)
        for key, values in one.values.items():
            check_values(event["values"], key, values, one.damage.get(key, 0))


def test_psana_reads_a_file_of_ours(psana: Path, tmp_path: Path) -> None:
    made = made_events(5)
    path = write_run(stream_path(tmp_path), made)
    (found,) = ask(
        psana,
        tmp_path,
        data_source={"files": str(path)},
        variables=["gas", "GDET:FEE1:241", "note"],
        detectors=["cam"],
    )
    check_run(found, made)
    (begin,) = (each for each in Xtc2File(path) if each.service is Service.BEGIN_RUN)
    assert found["timestamp"] == begin.timestamp
    for event, one in zip(found["events"], made, strict=True):
        gas, note = one.epics["gas"], one.epics["note"]
        assert event["variables"] == {"gas": gas, "GDET:FEE1:241": gas, "note": note}
    # Our source gives what psana2's detector gives, except that it passes over damaged data.
    ours = [each.read("cam", "raw.arrayRaw") for each in events_of(f"files={path}")]
    theirs = [value_of(each["raw"]["cam"]) for each in found["events"]]
    assert [each is None for each in theirs] == [False, False, True, False, False]
    assert [each is None for each in ours] == [False, True, True, False, False]
    assert all(same(theirs[index], ours[index]) for index in (0, 3, 4))


def test_psana_joins_streams_of_ours(psana: Path, tmp_path: Path) -> None:
    made = made_events(4)
    (tmp_path / "smalldata").mkdir()
    for stream, detectors in enumerate([[WAVE, CAMERA[0]], CAMERA[1:]]):
        path = write_run(stream_path(tmp_path, stream), made, detectors=detectors, epics=not stream)
        # The index of a file, made by psana's own program.
        smalldata = tmp_path / "smalldata" / (path.stem + ".smd.xtc2")
        tools = psana.parents[1] / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
        smdwriter = tools / "site-packages" / "bin" / "smdwriter"
        smdwriter.chmod(0o755)
        run(smdwriter, "-f", path, "-o", smalldata, folder=tmp_path)
    source = {"exp": EXPERIMENT, "run": RUN, "dir": str(tmp_path)}
    (found,) = ask(psana, tmp_path, data_source=source, detectors=["cam"])
    check_run(found, made)
    ours = events_of(f"exp={EXPERIMENT},run={RUN},dir={tmp_path}")
    assert [each.timestamp for each in ours] == [each["timestamp"] for each in found["events"]]
    assert same(value_of(found["events"][3]["raw"]["cam"]), ours[3].read("cam", "raw.arrayRaw"))


@pytest.mark.skipif(not FIXTURE.exists(), reason="real Jungfrau data are not here")
def test_we_read_real_data_as_psana_does(psana: Path, tmp_path: Path) -> None:
    (found,) = ask(psana, tmp_path, data_source={"files": str(FIXTURE)}, detectors=["jungfrau"])
    ours = events_of(str(FIXTURE))
    first = ours[0]
    assert (found["experiment"], found["run"]) == (first.experiment, first.run)
    assert found["timestamp"] == first.run_timestamp
    assert [each["timestamp"] for each in found["events"]] == [each.timestamp for each in ours]
    for theirs, event in zip(found["events"], ours, strict=True):
        (key,) = theirs["values"]
        assert key == "jungfrau 0 raw"
        fields = theirs["values"][key]
        assert fields.pop("damage") == 0
        assert len(fields) == 6
        for name, value in fields.items():
            assert agree(value, event.read("jungfrau", f"raw.{name}")), name
        assert agree(theirs["raw"]["jungfrau"], event.read("jungfrau", "raw.raw"))


def events_of(identifier: str) -> list[Event]:
    return list(Xtc2EventSource(parameters(identifier), 0, 1))
