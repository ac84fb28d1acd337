"""psana2 itself, as released on PyPI, reads what we write and agrees with what we read."""

import itertools
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from tests.helpers.psana_answers import Psana, agree, value_of
from tests.helpers.psana_environment import FIXTURE, psana_python, tool
from tests.helpers.xtc2_generated import GeneratedRun, generated_runs, write_generated
from tests.helpers.xtc2_runs import (
    CAMERA,
    EPICS,
    EXPERIMENT,
    RUN,
    START,
    WAVE,
    MadeEvent,
    field,
    made_events,
    parameters,
    same,
    stream_path,
    write_chunks,
    write_run,
)

from lclstream.streamer.events import Event
from lclstream.streamer.sources.xtc2 import Xtc2EventSource
from lclstream.streamer.sources.xtc2_dgram import Dgram, Window, parse_names
from lclstream.streamer.sources.xtc2_file import Xtc2File
from lclstream.streamer.sources.xtc2_format import (
    FieldType,
    Key,
    Names,
    Service,
    XtcType,
    later,
)
from lclstream.streamer.sources.xtc2_index import index_path
from lclstream.streamer.sources.xtc2_index_writer import SMDINFO, write_index
from lclstream.streamer.sources.xtc2_writer import Xtc2Writer

EXAMPLES = 2000 if os.environ.get("LCLSTREAM_SOAK") else 40
# The first test installs the environment.
pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def python() -> Path:
    """Return the Python of an environment with psana2."""
    return psana_python()


@pytest.fixture(scope="module")
def psana(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Psana]:
    """Return a process that reads files by psana2."""
    with Psana(python, tmp_path_factory.mktemp("psana")) as process:
        yield process


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


def test_psana_reads_a_file_of_ours(psana: Psana, tmp_path: Path) -> None:
    made = made_events(5)
    path = write_run(stream_path(tmp_path), made)
    (found,) = psana.ask(
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
    source = Xtc2EventSource(parameters(f"files={path}"), 0, 1)
    ours = [each.read("cam", "raw.arrayRaw") for each in source]
    theirs = [value_of(each["raw"]["cam"]) for each in found["events"]]
    assert [each is None for each in theirs] == [False, False, True, False, False]
    assert [each is None for each in ours] == [False, True, True, False, False]
    assert all(same(theirs[index], ours[index]) for index in (0, 3, 4))


def test_psana_joins_streams_of_ours(python: Path, psana: Psana, tmp_path: Path) -> None:
    made = made_events(4)
    (tmp_path / "smalldata").mkdir()
    for stream, detectors in enumerate([[WAVE, CAMERA[0]], CAMERA[1:]]):
        path = write_run(stream_path(tmp_path, stream), made, detectors=detectors, epics=not stream)
        ours = write_index([path]).read_bytes()
        # The index of a file, made by psana's own program.
        subprocess.run(
            [tool(python, "smdwriter"), "-f", path, "-o", index_path(path)],
            capture_output=True,
            check=True,
        )
        assert_same_index(ours, index_path(path).read_bytes())
    source = {"exp": EXPERIMENT, "run": RUN, "dir": str(tmp_path)}
    (found,) = psana.ask(data_source=source, detectors=["cam"])
    check_run(found, made)
    ours_read = events_of(f"exp={EXPERIMENT},run={RUN},dir={tmp_path}")
    assert [each.timestamp for each in ours_read] == [each["timestamp"] for each in found["events"]]
    theirs = value_of(found["events"][3]["raw"]["cam"])
    assert same(theirs, ours_read[3].read("cam", "raw.arrayRaw"))


def assert_same_index(ours: bytes, theirs: bytes) -> None:
    """Compare all but what smdwriter leaves behind the ends of names: whatever was in memory."""
    assert len(ours) == len(theirs)
    where = Window(theirs, "smdwriter")
    (described,) = (
        each
        for each in Dgram(where, 0, {}).xtcs()
        if each.kind == XtcType.NAMES and each.src == SMDINFO.names_id
    )
    assert parse_names(where, described) == SMDINFO
    assert ours[: described.start] == theirs[: described.start]
    assert ours[described.end :] == theirs[described.end :]


def test_psana_follows_chunks_by_our_index(psana: Psana, tmp_path: Path) -> None:
    made = made_events(5)
    paths = write_chunks(tmp_path, made, cuts=[2, 4])
    write_index(paths)
    source = {"exp": EXPERIMENT, "run": RUN, "dir": str(tmp_path)}
    (found,) = psana.ask(data_source=source, detectors=["cam"])
    check_run(found, made)


def test_psana_stacks_panels_as_we_do(psana: Psana, tmp_path: Path) -> None:
    panels = [
        Names(
            detector="jungfrau",
            detector_type="jungfrau",
            serial=f"panel{segment}",
            algorithm="raw",
            version=(0, 2, 0),
            segment=segment,
            fields=(field("raw", FieldType.U2, 3),),
        )
        # Neither in order nor without a gap.
        for segment in (5, 0, 2)
    ]
    frames = np.random.default_rng(1).integers(0, 1 << 16, (6, 1, 512, 1024), np.uint16)
    for stream, detectors in enumerate([panels[:2], panels[2:]]):
        path = stream_path(tmp_path, stream)
        with Xtc2Writer(
            path, experiment=EXPERIMENT, run=RUN, start=START, detectors=detectors
        ) as file:
            file.begin_run(later(START, 10))
            values = {each.key: {"raw": frames[each.segment]} for each in detectors}
            file.event(later(START, 20), values)
            file.end_run(later(START, 30))
        write_index([path])
    source = {"exp": EXPERIMENT, "run": RUN, "dir": str(tmp_path)}
    (found,) = psana.ask(data_source=source, detectors=["jungfrau"])
    (event,) = events_of(f"exp={EXPERIMENT},run={RUN},dir={tmp_path}")
    ours = event.read("jungfrau", "raw.raw")
    assert same(ours, frames[[0, 2, 5], 0])
    assert same(value_of(found["events"][0]["raw"]["jungfrau"]), ours)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=generated_runs())
def test_psana_reads_the_same_from_any_run(psana: Psana, made: GeneratedRun) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_generated(Path(folder), made)
        source = {"exp": EXPERIMENT, "run": RUN, "dir": folder}
        variables = [*made.epics, *(name for name, _ in made.epics.values()), *made.scan]
        (found,) = psana.ask(data_source=source, variables=variables)
        identifier = f"exp={EXPERIMENT},run={RUN},dir={folder}"
        for size in (1, 3):
            shares = [events_of(identifier, rank, size) for rank in range(size)]
            events = sorted(itertools.chain(*shares), key=lambda each: each.index)
            assert [each.timestamp for each in events] == [
                each["timestamp"] for each in found["events"]
            ]
            for theirs, ours in zip(found["events"], events, strict=True):
                check_event(theirs, ours, made)


def check_event(theirs: dict[str, Any], ours: Event, made: GeneratedRun) -> None:
    for name, value in theirs["variables"].items():
        read = ours.read(name)
        assert (read is None and value is None) or agree(value, read), name
    for names in itertools.chain(*made.detectors):
        alone = f"{names.detector}[{names.segment}]"
        found = theirs["values"].get(" ".join(map(str, names.key)), {})
        for each in names.fields:
            value = ours.read(alone, f"{names.algorithm}.{each.name}")
            # psana2 shows an enumeration without the name of its type, and no labels.
            key = each.name.partition(":")[0]
            if each.type is not FieldType.ENUMDICT:
                assert (value is None) == (key not in found), each.name
                assert value is None or agree(found[key], value), each.name


@pytest.mark.skipif(not FIXTURE.exists(), reason="real Jungfrau data are not here")
def test_we_read_real_data_as_psana_does(psana: Psana) -> None:
    (found,) = psana.ask(data_source={"files": str(FIXTURE)}, detectors=["jungfrau"])
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


def events_of(identifier: str, rank: int = 0, size: int = 1) -> list[Event]:
    """Read what psana2 reads: it hands out damaged values, too."""
    return list(Xtc2EventSource(parameters(identifier, source={"damaged": "keep"}), rank, size))
