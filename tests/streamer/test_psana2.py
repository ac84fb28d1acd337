"""Our source on psana2 itself, as released on PyPI, beside our own reader of the same files."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.area_detectors import (
    EPIX_PANEL,
    EPIX_RANGES,
    FOUR_EPIX,
    JUNGFRAU_PANEL,
    JUNGFRAU_RANGES,
    TWO_JUNGFRAUS,
    constants,
    epix_configuration,
    epixes,
    frames,
    jungfraus,
    write_frames,
)
from tests.helpers.calibration_service import calibration_service, constants_at
from tests.helpers.psana_environment import FIXTURE, Dump, dump, psana_python, tool
from tests.helpers.xtc2_runs import (
    CAMERA,
    EPICS,
    EXPERIMENT,
    START,
    camera_values,
    field,
    made_events,
    same,
    stream_path,
    write_run,
)

from lclstream.streamer.config import parse_parameters
from lclstream.streamer.events import Event, open_event_source
from lclstream.streamer.sources.xtc2_format import FieldType, Names, Service, later
from lclstream.streamer.sources.xtc2_writer import EPICS_KEY, Xtc2Writer

SOAK = bool(os.environ.get("LCLSTREAM_SOAK"))

# The first test installs the environment.
pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

BEAM = Names(
    detector="ebeamh",
    detector_type="ebeam",
    serial="b1",
    algorithm="raw",
    version=(2, 0, 0),
    fields=(
        field("pulseId", FieldType.U8),
        field("energy", FieldType.F4),
        field("charge", FieldType.I2),
        field("trace", FieldType.I4, 1),
        field("note", FieldType.CHARSTR, 1),
        field("mode:Mode", FieldType.ENUMVAL),
    ),
)
# A class of psana2's own tests that wants a segment which is not there.
WRONG = Names(
    detector="wrong",
    detector_type="epix",
    serial="w1",
    algorithm="raw",
    version=(0, 0, 2),
    fields=(field("calib", FieldType.F4, 2),),
)
# psana2 cannot read an enumeration of its own classes for beam data.
BEAM_FIELDS = [each.name for each in BEAM.fields if each.type is not FieldType.ENUMVAL]
READINGS = [
    ["cam", "raw.raw"],
    *(["ebeamh", f"raw.{name}"] for name in BEAM_FIELDS),
    ["gas", ""],
    ["GDET:FEE1:241", ""],
    ["note", ""],
]


@pytest.fixture(scope="module")
def psana() -> Path:
    return psana_python()


def document(identifier: str, kind: str = "Psana2EventSource", **config: Any) -> dict[str, Any]:
    return {
        "source_identifier": identifier,
        "event_source": {"type": kind, **config},
        "data_sources": {"stamp": {"type": "Psana2Timestamp"}},
        "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 1},
        "data_serializer": {"type": "HDF5BinarySerializer"},
    }


def request(identifier: str, readings: Sequence[Sequence[str]], **config: Any) -> dict[str, Any]:
    return {"document": document(identifier, **config), "readings": readings}


def ours(identifier: str, **config: Any) -> list[Event]:
    parameters = parse_parameters(document(identifier, "Xtc2EventSource", **config))
    return list(open_event_source(parameters, 0, 1))


def write_scan(path: Path) -> Path:
    """Write a run of three steps with every kind of field, and one event without beam data."""
    file = Xtc2Writer(
        path, experiment=EXPERIMENT, run=5, start=START, detectors=[*CAMERA, BEAM, WRONG],
        epics=EPICS,
    )  # fmt: skip
    with file:
        file.begin_run(later(START, 1000))
        for number in range(6):
            stamp = later(START, 1_000_000 * (number + 1))
            if number in (2, 4):
                file.next_step(later(stamp, -5000))
            gas = {"gas": number + 0.5, "note": f"update {number}"}
            file.transition(Service.SLOW_UPDATE, later(stamp, -1000), {EPICS_KEY: gas})
            beam = {
                "pulseId": np.uint64(2**64 - 5 + number) if number < 5 else np.uint64(7),
                "energy": np.float32(number / 3), "charge": -number,
                "trace": np.arange(number, dtype=np.int32), "note": f"event {number}",
                "mode:Mode": number,
            }  # fmt: skip
            event = {each.key: camera_values(number, each.segment) for each in CAMERA}
            event |= {WRONG.key: {"calib": np.ones((2, 2), np.float32)}}
            if number != 3:
                event |= {BEAM.key: beam}
            if number == 1:
                del event[CAMERA[2].key]
            file.event(stamp, event)
        file.end_run(later(START, 10_000_000))
    return path


def check_same(theirs: Dump, events: list[Event], readings: Sequence[Sequence[str]]) -> None:
    assert theirs.error == ""
    assert [row[1:] for row in theirs.events] == [
        [each.timestamp, each.run, each.run_timestamp, each.step] for each in events
    ]
    for row, event in enumerate(events):
        assert str(theirs.archive[f"{row}/experiment"]) == event.experiment
        for number, (name, path) in enumerate(readings):
            own = "raw.arrayRaw" if (name, path) == ("cam", "raw.raw") else path
            found, wanted = theirs.reading(row, number), event.read(name, own)
            if wanted is None:
                assert found is None, (row, name, path)
            else:
                assert found is not None, (row, name, path)
                is_text = isinstance(wanted, str)
                assert str(found) == wanted if is_text else same(found, wanted), (row, name, path)


def test_files_and_experiments_are_read_as_by_our_own_source(psana: Path, tmp_path: Path) -> None:
    path = write_scan(tmp_path / "scan.xtc2")
    folder = tmp_path / "data"
    (folder / "smalldata").mkdir(parents=True)
    for run in (5, 6):
        # Our own source passes over damaged data.
        made = [replace(each, damage={}) for each in made_events(4, first=10 * run)]
        for stream, detectors in enumerate([[CAMERA[0]], CAMERA[1:]]):
            name = stream_path(folder, stream, run=run)
            write_run(name, made, detectors=detectors, epics=not stream, run=run)
            smalldata = folder / "smalldata" / f"{name.stem}.smd.xtc2"
            program = str(tool(psana, "smdwriter"))
            subprocess.run([program, "-f", name, "-o", smalldata], check=True, capture_output=True)
    experiment = f"exp={EXPERIMENT},dir={folder}"
    some = [["cam", "raw.raw"], ["gas", ""]]
    files = f"files={path}"
    offline: dict[str, Any] = {"skip_calib_load": "all", "ask_logbook": False}
    requests = [
        request(files, READINGS, **offline),
        request(experiment, some, **offline),
        request(f"{experiment},run=6,max_events=3", some, **offline),
        request(files, [["camm", "raw.raw"]], **offline),
        request(files, [["cam", "raw.rwa"]], **offline),
        request(files, [["wrong", "raw.calib"]], **offline),
        request(f"{experiment},run=9", some, **offline),
        request(f"files={tmp_path}/none.xtc2", some, **offline),
        request(f"files={__file__}", some, **offline),
        request(files, some, calib_url="http://127.0.0.1:9"),
        request(files, some, calib_url="http://127.0.0.1:10"),
        request(f"{experiment},run=5,live", some, **offline),
    ]
    found = [ranks[0] for ranks in dump(psana, tmp_path, requests)]

    check_same(found[0], ours(files), READINGS)
    # Of a file the index is the position; of an experiment, which may be distributed, the time.
    assert [row[0] for row in found[0].events] == list(range(6))
    assert [row[4] for row in found[0].events] == [0, 0, 1, 1, 2, 2]
    assert found[0].reading(1, 0) is None
    settings = {line.partition("'setting': '")[2].partition("'")[0] for line in found[0].log}
    assert {"PS_PARALLEL", "PS_R_MAX_RETRIES"} <= settings

    both = ours(f"{experiment},run=5,6")
    check_same(found[1], both, some)
    assert [row[0] for row in found[1].events] == [each.timestamp for each in both]
    check_same(found[2], both[4:7], some)

    errors = [each.error for each in found[3:]]
    assert "no detector or variable 'camm' (did you mean 'cam'?)" in errors[0]
    assert "'cam' has no field 'raw.rwa' (did you mean 'raw.raw'?)" in errors[1]
    # All of its segments are there: this is no missing data.
    assert errors[2].startswith("KeyError: 2 while psana2 read wrong.raw.calib of the event")
    assert "psana2 cannot read it: No smalldata files found" in errors[3]
    assert errors[4].startswith("NotFoundError: cannot read")
    assert errors[5].startswith("DecodeError: ")
    assert errors[6].startswith("UnavailableError: no calibration constants: ")
    assert errors[6].endswith("where no calibrated values are needed")
    assert "psana was already imported with http://127.0.0.1:9" in errors[7]
    assert "known to the logbook only: it is not asked" in errors[8]


def test_calibrated_frames_have_the_same_bits(psana: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    cases: list[Case] = [epix_case(random, tmp_path, "quad", is_by_pixel=True)]
    if FIXTURE.exists():
        found = constants(random, JUNGFRAU_RANGES, 1, JUNGFRAU_PANEL)
        unique = "jungfrau_8000000020000-230920-20004002c"
        cases.append(Case("jungfrau", FIXTURE, unique, found, ("raw.raw", "raw.calib")))
    if SOAK:
        # Of the same name as another of another version.
        names = jungfraus(2)
        path = write_frames(tmp_path / "two.xtc2", names, frames(random, names, 2, JUNGFRAU_PANEL))
        found = constants(random, JUNGFRAU_RANGES, 2, JUNGFRAU_PANEL, TWO_JUNGFRAUS)
        cases.append(Case("jungfrau", path, "jungfrau_80000-0_80000-1", found))
        cases.append(epix_case(random, tmp_path, "quad", is_by_pixel=False))
        # The service has it as a pickled object, which we do not open.
        for name, numbers in (("noise2", (7, 2, 100)), ("noise7", (6, 7, 30, 100))):
            case = epix_case(random, tmp_path, name, is_by_pixel=False)
            case.constants["common_mode"] = numbers
            cases.append(case)
    with calibration_service() as service:
        for number, case in enumerate(cases):
            short = f"det_{number}"
            constants_at(service, case.unique, short, case.constants)
            service.documents["cdb_mfx101332224", short] = service.documents[
                f"cdb_{EXPERIMENT}", short
            ]
        requests = [
            request(f"files={case.path}", case.readings, calib_url=service.url) for case in cases
        ]
        theirs = [ranks[0] for ranks in dump(psana, tmp_path, requests)]
    for case, each in zip(cases, theirs, strict=True):
        arrays: dict[str, Any] = {key: np.array(value) for key, value in case.constants.items()}
        np.savez(tmp_path / "constants.npz", **arrays)
        settings = {"constants": str(tmp_path / "constants.npz")}
        check_same(each, ours(f"files={case.path}", calibration=settings), case.readings)
        assert len(each.events) == 2
        assert each.reading(0, 1).dtype == np.float32
        assert np.count_nonzero(each.reading(0, 1)) > 100_000


@dataclass(frozen=True)
class Case:
    """A detector, its data and its constants."""

    name: str
    path: Path
    unique: str
    constants: dict[str, Any]
    fields: tuple[str, ...] = ("raw.raw", "raw.calib", "raw.image")

    @property
    def readings(self) -> list[list[str]]:
        return [[self.name, field] for field in self.fields]


def epix_case(random: np.random.Generator, folder: Path, name: str, *, is_by_pixel: bool) -> Case:
    owner = f"{name}{is_by_pixel:d}"
    names = [replace(each, detector=name) for each in epixes(4, owner, is_by_pixel=is_by_pixel)]
    configuration = epix_configuration(random, 4, name, is_by_pixel=is_by_pixel)
    made = frames(random, names, 2, EPIX_PANEL)
    path = write_frames(folder / f"{owner}.xtc2", names, made, configuration)
    unique = "_".join(["epix10ka", *(f"{owner}-{segment}" for segment in range(4))])
    return Case(name, path, unique, constants(random, EPIX_RANGES, 4, EPIX_PANEL, FOUR_EPIX))
