"""psana1, as its documentation says it is; a stand-in plays its part."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import parse_parameters
from lclstream.streamer.data_sources import Extractor
from lclstream.streamer.events import Event, open_event_source
from lclstream.streamer.sources.psana1 import complete, of_identifier, way_of

FOLDER = Path(__file__).parents[1] / "helpers" / "psana1"
SECONDS = 1_700_000_000


class Camera:
    def raw(self, evt: Any) -> Any:
        return evt.values.get("raw")

    def calib(self, evt: Any, cmpars: Any = None) -> Any:
        assert cmpars is None
        raw = evt.values.get("raw")
        return None if raw is None else raw * np.float32(0.5)

    def shape(self) -> tuple[int, int]:
        return (2, 3)

    def broken(self, evt: Any) -> Any:
        return evt.values["raw"] + None


class Beam:
    def get(self, evt: Any) -> Any:
        energy = evt.values.get("energy")
        if energy is None:
            return None
        return SimpleNamespace(ebeamPhotonEnergy=lambda: energy, TotalIntensity=lambda: energy * 2)


@pytest.fixture
def psana(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    stand_in: Any = importlib.import_module("psana")
    stand_in.EVENTS[:] = [
        stand_in.Event(
            SECONDS + number, 5_000_000 + number, run=430 + number // 5,
            raw=None if number == 3 else np.full((2, 3), number, np.uint16),
            energy=9500.0 + number, codes=[40, 140, number],
        )
        for number in range(7)
    ]  # fmt: skip
    stand_in.DETECTORS |= {
        "Jungfrau1M": Camera(),
        "EBeam": Beam(),
        "evr1": SimpleNamespace(eventCodes=lambda evt: evt.values["codes"]),
        "ipm": SimpleNamespace(channel=lambda evt: np.arange(4, dtype=np.float32)),
        "usb": SimpleNamespace(values=stand_in.Function(lambda evt: [evt.values["energy"], 1])),
        "SIOC:SYS0:ML00:AO192": lambda evt: evt.values["energy"] / 1000,
        "evt:counts": stand_in.Function(lambda *none: len(none)),
    }
    yield stand_in
    del sys.modules["psana"]


def open_source(identifier: str, rank: int = 0, size: int = 1, **config: Any) -> Any:
    return open_event_source(parameters(identifier, **config), rank, size)


def parameters(identifier: str, sources: dict[str, Any] | None = None, **config: Any) -> Any:
    return parse_parameters(
        {
            "source_identifier": identifier,
            "event_source": {"type": "Psana1EventSource", **config},
            "data_sources": sources or {"stamp": {"type": "Psana1Timestamp"}},
            "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 1},
            "data_serializer": {"type": "HDF5BinarySerializer"},
        }
    )


@pytest.mark.parametrize(
    ("written", "read", "way"),
    [
        ("exp=xpptut15:run=430", "exp=xpptut15:run=430:smd", "smd"),
        ("exp=xpptut15:run=430:smd", "exp=xpptut15:run=430:smd", "smd"),
        ("exp=xpptut15:run=430:smd:live", "exp=xpptut15:run=430:smd:live", "smd"),
        ("exp=xpptut15:run=430:live", "exp=xpptut15:run=430:live:smd", "smd"),
        ("exp=xpptut15:run=430:idx", "exp=xpptut15:run=430:idx", "idx"),
        (" exp=cxi/cxid9114:run=95 ", "exp=cxi/cxid9114:run=95:smd", "smd"),
        ("shmem=psana.0:stop=no", "shmem=psana.0:stop=no", "shmem"),
        ("/data/a.xtc,/data/b.xtc", "/data/a.xtc,/data/b.xtc", ""),
    ],
)
def test_an_experiment_is_read_by_small_data_unless_it_says_how(
    written: str, read: str, way: str
) -> None:
    assert complete(written) == read
    assert way_of(read) == way


def test_experiment_and_run_of_an_identifier() -> None:
    assert of_identifier("exp=cxi/cxid9114:run=95:smd") == ("cxid9114", 95)
    assert of_identifier("exp=xpptut15:run=1-5:idx") == ("xpptut15", 0)
    assert of_identifier("shmem=psana.0:stop=no") == ("", 0)


def test_events_are_handed_out_by_psana(psana: Any) -> None:
    psana.SIZE = 2
    found: list[Event] = []
    for psana.RANK in range(2):
        found += open_source("exp=xpptut15:run=430", psana.RANK, 2)
    assert psana.OPENED == [("MPIDataSource", "exp=xpptut15:run=430:smd")] * 2
    found.sort(key=lambda event: event.index)
    assert [event.index for event in found] == list(range(7))
    # Nanoseconds are joined as a number: their leading zeros count.
    assert [event.timestamp for event in found] == [
        (SECONDS + number) << 32 | (5_000_000 + number) for number in range(7)
    ]
    assert [event.run for event in found] == [430] * 5 + [431] * 2
    assert {event.experiment for event in found} == {"xpptut15"}


def test_by_index_every_rank_takes_its_own_times(psana: Any) -> None:
    psana.EVENTS[2].values["not_in_file"] = True
    found = [
        event for rank in range(3) for event in open_source("exp=xpptut15:run=430,431:idx", rank, 3)
    ]
    assert {kind for kind, _ in psana.OPENED} == {"DataSource"}
    assert sorted(event.index for event in found) == [0, 1, 3, 4, 5, 6]
    assert all(event.timestamp & 0xFFFFFFFF == 5_000_000 + event.index for event in found)


def test_shared_memory_gives_every_rank_others(psana: Any) -> None:
    found = list(open_source("shmem=psana.0:stop=no", 1, 3))
    assert psana.OPENED == [("DataSource", "shmem=psana.0:stop=no")]
    assert [event.index for event in found] == [1 + 3 * number for number in range(7)]


def test_of_files_every_rank_takes_its_share(psana: Any) -> None:
    found = [event.index for rank in range(2) for event in open_source("a.xtc,b.xtc", rank, 2)]
    assert psana.OPENED == [("DataSource", ["a.xtc", "b.xtc"])] * 2
    assert found == [0, 2, 4, 6, 1, 3, 5]


def test_every_kind_of_value(psana: Any) -> None:
    del psana
    sources = {
        "frame": {"type": "Psana1DetectorInterface", "psana_name": "Jungfrau1M",
                  "psana_fields": "calib"},
        "shape": {"type": "Psana1DetectorInterface", "psana_name": "Jungfrau1M",
                  "psana_fields": "shape"},
        "old": {"type": "Psana1AreaDetector", "psana_name": "Jungfrau1M", "calibration": False},
        "energy": {"type": "Psana1DetectorInterface", "psana_name": "EBeam",
                   "psana_fields": "get.ebeamPhotonEnergy"},
        "wavelength": {"type": "Psana1PV", "psana_name": "SIOC:SYS0:ML00:AO192"},
        "codes": {"type": "Psana1EvrCodes", "psana_name": "evr1"},
        "codes2": {"type": "Psana1DetectorInterface", "psana_name": "evr1",
                   "psana_fields": "eventCodes"},
        "total": {"type": "Psana1BbmonDetectorTotalIntensity", "psana_name": "EBeam"},
        "channels": {"type": "Psana1IpmDetector", "psana_name": "ipm", "psana_function": "channel"},
        "encoder": {"type": "Psana1UsdUsbDetector", "psana_name": "usb"},
        "counts": {"type": "Psana1DetectorInterface", "psana_name": "evt:counts"},
    }  # fmt: skip
    config = parameters("exp=xpptut15:run=430", sources)
    extractor = Extractor(config, list(sources))
    rows = [extractor.extract(event) for event in open_event_source(config, 0, 1)]
    values: Any = rows[2]
    assert values["frame"].tolist() == [[1.0] * 3] * 2
    assert (values["frame"].dtype, values["old"].dtype) == (np.float32, np.uint16)
    assert values["shape"].tolist() == [2, 3]
    assert values["energy"] == 9502
    assert values["wavelength"] == pytest.approx(9.502)
    for name in ("codes", "codes2"):
        assert (values[name].shape, values[name].dtype) == ((256,), np.int64)
        assert values[name][:4].tolist() == [40, 140, 2, 0]
    assert (values["total"], values["total"].dtype) == (19004, np.float64)
    assert (values["channels"].shape, values["channels"].dtype) == ((4,), np.float64)
    assert values["encoder"].tolist() == [9502, 1]
    assert values["counts"] == 1
    missing: Any = rows[3]
    assert missing["frame"] is None
    assert missing["old"] is None
    assert missing["energy"] == 9503


def test_missing_beam_data_are_missing(psana: Any) -> None:
    psana.EVENTS[0].values["energy"] = None
    event = next(iter(open_source("exp=xpptut15:run=430")))
    assert event.read("EBeam", "get.ebeamPhotonEnergy") is None


def test_mistakes_are_told_from_missing_data(psana: Any) -> None:
    del psana
    event = next(iter(open_source("exp=xpptut15:run=430")))
    with pytest.raises(InvalidConfigError, match=r"no detector or variable 'nothing'"):
        event.read("nothing", "raw")
    with pytest.raises(
        InvalidConfigError, match=r"^'Jungfrau1M' has no field 'calibb': no calibb$"
    ):
        event.read("Jungfrau1M", "calibb")
    with pytest.raises(TypeError, match=r"unsupported operand"):
        event.read("Jungfrau1M", "broken")


def test_too_many_event_codes_are_refused(psana: Any) -> None:
    psana.EVENTS[0].values["codes"] = list(range(257))
    event = next(iter(open_source("exp=xpptut15:run=430")))
    with pytest.raises(InvalidConfigError, match=r"event codes of shape \(257,\), at most 256"):
        event.read("evr1", "eventCodes")


def test_what_psana_cannot_read_is_said(psana: Any) -> None:
    del psana
    with pytest.raises(InvalidConfigError, match=r"psana1 cannot read 'exp=nowhere:run=1:smd': No"):
        open_source("exp=nowhere:run=1")


def test_the_folder_of_constants_is_set_before(psana: Any) -> None:
    open_source("exp=xpptut15:run=430", calib_dir="/calib").close()
    assert psana.OPTIONS == {"psana.calib-dir": "/calib"}


def test_psana2_is_refused_where_psana1_is(psana: Any) -> None:
    del psana
    config = parameters("exp=xpptut15:run=430")
    document = config.model_dump() | {
        "source_identifier": "exp=x,run=1", "event_source": {"type": "Psana2EventSource"},
    }  # fmt: skip
    message = r"needs psana2, which is not installed in this environment, but psana1; they exclude"
    with pytest.raises(InvalidConfigError, match=message):
        open_event_source(parse_parameters(document), 0, 1)
